"""Causal tracing over many facts: which ones the model knows, and their traces.

A trace is kept under the hash of everything it depends on, so a stopped run goes on and a finished one is not repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from langedit_core.errors import unknown
from langedit_core.keeping import kept
from langedit_core.languages import LANGUAGES
from langedit_core.metrics import score_probes
from langedit_core.models import EditableModel
from langedit_core.records import Fact, FactSet, digest
from langedit_core.study import load_data
from langedit_core.tokens import SubjectMerged
from langedit_core.tracing import (
    SEVERED,
    TraceSettings,
    embedding_deviation,
    subject_columns,
    trace,
)

ENGINE = 1
"""Raised whenever the same inputs would give other numbers; part of every trace's hash."""

HELD_OUT = ("tune", "corpus")
"""Splits that are traced: subjects that no report edits, so that layers can be chosen here and tested there."""

DIGITS = 5
"""Significant digits of an effect in a record; a tenth of the size of all sixteen."""

COUNTS = ("data", "lang", "asked", "merged", "known", "traced")
COLUMNS = ("fact", "lang", "kind", "token", "role", "layer", "effect", "error", "clean", "corrupted")


def data_sets(names: str, langs: Sequence[str]) -> tuple[dict[str, FactSet], list[str]]:
    """Data sets by their names, separated by spaces, and a sentence for each whose file is not there.

    Raises:
        ValueError: Unknown name.
    """
    found, absent = {}, []
    for name in names.split():
        try:
            found[name] = load_data(name, langs)
        except FileNotFoundError as error:
            absent.append(f"{name} is not traced: {error}")
    return found, absent


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the model knows of a data set.

    Attributes:
        facts: Known facts, at most as many per language as asked for.
        counts: Per language: asked, merged (no token boundary at the subject's end), known, traced.
        deviation: Of the embeddings of all subjects of the data set, in all languages asked for.
    """

    facts: list[Fact]
    counts: pd.DataFrame
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A data set's known facts and their traces.

    Attributes:
        counts: As in `Known`.
        deviation: As in `Known`.
        frame: As `trace_facts` gives it, effects rounded to `DIGITS` digits.
    """

    counts: pd.DataFrame
    deviation: float
    frame: pd.DataFrame


def trace_known(
    model: EditableModel, data: FactSet, langs: Sequence[str], *, asked: int, traced: int,
    settings: TraceSettings | None = None, results: str | Path | None = None, records: str | Path | None = None,
    quiet: bool = False,
) -> Traced:  # fmt: skip
    """`find_known`, then `trace_facts`; or both from the record that an earlier run with the same inputs left.

    Args:
        model: Unedited.
        data: Only facts of `HELD_OUT` are asked; all where none is held out.
        langs: Languages of the data set.
        asked: Facts per language.
        traced: Most facts per language to trace.
        settings: Noise, samples, window.
        results: Folder in which every fact's answer and trace is kept, so that a stopped run goes on.
        records: Folder in which the whole is kept, to be committed beside a report; None keeps no record.
        quiet: No progress bar.
    """
    settings = settings or TraceSettings()

    def made() -> dict:
        known = find_known(model, data, langs, asked=asked, traced=traced, results=results)
        frame = trace_facts(model, known.facts, known.deviation, settings, results=results, quiet=quiet)
        columns = {name: [_short(x) for x in column] for name, column in frame.to_dict("list").items()}
        return dict(counts=known.counts.to_dict("list"), deviation=known.deviation, columns=columns)

    key = dict(
        data=data.fingerprint, langs=list(langs), asked=asked, traced=traced, settings=settings.model_dump(mode="json")
    )  # fmt: skip
    told = _kept(model, records, f"traced-{data.name}", key, made)
    counts, frame = (
        pd.DataFrame(told[part], columns=list(c)) for part, c in (("counts", COUNTS), ("columns", COLUMNS))
    )
    return Traced(counts=counts, deviation=told["deviation"], frame=_typed(frame))


def _short(value: object) -> object:
    """What a record holds of a number: no NaN, which JSON has not, and no digits that noise would change."""
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def find_known(
    model: EditableModel, data: FactSet, langs: Sequence[str], *, asked: int, traced: int, seed: int = 0,
    results: str | Path | None = None,
) -> Known:  # fmt: skip
    """Ask the same facts in every language, and keep the first `traced` that greedy generation answers in full.

    Args:
        model: Unedited.
        data: Only facts of `HELD_OUT` are asked; all where none is held out.
        langs: Languages of the data set.
        asked: Facts per language, the first ones in the order of sha256(seed|id).
        traced: Most facts per language to keep.
        seed: Changes the order.
        results: Folder in which answers are kept; None asks again every time.

    Raises:
        ValueError: A language that the data set lacks, or a number below one.
    """
    if asked < 1 or traced < 1 or not langs:
        raise ValueError(f"got asked={asked}, traced={traced}, languages {list(langs)}; expected at least one of each")
    for lang in langs:
        if lang not in data.languages:
            raise unknown(f"language of the data set {data.name!r}", lang, data.languages)
    # A data set without such a split, as facts of one's own, is looked at whole.
    held_out = [i for i in data.facts if data.splits[i] in HELD_OUT] or list(data.facts)
    ids = sorted(held_out, key=lambda i: digest(str(seed), i))
    facts, counts = [], []
    for lang in dict.fromkeys(langs):
        some = [data.facts[i][lang] for i in ids if lang in data.facts[i]][:asked]
        located = [fact for fact in some if _located(model, fact)]
        known = known_facts(model, located, results)
        facts += known[:traced]
        numbers = dict(asked=len(some), merged=len(some) - len(located), known=len(known))
        counts.append(dict(data=data.name, lang=lang, **numbers, traced=len(known[:traced])))
    subjects = [by[lang].subject for by in data.facts.values() for lang in langs if lang in by]
    return Known(facts=facts, counts=pd.DataFrame(counts), deviation=embedding_deviation(model, subjects))


def known_facts(model: EditableModel, facts: Sequence[Fact], results: str | Path | None = None) -> list[Fact]:
    """Facts whose whole true answer (the target, where the source tells no truth) greedy generation gives."""
    asked = [(fact.text, LANGUAGES[fact.lang].join + (fact.truth or fact.target)) for fact in facts]
    scores = _kept(model, results, "known", dict(asked=asked), lambda: [s.em for s in score_probes(model, asked)])
    return [fact for fact, known in zip(facts, scores, strict=True) if known]


def trace_facts(
    model: EditableModel,
    facts: Sequence[Fact],
    deviation: float,
    settings: TraceSettings | None = None,
    *,
    results: str | Path | None = None,
    quiet: bool = False,
    columns: int = 2048,
) -> pd.DataFrame:
    """Trace every fact, or read its trace where it was made before.

    Args:
        model: Unedited.
        facts: Known ones.
        deviation: Of the subjects' embeddings.
        settings: Noise, samples, window.
        results: Folder of finished traces; None keeps nothing.
        quiet: No progress bar.
        columns: As in `PromptRuns.scores`.

    Returns:
        One row per fact, kind, token from the subject on, and layer: `COLUMNS`; `effect` is the mean of IE over noise
        samples, `error` its standard error (NaN for one sample), `clean` and `corrupted` the scores of both runs.
    """
    settings = settings or TraceSettings()
    frames = [pd.DataFrame(columns=list(COLUMNS))]
    for fact in tqdm(facts, unit="fact", disable=quiet, mininterval=1.0, dynamic_ncols=True):
        key = dict(
            deviation=deviation, settings=settings.model_dump(mode="json"), prompt=fact.prompt, subject=fact.subject,
            answer=fact.truth or fact.target, lang=fact.lang,
        )  # fmt: skip
        made = _kept(
            model, results, "trace", key, lambda fact=fact: _summary(model, fact, deviation, settings, columns)
        )
        frames.append(pd.DataFrame(made).assign(fact=fact.id, lang=fact.lang)[list(COLUMNS)])
    return _typed(pd.concat([f for f in frames if len(f)] or frames, ignore_index=True))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.astype({name: float for name in COLUMNS[-4:]} | {"layer": int, "token": int})


def _summary(model: EditableModel, fact: Fact, deviation: float, settings: TraceSettings, columns: int) -> dict:
    """A trace as columns of plain numbers; errors of a single sample are null."""
    found = trace(model, fact, deviation, settings, columns=columns)
    rows: dict[str, list] = {name: [] for name in COLUMNS[2:]}
    for kind in found.scores:
        effects = found.effects(kind)
        error = effects.std(-1) / settings.samples**0.5 if settings.samples > 1 else None
        for token, role in enumerate(found.roles):
            if role == "before" or (kind in SEVERED and role != "subject_last"):
                continue
            for layer in range(model.n_layers):
                told = None if error is None else float(error[token, layer])
                values = (kind, token, role, layer, float(effects[token, layer].mean()), told, found.clean)
                for name, value in zip(COLUMNS[2:], (*values, float(found.corrupted.mean())), strict=True):
                    rows[name].append(value)
    return rows


def _located(model: EditableModel, fact: Fact) -> bool:
    try:
        subject_columns(model.tokenizer, fact)
    except SubjectMerged:
        return False
    return True


def _kept(model: EditableModel, folder: str | Path | None, what: str, key: dict, make: Callable[[], object]):
    """`kept` for what a model does; what an edited one does is not kept under the unedited one's fingerprint."""
    if folder is None:
        return make()

    def checked() -> object:
        model.check_unedited("a trace")
        return make()

    return kept(Path(folder) / "tracing", what, dict(engine=ENGINE, model=model.fingerprint) | key, checked)
