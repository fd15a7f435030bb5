"""The running covariance as a mean of kkᵀ and as LangEdit's released code has it, on the same keys.

mean      C̄_t = (n̄_{t−1} C̄_{t−1} + K_t K_tᵀ) / n̄_t,  n̄ the number of keys; cut at cut · n₀/n̄_t: `langedit`, which
          reads the batch's K Kᵀ in the paper's recursion as a mean (`langedit-literal` reads it as a product)
released  C̄_t = (n̄₀ C̄_{t−1} + n S_t) / (n̄₀ + n t),  S_t = Σ_{s≤t} K_s K_sᵀ, n̄₀ = 100,000 and n = 100 whatever was
          counted; cut at the cut of C₀
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.covariance import KeyCovariance, cached_covariance
from langedit_core.factors import kept_rows, stored_updates
from langedit_core.models import load_model
from langedit_core.nullspace import Threshold, decompose
from langedit_core.projectors import projector_of
from langedit_core.results import CellResult
from langedit_core.study import load_data
from langedit_core.tables import MISSING

FORMULAS = ("mean", "released")
COLUMNS = ("step", "formula", "layer", "keys", "first_key", "corpus", "trace", "free", "left")


def mixes(result: CellResult, root: Path, kept: Path) -> pd.DataFrame:
    """`compare` on a cell's own keys, in the middle one of its layers.

    Args:
        result: A finished cell of a method that stores factors; its model's covariance is read from the cache.
        root: Results folder, with the factors.
        kept: Folder of the tables kept from earlier; what is computed now is added to it.

    Raises:
        FileNotFoundError: Neither factors nor a kept table.
    """
    cell = result.cell
    layer = cell.settings.layers[len(cell.settings.layers) // 2]

    def make() -> list[dict]:
        keys = [updates[layer].keys for updates in stored_updates(cell, root)]
        corpus = load_data(cell.data, cell.langs).corpus
        texts = [text for lang in dict.fromkeys(cell.langs) for text in corpus[lang][: cell.corpus_limit]]
        covariance = cached_covariance(load_model(cell.model), (layer,), texts)[layer]
        found = compare(covariance, keys, cell.settings.threshold, cell.settings.released_counts)
        return found.assign(layer=layer).to_dict("records")

    return pd.DataFrame(kept_rows(kept / f"mixes-{cell.slug}.json.xz", result, make), columns=list(COLUMNS))


def compare(
    covariance: KeyCovariance,
    keys: Sequence[Float[Tensor, "d _"]],
    threshold: Threshold,
    counts: tuple[int, int],
) -> pd.DataFrame:
    """Both formulas after every batch of `keys`, as the projectors `exact` and `released` have them.

    Args:
        covariance: C₀, with its count n₀.
        keys: Per batch, one key per column.
        threshold: Where C₀ is cut.
        counts: n̄₀ and n of the released code.

    Returns:
        A row per formula and step, step 0 being C₀: keys (so far), first_key (the factor of kkᵀ for a key of the first
        batch), corpus (the factor of C₀), trace (relative to C₀'s), free (directions), left (mean share of the past
        keys' energy that lies in free directions; one of no keys is 1).
    """
    spectrum, trace = decompose(covariance.mean), covariance.mean.trace()
    mean, released = (projector_of(kind, covariance, threshold, spectrum=spectrum) for kind in ("exact", "released"))
    released = replace(released, counts=counts)
    first = dict(keys=0, first_key=0.0, corpus=1.0, trace=1.0, left=1.0)
    rows = [
        dict(step=0, formula=formula, free=projector.space.rank) | first
        for formula, projector in zip(FORMULAS, (mean, released), strict=True)
    ]
    for t, batch in enumerate(keys, 1):
        mean, released = mean.taking(batch), released.taking(batch)
        everything = torch.cat(list(keys[:t]), dim=1).double()
        n0, n = covariance.count, covariance.count + everything.shape[1]
        corpus, of_batches = released.weights
        for formula, projector, total, weight in (
            ("mean", mean, n, dict(first_key=1 / n, corpus=n0 / n)),  # the projector holds the sum, n times the mean
            ("released", released, 1, dict(first_key=of_batches[0], corpus=corpus)),
        ):
            matrix = projector.matrix
            space = projector.decomposed(matrix)
            rows.append(
                dict(step=t, formula=formula, keys=everything.shape[1])
                | weight
                | dict(trace=float(matrix.trace() / total / trace), free=space.rank)
                | dict(left=float(space.survival(everything).mean()))
            )
    return pd.DataFrame(rows)


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """`mixes` as it is read: a row per batch, mean and released code side by side."""
    columns = {
        "first_key": ("a key of batch 1", "{:.1e}"),
        "corpus": ("C₀", "{:.3f}"),
        "trace": ("trace", "{:.3f}"),
        "free": ("free directions", "{:.0f}"),
        "left": ("past keys' energy left", "{:.2f}"),
    }
    by = found.set_index(["formula", "step"])
    steps = by.loc[FORMULAS[0]].index
    table = pd.DataFrame({"after batch": steps, "keys": by.loc[FORMULAS[0]]["keys"].to_numpy()})
    for column, (heading, form) in columns.items():
        told = [", ".join(form.format(by.loc[(formula, step), column]) for formula in FORMULAS) for step in steps]
        about_keys = column in ("first_key", "left")
        absent = [about_keys and keys == 0 for keys in table["keys"]]
        table[f"{heading}: mean, code"] = [MISSING if no else text for no, text in zip(absent, told, strict=True)]
    return table
