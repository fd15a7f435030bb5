"""Figures of the null-space notebook: variants over the sequence, and what the threshold does.

Colours are those of `plots` where a variant is a method; variants of one method share its colour and differ in dashes.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from langedit_core.ablation import usual_ridge
from langedit_core.plots import BLACK, BLUE, GREEN, GREY, METHODS, ORANGE, PURPLE, VERMILION, WIDTH, style

LOOKS: dict[str, tuple[str, str, str]] = {  # colour, marker, dashes
    "langedit": (GREEN, "D", "-"),
    "langedit-full": (BLACK, "X", "-"),
    "langedit-released": (GREEN, "^", "--"),
    "langedit-literal": (GREEN, "P", ":"),
    "evoedit": (PURPLE, "v", ":"),
    "alphaedit": (ORANGE, "s", "-"),
    "alphaedit, no past keys": (ORANGE, "h", "--"),
    "langedit, λ held": (BLACK, "D", "-"),
    "alphaedit, λ held": (GREY, "s", "-"),
    "evoedit, λ following": (PURPLE, "v", "--"),
    "langedit-released, λ following": (BLUE, "^", "-"),  # each beside its own method, which is green already
    "langedit-literal, λ following": (VERMILION, "P", "-"),
    "langedit-released, λ 0.3": (BLUE, "^", "-"),
    "langedit-literal, λ 0.3": (VERMILION, "P", "-"),
}


def looks_of(names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, marker and dashes per variant; those with another λ look like their method, with other dashes."""
    looks, dashes = {}, defaultdict(lambda: itertools.cycle(("--", ":", "-.")))
    for name in names:
        plain = usual_ridge(name)
        looks[name] = LOOKS.get(name) or LOOKS.get(plain) or (*METHODS.get(plain, (GREY, "h")), "-")
        if name not in LOOKS and name != plain:
            looks[name] = (*looks[name][:2], next(dashes[plain]))
    return looks


def variant_lines(
    frame: pd.DataFrame,
    panels: Mapping[str, str],
    *,
    names: Sequence[str],
    shares: Collection[str] = (),
    log: Collection[str] = (),
    title: str = "",
) -> Figure:
    """A line per variant over the edits made, a panel per quantity.

    Args:
        frame: Columns method, edits and those in `panels`; one row per variant and number of edits.
        panels: Column to label.
        names: Variants shown, in this order.
        shares: Panels whose axis begins and ends at the fifths around the data; others end where the data do.
        log: Panels with a logarithmic axis; zeros are left out of them.
        title: Above everything.

    Raises:
        ValueError: A column is missing, or a variant has several rows for one number of edits.
    """
    if missing := [c for c in ("method", "edits", *panels) if c not in frame]:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(frame)}")
    shown = frame[frame["method"].isin(names)]
    if (twice := shown.duplicated(["method", "edits"])).any():
        name = shown.loc[twice, "method"].iloc[0]
        raise ValueError(f"{name!r} has several rows for one number of edits; filter or average the frame first")
    with style():
        fig = Figure(figsize=(WIDTH, 3.7), layout="constrained")
        for axes, (column, label) in zip(fig.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            for name, (colour, marker, dashes) in looks_of(names).items():
                found = shown[shown["method"] == name].set_index("edits")[column].dropna()
                found = found[found > 0] if column in log else found
                axes.plot(found.index, found, dashes, color=colour, marker=marker, ms=5, lw=1.5, label=name)
            axes.set(title=label, xlabel="edits made")
            axes.set_xticks(sorted(frame["edits"].unique())[:: max(1, frame["edits"].nunique() // 6)])
            if column in shares and shown[column].notna().any():
                low, high = math.floor(5 * shown[column].min()) / 5, math.ceil(5 * shown[column].max()) / 5
                axes.set(ylim=(low, low + 1.03 * (high - low)))
            elif column in log:
                axes.set_yscale("log")
        handles, labels = fig.axes[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=min(4, len(names)))
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig


def threshold_sweep(swept: pd.DataFrame, *, usual: str | None = None, title: str = "") -> Figure:
    """Efficacy, specificity, written share and drift against the free directions, with 95 % intervals where there are.

    Args:
        swept: `ablation.sweep`.
        usual: Variant whose place is marked.
        title: Above everything.
    """
    panels = {
        "efficacy (tf)": {
            "efficacy_tf immediate": ("right after the batch", BLUE, "o", "--"),
            "efficacy_tf final": ("at the end", GREEN, "D", "-"),
        },
        "specificity, at the end": {"specificity_same final": ("", VERMILION, "s", "-")},
        "written, and capacity left": {
            "written": ("share of a value written", BLACK, "o", "-"),
            "capacity": ("share of a key's energy left", PURPLE, "v", "--"),
        },
        "drift, KL (nats per token)": {"drift_kl final": ("", ORANGE, "^", "-")},
    }
    with style():
        fig = Figure(figsize=(WIDTH, 6.4), layout="constrained")
        free = swept["free"].to_numpy()
        for axes, (label, lines) in zip(fig.subplots(2, 2, sharex=True).flat, panels.items(), strict=True):
            for column, (name, colour, marker, dashes) in lines.items():
                value = swept[column].to_numpy(float)
                if f"{column} low" in swept:
                    low, high = (swept[f"{column} {end}"].to_numpy(float) for end in ("low", "high"))
                    axes.vlines(free, low, high, color=colour, lw=2.5, alpha=0.35)
                axes.plot(free, value, dashes, color=colour, marker=marker, ms=5, lw=1.5, label=name or None)
            if usual in set(swept["method"]):
                axes.axvline(float(swept.set_index("method").at[usual, "free"]), color=GREY, lw=1.4, ls=":", zorder=1)
            axes.set_title(label)
            if "drift" not in label:
                axes.set(ylim=(0, 1.03), yticks=np.linspace(0, 1, 6))
            else:
                axes.set_ylim(bottom=0)
            if any(name for name, *_ in lines.values()):
                axes.legend(fontsize=8, loc="best")
        for axes in fig.axes[2:]:
            labels = [f"{t}: {f:.0f}" for f, t in zip(free, swept["threshold"], strict=True)]
            axes.set_xticks(free, labels, fontsize=8, rotation=90)
            axes.set_xlabel("threshold: free directions before the first batch")
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12)
    return fig
