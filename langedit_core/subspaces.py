"""How the keys of two languages lie to each other: principal angles, and the energy one takes from the other.

overlap(A, B) = ‖U_AᵀU_B‖²/k = mean cos²θ over the k principal angles of the main directions;
taken(A → B) = 1 − ‖P_A k_B‖²/‖k_B‖² with P_A the projection off all keys of A. Both compare one half
of the facts in A with the other half in B, so that A with itself is what two samples of one language give, and equal
names count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
from scipy.spatial.distance import squareform
from torch import Tensor

from langedit_core.nullspace import NullSpace
from langedit_core.stats import LEVEL, RESAMPLES


def directions(keys: Float[Tensor, "d n"], k: int, *, centred: bool = False) -> Float[Tensor, "d k"]:
    """The k main directions of some keys: left singular vectors, of the keys less their mean if `centred`.

    Raises:
        ValueError: Fewer keys than directions (one less where the mean is taken off).
    """
    if not 1 <= k <= keys.shape[1] - centred:
        raise ValueError(f"{k} directions asked for, but {keys.shape[1]} keys have at most {keys.shape[1] - centred}")
    keys = keys.double()
    if centred:
        keys = keys - keys.mean(1, keepdim=True)
    return torch.linalg.svd(keys, full_matrices=False).U[:, :k]


def angles(a: Float[Tensor, "d k"], b: Float[Tensor, "d l"]) -> Float[Tensor, " m"]:
    """Principal angles of two spans (Björck, Golub 1973), radians, ascending; `a`, `b` have orthonormal columns."""
    return torch.linalg.svdvals(a.T @ b).clamp(0, 1).acos()


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Keys of one language, of two disjoint halves of the facts; the same halves in every language."""

    first: Float[Tensor, "d n"]
    second: Float[Tensor, "d m"]


def overlaps(halves: Mapping[str, Halves], k: int, *, centred: bool = False) -> pd.DataFrame:
    """Mean cos² of the principal angles, languages × languages, symmetric; the diagonal is the split half.

    By chance, k random directions each of d have an overlap of k/d.
    """
    sides = [
        torch.cat([directions(getattr(h, side), k, centred=centred).float() for h in halves.values()], dim=1)
        for side in ("first", "second")
    ]
    n = len(halves)
    square = (sides[0].T @ sides[1]).square().reshape(n, k, n, k).sum(dim=(1, 3)) / k
    found = ((square + square.T) / 2).double().numpy()
    return pd.DataFrame(found, index=list(halves), columns=list(halves))


def taken(halves: Mapping[str, Halves]) -> pd.DataFrame:
    """Share of the energy of the columns' keys that the span of the rows' takes; the diagonal is the split half."""
    found = np.zeros((len(halves), len(halves)))
    for one, other in (("first", "second"), ("second", "first")):
        tested = torch.cat([getattr(h, other) for h in halves.values()], dim=1).float()
        energy = tested.square().sum(0)
        sizes = [getattr(h, other).shape[1] for h in halves.values()]
        for i, h in enumerate(halves.values()):
            basis = NullSpace(d=len(tested)).without(getattr(h, one)).removed.float()
            shares = (basis.T @ tested).square().sum(0) / energy
            found[i] += [float(part.mean()) / 2 for part in shares.split(sizes)]
    return pd.DataFrame(found, index=list(halves), columns=list(halves))


def chance_taken(halves: Mapping[str, Halves]) -> float:
    """What random directions would take: keys of one half over d."""
    d, n = next(iter(halves.values())).first.shape
    return n / d


