"""What sets of layers give, on results made of known numbers, and rank correlations against scipy's."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

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
        dict(fact=f"p/{lang}", lang=lang, kind="neutral", metric="drift_kl", when=when, value=0.1)
        for lang in LANGS
        for when in ("immediate", "final")
    ]
    made = CellResult.__new__(CellResult)  # nothing is read from disk
    vars(made).update(cell=cell, rows=pd.DataFrame(rows))
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


def test_effects_that_are_noise_leave_the_correlation_open(study):
    found = layer_study.correlation(study, "atlas", effects(dict.fromkeys(SHARE, 0.0), noise=1.0)).iloc[0]
    assert found["low"] < 0 < found["high"]
    sentences = layer_study.reading(study, "atlas", found.to_frame().T)
    assert any("does not tell" in s and "the interval holds zero" in s for s in sentences)
    assert any("layers 3–5 0.90" in s and "least in 1, 0.20" in s for s in sentences)


def test_two_layers_and_languages_that_were_not_traced_give_no_correlation(study):
    few = Study([r for r in study.results if r.cell.settings.layers in ((1,), (5,), (3, 4, 5))])
    assert layer_study.correlation(few, "atlas", effects({1: 0.1, 5: 0.2})).empty
    english = effects({1: 0.1, 3: 0.3, 5: 0.9, 7: 0.2}).loc[["en"]]
    assert layer_study.correlation(study, "atlas", english)["lang"].tolist() == ["en"]
