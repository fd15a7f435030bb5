"""Time whole batches of several editors on one model, interleaved, and print ratios of medians.

    python benchmarks/batches.py [--methods alphaedit langedit] [--facts 20] [--rounds 5] [--output batches.json]

Every round draws facts of its own, in the next language, and goes through the methods in random order. A method first
writes a small batch, which is not timed, so that the timed one pays for what the method does with past keys
(`langedit`: a decomposition per layer). Then it is reset. Processor seconds are printed beside the clock's: on a shared
machine they say more.

The search for values is the same code for all methods but `rome` and `ft`, and takes more steps from some weights than
from others, a matter of chance for few facts. `same_values_ratio` leaves that out: the method's other phases, with the
reference's search.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from machine import machine
from tqdm import tqdm

from langedit_core import Fact, load_data, load_model, prepare_editor
from langedit_core.editors import Editor
from langedit_core.languages import CORE
from langedit_core.storage import write_json

OUTPUT = Path(__file__).resolve().parent / "batches.json"
FIRST = 4  # facts of the batch that is not timed


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One batch of one method: seconds of the clock, of the processor by phase and in all, steps per fact."""

    clock: float
    processor: float
    phases: dict[str, float]
    steps: float


def measure(editors: Mapping[str, Editor], rounds: Iterable[Sequence[Fact]]) -> dict[str, list[Timed]]:
    """Time every editor on the facts of every round, interleaved; the first FIRST facts of a round are not timed."""
    random = np.random.default_rng(0)
    found = {method: [] for method in editors}
    for drawn in rounds:
        for method in random.permutation(list(editors)):
            editor = editors[method]
            editor.edit(drawn[:FIRST])
            started, used = time.perf_counter(), time.process_time()
            report, _ = editor.edit(drawn[FIRST:])
            timed = Timed(
                clock=time.perf_counter() - started,
                processor=time.process_time() - used,
                phases=report.processor,
                steps=mean(report.steps),
            )
            found[method].append(timed)
            editor.reset()
    return found


def summary(found: Mapping[str, Sequence[Timed]], facts: int, other_search: Collection[str] = ()) -> list[dict]:
    """A row per method: medians over rounds, and ratios to the first method.

    Args:
        found: What `measure` gives.
        facts: Per timed batch.
        other_search: Methods that do not search for values as the others do.
    """
    reference = next(iter(found))
    of_reference = median(timed.processor for timed in found[reference])
    rows = []
    for method, runs in found.items():
        pairs = list(zip(runs, found[reference], strict=True))
        ratios = [run.processor / other.processor for run, other in pairs]
        same = median(run.processor - run.phases["values"] + other.phases["values"] for run, other in pairs)
        clock = median(run.clock for run in runs)
        rows.append(
            dict(
                method=method,
                seconds=clock,
                facts_per_minute=60 * facts / clock,
                processor_seconds=median(run.processor for run in runs),
                over=reference,
                ratio=clock / median(run.clock for run in found[reference]),
                processor_ratio=median(run.processor for run in runs) / of_reference,
                processor_ratio_of_rounds=[min(ratios), max(ratios)],
                same_values_ratio=None if method in other_search else same / of_reference,
                steps=mean(run.steps for run in runs),
                phases={phase: median(run.phases[phase] for run in runs) for phase in runs[0].phases},
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--methods", nargs="+", default=["alphaedit", "langedit"], help="the first is the reference")
    parser.add_argument("--facts", type=int, default=20, help="per timed batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    here = machine()
    model, data = load_model(options.model), load_data("atlas", CORE)
    editors = {method: prepare_editor(model, method) for method in options.methods}
    other_search = [m for m, e in editors.items() if e.settings.one_by_one or e.settings.finetune is not None]
    rounds = [
        data.select((CORE[number % len(CORE)],), FIRST + options.facts, split="tune", seed=number)[0]
        for number in range(options.rounds)
    ]
    rows = summary(measure(editors, tqdm(rounds, unit="round")), options.facts, other_search)
    for row in rows:
        told = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["phases"].items())
        (low, high), same = row["processor_ratio_of_rounds"], row["same_values_ratio"]
        print(
            f"{row['method']:17} {row['seconds']:7.2f} s, {row['facts_per_minute']:5.1f} facts a minute, "
            f"{row['processor_seconds']:7.2f} s of processor ({told}), {row['steps']:.1f} steps\n"
            f"{'':17} over {row['over']}: {row['ratio']:.3f}, of processor {row['processor_ratio']:.3f} "
            f"({low:.3f} to {high:.3f})" + ("" if same is None else f", with the same values {same:.3f}")
        )
    write_json(
        options.output,
        dict(model=options.model, facts=options.facts, rounds=options.rounds, rows=rows, machine=here),
    )


if __name__ == "__main__":
    main()
