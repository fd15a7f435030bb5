"""Find what the edited layer must put out: for each fact a δ that makes the model say the new object.

    minimise over δ:  mean over contexts −log p(target | δ) + KL(p_δ ‖ p₀ | "{subject} is a") + penalty(‖δ‖)

with δ added at the subject's last token (eq. 4 of ROME, arXiv 2202.05262; MEMIT, arXiv 2210.07229). All facts of a
batch run together, on the suffix only, with the vocabulary head only where the target is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from langedit_core.forward import SuffixForward, hidden_of, hooked
from langedit_core.models import EditableModel
from langedit_core.tokens import Row, align


class ValueSettings(BaseModel):
    """How values are optimised. The defaults are scale-free; `published()` gives the form of the released code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    site: str = Field("write", pattern="^(write|residual)$", description="where δ is added")
    relative: bool = Field(True, description="learning rate, clamp and penalty relative to the norm of the output")
    steps: int = Field(25, ge=1, description="forward passes at most")
    rate: float = Field(0.4, gt=0, description="Adam step, in units of ‖o‖/√d when relative")
    clamp: float = Field(10.0, gt=0, description="largest ‖δ‖/‖o‖")
    penalty: float = Field(1e-3, ge=0, description="weight of ‖δ‖²/‖o‖², or of ‖δ‖/‖o‖² when not relative")
    kl: float = Field(0.0625, ge=0, description="weight of the KL term at the subject's last token")
    stop: float = Field(0.05, gt=0, description="a fact is finished when its loss falls below this")
    kl_prompt: str = "{} is a"
    vocabulary: int | None = Field(512, description="likeliest words per position kept in the softmax; None: all")

    @classmethod
    def published(cls, **changes) -> ValueSettings:
        """The released form: absolute steps on the residual stream, exact softmax."""
        form = dict(site="residual", relative=False, rate=0.5, clamp=0.75, penalty=0.5, vocabulary=None)
        return cls(**(form | changes))


@dataclass(frozen=True, kw_only=True)
class ValueRequest:
    """One fact as token rows: one row per context, each prompt followed by the target without its last token."""

    contexts: tuple[Row, ...]
    target: tuple[int, ...]
    kl: Row
    key_contexts: tuple[Row, ...] | None = None  # where the key is read; None: under `contexts`


@dataclass(frozen=True, kw_only=True)
class ValuePass:
    """One forward pass of the optimisation, for those who want to watch it; all tensors are detached.

    Attributes:
        active: Facts still being optimised; the other entries of the tensors below mean nothing.
        delta: δ the pass was run with, layer -> (n, d_out).
        row_nll: Mean −log p of the target's tokens, per row that was run; `rows` says which.
        kl: KL term with its weight, per fact.
        penalty: Norm penalty with its weight, per fact.
        loss: What is compared with the stopping loss, per fact.
    """

    active: Bool[Tensor, " n"]
    delta: dict[int, Float[Tensor, "n d_out"]]
    rows: Int[Tensor, " b"]
    row_nll: Float[Tensor, " b"]
    kl: Float[Tensor, " n"]
    penalty: Float[Tensor, " n"]
    loss: Float[Tensor, " n"]


@dataclass(frozen=True, kw_only=True)
class Values:
    """Result of the optimisation, one column per fact.

    Attributes:
        delta: What to add at each edited layer, layer -> (d_out, n).
        start: Output before the edit at the bare prompt, at the first edited layer (h₀ or o).
        loss: Loss of every forward pass, one list per fact.
        steps: Adam steps taken.
        nll: Negative log likelihood of the target at the last pass.
        stop: Loss at which a fact was finished.
    """

    delta: dict[int, Float[Tensor, "d_out n"]]
    start: Float[Tensor, "d_out n"]
    loss: list[list[float]]
    steps: list[int]
    nll: list[float]
    stop: float

    @property
    def converged(self) -> float:
        """Share of facts whose loss fell below the stopping loss."""
        return sum(loss[-1] < self.stop for loss in self.loss) / len(self.loss)


