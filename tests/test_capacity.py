"""Capacity on keys whose answer is known: orthogonal, repeated and Gaussian ones, and the editor's own space."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core import capacity, projectors
from langedit_core.covariance import KeyCovariance
from langedit_core.editors import LayerState, Update, settings_for
from langedit_core.nullspace import NullSpace, Threshold, decompose, exact_null_space
from langedit_core.projectors import projector_of


def gaussian(d, n, seed=0, values=None):
    keys = torch.randn(d, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return keys if values is None else keys * values.sqrt()[:, None]


def covariance_of(keys):
    made = KeyCovariance.empty(len(keys))
    made.update(keys)
    return made


def test_orthogonal_keys_take_nothing_from_each_other_and_one_direction_each():
    wide = capacity.incremental_curve(NullSpace(d=8), torch.eye(8).double(), batch=2, ahead=4)
    assert wide["protected"].tolist() == [0, 2, 4, 6] and (wide["survival"] == 1).all()
    mixed = torch.eye(8).double()[:, [0, 1, 0, 2]]  # the third key is the first one again
    assert capacity.incremental_curve(NullSpace(d=8), mixed, 1, ahead=2)["survival"].tolist() == [1, 0.5, 0.5, 1]
    curve = capacity.incremental_curve(NullSpace(d=8), torch.eye(8).double(), batch=2)
    assert list(curve.columns) == list(capacity.COLUMNS)
    assert curve["protected"].tolist() == [0, 2, 4, 6]
    assert curve["rank"].tolist() == [8, 6, 4, 2]
    assert curve["survival"].tolist() == pytest.approx([1.0] * 4)
    assert np.isnan(curve["exposed"].iloc[0]) and curve["exposed"].iloc[1:].tolist() == pytest.approx([0.0] * 3)


def test_repeated_keys_leave_nothing_but_the_first_time():
    keys = gaussian(8, 1).repeat(1, 5)
    assert capacity.incremental_curve(NullSpace(d=8), keys, 1)["survival"].tolist() == pytest.approx([1, 0, 0, 0, 0])


def test_nothing_is_left_once_there_are_as_many_keys_as_free_directions():
    keys, corpus = gaussian(20, 50), gaussian(20, 200, seed=1)
    space = exact_null_space(covariance_of(corpus).mean, Threshold(kind="fraction", value=0.5))
    curve = capacity.incremental_curve(space, keys, 5)
    assert curve["rank"].tolist() == [10, 5, 0, 0, 0, 0, 0, 0, 0, 0]
    assert (curve["survival"].iloc[2:] < 1e-12).all()


@given(d=st.integers(3, 24), n=st.integers(1, 30), batch=st.integers(1, 7), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_capacity_only_falls_with_rank_and_stays_a_share(d, n, batch, seed):
    curve = capacity.incremental_curve(NullSpace(d=d), gaussian(d, n, seed), batch)
    assert curve["survival"].between(-1e-12, 1 + 1e-9).all() and (curve["smallest"] <= curve["survival"] + 1e-12).all()
    assert (curve["rank"].diff().dropna() <= 0).all()
    assert curve["rank"].tolist() == [max(0, d - m) for m in curve["protected"]]


def test_the_exact_curve_is_that_of_one_qr_decomposition():
    keys = gaussian(12, 12, values=capacity.power_law(12, 1.0))
    curve = capacity.incremental_curve(NullSpace(d=12), keys, 1)
    expected = capacity.energies_left(keys) / keys.square().sum(0)
    assert curve["survival"].to_numpy() == pytest.approx(expected.numpy(), abs=1e-10)


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_the_covariance_curve_is_the_space_of_the_editor(fraction, tiny):
    """LangEdit's own state, given the same keys, frees the same directions."""
    d = tiny.d_ff
    corpus, keys = covariance_of(gaussian(d, 400, seed=3)), gaussian(d, 40, seed=4) * 5
    threshold = Threshold(kind="fraction", value=fraction)
    state = LayerState(tiny, 1, settings_for("langedit", layers=(1,), threshold=threshold), corpus)
    curve = capacity.covariance_curve(corpus, keys, [threshold], batch=10, checkpoints=4)[threshold]
    assert curve["protected"].tolist() == [0, 10, 20, 30]
    for row in curve.itertuples():
        coming = keys[:, row.protected : row.protected + 10]
        assert row.rank == state.space().rank
        assert row.survival == pytest.approx(float(state.space().survival(coming).mean()), abs=1e-8)
        update = Update(left=torch.zeros(tiny.d_model, 10), right=torch.zeros(d, 10), keys=coming)
        vars(state).update(state.remembered(update))
    assert corpus.count == 400  # as it was


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_the_covariance_curve_of_few_tokens_is_that_of_the_projector_and_never_frees_a_direction(fraction):
    """Twenty tokens in 64 dimensions: the cut falls among directions that no token ever had."""
    d, threshold = 64, Threshold(kind="fraction", value=fraction)
    corpus, keys = covariance_of(gaussian(d, 20)), 3 * gaussian(d, 30, seed=1)
    curve = capacity.covariance_curve(corpus, keys, [threshold], batch=5, checkpoints=6)[threshold]
    projector, ranks = projector_of("exact", corpus, threshold), []
    for start in range(0, 30, 5):
        coming = keys[:, start : start + 5]
        row = curve[curve["protected"] == start].iloc[0]
        ranks.append(projector.space.rank)
        assert row["rank"] == projector.space.rank
        assert row["survival"] == pytest.approx(float(projector.space.survival(coming).mean()), abs=1e-8)
        projector = projector.taking(coming)
    assert ranks == sorted(ranks, reverse=True) and ranks[0] == max(44, round(fraction * d))


