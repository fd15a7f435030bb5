"""Intervals and tests: a mean without an interval is not a result, and many comparisons need Holm's correction.

Bootstrap over facts (a fact's probes, and its languages where it has several, are averaged first, since they share the
fact). Where a run was repeated under several seeds, facts and seeds are resampled independently of one another (the
pigeonhole bootstrap, Owen 2007, Annals of Applied Statistics 1:386): seeds draw from the same facts, and a fact that is
edited again under another seed is no new fact.
Intervals are expanded percentile intervals (`ends`), p-values Student's t with the bootstrap's standard error
(`bootstrap_p`): for few facts plain percentiles are too narrow. Seeded.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

RESAMPLES = 2000
TEST_RESAMPLES = 4999  # a standard error from them is right to 1 %
LEVEL = 0.95
ALPHA = 0.05
BLOCK = 2**18  # values drawn at a time, so that they stay in the processor's cache
DIGITS = 12  # decimals, relative to the largest value, to which equal means are equal however they were added up
LOWER_IS_BETTER = frozenset({"drift_kl", "drift_ppl"})
GEOMETRIC = frozenset({"drift_ppl"})  # exp of a mean −log p: averaged as logarithms, or one bad paragraph decides
UNTESTED = "not tested"
"""In place of a verdict, where an interval is all that can be given."""
COMPARISON = (
    "metric", "when", "a", "b", "mean_a", "mean_b", "difference", "low", "high", "n_facts", "n_seeds", "p", "p_holm",
    "effect", "won", "lost", "verdict",
)  # fmt: skip
JUDGED = ("p_holm", "verdict")
SHOWN = ("better", "worse")
VERDICTS = (*SHOWN, "no difference shown")


class Estimate(NamedTuple):
    """A mean over `n` facts and its 95 % interval; without at least two facts the interval is empty (NaN)."""

    value: float
    n: int
    low: float
    high: float


def ends(n: int, level: float = LEVEL) -> tuple[float, float]:
    """The two quantiles of a bootstrap distribution between which the interval of a mean over `n` units lies.

    A plain percentile interval misses a factor of √(n/(n − 1)), and that t is wider than the normal distribution: one
    of six values, said to hold 95 %, holds 87 %. With these quantiles it is, of normal values, Student's (expanded
    percentile interval, Hesterberg 2015, The American Statistician 69:371); of a hundred it is 2 % wider than plain.
    """
    low = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.isf((1 - level) / 2, n - 1)))
    return low, 1 - low


def interval(values: Iterable[float] | pd.Series, seed: int = 0) -> Estimate:
    """Mean of one value per fact, with a bootstrap interval.

    Args:
        values: One per fact; a series whose index has levels `seed` and `fact`, with several seeds, has one per fact
            and seed, and n counts facts.
        seed: Of the resampling.

    Raises:
        ValueError: No value, or NaN among them.
    """
    index = values.index if isinstance(values, pd.Series) else None
    values = np.fromiter(values, dtype=float)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values, one per fact; got {values!r}")
    mean, codes = float(values.mean()), _codes(index)
    n = len(values) if codes is None else int(codes[0].max()) + 1
    if n < 2:
        return Estimate(mean, n, float("nan"), float("nan"))
    if np.ptp(values) == 0:  # nothing to resample: every bootstrap mean is the same number
        return Estimate(mean, n, mean, mean)
    if codes is not None:
        means, _ = _crossed(values, *codes, RESAMPLES, np.random.default_rng(seed))
    else:
        means, _ = _resample(values, RESAMPLES, np.random.default_rng(seed))
    low, high = np.quantile(means, ends(n))
    return Estimate(mean, n, float(low), float(high))


def pooled(values: pd.Series, seed: int = 0) -> Estimate:
    """Mean over all values, of which facts have different numbers, with an interval that resamples whole facts.

    Args:
        values: Index level `fact`; every value counts the same.
        seed: Of the resampling.

    Raises:
        ValueError: No value, or NaN among them.
    """
    if values.empty or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values; got {values!r}")
    by_fact = values.groupby(level="fact")
    sums, counts, n = by_fact.sum().to_numpy(), by_fact.size().to_numpy(), by_fact.ngroups
    if n < 2:
        return Estimate(float(values.mean()), n, float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), ends(n))
    return Estimate(float(values.mean()), n, float(low), float(high))


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two methods on the same facts.

    Attributes:
        means: Of a and of b, over what both have.
        difference: Mean of a − b, its interval, and n, the different facts it rests on.
        n_seeds: Seeds among them.
        p: Two-sided p-value of "the mean difference is zero", not corrected for other comparisons.
        effect: d_z, the mean difference over the standard deviation of the differences, with its interval; NaN where
            all facts differ by the same amount.
        won: Facts on which a is higher, over its seeds; with `lost`, of a 0/1 metric, the discordant facts.
        lost: Facts on which b is higher.
    """

    means: tuple[float, float]
    difference: Estimate
    n_seeds: int
    p: float
    effect: Estimate
    won: int
    lost: int

    @property
    def units(self) -> str:
        """What was resampled."""
        return "facts" if self.n_seeds == 1 else "facts, and seeds"