def optimise_values(
    model: EditableModel,
    requests: Sequence[ValueRequest],
    layers: Sequence[int],
    settings: ValueSettings,
    *,
    microbatch: int | None = None,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[ValuePass], None] | None = None,
) -> Values:
    """Optimise δ for all `requests`; facts do not influence one another.

    Args:
        model: The model as edited so far.
        requests: Facts as token rows.
        layers: Layers that receive a δ, optimised jointly; the published form gives the last one only.
        settings: See `ValueSettings`.
        microbatch: Facts per micro-batch; None groups them by length. Halves when memory runs out.
        progress: Called with the number of facts finished.
        observe: Called with every forward pass.

    Raises:
        MemoryError: Even a single fact does not fit.
        FloatingPointError: The loss became NaN or infinite.
    """
    if not requests:
        raise ValueError("no facts to optimise values for: give at least one request")
    size = microbatch or len(requests)
    groups = _alike(requests, math.inf if microbatch else _ENOUGH.get(model.device.type, 8192))
    parts: list[Values] = []
    order: list[int] = []
    while groups:
        members = sorted(groups[0][:size])
        chunk = [requests[i] for i in members]
        try:
            parts.append(_optimise(model, chunk, layers, settings, observe))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not (isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)):
                raise
            if len(chunk) == 1:
                tokens = sum(len(row.ids) for row in chunk[0].contexts)
                raise MemoryError(
                    f"values of one fact ({tokens} tokens in {len(chunk[0].contexts)} contexts) do not fit in memory: "
                    f"{error}; use fewer or shorter contexts, or a larger device"
                ) from error
            size = math.ceil(len(chunk) / 2)
            continue
        order += members
        groups = [rest for rest in (groups[0][size:], *groups[1:]) if rest]
        if progress:
            progress(len(order))
    back = sorted(range(len(order)), key=order.__getitem__)
    loss, steps, nll = ([x for part in parts for x in getattr(part, name)] for name in ("loss", "steps", "nll"))
    return Values(
        delta={layer: torch.cat([p.delta[layer] for p in parts], dim=1)[:, back] for layer in parts[0].delta},
        start=torch.cat([p.start for p in parts], dim=1)[:, back],
        loss=[loss[i] for i in back],
        steps=[steps[i] for i in back],
        nll=[nll[i] for i in back],
        stop=settings.stop,
    )


_ENOUGH = {"cpu": 128}
"""Columns that keep a device busy (8192 where not listed); a larger micro-batch gains nothing, its padding costs."""


def _alike(requests: Sequence[ValueRequest], enough: int | float) -> list[list[int]]:
    """Facts of like suffix length together, since padded columns cost as much as others.

    A group takes longer facts until it has `enough` columns, then only such as need no padding. Which facts meet does
    not depend on the order they were given in.
    """
    width = [max(len(row.ids) - row.lookup for row in request.contexts) for request in requests]
    groups: list[list[int]] = []
    columns = longest = 0
    for i in sorted(range(len(requests)), key=lambda i: (width[i], requests[i].contexts[0].ids, requests[i].target)):
        if not groups or (columns >= enough and width[i] > longest):
            groups, columns = [*groups, []], 0
        groups[-1].append(i)
        columns, longest = columns + width[i] * len(requests[i].contexts), width[i]
    return groups


class _Scored:
    """Negative log likelihood of the targets, with the head applied at their positions only.

    With `ids`, the softmax runs over these words plus one bucket of constant mass for all others, taken from the
    first pass; `exact` uses the whole vocabulary.
    """

    def __init__(self, model: EditableModel, requests: Sequence[ValueRequest], device: torch.device) -> None:
        self.model = model
        places = []  # row, column, token, tokens of this target
        contexts = ((request, context) for request in requests for context in request.contexts)
        for row, (request, context) in enumerate(contexts):
            first = len(context.ids) - context.lookup - len(request.target)
            places += [(row, first + j, token, len(request.target)) for j, token in enumerate(request.target)]
        self.row, self.column, self.token, length = torch.tensor(places, device=device).T
        self.weight = 1 / length
        self.rows = int(self.row[-1]) + 1
        self.ids: Tensor | None = None

    @torch.no_grad()
    def restrict(self, hidden: Float[Tensor, "b c d"], keep: int) -> None:
        logits = self.model.logits(hidden[self.row, self.column])
        top = logits.topk(min(keep, logits.shape[-1]), dim=-1).indices
        self.ids, place = torch.unique(torch.cat([top.flatten(), self.token]), return_inverse=True)
        self.place = place[top.numel() :]
        self.tail = _outside(logits, self.ids)

    def __call__(self, hidden: Float[Tensor, "b c d"], rows: Tensor, exact: bool = False) -> Float[Tensor, " b"]:
        """Mean −log p over the target's tokens, for each row of the batch that was run."""
        where = torch.full((self.rows,), -1, device=rows.device)
        where[rows] = torch.arange(len(rows), device=rows.device)
        use = (where[self.row] >= 0).nonzero().squeeze(1)
        scored = hidden[where[self.row[use]], self.column[use]]
        if exact or self.ids is None:
            logits = self.model.logits(scored)
            right, total = logits.gather(1, self.token[use, None]).squeeze(1), logits.logsumexp(1)
        else:
            logits = self.model.logits(scored, self.ids)
            right = logits.gather(1, self.place[use, None]).squeeze(1)
            total = torch.logaddexp(logits.logsumexp(1), self.tail[use])
        nll = (total - right) * self.weight[use]
        return torch.zeros(len(rows), device=nll.device, dtype=nll.dtype).index_add(0, where[self.row[use]], nll)


