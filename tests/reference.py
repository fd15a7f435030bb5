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


def rome(residual: Tensor, key: Tensor, covariance: Tensor) -> Tensor:
    """ΔW = Λ (C⁻¹k)ᵀ with Λ = r / ((C⁻¹k)ᵀk), eq. 2 of ROME (arXiv 2202.05262), for one fact."""
    direction = torch.linalg.inv(covariance) @ key
    return torch.outer(residual / (direction @ key), direction)


def rect(delta: Tensor, weight: Tensor, kept_percent: int) -> Tensor:
    """The largest relative changes, by sorting; the cut itself stays (RECT, arXiv 2401.04700, as released)."""
    relative = (delta / (weight + 1e-8)).abs()
    order = relative.flatten().sort().values
    cut = order[max(0, delta.numel() * (100 - kept_percent) // 100 - 1)]
    return delta * (relative >= cut)


def prune(total: Tensor, weight: Tensor) -> Tensor:
    """The damped total update: singular values above σ_max(W₀) by the logarithm of PRUNE (arXiv 2405.16821)."""
    largest = torch.linalg.svdvals(weight)[0]
    left, values, right = torch.linalg.svd(total)
    out = torch.zeros_like(total)
    for i, s in enumerate(values):
        out = out + (s if s <= largest else s.log() - largest.log() + largest) * torch.outer(left[:, i], right[i])
    return out


def sphere(delta: Tensor, weight: Tensor, strength: float, share: float) -> Tensor:
    """ΔW (I − α UUᵀ), U the leading eigenvectors of the Gram matrix of normalised rows (SPHERE, arXiv 2510.01172)."""
    rows = torch.stack([row / row.norm() for row in weight])
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    basis, reached = [], 0.0
    for i in reversed(range(len(values))):
        if reached >= share * float(values.sum()):
            break
        basis.append(vectors[:, i])
        reached += float(values[i])
    inside = torch.stack(basis, dim=1)
    return delta @ (torch.eye(weight.shape[1], dtype=weight.dtype) - strength * inside @ inside.T)


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


def fine_tune(model, requests, layer: int, settings, rate: float, box: float) -> tuple[Tensor, list[float]]:
    """Training of one matrix on bare prompts: every text alone through the whole model, Adam written out.

    Returns the change of the matrix and the loss of every forward pass.
    """
    start = model.weight(layer).clone()
    parameter = model.write_port(layer).weight
    longest = max(len(request.target) for request in requests)
    mean, square, losses = torch.zeros_like(start), torch.zeros_like(start), []
    for step in range(1, settings.steps + 1):
        parameter.requires_grad_(True)
        loss = torch.tensor(0.0)
        for request in requests:
            ids, target = request.contexts[0].ids, list(request.target)
            said = model.hf(torch.tensor([ids])).logits[0].log_softmax(-1)
            if settings.scored == "own":
                each = [-said[len(ids) - len(target) + i, token] for i, token in enumerate(target)]
            else:
                each = [-said[len(ids) - len(target), t] for t in target + [model.pad_id] * (longest - len(target))]
            loss = loss + torch.stack(each).mean() / len(requests)
        losses.append(loss.item())
        (gradient,) = torch.autograd.grad(loss, parameter)
        parameter.requires_grad_(False)
        if losses[-1] < settings.stop:
            break
        gradient = gradient.T if model.architecture.transposed else gradient
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient.square()
        change = rate * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        weight = model.weight(layer)
        weight.copy_(torch.minimum(torch.maximum(weight - change, start - box), start + box))
    change = model.weight(layer) - start
    model.weight(layer).copy_(start)
    return change, losses


def greedy(model, prompt_ids, length: int) -> list[int]:
    """What the library's own greedy generation says, `length` tokens; the end token does not stop it."""
    made = model.hf.generate(
        torch.tensor([list(prompt_ids)]), attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        max_new_tokens=length, min_new_tokens=length, do_sample=False, pad_token_id=model.pad_id, eos_token_id=None,
    )  # fmt: skip
    return made[0, len(prompt_ids) :].tolist()
