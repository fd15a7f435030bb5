"""Measure the engine against a literal reference on this machine: `make bench`.

Writes named figures, their sample sizes and the machine to a JSON file, and prints them as a table.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import machine
from reference_engine import literal_value
from sections import Bench, Figures, edit, floor, projection, say, values

from langedit_core.languages import CORE
from langedit_core.models import load_model
from langedit_core.profiles import hyperparameters
from langedit_core.storage import write_json
from langedit_core.tokens import Row
from langedit_core.values import ValueRequest, optimise_values

MODEL = "gemma-3-270m"
HERE = Path(__file__).resolve().parent


def peak_bytes(reset: bool = False) -> int:
    """Largest resident memory of this process; Linux can give back and forget what loading the model needed."""
    if reset and (clear := Path("/proc/self/clear_refs")).exists():
        gc.collect()
        if hasattr(library := ctypes.CDLL(None), "malloc_trim"):
            library.malloc_trim(0)  # else freed pages kept by the allocator would hide what is used later
        clear.write_text("5")
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_child(who: str) -> None:
    """In a process of its own, with the facts on standard input: how much a few steps add to the loaded model."""
    settings = hyperparameters(MODEL, "langedit")
    found = settings.values.model_copy(update={"steps": 3, "stop": 1e-9})
    requests = [request_of(item) for item in json.load(sys.stdin)]
    model = load_model(MODEL, device="cpu")
    with torch.no_grad():
        model.hf(torch.tensor([[2, 3]]))  # weights are mapped from disk, and arrive when first used
    before = peak_bytes(reset=True)
    if who == "engine":
        optimise_values(model, requests, settings.layers, found, microbatch=settings.microbatch)
    else:
        literal_value(model, requests[0], settings.layers, found)
    print(f"GROWTH {peak_bytes() - before}")


def request_of(item: dict) -> ValueRequest:
    def row(given: dict) -> Row:
        return Row(ids=tuple(given["ids"]), lookup=given["lookup"])

    contexts = tuple(map(row, item["contexts"]))
    return ValueRequest(contexts=contexts, target=tuple(item["target"]), kl=row(item["kl"]))


def memory(requests: Sequence[ValueRequest]) -> Figures:
    """Peak memory of engine and reference beyond the loaded model, each in a process of its own."""
    given = json.dumps([dataclasses.asdict(request) for request in requests])
    figures: Figures = {"memory_engine_facts_n": len(requests), "memory_reference_facts_n": 1}
    for who in ("engine", "reference"):
        command = [sys.executable, __file__, "--memory", who]
        found = subprocess.run(command, input=given, capture_output=True, text=True)
        growth = [line.split()[1] for line in found.stdout.splitlines() if line.startswith("GROWTH")]
        if found.returncode or not growth:
            raise RuntimeError(f"measuring the memory of the {who} failed: {found.stderr[-2000:]}")
        figures[f"memory_{who}_peak_growth_megabytes"] = int(growth[0]) / 1e6
        say(f"memory, {who}: {int(growth[0]) / 1e6:.0f} MB beyond the model")
    return figures


def table(figures: Figures) -> str:
    """All figures, aligned."""
    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {value:>12.4g}" for name, value in figures.items())


def put_into_readme(figures: Figures, about: dict[str, str | int], path: Path) -> None:
    """Replace what stands between the markers of the README by this run."""
    begin, end = "<!-- last run -->\n", "<!-- end of last run -->"
    head, _, rest = path.read_text("utf-8").partition(begin)
    rows = "".join(f"| `{name}` | {value:.4g} |\n" for name, value in figures.items())
    said = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in about.items())
    tail = rest.partition(end)[2]
    path.write_text(f"{head}{begin}{said}\n\n| figure | value |\n|---|---|\n{rows}{end}{tail}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=int, help="facts to edit (default 12, with --quick 2)")
    parser.add_argument("--quick", action="store_true", help="few facts, small matrices: one or two minutes")
    parser.add_argument("--output", type=Path, default=HERE / "latest.json")
    parser.add_argument("--memory", choices=("engine", "reference"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    facts = options.facts or (2 if options.quick else 12)
    if facts < 1:
        parser.error(f"--facts {facts}: at least one fact is needed")
    if options.memory:
        memory_child(options.memory)
        return
    langs = ("en", "zh") if options.quick else CORE

    started, rng = time.time(), random.Random(0)
    about = machine()
    say(f"{about['processor']}, {about['threads']} threads, load {about['load_average']}")
    bench = Bench.prepare(MODEL, facts, langs)
    say(f"{len(bench.requests)} facts in {', '.join(langs)}; layers {list(bench.layers)}")
    figures = values(bench, rng, chunk=min(12, facts))
    figures |= edit(bench, figures["values_reference_seconds_per_fact_median"])
    figures |= floor(bench, figures["values_engine_seconds_per_fact_median"])
    figures |= projection(rng, 2048, rounds=1 if options.quick else 3)
    if not options.quick:
        figures |= projection(rng, 4096, rounds=1)
    figures |= memory(bench.requests[:6])
    figures["bench_seconds"] = time.time() - started
    settings = bench.editor.settings.model_dump(mode="json")
    write_json(options.output, dict(figures=figures, machine=about, model=MODEL, settings=settings))
    if options.output == HERE / "latest.json":
        put_into_readme(figures, about, HERE / "README.md")
    print(table(figures))
    print(json.dumps(about, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
