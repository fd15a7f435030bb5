"""The editing methods, as settings of one solve, and the state a sequence of edits carries.

Batch t: values V_t by optimisation, keys K_t read on the model as edited so far, R_t = V_t − W K_t, then per layer
Δ = R_t Bᵀ with B from `solve_update`; what distinguishes the methods is the space, the metric, what is remembered, and
what is done to Δ afterwards. Fine-tuning, which solves nothing, is an editor too and leaves a dense Δ.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)
from torch import Tensor

from langedit_core.contexts import Contexts
from langedit_core.covariance import KeyCovariance
from langedit_core.errors import RefusedInput, told, unknown
from langedit_core.finetune import FineTuneSettings, fine_tune
from langedit_core.keys import KeyReader
from langedit_core.languages import LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.nullspace import NullSpace, Threshold
from langedit_core.postprocess import damp, keep_largest, spread_off
from langedit_core.projectors import Fixed, Projector, ReleasedMix, projector_of
from langedit_core.records import Fact
from langedit_core.solve import CovarianceMetric, Metric, RidgeMetric, solve_update
from langedit_core.tokens import Row, SubjectMerged, TextTooLong, continuation, locate
from langedit_core.values import ValueRequest, Values, ValueSettings, optimise_values


class EditSettings(BaseModel):
    """Everything that tells one method from another.

    `space` says which directions an update may use:
    `whole` (MEMIT), `static` null(C₀) (AlphaEdit), `running` null(C̄_{t−1}) decomposed anew every batch (LangEdit as
    written), `incremental` null(C₀) less the span of all past keys, without a decomposition per step (EvoEdit),
    `full_keys` the same space from an SVD of all keys stored so far, `randomized` as `running` by a randomised range
    finder, or `released`, LangEdit's published code: a mix of a mean with cumulative sums, at fixed sample counts.

    A running mean shrinks as its count n̄ grows, by n₀/n̄ in every direction that gets no key: under a fixed cut,
    directions that C₀ protects would become free one after another. So `running` cuts C̄ at cut · n₀/n̄. That is the
    sum of kkᵀ cut at n₀ · cut; a sum never shrinks in any direction, so the number of free directions never grows, and
    a key takes its direction once its energy there, with all that came before, reaches n₀ · cut. A threshold that
    protects nothing (`fraction` 1, `energy` 0) has an infinite cut: then `running`, `randomized` and `released` leave
    everything free, and no key ever takes a direction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: tuple[StrictInt, ...] = Field(min_length=1)
    space: Literal["whole", "static", "running", "incremental", "released", "full_keys", "randomized", "literal"]
    remember: bool = Field(False, description="past keys are columns with zero residual in the solve")
    covariance_weight: float = Field(0.0, ge=0, description="λ₀ of A = λ₀C₀; used with space='whole'")
    ridge: float = Field(1.0, gt=0, description="λ, relative to the mean energy of the projected keys or absolute")
    relative_ridge: bool = True
    hold_ridge: bool = Field(
        False,
        exclude_if=lambda held: not held,  # came later: what was computed before keeps its hash
        description="the relative ridge stays relative to what the first batch's keys had left (an absolute one does)",
    )
    threshold: Threshold = Threshold()
    spread: Literal["joint", "residual"] = Field(
        "joint", description="one δ per layer, optimised together; or one target shared out over the layers (published)"
    )
    released_counts: tuple[PositiveInt, PositiveInt] = Field(
        (100_000, 100), description="n̄₀ and n as the released code has them"
    )
    values: ValueSettings = ValueSettings()
    microbatch: int | None = Field(None, ge=1, description="facts that go through the model together; None: all")
    exhausted: float = Field(1e-6, ge=0, description="a key with a smaller share of its energy left is not edited")
    constraint: Literal["penalty", "exact"] = Field(
        "penalty", description="what is missing of R costs its square; or ΔK = R exactly, at the lowest cost (ROME)"
    )
    one_by_one: bool = Field(False, description="each fact of a batch is an edit of its own, on the model so far")
    average: Literal["half", "mean"] = Field(
        "half", description="a key is half the bare prompt's, half its prefixes' mean; or the mean over all contexts"
    )
    meets: Literal["average", "bare"] = Field(
        "average", description="the exact constraint holds at the averaged key; or at the bare prompt's (ROME's code)"
    )
    keep_share: float = Field(
        1.0, gt=0, le=1, description="RECT: share of ΔW's entries kept, those largest beside W's; published 0.4"
    )
    damping: Literal["initial", "edited"] | None = Field(
        None, description="PRUNE: `finish` puts W₀ + damped total; or W_T + damped total, as AlphaEdit's code has PRUNE"
    )
    damping_base: float = Field(
        math.e,
        gt=1,
        exclude_if=lambda base: base == math.e,  # came later: what was computed before keeps its hash
        description="PRUNE: α of log_α, to which large singular values are damped; its code has e, 2, 1.5 and 1.2",
    )
    sphere: float = Field(0.0, ge=0, le=1, description="SPHERE's α: how much of ΔW in W's main directions is removed")
    sphere_share: float = Field(0.5, ge=0, le=1, description="SPHERE's η: how much of W's spectrum counts as main")
    finetune: FineTuneSettings | None = Field(None, description="train the matrices instead of solving for them")

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError(f"layers {list(layers)} cannot be edited; give each once, in ascending order, from 0 on")
        return layers

    @model_validator(mode="before")
    @classmethod
    def _absolute_stays(cls, content: object) -> object:
        """An absolute ridge never changes: that it is held says nothing, and makes no other settings."""
        if isinstance(content, dict) and content.get("relative_ridge") is False and content.get("hold_ridge") is True:
            return content | dict(hold_ridge=False)
        return content

    @model_validator(mode="after")
    def _consistent(self) -> EditSettings:
        penalised = self.constraint == "penalty" and self.finetune is None
        if self.space == "whole" and penalised and not self.covariance_weight > 0:
            raise ValueError("space='whole' needs covariance_weight > 0 (λ₀ of MEMIT)")
        if self.one_by_one and len(self.layers) > 1:
            raise ValueError(f"one_by_one (ROME) edits one layer, not {list(self.layers)}; pass layers=(...) with one")
        if self.meets == "bare" and self.constraint != "exact":
            raise ValueError("meets='bare' says where an exact constraint holds; it needs constraint='exact'")
        if self.damping_base != math.e and self.damping is None:
            raise ValueError(f"damping_base={self.damping_base} says how PRUNE damps; it needs damping")
        if self.finetune and (self.space != "whole" or self.keep_share < 1 or self.damping or self.sphere):
            raise ValueError("finetune trains the whole matrix: nothing of the solve, nor after it, goes with it")
        if self.spread == "residual" and self.values.site == "write":
            raise ValueError(
                "spread='residual' shares a target of the residual stream between layers and needs "
                "values.site='residual'; values found at the write port need spread='joint'"
            )
        return self

    def unread(self) -> dict[str, str]:
        """Weights that no edit under these settings reads, each with the reason: other values of them change nothing.

        How values are found and where a spectrum is cut is not among them: methods that are compared are given these
        alike, whether they read them or not.
        """
        ridges = ("ridge", "relative_ridge", "hold_ridge")
        if self.finetune is not None:
            names, why = (*ridges, "covariance_weight"), "it trains the matrices and solves nothing"
        elif self.space == "whole":
            names, why = ridges, "it projects onto nothing, and covariance_weight (λ₀) is what a change costs"
        else:
            names, why = ("covariance_weight",), "it projects, and ridge (λ) is what a change costs"
        return dict.fromkeys(names, why) | ({} if self.sphere else {"sphere_share": "sphere is 0"})

    @property
    def needs_covariance(self) -> bool:
        """Whether anything is read from C₀: not by fine-tuning, nor by ROME without covariance."""
        return self.finetune is None and (self.space != "whole" or self.covariance_weight > 0)