def relative(overlap: pd.DataFrame) -> pd.DataFrame:
    """Overlap over the geometric mean of the split halves: 1 where two languages are as alike as one is to itself."""
    own = np.sqrt(np.diag(overlap.to_numpy()))
    return overlap / own[:, None] / own[None, :]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A hierarchical clustering of languages: `merges` as scipy has them, `order` so that neighbours are alike."""

    merges: np.ndarray
    order: list[str]


def cluster(similarity: pd.DataFrame) -> Tree:
    """Average linkage of 1 − similarity, leaves in the order that puts the most alike beside each other."""
    names = list(similarity.index)
    if len(names) < 3:
        raise ValueError(f"a tree needs at least three languages, got {names}")
    distance = (1 - similarity.to_numpy()).clip(min=0)
    np.fill_diagonal(distance, 0)
    condensed = squareform((distance + distance.T) / 2, checks=False)
    merges = optimal_leaf_ordering(linkage(condensed, method="average"), condensed)
    return Tree(merges=merges, order=[names[i] for i in leaves_list(merges)])


# --- what goes together with what -------------------------------------------------------------------------------------

PERMUTATIONS = 2000


def contrasts(similarity: pd.DataFrame, marks: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Are languages of one script, or one family, more alike than others?

    Four kinds of pairs: script same or not × family same or not. The unit is the language: intervals resample languages
    (pairs of a language with its own copy are left out), p-values permute marks over languages (Mantel), those of the
    script within families' sizes as they are, and the other way round.

    Args:
        similarity: Languages × languages, symmetric.
        marks: Index language; columns script, family.
        seed: Of resampling and permutation.

    Returns:
        pairs (what is compared), value, low, high (95 %), n (pairs, or languages for differences), p (NaN for means).
    """
    marks = marks.loc[similarity.index]
    values = similarity.to_numpy()
    codes = {name: pd.factorize(marks[name])[0] for name in ("script", "family")}
    rng, n = np.random.default_rng(seed), len(values)
    draws = rng.integers(n, size=(RESAMPLES, n))
    rows = []
    kinds = {
        "same script, same family": (True, True),
        "same script, other family": (True, False),
        "other script, same family": (False, True),
        "other script, other family": (False, False),
    }
    for name, (script, family) in kinds.items():
        mask = _pairs(codes["script"], script) & _pairs(codes["family"], family)
        rows.append(dict(pairs=name) | _resampled(values, mask, None, draws))
    for name, script in (("script", True), ("family", False)):
        other = codes["family" if script else "script"]
        # Within pairs that differ in the other mark, so that one does not stand for the other.
        within = _pairs(codes[name], True) & _pairs(other, False)
        without = _pairs(codes[name], False) & _pairs(other, False)
        row = dict(pairs=f"same {name} − other {name}, where the {'family' if script else 'script'} differs")
        rows.append(
            row | _resampled(values, within, without, draws) | dict(p=_permuted(values, codes[name], other, rng))
        )
    return pd.DataFrame(rows, columns=["pairs", "value", "low", "high", "n", "p"])


def _pairs(codes: np.ndarray, same: bool) -> np.ndarray:
    found = codes[:, None] == codes[None, :]
    return (found if same else ~found) & ~np.eye(len(codes), dtype=bool)


def _mean(values: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the pairs of `mask`, each as often as both its languages were drawn; weights (draws, languages)."""
    top = np.einsum("bi,ij,bj->b", weights, values * mask, weights, optimize=True)
    bottom = np.einsum("bi,ij,bj->b", weights, mask.astype(float), weights, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), np.nan)


def _resampled(values: np.ndarray, mask: np.ndarray, against: np.ndarray | None, draws: np.ndarray) -> dict:
    n = len(values)
    counts = np.stack([np.bincount(draw, minlength=n) for draw in draws]).astype(float)
    weights = np.concatenate([np.ones((1, n)), counts])
    found = _mean(values, mask, weights)
    if against is not None:
        found = found - _mean(values, against, weights)
    size = int(mask.sum() // 2) if against is None else n
    known = found[1:][np.isfinite(found[1:])]
    few = not mask.any() or len(known) < len(draws) / 2
    low, high = (np.nan, np.nan) if few else np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return dict(value=float(found[0]), low=float(low), high=float(high), n=size, p=float("nan"))


def _permuted(values: np.ndarray, codes: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> float:
    """p of "pairs of the same mark are no more alike", one-sided, among pairs that differ in the other mark."""
    apart = _pairs(other, False)

    def statistic(marks: np.ndarray) -> float:
        same = _pairs(marks, True) & apart
        rest = apart & ~same
        return values[same].mean() - values[rest].mean() if same.any() and rest.any() else np.nan

    observed = statistic(codes)
    if not np.isfinite(observed):
        return float("nan")
    found = np.array([statistic(rng.permutation(codes)) for _ in range(PERMUTATIONS)])
    found = found[np.isfinite(found)]
    return float((1 + (found >= observed).sum()) / (1 + len(found)))


def grouped(matrix: pd.DataFrame, groups: Sequence[str]) -> pd.DataFrame:
    """Means over pairs of different languages, groups × groups, in the order given by `groups` at first appearance.

    Args:
        matrix: Languages × languages.
        groups: Of every language, in the order of the matrix.
    """
    names, codes = list(dict.fromkeys(groups)), pd.factorize(pd.Series(groups))[0]
    one = np.eye(len(names))[codes]
    pairs = 1.0 - np.eye(len(codes))
    counts = one.T @ pairs @ one
    with np.errstate(invalid="ignore"):
        found = np.where(
            counts > 0, one.T @ (matrix.to_numpy() * pairs) @ one / np.where(counts > 0, counts, 1), np.nan
        )
    return pd.DataFrame(found, index=names, columns=names)
