"""Both running covariances: weights by hand, spaces as the editor's own."""

from dataclasses import replace

import pytest
import torch
import toy

from langedit_core import mixing
from langedit_core.covariance import KeyCovariance
from langedit_core.editors import Editor, Update, settings_for
from langedit_core.nullspace import Threshold
from langedit_core.projectors import projector_of

D, COUNTS = 12, (1000, 10)


def covariance(count=40, seed=0):
    rows = torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = rows * torch.logspace(0, -2, D, dtype=torch.float64)
    return KeyCovariance(gram=rows.T @ rows, count=count)


def batches(sizes, seed=1, d=D):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(d, n, generator=generator) for n in sizes]


def test_weights_by_hand():
    found = mixing.compare(covariance(), batches([3, 2]), Threshold(kind="fraction", value=0.5), COUNTS)
    found = found.set_index(["formula", "step"])
    mean, code = found.loc["mean"], found.loc["released"]
    assert mean["keys"].tolist() == code["keys"].tolist() == [0, 3, 5]
    assert mean["first_key"].tolist() == pytest.approx([0, 1 / 43, 1 / 45])
    assert mean["corpus"].tolist() == pytest.approx([1, 40 / 43, 40 / 45])
    once = 10 / 1010
    assert code["first_key"].tolist() == pytest.approx([0, once, (1000 * once + 10) / 1020])
    assert code["corpus"].tolist() == pytest.approx([1, 1000 / 1010, 1000 / 1010 * 1000 / 1020])


@pytest.mark.parametrize("formula", mixing.FORMULAS)
def test_weights_are_those_of_the_matrix(formula):
    """With an empty C₀ but its count, C̄ after one batch and a nothing is the first key's weight times KKᵀ."""
    start, (keys,) = covariance(), batches([2])
    found = mixing.compare(start, [keys, keys[:, :0]], Threshold(), COUNTS).set_index(["formula", "step"]).loc[formula]
    energy = float(keys.double().square().sum() / start.mean.trace())
    for step in (1, 2):
        row = found.loc[step]
        assert row["trace"] == pytest.approx(row["corpus"] + row["first_key"] * energy)


@pytest.mark.parametrize(("formula", "method"), [("mean", "langedit"), ("released", "langedit-released")])
def test_spaces_are_those_of_the_editor(formula, method, tiny):
    layer, threshold = 1, Threshold(kind="fraction", value=0.7)
    start = toy.covariances(tiny, (layer,))
    settings = settings_for(method, layers=(layer,), threshold=threshold, released_counts=COUNTS)
    editor = Editor(tiny, settings, start, toy.CONTEXTS)
    d_out, d_in = tiny.weight(layer).shape
    keys = [k * float(start[layer].mean.trace()) ** 0.5 for k in batches([3, 2, 4], d=d_in)]
    found = mixing.compare(start[layer], keys, threshold, COUNTS).query("formula == @formula").set_index("step")
    for t in range(len(keys) + 1):
        space = editor.layers[layer].space()
        assert found.loc[t, "free"] == space.rank
        past = torch.cat(keys[:t], dim=1) if t else torch.zeros(d_in, 0)
        expected = float(space.survival(past).mean()) if t else 1.0
        assert found.loc[t, "left"] == pytest.approx(expected, abs=1e-6)
        if t < len(keys):
            n = keys[t].shape[1]
            editor.apply({layer: Update(left=torch.zeros(d_out, n), right=torch.zeros(d_in, n), keys=keys[t])})


@pytest.mark.parametrize(("formula", "kind"), [("mean", "exact"), ("released", "released")])
def test_spaces_of_few_tokens_are_those_of_the_projectors(formula, kind):
    """Six tokens in twelve dimensions: the cut falls among directions that no token ever had."""
    start, keys, threshold = covariance(count=6), batches([3, 2, 4]), Threshold(kind="fraction", value=0.3)
    found = mixing.compare(start, keys, threshold, COUNTS).query("formula == @formula").set_index("step")
    projector = projector_of(kind, start, threshold)
    if kind == "released":
        projector = replace(projector, counts=COUNTS)
    for t in range(len(keys) + 1):
        assert found.loc[t, "free"] == projector.space.rank
        assert found.loc[0, "free"] == D - 6
        if t < len(keys):
            projector = projector.taking(keys[t])


def test_the_table_has_a_row_per_batch_and_both_formulas_in_a_cell():
    found = mixing.compare(covariance(), batches([3, 2]), Threshold(), COUNTS).assign(layer=4)
    table = mixing.readable(found)
    assert table["keys"].tolist() == [0, 3, 5] and table["C₀: mean, code"].tolist()[0] == "1.000, 1.000"
    assert table["past keys' energy left: mean, code"].tolist()[0] == "n/a"
    assert table["a key of batch 1: mean, code"].tolist()[:2] == ["n/a", f"{1 / 43:.1e}, {10 / 1010:.1e}"]
