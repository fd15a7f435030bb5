"""Answers worked out by hand: MLQA's normalisation in six languages, and names found in a sentence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langedit_core.errors import RefusedInput
from langedit_core.xtreme_answers import (
    TYPES,
    Span,
    bio_tags,
    locate_names,
    mlqa_measures,
    names_of,
    overlap_f1,
    released_words_of,
    wikiann_measures,
    words_of,
)


@pytest.mark.parametrize(
    ("lang", "answer", "words"),
    [
        ("en", "The U.S. Army, an army!", ["us", "army", "army"]),
        ("en", "theatre and another", ["theatre", "and", "another"]),  # articles are whole words
        ("de", "die Stadt Zürich", ["stadt", "zürich"]),
        ("de", "Der Große Preis des Jahres, das „Ende“", ["große", "preis", "jahres", "ende"]),
        ("de", "einem Dieb", ["dieb"]),
        ("nl", "het eiland Curaçao en de zee", ["eiland", "curaçao", "en", "zee"]),
        ("nl", "Een ‘één’", ["één"]),
        ("es", "¿El niño o los años?", ["niño", "o", "años"]),
        ("es", "la Unión, unas 1.200", ["unión", "1200"]),
        ("fr", "l'hôpital", ["hôpital"]),
        ("fr", "L’Élysée et les œuvres de la ville", ["élysée", "et", "œuvres", "de", "ville"]),
        ("fr", "un être", ["être"]),
        ("zh", "《宾州报》", ["宾", "州", "报"]),
        ("zh", "高52层", ["高", "52", "层"]),
        ("zh", "WTC 7号楼", ["wtc", "7", "号", "楼"]),
        ("zh", "2500万欧元。", ["2500", "万", "欧", "元"]),
        ("en", "—…", []),
    ],
)
def test_normalised_words(lang, answer, words):
    assert words_of(answer, lang) == words


def test_the_released_normaliser_deletes_what_is_not_ascii():
    assert released_words_of("Zürich") == ["zrich"]
    assert released_words_of("The Ärzte, der Arzt") == ["rzte", "der", "arzt"]  # English articles only
    assert released_words_of("北京") == []


@pytest.mark.parametrize(
    ("said", "true", "f1"),
    [
        (["a"], ["a"], 1.0),
        (["a", "b"], ["b", "c", "d"], 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        (["a", "a"], ["a"], 2 * (1 / 2) / (1 / 2 + 1)),  # a word counts as often as it occurs
        (["a"], ["b"], 0.0),
        ([], ["b"], 0.0),
        ([], [], 0.0),
    ],
)
def test_overlap_is_the_harmonic_mean_of_precision_and_recall(said, true, f1):
    assert overlap_f1(said, true) == pytest.approx(f1)


def test_an_answer_is_compared_with_the_nearest_true_one():
    found = mlqa_measures(" die Stadt Zürich.", ["Bern", "Zürich", "Stadt Zürich"], "de")
    assert found == {"mlqa_f1": 1.0, "mlqa_em": 1.0, "mlqa_f1_released": pytest.approx(2 * 2 / (3 + 2))}
    found = mlqa_measures("北京市", ["北京"], "zh")
    assert found == {"mlqa_f1": pytest.approx(0.8), "mlqa_em": 0.0, "mlqa_f1_released": 0.0}
    assert mlqa_measures("", ["Bern"], "de") == {"mlqa_f1": 0.0, "mlqa_em": 0.0, "mlqa_f1_released": 0.0}


# --- names ------------------------------------------------------------------------------------------------------------


def test_lines_of_names_are_read_and_everything_else_is_passed_over():
    assert names_of("ORG: A b@ C\nnothing\nPER：D\nLOC:\nMISC: E\n  LOC : F@@\nper: g") == [
        ("ORG", "A b"),
        ("ORG", "C"),
        ("PER", "D"),
        ("LOC", "F"),
    ]


SENTENCE = "Alan Parsons met Eric in New York , New Jersey ."
GOLD = "PER: Alan Parsons@Eric\nLOC: New York@New Jersey"


@pytest.mark.parametrize(
    ("said", "correct", "predicted", "right"),
    [
        (GOLD, 4, 4, 11),
        ("LOC: New Jersey@New York\nPER: Eric@Alan Parsons", 4, 4, 11),  # order says nothing
        ("PER: Alan Parsons", 1, 1, 6),
        ("ORG: Alan Parsons\nPER: Eric\nLOC: New York@New Jersey", 3, 4, 9),  # wrong type
        ("PER: Parsons@Eric\nLOC: New York@New Jersey", 3, 4, 9),  # wrong boundary: O instead of B, B instead of I
        ("PER: Eric@Eric@Eric", 1, 1, 5),  # repeats count once
        ("PER: Eric\nLOC: Eric", 1, 2, 5),  # the place is taken
        ("PER: Erich", 0, 1, 4),  # not in the sentence
        ("PER: Erich@Erich@Emil", 0, 2, 4),
        ("PER: ric", 0, 1, 4),  # half a token
        ("Ich weiß nicht !!! PER ORG @@@", 0, 0, 4),  # garbage
        ("", 0, 0, 4),
    ],
)
def test_counts_of_a_sentence(said, correct, predicted, right):
    found = wikiann_measures(said, GOLD, SENTENCE, "en")
    assert found == {
        "wikiann_correct": correct,
        "wikiann_predicted": predicted,
        "wikiann_gold": 4,
        "wikiann_tokens_right": right,
        "wikiann_tokens": 11,
    }


def test_a_name_that_occurs_twice_may_be_named_twice():
    found = wikiann_measures("LOC: Rom@Rom", "LOC: Rom@Rom", "Rom bleibt Rom", "de")
    assert (found["wikiann_correct"], found["wikiann_predicted"], found["wikiann_gold"]) == (2, 2, 2)
    found = wikiann_measures("LOC: Rom", "LOC: Rom@Rom", "Rom bleibt Rom", "de")
    assert (found["wikiann_correct"], found["wikiann_predicted"], found["wikiann_gold"]) == (1, 1, 2)


def test_a_short_name_is_not_found_inside_a_longer_one_that_is_named_too():
    spans, nowhere = locate_names(
        [("LOC", "Paris"), ("ORG", "Paris Saint-Germain")], "Paris Saint-Germain , Paris", "fr"
    )
    assert spans == [Span(0, 2, "ORG"), Span(3, 4, "LOC")] and not nowhere


def test_chinese_names_are_found_whether_or_not_characters_are_spaced():
    text = "邱 義 仁 於 2 0 0 5 年 訪 問 None 東 京"
    for said in ("PER: 邱 義 仁\nLOC: 東 京", "PER: 邱義仁\nLOC: 東京"):
        spans, nowhere = locate_names(names_of(said), text, "zh")
        assert spans == [Span(0, 3, "PER"), Span(12, 14, "LOC")] and not nowhere
    assert locate_names([("LOC", "ne東京")], text, "zh") == ([], [("LOC", "ne東京")])  # not at a token's beginning
    assert locate_names([("LOC", "New York")], "NewYork", "en") == ([], [("LOC", "New York")])


def test_tags_begin_with_b_so_that_neighbours_stay_apart():
    assert bio_tags([Span(0, 2, "PER"), Span(2, 3, "PER")], 4) == ["B-PER", "I-PER", "B-PER", "O"]


def test_tagging_nothing_scores_high_on_the_released_metric_only():
    found = wikiann_measures("", "LOC: Rom", "Im Jahr danach zog er nach Rom um .", "de")
    assert found["wikiann_tokens_right"] / found["wikiann_tokens"] == pytest.approx(8 / 9)
    assert found["wikiann_correct"] == 0


@pytest.mark.parametrize("label", ["LOC: Bern", "", "LOC:"])
def test_a_label_that_names_no_part_of_the_sentence_is_refused(label):
    with pytest.raises(RefusedInput, match="does not name parts of the sentence"):
        wikiann_measures("LOC: Rom", label, "Rom", "de")


@given(st.data())
def test_entity_counts_are_those_of_sets_of_spans(data):
    tokens = [f"t{i}" for i in range(8)]  # all different, so that a name has one place

    def spans():
        cuts = sorted(data.draw(st.sets(st.integers(0, 8), min_size=2, max_size=6)))
        pieces = [piece for piece in zip(cuts, cuts[1:], strict=False) if data.draw(st.booleans())] or [tuple(cuts[:2])]
        return [Span(*piece, data.draw(st.sampled_from(TYPES))) for piece in pieces]

    def label(found):
        return "\n".join(f"{span.type}: {' '.join(tokens[span.start : span.stop])}" for span in found)

    gold, said = spans(), spans()
    found = wikiann_measures(label(said), label(gold), " ".join(tokens), "en")
    counts = len(set(said) & set(gold)), len(said), len(gold)
    assert (found["wikiann_correct"], found["wikiann_predicted"], found["wikiann_gold"]) == counts
