"""What a cell's stored updates do to the keys of earlier batches, and small tables of it kept for good.

leak = ‖ΔK̄‖ / (‖Δ‖ ‖K̄‖₂), moved = (‖ΔK̄‖ / √m) / (‖ΔK_t‖ / √n) with K̄ the m keys of all earlier batches, K_t the
batch's own n. A record holds no factors, so what is read off them once is kept beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from langedit_core.editors import Update, unpacked_updates
from langedit_core.nullspace import leak
from langedit_core.results import Cell, CellResult, is_done, results_folder
from langedit_core.storage import CorruptFile, load_tensors, read_sealed, write_sealed

log = logging.getLogger(__name__)

LEAKS = ("step", "layer", "past", "leak", "moved")


def stored_updates(cell: Cell, root: Path) -> Iterator[dict[int, Update]]:
    """The updates of a finished cell, batch by batch, layer by layer.

    Raises:
        FileNotFoundError: The cell was not computed in `root`, or not to its end; a record has no factors.
    """
    if not is_done(cell, root):
        raise FileNotFoundError(
            f"{cell.label} was not computed in {root}, and a record keeps no factors; run it there with `langedit run`"
        )
    for t in range(cell.batches):
        tensors, _ = load_tensors(results_folder(cell, root) / f"batch-{t:03d}.safetensors")
        yield unpacked_updates(tensors, cell.settings.layers)


def leaks(result: CellResult, root: Path, kept: Path) -> pd.DataFrame:
    """Leak of every batch's update on the keys of all earlier batches; the first batch has none before it.

    About the update as it was solved for: what RECT or PRUNE do to it afterwards is not in it.

    Args:
        result: A finished cell of a method that solves for its updates; one that trains them has no keys.
        root: Results folder, with the factors.
        kept: Folder of the tables kept from earlier; what is measured now is added to it.

    Returns:
        Columns step, layer, past (number of earlier keys), leak, and moved: how far the output at an earlier key moves,
        relative to how far it moves at a key of the batch itself (root mean squares); NaN where nothing is written.

    Raises:
        FileNotFoundError: Neither factors nor a kept table.
    """
    cell = result.cell
    rows = kept_rows(kept / f"leaks-{cell.slug}.json.xz", result, lambda: list(_leaks(stored_updates(cell, root))))
    table = pd.DataFrame(rows, columns=list(LEAKS))
    return table.astype(dict(leak=float, moved=float))  # null: NaN


def kept_rows(path: Path, result: CellResult, make: Callable[[], list[dict]]) -> list[dict]:
    """The rows of a kept table made from the very inputs of `result`; made, and kept, where there is none."""
    inputs = hashlib.sha256(json.dumps(result.provenance, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    try:
        found = read_sealed(path)
        if found["inputs"] == inputs:
            return found["rows"]
        log.warning("%s was made from other inputs and is made again", path)
    except FileNotFoundError:
        pass
    except (CorruptFile, KeyError, TypeError) as error:
        log.warning("%s is made again: %r", path, error)
    rows = make()
    write_sealed(path, {"inputs": inputs, "rows": rows})
    return rows


def _leaks(batches: Iterator[dict[int, Update]]) -> Iterator[dict]:
    past: dict[int, list[Tensor]] = {}
    for step, updates in enumerate(batches):
        for layer, update in updates.items():
            earlier = past.setdefault(layer, [])
            if earlier and update.keys.shape[1]:
                # The product in float64: in float32 its own rounding would be the leak of an exact null space.
                delta, keys = update.left.double() @ update.right.double().T, torch.cat(earlier, dim=1).double()
                there, own = (float((delta @ k.double()).square().sum(0).mean().sqrt()) for k in (keys, update.keys))
                yield dict(
                    step=step, layer=layer, past=keys.shape[1], leak=leak(delta, keys),
                    moved=there / own if own > 0 else None,
                )  # fmt: skip
            earlier.append(update.keys)
