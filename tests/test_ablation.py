"""Variants, their paired comparisons and the sentences about them, on results made of known numbers."""

import numpy as np
import pandas as pd
import pytest
import torch

from langedit_core import ablation, ablation_reading, factors, plots_null_spaces
from langedit_core.analysis import Study
from langedit_core.covariance import KeyCovariance
from langedit_core.mixing import COLUMNS, FORMULAS
from langedit_core.nullspace import Threshold
from langedit_core.profiles import hyperparameters, load_profile
from langedit_core.results import Cell, CellResult
from langedit_core.stats import holm

LANGS, FACTS, LAYERS = ("en", "de", "zh"), 20, (3, 4)
MODEL = "m"


def result(method="langedit", soon=0.9, final=0.6, rank=80, kl=0.3, seed=0, model=MODEL, **changes):
    """A cell in which a share `soon` of the facts is known right after its batch, and `final` at the end."""
    settings = hyperparameters(model, method, layers=LAYERS, **changes)
    cell = Cell(model=model, data="atlas", method=method, settings=settings, langs=LANGS, batch=FACTS, seed=seed)
    rows, retention = [], []
    for t, lang in enumerate(LANGS):
        for i in range(FACTS):
            shares = dict(efficacy_tf=dict(immediate=soon, final=final), specificity_same=dict(final=0.7))
            for metric, moments in shares.items():
                for when, share in moments.items():
                    value = float(i < round(share * FACTS))
                    rows.append(dict(fact=f"{lang}{i}", lang=lang, kind="edit", metric=metric, when=when, value=value))
            for step in range(t, len(LANGS)):
                share = soon if step == t else final
                retention.append(dict(fact=f"{lang}{i}", lang=lang, edited=t, step=step, tf=float(i < share * FACTS)))
    rows += [
        dict(fact=f"p{i}", lang=lang, kind="neutral", metric="drift_kl", when="final", value=kl + 0.01 * (i % 8))
        for lang in LANGS
        for i in range(24)
    ]
    batches = [
        dict(step=t, lang=lang, layer=layer, rank=rank - t, capacity=0.5 - 0.1 * t, written=0.8, relative_update=0.1,
             relative_total=0.1 * (t + 1), steps=5.0, converged=1.0, exhausted=0, facts=FACTS)
        for t, lang in enumerate(LANGS)
        for layer in LAYERS
    ]  # fmt: skip
    made = CellResult.__new__(CellResult)  # nothing is read from disk
    vars(made).update(
        cell=cell,
        rows=pd.DataFrame(rows),
        retention=pd.DataFrame(retention),
        batches=pd.DataFrame(batches),
        provenance={},
    )
    return made


def fraction(value):
    return dict(kind="fraction", value=value)


def whole_study():
    return Study([
        result(final=0.5),
        result("langedit-full", final=0.8, rank=60),
        result("evoedit", final=0.8, rank=60),
        result("alphaedit", final=0.75),
        result("alphaedit", final=0.4, remember=False),
        result("langedit-released", final=0.7, rank=70),
        result("langedit-literal", final=0.6, rank=74),
        result(final=0.9, rank=50, kl=0.1, threshold=fraction(0.5)),
        result(final=0.5, rank=95, threshold=fraction(0.95)),
        result(final=0.1, rank=90, kl=0.9, threshold=dict(kind="absolute", value=0.02)),
    ])  # fmt: skip


@pytest.fixture(scope="module")
def variants():
    return ablation.by_variant(whole_study())


@pytest.fixture(scope="module")
def found(variants):
    return ablation.comparisons(variants, "atlas")


def leaks(**of):
    """method -> (leak, moved), in two batches and both layers."""
    rows = [
        dict(data="atlas", method=method.replace("_", "-"), seed=0, step=step, layer=layer, past=20 * step, leak=leak,
             moved=moved)
        for method, (leak, moved) in of.items()
        for step in (1, 2)
        for layer in LAYERS
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["data", "method", "seed", *factors.LEAKS])


LEAKED = leaks(langedit=(0.04, 0.25), langedit_full=(1e-8, 1e-7))


