"""What editing costs: seconds per batch by phase, bytes per layer, and the paper's times beside an estimate.

Seconds are medians over batches of finished cells, on the machines they were computed on; bytes are exact formulas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from langedit_core.editors import METHODS, settings_for
from langedit_core.estimate import PASSES, Rate, Shapes, Texts, memory, shapes_of, state, work
from langedit_core.languages import CORE
from langedit_core.profiles import hyperparameters
from langedit_core.refresh import PowerLaw, ratios
from langedit_core.results import Cell
from langedit_core.stats import Estimate, interval
from langedit_core.study import load_data

if TYPE_CHECKING:
    from langedit_core.analysis import Study

PHASES = ("values", "keys", "projection", "solve", "write")
PAPER = {"langedit": 1549.0, "alphaedit": 1277.0}
"""Seconds per batch of 100 facts on Llama3-8B, arXiv 2506.10800; the machine is not named with them."""
PAPER_MODEL, PAPER_BATCH = "meta-llama/Meta-Llama-3-8B-Instruct", 100
BLOCKS = {  # d_model, d_ff, edited layers
    "8B model, five layers (d_ff 14336)": (4096, 14336, 5),
    "70B model, one layer (d_ff 28672)": (8192, 28672, 1),
}
NEEDS = {  # matrices of d x d that stay where the solve runs, once C₀'s basis is there; and why
    "static": "none",
    "incremental": "none",
    "full_keys": "none",
    "running": "C₀: summed with all keys and decomposed anew",
    "literal": "C₀: summed with all keys and decomposed anew",
    "randomized": "C₀: summed with all keys and multiplied anew",
    "released": "C₀: mixed with all keys and decomposed anew",
    "whole": "Cholesky factor of λ₀C₀: its inverse has full rank",
}
STATE = ("basis", "keys, factor", "C₀, kept")


def phases(study: Study, data: str) -> pd.DataFrame:
    """Per method, median seconds of a batch in each phase, their sum, the share of the projection, and n batches.

    `processor` is the median of what a batch used of the processor, in seconds, NaN where that was not taken. The
    first batch of a sequence is left out where there are others: it decomposes nothing, its space is that of C₀.
    """
    rows = []
    for method in study.methods_of(data):
        table, used = (_batches(study, data, method, of) for of in ("seconds", "processor"))
        middle = table.median()
        rows.append(
            dict(method=method) | middle.to_dict() | {"total": middle.sum()}
            | {"processor": used.sum(axis=1, min_count=1).median()}
            | {"projection, %": 100 * middle["projection"] / middle.sum(), "n": len(table)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _batches(study: Study, data: str, method: str, of: str = "seconds") -> pd.DataFrame:
    """Seconds, or processor seconds, of all batches that count, (seed, step) x phases."""
    parts = {}
    for result in study.results:
        if result.cell.data == data and result.cell.method == method:
            table = result.seconds.pivot(index="step", columns="phase", values=of)
            table = table.reindex(columns=list(PHASES))
            if of == "seconds":
                table = table.fillna(0.0)  # a phase that a method does not have
            parts[result.cell.seed] = table.iloc[1:] if len(table) > 1 else table
    return pd.concat(parts, names=["seed", "step"])


def overhead(study: Study, data: str, method: str = "langedit", other: str = "alphaedit") -> Estimate:
    """How much longer a batch takes with `method` than with `other`, as a share of the latter, over paired batches.

    Only projection and solve differ between the two; values and keys are found by the same code on other weights, and
    differ by chance. So it is the difference of those phases, batch by batch, over the median batch of `other`.
    """
    one, two = (_batches(study, data, m) for m in (method, other))
    own = ["projection", "solve"]
    difference = (one[own].sum(axis=1) - two[own].sum(axis=1)).dropna()
    return interval(difference / two.sum(axis=1).median())


def reading(study: Study, data: str) -> list[str]:
    """Sentences about where the time goes on one data set."""
    table = phases(study, data).set_index("method")
    first = table.index[0]
    values = 100 * table["values"] / table["total"]
    out = [
        f"Finding values takes {values.min():.0f} to {values.max():.0f} % of a batch ({_plural(len(table), 'method')}, "
        f"at least {_plural(int(table['n'].min()), 'batch')} each); with {first} a batch takes "
        f"{table.loc[first, 'total']:.1f} s without measuring."
    ]
    worst = table["projection, %"].idxmax()
    out.append(
        f"The projection takes at most {table['projection, %'].max():.1f} % ({worst}), at least "
        f"{table['projection, %'].min():.2f} %."
    )
    if {"langedit", "alphaedit"} <= set(table.index):
        extra = overhead(study, data)
        paper = PAPER["langedit"] / PAPER["alphaedit"] - 1
        span = "" if extra.n < 2 else f" [{100 * extra.low:+.1f}, {100 * extra.high:+.1f}]"
        out.append(
            f"LangEdit's projections and solves add {100 * extra.value:+.1f} %{span} to a batch of AlphaEdit "
            f"(n = {extra.n} batches{', too few to say more' if extra.n < 6 else ''}); the paper has "
            f"{100 * paper:+.0f} %."
        )
    return out


def refresh_reading(rows: pd.DataFrame) -> list[str]:
    """Sentences about `refresh.frame`: the widest refresh measured, its growth with d, and what wider ones would take.

    Seconds on the clock and of the processor are both told: where other programs run, a short task is interrupted less
    than a long one, and the clock flatters it.
    """
    table, out = ratios(rows), []
    measured, estimates = table[table["n"] > 0], table[(table["n"] == 0) & (table["kind"] == "exact")]
    for added, part in measured[measured["kind"] == "exact"].groupby("new keys"):
        widest = part.loc[part["d"].idxmax()]
        at = measured[(measured["new keys"] == added) & (measured["d"] == widest["d"])].set_index("kind")
        own = at.loc["incremental"]
        sentence = (
            f"{added} new keys at d = {widest['d']}, the widest decomposition measured: the exact refresh takes "
            f"{widest['seconds']:.3g} s, the incremental one {own['seconds']:.3g} s (medians of {widest['n']} and "
            f"{own['n']}): {widest['times incremental']:.0f} times faster on the clock and "
            f"{widest['times, processor']:.0f} times in processor seconds, at a leak of {own['leak']:.1e} in float32."
        )
        for kind, name in (("randomized", "The range finder"), ("full_keys", "The SVD of all stored keys")):
            if kind in at.index:
                sentence += (
                    f" {name} takes {at.loc[kind, 'times, processor']:.1f} times as long as the incremental one."
                )
        out.append(sentence)
        law = PowerLaw.fit(part["d"].tolist(), part["seconds"].tolist())
        if law:
            told = ", ".join(map(str, law.widths))
            out.append(f"From d = {told} the exact refresh grows as d^{law.exponent:.2f} ({added} new keys).")
    for _, row in estimates.iterrows():
        out.append(
            f"At d = {row['d']} with {row['new keys']} new keys an exact refresh would take {row['seconds'] / 60:.0f} "
            f"minutes ({row['source']}), {row['times incremental']:.0f} times the incremental one, which was measured."
        )
    return out


# --- memory -----------------------------------------------------------------------------------------------------------


def memory_table(
    methods: Iterable[str] = METHODS, edits: int = 1000, protected: float = 0.2, blocks: dict | None = None
) -> pd.DataFrame:
    """GB of state per method, by formula: what stays from batch to batch, and which d x d matrix is among it.

    Columns block, method, layers, those of STATE and their sum `statistics`, `matrices` (the edited ones, three
    copies), and why a d x d matrix is needed once C₀ was decomposed. At first all that solve need C₀ itself, 8 d² bytes
    a layer.

    Args:
        methods: Names of METHODS.
        edits: Keys taken in so far.
        protected: Share of directions that C₀ protects.
        blocks: Name -> d_model, d_ff, number of edited layers; None: an 8B model and a layer of a 70B model.
    """
    rows = []
    for name, (d_model, d_ff, layers) in (blocks or BLOCKS).items():
        for method in methods:
            settings = settings_for(method, layers=(0,) if METHODS[method].get("one_by_one") else tuple(range(layers)))
            n, needs = len(settings.layers), "none" if settings.finetune else NEEDS[settings.space]
            parts = {k: n * v / 1e9 for k, v in state(settings, d_model, d_ff, edits, protected=protected).items()}
            kept = dict(zip(STATE, (parts["eigenbases"], parts["method"], parts["covariances"]), strict=True))
            if not needs.startswith("C₀"):
                kept["C₀, kept"] = 0.0  # only at the start
            rows.append(
                dict(block=name, method=method, layers=n) | kept
                | {"statistics": sum(kept.values()), "matrices": parts["edited"], "d × d after the start": needs}
            )  # fmt: skip
    return pd.DataFrame(rows)


def peak_table(methods: Sequence[str] = ("memit", "alphaedit", "langedit", "evoedit", "langedit-full")) -> pd.DataFrame:
    """GB of editing Llama3-8B with the paper's settings, by `estimate.memory`: an estimate from shapes, per part."""
    shapes, rows = _shapes(), []
    for method in methods:
        cell, texts = _paper_cell(method, rounds=6)
        parts = memory(shapes, cell, texts)
        names = {"method": "keys, factor"}
        told = {names.get(name, name): value / 1e9 for name, value in parts.items() if name != "least"}
        rows.append(dict(method=method) | told)
    return pd.DataFrame(rows)


