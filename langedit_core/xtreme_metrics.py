"""From rows to numbers for the XTREME tasks; an ID tells the standard definition of a metric from the released one.

Measures are additive: a metric is value(Σ_records features), F1 = 2·correct / (predicted + gold), so one function
serves the whole set, any bootstrap resample of it, and a mean (features (x, 1), value Σx / Σ1) alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from langedit_core.errors import unknown
from langedit_core.stats import RESAMPLES, TEST_RESAMPLES, Estimate, bootstrap_p, ends
from langedit_core.xtreme_data import ITEM

XTREME_METRICS: dict[str, str] = {
    "xnli2_acc": "XNLI as entailment or not: share of records whose true class has the likelier word",
    "xnli2_f1": "XNLI as entailment or not: F1 of each class, mean over the classes that occur (macro)",
    "xnli3_acc": "XNLI with three classes: share of records whose true class has the likeliest word",
    "xnli3_f1": "XNLI with three classes: F1 of each class, mean over the classes that occur (macro)",
    "pawsx_acc": "PAWS-X: share of records whose true class has the likelier word",
    "pawsx_f1": "PAWS-X: F1 of each class, mean over the classes that occur (macro)",
    "pawsx_f1_positive": "PAWS-X: F1 of the class paraphrase alone; always saying yes gives 0.67 on balanced records",
    "mlqa_f1": "MLQA, greedy answer: bag-of-words F1 after the official multilingual normalisation (articles of the "
    "language and Unicode punctuation removed, Chinese cut into characters); fr and nl have no official articles, "
    "those of ARTICLES are used",
    "mlqa_em": "MLQA, greedy answer: equal to a true answer after the same normalisation",
    "mlqa_f1_released": "MLQA, greedy answer: F1 with the released normaliser, which deletes letters outside a to z "
    "and English articles in every language; 0 throughout in Chinese",
    "wikiann_f1": "WikiANN, greedy list of names: entity F1, type and both boundaries right (nervaluate, strict); a "
    "name that the sentence does not hold counts as a wrong prediction, identical repeats count once",
    "wikiann_f1_released": "WikiANN, greedy list of names: micro-F1 over token tags with O among the classes, which "
    "is the share of tokens tagged right; tagging nothing scores high",
    "xtreme_f1": "mean of the tasks' F1 (xnli2_f1 or xnli3_f1, pawsx_f1, mlqa_f1, wikiann_f1) over the tasks a "
    "language has; over all languages: mean over tasks of each task's mean over its languages",
}


@dataclass(frozen=True, kw_only=True)
class Additive:
    """A metric as a function of sums over records.

    Attributes:
        measures: Row metrics it is made of.
        features: (n, measures) -> (n, k), what is summed.
        value: (..., k) -> (...).
    """

    measures: tuple[str, ...]
    features: Callable[[np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]


def _ratio(up: np.ndarray, down: np.ndarray, empty: float) -> np.ndarray:
    return np.where(down > 0, up / np.where(down > 0, down, 1), empty)


def _class_f1(confusion: np.ndarray) -> np.ndarray:
    """F1 per class of (..., gold, predicted) counts; NaN for a class that occurs on neither side."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return _ratio(2 * right, confusion.sum(-1) + confusion.sum(-2), np.nan)


def _confusion(task: str, classes: int, value: Callable[[np.ndarray], np.ndarray]) -> Additive:
    def features(table: np.ndarray) -> np.ndarray:
        cell = table[:, 0].astype(int) * classes + table[:, 1].astype(int)
        return np.eye(classes**2)[cell]

    return Additive(
        measures=(f"{task}_gold", f"{task}_predicted"),
        features=features,
        value=lambda sums: value(_class_f1(sums.reshape(*sums.shape[:-1], classes, classes))),
    )


def _mean(metric: str) -> Additive:
    return Additive(
        measures=(metric,),
        features=lambda table: np.column_stack([table[:, 0], np.ones(len(table))]),
        value=lambda sums: sums[..., 0] / sums[..., 1],
    )


