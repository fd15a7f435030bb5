"""Projectors know the same space in different ways: they agree, keep what they shall, and never change their past."""

from __future__ import annotations

from dataclasses import replace

import pytest
import reference
import torch
import toy
from conftest import build_model
from test_editors import simple_editor
from test_nullspace import check_projection, close, randn, rotated

from langedit_core import projectors
from langedit_core.covariance import KeyCovariance
from langedit_core.nullspace import NullSpace, Threshold, decompose, exact_null_space, leak
from langedit_core.projectors import (
    KINDS,
    Exact,
    Fixed,
    Projector,
    full_keys_null_space,
    projector_of,
    randomized_null_space,
)
from langedit_core.refresh import bytes_of, refresh

D, PROTECTED = 40, 8
each_kind = pytest.mark.parametrize("kind", KINDS)


def covariance(count: int = 100) -> KeyCovariance:
    """Eight directions in use, the rest with next to nothing."""
    mean = rotated([1e-4 * (1 + i) for i in range(D - PROTECTED)] + [1.0 + i for i in range(PROTECTED)])
    return KeyCovariance(gram=count * (mean + mean.T) / 2, count=count)


def start(kind: str) -> Projector:
    return projector_of(kind, covariance(), Threshold(kind="absolute", value=0.5))


def batches() -> list[torch.Tensor]:
    """Keys long enough to lift a direction above the cut of the running sum, 100 x 0.5."""
    return [30 * randn(D, n, seed=i + 1) for i, n in enumerate((3, 1, 4))]


# --- they agree -------------------------------------------------------------------------------------------------------


@each_kind
def test_every_kind_starts_from_the_null_space_of_the_covariance(kind):
    projector = start(kind)
    assert isinstance(projector, Projector) and projector.space.rank == D - PROTECTED
    close(projector.space.projection, reference.null_projection(covariance().mean, 0.5))


@each_kind
def test_every_kind_protects_all_keys_it_took_and_what_was_protected_before(kind):
    before = torch.linalg.eigh(covariance().mean)[1][:, -PROTECTED:]
    projector, taken = start(kind), [before]
    for keys in batches():
        projector, told = refresh(projector, keys, taken, dtype=torch.float64)
        taken.append(keys)
        assert told.rank == D - sum(k.shape[1] for k in taken)
        assert told.bytes == bytes_of(projector) > 0 and told.seconds > 0
        # A covariance protects eigenvectors, which hold a key but for what the cut lets through.
        assert told.leak < (1e-10 if kind in ("full_keys", "incremental") else 2e-2)
        check_projection(projector.space)


def test_full_keys_equal_the_increments():
    one, other = start("full_keys"), start("incremental")
    for keys in (*batches(), batches()[0], torch.zeros(D, 2, dtype=torch.float64)):
        one, other = one.taking(keys), other.taking(keys)
        assert one.space.rank == other.space.rank
        close(one.space.projection, other.space.projection)


def test_exact_equals_the_decomposition_of_the_running_mean_and_randomized_equals_exact():
    one, other, running = start("exact"), start("randomized"), covariance()
    for keys in batches():
        one, other = one.taking(keys), other.taking(keys)
        running.update(keys)
        cut = Threshold(kind="absolute", value=0.5 * 100 / running.count)
        close(one.space.projection, exact_null_space(running.mean, cut).projection)
        close(other.space.projection, one.space.projection, 1e-7)


@pytest.mark.parametrize("threshold", [Threshold(kind="fraction", value=1.0), Threshold(kind="energy", value=0.0)])
@pytest.mark.parametrize("kind", ["exact", "randomized", "released"])
def test_an_infinite_cut_leaves_everything_free_whatever_is_added(kind, threshold):
    projector = projector_of(kind, covariance(), threshold)
    for keys in batches():
        assert projector.space.rank == D
        projector = projector.taking(1e6 * keys)
    close(projector.space.projection, torch.eye(D, dtype=torch.float64))


@pytest.mark.parametrize("kind", [*KINDS, "fixed", "literal", "released"])
def test_of_a_corpus_that_is_too_small_only_what_it_spans_is_protected_and_that_is_said(kind, caplog):
    keys = randn(D, 3)
    few = KeyCovariance(gram=keys @ keys.T, count=3)  # 3 directions, where 8 are asked for
    projector = projector_of(kind, few, Threshold(kind="fraction", value=0.8))
    assert projector.space.rank == D - 3 and float(projector.space.survival(keys).max()) < 1e-9
    assert "has 3 directions above rounding where 8 were to be protected" in caplog.text
    caplog.clear()
    projector_of(kind, covariance(), Threshold(kind="fraction", value=0.8))
    assert not caplog.text