_MEMIT = dict(space="whole", covariance_weight=1.0)
_ALPHAEDIT = dict(space="static", remember=True)
_LANGEDIT = dict(space="running")
_SPHERE = dict(sphere=0.5, sphere_share=0.5)

PROJECTORS = dict(
    static="fixed", running="exact", incremental="incremental", full_keys="full_keys", randomized="randomized",
    released="released", literal="literal",
)  # fmt: skip
"""`EditSettings.space` -> kind of `projectors.projector_of`."""

METHODS: dict[str, dict] = {
    "memit": _MEMIT,
    "memit-seq": _MEMIT | dict(remember=True),
    "rect": _MEMIT | dict(keep_share=0.4),
    "prune": _MEMIT | dict(damping="initial"),
    "prune-released": _MEMIT | dict(damping="edited"),
    "rome": _MEMIT | dict(constraint="exact", one_by_one=True),
    "alphaedit": _ALPHAEDIT,
    "alphaedit-sphere": _ALPHAEDIT | _SPHERE,
    "langedit": _LANGEDIT,
    "langedit-sphere": _LANGEDIT | _SPHERE,
    "langedit-released": dict(space="released", remember=True),
    "langedit-literal": dict(space="literal"),
    "langedit-full": dict(space="full_keys"),
    "langedit-randomized": dict(space="randomized"),
    "evoedit": dict(space="incremental"),
    "ft": dict(space="whole", finetune=FineTuneSettings()),
    "ft-released": dict(space="whole", finetune=FineTuneSettings.published()),
}
"""MEMIT arXiv 2210.07229, RECT 2401.04700, PRUNE 2405.16821, ROME 2202.05262, AlphaEdit 2410.02355, SPHERE 2510.01172,
LangEdit 2506.10800, EvoEdit 2510.13851. `-released` names what published code does where it is not what the paper says:
LangEdit's mix of means and sums, fine-tuning on one position. `prune-released` is PRUNE as the repository of AlphaEdit
re-implements it, which adds the damped update to the edited weight; PRUNE's own code (mjy1111/PRUNE) adds it to W₀, as
its paper and `prune` do.
`langedit-literal` reads the paper's recursion for C̄ to the letter, where a batch's K Kᵀ is a sum and has the weight of
the batch's size on top.
`langedit-full` projects off the stored keys themselves instead of their covariance, as the paper's ablation does;
`langedit-randomized` finds LangEdit's space by a randomised range finder."""


