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


MANY = [m for m in plots.METHODS if m != "ft-released"]


def square(seed=0, size=4):
    matrix = pd.DataFrame(np.random.default_rng(seed).uniform(-5, 1, (size, size)))
    matrix.iloc[0, 0] = np.nan
    return matrix.set_axis(range(1, size + 1), axis=0).set_axis([f"l{i}" for i in range(size)], axis=1)


def sequence(methods=METHODS, steps=9):
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        [
            dict(method=m, step=t, lang=list(TEXTS)[t % 4], edits=10 * (t + 1), early=rng.uniform(), all=rng.uniform())
            for m in methods
            for t in range(steps)
        ]
    )


FIGURES = [
    "dots",
    "panels",
    "many",
    "sequence",
    "curves",
    "many curves",
    "heatmap",
    "multiples",
    "flat",
    "wide",
    "dumbbells",
]


@pytest.fixture(params=FIGURES)
def figure(request, frame, edit):
    match request.param:
        case "dots":
            return plots.method_dots(frame, "efficacy", title="All methods")
        case "panels":
            return plots.method_dots(frame, METRICS)
        case "many":
            rows = frame[frame["method"] == METHODS[0]]
            return plots.method_dots(pd.concat([rows.assign(method=m) for m in MANY]), METRICS, title="Many methods")
        case "sequence":
            return plots.sequence_lines(sequence(MANY, 54), {"early": "one", "all": "two"}, title="Over time")
        case "curves":
            return plots.method_curves(sequence(), "edits", {"early": "early", "all": "all"}, title="Kept", xlabel="x")
        case "many curves":
            return plots.method_curves(sequence(MANY), "edits", {"early": "early", "all": "all"}, ylabel="y")
        case "heatmap":
            matrix = pd.DataFrame(np.linspace(-1, 1, 16).reshape(4, 4), index=list(TEXTS), columns=list(TEXTS))
            matrix.iloc[1, 2] = np.nan
            return plots.heatmap(matrix, title="Transfer", value_label="change", centre=0)
        case "multiples":
            panels = {method: square(i) for i, method in enumerate(MANY[:10])}
            return plots.heatmaps(panels, title="Small", xlabel="x", ylabel="y", value_label="points", centre=0)
        case "flat":
            panels = {method: square(i, 2) for i, method in enumerate(MANY[:4])}
            label = "change of efficacy, points per batch"
            return plots.heatmaps(panels, title="Flat", xlabel="language tested", ylabel="language", value_label=label)
        case "wide":
            panels = {method: square(i, 54) for i, method in enumerate(MANY[:10])}
            return plots.heatmaps(panels, title="Wide", xlabel="x", ylabel="y", limits=(0, 1))
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
        figure = plots.sequence_lines(part, {"early": "early"})
        return {line.get_label(): line.get_color() for line in figure.axes[0].lines}

    few = colours(sequence(["alphaedit", "langedit"]))
    assert few.items() < colours(sequence()).items()


