"""Where time and memory go: tables add up, sentences follow the numbers, formulas are those of real tensors."""

from __future__ import annotations

import importlib
import json
import math
import random
from pathlib import Path

import pandas as pd
import pytest
import torch
import toy
import toy_study

from langedit_core import cost, refresh
from langedit_core.analysis import Study
from langedit_core.editors import METHODS, Editor, settings_for
from langedit_core.estimate import state
from langedit_core.nullspace import NullSpace
from langedit_core.refresh import PowerLaw, World, frame, interleaved, measure, ratios

ROOT = Path(__file__).resolve().parents[1]


def timed(method: str, projection: float, solve: float = 0.1, values: float = 9.0, seed: int = 0, busy: float = 1.0):
    """A finished cell whose batches all take the same, but for a slow first one."""
    result = toy_study.fabricate(method, seed=seed, xtreme=False)
    phases = dict(values=values, keys=0.7, projection=projection, solve=solve, write=0.2, measuring=50.0)
    result.seconds = pd.DataFrame(
        dict(step=t, phase=phase, seconds=100.0 if t == 0 else value, processor=value / busy)
        for t in range(result.cell.batches)
        for phase, value in phases.items()
    )
    return result


# --- seconds ----------------------------------------------------------------------------------------------------------


def test_phases_are_medians_of_later_batches_without_measuring():
    study = Study([timed("alphaedit", 0.0), timed("langedit", 0.4), timed("langedit", 0.6, seed=1)])
    table = cost.phases(study, "atlas").set_index("method")
    assert table.loc["alphaedit", "total"] == pytest.approx(10.0)
    assert table.loc["langedit", "projection"] == pytest.approx(0.5)
    assert table.loc["langedit", "projection, %"] == pytest.approx(100 * 0.5 / 10.5)
    assert table["n"].to_dict() == {"alphaedit": 5, "langedit": 10}
    assert "measuring" not in table


def test_processor_seconds_are_told_beside_the_clock_and_only_where_they_were_taken():
    table = cost.phases(Study([timed("alphaedit", 0.0), timed("langedit", 0.5, busy=2.0)]), "atlas").set_index("method")
    assert table["processor"].to_dict() == pytest.approx({"alphaedit": 10.0, "langedit": 5.25})
    old = timed("langedit", 0.5, busy=math.nan)
    assert math.isnan(cost.phases(Study([old]), "atlas")["processor"].iloc[0])


def test_overhead_is_what_projection_and_solve_add_whatever_the_values_took():
    study = Study([timed("alphaedit", 0.0, solve=0.2, values=9.0), timed("langedit", 0.5, solve=0.1, values=3.0)])
    found = cost.overhead(study, "atlas")
    assert found.value == pytest.approx((0.6 - 0.2) / 10.1)
    assert found.n == 5


def test_the_reading_puts_the_overhead_beside_that_of_the_paper():
    text = " ".join(cost.reading(Study([timed("alphaedit", 0.0), timed("langedit", 0.3)]), "atlas"))
    assert "add +3.0 % [+3.0, +3.0] to a batch of AlphaEdit" in text and "; the paper has +21 %." in text
    assert "n = 5 batches, too few to say more" in text


def test_the_reading_is_silent_about_a_comparison_that_was_not_run():
    text = " ".join(cost.reading(Study([timed("memit", 0.0)]), "atlas"))
    assert "AlphaEdit" not in text and "1 method," in text


# --- memory -----------------------------------------------------------------------------------------------------------