@pytest.mark.parametrize("kind", [*KINDS, "fixed", "literal", "released"])
def test_a_spectrum_that_is_known_is_not_found_again(kind, monkeypatch):
    of, threshold = covariance(), Threshold(kind="fraction", value=0.5)
    spectrum, found = decompose(of.mean), projector_of(kind, of, threshold)
    monkeypatch.setattr(projectors, "decompose", None)
    again = projector_of(kind, of, threshold, spectrum=spectrum)
    assert torch.equal(again.space.projection, found.space.projection)


def test_the_letter_of_the_recursion_weighs_a_key_by_its_batch():
    """C̄ ← (n̄/n̄′) C̄ + (n/n̄′) K Kᵀ, step by step, and cut at the cut of C₀ times n₀/n̄."""
    generator = torch.Generator().manual_seed(3)
    covariance = KeyCovariance.empty(8)
    covariance.update(torch.randn(8, 40, generator=generator, dtype=torch.float64))
    projector, mean, count = projector_of("literal", covariance), covariance.mean, covariance.count
    for n in (3, 1):
        keys = torch.randn(8, n, generator=generator, dtype=torch.float64)
        projector = projector.taking(keys)
        mean, count = (count * mean + n * keys @ keys.T) / (count + n), count + n
        torch.testing.assert_close(projector.matrix / count, mean)


@pytest.mark.parametrize("kind", [*KINDS, "fixed", "literal", "released"])
def test_a_covariance_that_is_no_number_gives_no_projector(kind):
    of = covariance()
    of.gram[3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="covariance holds NaN or infinity"):
        projector_of(kind, of)


def test_the_released_mix_equals_its_recursion():
    mean, projector, keys = covariance().mean, projector_of("released", covariance()), batches()
    documents, per_batch = projector.counts
    mix, past = mean, torch.zeros_like(mean)
    for t, batch in enumerate(keys, 1):
        projector, past = projector.taking(batch), past + batch @ batch.T
        mix = (documents * mix + per_batch * past) / (documents + per_batch * t)
        close(projector.matrix, mix)


@each_kind
def test_taking_keys_leaves_the_projector_and_the_covariance_as_they_were(kind):
    of = covariance()
    before, projector = of.gram.clone(), projector_of(kind, of, Threshold(kind="absolute", value=0.5))
    space = projector.space.projection
    after = projector.taking(batches()[0])
    assert after.space.rank < projector.space.rank
    assert torch.equal(projector.space.projection, space) and torch.equal(of.gram, before)


@pytest.mark.parametrize("kind", ["exact", "randomized", "literal", "released"])
def test_more_keys_than_dimensions_are_held_as_their_sum_and_protect_the_same(kind):
    of, threshold, n = covariance(), Threshold(kind="absolute", value=0.5), 7
    before, projector = of.gram.clone(), projector_of(kind, of, threshold)
    loose = projector  # holds every key: as it would be without the sum
    for number in range(14):
        keys = randn(D, n, seed=number)
        projector = projector.taking(keys)
        stored = keys * n**0.5 if kind == "literal" else keys
        loose = replace(loose, start=None, keys=(*loose.keys, stored))
        close(projector.matrix, loose.matrix, 1e-9)
        close(projector.space.projection, loose.space.projection, 1e-7)
        held = sum(k.shape[1] for k in projector.keys)
        assert held == (number + 1) * n if kind == "released" else held <= D
    assert projector.space.rank < D - PROTECTED and torch.equal(of.gram, before)


def test_a_fixed_space_takes_keys_and_stays():
    fixed = projector_of("fixed", covariance())
    assert fixed.taking(batches()[0]) is fixed
    assert bytes_of(Fixed(NullSpace(d=D))) == 0


def test_unknown_kinds_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown projector 'incrementl'; known: incremental, "):
        start("incrementl")


# --- what they hold ---------------------------------------------------------------------------------------------------


def test_only_what_decomposes_a_covariance_holds_a_matrix_and_it_is_the_one_given():
    of, keys = covariance(), batches()[0]
    basis, thin = D * PROTECTED * 8, D * keys.shape[1] * 8
    more_of = {
        "fixed": 0,
        "incremental": thin,
        "full_keys": basis + 2 * thin,
        "exact": 2 * thin,
        "randomized": 2 * thin,
    }
    for kind, more in more_of.items():
        projector = projector_of(kind, of, Threshold(kind="absolute", value=0.5)).taking(keys)
        square = 8 * D**2 if isinstance(projector, Exact) else 0
        assert bytes_of(projector) == basis + more + square
        assert not square or projector.held["gram"] is of.gram


# --- full keys as a sample --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 200])
@pytest.mark.parametrize("kind", ["absolute", "relative", "energy", "fraction"])
def test_a_threshold_cuts_stored_keys_where_it_cuts_their_covariance(n, kind):
    keys, threshold = randn(D, n), Threshold(kind=kind, value=0.6)
    theirs = exact_null_space(keys @ keys.T / n, threshold)
    ours = full_keys_null_space(keys, threshold=threshold)
    assert ours.rank == theirs.rank
    if n > D or kind != "fraction":  # else the cut falls among directions without any key
        close(ours.projection, theirs.projection, 1e-8)