# --- the paper's seconds ----------------------------------------------------------------------------------------------


def paper_seconds(tflops: float = 60.0, passes: Sequence[float] | None = None) -> pd.DataFrame:
    """Seconds per batch of 100 facts on Llama3-8B: what the paper reports, and what shapes and texts make one expect.

    The estimate counts FLOPs (`estimate.work`) of a later batch of the paper's settings on embedded facts. Columns
    method, paper, then the low and high end of values and keys, of solve and decompositions, and of all.

    Args:
        tflops: The device's float32 throughput; the paper's is not known.
        passes: Share of the allowed steps used, at the low and high end; None: Adam's as measured here, and all.
    """
    shapes, rate = _shapes(), Rate.given(tflops)
    ends, rows = passes or (PASSES["adam"], 1.0), []
    for method, seconds in PAPER.items():
        row: dict[str, object] = {"method": method, "paper, s": seconds}
        for label, high, share in (("low", False, ends[0]), ("high", True, ends[1])):
            found = per_batch(shapes, method, share)
            parts = rate.seconds(found, high)
            searched = parts["values"] + parts["keys"]
            linear = parts["solve"] + parts["decompositions"]
            row |= {f"values and keys, {label}": searched, f"projection and solve, {label}": linear}
            row |= {f"all, {label}": searched + linear}
        rows.append(row)
    return pd.DataFrame(rows)


