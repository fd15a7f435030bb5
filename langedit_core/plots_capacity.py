"""Figures of capacity and of key subspaces: curves with their knees, clustered heat maps with scripts and families.

Colours, markers and fonts are those of `plots`, so a method or a language looks the same in every report.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.cluster.hierarchy import dendrogram

from langedit_core.capacity import knee
from langedit_core.plots import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH,
    ink,
    style,
)
from langedit_core.subspaces import Tree

FRACTION_COLOURS = (VERMILION, GREEN, BLUE, BLACK, ORANGE, PURPLE)
SCRIPT_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, "#F0E442", "#8C6D31")
FAMILY_COLOURS = (  # none of them a script's: the two strips lie side by side
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677", "#AA4499", "#882255", "#44AA99", "#999933",
)  # fmt: skip
COUNT_COLOURS = {2: BLUE, 4: ORANGE, 6: VERMILION, 12: GREEN}


def capacity_curves(
    series: Mapping[tuple[str, float], pd.DataFrame],
    predictions: pd.DataFrame | None = None,
    *,
    title: str = "",
) -> Figure:
    """Capacity (left) and free directions (right) against protected keys: exact keys as lines with their knees as
    diamonds, the running covariance dashed, predictions dotted.

    Args:
        series: (how, fraction) -> `capacity.COLUMNS`.
        predictions: fraction, protected, predicted; None draws none.
        title: Above everything.

    Raises:
        ValueError: No curve.
    """
    if not series:
        raise ValueError("no curve to draw")
    fractions = list(dict.fromkeys(fraction for _, fraction in series))
    colours = dict(zip(fractions, FRACTION_COLOURS, strict=False))
    with style():
        fig = Figure(figsize=(WIDTH, 4.4), layout="constrained")
        left, right = fig.subplots(1, 2)
        for (how, fraction), part in series.items():
            exact = how == "exact keys"
            look = dict(color=colours.get(fraction, GREY), lw=1.8 if exact else 1.3, ls="-" if exact else "--")
            marks = {} if exact else dict(marker="o", ms=3)
            left.plot(part["protected"], part["survival"].clip(lower=1e-4), **look, **marks)
            right.plot(part["protected"], part["rank"], **look, **marks)
            bend = knee(part) if exact else np.nan
            if np.isfinite(bend):
                row = part[part["protected"] == bend].iloc[0]
                left.plot(bend, row["survival"], "D", color=look["color"], ms=7, mec="white", zorder=4)
                right.plot(bend, row["rank"], "D", color=look["color"], ms=7, mec="white", zorder=4)
        for fraction, part in [] if predictions is None else predictions.groupby("fraction", sort=False):
            left.plot(part["protected"], part["predicted"].clip(lower=1e-4), ":", color=colours[fraction], lw=1.6)
        left.set(
            yscale="log",
            ylim=(1e-3, 1.2),
            xlabel="facts protected",
            title="mean energy of the next keys that survives",
        )
        left.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        right.set(xlabel="facts protected", ylim=(0, None), title="directions left")
        most = max(part["protected"].max() for part in series.values())
        spent = _spent(series)
        for axes in (left, right):
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
            if most >= 2 * spent:  # exact keys keep the shape that linear steps give them, knees and all
                axes.set_xscale("symlog", linthresh=spent, linscale=2.2)
                inside = matplotlib.ticker.MaxNLocator(5, integer=True).tick_values(0, spent)
                beyond = (m * 10**e for e in range(1, 7) for m in (1, 2, 5))
                axes.set_xticks([*(x for x in inside if x <= spent), *(x for x in beyond if spent < x <= most)])
                axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
                axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
                axes.set_xlim(0, most)
                axes.tick_params(axis="x", labelrotation=45)
                axes.set_xlabel(f"facts protected (linear to {spent:,}, logarithmic beyond)")
        handles = [
            matplotlib.lines.Line2D(
                [], [], color=colours.get(f, GREY), lw=1.8, label="no C₀" if f == 1 else f"{f:.0%} free after C₀"
            )
            for f in fractions
        ]
        kinds = [("-", "", "exact keys"), ("--", "o", "running covariance"), ("", "D", "knee")]
        kinds += [] if predictions is None else [(":", "", "predicted from the spectrum")]
        handles += [
            matplotlib.lines.Line2D([], [], color=GREY, ls=ls, marker=marker, ms=5, label=label)
            for ls, marker, label in kinds
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=4)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def _spent(series: Mapping[tuple[str, float], pd.DataFrame]) -> int:
    """A round number of facts, after which no curve of exact keys has a direction left or all of them have ended."""
    ends = [1]
    for (how, _), part in series.items():
        if how == "exact keys":
            none = part.loc[part["rank"] == 0, "protected"]
            ends.append(int(none.min() if len(none) else part["protected"].max()))
    step = max(1, 10 ** (len(str(max(ends))) - 1) // 2)
    return math.ceil(max(ends) / step) * step


def limits_scatter(found: pd.DataFrame, *, title: str = "") -> Figure:
    """Limits of synthetic keys: measured against width, a panel per fraction of free directions; lines are predicted.

    Args:
        found: `capacity.synthetic_limits`, of one share.
        title: Above everything.
    """
    fractions = list(dict.fromkeys(found["fraction"]))
    alphas = list(dict.fromkeys(found["alpha"]))
    looks = dict(zip(alphas, zip((BLACK, BLUE, GREEN, VERMILION), "osD^", strict=True), strict=False))
    with style():
        fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        panels = fig.subplots(1, len(fractions), sharey=True, squeeze=False)[0]
        for axes, fraction in zip(panels, fractions, strict=True):
            for alpha, (colour, marker) in looks.items():
                part = found[(found["fraction"] == fraction) & (found["alpha"] == alpha)].sort_values("d")
                axes.plot(part["d"], part["predicted"], "-", color=colour, lw=1.2)
                label = f"λᵢ ∝ i^−{alpha:g}" if alpha else "uncorrelated keys"
                axes.plot(part["d"], part["measured"], marker, color=colour, ms=5, label=label)
            axes.set(
                xscale="log", yscale="log", title="no C₀" if fraction == 1 else f"{fraction:.0%} free", xlabel="d_ff"
            )
            widths = sorted(found["d"].unique())
            axes.set_xticks(widths, [str(d) for d in widths], fontsize=8, rotation=45 if len(widths) > 3 else 0)
            axes.minorticks_off()
        panels[0].set_ylabel("keys at the limit")
        handles, labels = panels[0].get_legend_handles_labels()
        handles.append(matplotlib.lines.Line2D([], [], color=GREY, lw=1.2))
        fig.legend(handles, [*labels, "predicted"], loc="outside lower center", ncols=5)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def clustered(
    matrix: pd.DataFrame,
    tree: Tree,
    marks: pd.DataFrame,
    *,
    title: str = "",
    value_label: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A languages × languages heat map in the order of its tree, with a strip of colours for script and for family.

    Labels are codes, at alternating distances where they are many, so that each can be read.

    Args:
        matrix: Languages × languages.
        tree: Its clustering.
        marks: Index language; columns script, branch.
        title: Above everything.
        value_label: What the colours are.
        limits: Ends of the colour scale; 2nd and 98th percentile off the diagonal by default.
    """
    shown = matrix.loc[tree.order, tree.order].to_numpy(float)
    n = len(shown)
    off = shown[~np.eye(n, dtype=bool)]
    low, high = limits or tuple(np.quantile(off, [0.02, 0.98]))
    many = n > 30
    size = 9 if n <= 20 else 5.6
    with style():
        fig = Figure(figsize=(WIDTH, WIDTH + (1.6 if many else 0.4)), layout="constrained")
        # dendrogram | strips | map, and the legends below
        grid = fig.add_gridspec(2, 3, width_ratios=(1.1, 0.5, 8), height_ratios=(8, 0.75))
        stem, strips, heat = (fig.add_subplot(grid[0, i]) for i in range(3))
        notes = fig.add_subplot(grid[1, :])
        with matplotlib.rc_context({"lines.linewidth": 0.7}):
            dendrogram(
                tree.merges, orientation="left", ax=stem, no_labels=True, link_color_func=lambda _: GREY,
                above_threshold_color=GREY,
            )  # fmt: skip
        stem.invert_yaxis()
        stem.set_axis_off()
        image = heat.imshow(shown, cmap="cividis", vmin=low, vmax=high, aspect="auto", interpolation="nearest")
        heat.grid(visible=False)
        heat.set_xticks([])
        heat.yaxis.tick_right()
        heat.set_yticks(range(n), _staggered(tree.order, many), fontsize=size, family="monospace")
        heat.tick_params(axis="y", length=0, pad=2)
        if not many:
            heat.set_xticks(range(n), tree.order, fontsize=size)
        scripts = _codes(marks.loc[tree.order, "script"], SCRIPT_COLOURS)
        families = _codes(marks.loc[tree.order, "branch"], FAMILY_COLOURS)
        strip = np.stack([scripts[0], families[0] + len(scripts[2])], axis=1)
        palette = ListedColormap([*scripts[2], *families[2]])
        strips.imshow(
            strip, cmap=palette, vmin=-0.5, vmax=len(palette.colors) - 0.5, aspect="auto", interpolation="nearest"
        )
        strips.set_xticks([0, 1], ["script", "family"], rotation=90, fontsize=8)
        strips.set_yticks([])
        strips.grid(visible=False)
        fig.colorbar(image, ax=heat, label=value_label, orientation="horizontal", pad=0.01, aspect=50, extend="both")
        notes.set_axis_off()
        for x, (heading, (_, names, colours)) in zip(
            (0.0, 0.42), (("script", scripts), ("family", families)), strict=True
        ):
            handles = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
            found = notes.legend(
                handles=handles, title=heading, loc="upper left", bbox_to_anchor=(x, 1.0), ncols=3 if x == 0 else 4,
                fontsize=7.5, alignment="left", columnspacing=0.9, handlelength=1.1,
            )  # fmt: skip
            if x == 0:  # the axes keep one legend themselves, the last
                notes.add_artist(found)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def group_map(matrix: pd.DataFrame, *, title: str = "", value_label: str = "") -> Figure:
    """Groups × groups with every name and every number; empty cells (a group of one with itself) stay grey.

    Args:
        matrix: Index and columns are the groups.
        title: Above everything.
        value_label: What the colours are.
    """
    values, n = matrix.to_numpy(float), len(matrix)
    with style():
        fig = Figure(figsize=(WIDTH, float(np.clip(2.2 + 0.36 * n, 3.5, 12))), layout="constrained")
        axes = fig.subplots()
        colours = matplotlib.colormaps["cividis"].with_extremes(bad="#DDDDDD")
        image = axes.imshow(values, cmap=colours, aspect="auto")
        axes.grid(visible=False)
        axes.set_yticks(range(n), matrix.index)
        axes.set_xticks(range(n), matrix.columns, rotation=60, ha="right", rotation_mode="anchor")
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = ink(image, value)
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_title(title)
        fig.colorbar(image, label=value_label, pad=0.01)
    return fig


