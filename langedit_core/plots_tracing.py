"""Figures of causal tracing: roles x layers as colours, and effects by layer as lines with bands.

Colours, markers and fonts are those of `plots`, so a language looks the same in every report.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from langedit_core.plots import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, WIDTH, style
from langedit_core.tracing import ROLES
from langedit_core.tracing_analysis import SITE_NAMES

PLACES = tuple((x, y) for y in (5, -12, 16, -23) for x in (5, -5))  # of a name beside its dot, in points
LOOKS: dict[str, tuple[str, str]] = {  # colour, marker
    "last subject token": (VERMILION, "o"),
    "last token": (BLUE, "s"),
    "nothing frozen": (BLACK, "o"),
    "MLP frozen": (GREEN, "D"),
    "attention frozen": (ORANGE, "^"),
}


def heat_maps(maps: Mapping[str, Mapping[str, pd.DataFrame]], *, title: str = "") -> Figure:
    """A row of panels per language, a column per kind, each roles x layers; one colour scale per kind.

    Args:
        maps: Label of the language -> kind -> average indirect effect, roles x layers.
        title: Above everything.

    Raises:
        ValueError: No language.
    """
    if not maps:
        raise ValueError("no language to draw; trace at least one known fact")
    kinds = list(next(iter(maps.values())))
    roles = [role for role in ROLES if any(role in table.index for by in maps.values() for table in by.values())]
    with style():
        fig = Figure(figsize=(WIDTH, 1.5 + 1.25 * len(maps)), layout="constrained")
        panels = fig.subplots(len(maps), len(kinds), sharex=True, sharey=True, squeeze=False)
        for column, kind in enumerate(kinds):
            tables = {lang: by[kind].reindex(roles) for lang, by in maps.items()}
            values = np.concatenate([table.to_numpy().ravel() for table in tables.values()])
            low, high = 0.0, max(np.nanmax(values), 1e-6)  # the darkest colour is no effect, in every column
            colours = matplotlib.colormaps["cividis"].with_extremes(bad="#DDDDDD")
            for axes, (lang, table) in zip(panels[:, column], tables.items(), strict=True):
                image = axes.imshow(table.to_numpy(), cmap=colours, vmin=low, vmax=high, aspect="auto")
                axes.grid(visible=False)
                axes.set_title(f"{lang}: {SITE_NAMES[kind]}", fontsize=9)
                axes.set_yticks(range(len(roles)), [ROLES[role] for role in roles], fontsize=7)
                every = max(1, len(table.columns) // 9)
                axes.set_xticks(range(0, len(table.columns), every), table.columns[::every], fontsize=8)
            panels[-1, column].set_xlabel("layer")
            bar = fig.colorbar(
                image,
                ax=panels[:, column],
                orientation="horizontal",
                label="average indirect effect (probability)",
                aspect=30,
                extend="min" if np.nanmin(values) < 0 else "neither",
            )
            bar.set_ticks([tick for tick in bar.get_ticks() if low <= tick <= high])
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def layer_lines(
    panels: Mapping[str, pd.DataFrame],
    *,
    looks: Mapping[str, tuple[str, str]] = LOOKS,
    title: str = "",
    ylabel: str = "average indirect effect (probability)",
) -> Figure:
    """Effects by layer: a panel per frame, a line with its band per value of its column `line`.

    More than three lines have whiskers at their highest point instead of bands; those of fewer than five facts are
    dotted. Where frames have a column n, the legend says it.

    Args:
        panels: Panel title -> columns layer, value, low, high and line.
        looks: Line -> colour and marker; other lines are grey.
        title: Above everything.
        ylabel: What is drawn, with unit.

    Raises:
        ValueError: A point would stand for several rows.
    """
    with style():
        fig = Figure(figsize=(WIDTH, 3.8), layout="constrained")
        drawn = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        names: dict[str, object] = {}
        for axes, (heading, frame) in zip(drawn, panels.items(), strict=True):
            if frame.duplicated(["line", "layer"]).any():
                raise ValueError(f"panel {heading!r} has several rows for one line and layer; filter the frame first")
            for name, part in frame.groupby("line", sort=False):
                colour, marker = looks.get(name, (GREY, "h"))
                x, known = part["layer"].to_numpy(), part["low"].notna().to_numpy()
                low, high = part["low"].to_numpy(float), part["high"].to_numpy(float)
                few = "n" in part and part["n"].max() < 5
                if frame["line"].nunique() <= 3:
                    axes.fill_between(x, low, high, where=known, color=colour, alpha=0.12, lw=0)
                elif known[top := int(part["value"].to_numpy().argmax())]:
                    axes.vlines(x[top], low[top], high[top], color=colour, lw=1.2)
                label = f"{name} (n = {part['n'].iloc[0]})" if "n" in part and part["n"].nunique() == 1 else name
                (names[label],) = axes.plot(
                    x, part["value"], marker + (":" if few else "-"), color=colour, ms=4, lw=1 if few else 1.4
                )
            axes.axhline(0, color=GREY, lw=0.8)
            axes.set(title=heading, xlabel="layer")
            layers = frame["layer"].unique()
            axes.set_xticks(layers[:: max(1, len(layers) // 6)])
        low, high = drawn[0].get_ylim()
        drawn[0].set_yticks([tick for tick in drawn[0].get_yticks() if low <= tick <= high])
        drawn[0].set_ylabel(ylabel)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
        fig.legend(names.values(), names.keys(), loc="outside lower center", ncols=min(6, len(names)))
    return fig


def effect_and_efficacy(points: pd.DataFrame, *, title: str = "") -> Figure:
    """A dot per layer edited alone: what restoring it brings back against what is left of edits in it, with whiskers.

    Args:
        points: Columns layer, effect, effect_low, effect_high, value, low, high.
        title: Above everything.
    """
    with style():
        fig = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        axes = fig.subplots()
        for row in points.itertuples():
            axes.hlines(row.value, row.effect_low, row.effect_high, color=GREY, lw=1, alpha=0.6)
            axes.vlines(row.effect, row.low, row.high, color=GREY, lw=1, alpha=0.6)
        axes.scatter(points["effect"], points["value"], color=VERMILION, s=34, zorder=3)
        # Most layers bring back next to nothing: equal steps up to about a tenth of the largest effect, then powers.
        bend = float(f"{max(0.1 * points['effect'].max(), 1e-6):.1g}")
        axes.set_xscale("symlog", linthresh=bend)
        axes.set(
            xlabel="average indirect effect of MLP outputs at the subject's last token "
            f"(probability; linear to {bend:g}, logarithmic beyond)",
            ylabel="efficacy of editing the layer alone, at the end",
        )
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        low, high = axes.xaxis.get_view_interval()
        steps = [0.0, *(m * 10.0**e for e in range(-6, 1) for m in (1, 2, 5))]
        reach = points["effect_high"].max()
        axes.set_xticks([tick for tick in steps if low <= tick <= high and (tick == 0 or tick >= 0.02 * reach)])
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        low, high = axes.yaxis.get_view_interval()
        axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= high])
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
        _name_layers(axes, points)
    return fig


def _name_layers(axes: Axes, points: pd.DataFrame) -> None:
    """Each dot's name at the place around it that covers no other name and no dot, and as few whiskers as can be."""
    fig = axes.get_figure()
    fig.draw_without_rendering()  # where things lie is known from here on

    def box(x: Sequence[float], y: Sequence[float], pad: float) -> Bbox:
        corners = axes.transData.transform(np.column_stack([x, y]))
        return Bbox([corners.min(0) - pad, corners.max(0) + pad])

    rows = [*points.sort_values("effect").itertuples()]
    taken = [(10, box([row.effect], [row.value], 4 * fig.dpi / 72)) for row in rows]
    for row in rows:
        taken.append((1, box([row.effect_low, row.effect_high], [row.value] * 2, 1.0)))
        taken.append((1, box([row.effect] * 2, [row.low, row.high], 1.0)))
    for row in rows:
        places = []
        for x, y in PLACES:
            text = axes.annotate(
                f"layer {row.layer}", (row.effect, row.value), xytext=(x, y), textcoords="offset points", fontsize=8,
                ha="left" if x > 0 else "right",
            )  # fmt: skip
            at = text.get_window_extent()
            places.append((sum(weight for weight, other in taken if at.overlaps(other)), text, at))
        best = min(places, key=lambda place: place[0])
        for place in places:
            if place is not best:
                place[1].remove()
        taken.append((10, best[2]))
