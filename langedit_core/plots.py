"""Figures in one style: a method and a language keep their colour everywhere, every label is drawn in full.

Each helper maps tidy rows (model, data, method, metric, when, lang, value, n, low, high) to one figure whose
whiskers are [low, high]. Figures are made without pyplot, so none stays open, and are saved without dates, so
equal data give equal bytes.
"""

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from textwrap import fill

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from langedit_core.errors import unknown
from langedit_core.storage import write_bytes

WIDTH = 9.0  # inches: 900 px on a screen at 100 px per inch
DPI = 150  # saved sharper than shown
FONT = Path(__file__).parent / "fonts" / "NotoSansSC-subset.otf"  # made by scripts/build_font.py

# Okabe and Ito (2008), told apart with every common kind of colour blindness; yellow is left out on white.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, BLACK, GREY = "#CC79A7", "#56B4E9", "#000000", "#7F7F7F"

METHODS: dict[str, tuple[str, str]] = {  # colour, marker; methods not named here take what is left
    "memit": (BLUE, "o"),
    "rect": (SKY, "<"),
    "prune": (BLACK, ">"),
    "rome": (GREY, "P"),
    "ft": (VERMILION, "*"),
    "alphaedit": (ORANGE, "s"),
    "langedit": (GREEN, "D"),
    "evoedit": (PURPLE, "v"),
    # A variant has the colour of what it varies, and is dashed.
    "memit-seq": (BLUE, "X"),
    "prune-released": (BLACK, "<"),
    "ft-released": (VERMILION, "p"),
    "alphaedit-sphere": (ORANGE, "h"),
    "langedit-sphere": (GREEN, "h"),
    "langedit-released": (GREEN, "^"),
    "langedit-full": (GREEN, "X"),
    "langedit-literal": (GREEN, "v"),
}
FOCUS = ("memit", "alphaedit", "langedit", "evoedit")  # where lines are many, the others are grey
FEW = 6  # so many lines can all have their colour
LABELS = 16  # so many columns of a matrix are all labelled
LANGUAGES: dict[str, tuple[str, str]] = {
    "en": (BLUE, "o"),
    "de": (BLACK, "s"),
    "nl": (ORANGE, "^"),
    "es": (VERMILION, "D"),
    "fr": (SKY, "v"),
    "zh": (GREEN, "P"),
}
WHEN = {  # moment of measurement
    "before": "before editing",
    "immediate": "right after the batch",
    "final": "at the end of the sequence",
}


@dataclass(frozen=True, kw_only=True)
class SavedFigure:
    """A figure on disk, shown by a notebook as exactly what was saved.

    A page takes the SVG. A notebook that somebody else has executed is not trusted, and JupyterLab shows no SVG
    of such a one: it takes the PNG.

    Attributes:
        svg: Content of the SVG.
        png: Content of the PNG.
        alt: What the picture shows, for those who cannot see it.
    """

    svg: str
    png: bytes
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        shown = {"image/svg+xml": self.svg, "image/png": self.png}
        return shown | {"text/plain": self.alt}, {kind: {"alt": self.alt} for kind in shown}


@cache
def _chinese_family() -> str:
    """Registers the shipped font with matplotlib and returns its family name."""
    font_manager.fontManager.addfont(FONT)
    return font_manager.FontProperties(fname=FONT).get_name()