def _macro(f1: np.ndarray) -> np.ndarray:
    return np.nanmean(f1, axis=-1)


ADDITIVE: dict[str, Additive] = {
    **{name: _mean(name) for name in ("xnli2_acc", "xnli3_acc", "pawsx_acc", "mlqa_f1", "mlqa_em", "mlqa_f1_released")},
    "xnli2_f1": _confusion("xnli2", 2, _macro),
    "xnli3_f1": _confusion("xnli3", 3, _macro),
    "pawsx_f1": _confusion("pawsx", 2, _macro),
    "pawsx_f1_positive": _confusion("pawsx", 2, lambda f1: np.nan_to_num(f1[..., 0])),
    "wikiann_f1": Additive(
        measures=("wikiann_correct", "wikiann_predicted", "wikiann_gold"),
        features=lambda table: table,
        value=lambda sums: _ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2], 0.0),
    ),
    "wikiann_f1_released": Additive(
        measures=("wikiann_tokens_right", "wikiann_tokens"),
        features=lambda table: table,
        value=lambda sums: _ratio(sums[..., 0], sums[..., 1], 0.0),
    ),
}
TASK_METRICS: dict[str, tuple[str, ...]] = {
    "xnli": ("xnli2_f1", "xnli2_acc", "xnli3_f1", "xnli3_acc"),
    "pawsx": ("pawsx_f1", "pawsx_f1_positive", "pawsx_acc"),
    "mlqa": ("mlqa_f1", "mlqa_em", "mlqa_f1_released"),
    "wikiann": ("wikiann_f1", "wikiann_f1_released"),
}
"""Metrics of each task, its part of `xtreme_f1` first; of the two numbers of XNLI classes the data has one."""


ALL = "all"  # the "language" that is the mean over languages
MEAN = "xtreme"  # the "task" that is the mean over tasks


class Drawn(NamedTuple):
    """A value with its draws, and what was resampled: items of a task, records of a language where no item is named."""

    value: Estimate
    drawn: Float[np.ndarray, " resamples"]
    units: frozenset[tuple[str, str]]  # task, and id in it


"""A value over n records, and the same on bootstrap resamples of them."""


def metrics_of(task: str, rows: pd.DataFrame) -> tuple[str, ...]:
    """IDs of the task's metrics, its part of `xtreme_f1` first: of XNLI those of the classes that `rows` have."""
    if task != "xnli":
        return TASK_METRICS[task]
    three = "xnli3_acc" in set(rows.loc[rows["task"] == task, "metric"])
    return tuple(name for name in TASK_METRICS[task] if name.startswith("xnli3" if three else "xnli2"))


def features_of(metric: str, rows: pd.DataFrame) -> Float[np.ndarray, "n k"]:
    """What is summed over records to get `metric`, one line per record.

    Args:
        metric: A key of `ADDITIVE`.
        rows: Rows `record, metric, value` of one task and language.

    Raises:
        ValueError: Unknown metric; or the rows are of several sets, or lack a measure.
    """
    if metric not in ADDITIVE:
        raise unknown("XTREME metric", metric, ADDITIVE)
    needed = ADDITIVE[metric].measures
    table = rows[rows["metric"].isin(needed)]
    if table.duplicated(["record", "metric"]).any():
        raise ValueError(f"{metric}: a record occurs twice; give the rows of one task and language")
    table = table.pivot(index="record", columns="metric", values="value").reindex(columns=list(needed))
    if table.empty or table.isna().any(axis=None):
        raise ValueError(f"{metric} needs {', '.join(needed)} of every record; the rows given lack some")
    return ADDITIVE[metric].features(table.to_numpy(dtype=float))


def corpus_value(metric: str, rows: pd.DataFrame) -> float:
    """The metric over all records of `rows`; see `features_of` for its arguments and errors."""
    features = features_of(metric, rows)
    return float(ADDITIVE[metric].value(features.sum(0, keepdims=True))[0])


