"""From answers to tables and sentences, on frames made so that the right numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from toy_transfer import IDS, everywhere, frame, nothing, own, sequence

from langedit_core import transfer_analysis as analysis
from langedit_core import transfer_reading as reading
from langedit_core.languages import CORE
from langedit_core.records import digest
from langedit_core.stats import interval
from langedit_core.transfer_analysis import gains

SOURCES = {id_: ("en", "de", "zh")[n % 3] for n, id_ in enumerate(IDS)}
HALF = set(IDS[:5])


def found(after=everywhere, **options) -> pd.DataFrame:
    return gains(frame(after, **options))


def alike_in_latin(_, source, lang):
    """English and German write both strings alike, Chinese neither."""
    return ("zh" not in (source, lang),) * 2


def by_half(id_, *_):
    """Five facts write the subject alike, the other five the object."""
    return id_ in HALF, id_ not in HALF


# --- gains ------------------------------------------------------------------------------------------------------------


def test_a_gain_is_what_an_edit_adds_to_the_unedited_model():
    table = found(lambda id_, source, lang: 0.5 if source == lang else 0.1, before=0.25, random=lambda *_: -0.1)
    assert set(table["edit"]) == {"fact", "random", "unrelated"} and len(table) == len(IDS) * 9 * 3
    edited = table[table["edit"] == "fact"]
    expected = np.where(edited["source"] == edited["lang"], 0.5, 0.1)
    np.testing.assert_allclose(edited["gain_chosen"], expected)
    np.testing.assert_allclose(edited["gain_em"], expected / 2)
    np.testing.assert_allclose(edited["gain_margin"], expected * 10)
    np.testing.assert_allclose(edited["chosen"], expected + 0.25)
    assert (edited["chosen_before"] == 0.25).all() and (edited["em_before"] == 0.125).all()
    np.testing.assert_allclose(table.loc[table["edit"] == "random", "gain_chosen"], -0.1)
    assert "source_told" not in table


def test_several_wordings_of_one_question_are_averaged():
    one, other = (frame(lambda *_, v=v: v, before=b, probe="paraphrase") for v, b in ((1.0, 0.0), (0.5, 0.5)))
    table = gains(pd.concat([one, other]))
    assert len(table) == len(IDS) * 9 * 3
    edited = table[table["edit"] == "fact"]
    np.testing.assert_allclose(edited["gain_chosen"], 0.75)
    np.testing.assert_allclose(edited["chosen_before"], 0.25)


def test_what_a_model_was_told_is_handed_on():
    answers = frame(own).assign(source_told=lambda f: f["source"] == "en", lang_told=lambda f: f["lang"] == "en")
    table = gains(answers)
    assert len(table) == len(found(own))
    assert (table["source_told"] == (table["source"] == "en")).all() and table["lang_told"].dtype == bool
    assert (table["lang_told"] == (table["lang"] == "en")).all()


def test_nothing_missing_in_a_record_becomes_a_gain():
    answers = frame(everywhere)
    answers["margin"] = answers["margin"].astype(object).where(answers["lang"] != "zh", None)  # as a record has NaN
    table = gains(answers)
    assert table.loc[table["lang"] == "zh", "gain_margin"].isna().all() and len(table) == len(IDS) * 9 * 3
    assert (table.loc[(table["lang"] != "zh") & (table["edit"] == "fact"), "gain_margin"] == 10).all()


# --- matrices ---------------------------------------------------------------------------------------------------------

NUMBERED = np.arange(1, 10).reshape(3, 3) / 10
CELLS = pd.DataFrame(NUMBERED, index=["en", "de", "zh"], columns=["en", "de", "zh"])


def numbered(_, source, lang):
    return float(CELLS.loc[source, lang])


def test_a_matrix_has_edited_languages_in_rows_and_tested_ones_in_columns():
    table = found(numbered, before=0.05)
    matrix = analysis.matrix(table)
    assert list(matrix.index) == list(matrix.columns) == ["en", "de", "zh"]
    np.testing.assert_allclose(matrix, NUMBERED)
    np.testing.assert_allclose(analysis.matrix(table, value="gain_margin"), NUMBERED * 10)
    np.testing.assert_allclose(analysis.matrix(table, edit="unrelated"), 0, atol=1e-12)
    assert analysis.matrix(table, probe="reversed").isna().all(axis=None)


def test_matrices_of_all_kinds_come_from_one_tidy_table():
    table = analysis.matrix_table(found(numbered, identical=alike_in_latin, random=lambda *_: 0.3))
    assert list(table) == ["source", "lang", "kind", "value", "n", "low", "high"]
    matrices = analysis.matrices(table)
    assert list(matrices) == ["edit", "edit, no identical strings", "random value", "unrelated edit"]
    np.testing.assert_allclose(matrices["edit"], NUMBERED)
    np.testing.assert_allclose(matrices["random value"], 0.3)
    np.testing.assert_allclose(matrices["unrelated edit"], 0)
    bare = matrices["edit, no identical strings"]
    assert np.isnan(bare.loc["en", "de"]) and np.isnan(bare.loc["de", "en"])  # nothing is left of these
    np.testing.assert_allclose(np.diag(bare), np.diag(NUMBERED))  # a language is not compared with itself
    assert bare.loc["en", "zh"] == pytest.approx(CELLS.loc["en", "zh"])
    assert (table["n"] == len(IDS)).all()


def test_a_cell_of_the_table_is_an_interval_over_facts():
    table = analysis.matrix_table(found(lambda id_, *_: float(id_ in HALF)))
    row = table[(table["kind"] == "edit") & (table["source"] == "en") & (table["lang"] == "zh")].iloc[0]
    expected = interval([1.0] * 5 + [0.0] * 5)
    assert (row["value"], row["n"]) == (0.5, 10)
    assert (row["low"], row["high"]) == (expected.low, expected.high) and 0 < row["low"] < 0.5 < row["high"] < 1


def test_only_the_direct_question_is_in_the_tables():
    both = pd.concat([frame(numbered), frame(nothing, probe="reversed")])
    pd.testing.assert_frame_equal(analysis.matrix_table(gains(both)), analysis.matrix_table(found(numbered)))
    pd.testing.assert_frame_equal(analysis.strata(gains(both)), analysis.strata(found(numbered)))
    assert analysis.explained(gains(both)) == analysis.explained(found(numbered))


# --- transfer, and what strings explain -------------------------------------------------------------------------------


def test_transfer_is_the_gain_less_the_placebos_over_the_same_cases():
    table = found(lambda *_: 0.6, unrelated=lambda id_, source, lang: 0.2 if lang == "zh" else 0.5, before=0.1)
    rows = table[(table["edit"] == "fact") & (table["lang"] == "zh")]
    effect = analysis.transfer_of(rows, table[table["edit"] == "unrelated"])  # placebos in other languages do not count
    assert effect.value == effect.low == effect.high == pytest.approx(0.4) and effect.n == len(IDS)
    assert math.isnan(analysis.transfer_of(rows.iloc[:0], table).value)


def test_facts_count_alike_however_many_cases_they_have():
    table = found(lambda id_, *_: float(id_ == IDS[0]))
    many = table[(table["fact"] != IDS[0]) | (table["lang"] == "zh")]
    assert analysis.over_facts(many[many["edit"] == "fact"], "gain_chosen").value == pytest.approx(0.1)


STRATUM = {(True, True): 0.8, (True, False): 0.4, (False, True): 0.2, (False, False): 0.1}
KINDS = dict(zip(IDS, [*STRATUM] * 3, strict=False))  # 3 facts write both alike, 3 the subject, 2 the object, 2 neither


def test_strata_hold_apart_what_is_written_alike():
    table = found(
        lambda id_, source, lang: 1.0 if source == lang else STRATUM[KINDS[id_]] + 0.05,
        identical=lambda id_, *_: KINDS[id_],
        unrelated=lambda *_: 0.05,
    )
    strata = analysis.strata(table).set_index("identical")
    assert list(strata.index) == [*analysis.STRATA.values(), "any"]
    for kind, name in analysis.STRATA.items():
        facts = sum(k == kind for k in KINDS.values())
        assert strata.loc[name, "value"] == pytest.approx(STRATUM[kind])
        assert (strata.loc[name, "facts"], strata.loc[name, "pairs"]) == (facts, 6 * facts)
    assert strata.loc["neither", ["gain", "placebo", "transfer"]].tolist() == [
        "0.15", "0.05", "0.10",
    ]  # fmt: skip
    everything = sum(STRATUM[kind] for kind in KINDS.values()) / len(IDS)
    assert strata.loc["any", "value"] == pytest.approx(everything) and strata.loc["any", "pairs"] == 60
    assert strata.loc["any", "low"] < everything < strata.loc["any", "high"]


def test_codes_that_are_written_alike_everywhere_are_told_apart():
    codes = [f"{analysis.CODE}/{n}" for n in range(4)]
    both = pd.concat([
        frame(lambda *_: 0.9, facts=codes, identical=lambda *_: (False, True)),
        frame(lambda *_: 0.3),
    ])  # fmt: skip
    strata = analysis.strata(gains(both)).set_index("identical")
    assert list(strata.index)[-3:] == ["any: ISO codes", "any: all but ISO codes", "any"]
    assert strata["value"].tolist()[-3:] == pytest.approx([0.9, 0.3, (4 * 0.9 + 10 * 0.3) / 14])
    assert strata["facts"].tolist()[-3:] == [4, 10, 14]
    assert strata.loc["object only", "value"] == pytest.approx(0.9)


def test_an_empty_stratum_is_not_available():
    strata = analysis.strata(found()).set_index("identical")
    for name in ("subject and object", "subject only", "object only"):
        assert strata.loc[name, ["gain", "placebo", "transfer"]].tolist() == ["n/a"] * 3
        assert strata.loc[name, ["pairs", "facts"]].tolist() == [0, 0] and math.isnan(strata.loc[name, "value"])
    assert strata.loc["neither", "value"] == strata.loc["any", "value"] == 1


def only_alike(value: float, rest: float):
    return lambda _, source, lang: 1.0 if source == lang else value if "zh" not in (source, lang) else rest


@pytest.mark.parametrize(
    ("alike", "rest", "share"),
    [(0.6, 0.0, 1.0), (0.5, 0.5, 0.0), (0.9, 0.3, 0.4), (0.0, 0.6, -0.5)],  # 2 of 6 cases are alike
)
def test_the_share_that_strings_explain_is_the_one_put_in(alike, rest, share):
    placebo = 0.125
    table = found(only_alike(alike + placebo, rest + placebo), identical=alike_in_latin, unrelated=lambda *_: placebo)
    parts = analysis.explained(table)
    assert parts["raw"].value == pytest.approx((2 * alike + 4 * rest) / 6)
    assert parts["different"].value == pytest.approx(rest)
    assert parts["share"].value == parts["share"].low == parts["share"].high == pytest.approx(share)
    assert {estimate.n for estimate in parts.values()} == {len(IDS)}


def test_the_interval_of_a_share_is_over_facts():
    table = found(
        lambda id_, source, lang: 1.0 if "zh" not in (source, lang) else float(id_ in HALF), identical=alike_in_latin
    )
    share = analysis.explained(table)["share"]
    assert share.value == pytest.approx(1 - 0.5 / (2 / 3))
    assert 0 < share.low < share.value < share.high < 1


def test_a_share_rests_on_the_facts_that_have_both_kinds_of_cases():
    table = found(
        lambda id_, source, lang: 1.0 if id_ in HALF else only_alike(0.9, 0.3)("", source, lang),
        identical=lambda id_, source, lang: (True, True) if id_ in HALF else alike_in_latin("", source, lang),
    )
    parts = analysis.explained(table)
    assert (parts["raw"].n, parts["different"].n, parts["share"].n) == (10, 5, 5)
    assert parts["raw"].value == pytest.approx((1.0 + 0.5) / 2) and parts["share"].value == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("after", "identical", "raw", "n"),
    [
        (everywhere, lambda *_: (True, False), 1.0, 0),  # a model with the same names everywhere
        (own, alike_in_latin, 0.0, 10),  # nothing to explain
        (lambda _, source, lang: float(source == lang) - 0.5, alike_in_latin, -0.5, 10),  # less than nothing
    ],
)
def test_where_there_is_nothing_to_explain_no_share_is_given(after, identical, raw, n):
    parts = analysis.explained(found(after, identical=identical))
    assert parts["raw"].value == pytest.approx(raw) and parts["different"].n == parts["share"].n == n
    assert math.isnan(parts["share"].value) and math.isnan(parts["share"].low)
    assert math.isnan(parts["different"].value) == (n == 0)


def test_a_share_of_one_fact_has_no_interval():
    share = analysis.explained(found(only_alike(0.9, 0.3), identical=alike_in_latin, facts=IDS[:1]))["share"]
    assert share.value == pytest.approx(0.4) and math.isnan(share.low) and math.isnan(share.high)


# --- distances and questions ------------------------------------------------------------------------------------------


def test_every_pair_of_the_six_languages_has_one_distance():
    pairs = [pair for pairs in analysis.DISTANCES.values() for pair in pairs]
    assert len(pairs) == len(set(pairs)) == 36 and set(pairs) == {(a, b) for a in CORE for b in CORE}
    assert set(analysis.DISTANCES["another script"]) == {pair for pair in pairs if pair.count("zh") == 1}


def test_distances_are_held_apart_and_identical_strings_removed():
    steps = dict(zip(analysis.DISTANCES, (0.9, 0.7, 0.5, 0.3), strict=True))
    distance = {pair: name for name, pairs in analysis.DISTANCES.items() for pair in pairs}
    table = found(
        lambda id_, source, lang: 0.1 + steps[distance[source, lang]] - (0.2 if id_ in HALF else 0),
        langs=CORE, facts=IDS[:6], unrelated=lambda *_: 0.1, identical=lambda id_, *_: (id_ not in HALF, False),
    )  # fmt: skip
    told = analysis.distances(table).set_index("distance")
    assert list(told.index) == list(steps)
    for name, step in steps.items():
        assert told.loc[name, "transfer"].startswith(f"{step - 0.2 * 5 / 6:.2f} [")
        alone = told.loc[name, "transfer, no identical strings"]
        assert alone == ("" if name == "same language" else f"{step - 0.2:.2f}")


def test_distances_that_no_language_has_are_not_available():
    told = analysis.distances(found(langs=("en", "zh"), identical=lambda *_: (True, True))).set_index("distance")
    assert told.loc["closely related"].tolist() == told.loc["same script"].tolist() == ["n/a", "n/a"]
    assert told.loc["another script"].tolist() == ["1.00", "n/a"]


def test_every_kind_of_question_has_its_rows():
    both = pd.concat([
        frame(lambda _, source, lang: 0.75 if source == lang else 0.25, before=0.125, identical=alike_in_latin),
        frame(lambda id_, source, lang: 0.5 if source == lang else 0.0, facts=IDS[:4], probe="implied"),
    ])  # fmt: skip
    table = analysis.by_probe(gains(both)).set_index(["question", "asked in"])
    assert list(table.index) == [
        (probe, where)
        for probe in ("direct", "implied")
        for where in ("the edited language", "others", "others, no identical strings")
    ]
    row = table.loc[("direct", "the edited language")]
    assert row.tolist() == [0.125, 0.875, "0.75", 0.4375, 10]
    assert table.loc[("direct", "others")].tolist() == [0.125, 0.375, "0.25", 0.1875, 10]
    assert table.loc[("implied", "the edited language"), ["right after", "gain", "n"]].tolist() == [
        0.5, "0.50", 4,
    ]  # fmt: skip
    alike = analysis.by_probe(found(identical=lambda *_: (False, True)))
    assert alike["asked in"].tolist() == ["the edited language", "others"]  # nothing without an identical string


# --- several models, and sequences ------------------------------------------------------------------------------------


def test_models_stand_beside_one_another():
    after = lambda _, source, lang: 0.9 if source == lang else 0.7 if "zh" not in (source, lang) else 0.4  # noqa: E731
    shared = found(
        after, identical=lambda *of: (alike_in_latin(*of)[0], False), unrelated=lambda *_: 0.1, random=lambda *_: 0.2
    )
    table = analysis.variants_table({"shared": shared, "alone": found(own, facts=IDS[:3])}).set_index("model")
    expected = dict(own=0.9, transfer=(2 * 0.6 + 4 * 0.3) / 6, different=0.3, subject=0.6, unrelated=0.1, random=0.2)
    for name, value in expected.items():
        assert table.loc["shared", [name, f"{name}_low", f"{name}_high"]].tolist() == pytest.approx([value] * 3)
    assert table["facts"].tolist() == [10, 3]
    assert table.loc["alone", ["own", "transfer", "different"]].tolist() == [1, 0, 0]
    assert math.isnan(table.loc["alone", "subject"])
    told = analysis.readable(table.reset_index()).set_index("model")
    assert list(told) == ["facts", *(text for c, text in analysis.COLUMNS.items() if c != "spared")]
    assert told.loc["alone", "same subject, other object"] == "n/a"
    assert told.loc["shared", "edited language"] == "0.90"


def test_sequences_have_a_row_each_less_what_was_said_before():
    gain = lambda _, source, lang: 0.5 if source == lang else 0.25 if "zh" not in (source, lang) else 0.125  # noqa: E731
    table = analysis.sequences_table({
        "langedit": sequence(gain, sources=SOURCES, identical=lambda *of: (alike_in_latin(*of)[0], False)),
        "alphaedit": sequence(nothing, sources=dict.fromkeys(IDS[:4], "en")),
    }).set_index("model")  # fmt: skip
    # of ten facts four are edited in English and three in German, whose other cases are half alike; three in Chinese
    assert table.loc["langedit", ["own", "subject", "different"]].tolist() == [0.5, 0.25, 0.125]
    assert table.loc["langedit", "transfer"] == pytest.approx((7 * 0.1875 + 3 * 0.125) / 10)
    assert table["facts"].tolist() == [10, 4]
    assert table.loc["alphaedit", ["own", "transfer", "different"]].tolist() == [0, 0, 0]
    assert math.isnan(table.loc["alphaedit", "subject"])
    told = analysis.readable(table.reset_index())
    assert list(told) == ["model", "facts"] + [
        analysis.COLUMNS[c] for c in ("own", "transfer", "subject", "different", "spared")
    ]


def test_what_facts_that_were_not_edited_gain_is_taken_off():
    """A worn-down model prefers the new object of any fact: 0.3 here, 0.4 in Chinese, and so much is no transfer."""
    worn = lambda _, __, lang: 0.4 if lang == "zh" else 0.3  # noqa: E731
    spared = sequence(worn, sources={f"spared/{i}": "en" for i in range(5)}).assign(source="")
    edited = sequence(lambda _, source, lang: 0.9 if source == lang else worn(_, source, lang), sources=SOURCES)
    frames = {"langedit": pd.concat([edited, spared], ignore_index=True)}
    row = analysis.sequences_table(frames).iloc[0]
    assert row["transfer"] == pytest.approx(0) and row["facts"] == len(SOURCES)
    in_zh = sum(lang == "zh" for lang in SOURCES.values()) / len(SOURCES)
    assert row["own"] == pytest.approx(0.9 - 0.3 - 0.1 * in_zh)
    langs = edited["lang"].nunique()
    assert row["spared"] == pytest.approx(0.3 + 0.1 / langs)
    healthy = pd.concat([sequence(nothing, sources=SOURCES), spared.assign(chosen=0.0)], ignore_index=True)
    (difference,) = analysis.sequence_differences(frames | {"evoedit": healthy}, "evoedit").to_dict("records")
    assert difference["value"] == pytest.approx(0) and difference["n"] == len(SOURCES)


def test_gains_of_a_sequence_pair_every_answer_with_itself():
    answers = sequence(lambda *of: int(digest(*of)[:4], 16) / 2**17, sources=SOURCES).sample(frac=1, random_state=0)
    table = analysis.sequence_gains(answers)[0].set_index(["fact", "lang"])
    values = answers.set_index(["fact", "lang", "when"])["chosen"].unstack()
    expected = (values["after"] - values["before"]).reindex(table.index)
    np.testing.assert_allclose(table["gain_chosen"], expected)
    np.testing.assert_allclose(table["gain_margin"], 10 * expected)
    assert len(table) == 30


def test_methods_are_compared_over_the_facts_both_edited():
    frames = {
        "alphaedit": sequence(lambda *_: 0.25, sources=SOURCES),
        "memit": sequence(
            lambda id_, source, lang: 0.125 if source == lang else 0.5, sources=SOURCES | {"capital/99": "en"}
        ),
        "langedit": sequence(lambda id_, *_: 0.25 + 0.5 * (id_ in HALF), sources=SOURCES),
    }
    table = analysis.sequence_differences(frames, "alphaedit").set_index("difference")
    assert list(table.index) == ["memit − alphaedit", "langedit − alphaedit"]
    row = table.loc["memit − alphaedit"]
    assert row[["value", "low", "high", "n"]].tolist() == [0.25, 0.25, 0.25, 10]
    assert (row["other languages"], row["edited language"]) == ("0.25", "-0.12")
    row = table.loc["langedit − alphaedit"]
    assert row["value"] == pytest.approx(0.25) and 0 < row["low"] < 0.25 < row["high"] < 0.5
    with pytest.raises(ValueError, match="no fact in common"):
        analysis.sequence_differences(
            frames | {"rome": sequence(nothing, sources={"capital/99": "en"})}, "alphaedit"
        )  # fmt: skip


# --- sentences --------------------------------------------------------------------------------------------------------


def told(frame: pd.DataFrame, languages: set[tuple[str, str]]) -> pd.DataFrame:
    """As `transfer_study.variants` says which (fact, language) a model was told."""
    return frame.assign(
        **{f"{end}_told": [pair in languages for pair in zip(frame["fact"], frame[end], strict=True)]
           for end in ("source", "lang")}
    )  # fmt: skip


def test_models_told_together_and_apart_are_compared_in_pairs():
    (sentence,) = reading.about_variants({
        "atlas-lm-same-names": found(everywhere, unrelated=lambda *_: 0.25),
        "atlas-lm-apart-same-names": found(own),
    })  # fmt: skip
    assert "under the same names" in sentence and sentence.endswith("The first is well above the second.")
    assert "by 0.75 more than after an unrelated edit" in sentence and "by 0.00." in sentence


def test_models_that_do_not_differ_are_said_not_to():
    names = ("atlas-lm-same-names", "atlas-lm-apart-same-names")
    (sentence,) = reading.about_variants(dict.fromkeys(names, found(lambda id_, *_: float(id_ in HALF))))
    assert sentence.endswith("The two are not clearly apart.")
    (turned,) = reading.about_variants(dict(zip(names, (found(own), found(everywhere)), strict=True)))
    assert turned.endswith("The two are not clearly apart.")  # the second above the first is no confirmation


def test_what_the_one_language_that_told_a_fact_carries_over_is_said():
    languages = set(SOURCES.items())
    answers = frame(lambda id_, source, lang: 0.5 if (id_, source) in languages else 0.0)
    sentences = reading.about_variants({
        "atlas-lm-same-names": found(everywhere),
        "atlas-lm-apart-same-names": gains(told(answers, languages)),
    })  # fmt: skip
    assert sentences[1] == ("Of these, edits made in the one language that told the fact reach the others by 0.50.")
    everywhere_told = {(id_, lang) for id_ in IDS for lang in ("en", "de", "zh")}
    few = reading.about_variants({
        "atlas-lm-same-names": found(everywhere),
        "atlas-lm-apart-same-names": gains(told(answers, everywhere_told)),
    })  # fmt: skip
    assert len(few) == 1  # no case in which only the source was told


def test_a_model_without_its_counterpart_is_not_compared():
    assert reading.about_variants({"atlas-lm-same-names": found()}) == reading.about_variants({}) == []
    pair = {"atlas-lm": found(own), "atlas-lm-apart": found(own)}
    assert "under each language's own names" in reading.about_variants(pair)[0]


@pytest.mark.parametrize(
    ("after", "carried"),
    [
        (lambda _, source, lang: float("zh" not in (source, lang)), True),  # only where the subject is alike
        (everywhere, False),  # everywhere, so it is not the subject's tokens
        (nothing, False),
    ],
)
def test_what_carries_an_edit_over_is_said_from_the_numbers(after, carried):
    table = found(after, identical=lambda *of: (alike_in_latin(*of)[0], False))
    (sentence,) = reading.about_variants({"atlas-lm": table})
    assert sentence.endswith("what carries an edit over is the subject's tokens.") == carried
    nowhere = f"{float(after is everywhere):.2f}"
    assert f"{nowhere} where nothing is" in sentence


def test_names_that_are_alike_everywhere_leave_nothing_to_say_about_the_rest():
    (sentence,) = reading.about_variants({"atlas-lm": found(identical=lambda *_: (True, True))})
    assert sentence.endswith("transfer is n/a where nothing is written alike.")


def model_sentences(after, identical=alike_in_latin, extra=(), **options) -> list[str]:
    parts = [frame(after, identical=identical, **options)]
    parts += [frame(value, identical=identical, probe=probe) for probe, value in extra]
    return reading.about_model(gains(pd.concat(parts)), "m", "atlas")


def test_raw_transfer_is_said_beside_the_gain_in_the_own_language():
    first, *_ = model_sentences(
        lambda _, source, lang: 0.9 if source == lang else 0.5, unrelated=lambda *_: 0.25, before=0.1
    )
    assert first == (
        "m, atlas, n = 10 facts: an edit is chosen 0.90 more often than before in its own language, and "
        "0.25 more often than after an unrelated edit in another one."
    )


@pytest.mark.parametrize(
    ("alike", "rest", "ending"),
    [
        (0.9, 0.3, "identical strings explain 40% [40%, 40%] of these facts' raw transfer, and the rest is no copy"),
        (0.0, 0.6, "identical strings explain nothing of these facts' raw transfer, and the rest is no copy"),
        (-1.2, 0.6, "identical strings explain nothing of these facts' raw transfer, and the rest is no copy"),
        (0.6, 0.0, "no transfer beyond identical strings is shown."),
        (0.6, -0.1, "no transfer beyond identical strings is shown."),
    ],
)
def test_what_identical_strings_explain_is_said_from_the_numbers(alike, rest, ending):
    sentences = model_sentences(only_alike(alike, rest))
    assert len(sentences) == 2 and ending in sentences[1]
    assert f"it is {rest:.2f} (n = 10)" in sentences[1] and "nan" not in sentences[1]


def test_where_everything_is_alike_nothing_is_said_about_the_rest():
    assert len(model_sentences(everywhere, identical=lambda *_: (True, True))) == 1


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (
            lambda _, source, lang: 0.5 if source == lang else 0.25,
            ": an edit changes it in its own language and in others.",
        ),
        (nothing, ": an edit is not shown to change it."),
        (lambda _, source, lang: 0.0 if source == lang else 0.25, ": an edit changes it in others."),
        (lambda id_, *_: 1.0 if id_ in HALF else -1.0, ": an edit is not shown to change it."),
    ],
)
@pytest.mark.parametrize(
    ("probe", "means"), [("implied", "what follows from the edit"), ("reversed", "the relation backwards")]
)
def test_other_questions_are_judged_by_their_interval(probe, means, value, verdict):
    sentences = model_sentences(everywhere, extra=[(probe, value)])
    assert len(sentences) == 3
    assert sentences[2].startswith(f"Asked for {means}, gains are ") and sentences[2].endswith(verdict)


def test_a_language_that_takes_edits_and_gives_none_is_named():
    table = found(lambda id_, source, lang: 0.0 if source == "zh" else 0.5)
    (sentence,) = reading.about_variants({"m": table})
    assert sentence.startswith("m: edits made in zh reach other languages in 0.00 of the cases")
    assert "reach zh in 0.50" in sentence
    assert reading.about_variants({"m": found(lambda *_: 0.5)}) == []


def after_sequence(**methods) -> list[str]:
    """method → gain in other languages."""
    frames = {
        name: sequence(
            lambda id_, source, lang, value=value: 0.5 if source == lang else value(id_) if callable(value) else value,
            sources=SOURCES,
        )
        for name, value in methods.items()
    }
    return reading.about_sequences(frames, "m")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(0.25, "less"), (0.75, "more"), (0.5, "no difference shown"), (lambda i: float(i in HALF), "no difference shown")],
)
def test_methods_after_a_sequence_are_judged_by_their_interval(value, verdict):
    (sentence,) = after_sequence(memit=0.5, alphaedit=value)
    assert sentence.startswith(
        "m, after the whole sequence, beyond what facts not edited gain (n = 10 facts): beside memit"
    )
    assert ("alphaedit is shown to reach other languages less" in sentence) == (verdict == "less")
    assert ("alphaedit is shown to reach them more" in sentence) == (verdict == "more")
    assert sentence.count("no method is shown") == (2 if verdict == "no difference shown" else 1)


def test_a_difference_that_one_of_many_comparisons_may_show_by_chance_is_not_shown():
    better = lambda id_: 1.0 if id_ in IDS[:4] else 0.5  # noqa: E731
    (alone,) = after_sequence(memit=0.5, alphaedit=better)
    assert "alphaedit is shown to reach them more" in alone
    (found,) = after_sequence(memit=0.5, alphaedit=better, **{f"m{i}": 0.5 for i in range(19)})
    assert "all 20 comparisons taken together by Bonferroni" in found and found.count("no method is shown") == 2


def test_all_methods_that_differ_are_named():
    (sentence,) = after_sequence(memit=0.5, alphaedit=0.25, langedit=0.25, evoedit=0.75)
    assert "alphaedit, langedit are shown to reach other languages less, and evoedit is shown to reach" in sentence


def test_without_a_reference_or_a_second_method_nothing_is_said():
    assert after_sequence(alphaedit=0.5, langedit=0.5) == after_sequence(memit=0.5) == []


@pytest.mark.parametrize(("value", "verdict"), [(0.75, "matters"), (0.25, "matters"), (0.5, "is not shown to matter")])
def test_the_order_of_languages_is_judged_within_a_method(value, verdict):
    turned = dict(zip(IDS, reversed(SOURCES.values()), strict=True))
    moved = sum(turned[i] != SOURCES[i] for i in IDS)
    frames = {
        "memit": sequence(lambda *_: 0.5, sources=SOURCES),
        "langedit": sequence(lambda *_: 0.5, sources=SOURCES),
        "langedit, zh first": sequence(lambda *_: value, sources=turned),
    }
    method, order = reading.about_sequences(frames, "m")
    assert "beside memit" in method and "zh first" not in method
    assert order.startswith(f"m, langedit: with zh first the gain in other languages changes by {value - 0.5:.2f}")
    assert f"(n = 10, {moved} of them in another language)" in order and 0 < moved < 10
    assert order.endswith(f": the order, or which language edits which fact, {verdict}.")


def test_limits_name_what_was_used():
    limits = reading.limits(24, 4)
    assert "among 4 answers" in limits[0] and limits[1].startswith("24 facts")