@contextmanager
def style() -> Iterator[None]:
    """Everything drawn inside the `with` block looks like the rest of the study and can spell Chinese."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": ["DejaVu Sans", _chinese_family()],
                "font.size": 10,
                "axes.titlesize": 11,
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "axes.axisbelow": True,
                "grid.color": "#E5E5E5",
                "legend.frameon": False,
                "figure.dpi": 100,
                "figure.facecolor": "white",
                "svg.hashsalt": "langedit",  # otherwise random ids in every file
                "svg.fonttype": "path",  # the reader's machine need not have the font
            }
        )
        yield


def save(fig: Figure, folder: str | Path, name: str, alt: str | None = None) -> SavedFigure:
    """Writes `name`.png and `name`.svg with bytes that depend on the figure alone; its layout is final then.

    Args:
        fig: Any matplotlib figure.
        folder: Made if missing.
        name: File name without ending: letters, digits, "-" and "_".
        alt: Description for screen readers; the figure's title by default.

    Raises:
        ValueError: `name` holds other characters, "/" or "." among them.
        CannotWrite: Full disk, no permission; see `storage.write_bytes`.
    """
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise ValueError(f"figure name {name!r} must consist of letters, digits, '-' and '_', no ending")
    folder = Path(folder)
    png, svg = io.BytesIO(), io.BytesIO()
    with style():
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # constrained layout moves a little at every drawing
        fig.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        fig.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    write_bytes(folder / f"{name}.svg", svg.getvalue())
    write_bytes(folder / f"{name}.png", png.getvalue())
    titles = [fig.get_suptitle(), *(axes.get_title(loc="left") for axes in fig.axes)]
    described = alt or "; ".join(title for title in titles if title) or name
    return SavedFigure(svg=svg.getvalue().decode(), png=png.getvalue(), alt=described)


def method_dots(
    frame: pd.DataFrame,
    metric: str | Sequence[str] | Mapping[str, str],
    *,
    lang: str = "all",
    title: str = "",
    xlabel: str = "share",
) -> Figure:
    """A row per method, a panel per metric: from right after the batch to the end, with the interval of the latter.

    What was not measured right after the batch is drawn from before editing.

    Args:
        frame: Tidy rows of one model and data set.
        metric: One metric or several, a panel each with a common axis; or metric -> title of its panel.
        lang: Whose rows are shown; "all" holds the aggregate over languages.
        title: Above everything.
        xlabel: Unit of the value.

    Raises:
        ValueError: `metric` or `lang` does not occur in `frame`, or a point would stand for several rows.
    """
    names = [metric] if isinstance(metric, str) else metric
    headings = dict(names) if isinstance(names, Mapping) else {name: name.replace("_", " ") for name in names}
    rows = {name: _rows(frame, metric=name, lang=lang) for name in headings}
    methods = list(dict.fromkeys(m for part in rows.values() for m in part["method"]))
    looks, y = _looks(methods, METHODS), np.arange(len(methods))
    colours = [looks[method][0] for method in methods]
    lines = -(-len(rows) // 3)
    columns = -(-len(rows) // lines)
    soon_known = "immediate" in set(pd.concat(rows.values())["when"])
    with style():
        fig = Figure(figsize=(WIDTH, 1.2 + lines * (0.55 + 0.3 * len(methods))), layout="constrained")
        panels = fig.subplots(lines, columns, sharey=True, squeeze=False).flat
        for axes, (name, part) in zip(panels, rows.items(), strict=False):
            at = {when: _unique(part[part["when"] == when], "method").reindex(methods) for when in WHEN}
            before, soon, last = at.values()
            start = soon if soon_known else before
            axes.hlines(y, start["value"], last["value"], color=colours, lw=1, alpha=0.5)
            axes.hlines(y, last["low"], last["high"], color=colours, lw=1.6)
            for ends in (last["low"], last["high"]):
                axes.scatter(ends, y, s=40, marker="|", color=colours, lw=1.6)
            axes.scatter(before["value"], y, s=60, marker="|", color=GREY, label=WHEN["before"])
            axes.scatter(soon["value"], y, s=26, facecolor="white", edgecolor=colours, zorder=2)
            axes.scatter(last["value"], y, s=16, color=colours, zorder=3)
            for place, a, b in zip(y, start["value"], last["value"], strict=True):
                text = f"{a:.2f} → {b:.2f}".replace("nan", "n/a")
                at_edge = dict(xycoords=("axes fraction", "data"), textcoords="offset points")
                axes.annotate(text, (1, place), (4, 0), va="center", fontsize=8, **at_edge)
            axes.set(xlabel=xlabel, title=headings[name], ylim=(len(methods) - 0.5, -0.5))
            axes.set_yticks(y, methods)
            axes.grid(axis="y", visible=False)
            numbers = part[["value", "low", "high"]]
            if numbers.min(axis=None) >= 0 and numbers.max(axis=None) <= 1:  # shares can be compared across figures
                axes.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1])
                axes.set_xticks([0.25, 0.75], minor=True)
                axes.grid(axis="x", which="minor")
        for axes in fig.axes[len(rows) :]:
            axes.set_axis_off()
        # Keys are grey: the moments look the same in every colour.
        if soon_known:
            fig.axes[0].scatter([], [], s=26, facecolor="white", edgecolor=GREY, label=WHEN["immediate"])
        fig.axes[0].scatter([], [], s=16, color=GREY, label=f"{WHEN['final']}, with its 95 % interval")
        _legend(fig, fig.axes[0], 3, title)
    return fig


def sequence_lines(
    frame: pd.DataFrame, panels: Mapping[str, str], *, title: str = "", unedited: Mapping[str, Real] | None = None
) -> Figure:
    """What changes from batch to batch: a line per method, a panel per quantity.

    Axes begin at 0, unless one method is more than five times above the middle one; then they are logarithmic.

    Args:
        frame: Columns method, step, lang and those in `panels`; one row per method and step.
        panels: Column to label.
        title: Above everything.
        unedited: Column to the unedited model's value, a dotted line.

    Raises:
        ValueError: A column is missing, or a method has several rows for one step.
    """
    if missing := [c for c in ("method", "step", "lang", *panels) if c not in frame]:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(frame)}")
    methods = list(dict.fromkeys(frame["method"]))
    looks = _looks(methods, METHODS)
    with style():
        fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, (column, label) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for method in methods:
                found = _unique(frame[frame["method"] == method], "step")
                colour, marker = looks[method]
                marks = dict(marker=marker, markevery=max(1, len(found) // 8), ms=5)
                axes.plot(found.index, found[column], _dash(method), color=colour, lw=1.4, label=method, **marks)
            steps = frame.drop_duplicates("step").sort_values("step")
            every = _thinned(len(steps), steps["lang"].nunique())
            labels = [f"{step + 1}\n{lang}" for step, lang in zip(steps["step"], steps["lang"], strict=True)]
            axes.set_xticks(list(steps["step"])[::every], labels[::every], fontsize=8)
            axes.set(title=label, xlabel="batch, and its language")
            if unedited and column in unedited:
                axes.axhline(unedited[column], color=GREY, ls=":", lw=1.4, label="unedited model")
            if _one_dwarfs_the_others(frame.groupby("method")[column].max()) and frame[column].min() > 0:
                axes.set_yscale("log")
                axes.set_title(f"{label}, log")
                _plain_logarithms(axes)
                continue
            top = 1.1 * axes.dataLim.y1  # room for the markers of the highest line; no line at all gives −inf
            axes.set_ylim(0, top if 0 < top < np.inf else 1)
        fullest = max(fig.axes, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
        _legend(fig, fullest, len(methods) + 1, title)
    return fig


def method_curves(
    frame: pd.DataFrame,
    x: str,
    panels: Mapping[str, str],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    unedited: Real | None = None,
) -> Figure:
    """Shares over the sequence, a line per method with its name at the end, a panel per quantity.

    Where methods are more than `FEW`, those of `FOCUS` keep their colours and the others are grey.

    Args:
        frame: Columns method, `x` and those in `panels`; one row per method and x.
        x: Column along the axis.
        panels: Column to label.
        title: Above everything.
        xlabel: What `x` is.
        ylabel: Unit of the panels, shares between 0 and 1.
        unedited: The unedited model's share, a dotted line in the panels.

    Raises:
        ValueError: A column is missing, or a method has several rows for one x.
    """
    if missing := [c for c in ("method", x, *panels) if c not in frame]:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(frame)}")
    methods = list(dict.fromkeys(frame["method"]))
    looks = _looks(methods, METHODS)
    grey = [m for m in methods if len(methods) > FEW and m not in FOCUS]
    with style():
        fig = Figure(figsize=(WIDTH, max(3.2, 1.2 + 0.27 * len(methods))), layout="constrained")
        for axes, (column, label) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            ends = {}
            for method in [*grey, *(m for m in methods if m not in grey)]:  # coloured lines lie on top
                found = _unique(frame[frame["method"] == method], x)[column].dropna()
                colour = "#B0B0B0" if method in grey else looks[method][0]
                width = 1.0 if method in grey else 1.9
                marked = method in grey or len(found) == 1  # grey lines that cross are told apart by their markers
                marker = dict(marker=looks[method][1], ms=4) if marked else {}
                axes.plot(found.index, found, _dash(method), color=colour, lw=width, clip_on=False, **marker)
                if len(found):
                    ends[method] = (found.index[-1], found.iloc[-1], GREY if method in grey else colour)
            axes.set(title=label, xlabel=xlabel, ylim=(0, 1.02), yticks=np.linspace(0, 1, 6))
            if pd.api.types.is_integer_dtype(frame[x]):
                axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
            if unedited is not None:
                axes.axhline(unedited, color=GREY, ls=":", lw=1.4)
                axes.annotate(
                    "unedited model", (0, unedited), (4, 3), xycoords=("axes fraction", "data"), fontsize=8, color=GREY,
                    textcoords="offset points",
                )  # fmt: skip
            _name_ends(axes, ends, gap=1.35 / max(14, 1.6 * len(methods)))
        fig.axes[0].set_ylabel(ylabel)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def heatmap(
    matrix: pd.DataFrame,
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    value_label: str = "",
    centre: Real | None = None,
    limits: tuple[Real, Real] | None = None,
    missing: str = "n/a",
    fmt: str = ".2f",
) -> Figure:
    """A matrix as colours, with its numbers written in while there are at most 200; empty cells stay grey.

    Args:
        matrix: Index and columns are the labels.
        title: Above everything.
        xlabel: What the columns are.
        ylabel: What the rows are.
        value_label: What the colours are, with unit.
        centre: Value drawn white, equal distances on both sides in equal strength; None for a scale from the
            smallest to the largest value.
        limits: Ends of the colour scale, for figures that are to be compared.
        missing: What is written into empty cells.
        fmt: Format of the numbers.
    """
    low, high = limits or _colour_limits(matrix.to_numpy(float), centre)
    rows, columns = matrix.shape
    with style():
        fig = Figure(figsize=(WIDTH, float(np.clip(1.6 + 0.34 * rows, 2.8, 12))), layout="constrained")
        axes = fig.subplots()
        size = 8 if rows * columns <= 200 else None
        image = _draw_matrix(axes, matrix, (low, high), centre is not None, size, missing, fmt)
        if max((len(str(label)) for label in matrix.columns), default=0) * columns > 80:
            axes.tick_params(axis="x", labelrotation=90)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        fig.colorbar(image, label=value_label, pad=0.01)
    return fig


def heatmaps(
    panels: Mapping[str, pd.DataFrame],
    *,
    columns: int | None = None,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    value_label: str = "",
    centre: Real | None = None,
    limits: tuple[Real, Real] | None = None,
    missing: str = "",
    fmt: str = ".2f",
    bold: Mapping[str, pd.DataFrame] | None = None,
) -> Figure:
    """Small multiples: one panel per matrix, all of one shape, one colour scale; numbers where they can be read.

    With a `centre` the scale ends at the 95th percentile of the distances from it, so that one method that destroys
    everything does not whiten all others; the colour bar then has pointed ends.

    Args:
        panels: Title of the panel to its matrix.
        columns: Panels side by side; by default as many as leave the labels readable, at most four.
        title, xlabel, ylabel, value_label, centre, limits, missing, fmt: As for `heatmap`.
        bold: Title of the panel to a matrix of truth values: which numbers are set in bold. None: none.

    Raises:
        ValueError: No panel, or matrices of different shapes.
    """
    shapes = {matrix.shape for matrix in panels.values()}
    if len(shapes) != 1:
        raise ValueError(f"small multiples need matrices of one shape; got {sorted(shapes)}")
    ((rows, wide),) = shapes
    columns = columns or int(np.clip(min(len(panels), 24 // max(wide, 1)), 2 if len(panels) > 1 else 1, 4))
    if wide > LABELS:  # too many for labels anyway
        columns = min(len(panels), 4)
    lines = -(-len(panels) // columns)
    longest = max(len(str(label)) for matrix in panels.values() for label in matrix.columns)
    crowded = (WIDTH - 1.6) / columns / wide * 72 < 0.7 * 8 * longest  # points per column, and of a label
    values = np.stack([matrix.to_numpy(float) for matrix in panels.values()])
    low, high = limits or _colour_limits(values, centre, share=0.95)
    inches = (WIDTH - 1.6) / columns  # of a panel
    # Square cells, if that makes them neither flat nor huge.
    height = min(inches, np.clip(inches * rows / wide, 0.24 * rows, 0.5 * rows))
    text = max((len(f"{v:{fmt}}") for v in values[np.isfinite(values)]), default=1)
    size = min(8.0, inches / wide * 72 / (0.68 * text), height / rows * 72 * 0.75)
    with style():
        fig = Figure(figsize=(WIDTH, float(lines * (height + 0.35) + 0.9)), layout="constrained")
        grid = fig.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (name, matrix) in zip(grid.flat, panels.items(), strict=False):
            image = _draw_matrix(
                axes, matrix, (low, high), centre is not None, size if size >= 5 else None, missing, fmt,
                strong=bold[name] if bold else None,
            )  # fmt: skip
            axes.set_title(name, fontsize=min(10, inches * 72 / (0.66 * len(name))))
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.tick_params(axis="x", labelbottom=True, labelrotation=90 if crowded else 0)
        if lines > 1 and len(panels) % columns:  # panels above a gap have labels, so all of their row do
            for axes in grid[-2]:
                axes.tick_params(axis="x", labelbottom=True, labelrotation=90 if crowded else 0)
        fig.supxlabel(xlabel, fontsize=10)
        fig.supylabel(ylabel, fontsize=10)
        known = values[np.isfinite(values)]
        over, under = (known > high + 1e-9).any(), (known < low - 1e-9).any()
        extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((over, under), "neither")
        fits = max(8, int((fig.get_figheight() - 0.7) / 0.085))  # characters beside the bar, less title and labels
        bar = fig.colorbar(
            image, ax=grid, label=fill(value_label, fits), pad=0.01, extend=extend, aspect=fig.get_figheight() / 0.16
        )
        bar.set_ticks([tick for tick in bar.get_ticks() if low <= tick <= high])
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def before_after(
    frame: pd.DataFrame,
    *,
    title: str = "",
    xlabel: str = "probability",
    panels: Mapping[str, str] | None = None,
) -> Figure:
    """Dumbbells: for every language what the model said before an edit and after it, one panel per object.

    Args:
        frame: Columns lang, object ("new" or "old"), text (the object in that language), when ("before" or
            "after"), value (a probability).
        title: Above everything, for example the edited sentence.
        xlabel: What the value is.
        panels: Object to panel title; "new object" and "old object" by default.

    Raises:
        ValueError: An object other than the keys of `panels`, or two rows for one point.
    """
    panels = dict(panels or {"new": "new object", "old": "old object"})
    for name in frame["object"].unique():
        if name not in panels:
            raise unknown("object", str(name), panels)
    languages = list(dict.fromkeys(frame["lang"]))
    with style():
        fig = Figure(figsize=(WIDTH, 1.7 + 0.5 * len(languages)), layout="constrained")
        fig.get_layout_engine().set(wspace=0.05)
        y = np.arange(len(languages))
        drawn = fig.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, heading) in zip(drawn, panels.items(), strict=True):
            part = frame[frame["object"] == name]
            first = _unique(part[part["when"] == "before"], "lang").reindex(languages)
            last = _unique(part[part["when"] == "after"], "lang").reindex(languages)
            axes.hlines(y, first["value"], last["value"], color=GREY, lw=2, zorder=1)
            axes.scatter(first["value"], y, s=46, facecolor="white", edgecolor=BLACK, label="before", zorder=2)
            axes.scatter(last["value"], y, s=52, color=VERMILION, marker="D", label="after", zorder=3)
            for place, a, b in zip(y, first["value"], last["value"], strict=True):
                axes.annotate(
                    f"{a:.2f} → {b:.2f}",
                    (1, place),
                    (6, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    fontsize=9,
                )
            texts = part.drop_duplicates("lang").set_index("lang")["text"].reindex(languages)
            axes.set_yticks(y, [f"{lang}   {_plain(fill(str(text), 24))}" for lang, text in texts.items()])
            axes.set_xticks([0, 0.5, 1])
            axes.set(xlim=(-0.04, 1.04), ylim=(len(languages) - 0.5, -0.5), xlabel=xlabel, title=heading)
            axes.grid(axis="y", visible=False)
        _legend(fig, fig.axes[0], 2, _plain(fill(title, 100)))
    return fig


def _plain(text: str) -> str:
    """Somebody's own text, in which a dollar is a dollar and not the beginning of a formula."""
    return text.replace("$", r"\$")