def settings_for(method: str, *, on: Mapping[str, object] | None = None, **changes) -> EditSettings:
    """The settings of a named method, with `changes` on top as `merged` puts them there.

    Args:
        method: One of `METHODS`.
        on: What `changes` go on top of, beside the method itself, such as what was chosen for a model; it may hold what
            this method does not read.
        **changes: Fields of `EditSettings`.

    Raises:
        ValueError: Unknown method or setting (lists the known ones), or one that this method does not read.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    base = merged(METHODS[method], on or {})
    for name in (*base, *changes):
        if name not in EditSettings.model_fields:
            raise unknown("setting", name, EditSettings.model_fields)
    for name in ("values", "finetune", "threshold"):
        if name in changes and not isinstance(changes[name], Mapping | BaseModel | None):
            raise ValueError(f"{name} is {changes[name]!r}, expected a mapping of what to change, such as dict(...)")
    try:
        settings = EditSettings(**merged(base, changes))
        unread = {name: why for name, why in settings.unread().items() if name in changes}
        without = {name: change for name, change in changes.items() if name not in unread}
        usual = EditSettings(**merged(base, without)) if unread else settings
    except ValidationError as error:
        raise ValueError(told(error)) from error
    for name, why in unread.items():
        if getattr(settings, name) != getattr(usual, name):
            raise ValueError(
                f"{method} does not read {name}, which {changes[name]!r} was given for: {why}; leave it out"
            )
    return settings


def merged(settings: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """`settings` with `changes` on top: a mapping (`values`, `finetune`, `threshold`) changes what it names only."""
    found = dict(settings)
    for name, change in changes.items():
        known = found.get(name)
        known = known.model_dump() if isinstance(known, BaseModel) else known
        found[name] = known | change if isinstance(known, dict) and isinstance(change, Mapping) else change
    return found


def check_agreement(facts: Sequence[Fact]) -> None:
    """Refuse a batch in which one prompt is to be followed by two things.

    Raises:
        RefusedInput: Names both facts.
    """
    asked: dict[tuple[str, str], Fact] = {}
    for fact in facts:
        other = asked.setdefault((fact.lang, fact.text), fact)
        if other.target != fact.target:
            raise RefusedInput(
                f"{fact.text!r} is to be followed by {fact.target!r} (fact {fact.label}) and by {other.target!r} "
                f"(fact {other.label}) in one batch; keep one of them, or edit them one after the other"
            )


FACTORS = torch.float32
"""Of all tensors of an update, whatever the model's own precision."""