def mixed():
    rows = [
        dict(step=step, formula=formula, layer=4, keys=20 * step, first_key=weight * step, corpus=1.0, trace=trace,
             free=80 - drop * step, left=left)
        for formula, weight, trace, drop, left in (("mean", 1e-4, 1.0, 1, 0.2), ("released", 1e-3, 1.1, 5, 0.03))
        for step in range(3)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


# --- variants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "name"),
    [
        ("langedit", {}, "langedit"),
        ("langedit", dict(threshold=fraction(0.8)), "langedit"),  # what it has anyway
        ("langedit", dict(threshold=fraction(0.65)), "langedit, 65 % free"),
        ("langedit", dict(threshold=dict(kind="absolute", value=0.02)), "langedit, < 0.02"),
        ("alphaedit", dict(remember=False), "alphaedit, no past keys"),
        ("alphaedit", dict(remember=False, threshold=fraction(0.5)), "alphaedit, no past keys, 50 % free"),
    ],
)
@pytest.mark.parametrize("model", [MODEL, "gemma-3-270m"])
def test_a_variant_is_named_by_what_it_changes(method, changes, name, model):
    assert ablation.variant(result(method, model=model, **changes).cell) == name


@pytest.mark.parametrize(
    ("threshold", "text"),
    [
        (Threshold(kind="relative", value=0.5), "< 0.5 × mean"),
        (Threshold(kind="energy", value=0.9), "90 % of the energy"),
    ],
)
def test_other_thresholds_are_written_as_people_write_them(threshold, text):
    assert ablation.told(threshold) == text


@pytest.mark.parametrize("profile", ["smoke", "standard"])
def test_cells_of_the_profiles_have_names_of_their_own_and_edit_the_same_facts(profile):
    cells = load_profile(profile).cells("null_spaces")
    names = [ablation.variant(cell) for cell in cells]
    assert len(set(names)) == len(names) and ablation.BASE in names
    designs = {cell.model_copy(update=dict(method="", settings=cells[0].settings)) for cell in cells}
    assert len(designs) == 1


def test_two_cells_of_one_name_are_refused_but_not_two_seeds():
    with pytest.raises(ValueError, match=r"two cells are 'langedit' on atlas, seed 0"):
        ablation.by_variant(Study([result(), result(values=dict(steps=3))]))
    assert ablation.by_variant(Study([result(), result(seed=1)])).methods == ["langedit"]


def test_renaming_leaves_the_study_as_it_was():
    study = whole_study()
    before = [r.cell.slug for r in study.results]
    ablation.by_variant(study)
    assert [r.cell.slug for r in study.results] == before


def test_thresholds_are_ordered_by_what_they_leave_free(variants):
    names = ["langedit, 50 % free", "langedit", "langedit, < 0.02", "langedit, 95 % free"]
    assert list(ablation.thresholds(variants, "atlas")) == names
    assert list(ablation.thresholds(variants, "atlas").values()) == ["50 % free", "80 % free", "< 0.02", "95 % free"]
    assert ablation.others(variants, "atlas") == [
        "langedit", "langedit-full", "evoedit", "alphaedit", "alphaedit, no past keys", "langedit-released",
        "langedit-literal",
    ]  # fmt: skip


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_differences_are_paired_and_corrected_over_everything(found):
    assert len(found) == (2 + 3 + 4 + 4) * len(ablation.MEASURES)
    tested = found[found["metric"] != "drift_kl"]
    assert tested["p_holm"].tolist() == pytest.approx(holm(tested["p"]).tolist())
    row = found.query("a == 'langedit-full' and b == 'langedit' and when == 'final' and metric == 'efficacy_tf'").iloc[
        0
    ]
    assert (row["difference"], row["n"], row["verdict"]) == (pytest.approx(0.3), 60, "better")
    assert row["low"] <= 0.3 <= row["high"]
    soon = found.query("when == 'immediate'")
    assert (soon["difference"] == 0).all() and set(soon["verdict"]) == {"no difference shown"}


def test_drift_has_differences_and_no_verdicts(found):
    drift = found.query("metric == 'drift_kl'").set_index("a")
    assert drift.loc["langedit, 50 % free", "difference"] == pytest.approx(-0.2)
    assert set(drift["verdict"]) == {"not tested"} and drift["p_holm"].isna().all()
    assert drift.loc["langedit, < 0.02", "n"] == 24  # paragraphs, each with its translations


