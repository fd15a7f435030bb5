"""The editing methods, as settings of one solve, and the state a sequence of edits carries.

Batch t: values V_t by optimisation, keys K_t read on the model as edited so far, R_t = V_t − W K_t, then per layer
Δ = R_t Bᵀ with B from `solve_update`; what distinguishes the methods is the space, the metric and what is remembered.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from langedit_core.contexts import Contexts
from langedit_core.covariance import KeyCovariance
from langedit_core.errors import unknown
from langedit_core.keys import KeyReader
from langedit_core.languages import LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.nullspace import NullSpace, Threshold, cut_spectrum, exact_null_space
from langedit_core.records import Fact
from langedit_core.solve import CovarianceMetric, Metric, RidgeMetric, solve_update
from langedit_core.tokens import Row, SubjectMerged, continuation, locate
from langedit_core.values import ValueRequest, Values, ValueSettings, optimise_values


class EditSettings(BaseModel):
    """Everything that tells one method from another.

    `space` says which directions an update may use:
    `whole` (MEMIT), `static` null(C₀) (AlphaEdit), `running` null(C̄_{t−1}) decomposed anew every batch (LangEdit as
    written), `incremental` null(C₀) less the span of all past keys (LangEdit without a decomposition per step), or
    `released`, LangEdit's published code: a mix of a mean with cumulative sums, at fixed sample counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] = Field(min_length=1)
    space: Literal["whole", "static", "running", "incremental", "released"]
    remember: bool = Field(False, description="past keys are columns with zero residual in the solve")
    covariance_weight: float = Field(0.0, ge=0, description="λ₀ of A = λ₀C₀; used with space='whole'")
    ridge: float = Field(1.0, gt=0, description="λ, relative to the mean energy of the projected keys or absolute")
    relative_ridge: bool = True
    threshold: Threshold = Threshold()
    spread: Literal["joint", "residual"] = Field(
        "joint", description="one δ per layer, optimised together; or one target shared out over the layers (published)"
    )
    released_counts: tuple[int, int] = Field((100_000, 100), description="n̄₀ and n as the released code has them")
    values: ValueSettings = ValueSettings()
    microbatch: int | None = Field(None, ge=1, description="facts whose values are optimised together; None: all")
    exhausted: float = Field(1e-6, ge=0, description="a key with a smaller share of its energy left is not edited")

    @model_validator(mode="after")
    def _consistent(self) -> EditSettings:
        if self.space == "whole" and not self.covariance_weight > 0:
            raise ValueError("space='whole' needs covariance_weight > 0 (λ₀ of MEMIT)")
        if self.spread == "residual" and self.values.site == "write":
            raise ValueError(
                "spread='residual' shares a target of the residual stream between layers and needs "
                "values.site='residual'; values found at the write port need spread='joint'"
            )
        return self


METHODS: dict[str, dict] = {
    "memit": dict(space="whole", covariance_weight=1.0),
    "memit-seq": dict(space="whole", covariance_weight=1.0, remember=True),
    "alphaedit": dict(space="static", remember=True),
    "langedit": dict(space="incremental"),
    "langedit-running": dict(space="running"),
    "langedit-released": dict(space="released", remember=True),
}


def settings_for(method: str, **changes) -> EditSettings:
    """The settings of a named method, with `changes` on top.

    Raises:
        ValueError: Unknown method; lists the known ones.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    return EditSettings(**(METHODS[method] | changes))


@dataclass(frozen=True)
class Update:
    """A rank-n change of one matrix: ΔW = left rightᵀ, with the keys that are to be kept from now on."""

    left: Float[Tensor, "d_out n"]
    right: Float[Tensor, "d_in n"]
    keys: Float[Tensor, "d_in n"]

    @property
    def delta(self) -> Float[Tensor, "d_out d_in"]:
        return self.left @ self.right.T


@dataclass
class LayerReport:
    """What a batch did to one layer.

    Attributes:
        rank: Directions the update could use.
        capacity: Mean share of the keys' energy left after projection; `capacity_min` the smallest.
        relative_update: ‖ΔW‖/‖W₀‖ of this batch; `relative_total` of all batches together.
        written: Mean over facts of ⟨Δk, r⟩/‖r‖²: one if the update carries each key to its whole residual.
    """

    rank: int
    capacity: float
    capacity_min: float
    relative_update: float
    relative_total: float
    written: float


@dataclass
class BatchReport:
    """What happened to a batch of facts; every number belongs to the model's state right after it."""

    step: int
    facts: list[str]
    dropped: dict[str, str] = field(default_factory=dict)
    layers: dict[int, LayerReport] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    final_loss: list[float] = field(default_factory=list)
    converged: float = 0.0
    exhausted: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


