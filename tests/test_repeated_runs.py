"""scripts/repeated_runs.py finds the cells that were run twice, and says how far the two runs differ."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from langedit_core.profiles import load_profile
from langedit_core.results import Cell, record_path
from langedit_core.storage import read_sealed, write_sealed

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "reports" / "standard" / "records"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("repeated_runs")


def cell(method: str) -> Cell:
    cells = load_profile("standard").cells("main")
    return next(each for each in cells if (each.data, each.method, each.seed) == ("bzsre", method, 0))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same two records: bzsRE, 200 edits in two languages."""
    for name in ("before", "now"):
        (tmp_path / name).mkdir()
        for method in ("alphaedit", "memit"):
            shutil.copy(record_path(cell(method), RECORDS), tmp_path / name)
    return tmp_path / "before", tmp_path / "now"


def test_one_run_is_no_repetition(script, folders):
    found = script.repeated("standard", *folders)
    assert found.empty and list(found) == script.COLUMNS


def test_a_second_run_differs_by_what_its_facts_differ_by(script, folders):
    before, now = folders
    (path,) = now.glob("bzsre-alphaedit-*")
    record = read_sealed(path)
    rows = [r for r in record["final"]["rows"] if r["metric"] == "efficacy_tf" and r["when"] == "final"]
    first = sum(r["value"] for r in rows) / len(rows)
    rows[0]["value"] -= 0.5
    write_sealed(path, record)
    (row,) = script.repeated("standard", before, now).to_dict("records")
    assert (row["data"], row["method"]) == ("bzsre", "alphaedit")
    assert (row["languages"], row["edits"], row["seed"]) == (2, 200, 0)
    assert row["first"] == pytest.approx(first) and row["second"] == pytest.approx(first - 0.5 / len(rows))
    assert row["difference"] == pytest.approx(-0.5 / len(rows))
    assert row["sd"] == pytest.approx(0.5 / len(rows) ** 0.5)  # one of n differs by ½: ½ √((1 − 1/n)/(n − 1))
    assert row["F1, first"] != row["F1, first"]  # not asked