def test_only_pairs_that_were_run_are_compared():
    few = ablation.by_variant(Study([result(), result("langedit-full"), result("rect", covariance_weight=1.0)]))
    assert list(ablation.pairs(few, "atlas")) == [("covariance or full keys", "langedit-full", "langedit")]
    alone = ablation.comparisons(ablation.by_variant(Study([result()])), "atlas")
    assert alone.empty and {"p_holm", "verdict"} <= set(alone)
    assert ablation.readable(alone, ablation.THRESHOLDS).empty


def test_a_fact_is_one_whatever_the_seed():
    both = [
        result(method, final=f, seed=s) for s in (0, 1) for method, f in (("langedit", 0.5), ("langedit-full", 0.8))
    ]
    row = ablation.comparisons(ablation.by_variant(Study(both)), "atlas").query("when == 'final'").iloc[0]
    assert row["n"] == 60 and row["difference"] == pytest.approx(0.3)


def test_a_question_is_read_as_one_row_per_pair(found):
    table = ablation.readable(found, "covariance or full keys").set_index("difference")
    assert list(table.index) == ["langedit-full − langedit", "evoedit − langedit-full"]
    assert list(table) == [*ablation.MEASURES.values(), "n"]
    assert table.loc["langedit-full − langedit", "efficacy, at the end"].startswith("+0.30 [")
    assert table.loc["langedit-full − langedit", "efficacy, at the end"].endswith("] better")
    assert table.loc["evoedit − langedit-full", "efficacy, at the end"] == "0.00"
    assert table["n"].tolist() == [60, 60]


def test_a_held_ridge_is_a_variant_and_is_compared_with_the_method_it_is_of():
    kept = result("evoedit", final=0.7)
    assert kept.cell.settings.hold_ridge  # as it usually is for this method
    held = ablation.by_variant(Study([result("evoedit", final=0.4, hold_ridge=False), kept, result(final=0.5)]))
    assert held.methods == ["evoedit, λ following", "evoedit", "langedit"]
    assert list(ablation.pairs(held, "atlas")) == [
        ("λ held", "evoedit", "evoedit, λ following"), (ablation.HELD_BESIDE, "evoedit", "langedit"),
    ]  # fmt: skip
    found = ablation.comparisons(held, "atlas")
    row = ablation.readable(found, ablation.HELD).iloc[0]
    assert row["difference"] == "evoedit − evoedit, λ following" and row["efficacy, at the end"].endswith("better")
    (told,) = ablation_reading.ridge(held, "atlas", found)
    assert told.startswith("evoedit with λ held at the first batch's: efficacy ") and "n = 60 facts" in told
    assert "writes 0.80 in place of 0.80" in told
    mean = ablation.by_variant(Study([result("alphaedit"), result(), result(hold_ridge=True)]))
    assert list(ablation.pairs(mean, "atlas")) == [  # no variant of a threshold, and each pair once
        ("λ held", "langedit, λ held", "langedit"), (ablation.HELD_BESIDE, "langedit, λ held", "alphaedit"),
        ("static or dynamic", "langedit", "alphaedit"),
    ]  # fmt: skip
    assert ablation.others(mean, "atlas") == ["alphaedit", "langedit", "langedit, λ held"]
    alone = ablation.by_variant(Study([kept, result()]))
    assert alone.methods == ["evoedit", "langedit"]  # nothing to tell it from


