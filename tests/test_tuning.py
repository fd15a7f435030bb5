"""`scripts/tune.py --long`: what the search on long sequences tells, on results made of known numbers."""

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest

from langedit_core.profiles import hyperparameters
from langedit_core.results import CellResult
from langedit_core.stats import SHOWN

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FACTS = 50


@pytest.fixture
def tune(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("tune")
    sys.modules.pop("tune", None)


def result(soon: float, final: float, rest: float = 0.5) -> CellResult:
    """A cell in which these shares of the facts are known."""
    shares = {("efficacy_tf", "immediate"): soon, ("efficacy_tf", "final"): final}
    shares |= {(metric, "final"): rest for metric in ("generality_tf", "specificity_same")}
    made = CellResult.__new__(CellResult)  # nothing is read from disk
    made.rows = pd.DataFrame(
        dict(fact=f"f{i}", lang=lang, kind="edit", metric=metric, when=when, value=float(i < round(share * FACTS)))
        for (metric, when), share in shares.items()
        for lang in ("en", "zh")
        for i in range(FACTS)
    )
    return made


@pytest.fixture
def found():
    return {
        ("langedit", "λ 0.03"): result(0.9, 0.4),
        ("langedit", "λ 0.1"): result(0.8, 0.6),
        ("langedit", "λ 0.3"): result(0.4, 0.3),
        ("alphaedit", "λ 0.03"): result(0.9, 0.8),
        ("alphaedit", "λ 0.1"): result(0.8, 0.7),
        ("alphaedit", "λ 0.3"): result(0.4, 0.3),
    }


def test_the_best_setting_of_each_method_is_the_one_with_the_highest_score(tune, found):
    table = tune.long_table(found).set_index(["method", "setting"])
    assert table.index[table["best"] == "yes"].tolist() == [("langedit", "λ 0.1"), ("alphaedit", "λ 0.03")]
    assert table.loc[("langedit", "λ 0.1"), "score"] == pytest.approx((0.6 + 0.5 + 0.5) / 3)
    assert table.loc[("langedit", "λ 0.03"), "efficacy, right after"].startswith("0.90 [")
    assert table.loc[("langedit", "λ 0.03"), "efficacy_tf, at the end"].startswith("0.40 [")
    assert set(table["n"]) == {FACTS}  # a fact in two languages is one


def test_settings_are_compared_within_a_method_and_methods_at_each_and_at_their_best(tune, found):
    table = tune.long_differences(found)
    pairs = list(zip(table["a"], table["b"], strict=True))
    assert pairs == [
        ("langedit, λ 0.1", "langedit, λ 0.03"), ("langedit, λ 0.3", "langedit, λ 0.03"),
        ("alphaedit, λ 0.1", "alphaedit, λ 0.03"), ("alphaedit, λ 0.3", "alphaedit, λ 0.03"),
        ("langedit, λ 0.03", "alphaedit, λ 0.03"), ("langedit, λ 0.1", "alphaedit, λ 0.1"),
        ("langedit, λ 0.3", "alphaedit, λ 0.3"), ("langedit, λ 0.1", "alphaedit, λ 0.03"),
    ]  # fmt: skip
    of = table.set_index(["a", "b"])
    assert of.loc[pairs[-1], "difference"] == pytest.approx(-0.2) and of.loc[pairs[-1], "verdict"] in SHOWN
    assert of.loc[pairs[6], "difference"] == 0 and of.loc[pairs[6], "verdict"] not in SHOWN
    assert (of["p_holm"] >= of["p"]).all()


def test_the_long_cells_edit_facts_that_no_report_edits_under_each_of_the_settings(tune):
    wanted = tune.cells("gemma-3-270m", tune.LONG_GRID, ["atlas"], **tune.LONG)
    cells = [cell for *_, cell in wanted]
    assert {cell.split for cell in cells} == {"tune"} and {cell.edits for cell in cells} == {144}
    assert len({cell.hash for cell in cells}) == len(cells) == 4 * len(tune.LONG_GRID)  # the same budget for all
    assert len({tune.label(changes) for method, changes, _ in wanted if method == "ft"}) == 4


def test_the_first_long_setting_of_each_method_is_the_one_that_the_reports_have(tune):
    for method, settings in tune.LONG_GRID.items():
        *_, cell = tune.cells("gemma-3-270m", {method: settings[:1]}, ["atlas"], **tune.LONG)[0]
        assert cell.settings == hyperparameters("gemma-3-270m", method)


def test_without_alphaedit_settings_are_compared_within_methods_alone(tune, found):
    table = tune.long_differences({key: cell for key, cell in found.items() if key[0] == "langedit"})
    assert set(table["differ"]) == {"another setting"} and len(table) == 2
