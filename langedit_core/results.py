"""What a cell of the study is, and what it leaves: files beside the results, and one small record to keep for good.

A cell's settings hash to its directory. A record is the cell's measurements without the updates' factors, in one
compressed file with its checksum: enough for every figure and table, where the cell itself is not computed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from langedit_core.editors import EditSettings
from langedit_core.languages import CORE
from langedit_core.metrics import WHEN
from langedit_core.records import Deal
from langedit_core.storage import CorruptFile, file_digest, read_json, read_sealed, write_sealed
from langedit_core.xtreme import unpacked

log = logging.getLogger(__name__)

ENGINE = 2
"""Raised whenever the same settings would give other numbers; part of every cell's hash."""

XTREME_COLUMNS = ("task", "lang", "metric", "when", "value", "n", "low", "high", "seconds")


class Cell(BaseModel):
    """One run: a sequence of batches, one language each, by one method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    data: str
    method: str
    settings: EditSettings
    langs: tuple[str, ...] = CORE
    rounds: int = Field(1, ge=1, description="how often the sequence of languages is gone through")
    batch: int = Field(10, ge=1, description="facts per batch")
    parallel: bool = Field(False, description="the same facts in every language, or different ones")
    deal: Deal = Field(
        "rounds",
        exclude_if=lambda deal: deal == "rounds",  # came later: what was computed before keeps its hash
        description="how different facts are dealt to the batches (`FactSet.select`)",
    )
    split: str = "edit"
    prefixes: int = Field(2, ge=0, description="context prefixes per language")
    prefix_tokens: int = Field(8, ge=1)
    corpus_limit: int | None = Field(None, ge=1, description="sentences per language for C₀; None takes all")
    track: int | None = Field(None, ge=1, description="facts per batch asked again after each later one; None: all")
    xtreme: int = Field(0, ge=0, description="records per XTREME task and language, before and after; 0: none")
    xtreme_langs: tuple[str, ...] | None = Field(
        None,
        exclude_if=lambda langs: langs is None,  # came later: what was computed before keeps its hash
        description="languages XTREME is asked in; None: those that are edited",
    )
    seed: int = 0

    @property
    def hash(self) -> str:
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(f"{ENGINE}|{text}".encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        return f"{self.method} on {self.data}, {self.model}, seed {self.seed}"

    @property
    def asked_in(self) -> tuple[str, ...]:
        """Languages of its XTREME prompts, each once."""
        return tuple(dict.fromkeys(self.xtreme_langs or self.langs))

    @property
    def batches(self) -> int:
        return len(self.langs) * self.rounds

    @property
    def edits(self) -> int:
        return self.batches * self.batch

    @property
    def slug(self) -> str:
        """The name of everything this cell leaves."""
        return f"{self.data}-{self.method}-{self.hash}"


class CellResult:
    """What a finished cell measured.

    Attributes:
        rows: One row per probe, metric and moment: fact, lang, kind, metric, when, value. Of neutral text the fact is
            the paragraph, and its translations are no further ones.
        retention: One row per tracked fact and batch since its own: fact, lang, edited, step, tf.
        drift: One row per neutral paragraph, metric and batch: fact (the paragraph's name), lang, metric, step, value.
        xtreme: One row per task, language, metric and moment: value, n, low, high, seconds; empty if not asked for.
        answers: XTREME per record: when, task, lang, record, metric, value; empty if not asked for, and in cells that
            were computed before these were kept.
        batches: One row per batch and layer: rank, capacity, relative_update and so on.
        seconds: One row per batch and phase, the clock's and the processor's (NaN where those were not taken); timings
            are kept apart since they differ from run to run.
        environment: Versions, device, threads of the machine it was computed on.
    """

    def __init__(self, cell: Cell, parts: dict) -> None:
        self.cell = cell
        self.dropped: dict[str, str] = parts["done"]["dropped"]
        self.provenance: dict = parts["inputs"]
        self.environment: dict = parts["environment"]
        measured, final = parts["batches"], parts["final"]
        rows = pd.DataFrame([row for part in (*measured, final) for row in part["rows"]])
        self.rows = rows.sort_values("when", key=lambda when: when.map(list(WHEN).index), kind="stable")
        self.retention = pd.DataFrame([row for part in measured for row in part["retention"]])
        self.drift = pd.DataFrame([row | {"step": t} for t, part in enumerate(measured) for row in part["drift"]])
        self.xtreme = pd.DataFrame(final["xtreme"], columns=list(XTREME_COLUMNS))
        self.xtreme = self.xtreme.astype(dict.fromkeys(("value", "low", "high", "seconds"), float))  # null: NaN
        self._answers = final.get("xtreme_answers", [])
        self.batches = pd.DataFrame(
            dict(step=t, lang=cell.langs[t % len(cell.langs)], layer=int(layer), facts=len(part["report"]["facts"]),
                 steps=sum(part["report"]["steps"]) / max(1, len(part["report"]["steps"])),
                 converged=part["report"]["converged"], exhausted=len(part["report"]["exhausted"]), **numbers)
            for t, part in enumerate(measured)
            for layer, numbers in part["report"]["layers"].items()
        )  # fmt: skip
        self.batches["written"] = self.batches["written"].astype(float)  # null, and so NaN, for trained updates
        self.seconds = pd.DataFrame(
            dict(step=t, phase=phase, seconds=seconds, processor=phases.get("processor", {}).get(phase, math.nan))
            for t, phases in enumerate(parts["seconds"])
            for phase, seconds in phases.items()
            if phase != "processor"
        )

    @functools.cached_property
    def answers(self) -> pd.DataFrame:
        parts = [unpacked([one]).assign(when=one["when"]) for one in self._answers]
        return pd.concat(parts, ignore_index=True) if parts else unpacked([]).assign(when=[])

    def answers_at(self, when: str) -> pd.DataFrame:
        """Rows of `answers` of one moment, as `xtreme_metrics.differences` takes them."""
        return self.answers[self.answers["when"] == when].drop(columns="when")


def results_folder(cell: Cell, root: Path) -> Path:
    return root / cell.slug


def record_path(cell: Cell, records: Path) -> Path:
    return records / f"{cell.slug}.json.xz"


def sealed_names(cell: Cell) -> list[str]:
    """Files whose bytes are the result; timings differ from run to run and are not among them."""
    batches = [f"batch-{t:03d}{suffix}" for t in range(cell.batches) for suffix in (".json", ".safetensors")]
    return ["contexts.json", "inputs.json", "final.json", *batches]


def timing_names(cell: Cell) -> list[str]:
    """Files that differ from run to run; they have no checksum, and have to be whole all the same."""
    return ["environment.json", *(f"batch-{t:03d}.time.json" for t in range(cell.batches))]


def is_done(cell: Cell, root: Path) -> bool:
    """Whether the cell's results are complete, unaltered, and those of this very cell."""
    folder = results_folder(cell, root)
    try:
        sealed = read_json(folder / "done.json")["files"]
        if any(file_digest(folder / name) != sealed.get(name) for name in sealed_names(cell)):
            return False
        for name in timing_names(cell):
            read_json(folder / name)
        _check_owner(cell, read_json(folder / "inputs.json"))
        return True
    except FileNotFoundError:
        return False
    except (CorruptFile, KeyError, TypeError, AttributeError, OSError) as error:
        log.warning("%s is computed again where needed: %r", cell.label, error)
        return False


def has_record(cell: Cell, records: Path | None) -> bool:
    """Whether a whole record of the cell lies in `records`; a damaged one is passed over with a warning."""
    if records is None:
        return False
    try:
        content = read_sealed(record_path(cell, records))
        _check_owner(cell, content["inputs"])
        if CellResult(cell, content).rows[["fact", "lang", "metric", "when"]].isna().any(axis=None):
            raise CorruptFile("it has rows that do not say which fact, language, metric or moment they are about")
        return content["inputs"]["engine"] == ENGINE
    except FileNotFoundError:
        return False
    except (CorruptFile, KeyError, TypeError, ValueError, AttributeError) as error:
        log.warning("the record of %s is not used: %r", cell.label, error)
        return False


def _check_owner(cell: Cell, inputs: dict) -> None:
    """A file says in itself whose it is; its name, which anybody may change, does not count."""
    if inputs["cell"] != cell.model_dump(mode="json"):
        raise CorruptFile(f"what lies there belongs to another cell than {cell.slug}; delete it")


def is_known(cell: Cell, root: Path, records: Path | None = None) -> bool:
    """Whether `load_result` has something to load."""
    return is_done(cell, root) or has_record(cell, records)


def load_result(cell: Cell, root: Path, records: Path | None = None) -> CellResult:
    """Results of a finished cell: computed here, or else its record.

    Raises:
        FileNotFoundError: It was not run to its end, and there is no record.
    """
    folder = results_folder(cell, root)
    if is_done(cell, root):
        return CellResult(cell, _parts(cell, folder))
    if has_record(cell, records):
        return CellResult(cell, read_sealed(record_path(cell, records)))
    raise FileNotFoundError(f"{cell.label} is not finished ({folder}); run it with `langedit run` or run_cells()")


def inputs_of(cell: Cell, root: Path, records: Path | None = None) -> dict:
    """What a finished cell was made of: model, data and corpus by their fingerprints, and the facts of each batch.

    Raises:
        FileNotFoundError: As `load_result`.
    """
    if is_done(cell, root):
        return read_json(results_folder(cell, root) / "inputs.json")
    if has_record(cell, records):
        return read_sealed(record_path(cell, records))["inputs"]
    raise FileNotFoundError(f"{cell.label} is not finished ({results_folder(cell, root)})")


def keep_record(cell: Cell, root: Path, records: Path) -> Path | None:
    """Write the record of a finished cell, unless it is there already or the cell is not finished."""
    if has_record(cell, records) or not is_done(cell, root):
        return None
    path = record_path(cell, records)
    write_sealed(path, _parts(cell, results_folder(cell, root)))
    return path


def _parts(cell: Cell, folder: Path) -> dict:
    """Everything measured, from the files of a finished cell."""
    batches = [folder / f"batch-{t:03d}.json" for t in range(cell.batches)]
    return dict(
        done=read_json(folder / "done.json"),
        inputs=read_json(folder / "inputs.json"),
        environment=read_json(folder / "environment.json"),
        batches=[read_json(path) for path in batches],
        seconds=[read_json(path.with_suffix(".time.json")) for path in batches],
        final=read_json(folder / "final.json"),
    )
