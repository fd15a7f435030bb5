"""One solve for all methods: it equals every published formula, is a true minimum, refuses what cannot be solved."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core.nullspace import NullSpace
from langedit_core.solve import CovarianceMetric, RidgeMetric, cholesky_solve, solve_update

# d_in, n, earlier keys: fewer and more columns than dimensions, with and without earlier keys, and exactly as many.
SIZES = [(12, 3, 0), (12, 3, 4), (12, 3, 9), (12, 3, 30), (12, 20, 0), (12, 20, 15), (5, 1, 0), (1, 1, 1), (8, 8, 0)]
D_OUT = 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(d: int, n: int, past: int, seed: int = 0):
    """Keys, residual, earlier keys (None without any), covariance and a null space of half its directions."""
    keys, residual = randn(d, n, seed=seed), randn(D_OUT, n, seed=seed + 1)
    earlier = randn(d, past, seed=seed + 2) if past else None
    corpus = randn(d, 3 * d, seed=seed + 3)
    covariance = corpus @ corpus.T / (3 * d)
    values, vectors = torch.linalg.eigh(covariance)
    free = max(1, d // 2)
    space = NullSpace(d=d, kept=vectors[:, :free])
    cut = float((values[free - 1] + values[min(free, d - 1)]) / 2) if d > 1 else float("inf")
    return keys, residual, earlier, covariance, space, cut


def gram(columns: torch.Tensor | None, d: int) -> torch.Tensor:
    return torch.zeros(d, d, dtype=torch.float64) if columns is None else columns @ columns.T


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


sizes = pytest.mark.parametrize(("d", "n", "past"), SIZES)


@sizes
def test_memit_equals_its_formula(d, n, past):
    keys, residual, earlier, covariance, _, _ = problem(d, n, past)
    ours = residual @ solve_update(keys, CovarianceMetric(covariance, 15.0)).T
    close(ours, reference.memit(residual, keys, covariance, 15.0))
    if earlier is not None:
        ours = residual @ solve_update(keys, CovarianceMetric(covariance, 15.0), earlier).T
        close(ours, reference.memit_seq(residual, keys, covariance, 15.0, gram(earlier, d)))


@sizes
def test_alphaedit_equals_its_formula(d, n, past):
    keys, residual, earlier, covariance, space, cut = problem(d, n, past)
    projection = reference.null_projection(covariance, cut)
    ours = residual @ solve_update(keys, RidgeMetric(space, 10.0), earlier).T
    close(ours, reference.alphaedit(residual, keys, projection, gram(earlier, d), 10.0))


@sizes
def test_langedit_equals_the_formula_of_the_paper(d, n, past):
    keys, residual, _, covariance, space, cut = problem(d, n, past)
    projection = reference.null_projection(covariance, cut)
    ours = residual @ solve_update(keys, RidgeMetric(space, 1.0)).T
    close(ours, reference.langedit(residual, keys, projection))


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(1, 14), n=st.integers(1, 20), past=st.integers(0, 20), seed=st.integers(0, 999),
    ridge=st.floats(1e-3, 1e3), removed=st.booleans(),
)  # fmt: skip
def test_all_formulas_hold_at_any_size(d, n, past, seed, ridge, removed):
    keys, residual, earlier, covariance, space, cut = problem(d, n, past, seed)
    if removed:  # the same space held by its other side
        values, vectors = torch.linalg.eigh(covariance)
        space = NullSpace(d=d, removed=vectors[:, max(1, d // 2) :])
    projection, before = reference.null_projection(covariance, cut), gram(earlier, d)
    close(
        residual @ solve_update(keys, RidgeMetric(space, ridge), earlier).T,
        reference.alphaedit(residual, keys, projection, before, ridge),
    )
    close(
        residual @ solve_update(keys, CovarianceMetric(covariance, ridge), earlier).T,
        reference.memit_seq(residual, keys, covariance, ridge, before),
    )


@sizes
def test_the_thin_and_the_square_system_give_the_same(d, n, past):
    keys, _, earlier, covariance, space, _ = problem(d, n, past)
    columns = keys if earlier is None else torch.cat([keys, earlier], dim=1)
    for metric in (RidgeMetric(space, 0.7), CovarianceMetric(covariance, 0.7)):
        weighted = metric.inverse(columns)
        eye = torch.eye(columns.shape[1], dtype=torch.float64)
        thin = (weighted @ torch.linalg.inv(columns.T @ weighted + eye))[:, :n]
        close(metric.solve_dense(columns @ columns.T, keys), thin)


@pytest.mark.parametrize(("n", "past", "summed"), [(3, 0, 30), (3, 4, 30), (3, 4, 2), (20, 15, 30)])
def test_earlier_keys_protect_alike_one_by_one_and_as_their_gram_matrix(n, past, summed):
    keys, _, earlier, covariance, space, _ = problem(12, n, past)
    more = randn(12, summed, seed=9)
    everything = more if earlier is None else torch.cat([earlier, more], dim=1)
    for metric in (RidgeMetric(space, 0.7), CovarianceMetric(covariance, 0.7)):
        close(solve_update(keys, metric, earlier, gram=more @ more.T), solve_update(keys, metric, everything))
    with pytest.raises(ValueError, match="needs every earlier key"):
        solve_update(keys, metric, earlier, gram=more @ more.T, exact=True)


def objective(delta, keys, residual, earlier, metric_matrix, ridge):
    cost = (delta @ keys - residual).square().sum() + ridge * delta.square().sum()
    cost = cost + torch.trace(delta @ metric_matrix @ delta.T)
    return cost if earlier is None else cost + (delta @ earlier).square().sum()


@pytest.mark.parametrize(("d", "n", "past"), [(12, 3, 0), (12, 3, 4), (12, 20, 5)])
@pytest.mark.parametrize("kind", ["ridge", "covariance"])
def test_gradient_of_the_objective_is_zero_and_no_step_inside_the_space_lowers_it(kind, d, n, past):
    keys, residual, earlier, covariance, space, _ = problem(d, n, past)
    if kind == "ridge":
        basis, ridge, matrix = space.kept, 0.3, torch.zeros(d, d, dtype=torch.float64)
        metric = RidgeMetric(space, ridge)
    else:
        basis, ridge, matrix = torch.eye(d, dtype=torch.float64), 0.0, 2.0 * covariance
        metric = CovarianceMetric(covariance, 2.0)
    delta = residual @ solve_update(keys, metric, earlier).T
    close(delta, delta @ basis @ basis.T)  # it is inside the space at all

    inside = (delta @ basis).requires_grad_()
    cost = objective(inside @ basis.T, keys, residual, earlier, matrix, ridge)
    (gradient,) = torch.autograd.grad(cost, inside)
    assert gradient.norm() < 1e-10 * residual.norm() * keys.norm()
    for seed in range(20):
        step = randn(*inside.shape, seed=seed) * 10.0 ** -(seed % 4)
        moved = objective((inside.detach() + step) @ basis.T, keys, residual, earlier, matrix, ridge)
        assert moved > cost.detach()


def test_memit_tends_to_interpolation_in_the_covariance_norm_as_its_weight_vanishes():
    keys, residual, _, covariance, _, _ = problem(12, 3, 0)
    exact = residual @ solve_update(keys, CovarianceMetric(covariance, 1.0), exact=True).T
    close(exact @ keys, residual)
    errors = []
    for weight in (1e-2, 1e-4, 1e-6):
        delta = residual @ solve_update(keys, CovarianceMetric(covariance, weight)).T
        errors.append(float((delta - exact).norm() / exact.norm()))
    assert errors[0] > 50 * errors[1] > 2500 * errors[2]
    assert errors[-1] < 1e-5


@pytest.mark.parametrize(("n", "past"), [(1, 0), (3, 0), (3, 4), (12, 0), (5, 7)])
@pytest.mark.parametrize("kind", ["ridge", "covariance"])
def test_an_exact_constraint_is_met_and_earlier_keys_do_not_move(kind, n, past):
    keys, residual, earlier, covariance, _, _ = problem(12, n, past)
    metric = CovarianceMetric(covariance, 2.0) if kind == "covariance" else RidgeMetric(NullSpace(d=12), 3.0)
    delta = residual @ solve_update(keys, metric, earlier, exact=True).T
    close(delta @ keys, residual)
    if earlier is not None:
        close(delta @ earlier, torch.zeros(D_OUT, past, dtype=torch.float64))


def test_an_exact_constraint_on_one_fact_is_romes_formula_and_does_not_depend_on_the_weight_of_the_covariance():
    keys, residual, _, covariance, _, _ = problem(12, 1, 0)
    expected = reference.rome(residual[:, 0], keys[:, 0], covariance)
    for weight in (1e-6, 1.0, 1e6):
        close(residual @ solve_update(keys, CovarianceMetric(covariance, weight), exact=True).T, expected)
    plain = torch.outer(residual[:, 0], keys[:, 0]) / keys.square().sum()
    close(residual @ solve_update(keys, RidgeMetric(NullSpace(d=12), 0.5), exact=True).T, plain)


def test_among_all_updates_that_meet_the_constraint_the_exact_one_costs_least():
    keys, residual, _, covariance, _, _ = problem(12, 3, 0)
    delta = residual @ solve_update(keys, CovarianceMetric(covariance, 1.0), exact=True).T
    cost = torch.trace(delta @ covariance @ delta.T)
    others = torch.linalg.svd(keys)[0][:, 3:]  # directions no key has
    for seed in range(20):
        moved = delta + 10.0 ** -(seed % 4) * randn(D_OUT, 9, seed=seed) @ others.T
        close(moved @ keys, residual)
        assert torch.trace(moved @ covariance @ moved.T) > cost


def test_an_exact_constraint_can_hold_at_other_keys_than_those_that_give_the_directions():
    keys, residual, earlier, covariance, _, _ = problem(12, 3, 2)
    at, metric = keys + 0.1 * randn(12, 3, seed=9), CovarianceMetric(covariance, 1.0)
    right = solve_update(keys, metric, earlier, exact=True, at=at)
    close(residual @ right.T @ at, residual)
    close(right.T @ earlier, torch.zeros(3, 2, dtype=torch.float64))
    span = metric.inverse(torch.cat([keys, earlier], dim=1))
    close(span @ torch.linalg.lstsq(span, right).solution, right)


@pytest.mark.parametrize("kind", ["twice the same key", "more keys than dimensions", "a key outside the space"])
def test_constraints_that_cannot_all_be_met_exactly_are_refused(kind):
    space = NullSpace(d=4, removed=torch.eye(4, dtype=torch.float64)[:, :1])
    keys = {"twice the same key": randn(4, 1).repeat(1, 2), "more keys than dimensions": randn(4, 5)}.get(
        kind, torch.eye(4, dtype=torch.float64)[:, :2]
    )
    with pytest.raises(FloatingPointError, match="no update meets . constraints exactly in 4 dimensions"):
        solve_update(keys, RidgeMetric(space, 1.0), exact=True)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_exact_constraint_refuses_keys_with_nan_or_infinity(bad):
    keys = randn(4, 2)
    for arguments in (dict(past=bad * keys), dict(at=bad * keys)):
        with pytest.raises(FloatingPointError, match="NaN or infinity"):
            solve_update(keys, RidgeMetric(NullSpace(d=4), 1.0), exact=True, **arguments)


def test_other_keys_without_an_exact_constraint_are_refused():
    with pytest.raises(ValueError, match="exact=True"):
        solve_update(randn(4, 2), RidgeMetric(NullSpace(d=4), 1.0), at=randn(4, 2))


def test_the_factor_does_not_depend_on_the_residual_and_writes_less_as_the_ridge_grows():
    keys, residual, _, _, space, _ = problem(12, 3, 0)
    written = [
        float((residual @ solve_update(keys, RidgeMetric(space, ridge)).T @ keys).norm() / residual.norm())
        for ridge in (1e-9, 1e-2, 1.0, 100.0)
    ]
    assert written[0] == pytest.approx(1.0, abs=1e-6)
    assert written == sorted(written, reverse=True)
    assert written[-1] < 0.1


def test_a_factor_of_single_precision_keys_is_solved_in_double():
    keys, _, earlier, covariance, _, _ = problem(12, 3, 4)
    single = keys.float()
    right = solve_update(single, CovarianceMetric(covariance, 1e-6), earlier.float())
    assert right.dtype == torch.float64
    close(right, solve_update(single.double(), CovarianceMetric(covariance, 1e-6), earlier.float().double()))


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_is_not_positive_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge is .* positive"):
        RidgeMetric(NullSpace(d=3), ridge)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_a_covariance_weight_that_is_not_positive_is_refused(weight):
    with pytest.raises(ValueError, match="covariance weight is"):
        CovarianceMetric(torch.eye(3, dtype=torch.float64), weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("n", [2, 9])
def test_keys_with_nan_or_infinity_are_refused(bad, n):
    keys = randn(4, n)
    keys[1, 1] = bad
    with pytest.raises(FloatingPointError, match="keys hold NaN or infinity"):
        solve_update(keys, RidgeMetric(NullSpace(d=4), 1.0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("past", [1, 9])
def test_earlier_keys_with_nan_or_infinity_are_refused(bad, past):
    earlier = randn(4, past)
    earlier[0, 0] = bad
    with pytest.raises(FloatingPointError):
        solve_update(randn(4, 2), RidgeMetric(NullSpace(d=4), 1.0), earlier)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_covariance_with_nan_or_infinity_is_refused(bad):
    covariance = torch.eye(4, dtype=torch.float64)
    covariance[2, 2] = bad
    with pytest.raises(FloatingPointError):
        solve_update(randn(4, 2), CovarianceMetric(covariance, 1.0))


def test_an_indefinite_covariance_is_refused_with_advice():
    with pytest.raises(FloatingPointError, match="3 x 3 system is not positive definite .*more tokens"):
        CovarianceMetric(-torch.eye(3, dtype=torch.float64), 1.0)
    with pytest.raises(FloatingPointError, match="raise the ridge"):
        cholesky_solve(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)), randn(2, 1))


@pytest.mark.parametrize("tokens", [1, 5, 10])
@pytest.mark.parametrize("n", [2, 30])
@pytest.mark.parametrize("seed", range(5))
def test_a_singular_covariance_still_gives_a_finite_update_that_spares_what_was_seen(tokens, n, seed):
    d = 12
    corpus = randn(d, tokens, seed=seed)
    covariance = corpus @ corpus.T / tokens
    keys, residual = randn(d, n, seed=seed + 50), randn(D_OUT, n, seed=seed + 51)
    delta = residual @ solve_update(keys, CovarianceMetric(covariance, 1e4)).T
    assert torch.isfinite(delta).all()
    assert delta.norm() > 0
    # The directions no token has are cheap, so nearly nothing is written where tokens were seen.
    assert (delta @ corpus).norm() < 2e-2 * delta.norm() * torch.linalg.matrix_norm(corpus, 2)
    # And the floor that makes the system solvable is small beside what was seen.
    factor = CovarianceMetric(covariance, 1e4).factor
    floored = factor @ factor.T
    torch.testing.assert_close(floored, 1e4 * covariance, rtol=0, atol=1e-4 * float(1e4 * covariance.norm()))


def test_a_covariance_of_zeros_is_refused_since_nothing_says_what_an_update_costs():
    with pytest.raises(FloatingPointError, match="not positive definite"):
        CovarianceMetric(torch.zeros(4, 4, dtype=torch.float64), 1.0)
