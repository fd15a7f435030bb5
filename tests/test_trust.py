"""The trust region: a step is the shortest one that does what it promises, and none makes things worse."""

from __future__ import annotations

import math

import pytest
import torch
import toy

from langedit_core.trust import Terms, TrustRegion, shortest_step
from langedit_core.values import ValueSettings, optimise_values


def made(n: int = 3, contexts: int = 2, k: int = 12, seed: int = 0) -> tuple[Terms, torch.Tensor]:
    """Random terms with a KL term whose slope agrees with its value, and its curvature."""
    draw = torch.Generator().manual_seed(seed)
    slope = torch.randn(n, contexts, k, generator=draw)
    bend = torch.randn(n, 1, k, generator=draw)
    rho = torch.rand(n, generator=draw)
    terms = Terms(
        nll=1 + 4 * torch.rand(n, contexts, generator=draw), slope=slope,
        weight=torch.full((n, contexts), 1 / contexts), kl=rho.square() / 2, kl_slope=rho[:, None] * bend[:, 0],
        rest=torch.zeros(n),
    )  # fmt: skip
    return terms, bend


def modelled(terms: Terms, bend: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The model of the module docstring, written out for one step per fact, in float64."""
    nll, slope = terms.nll.double(), terms.slope.double()
    odds = torch.log(torch.expm1(nll)) + torch.einsum(
        "nck,nk->nc", slope / -torch.expm1(-nll)[..., None], step.double()
    )
    kl = ((2 * terms.kl.double()).sqrt() + torch.einsum("nmk,nk->nm", bend.double(), step.double())[:, 0]).square() / 2
    return (terms.weight.double() * torch.log1p(odds.exp())).sum(1) + kl + terms.rest


def test_without_a_step_the_model_is_the_loss():
    terms, bend = made()
    torch.testing.assert_close(modelled(terms, bend, torch.zeros(3, 12)).float(), terms.loss)


def test_the_model_has_the_slope_of_the_loss():
    terms, bend = made()
    step = torch.zeros(3, 12, dtype=torch.float64, requires_grad=True)
    modelled(terms, bend, step).sum().backward()
    expected = torch.einsum("nc,nck->nk", terms.weight, terms.slope) + terms.kl_slope
    torch.testing.assert_close(step.grad.float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radius", [0.05, 0.5, 100.0])
def test_a_step_promises_what_the_model_gives_and_stays_inside_its_radius(radius):
    terms, bend = made()
    step, promised = shortest_step(terms, bend, torch.full((3,), 0.1), torch.full((3,), radius))
    assert (step.norm(dim=1) <= radius * (1 + 1e-6)).all()
    torch.testing.assert_close(modelled(terms, bend, step).float(), promised, rtol=1e-3, atol=1e-4)
    assert (promised < terms.loss).all()


def test_with_room_enough_the_goal_is_reached_and_no_much_shorter_step_of_any_kind_reaches_it():
    terms, bend = made()
    goal = torch.full((3,), 0.2)
    step, promised = shortest_step(terms, bend, goal, torch.full((3,), 1e3))
    assert (promised <= goal).all()
    # Gradient descent on ‖s‖² + multiplier · (model − goal)₊ finds no step that is shorter by a third and as good.
    for factor in (0.5, 0.66):
        other = (step * factor).double().requires_grad_()
        adam = torch.optim.Adam([other], lr=0.01)
        for _ in range(500):
            adam.zero_grad()
            modelled(terms, bend, other).sum().backward()
            adam.step()
            with torch.no_grad():
                longest = factor * step.norm(dim=1, keepdim=True)
                other *= (longest / other.norm(dim=1, keepdim=True)).clamp_max(1)
        assert (modelled(terms, bend, other) > goal).all()


def test_a_fact_s_step_does_not_depend_on_its_company_nor_on_empty_contexts():
    terms, bend = made()
    goal, radius = torch.full((3,), 0.1), torch.full((3,), 1.0)
    together = shortest_step(terms, bend, goal, radius)[0]
    wide = Terms(
        **vars(terms)
        | {name: torch.nn.functional.pad(getattr(terms, name), (0, 2)) for name in ("nll", "weight")}
        | dict(slope=torch.nn.functional.pad(terms.slope, (0, 0, 0, 2)))
    )
    torch.testing.assert_close(shortest_step(wide, bend, goal, radius)[0], together, rtol=1e-3, atol=1e-5)
    for i in range(3):
        alone = shortest_step(terms.take(torch.tensor([i])), bend[i : i + 1], goal[:1], radius[:1])[0]
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-6)


def test_a_step_that_makes_the_loss_worse_is_taken_back_and_tried_shorter():
    terms, _ = made(n=1)
    region = TrustRegion(1, 12, radius=1.0, goal=0.01, memory=2, like=torch.zeros(1))
    fact, start = torch.tensor([0]), torch.zeros(1, 12)
    region.tell(fact, start, terms)
    lengths = []
    for _ in range(4):
        place = region.step(fact)
        lengths.append(float((place - start).norm()))
        worse = Terms(**vars(terms) | dict(nll=terms.nll + 1))
        region.tell(fact, place, worse)
        assert torch.equal(region.at, start) and region.loss == terms.loss
    assert all(later < 0.5 * earlier for earlier, later in zip(lengths, lengths[1:], strict=False))


def test_curvature_met_on_the_way_reproduces_a_quadratic_term():
    draw = torch.Generator().manual_seed(1)
    root = torch.randn(3, 5, generator=draw)
    fisher = root.T @ root  # of rank 3: three slopes tell all of it

    def at(place: torch.Tensor) -> Terms:
        slope = place @ fisher
        return Terms(
            nll=torch.full((1, 1), 5 - float(place.norm())), slope=torch.zeros(1, 1, 5), weight=torch.ones(1, 1),
            kl=(slope * place).sum(1) / 2, kl_slope=slope, rest=torch.zeros(1),
        )  # fmt: skip

    region = TrustRegion(1, 5, radius=1.0, goal=0.01, memory=6, like=torch.zeros(1))
    for scale in (0.1, 0.2, 0.3, 0.4, 0.5):
        place = scale * torch.randn(1, 5, generator=draw)
        region.tell(torch.tensor([0]), place, at(place))
    rows = region.curvature[0]
    torch.testing.assert_close(rows.T @ rows, fisher, rtol=0.02, atol=0.02 * float(fisher.norm()))


@pytest.mark.parametrize("vocabulary", [32, None])
def test_values_found_by_the_trust_region_are_the_best_seen_and_shorter_than_adam_s(tiny, vocabulary):
    model = toy.confident(tiny)
    asked = [toy.value_request(model, toy.fact(number, prompt="So {}")) for number in range(6)]
    shared = dict(steps=40, clamp=30.0, penalty=1e-4, kl=1e-3, vocabulary=vocabulary)
    ours = optimise_values(model, asked, (1, 2), ValueSettings(radius=0.5, **shared))
    adam = optimise_values(model, asked, (1, 2), ValueSettings(optimiser="adam", rate=0.5, **shared))
    assert ours.converged > 0.5 and adam.converged > 0.5
    for i in range(6):
        assert ours.final[i] == min(ours.loss[i])
        assert ours.loss[i][0] == pytest.approx(adam.loss[i][0], rel=1e-4)
        assert math.isfinite(ours.nll[i]) and ours.nll[i] <= ours.final[i] + 1e-6
    both = [i for i in range(6) if ours.final[i] < 0.05 and adam.final[i] < 0.05]

    def length(found):
        return sum(found.delta[layer][:, both].norm() for layer in (1, 2))

    assert length(ours) < length(adam)


def test_contexts_of_different_number_and_any_company_give_a_fact_the_same_values(tiny):
    model = toy.confident(tiny)
    mixed = [toy.fact(0, "en"), toy.fact(1, "de"), toy.fact(2, "zh"), toy.fact(3, "fr")]
    asked = [toy.value_request(model, fact) for fact in mixed]
    settings = ValueSettings(steps=3, vocabulary=None)
    together = optimise_values(model, asked, (1,), settings)
    for i, request in enumerate(asked):
        alone = optimise_values(model, [request], (1,), settings)
        torch.testing.assert_close(alone.loss[0], together.loss[i], rtol=1e-3, atol=1e-3)