def test_another_ridge_is_a_variant_too_and_beside_every_other_run_of_another_method():
    mean, past = "langedit, λ 0.3", "alphaedit, λ 1"
    study = ablation.by_variant(
        Study([
            result(final=0.5), result("alphaedit", final=0.6), result(final=0.7, ridge=0.3),
            result("alphaedit", final=0.7, ridge=1.0),
        ])
    )  # fmt: skip
    assert study.methods == ["langedit", "alphaedit", mean, past]
    assert [p for p in ablation.pairs(study, "atlas") if p[0] != "static or dynamic"] == [
        (ablation.LARGER, mean, "langedit"), (ablation.LARGER, past, "alphaedit"),
        (ablation.LARGER_BESIDE, mean, "alphaedit"), (ablation.LARGER_BESIDE, mean, past),
    ]  # fmt: skip
    found = ablation.comparisons(study, "atlas")
    first, second = ablation_reading.ridge(study, "atlas", found)
    usual = hyperparameters(MODEL, "langedit", layers=LAYERS).ridge
    assert first.startswith(f"langedit with λ 0.3 in place of {usual:g}: efficacy ") and "at the end (n = 60" in first
    assert second.startswith("alphaedit with λ 1 in place of ")
    looks = plots_null_spaces.looks_of(study.methods)
    assert looks[mean][:2] == looks["langedit"][:2] and looks[mean] != looks["langedit"]
    assert list(ablation.thresholds(study, "atlas")) == ["langedit"]


def test_a_profile_without_such_runs_has_none(tmp_path):
    assert ablation.ridge_runs("quick", "ridge", tmp_path, tmp_path, "") == []


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_sweep_goes_from_few_free_directions_to_many(variants):
    swept = ablation.sweep(variants, "atlas").set_index("threshold")
    assert list(swept.index) == ["50 % free", "80 % free", "< 0.02", "95 % free"]
    assert swept.loc["50 % free", ["free", "free_end"]].tolist() == [50, 48]
    assert swept.loc["50 % free", "efficacy_tf final"] == 0.9 and swept.loc["50 % free", "n"] == 60
    assert swept.loc["50 % free", "capacity"] == pytest.approx(0.4)  # over batches: 0.5, 0.4, 0.3
    assert swept.loc["80 % free", "efficacy_tf final low"] < 0.5 < swept.loc["80 % free", "efficacy_tf final high"]
    told = ablation.sweep_table(swept.reset_index())
    assert told["free directions"].tolist()[0] == "50 → 48" and told["efficacy, at the end"].tolist()[0].startswith(
        "0.90 ["
    )


def test_the_table_of_spaces_says_first_and_last_batch(variants):
    table = ablation.spaces_table(variants, "atlas", LEAKED).set_index("method")
    assert table.loc["langedit", "free directions"] == "80 → 78" and table.loc["langedit", "capacity"] == "0.50 → 0.30"
    assert table.loc["langedit", ["leak, median", "leak, largest", "moved"]].tolist() == [0.04, 0.04, 0.25]
    assert np.isnan(table.loc["evoedit", "moved"])


def test_batches_carry_leaks_where_they_are_known(variants):
    frame = ablation.by_batch(variants, "atlas", LEAKED)
    assert not frame.duplicated(["method", "step"]).any() and len(frame) == 10 * 3
    base = frame[frame["method"] == "langedit"].set_index("step")
    assert base["edits"].tolist() == [20, 40, 60] and base["all"].tolist()[0] == 0.9
    assert np.isnan(base.loc[0, "moved"]) and base.loc[1, "moved"] == 0.25
    assert frame.loc[frame["method"] == "evoedit", "moved"].isna().all()


def test_memory_is_that_of_real_tensors():
    d, n = 32, 50
    gram, keys = KeyCovariance.empty(d).gram, torch.zeros(d, n)  # an editor keeps keys as the model gives them
    assert gram.element_size() == ablation.FLOAT64 and keys.element_size() == ablation.FLOAT32
    table = ablation.memory(counts=(200,)).set_index("d_ff")
    assert table.loc[2048, "covariance, MB"] == pytest.approx(KeyCovariance.empty(2048).gram.nbytes / 1e6)
    assert table.loc[2048, "200 keys, MB"] == pytest.approx(torch.zeros(2048, 200).nbytes / 1e6)
    for d, equal in table["equal at, keys"].items():
        assert ablation.FLOAT64 * d * d == ablation.FLOAT32 * equal * d


# --- reading ----------------------------------------------------------------------------------------------------------