def test_state_of_a_block_is_its_formula():
    """That the formula is what an editor holds, tensor by tensor, is tested in test_estimate.py."""
    blocks = {"b": (10, 40, 2)}
    table = cost.memory_table(edits=30, protected=0.25, blocks=blocks).set_index("method")
    square, basis = 2 * 8 * 40**2 / 1e9, 2 * 8 * 40 * 10 / 1e9
    assert set(table.index) == set(METHODS)
    assert table.loc["alphaedit", "statistics"] == pytest.approx(basis + 2 * 4 * 40 * 30 / 1e9)
    assert table.loc["evoedit", "statistics"] == pytest.approx(basis + 2 * 8 * 40 * 30 / 1e9)
    assert table.loc["langedit", "statistics"] == pytest.approx(square + basis + 2 * 4 * 40 * 30 / 1e9)
    assert table.loc["memit", "statistics"] == pytest.approx(square)
    assert table.loc["ft", "statistics"] == 0 and table.loc["rome", "layers"] == 1
    more = cost.memory_table(edits=50, protected=0.25, blocks=blocks).set_index("method")  # than there are dimensions
    assert more.loc["alphaedit", "statistics"] == more.loc["evoedit", "statistics"] == pytest.approx(basis + square)
    two_sums = basis + 2 * square  # C₀'s and its own, and up to 40 keys since
    assert more.loc["langedit", "statistics"] == pytest.approx(two_sums + 2 * 4 * 40 * 40 / 1e9)
    assert more.loc["langedit-released", "statistics"] == pytest.approx(square + basis + 2 * 4 * 40 * 50 / 1e9)


def test_what_reads_no_covariance_holds_none():
    shape = dict(d_out=10, d_in=40, edits=5)
    none = [settings_for("ft", layers=(0,)), settings_for("rome", layers=(0,), covariance_weight=0.0)]
    assert all(state(settings, **shape)["covariances"] == 0 for settings in none)
    assert state(settings_for("rome", layers=(0,)), **shape)["covariances"] == 8 * 40**2


def test_every_space_says_which_matrix_it_needs():
    table = cost.memory_table(blocks={"b": (10, 40, 1)}).set_index("method")["d × d after the start"]
    assert (table.loc[["alphaedit", "evoedit", "langedit-full", "ft"]] == "none").all()
    assert table.loc["langedit"].startswith("C₀") and table.loc["memit"].startswith("Cholesky factor")


def test_the_peak_adds_up():
    table = cost.peak_table(("memit", "langedit")).set_index("method")
    held = table[["weights", "edited", "covariances", "eigenbases", "keys, factor"]].sum(axis=1)
    assert table["peak"].tolist() == pytest.approx((held + table[["micro-batch", "workspace"]].max(axis=1)).tolist())
    assert table.loc["memit", "eigenbases"] == 0 < table.loc["langedit", "eigenbases"]


# --- the paper's seconds ----------------------------------------------------------------------------------------------


def test_only_langedit_decomposes_anew_in_every_batch():
    shapes = cost.shapes_of(cost.PAPER_MODEL)
    langedit, alphaedit = (cost.per_batch(shapes, method, 0.5) for method in ("langedit", "alphaedit"))
    assert langedit["decompositions"] == pytest.approx(5 * 9 * 14336.0**3) and alphaedit["decompositions"] == 0
    assert langedit["values"] == alphaedit["values"] > 0


@pytest.mark.parametrize(("tflops", "verdict"), [(60.0, "outside"), (12.0, "within")])
def test_the_papers_difference_stands_beside_the_estimate(tflops, verdict):
    table = cost.paper_seconds(tflops)
    assert table.set_index("method")["paper, s"].to_dict() == {"langedit": 1549, "alphaedit": 1277}
    assert (table["all, low"] < table["all, high"]).all()
    text = " ".join(cost.paper_reading(table, tflops))
    assert "272 s more per batch" in text and f"lies {verdict} this range" in text and "estimates" in text


