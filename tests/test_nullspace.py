"""Theorems about null spaces: they project, updates inside them move no kept key, increments equal the whole."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from langedit_core.nullspace import NullSpace, Threshold, cut_at, cut_spectrum, exact_null_space, leak, space_below
from langedit_core.solve import RidgeMetric, solve_update


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotated(eigenvalues: list[float], seed: int = 0) -> torch.Tensor:
    """A covariance with these eigenvalues and random eigenvectors."""
    vectors = torch.linalg.qr(randn(len(eigenvalues), len(eigenvalues), seed=seed)).Q
    return vectors @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ vectors.T


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def space_of(d: int, protected: int, seed: int = 0) -> NullSpace:
    """Null space of a covariance with `protected` large eigenvalues."""
    return exact_null_space(
        rotated([1e-6] * (d - protected) + [1.0] * protected, seed), Threshold(kind="absolute", value=0.1)
    )


def check_projection(space: NullSpace) -> None:
    projection = space.projection
    close(projection, projection.T)
    close(projection @ projection, projection)
    assert torch.trace(projection).item() == pytest.approx(space.rank, abs=1e-9)
    assert int((torch.linalg.svdvals(projection) > 0.5).sum()) == space.rank


# --- thresholds on known spectra --------------------------------------------------------------------------------------

SPECTRUM = [0.0, 0.1, 0.4, 0.5, 1.0, 2.0, 6.0, 10.0]  # sum 20, mean 2.5


@pytest.mark.parametrize(
    ("kind", "value", "free"),
    [
        ("absolute", 0.0, 0),
        ("absolute", 0.1, 1),  # "below", so the eigenvalue 0.1 itself is protected
        ("absolute", 0.11, 2),
        ("absolute", 11.0, 8),
        ("relative", 0.2, 3),  # 0.2 x 2.5 = 0.5, again not below itself
        ("relative", 0.21, 4),
        ("relative", 1.0, 6),
        ("fraction", 0.0, 0),
        ("fraction", 0.25, 2),
        ("fraction", 0.8, 6),  # 6.4 directions are 6
        ("fraction", 1.0, 8),
        ("energy", 0.0, 8),
        ("energy", 0.5, 7),  # 10 of 20 is half exactly: one direction is enough
        ("energy", 0.51, 6),
        ("energy", 0.8, 6),  # 10 + 6 of 20
        ("energy", 0.81, 5),
        ("energy", 0.95, 4),  # 10 + 6 + 2 + 1
        ("energy", 1.0, 1),  # all energy; the direction without any stays free
    ],
)
def test_each_threshold_cuts_a_known_spectrum_where_it_says(kind, value, free):
    threshold = Threshold(kind=kind, value=value)
    eigenvalues = torch.tensor(SPECTRUM, dtype=torch.float64)
    assert threshold.free(eigenvalues) == free
    space = cut_spectrum(eigenvalues, torch.linalg.qr(randn(8, 8)).Q, threshold)
    assert space.rank == free
    check_projection(space)


def test_the_spectrum_is_that_of_the_covariance():
    off = Threshold(kind="energy", value=0.52)  # away from ties, which rounding would break
    for threshold in (off, Threshold(kind="fraction", value=0.25), Threshold(kind="relative", value=0.3)):
        space = exact_null_space(rotated(SPECTRUM), threshold)
        values = torch.linalg.eigvalsh(rotated(SPECTRUM))
        close(space.projection, reference.null_projection(rotated(SPECTRUM), threshold.cut(values) - 1e-9))


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(["absolute", "relative", "energy", "fraction"]),
    value=st.floats(0.01, 0.99),
    spectrum=st.lists(st.floats(0.01, 100), min_size=2, max_size=12, unique=True),
)
def test_cutting_the_same_spectrum_again_at_its_cut_frees_the_same_directions(kind, value, spectrum):
    eigenvalues = torch.tensor(sorted(spectrum), dtype=torch.float64)
    threshold = Threshold(kind=kind, value=value)
    again = Threshold(kind="absolute", value=min(threshold.cut(eigenvalues), 1e300))
    assert again.free(eigenvalues) == threshold.free(eigenvalues)


@settings(max_examples=100, deadline=None)
@given(value=st.floats(0.01, 1.0), spectrum=st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_energy_protects_the_fewest_directions_that_hold_the_share(value, spectrum):
    eigenvalues = torch.tensor(sorted(spectrum), dtype=torch.float64)
    free = Threshold(kind="energy", value=value).free(eigenvalues)
    total = float(eigenvalues.sum())
    assert float(eigenvalues[free:].sum()) >= value * total * (1 - 1e-12)
    if free < len(spectrum):  # one less would not be enough
        assert float(eigenvalues[free + 1 :].sum()) < value * total * (1 + 1e-12)


def test_a_cut_is_a_number_of_the_spectrum_and_infinite_when_nothing_is_protected():
    eigenvalues = torch.tensor(SPECTRUM, dtype=torch.float64)
    assert Threshold(kind="absolute", value=0.3).cut(eigenvalues) == 0.3
    assert Threshold(kind="relative", value=0.3).cut(eigenvalues) == pytest.approx(0.75)
    assert Threshold(kind="fraction", value=0.5).cut(eigenvalues) == 1.0
    assert Threshold(kind="energy", value=0.8).cut(eigenvalues) == 6.0
    assert Threshold(kind="fraction", value=1.0).cut(eigenvalues) == math.inf


def test_a_spectrum_is_cut_at_any_number_also_an_infinite_one():
    eigenvalues, vectors = torch.tensor(SPECTRUM, dtype=torch.float64), torch.linalg.qr(randn(8, 8)).Q
    for cut, free in ((0.0, 0), (0.1, 1), (0.5, 3), (10.0, 7), (10.5, 8), (math.inf, 8)):
        space = cut_at(eigenvalues, vectors, cut)
        assert space.rank == free
        close(space.project(vectors[:, :free]), vectors[:, :free])
        check_projection(space)


@pytest.mark.parametrize("noise", [0.0, 1e-9, -1e-9])
def test_a_cut_stays_above_the_noise_of_directions_no_key_ever_had(noise):
    # Rank 2 of 8, half the directions free: the cut falls among zeros, which the next decomposition shuffles.
    eigenvalues = torch.tensor([noise] * 6 + [1.0, 2.0], dtype=torch.float64)
    cut = Threshold(kind="fraction", value=0.5).cut(eigenvalues)
    later = torch.tensor([-2e-9, 0, 0, 1e-9, 1e-9, 2e-9, 1.0, 2.0], dtype=torch.float64)
    assert Threshold(kind="absolute", value=cut).free(later) == 6


@pytest.mark.parametrize("kind", ["fraction", "energy"])
def test_a_share_above_one_is_refused(kind):
    with pytest.raises(ValidationError, match="from 0 to 1"):
        Threshold(kind=kind, value=1.01)
    Threshold(kind="relative", value=1.01)


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_threshold_is_not_negative(value):
    with pytest.raises(ValidationError):
        Threshold(kind="absolute", value=value)


def test_an_unknown_threshold_is_refused():
    with pytest.raises(ValidationError, match="kind"):
        Threshold(kind="engery", value=0.5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_covariance_with_nan_or_infinity_gives_no_null_space(bad):
    covariance = torch.eye(3, dtype=torch.float64)
    covariance[0, 0] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        exact_null_space(covariance, Threshold())


# --- projections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protected", range(9))
def test_a_projection_is_idempotent_symmetric_of_its_rank_and_held_by_the_thinner_side(protected):
    d = 8
    space = space_of(d, protected)
    assert space.rank == d - protected
    check_projection(space)
    close(space.projection, reference.null_projection(rotated([1e-6] * (d - protected) + [1.0] * protected), 0.1))
    columns = [0 if factor is None else factor.shape[1] for factor in (space.kept, space.removed)]
    assert sum(columns) == min(protected, d - protected)
    assert (space.kept is None) == (d - protected > protected)


def test_both_sides_project_alike():
    eigenvalues, vectors = torch.linalg.eigh(rotated(SPECTRUM))
    keys = randn(8, 5)
    for free in range(9):
        by_kept = NullSpace(d=8, kept=vectors[:, :free])
        by_removed = NullSpace(d=8, removed=vectors[:, free:])
        close(by_kept.project(keys), by_removed.project(keys))
        assert by_kept.rank == by_removed.rank == free
        space = cut_spectrum(eigenvalues, vectors, Threshold(kind="fraction", value=free / 8))
        close(space.project(keys), by_kept.project(keys))


def test_the_whole_space_changes_nothing():
    keys = randn(5, 3)
    assert torch.equal(NullSpace(d=5).project(keys), keys)
    close(NullSpace(d=5).projection, torch.eye(5, dtype=torch.float64), 0)
    assert NullSpace(d=5).rank == 5


def test_single_precision_keys_stay_single():
    space = space_of(8, 3).without(randn(8, 2))
    projected = space.project(randn(8, 4).float())
    assert projected.dtype == torch.float32
    close(projected.double(), space.project(randn(8, 4)), 1e-5)


def test_an_update_inside_the_space_leaves_preserved_keys_unmoved():
    d, preserved = 20, randn(20, 6, seed=1)
    space = exact_null_space(preserved @ preserved.T, Threshold(kind="absolute", value=1e-9))
    assert space.rank == d - 6
    delta = randn(7, 3) @ solve_update(randn(d, 3), RidgeMetric(space, 0.5)).T
    assert delta.norm() > 0.1
    assert (delta @ preserved).norm() < 1e-10 * delta.norm() * preserved.norm()
    assert leak(delta, preserved) < 1e-10


def test_survival_is_the_share_of_energy_inside_the_space():
    space = NullSpace(d=4, kept=torch.eye(4, dtype=torch.float64)[:, :2])
    keys = torch.tensor([[1.0, 3, 0, 0], [0, 0, 2, 0], [0, 4, 0, 0], [0, 0, 2, 0]], dtype=torch.float64)
    close(space.survival(keys), torch.tensor([1.0, 9 / 25, 0.5, 0.0], dtype=torch.float64))
    close(space.survival(keys * 1e-30), space.survival(keys))
    assert not torch.isnan(space.survival(torch.zeros(4, 2))).any()


def test_leak_is_one_at_worst_and_zero_inside_the_complement():
    keys = torch.eye(4, dtype=torch.float64)[:, :2] * torch.tensor([3.0, 1.0], dtype=torch.float64)
    along = torch.tensor([[2.0, 0, 0, 0]], dtype=torch.float64)
    assert leak(along, keys) == pytest.approx(1.0)
    assert leak(along.roll(1, dims=1), keys) == pytest.approx(1 / 3)  # the shorter key
    assert leak(along.roll(2, dims=1), keys) == 0.0
    half = torch.tensor([[1.0, 0, 1.0, 0]], dtype=torch.float64)
    assert leak(half, keys) == pytest.approx(math.sqrt(0.5))
    assert leak(torch.zeros(1, 4), keys) == 0.0
    assert leak(along.float(), keys) == pytest.approx(1.0)


# --- the incremental projector ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    d=st.integers(2, 16), protected=st.integers(0, 16), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    seed=st.integers(0, 999), repeats=st.booleans(),
)  # fmt: skip
def test_increments_equal_the_projector_off_the_span_of_everything(d, protected, sizes, seed, repeats):
    protected = min(protected, d)
    covariance = rotated([1e-6] * (d - protected) + [1.0] * protected, seed)
    space = exact_null_space(covariance, Threshold(kind="absolute", value=0.1))
    everything = torch.linalg.eigh(covariance)[1][:, d - protected :]
    for number, n in enumerate(sizes):
        keys = randn(d, n, seed=seed + number)
        if repeats and number:  # a key that was already there, and one that nearly was
            keys = torch.cat([keys, everything[:, -1:], everything[:, -1:] * (1 + 1e-12)], dim=1)
        space = space.without(keys)
        everything = torch.cat([everything, keys], dim=1)
    rank = int(torch.linalg.matrix_rank(everything, rtol=1e-9))
    assert space.rank == d - rank
    close(space.projection, reference.complement_of(everything, rank), 1e-8)
    check_projection(space)


def test_without_leaves_the_space_it_came_from_alone():
    space = space_of(10, 3)
    before = space.projection
    smaller = space.without(randn(10, 2))
    assert (space.rank, smaller.rank) == (7, 5)
    assert torch.equal(space.projection, before)


def test_the_order_of_batches_does_not_matter():
    batches = [randn(12, 3, seed=i) for i in range(3)]
    start = space_of(12, 2)
    one = start.without(batches[0]).without(batches[1]).without(batches[2])
    other = start.without(batches[2]).without(torch.cat([batches[1], batches[0]], dim=1))
    assert one.rank == other.rank == 1
    close(one.projection, other.projection, 1e-9)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_repeated_and_nearly_parallel_keys_take_one_direction_whatever_their_scale(scale):
    key, other = randn(10, 1) * scale, randn(10, 1, seed=1) * scale
    space = space_of(10, 2).without(key)
    assert space.rank == 7
    assert space.without(key).rank == 7
    assert space.without(torch.cat([key, -3 * key, key + 1e-9 * other], dim=1)).rank == 7
    assert space.without(key + 1e-3 * other).rank == 6  # well above the tolerance: a direction of its own
    assert space.without(key + 1e-3 * other, tolerance=1e-1).rank == 7


def test_keys_that_are_zero_or_none_change_nothing():
    space = space_of(10, 2)
    assert space.without(torch.zeros(10, 3, dtype=torch.float64)).rank == 8
    assert space.without(torch.empty(10, 0, dtype=torch.float64)).rank == 8


@pytest.mark.parametrize("own", [1e-2, 4e-6])
@pytest.mark.parametrize("start", ["whole", "kept", "removed"])
def test_many_batches_stay_orthonormal_and_protect_the_first(start, own):
    d = 120
    space = {"whole": NullSpace(d=d), "kept": space_of(d, 62), "removed": space_of(d, 20)}[start]
    assert (space.kept is not None) == (start == "kept")
    # Keys of real facts are nearly parallel: one common direction and a small part of their own.
    common, batches = randn(d, 1), []
    for number in range(50):
        keys = common + own * randn(d, 1, seed=number + 1)
        batches.append(keys)
        space = space.without(keys)
    removed = space.removed
    close(removed.T @ removed, torch.eye(removed.shape[1], dtype=torch.float64), 1e-10)
    if space.kept is not None:  # what is removed lies inside what was kept
        close(space.kept @ (space.kept.T @ removed), removed, 1e-10)
    keys = torch.cat(batches, dim=1)
    assert float(space.survival(keys).max()) < 1e-10
    # What a key adds below the tolerance is left out, and is all that leaks.
    assert leak(randn(4, d) @ space.projection, keys) < (1e-10 if own > 1e-3 else 1e-6)
    check_projection(space)


def test_when_everything_is_used_up_the_rank_is_zero_and_nothing_becomes_nan():
    space = space_of(6, 2).without(randn(6, 9))
    assert space.rank == 0
    keys = randn(6, 4, seed=5)
    assert space.project(keys).norm() < 1e-9
    assert float(space.survival(keys).max()) < 1e-18
    assert space.without(keys).rank == 0
    empty = exact_null_space(torch.eye(6, dtype=torch.float64), Threshold(kind="absolute", value=0.0))
    assert empty.rank == 0
    assert torch.equal(empty.project(keys), torch.zeros_like(keys))
    assert empty.without(keys).rank == 0


def test_single_precision_keys_are_removed_in_double():
    keys = randn(30, 8).float()
    space = space_of(30, 5).without(keys)
    assert space.removed.dtype == torch.float64
    assert float(space.survival(keys).max()) < 1e-24


@pytest.mark.parametrize("protected", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("guess", [0, 3, 8])
def test_a_space_below_a_cut_is_that_of_the_whole_decomposition(protected, guess):
    matrix = rotated(SPECTRUM)
    eigenvalues, vectors = torch.linalg.eigh(matrix)
    cut = [*eigenvalues.tolist(), 2 * float(eigenvalues[-1])][8 - protected] * (1 - 1e-7)
    whole, found = cut_at(eigenvalues, vectors, cut), space_below(matrix, cut, guess)
    assert found.rank == whole.rank == 8 - protected
    torch.testing.assert_close(found.projection, whole.projection, rtol=0, atol=1e-12)


@pytest.mark.parametrize("guess", [0, 8])
def test_a_space_below_an_infinite_cut_is_everything_and_nan_is_refused(guess):
    matrix = rotated(SPECTRUM)
    assert space_below(matrix, math.inf, guess).rank == 8
    matrix[0, 0] = math.nan
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        space_below(matrix, 0.1, guess)


def test_a_space_below_a_cut_of_many_like_eigenvalues_is_a_projection():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(300, 40, generator=generator, dtype=torch.float64)
    matrix = keys @ keys.T + 1e-9 * torch.eye(300, dtype=torch.float64)  # 260 equal ones below the cut
    space = space_below(matrix, 1e-3, 40)
    assert space.rank == 260
    close = dict(rtol=0, atol=1e-12)
    torch.testing.assert_close(space.removed.T @ space.removed, torch.eye(40, dtype=torch.float64), **close)
    assert float(space.project(keys).norm() / keys.norm()) < 1e-12
