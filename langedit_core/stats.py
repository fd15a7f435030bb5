"""Intervals: a mean without one is not a result.

Percentile bootstrap over facts (a fact's probes are averaged first, since they share the edit), 95 %, seeded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

RESAMPLES = 2000
LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean over `n` facts and its 95 % interval; without at least two facts the interval is empty (NaN)."""

    value: float
    n: int
    low: float
    high: float


def interval(values: Iterable[float], seed: int = 0) -> Estimate:
    """Mean of one value per fact, with a bootstrap interval.

    Raises:
        ValueError: No value, or NaN among them.
    """
    values = np.fromiter(values, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, one per fact; got {values!r}")
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, len(values), float("nan"), float("nan"))
    if np.ptp(values) == 0:  # nothing to resample: every bootstrap mean is the same number
        return Estimate(mean, len(values), mean, mean)
    found = stats.bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(mean, len(values), float(found.low), float(found.high))


def paired_difference(a: pd.Series, b: pd.Series, seed: int = 0) -> Estimate:
    """Mean of a − b over the facts both have (Series indexed by fact), with a bootstrap interval over facts.

    Raises:
        ValueError: The two have no fact in common.
    """
    both = pd.concat([a.rename("a"), b.rename("b")], axis=1, join="inner").dropna()
    if both.empty:
        raise ValueError("the two have no fact in common; compare runs of the same cell design")
    return interval(both["a"] - both["b"], seed)


def summarise(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Tidy estimates from one row per probe.

    Args:
        rows: Columns `fact`, `lang`, `metric`, `when`, `value` and those in `by`; facts of several seeds differ in
            the column `seed`, if there is one.
        by: Columns that tell one estimate from another, beside metric, when and lang.

    Returns:
        Columns `by` + metric, when, lang, value, n, low, high; lang "all" pools all facts.
    """
    unit = ["seed", "fact", "lang"] if "seed" in rows else ["fact", "lang"]
    keys = [*by, "metric", "when"]
    per_fact = rows.groupby([*keys, *unit], sort=False, as_index=False)["value"].mean()
    out = []
    for labels, group in per_fact.groupby(keys, sort=False):
        parts = [("all", group), *group.groupby("lang", sort=False)]
        for lang, part in parts:
            out.append(dict(zip(keys, labels, strict=True)) | {"lang": lang} | interval(part["value"])._asdict())
    return pd.DataFrame(out, columns=[*keys, "lang", "value", "n", "low", "high"])