class Editor:
    """Edits a model batch after batch, in place.

    ```python
    editor = Editor(model, settings_for("langedit", layers=(6,)), covariances, contexts)
    report, updates = editor.edit(facts)
    ```
    The model is left as it was if a batch fails. `apply` repeats stored updates, to the same bits.
    """

    def __init__(
        self,
        model: EditableModel,
        settings: EditSettings,
        covariances: Mapping[int, KeyCovariance],
        contexts: Contexts,
    ) -> None:
        model.check_layers(settings.layers)
        if missing := [layer for layer in settings.layers if layer not in covariances]:
            raise ValueError(
                f"no covariance for layers {missing}; call cached_covariance(model, {settings.layers}, ...)"
            )
        self.model, self.settings, self.contexts = model, settings, contexts
        self.step = 0
        self.layers = {layer: LayerState(model, layer, settings, covariances[layer]) for layer in settings.layers}

    def requests(self, facts: Sequence[Fact]) -> tuple[list[Fact], list[ValueRequest], dict[str, str]]:
        """Token rows of all facts that have them, and the reason for each that has not."""
        kept, rows, dropped = [], [], {}
        for fact in facts:
            where = f"fact {fact.id} ({fact.lang}): "
            try:
                contexts = self.contexts.rows(self.model, fact.prompt, fact.subject, fact.lang, where)
                answer = LANGUAGES[fact.lang].join + fact.target
                target = tuple(continuation(self.model.tokenizer, fact.text, answer))
                kl = locate(self.model.tokenizer, self.settings.values.kl_prompt, fact.subject, where)
            except SubjectMerged as error:
                dropped[fact.id] = str(error)
                continue
            full = tuple(Row(ids=row.ids + target[:-1], lookup=row.lookup) for row in contexts)
            kept.append(fact)
            rows.append(ValueRequest(contexts=full, target=target, kl=kl))
        return kept, rows, dropped

    def edit(
        self, facts: Sequence[Fact], progress: Callable[[int], None] | None = None
    ) -> tuple[BatchReport, dict[int, Update]]:
        """Write one batch of facts into the model.

        Args:
            facts: The batch; a fact whose subject merges with its neighbour is dropped and reported.
            progress: Called with the number of facts whose values are found.

        Returns:
            The report, and per layer the update as low-rank factors.

        Raises:
            FloatingPointError: NaN or infinity, naming layer and step; the model keeps its previous weights.
        """
        kept, requests, dropped = self.requests(facts)
        report = BatchReport(step=self.step, facts=[fact.id for fact in kept], dropped=dropped)
        if not kept:
            raise ValueError(f"no fact of the batch can be edited: {dropped or 'the batch is empty'}")
        return report, self.write(requests, report, progress)

    def write(
        self, requests: Sequence[ValueRequest], report: BatchReport, progress: Callable[[int], None] | None = None
    ) -> dict[int, Update]:
        """`edit` on token rows that are already made; fills in `report`."""
        clock = _Clock(report.seconds)
        layers, settings, model = self.settings.layers, self.settings, self.model
        updates: dict[int, Update] = {}
        doing = "values"
        try:
            with clock("values"):
                targets = layers if settings.spread == "joint" else layers[-1:]
                values = optimise_values(
                    model, requests, targets, settings.values, microbatch=settings.microbatch, progress=progress
                )
            with clock("keys"):
                reader = KeyReader(model, [r.key_contexts or r.contexts for r in requests], layers)
            for number, layer in enumerate(layers):
                doing, state = f"layer {layer}", self.layers[layer]
                with clock("keys"):
                    keys = reader.keys(layer)
                    residual = self._residual(reader, values, number)
                with clock("projection"):
                    space = state.space()
                with clock("solve"):
                    update = state.solve(space, keys, residual, report)
                with clock("write"):
                    model.add_(layer, update.delta)
                updates[layer] = update
                report.layers[layer] = state.report(space, update)
            doing = "remembering its keys"
            with clock("projection"):
                self._remember(updates)
        except BaseException as error:
            self._put_back()
            if isinstance(error, FloatingPointError | ValueError):
                message = f"batch {self.step}, {doing}: {error}; the model is as it was before this batch"
                raise FloatingPointError(message) from error
            raise
        report.steps, report.converged = values.steps, values.converged
        report.final_loss = values.final
        return updates

    def _put_back(self) -> None:
        # All layers: an interrupt may come between the write and its being noted down.
        with torch.no_grad():
            for layer, state in self.layers.items():
                self.model.weight(layer).copy_(state.weight)

    def apply(self, updates: Mapping[int, Update]) -> None:
        """Repeat a stored batch: same weights, same state, to the bit."""
        for layer, update in updates.items():
            self.model.add_(layer, update.delta)
        self._remember(updates)

    def _remember(self, updates: Mapping[int, Update]) -> None:
        """Take a batch into the state of all layers, or of none if anything fails on the way."""
        known = {layer: state.remembered(updates[layer]) for layer, state in self.layers.items()}
        for layer, state in self.layers.items():
            vars(state).update(known[layer])
        self.step += 1

    def _residual(self, reader: KeyReader, values: Values, number: int) -> Float[Tensor, "d_out n"]:
        """What this layer has to add to its output, given what lower layers of the batch already did."""
        layers = self.settings.layers
        if self.settings.spread == "joint":
            return values.delta[layers[number]]
        missing = values.start + values.delta[layers[-1]] - reader.residual_stream()
        return missing / (len(layers) - number)


