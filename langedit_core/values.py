"""Find what the edited layers must put out: for each fact a δ that makes the model say the new object.

    minimise over δ:  mean over contexts −log p(target | δ) + KL(p_δ ‖ p₀ | "{subject} is a") + penalty(‖δ‖)

with δ added at the subject's last token (eq. 4 of ROME, arXiv 2202.05262; MEMIT, arXiv 2210.07229). All facts of a
batch run together, on the suffix only, with the vocabulary head only where the target is read. δ, losses and norms are
float32 whatever the model is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from langedit_core.forward import SuffixForward
from langedit_core.memory import as_memory_allows
from langedit_core.models import EditableModel
from langedit_core.tokens import Row, align
from langedit_core.trust import Terms, TrustRegion


class ValueSettings(BaseModel):
    """How values are optimised. The defaults are scale-free; `published()` gives the form of the released code."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    site: str = Field("write", pattern="^(write|residual)$", description="where δ is added")
    relative: bool = Field(True, description="steps, clamp and penalty relative to the norm of the output")
    optimiser: Literal["trust", "adam"] = Field("trust", description="trust.py, or Adam as published")
    steps: int = Field(25, ge=1, description="forward passes at most")
    radius: float = Field(0.3, gt=0, description="longest step of the trust region, in units of ‖o‖")
    aim: float = Field(0.6, gt=0, lt=1, description="share of the stopping loss a step of the trust region aims at")
    memory: int = Field(6, ge=0, description="earlier slopes of the KL term the trust region takes its curvature from")
    rate: float = Field(0.4, gt=0, description="Adam's step, in units of ‖o‖/√d when relative")
    clamp: float = Field(10.0, gt=0, description="largest ‖δ‖/‖o‖")
    penalty: float = Field(1e-3, ge=0, description="weight of ‖δ‖²/‖o‖², or of ‖δ‖/‖o‖² when not relative")
    kl: float = Field(0.0625, ge=0, description="weight of the KL term at the subject's last token")
    stop: float = Field(0.05, gt=0, description="a fact is finished when its loss falls below this")
    kl_prompt: str = "{} is a"
    vocabulary: int | None = Field(512, ge=1, description="likeliest words per position kept in the softmax; None: all")

    @classmethod
    def published(cls, **changes) -> ValueSettings:
        """The released form: absolute steps on the residual stream, exact softmax."""
        form = dict(site="residual", relative=False, rate=0.5, clamp=0.75, penalty=0.5, vocabulary=None)
        return cls(**(form | dict(optimiser="adam") | changes))

    @model_validator(mode="after")
    def _consistent(self) -> ValueSettings:
        if self.optimiser == "trust" and not self.relative:
            raise ValueError("the trust region measures steps in units of the output; use relative=True, or 'adam'")
        return self


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
        final: Loss of the δ returned; the last pass's, unless that one was a step taken back.
        steps: Steps taken.
        nll: Negative log likelihood of the target with the δ returned.
        stop: Loss at which a fact was finished.
    """

    delta: dict[int, Float[Tensor, "d_out n"]]
    start: Float[Tensor, "d_out n"]
    loss: list[list[float]]
    final: list[float]
    steps: list[int]
    nll: list[float]
    stop: float

    @property
    def converged(self) -> float:
        """Share of facts whose loss fell below the stopping loss."""
        return sum(loss < self.stop for loss in self.final) / len(self.final)


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
    """Optimise δ for all `requests`, each for itself.

    Facts of a micro-batch share nothing but, under `vocabulary`, the set of words whose probability is not lumped
    together: more facts, more words.

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
    parts: list[Values] = []
    order: list[int] = []

    def work(facts: list[int]) -> None:
        members = sorted(facts)
        parts.append(_optimise(model, [requests[i] for i in members], layers, settings, observe))
        order.extend(members)

    def alone(fact: int, error: RuntimeError) -> str:
        contexts = requests[fact].contexts
        return (
            f"values of one fact ({sum(len(row.ids) for row in contexts)} tokens in {len(contexts)} contexts) do not "
            f"fit in memory: {error}; use fewer or shorter contexts, or a larger device"
        )

    groups = _alike(requests, math.inf if microbatch else _ENOUGH.get(model.device.type, 8192))
    for _ in as_memory_allows(groups, work, most=microbatch, alone=alone):
        if progress:
            progress(len(order))
    back = sorted(range(len(order)), key=order.__getitem__)
    lists = {name: [x for part in parts for x in getattr(part, name)] for name in ("loss", "final", "steps", "nll")}
    return Values(
        delta={layer: torch.cat([p.delta[layer] for p in parts], dim=1)[:, back] for layer in parts[0].delta},
        start=torch.cat([p.start for p in parts], dim=1)[:, back],
        stop=settings.stop,
        **{name: [found[i] for i in back] for name, found in lists.items()},
    )


