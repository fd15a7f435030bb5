"""Properties of the record schema, the splits and the selection of facts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core.errors import RefusedInput, unknown
from langedit_core.languages import CORE, LANGUAGES, language
from langedit_core.records import GROUPS, KINDS, SPLITS, Fact, FactSet, Probe, digest, split_of


def fact(number: int = 0, lang: str = "en", **changes: object) -> Fact:
    fields = {
        "id": f"toy/{number}",
        "relation": "toy",
        "subject": f"S{number}",
        "prompt": "{} is",
        "target": "new",
    }
    return Fact(**(fields | {"lang": lang} | changes))


def facts(size: int, langs: tuple[str, ...] = ("en", "de"), holes: frozenset = frozenset()) -> FactSet:
    """A set of `size` facts; `holes` are the (number, language) pairs that are missing."""
    by_id = {f"toy/{i}": {k: fact(i, k) for k in langs if (i, k) not in holes} for i in range(size)}
    return FactSet(
        name="toy",
        facts=by_id,
        corpus={k: ("a sentence",) for k in langs},
        splits={i: split_of(i[4:]) for i in by_id},
    )


@pytest.mark.parametrize("changes", [
    dict(target=" new"), dict(target="new "), dict(prompt="{} is "), dict(truth="old\u3000"),
])  # fmt: skip
def test_white_space_at_the_edge_of_a_text_is_refused(changes):
    with pytest.raises(RefusedInput, match="begins or ends in white space; remove it"):
        fact(**changes)


def test_a_subject_may_have_the_space_that_gives_it_its_tokens():
    assert fact(prompt="国家：{}。首都：", subject=" Sweden").text == "国家： Sweden。首都："


def test_text_is_the_prompt_with_the_subject_filled_in():
    assert fact(prompt="Land: {}. Währung:", subject="Schweden").text == "Land: Schweden. Währung:"


@pytest.mark.parametrize("prompt", ["no gap", "{} and {}", "", " ", "{}\n", "{}\x00", "{} \u2028", "x" * 2000 + "{}"])
def test_a_prompt_that_cannot_be_filled_in_is_refused_and_names_the_record(prompt):
    with pytest.raises(RefusedInput, match="toy/0.*'en'") as caught:
        fact(prompt=prompt)
    assert (caught.value.record, caught.value.lang) == ("toy/0", "en")


@pytest.mark.parametrize("name", ["subject", "target", "truth"])
@pytest.mark.parametrize("text", ["", "  ", "a{}b", "tab\there", "\x7f", "\ud800", "y" * 2001])
def test_a_subject_or_object_that_is_no_plain_text_is_refused(name, text):
    with pytest.raises(RefusedInput, match=name):
        fact(**{name: text})


@pytest.mark.parametrize("place", ["paraphrases", "neighbours", "portability"])
@pytest.mark.parametrize(("prompt", "answer"), [("{} is", "a"), ("Who?", ""), ("", "a"), ("Who?\r", "a")])
def test_a_probe_must_be_complete(place, prompt, answer):
    kind = GROUPS[place][0]
    with pytest.raises(RefusedInput, match=f"{kind} (prompt|answer)"):
        fact(**{place: (Probe(prompt=prompt, answer=answer, kind=kind),)})


@pytest.mark.parametrize("place", GROUPS)
def test_a_field_takes_its_own_kinds_of_questions_only_since_the_kind_decides_the_metric(place):
    for kind in KINDS:
        probes = [Probe(prompt="Who?", answer="a", kind=kind)]
        if kind in GROUPS[place]:
            assert getattr(fact(**{place: probes}), place) == tuple(probes)  # a list will do
        else:
            with pytest.raises(RefusedInput, match=f"{place} holds a question of kind '{kind}'; expected"):
                fact(**{place: probes})


def test_an_unknown_kind_is_answered_with_the_nearest_first():
    with pytest.raises(ValueError, match="known: neighbour_near, neighbour_"):
        Probe(prompt="a", answer="b", kind="neighbour_nar")


def test_an_unknown_language_is_refused_with_the_known_ones():
    with pytest.raises(RefusedInput, match="unknown language 'dee'; known: de"):
        fact(lang="dee")
    with pytest.raises(ValueError, match="unknown language"):
        language("xx")


@given(st.text(max_size=20), st.sets(st.text(min_size=1, max_size=10), max_size=8))
def test_unknown_lists_every_known_name(got, known):
    message = str(unknown("thing", got, known))
    assert all(name in message for name in known)


def test_every_language_has_five_starters_and_only_chinese_joins_without_a_space():
    assert set(CORE) < set(LANGUAGES) and len(LANGUAGES) == 12
    assert {code for code, entry in LANGUAGES.items() if entry.join == ""} == {"zh"}
    for code, entry in LANGUAGES.items():
        assert entry.code == code
        assert len(set(entry.starters)) == 5
        assert all(text == text.strip() != "" for text in entry.starters)


def test_split_follows_the_stated_hash():
    assert digest("SE").startswith("f031b70a2653be44")
    assert digest("0", "SE") == digest("0|SE")
    # Written out, so that a changed hash cannot move facts between splits unnoticed.
    assert {group: split_of(group) for group in ("SE", "AM", "TH", "mzsre/0", "Berlin")} == {
        "SE": "edit",
        "AM": "corpus",
        "TH": "tune",
        "mzsre/0": "edit",
        "Berlin": "edit",
    }


def test_splits_hold_an_eighth_an_eighth_and_three_quarters():
    shares = [sum(split_of(str(i)) == name for i in range(8000)) / 8000 for name in SPLITS]
    assert shares == pytest.approx([0.75, 0.125, 0.125], abs=0.02)


def test_group_is_the_subject_shared_by_all_relations():
    assert fact(id="capital/SE", relation="capital").group == fact(id="currency/SE", relation="currency").group == "SE"
    assert fact(id="mzsre/17", relation="zsre").group == "mzsre/17"


def test_a_subject_in_two_splits_is_an_error():
    by_id = {i: {"en": fact(id=i, relation=i[0])} for i in ("a/SE", "b/SE")}
    with pytest.raises(ValueError, match="'SE' lies in two splits"):
        FactSet(name="toy", facts=by_id, corpus={}, splits={"a/SE": "edit", "b/SE": "tune"})


def test_facts_filed_under_a_wrong_key_are_an_error():
    with pytest.raises(ValueError, match="filed under"):
        FactSet(name="toy", facts={"toy/1": {"en": fact(0)}}, corpus={}, splits={"toy/1": "edit"})
    with pytest.raises(ValueError, match="same ids"):
        FactSet(name="toy", facts={"toy/0": {"en": fact(0)}}, corpus={}, splits={})
    with pytest.raises(ValueError, match="unknown split 'train'"):
        FactSet(name="toy", facts={"toy/0": {"en": fact(0)}}, corpus={}, splits={"toy/0": "train"})


def test_fingerprint_depends_on_content_and_not_on_order():
    original = facts(6)
    shuffled = FactSet(
        name="other name",
        facts={i: dict(reversed(by_lang.items())) for i, by_lang in reversed(original.facts.items())},
        corpus=dict(reversed(original.corpus.items())),
        splits=original.splits,
    )
    assert shuffled.fingerprint == original.fingerprint
    probe = Probe(prompt="Who?", answer="a", kind="locality")
    changes = (
        {"target": "x"},
        {"truth": "x"},
        {"prompt": "{} x"},
        {"neighbours": (probe,)},
        {"subject": "x"},
    )
    for change in changes:
        changed = original.facts | {"toy/0": {"en": replace(original.facts["toy/0"]["en"], **change)}}
        assert replace(original, facts=changed, fingerprint="").fingerprint != original.fingerprint
    assert replace(original, corpus={"en": ("b",)}, fingerprint="").fingerprint != original.fingerprint


def test_a_foreign_fingerprint_is_an_error():
    with pytest.raises(ValueError, match="load them afresh"):
        replace(facts(3), fingerprint="0" * 64)


def test_counts_add_up():
    data = facts(40, holes=frozenset({(0, "de"), (1, "de")}))
    assert sum(n["en"] for n in data.counts().values()) == 40
    assert sum(n["de"] for n in data.counts().values()) == 38


holes = st.frozensets(st.tuples(st.integers(0, 59), st.sampled_from(("en", "de", "zh"))), max_size=60)


@settings(max_examples=40, deadline=None)
@given(holes, st.integers(1, 8), st.integers(0, 3), st.sampled_from(("rounds", "lists")))
def test_distinct_selections_never_use_an_id_twice(holes, n, seed, deal):
    data = facts(60, ("en", "de", "zh"), holes)
    langs = ["en", "zh", "en", "de"]
    try:
        hands = data.select(langs, n, seed=seed, deal=deal)
    except ValueError as error:
        assert "ask for fewer" in str(error)
        return
    assert [len(hand) for hand in hands] == [n] * 4
    assert [{f.lang for f in hand} for hand in hands] == [{lang} for lang in langs]
    ids = [f.id for hand in hands for f in hand]
    assert len(set(ids)) == len(ids)
    assert all(data.splits[i] == "edit" for i in ids)


@settings(max_examples=40, deadline=None)
@given(holes, st.integers(1, 12), st.integers(0, 3))
def test_parallel_selections_have_the_same_ids_in_every_language(holes, n, seed):
    data = facts(60, ("en", "de", "zh"), holes)
    hands = data.select(("de", "zh"), n, seed=seed, parallel=True)
    assert [f.id for f in hands[0]] == [f.id for f in hands[1]]
    assert len({f.id for f in hands[0]}) == n


@pytest.mark.parametrize("parallel", [False, True])
def test_a_smaller_selection_is_a_prefix_of_a_larger_one(parallel):
    data = facts(80)
    small, large = (data.select(("en", "de"), n, parallel=parallel) for n in (5, 20))
    assert small == [hand[:5] for hand in large]


@settings(max_examples=40, deadline=None)
@given(holes, st.integers(1, 5), st.integers(0, 3))
def test_lists_dealt_one_after_another_do_not_depend_on_later_languages(holes, n, seed):
    data = facts(60, ("en", "de", "zh"), holes)
    try:
        runs = [data.select(("de", "en", *later), n, seed=seed, deal="lists") for later in (("de", "en"), ("zh", "de"))]
    except ValueError as error:
        assert "ask for fewer" in str(error)
        return
    assert runs[0][:2] == runs[1][:2] and runs[0][2] != runs[1][2]


def test_dealing_in_rounds_lets_later_languages_change_the_first_lists():
    data = facts(60, ("en", "de", "zh"), frozenset((i, "zh") for i in range(0, 60, 2)))
    one, other = (data.select(("en", later), 8) for later in ("de", "zh"))
    assert one[0] != other[0]


def test_selection_repeats_itself_and_changes_with_the_seed():
    data = facts(80)
    assert data.select(("en",), 20, seed=1) == data.select(("en",), 20, seed=1)
    assert data.select(("en",), 20, seed=1) != data.select(("en",), 20, seed=2)


def test_selection_follows_the_stated_order():
    data = facts(80)
    wanted = sorted((i for i in data.facts if data.splits[i] == "edit"), key=lambda i: digest("7", i))
    assert [f.id for f in data.select(("en",), 10, seed=7)[0]] == wanted[:10]


def test_asking_for_too_many_says_how_many_there_are():
    data = facts(40)
    there = sum(split == "edit" for split in data.splits.values())
    with pytest.raises(ValueError, match=f"only {there} of the split 'edit'"):
        data.select(("en", "de"), 41, parallel=True)
    with pytest.raises(ValueError, match=f"only {there // 2} each .en={there}, de={there}"):
        data.select(("en", "de"), 41)
    with pytest.raises(ValueError, match=f"only {there - 20} to list 2, de .en={there}, de={there}"):
        data.select(("en", "de"), 20, deal="lists")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("en", "fr"), 2), "unknown language of the data set 'toy' 'fr'; known: "),
        ((("en",), 2, "test"), "unknown split 'test'"),
        ((("en",), 0), "at least one"),
        (((), 1), "at least one"),
    ],
)
def test_impossible_selections_are_explained(arguments, message):
    with pytest.raises(ValueError, match=message):
        facts(10).select(*arguments)


def test_every_kind_the_schema_names_can_be_built():
    assert [Probe(prompt="a", answer="b", kind=kind).kind for kind in KINDS] == list(KINDS)
