"""Figures of causal tracing: everything drawn, nothing cut off, equal data give equal bytes."""

import itertools

import numpy as np
import pandas as pd
import pytest

# Promises that every figure keeps, here to be collected with this file's `figure`.
from test_plots import (  # noqa: F401
    every_warning_is_an_error,
    test_legend_lies_outside_of_the_panels,
    test_no_label_is_cut_off,
    test_no_two_labels_of_an_axis_overlap,
    test_saving_twice_gives_equal_bytes_without_date_or_program,
)

from langedit_core import plots, plots_tracing
from langedit_core.tracing import ROLES
from langedit_core.tracing_analysis import SITE_NAMES

LAYERS = 18


def lines(names, single=False):
    rng = np.random.default_rng(0)
    rows = [
        dict(line=name, layer=layer, value=v, low=np.nan if single else v - 0.1, high=np.nan if single else v + 0.1)
        for name in names
        for layer, v in enumerate(rng.uniform(size=LAYERS))
    ]
    return pd.DataFrame(rows)


def maps(langs):
    rng = np.random.default_rng(0)
    return {
        lang: {kind: pd.DataFrame(rng.uniform(size=(5, LAYERS)), index=list(ROLES)) for kind in SITE_NAMES}
        for lang in langs
    }


def points():
    rng = np.random.default_rng(1)
    found = pd.DataFrame(dict(layer=range(0, 18, 2), effect=rng.uniform(0, 0.2, 9), value=rng.uniform(0.5, 0.9, 9)))
    return found.assign(
        effect_low=found["effect"] - 0.02, effect_high=found["effect"] + 0.02, low=found["value"] - 0.1,
        high=found["value"] + 0.1,
    )  # fmt: skip


@pytest.fixture(params=["heat", "heat of one", "roles", "languages", "one panel", "single facts", "dots"])
def figure(request):
    match request.param:
        case "heat":
            return plots_tracing.heat_maps(maps(plots.LANGUAGES), title="atlas")
        case "heat of one":
            one = maps(["en"])
            one["en"]["mlp"] = one["en"]["mlp"].drop(index="subject_middle")
            return plots_tracing.heat_maps(one, title="atlas")
        case "roles":
            panels = {title: lines(["last subject token", "last token"]) for title in SITE_NAMES.values()}
            return plots_tracing.layer_lines(panels, title="atlas")
        case "languages":
            panels = {title: lines(plots.LANGUAGES) for title in ("early", "late")}
            return plots_tracing.layer_lines(panels, looks=plots.LANGUAGES)
        case "one panel":
            return plots_tracing.layer_lines({"hidden": lines(["nothing frozen", "MLP frozen", "attention frozen"])})
        case "single facts":
            return plots_tracing.layer_lines({"hidden": lines(["last token"], single=True)})
        case "dots":
            return plots_tracing.effect_and_efficacy(points(), title="gemma-3-270m, atlas: traced and edited")


def test_a_language_keeps_its_colour_and_an_unknown_line_is_grey():
    figure = plots_tracing.layer_lines({"a": lines(["zh", "xx"]), "b": lines(["xx"])}, looks=plots.LANGUAGES)
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours[:2] == [plots.LANGUAGES["zh"][0], plots.GREY]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zh", "xx"]  # each once


def test_bands_span_the_interval():
    frame = lines(["last token"])
    band = plots_tracing.layer_lines({"a": frame}).axes[0].collections[0]
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(frame["low"].min())
    assert corners[:, 1].max() == pytest.approx(frame["high"].max())


def test_languages_share_the_colour_scale_of_their_kind():
    drawn = maps(["en", "zh"])
    drawn["zh"]["mlp"] *= 3
    panels = plots_tracing.heat_maps(drawn).axes[:6]
    limits = [axes.images[0].get_clim() for axes in panels]
    assert limits[:3] == limits[3:] and limits[1][1] == pytest.approx(drawn["zh"]["mlp"].to_numpy().max())


def test_a_point_never_stands_for_several_rows():
    with pytest.raises(ValueError, match="several rows for one line and layer"):
        plots_tracing.layer_lines({"a": pd.concat([lines(["zh"])] * 2)})


def test_no_language_is_refused():
    with pytest.raises(ValueError, match="at least one known fact"):
        plots_tracing.heat_maps({})


def test_a_layer_lies_where_its_effect_and_its_efficacy_are():
    shown = points()
    axes = plots_tracing.effect_and_efficacy(shown).axes[0]
    np.testing.assert_allclose(axes.collections[-1].get_offsets(), shown[["effect", "value"]].to_numpy())
    names = {text.get_text(): text.xy for text in axes.texts}
    assert names == {f"layer {r.layer}": (r.effect, r.value) for r in shown.itertuples()}


@pytest.mark.parametrize("seed", range(5))
def test_no_name_of_a_layer_lies_on_another_or_on_a_dot(seed):
    rng = np.random.default_rng(seed)
    effect, value = 0.01 * rng.random(9), 0.8 + 0.1 * rng.random(9)
    around = dict(effect_low=effect - 1e-3, effect_high=effect + 1e-3, low=value - 0.1, high=value + 0.1)
    crowded = pd.DataFrame(dict(layer=range(10, 19), effect=effect, value=value) | around)
    fig = plots_tracing.effect_and_efficacy(crowded)
    fig.draw_without_rendering()
    axes = fig.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 9 and not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    dots = axes.transData.transform(crowded[["effect", "value"]].to_numpy())
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    assert "logarithmic beyond" in axes.get_xlabel()


def test_many_lines_have_whiskers_instead_of_bands_and_few_facts_are_dotted_and_counted():
    frame = lines(plots.LANGUAGES).assign(n=lambda f: np.where(f["line"] == "zh", 2, 18))
    figure = plots_tracing.layer_lines({"a": frame}, looks=plots.LANGUAGES)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"{lang} (n = {2 if lang == 'zh' else 18})" for lang in plots.LANGUAGES]
    styles = dict(zip(texts, [line.get_linestyle() for line in figure.axes[0].lines], strict=False))
    assert {t for t, s in styles.items() if s == ":"} == {"zh (n = 2)"}
    highest = frame.loc[frame.groupby("line", sort=False)["value"].idxmax()]
    drawn = [bar.get_segments()[0] for bar in figure.axes[0].collections]
    np.testing.assert_allclose([[s[0][1], s[1][1]] for s in drawn], highest[["low", "high"]].to_numpy())
