"""A step of the value optimisation made from all that one pass tells, without a learning rate.

    shortest s with  mean_r log(1 + exp(φ_r + J_r s)) + ½‖ρ + B s‖² ≤ goal,  ‖s‖ ≤ radius

φ_r = log(1/p_r − 1), the log odds against the target under context r, is nearly linear in δ where −log p_r is not, and
½‖ρ‖² is the KL term with a curvature B met on the way: a prox-linear step (Drusvyatskiy & Lewis, arXiv 1602.06661).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus

SMALLEST = 1e-7  # nats; below it log odds and their slopes are rounding
_CLIP = 3.0  # log odds a Newton iteration may move
_ITERATIONS = 40
_PENALTIES = 28  # trial penalties on ‖s‖², from one that forbids every step to one that hardly counts


@dataclass(kw_only=True)
class Terms:
    """What one pass measured for n facts, in the coordinates of the step (dimension k).

    Attributes:
        nll: Mean −log p of the target per context, 0 where a fact has fewer contexts than others.
        slope: Its gradient.
        weight: Weight of each context in the loss; rows that do not exist have 0.
        kl: KL term with its weight.
        kl_slope: Its gradient.
        rest: What else is part of the loss, taken as constant over a step.
    """

    nll: Float[Tensor, "n c"]
    slope: Float[Tensor, "n c k"]
    weight: Float[Tensor, "n c"]
    kl: Float[Tensor, " n"]
    kl_slope: Float[Tensor, "n k"]
    rest: Float[Tensor, " n"]

    @property
    def loss(self) -> Float[Tensor, " n"]:
        return (self.weight * self.nll).sum(1) + self.kl + self.rest

    def take(self, which: Tensor) -> Terms:
        return Terms(**{name: value[which] for name, value in vars(self).items()})


class TrustRegion:
    """Steps for n facts that do not influence one another.

    A step that makes the loss worse is taken back and tried again shorter, from what is known already.

    Args:
        n: Facts.
        k: Coordinates of a step.
        radius: Longest step.
        goal: Loss a step aims at.
        memory: Earlier gradients of the KL term that are kept as its curvature.
    """

    def __init__(self, n: int, k: int, *, radius: float, goal: float, memory: int, like: Tensor) -> None:
        self.longest, self.goal, self.memory = radius, goal, memory
        self.at = like.new_zeros(n, k)  # best place so far
        self.loss = like.new_full((n,), torch.inf)
        self.radius = like.new_full((n,), radius)
        self.promised = like.new_full((n,), torch.inf)
        self.length = like.new_full((n,), radius)
        self.terms: list[Terms | None] = [None] * n
        self.curvature: list[Float[Tensor, "m k"]] = [like.new_zeros(0, k)] * n
        self.seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(n)]

    def tell(self, facts: Tensor, place: Float[Tensor, "m k"], terms: Terms) -> None:
        """What was measured at `place` for these facts."""
        loss = terms.loss
        gain = (self.loss[facts] - loss) / (self.loss[facts] - self.promised[facts]).clamp_min(SMALLEST)
        length, radius = self.length[facts], self.radius[facts]
        wider = torch.maximum(radius, 2 * length).clamp_max(self.longest)
        first = torch.isinf(self.loss[facts])
        self.radius[facts] = torch.where(
            first, radius, torch.where(gain < 0.25, length / 2.5, torch.where(gain > 0.6, wider, radius))
        )
        better = loss < self.loss[facts]
        for j, i in enumerate(facts.tolist()):
            if better[j]:
                self.at[i], self.loss[i] = place[j], loss[j]
                self.terms[i] = terms.take(torch.tensor([j], device=loss.device))
                self.curvature[i] = self._met(i)
            self.seen[i] = [*self.seen[i], (place[j].clone(), terms.kl_slope[j].clone())][-self.memory - 1 :]

    def _met(self, i: int) -> Float[Tensor, "m k"]:
        """Rows b with KL(x + s) ≈ ½(ρ + b₀ s)² + ½Σ(b_m s)²: slopes seen elsewhere say how the KL term bends.

        The first row reproduces value and slope; each further one adds what an earlier slope shows beyond the rows
        before it (a positive semidefinite secant update).
        """
        here = self.terms[i]
        slope = here.kl_slope[0]
        rows = [slope / (2 * here.kl[0]).clamp_min(SMALLEST).sqrt()]
        for place, other in reversed(self.seen[i]):
            if len(rows) > self.memory:
                break
            way = place - self.at[i]
            bend = other - slope - sum(row * (row @ way) for row in rows)
            energy = way @ bend
            if energy > 1e-3 * way.norm() * bend.norm() and energy > 0:
                rows.append(bend / energy.sqrt())
        return torch.stack(rows)

    def step(self, facts: Tensor) -> Float[Tensor, "m k"]:
        """Where to measure next, for these facts."""
        members = facts.tolist()
        known = [self.terms[i] for i in members]
        terms = Terms(**{name: torch.cat([getattr(t, name) for t in known]) for name in vars(known[0])})
        curvature = torch.nn.utils.rnn.pad_sequence([self.curvature[i] for i in members], batch_first=True)
        goal = torch.full_like(terms.kl, self.goal)
        step, self.promised[facts] = shortest_step(terms, curvature, goal, self.radius[facts])
        self.length[facts] = step.norm(dim=1)
        return self.at[facts] + step


def shortest_step(
    terms: Terms, curvature: Float[Tensor, "n m k"], goal: Float[Tensor, " n"], radius: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n k"], Float[Tensor, " n"]]:
    """The shortest step whose modelled loss is at most `goal`, or the lowest loss within `radius`; and that loss.

    The model depends on c + m numbers only, so the search runs there: Newton's method on the stationarity of
    model + ½λ‖s‖² for a ladder of λ at once.
    """
    nll = terms.nll.double().clamp_min(SMALLEST)
    weight, contexts = terms.weight.double()[:, None], terms.nll.shape[1]
    odds = torch.log(torch.expm1(nll))
    slope = terms.slope.double() / -torch.expm1(-nll)[..., None]
    rows = torch.cat([slope, curvature.double()], dim=1)  # n, c + m, k
    start = torch.cat([odds, odds.new_zeros(curvature.shape[:2])], dim=1)
    start[:, contexts] = (2 * terms.kl.double()).clamp_min(SMALLEST).sqrt()
    start = start[:, None]  # n, 1, c + m
    gram = rows @ rows.mT
    scale = gram.diagonal(dim1=1, dim2=2)[:, :contexts].amax(1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    ladder = torch.logspace(1, -6, _PENALTIES, dtype=gram.dtype, device=gram.device)
    penalty = (scale * ladder)[..., None]  # n, penalties, 1
    eased = gram[:, None] / penalty[..., None]
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)

    def pull(u: Tensor) -> Tensor:
        return torch.cat([weight * torch.sigmoid(u[..., :contexts]), u[..., contexts:]], dim=-1)

    u = start.expand(-1, _PENALTIES, -1)
    for _ in range(_ITERATIONS):
        share = torch.sigmoid(u[..., :contexts])
        bend = torch.cat([weight * share * (1 - share), torch.ones_like(u[..., contexts:])], dim=-1)
        gap = u - start + (eased @ pull(u)[..., None]).squeeze(-1)
        newton = torch.linalg.solve(eye + eased * bend[..., None, :], gap[..., None]).squeeze(-1)
        u = u - newton.clamp(-_CLIP, _CLIP)
    along = -pull(u) / penalty  # s = rowsᵀ along
    length = (along[..., None, :] @ gram[:, None] @ along[..., None]).flatten(1).clamp_min(0).sqrt()
    loss = (weight * softplus(u[..., :contexts])).sum(-1) + u[..., contexts:].square().sum(-1) / 2
    loss = loss + terms.rest.double()[:, None]

    allowed: Bool[Tensor, "n p"] = (length <= radius.double()[:, None]) & torch.isfinite(loss)
    enough = allowed & (loss <= goal.double()[:, None])
    longest = (allowed.sum(1) - 1).clamp_min(0)  # lengths ascend with the ladder
    chosen = torch.where(enough.any(1), enough.int().argmax(1), longest)
    which = torch.arange(len(chosen), device=chosen.device)
    step = (along[which, chosen][:, None] @ rows).squeeze(1)
    short = radius.double() / step.norm(dim=1).clamp_min(torch.finfo(step.dtype).tiny)
    return (step * short.clamp_max(1)[:, None]).to(terms.nll), loss[which, chosen].to(terms.nll)
