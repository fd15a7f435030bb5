"""Multilingual generalisation on XTREME: what an edited model still knows about language, beside its facts.

`evaluate(model)` → rows per record, F1 per task and language with intervals over records, seconds, and what is n/a;
xtreme_f1 = mean over tasks of F1, over those tasks only that a language has.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from langedit_core.datafiles import NotAvailable
from langedit_core.errors import RefusedInput, check_list, unknown
from langedit_core.languages import CORE
from langedit_core.models import EditableModel, check_model
from langedit_core.shared_prefix import CELLS, generate, score_options
from langedit_core.tokens import TextTooLong, continuation, encode
from langedit_core.xtreme_answers import mlqa_measures, wikiann_measures
from langedit_core.xtreme_data import SOURCES, TASKS, Example, TaskData, load_task
from langedit_core.xtreme_metrics import ALL, XTREME_METRICS, drawn_values, metrics_of
from langedit_core.xtreme_prompts import SHOTS, WORDINGS, PromptSettings, build_prompts

__all__ = ["TASKS", "XTREME_METRICS", "XtremeReport", "XtremeSettings", "evaluate", "load_task"]


class XtremeSettings(BaseModel):
    """How long prompts and answers are, and what a batch may hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: PromptSettings = PromptSettings()
    answer_tokens: dict[str, int] = Field({"mlqa": 32, "wikiann": 48}, description="free answers are cut there")
    cells: int = Field(CELLS, ge=1, description="rows times columns of attention keys per batch")
    source: str = Field("auto", pattern=f"^({'|'.join(SOURCES)})$", description="see load_task")


@dataclass(kw_only=True)
class XtremeReport:
    """Results of `evaluate`.

    Attributes:
        tasks, langs: What was asked for.
        rows: One row per record and measure: task, lang, record, metric, value. Metrics that are no mean over records
            are made of several measures; `corpus_value` and `bootstrap` of `xtreme_metrics` compute them.
        answers: One row per record: task, lang, record, true, said.
        sets: One row per task and language: records, shots, seconds, dropped (lines of the file left out), cut and lost
            (MLQA contexts shortened, and those that lost the answer), unfinished (answers that met the token limit).
        missing: (task, lang) -> why there is no number.
        dropped: (task, lang) -> one sentence per line left out.
    """

    tasks: tuple[str, ...]
    langs: tuple[str, ...]
    rows: pd.DataFrame
    answers: pd.DataFrame
    sets: pd.DataFrame
    missing: dict[tuple[str, str], str] = field(default_factory=dict)
    dropped: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Tasks that stand behind the mean of each language."""
        return {lang: tuple(task for task in self.tasks if (task, lang) not in self.missing) for lang in self.langs}

    @cached_property
    def summary(self) -> pd.DataFrame:
        """task, lang, metric, value, n, low, high: what `drawn_values` has, without the draws."""
        found = drawn_values(self.rows, self.tasks, self.langs)
        return pd.DataFrame(
            [
                dict(task=task, lang=lang, metric=metric) | value._asdict()
                for (task, lang, metric), (value, *_) in found.items()
            ]
        )

    def metrics_of(self, task: str) -> tuple[str, ...]:
        """IDs of the task's metrics, its part of xtreme_f1 first."""
        return metrics_of(task, self.rows)

    def packed(self) -> list[dict]:
        """`rows` for a file: per task and language the records, and values per measure; `unpacked` reads it."""
        return [
            dict(
                task=task, lang=lang, record=list(own["record"].unique()),
                measures={name: part["value"].tolist() for name, part in own.groupby("metric", sort=False)},
            )
            for (task, lang), own in self.rows.groupby(["task", "lang"], sort=False)
        ]  # fmt: skip

    def table(self) -> pd.DataFrame:
        """F1 per task and language as text, "n/a" where there is none, for people."""
        shown = [*(self.metrics_of(task)[0] for task in self.tasks), "xtreme_f1"]
        part = self.summary[self.summary["metric"].isin(shown)]
        wide = part.pivot(index="metric", columns="lang", values="value")
        wide = wide.reindex(index=[name for name in shown if name in wide.index], columns=[*self.langs, ALL])
        return wide.map(lambda value: "n/a" if np.isnan(value) else f"{value:.3f}")

    def __str__(self) -> str:
        lines = [self.table().to_string()]
        lines += [f"n/a: {task} in {lang}: {why}" for (task, lang), why in self.missing.items()]
        for lang, parts in self.parts.items():
            if len(parts) < len(self.tasks):
                lines.append(f"mean of {lang} is over {', '.join(parts) or 'nothing'}")
        lines += [f"left out: {why}" for sentences in self.dropped.values() for why in sentences]
        return "\n".join(lines)


