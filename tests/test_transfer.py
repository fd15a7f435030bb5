"""Edits of single facts, their placebos and the questions: nothing is left behind, every number is what it says."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pandas as pd
import pytest
import torch
import toy
from conftest import build_model
from hypothesis import given
from hypothesis import strategies as st
from test_editors import batches, every_method, simple_editor
from toy_transfer import SETTINGS, editing, fact, fact_set

from langedit_core import editors, transfer
from langedit_core.atlas import PATH, load_atlas
from langedit_core.editors import Editor, Update
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.nullspace import Threshold
from langedit_core.records import digest
from langedit_core.tokens import continuation, encode
from langedit_core.transfer import COLUMNS, SingleEdits, TransferSettings, choose, chosen_facts, partners, randomised
from langedit_core.transfer_probes import PROBES, Asked, Questioner

FACT, OTHER = "capital/0", "capital/2"
TWO = SETTINGS.model_copy(update=dict(langs=("en", "zh")))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Covariances are kept in a folder of this test."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))


# --- an editor that begins anew ---------------------------------------------------------------------------------------


@every_method
def test_a_reset_editor_gives_the_bits_of_a_fresh_one(method):
    model = build_model("llama")
    unedited = toy.weights(model)
    editor = simple_editor(model, method)
    for batch in batches()[:2]:
        editor.edit(batch)
    editor.finish()
    assert not toy.same(toy.weights(model), unedited)
    assert editor.finished == (editor.settings.damping is not None) and editor.step == 2
    editor.reset()
    assert toy.same(toy.weights(model), unedited)
    assert editor.step == 0 and not editor.finished

    fresh = simple_editor(build_model("llama"), method)
    for batch in batches():  # a forgotten key, or a projector that still knows one, would show in the second batch
        (report, updates), (expected, wanted) = editor.edit(batch), fresh.edit(batch)
        assert report.without_timings() == expected.without_timings()
        for layer, update in updates.items():
            assert toy.same(update.tensors(), wanted[layer].tensors())
    editor.finish()
    fresh.finish()
    assert toy.same(toy.weights(model), toy.weights(fresh.model))


def test_a_reset_undoes_updates_of_which_only_some_were_written(tiny, monkeypatch):
    unedited = toy.weights(tiny)
    editor = simple_editor(tiny, "langedit")
    _, updates = editor.edit(batches()[0])
    editor.reset()
    write, calls = EditableModel.add_, itertools.count(1)

    def interrupted(model, layer, delta):
        write(model, layer, delta)
        if next(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(EditableModel, "add_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        editor.apply(updates)
    assert toy.same(toy.weights(tiny), unedited)


# --- effects of single edits ------------------------------------------------------------------------------------------


def single(model: EditableModel, settings: TransferSettings = TWO, **changes) -> SingleEdits:
    return SingleEdits(model, fact_set(), editing(**changes), settings)


def by_hand(model: EditableModel, asked: Asked) -> tuple[float, float, float]:
    """chosen, em, margin: every candidate alone, token by token, by the library's own forward."""
    means, said = [], False
    for number, candidate in enumerate(asked.candidates):
        ids = encode(model.tokenizer, asked.prompt)
        answer = continuation(model.tokenizer, asked.prompt, LANGUAGES[asked.lang].join + candidate)
        total, greedy = 0.0, True
        for token in answer:
            with torch.no_grad():
                logits = model.hf(torch.tensor([ids])).logits[0, -1].double()
            total += float(logits.log_softmax(-1)[token])
            greedy &= int(logits.argmax()) == token
            ids = [*ids, token]
        means.append(total / len(answer))
        said = greedy if number == 0 else said
    margin = means[0] - max(means[1:])
    return float(margin > 0), float(said), margin


def check_by_hand(rows: pd.DataFrame, model: EditableModel, asked: list[Asked]) -> None:
    assert len(rows) == len(asked)
    for row, question in zip(rows.itertuples(), asked, strict=True):
        assert (row.fact, row.lang, row.probe) == (question.fact, question.lang, question.probe)
        chosen, em, margin = by_hand(model, question)
        assert row.margin == pytest.approx(margin, abs=2e-5)
        assert (row.chosen, row.em) == (chosen, em)


