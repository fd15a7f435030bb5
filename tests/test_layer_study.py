"""What sets of layers give, on results made of known numbers, and rank correlations against scipy's."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import permutation_test, spearmanr

from langedit_core import layer_study
from langedit_core.analysis import Study
from langedit_core.editors import settings_for
from langedit_core.results import Cell, CellResult

LANGS = ("en", "zh")
SHARE = {1: 0.2, 3: 0.5, 5: 0.9, 7: 0.4}  # of ten facts, right when that layer is edited alone


def result(layers, shares, method="langedit"):
    """A cell whose efficacy is `shares[lang]`, and one fact more at once than at the end."""
    cell = Cell(model="m", data="atlas", method=method, settings=settings_for(method, layers=layers), langs=LANGS)
    rows = [
        dict(fact=f"{lang}{i}", lang=lang, kind="edit", metric="efficacy_tf", when=when, value=float(i < limit))
        for lang in LANGS
        for when, limit in (("immediate", 10 * shares[lang] + 1), ("final", 10 * shares[lang]))
        for i in range(10)
    ]
    rows += [
        dict(fact="p", lang=lang, kind="neutral", metric="drift_kl", when=when, value=0.1)
        for lang in LANGS
        for when in ("immediate", "final")
    ]
    made = CellResult.__new__(CellResult)  # nothing is read from disk
    vars(made).update(cell=cell, rows=pd.DataFrame(rows), provenance={})
    return made


@pytest.fixture(scope="module")
def study():
    singles = [result((layer,), dict.fromkeys(LANGS, share)) for layer, share in SHARE.items()]
    return Study([*reversed(singles), result((3, 4, 5), {"en": 1.0, "zh": 0.8})])


def effects(by_layer, facts=6, noise=0.0):
    """Indirect effects as tracing gives them: every fact of a language has those of its layers, and a little noise."""
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([LANGS, range(facts)], names=["lang", "fact"])
    values = np.array([list(by_layer.values())] * len(index)) + noise * rng.standard_normal((len(index), len(by_layer)))
    return pd.DataFrame(values, index=index, columns=list(by_layer))


@pytest.mark.parametrize(("layers", "name"), [((7,), "7"), ((3, 4, 5), "3–5"), ((3, 6, 8), "3, 6, 8"), ((1, 2), "1–2")])
def test_sets_of_layers_are_written_as_people_write_them(layers, name):
    assert layer_study.name_of(layers) == name


def test_ranges_come_first_then_single_layers_upwards(study):
    found = layer_study.by_layers(study, "atlas")
    assert list(dict.fromkeys(found["layers"])) == ["3–5", "1", "3", "5", "7"]
    final = found[(found["when"] == "final") & (found["lang"] == "all") & (found["metric"] == "efficacy_tf")]
    final = final.set_index("layers")["value"]
    assert final.to_dict() == pytest.approx({"3–5": 0.9} | {str(k): v for k, v in SHARE.items()})


def test_the_table_says_at_once_and_at_the_end(study):
    table = layer_study.table(study, "atlas", {"efficacy_tf": "efficacy", "drift_kl": "drift"}).set_index("layers")
    assert table.loc["5", "efficacy"].startswith("1.00 → 0.90 [") and table.loc["5", "drift"].startswith("0.10")
    assert table.loc["5", "n"] == 20  # facts, not paragraphs


def test_heat_maps_are_languages_by_sets_of_layers(study):
    found = layer_study.languages(study, "atlas", "efficacy_tf")["langedit"]
    assert list(found.index) == list(LANGS) and list(found.columns) == ["3–5", "1", "3", "5", "7"]
    assert found.loc["zh", "3–5"] == 0.8 and found.loc["en", "3–5"] == 1.0
    with pytest.raises(ValueError, match="unknown metric 'efficacy'"):
        layer_study.languages(study, "atlas", "efficacy")


def test_single_layers_are_a_curve_and_ranges_no_part_of_it(study):
    found = layer_study.alone(study, "atlas", "efficacy_tf")["langedit"]
    assert found["layer"].tolist() == [1, 3, 5, 7] and set(found["lang"]) == {"all"}
    whole = layer_study.by_layers(study, "atlas").query(
        "metric == 'efficacy_tf' and `when` == 'final' and lang == 'all'"
    )
    assert found["value"].tolist() == whole.set_index("layers").loc[["1", "3", "5", "7"], "value"].tolist()


def test_rank_correlation_is_that_of_scipy():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 4, (2, 20, 8)).astype(float)  # with ties
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert layer_study.spearman(a, b) == pytest.approx(expected)
    assert np.isnan(layer_study.spearman(np.ones((1, 4)), rng.random((1, 4)))).all()


@pytest.mark.parametrize(
    ("by_layer", "rho"),
    [
        ({1: 0.1, 3: 0.3, 5: 0.9, 7: 0.2}, 1.0),  # as the shares: 1 < 7 < 3 < 5
        ({1: 0.9, 3: 0.2, 5: 0.1, 7: 0.3}, -1.0),
        ({0: 5.0, 1: 0.1, 2: -4.0, 3: 0.3, 5: 0.9, 7: 0.2}, 1.0),  # layers that were not edited do not count
    ],
)
def test_tracing_that_orders_layers_as_editing_does_correlates_fully(by_layer, rho, study):
    found = layer_study.correlation(study, "atlas", effects(by_layer))
    assert found["lang"].tolist() == ["all", *LANGS]
    assert found["rho"].tolist() == pytest.approx([rho] * 3)
    assert (found["low"] <= found["rho"] + 1e-9).all() and (found["rho"] <= found["high"] + 1e-9).all()
    assert found["layers"].tolist() == [4] * 3
    assert found["traced"].tolist() == [12, 6, 6] and found["edited"].tolist() == [20, 10, 10]
    assert found["traced_facts"].tolist() == [6] * 3, "the same facts were traced in both languages"
    assert found["p_layers"].tolist() == pytest.approx([2 / 24] * 3), "two of 24 orders of four layers are as strong"


def test_effects_that_are_noise_leave_the_correlation_open(study):
    found = layer_study.correlation(study, "atlas", effects(dict.fromkeys(SHARE, 0.0), noise=1.0)).iloc[0]
    assert found["low"] < 0 < found["high"]
    sentences = layer_study.reading(study, "atlas", found.to_frame().T, layer_study.alike(study, "atlas"))
    assert any("is not shown to agree with" in s and "the interval holds zero" in s for s in sentences)
    assert any("12 traces of 6 facts, 20 edits" in s for s in sentences)
    assert any("layers 3–5 0.90" in s and "least in 1, 0.20" in s for s in sentences)


@pytest.mark.parametrize("values", [[0.1, 0.5, 0.3, 0.9, 0.2, 0.4], [1.0, 1.0, 0.5, 0.5, 0.2, 1.0]])
def test_the_permutation_test_over_layers_is_that_of_scipy(values):
    effects = np.array([0.0, 0.2, 0.1, 0.3, 0.05, 0.3])
    expected = permutation_test(
        (values,), lambda x: abs(spearmanr(x, effects).statistic), permutation_type="pairings", alternative="greater",
        n_resamples=np.inf, vectorized=False,
    )  # fmt: skip
    assert layer_study.chance_of(effects, np.array(values)) == pytest.approx(expected.pvalue)


def test_orders_of_many_layers_are_drawn_and_constant_layers_give_no_p():
    up = np.arange(12.0)
    assert layer_study.chance_of(up, up) < 1e-4
    assert layer_study.chance_of(up, np.random.default_rng(0).permutation(up)) > 0.05
    assert np.isnan(layer_study.chance_of(up, np.ones(12)))


@pytest.mark.parametrize(
    ("rho", "low", "high", "p", "told"),
    [
        (0.9, 0.5, 1.0, 0.01, "tracing agrees with what editing them with langedit gives"),
        (-0.9, -1.0, -0.5, 0.01, "tracing contradicts what editing"),
        (0.55, 0.15, 0.7, 0.13, "is not shown to agree with"),
        (0.9, -0.1, 1.0, 0.01, "is not shown to agree with"),
        (0.9, np.nan, np.nan, 0.01, "is not shown to agree with"),
    ],
)
def test_tracing_agrees_only_where_facts_and_layers_both_say_so(rho, low, high, p, told, study):
    row = ["langedit", "all", rho, low, high, p, 9, 104, 65, 60]
    found = pd.DataFrame([row], columns=list(layer_study.CORRELATION))
    (sentence,) = layer_study.reading(study, "atlas", found, pd.DataFrame(columns=["method"]))[-1:]
    assert told in sentence and f"p = {p:.2g}" in sentence and "104 traces of 65 facts, 60 edits" in sentence
    assert ("9 layers are too few" in sentence) == (p > 0.05)
    assert ("too few for an interval" in sentence) == np.isnan(low)


def profiles(en, zh):
    """Cells of single layers, in each of which English and Chinese keep the given shares."""
    return Study([result((layer,), {"en": en[layer], "zh": zh[layer]}) for layer in en])


def test_languages_with_the_same_profile_are_not_told_apart_and_others_are():
    falling, rising = {1: 1.0, 3: 0.5, 5: 0.0}, {1: 0.0, 3: 0.5, 5: 1.0}
    same, other = (layer_study.alike(profiles(falling, zh), "atlas").iloc[0] for zh in (falling, rising))
    assert same["p"] > 0.5 and same["behind"] == 0 and (same["sets"], same["languages"], same["facts"]) == (3, 2, 10)
    assert other["p"] < 0.001 and other["behind"] == pytest.approx(1.0)
    assert other["half_width"] > 0.1
    empty = pd.DataFrame(columns=list(layer_study.CORRELATION))
    for row, told in (
        (same, "No difference is shown"),
        (other, "No: over 3 sets of layers languages are further apart"),
    ):
        text = " ".join(layer_study.reading(profiles(falling, rising), "atlas", empty, row.to_frame().T))
        assert f"The same in every language? {told}" in text and "With 10 facts per language" in text
    assert "en first and zh last" in text and "behind the best of a language" in text


def test_a_level_that_is_higher_in_one_language_is_no_other_profile():
    high, low = {1: 1.0, 3: 0.9, 5: 0.8}, {1: 0.5, 3: 0.4, 5: 0.3}
    assert layer_study.alike(profiles(high, low), "atlas")["p"].iloc[0] > 0.5


def test_two_layers_and_languages_that_were_not_traced_give_no_correlation(study):
    few = Study([r for r in study.results if r.cell.settings.layers in ((1,), (5,), (3, 4, 5))])
    assert layer_study.correlation(few, "atlas", effects({1: 0.1, 5: 0.2})).empty
    english = effects({1: 0.1, 3: 0.3, 5: 0.9, 7: 0.2}).loc[["en"]]
    assert layer_study.correlation(study, "atlas", english)["lang"].tolist() == ["en"]