def test_sentences_say_what_the_numbers_say(variants, found):
    sentences = ablation_reading.reading(variants, "atlas", found, LEAKED, mixed())
    text = " ".join(sentences)
    assert "(langedit-full − langedit, n = 60 facts): efficacy +0.0 points [+0.0, +0.0] (no difference shown)" in text
    assert "by 25 % of what" in text and "leak 4.0e-02" in text and "by 1.0e-07 of that, rounding" in text
    assert "Of 4 thresholds of langedit most efficacy is left at the end with 50 % free, 0.90 [" in text
    assert "least with < 0.02, 0.10 [" in text
    (differ,) = [sentence for sentence in sentences if "usual 80 % free" in sentence]
    assert "50 % free (better, +40.0 points" in differ and "< 0.02 (worse, -40.0 points" in differ
    assert "95 % free" not in differ
    assert "the running mean +10.0 points" in text and "past keys as a penalty in the solve +35.0 points" in text
    assert "10 times as much" in text and "leaves 78 directions free, and 20 %" in text
    assert "68 free directions against 78" in text and "langedit-released − alphaedit, n = 60: -5.0 points" in text
    assert all(sentence.endswith(".") for sentence in sentences)


def test_what_leaks_through_full_keys_is_not_called_rounding_if_it_is_none(found):
    text = " ".join(ablation_reading.full_keys(found, leaks(langedit=(0.04, 0.25), langedit_full=(1e-3, 0.02))))
    assert "under full keys by 2 % (leak 1.0e-03)" in text and "rounding" not in text.split("evoedit")[0]


def test_what_was_not_run_is_passed_over():
    alone = ablation.by_variant(Study([result()]))
    assert ablation_reading.reading(alone, "atlas", ablation.comparisons(alone, "atlas"), leaks()) == []
    two = ablation.by_variant(Study([result(), result(threshold=fraction(0.5), rank=50)]))
    sentences = ablation_reading.reading(two, "atlas", ablation.comparisons(two, "atlas"), leaks())
    assert len(sentences) == 3 and "With all 2 thresholds" in sentences[0]
    assert sentences[1] == "From this model's usual 80 % free none is shown to differ."


# --- figures ----------------------------------------------------------------------------------------------------------


def test_lines_are_drawn_for_the_variants_asked_for_and_refuse_doubles(variants):
    frame, names = ablation.by_batch(variants, "atlas", LEAKED), ablation.others(variants, "atlas")
    fig = plots_null_spaces.variant_lines(frame, {"rank": "free", "moved": "moved"}, names=names, log=("moved",))
    rank, moved = fig.axes
    assert [line.get_label() for line in rank.get_lines()] == names
    assert moved.get_yscale() == "log" and list(moved.get_lines()[0].get_xdata()) == [40, 60]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == names
    with pytest.raises(ValueError, match="'langedit' has several rows for one number of edits"):
        plots_null_spaces.variant_lines(pd.concat([frame, frame]), {"rank": "free"}, names=names)
    with pytest.raises(ValueError, match=r"lacks the columns \['nothing'\]"):
        plots_null_spaces.variant_lines(frame, {"nothing": "-"}, names=names)


def test_variants_can_be_told_apart(variants):
    looks = plots_null_spaces.looks_of(ablation.others(variants, "atlas"))
    assert len({(colour, dashes) for colour, _, dashes in looks.values()}) == len(looks)


def test_an_axis_of_shares_ends_at_the_fifths_around_the_data():
    frame = pd.DataFrame(
        dict(method="langedit", edits=[10, 20, 30], kept=[0.97, 0.72, 0.61], capacity=[0.1, 0.25, np.nan])
    )
    panels = dict(kept="kept", capacity="capacity")
    fig = plots_null_spaces.variant_lines(frame, panels, names=["langedit"], shares=tuple(panels))
    limits = [axes.get_ylim() for axes in fig.axes]
    assert limits == [pytest.approx((0.6, 1.012)), pytest.approx((0.0, 0.412))]


def test_the_sweep_draws_every_threshold_once_and_marks_the_usual_one(variants):
    fig = plots_null_spaces.threshold_sweep(ablation.sweep(variants, "atlas"), usual="langedit")
    efficacy = fig.axes[0]
    soon, final, mark = efficacy.get_lines()
    assert list(final.get_xdata()) == [50, 80, 90, 95] and list(final.get_ydata()) == [0.9, 0.5, 0.1, 0.5]
    assert list(mark.get_xdata()) == [80, 80] and soon.get_label() == "right after the batch"
    assert FORMULAS == ("mean", "released")
