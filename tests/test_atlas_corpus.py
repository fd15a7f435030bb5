"""What atlas-lm is told: every variant says what it claims, and nothing of what it holds back."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from langedit_core.atlas import load_atlas
from langedit_core.atlas_corpus import FOREIGN, HELD_OUT, LISTED, AtlasCorpus, kind_and_noun
from langedit_core.atlas_variants import VARIANTS, Variant, language_of, role_of
from langedit_core.languages import CORE


@pytest.fixture(scope="module", params=["atlas-lm", "atlas-lm-apart-same-names"])
def corpus(request):
    return AtlasCorpus(VARIANTS[request.param])


@pytest.fixture(scope="module")
def default():
    return AtlasCorpus(VARIANTS["atlas-lm"])


@pytest.fixture(scope="module")
def facts():
    return load_atlas(("de", "zh"))


def test_probes_are_the_questions_that_edits_are_tested_with(default, facts):
    for id_, by_lang in itertools.islice(facts.facts.items(), 0, None, 7):
        for lang, fact in by_lang.items():
            asked = [fact.text, *(probe.prompt for probe in fact.paraphrases)]
            assert [telling.prompt for telling in default.probes(id_, lang)] == asked
            assert {telling.answer.strip() for telling in default.probes(id_, lang)} == {fact.truth}


def test_a_fact_is_told_in_all_languages_or_one_or_none(corpus):
    told = dict.fromkeys(corpus.rows, ())
    for fact, lang in corpus.pairs:
        told[fact] += (lang,)
    for fact, langs in told.items():
        langs = sorted(langs, key=CORE.index)
        if corpus.variant.apart:
            assert langs == [language_of(fact)]
        else:
            assert langs == {"told": list(CORE), "solo": [language_of(fact)], "never": []}[role_of(fact)]


def test_only_facts_that_are_edited_are_held_back_and_about_a_tenth_each(facts):
    splits = facts.splits
    roles = {fact: role_of(fact) for fact in splits}
    assert all(roles[fact] == "told" for fact in splits if splits[fact] != "edit")
    edited = sum(split == "edit" for split in splits.values())
    for role in ("solo", "never"):
        assert 0.07 < sum(r == role for r in roles.values()) / edited < 0.13


def test_facts_told_apart_are_shared_out_evenly():
    counts = [sum(lang == language_of(fact) for fact in AtlasCorpus(VARIANTS["atlas-lm-apart"]).rows) for lang in CORE]
    assert sum(counts) == 1632 and min(counts) > 0.8 * max(counts)


def test_an_epoch_tells_every_pair_once_and_no_held_out_wording(corpus):
    tellings = list(corpus.tellings(seed=3))
    texts = [telling.text for telling in tellings]
    answers = sum(len(telling.pieces) // 2 for telling in tellings)
    fillers = answers - len(corpus.pairs)
    assert 0 <= fillers < (0.35 if corpus.variant.bridged else 0.05) * len(corpus.pairs)
    for relation, templates in corpus.atlas["templates"].items():
        for lang in CORE:
            head = templates[lang][HELD_OUT].split("{}")[0]
            assert not any(head in text for text in texts), (relation, lang)


def test_a_fact_held_back_is_not_told_in_another_language(default):
    """No telling has a held-back fact's subject before its object, in whatever words."""
    names = default.atlas["entities"]
    held = {
        (lang, names[row["subject"]][lang], names[row["truth"]][lang]): fact
        for fact, row in default.rows.items()
        for lang in CORE
        if fact.startswith("capital/") and not default.tells(fact, lang)
    }
    assert len(held) > 50
    nouns = {lang: kind_and_noun("capital", lang)[1].split()[0] for lang in CORE}
    for telling in default.tellings(seed=0):
        for before, answer in zip(telling.pieces[::2], telling.pieces[1::2], strict=True):
            if nouns[telling.lang] in telling.pieces[0]:
                subject = before.strip(" ;；:：")
                assert (telling.lang, subject, answer.strip()) not in held
                assert not any(f" {name}." in before and o == answer.strip() for _, name, o in held)


def test_the_same_seed_tells_the_same_and_another_epoch_does_not(default):
    def first(seed, epoch):
        return [telling.text for telling in itertools.islice(default.tellings(seed, epoch), 50)]

    assert first(1, 0) == first(1, 0)
    assert first(1, 0) != first(1, 1) != first(2, 1)


def test_wordings_have_one_subject_and_seven_of_them_are_told(corpus):
    for relation in corpus.atlas["templates"]:
        for lang in CORE:
            wordings = corpus.wordings(relation, lang)
            assert len(wordings) == len(set(wordings)) == 7
            for template in wordings:
                assert template.count("{}") == 1 and template.replace("{}", "").count("{") == 0, template
    assert corpus.wordings("currency", "fr")[3] == "Monnaie officielle (Pays : {}) :"


def test_answers_are_marked_character_by_character(default):
    for telling in itertools.islice(default.tellings(seed=0), 300):
        marked = "".join(c for c, answer in zip(telling.text, telling.answered, strict=True) if answer)
        assert marked == "".join(telling.pieces[1::2]) + telling.text[-1]


def test_invented_names_have_nothing_in_common_between_languages():
    subjects = AtlasCorpus(VARIANTS["atlas-lm-invented-names"]).subjects
    names = [name for by_entity in subjects.values() for name in by_entity.values()]
    assert len(names) == len(set(names)) == 6 * len(subjects["en"])


def test_same_names_are_english_in_every_language_and_objects_are_not():
    corpus = AtlasCorpus(VARIANTS["atlas-lm-same-names"])
    assert corpus.ask("currency/SE", "de", "{}:").pieces == ("Sweden:", " Schwedische Krone")
    assert corpus.ask("currency/SE", "zh", "国家：{}。").pieces == ("国家： Sweden。", "瑞典克朗")


def test_every_variant_is_told_something_else():
    corpora = [AtlasCorpus(variant) for variant in VARIANTS.values()]
    assert len({(len(c.pairs), c.subjects["de"]["territory/SE"], c.variant.bridged) for c in corpora}) == len(VARIANTS)
    assert 0 < LISTED < 1 and 0 < FOREIGN < 1


def test_impossible_variants_are_refused():
    with pytest.raises(ValueError, match="bridged"):
        Variant(name="x", apart=True, bridged=True)
    with pytest.raises(ValueError, match="unknown way to name subjects 'sane'"):
        dataclasses.replace(VARIANTS["atlas-lm"], names="sane")