def unpacked(sets: Sequence[Mapping]) -> pd.DataFrame:
    """`XtremeReport.rows`, in another order, from what `packed` gave.

    Raises:
        ValueError: A list of values is not as long as that of the records.
    """
    rows = [
        dict(task=one["task"], lang=one["lang"], record=record, metric=metric, value=value)
        for one in sets
        for metric, values in one["measures"].items()
        for record, value in zip(one["record"], values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["task", "lang", "record", "metric", "value"])


def evaluate(
    model: EditableModel,
    tasks: Sequence[str] = TASKS,
    langs: Sequence[str] = CORE,
    limit: int | None = None,
    shots: int | Mapping[str, int] | None = None,
    settings: XtremeSettings | None = None,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> XtremeReport:
    """Ask the model as it is now.

    Args:
        model: Any editable model.
        tasks: Among xnli, pawsx, mlqa, wikiann.
        langs: Among the six core languages.
        limit: Records per task and language, the first ones; None takes all.
        shots: Solved examples per prompt, one number or one per task; `SHOTS` otherwise.
        settings: Lengths and batch size.
        progress: Called with task, language, records done and records in all.

    Raises:
        ValueError: Unknown task or language; more shots than the pool has; the sets of XNLI differ in their classes.
        FileNotFoundError: None of the tasks has data in any of the languages; says what to put where.
        RefusedInput: A prompt is too long for the model.
    """
    check_model(model)
    check_list("tasks", tasks)
    check_list("langs", langs)
    tasks, langs = tuple(dict.fromkeys(tasks)), tuple(dict.fromkeys(langs))
    for task in tasks:
        if task not in TASKS:
            raise unknown("XTREME task", task, TASKS)
    for lang in langs:
        if lang not in WORDINGS:
            raise unknown("language of XTREME prompts", lang, WORDINGS)
    settings = settings or XtremeSettings()
    per_task = SHOTS | (dict.fromkeys(tasks, shots) if isinstance(shots, int) else dict(shots or {}))
    for task in per_task:
        if task not in TASKS:
            raise unknown("XTREME task", task, TASKS)

    data, missing = _load(tasks, langs, limit, settings.source)
    if len({found.classes for (task, _), found in data.items() if task == "xnli"}) > 1:
        raise ValueError("XNLI has two classes in some of these languages and three in others; evaluate them apart")

    rows: list[dict] = []
    answers: list[dict] = []
    sets: list[dict] = []
    for (task, lang), found in data.items():
        started = time.perf_counter()
        tell = None if progress is None else partial(progress, task, lang)
        try:
            counts, replies = _ask(model, found, per_task[task], settings, tell)
        except TextTooLong as error:
            raise RefusedInput(
                f"XTREME's {task} in {lang}: {error} (shots=), or leave the task out (tasks=)"
            ) from error
        for record, (said, measures) in zip(found.records, replies, strict=True):
            key = dict(task=task, lang=lang, record=record.id)
            rows += [key | dict(metric=metric, value=value) for metric, value in measures.items()]
            answers.append(key | dict(true=" | ".join(record.answers), said=said))
        seconds = time.perf_counter() - started
        told = dict(task=task, lang=lang, records=len(found.records), shots=per_task[task], seconds=seconds)
        sets.append(told | dict(dropped=len(found.dropped)) | counts)
    return XtremeReport(
        tasks=tasks, langs=langs, rows=pd.DataFrame(rows), answers=pd.DataFrame(answers), sets=pd.DataFrame(sets),
        missing={key: error.reason for key, error in missing.items()},
        dropped={key: found.dropped for key, found in data.items() if found.dropped},
    )  # fmt: skip


def fingerprint(langs: Sequence[str], limit: int | None) -> str:
    """SHA-256 of what `evaluate` would ask with its defaults: records, pools, and how prompts are made of them.

    Raises:
        FileNotFoundError: As `evaluate`.
    """
    settings = XtremeSettings()
    data, _ = _load(TASKS, langs, limit, settings.source)
    parts = [[task, lang, asdict(found) | {"source": ""}] for (task, lang), found in data.items()]
    text = json.dumps([settings.model_dump(mode="json"), SHOTS, parts], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _load(
    tasks: Sequence[str], langs: Sequence[str], limit: int | None, source: str
) -> tuple[dict[tuple[str, str], TaskData], dict[tuple[str, str], NotAvailable]]:
    """Data per task and language, and why there is none; an error if there is none at all."""
    data: dict[tuple[str, str], TaskData] = {}
    missing: dict[tuple[str, str], NotAvailable] = {}
    for task in tasks:
        for lang in langs:
            try:
                data[task, lang] = load_task(task, lang, limit, source=source)
            except NotAvailable as error:
                missing[task, lang] = error
    if not data:
        raise next(iter(missing.values()), ValueError("no task or no language was asked for"))
    return data, missing


def _ask(
    model: EditableModel, data: TaskData, shots: int, settings: XtremeSettings, tell: Callable[[int, int], None] | None
) -> tuple[dict[str, int], list[tuple[str, dict[str, float]]]]:
    """Counts for the table of sets; and for each record what the model says and the measures of that."""
    total = len(data.records)
    progress = None if tell is None else lambda done: tell(done, total)
    prompts = build_prompts(model.tokenizer, data, shots, settings.prompts)
    ids = [encode(model.tokenizer, text) for text in prompts.texts]
    counts = dict(cut=prompts.cut, lost=prompts.lost, unfinished=0)
    if prompts.options:
        options = [[continuation(model.tokenizer, text, word) for word in prompts.options] for text in prompts.texts]
        scores = score_options(model, ids, options, cells=settings.cells, progress=progress)
        name = f"xnli{len(data.classes)}" if data.task == "xnli" else data.task
        replies = []
        for record, score in zip(data.records, scores, strict=True):
            gold, predicted = data.classes.index(record.answers[0]), int(np.argmax(score))
            numbers = {"gold": gold, "predicted": predicted, "acc": gold == predicted}
            measures = {f"{name}_{measure}": float(value) for measure, value in numbers.items()}
            replies.append((data.classes[predicted], measures))
        return counts, replies
    said = generate(
        model, ids, stop=prompts.stop, tokens=settings.answer_tokens[data.task], cells=settings.cells,
        progress=progress,
    )  # fmt: skip
    counts["unfinished"] = sum(not ended for _, ended in said)
    return counts, [
        (text.strip(), _measures(data, record, text)) for record, (text, _) in zip(data.records, said, strict=True)
    ]


def _measures(data: TaskData, record: Example, said: str) -> dict[str, float]:
    if data.task == "mlqa":
        return mlqa_measures(said, record.answers, data.lang)
    return wikiann_measures(said, record.answers[0], record.texts[0], data.lang)
