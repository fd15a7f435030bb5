"""What a model says of facts, of XTREME's tasks and of neutral prose; with a patch, before and after it is applied.

The numbers are those of the study: metrics by their IDs (`metrics.METRICS`), intervals over facts, or over records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from langedit_core.drift import Drift
from langedit_core.languages import CORE
from langedit_core.metrics import ProbeScore, Question, ask, questions, rows_of
from langedit_core.models import EditableModel
from langedit_core.patches import Patch
from langedit_core.records import Fact
from langedit_core.stats import interval
from langedit_core.xtreme import XtremeReport
from langedit_core.xtreme import evaluate as evaluate_xtreme


@dataclass(frozen=True)
class Evaluation:
    """What a model said.

    Attributes:
        rows: One row per question of a fact, metric and moment ("before", "final"): fact, lang, kind, metric, when,
            value. Without a patch there is no "before", and nothing that is measured beside it (`specificity_same`).
        said: One row per question and moment: fact, lang, kind, prompt, answer, when, tf, probability (geometric mean
            per token of the answer), said (the likeliest token at each of the answer's positions).
        drift: One row per language, metric and moment: lang, metric, when, value, n (tokens); empty without a patch.
        xtreme: Moment -> report; empty if not asked for.
    """

    rows: pd.DataFrame
    said: pd.DataFrame
    drift: pd.DataFrame
    xtreme: dict[str, XtremeReport] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """`fact_table` of the rows."""
        return fact_table(self.rows)


def fact_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over facts per language and metric.

    Args:
        rows: Columns fact, lang, metric, when ("before", "final"), value.

    Returns:
        Columns lang, metric, facts, before (where there is any), after, and the 95 % interval of `after` over facts,
        low and high, which are NaN where all facts have the same value, as a single one has.
    """
    by_fact = rows.groupby(["lang", "metric", "when", "fact"], sort=False)["value"].mean()
    found = []
    for (lang, metric), values in by_fact.groupby(level=["lang", "metric"], sort=False):
        moments = {when: part for when, part in values.groupby(level="when")}
        after = interval(moments["final"])
        if after.low == after.high:  # equal values say nothing about facts that were not asked
            after = after._replace(low=math.nan, high=math.nan)
        before = {"before": moments["before"].mean()} if "before" in moments else {}
        found.append(
            dict(lang=lang, metric=metric, facts=after.n)
            | before
            | dict(after=after.value, low=after.low, high=after.high)
        )
    return pd.DataFrame(found)


def evaluate(
    model: EditableModel, facts: Sequence[Fact] = (), *, patch: Patch | None = None, xtreme: int = 0,
    langs: Sequence[str] = CORE, progress: Callable[[str, str, str, int, int], object] | None = None,
) -> Evaluation:  # fmt: skip
    """Ask a model as it is now; or the unedited one, and then, with the patch applied, again.

    Args:
        model: Any supported model; with a patch the one it was made from, which is edited afterwards.
        facts: Their edit prompts, and whatever questions they bring along.
        patch: Applied between two askings; drift on neutral prose is measured too.
        xtreme: Records per XTREME task and language; 0 asks none.
        langs: Languages of XTREME.
        progress: Called with moment, task, language, records done and records in all of XTREME.

    Raises:
        RefusedInput: The patch was made from another model, or the model is edited already; an answer without tokens.
        ValueError, FileNotFoundError: As `xtreme.evaluate`.
    """
    asked = [question for fact in facts for question in questions(fact)]

    def tasks(when: str) -> dict[str, XtremeReport]:
        tell = None if progress is None else lambda *done: progress(when, *done)
        return {when: evaluate_xtreme(model, langs=langs, limit=xtreme, progress=tell)} if xtreme else {}

    if patch is None:
        scores = ask(model, asked)
        rows = [row for row in rows_of(asked, scores, scores, "final") if row["metric"] != "specificity_same"]
        return Evaluation(_rows(rows), _said(model, asked, scores, "final"), pd.DataFrame(), tasks("final"))
    patch.attach(model)
    drift, before = Drift.of(model), ask(model, asked)
    neutral, reports = _drift_rows(drift, model, "before"), tasks("before")
    patch.apply(model)
    after = ask(model, asked)
    rows = rows_of(asked, before, before, "before") + rows_of(asked, after, before, "final")
    said = [_said(model, asked, before, "before"), _said(model, asked, after, "final")]
    neutral += _drift_rows(drift, model, "final")
    return Evaluation(_rows(rows), pd.concat(said, ignore_index=True), pd.DataFrame(neutral), reports | tasks("final"))


def _rows(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["fact", "lang", "kind", "metric", "when", "value"])


def _drift_rows(drift: Drift, model: EditableModel, when: str) -> list[dict]:
    return [row | {"when": when} for row in drift.measure(model)]


def _said(model: EditableModel, asked: Sequence[Question], scores: Sequence[ProbeScore], when: str) -> pd.DataFrame:
    return pd.DataFrame(
        [
            dict(fact=q.fact, lang=q.lang, kind=q.kind, prompt=q.prompt, answer=q.answer.strip(), when=when,
                 tf=score.tf, probability=math.exp(-score.nll), said=model.tokenizer.decode(score.predicted).strip())
            for q, score in zip(asked, scores, strict=True)
        ]
    )  # fmt: skip