def _staggered(names: Sequence[str], many: bool) -> list[str]:
    """Every second label stands further out, so that labels may be larger than their rows."""
    if not many:
        return list(names)
    width = max(map(len, names)) + 1
    return [name if i % 2 == 0 else " " * width + name for i, name in enumerate(names)]


def _codes(values: pd.Series, base: Sequence[str], most: int = 9) -> tuple[np.ndarray, list[str], list]:
    """Codes, names and colours of a mark; those beyond the `most` frequent are one light grey."""
    counts = values.value_counts(sort=True)
    names = [name for name in counts.index if counts[name] > 1][:most]
    rest = [name for name in counts.index if name not in names]
    colours = list(base[: len(names)])
    names_shown = [f"{name} ({counts[name]})" for name in names]
    if rest:
        names_shown.append(f"others ({int(counts[rest].sum())})")
        colours = [*colours, "#D9D9D9"]
    at = {name: i for i, name in enumerate(names)}
    return np.array([at.get(value, len(names)) for value in values]), names_shown, colours


def language_curves(panels: Mapping[str, pd.DataFrame], *, title: str = "", ylabel: str = "efficacy") -> Figure:
    """The same facts as edits go on, a panel per method, a line with its band per number of languages.

    Args:
        panels: Method -> columns languages, edits, value, low, high.
        title: Above everything.
        ylabel: What is drawn.
    """
    with style():
        fig = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        drawn = fig.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        names = {}
        for axes, (heading, frame) in zip(drawn, panels.items(), strict=True):
            for (count, part), marker in zip(frame.groupby("languages"), "osD^vP", strict=False):
                colour = COUNT_COLOURS.get(count, GREY if count > 1 else BLACK)
                axes.fill_between(part["edits"], part["low"], part["high"], color=colour, alpha=0.12, lw=0)
                (names[f"{count} languages"],) = axes.plot(
                    part["edits"], part["value"], marker + "-", color=colour, ms=5, lw=1.5
                )
            axes.set(title=heading, xlabel="edits so far", ylim=(-0.02, 1.02))
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        drawn[0].set_ylabel(ylabel)
        fig.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names))
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def scaling_dots(
    frame: pd.DataFrame, metrics: Mapping[str, str], looks: Mapping[str, tuple[str, str]], *, title: str = ""
) -> Figure:
    """Metrics at the end against the number of languages, a panel per metric, whiskers are 95 % intervals.

    Args:
        frame: method, languages, metric, value, low, high; and, where a line shall tell it, before: the unedited model.
        metrics: Metric -> panel title.
        looks: Method -> colour and marker.
        title: Above everything.
    """
    counts, methods = sorted(frame["languages"].unique()), list(dict.fromkeys(frame["method"]))
    metrics = {name: heading for name, heading in metrics.items() if name in set(frame["metric"])}
    with style():
        fig = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        for axes, (metric, heading) in zip(
            fig.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True
        ):
            for i, method in enumerate(methods):
                part = frame[(frame["method"] == method) & (frame["metric"] == metric)].sort_values("languages")
                x = np.array([counts.index(n) for n in part["languages"]]) + 0.12 * (i - (len(methods) - 1) / 2)
                colour, marker = looks.get(method, (GREY, "h"))
                axes.vlines(x, part["low"], part["high"], color=colour, lw=1.6)
                axes.plot(x, part["value"], marker + "-", color=colour, ms=6, lw=0.9, label=method)
            before = frame.loc[frame["metric"] == metric, "before"].dropna() if "before" in frame else ()
            if len(before):
                axes.axhline(before.mean(), color=GREY, lw=1.2, ls="--")
                axes.annotate(
                    "unedited", (0.03, before.mean()), xycoords=("axes fraction", "data"), va="bottom", color=GREY
                )
            axes.set_xticks(range(len(counts)), counts)
            axes.set(title=heading, xlabel="languages", ylim=(-0.02, 1.02), xlim=(-0.4, len(counts) - 0.6))
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig
