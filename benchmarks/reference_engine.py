"""A literal edit step as published, to compare the engine with: it shares no code with what it is compared to.

One fact at a time, the whole model, all positions, the full vocabulary (ROME, arXiv 2202.05262; MEMIT, 2210.07229);
then per layer keys by a full forward, a d x d decomposition and Δ = R KᵀP [(KKᵀ + S)P + λI]⁻¹ (LangEdit, 2506.10800).
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True, kw_only=True)
class ReferenceValue:
    """What was found for one fact.

    Attributes:
        delta: Layer -> (d_out,), to be added at the write port.
        loss: Loss of every forward pass, over the whole vocabulary.
        steps: Adam steps taken.
    """

    delta: dict[int, Float[Tensor, " d_out"]]
    loss: list[float]
    steps: int


def _pad(model: EditableModel, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Token rows padded on the right, as a tokenizer does it."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), model.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    return dict(input_ids=ids, attention_mask=mask)


def reference_value(
    model: EditableModel, request: ValueRequest, layers: Sequence[int], settings: ValueSettings
) -> ReferenceValue:
    """δ for one fact: every step runs all contexts and the KL prompt through the whole model with its whole head.

    Args:
        model: The model; its weights are not changed.
        request: Token rows of the fact.
        layers: Layers with a δ, optimised jointly.
        settings: The engine's settings; `site` must be `write`, `vocabulary` is not used.

    Raises:
        ValueError: Another `site`.
    """
    if settings.site != "write" or not settings.relative:
        raise ValueError(f"the reference works at the write port with relative steps, settings have {settings!r}")
    rows = [*request.contexts, request.kl]
    batch, n = _pad(model, rows), len(request.contexts)
    lookup = torch.tensor([row.lookup for row in rows])
    target = torch.tensor(request.target)
    places = torch.stack([torch.arange(len(row.ids) - len(target), len(row.ids)) for row in request.contexts])
    every = torch.arange(len(rows))

    delta = {layer: torch.zeros(model.d_model, requires_grad=True) for layer in layers}
    start: dict[int, float] = {}

    def add(layer: int):
        def hook(_module, _args, out):
            start.setdefault(layer, float(out[0, lookup[0]].detach().norm()))
            return out.index_put((every, lookup), delta[layer].expand(len(rows), -1), accumulate=True)

        return model.write_port(layer).register_forward_hook(hook)

    losses: list[float] = []
    optimiser, before, steps = None, None, 0
    handles = [add(layer) for layer in layers]
    try:
        for iteration in range(settings.steps):
            log_probs = model.hf(**batch, use_cache=False).logits.log_softmax(dim=2)
            scored = log_probs[torch.arange(n)[:, None], places].gather(2, target.expand(n, -1)[..., None])
            nll = -scored.squeeze(2).mean(dim=1).mean()
            now = log_probs[n, lookup[n]]
            before = now.detach().clone() if before is None else before
            kl = settings.kl * (now.exp() * (now - before)).sum()
            penalty = sum(settings.penalty * (delta[i] / start[i]).square().sum() for i in layers)
            loss = nll + kl + penalty
            losses.append(float(loss))
            if losses[-1] < settings.stop or iteration == settings.steps - 1:
                break
            if optimiser is None:  # the scale is known after the first pass only
                scale = math.sqrt(model.d_model)
                optimiser = torch.optim.Adam(
                    [dict(params=[delta[i]], lr=settings.rate * start[i] / scale) for i in layers]
                )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            steps += 1
            with torch.no_grad():
                for layer in layers:
                    longest = settings.clamp * start[layer]
                    if delta[layer].norm() > longest:
                        delta[layer] *= longest / delta[layer].norm()
    finally:
        for handle in handles:
            handle.remove()
    return ReferenceValue(delta={i: x.detach() for i, x in delta.items()}, loss=losses, steps=steps)
