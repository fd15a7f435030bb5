"""The published formulas, transcribed literally: d x d matrices and inverses, one fact, one row, one text at a time.

Slow on purpose and without any code of the engine, so that a shared mistake is unlikely.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# --- closed forms -----------------------------------------------------------------------------------------------------
# Columns are facts: keys d_in x n, residual d_out x n, projection and past (a Gram matrix) d_in x d_in.


def memit(residual: Tensor, keys: Tensor, covariance: Tensor, weight: float) -> Tensor:
    """ΔW = R Kᵀ (λC + KKᵀ)⁻¹, eq. 14 of MEMIT (arXiv 2210.07229)."""
    return residual @ keys.T @ torch.linalg.inv(weight * covariance + keys @ keys.T)


def memit_seq(residual: Tensor, keys: Tensor, covariance: Tensor, weight: float, past: Tensor) -> Tensor:
    """ΔW = R Kᵀ (λC + S + KKᵀ)⁻¹ with S the Gram matrix of all earlier keys."""
    return residual @ keys.T @ torch.linalg.inv(weight * covariance + past + keys @ keys.T)


def alphaedit(residual: Tensor, keys: Tensor, projection: Tensor, past: Tensor, ridge: float) -> Tensor:
    """ΔW = R KᵀP [(KKᵀ + S)P + λI]⁻¹, eq. 14 of AlphaEdit (arXiv 2410.02355)."""
    eye = torch.eye(len(keys), dtype=keys.dtype)
    return residual @ keys.T @ projection @ torch.linalg.inv((keys @ keys.T + past) @ projection + ridge * eye)


def langedit(residual: Tensor, keys: Tensor, projection: Tensor) -> Tensor:
    """ΔW = R KᵀP (KKᵀP + I)⁻¹, the paper's update (arXiv 2506.10800)."""
    eye = torch.eye(len(keys), dtype=keys.dtype)
    return residual @ keys.T @ projection @ torch.linalg.inv(keys @ keys.T @ projection + eye)


def running_mean(mean: Tensor, count: int, keys: Tensor) -> tuple[Tensor, int]:
    """C̄ ← (n̄/(n̄+n)) C̄ + (1/(n̄+n)) KKᵀ, the paper's running covariance with its count."""
    total = count + keys.shape[1]
    return (count / total) * mean + (1 / total) * (keys @ keys.T), total


def null_projection(covariance: Tensor, cut: float) -> Tensor:
    """P = UUᵀ over the singular vectors whose singular value is below `cut`."""
    vectors, values, _ = torch.linalg.svd(covariance)
    kept = vectors[:, values < cut]
    return kept @ kept.T


def complement_of(keys: Tensor, rank: int) -> Tensor:
    """I − QQᵀ with Q an orthonormal basis of the span of `keys`, whose dimension is `rank`."""
    basis = torch.linalg.svd(keys, full_matrices=False)[0][:, :rank]
    return torch.eye(len(keys), dtype=keys.dtype) - basis @ basis.T


# --- one text through the whole model ---------------------------------------------------------------------------------


def whole_model(model, ids, deltas=None, lookup=None, site="write", watch=None):
    """Logits of one text at all positions, with `deltas[layer]` added at column `lookup`.

    `watch` is a dict that receives what entered (`in`) and left (`out`) each edited module, `(layer, "in"|"out")`.
    """
    handles = []

    def add(layer, delta):
        def hook(_module, _args, out):
            tensor = out[0] if isinstance(out, tuple) else out
            tensor = tensor.clone()
            tensor[0, lookup] = tensor[0, lookup] + delta
            return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

        return hook

    def see(layer):
        def hook(_module, args, out):
            tensor = out[0] if isinstance(out, tuple) else out
            watch[layer, "out"] = tensor.detach()[0].clone()
            if args:
                watch[layer, "in"] = args[0].detach()[0].clone()

        return hook

    for layer in range(model.n_layers):
        module = model.write_port(layer) if site == "write" else model.layers[layer]
        if watch is not None:
            handles.append(module.register_forward_hook(see(layer)))
        if deltas is not None and layer in deltas:
            handles.append(module.register_forward_hook(add(layer, deltas[layer])))
    try:
        return model.hf(input_ids=torch.tensor([list(ids)])).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def key(model, layer: int, rows) -> Tensor:
    """k = ½ k(bare) + ½ mean over prefixes of k(prefix); every text alone, whole model, all its tokens."""
    found = []
    for row in rows:
        seen: dict = {}
        with torch.no_grad():
            whole_model(model, row.ids, watch=seen)
        found.append(seen[layer, "in"][row.lookup])
    return found[0] if len(found) == 1 else (found[0] + torch.stack(found[1:]).mean(0)) / 2


