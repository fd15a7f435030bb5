"""XTREME before and after editing: from what the cells hold to the frames of tables and figures.

Where a language lacks a task, its F1 is n/a.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from langedit_core.tables import format_ci
from langedit_core.xtreme_metrics import MEAN, TASK_METRICS

KEYS = ["task", "metric", "lang", "method", "when"]


def over_seeds(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table of several cells, each task by the metric that enters xtreme_f1.

    Value and interval are means over the seeds that have it: all seeds ask the same records, so more seeds make no
    narrower interval.

    Args:
        parts: Per cell, task, lang, metric, when, value, n (records), low, high, seconds, and its method.

    Returns:
        Columns task, metric, lang, method, when, value, n, low, high, seconds (median), seeds; the mean over tasks is
        last. Empty if there are no parts.

    Raises:
        ValueError: A task was measured by one metric in some cells and by another in others.
    """
    columns = [*KEYS, "value", "n", "low", "high", "seconds", "seeds"]
    if not parts:
        return pd.DataFrame(columns=columns)
    rows = pd.concat(parts, ignore_index=True)
    mains = {}
    for task, names in TASK_METRICS.items():
        measured = [set(part.loc[part["task"] == task, "metric"]) for part in parts]
        if found := {next(name for name in names if name in asked) for asked in measured if asked}:
            mains[task], *others = sorted(found)
            if others:
                raise ValueError(
                    f"XTREME's {task} was measured by {', '.join(sorted(found))}: these cells had different data sets; "
                    "delete the ones that do not belong here and compute them with the others' data"
                )
    mains[MEAN] = "xtreme_f1"
    grouped = rows[rows["metric"] == rows["task"].map(mains)].groupby(KEYS, sort=False)
    table = grouped[["value", "n", "low", "high"]].mean()
    table = table.assign(seconds=grouped["seconds"].median(), seeds=grouped.size()).reset_index().astype({"n": int})
    return table.sort_values("task", key=lambda t: t.map(list(mains).index), kind="stable", ignore_index=True)[columns]


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """Per task the unedited model, then each method at the end; a column per language.

    Column "all" tells before → final with the interval of the latter; seconds are those of one evaluation.

    Args:
        found: From `over_seeds`.
    """
    rows = []
    for (task, metric), part in found.groupby(["task", "metric"], sort=False):
        before = part[part["when"] == "before"]
        rows.append(_row(task, metric, "unedited", before.drop_duplicates("lang")))
        for method in dict.fromkeys(part["method"]):
            final = part[(part["method"] == method) & (part["when"] == "final")]
            whole = before[(before["method"] == method) & (before["lang"] == "all")]["value"]
            rows.append(_row(task, metric, method, final, f"{format_ci(whole.iloc[0], None, None)} → "))
    return pd.DataFrame(rows)


def _row(task: str, metric: str, method: str, part: pd.DataFrame, lead: str = "") -> dict[str, object]:
    at = part.set_index("lang")
    langs = {lang: format_ci(at.at[lang, "value"], None, None) for lang in at.index if lang != "all"}
    whole, seconds = at.loc["all"], part["seconds"].sum()
    told = dict(all=lead + format_ci(*whole[["value", "low", "high"]]), n=whole["n"])
    name = metric if task == MEAN else task
    return dict(task=name, method=method) | langs | told | dict(seconds=f"{seconds:.0f}" if task != MEAN else "–")


def sizes(found: pd.DataFrame) -> pd.DataFrame:
    """Per task: records of one evaluation, the languages that lack it, its seconds (median over evaluations)."""
    rows = []
    for task, part in found[(found["task"] != MEAN) & (found["lang"] != "all")].groupby("task", sort=False):
        once = part.groupby(["method", "when"])[["n", "seconds"]].sum()
        lacking = ", ".join(dict.fromkeys(part[part["n"] == 0]["lang"])) or "–"
        rows.append(
            {"task": task, "records": int(once["n"].max()), "n/a in": lacking, "seconds": once["seconds"].median()}
        )
    return pd.DataFrame(rows)