def test_variants_share_a_colour_and_are_dashed():
    lines = plots.sequence_lines(sequence(MANY), {"early": "early"}).axes[0].lines
    looks = {line.get_label(): (line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(set(looks.values())) == len(MANY)
    for name, (colour, _, dash) in looks.items():
        assert dash == ("--" if "-" in name else "-")
        assert colour == looks[name.split("-")[0]][0]


def test_methods_without_a_colour_of_their_own_are_still_told_apart():
    looks = plots._looks(["langedit", "mine", "yours"], plots.METHODS)
    assert looks["langedit"] == plots.METHODS["langedit"]
    assert len(set(looks.values())) == 3


def test_bars_span_the_interval_and_dots_lie_at_the_value(frame):
    row = frame.query("metric == 'efficacy' and lang == 'all' and method == 'memit' and `when` == 'final'").iloc[0]
    axes = plots.method_dots(frame, "efficacy").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == METHODS
    low, high = axes.collections[1].get_segments()[0][:, 0]
    assert (low, high) == pytest.approx((row["low"], row["high"]))
    x, y = axes.collections[6].get_offsets()[0]
    assert (x, y) == pytest.approx((row["value"], 0))


def test_what_has_no_moment_in_between_is_drawn_from_before_editing(frame):
    part = frame[frame["when"] != "immediate"]
    texts = [text for text, _ in drawn_texts(plots.method_dots(part, {"efficacy": "Efficacy of edits"}))]
    row = part.query("metric == 'efficacy' and lang == 'all' and method == 'memit'").set_index("when")["value"]
    assert f"{row['before']:.2f} → {row['final']:.2f}" in texts and "Efficacy of edits" in texts
    assert plots.WHEN["immediate"] not in texts


def test_many_panels_are_set_in_rows_of_three(frame):
    five = {f"m{i}": f"panel {i}" for i in range(5)}
    rows = pd.concat([frame[frame["metric"] == "efficacy"].assign(metric=name) for name in five])
    figure = plots.method_dots(rows, five)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [*five.values(), ""]
    assert not figure.axes[5].axison


def test_places_are_moved_apart_around_their_mean_and_stay_inside():
    assert plots._apart([0.2, 0.5], 0.1, 0, 1) == [0.2, 0.5]
    assert plots._apart([0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.45, 0.55])
    assert plots._apart([0.98, 0.99], 0.1, 0, 1) == pytest.approx([0.9, 1.0])
    crowded = plots._apart(sorted(np.random.default_rng(0).uniform(0, 0.3, 8)), 0.1, 0, 1)
    assert np.diff(crowded).min() >= 0.1 - 1e-9 and crowded[0] >= 0


def test_labels_of_batches_are_thinned_so_that_every_language_gets_its_turn():
    assert plots._thinned(12, 6) == 1
    every = plots._thinned(72, 6)
    assert 72 / every <= 12 and {t % 6 for t in range(0, 72, every)} == set(range(6))


def test_bold_numbers_are_those_asked_for():
    bold = pd.DataFrame([[True, False], [False, False]])
    panels = {"a": pd.DataFrame([[1.0, 2.0], [3.0, 4.0]]), "b": pd.DataFrame([[5.0, 6.0], [7.0, 8.0]])}
    figure = plots.heatmaps(panels, bold={"a": bold, "b": ~bold}, fmt=".0f")
    weights = {text.get_text(): text.get_weight() for axes in figure.axes for text in axes.texts}
    assert {n for n, weight in weights.items() if weight == "bold"} == {"1", "6", "7", "8"}


def test_a_dot_never_stands_for_several_rows(frame):
    with pytest.raises(ValueError, match="several rows for one mark"):
        plots.method_dots(pd.concat([frame, frame.assign(model="other")]), "efficacy")


def test_what_was_not_measured_is_told_and_not_drawn(frame):
    part = frame[(frame["method"] != "memit") | (frame["when"] != "immediate")]
    texts = [text for text, _ in drawn_texts(plots.method_dots(part, "efficacy"))]
    assert sum(text.startswith("n/a → ") for text in texts) == 1


def test_names_at_the_ends_of_curves_do_not_overlap_and_few_methods_are_all_coloured():
    few, many = (plots.method_curves(sequence(m), "edits", {"early": "e"}) for m in (METHODS, MANY))
    for figure, methods in ((few, METHODS), (many, MANY)):
        figure.draw_without_rendering()
        names = [text for text in figure.findobj(matplotlib.text.Annotation) if text.get_text() in methods]
        boxes = [matplotlib.text.Text.get_window_extent(text) for text in names]  # without the tie to the line
        assert len(boxes) == len(methods)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert {line.get_color() for line in few.axes[0].lines} == {plots.METHODS[m][0] for m in METHODS}
    coloured = [line.get_color() for line in many.axes[0].lines if line.get_color() != "#B0B0B0"]
    assert set(coloured) == {plots.METHODS[m][0] for m in plots.FOCUS}


def test_an_axis_is_logarithmic_only_where_one_method_dwarfs_the_others():
    calm = sequence()
    assert plots.sequence_lines(calm, {"early": "e"}).axes[0].get_yscale() == "linear"
    wild = calm.assign(early=calm["early"].where(calm["method"] != "memit", calm["early"] * 100))
    assert plots.sequence_lines(wild, {"early": "e"}).axes[0].get_yscale() == "log"
    assert plots.sequence_lines(wild.assign(early=wild["early"] - 1), {"early": "e"}).axes[0].get_yscale() == "linear"


def test_small_multiples_share_one_scale_that_an_outlier_does_not_stretch():
    panels = {str(i): square(i) for i in range(9)} | {"wild": square(9) * 40}
    figure = plots.heatmaps(panels, centre=0)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    limits = {image.get_clim() for image in images}
    assert len(images) == 10 and len(limits) == 1
    ((low, high),) = limits
    assert low == -high and high < 100
    assert [axes.get_title(loc="left") for axes in figure.axes[:10]] == list(panels)


@pytest.mark.parametrize(("count", "without"), [(1, 0), (2, 0), (4, 0), (5, 0), (6, 3)])
def test_panels_above_a_gap_have_their_labels_as_all_of_their_row_do(count, without):
    figure = plots.heatmaps({str(i): square(i) for i in range(count)}, columns=3)
    shown = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes[:count]]
    assert shown == [False] * without + [True] * (count - without)


def test_small_multiples_of_different_shapes_or_none_are_refused():
    with pytest.raises(ValueError, match=r"matrices of one shape; got \[\(3, 3\), \(4, 4\)\]"):
        plots.heatmaps({"a": square(0, 4), "b": square(0, 3)})
    with pytest.raises(ValueError, match="matrices of one shape"):
        plots.heatmaps({})


def test_numbers_are_written_only_where_they_can_be_read():
    def numbers(size):
        figure = plots.heatmaps({str(i): square(i, size) for i in range(4)}, centre=0)
        return sum(len(axes.texts) for axes in figure.axes)

    assert numbers(4) == 4 * 16 and numbers(54) == 0


def test_unknown_metric_language_and_object_are_refused_with_the_known_ones(frame, edit):
    with pytest.raises(ValueError, match="unknown metric 'eficacy'; known: efficacy"):
        plots.method_dots(frame, "eficacy")
    with pytest.raises(ValueError, match="unknown lang 'it'"):
        plots.method_dots(frame, "efficacy", lang="it")
    with pytest.raises(ValueError, match="unknown object 'older'; known: old"):
        plots.before_after(edit.replace({"object": {"old": "older"}}))


@pytest.mark.parametrize("name", ["a/b", "../a", "a.png", "", "ä"])
def test_names_that_would_leave_the_folder_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="must consist of letters"):
        plots.save(Figure(), tmp_path, name)


def test_saved_figure_shows_the_saved_bytes_and_describes_itself(frame, tmp_path):
    saved = plots.save(plots.method_dots(frame, "efficacy", title="All methods"), tmp_path, "bars")
    bundle, metadata = saved._repr_mimebundle_()
    assert bundle["image/svg+xml"] == (tmp_path / "bars.svg").read_text(encoding="utf-8")
    assert bundle["image/png"] == (tmp_path / "bars.png").read_bytes()
    assert {m["alt"] for m in metadata.values()} == {"All methods; efficacy"}
    assert re.match(rb"\x89PNG", bundle["image/png"]) and "<svg" in bundle["image/svg+xml"]
