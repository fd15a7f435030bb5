"""Subspaces of languages whose angles are known, and statistics of labels that mean something or nothing."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.linalg import subspace_angles

from langedit_core import subspaces
from langedit_core.subspaces import Halves


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def halves(basis, n=40, seed=0, mean=None):
    """Two samples of keys inside a span, with a common mean if one is given."""
    made = [basis @ normal(basis.shape[1], n, seed=2 * seed + i + 1) for i in (0, 1)]
    first, second = (m if mean is None else m + mean[:, None] for m in made)
    return Halves(first=first, second=second)


def test_angles_are_those_of_scipy():
    a, b = (torch.linalg.qr(normal(12, 4, seed=s)).Q for s in (1, 2))
    assert subspaces.angles(a, b).flip(0).numpy() == pytest.approx(subspace_angles(a.numpy(), b.numpy()), abs=1e-6)
    assert subspaces.angles(a, a).abs().max() < 1e-6


def test_main_directions_are_orthonormal_and_the_mean_is_one_of_them_unless_taken_off():
    mean = torch.zeros(10).double()
    mean[0] = 100
    keys = normal(10, 30) + mean[:, None]
    found = subspaces.directions(keys, 3)
    torch.testing.assert_close(found.T @ found, torch.eye(3).double())
    assert abs(found[0, 0]) > 0.99
    assert subspaces.directions(keys, 3, centred=True)[0].abs().max() < 0.9
    with pytest.raises(ValueError, match="at most 29"):
        subspaces.directions(keys, 30, centred=True)


def test_equal_spans_overlap_fully_and_orthogonal_ones_not_at_all():
    eye = torch.eye(12).double()
    of = {"a": halves(eye[:, :3], seed=1), "b": halves(eye[:, :3], seed=2), "c": halves(eye[:, 3:6], seed=3)}
    overlap = subspaces.overlaps(of, 3)
    expected = [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert overlap.to_numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert subspaces.taken(of).to_numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert subspaces.relative(overlap).to_numpy() == pytest.approx(np.array(expected), abs=1e-5)


def test_random_spans_overlap_as_much_as_chance_says():
    d, k, n = 200, 5, 40
    of = {str(i): Halves(first=normal(d, n, seed=2 * i), second=normal(d, n, seed=2 * i + 1)) for i in range(12)}
    off = ~np.eye(12, dtype=bool)
    assert subspaces.overlaps(of, k).to_numpy()[off].mean() == pytest.approx(k / d, rel=0.15)
    assert subspaces.taken(of).to_numpy()[off].mean() == pytest.approx(subspaces.chance_taken(of), rel=0.05)


def test_a_common_mean_makes_languages_alike_only_where_it_is_not_taken_off():
    mean, eye = torch.zeros(20).double(), torch.eye(20).double()
    mean[0] = 50
    of = {"a": halves(eye[:, 1:3], seed=1, mean=mean), "b": halves(eye[:, 3:5], seed=2, mean=mean)}
    assert subspaces.overlaps(of, 1).loc["a", "b"] > 0.99
    assert subspaces.overlaps(of, 1, centred=True).loc["a", "b"] < 0.01


def test_taken_is_the_share_that_a_literal_projection_takes():
    of = {"a": halves(normal(15, 15, seed=8), n=6, seed=1), "b": halves(normal(15, 15, seed=9), n=6, seed=2)}
    found = []
    for one, other in (("first", "second"), ("second", "first")):
        keys, tested = getattr(of["a"], one), getattr(of["b"], other)
        projected = keys @ torch.linalg.lstsq(keys, tested).solution
        found.append(float((projected.square().sum(0) / tested.square().sum(0)).mean()))
    assert subspaces.taken(of).loc["a", "b"] == pytest.approx(np.mean(found), abs=1e-5)


def similar(groups, within=0.9, between=0.2, seed=0):
    rng, n = np.random.default_rng(seed), len(groups)
    same = np.array(groups)[:, None] == np.array(groups)[None, :]
    noise = rng.normal(0, 0.02, (n, n))
    values = np.where(same, within, between) + (noise + noise.T) / 2
    np.fill_diagonal(values, 1)
    names = [f"l{i:02d}" for i in range(n)]
    return pd.DataFrame(values, index=names, columns=names)


def test_a_tree_puts_groups_together():
    groups = [0, 1, 2] * 4
    order = subspaces.cluster(similar(groups)).order
    seen = [groups[int(name[1:])] for name in order]
    assert sum(a != b for a, b in zip(seen, seen[1:], strict=False)) == 2
    with pytest.raises(ValueError, match="at least three"):
        subspaces.cluster(similar([0, 1]))


def marks(script, family, index):
    return pd.DataFrame(dict(script=script, family=family), index=index)


def test_what_scripts_share_is_told_from_what_families_share():
    script = [i % 3 for i in range(24)]
    family = [i // 3 % 4 for i in range(24)]
    found = subspaces.contrasts(similar(script), marks(script, family, similar(script).index)).set_index("pairs")
    of_script = found.loc["same script − other script, where the family differs"]
    of_family = found.loc["same family − other family, where the script differs"]
    assert of_script["value"] == pytest.approx(0.7, abs=0.02) and of_script["p"] < 0.01 and of_script["low"] > 0.6
    assert of_family["value"] == pytest.approx(0.0, abs=0.02) and of_family["p"] > 0.05
    assert of_script["n"] == 24
    pairs = found["n"].iloc[:4]
    assert pairs.sum() == 24 * 23 / 2 and found["p"].iloc[:4].isna().all()
    assert ((found["low"] <= found["value"]) & (found["value"] <= found["high"])).all()


def test_labels_that_nobody_shares_give_no_difference_instead_of_a_number():
    matrix = similar([0, 0, 1, 1])
    found = subspaces.contrasts(matrix, marks(list("abcd"), [0, 0, 1, 1], matrix.index)).set_index("pairs")
    assert np.isnan(found.loc["same script, same family", "value"])
    assert np.isnan(found.loc["same script − other script, where the family differs", "value"])
    assert found.loc["other script, same family", "n"] == 2


def test_group_means_leave_a_language_with_itself_out():
    matrix = pd.DataFrame([[9.0, 1, 2], [1, 9, 4], [2, 4, 9]], index=list("xyz"), columns=list("xyz"))
    found = subspaces.grouped(matrix, ["g", "g", "h"])
    assert found.loc["g", "g"] == 1 and found.loc["g", "h"] == 3 and np.isnan(found.loc["h", "h"])
