"""The mzsre loader on small files of every bad kind, and on the real file where it is present."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core import mzsre as module
from langedit_core.errors import RefusedInput
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.mzsre import default_path, load_bzsre, load_mzsre
from langedit_core.records import split_of


def entry(**changes: object) -> dict:
    base = {
        "subject": "Ada Byron",
        "src": "Where was Ada Byron born?",
        "rephrase": "In which city was Ada Byron born?",
        "alt": "Paris",
        "loc": "who wrote emma",
        "loc_ans": "Jane Austen",
        "portability": {"New Question": "In which country was Ada Byron born?", "New Answer": "France"},
    }
    return base | changes


CHINESE = entry(subject="埃达", src="埃达出生在哪里？", rephrase="埃达在哪个城市出生？", alt="巴黎")


@pytest.fixture
def write(tmp_path):
    """Writes records as JSON lines (or given bytes as they are) and returns the path."""

    def write_(*records: object, raw: bytes | None = None):
        path = tmp_path / "mzsre.jsonl"
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        path.write_bytes(raw if raw is not None else lines.encode())
        return path

    return write_


def test_fields_become_a_fact(write):
    data = load_mzsre(write({"id": 3, "en": entry()}), ("en",))
    fact = data.facts["mzsre/3"]["en"]
    assert (fact.prompt, fact.subject, fact.target, fact.truth) == (
        "Where was {} born?",
        "Ada Byron",
        "Paris",
        None,
    )
    assert [(p.kind, p.answer) for p in fact.paraphrases] == [("paraphrase", "Paris")]
    assert [(p.kind, p.prompt, p.answer) for p in fact.neighbours] == [("locality", "who wrote emma", "Jane Austen")]
    assert [(p.kind, p.answer) for p in fact.portability] == [("portability", "France")]
    assert data.splits == {"mzsre/3": split_of("mzsre/3")}


def test_the_pairwise_layout_gives_the_same_facts(write, tmp_path):
    records = [{"en": entry(), "zh": CHINESE}, {"en": entry(alt="Rome"), "zh": CHINESE}]
    lines = load_bzsre(write(*({"id": i} | r for i, r in enumerate(records))))
    array = tmp_path / "pairs.json"
    array.write_text("\ufeff \n" + json.dumps(records, indent=1), "utf-8")
    pairs = load_bzsre(array)
    assert pairs.fingerprint == lines.fingerprint and pairs.name == "bzsre"
    assert set(pairs.facts) == {"mzsre/0", "mzsre/1"} and pairs.languages == ("en", "zh")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"subject": "Ada Lovelace-King"}, "subject not in the question"),
        ({"subject": "ada byron"}, "subject not in the question"),
        ({"src": "Ada Byron: where was Ada Byron born?"}, "subject occurs more than once in the question"),
        ({"alt": ""}, "empty target"),
        ({"alt": " \t"}, "empty target"),
        ({"alt": None}, "empty target"),
        ({"alt": ["Paris"]}, "empty target"),
        ({"subject": ""}, "empty subject"),
        ({"src": 7}, "empty question"),
        ({"src": "Where was Ada Byron {} born?"}, "question or subject holds {}"),
        ({"alt": "Pa\u0000ris"}, "text that no record may hold (control character, {} or too long)"),
        ({"alt": "x" * 3000}, "text that no record may hold (control character, {} or too long)"),
        ({"rephrase": "Where {}?"}, "text that no record may hold (control character, {} or too long)"),
    ],
)
def test_unusable_questions_are_dropped_and_counted(write, changes, reason):
    data = load_mzsre(write({"id": 0, "en": entry()}, {"id": 1, "en": entry(**changes)}), ("en",))
    assert list(data.facts) == ["mzsre/0"]
    assert data.dropped == {reason: {"en": 1}}


@pytest.mark.parametrize("value", [None, "text", ["a"]])
def test_a_missing_language_is_dropped_and_counted(write, value):
    data = load_mzsre(write({"id": 0, "en": entry(), "de": value}, {"id": 1, "en": entry()}), ("en", "de"))
    assert data.dropped == {"no entry in this language": {"de": 2}}
    assert data.languages == ("en",)


def test_incomplete_extras_are_left_out_without_dropping_the_fact(write):
    data = load_mzsre(write({"id": 0, "en": entry(portability="none", loc_ans="", rephrase=None)}), ("en",))
    fact = data.facts["mzsre/0"]["en"]
    assert fact.paraphrases == fact.neighbours == fact.portability == ()


def test_surrounding_spaces_are_removed(write):
    assert (
        load_mzsre(write({"id": 0, "en": entry(alt=" species ")}), ("en",)).facts["mzsre/0"]["en"].target == "species"
    )


@pytest.mark.parametrize("raw", [b"", b"\n \n", b"[]", b'{"id": 0}\n'])
def test_a_file_without_usable_facts_is_an_error(write, raw):
    with pytest.raises(ValueError, match="holds no usable fact in en"):
        load_mzsre(write(raw=raw), ("en",))


def test_an_overlong_array_is_refused(write, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_FILE", 10)
    with pytest.raises(RefusedInput, match="more than 10 bytes"):
        load_mzsre(write(raw=b'[{"en": {}}]'), ("en",))


def test_unknown_options_list_the_known_ones(write):
    path = write({"id": 0, "en": entry()})
    with pytest.raises(ValueError, match="unknown alignment 'fuzy'; known: fuzzy, exact"):
        load_mzsre(path, ("en",), "fuzy")
    with pytest.raises(ValueError, match="unknown language 'jp'"):
        load_mzsre(path, ("en", "jp"))


@pytest.mark.parametrize(
    ("lang", "subject", "question", "prompt", "span"),
    [
        ("de", "Kara Kara Grafschaft", "In welchem Staat liegt die Grafschaft Kara Kara?", None, None),
        ("es", "Estación de bomberos de Toodyay", "¿Quién diseñó la estación de bomberos de Toodyay?",
         "¿Quién diseñó la {}?", "estación de bomberos de Toodyay"),
        ("fr", "Vol 447 d'Air France", "Quand a eu lieu le vol 447 d’Air France ?",
         "Quand a eu lieu le {} ?", "vol 447 d’Air France"),
        ("fr", "Evelin Parnell", "Quelle est la voix d’Evelyn Parnell ?",
         "Quelle est la voix d’{} ?", "Evelyn Parnell"),
        ("en", "USS Leedstown (APA 56)", "Who built the USS Leedstown (APA-56)?",
         "Who built the {}?", "USS Leedstown (APA-56)"),
        ("zh", "国际田联综合项目赛", "国际田联综合项目大赛何时创立？",
         "{}何时创立？", "国际田联综合项目大赛"),
        ("th", "FGM-172 SRAW.", "ใครออกแบบ FGM-172 SRAW?", "ใครออกแบบ {}?", "FGM-172 SRAW"),
    ],
)  # fmt: skip
def test_fuzzy_alignment_takes_the_words_most_like_the_subject(write, lang, subject, question, prompt, span):
    anchor, other = {"id": 0, lang: entry()}, {"id": 1, lang: entry(subject=subject, src=question)}
    path = write(anchor, other)
    assert "mzsre/1" not in load_mzsre(path, (lang,)).facts
    found = load_mzsre(path, (lang,), "fuzzy").facts.get("mzsre/1")
    assert (found[lang].prompt, found[lang].subject) == (prompt, span) if found else prompt is None


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=25), st.text(max_size=60), st.sampled_from(("en", "zh")))
def test_a_prompt_filled_with_its_subject_is_the_question_again(subject, question, lang):
    for alignment in ("exact", "fuzzy"):
        try:
            fact = module._fact("mzsre/0", lang, entry(subject=subject, src=question), alignment)
        except RefusedInput:
            continue
        assert fact.text == question.strip()
        assert fact.prompt.count("{}") == 1
        assert alignment == "fuzzy" or fact.subject == subject.strip()


def test_the_corpus_holds_only_sentences_of_the_corpus_split(write):
    records = [{"id": i, "en": entry(subject=f"N{i}.", src=f"Where is N{i}.?", alt=f"A{i}")} for i in range(60)]
    data = load_mzsre(write(*records), ("en",))
    held_out = {i for i in range(60) if split_of(f"mzsre/{i}") == "corpus"}
    assert held_out and {f"Where is N{i}.? A{i}" for i in held_out} < set(data.corpus["en"])
    assert not any(f"N{i}." in text for i in set(range(60)) - held_out for text in data.corpus["en"])
    assert len(set(data.corpus["en"])) == len(data.corpus["en"])
    assert not any("emma" in text for text in data.corpus["en"])


def test_chinese_sentences_are_joined_without_a_space(write):
    held_out = next(i for i in range(100) if split_of(f"mzsre/{i}") == "corpus")
    assert "埃达出生在哪里？巴黎" in load_mzsre(write({"id": held_out, "zh": CHINESE}), ("zh",)).corpus["zh"]


def test_a_held_out_text_with_control_characters_stays_out_of_the_corpus(write):
    held_out = next(i for i in range(100) if split_of(f"mzsre/{i}") == "corpus")
    data = load_mzsre(write({"id": held_out, "en": entry(rephrase=None), "de": entry(src="Wo\u0000?")}), ("en", "de"))
    assert not any("\u0000" in text for text in data.corpus["de"])


def test_a_missing_file_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no mzsre.jsonl in \$LANGEDIT_DATA; put it there.*New Question"):
        load_mzsre()
    (tmp_path / "mzsre.jsonl").write_text(json.dumps({"id": 0, "en": entry()}), "utf-8")
    assert len(load_mzsre(langs=("en",)).facts) == 1


@pytest.fixture(scope="module")
def real():
    try:
        return default_path()
    except FileNotFoundError:
        pytest.skip("mzsre.jsonl is not here; it is not ours to redistribute (set LANGEDIT_DATA)")


def test_the_real_file_has_the_counted_exact_matches(real):
    data = load_mzsre(real)
    found = {lang: sum(lang in by_lang for by_lang in data.facts.values()) for lang in CORE}
    assert found == {"en": 600, "de": 432, "nl": 336, "es": 307, "fr": 303, "zh": 600}
    assert sum(len(by_lang) == 6 for by_lang in data.facts.values()) == 172
    assert data.dropped == {"subject not in the question": {"de": 168, "es": 293, "fr": 297, "nl": 264}}


def test_fuzzy_alignment_keeps_every_exact_match_of_the_real_file(real):
    exact, fuzzy = load_mzsre(real, tuple(LANGUAGES)), load_mzsre(real, tuple(LANGUAGES), "fuzzy")
    assert all(fuzzy.facts[i][lang] == fact for i, by_lang in exact.facts.items() for lang, fact in by_lang.items())
    assert sum(all(lang in by_lang for lang in CORE) for by_lang in fuzzy.facts.values()) > 350


def test_the_real_pair_is_complete(real):
    assert sum(counts["zh"] for counts in load_bzsre(real).counts().values()) == 600