class OneValue:
    """The value optimisation for one fact: every row alone, all layers, all positions, the whole vocabulary, Adam.

    Attributes:
        delta: Layer -> δ.
        losses: Loss of every forward pass.
        steps: Adam steps taken.
        start: Output at the bare prompt before the edit, at the first layer.
    """

    def __init__(self, model, request, layers, settings) -> None:
        site, relative = settings.site, settings.relative
        clean: dict = {}
        with torch.no_grad():
            whole_model(model, request.contexts[0].ids, site=site, watch=clean)
            before = whole_model(model, request.kl.ids)[request.kl.lookup].log_softmax(-1)
        at = request.contexts[0].lookup
        size = {layer: clean[layer, "out"][at].norm() for layer in layers}
        self.start = clean[layers[0], "out"][at]
        unit = {layer: size[layer] / math.sqrt(model.d_model) if relative else torch.tensor(1.0) for layer in layers}
        x = {layer: torch.zeros(model.d_model, requires_grad=True) for layer in layers}
        mean = {layer: torch.zeros(model.d_model) for layer in layers}
        square = {layer: torch.zeros(model.d_model) for layer in layers}
        self.losses: list[float] = []
        self.steps = 0
        for iteration in range(settings.steps):
            delta = {layer: x[layer] * unit[layer] for layer in layers}
            nll = torch.tensor(0.0)
            for row in request.contexts:
                logits = whole_model(model, row.ids, delta, row.lookup, site)
                last = logits[-len(request.target) :].log_softmax(-1)
                nll = nll - last[range(len(request.target)), list(request.target)].mean() / len(request.contexts)
            after = whole_model(model, request.kl.ids, delta, request.kl.lookup, site)
            after = after[request.kl.lookup].log_softmax(-1)
            kl = (after.exp() * (after - before)).sum()
            penalty = torch.tensor(0.0)
            for layer in layers:
                if relative:
                    penalty = penalty + delta[layer].square().sum() / size[layer] ** 2
                else:
                    penalty = penalty + delta[layer].norm() / size[layer] ** 2
            loss = nll + settings.kl * kl + settings.penalty * penalty
            self.losses.append(loss.item())
            if loss.item() < settings.stop or iteration == settings.steps - 1:
                break
            gradients = torch.autograd.grad(loss, [x[layer] for layer in layers])
            self.steps += 1
            with torch.no_grad():
                for layer, gradient in zip(layers, gradients, strict=True):
                    mean[layer] = 0.9 * mean[layer] + 0.1 * gradient
                    square[layer] = 0.999 * square[layer] + 0.001 * gradient.square()
                    m = mean[layer] / (1 - 0.9**self.steps)
                    v = square[layer] / (1 - 0.999**self.steps)
                    x[layer] -= settings.rate * m / (v.sqrt() + 1e-8)
                    longest = settings.clamp * size[layer] / unit[layer]
                    if x[layer].norm() > longest:
                        x[layer] *= longest / x[layer].norm()
        self.delta = {layer: (x[layer] * unit[layer]).detach() for layer in layers}


def greedy(model, prompt_ids, length: int) -> list[int]:
    """What the library's own greedy generation says, `length` tokens; the end token does not stop it."""
    made = model.hf.generate(
        torch.tensor([list(prompt_ids)]), attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=model.pad_id, eos_token_id=None,
    )  # fmt: skip
    return made[0, len(prompt_ids) :].tolist()
