"""A literal edit step as published, to compare the engine with: it shares no code with what it is compared to.

One fact at a time, the whole model, all positions, the full vocabulary (ROME, arXiv 2202.05262; MEMIT, 2210.07229);
then per layer keys by a full forward, a d x d decomposition and [P(KKᵀ + S) + λI] ΔWᵀ = P K Rᵀ (LangEdit, 2506.10800).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from langedit_core.models import EditableModel
    from langedit_core.tokens import Row
    from langedit_core.values import ValueRequest, ValueSettings

Deltas = dict[int, Float[Tensor, " d_out"]]


def pad(model: EditableModel, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Token rows padded on the right, as a tokenizer does it."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), model.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    return dict(input_ids=ids, attention_mask=mask)


class LiteralLoss:
    """The loss of one fact: all its contexts and the KL prompt in one padded batch, the head at every position.

    The first call is made with δ = 0; it fixes what the KL term compares with and the norms ‖o‖.

    Args:
        model: The model; its weights are not changed.
        request: Token rows of the fact.
        layers: Layers whose write port gets a δ at the subject's last token.
        settings: The engine's settings; `vocabulary` is not used.
        head_twice: Apply the head a second time for the likelihood, as the published code does.

    Raises:
        ValueError: Settings of the residual-stream form.
    """

    def __init__(
        self, model: EditableModel, request: ValueRequest, layers: Sequence[int], settings: ValueSettings,
        *, head_twice: bool = False,
    ) -> None:  # fmt: skip
        if settings.site != "write" or not settings.relative:
            raise ValueError(f"the reference works at the write port with relative steps; got {settings!r}")
        rows = [*request.contexts, request.kl]
        self.model, self.layers, self.settings, self.head_twice = model, tuple(layers), settings, head_twice
        self.batch, self.contexts = pad(model, rows), len(request.contexts)
        self.lookup = torch.tensor([row.lookup for row in rows])
        self.target = torch.tensor(request.target).expand(self.contexts, -1)
        length = self.target.shape[1]
        self.places = torch.stack([torch.arange(len(r.ids) - length, len(r.ids)) for r in request.contexts])
        self.norm: dict[int, float] = {}
        self.before: Tensor | None = None

    def _adding(self, layer: int, delta: Tensor):
        def hook(_module, _args, out):
            self.norm.setdefault(layer, float(out[0, self.lookup[0]].detach().norm()))
            rows = torch.arange(len(self.lookup))
            return out.index_put((rows, self.lookup), delta.expand(len(rows), -1), accumulate=True)

        return self.model.write_port(layer).register_forward_hook(hook)

    def __call__(self, delta: Deltas) -> Tensor:
        hidden: dict[str, Tensor] = {}
        head = self.model.hf.get_output_embeddings()
        handles = [self._adding(layer, delta[layer]) for layer in self.layers]
        handles.append(head.register_forward_pre_hook(lambda _m, args: hidden.__setitem__("last", args[0])))
        try:
            logits = self.model.hf(**self.batch, use_cache=False).logits
        finally:
            for handle in handles:
                handle.remove()
        n = self.contexts
        # The published code takes the KL term from the model's logits and applies the head anew for the likelihood.
        log_probs = (head(hidden["last"][:n]) if self.head_twice else logits[:n]).log_softmax(dim=2)
        scored = log_probs[torch.arange(n)[:, None], self.places].gather(2, self.target[..., None]).squeeze(2)
        now = logits[n, self.lookup[n]].log_softmax(dim=0)
        self.before = now.detach() if self.before is None else self.before
        kl = self.settings.kl * (now.exp() * (now - self.before)).sum()
        penalty = sum(self.settings.penalty * (delta[i] / self.norm[i]).square().sum() for i in self.layers)
        return -scored.mean() + kl + penalty


@dataclass(frozen=True, kw_only=True)
class LiteralValue:
    """What was found for one fact: δ per layer, the loss of every forward pass, the Adam steps taken."""

    delta: Deltas
    loss: list[float]
    steps: int


def literal_value(
    model: EditableModel, request: ValueRequest, layers: Sequence[int], settings: ValueSettings, **options
) -> LiteralValue:
    """δ for one fact by plain Adam; arguments as for `LiteralLoss`."""
    loss_of = LiteralLoss(model, request, layers, settings, **options)
    delta = {layer: torch.zeros(model.d_model, requires_grad=True) for layer in layers}
    losses: list[float] = []
    optimiser, steps = None, 0
    for iteration in range(settings.steps):
        loss = loss_of(delta)
        losses.append(loss.item())
        if losses[-1] < settings.stop or iteration == settings.steps - 1:
            break
        if optimiser is None:  # the unit of a step is known after the first pass only
            unit = settings.rate / math.sqrt(model.d_model)
            groups = [dict(params=[delta[layer]], lr=unit * loss_of.norm[layer]) for layer in layers]
            optimiser = torch.optim.Adam(groups)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        steps += 1
        with torch.no_grad():
            for layer in layers:
                longest = settings.clamp * loss_of.norm[layer]
                if delta[layer].norm() > longest:
                    delta[layer] *= longest / delta[layer].norm()
    return LiteralValue(delta={layer: x.detach() for layer, x in delta.items()}, loss=losses, steps=steps)


@torch.no_grad()
def exact_loss(
    model: EditableModel, request: ValueRequest, delta: Deltas, layers: Sequence[int], settings: ValueSettings
) -> float:
    """Loss of a δ found by whomever, over the whole vocabulary at all positions."""
    loss_of = LiteralLoss(model, request, layers, settings)
    loss_of({layer: torch.zeros_like(x) for layer, x in delta.items()})
    return loss_of(delta).item()


@torch.no_grad()
def literal_layer_update(
    model: EditableModel,
    contexts: Sequence[Sequence[Row]],
    layer: int,
    mean: Float[Tensor, "d d"],
    residual: Float[Tensor, "d_out n"],
    cut: float,
    ridge: float,
) -> tuple[Float[Tensor, "d_out d"], dict[str, float]]:
    """Update of one layer for one batch, and the seconds of its phases.

    Args:
        model: The model.
        contexts: For every fact its rows, the bare prompt first.
        layer: Edited layer.
        mean: Running second moment of all keys so far.
        residual: What the edit must add.
        cut: Eigenvalues below it are free.
        ridge: λ, relative to the mean energy of the projected keys.
    """
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[phase], started = now - started, now

    rows, seen = [row for fact in contexts for row in fact], {}
    handle = model.write_port(layer).register_forward_pre_hook(lambda _m, args: seen.__setitem__("key", args[0]))
    try:
        model.hf(**pad(model, rows), use_cache=False)
    finally:
        handle.remove()
    read = seen["key"][torch.arange(len(rows)), torch.tensor([row.lookup for row in rows])]
    parts = read.split([len(fact) for fact in contexts])
    keys = torch.stack([part[0] if len(part) == 1 else (part[0] + part[1:].mean(0)) / 2 for part in parts], dim=1)
    lap("keys")

    eigenvalues, vectors = torch.linalg.eigh(mean.float())
    free = vectors[:, eigenvalues < cut]
    projection = free @ free.T
    lap("decomposition")

    inside = projection @ keys
    penalty = ridge * inside.square().sum(0).mean() * torch.eye(len(mean))
    delta = torch.linalg.solve(inside @ keys.T + penalty, inside @ residual.T).T
    lap("solve")
    return delta, seconds
