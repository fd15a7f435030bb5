"""`langedit edit`: facts from a file into a model, out come a patch, a PEFT adapter, or the edited model.

The patch is written after every batch, so that a run that is stopped goes on where it was; of a long sequence, whose
file takes long, less often.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel
from tqdm import tqdm

from langedit_core.editors import BatchReport, Editor, check_agreement
from langedit_core.errors import RefusedInput
from langedit_core.evaluation import fact_table
from langedit_core.metrics import ask, questions, rows_of
from langedit_core.models import EditableModel, load_model
from langedit_core.patches import Patch
from langedit_core.records import Fact, same_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Edited:
    """What an edit run leaves beside the model.

    Attributes:
        patch: The recorded edits; None for a method that cannot be stored as one.
        dropped: `Fact.label` -> why it could not be edited.
        rows: One row per question, metric and moment ("before", "final"): fact, lang, kind, metric, when, value.
        batches: One row per batch and layer of this run: what `LayerReport` tells.
    """

    patch: Patch | None
    dropped: dict[str, str]
    rows: pd.DataFrame
    batches: pd.DataFrame

    @property
    def same_keys(self) -> list[list[Fact]]:
        """Facts of the patch, of all its runs, that cannot be told apart by their keys."""
        return [] if self.patch is None else same_keys(self.patch.facts)

    @property
    def unmet(self) -> tuple[int, int]:
        """For how many facts of this run the search for values ended above its aim, and facts of this run."""
        if self.batches.empty:
            return 0, 0
        each = self.batches.drop_duplicates("batch")
        return round(((1 - each["converged"]) * each["facts"]).sum()), int(each["facts"].sum())

    def table(self) -> pd.DataFrame:
        """`fact_table` of the rows: means over facts before and after, per language and metric."""
        return fact_table(self.rows)


def usable(editor: Editor, facts: Sequence[Fact]) -> tuple[list[Fact], dict[str, str]]:
    """Facts the tokenizer can locate, and why not for the others.

    Raises:
        RefusedInput: None is left.
    """
    kept, _, dropped = editor.requests(facts)
    if not kept:
        reasons = "; ".join(list(dropped.values())[:3])
        raise RefusedInput(f"none of {len(facts)} facts can be edited ({reasons or 'there are none'})")
    return kept, dropped


def edit_facts(
    editor: Editor, facts: Sequence[Fact], *, batch: int, method: str, path: Path | None, resume: bool = False,
    keep_base: bool = False, corpus: str | None = None, quiet: bool = False,
) -> Edited:  # fmt: skip
    """Edit facts in batches, in their order, and note down what was done.

    Args:
        editor: A new editor of the unedited model.
        facts: What to edit.
        batch: Facts per batch.
        method: The editor's method, for the patch.
        path: Where the patch is kept; None keeps none.
        resume: Go on with the patch that lies at `path`: its facts must be the first of `facts`.
        keep_base: Store the unedited matrices in the patch too.
        corpus: Hash of the texts C₀ comes from, if they are not the embedded ones; a resumed run must have the same.
        quiet: No progress bar.

    Raises:
        RefusedInput: One batch says two things of one prompt, the stored patch is of other facts, another model or
            other settings, or another run writes to it.
    """
    model = editor.model
    facts, dropped = usable(editor, facts)
    for first in range(0, len(facts), batch):
        check_agreement(facts[first : first + batch])
    asked = [question for fact in facts for question in questions(fact)]
    before = ask(model, asked)
    patch, had_base = None if path is None else Patch.record(editor, method, corpus), False
    if resume:
        patch, had_base = _resumed(path, patch, editor, facts)
    done, rows = 0 if patch is None else len(patch.facts), []
    keeper = contextlib.closing(_Keeper(patch, path, keep_base or had_base, resume and keep_base and not had_base))
    bar = tqdm(total=len(facts), initial=done, unit="fact", disable=quiet, mininterval=1.0, dynamic_ncols=True)
    with keeper as kept, bar:
        while done < len(facts):
            chunk = facts[done : done + batch]
            bar.set_description(f"batch {editor.step + 1}, {method}")
            progress = lambda n, done=done: bar.update(done + n - bar.n)  # noqa: E731
            report = editor.edit(chunk, progress)[0] if patch is None else patch.edit(editor, chunk, progress)
            rows += _layer_rows(report)
            done += len(chunk)
            bar.update(done - bar.n)
            kept.keep()
    editor.finish()
    after = ask(model, asked)
    measured = rows_of(asked, before, before, "before") + rows_of(asked, after, before, "final")
    return Edited(patch, dropped, pd.DataFrame(measured), pd.DataFrame(rows))


class _Keeper:
    """Writes a growing patch, whose file is written whole, in no more than a small share of the run's time."""

    SHARE = 0.05

    def __init__(self, patch: Patch | None, path: Path | None, with_base: bool, base_missing: bool) -> None:
        """Without a patch, nothing is kept; the base may be all that a resumed one lacks."""
        self.patch, self.path, self.with_base, self.base_missing = patch, path, with_base, base_missing
        self.saved, self.due = 0 if patch is None else len(patch), 0.0
        self.left = None if patch is None else _signature(path)

    def keep(self) -> None:
        """Call after every batch: saves unless the last time is too short ago for what it took."""
        if self.patch is not None and time.monotonic() >= self.due:
            self._save()

    def close(self) -> None:
        """Save what is not saved yet, however the run ends."""
        if self.patch is not None and (self.saved < len(self.patch) or self.base_missing):
            self._save()

    def _save(self) -> None:
        if _signature(self.path) != self.left:
            self.patch = None
            raise RefusedInput(
                f"{self.path} was written by another run since this one began; its edits are kept, those of this run "
                "are not: run it again with another --output-path"
            )
        started = time.monotonic()
        self.patch.save(self.path, with_base=self.with_base)
        self.base_missing = False
        self.left = _signature(self.path)
        self.saved, ended = len(self.patch), time.monotonic()
        self.due = ended + (ended - started) / self.SHARE


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is put in place of another; None where there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _layer_rows(report: BatchReport) -> list[dict]:
    return [
        dict(batch=report.step + 1, layer=layer, facts=len(report.facts), converged=report.converged,
             exhausted=len(report.exhausted), **vars(told), seconds=sum(report.seconds.values()))
        for layer, told in report.layers.items()
    ]  # fmt: skip


