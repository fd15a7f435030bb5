"""Figures in one style: a method and a language keep their colour everywhere, every label is drawn in full.

Each helper maps tidy rows (model, data, method, metric, when, lang, value, n, low, high) to one figure whose
whiskers are [low, high]. Figures are made without pyplot, so none stays open, and are saved without dates, so
equal data give equal bytes.
"""

import io
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

from langedit_core.errors import unknown

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
}
LANGUAGES: dict[str, tuple[str, str]] = {
    "en": (BLUE, "o"),
    "de": (BLACK, "s"),
    "nl": (ORANGE, "^"),
    "es": (VERMILION, "D"),
    "fr": (SKY, "v"),
    "zh": (GREEN, "P"),
}
WHEN = {  # moment of measurement: label, and label where there is little room
    "before": ("before editing", "before"),
    "immediate": ("right after the batch", "after\nbatch"),
    "final": ("at the end of the sequence", "at the\nend"),
}


@dataclass(frozen=True, kw_only=True)
class SavedFigure:
    """A figure on disk, shown by a notebook as exactly the bytes that were saved.

    Attributes:
        png: Path of the PNG; the SVG lies beside it.
        data: Content of the PNG.
        alt: What the picture shows, for those who cannot see it.
    """

    png: Path
    data: bytes
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        return {"image/png": self.data, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


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
    """
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise ValueError(f"figure name {name!r} must consist of letters, digits, '-' and '_', no ending")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    png = io.BytesIO()
    with style():
        fig.draw_without_rendering()
        fig.set_layout_engine("none")  # constrained layout moves a little at every drawing
        fig.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    (folder / f"{name}.png").write_bytes(png.getvalue())
    titles = [fig.get_suptitle(), *(axes.get_title(loc="left") for axes in fig.axes)]
    described = alt or "; ".join(title for title in titles if title) or name
    return SavedFigure(png=folder / f"{name}.png", data=png.getvalue(), alt=described)


def method_bars(
    frame: pd.DataFrame,
    metric: str | Sequence[str],
    *,
    lang: str = "all",
    title: str = "",
    ylabel: str = "share of facts",
) -> Figure:
    """Grouped bars: one group per moment of measurement, one bar per method, one panel per metric.

    Args:
        frame: Tidy rows of one model and data set.
        metric: One metric or several, a panel each with a common axis.
        lang: Whose rows are shown; "all" holds the aggregate over languages.
        title: Above everything.
        ylabel: Unit of the value.

    Raises:
        ValueError: `metric` or `lang` does not occur in `frame`, or a bar would stand for several rows.
    """
    metrics = [metric] if isinstance(metric, str) else list(metric)
    rows = {name: _rows(frame, metric=name, lang=lang) for name in metrics}
    methods = list(dict.fromkeys(m for part in rows.values() for m in part["method"]))
    looks = _looks(methods, METHODS)
    width = 0.8 / len(methods)
    with style():
        fig = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        panels = fig.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
        for axes, (name, part) in zip(panels, rows.items(), strict=True):
            moments = _moments(part)
            for i, method in enumerate(methods):
                found = _unique(part[part["method"] == method], "when").reindex(moments)
                x = np.arange(len(moments)) + (i - (len(methods) - 1) / 2) * width
                axes.bar(x, found["value"], width * 0.92, color=looks[method][0], label=method)
                _whiskers(axes, x, found)
                tops = found[["value", "high"]].max(axis=1)
                for place, top, value in zip(x, tops, found["value"], strict=True):
                    if pd.notna(value):
                        crowded = len(metrics) * len(moments) * len(methods) > 12
                        axes.annotate(
                            f"{value:.2f}",
                            (place, top),
                            (0, 2),
                            textcoords="offset points",
                            ha="center",
                            va="bottom",
                            fontsize=7 if crowded else 9,
                            rotation=90 if crowded else 0,
                        )
            _moment_ticks(axes, moments, crowded=len(metrics) > 1)
            axes.set_title(name.replace("_", " "))
            axes.grid(axis="x", visible=False)
            axes.margins(y=0.1)
        panels[0].set_ylabel(ylabel)
        _unit_ticks(panels[0], rows.values())
        _legend(fig, panels[0], len(methods), title)
    return fig


def language_lines(
    frame: pd.DataFrame,
    metric: str,
    *,
    languages: Sequence[str] | None = None,
    title: str = "",
    ylabel: str = "share of facts",
) -> Figure:
    """A point with whiskers per method and language, languages in editing order, a panel per moment.

    Args:
        frame: Tidy rows of one model and data set; rows with lang "all" are left out.
        metric: Which metric.
        languages: Order along the axis; the order of first appearance by default.
        title: Above everything.
        ylabel: Unit of the value.

    Raises:
        ValueError: `metric` does not occur in `frame`, or a point would stand for several rows.
    """
    part = _rows(frame[frame["lang"] != "all"], metric=metric)
    languages = list(languages or dict.fromkeys(part["lang"]))
    methods, moments = list(dict.fromkeys(part["method"])), _moments(part)
    looks = _looks(methods, METHODS)
    with style():
        fig = Figure(figsize=(WIDTH, 3.9), layout="constrained")
        panels = fig.subplots(1, len(moments), sharey=True, squeeze=False)[0]
        for axes, moment in zip(panels, moments, strict=True):
            for i, method in enumerate(methods):
                chosen = part[(part["method"] == method) & (part["when"] == moment)]
                found = _unique(chosen, "lang").reindex(languages)
                # Points of one language stand side by side, so that whiskers never hide each other.
                x = np.arange(len(languages)) + (i - (len(methods) - 1) / 2) * 0.6 / len(methods)
                colour, marker = looks[method]
                axes.plot(x, found["value"], color=colour, lw=0.8, alpha=0.3)
                axes.plot(x, found["value"], marker, color=colour, ms=6, clip_on=False, label=method)
                _whiskers(axes, x, found, colour)
            axes.set_xticks(range(len(languages)), languages)
            axes.set_title(WHEN.get(moment, (moment,))[0])
            axes.grid(axis="x", visible=False)
        panels[0].set_ylabel(f"{metric.replace('_', ' ')}\n{ylabel}")
        _unit_ticks(panels[0], [part])
        _legend(fig, panels[0], len(methods), title)
    return fig


def sequence_lines(frame: pd.DataFrame, panels: Mapping[str, str], *, title: str = "") -> Figure:
    """What changes from batch to batch: a line per method, a panel per quantity.

    Args:
        frame: Columns method, step, lang and those in `panels`; one row per method and step.
        panels: Column to label.
        title: Above everything.

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
                axes.plot(found.index, found[column], marker + "-", color=colour, ms=5, lw=1.4, label=method)
            steps = frame.drop_duplicates("step").sort_values("step")
            every = max(1, len(steps) // 8)
            labels = [f"{step + 1}\n{lang}" for step, lang in zip(steps["step"], steps["lang"], strict=True)]
            axes.set_xticks(list(steps["step"])[::every], labels[::every])
            axes.set(title=label, xlabel="batch")
            top = 1.1 * axes.dataLim.y1  # room for the markers of the highest line; no line at all gives −inf
            axes.set_ylim(0, top if 0 < top < np.inf else 1)
        _legend(fig, fig.axes[0], len(methods), title)
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
    values = matrix.to_numpy(float)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)
    if centre is not None:
        reach = max(high - centre, centre - low) or 1.0
        low, high = centre - reach, centre + reach
    low, high = limits or (low, high)
    rows, columns = values.shape
    with style():
        fig = Figure(figsize=(WIDTH, float(np.clip(1.6 + 0.34 * rows, 2.8, 12))), layout="constrained")
        axes = fig.subplots()
        colours = matplotlib.colormaps["cividis" if centre is None else "PuOr_r"].with_extremes(bad="#DDDDDD")
        image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
        axes.set_yticks(range(rows), [str(label) for label in matrix.index])
        axes.set_xticks(range(columns), [str(label) for label in matrix.columns])
        if max((len(str(label)) for label in matrix.columns), default=0) * columns > 80:
            axes.tick_params(axis="x", labelrotation=90)
        axes.grid(visible=False)
        axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
        if values.size <= 200:
            for (i, j), value in np.ndenumerate(values):
                red, green, blue, _ = image.cmap(image.norm(value))
                dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
                text = f"{value:z{fmt}}" if np.isfinite(value) else missing  # z: no "-0.00"
                colour = "white" if dark else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
        fig.colorbar(image, label=value_label, pad=0.01)
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
            axes.set_yticks(y, [f"{lang}   {fill(str(text), 24)}" for lang, text in texts.items()])
            axes.set_xticks([0, 0.5, 1])
            axes.set(xlim=(-0.04, 1.04), ylim=(len(languages) - 0.5, -0.5), xlabel=xlabel, title=heading)
            axes.grid(axis="y", visible=False)
        _legend(fig, fig.axes[0], 2, title)
    return fig


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


def _moments(frame: pd.DataFrame) -> list[str]:
    """Moments of measurement in order of time, unknown ones last."""
    found = list(dict.fromkeys(frame["when"]))
    return sorted(found, key=lambda when: list(WHEN).index(when) if when in WHEN else len(WHEN))


def _moment_ticks(axes: Axes, moments: Iterable[str], crowded: bool) -> None:
    labels = [WHEN.get(when, (when, when))[crowded] for when in moments]
    axes.set_xticks(range(len(labels)), labels)


def _looks(names: Iterable[str], fixed: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Colour and marker per name; names without a fixed look take what is left, in order."""
    names = list(names)
    used = {fixed[name] for name in names if name in fixed}
    spare = iter([look for look in fixed.values() if look not in used] * (len(names) + 1))
    return {name: fixed[name] if name in fixed else next(spare, (GREY, "h")) for name in names}


def _whiskers(axes: Axes, x: np.ndarray, found: pd.DataFrame, colour: str = "#333333") -> None:
    known = found[["value", "low", "high"]].notna().all(axis=1).to_numpy()
    axes.vlines(x[known], found["low"][known], found["high"][known], color=colour, lw=1.2)


def _unit_ticks(axes: Axes, parts: Iterable[pd.DataFrame]) -> None:
    """A share is always drawn on the full scale from 0 to 1, so that figures can be compared."""
    numbers = pd.concat([part[["value", "low", "high"]] for part in parts])
    if numbers.min(axis=None) >= 0 and numbers.max(axis=None) <= 1:
        axes.set_ylim(0, 1.12)
        axes.set_yticks(np.linspace(0, 1, 6))


def _legend(fig: Figure, axes: Axes, columns: int, title: str) -> None:
    """Title at the top, legend under the panels: neither ever covers data."""
    if title:
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles, labels = axes.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(columns, 6))