def all_questions(id_: str, probes=tuple(PROBES)) -> list[Asked]:
    question = Questioner(fact_set())
    return [asked for lang in TWO.langs for asked in question(id_, lang, probes)]


def test_every_row_is_a_forced_choice_by_the_model_it_says(tiny):
    edits = single(tiny)
    rows = edits.effects(FACT, OTHER)
    assert list(rows) == list(COLUMNS)
    check_by_hand(rows[rows["edit"] == "none"], tiny, all_questions(FACT))
    assert rows["margin"].abs().min() > 1e-4  # no near tie that rounding could turn
    direct = all_questions(FACT, ("direct",))
    for source in TWO.langs:
        alone = Editor(tiny, editing(), covariances_of(tiny), edits.editor.contexts)
        for edit, edited, asked in (("fact", FACT, all_questions(FACT)), ("unrelated", OTHER, direct)):
            with tiny.restored():
                alone.edit([fact_set().facts[edited][source]])
                check_by_hand(rows[(rows["edit"] == edit) & (rows["source"] == source)], tiny, asked)
            alone.reset()
        with tiny.restored():
            for layer, update in randomised(edits.updates(FACT, source), digest(FACT, source, "0")).items():
                tiny.add_(layer, update.delta)
            check_by_hand(rows[(rows["edit"] == "random") & (rows["source"] == source)], tiny, direct)
    assert len(rows) == len(all_questions(FACT)) * 3 + len(direct) * 2 * 2


def covariances_of(model: EditableModel):
    texts = [text for lang in TWO.langs for text in fact_set().corpus[lang][: TWO.corpus_limit]]
    return transfer.cached_covariance(model, editing().layers, texts)


def test_effects_leave_the_model_as_it_was(tiny):
    unedited = toy.weights(tiny)
    edits = single(tiny)
    rows = edits.effects(FACT, OTHER)
    assert toy.same(toy.weights(tiny), unedited)
    edited = rows[rows["edit"] == "fact"].merge(rows[rows["edit"] == "none"], on=["lang", "probe"])
    assert (edited["margin_x"] != edited["margin_y"]).any()  # they did something meanwhile
    pd.testing.assert_frame_equal(edits.effects(FACT, OTHER), rows)


@pytest.mark.parametrize("asking", [2, 3, 4])  # after the edit, after its random placebo, after the unrelated edit
def test_an_interrupt_while_asking_leaves_the_model_as_it_was(tiny, monkeypatch, asking):
    unedited, real, calls = toy.weights(tiny), transfer.choose, itertools.count(1)

    def interrupted(model, asked):
        if next(calls) == asking:
            assert not toy.same(toy.weights(model), unedited)
            raise KeyboardInterrupt
        return real(model, asked)

    edits = single(tiny)
    monkeypatch.setattr(transfer, "choose", interrupted)
    with pytest.raises(KeyboardInterrupt):
        edits.effects(FACT, OTHER)
    assert toy.same(toy.weights(tiny), unedited) and edits.editor.step == 0


def test_an_edit_that_fails_leaves_the_model_as_it_was(tiny, monkeypatch):
    unedited, edits = toy.weights(tiny), single(tiny)
    monkeypatch.setattr(editors, "solve_update", lambda keys, *_, **__: torch.full_like(keys, float("nan")).double())
    with pytest.raises(FloatingPointError, match="NaN"):
        edits.updates(FACT, "en")
    assert toy.same(toy.weights(tiny), unedited)


def test_an_edit_raises_the_margin_of_its_own_fact_in_its_own_language(tiny):
    toy.confident(tiny)
    settings = SETTINGS.model_copy(update=dict(prefixes=0, probes=("direct",)))
    free = dict(ridge=1e-4, threshold=Threshold(kind="fraction", value=0.95))  # so that the whole value is written
    edits = single(tiny, settings, values=toy.FAST.model_copy(update=dict(clamp=5.0)), **free)
    direct = edits.effects(FACT, OTHER)
    before = direct[direct["edit"] == "none"].set_index("lang")["margin"]
    own = direct[direct["source"] == direct["lang"]].pivot(index="lang", columns="edit", values="margin")
    gains = own.sub(before, axis=0)
    assert (gains["fact"] > 1).all()
    assert gains["fact"].mean() > gains[["random", "unrelated"]].mean().max() + 1  # what any disturbance does is less