def per_batch(shapes: Shapes, method: str, passes: float) -> dict[str, float]:
    """FLOPs of one later batch by part: what a sequence of two costs beyond a sequence of one."""
    one, two = (work(shapes, *_paper_cell(method, rounds), passes) for rounds in (1, 2))
    return {part: two[part] - one[part] for part in ("values", "keys", "solve", "decompositions")}


def _paper_cell(method: str, rounds: int) -> tuple[Cell, list[Texts]]:
    """English batches of 100 embedded facts with the paper's settings; later ones have the texts of the first."""
    cell = Cell(
        model=PAPER_MODEL, data="atlas", method=method, settings=hyperparameters(PAPER_MODEL, method),
        langs=CORE[:1], batch=PAPER_BATCH, prefixes=5, prefix_tokens=10,
    )  # fmt: skip
    return cell.model_copy(update=dict(rounds=rounds)), _texts() * rounds


@cache
def _texts() -> list[Texts]:
    facts = load_data("atlas", CORE[:1]).select(CORE[:1], PAPER_BATCH)
    return [Texts.of(facts[0])]


@cache
def _shapes() -> Shapes:
    return shapes_of(PAPER_MODEL)


def paper_reading(table: pd.DataFrame, tflops: float) -> list[str]:
    """Sentences about the paper's seconds beside the estimate."""
    of = table.set_index("method")
    extra = of.loc["langedit", "paper, s"] - of.loc["alphaedit", "paper, s"]
    low, high = (
        of.loc["langedit", f"projection and solve, {end}"] - of.loc["alphaedit", f"projection and solve, {end}"]
        for end in ("low", "high")
    )
    inside = "lies within" if low <= extra <= high else "lies outside"
    out = [
        f"The paper's LangEdit takes {extra:.0f} s more per batch than its AlphaEdit "
        f"({of.loc['langedit', 'paper, s']:.0f} against {of.loc['alphaedit', 'paper, s']:.0f} s). Decomposing C̄ anew "
        f"in every edited layer would take {low:.0f} to {high:.0f} s on a device with {tflops:g} TFLOP/s in float32: "
        f"the difference {inside} this range.",
    ]
    return [*out, "The paper's numbers are quoted, the others are estimates from shapes, texts and that throughput."]