_ENOUGH = {"cpu": 256}
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


class _Words:
    """The words a softmax runs over at some positions; all others share one bucket per position, of constant mass.

    The bucket is blind to what happens to the words in it, so `renew` measures it again as a run goes on.
    Where no word is left for it, or with `keep=None`, the softmax runs over the whole vocabulary without a bucket.
    """

    def __init__(self, model: EditableModel, logits: Float[Tensor, "p v"], keep: int | None, always: Tensor) -> None:
        self.model, self.keep = model, keep
        self.ids: Int[Tensor, " k"] | None = None
        self.head = model.head()
        if keep is not None and keep < logits.shape[-1]:
            ids = torch.unique(torch.cat([logits.topk(keep).indices.flatten(), always]))
            if len(ids) < logits.shape[-1]:  # an empty bucket would have a log mass of −∞ and a KL of 0 · ∞
                self.ids, self.head, self.bucket = ids, model.head(ids), _outside(logits, ids)

    def renew(self, at: Int[Tensor, " q"], logits: Float[Tensor, "q v"]) -> None:
        """Positions `at` have these logits now: take in what has become likely, and measure the bucket again."""
        top = logits.topk(self.keep).indices.flatten()
        fresh = top[~torch.isin(top, self.ids)].unique()
        if len(fresh) and len(self.ids) + len(fresh) < logits.shape[-1]:
            # Elsewhere the new words stay in the bucket as well: a mass counted twice that is small there.
            self.ids = torch.cat([self.ids, fresh]).sort().values
            self.head = self.model.head(self.ids)
        self.bucket[at] = _outside(logits, self.ids)

    def place(self, tokens: Int[Tensor, " q"]) -> Int[Tensor, " q"]:
        """Columns of `tokens` in the log probabilities."""
        return tokens if self.ids is None else torch.searchsorted(self.ids, tokens)

    def log_probs(self, hidden: Float[Tensor, "q d"], at: Tensor) -> Float[Tensor, "q k"]:
        """Log probabilities of the words at positions `at`; those of the bucket stand last."""
        logits = self.head(hidden).float()
        if self.ids is not None:
            logits = torch.cat([logits, self.bucket[at]], dim=1)
        return logits.log_softmax(1)


def _outside(logits: Float[Tensor, "p v"], ids: Int[Tensor, " k"]) -> Float[Tensor, "p 1"]:
    """log Σ exp of all logits not in `ids`."""
    return logits.index_fill(1, ids, -torch.inf).logsumexp(1, keepdim=True)