def test_several_thresholds_share_the_decompositions(monkeypatch):
    calls = []
    monkeypatch.setattr(capacity, "decompose", lambda matrix: calls.append(1) or decompose(matrix))
    monkeypatch.setattr(projectors, "decompose", None)
    thresholds = [Threshold(kind="fraction", value=f) for f in (0.3, 0.5, 0.8)]
    found = capacity.covariance_curve(covariance_of(gaussian(16, 90)), gaussian(16, 20), thresholds, 5, checkpoints=4)
    assert list(found) == thresholds and len(calls) == 4


def test_a_covariance_leaves_past_keys_exposed_where_exact_keys_do_not():
    d = 30
    corpus, keys = covariance_of(gaussian(d, 5000)), gaussian(d, 20, seed=5)
    threshold = Threshold(kind="fraction", value=0.8)
    running = capacity.covariance_curve(corpus, keys, [threshold], 5, 4)[threshold]
    exact = capacity.incremental_curve(exact_null_space(corpus.mean, threshold), keys, 5)
    assert running["exposed"].iloc[-1] > 0.3 and exact["exposed"].iloc[-1] < 1e-12
    assert running["survival"].iloc[0] == pytest.approx(exact["survival"].iloc[0])


@pytest.mark.parametrize(("n", "batch"), [(0, 3), (4, 0)])
def test_nothing_to_protect_is_refused(n, batch):
    keys = torch.zeros(5, n)
    with pytest.raises(ValueError, match="at least one of each"):
        capacity.incremental_curve(NullSpace(d=5), keys, batch)
    with pytest.raises(ValueError, match="at least one of each"):
        capacity.covariance_curve(covariance_of(gaussian(5, 9)), keys, [], batch)


def curve_of(x, y):
    return pd.DataFrame(dict(protected=x, survival=y))


def test_a_limit_lies_between_rows_on_a_straight_line():
    curve = curve_of([0, 10, 20], [1.0, 0.5, 0.1])
    assert capacity.limit(curve, 0.75) == 5 and capacity.limit(curve, 0.5) == 10
    assert capacity.limit(curve, 1.0) == 0 and np.isnan(capacity.limit(curve, 0.05))