def _rows(frame: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Rows of `frame` in which every column of `wanted` has the given value."""
    for column, value in wanted.items():
        if value not in set(frame[column]):
            raise unknown(column, value, sorted(set(frame[column])))
        frame = frame[frame[column] == value]
    return frame


def _unique(frame: pd.DataFrame, key: str) -> pd.DataFrame:
    """`frame` indexed by `key`; a mark that would silently stand for several rows is refused."""
    if frame[key].duplicated().any():
        twice = frame[frame[key].duplicated(keep=False)].head(2).to_dict("records")
        raise ValueError(f"several rows for one mark, filter by model and data first: {twice}")
    return frame.set_index(key)


def _looks(names: Iterable[str], fixed: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Colour and marker per name; names without a fixed look take what is left, in order."""
    names = list(names)
    used = {fixed[name] for name in names if name in fixed}
    spare = iter([look for look in fixed.values() if look not in used] * (len(names) + 1))
    return {name: fixed[name] if name in fixed else next(spare, (GREY, "h")) for name in names}


def _dash(method: str) -> str:
    return "--" if "-" in method else "-"


def _one_dwarfs_the_others(tops: pd.Series) -> bool:
    """Whether the largest is more than five times the middle one."""
    return bool(len(tops) > 2 and tops.max() > 5 * tops.median())


def _thinned(steps: int, langs: int, most: int = 12) -> int:
    """Which every how many-th batch is labelled, so that the languages of a cycle all get their turn."""
    every = -(-steps // most)
    while every > 1 and math.gcd(every, langs) > 1:
        every += 1
    return every


def _plain_logarithms(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, or at powers alone where they are many, as plain numbers."""
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < 200 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _name_ends(axes: Axes, ends: Mapping[str, tuple[Real, Real, str]], gap: float) -> None:
    """Names at the right of their lines' ends (x, y, colour), moved apart to `gap` and tied to the ends."""
    order = sorted(ends, key=lambda name: ends[name][1])
    low, high = axes.get_ylim()
    places = _apart([ends[name][1] for name in order], gap, low, high)
    for name, place in zip(order, places, strict=True):
        x, y, colour = ends[name]
        tie = dict(arrowstyle="-", color=colour, lw=0.8, shrinkA=0, shrinkB=1, relpos=(0, 0.5))
        axes.annotate(
            name, (x, y), (1.06, place), textcoords=("axes fraction", "data"), va="center", fontsize=8,
            arrowprops=tie, annotation_clip=False,
        )  # fmt: skip


def _apart(places: Sequence[Real], gap: Real, low: Real, high: Real) -> list[float]:
    """Sorted places moved as little as possible until neighbours are `gap` apart, inside [low, high] if they fit.

    Neighbours that are too near become one cluster around their mean, and clusters that then touch become one.
    """
    clusters: list[list[Real]] = []
    for place in places:
        clusters.append([place])
        while len(clusters) > 1:
            one, other = clusters[-2:]
            reach = gap * (len(one) + len(other)) / 2
            if _centre(other, gap, low, high) - _centre(one, gap, low, high) >= reach - 1e-9:
                break
            clusters[-2:] = [one + other]
    return [
        _centre(cluster, gap, low, high) + gap * (i - (len(cluster) - 1) / 2)
        for cluster in clusters
        for i in range(len(cluster))
    ]


def _centre(cluster: Sequence[Real], gap: Real, low: Real, high: Real) -> float:
    half = gap * (len(cluster) - 1) / 2
    return float(max(low + half, min(high - half, np.mean(cluster))))


def _colour_limits(values: np.ndarray, centre: Real | None, share: float = 1.0) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if centre is None:
        return (known.min(), known.max()) if len(known) else (0.0, 1.0)
    reach = float(np.quantile(abs(known - centre), share)) if len(known) else 0.0
    reach = reach or 1.0
    return centre - reach, centre + reach


def _draw_matrix(
    axes: Axes,
    matrix: pd.DataFrame,
    limits: tuple[Real, Real],
    diverging: bool,
    size: Real | None,
    missing: str,
    fmt: str,
    strong: pd.DataFrame | None = None,
) -> AxesImage:
    """Colours, labels (thinned where they are many) and, with a font `size`, numbers; empty cells stay grey."""
    values = matrix.to_numpy(float)
    colours = matplotlib.colormaps["PuOr_r" if diverging else "cividis"].with_extremes(bad="#DDDDDD")
    image = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    for axis, labels, most in ((axes.yaxis, matrix.index, 6), (axes.xaxis, matrix.columns, 3)):
        every = 1 if len(labels) <= LABELS else -(-len(labels) // most)
        axis.set_ticks(range(0, len(labels), every), [str(label) for label in labels[::every]])
    axes.grid(visible=False)
    if size is not None:
        for (i, j), value in np.ndenumerate(values):
            text = f"{value:z{fmt}}" if np.isfinite(value) else missing  # z: no "-0.00"
            weight = "bold" if strong is not None and strong.iat[i, j] else "normal"
            # The Chinese font has no bold face, and numbers need none of its characters.
            look = dict(fontsize=size, color=ink(image, value), weight=weight, family="DejaVu Sans")
            axes.text(j, i, text, ha="center", va="center", **look)
    return image


def ink(image: AxesImage, value: Real) -> str:
    """Colour of a number that is written on the colour of its value."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"


def _legend(fig: Figure, axes: Axes, columns: int, title: str) -> None:
    """Title at the top, legend under the panels: neither ever covers data."""
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles, labels = axes.get_legend_handles_labels()
    for number in range(min(columns, 6), 0, -1):
        legend = fig.legend(handles, labels, loc="outside lower center", ncols=number)
        if number == 1 or legend.get_window_extent().width < fig.bbox.width:
            return
        legend.remove()  # long names: fewer of them side by side