def _outside(logits: Float[Tensor, "b v"], ids: Int[Tensor, " k"]) -> Float[Tensor, " b"]:
    """log Σ exp of all logits not in `ids`."""
    return logits.index_fill(1, ids, -torch.inf).logsumexp(1)


class _Drift:
    """KL(p_δ ‖ p₀) at the subject's last token of "{subject} is a"; words outside `ids` share one bucket."""

    @torch.no_grad()
    def __init__(self, run: SuffixForward, keep: int | None) -> None:
        self.run = run
        logits = run.model.logits(run()[:, 0])
        self.ids = None if keep is None else torch.unique(logits.topk(min(keep, logits.shape[-1])).indices)
        if self.ids is not None and len(self.ids) == logits.shape[-1]:
            self.ids = None  # an empty bucket has mass 0, and 0 · log 0 is NaN
        self.tail = None if self.ids is None else _outside(logits, self.ids)
        self.before = self._log_softmax(logits if self.ids is None else logits[:, self.ids], slice(None))

    def _log_softmax(self, logits: Tensor, rows) -> Tensor:
        if self.tail is not None:
            logits = torch.cat([logits, self.tail[rows, None]], dim=1)
        return logits.log_softmax(1)

    def __call__(self, deltas: dict[int, Float[Tensor, "n d"]], rows: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        hidden = self.run({layer: delta[rows] for layer, delta in deltas.items()}, rows)[:, 0]
        after = self._log_softmax(self.run.model.logits(hidden, self.ids), rows)
        return (after.exp() * (after - self.before[rows])).sum(1)


def _optimise(
    model: EditableModel,
    requests: Sequence[ValueRequest],
    layers: Sequence[int],
    settings: ValueSettings,
    observe: Callable[[ValuePass], None] | None,
) -> Values:
    device, n = model.device, len(requests)
    batch = align([row for request in requests for row in request.contexts], model.pad_id, device)
    run = SuffixForward(model, batch, layer=layers[0], site=settings.site)
    fact_of_row = torch.tensor([i for i, r in enumerate(requests) for _ in r.contexts], device=device)
    contexts = torch.bincount(fact_of_row)
    bare = contexts.cumsum(0) - contexts

    def per_fact(row_nll: Tensor, rows: Tensor) -> Tensor:
        total = torch.zeros(n, device=device, dtype=row_nll.dtype).index_add(0, fact_of_row[rows], row_nll)
        return total / contexts

    score = _Scored(model, requests, device)
    if settings.vocabulary is not None:
        with torch.no_grad():
            score.restrict(run(), settings.vocabulary)
    drift = None
    if settings.kl > 0:
        kl_rows = [Row(ids=r.kl.ids[: r.kl.lookup + 1], lookup=r.kl.lookup) for r in requests]
        kl_run = SuffixForward(model, align(kl_rows, model.pad_id, device), layer=layers[0], site=settings.site)
        drift = _Drift(kl_run, settings.vocabulary)

    start = {layers[0]: run.port if settings.site == "write" else run.block[:, 0]}
    start |= _port_outputs(run, layers[1:], settings.site)
    norm = {layer: out[bare].norm(dim=1, keepdim=True) for layer, out in start.items()}
    d = model.d_model
    unit = {layer: (x / math.sqrt(d) if settings.relative else torch.ones_like(x)) for layer, x in norm.items()}
    steps = {layer: torch.zeros(n, d, device=device, requires_grad=True) for layer in layers}
    adam = torch.optim.Adam(steps.values(), lr=settings.rate)

    losses: list[list[float]] = [[] for _ in requests]
    taken, last_nll = [0] * n, [math.nan] * n
    active = torch.ones(n, dtype=torch.bool, device=device)
    for iteration in range(settings.steps):
        rows = active[fact_of_row].nonzero().squeeze(1)
        delta = {layer: steps[layer] * unit[layer] for layer in layers}
        hidden = run({layer: x[fact_of_row[rows]] for layer, x in delta.items()}, rows)
        row_nll = score(hidden, rows)
        nll = per_fact(row_nll, rows)
        penalty = sum(_penalty(delta[layer], norm[layer], settings) for layer in layers)
        kl = torch.zeros_like(nll)
        if drift is not None:
            facts = active.nonzero().squeeze(1)
            kl = kl.index_add(0, facts, settings.kl * drift(delta, facts))
        loss = nll + kl + penalty
        if not torch.isfinite(loss[active]).all():
            raise FloatingPointError(f"value optimisation gave a loss of {loss.tolist()} at step {iteration}")

        shown, shown_nll = loss.detach(), nll.detach()
        finished = active & (shown < settings.stop)
        if finished.any() and score.ids is not None:
            with torch.no_grad():  # the restricted softmax only proposes; the whole vocabulary decides
                mine = finished[fact_of_row[rows]].nonzero().squeeze(1)
                exact = per_fact(score(hidden[mine], rows[mine], exact=True), rows[mine])
                shown = torch.where(finished, exact + kl + penalty, shown).detach()
                shown_nll = torch.where(finished, exact, shown_nll)
                finished &= shown < settings.stop
        for i in active.nonzero().squeeze(1).tolist():
            losses[i].append(shown[i].item())
            last_nll[i] = shown_nll[i].item()
        if observe is not None:
            clean = {layer: x.detach().clone() for layer, x in delta.items()}
            observe(
                ValuePass(
                    active=active, delta=clean, rows=rows, row_nll=row_nll.detach(), kl=kl.detach(),
                    penalty=penalty.detach(), loss=shown,
                )
            )  # fmt: skip
        active = active & ~finished
        if not active.any() or iteration == settings.steps - 1:
            break

        adam.zero_grad()
        loss.sum().backward()
        before = {layer: x.detach().clone() for layer, x in steps.items()}
        adam.step()
        with torch.no_grad():
            for layer, x in steps.items():
                longest = settings.clamp * norm[layer] / unit[layer]
                x *= (longest / x.norm(dim=1, keepdim=True)).clamp_max(1)
                x.copy_(torch.where(active[:, None], x, before[layer]))  # finished facts stay where they are
        for i in active.nonzero().squeeze(1).tolist():
            taken[i] += 1

    with torch.no_grad():
        return Values(
            delta={layer: (steps[layer] * unit[layer]).T.contiguous() for layer in layers},
            start=start[layers[0]][bare].T.contiguous(),
            loss=losses, steps=taken, nll=last_nll, stop=settings.stop,
        )  # fmt: skip


def _penalty(delta: Float[Tensor, "n d"], norm: Float[Tensor, "n 1"], settings: ValueSettings) -> Float[Tensor, " n"]:
    if settings.relative:
        return settings.penalty * (delta / norm).square().sum(1)
    return settings.penalty * delta.norm(dim=1) / norm.squeeze(1).square()


@torch.no_grad()
def _port_outputs(run: SuffixForward, layers: Sequence[int], site: str) -> dict[int, Float[Tensor, "b d"]]:
    """Outputs at the lookup column of the clean run, for the scale of the δ of later layers."""
    seen: dict[int, Tensor] = {}
    if not layers:
        return seen

    def keep(layer: int):
        def hook(_m, _a, out):
            seen[layer] = hidden_of(out)[:, 0].clone()

        where = run.model.write_port(layer) if site == "write" else run.model.layers[layer]
        return where.register_forward_hook(hook)

    with hooked(*(keep(layer) for layer in layers)):
        run()
    return seen