def test_the_knee_is_the_corner_of_two_lines_and_a_tail_of_zeros_does_not_move_it():
    x = np.arange(0, 101, 10)
    y = np.where(x <= 30, 1 - 0.03 * x, 0.1 - 0.001 * (x - 30))
    corner = curve_of(x, y)
    assert capacity.knee(corner) == 30
    y = np.where(x <= 30, 1 - 0.03 * x, np.maximum(0.1 - 0.005 * (x - 30), 0))
    longer = curve_of(np.r_[x, 200, 300], np.r_[y, 0, 0])
    assert capacity.knee(curve_of(x, y)) == capacity.knee(longer) == 30
    assert np.isnan(capacity.knee(curve_of([0, 1, 2], [1.0, 0.5, 0.0])))  # a line has none


@pytest.mark.parametrize("m", [0, 10, 50, 99, 100, 120])
def test_uncorrelated_keys_are_predicted_by_one_minus_m_over_d(m):
    assert capacity.predicted(torch.ones(100), [m])[0] == pytest.approx(max(0, 1 - m / 100), abs=1e-6)
    assert capacity.predicted_limit(torch.ones(100), 0.1) == pytest.approx(90, abs=0.01)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_correlated_keys_are_predicted_from_their_spectrum(alpha):
    d, values = 200, capacity.power_law(200, alpha)
    left = torch.stack([capacity.energies_left(gaussian(d, d, s, values)) for s in range(20)]).mean(0)
    told = capacity.predicted(values, range(d))
    gap = left.numpy() - told
    assert abs(gap.mean()) < 0.005 and np.abs(gap).mean() < 0.03  # single keys scatter
    assert told[0] == 1 and (np.diff(told) < 0).all()


def test_the_spectrum_is_that_of_the_second_moment_and_sums_to_its_energy():
    keys = gaussian(10, 30)
    space = NullSpace(d=10).without(keys[:, :4])
    expected = torch.linalg.eigvalsh(keys @ keys.T / 30)
    assert torch.allclose(capacity.spectrum(keys), expected)
    inside = capacity.spectrum(keys, space)
    assert float(inside.sum()) == pytest.approx(float(space.project(keys).square().sum() / 30))
    assert len(capacity.spectrum(keys[:, :3])) == 10 and (capacity.spectrum(keys[:, :3])[:7] == 0).all()


def test_participation_counts_directions():
    assert capacity.participation(torch.ones(7)) == pytest.approx(7)
    assert capacity.participation(torch.tensor([0.0, 0.0, 3.0])) == pytest.approx(1)
    assert capacity.participation(torch.zeros(3)) == 0


def test_synthetic_limits_are_predicted_and_the_fit_finds_that_they_grow_with_width():
    found = capacity.synthetic_limits((64, 128, 256), alphas=(0.0, 1.0), fractions=(0.5, 1.0))
    assert len(found) == 3 * 2 * 2 * 2
    assert (found["predicted"] / found["measured"] - 1).abs().median() < 0.05
    fit = capacity.fit_limits(found)
    assert fit["share"].tolist() == [0.1, 0.05] and fit["n"].tolist() == [12, 12]
    assert fit["width"].tolist() == pytest.approx([1.0, 1.0], abs=0.15) and (fit["error"] < 0.25).all()
    guess = capacity.fitted_limit(fit, 0.1, 128, 1.0, 1.0)
    whole = found[(found["d"] == 128) & (found["alpha"] == 0) & (found["fraction"] == 1) & (found["share"] == 0.1)]
    assert guess == pytest.approx(whole["measured"].iloc[0], rel=0.2)


def test_a_fit_recovers_the_law_its_data_follow():
    rows = [
        dict(d=d, fraction=f, free=f * d, participation=p * f * d, share=0.1, measured=2 * d**1.0 * f**0.5 * p**0.25)
        for d in (64, 128, 256)
        for f in (0.5, 1.0)
        for p in (0.1, 0.5, 1.0)
    ]
    row = capacity.fit_limits(pd.DataFrame(rows)).iloc[0]
    assert [row["constant"], row["width"], row["fraction"], row["correlation"]] == pytest.approx([2, 1, 0.5, 0.25])
    assert row["error"] == pytest.approx(0, abs=1e-9)