def test_strings_written_alike_are_told_per_pair_of_languages(tiny):
    rows = single(tiny, SETTINGS).effects(FACT, OTHER)
    told = rows.groupby(["source", "lang"])[["same_subject", "same_object"]].agg(set)
    for (source, lang), row in told.iterrows():  # English and German share both strings, Chinese neither
        alike = source in ("", lang) or "zh" not in (source, lang)
        assert row["same_subject"] == row["same_object"] == {alike}


def test_subject_and_object_are_compared_apart_and_a_space_before_a_name_does_not_count(tiny):
    english = fact(0)
    changed = {
        (FACT, "zh"): fact(0, "zh", subject=" " + english.subject),  # a Latin name in Chinese
        (FACT, "de"): fact(0, "de", subject="Nordland", target=english.target),
    }
    edits = SingleEdits(tiny, fact_set(changed=changed), editing(), SETTINGS)
    rows = edits.effects(FACT, OTHER)
    pairs = rows[rows["source"] == "en"].groupby("lang")[["same_subject", "same_object"]].first()
    assert pairs.loc["zh"].tolist() == [True, False] and pairs.loc["de"].tolist() == [False, True]


def test_an_edit_is_made_once_for_its_own_rows_and_for_those_it_is_a_placebo_of(tiny, monkeypatch):
    edits, made, real = single(tiny), [], Editor.edit

    def counted(editor, facts, **options):
        made.append((facts[0].id, facts[0].lang))
        return real(editor, facts, **options)

    monkeypatch.setattr(Editor, "edit", counted)
    edits.effects(FACT, OTHER)
    edits.effects(OTHER, FACT)
    assert sorted(made) == sorted((id_, lang) for id_ in (FACT, OTHER) for lang in TWO.langs)


def test_placebos_are_asked_what_the_settings_say(tiny):
    settings = SETTINGS.model_copy(update=dict(placebo_probes=("direct", "reversed"), probes=("direct", "reversed")))
    rows = single(tiny, settings).effects(FACT, OTHER)
    assert rows.groupby("edit")["probe"].agg(set).to_dict() == {
        edit: {"direct", "reversed"} for edit in ("none", "fact", "random", "unrelated")
    }


# --- the random placebo -----------------------------------------------------------------------------------------------