@dataclass(frozen=True)
class Update:
    """A change of one matrix: ΔW = left rightᵀ of rank n, with the keys that are to be kept from now on.

    `left rightᵀ` is what the solve gave; RECT's mask is not stored but found again from the weight it is added to.
    A trained change has no factors and is kept whole, as `dense`; left, right and keys then have no column.
    """

    left: Float[Tensor, "d_out n"]
    right: Float[Tensor, "d_in n"]
    keys: Float[Tensor, "d_in n"]
    dense: Float[Tensor, "d_out d_in"] | None = None

    @classmethod
    def of_dense(cls, dense: Float[Tensor, "d_out d_in"]) -> Update:
        d_out, d_in = dense.shape
        none = dense.new_empty(d_in, 0)
        return cls(left=dense.new_empty(d_out, 0), right=none, keys=none, dense=dense)

    @property
    def delta(self) -> Float[Tensor, "d_out d_in"]:
        return self.left @ self.right.T if self.dense is None else self.dense

    def facts(self) -> Iterator[Update]:
        """The same change, one rank-one update per fact."""
        for i in range(self.left.shape[1]):
            one = slice(i, i + 1)
            yield Update(left=self.left[:, one], right=self.right[:, one], keys=self.keys[:, one])

    @classmethod
    def joined(cls, parts: Sequence[Update]) -> Update:
        return cls(**{name: torch.cat([getattr(p, name) for p in parts], dim=1) for name in ("left", "right", "keys")})

    def to(self, device: torch.device) -> Update:
        """The same change on another device."""
        return Update(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What has to be stored: `Update(**tensors)` is this update again."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


def packed_updates(updates: Mapping[int, Update]) -> dict[str, Tensor]:
    """The updates of a batch as tensors for one file, named "layer.part"."""
    return {f"{layer}.{name}": x for layer, update in updates.items() for name, x in update.tensors().items()}


def unpacked_updates(tensors: Mapping[str, Tensor], layers: Sequence[int]) -> dict[int, Update]:
    """What `packed_updates` made of those of `layers`.

    Raises:
        ValueError, KeyError, TypeError: They are not the tensors of updates of these layers.
    """
    parts: dict[int, dict[str, Tensor]] = {layer: {} for layer in layers}
    for name, tensor in tensors.items():
        layer, _, part = name.partition(".")
        parts[int(layer)][part] = tensor
    return {layer: Update(**found) for layer, found in parts.items()}


@dataclass
class LayerReport:
    """What a batch did to one layer.

    Attributes:
        rank: Directions the update could use.
        capacity: Mean share of the keys' energy left after projection; `capacity_min` the smallest.
        relative_update: ‖ΔW‖/‖W₀‖ of this batch; `relative_total` of all batches together.
        written: Mean over facts of ⟨Δk, r⟩/‖r‖²: one if the update carries each key to its whole residual. None for
            fine-tuning, which has no residual.
    """

    rank: int
    capacity: float
    capacity_min: float
    relative_update: float
    relative_total: float
    written: float | None


@dataclass
class BatchReport:
    """What happened to a batch of facts; every number belongs to the model's state right after it.

    `dropped` says by `Fact.label` why a fact could not be edited. `exhausted` has the ids of those without a direction
    left in some layer. `seconds` are the clock's, `processor` those that this process used, by phase: on a shared
    machine they say more.
    """

    step: int
    facts: list[str]
    dropped: dict[str, str] = field(default_factory=dict)
    layers: dict[int, LayerReport] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    final_loss: list[float] = field(default_factory=list)
    converged: float = 0.0
    exhausted: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    processor: dict[str, float] = field(default_factory=dict)

    def without_timings(self) -> dict:
        """What is the same in every run."""
        return {name: x for name, x in asdict(self).items() if name not in ("seconds", "processor")}


def written(
    update: Update, weight: Float[Tensor, "d_out d_in"], settings: EditSettings
) -> Iterator[Float[Tensor, "d_out d_in"]]:
    """What a stored update adds to `weight`, matrix by matrix; each has to be added before the next is asked for.

    ROME writes fact by fact. RECT's mask is found again from the weight, so what is added depends on it.
    """
    for part in update.facts() if settings.one_by_one else (update,):
        delta = part.delta
        yield keep_largest(delta, weight, settings.keep_share) if settings.keep_share < 1 else delta


def write(model: EditableModel, updates: Mapping[int, Update], settings: EditSettings) -> None:
    """Add a batch's stored updates to the model, wherever they are stored."""
    for layer, update in updates.items():
        weight = model.weight(layer)
        for delta in written(update.to(weight.device), weight, settings):
            model.add_(layer, delta)


def damped(
    start: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], settings: EditSettings
) -> Float[Tensor, "d_out d_in"]:
    """What becomes of `weight` at the end of PRUNE's sequence, which began at `start`; see `EditSettings.damping`."""
    start, weight = start.double(), weight.double()
    total = damp(weight - start, float(torch.linalg.matrix_norm(start, 2)), settings.damping_base)
    return (start if settings.damping == "initial" else weight) + total


@torch.no_grad()
def repeat(model: EditableModel, settings: EditSettings, batches: Iterable[Mapping[int, Update]]) -> None:
    """Do a stored sequence of batches again and end it, in place: same weights as the editor left, to the bit.

    Args:
        model: As it was before the first batch; and it is again if anything fails.
        settings: Of the editor.
        batches: What `Editor.edit` gave for every batch, layer -> update, on any device.

    Raises:
        ValueError: As `check_updates`.
    """
    start = {layer: model.weight(layer).clone() for layer in settings.layers}
    try:
        for updates in batches:
            check_updates(model, updates, settings)
            write(model, updates, settings)
        if settings.damping is not None:
            for layer, weight in start.items():
                model.weight(layer).copy_(damped(weight, model.weight(layer), settings))
    except BaseException:
        for layer, weight in start.items():
            model.weight(layer).copy_(weight)
        raise


def check_updates(model: EditableModel, updates: Mapping[int, Update], settings: EditSettings) -> None:
    """Refuse a stored batch that cannot be added as a whole, before anything of it is added.

    Raises:
        ValueError: Updates of other layers than those of the settings, of another shape than the model's matrices, in
            another precision than editors compute in, or with NaN or infinity; names layer and tensor.
    """
    if set(updates) != set(settings.layers):
        raise ValueError(
            f"the batch has updates of layers {sorted(updates)}, the settings edit {list(settings.layers)}; give each "
            "of these one, as `Editor.edit` does"
        )
    for layer, update in updates.items():
        (d_out, d_in), n = model.weight(layer).shape, update.left.shape[-1] if update.left.ndim else 0
        shapes = dict(left=(d_out, n), right=(d_in, n), keys=(d_in, n), dense=(d_out, d_in))
        for name, tensor in update.tensors().items():
            if tensor.shape != shapes[name]:
                raise ValueError(
                    f"{name} of the update for layer {layer} is {tuple(tensor.shape)}, expected {shapes[name]}; the "
                    "batch belongs to another model"
                )
            if tensor.dtype != FACTORS:
                raise ValueError(
                    f"{name} of the update for layer {layer} is {tensor.dtype}, expected {FACTORS}; rounded factors do "
                    "not give the weights of the day they were made"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} of the update for layer {layer} holds NaN or infinity; the batch is damaged")


class Editor:
    """Edits a model batch after batch, in place.

    ```python
    editor = Editor(model, hyperparameters(model.name, "langedit", layers=(6,)), covariances, contexts)
    report, updates = editor.edit(facts)
    ```
    `profiles.hyperparameters` has λ and λ₀ that fit; `settings_for` has the method alone, with both at 1.
    The model is left as it was if a batch fails. `apply` repeats stored updates, to the same bits. `finish` ends the
    sequence; only PRUNE has something to do then.
    """

    def __init__(
        self,
        model: EditableModel,
        settings: EditSettings,
        covariances: Mapping[int, KeyCovariance],
        contexts: Contexts,
    ) -> None:
        """Begin a sequence; C₀ is decomposed or factored here, once per layer.

        Args:
            model: Unedited, or at least as the sequence shall find it: its weights are W₀ to every norm, to PRUNE and
                to `reset`, and C₀ should be of these very weights.
            settings: Method and options.
            covariances: C₀ of every layer of `settings.layers`, of `model` as it is now, by its layer; further ones
                are ignored. They are not copied, and not to be updated afterwards. Only the methods that decompose a
                running covariance go on holding one. May be empty where nothing is read
                (`EditSettings.needs_covariance`).
            contexts: Prefixes of every language that will be edited.

        Raises:
            ValueError: Layers the model does not have, or without a covariance; or values are to be found in the
                residual stream of a model whose norm behind the MLP does not let them through.
            FloatingPointError: A covariance with NaN or infinity, or one that is not positive.
        """
        model.check_layers(settings.layers)
        if model.architecture.post_norm and settings.finetune is None and settings.values.site == "residual":
            raise ValueError(
                f"{model.name} has a norm behind its MLP output, and no sum of updates puts a target of the residual "
                "stream there; take values.site='write' with spread='joint'"
            )
        needed = settings.layers if settings.needs_covariance else ()
        if missing := [layer for layer in needed if layer not in covariances]:
            raise ValueError(
                f"no covariance for layers {missing}; call cached_covariance(model, {settings.layers}, ...)"
            )
        self.model, self.settings, self.contexts = model, settings, contexts
        self.step, self.finished = 0, False
        self.layers = {layer: LayerState(model, layer, settings, covariances.get(layer)) for layer in settings.layers}
        self._unedited = {layer: dict(vars(state)) for layer, state in self.layers.items()}

    def requests(self, facts: Sequence[Fact]) -> tuple[list[Fact], list[ValueRequest], dict[str, str]]:
        """Token rows of all facts that have them, and the reason for each that has not."""
        kept, rows, dropped = [], [], {}
        for fact in facts:
            if not isinstance(fact, Fact):
                raise TypeError(f"got {type(fact).__name__} {fact!r:.60} among the facts, expected Fact(...)")
            where = f"fact {fact.label}: "
            try:
                contexts = self.contexts.rows(self.model, fact.prompt, fact.subject, fact.lang, where)
                answer = LANGUAGES[fact.lang].join + fact.target
                target = tuple(continuation(self.model.tokenizer, fact.text, answer))
                kl = locate(self.model.tokenizer, self.settings.values.kl_prompt, fact.subject, where)
                longest = max(len(row.ids) for row in contexts) + len(target) - 1
                self.model.check_length(longest, f"{where}the prompt with prefix and target")
            except (SubjectMerged, TextTooLong) as error:
                dropped[fact.label] = str(error)
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
            The report, and per layer the update, as low-rank factors unless it was trained.

        Raises:
            ValueError: The sequence is finished, something else wrote to the matrices since the last batch, no fact
                can be edited, two facts say different things of one prompt, or a language has no prefixes; nothing was
                begun.
            TypeError: Something is no fact.
            RuntimeError: Called under `torch.inference_mode`.
            FloatingPointError: NaN or infinity, a matrix that cannot be factored or decomposed, or any ValueError once
                the batch is begun, naming step and layer. Model and editor are as they were before the batch, as they
                are after every other error or an interrupt, and the next batch can follow.
        """
        if isinstance(facts, Fact | str):
            raise TypeError(f"got {type(facts).__name__} {facts!r:.60}, expected a list of facts: edit([fact])")
        kept, requests, dropped = self.requests(facts)
        check_agreement(kept)
        report = BatchReport(step=self.step, facts=[fact.id for fact in kept], dropped=dropped)
        if not kept:
            raise ValueError(f"no fact of the batch can be edited: {dropped or 'the batch is empty'}")
        return report, self.write(requests, report, progress)

    def write(
        self, requests: Sequence[ValueRequest], report: BatchReport, progress: Callable[[int], None] | None = None
    ) -> dict[int, Update]:
        """`edit` on token rows that are already made; fills in `report`."""
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "edits are looked for along gradients, which torch.inference_mode() switches off for good; leave it "
                "for the edit (torch.no_grad() may stay)"
            )
        self._check_ready()
        clock, doing = Clock(report.seconds, report.processor), _Doing("values")
        try:
            if self.settings.finetune is not None:
                updates = self._train(requests, report, clock)
                if progress:
                    progress(len(requests))
            elif self.settings.one_by_one:
                parts = []
                for i, request in enumerate(requests):
                    parts.append(self._solve([request], report.facts[i : i + 1], report, clock, doing))
                    if progress:
                        progress(i + 1)
                updates = {layer: Update.joined([part[layer] for part in parts]) for layer in self.settings.layers}
            else:
                updates = self._solve(requests, report.facts, report, clock, doing, progress)
            if self.settings.keep_share < 1:
                # As published: keys of higher layers see the whole update, what stays is its largest part.
                with clock("write"):
                    self._put_back()
                    write(self.model, updates, self.settings)
            for layer, update in updates.items():
                doing.what = f"the report of layer {layer}"
                report.layers[layer] = self.layers[layer].report(update)
            with clock("projection"):
                self._remember(updates, doing)
        except BaseException as error:
            self._put_back()
            if isinstance(error, FloatingPointError | ValueError | torch.linalg.LinAlgError):
                message = f"batch {self.step}, {doing.what}: {error}; the model is as it was before this batch"
                raise FloatingPointError(message) from error
            raise
        return updates

    def _solve(
        self, requests: Sequence[ValueRequest], names: Sequence[str], report: BatchReport, clock: Clock, doing: _Doing,
        progress: Callable[[int], None] | None = None,
    ) -> dict[int, Update]:  # fmt: skip
        """Values, keys and updates of some facts, written into the model layer by layer."""
        layers, settings, model = self.settings.layers, self.settings, self.model
        updates: dict[int, Update] = {}
        exhausted = torch.zeros(len(requests), dtype=torch.bool)
        doing.what = "values"
        with clock("values"):
            targets = layers if settings.spread == "joint" else layers[-1:]
            values = optimise_values(
                model, requests, targets, settings.values, microbatch=settings.microbatch, progress=progress
            )
        with clock("keys"):
            contexts = [r.key_contexts or r.contexts for r in requests]
            reader = KeyReader(model, contexts, layers, microbatch=settings.microbatch)
        for number, layer in enumerate(layers):
            doing.what, state = f"layer {layer}", self.layers[layer]
            with clock("keys"):
                keys, at = self._keys(reader, layer)
                residual = self._residual(reader, values, number)
            with clock("projection"):
                space = state.space()
            with clock("solve"):
                update, alive = state.solve(space, keys, residual, at)
                exhausted |= ~alive.cpu()
            with clock("write"):
                model.add_(layer, update.delta)
            updates[layer] = update
        report.exhausted += [name for name, dead in zip(names, exhausted.tolist(), strict=True) if dead]
        before = len(report.steps)
        report.steps += values.steps
        report.final_loss += values.final
        report.converged += (values.converged - report.converged) * (len(report.steps) - before) / len(report.steps)
        return updates

    def _train(self, requests: Sequence[ValueRequest], report: BatchReport, clock: Clock) -> dict[int, Update]:
        """Fine-tuning: its values are the weights themselves."""
        settings = self.settings
        with clock("values"):
            found = fine_tune(self.model, requests, settings.layers, settings.finetune, microbatch=settings.microbatch)
        updates = {layer: Update.of_dense(delta) for layer, delta in found.delta.items()}
        with clock("write"):
            write(self.model, updates, self.settings)
        report.steps, report.final_loss = [found.steps] * len(requests), found.last
        report.converged = sum(loss < settings.finetune.stop for loss in found.last) / len(requests)
        return updates

    def _put_back(self) -> None:
        # All layers: an interrupt may come between the write and its being noted down.
        with torch.no_grad():
            for layer, state in self.layers.items():
                self.model.weight(layer).copy_(state.weight)

    def apply(self, updates: Mapping[int, Update]) -> None:
        """Repeat a stored batch: same weights, same state, to the bit.

        Model and editor are as they were if anything fails.

        Args:
            updates: What `edit` gave, by layer, on any device.

        Raises:
            ValueError: The sequence is finished, something else wrote to the matrices, or as `check_updates`.
        """
        self._check_ready()
        check_updates(self.model, updates, self.settings)
        updates = {layer: update.to(self.model.weight(layer).device) for layer, update in updates.items()}
        try:
            write(self.model, updates, self.settings)
            self._remember(updates)
        except BaseException:
            self._put_back()
            raise

    @torch.no_grad()
    def finish(self) -> None:
        """End the sequence. PRUNE damps the total update, once; every other method has nothing to do.

        Calling it again changes nothing. After PRUNE's, no batch can follow: what later updates add could no longer be
        told from what was damped. A resumed sequence is applied batch by batch, then finished, and ends the same.
        """
        if self.settings.damping is None or self.finished:
            return
        ends = {
            layer: damped(state.initial, self.model.weight(layer), self.settings)
            for layer, state in self.layers.items()
        }
        try:
            for layer, weight in ends.items():
                self.model.weight(layer).copy_(weight)
            self.finished = True
        except BaseException:
            self._put_back()
            raise

    @torch.no_grad()
    def reset(self) -> None:
        """Back to the beginning: the weights this editor found, no key remembered, ready for another sequence.

        What is costly to prepare, the decomposition of C₀, is kept; so single edits can be looked at one by one.
        """
        for layer, state in self.layers.items():
            vars(state).clear()
            vars(state).update(self._unedited[layer])
            self.model.weight(layer).copy_(state.initial)
        self.step, self.finished = 0, False

    def _check_ready(self) -> None:
        if self.finished:
            raise ValueError("the sequence is finished and its updates are damped; start another editor for more edits")
        # What failed would be put back to the wrong weights, and RECT starts each batch from them.
        if other := [layer for layer, s in self.layers.items() if not _same(self.model.weight(layer), s.weight)]:
            raise ValueError(
                f"something else wrote to the matrices of layers {other} since this editor's last batch (another "
                "editor of the same model, `Patch.remove`, ...); `reset()` goes back to the weights it began with, and "
                "a new editor begins with those there are"
            )

    def _remember(self, updates: Mapping[int, Update], doing: _Doing | None = None) -> None:
        """Take a batch into the state of all layers, or of none if anything fails on the way."""
        known, doing = {}, doing or _Doing("")
        for layer, state in self.layers.items():
            doing.what = f"remembering the keys of layer {layer}"
            known[layer] = state.remembered(updates[layer])
        for layer, state in self.layers.items():
            vars(state).update(known[layer])
        self.step += 1

    def _keys(self, reader: KeyReader, layer: int) -> tuple[Float[Tensor, "d_in n"], Float[Tensor, "d_in n"] | None]:
        """Keys of all facts, and where an exact constraint holds if not there."""
        settings = self.settings
        rows = reader.read(layer)
        by_fact = rows.split(reader.counts)
        mean = settings.average == "mean"
        keys = torch.stack([x.mean(0) for x in by_fact], dim=1) if mean else reader.average(rows)
        return keys, torch.stack([x[0] for x in by_fact], dim=1) if settings.meets == "bare" else None

    def _residual(self, reader: KeyReader, values: Values, number: int) -> Float[Tensor, "d_out n"]:
        """What this layer has to add to its output, given what lower layers of the batch already did."""
        layers = self.settings.layers
        if self.settings.spread == "joint":
            return values.delta[layers[number]]
        missing = values.start + values.delta[layers[-1]] - reader.residual_stream()
        return missing / (len(layers) - number)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all entries are equal; a NaN equals a NaN, and what it does to a batch is told there."""
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


class LayerState:
    """What one edited layer remembers between batches."""

    def __init__(
        self, model: EditableModel, layer: int, settings: EditSettings, covariance: KeyCovariance | None
    ) -> None:
        """`covariance` is C₀; None where the method reads none (`EditSettings.needs_covariance`)."""
        self.model, self.layer, self.settings = model, layer, settings
        self.weight = model.weight(layer).clone()  # as of the last finished batch
        self.initial_norm = float(self.weight.float().norm())
        self.initial = self.weight
        self.past: tuple[Float[Tensor, "d _"], ...] = ()
        self.past_gram: Float[Tensor, "d d"] | None = None  # Σ kkᵀ of past keys that are not kept one by one
        self.energy: float | None = None  # mean ‖Pk‖² of the first batch, where the ridge is held at it
        d = model.d_ff
        self.metric: Metric | None = None
        if settings.space == "whole":
            self.projector: Projector = Fixed(NullSpace(d=d))
            if settings.needs_covariance:
                self.metric = CovarianceMetric(covariance.mean, settings.covariance_weight)
        else:
            self.projector = projector_of(PROJECTORS[settings.space], covariance, settings.threshold)
            if isinstance(self.projector, ReleasedMix):
                self.projector = replace(self.projector, counts=settings.released_counts)

    def space(self) -> NullSpace:
        """The directions free for the next batch."""
        return self.projector.space

    def solve(
        self, space: NullSpace, keys: Float[Tensor, "d_in n"], residual: Float[Tensor, "d_out n"],
        at: Float[Tensor, "d_in n"] | None = None,
    ) -> tuple[Update, Bool[Tensor, " n"]]:  # fmt: skip
        """The update of one batch, ΔW = R Bᵀ with B of `solve_update`, and which facts it edits.

        A key of which the space leaves a share of `exhausted` or less of its energy is not edited: its column of B is
        zero. λ is `ridge`, relative to the mean energy ‖Pk‖² of the keys that are left where `relative_ridge` says so,
        of those of the first batch where `hold_ridge` does; with a covariance metric there is none. SPHERE turns B off
        the main directions of the weight as it is now, with the earlier batches in it.

        Args:
            space: Directions free for this batch.
            keys: One per fact.
            residual: What each fact has to add to the output.
            at: Where an exact constraint holds, if not at `keys`.

        Raises:
            FloatingPointError: NaN or infinity in the keys or what follows from them; nothing was changed.
        """
        settings = self.settings
        # First: NaN is not above `exhausted` either, and a key that was never a number would be told as used up.
        if not torch.isfinite(keys).all():
            raise FloatingPointError(f"keys of layer {self.layer} hold NaN or infinity; no update is computed")
        alive = space.survival(keys) > settings.exhausted
        right = torch.zeros_like(keys)
        if alive.any():
            metric = self.metric
            if metric is None:
                energy = self._mean_energy(space, keys[:, alive]) if self.energy is None else self.energy
                metric = RidgeMetric(space, settings.ridge * (energy if settings.relative_ridge else 1.0))
            past = torch.cat(self.past, dim=1) if self.past else None
            exact = settings.constraint == "exact"
            met = None if at is None else at[:, alive]
            found = solve_update(keys[:, alive], metric, past, gram=self.past_gram, exact=exact, at=met)
            right[:, alive] = found.to(keys)
            if settings.sphere > 0:
                right = spread_off(right, self.model.weight(self.layer), settings.sphere, settings.sphere_share)
        return Update(left=residual.to(keys), right=right, keys=keys), alive

    def report(self, update: Update) -> LayerReport:
        """What the batch did, measured on the weight as it came out."""
        space, weight = self.space(), self.model.weight(self.layer).float()
        change, left = weight - self.weight.float(), update.left
        survival, written = torch.ones(1), None
        if update.dense is None:
            survival = space.survival(update.keys)
            wanted = left.square().sum(0).clamp_min(torch.finfo(left.dtype).tiny)
            written = float(((left * (change @ update.keys)).sum(0) / wanted).mean())
        return LayerReport(
            rank=space.rank,
            capacity=float(survival.mean()),
            capacity_min=float(survival.min()),
            relative_update=float(change.norm()) / self.initial_norm,
            relative_total=float((weight - self.initial.float()).norm()) / self.initial_norm,
            written=written,
        )

    def remembered(self, update: Update) -> dict[str, object]:
        """What this state becomes with the batch taken in; nothing is changed yet. The weight is the model's."""
        past, gram = self._with(update.keys) if self.settings.remember else ((), None)
        projector = self.projector.taking(update.keys)
        known = dict(weight=self.model.weight(self.layer).clone(), past=past, past_gram=gram, projector=projector)
        if self.settings.hold_ridge and self.energy is None:
            alive = self.space().survival(update.keys) > self.settings.exhausted
            known |= dict(energy=self._mean_energy(self.space(), update.keys[:, alive]) if alive.any() else None)
        return known

    @staticmethod
    def _mean_energy(space: NullSpace, keys: Float[Tensor, "d_in n"]) -> float:
        return float(space.project(keys.double()).square().sum(0).mean())

    def _with(self, keys: Float[Tensor, "d n"]) -> tuple[tuple[Tensor, ...], Float[Tensor, "d d"] | None]:
        """`past` and `past_gram` with `keys` among them."""
        past, gram, settings = (*self.past, keys), self.past_gram, self.settings
        many = sum(k.shape[1] for k in past) > len(keys) or gram is not None
        # Once they are more than dimensions, a penalty needs their sum only, which is sooner added to than made anew.
        # An exact constraint needs each of them, and the released projector holds each anyway.
        if many and settings.constraint == "penalty" and settings.space != "released":
            columns = torch.cat(past, dim=1).double()
            return (), columns @ columns.T if gram is None else torch.addmm(gram, columns, columns.T)
        return past, gram


@dataclass
class _Doing:
    """What a batch is about, for the error if it fails there."""

    what: str


class Clock:
    """Seconds per phase, added up: the clock's, and those of the processor."""

    def __init__(self, seconds: dict[str, float], processor: dict[str, float]) -> None:
        self.seconds, self.processor = seconds, processor

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        started, used = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started
            self.processor[phase] = self.processor.get(phase, 0.0) + time.process_time() - used
