"""Figures of capacity and key subspaces draw what they are given, with every label in place."""

import numpy as np
import pandas as pd
import pytest

from langedit_core import capacity, plots, plots_capacity, subspaces

X = np.arange(0, 100, 10)


def curve(scale=1.0):
    return pd.DataFrame(
        dict(protected=X, rank=100 - X, survival=scale * np.exp(-X / 20), smallest=0.0, exposed=0.0)
    )  # fmt: skip


def labels(fig):
    return {text.get_text() for legend in fig.legends for text in legend.get_texts()}


def test_capacity_curves_show_each_curve_its_knee_and_its_prediction(tmp_path):
    series = {("exact keys", 0.8): curve(0.5), ("exact keys", 1.0): curve(), ("running covariance", 0.8): curve(0.5)}
    told = pd.DataFrame(dict(fraction=0.8, protected=X, predicted=curve(0.5)["survival"]))
    fig = plots_capacity.capacity_curves(series, told, title="T")
    assert {
        "80% free after C₀",
        "no C₀",
        "exact keys",
        "running covariance",
        "knee",
        "predicted from the spectrum",
    } == labels(fig)
    left = fig.axes[0]
    knees = [line for line in left.get_lines() if line.get_marker() == "D"]
    assert len(knees) == 2 and knees[0].get_xdata()[0] == capacity.knee(curve(0.5))
    assert len(left.get_lines()) == 3 + 2 + 1
    assert plots.save(fig, tmp_path, "capacity").alt.startswith("T")
    assert "predicted from the spectrum" not in labels(plots_capacity.capacity_curves(series))
    with pytest.raises(ValueError, match="no curve"):
        plots_capacity.capacity_curves({})


def test_curves_of_exact_keys_keep_their_shape_and_the_axis_says_where_it_bends(tmp_path):
    x = np.arange(0, 10_000, 50)
    exact = pd.DataFrame(
        dict(protected=x, rank=(2048 - x).clip(min=0), survival=np.exp(-x / 300), smallest=0.0, exposed=0.0)
    )
    mean = exact.iloc[::20].assign(rank=1900, survival=0.2)
    fig = plots_capacity.capacity_curves({("exact keys", 1.0): exact, ("running covariance", 0.8): mean}, title="T")
    for axes in fig.axes:
        assert axes.get_xlabel() == "facts protected (linear to 2,500, logarithmic beyond)"
        at = axes.transData.transform(np.column_stack([x[:51], np.ones(51)]))[:, 0]
        assert np.diff(at) == pytest.approx(np.diff(at)[0]), "equal steps as long as exact keys have directions"
    plots.save(fig, tmp_path, "bend")
    short = plots_capacity.capacity_curves({("exact keys", 1.0): exact[exact["protected"] < 2000]})
    assert {axes.get_xlabel() for axes in short.axes} == {"facts protected"}
    assert {axes.get_xscale() for axes in short.axes} == {"linear"}


def test_synthetic_limits_have_a_panel_per_fraction(tmp_path):
    found = capacity.synthetic_limits((32, 64), alphas=(0.0, 1.0), fractions=(0.5, 1.0), shares=(0.1,))
    fig = plots_capacity.limits_scatter(found, title="T")
    assert [axes.get_title(loc="left") for axes in fig.axes] == ["50% free", "no C₀"]
    assert labels(fig) == {"uncorrelated keys", "λᵢ ∝ i^−1", "predicted"}
    plots.save(fig, tmp_path, "limits")


@pytest.mark.parametrize("n", [6, 40])
def test_the_clustered_map_is_in_the_order_of_its_tree_and_names_every_language(n, tmp_path):
    names = [f"l{i}" for i in range(n)]
    rng = np.random.default_rng(0)
    noise = rng.random((n, n))
    matrix = pd.DataFrame((noise + noise.T) / 2, index=names, columns=names)
    marks = pd.DataFrame(
        dict(script=["Latin" if i % 3 else "Arabic" for i in range(n)], branch=[f"B{i % 4}" for i in range(n)]),
        index=names,
    )
    tree = subspaces.cluster(matrix)
    fig = plots_capacity.clustered(matrix, tree, marks, title="T", value_label="overlap")
    stem, strips, heat, notes = fig.axes[:4]
    shown = [text.get_text().strip() for text in heat.get_yticklabels()]
    assert shown == tree.order
    assert np.asarray(heat.images[0].get_array()) == pytest.approx(matrix.loc[tree.order, tree.order].to_numpy())
    assert strips.images[0].get_array().shape == (n, 2)
    legends = [*notes.artists, notes.get_legend()]
    assert len(legends) == 2
    told = {text.get_text() for legend in legends for text in legend.get_texts()}
    assert any(text.startswith("Latin (") for text in told) and any(text.startswith("B1 (") for text in told)
    plots.save(fig, tmp_path, "map")


def test_no_colour_is_a_script_and_a_family():
    assert not set(plots_capacity.SCRIPT_COLOURS) & set(plots_capacity.FAMILY_COLOURS)


def test_rare_marks_share_one_colour():
    codes, names, colours = plots_capacity._codes(pd.Series(["a", "a", "b", "b", "c", "d"]), "rgb")
    assert names == ["a (2)", "b (2)", "others (2)"] and codes.tolist() == [0, 0, 1, 1, 2, 2] and len(colours) == 3


def test_language_figures_have_a_line_per_number_of_languages_or_method(tmp_path):
    rows = [
        dict(languages=n, edits=e, value=0.9 - e / 100, low=0.5, high=0.95, n=10) for n in (2, 6) for e in (10, 20, 30)
    ]
    fig = plots_capacity.language_curves({"memit": pd.DataFrame(rows), "langedit": pd.DataFrame(rows)}, title="T")
    assert labels(fig) == {"2 languages", "6 languages"} and len(fig.axes) == 2
    plots.save(fig, tmp_path, "curves")
    ends = pd.DataFrame(
        [
            dict(method=m, languages=n, metric="efficacy_tf", value=0.5, low=0.4, high=0.6)
            for m in ("memit", "langedit")
            for n in (2, 4, 6)
        ]
    )
    fig = plots_capacity.scaling_dots(ends, {"efficacy_tf": "efficacy", "absent": "-"}, plots.METHODS)
    told = plots_capacity.scaling_dots(ends.assign(before=0.9), {"efficacy_tf": "efficacy"}, plots.METHODS)
    assert [t.get_text() for t in told.axes[0].texts] == ["unedited"] and not fig.axes[0].texts
    assert labels(fig) == {"memit", "langedit"} and len(fig.axes) == 1
    plots.save(fig, tmp_path, "dots")


def test_the_group_map_names_every_group_and_writes_every_number(tmp_path):
    names = [f"G{i} ({i})" for i in range(16)]
    matrix = pd.DataFrame(np.linspace(0, 1, 256).reshape(16, 16), index=names, columns=names)
    matrix.iloc[3, 3] = np.nan
    axes = plots_capacity.group_map(matrix, title="T").axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == names
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert len(axes.texts) == 255
    plots.save(axes.figure, tmp_path, "groups")