@given(d_out=st.integers(2, 9), d_in=st.integers(1, 7), n=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_a_random_update_keeps_size_and_place_and_loses_the_direction(d_out, d_in, n, seed):
    generator = torch.Generator().manual_seed(seed)
    update = Update(
        left=torch.randn(d_out, n, generator=generator), right=torch.randn(d_in, n, generator=generator),
        keys=torch.randn(d_in, n, generator=generator),
    )  # fmt: skip
    updates = {3: update, 5: update}
    found, again, other = (randomised(updates, digest(name)) for name in (f"{seed}", f"{seed}", f"{seed}|other"))
    for layer in (3, 5):
        torch.testing.assert_close(found[layer].left.norm(dim=0), update.left.norm(dim=0))
        assert found[layer].right is update.right and found[layer].keys is update.keys
        assert not torch.allclose(found[layer].left, update.left)
        assert torch.equal(again[layer].left, found[layer].left)
        assert not torch.equal(other[layer].left, found[layer].left)
    assert not torch.equal(found[3].left, found[5].left)  # every layer has a draw of its own


def test_a_random_update_of_one_fact_has_the_norm_of_the_edit_and_another_direction(tiny):
    update = single(tiny).updates(FACT, "en")
    found = randomised(update, digest("x"))
    cosines = []
    for layer, made in found.items():
        torch.testing.assert_close(made.delta.norm(), update[layer].delta.norm())
        cosines.append(float((made.left * update[layer].left).sum() / made.left.norm() / update[layer].left.norm()))
    assert max(map(abs, cosines)) < 0.6  # of two random directions in 32 dimensions: 0.18 on average


# --- which facts ------------------------------------------------------------------------------------------------------


def test_facts_are_drawn_per_relation_and_always_the_same(tiny):
    data = fact_set(relations=("capital", "money"))
    found = chosen_facts(tiny, data, SETTINGS)
    assert [i.split("/")[0] for i in found] == ["capital"] * 3 + ["money"] * 3
    assert found == chosen_facts(tiny, data, SETTINGS, among=reversed(list(data.facts)))
    fewer = chosen_facts(tiny, data, SETTINGS.model_copy(update=dict(facts=2)))
    assert fewer == found[:2] + found[3:5]  # a smaller draw begins a larger one
    draws = {tuple(chosen_facts(tiny, data, SETTINGS.model_copy(update=dict(seed=s)))) for s in range(4)}
    assert len(draws) > 1


def test_facts_that_lack_a_language_or_a_token_boundary_are_passed_over(tiny):
    settings = SETTINGS.model_copy(update=dict(facts=9))
    merged = fact(2, subject="capita", prompt="The {}l of Norland is")
    data = fact_set(changed={("capital/1", "de"): None, ("capital/2", "en"): merged})
    assert set(chosen_facts(tiny, data, settings)) == set(data.facts) - {"capital/1", "capital/2"}
    english = settings.model_copy(update=dict(langs=("en",)))
    assert "capital/1" in chosen_facts(tiny, data, english)
    assert set(chosen_facts(tiny, data, settings, among=[f"capital/{n}" for n in range(5)])) == {
        "capital/0", "capital/3", "capital/4",
    }  # fmt: skip


def test_other_splits_are_not_edited(tiny):
    data = fact_set()
    splits = {i: "tune" if i in ("capital/0", "capital/5") else "edit" for i in data.facts}
    held = dataclasses.replace(data, splits=splits, fingerprint="")
    settings = SETTINGS.model_copy(update=dict(facts=9))
    assert not {"capital/0", "capital/5"} & set(chosen_facts(tiny, held, settings))
    tuned = chosen_facts(tiny, held, settings.model_copy(update=dict(split="tune")))
    assert set(tuned) == {"capital/0", "capital/5"}


@pytest.mark.parametrize(
    ("among", "split", "told"),
    [
        (["capital/0", "money/1", "money/2"], "edit", "capital=1"),
        (["capital/0"], "edit", "capital=1"),
        ([], "edit", "none at all"),
        (None, "corpus", "none at all"),
    ],
)
def test_too_few_facts_are_refused_with_their_number(tiny, among, split, told):
    data = fact_set(relations=("capital", "money"))
    with pytest.raises(ValueError, match=rf"toy gives too few facts of the split '{split}' in en, de, zh: {told}; at"):
        chosen_facts(tiny, data, SETTINGS.model_copy(update=dict(split=split)), among)


def test_a_partner_is_another_fact_of_the_relation_with_another_new_object():
    alike = fact(1, target=fact(0).target)
    data = fact_set(relations=("capital", "money"), changed={("capital/1", "en"): alike})
    ids = [f"{r}/{n}" for r in ("capital", "money") for n in (0, 1, 2)]
    assert partners(ids, data) == [
        ("capital/0", "capital/2"),  # not the next one, which gets the same object
        ("capital/1", "capital/2"),
        ("capital/2", "capital/0"),
        ("money/0", "money/1"),
        ("money/1", "money/2"),
        ("money/2", "money/0"),
    ]


@given(targets=st.lists(st.sampled_from(toy.TARGETS[:3]), min_size=2, max_size=9))
def test_no_fact_is_its_own_partner_and_another_object_is_preferred(targets):
    size = len(targets)
    changed = {(f"capital/{n}", "en"): fact(n, target=target) for n, target in enumerate(targets)}
    data = fact_set(("en",), size, changed=changed)
    found = partners(list(data.facts), data)
    assert [i for i, _ in found] == list(data.facts)
    for i, j in found:
        assert i != j
        same = data.facts[i]["en"].target == data.facts[j]["en"].target
        assert same == (set(targets) == {data.facts[i]["en"].target})


# --- a whole study ----------------------------------------------------------------------------------------------------


def test_a_study_is_its_facts_one_after_the_other(tiny):
    data = fact_set(relations=("capital", "money"))
    settings = SETTINGS.model_copy(update=dict(facts=2, langs=("en", "zh")))
    found = transfer.transfer(tiny, data, editing(), settings, quiet=True)
    ids = chosen_facts(tiny, data, settings)
    edits = SingleEdits(tiny, data, editing(), settings)
    expected = pd.concat([edits.effects(*pair) for pair in partners(ids, data)], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected)


def test_a_stopped_study_goes_on_and_a_finished_one_edits_nothing(tiny, tmp_path, monkeypatch):
    settings = TWO
    whole = transfer.transfer(tiny, fact_set(), editing(), settings, quiet=True)
    real, calls, stopped = SingleEdits.effects, itertools.count(1), []

    def interrupted(edits, fact_id, unrelated):
        if next(calls) == 3:
            raise KeyboardInterrupt
        stopped.append(fact_id)
        return real(edits, fact_id, unrelated)

    with monkeypatch.context() as patch:
        patch.setattr(SingleEdits, "effects", interrupted)
        with pytest.raises(KeyboardInterrupt):
            transfer.transfer(tiny, fact_set(), editing(), settings, results=tmp_path, quiet=True)
    assert len(list((tmp_path / "transfer").glob("fact-*"))) == 2

    made = []
    monkeypatch.setattr(SingleEdits, "effects", lambda s, f, u: made.append(f) or real(s, f, u))
    again = transfer.transfer(tiny, fact_set(), editing(), settings, results=tmp_path, quiet=True)
    pd.testing.assert_frame_equal(again, whole)
    assert len(made) == 1 and made[0] not in stopped

    monkeypatch.setattr(Editor, "edit", lambda *_, **__: pytest.fail("edited again"))
    pd.testing.assert_frame_equal(
        transfer.transfer(tiny, fact_set(), editing(), settings, results=tmp_path, quiet=True), whole
    )


CHANGES = {
    "model": dict(model=lambda: build_model("llama", seed=1)),
    "data": dict(data=lambda: fact_set(changed={("capital/8", "de"): fact(8, "de", target="north")})),
    "method": dict(edit_settings=lambda: editing("evoedit")),
    "layers": dict(edit_settings=lambda: editing(layers=(1,))),
    "seed of the placebo": dict(settings=lambda: SETTINGS.model_copy(update=dict(seed=1))),
    "probes": dict(settings=lambda: SETTINGS.model_copy(update=dict(probes=("direct",)))),
    "sentences": dict(settings=lambda: SETTINGS.model_copy(update=dict(corpus_limit=3))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_answers_kept_for_something_else_are_not_used(tiny, tmp_path, monkeypatch, change):
    effects = pd.DataFrame([dict.fromkeys(COLUMNS, 0)])
    made = []
    monkeypatch.setattr(SingleEdits, "effects", lambda _, *pair: made.append(pair) or effects)
    given = dict(model=lambda: tiny, data=fact_set, edit_settings=editing, settings=lambda: SETTINGS)

    def run(**parts):
        transfer.transfer(**{name: make() for name, make in (given | parts).items()}, results=tmp_path, quiet=True)
        return len(made)

    assert run() == run() == 3
    assert run(**CHANGES[change]) == 6


def test_fine_tuning_is_refused_since_it_has_no_key(tiny):
    with pytest.raises(ValueError, match="fine-tuning has no key"):
        transfer.transfer(tiny, fact_set(), editing("ft", threshold={}, ridge=1.0), SETTINGS, quiet=True)


# --- questions --------------------------------------------------------------------------------------------------------


def ask(id_, lang, probes=tuple(PROBES), data=None, **options) -> list[Asked]:
    return Questioner(data or fact_set(), **options)(id_, lang, probes)


def test_questions_are_those_of_the_fact_in_the_language():
    of = fact(1, "de")
    direct, paraphrase, implied, reversed_ = ask("capital/1", "de")
    assert [q.probe for q in (direct, paraphrase, implied, reversed_)] == list(PROBES)
    assert {(q.fact, q.lang) for q in (direct, paraphrase, implied, reversed_)} == {("capital/1", "de")}
    assert direct.prompt == of.text == "Land: Ostberg. Hauptstadt:"
    assert direct.candidates[:2] == paraphrase.candidates[:2] == (of.target, of.truth)
    assert paraphrase.prompt == of.paraphrases[0].prompt
    assert (implied.prompt, implied.candidates[0]) == (of.portability[0].prompt, of.portability[0].answer)
    assert reversed_.prompt == f"Hauptstadt: {of.target}. Land:" and reversed_.candidates[0] == of.subject
    assert all(len(q.candidates) == len(set(q.candidates)) == 4 for q in (direct, paraphrase, implied, reversed_))


def test_distractors_are_the_same_facts_in_every_language():
    data = fact_set()
    for id_ in data.facts:
        places = []
        for lang in data.languages:
            objects, subjects = {}, {}
            for n in range(9):
                objects[fact(n, lang).target], subjects[fact(n, lang).subject] = n, n
            direct, _, implied, reversed_ = ask(id_, lang, data=data)
            places.append(
                [[objects[c] for c in direct.candidates], list(implied.candidates)]
                + [[subjects[c] for c in reversed_.candidates]]
            )
        assert places[0] == places[1] == places[2]
    assert len({tuple(ask(i, "en")[0].candidates[2:]) for i in data.facts}) > 4  # and not always the same ones


def test_who_has_the_new_object_is_no_wrong_answer_to_the_relation_backwards():
    of = fact(0)
    changed = {
        ("capital/1", "en"): fact(1, truth=of.target),
        ("capital/2", "en"): fact(2, target=of.target),
    }
    data = fact_set(("en",), 6, changed=changed)
    (asked,) = ask("capital/0", "en", ("reversed",), data, choices=9)
    assert set(asked.candidates) == {fact(n).subject for n in (0, 3, 4, 5)}


def test_a_question_without_a_second_answer_or_of_another_form_is_not_asked():
    plain = toy.fact_set(("en", "zh"), 4)  # "The capital of {} is": nothing to turn round, and no portability
    assert [q.probe for q in ask("capital/0", "en", data=plain)] == ["direct", "paraphrase"]
    assert [q.probe for q in ask("capital/0", "zh", data=plain)] == ["direct", "paraphrase", "reversed"]
    assert ask("capital/0", "en", data=fact_set(("en",), 1, changed={(FACT, "en"): fact(0, truth=None)})) == []


def test_without_a_known_truth_all_others_are_distractors():
    data = toy.fact_set(("en",), 5)
    (asked,) = ask("capital/0", "en", ("direct",), data)
    assert asked.candidates[0] == toy.fact(0).target
    assert set(asked.candidates[1:]) <= {toy.fact(n).target for n in range(1, 5)} and len(asked.candidates) == 4
    assert len(ask("capital/0", "en", ("direct",), data, choices=2)[0].candidates) == 2


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="at least two candidates, got 1"):
        Questioner(fact_set(), choices=1)
    with pytest.raises(ValueError, match="'dirct'.*direct"):
        ask("capital/0", "en", ("dirct",))
    with pytest.raises(ValueError, match="toy has no fact 'capital/0' in 'fr'"):
        ask("capital/0", "fr")
    with pytest.raises(ValueError, match="no fact 'capital/99'"):
        ask("capital/99", "en")


@pytest.fixture(scope="module")
def atlas():
    data = load_atlas()
    some = [i for i in data.facts if int(digest(i)[:4], 16) % 12 == 0]
    assert len({i.split("/")[0] for i in some}) == 8  # of every relation
    return data, some, json.loads(PATH.read_text("utf-8"))


BACKWARDS = {
    "en": ("Official currency: Cuban peso. Country:", "Sweden"),
    "de": ("Amtliche Währung: Kubanischer Peso. Land:", "Schweden"),
    "nl": ("Officiële munteenheid: Cubaanse peso. Land:", "Zweden"),
    "es": ("Moneda oficial: peso cubano. País:", "Suecia"),
    "fr": ("Monnaie officielle : peso cubain. Pays :", "Suède"),
    "zh": ("官方货币：古巴比索。国家：", "瑞典"),
}


@pytest.mark.parametrize("lang", CORE)
def test_the_embedded_facts_are_turned_round_as_each_language_writes(atlas, lang):
    (asked,) = Questioner(atlas[0])("currency/SE", lang, ("reversed",))
    assert (asked.prompt, asked.candidates[0]) == BACKWARDS[lang]


def test_every_embedded_fact_can_be_turned_round_in_all_languages(atlas):
    data, some, content = atlas
    question = Questioner(data)
    for id_ in some:
        for lang in CORE:
            of = data.facts[id_][lang]
            (asked,) = question(id_, lang, ("reversed",))
            kind, noun = content["templates"][of.relation][lang][0].split("{}")
            stop, space = ("。", "") if lang == "zh" else (". ", " ")
            assert asked.prompt == noun.removeprefix(stop) + space + of.target + stop + kind.rstrip()
            assert asked.candidates[0] == of.subject and len(set(asked.candidates)) == len(asked.candidates) == 4
            wrong = [f[lang] for i, f in data.facts.items() if f[lang].subject in asked.candidates[1:]]
            assert len(wrong) >= 3
            assert not any(of.target in (f.truth, f.target) for f in wrong if f.relation == of.relation)


def test_every_embedded_fact_is_chosen_among_four_answers_of_its_relation(atlas):
    data, some, content = atlas
    question = Questioner(data)
    for id_ in some:
        row = next(row for row in content["facts"] if row["id"] == id_)
        for lang in CORE:
            of, names = data.facts[id_][lang], {e: by[lang] for e, by in content["entities"].items()}
            asked = question(id_, lang, ("direct", "paraphrase"))
            assert [q.prompt for q in asked] == [
                template.replace("{}", of.subject) for template in content["templates"][of.relation][lang]
            ]
            objects = {names[r[end]] for r in content["facts"] for end in ("truth", "target")
                       if r["id"].startswith(of.relation + "/")}  # fmt: skip
            for q in asked:
                assert q.candidates[:2] == (names[row["target"]], names[row["truth"]])
                assert set(q.candidates) <= objects and len(set(q.candidates)) == len(q.candidates) == 4
            implied = question(id_, lang, ("implied",))
            assert [(q.prompt, q.candidates[0]) for q in implied] == [
                (content["templates"][relation][lang][0].replace("{}", names[subject]), names[answer])
                for relation, subject, answer in row["portability"]
            ]
            assert all(len(set(q.candidates)) == len(q.candidates) == 4 for q in implied)


def test_embedded_distractors_are_the_same_things_in_every_language(atlas):
    data, some, content = atlas
    question = Questioner(data)
    known = content["entities"]
    capitals = [i for i in some if i.startswith("capital/")]
    assert len(capitals) > 10
    for id_ in capitals:
        english = question(id_, "en", ("direct",))[0].candidates
        cities = [{e for e in known if e.startswith("city/") and known[e]["en"] == name} for name in english]
        for lang in CORE[1:]:
            there = question(id_, lang, ("direct",))[0].candidates
            assert all(c in {known[e][lang] for e in same} for c, same in zip(there, cities, strict=True))


def test_a_choice_of_one_token_answers_is_the_difference_of_two_log_probabilities(tiny):
    asked = Asked(fact="x", lang="en", probe="direct", prompt="The", candidates=(toy.TARGETS[0], toy.TARGETS[1]))
    ((chosen, em, margin),) = choose(tiny, [asked])
    assert (chosen, em, margin) == pytest.approx(by_hand(tiny, asked), abs=1e-5)
    turned = dataclasses.replace(asked, candidates=asked.candidates[::-1])
    ((other, _, back),) = choose(tiny, [turned])
    assert back == pytest.approx(-margin, abs=1e-5) and {chosen, other} == {0.0, 1.0}
    assert choose(tiny, []) == []
