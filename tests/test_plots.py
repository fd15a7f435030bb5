"""Figures keep their promises: every glyph drawn, nothing cut off, equal data give equal bytes."""

import json
import re
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font, ttfFontProperty

from langedit_core import plots

METHODS = ["memit", "alphaedit", "langedit"]
METRICS = ["efficacy", "generality", "specificity"]
TEXTS = {
    "en": ("Brazilian real", "Swedish krona"),
    "de": ("Bosnien-Herzegowina Konvertierbare Mark", "Schwedische Krone"),
    "fr": ("livre sterling des îles Falkland", "couronne suédoise"),
    "zh": ("巴西雷亚尔", "瑞典克朗"),
}


@pytest.fixture(autouse=True)
def every_warning_is_an_error():
    """Matplotlib only warns about a missing glyph or a layout that does not fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    rows = []
    for method in METHODS:
        for metric in METRICS:
            for when in ("final", "before", "immediate"):
                for lang in ("all", *TEXTS):
                    value = rng.uniform()
                    row = dict(model="m", data="d", method=method, metric=metric, when=when, lang=lang)
                    rows.append(row | dict(value=value, n=9, low=value * 0.9, high=value + (1 - value) * 0.1))
    return pd.DataFrame(rows)


@pytest.fixture
def edit():
    return pd.DataFrame(
        [
            dict(lang=lang, object=name, text=text, when=when, value=value)
            for lang, texts in TEXTS.items()
            for name, text in zip(("new", "old"), texts, strict=True)
            for when, value in (("before", 0.02), ("after", 0.98))
        ]
    )


@pytest.fixture(params=["bars", "panels", "lines", "heatmap", "dumbbells"])
def figure(request, frame, edit):
    match request.param:
        case "bars":
            return plots.method_bars(frame, "efficacy", title="All methods")
        case "panels":
            return plots.method_bars(frame, METRICS)
        case "lines":
            return plots.language_lines(frame, "efficacy", title="By language")
        case "heatmap":
            matrix = pd.DataFrame(np.linspace(-1, 1, 16).reshape(4, 4), index=list(TEXTS), columns=list(TEXTS))
            matrix.iloc[1, 2] = np.nan
            return plots.heatmap(matrix, title="Transfer", value_label="change", centre=0)
        case "dumbbells":
            return plots.before_after(edit, title="瑞典 → 巴西雷亚尔")


def drawn_texts(figure):
    """Every visible text with its box in pixels."""
    with plots.style():
        figure.draw_without_rendering()
        return [
            (text.get_text(), text.get_window_extent())
            for text in figure.findobj(matplotlib.text.Text)
            if text.get_text().strip() and text.get_visible() and text.get_window_extent().width
        ]


def test_no_label_is_cut_off(figure):
    width, height = figure.bbox.width, figure.bbox.height
    for text, box in drawn_texts(figure):
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert inside, f"{text!r} at {box.extents.round()} in a figure of {width:.0f} × {height:.0f} pixels"


def test_no_two_labels_of_an_axis_overlap(figure):
    figure.draw_without_rendering()
    for axes in figure.axes:
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text()]
            for i, box in enumerate(boxes):
                assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_legend_lies_outside_of_the_panels(figure):
    figure.draw_without_rendering()
    for legend in figure.legends:
        assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_saving_twice_gives_equal_bytes_without_date_or_program(figure, tmp_path):
    for name in ("one", "two"):
        plots.save(figure, tmp_path / name, "figure")
    for ending in ("png", "svg"):
        one, two = ((tmp_path / name / f"figure.{ending}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert b"Software" not in one and b"dc:date" not in one and b"Matplotlib v" not in one


def test_chinese_is_drawn_with_the_shipped_font(tmp_path):
    with plots.style():
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, "德国欧元，“瑞典克朗” złoty kõrgõz ‖ΔW‖ → ₂")
        plots.save(figure, tmp_path, "zh")  # a missing glyph would warn, and warnings are errors here


def test_missing_glyph_would_be_noticed(tmp_path):
    with plots.style():
        figure = Figure(figsize=(2, 1))
        figure.text(0.1, 0.5, "\U00013000")  # an Egyptian hieroglyph is in neither font
        with pytest.raises(UserWarning, match="Glyph 77824"):
            plots.save(figure, tmp_path, "hieroglyph")


def test_shipped_font_is_small_licensed_and_covers_chinese():
    path = plots.FONT
    characters = set(get_font(str(path)).get_charmap())
    assert ttfFontProperty(get_font(str(path))).name == "Noto Sans SC Subset"
    assert {ord(c) for c in "德国欧元阿厄瓜多尔瑙鲁圭亚那“”，。äßñé"} <= characters
    assert path.stat().st_size <= 2_500_000
    assert "SIL OPEN FONT LICENSE" in (path.parent / "OFL.txt").read_text()


def test_every_character_of_the_embedded_benchmark_can_be_drawn():
    text = (plots.FONT.parents[1] / "data" / "atlas.json").read_text(encoding="utf-8")
    drawable = set(get_font(str(plots.FONT)).get_charmap()) | set(get_font(findfont("DejaVu Sans")).get_charmap())
    assert not {c for c in json.dumps(json.loads(text), ensure_ascii=False) if ord(c) not in drawable}


def test_style_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    with plots.style():
        assert matplotlib.rcParams["svg.hashsalt"] == "langedit"
    assert dict(matplotlib.rcParams) == before


def test_a_method_keeps_its_colour_whatever_stands_beside_it(frame):
    def colours(part):
        figure = plots.method_bars(part, "efficacy")
        return {bar.get_label(): bar.patches[0].get_facecolor() for bar in figure.axes[0].containers}

    few = colours(frame[frame["method"] != "memit"])
    assert few.items() < colours(frame).items()


def test_methods_without_a_colour_of_their_own_are_still_told_apart():
    looks = plots._looks(["langedit", "mine", "yours"], plots.METHODS)
    assert looks["langedit"] == plots.METHODS["langedit"]
    assert len(set(looks.values())) == 3


def test_moments_are_drawn_in_the_order_of_time(frame):
    labels = [label.get_text() for label in plots.method_bars(frame, "efficacy").axes[0].get_xticklabels()]
    assert labels == ["before editing", "right after the batch", "at the end of the sequence"]


def test_whiskers_span_the_interval_and_bars_the_value(frame):
    row = frame.query("metric == 'efficacy' and lang == 'all' and method == 'memit' and `when` == 'before'").iloc[0]
    axes = plots.method_bars(frame, "efficacy").axes[0]
    assert axes.containers[0].patches[0].get_height() == pytest.approx(row["value"])
    bottom, top = axes.collections[0].get_segments()[0][:, 1]
    assert (bottom, top) == pytest.approx((row["low"], row["high"]))


def test_a_bar_never_stands_for_several_rows(frame):
    with pytest.raises(ValueError, match="several rows for one mark"):
        plots.method_bars(pd.concat([frame, frame.assign(model="other")]), "efficacy")


def test_unknown_metric_language_and_object_are_refused_with_the_known_ones(frame, edit):
    with pytest.raises(ValueError, match="unknown metric 'eficacy'; known: efficacy"):
        plots.method_bars(frame, "eficacy")
    with pytest.raises(ValueError, match="unknown lang 'it'"):
        plots.method_bars(frame, "efficacy", lang="it")
    with pytest.raises(ValueError, match="unknown object 'older'; known: old"):
        plots.before_after(edit.replace({"object": {"old": "older"}}))


@pytest.mark.parametrize("name", ["a/b", "../a", "a.png", "", "ä"])
def test_names_that_would_leave_the_folder_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="must consist of letters"):
        plots.save(Figure(), tmp_path, name)


def test_saved_figure_shows_the_saved_bytes_and_describes_itself(frame, tmp_path):
    saved = plots.save(plots.method_bars(frame, "efficacy", title="All methods"), tmp_path, "bars")
    bundle, metadata = saved._repr_mimebundle_()
    assert bundle["image/png"] == (tmp_path / "bars.png").read_bytes()
    assert metadata["image/png"]["alt"] == "All methods; efficacy"
    assert re.match(rb"\x89PNG", bundle["image/png"])