def _resumed(path: Path, new: Patch, editor: Editor, facts: Sequence[Fact]) -> tuple[Patch, bool]:
    """The stored patch, with its batches repeated by the editor to the same bits, and whether it has its base."""
    stored = Patch.load(path)
    had_base = stored.base is not None
    must_agree = dict(
        fingerprint="model", method="method", settings="settings of the method", corpus="corpus",
        contexts="context prefixes (seed, or languages beyond those of the study)",
    )  # fmt: skip
    for field, what in must_agree.items():
        theirs, mine = getattr(stored.header, field), getattr(new.header, field)
        if theirs != mine:
            differ = f" ({_differences(theirs, mine)})" if field == "settings" else ""
            raise RefusedInput(
                f"{path} was made with other {what} than this run{differ}; use the same options, or another "
                "--output-path"
            )
    if stored.facts != list(facts[: len(stored.facts)]):
        raise RefusedInput(
            f"{path} holds other facts than the first {len(stored.facts)} given; only add new ones behind"
        )
    for t, record in enumerate(stored.header.batches):
        editor.apply(stored.updates(t))
        if stored.hashes(editor.model) != record.after:
            raise RefusedInput(
                f"{path}: batch {t + 1} gives other weights here than where it was made (another processor or thread "
                "count), so the sequence cannot go on exactly; make the patch anew"
            )
        log.info("batch %d of %d facts taken from %s", t + 1, len(record.facts), path)
    stored.base = new.base
    return stored, had_base


def _differences(theirs: BaseModel, mine: BaseModel) -> str:
    """Settings that differ, by name: a default may have changed since a patch was begun."""
    names = [name for name in type(theirs).model_fields if getattr(theirs, name) != getattr(mine, name)]
    return "; ".join(f"{name}: {getattr(theirs, name)} there, {getattr(mine, name)} here" for name in names)


def load_unedited(name: str, patch: Patch, device: str = "auto") -> EditableModel:
    """The base model of a patch, in the precision it was edited in.

    Raises:
        RefusedInput: It has another fingerprint.
    """
    model = load_model(name, device=device, dtype=getattr(torch, patch.header.dtype))
    patch.attach(model)
    return model
