"""Edits as artefacts: a sequence of edits that is stored, applied, removed from its end, merged and exported.

W_n = W_0 + Δ_1 + … + Δ_n, added in that order. Floating-point sums cannot be undone by subtraction, so a suffix is
removed by going back to W_0 and adding the kept prefix again; hashes of every matrix after every batch say whether
the bits are those of the day they were made.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from langedit_core.compaction import compact, factored
from langedit_core.editors import FACTORS, METHODS, BatchReport, Editor, Update, written
from langedit_core.errors import RefusedInput, unknown
from langedit_core.models import EditableModel, check_model
from langedit_core.patch_files import BatchRecord, Factors, Merged, PatchHeader, read_patch, write_patch
from langedit_core.records import Fact
from langedit_core.storage import digest


@dataclass
class Patch:
    """A sequence of edits of one model.

    ```python
    editor = prepare_editor(model, "langedit")
    patch = Patch.record(editor, "langedit")   # before the first edit
    report = patch.edit(editor, facts)         # as editor.edit, and noted down
    patch.save("capitals.safetensors")

    patch = Patch.load("capitals.safetensors")
    patch.apply(model)                         # model: unedited, the same one
    patch.remove(model, last=1)                # the weights of before the last batch, bit for bit
    ```

    Attributes:
        header: Model, settings, facts and reports.
        factors: Per batch and layer, what was added.
        base: The edited matrices of the unedited model, which `remove` and `merge` need; taken over by `record` and
            `apply`, read with a patch that was saved with them, given by `attach`.
    """

    header: PatchHeader
    factors: list[dict[int, Factors]] = field(default_factory=list)
    base: dict[int, Tensor] | None = None
    _seen: list[dict[int, str]] | None = None  # hashes after each batch as `apply` got them here

    @classmethod
    def record(cls, editor: Editor, method: str, corpus: str | None = None) -> Patch:
        """An empty patch of the editor's model.

        Args:
            editor: A new editor.
            method: The name of its settings.
            corpus: Hash of the texts of C₀ where they are not the embedded ones.

        Raises:
            ValueError: The editor has edited already, or ends its sequence with something that is no sum of updates; an
                unknown method, or one with another space.
        """
        model, settings = editor.model, editor.settings
        check_recordable(method, settings.damping)
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        if (space := METHODS[method]["space"]) != settings.space:
            raise ValueError(
                f"{method} edits in the space {space!r}, this editor in {settings.space!r}; name the editor's method"
            )
        if editor.step:
            raise ValueError(f"the editor has done {editor.step} batches; a patch begins before the first one")
        weights = _weights(model, settings.layers)
        return cls(
            PatchHeader(
                model=_public_name(model.name), model_type=model.hf.config.model_type, fingerprint=_fingerprint(model),
                dtype=str(weights[settings.layers[0]].dtype).removeprefix("torch."), d_out=model.d_model,
                d_in=model.d_ff, method=method, settings=settings, contexts=editor.contexts,
                corpus=corpus, base=_hashes(weights),
            ),
            base=_copies(weights),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.factors)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.header.settings.layers

    @property
    def facts(self) -> list[Fact]:
        """All facts, in the order in which they were edited."""
        return [fact for batch in self.header.batches for fact in batch.facts]

    def edit(self, editor: Editor, facts: Iterable[Fact], progress: Callable[[int], None] | None = None) -> BatchReport:
        """`editor.edit`, with the batch appended.

        Raises:
            ValueError: The editor is not where the patch ends; nothing was begun. Otherwise as `editor.edit`.
        """
        self._check_step(editor, len(self))
        facts = list(facts)
        report, updates = editor.edit(facts, progress)
        self.append(editor, facts, report, updates)
        return report

    def append(self, editor: Editor, facts: Sequence[Fact], report: BatchReport, updates: Mapping[int, Update]) -> None:
        """Note down a batch right after it was edited.

        Raises:
            ValueError: The editor is not as many batches further than the patch.
        """
        self._check_step(editor, len(self) + 1)
        kept, _, _ = editor.requests(facts)
        told = report.without_timings()
        told = json.loads(json.dumps(told))  # as it will be read back: keys are texts
        record = BatchRecord(facts=tuple(kept), report=told, after=_hashes(_weights(editor.model, self.layers)))
        self.header = self.header.model_copy(update=dict(batches=(*self.header.batches, record)))
        self.factors.append({layer: Factors.of(update) for layer, update in updates.items()})
        if self._seen is not None:
            self._seen.append(dict(record.after))

    def prefix(self, batches: int) -> Patch:
        """The first so many batches, as a patch of its own."""
        if not 0 <= batches <= len(self):
            raise ValueError(f"{batches} batches of a patch that holds {len(self)}")
        header = self.header.model_copy(update=dict(batches=self.header.batches[:batches]))
        return Patch(header, self.factors[:batches], self.base, self._seen and self._seen[:batches])

    def updates(self, batch: int) -> dict[int, Update]:
        """A batch as `Editor.apply` takes it, to go on with the sequence."""
        return {layer: one.update() for layer, one in self.factors[batch].items()}

    def save(self, path: str | Path, *, with_base: bool = False) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: The file.
            with_base: Store the unedited matrices too, so that edits can be removed without the base model.
        """
        if with_base:
            self._need_base("saving with the base matrices")
        write_patch(Path(path), self.header, self.factors, self.base if with_base else None)

    @classmethod
    def load(cls, path: str | Path) -> Patch:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: Nothing there.
            CorruptFile: Truncated or altered.
            RefusedInput: No patch, or one whose content does not fit together.
        """
        header, factors, base = read_patch(Path(path))
        patch = cls(header, factors)
        if base is not None:
            patch._take(base)
        return patch

    # --- on a model ---------------------------------------------------------------------------------------------------

    def attach(self, model: EditableModel) -> None:
        """Take copies of the matrices to be edited from the unedited model.

        Raises:
            RefusedInput: Another model, or this one edited.
        """
        check_model(model)
        self._check_unedited(model)
        model.fingerprint  # noqa: B018 — taken before anything is written, so that it can tell an edited model
        self.base = _copies(_weights(model, self.layers))

    def position(self, model: EditableModel) -> int | None:
        """How many batches of this patch the model's matrices hold; None if they are in no state of it.

        A batch of exhausted facts changes nothing: then it is held as well as not, and counted.
        """
        if max(self.layers) >= model.n_layers:
            return None
        found = self.hashes(model)
        states = [self.header.base, *(self._seen or self._recorded)]
        return max((t for t, state in enumerate(states) if state == found), default=None)

    def hashes(self, model: EditableModel) -> dict[int, str]:
        """SHA-256 of each matrix this patch edits, as `model` has it now; see `BatchRecord.after`."""
        return _hashes(_weights(model, self.layers))

    @property
    def _recorded(self) -> list[dict[int, str]]:
        return [batch.after for batch in self.header.batches]

    def apply(self, model: EditableModel, *, exact: bool = False) -> bool:
        """Add all batches to the unedited model, in place; it is left as it was if anything fails.

        Returns:
            Whether every matrix is, after every batch, bit for bit what it was when the patch was made. On another
            kind of processor products are rounded in another order, and it may not be.

        Args:
            model: The unedited model the patch was made from.
            exact: Refuse where the bits would differ.

        Raises:
            RefusedInput: Another fingerprint; or, with `exact`, other bits.
        """
        self.attach(model)
        return self._replay(model, len(self), exact)

    def remove(self, model: EditableModel, last: int, *, exact: bool = False) -> bool:
        """Take the last batches out of a model that holds them, in place.

        The matrices become those of the unedited model with the kept batches added again: the same bits as before.

        Args:
            model: The edited model: edited by the recorded editor, by `apply`, or loaded from where it was saved.
            last: How many batches.
            exact: Refuse where the bits would differ from those recorded.

        Returns:
            As `apply`.

        Raises:
            RefusedInput: The model does not hold this patch, or differs from the base elsewhere too.
            ValueError: Fewer batches than that, or no base matrices at hand.
        """
        self._need_base("removing edits")
        held = self.position(model)
        if held is None:
            raise RefusedInput(
                f"{model.name} does not hold this patch: its matrices of layers {list(self.layers)} are neither those "
                f"of the unedited {self.header.model} nor those after any of the {len(self)} batches"
            )
        if not 1 <= last <= held:
            raise ValueError(
                f"last={last}, but the model holds {held} batches of this patch"
                + (f"; expected 1 to {held}" if held else "")
            )
        now = _copies(_weights(model, self.layers))
        _put(model, self.base)
        try:
            self._check_unedited(model)
            return self._replay(model, held - last, exact)
        except BaseException:
            _put(model, now)
            raise

    @torch.no_grad()
    def _replay(self, model: EditableModel, batches: int, exact: bool) -> bool:
        """From the unedited matrices through the first batches; puts the unedited ones back if it fails."""
        weights, seen = _weights(model, self.layers), []
        try:
            for record, factors in zip(self.header.batches[:batches], self.factors, strict=False):
                self._add(weights, record, factors)
                seen.append(_hashes(weights))
            same = all(a == b.after for a, b in zip(seen, self.header.batches, strict=False))
            if exact and not same:
                raise RefusedInput(
                    "the weights differ from the recorded ones by rounding: another processor or thread count "
                    "multiplies in another order; leave out `exact` to accept that"
                )
            if not all(torch.isfinite(weight).all() for weight in weights.values()):
                raise RefusedInput("the edited matrices would hold NaN or infinity")
        except BaseException:
            _put(model, self.base)
            raise
        self._seen = seen + (self._seen or self._recorded)[batches:]
        return same

    def _add(self, weights: Mapping[int, Tensor], record: BatchRecord, factors: Mapping[int, Factors]) -> None:
        for layer, weight in weights.items():
            one = factors[layer].to(weight.device)
            deltas = written(one.update(), weight, self.header.settings) if record.merged is None else [one.delta]
            for delta in deltas:
                weight.add_(delta.to(weight))

    # --- compaction ---------------------------------------------------------------------------------------------------

    def compacted(self, rank: int | None = None) -> dict[int, tuple[Tensor, Tensor, float]]:
        """Per layer one pair of factors for all batches together, and its relative error; see `compact`.

        Raises:
            ValueError: The method's updates depend on the weights (RECT) and no base matrices are at hand.
        """
        if not len(self):
            raise ValueError("the patch holds no batch")
        return {layer: compact(*self._total(layer), rank, FACTORS) for layer in self.layers}

    @torch.no_grad()
    def _total(self, layer: int) -> tuple[Tensor, Tensor]:
        parts = [batch[layer] for batch in self.factors]
        if self.header.settings.keep_share < 1:
            self._need_base("adding up RECT's updates, whose masks are found from the weights,")
            weight = self.base[layer].clone()
            for record, batch in zip(self.header.batches, self.factors, strict=True):
                self._add({layer: weight}, record, batch)
            return factored(weight.double() - self.base[layer].double())
        if any(part.dense is not None for part in parts):
            return factored(sum(part.delta.double() for part in parts))
        return tuple(torch.cat([getattr(part, side).double() for part in parts], 1) for side in ("left", "right"))

    @torch.no_grad()
    def merge(self, rank: int | None = None) -> Patch:
        """All batches as one, with the error that makes; what is merged can no longer be taken apart.

        Args:
            rank: At most so many columns per layer; None keeps all above rounding.

        Raises:
            ValueError: No batch, or no base matrices at hand, without which the merged weights have no hash.
        """
        self._need_base("merging")
        found = self.compacted(rank)
        weights = {layer: matrix.clone() for layer, matrix in self.base.items()}
        factors = {layer: Factors(left=left, right=right) for layer, (left, right, _) in found.items()}
        record = BatchRecord(
            facts=tuple(self.facts), report={}, after=self.header.base,
            merged=Merged(
                batches=sum(b.merged.batches if b.merged else 1 for b in self.header.batches),
                rank={layer: left.shape[1] for layer, (left, _, _) in found.items()},
                error={layer: error for layer, (_, _, error) in found.items()},
            ),
        )  # fmt: skip
        self._add(weights, record, factors)
        record = record.model_copy(update=dict(after=_hashes(weights)))
        return Patch(self.header.model_copy(update=dict(batches=(record,))), [factors], self.base)

    # --- what is checked ----------------------------------------------------------------------------------------------

    def _check_step(self, editor: Editor, expected: int) -> None:
        if editor.step != expected:
            raise ValueError(
                f"the editor has done {editor.step} batches, the patch holds {len(self)}; append each once, after it "
                "was edited. To go on after `remove`, take `prefix(n)` and a new editor of the unedited model, and "
                "give it `editor.apply(patch.updates(t))` of every batch kept"
            )

    def _need_base(self, what: str) -> None:
        if self.base is None:
            raise ValueError(
                f"{what} needs the unedited matrices: call attach(model) with the unedited {self.header.model}"
            )

    def _take(self, base: dict[int, Tensor]) -> None:
        if _hashes(base) != self.header.base:
            raise RefusedInput("the stored base matrices are not those the patch was made from")
        self.base = base

    def _check_unedited(self, model: EditableModel) -> None:
        found = _fingerprint(model)
        if found == self.header.fingerprint:
            return
        if held := self.position(model):
            raise RefusedInput(
                f"{model.name} holds {held} of the patch's {len(self)} batches already; remove them first"
            )
        dtype = str(model.weight(0).dtype).removeprefix("torch.")
        raise RefusedInput(
            f"the patch belongs to {self.header.model} ({self.header.model_type}, {self.header.dtype}, fingerprint "
            f"{self.header.fingerprint[:12]}), the model given is {model.name} ({model.hf.config.model_type}, {dtype}, "
            f"{found[:12]}); load the unedited model it was made from"
        )


def check_recordable(method: str, damping: str | None) -> None:
    """Refuse methods whose result is no sum of stored updates.

    Raises:
        ValueError: PRUNE: says why, and what to do instead.
    """
    if damping is not None:
        raise ValueError(
            f"{method} cannot be stored as a patch: at its end the singular values of the whole change are damped, "
            "which belongs to no batch and could not be removed with one; save the edited model instead (--save-model)"
        )


def _public_name(name: str) -> str:
    """A hub ID or packaged name as it is; of a folder its own name only, for where it lay is nobody's business."""
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name) and not Path(name).is_dir():
        return name
    return re.sub(r"[^\w.-]+", "-", Path(name).resolve().name).strip(".-") or "model"


def _fingerprint(model: EditableModel) -> str:
    """Of the weights as they are now; the model's own attribute remembers them as they were."""
    return dataclasses.replace(model).fingerprint


def _weights(model: EditableModel, layers: Sequence[int]) -> dict[int, Tensor]:
    return {layer: model.weight(layer) for layer in layers}


def _hashes(weights: Mapping[int, Tensor]) -> dict[int, str]:
    return {layer: digest({"weight": weight}) for layer, weight in weights.items()}


def _copies(weights: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {layer: weight.detach().cpu().clone() for layer, weight in weights.items()}


@torch.no_grad()
def _put(model: EditableModel, matrices: Mapping[int, Tensor]) -> None:
    for layer, matrix in matrices.items():
        model.weight(layer).copy_(matrix)