class _Likelihood:
    """−log p of the targets, with the head applied at their positions only."""

    @torch.no_grad()
    def __init__(self, run: SuffixForward, requests: Sequence[ValueRequest], keep: int | None) -> None:
        places = []  # row, column, token, tokens of this target
        contexts = ((request, context) for request in requests for context in request.contexts)
        for row, (request, context) in enumerate(contexts):
            first = len(context.ids) - context.lookup - len(request.target)
            places += [(row, first + j, token, len(request.target)) for j, token in enumerate(request.target)]
        self.row, self.column, self.token, length = torch.tensor(places, device=run.clean.device).T.contiguous()
        self.weight, self.rows = 1 / length, run.batch.rows
        scored = run.clean[self.row, self.column]
        logits = run.clean.new_zeros(0, 0) if keep is None else run.model.logits(scored).float()
        self.words = _Words(run.model, logits, keep, self.token)

    def scored(self, hidden: Float[Tensor, "b c d"], rows: Tensor) -> tuple[Tensor, Tensor, Float[Tensor, "q d"]]:
        """The positions in `rows`, the row of the run batch each belongs to, and their hidden states."""
        where = torch.full((self.rows,), -1, device=rows.device)
        where[rows] = torch.arange(len(rows), device=rows.device)
        at = (where[self.row] >= 0).nonzero().squeeze(1)
        row = where[self.row[at]]
        return at, row, hidden[row, self.column[at]]

    def __call__(self, hidden: Float[Tensor, "b c d"], rows: Tensor) -> Float[Tensor, " b"]:
        """Mean −log p over the target's tokens, for each row of the batch that was run."""
        at, row, scored = self.scored(hidden, rows)
        return self.mean(self.words.log_probs(scored, at), self.words.place(self.token[at]), at, row, len(rows))

    def mean(self, log_probs: Tensor, column: Tensor, at: Tensor, row: Tensor, rows: int) -> Float[Tensor, " b"]:
        nll = -log_probs.gather(1, column[:, None]).squeeze(1) * self.weight[at]
        return torch.zeros(rows, device=nll.device, dtype=nll.dtype).index_add(0, row, nll)