def test_stored_keys_see_directions_that_their_covariance_in_single_precision_loses():
    basis = torch.linalg.qr(randn(D, 2)).Q
    keys = basis @ torch.diag(torch.tensor([1e4, 1e-1], dtype=torch.float64))
    gram = (keys.float() @ keys.float().T).double()
    delta = torch.linalg.qr(randn(D, 3, seed=2)).Q.T
    cut = Threshold(kind="absolute", value=0.5e-2)
    full = full_keys_null_space(keys, threshold=Threshold(kind="absolute", value=0.25e-2)).project(delta.T).T
    squared = exact_null_space(gram, cut).project(delta.T).T
    assert (full @ keys[:, 1]).norm() < 1e-9 < 1e-5 < (squared @ keys[:, 1]).norm()
    assert full_keys_null_space(keys).rank == D - 2


def test_full_keys_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="leave `within` out"):
        full_keys_null_space(randn(D, 3), NullSpace(d=D), Threshold())
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        full_keys_null_space(torch.full((D, 1), float("nan")))
    space = NullSpace(d=D, removed=torch.linalg.qr(randn(D, 2)).Q)
    assert full_keys_null_space(randn(D, 0), space) is space
    assert full_keys_null_space(space.removed, space) is space


# --- the randomised range finder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("guess", [1, 8, 100])
def test_a_wrong_guess_costs_time_but_no_direction(guess):
    of = covariance().mean
    found = randomized_null_space(of, 0.5, guess, oversampling=2)
    assert found.rank == D - PROTECTED
    close(found.projection, reference.null_projection(of, 0.5), 1e-6)
    again = randomized_null_space(of, 0.5, guess, oversampling=2)
    assert torch.equal(found.removed, again.removed)


def test_power_iterations_pay_where_the_spectrum_is_flat():
    flat = rotated([0.3] * (D - PROTECTED) + [1.0] * PROTECTED)
    exact = reference.null_projection(flat, 0.5)
    errors = [
        float((randomized_null_space(flat, 0.5, PROTECTED, oversampling=2, powers=p).projection - exact).norm())
        for p in (1, 4, 14)
    ]
    assert errors[0] > errors[1] > 1e-2 and errors[2] < 1e-5


def test_the_range_finder_protects_nothing_or_everything_where_the_cut_says_so():
    of = covariance().mean
    assert randomized_null_space(of, float("inf"), 4).rank == D
    assert randomized_null_space(of, 0.0, 4).rank == 0
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        randomized_null_space(of * float("nan"), 0.5, 4)


# --- in an editor -----------------------------------------------------------------------------------------------------


def edited(method: str) -> dict[int, torch.Tensor]:
    """What three batches change in each layer."""
    model, unedited = build_model("llama"), build_model("llama")
    editor = simple_editor(model, method)
    for number, lang in enumerate(("en", "de", "fr")):
        editor.edit(toy.facts(lang, range(3 * number, 3 * number + 3)))
    return {layer: model.weight(layer) - unedited.weight(layer) for layer in (1, 2)}


@pytest.mark.parametrize(
    ("method", "twin", "apart"), [("langedit-full", "evoedit", 1e-5), ("langedit-randomized", "langedit", 0.1)]
)
def test_two_ways_to_the_same_space_edit_a_model_alike(method, twin, apart):
    one, other = edited(method), edited(twin)
    for layer, change in other.items():
        # The spectrum of a real covariance has no gap at the cut: there a random sample does not find all directions.
        assert (one[layer] - change).norm() < apart * change.norm()


def test_an_edit_in_the_space_of_the_full_keys_moves_no_earlier_key():
    editor, kept = simple_editor(build_model("llama"), "langedit-full"), {1: [], 2: []}
    for number, lang in enumerate(("en", "de", "fr")):
        _, updates = editor.edit(toy.facts(lang, range(3 * number, 3 * number + 3)))
        for layer, update in updates.items():
            if kept[layer]:
                assert leak(update.delta, torch.cat(kept[layer], dim=1)) < 1e-6
            kept[layer].append(update.keys)


@pytest.mark.parametrize("kind", ["exact", "randomized"])
def test_directions_of_rounding_noise_are_free_from_the_start_rather_than_after_the_first_key(kind):
    # half of the directions hold noise far below the cut's floor, of which a fraction of 30 % would protect some
    eigenvalues = torch.cat(
        [torch.full((20,), 1e-9, dtype=torch.float64), torch.logspace(-2, 1, 20, dtype=torch.float64)]
    )
    covariance = KeyCovariance(gram=torch.diag(eigenvalues) * 100, count=100)
    before = projector_of(kind, covariance, Threshold(kind="fraction", value=0.3))
    after = before.taking(torch.zeros(40, 1, dtype=torch.float64))
    assert after.space.rank == before.space.rank == 20
