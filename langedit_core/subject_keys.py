"""Keys of many prompts on the unedited model, read in batches and kept: forward passes up to one layer, nothing above.

k = what enters the layer's output projection at the subject's last token of the bare prompt (no context prefixes).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from langedit_core.forward import hooked, leaving_at, tap_input
from langedit_core.models import EditableModel
from langedit_core.shared_prefix import SharedPrefix
from langedit_core.storage import CorruptFile, load_tensors, save_tensors
from langedit_core.tokens import SubjectMerged, locate

log = logging.getLogger(__name__)

ENGINE = 1
"""Raised whenever the same inputs would give other keys; part of every file's hash."""

ROWS = 64


def token_rows(model: EditableModel, prompts: Sequence[tuple[str, str]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """Token ids of (template, subject) pairs up to the subject's last token, and the indices of pairs that have one.

    A pair whose subject merges with what follows it is left out.
    """
    rows, kept = [], []
    for i, (template, subject) in enumerate(prompts):
        try:
            found = locate(model.tokenizer, template, subject)
        except SubjectMerged:
            continue
        rows.append(found.ids[: found.lookup + 1])
        kept.append(i)
    return rows, kept


@torch.no_grad()
def read_keys(
    model: EditableModel,
    groups: Sequence[Sequence[tuple[int, ...]]],
    layer: int,
    *,
    rows_per_batch: int = ROWS,
    quiet: bool = True,
) -> Float[Tensor, "d_in n"]:
    """Keys at the end of every row, float32, in the order of the groups.

    Args:
        model: Unedited.
        groups: Token rows; those of a group begin alike, and what they share is run once.
        layer: Whose projection is read.
        rows_per_batch: Rows in one forward.
        quiet: No progress bar.
    """
    model.check_layers((layer,))
    port, total = model.write_port(layer), sum(map(len, groups))
    keys = torch.empty(model.d_ff, total)
    done = 0
    with tqdm(total=total, unit="key", disable=quiet, mininterval=1.0, dynamic_ncols=True) as bar:
        for rows in (rows for rows in groups if rows):
            prefix = SharedPrefix(model, rows, leave=port)
            order = sorted(range(len(rows)), key=lambda i, rows=rows: len(rows[i]))
            for start in range(0, len(order), rows_per_batch):
                some = order[start : start + rows_per_batch]
                seen: dict[str, Tensor] = {}
                with hooked(tap_input(port, seen, "key")), leaving_at(port):
                    prefix.batch([rows[i] for i in some])
                keys[:, [done + i for i in some]] = seen["key"][:, -1].T.float().cpu()
                bar.update(len(some))
            done += len(rows)
    return keys


def cached_keys(
    model: EditableModel,
    groups: Sequence[Sequence[tuple[int, ...]]],
    layer: int,
    results: str | Path | None,
    *,
    quiet: bool = True,
) -> Float[Tensor, "d_in n"]:
    """`read_keys`, kept in `results`/keys under the hash of model, layer and rows; a damaged file is made again."""
    if results is None:
        return read_keys(model, groups, layer, quiet=quiet)
    text = json.dumps([ENGINE, model.fingerprint, layer, [list(map(list, rows)) for rows in groups]])
    path = Path(results) / "keys" / f"keys-{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
    try:
        keys = load_tensors(path)[0]["keys"]
        total = sum(map(len, groups))
        if keys.shape != (model.d_ff, total) or keys.dtype != torch.float32 or not torch.isfinite(keys).all():
            raise CorruptFile(f"{path} does not hold {total} keys of {model.d_ff} numbers; they are read again")
        return keys
    except FileNotFoundError:
        pass
    except (CorruptFile, KeyError) as error:
        log.warning("%s: %r", path, error)
    model.check_unedited("these keys")
    keys = read_keys(model, groups, layer, quiet=quiet)
    save_tensors(path, {"keys": keys})
    return keys