class _Drift:
    """KL(p_δ ‖ p₀) at the subject's last token of the KL prompt."""

    @torch.no_grad()
    def __init__(
        self, model: EditableModel, requests: Sequence[ValueRequest], layer: int, site: str, keep: int | None
    ) -> None:
        rows = [Row(ids=r.kl.ids[: r.kl.lookup + 1], lookup=r.kl.lookup) for r in requests]
        self.run = SuffixForward(model, align(rows, model.pad_id, model.device), layer=layer, site=site)
        self.clean = self.run.clean[:, 0]
        logits = model.logits(self.clean).float()
        self.words = _Words(model, logits, keep, torch.zeros(0, dtype=torch.long, device=model.device))
        self.exact = logits.log_softmax(1)  # of the clean model over all words, n x vocabulary

    def hidden(self, deltas: dict[int, Float[Tensor, "b d"]], facts: Int[Tensor, " b"]) -> Float[Tensor, "b d"]:
        return self.run(deltas, facts)[:, 0]

    def __call__(self, hidden: Float[Tensor, "b d"], facts: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        after, before = self.words.log_probs(hidden, facts), self.exact[facts]
        if self.words.ids is not None:
            before = torch.cat([before[:, self.words.ids], _outside(before, self.words.ids)], dim=1)
        return divergence(after, before)


def divergence(after: Float[Tensor, "b k"], before: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """KL of two rows of log probabilities."""
    return (after.exp() * (after - before)).sum(1)


@dataclass(frozen=True, kw_only=True)
class _Loss:
    """The parts of the loss of some facts."""

    row_nll: Float[Tensor, " b"]
    nll: Float[Tensor, " f"]
    kl: Float[Tensor, " f"]
    penalty: Float[Tensor, " f"]

    @property
    def total(self) -> Float[Tensor, " f"]:
        return self.nll + self.kl + self.penalty

    def detach(self) -> _Loss:
        return _Loss(**{name: part.detach() for name, part in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A pass over some facts, with its graph."""

    facts: Int[Tensor, " f"]
    rows: Int[Tensor, " b"]
    at_rows: Float[Tensor, "b l d"]  # the δ of every row, as a leaf: one gradient per context comes at no cost
    at_kl: Float[Tensor, "f l d"]
    hidden: Float[Tensor, "b c d"]
    kl_hidden: Float[Tensor, "f d"] | None
    loss: _Loss


class _Batch:
    """Facts whose values are found together: everything a pass needs that does not change between passes."""

    def __init__(
        self, model: EditableModel, requests: Sequence[ValueRequest], layers: Sequence[int], settings: ValueSettings
    ) -> None:
        self.model, self.layers, self.settings, self.n = model, tuple(layers), settings, len(requests)
        device = model.device
        rows = align([row for request in requests for row in request.contexts], model.pad_id, device)
        self.run = SuffixForward(model, rows, layer=layers[0], site=settings.site)
        self.score = _Likelihood(self.run, requests, settings.vocabulary)
        self.drift = None
        if settings.kl > 0:
            self.drift = _Drift(model, requests, layers[0], settings.site, settings.vocabulary)
        counts = [len(request.contexts) for request in requests]
        self.fact = torch.repeat_interleave(torch.tensor(counts, device=device))
        self.number = torch.tensor([j for count in counts for j in range(count)], device=device)
        self.contexts = torch.tensor(counts, device=device)
        bare = self.contexts.cumsum(0) - self.contexts
        outputs = [self.run.outputs[i][bare].float() for i in layers]
        self.start = outputs[0]
        # n, layers, 1: ‖o‖ at the bare prompt, and what one unit of δ's coordinates is.
        self.norm = torch.stack([output.norm(dim=1, keepdim=True) for output in outputs], dim=1)
        self.unit = self.norm / math.sqrt(model.d_model) if settings.relative else torch.ones_like(self.norm)

    def per_fact(self, row_nll: Tensor, rows: Tensor) -> Float[Tensor, " n"]:
        """Mean over a fact's contexts; facts without a row among `rows` have 0."""
        total = torch.zeros(self.n, device=row_nll.device, dtype=row_nll.dtype)
        return total.index_add(0, self.fact[rows], row_nll) / self.contexts

    def look(self, place: Float[Tensor, "n l d"], facts: Int[Tensor, " f"], *, leaves: bool) -> _Found:
        """One forward pass of `facts` at `place`; with `leaves`, rows have a δ of their own to be derived by."""
        mine = torch.zeros(self.n, dtype=torch.bool, device=facts.device).index_fill(0, facts, True)
        rows = mine[self.fact].nonzero().squeeze(1)
        at_rows, at_kl = place[self.fact[rows]], place[facts]
        if leaves:
            at_rows, at_kl = (x.detach().requires_grad_() for x in (at_rows, at_kl))
        row_unit = self.unit[self.fact[rows]]
        hidden = self.run({layer: at_rows[:, j] * row_unit[:, j] for j, layer in enumerate(self.layers)}, rows)
        row_nll = self.score(hidden, rows)
        nll = self.per_fact(row_nll, rows)[facts]
        kl, kl_hidden = torch.zeros_like(nll), None
        if self.drift is not None:
            unit = self.unit[facts]
            deltas = {layer: at_kl[:, j] * unit[:, j] for j, layer in enumerate(self.layers)}
            kl_hidden = self.drift.hidden(deltas, facts)
            kl = self.settings.kl * self.drift(kl_hidden, facts)
        return _Found(
            facts=facts, rows=rows, at_rows=at_rows, at_kl=at_kl, hidden=hidden, kl_hidden=kl_hidden,
            loss=_Loss(row_nll=row_nll, nll=nll, kl=kl, penalty=self._penalty(at_kl, facts)),
        )  # fmt: skip

    def _penalty(self, place: Float[Tensor, "f l d"], facts: Tensor) -> Float[Tensor, " f"]:
        delta, norm = place * self.unit[facts], self.norm[facts]
        if self.settings.relative:
            return self.settings.penalty * (delta / norm).square().sum((1, 2))
        return self.settings.penalty * (delta.norm(dim=2) / norm.squeeze(2).square()).sum(1)

    @torch.no_grad()
    def verify(self, found: _Found) -> _Loss:
        """The loss of a pass, exact for facts that the restricted softmax takes for finished.

        The restricted softmax only proposes; the whole vocabulary decides. All its uses share one product with the
        head, which is read from memory once, and renew what is restricted.
        """
        told, score, drift = found.loss.detach(), self.score, self.drift
        chosen = told.total < self.settings.stop
        if self.settings.vocabulary is None or not chosen.any():
            return told
        names = found.facts[chosen]
        mine = torch.isin(self.fact[found.rows], names).nonzero().squeeze(1)
        rows = found.rows[mine]
        at, row, scored = score.scored(found.hidden[mine], rows)
        asked = [scored] if drift is None else [scored, found.kl_hidden[chosen]]
        logits = self.model.logits(torch.cat(asked)).float()
        said = logits[: len(at)]
        nll = score.mean(said.log_softmax(1), score.token[at], at, row, len(rows))
        if score.words.ids is not None:
            score.words.renew(at, said)
        told = dataclasses.replace(
            told,
            row_nll=told.row_nll.index_copy(0, mine, nll),
            nll=told.nll.masked_scatter(chosen, self.per_fact(nll, rows)[names]),
        )
        if drift is not None:
            said = logits[len(at) :]
            kl = self.settings.kl * divergence(said.log_softmax(1), drift.exact[names])
            told = dataclasses.replace(told, kl=told.kl.masked_scatter(chosen, kl))
            if drift.words.ids is not None:
                drift.words.renew(names, said)
        return told


class _Adam:
    """The published optimiser: Adam on δ, scaled back to the clamp after each step; the last place is the result."""

    descends = False

    def __init__(self, batch: _Batch) -> None:
        self.batch = batch
        shape = (batch.n, len(batch.layers), batch.model.d_model)
        self.place = torch.zeros(shape, device=batch.unit.device, requires_grad=True)
        self.adam = torch.optim.Adam([self.place], lr=batch.settings.rate)

    def look(self, facts: Tensor) -> _Found:
        return self.batch.look(self.place, facts, leaves=False)

    def stuck(self, facts: Tensor) -> Bool[Tensor, " f"]:
        return torch.zeros_like(facts, dtype=torch.bool)

    def step(self, found: _Found, told: _Loss, unfinished: Bool[Tensor, " f"]) -> None:
        self.adam.zero_grad()
        found.loss.total.sum().backward()
        before, moving = self.place.detach().clone(), found.facts[unfinished]
        self.adam.step()
        with torch.no_grad():
            after = _clamped(self.place, self.batch)
            self.place.copy_(before.index_copy(0, moving, after[moving]))  # finished facts stay where they are


class _Trust:
    """Trust region steps on the log odds of every context (trust.py); the best place is the result."""

    descends = True

    def __init__(self, batch: _Batch) -> None:
        settings, self.batch = batch.settings, batch
        shape = (batch.n, len(batch.layers), batch.model.d_model)
        self.place = torch.zeros(shape, device=batch.unit.device)
        self.region = TrustRegion(
            batch.n, shape[1] * shape[2], radius=settings.radius * math.sqrt(shape[2]),
            goal=settings.aim * settings.stop, memory=settings.memory, like=self.place,
        )  # fmt: skip

    def look(self, facts: Tensor) -> _Found:
        return self.batch.look(self.place, facts, leaves=True)

    def stuck(self, facts: Tensor) -> Bool[Tensor, " f"]:
        """Facts whose region shrank to nothing: no short step made their loss smaller."""
        return self.region.radius[facts] < 0.02 * self.region.longest

    def step(self, found: _Found, told: _Loss, unfinished: Bool[Tensor, " f"]) -> None:
        batch, facts = self.batch, found.facts
        objective = found.loss.row_nll.sum() + found.loss.kl.sum()
        slope, kl_slope = torch.autograd.grad(
            objective, [found.at_rows, found.at_kl], allow_unused=True, materialize_grads=True
        )
        # Facts may have different numbers of contexts: a (fact, context) table with empty places.
        index = torch.empty(batch.n, dtype=torch.long, device=facts.device)
        index[facts] = torch.arange(len(facts), device=facts.device)
        where = (index[batch.fact[found.rows]], batch.number[found.rows])
        table = slope.new_zeros(len(facts), int(batch.contexts.max()))
        terms = Terms(
            nll=table.index_put(where, told.row_nll),
            slope=slope.new_zeros(*table.shape, slope[0].numel()).index_put(where, slope.flatten(1)),
            weight=table.index_put(where, 1 / batch.contexts[batch.fact[found.rows]]),
            kl=told.kl.clamp_min(0),
            kl_slope=kl_slope.flatten(1),
            rest=told.penalty,
        )
        moving = facts[unfinished]
        self.region.tell(moving, self.place[moving].flatten(1), terms.take(unfinished))
        place = self.region.step(moving).view(len(moving), *self.place.shape[1:])
        self.place = _clamped(self.place.index_copy(0, moving, place), batch)


def _clamped(place: Float[Tensor, "n l d"], batch: _Batch) -> Float[Tensor, "n l d"]:
    longest = batch.settings.clamp * batch.norm / batch.unit
    return place * (longest / place.norm(dim=2, keepdim=True)).clamp_max(1)


@torch.enable_grad()  # callers often switch gradients off around everything they do with a model
def _optimise(
    model: EditableModel,
    requests: Sequence[ValueRequest],
    layers: Sequence[int],
    settings: ValueSettings,
    observe: Callable[[ValuePass], None] | None,
) -> Values:
    batch = _Batch(model, requests, layers, settings)
    optimiser = (_Trust if settings.optimiser == "trust" else _Adam)(batch)
    n, device = batch.n, model.device
    result = torch.zeros_like(optimiser.place, requires_grad=False)
    final, nll = (torch.full((n,), math.inf, device=device) for _ in range(2))
    losses: list[list[float]] = [[] for _ in requests]
    facts = torch.arange(n, device=device)
    for iteration in range(settings.steps):
        found = optimiser.look(facts)
        if not torch.isfinite(found.loss.total).all():
            told = found.loss.total.tolist()
            raise FloatingPointError(f"value optimisation gave a loss of {told} at step {iteration}")
        told = batch.verify(found)
        for i, loss in zip(facts.tolist(), told.total.tolist(), strict=True):
            losses[i].append(loss)
        if observe is not None:
            observe(_seen(batch, optimiser.place, found, told))
        better = told.total < final[facts] if optimiser.descends else torch.ones_like(facts, dtype=torch.bool)
        kept = facts[better]
        result[kept] = optimiser.place.detach()[kept]
        final[kept], nll[kept] = told.total[better], told.nll[better]
        unfinished = told.total >= settings.stop
        if not unfinished.any() or iteration == settings.steps - 1:
            break
        optimiser.step(found, told, unfinished)
        facts = facts[unfinished]
        facts = facts[~optimiser.stuck(facts)]
        if not len(facts):
            break

    result = result * batch.unit
    return Values(
        delta={layer: result[:, j].T.contiguous() for j, layer in enumerate(layers)},
        start=batch.start.T.contiguous(),
        loss=losses, final=final.tolist(), steps=[len(loss) - 1 for loss in losses], nll=nll.tolist(),
        stop=settings.stop,
    )  # fmt: skip


def _seen(batch: _Batch, place: Float[Tensor, "n l d"], found: _Found, told: _Loss) -> ValuePass:
    """A pass in the form shown to observers: one entry per fact of the batch."""

    def spread(part: Float[Tensor, " f"]) -> Float[Tensor, " n"]:
        return part.new_zeros(batch.n).index_copy(0, found.facts, part)

    delta = (place.detach() * batch.unit).unbind(1)
    active = torch.zeros(batch.n, dtype=torch.bool, device=found.facts.device).index_fill(0, found.facts, True)
    return ValuePass(
        active=active, delta=dict(zip(batch.layers, delta, strict=True)), rows=found.rows,
        row_nll=found.loss.row_nll.detach(), kl=spread(found.loss.kl.detach()), penalty=spread(told.penalty),
        loss=spread(told.total),
    )  # fmt: skip
