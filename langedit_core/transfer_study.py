"""The transfer study's parts, each from its record where there is one: controlled models, a real model, sequences.

A controlled model is known by what it was told and how it was trained, so its record is read without the model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from langedit_core.atlas import load_atlas
from langedit_core.atlas_corpus import AtlasCorpus
from langedit_core.atlas_lm import LmSettings
from langedit_core.atlas_variants import VARIANTS, role_of
from langedit_core.editors import EditSettings
from langedit_core.errors import unknown
from langedit_core.keeping import kept
from langedit_core.languages import CORE
from langedit_core.models import EditableModel, load_model
from langedit_core.profiles import Profile, hyperparameters, load_profile
from langedit_core.records import FactSet, digest
from langedit_core.results import Cell, is_done
from langedit_core.study import load_data, run_cells
from langedit_core.transfer import COLUMNS, ENGINE, TransferSettings, sequence_transfer, transfer

SMALL = "atlas-lm"
DIGITS = 5
"""Significant digits of a margin in a record."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """Frames by name, and a sentence for everything that is not there."""

    frames: dict[str, pd.DataFrame] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)


def variants(
    names: Sequence[str], settings: TransferSettings, *, method: str = "langedit", results: str | Path,
    records: str | Path | None = None, quiet: bool = False,
) -> Found:  # fmt: skip
    """Transfer in controlled models, on facts that each was told.

    Args:
        names: Of `VARIANTS`. `atlas-lm` is in the package; another one is read from `results`/NAME/model, where
            scripts/train_atlas_lm.py puts it.
        settings: What is edited and asked. The same facts for all: those that the bridged model was told in all
            languages, which the models told apart were told in one.
        method: Editing method, with atlas-lm's hyper-parameters.
        results: Folder of models and of what a stopped run already did.
        records: Folder in which finished ones are kept.
        quiet: No progress bar.

    Raises:
        ValueError: Unknown variant.
    """
    found = Found()
    for name in names:
        if name not in VARIANTS:
            raise unknown("variant of atlas-lm", name, VARIANTS)
        corpus = AtlasCorpus(VARIANTS[name])
        data, editing = load_atlas(CORE, corpus.subjects), hyperparameters(SMALL, method)
        among = [fact for fact in data.facts if role_of(fact) == "told"]

        def made(name: str = name, data: FactSet = data, editing: EditSettings = editing, among: list = among) -> dict:
            model = load_model(SMALL if name == SMALL else _trained(name, results), device="cpu")
            frame = transfer(model, data, editing, settings, among=among, results=results, quiet=quiet)
            return _packed(frame)

        key = _key(settings, editing, data) | dict(told=corpus.fingerprint, trained=LmSettings().model_dump())
        try:
            columns = kept(_under(records), f"variant-{name}", key, made)
        except FileNotFoundError as error:
            found.absent.append(str(error))
            continue
        frame = pd.DataFrame(columns, columns=list(COLUMNS))
        told = {(fact, lang) for fact in frame["fact"].unique() for lang in CORE if corpus.tells(fact, lang)}
        found.frames[name] = frame.assign(
            **{f"{end}_told": [pair in told for pair in zip(frame["fact"], frame[end], strict=True)]
               for end in ("source", "lang")}
        )  # fmt: skip
    return found


def _trained(name: str, results: str | Path) -> Path:
    folder = Path(results) / name / "model"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{name} was not trained: `python scripts/train_atlas_lm.py --variant {name}` takes some 11 minutes of "
            "one core"
        )
    return folder


def real(
    model: EditableModel, names: str, settings: TransferSettings, *, facts: dict[str, int], method: str = "langedit",
    results: str | Path, records: str | Path | None = None, quiet: bool = False,
) -> Found:  # fmt: skip
    """Transfer in a real model, per data set.

    Args:
        model: Unedited.
        names: Data sets, separated by spaces; one whose file is not there is passed over with a sentence.
        settings: What is edited and asked.
        facts: Data set to facts per relation, where not `settings.facts`.
        method: Editing method, with the model's hyper-parameters.
        results: Folder of what a stopped run already did.
        records: Folder in which finished ones are kept.
        quiet: No progress bar.
    """
    found = Found()
    for name in names.split():
        try:
            data = load_data(name, settings.langs)
        except FileNotFoundError as error:
            found.absent.append(f"{name} is not there: {error}")
            continue
        chosen = settings.model_copy(update=dict(facts=facts.get(name, settings.facts)))
        editing = hyperparameters(model.name, method)
        key = _key(chosen, editing, data) | dict(model=model.fingerprint)

        def made(data: FactSet = data, editing: EditSettings = editing, chosen: TransferSettings = chosen) -> dict:
            return _packed(transfer(model, data, editing, chosen, results=results, quiet=quiet))

        columns = kept(_under(records), f"single-{name}", key, made)
        found.frames[name] = pd.DataFrame(columns, columns=list(COLUMNS))
    return found


def sequences(
    profile: str | Profile, group: str, model: EditableModel, *, per_language: int | None = None,
    results: str | Path, records: str | Path | None = None, compute: bool = True, quiet: bool = False,
) -> Found:  # fmt: skip
    """Transfer after whole sequences, one cell each; a cell's frame is called by its method, and its order if odd.

    Args:
        profile: Its grid `group` names the cells, each fact edited in one language.
        group: Of the profile.
        model: Unedited; another one than the profile's edits by its own hyper-parameters.
        per_language: Facts of every edited language that are asked; None: all.
        results: Folder of the cells.
        records: Folder in which finished frames are kept.
        compute: Compute cells that are missing; otherwise they are passed over with a sentence.
        quiet: No progress bar.

    Raises:
        ValueError: Two cells of the group would be called the same.
    """
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    found, root, unedited = Found(), Path(results), {}
    cells = profile.cells(group, model.name)
    if twice := [name for name, n in Counter(map(label, cells)).items() if n > 1]:
        raise ValueError(
            f"several cells of {group!r} in profile {profile.name!r} are called {', '.join(twice)}; they may differ in "
            "method and first language only"
        )
    skipped: dict[str, list[str]] = {}
    for cell in cells:
        data = load_data(cell.data, CORE)
        key = dict(
            engine=ENGINE, cell=cell.slug, data=data.fingerprint, model=model.fingerprint,
            per_language=per_language, spared=True,
        )  # fmt: skip

        def made(cell: Cell = cell, data: FactSet = data) -> dict:
            if not compute and not is_done(cell, root):
                raise _Skipped
            (result,) = run_cells([cell], model, root, quiet)
            frame = sequence_transfer(result, model, data, root, per_language=per_language, unedited=unedited)
            return _packed(frame)

        try:
            found.frames[label(cell)] = pd.DataFrame(kept(_under(records), f"sequence-{cell.method}", key, made))
        except _Skipped:
            skipped.setdefault(cell.data, []).append(label(cell))
        except FileNotFoundError as error:
            found.absent.append(str(error))
    for name, labels in skipped.items():
        were = "was" if len(labels) == 1 else "were"
        found.absent.append(f"{model.name}: {', '.join(labels)} on {name} {were} not computed")
    return found


class _Skipped(Exception):
    """A cell is missing, and none is to be computed."""


def label(cell: Cell) -> str:
    """The method, and the first language where a sequence does not begin with the first one of the study."""
    return cell.method if cell.langs[0] == CORE[0] else f"{cell.method}, {cell.langs[0]} first"


def _key(settings: TransferSettings, editing: EditSettings, data: FactSet) -> dict:
    return dict(
        engine=ENGINE,
        settings=settings.model_dump(mode="json"),
        editing=editing.model_dump(mode="json"),
        data=digest(data.fingerprint),
    )


def _under(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder) / "transfer"


def _packed(frame: pd.DataFrame) -> dict[str, list]:
    """Columns of plain values; a margin has the digits that noise would not change."""
    return {name: [_short(x) for x in column] for name, column in frame.to_dict("list").items()}


def _short(value: object) -> object:
    if not isinstance(value, float):
        return value
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
