"""Measure what a refresh of the null space costs, width by width; `langedit_core/refresh.py` says what is compared.

    python benchmarks/cost.py --widths 2048 4096            # minutes
    python benchmarks/cost.py --widths 8192 14336 28672     # an hour or more; each width needs some 5 d² x 8 bytes

Every (width, new keys) is saved to cost.json when it is done and not measured again; `--again` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from machine import machine

from langedit_core.refresh import KINDS, OF_A_MATRIX, World, measure
from langedit_core.storage import write_json

OUTPUT = Path(__file__).resolve().parent / "cost.json"


def kinds_at(d: int, exact_up_to: int, svd_up_to: int) -> list[str]:
    """What is measured at width `d`: the d x d kinds as far as they are affordable."""
    return [
        kind
        for kind in KINDS
        if kind not in OF_A_MATRIX or (d <= exact_up_to and (kind != "svd" or d <= svd_up_to))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[2048, 4096, 8192, 14336, 28672])
    parser.add_argument("--added", type=int, nargs="+", default=[10, 100], help="new keys")
    parser.add_argument("--rounds", type=int, help="per kind; default 5 at 2048, 3 up to 4096, 1 above")
    parser.add_argument("--exact-up-to", type=int, default=14336, help="widest matrix that is decomposed")
    parser.add_argument("--svd-up-to", type=int, default=8192, help="widest matrix given to the published SVD")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--again", action="store_true", help="measure what is there already once more")
    options = parser.parse_args()
    rows = json.loads(options.output.read_text("utf-8"))["rows"] if options.output.is_file() else []
    for d in options.widths:
        kinds = kinds_at(d, options.exact_up_to, options.svd_up_to)
        done = {(row["d"], row["added"], row["device"], row["kind"]) for row in rows}
        todo = [n for n in options.added if options.again or any((d, n, options.device, k) not in done for k in kinds)]
        if not todo:
            continue
        world = World.of(d, kinds, device=options.device)
        for added in todo:
            started = time.perf_counter()
            rounds = options.rounds or (5 if d <= 2048 else 3 if d <= 4096 else 1)
            found = measure(d, added, rounds, kinds, device=options.device, world=world)
            about = machine()
            key = (d, added, options.device)
            rows = [r for r in rows if (r["d"], r["added"], r["device"]) != key]
            rows += [row | dict(load=about["load_average"]) for row in found]
            rows.sort(key=lambda r: (r["device"], r["d"], r["added"], KINDS.index(r["kind"])))
            write_json(options.output, dict(machine=about, rows=rows))
            told = ", ".join(f"{r['kind']} {sorted(r['seconds'])[len(r['seconds']) // 2]:.4g} s" for r in found)
            print(f"d = {d}, {added} keys: {told} ({time.perf_counter() - started:.0f} s in all)", flush=True)
        del world
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
