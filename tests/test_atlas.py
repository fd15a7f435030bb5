"""Properties of the embedded facts: no leak between splits, every target false, the file can be rebuilt."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest

from langedit_core import atlas as module
from langedit_core.atlas import load_atlas
from langedit_core.languages import CORE
from langedit_core.records import SPLITS, split_of

ROOT = Path(__file__).resolve().parent.parent
RELATIONS = {
    "capital": 128, "city_territory": 205, "continent": 192, "currency": 186, "currency_iso": 186,
    "language_script": 421, "official_language": 122, "subregion": 192,
}  # fmt: skip


@pytest.fixture(scope="module")
def atlas():
    return load_atlas()


@pytest.fixture(scope="module")
def everything(atlas):
    return [fact for by_lang in atlas.facts.values() for fact in by_lang.values()]


def fold(text: str) -> str:
    flat = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in flat if not unicodedata.combining(c))


def test_the_designed_number_of_facts_is_there_in_every_language(atlas):
    assert len(atlas.facts) == 1632
    assert all(set(by_lang) == set(CORE) for by_lang in atlas.facts.values())
    found = dict.fromkeys(RELATIONS, 0)
    for id_ in atlas.facts:
        found[id_.split("/")[0]] += 1
    assert found == RELATIONS


def test_header_counts_are_those_of_the_facts(atlas):
    assert {split: atlas.counts()[split]["en"] for split in SPLITS} == atlas.provenance["total"]
    assert atlas.provenance["total"]["edit"] == 1258
    assert all("licence" in source and "version" in source for source in atlas.provenance["sources"])


def test_no_target_equals_contains_or_is_contained_in_the_truth(everything):
    for fact in everything:
        new, old = fold(fact.target), fold(fact.truth)
        assert new not in old and old not in new, (fact.id, fact.lang)


def test_no_target_is_also_true():
    atlas = load_atlas(("en",))
    wrong = {
        "continent/RU": "Asia",
        "continent/TR": "Europe",
        "continent/EG": "Asia",
        "subregion/CY": "Southern Europe",
    }
    for id_, second in wrong.items():
        assert atlas.facts[id_]["en"].target != second


def test_no_latin_subject_begins_like_its_target(everything):
    for fact in everything:
        if fact.lang != "zh" and fact.relation != "currency_iso":
            for a in fold(fact.subject).replace("-", " ").split():
                for b in fold(fact.target).replace("-", " ").split():
                    assert len(a) < 4 or len(b) < 4 or a[:4] != b[:4], (fact.id, fact.lang)


def test_false_objects_occur_as_often_as_true_ones_except_for_scripts(atlas):
    for relation in RELATIONS.keys() - {"language_script"}:
        edits = [f["en"] for i, f in atlas.facts.items() if atlas.splits[i] == "edit" and i.startswith(f"{relation}/")]
        assert sorted(f.target for f in edits) == sorted(f.truth for f in edits)


def test_one_subject_lies_in_one_split_whatever_the_relation(atlas):
    homes: dict[str, set[str]] = {}
    for id_, by_lang in atlas.facts.items():
        homes.setdefault(by_lang["en"].subject, set()).add(atlas.splits[id_])
        assert atlas.splits[id_] == split_of(by_lang["en"].group)
    assert all(len(splits) == 1 for splits in homes.values())


def test_subjects_and_objects_have_names_of_their_own(atlas):
    for lang in CORE:
        for relation in RELATIONS:
            rows = [f for i, f in atlas.facts.items() if i.startswith(f"{relation}/")]
            assert len({f[lang].subject for f in rows}) == len(rows)
            assert len({f[lang].truth for f in rows}) == len({f["en"].truth for f in rows})


def test_neighbours_come_from_the_tune_split_and_are_not_the_edited_subject(atlas):
    for lang in CORE:
        tune = {f[lang].text: f[lang] for i, f in atlas.facts.items() if atlas.splits[i] == "tune"}
        for by_lang in atlas.facts.values():
            for probe in by_lang[lang].neighbours:
                assert tune[probe.prompt].truth == probe.answer
                assert tune[probe.prompt].group != by_lang[lang].group


def test_neighbours_are_what_their_kind_says(everything):
    kinds = set()
    for fact in everything:
        seen = [probe.kind for probe in fact.neighbours]
        kinds |= set(seen)
        assert len(seen) == len(set(seen))
        assert seen, f"{fact.id} has no neighbour"
        for probe in fact.neighbours:
            assert (probe.answer == fact.truth) == (probe.kind == "neighbour_same")
            assert probe.answer != fact.target and probe.prompt != fact.text
    assert kinds == {"neighbour_same", "neighbour_near", "neighbour_far"}


def test_no_edited_sentence_and_no_tested_question_is_in_the_corpus(atlas):
    for lang in CORE:
        sentences = atlas.corpus[lang]
        assert len(sentences) == 3 * atlas.provenance["total"]["corpus"] == len(set(sentences))
        # Beginnings are compared, since names end inside others: "Guinea (country)".
        starts = {text[:n] for text in sentences for n in range(3, len(text))}
        for id_, by_lang in atlas.facts.items():
            fact = by_lang[lang]
            asked = {fact.text, *(p.prompt for p in (*fact.paraphrases, *fact.portability))}
            if atlas.splits[id_] == "corpus":
                assert fact.text in starts
            else:
                assert not asked & starts
            assert not {p.prompt for p in fact.neighbours} & starts


def test_currency_edits_imply_the_code_of_the_new_currency(atlas):
    code_of = {f["en"].truth: atlas.facts[i.replace("currency/", "currency_iso/")]["en"].truth
               for i, f in atlas.facts.items() if i.startswith("currency/")}  # fmt: skip
    checked = 0
    for id_, by_lang in atlas.facts.items():
        if id_.startswith("currency/") and atlas.splits[id_] == "edit":
            (probe,) = by_lang["en"].portability
            assert probe.answer == code_of[by_lang["en"].target]
            assert probe.prompt == atlas.facts[id_.replace("currency/", "currency_iso/")]["en"].text
            checked += 1
    assert checked > 100


def test_capital_edits_imply_the_country_of_the_new_capital(atlas):
    probes = [(f["fr"], p) for i, f in atlas.facts.items() if i.startswith("capital/") for p in f["fr"].portability]
    assert len(probes) > 50
    for fact, probe in probes:
        assert probe.answer == fact.subject and fact.target in probe.prompt


def test_subregion_edits_imply_the_continent_only_where_it_changes(atlas):
    probes = [
        (i, f["en"], p) for i, f in atlas.facts.items() if i.startswith("subregion/") for p in f["en"].portability
    ]
    assert len(probes) > 50
    for id_, _, probe in probes:
        assert probe.answer != atlas.facts[id_.replace("subregion/", "continent/")]["en"].truth


def test_paraphrases_are_two_and_ask_for_the_target(everything):
    for fact in everything:
        assert [p.answer for p in fact.paraphrases] == [fact.target] * 2
        assert all(fact.subject in p.prompt and p.prompt != fact.text for p in fact.paraphrases)


def test_two_loads_have_one_fingerprint_and_another_language_set_has_another(atlas):
    pair = load_atlas(("en", "zh")).fingerprint
    assert load_atlas(("zh", "en", "zh")).fingerprint == pair != atlas.fingerprint


def test_selections_for_six_languages_are_large_enough(atlas):
    hands = atlas.select(CORE, 200)
    assert len({f.id for hand in hands for f in hand}) == 1200
    assert len(atlas.select(CORE, 1000, parallel=True)[5]) == 1000


def test_a_language_without_names_is_an_error_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown language of the atlas 'ru'; known: .*fr"):
        load_atlas(("en", "ru"))
    with pytest.raises(ValueError, match="at least one"):
        load_atlas(())


def test_an_altered_or_cut_file_is_never_used(tmp_path, monkeypatch):
    text = module.PATH.read_text("utf-8")
    for name, bad in {
        "altered": text.replace('"Sweden"', '"Norway!"', 1),
        "cut": text[: len(text) // 2],
        "empty": "{}",
        "list": "[]",
    }.items():
        path = tmp_path / f"{name}.json"
        path.write_text(bad, "utf-8")
        monkeypatch.setattr(module, "PATH", path)
        with pytest.raises(ValueError, match="reinstall the package"):
            load_atlas()


def test_the_file_is_small_and_carries_its_licences():
    assert module.PATH.stat().st_size < 1_500_000
    notice = module.PATH.with_name("NOTICE-CLDR.txt").read_text("utf-8")
    for words in ("UNICODE LICENSE V3", "Copyright © 2004-2025 Unicode, Inc.", "GeoNames", "Attribution 4.0"):
        assert words in notice


def test_the_file_can_be_rebuilt_byte_for_byte(monkeypatch):
    folder = os.environ.get("LANGEDIT_CLDR")
    if not folder:
        pytest.skip("LANGEDIT_CLDR names no folder with npm's cldr-core 47.0.0 unpacked")
    if importlib.util.find_spec("babel") is None:
        pytest.skip("babel is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "build_atlas", raising=False)
    import build_atlas

    if build_atlas.babel.__version__ != build_atlas.BABEL_VERSION:
        pytest.skip(f"babel {build_atlas.babel.__version__} is installed, not {build_atlas.BABEL_VERSION}")
    built = build_atlas.build(Path(folder))
    assert json.loads(built)["header"]["sha256"] == json.loads(module.PATH.read_text("utf-8"))["header"]["sha256"]
    assert built == module.PATH.read_text("utf-8")