class LayerState:
    """What one edited layer remembers between batches."""

    def __init__(self, model: EditableModel, layer: int, settings: EditSettings, covariance: KeyCovariance) -> None:
        self.model, self.layer, self.settings = model, layer, settings
        self.weight = model.weight(layer).clone()  # as of the last finished batch
        self.initial_norm = float(self.weight.norm())
        self.initial = self.weight
        self.past: tuple[Float[Tensor, "d n"], ...] = ()
        d = model.d_ff
        self.metric: Metric | None = None
        if settings.space == "whole":
            self.metric = CovarianceMetric(covariance.mean, settings.covariance_weight)
            self.null = NullSpace(d=d)
        else:
            eigenvalues, vectors = torch.linalg.eigh(covariance.mean)
            self.cut = settings.threshold.cut(eigenvalues)
            self.null = cut_spectrum(eigenvalues, vectors, settings.threshold)
        self.running = covariance.copy() if settings.space == "running" else None
        self.mix = covariance.mean.clone() if settings.space == "released" else None
        self.stale = False

    def space(self) -> NullSpace:
        """The directions free for the next batch."""
        if self.stale:
            matrix = self.running.mean if self.running is not None else self.mix
            self.null = exact_null_space(matrix, Threshold(kind="absolute", value=self.cut))
            self.stale = False
        return self.null

    def solve(self, space: NullSpace, keys: Tensor, residual: Tensor, report: BatchReport) -> Update:
        left = space.survival(keys)
        alive = left > self.settings.exhausted
        for name in (fact for fact, ok in zip(report.facts, alive.tolist(), strict=False) if not ok):
            if name not in report.exhausted:
                report.exhausted.append(name)
        right = torch.zeros_like(keys)
        if alive.any():
            metric = self.metric
            if metric is None:
                energy = float(space.project(keys[:, alive].double()).square().sum(0).mean())
                metric = RidgeMetric(space, self.settings.ridge * (energy if self.settings.relative_ridge else 1.0))
            past = torch.cat(self.past, dim=1) if self.settings.remember and self.past else None
            right[:, alive] = solve_update(keys[:, alive], metric, past).to(keys)
        return Update(left=residual.to(keys), right=right, keys=keys)

    def report(self, space: NullSpace, update: Update) -> LayerReport:
        survival = space.survival(update.keys)
        wanted = update.left.square().sum(0).clamp_min(torch.finfo(update.left.dtype).tiny)
        written = (update.left * (update.delta @ update.keys)).sum(0) / wanted
        return LayerReport(
            rank=space.rank,
            capacity=float(survival.mean()),
            capacity_min=float(survival.min()),
            relative_update=float(update.delta.norm()) / self.initial_norm,
            relative_total=float((self.model.weight(self.layer) - self.initial).norm()) / self.initial_norm,
            written=float(written.mean()),
        )

    def remembered(self, update: Update) -> dict[str, object]:
        """What this state becomes with the batch taken in; nothing is changed yet. The weight is the model's."""
        keys = update.keys.double()
        new: dict[str, object] = dict(weight=self.model.weight(self.layer).clone(), past=(*self.past, update.keys))
        if self.settings.space == "incremental":
            new["null"] = self.null.without(keys)
        elif self.running is not None:
            running = self.running.copy()
            running.update(keys)
            new |= dict(running=running, stale=True)
        elif self.mix is not None:
            documents, batch = self.settings.released_counts
            total = documents + batch * len(new["past"])
            everything = torch.cat(new["past"], dim=1).double()
            new |= dict(mix=(documents * self.mix + batch * (everything @ everything.T)) / total, stale=True)
        return new


class _Clock:
    """Seconds per phase, added up."""

    def __init__(self, into: dict[str, float]) -> None:
        self.into = into

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.into[phase] = self.into.get(phase, 0.0) + time.perf_counter() - start