def interleaved_table(folder: str | Path) -> pd.DataFrame:
    """What `benchmarks/batches.py` left in `folder`: a row per number of facts and method, medians over rounds.

    Columns facts, method, edits per minute, processor seconds, those of PHASES, steps per fact, the method over the
    reference (its smallest and largest round in brackets), the same with the reference's search for values, rounds n,
    load average, machine; empty where nothing was measured.
    """
    rows = []
    for path in sorted(Path(folder).glob("batches*.json")):
        found = json.loads(path.read_text("utf-8"))
        where = found["machine"]
        for row in found["rows"]:
            (low, high), alike = row["processor_ratio_of_rounds"], row["same_values_ratio"]
            rows.append(
                {
                    "facts": found["facts"],
                    "method": row["method"],
                    "edits per minute": row["facts_per_minute"],
                    "processor": row["processor_seconds"],
                }
                | {phase: row["phases"].get(phase, 0.0) for phase in PHASES}
                | {
                    "steps": row["steps"],
                    f"over {row['over']}": f"{row['processor_ratio']:.2f} [{low:.2f}, {high:.2f}]",
                    "with its values": math.nan if alike is None else alike,
                    "n": found["rounds"],
                    "load": where["load_average"],
                    "machine": f"{where['processor']}, threads: {where['threads']}",
                }
            )
    return pd.DataFrame(rows).sort_values("facts", kind="stable", ignore_index=True) if rows else pd.DataFrame()


def interleaved_reading(table: pd.DataFrame) -> list[str]:
    """Sentences about LangEdit's batch beside AlphaEdit's, one per size of batch."""
    out = []
    for facts, part in table.groupby("facts") if len(table) else ():
        rows = part.set_index("method")
        if not {"langedit", "alphaedit"} <= set(rows.index):
            continue
        ours, others = rows.loc["langedit"], rows.loc["alphaedit"]
        paper = 100 * (PAPER["langedit"] / PAPER["alphaedit"] - 1)
        out.append(
            f"Batches of {facts}: `langedit` takes {ours['processor']:.1f} processor seconds, `alphaedit` "
            f"{others['processor']:.1f}, {ours['over alphaedit']} times as long (n = {ours['n']} rounds, smallest and "
            f"largest in brackets). The decomposition is {ours['projection']:.1f} s of it; the search for values is "
            f"the same code for both and took {ours['steps']:.2f} and {others['steps']:.2f} steps per fact. With "
            f"`alphaedit`'s search in both the difference is {100 * (ours['with its values'] - 1):+.1f} % (the paper's "
            f"seconds: {paper:+.0f} %)."
        )
    return out


def gpu_table(folder: str | Path) -> pd.DataFrame:
    """What `benchmarks/gpu_block.py` left in `folder`: a row per shape and method, medians over the later batches.

    Columns shape, device, method, those of PHASES, total, peak GB, n batches; empty where nothing was measured.
    """
    rows = []
    for path in sorted(Path(folder).glob("gpu_*.json")):
        found = json.loads(path.read_text("utf-8"))
        runs = pd.DataFrame(found["rows"])
        for (shape, method), part in runs.groupby(["shape", "method"], sort=False):
            later = part[part["step"] > 0] if len(part) > 1 else part
            phases = pd.DataFrame(later["seconds"].tolist()).reindex(columns=list(PHASES)).median()
            peak = later["peak_bytes"].max()
            rows.append(
                dict(shape=shape, device=found["machine"]["device"], method=method) | phases.to_dict()
                | {"total": later["total"].median(), "peak GB": peak / 1e9 if pd.notna(peak) else math.nan}
                | {"n": len(later)}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=["shape", "device", "method", *PHASES, "total", "peak GB", "n"])


def gpu_reading(table: pd.DataFrame) -> list[str]:
    """Sentences about what was measured on a GPU, or that nothing was."""
    if table.empty:
        return [
            "Nothing was measured on a GPU: `benchmarks/gpu_block.py` runs LangEdit and AlphaEdit on randomly "
            "initialised weights of Llama3-8B's shape, and one layer of a 70B model's; its results would appear here."
        ]
    out = []
    for (shape, device), part in table.groupby(["shape", "device"], sort=False):
        told = "; ".join(
            f"{row['method']} {row['total']:.0f} s per batch ({row['projection']:.0f} s of it projection, peak "
            f"{row['peak GB']:.0f} GB, n = {row['n']})"
            for _, row in part.iterrows()
        )
        out.append(f"Measured on {device} with random weights of shape {shape}: {told}.")
    return out


def _plural(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "es" if word.endswith("ch") else "s")
