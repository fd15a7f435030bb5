"""What a batch does to the edits before it, and how much of the earliest edits is left as the sequence goes on.

Δ_t(f) = 100 (tf_t(f) − tf_{t−1}(f)) points, over facts f edited before batch t; negative is negative interference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from langedit_core.stats import ALPHA, Estimate, holm, interval, paired, pooled

UNIT = ["seed", "fact", "tested", "batch"]
FACT = ["seed", "fact"]  # one in several languages is one
FINDINGS = ("another language hurts more", "the same language hurts more", "no difference shown")


def followed(retention: pd.DataFrame) -> pd.DataFrame:
    """Rows of the facts that were asked again after later batches, so that a curve is about the same facts throughout.

    Args:
        retention: Columns seed, fact, lang, edited (the batch it was edited in), step, tf.

    Returns:
        The same with lang named `tested` and edited named `batch`; the last batch, which has none after it, is whole.
    """
    rows = retention.rename(columns={"lang": "tested", "edited": "batch"})
    last_asked = rows.groupby(UNIT)["step"].transform("max")
    return rows[(last_asked > rows["batch"]) | (rows["batch"] == rows["step"].max())]


def changes(retention: pd.DataFrame, langs: Sequence[str]) -> pd.DataFrame:
    """One row per batch and fact edited before it.

    Args:
        retention: As for `followed`.
        langs: Languages of the batches, in order; they repeat.

    Returns:
        Columns seed, fact, tested (the fact's language), batch (when it was edited), step (the batch that changed it),
        edited (that batch's language), round (how often all languages had come before), change (points).
    """
    rows = retention.rename(columns={"lang": "tested", "edited": "batch"})
    before = rows.assign(step=rows["step"] + 1)
    found = rows.merge(before, on=[*UNIT, "step"], suffixes=("", "_before"))
    found = found.assign(
        edited=[langs[t % len(langs)] for t in found["step"]],
        round=found["step"] // len(langs),
        change=100 * (found["tf"] - found["tf_before"]),
    )
    return found[[*UNIT, "step", "edited", "round", "change"]]


def by_language(found: pd.DataFrame) -> pd.DataFrame:
    """Mean change per language edited, language tested and round: edited, tested, round, change, n, seeds.

    `n` counts facts, each as often as a batch of that language followed it in that round.
    """
    grouped = found.groupby(["edited", "tested", "round"], sort=False)
    table = grouped.agg(change=("change", "mean"), n=("change", "size"), seeds=("seed", "nunique"))
    return table.reset_index()


def matrix(table: pd.DataFrame, langs: Sequence[str]) -> pd.DataFrame:
    """Language edited (rows) × language tested (columns), mean over rounds weighted by n; NaN where nothing was."""
    sums = table.assign(total=table["change"] * table["n"]).groupby(["edited", "tested"])[["total", "n"]].sum()
    return (sums["total"] / sums["n"]).unstack("tested").reindex(index=langs, columns=langs)


def shown(found: pd.DataFrame, langs: Sequence[str]) -> pd.DataFrame:
    """For `matrix`: whether the 95 % interval of a cell, over facts, holds no zero; not corrected for their number.

    An interval of no width, of facts that all changed alike, says nothing.

    Args:
        found: From `changes`.
        langs: As for `matrix`.
    """
    per_fact = found.groupby(["edited", "tested", *FACT])["change"].mean()
    table = pd.DataFrame(False, index=langs, columns=langs)
    for (edited, tested), values in per_fact.groupby(["edited", "tested"]):
        told = interval(values)
        table.loc[edited, tested] = told.high - told.low > 1e-9 and (told.low > 0 or told.high < 0)
    return table


def periods(table: pd.DataFrame, langs: Sequence[str], rounds: int, most: int = 5) -> dict[str, pd.DataFrame]:
    """`matrix` over time: the rounds in at most `most` stretches of about equal length, by their label."""
    stretches = np.array_split(np.arange(rounds), min(most, rounds))
    labels = [f"round {s[0] + 1}" if len(s) == 1 else f"rounds {s[0] + 1}–{s[-1] + 1}" for s in stretches]
    return {
        label: matrix(table[table["round"].isin(stretch)], langs)
        for label, stretch in zip(labels, stretches, strict=True)
    }


def same_and_other(found: Mapping[str, pd.DataFrame], n_langs: int) -> pd.DataFrame:
    """Does a batch of another language hurt earlier edits more than a batch of their own language?

    A fact meets its own language again only some batches later, and the batch that follows an edit hurts most. So
    batches of its language are compared with those right before and right after them, the very first after an edit
    left out, paired by fact; edits that lack one of the two neighbours are left out. Without a second round, or with
    so short a cycle that the first batch after an edit is such a neighbour, there is nothing to compare.

    Args:
        found: Method → its `changes`.
        n_langs: Length of the cycle of languages.

    Returns:
        One row per method: method, `any` (over all changes of facts that were asked again), `same`, `other` and
        `difference` (other − same; over facts that have both, their languages averaged first), each an `Estimate` in
        points per batch whose interval is over facts, n (facts that have both), seeds, p_holm over the methods, and
        finding, one of `FINDINGS`; None without a test.
    """
    rows, p = [], {}
    for method, part in found.items():
        age = part["step"] - part["batch"]
        place = np.select(
            [age % n_langs == 0, age % n_langs == n_langs - 1, age % n_langs == 1], ["own", "before", "after"], ""
        )
        cycle = (age + 1) // n_langs  # 1: around the first time that the edit's own language comes again
        near = part.assign(place=place, cycle=cycle)[(place != "") & (age > 1)]
        wide = near.pivot_table(index=[*UNIT, "cycle"], columns="place", values="change")
        wide = wide.reindex(columns=["own", "before", "after"]).dropna()
        both = pd.DataFrame(dict(same=wide["own"], other=(wide["before"] + wide["after"]) / 2))
        both = both.groupby(FACT).mean()
        nothing = Estimate(float("nan"), 0, float("nan"), float("nan"))
        row = dict(method=method, any=pooled(part.set_index(FACT)["change"]))
        row |= dict(same=nothing, other=nothing, difference=nothing, n=_distinct(both))
        row |= dict(seeds=part["seed"].nunique(), p_holm=float("nan"), finding=None)
        if len(both):
            tested = paired(both["other"], both["same"])
            row |= dict(same=interval(both["same"]), other=interval(both["other"]), difference=tested.difference)
            p[method] = tested.p
        rows.append(row)
    corrected = dict(zip(p, holm(p.values()), strict=True)) if p else {}
    for row in rows:
        if row["method"] in corrected:
            row["p_holm"] = corrected[row["method"]]
            worse = row["difference"].value < 0
            row["finding"] = FINDINGS[2 if row["p_holm"] >= ALPHA else 0 if worse else 1]
    return pd.DataFrame(rows)


def _distinct(values: pd.DataFrame) -> int:
    return values.index.get_level_values("fact").nunique()


def kept(retention: pd.DataFrame, first: int) -> pd.DataFrame:
    """Efficacy of the earliest edits and of all edits so far after every batch, each batch weighing the same.

    Args:
        retention: As for `followed`.
        first: How many batches are "the earliest".

    Returns:
        Columns step, earliest (NaN until all of them are edited), all.
    """
    per_batch = followed(retention).groupby(["step", "batch"])["tf"].mean().reset_index()
    early = per_batch[per_batch["batch"] < first].groupby("step")["tf"].mean()
    early = early.where(early.index >= first - 1)
    return pd.DataFrame({"earliest": early, "all": per_batch.groupby("step")["tf"].mean()}).reset_index()