def _multinomial(n: int, name: str, resamples: int, seed: int = 0) -> Int[np.ndarray, "resamples n"]:
    """How often each of n records is in each bootstrap resample; those of another `name` are drawn independently."""
    entropy = int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8])
    return np.random.default_rng(entropy).multinomial(n, [1 / n] * n, resamples)


def resample(
    task: str, records: Mapping[str, Sequence[str]], resamples: int = RESAMPLES
) -> dict[str, Int[np.ndarray, "resamples n"]]:
    """How often each record of each language is in each bootstrap resample of a task.

    Records that are one item in several languages are drawn together, since an item that is hard in one of them is hard
    in the others; where a line names no item, a language is drawn by itself.

    Args:
        task: Other tasks are drawn independently.
        records: Language -> ids, in the order of the columns.
        resamples: How many.
    """
    joint = [lang for lang, ids in records.items() if all(id_.startswith(ITEM) for id_ in ids)]
    items = sorted({id_ for lang in joint for id_ in records[lang]})
    drawn = _multinomial(len(items), task, resamples) if items else None
    found = {}
    for lang, ids in records.items():
        if lang not in joint:
            found[lang] = _multinomial(len(ids), f"{task}/{lang}", resamples)
            continue
        counts = drawn[:, np.searchsorted(items, ids)]
        counts[counts.sum(axis=1) == 0] = 1  # a draw that missed a small language altogether says nothing about it
        found[lang] = counts
    return found


def _unit(lang: str, record: str) -> str:
    """What is drawn with a record: its item, which may be in other languages too; or the record itself."""
    return record if record.startswith(ITEM) else f"{lang}/{record}"


def estimate(value: float, n: int, drawn: Float[np.ndarray, " resamples"], units: int | None = None) -> Estimate:
    """A value over `n` records with the interval of its draws (`stats.ends`), in which so many units were resampled
    (None: the records); of one there is none."""
    units = n if units is None else units
    if units < 2:
        return Estimate(value, n, float("nan"), float("nan"))
    low, high = np.quantile(drawn, ends(units))
    return Estimate(value, n, float(low), float(high))


def bootstrap(metric: str, rows: pd.DataFrame, seed: int = 0) -> Estimate:
    """The metric with its interval over records; see `features_of` for its arguments and errors."""
    features = features_of(metric, rows)
    drawn = ADDITIVE[metric].value(_multinomial(len(features), "", RESAMPLES, seed) @ features)
    return estimate(corpus_value(metric, rows), len(features), drawn)


def drawn_values(
    rows: pd.DataFrame, tasks: Sequence[str], langs: Sequence[str], resamples: int = RESAMPLES
) -> dict[tuple[str, str, str], Drawn]:
    """Every metric of every set, and the means, with draws: (task, language, metric) -> value and draws.

    Language "all" is the mean over the languages that have the task, each weighing the same; task "xtreme" the mean
    over tasks, there only if all four are asked for. Records are resampled per task and language, translations of one
    item together (`resample`), those of two models that answered the same ones alike. What is n/a has value NaN and
    n = 0.

    Args:
        rows: task, lang, record, metric, value, one per record and measure.
        tasks: In the order they are told.
        langs: Likewise.
        resamples: How many draws.
    """
    found: dict[tuple[str, str, str], Drawn] = {}
    of_set = {key: group for key, group in rows.groupby(["task", "lang"], sort=False)}

    def mean(parts: Sequence[Drawn]) -> Drawn:
        parts = [part for part in parts if part.value.n]
        if not parts:
            none = Estimate(float("nan"), 0, float("nan"), float("nan"))
            return Drawn(none, np.full(resamples, np.nan), frozenset())
        drawn = np.mean([part.drawn for part in parts], axis=0)
        value = float(np.mean([part.value.value for part in parts]))
        units = frozenset().union(*(part.units for part in parts))
        return Drawn(estimate(value, sum(part.value.n for part in parts), drawn, len(units)), drawn, units)

    for task in tasks:
        # Sorted as `features_of` sorts them.
        there = {lang: sorted(of_set[task, lang]["record"].unique()) for lang in langs if (task, lang) in of_set}
        counts = resample(task, there, resamples)
        for metric in metrics_of(task, rows):
            for lang in langs:
                parts = []
                if lang in there:
                    features = features_of(metric, own := of_set[task, lang])
                    drawn = ADDITIVE[metric].value(counts[lang] @ features)
                    units = frozenset((task, _unit(lang, record)) for record in there[lang])
                    parts = [Drawn(estimate(corpus_value(metric, own), len(features), drawn), drawn, units)]
                found[task, lang, metric] = mean(parts)
            found[task, ALL, metric] = mean([found[task, lang, metric] for lang in langs])
    if set(tasks) == set(TASK_METRICS):
        for lang in (*langs, ALL):
            found[MEAN, lang, "xtreme_f1"] = mean([found[task, lang, metrics_of(task, rows)[0]] for task in tasks])
    return found


def _changed(a: pd.DataFrame, b: pd.DataFrame) -> set[tuple[str, str]]:
    """Units of which two models answered some record differently, by any measure; see `Drawn`."""
    keys = ["task", "lang", "record", "metric"]
    one, other = (rows.set_index(keys)["value"] for rows in (a, b))
    differ = one.index[one.ne(other.reindex(one.index)).to_numpy()]
    return {(task, _unit(lang, record)) for task, lang, record, _ in differ}


def differences(*pairs: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    """One model against another on the same records, a − b: their draws are of the same records, so this is paired.

    Args:
        pairs: Rows of a and of b: task, lang, record, metric, value. Of several pairs, one per seed, the mean is told:
            all of them answer the same records, which are drawn together, and seeds are drawn independently of them,
            as `stats.paired` does (few of them say little about how much seeds differ).

    Returns:
        task, lang, metric, a, b, difference, n, low, high, p, and least and most, the smallest and the largest
        difference of a pair; what is n/a is not among them.

    Raises:
        ValueError: No pair, or not all answered the same records by the same measures.
    """
    keys = ["task", "lang", "record", "metric"]
    first, *others = [set(map(tuple, rows[keys].to_numpy())) for pair in pairs for rows in pair] or [set()]
    if not first:
        raise ValueError("there is nothing to compare: no pair of models, or no answers; give a pair of rows per seed")
    for other in others:
        if other != first:
            raise ValueError(
                f"{len(first ^ other)} answers of {len(first | other)} are of one model alone, for instance to "
                f"{min(first ^ other)}; compare models that were asked the same records"
            )
    tasks = [task for task in TASK_METRICS if task in set(pairs[0][0]["task"])]
    langs = list(dict.fromkeys(pairs[0][0]["lang"]))
    found = [[drawn_values(rows, tasks, langs, TEST_RESAMPLES) for rows in pair] for pair in pairs]
    changed = set().union(*(_changed(*pair) for pair in pairs))
    of_seeds = np.random.default_rng(0).integers(len(pairs), size=(len(pairs), TEST_RESAMPLES))
    out = []
    for key, (value, _, units) in found[0][0].items():
        if not value.n:
            continue
        a, b = (float(np.mean([pair[side][key][0].value for pair in found])) for side in (0, 1))
        by_pair = [pair[0][key][0].value - pair[1][key][0].value for pair in found]
        drawn = np.array([pair[0][key][1] - pair[1][key][1] for pair in found])
        drawn = np.take_along_axis(drawn, of_seeds, axis=0).mean(axis=0)
        told = estimate(float(np.mean(by_pair)), value.n, drawn, len(units))
        row = dict(zip(("task", "lang", "metric"), key, strict=True), a=a, b=b)
        row |= dict(difference=told.value, n=told.n, low=told.low, high=told.high)
        row |= dict(p=bootstrap_p(told.value, drawn, len(units), len(units & changed)))
        out.append(row | dict(least=min(by_pair), most=max(by_pair)))
    return pd.DataFrame(out)
