"""What is done to an update after the solve equals its formula, and does no more than it says."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core.postprocess import damp, keep_largest, leading_directions, spread_off


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


SHAPES = [(6, 9), (9, 6), (5, 5), (1, 7), (7, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES)


# --- RECT -------------------------------------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("percent", [1, 40, 60, 99])
def test_the_largest_relative_changes_are_kept_as_in_the_literal_form(shape, percent):
    delta, weight = randn(*shape), randn(*shape, seed=1)
    expected = reference.rect(delta, weight, percent)
    assert torch.equal(keep_largest(delta, weight, percent / 100), expected)


def test_a_share_of_one_keeps_everything_and_no_kept_entry_is_changed():
    delta, weight = randn(6, 9), randn(6, 9, seed=1)
    assert torch.equal(keep_largest(delta, weight, 1.0), delta)
    kept = keep_largest(delta, weight, 0.3)
    there = kept != 0
    assert torch.equal(kept[there], delta[there])
    assert int(there.sum()) == 18  # of 54 entries the 37th smallest is the cut, and it stays
    relative = (delta / (weight + 1e-8)).abs()
    assert relative[there].min() > relative[~there].max()


def test_the_mask_is_relative_to_the_weight():
    delta, weight = torch.ones(1, 4), torch.tensor([[1.0, 10.0, 0.1, 100.0]])
    assert keep_largest(delta, weight, 0.25).tolist() == [[1.0, 0.0, 1.0, 0.0]]


# --- PRUNE ------------------------------------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("scale", [0.5, 1.0, 30.0])
def test_damping_equals_its_formula(shape, scale):
    weight, total = randn(*shape), scale * randn(*shape, seed=1)
    largest = float(torch.linalg.svdvals(weight)[0])
    torch.testing.assert_close(damp(total, largest), reference.prune(total, weight), rtol=1e-9, atol=1e-12)


def test_an_update_without_a_singular_value_above_the_largest_is_left_alone_bit_for_bit():
    total = randn(6, 9)
    largest = float(torch.linalg.svdvals(total)[0])
    assert torch.equal(damp(total, largest * (1 + 1e-12)), total)
    assert not torch.equal(damp(total, 0.99 * largest), total)


@given(scale=st.floats(0.1, 1e4), largest=st.floats(1.0, 50.0), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_damping_keeps_directions_and_order_and_enlarges_no_singular_value_where_the_largest_is_at_least_one(
    scale, largest, seed
):
    total = scale * randn(5, 7, seed=seed)
    before, after = torch.linalg.svdvals(total), torch.linalg.svdvals(damp(total, largest))
    assert (after <= before * (1 + 1e-9)).all()
    expected = torch.where(before > largest, (before / largest).log() + largest, before)
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)
    assert (damp(total, largest) * total).sum() > 0


def published_restraint(original_s: list[float], delta_s: list[float], n: float) -> list[float]:
    """PRUNE's code (mjy1111/PRUNE 96f875e, `reduce_type` log, log2, log1_5, ...), one singular value at a time."""
    largest, out = original_s[0], []
    for s in delta_s:
        out.append(math.log(s, n) + largest - math.log(largest, n) if s >= largest else s)
    return out


@shapes
@pytest.mark.parametrize("base", [math.e, 2.0, 1.5, 1.2])
def test_damping_equals_the_published_code_for_each_of_its_bases(shape, base):
    weight, total = randn(*shape), 30 * randn(*shape, seed=1)
    original = torch.linalg.svdvals(weight).tolist()
    left, singular, right = torch.linalg.svd(total, full_matrices=False)
    restrained = torch.tensor(published_restraint(original, singular.tolist(), base), dtype=torch.float64)
    expected = left @ torch.diag(restrained) @ right
    torch.testing.assert_close(damp(total, original[0], base), expected, rtol=1e-9, atol=1e-11)
    if base != math.e:
        assert (damp(total, original[0]) - expected).norm() > 1e-3 * expected.norm()


def test_a_larger_base_takes_more_away():
    total = 30 * randn(6, 9)
    norms = [float(damp(total, 2.0, base).norm()) for base in (1.2, 1.5, 2.0, math.e, 10.0)]
    assert norms == sorted(norms, reverse=True) and len(set(norms)) == 5


@pytest.mark.parametrize("base", [1.0, 0.5, 0.0, float("nan")])
def test_a_base_of_one_or_less_is_refused(base):
    with pytest.raises(ValueError, match="base of PRUNE's logarithm is .*above 1"):
        damp(randn(3, 3), 1.0, base)


def test_below_one_the_natural_logarithm_enlarges_singular_values_just_above_the_largest():
    # d/ds ln s = 1/s: the formula as published contracts for σ_max(W₀) >= 1 only.
    total = torch.diag(torch.tensor([0.2, 0.05], dtype=torch.float64))
    assert torch.linalg.svdvals(damp(total, 0.1))[0] > 0.2


# --- SPHERE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_turning_an_update_off_the_main_directions_equals_its_formula(shape, share, strength):
    weight, left, right = randn(*shape), randn(shape[0], 3, seed=1), randn(shape[1], 3, seed=2)
    ours = left @ spread_off(right, weight, strength, share).T
    torch.testing.assert_close(ours, reference.sphere(left @ right.T, weight, strength, share), rtol=1e-9, atol=1e-11)


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 9), share=st.floats(0, 1), alpha=st.floats(0, 1),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_update_never_grows_and_with_strength_one_leaves_the_main_directions_unmoved(
    rows, columns, share, alpha, seed
):
    weight, right = randn(rows, columns, seed=seed), randn(columns, 3, seed=seed + 1)
    leading = leading_directions(weight, share)
    torch.testing.assert_close(leading.T @ leading, torch.eye(leading.shape[1]).double(), rtol=0, atol=1e-12)
    turned = spread_off(right, weight, alpha, share)
    assert (turned.norm(dim=0) <= right.norm(dim=0) * (1 + 1e-12)).all()
    torch.testing.assert_close(leading.T @ turned, (1 - alpha) * leading.T @ right, rtol=0, atol=1e-12)
    whole = spread_off(right, weight, 1.0, share)
    torch.testing.assert_close(leading.T @ whole, torch.zeros(leading.shape[1], 3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(spread_off(whole, weight, 1.0, share), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_the_main_directions_are_the_fewest_that_reach_the_share(share):
    weight = randn(8, 12) * torch.logspace(0, 1, 12, dtype=torch.float64)
    rows = torch.nn.functional.normalize(weight, dim=1)
    leading = leading_directions(weight, share)
    reached = (rows @ leading).square().sum() / rows.square().sum()
    without_the_last = (rows @ leading[:, :-1]).square().sum() / rows.square().sum()
    assert without_the_last < share <= reached


def test_main_directions_do_not_depend_on_how_long_the_rows_are_and_a_zero_row_counts_for_nothing():
    weight = randn(6, 9)
    weight[2] = 0
    scaled = weight * torch.arange(1, 7).double()[:, None]
    for one in (scaled, weight[[0, 1, 3, 4, 5]]):
        ours, theirs = leading_directions(weight, 0.6), leading_directions(one, 0.6)
        torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=1e-10)


def test_single_precision_factors_are_turned_in_double_and_come_back_as_they_were():
    right, weight = randn(9, 3, dtype=torch.float32), randn(6, 9, dtype=torch.float32)
    turned = spread_off(right, weight, 0.5, 0.5)
    assert turned.dtype == torch.float32
    expected = spread_off(right.double(), weight.double(), 0.5, 0.5)
    torch.testing.assert_close(turned.double(), expected, rtol=1e-6, atol=1e-7)
