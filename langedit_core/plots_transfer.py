"""Figures of the transfer notebook: estimates of several kinds side by side, one row per model or method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from langedit_core.plots import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION, WIDTH, style

LOOKS: dict[str, tuple[str, str]] = {  # colour, marker
    "own": (BLACK, "o"),
    "transfer": (BLUE, "D"),
    "subject": (ORANGE, "s"),
    "different": (VERMILION, "^"),
    "unrelated": (GREY, "v"),
    "random": (GREEN, "x"),
    "spared": (GREY, "v"),
}


def estimates(
    table: pd.DataFrame, columns: Mapping[str, str], *, title: str = "", xlabel: str = "gain, share of facts"
) -> Figure:
    """Dots with 95 % intervals, a row per model and in it one dot per estimate.

    Facts that were not edited have a panel of their own, since their gain is taken off the others'.

    Args:
        table: Columns model, and per estimate its name, NAME_low and NAME_high; NaN is left out.
        columns: Estimates shown, each with its label; those the table lacks are left out.
        title: Above everything.
        xlabel: What the value is.
    """
    names = {name: label for name, label in columns.items() if name in table}
    y = np.arange(len(table))
    with style():
        fig = Figure(figsize=(WIDTH, 1.5 + (0.13 * len(names) + 0.25) * len(table)), layout="constrained")
        groups = {xlabel: [name for name in names if name != "spared"]}
        if "spared" in names:
            groups = {f"{xlabel}, less that of facts not edited": groups[xlabel], "gain": ["spared"]}
        panels = fig.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=[4, 1.3][: len(groups)])[0]
        legend = {}
        for axes, (label, own) in zip(panels, groups.items(), strict=True):
            for i, name in enumerate(own):
                colour, marker = LOOKS.get(name, (GREY, "h"))
                places = y + 0.7 * ((i + 0.5) / len(own) - 0.5)
                axes.hlines(places, table[f"{name}_low"], table[f"{name}_high"], color=colour, lw=2.5, alpha=0.45)
                (legend[names[name]],) = axes.plot(table[name], places, marker, color=colour, ms=6, label=names[name])
            axes.axvline(0, color=GREY, lw=0.8)
            axes.set(ylim=(len(table) - 0.5, -0.5), xlabel=label)
            for height in y[1:] - 0.5:
                axes.axhline(height, color="#DDDDDD", lw=0.6)  # not hlines, which would widen the axis it spans
            low, high = axes.get_xlim()
            axes.set_xticks([tick for tick in axes.get_xticks() if low <= tick <= high])
            axes.grid(axis="y", visible=False)
        panels[0].set_yticks(y, table["model"])
        fig.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=3)
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig
