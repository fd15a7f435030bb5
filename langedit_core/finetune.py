"""Constrained fine-tuning of the edited matrices, the baseline that solves nothing.

    minimise over D:  mean over facts −log p(target | W + D)   subject to |D_ij| ≤ box

by Adam, with D put back into its box after every step (FT-L of ROME, arXiv 2202.05262, after arXiv 2012.00363).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from langedit_core.forward import Replay, hooked, run_until
from langedit_core.memory import lacks_memory
from langedit_core.models import EditableModel
from langedit_core.tokens import Aligned
from langedit_core.values import ValueRequest


class FineTuneSettings(BaseModel):
    """How weights are trained. The defaults are scale-free; `published()` gives the form of the released code."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scored: Literal["own", "last"] = Field(
        "own",
        description="each target token at its own position, teacher-forced; or, as released, all of them (pads up to "
        "the batch's longest target included) with the one distribution after the prompt",
    )
    relative: bool = Field(True, description="rate and box in units of the root mean square of W's entries")
    rate: float = Field(0.05, gt=0, description="Adam step")
    box: float | None = Field(0.3, gt=0, description="largest |D_ij|; None: unconstrained")
    steps: int = Field(25, ge=1, description="forward passes at most")
    stop: float = Field(0.01, ge=0, description="training ends when the loss falls below this")

    @classmethod
    def published(cls, **changes) -> FineTuneSettings:
        """The released form: absolute step and box, all tokens of a target scored after the prompt."""
        return cls(**(dict(scored="last", relative=False, rate=5e-4, box=5e-5) | changes))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Result of a training run.

    Attributes:
        delta: D per layer.
        bias: Change of the projection's bias per layer; empty unless asked for.
        loss: Mean loss of every forward pass; the weights changed after each but one that ended the run.
        last: Loss per fact at the last pass.
        steps: Adam steps taken.
    """

    delta: dict[int, Float[Tensor, "d_out d_in"]]
    bias: dict[int, Float[Tensor, " d_out"]] = field(default_factory=dict)
    loss: list[float]
    last: list[float]
    steps: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Which tokens are scored where: for each fact its row's columns and the ids whose log-probability counts."""

    columns: tuple[int, ...]
    ids: tuple[int, ...]


def scored(requests: Sequence[ValueRequest], form: str, pad_id: int) -> list[Scored]:
    """Places and tokens of each request's bare row, in one of the two forms of `FineTuneSettings.scored`."""
    longest = max(len(request.target) for request in requests)
    found = []
    for request in requests:
        last = len(request.contexts[0].ids) - len(request.target)  # of the prompt; the row holds target[:-1] too
        if form == "own":
            columns, ids = range(last, last + len(request.target)), request.target
        else:
            ids = request.target + (pad_id,) * (longest - len(request.target))
            columns = (last,) * longest
        found.append(Scored(columns=tuple(columns), ids=tuple(ids)))
    return found


def fine_tune(
    model: EditableModel,
    requests: Sequence[ValueRequest],
    layers: Sequence[int],
    settings: FineTuneSettings,
    *,
    microbatch: int | None = None,
    bias: bool = False,
) -> Trained:
    """Train D on the bare prompts of `requests`, all together; the model itself is not changed.

    Args:
        model: The model as edited so far.
        requests: Facts as token rows; only the first context (the bare prompt) is used.
        layers: Layers whose matrix is trained, together.
        settings: See `FineTuneSettings`.
        microbatch: Facts per forward; None: all. Gradients are summed, so that memory is bounded and the result the
            same; when memory runs out, training begins again with half of them.
        bias: Train the projection's bias too. The released code does so where its settings name a module instead of
            its `.weight` (GPT-J's do); an `Update` is a change of a matrix, so no editor asks for it.

    Raises:
        MemoryError: Even a single fact does not fit.
        FloatingPointError: The loss became NaN or infinite.
    """
    if not requests:
        raise ValueError("no facts to train on: give at least one request")
    size = min(microbatch or len(requests), len(requests))
    while True:
        try:
            return _train(model, requests, layers, settings, size, bias)
        except RuntimeError as error:
            if not lacks_memory(error):
                raise
            if size == 1:
                raise MemoryError(
                    f"fine-tuning on one fact does not fit in memory: {error}; use a larger device"
                ) from error
        # Outside of the handler: its traceback holds the tensors that did not fit.
        size = math.ceil(size / 2)


@torch.enable_grad()  # callers often switch gradients off around everything they do with a model
def _train(
    model: EditableModel, requests: Sequence[ValueRequest], layers: Sequence[int], settings: FineTuneSettings,
    size: int, bias: bool,
) -> Trained:  # fmt: skip
    """`fine_tune` with `size` facts per forward."""
    n, places = len(requests), scored(requests, settings.scored, model.pad_id)
    chunks = [_Chunk(model, requests[i : i + size], places[i : i + size], layers[0]) for i in range(0, n, size)]

    trained = {layer: _Trainee(model, layer, settings, bias) for layer in layers}
    adam = torch.optim.Adam([dict(params=one.parameters, lr=one.rate) for one in trained.values()])

    losses, steps, last = [], 0, []
    for number in range(settings.steps):
        adam.zero_grad()
        last = []
        with hooked(*(model.write_port(layer).register_forward_hook(one.output) for layer, one in trained.items())):
            for chunk in chunks:
                nll = chunk.nll()
                (nll.sum() / n).backward()
                last += nll.tolist()
        losses.append(sum(last) / n)
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"fine-tuning gave a loss of {losses[-1]} at step {number}")
        if losses[-1] < settings.stop:
            break
        adam.step()
        steps += 1
        for one in trained.values():
            one.put_back_into_the_box()
    return Trained(
        delta={layer: one.change(0) for layer, one in trained.items()},
        bias={layer: one.change(1) for layer, one in trained.items() if bias},
        loss=losses, last=last, steps=steps,
    )  # fmt: skip


class _Trainee:
    """A copy of one projection in float32 (small steps vanish in less), put in the projection's place by a hook."""

    def __init__(self, model: EditableModel, layer: int, settings: FineTuneSettings, bias: bool) -> None:
        weight, self.bias = model.weight(layer).detach(), model.write_port(layer).bias
        unit = float(weight.float().square().mean().sqrt()) if settings.relative else 1.0
        self.rate, self.box = settings.rate * unit, math.inf if settings.box is None else settings.box * unit
        self.start = [weight.float(), *([self.bias.detach().float()] if bias else [])]
        self.parameters = [x.clone().requires_grad_() for x in self.start]

    def output(self, _module: nn.Module, args: tuple, _out: Tensor) -> Tensor:
        weight = self.parameters[0].to(args[0].dtype)
        bias = self.parameters[1].to(args[0].dtype) if len(self.parameters) > 1 else self.bias
        return nn.functional.linear(args[0], weight, bias)

    @torch.no_grad()
    def put_back_into_the_box(self) -> None:
        for start, x in zip(self.start, self.parameters, strict=True):
            x.copy_(x.clamp(start - self.box, start + self.box))

    @torch.no_grad()
    def change(self, which: int) -> Tensor:
        # Clamped once more: start + box was rounded, and no entry of an update shall be outside the box by an ulp.
        return (self.parameters[which] - self.start[which]).clamp(-self.box, self.box)


class _Chunk:
    """Some facts' bare rows, padded on the right, from the lowest trained layer up; what lies below is run once."""

    def __init__(
        self, model: EditableModel, requests: Sequence[ValueRequest], places: Sequence[Scored], first: int
    ) -> None:
        self.model, self.first = model, first
        device = model.device
        rows = [request.contexts[0].ids[: max(p.columns) + 1] for request, p in zip(requests, places, strict=True)]
        batch = _right_padded(rows, model.pad_id, device)
        self.replay = Replay(model, batch.rows, first, model.n_layers)
        with self.replay.recording():
            run_until(model, batch, model.n_layers)
        flat = [
            (row, column, token, len(place.ids))
            for row, place in enumerate(places)
            for column, token in zip(place.columns, place.ids, strict=True)
        ]
        self.row, self.column, self.token, length = torch.tensor(flat, device=device).T
        self.weight, self.rows = 1 / length, batch.rows

    def nll(self) -> Float[Tensor, " n"]:
        """Mean −log p over each fact's scored tokens."""
        hidden = self.replay.entry
        for layer in range(self.first, self.model.n_layers):
            hidden = self.replay(layer, hidden)
        logits = self.model.logits(hidden.to(self.row.device)[self.row, self.column]).float()
        each = (logits.logsumexp(1) - logits.gather(1, self.token[:, None]).squeeze(1)) * self.weight
        return torch.zeros(self.rows, device=each.device).index_add(0, self.row, each)


def _right_padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> Aligned:
    # On the right, a padded column still attends to real tokens; on the left it would attend to nothing, and the NaN
    # some attention kernels then give would reach the gradient of D, which sums over all columns.
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask: Int[Tensor, "b c"] = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    positions = torch.arange(width, device=device).expand(len(rows), -1)
    return Aligned(ids=ids, mask=mask.bool(), positions=positions.contiguous(), split=width)
