"""Figures of cost: a batch's seconds as stacked bars, a refresh's seconds against width, bytes as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from langedit_core.plots import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, WIDTH, style

OWN = {"projection": VERMILION, "solve": ORANGE, "write": BLACK}  # phases in which methods differ
KINDS: dict[str, tuple[str, str, str]] = {  # colour, marker, label
    "svd": (GREY, "P", "SVD of the covariance, float32 (published)"),
    "exact": (GREEN, "D", "eigendecomposition (langedit)"),
    "randomized": (ORANGE, "^", "randomised range finder"),
    "full_keys": (BLUE, "o", "SVD of all stored keys"),
    "incremental": (PURPLE, "v", "incremental (evoedit)"),
}
STATE = {"basis": GREEN, "keys, factor": VERMILION, "C₀, kept": SKY}


def stacked(
    frame: pd.DataFrame, parts: Mapping[str, str], *, panel: str | None = None, title: str = "", xlabel: str = ""
) -> Figure:
    """A bar per method, its parts one after another; a panel per value of the column `panel`.

    Args:
        frame: Columns method and `parts`; one row per method and panel.
        parts: Column -> colour, from left to right.
        panel: Column that tells panels apart; None: one panel.
        title: Above everything.
        xlabel: Unit.

    Raises:
        ValueError: A method has several rows in a panel.
    """
    groups = {"": frame} if panel is None else dict(list(frame.groupby(panel, sort=False)))
    if any(part["method"].duplicated().any() for part in groups.values()):
        raise ValueError("a method has several rows in one panel; filter by data set first")
    most = max(map(len, groups.values()))
    with style():
        fig = Figure(figsize=(WIDTH, 1.5 + 0.27 * most), layout="constrained")
        for axes, (name, part) in zip(fig.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
            y, left = np.arange(len(part)), np.zeros(len(part))
            for column, colour in parts.items():
                axes.barh(y, part[column], left=left, color=colour, height=0.7, label=column)
                left = left + part[column].to_numpy(float)
            for at, total in zip(y, left, strict=True):
                axes.annotate(f"{total:.3g}", (total, at), (3, 0), textcoords="offset points", va="center", fontsize=8)
            axes.set_title(name, fontsize=9)
            axes.set(xlabel=xlabel, ylim=(len(part) - 0.5, -0.5), xlim=(0, 1.15 * max(left.max(), 1e-9)))
            axes.set_yticks(y, part["method"], fontsize=8)
            axes.set_xticks([tick for tick in axes.get_xticks() if tick <= axes.get_xlim()[1]])
            axes.grid(axis="y", visible=False)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
        fig.legend(*fig.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(parts))
    return fig


def refresh_lines(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Seconds of a refresh against d, both logarithmic: a line per kind, a panel per number of new keys.

    Args:
        table: As `refresh.ratios` gives it; estimates are open marks on dashed lines.
        title: Above everything.
    """
    widths: Sequence[int] = sorted(set(table["d"]))
    with style():
        fig = Figure(figsize=(WIDTH, 4.2), layout="constrained")
        added = sorted(set(table["new keys"]))
        panels = fig.subplots(1, len(added), sharey=True, squeeze=False)[0]
        lines = {}
        for axes, n in zip(panels, added, strict=True):
            for kind, (colour, marker, label) in KINDS.items():
                own = table[(table["new keys"] == n) & (table["kind"] == kind)].sort_values("d")
                real, guess = own[own["n"] > 0], own[own["n"] == 0]
                if not len(own):
                    continue
                (lines[label],) = axes.plot(real["d"], real["seconds"], f"{marker}-", color=colour, ms=5, lw=1.4)
                tail = pd.concat([real.tail(1), guess])
                axes.plot(tail["d"], tail["seconds"], "--", color=colour, lw=1)
                axes.plot(guess["d"], guess["seconds"], marker, color=colour, ms=6, mfc="white")
            axes.set(xscale="log", yscale="log", title=f"{n} new keys", xlabel="width d of the edited matrix")
            axes.set_xticks(widths, [f"{d}" for d in widths], fontsize=8)
            axes.minorticks_off()
        low, high = panels[0].get_ylim()
        panels[0].set_yticks([tick for tick in panels[0].get_yticks() if low <= tick <= high])
        panels[0].set_ylabel("seconds")
        if (table["n"] == 0).any():
            (lines["estimate"],) = panels[0].plot([], [], "o--", color=GREY, mfc="white", ms=6, lw=1)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12)
        fig.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return fig