def paired(a: pd.Series, b: pd.Series, seed: int = 0, level: float = LEVEL) -> Paired:
    """Compare two methods over the facts both have, by a paired bootstrap.

    With an index level `seed` of several values, facts and seeds are resampled independently of one another, so that
    neither a lucky order of facts nor a lucky fact makes a result, and copies of a run add nothing. With S seeds and F
    facts, variances σ_s² between seeds, σ_f² between facts and σ² of what is left, the variance of this bootstrap is
    about σ_s²/S + σ_f²/F + 3σ²/(SF), where σ² should count once: rather too wide, but for σ_s², of which a few seeds
    give a factor of (1 − 1/S) too little. Three seeds cannot say how much seeds differ, and no resampling can change
    that.

    The p-value is `bootstrap_p`.

    Args:
        a: One value per fact, index: fact, or several levels of which one may be `seed`.
        b: The other method's.
        seed: Of the resampling.
        level: Of the intervals.

    Raises:
        ValueError: No fact in common, a fact occurs twice, or a value is NaN or infinite.
    """
    for values in (a, b):
        if not values.index.is_unique:
            twice = values.index[values.index.duplicated()][0]
            raise ValueError(f"fact {twice!r} occurs twice; average a fact's probes first")
    both = pd.concat([a.rename("a"), b.rename("b")], axis=1, join="inner").sort_index().astype(float)
    if both.empty:
        raise ValueError("the two have no fact in common; compare runs of the same cell design")
    if not np.isfinite(both.to_numpy()).all():
        raise ValueError(f"a comparison needs finite values, one per fact; got {both[~np.isfinite(both).all(axis=1)]}")
    scale = float(both.abs().to_numpy().max()) or 1.0
    difference = ((both["a"] - both["b"]) / scale).round(DIGITS)
    codes, rng = _codes(difference.index), np.random.default_rng(seed)
    d, n, nothing = difference.to_numpy(), len(difference), float("nan")
    of_facts, n_seeds = d, 1
    if codes is None:
        means, effects = _resample(d, TEST_RESAMPLES, rng)
    else:
        means, effects = _crossed(d, *codes, TEST_RESAMPLES, rng)
        of_facts = (np.bincount(codes[0], d) / np.bincount(codes[0])).round(DIGITS)
        n, n_seeds = len(of_facts), int(codes[1].max()) + 1
    mean = float(d.mean().round(DIGITS)) + 0.0  # + 0.0 makes −0 a plain zero
    outer = ends(n, level) if n > 1 else ()
    bounds = np.quantile(means, outer) * scale if n > 1 else [nothing] * 2
    spread = d.std(ddof=1) if n > 1 and np.ptp(d) > 0 else nothing
    # An effect may be infinite where a resample has no spread, and between infinities nothing can be interpolated.
    of_effect = np.quantile(effects, outer, method="inverted_cdf") if math.isfinite(spread) else [nothing] * 2
    return Paired(
        means=(float(both["a"].mean()), float(both["b"].mean())),
        difference=Estimate(mean * scale, n, float(bounds[0]), float(bounds[1])),
        n_seeds=n_seeds,
        p=bootstrap_p(mean, means, n, int((of_facts != 0).sum())),
        effect=Estimate(float(mean / spread), n, float(of_effect[0]), float(of_effect[1])),
        won=int((of_facts > 0).sum()),
        lost=int((of_facts < 0).sum()),
    )


