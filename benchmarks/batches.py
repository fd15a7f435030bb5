"""Time whole batches of several editors on one model, interleaved, and print ratios of medians.

    python benchmarks/batches.py [--methods alphaedit langedit] [--facts 20] [--rounds 5] [--output batches.json]

Every round goes through the methods in random order. A method first writes a small batch, which is not timed, so that
the timed one pays for what the method does with past keys (`langedit`: a decomposition per layer). Then it is reset.
Processor seconds are printed beside the clock's: on a shared machine they say more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from machine import machine
from tqdm import tqdm

from langedit_core import load_data, load_model, prepare_editor
from langedit_core.languages import CORE
from langedit_core.storage import write_json

OUTPUT = Path(__file__).resolve().parent / "batches.json"
FIRST = 4  # facts of the batch that is not timed


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
    model = load_model(options.model)
    drawn = load_data("atlas", CORE).select(("en",), FIRST + options.facts, split="tune")[0]
    editors = {method: prepare_editor(model, method) for method in options.methods}
    random = np.random.default_rng(0)
    clock, processor, phases = defaultdict(list), defaultdict(list), defaultdict(lambda: defaultdict(list))
    for _ in tqdm(range(options.rounds), unit="round"):
        for method in random.permutation(options.methods):
            editor = editors[method]
            editor.edit(drawn[:FIRST])
            started, used = time.perf_counter(), time.process_time()
            report, _ = editor.edit(drawn[FIRST:])
            clock[method].append(time.perf_counter() - started)
            processor[method].append(time.process_time() - used)
            for phase, seconds in report.seconds.items():
                phases[method][phase].append(seconds)
            editor.reset()
    reference = options.methods[0]
    rows = [
        dict(
            method=method,
            seconds=statistics.median(clock[method]),
            processor_seconds=statistics.median(processor[method]),
            over=reference,
            ratio=statistics.median(clock[method]) / statistics.median(clock[reference]),
            processor_ratio=statistics.median(processor[method]) / statistics.median(processor[reference]),
            phases={phase: statistics.median(seconds) for phase, seconds in phases[method].items()},
        )
        for method in options.methods
    ]
    for row in rows:
        told = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in row["phases"].items())
        print(f"{row['method']:12} {row['seconds']:7.2f} s, {row['processor_seconds']:7.2f} s of processor ({told})")
        print(f"{'':12} over {reference}: {row['ratio']:.3f}, of processor {row['processor_ratio']:.3f}")
    write_json(
        options.output,
        dict(model=options.model, facts=options.facts, rounds=options.rounds, rows=rows, machine=machine()),
    )


if __name__ == "__main__":
    main()
