"""What stored updates do to earlier keys, against matrices written out, and the tables kept of it."""

import math

import pandas as pd
import pytest
import torch
import toy_study
from pandas.testing import assert_frame_equal

from langedit_core import ablation, factors, mixing, study
from langedit_core.analysis import Study
from langedit_core.editors import Update
from langedit_core.results import keep_record, load_result
from langedit_core.study import run_cells

FAST = dict(prefixes=0, rounds=1)
CELLS = {method: toy_study.cell(method, **FAST) for method in ("langedit", "evoedit")}


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Results of both cells: root."""
    patch = pytest.MonkeyPatch()
    patch.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
    root = tmp_path_factory.mktemp("results")
    run_cells(CELLS.values(), toy_study.model(), root, quiet=True)
    yield root
    patch.undo()


def test_stored_updates_carry_a_model_from_start_to_end(computed):
    cell, model = CELLS["evoedit"], toy_study.model()
    before = {layer: model.weight(layer).clone() for layer in cell.settings.layers}
    report = load_result(cell, computed).batches.query("step == 1").set_index("layer")
    total = dict.fromkeys(before, 0.0)
    for updates in factors.stored_updates(cell, computed):
        total = {layer: total[layer] + updates[layer].delta for layer in total}
    for layer, delta in total.items():
        assert float(delta.norm() / before[layer].norm()) == pytest.approx(
            report.loc[layer, "relative_total"], rel=1e-4
        )


@pytest.mark.parametrize("method", CELLS)
def test_leak_and_movement_are_those_of_the_matrices(computed, method, tmp_path):
    cell = CELLS[method]
    found = factors.leaks(load_result(cell, computed), computed, tmp_path).set_index(["step", "layer"])
    batches = list(factors.stored_updates(cell, computed))
    assert list(found.index) == [(1, layer) for layer in cell.settings.layers]
    for layer in cell.settings.layers:
        first, second = batches[0][layer].keys.double(), batches[1][layer].keys.double()
        delta = batches[1][layer].left.double() @ batches[1][layer].right.double().T
        at_past, at_own = delta @ first, delta @ second
        row = found.loc[(1, layer)]
        worst = delta.norm() * torch.linalg.svdvals(first)[0]
        assert row["past"] == first.shape[1]
        assert row["leak"] == pytest.approx(float(at_past.norm() / worst), rel=1e-3, abs=1e-9)
        per_key = [float(x.norm(dim=0).square().mean().sqrt()) for x in (at_past, at_own)]
        assert row["moved"] == pytest.approx(per_key[0] / per_key[1], rel=1e-3, abs=1e-9)


def test_past_keys_stay_where_they_are_only_if_they_were_removed_exactly(computed, tmp_path):
    found = {m: factors.leaks(load_result(cell, computed), computed, tmp_path) for m, cell in CELLS.items()}
    assert found["evoedit"]["leak"].max() < 1e-6 and found["evoedit"]["moved"].max() < 1e-5
    assert found["langedit"]["leak"].min() > 1e-4


def test_an_update_that_writes_nothing_moves_nothing():
    keys, none = torch.eye(4)[:, :2], torch.zeros(4, 2)
    first, second = (
        Update(left=torch.ones(3, 2), right=keys, keys=keys),
        Update(left=torch.ones(3, 2), right=none, keys=keys),
    )
    (row,) = factors._leaks(iter([{1: first}, {1: second}]))
    assert row["leak"] == 0.0 and row["moved"] is None


def test_a_kept_table_stands_in_for_factors_and_is_bound_to_its_inputs(computed, tmp_path, caplog):
    cell, kept, records = CELLS["langedit"], tmp_path / "factors", tmp_path / "records"
    with pytest.raises(FileNotFoundError, match="a record keeps no factors"):
        keep_record(cell, computed, records)
        factors.leaks(load_result(cell, tmp_path, records), tmp_path, kept)
    made = factors.leaks(load_result(cell, computed), computed, kept)
    (path,) = kept.iterdir()
    content = path.read_bytes()
    again = factors.leaks(load_result(cell, tmp_path, records), tmp_path, kept)  # no cell in this root
    assert_frame_equal(made, again)
    assert path.read_bytes() == content

    path.write_bytes(content[:-20])
    assert_frame_equal(factors.leaks(load_result(cell, computed), computed, kept), made)
    assert "made again" in caplog.text and path.read_bytes() == content
    other = load_result(cell, computed)
    other.provenance = other.provenance | {"model_fingerprint": "another"}
    with pytest.raises(FileNotFoundError):
        factors.leaks(other, tmp_path, kept)


def test_nothing_to_leak_into_gives_an_empty_table_with_its_columns(computed, tmp_path):
    one = toy_study.cell("evoedit", langs=("en",), **FAST)
    (result,) = run_cells([one], toy_study.model(), computed, quiet=True)
    found = factors.leaks(result, computed, tmp_path)
    assert found.empty and list(found) == list(factors.LEAKS) and found["leak"].dtype == float


def test_leaks_of_a_study_are_labelled_and_cells_without_factors_left_out(computed, tmp_path):
    results = [load_result(cell, computed) for cell in CELLS.values()]
    found = ablation.leaks(Study(results), computed, tmp_path / "kept")
    assert set(found["method"]) == set(CELLS) and set(found["data"]) == {toy_study.DATA}
    nowhere = ablation.leaks(Study(results), tmp_path, tmp_path / "none")
    assert nowhere.empty and "moved" in nowhere
    assert math.isnan(ablation.spaces_table(Study(results), toy_study.DATA, nowhere)["moved"].iloc[0])


def test_both_formulas_are_compared_on_the_cells_own_keys(computed, tmp_path, monkeypatch):
    cell = CELLS["langedit"]
    monkeypatch.setattr(mixing, "load_model", lambda _: toy_study.model())
    found = ablation.mixes(Study([load_result(cell, computed)]), computed, tmp_path)[toy_study.DATA]
    assert found["layer"].eq(cell.settings.layers[1]).all()
    assert found.groupby("formula")["keys"].apply(list).to_dict() == {f: [0, 2, 4] for f in mixing.FORMULAS}
    ranks = load_result(cell, computed).batches.query(f"layer == {cell.settings.layers[1]}")["rank"].tolist()
    assert found.query("formula == 'mean'")["free"].tolist()[:2] == ranks  # a report tells the space of its batch
    monkeypatch.setattr(mixing, "load_model", lambda _: pytest.fail("the table was kept"))
    again = ablation.mixes(Study([load_result(cell, computed)]), tmp_path, tmp_path)[toy_study.DATA]
    pd.testing.assert_frame_equal(found, again)
    assert ablation.mixes(Study([load_result(cell, computed)]), tmp_path, tmp_path / "none") == {}