def bootstrap_p(difference: float, drawn: Float[np.ndarray, " resamples"], n: int, differing: int) -> float:
    """Two-sided p-value of "the mean difference is zero": Student's t, with the standard error of the bootstrap.

    2 T_{n−1}(−|d| / s), s = √(n/(n − 1)) times the standard deviation of the draws. Never below 2^(1−m), where m facts
    differ at all: there a test ends that only knows the signs of m differences, and a handful of facts proves nothing,
    however alike they are.

    Args:
        difference: The mean difference.
        drawn: The same on resamples.
        n: Facts or records that are resampled.
        differing: Those of them that differ.
    """
    if n < 2 or difference == 0:
        return 1.0
    error = math.sqrt(n / (n - 1)) * float(drawn.std())
    p = 2 * float(stats.t.sf(abs(difference) / error, n - 1)) if error > 0 else 0.0
    return min(1.0, max(p, 2.0 ** (1 - differing)))


def _codes(index: pd.Index | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers of facts and of seeds, where there are several seeds; what else the index holds belongs to the fact."""
    if index is None or "seed" not in index.names or index.get_level_values("seed").nunique() < 2:
        return None
    return pd.factorize(index.droplevel("seed"))[0], pd.factorize(index.get_level_values("seed"))[0]


def _resample(values: np.ndarray, resamples: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean over standard deviation of every resample of one value per fact.

    Only how often each distinct value is drawn matters, so for shares, which have few, one multinomial draw stands for
    many (`scipy.stats.bootstrap` draws every fact, and its percentiles are plain ones).
    """
    total, squares = np.zeros((2, resamples))
    distinct, counts = np.unique(values, return_counts=True)
    if 4 * len(distinct) <= len(values):
        found = rng.multinomial(len(values), counts / len(values), size=resamples)
        total, squares = found @ distinct, found @ distinct**2
    else:
        for some in np.array_split(np.arange(resamples), 1 + resamples * len(values) // BLOCK):
            found = values[rng.integers(len(values), size=(len(some), len(values)), dtype=np.int32)]
            total[some] = found.sum(axis=1)
            squares[some] = np.einsum("ij,ij->i", found, found)
    return _moments(np.full(resamples, float(len(values))), total, squares)


def _crossed(
    values: np.ndarray, facts: np.ndarray, seeds: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The same with facts and seeds drawn independently: a value counts as often as its fact times its seed are drawn.

    Args:
        values: One per fact and seed.
        facts: Number of the fact of every value, from 0.
        seeds: Number of its seed.
        resamples: How many.
        rng: Of the draws.
    """
    shape = (int(facts.max()) + 1, int(seeds.max()) + 1)
    there, sums, squares = np.zeros((3, *shape))
    np.add.at(there, (facts, seeds), 1)
    np.add.at(sums, (facts, seeds), values)
    np.add.at(squares, (facts, seeds), values**2)
    found = np.zeros((3, resamples))
    for some in np.array_split(np.arange(resamples), 1 + resamples * shape[0] // BLOCK):
        times = np.stack(
            [np.bincount(draw, minlength=shape[0]) for draw in rng.integers(shape[0], size=(len(some), shape[0]))]
        )
        weights = rng.multinomial(shape[1], np.full(shape[1], 1 / shape[1]), size=len(some))
        found[:, some] = [((times @ part) * weights).sum(axis=1) for part in (there, sums, squares)]
    drawn = found[0] > 0  # a draw may miss all facts of its seeds
    return _moments(*found[:, drawn])


def _moments(n: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and mean over standard deviation, from counts, sums and sums of squares of resamples."""
    mean, square = (total / n).round(DIGITS), squares / n
    variance = np.where(square - mean**2 > 10.0**-DIGITS * square, square - mean**2, 0) * n / np.maximum(n - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = np.where(mean == 0, 0.0, mean / np.sqrt(variance))
    return mean, effect


def paired_difference(a: pd.Series, b: pd.Series, seed: int = 0, level: float = LEVEL) -> Estimate:
    """Mean of a − b over the facts both have, with its interval: `paired` without the test.

    Raises:
        ValueError: As `paired`.
    """
    return paired(a, b, seed, level=level).difference


def unpaired_difference(a: Iterable[float], b: Iterable[float], seed: int = 0, level: float = LEVEL) -> Estimate:
    """Mean of a − mean of b, one value per fact, with a bootstrap interval that resamples both; n is that of `a`.

    Raises:
        ValueError: No value, or NaN among them.
    """
    a, b = (np.fromiter(values, dtype=float) for values in (a, b))
    if not (a.size and b.size and np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(f"a difference needs finite values, one per fact; got {a!r} and {b!r}")
    difference = float(a.mean() - b.mean())
    if min(len(a), len(b)) < 2:
        return Estimate(difference, len(a), float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    means = [x[random.integers(len(x), size=(RESAMPLES, len(x)))].mean(axis=1) for x in (a, b)]
    low, high = np.quantile(means[0] - means[1], ends(min(len(a), len(b)), level))
    return Estimate(difference, len(a), float(low), float(high))


def holm(pvalues: Iterable[float]) -> np.ndarray:
    """Holm's adjusted p-values, in the order given: reject what is below α and at most α of the families err.

    The k-th smallest of m is multiplied by m − k + 1 and never less than one before it (Holm 1979).

    Raises:
        ValueError: None given, or one that is no probability.
    """
    p = np.asarray(list(pvalues), dtype=float)
    if p.size == 0 or not ((p >= 0) & (p <= 1)).all():  # NaN compares as false
        raise ValueError(f"Holm's correction needs p-values between 0 and 1, at least one; got {p}")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    adjusted = np.empty_like(stepped)
    adjusted[order] = stepped
    return adjusted


def compare_methods(
    rows: pd.DataFrame, reference: str, by: Sequence[str] = ("data",), *, untested: Container[str] = (), seed: int = 0
) -> pd.DataFrame:
    """`reference` against every other method, metric by metric and moment by moment.

    Args:
        rows: As for `summarise`, with a column `method`.
        reference: Method `a` of every comparison.
        by: Columns that separate comparisons, beside metric and when.
        untested: Metrics of which differences and intervals are all that is told, see `judged`.
        seed: Of the resampling.

    Returns:
        Columns `by` + metric, when, a, b, mean_a, mean_b (over the facts and seeds of both), difference (a − b), low,
        high, n_facts, n_seeds, p, p_holm, effect (d_z), won, lost (facts on which a is better, worse) and verdict about
        a (`judged`).

    Raises:
        ValueError: A column is missing, no rows, a value is not finite, the reference has no rows in some group, or
            two methods of one group have no fact in common.
    """
    groups = _by_method(rows, by)
    for labels, methods in groups.items():
        if reference not in methods:
            raise ValueError(f"{reference!r} has no rows for {' '.join(map(str, labels))}, only {', '.join(methods)}")
    pairs, out = [(labels, b) for labels, methods in groups.items() for b in methods if b != reference], []
    for labels, b in pairs:
        found = paired(groups[labels][reference], groups[labels][b], seed)
        names = dict(zip([*by, "metric", "when"], labels, strict=True))
        d, less = found.difference, names["metric"] in LOWER_IS_BETTER
        out.append(
            names
            | dict(a=reference, b=b)
            | dict(zip(("mean_a", "mean_b"), found.means, strict=True))
            | dict(zip(("difference", "low", "high"), (d.value, d.low, d.high), strict=True))
            | dict(n_facts=d.n, n_seeds=found.n_seeds, p=found.p, effect=found.effect.value)
            | dict(zip(("lost", "won") if less else ("won", "lost"), (found.won, found.lost), strict=True))
        )
    columns = [*by, *COMPARISON]
    return judged(pd.DataFrame(out, columns=[c for c in columns if c not in JUDGED]), untested)[columns]


def judged(found: pd.DataFrame, untested: Container[str] = ()) -> pd.DataFrame:
    """Comparisons with corrected p-values and verdicts.

    Verdicts follow the p-values that Holm's method corrected, so an interval, which is that of one comparison alone,
    may exclude zero where no difference is shown. All comparisons of the table are one family, since who reads it makes
    them all, but for those that are not tested.

    Args:
        found: Columns metric, difference and p, and any others. Where less is better (`LOWER_IS_BETTER`), a negative
            difference is the better one.
        untested: Metrics of too few units for any correction to pass; their p_holm is NaN, their verdict `UNTESTED`.

    Returns:
        `found` and the columns p_holm and verdict, one of `VERDICTS`.
    """
    tested = np.array([metric not in untested for metric in found["metric"]], dtype=bool)
    adjusted = np.full(len(found), math.nan)
    if tested.any():
        adjusted[tested] = holm(found.loc[tested, "p"])
    gain = found["difference"] * [-1 if metric in LOWER_IS_BETTER else 1 for metric in found["metric"]]
    told = [_verdict(g, p) if known else UNTESTED for g, p, known in zip(gain, adjusted, tested, strict=True)]
    return found.assign(p_holm=adjusted, verdict=pd.Series(told, index=found.index, dtype=object))


def best_cells(rows: pd.DataFrame, by: Sequence[str] = ("model", "data"), *, seed: int = 0) -> set[tuple]:
    """Which cells of a table may be bold: the best mean, and every mean that is not shown to differ from it.

    The best method, on the facts and seeds that all have (or on its own, if there are none), is compared with every
    other one, and p-values are corrected within that metric and moment. As the best one is chosen on the same facts, a
    single bold cell means "ahead of the others here", not "ahead of them all in general".

    Args:
        rows: As for `compare_methods`.
        by: Columns that tell one row of the table from another, beside method and when.
        seed: Of the resampling.

    Returns:
        Cells (*by, method, when, metric), as `tables.headline` takes them.

    Raises:
        ValueError: As `compare_methods`.
    """
    cells = set()
    for (*where, metric, when), methods in _by_method(rows, by).items():
        sign = -1 if metric in LOWER_IS_BETTER else 1
        common = functools.reduce(pd.Index.intersection, (values.index for values in methods.values()))
        judged = {m: values.loc[common] if len(common) else values for m, values in methods.items()}
        _, best = max((sign * round(values.mean(), DIGITS), method) for method, values in judged.items())
        others = [m for m in methods if m != best]
        p = [paired(methods[best], methods[m], seed).p for m in others]
        kept = [m for m, adjusted in zip(others, holm(p), strict=True) if adjusted >= ALPHA] if others else []
        cells |= {(*where, method, when, metric) for method in (best, *kept)}
    return cells


def _verdict(gain: float, p: float) -> str:
    """One of `VERDICTS`, from a difference that is positive where it is an improvement, and its corrected p-value."""
    better, worse, nothing = VERDICTS
    return nothing if p >= ALPHA or gain == 0 else better if gain > 0 else worse


def _by_method(rows: pd.DataFrame, by: Sequence[str]) -> dict[tuple, dict[str, pd.Series]]:
    """(*by, metric, when) → method → one value per fact; groups and methods in the order they first appear."""
    keys = [*by, "metric", "when"]
    unit = [c for c in ("seed", "fact") if c not in by and (c in rows or c != "seed")]
    needed = [*keys, "method", *unit, "lang", "value"]
    if missing := [c for c in needed if c not in rows]:
        raise ValueError(f"rows lack the columns {missing}; a comparison needs {', '.join(needed)}")
    if rows.empty:
        raise ValueError("no rows to compare")
    broken = rows[needed].isna().any(axis=1) | ~np.isfinite(rows["value"].astype(float))
    if broken.any():
        raise ValueError(f"rows hold NaN or infinity, for example\n{rows.loc[broken, needed].head(3)}")
    values_of = per_fact(rows, [*keys, "method", *unit])
    found: dict[tuple, dict[str, pd.Series]] = {}
    for (*labels, method), values in values_of.groupby([*keys, "method"], sort=False):
        found.setdefault(tuple(labels), {})[method] = values.droplevel([*keys, "method"])
    return found


def per_fact(rows: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """One value per fact: its probes averaged in each language, then its languages.

    What happens to a fact in one language is no independent news of the same fact in another.
    """
    in_each = rows.groupby([*keys, *(["lang"] if "lang" not in keys else [])], sort=False)["value"].mean()
    return in_each.groupby(level=list(keys), sort=False).mean()


def summarise(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Tidy estimates from one row per probe.

    Args:
        rows: Columns `fact`, `lang`, `metric`, `when`, `value` and those in `by`, and `seed` if there are several.
        by: Columns that tell one estimate from another, beside metric, when and lang.

    Returns:
        Columns `by` + metric, when, lang, value, n (facts), low, high; lang "all" pools all facts, one in several
        languages as one. Of `GEOMETRIC` metrics means and intervals are those of the logarithms, exponentiated.
    """
    geometric = rows["metric"].isin(GEOMETRIC)
    rows = rows.assign(value=rows["value"].where(~geometric, np.log(rows["value"].where(geometric, 1.0))))
    unit = ["seed", "fact"] if "seed" in rows else ["fact"]
    keys = [*by, "metric", "when"]
    out = []
    for labels, group in rows.groupby(keys, sort=False):
        parts = [("all", per_fact(group, unit))]
        parts += [(lang, per_fact(part, unit)) for lang, part in group.groupby("lang", sort=False)]
        for lang, values in parts:
            found, names = interval(values), dict(zip(keys, labels, strict=True))
            if names["metric"] in GEOMETRIC:
                found = found._replace(**{end: math.exp(getattr(found, end)) for end in ("value", "low", "high")})
            out.append(names | {"lang": lang} | found._asdict())
    return pd.DataFrame(out, columns=[*keys, "lang", "value", "n", "low", "high"])