@pytest.fixture
def script(monkeypatch):
    """Imports a script of `benchmarks/` by name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


def test_the_script_for_a_gpu_runs_at_a_tiny_size(script, tmp_path):
    found = script("gpu_block").run("tiny", ["alphaedit", "langedit"], facts=2, batches=2, device="cpu", steps=2)
    assert [(r["method"], r["step"]) for r in found["rows"]] == [
        ("alphaedit", 0), ("alphaedit", 1), ("langedit", 0), ("langedit", 1),
    ]  # fmt: skip
    for row in found["rows"]:
        assert set(row["seconds"]) == set(cost.PHASES) and row["peak_bytes"] is None
    (tmp_path / "gpu_tiny.json").write_text(json.dumps(found))
    table = cost.gpu_table(tmp_path)
    assert table["method"].tolist() == ["alphaedit", "langedit"] and table["n"].tolist() == [1, 1]
    assert "Measured on cpu" in cost.gpu_reading(table)[0]


def test_shapes_of_the_script_are_the_published_ones(script):
    shapes = script("gpu_block").SHAPES
    assert shapes["llama3-8b"][0]["intermediate_size"] == 14336 and len(shapes["llama3-8b"][1]) == 5
    assert shapes["llama3-70b-block"][0]["intermediate_size"] == 28672 and len(shapes["llama3-70b-block"][1]) == 1


def test_whole_batches_are_compared_round_by_round_and_the_search_is_told_apart(script, tmp_path):
    batches = script("batches")

    def runs(*seconds: tuple[float, float]) -> list:
        return [
            batches.Timed(clock=2 * (v + p), processor=v + p, phases=dict(values=v, projection=p), steps=3.0)
            for v, p in seconds
        ]

    found = dict(alphaedit=runs((90, 10), (190, 10), (290, 10)), langedit=runs((110, 20), (180, 20), (290, 20)))
    rows = batches.summary(found | dict(ft=runs((40, 0), (50, 0), (60, 0))), facts=100, other_search=["ft"])
    ours = rows[1]
    assert ours["processor_ratio"] == ours["ratio"] == pytest.approx(1.0)  # of medians: 200 and 200
    assert ours["processor_ratio_of_rounds"] == pytest.approx([1.0, 1.3])
    assert ours["same_values_ratio"] == pytest.approx(1.05)  # ten seconds of decomposition on two hundred
    assert ours["facts_per_minute"] == pytest.approx(15.0) and rows[2]["same_values_ratio"] is None
    where = dict(processor="X", threads=1, load_average="1.0")
    (tmp_path / "batches_100.json").write_text(json.dumps(dict(facts=100, rounds=3, rows=rows, machine=where)))
    table = cost.interleaved_table(tmp_path)
    assert table["over alphaedit"].tolist() == ["1.00 [1.00, 1.00]", "1.00 [1.00, 1.30]", "0.25 [0.20, 0.40]"]
    (sentence,) = cost.interleaved_reading(table)
    assert "the difference is +5.0 %" in sentence and "+21 %" in sentence and "decomposition is 20.0 s" in sentence


def test_whole_batches_are_measured_on_a_model_that_is_left_as_it_was(script, tiny):
    covariances = toy.covariances(tiny, (1, 2))
    methods = {method: settings_for(method, layers=(1, 2)) for method in ("alphaedit", "langedit")}
    editors = {method: Editor(tiny, settings, covariances, toy.CONTEXTS) for method, settings in methods.items()}
    before = toy.weights(tiny)
    found = script("batches").measure(editors, [toy.facts("en", range(6)), toy.facts("de", range(6))])
    assert {method: len(runs) for method, runs in found.items()} == dict(alphaedit=2, langedit=2)
    assert all(set(run.phases) == set(cost.PHASES) and run.steps > 0 for runs in found.values() for run in runs)
    assert toy.same(before, toy.weights(tiny))


def test_no_whole_batches_no_table(tmp_path):
    table = cost.interleaved_table(tmp_path)
    assert table.empty and cost.interleaved_reading(table) == []


def test_without_a_gpu_nothing_is_claimed(tmp_path):
    table = cost.gpu_table(tmp_path)
    assert table.empty and cost.gpu_reading(table)[0].startswith("Nothing was measured on a GPU")


# --- refreshes --------------------------------------------------------------------------------------------------------


def test_every_kind_leaves_the_same_directions_and_none_leaks():
    rows = measure(60, 4, rounds=2, past=10)
    assert [row["kind"] for row in rows] == list(refresh.KINDS)
    for row in rows:
        assert row["rank"] == 60 - 12 - 10 - 4
        assert row["leak"] < 1e-5
        n = 2 if row["kind"] in refresh.OF_A_MATRIX else 2 * refresh.REPEATS
        assert len(row["seconds"]) == len(row["processor"]) == n


def test_a_world_without_decompositions_makes_no_square_matrix():
    world = World.of(60, ["full_keys", "incremental"], past=10)
    assert all(60 * 60 not in (t.numel() for t in p.held.values() if t is not None) for p in world.start.values())
    assert world.kept.shape == (60, 12 + 10)
    norms = (world.start["incremental"].space.project(world.kept)).norm()
    assert norms < 1e-10 * world.kept.norm()


def test_a_round_runs_every_task_once_in_an_order_that_chance_decides():
    tasks = {name: (lambda name=name: name) for name in "abcdef"}
    orders = [[name for name, *_ in interleaved(tasks, rng)] for rng in [random.Random(0)] for _ in range(3)]
    assert all(sorted(order) == list("abcdef") for order in orders) and orders[0] != orders[1]
    assert all(name == result for name, _, result in interleaved(tasks, random.Random(1)))


def row(d: int, kind: str, seconds: float, added: int = 10, processor: float | None = None, leak: float = 1e-7) -> dict:
    same = dict(past=500, device="cpu", rank=d // 2, bytes=8 * d, threads=1)
    times = dict(seconds=[seconds / 2, seconds, 9 * seconds], processor=[processor or seconds])
    return dict(d=d, added=added, kind=kind, leak=leak) | same | times


def cubic(widths=(100, 200, 400), wide=800) -> pd.DataFrame:
    rows = [row(d, "exact", 2e-6 * d**3) for d in widths] + [row(d, "incremental", 1e-3 * d) for d in (*widths, wide)]
    return frame(rows)


def test_a_power_law_is_found_and_needs_two_widths():
    law = PowerLaw.fit([10, 20, 40], [5 * d**2.5 for d in (10, 20, 40)])
    assert law.exponent == pytest.approx(2.5) and law(80) == pytest.approx(5 * 80**2.5)
    assert PowerLaw.fit([10, 10], [1.0, 2.0]) is None


def test_ratios_are_of_medians_and_estimates_are_named():
    table = ratios(cubic(), estimate_at=(800,)).set_index(["kind", "d"])
    assert table.loc[("exact", 400), "times incremental"] == pytest.approx(2e-6 * 400**3 / 0.4)
    assert table.loc[("exact", 400), "n"] == 3 and table.loc[("exact", 400), "source"] == "measured"
    guess = table.loc[("exact", 800)]
    assert guess["seconds"] == pytest.approx(2e-6 * 800**3) and guess["n"] == 0 and math.isnan(guess["leak"])
    assert guess["source"] == "estimate: exponent 3.00 from d = 100, 200, 400"
    assert ("incremental", 800) in table.index and len(table) == 8


def test_the_reading_of_refreshes_is_about_the_widest_one_and_knows_no_aim():
    told = cost.refresh_reading(cubic((100, 200, 400)))
    assert "10 new keys at d = 400, the widest decomposition measured" in told[0] and "320 times faster" in told[0]
    assert "at a leak of 1.0e-07 in float32" in told[0] and "grows as d^3.00" in told[1]
    busy = frame([row(400, "exact", 1.0, processor=0.1), row(400, "incremental", 1e-3, processor=5e-3)])
    (sentence,) = cost.refresh_reading(busy)
    assert "1000 times faster on the clock and 20 times in processor seconds" in sentence
    assert not any(word in sentence for word in ("aim", "target", "met", "missed"))


def test_what_the_bench_left_is_read(tmp_path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(dict(machine={}, rows=[row(100, "incremental", 0.2)])))
    assert refresh.load(path)["median"].tolist() == [0.2]


def test_the_committed_measurements_leak_nothing():
    rows = refresh.load(ROOT / "benchmarks" / "cost.json")
    assert (rows["leak"] <= 1e-5).all()
    assert rows.groupby(["d", "added", "device"])["rank"].nunique().max() == 1


def test_the_published_svd_finds_the_same_space():
    world = World.of(60, past=10)
    one, other = (world.start[kind].space for kind in ("svd", "exact"))
    assert isinstance(one, NullSpace) and one.rank == other.rank
    torch.testing.assert_close(one.projection.double(), other.projection, rtol=0, atol=1e-4)
