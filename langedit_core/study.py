"""Computing the cells of the study, and going on after a run was stopped.

Batch t leaves two files, the update's factors and its measurements; each appears whole or not at all, so a run killed
anywhere resumes after its last whole batch and ends with the same bytes.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ValidationError
from tqdm import tqdm

from langedit_core.atlas import load_atlas
from langedit_core.contexts import Contexts, sample_contexts
from langedit_core.covariance import cached_covariance, corpus_hash
from langedit_core.datafiles import NotAvailable
from langedit_core.drift import Drift, neutral_texts, paragraph_rows
from langedit_core.editors import (
    BatchReport,
    Clock,
    Editor,
    Update,
    check_updates,
    packed_updates,
    unpacked_updates,
)
from langedit_core.errors import unknown
from langedit_core.keeping import kept
from langedit_core.metrics import ProbeScore, Question, ask, questions, rows_of
from langedit_core.models import EditableModel
from langedit_core.mzsre import load_bzsre, load_mzsre
from langedit_core.own_data import load_own, own_names, own_path, where_own
from langedit_core.records import Fact, FactSet
from langedit_core.results import (
    ENGINE,
    XTREME_COLUMNS,
    Cell,
    CellResult,
    inputs_of,
    is_done,
    is_known,
    load_result,
    record_path,
    results_folder,
    sealed_names,
)
from langedit_core.storage import (
    CorruptFile,
    file_digest,
    load_tensors,
    read_json,
    read_sealed,
    save_tensors,
    write_bytes,
    write_json,
    write_sealed,
)
from langedit_core.tokens import SubjectMerged
from langedit_core.xtreme import evaluate as evaluate_xtreme
from langedit_core.xtreme import fingerprint as xtreme_fingerprint
from langedit_core.xtreme import unpacked

log = logging.getLogger(__name__)

LOADERS = {
    "atlas": lambda langs: load_atlas(langs),
    "mzsre": lambda langs: load_mzsre(langs=langs),
    "bzsre": lambda langs: load_bzsre(),
}


NOT_ASKED: dict[str, list[dict]] = dict(scores=[], answers=[])


def check_data(name: str) -> None:
    """Refuse a name that is neither a data set of the study nor one of one's own (`own_data`).

    Raises:
        ValueError: Lists the known ones, and says where facts of one's own go.
    """
    own = own_path(name)
    if name not in LOADERS and own is None:
        raise ValueError(f"{unknown('data set', name, (*LOADERS, *own_names()))}; {where_own()}")
    if name in LOADERS and own is not None:
        raise ValueError(f"{name!r} is a data set of the study, and {own} has its name; rename that file")


def load_data(name: str, langs: Sequence[str]) -> FactSet:
    """A data set by name.

    Raises:
        ValueError: Unknown name; lists the known ones.
        FileNotFoundError: The data set is not embedded and not there; says what to put where.
    """
    check_data(name)
    langs = tuple(dict.fromkeys(langs))
    return LOADERS[name](langs) if name in LOADERS else load_own(name, langs)


def run_cells(
    cells: Iterable[Cell],
    model: EditableModel,
    root: Path,
    quiet: bool = False,
    *,
    records: Path | None = None,
    until: float = math.inf,
    without: Callable[[NotAvailable], object] | None = None,
) -> list[CellResult]:
    """Compute what is missing, load what is there.

    Args:
        cells: Cells of one model.
        model: That model, unedited.
        root: Results folder.
        quiet: No progress bar.
        records: Folder of records kept from earlier runs; a cell that has one is not computed.
        until: No cell is begun after this moment of `time.monotonic()`; those not reached are left out.
        without: Called where a cell's data are not here, and the cell is left out; None raises.

    Raises:
        NotAvailable: Data are not here; says what to put where.
        ValueError: As `check_inputs`, or a cell was begun with other inputs.
    """
    cells = list(cells)
    missing = [cell for cell in cells if not is_known(cell, root, records)]
    check_inputs([cell for cell in cells if cell not in missing], model, root, records)
    total = sum(cell.edits for cell in missing)
    with tqdm(total=total, unit="fact", disable=quiet or not missing, mininterval=1.0, dynamic_ncols=True) as bar:
        for number, cell in enumerate(missing, 1):
            if time.monotonic() >= until:
                break
            bar.set_description(f"cell {number}/{len(missing)} {cell.method} on {cell.data}")
            try:
                CellRun(cell, model, root, bar).run()
            except NotAvailable as error:
                if without is None:
                    raise
                without(error)
                bar.total -= cell.edits
                bar.refresh()
    return [load_result(cell, root, records) for cell in cells if cell not in missing or is_done(cell, root)]


def check_inputs(cells: Iterable[Cell], model: EditableModel, root: Path, records: Path | None = None) -> None:
    """Refuse finished cells of another model, or of other data than are here now; data that are not here pass.

    Raises:
        ValueError: Names the cell's files, what differs, and what to do.
    """

    @functools.cache
    def data_now(name: str, langs: tuple[str, ...]) -> str | None:
        with contextlib.suppress(NotAvailable):
            return load_data(name, langs).fingerprint

    for cell in cells:
        made = inputs_of(cell, root, records)
        now = dict(model_fingerprint=model.fingerprint, data_fingerprint=data_now(cell.data, cell.langs))
        if changed := [name for name, mine in now.items() if mine is not None and made.get(name) != mine]:
            where = results_folder(cell, root) if is_done(cell, root) else record_path(cell, records)
            raise ValueError(
                f"{where} was made with other inputs ({', '.join(changed)} differ): {cell.model} or {cell.data} is not "
                "what it was; delete it to have it computed again, or put back what it was made with"
            )


def same_edits(cell: Cell) -> list[Cell]:
    """Cells whose batches are those of `cell`, which differs in what is done, or asked, after the last one.

    XTREME is asked at the end, so it may be added to edits that are made; PRUNE's sequence is MEMIT's until it ends.
    """
    found = [cell]
    if cell.settings.damping is not None:
        undamped = cell.settings.model_copy(update=dict(damping=None, damping_base=math.e))
        found.append(cell.model_copy(update=dict(method="memit", settings=undamped)))
    unasked = [one.model_copy(update=dict(xtreme=0, xtreme_langs=None)) for one in found]
    return [one for one in dict.fromkeys([*found, *unasked]) if one != cell]


class CellRun:
    """One cell being computed or resumed."""

    def __init__(self, cell: Cell, model: EditableModel, root: Path, bar: tqdm | None = None) -> None:
        self.cell, self.model, self.folder = cell, model, results_folder(cell, root)
        self.bar = bar or tqdm(disable=True)
        if model.name != cell.model:
            raise ValueError(f"the cell is about {cell.model}, the model given is {model.name}")
        model.check_unedited("results of a cell")
        model.check_layers(cell.settings.layers)

    def run(self) -> None:
        cell, model = self.cell, self.model
        data = load_data(cell.data, cell.langs)
        corpus = [text for lang in self._langs for text in data.corpus[lang][: cell.corpus_limit]]
        contexts = self._contexts()
        batches, dropped = self._batches(data, contexts)
        self._describe(data, corpus, batches)
        write_json(self.folder / "environment.json", environment(model))
        asked = [[q for fact in batch for q in questions(fact)] for batch in batches]
        before = self._before(asked)
        drift = self._drift()
        undrifted = paragraph_rows(drift.paragraphs(model), "before") if drift else []
        unedited = self._xtreme_before()
        self._take_over()
        with model.restored(cell.settings.layers):
            # C₀ is no variable here: what the method does not need of it is freed once the editor is made.
            layers = cell.settings.layers if cell.settings.needs_covariance else ()
            editor = Editor(model, cell.settings, cached_covariance(model, layers, corpus), contexts)
            resuming = True
            for t, batch in enumerate(batches):
                # Whole batches are taken as they are; from the first gap on everything is computed again.
                if resuming and (updates := self._stored(t)) is not None:
                    editor.apply(updates)
                    self.bar.update(len(batch))
                    continue
                resuming, start = False, self.bar.n
                self.bar.set_postfix_str(f"batch {t + 1}/{cell.batches} {cell.langs[t % len(cell.langs)]}")
                report, updates = editor.edit(
                    batch, progress=lambda n, start=start: self.bar.update(start + n - self.bar.n)
                )
                self._store(t, report, updates, asked, before, drift)
            editor.finish()
            flat = [q for part in asked for q in part]
            old = [s for part in before for s in part]
            after = ask(model, flat)
            drifted = paragraph_rows(drift.paragraphs(model), "final") if drift else []
            answered = self._xtreme("final")
        rows = rows_of(flat, old, old, "before") + rows_of(flat, after, old, "final") + undrifted + drifted
        final = {"rows": rows, "xtreme": unedited["scores"] + answered["scores"]}
        if cell.xtreme:
            final["xtreme_answers"] = unedited["answers"] + answered["answers"]
        write_json(self.folder / "final.json", final)
        files = {name: file_digest(self.folder / name) for name in sealed_names(cell)}
        write_json(self.folder / "done.json", {"dropped": dropped, "files": files})

    def _take_over(self) -> None:
        """Batches of a finished cell that edited alike are taken as they are."""
        for twin in same_edits(self.cell):
            if not is_done(twin, self.folder.parent):
                continue
            theirs, mine = inputs_of(twin, self.folder.parent), read_json(self.folder / "inputs.json")
            if any(theirs.get(name) != mine[name] for name in mine if name not in ("cell", "xtreme_sha256")):
                continue
            for path in sorted(results_folder(twin, self.folder.parent).glob("batch-*")):
                if not (self.folder / path.name).exists():
                    write_bytes(self.folder / path.name, path.read_bytes())
            return

    def _contexts(self) -> Contexts:
        cell, path = self.cell, self.folder / "contexts.json"
        try:
            return Contexts.model_validate(read_sealed(path))
        except FileNotFoundError:
            pass
        except (CorruptFile, ValidationError) as error:
            log.warning("context prefixes are sampled again: %s: %s", path, error)
        made = sample_contexts(
            self.model, self._langs, per_language=cell.prefixes, length=cell.prefix_tokens, seed=cell.seed
        )
        write_sealed(path, made.model_dump(mode="json"))
        return made

    def _batches(self, data: FactSet, contexts: Contexts) -> tuple[list[list[Fact]], dict[str, str]]:
        """Facts in editing order; those whose subject has no token boundary are passed over, and counted."""
        cell = self.cell
        per_language, dropped = cell.batch * cell.rounds, {}

        def usable(fact: Fact) -> bool:
            try:
                contexts.rows(self.model, fact.prompt, fact.subject, fact.lang)
            except SubjectMerged as error:
                dropped[fact.label] = str(error)
                return False
            return True

        drawn = data.select(
            cell.langs,
            per_language,
            split=cell.split,
            seed=cell.seed,
            parallel=cell.parallel,
            usable=usable,
            deal=cell.deal,
        )
        order = [facts[r * cell.batch : (r + 1) * cell.batch] for r in range(cell.rounds) for facts in drawn]
        return order, dropped

    def _describe(self, data: FactSet, corpus: Sequence[str], batches: Sequence[Sequence[Fact]]) -> None:
        inputs = dict(
            cell=self.cell.model_dump(mode="json"),
            engine=ENGINE,
            model_fingerprint=self.model.fingerprint,
            data_fingerprint=data.fingerprint,
            corpus_sha256=corpus_hash(corpus),
            corpus_sentences=len(corpus),
            facts=[[fact.id for fact in batch] for batch in batches],
        )
        if self.cell.xtreme:
            inputs["xtreme_sha256"] = self._xtreme_asked
        path = self.folder / "inputs.json"
        if path.is_file() and (old := read_json(path)) != (new := json.loads(json.dumps(inputs))):
            changed = [key for key in new if not isinstance(old, dict) or old.get(key) != new[key]]
            raise ValueError(
                f"{self.folder} was begun with other inputs ({', '.join(changed)} differ); "
                "delete that folder, or put the model and data back as they were"
            )
        write_json(path, inputs)

    def _before(self, asked: Sequence[Sequence[Question]]) -> list[list[ProbeScore]]:
        """The unedited model's answers; shared by all methods through a file beside the cells."""
        flat = [q for part in asked for q in part]

        def make() -> list[dict]:
            self.bar.set_postfix_str("asking the unedited model")
            return [asdict(score) for score in ask(self.model, flat)]

        def read(content: object) -> list[ProbeScore]:
            if len(content) != len(flat):
                raise CorruptFile(f"{len(content)} answers to {len(flat)} questions")
            return [ProbeScore(**{**score, "predicted": tuple(score["predicted"])}) for score in content]

        scores = self._shared("before", dict(asked=[(q.prompt, q.answer) for q in flat]), make, read)
        split, start = [], 0
        for part in asked:
            split.append(scores[start : start + len(part)])
            start += len(part)
        return split

    def _xtreme_before(self) -> dict[str, list[dict]]:
        """XTREME on the unedited model; shared by all cells that ask for the same through a file beside them."""
        cell = self.cell
        if not cell.xtreme:
            return NOT_ASKED

        def read(found: dict) -> dict:
            if not isinstance(found, dict) or any(set(row) != set(XTREME_COLUMNS) for row in found["scores"]):
                raise CorruptFile("no rows of XTREME scores")
            unpacked(found["answers"])
            return found

        key = dict(asked=self._xtreme_asked, langs=cell.asked_in)
        return self._shared("xtreme", key, lambda: self._xtreme("before"), read)

    @functools.cached_property
    def _xtreme_asked(self) -> str:
        return xtreme_fingerprint(self.cell.asked_in, self.cell.xtreme)

    @property
    def _langs(self) -> tuple[str, ...]:
        """The cell's languages, each once."""
        return tuple(dict.fromkeys(self.cell.langs))

    def _shared(self, what: str, key: dict, make: Callable[[], object], read: Callable[[object], object]):
        """`kept` beside the cells, of the unedited model."""
        key = dict(engine=ENGINE, model=self.model.fingerprint) | key
        return kept(self.folder.parent, what, key, make, read)

    def _xtreme(self, when: str) -> dict[str, list[dict]]:
        """XTREME on the model as it is now: scores, and answers to each record; n/a has no value, JSON has no NaN."""
        cell = self.cell
        if not cell.xtreme:
            return NOT_ASKED
        self.bar.set_postfix_str(f"XTREME, {when}")
        report = evaluate_xtreme(self.model, langs=cell.asked_in, limit=cell.xtreme)
        seconds = report.sets.set_index(["task", "lang"])["seconds"]
        rows = [
            row | dict(when=when, seconds=float(seconds.get((row["task"], row["lang"]), math.nan)))
            for row in report.summary.to_dict("records")
        ]
        scores = [
            {name: None if isinstance(row[name], float) and math.isnan(row[name]) else row[name]
             for name in XTREME_COLUMNS}
            for row in rows
        ]  # fmt: skip
        return dict(scores=scores, answers=[dict(when=when) | part for part in report.packed()])

    def _drift(self) -> Drift | None:
        """The unedited model on neutral text, in the cell's languages that have some; shared through a file."""
        langs = [lang for lang in self._langs if lang in neutral_texts()]
        if not langs:
            return None
        read = json.dumps([ENGINE, self.model.fingerprint, {lang: neutral_texts()[lang] for lang in langs}])
        path = self.folder.parent / f"drift-{hashlib.sha256(read.encode()).hexdigest()[:24]}.safetensors"
        try:
            return Drift.load(path, self.model)
        except (FileNotFoundError, CorruptFile, ValueError) as error:
            if not isinstance(error, FileNotFoundError):
                log.warning("the unedited model reads the neutral texts again: %s", error)
        made = Drift.of(self.model, langs)
        made.save(path)
        return made

    def _stored(self, t: int) -> dict[int, Update] | None:
        stem = self.folder / f"batch-{t:03d}"
        try:
            tensors, metadata = load_tensors(stem.with_suffix(".safetensors"))
            if metadata.get("measured") != file_digest(stem.with_suffix(".json")):
                raise CorruptFile(f"{stem.with_suffix('.json')} is not the file its factors belong to")
            read_json(stem.with_suffix(".time.json"))
            return self._updates(tensors)
        except FileNotFoundError:
            return None
        except (CorruptFile, KeyError, TypeError, ValueError, IsADirectoryError) as error:
            log.warning("batch %d is computed again: %s: %s", t, stem.with_suffix(".safetensors"), error)
            return None

    def _updates(self, tensors: dict[str, torch.Tensor]) -> dict[int, Update]:
        """The updates of a batch from its file; what the model cannot take is an error before anything is added."""
        found = unpacked_updates(tensors, self.cell.settings.layers)
        updates = {layer: update.to(self.model.weight(layer).device) for layer, update in found.items()}
        check_updates(self.model, updates, self.cell.settings)
        return updates

    def _store(
        self, t: int, report: BatchReport, updates: dict[int, Update],
        asked: Sequence[Sequence[Question]], before: Sequence[Sequence[ProbeScore]], drift: Drift | None,
    ) -> None:  # fmt: skip
        """Measure and write one batch; the factors come last, since they mark it as whole."""
        stem = self.folder / f"batch-{t:03d}"
        seconds, processor = dict(report.seconds), dict(report.processor)
        with Clock(seconds, processor)("measuring"):
            scores = ask(self.model, asked[t])
            edits = [(s, q) for s in range(t + 1) for q in self._tracked(asked[s], whole=s == t)]
            again = ask(self.model, [q for _, q in edits])
            drifted = paragraph_rows(drift.paragraphs(self.model), "immediate") if drift else []
        write_json(
            stem.with_suffix(".json"),
            {
                "report": report.without_timings(),
                "rows": rows_of(asked[t], scores, before[t], "immediate"),
                "drift": drifted,
                "retention": [
                    dict(fact=q.fact, lang=q.lang, edited=s, step=t, tf=score.tf)
                    for (s, q), score in zip(edits, again, strict=True)
                ],
            },
        )
        write_json(stem.with_suffix(".time.json"), seconds | {"processor": processor})
        measured = file_digest(stem.with_suffix(".json"))
        save_tensors(stem.with_suffix(".safetensors"), packed_updates(updates), {"measured": measured})

    def _tracked(self, asked: Sequence[Question], whole: bool) -> list[Question]:
        """The edit prompts of a batch that are asked again after later ones: all, or the first few facts drawn."""
        edits = [q for q in asked if q.family == "efficacy"]
        return edits if whole else edits[: self.cell.track]


def environment(model: EditableModel) -> dict:
    """Where a run was made: versions, device, precision, threads. Not part of a result's bytes."""
    packages = ("langedit-core", "torch", "transformers", "tokenizers", "numpy")
    return model.provenance | dict(
        versions={name: importlib.metadata.version(name) for name in packages},
        python=platform.python_version(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
    )
