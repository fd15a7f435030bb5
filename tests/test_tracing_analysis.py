"""What is read out of traces: means, intervals, peaks, recommended layers, and the sentences about them."""

import numpy as np
import pandas as pd
import pytest

from langedit_core.stats import interval
from langedit_core.tracing import KINDS, ROLES, SEVERED
from langedit_core.tracing_analysis import Recommendation, curve, heat, peaks, per_fact, reading, recommend


def made_up(curves, kind="mlp", role="subject_last"):
    """A frame in which fact i of a language has the given effects by layer."""
    rows = [
        dict(fact=f"f/{i}", lang=lang, kind=kind, token=3, role=role, layer=layer, effect=effect, error=0.0)
        | dict(clean=0.9, corrupted=0.1)
        for lang, facts in curves.items()
        for i, effects in enumerate(facts)
        for layer, effect in enumerate(effects)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def frame():
    """Every kind and role of two languages, three facts each, six layers."""
    rng = np.random.default_rng(0)
    parts = [
        made_up({lang: rng.normal(size=(3, 6)) for lang in ("en", "zh")}, kind, role)
        for kind in KINDS
        for role in (["subject_last"] if kind in SEVERED else ROLES)
    ]
    return pd.concat(parts, ignore_index=True)


def test_tokens_of_a_role_count_as_one_and_facts_alike():
    frame = made_up({"en": [[1.0, 0.0], [0.0, 0.0]]}, role="subject_middle")
    second = frame[frame["fact"] == "f/0"].assign(token=4, effect=0.0)
    effects = per_fact(pd.concat([frame, second]), "mlp", "subject_middle")
    assert effects.to_numpy().tolist() == [[0.5, 0.0], [0.0, 0.0]]
    table = heat(pd.concat([frame, second]), "mlp", "en")
    assert table.index.tolist() == ["subject_middle"] and table.to_numpy().tolist() == [[0.25, 0.0]]


def test_curves_are_means_with_intervals_over_facts(frame):
    pooled = curve(frame, "mlp", "subject_last")
    assert pooled["lang"].unique().tolist() == ["all"] and pooled["n"].unique().tolist() == [3]
    effects = per_fact(frame, "mlp", "subject_last").groupby("fact").mean()  # each in two languages
    for row in pooled.itertuples():
        assert (row.value, row.n, row.low, row.high) == tuple(interval(effects[row.layer]))
    assert curve(frame, "mlp", "subject_last", by_lang=True)["n"].tolist() == [3] * 12


def test_peaks_are_found_per_language_with_the_interval_of_their_place():
    rng = np.random.default_rng(1)
    bump = np.exp(-((np.arange(9) - 3.0) ** 2))
    sure = bump + 0.01 * rng.normal(size=(20, 9))
    unsure = rng.normal(size=(20, 9))
    table = peaks(made_up({"en": sure, "zh": unsure}), "mlp", "subject_last").set_index("lang")
    assert table.loc["en", ["peak", "low", "high", "n"]].tolist() == [3, 3, 3, 20]
    assert table.loc["zh", "high"] - table.loc["zh", "low"] >= 2
    assert table.loc["zh", "low"] <= table.loc["zh", "peak"] <= table.loc["zh", "high"]
    assert table.loc["en", "effect"] == pytest.approx(sure[:, 3].mean())
    alone = peaks(made_up({"en": sure[:1]}), "mlp", "subject_last").iloc[0]
    assert alone["peak"] == 3 and pd.isna(alone["low"])


def test_recommended_layers_are_neighbours_with_the_most_effect():
    curves = {"en": [[0.9, 0, 0, 0.5, 0.5, 0.5, 0]] * 2, "zh": [[0.0, 0, 0, 0.5, 0.5, 0.5, 0]] * 2}
    found = recommend(made_up(curves), 3, 1)
    assert (found.layers, found.low, found.high, found.n) == ((3, 4, 5), 3, 3, 2)
    assert found.share == pytest.approx(1.5 / 1.95)
    assert recommend(made_up(curves), 1, 1).layers == (3,)
    assert recommend(made_up({"en": curves["en"]}), 1, 1).layers == (0,)
    assert recommend(made_up(curves), 7, 1).share == pytest.approx(1)
    row = found.table("m", "d").iloc[0]
    assert row["layers"] == "3 4 5" and row["n"] == 2 and row["first_low"] == row["first_high"] == 3


def test_every_language_counts_the_same_whatever_its_number_of_facts():
    curves = {"en": [[1.0, 0.0]] * 30, "zh": [[0.0, 1.5]] * 2}
    assert recommend(made_up(curves), 1, 1).layers == (1,)


def test_a_layer_is_scored_by_the_windows_that_hold_it():
    # only layer 3 matters: with windows l-2 to l+1, those named 2 to 5 hold it, and the middle of these is not 3
    for window, effects in ((4, [0.0, 0, 1, 1, 1, 1, 0, 0]), (3, [0.0, 0, 1, 1, 1, 0, 0, 0])):
        assert recommend(made_up({"en": [effects] * 2}), 1, window).layers == (3,)
        assert recommend(made_up({"en": [effects] * 2}), 3, window).layers == (2, 3, 4)


@pytest.mark.parametrize("width", [0, 8])
def test_a_width_the_model_does_not_have_is_refused(width):
    with pytest.raises(ValueError, match="the model has 7 layers"):
        recommend(made_up({"en": [[0.0] * 7]}), width, 1)


def test_unknown_kinds_and_roles_are_refused(frame):
    with pytest.raises(ValueError, match="attention"):
        per_fact(frame, "attn", "last")
    with pytest.raises(ValueError, match="subject_last"):
        per_fact(frame, "mlp", "subject_lst")
    with pytest.raises(ValueError, match="no trace of hidden_no_mlp at last token"):
        per_fact(frame, "hidden_no_mlp", "last")


def test_sentences_say_the_numbers_of_the_frame(frame):
    found = recommend(frame, 3, 2)
    text = " ".join(reading(frame, found, "gemma-3-270m"))
    assert "from 0.90 to 0.10" in text and "n = 3 facts" in text
    best = peaks(frame, "hidden", "subject_last").iloc[0]
    assert f"hidden {best['effect']:.2f} at layer {best['peak']}" in text
    assert f"layers {', '.join(map(str, found.layers))} bring back most" in text
    assert "hparams.yaml edits 3, 4, 5" in text and f"{len({3, 4, 5} & set(found.layers))} of 3 in common" in text
    assert "no entry for another" in reading(frame, found, "another")[-1]
    whole = frame[~frame["kind"].isin(SEVERED)]
    assert not any("frozen" in sentence for sentence in reading(whole, found, "another"))
    sure = Recommendation(layers=(1,), low=float("nan"), high=float("nan"), share=0.5, n=1)
    assert "interval" in text and "interval" not in reading(frame, sure, "another")[-1]


def frozen(hidden, no_mlp, no_attention):
    """Sentences about hidden states with these effects by layer, in one language."""
    curves = {"hidden": hidden, "hidden_no_mlp": no_mlp, "hidden_no_attention": no_attention}
    parts = [made_up({"en": [c] * 2}, kind) for kind, c in curves.items()]
    parts += [made_up({"en": [[0.1] * len(hidden)]}, kind, role) for kind in ("mlp", "attention") for role in ROLES]
    frame = pd.concat(parts, ignore_index=True)
    return " ".join(reading(frame, recommend(frame, 1, 1), "another"))


def test_paths_that_leave_more_than_the_whole_and_effects_that_do_not_rise_are_told_without_contradiction():
    text = frozen([0.04, 0.03, 0.02], [0.06, 0.02, 0.006], [0.05, 0.0, -0.001])
    assert "brings back 0.04, with the MLP paths above it frozen 0.06 and with the attention paths frozen 0.05" in text
    assert "that MLP or attention paths carry its effect is not shown" in text
    assert "is left" not in text and "rises most" not in text
    text = frozen([0.04, 0.03, 0.02], [0.01, 0.011, 0.009], [0.05, 0.0, 0.0])
    assert "that attention paths carry its effect is not shown" in text
    assert "rises most" not in text, "to two decimals it does not"
    assert "-0.00" not in frozen([0.001, 0, 0], [-0.001, 0, 0], [-0.001, 0, 0])


def bumps(**peaks):
    """Traces in which a language's facts, twenty unless it is said, all peak where they are told to."""
    rng = np.random.default_rng(0)
    facts = {
        lang: np.exp(-((np.arange(9) - at) ** 2)) + 0.05 * rng.normal(size=(n, 9))
        for lang, (at, n) in ((lang, p if isinstance(p, tuple) else (p, 20)) for lang, p in peaks.items())
    }
    parts = [made_up(facts, kind, role) for kind in ("hidden", "mlp", "attention") for role in ("subject_last", "last")]
    return pd.concat(parts, ignore_index=True)


def same_place(**peaks):
    frame = bumps(**peaks)
    return [s for s in reading(frame, recommend(frame, 1, 1), "another") if s.startswith("By language")]


def test_languages_that_peak_in_one_place_are_not_shown_to_differ():
    early, late = same_place(en=3, de=3, zh=3)
    assert early.startswith(
        "By language the peak of MLP outputs at the last subject token lies in layer 3 (en 3 [3, 3],"
    )
    assert "n = 20 facts per language" in early and "no two languages are shown to differ" in early
    assert "widened for 3 pairs" in early and late.startswith("By language the peak of attention outputs at the last")


def test_languages_whose_intervals_lie_apart_are_shown_to_differ_and_named():
    early, _ = same_place(en=3, de=3, zh=6)
    assert "lies in layers 3 to 6" in early and "en and zh, de and zh are shown to differ" in early


def test_a_handful_of_facts_shows_no_difference():
    early, _ = same_place(en=3, de=3, zh=(6, 5))
    assert "no two languages are shown to differ" in early and "fewer than 6 facts, and left out: zh" in early
    assert "n = 5 to 20 facts per language" in early
    few, _ = same_place(en=3, zh=(6, 1))
    assert "none could be shown to differ" in few and "zh 6;" in few
    assert same_place(en=3) == [], "one language is like itself"


def test_the_sentence_about_frozen_paths_names_the_layer_whose_mlp_is_needed():
    text = frozen([0.5, 0.5, 0.5], [0.01, 0.02, 0.4], [0.3, 0.2, 0.1])
    assert "Of the 0.50 that the hidden state of layer 0 brings back, 0.01 is left with the MLP paths" in text
    assert "0.30 with the attention paths" in text
    assert "rises most from layer 1 to layer 2, from 0.02 to 0.40" in text
