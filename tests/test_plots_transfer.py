"""Figures of the transfer notebook: everything drawn where its number is, nothing cut off, equal bytes."""

import matplotlib.colors
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

from langedit_core import plots_transfer
from langedit_core.transfer_analysis import COLUMNS

MODELS = ["atlas-lm-same-names", "atlas-lm", "atlas-lm-apart-same-names", "atlas-lm-apart-invented-names"]


def table(models=MODELS, columns=tuple(COLUMNS)):
    rng = np.random.default_rng(0)
    rows = []
    for model in models:
        row = dict(model=model, facts=32)
        for name in columns:
            value = rng.uniform(0, 0.9)
            row |= {name: value, f"{name}_low": value - 0.05, f"{name}_high": value + 0.08}
        rows.append(row)
    return pd.DataFrame(rows)


def with_gaps():
    """As where no case is left, and where a single fact has no interval."""
    found = table()
    found.loc[0, ["different", "different_low", "different_high"]] = np.nan
    found.loc[1, ["subject_low", "subject_high"]] = np.nan
    return found


@pytest.fixture(params=["models", "one model", "sequences", "gaps", "nothing at all"])
def figure(request):
    match request.param:
        case "models":
            return plots_transfer.estimates(table(), COLUMNS, title="Edits in models whose knowledge is known")
        case "one model":
            return plots_transfer.estimates(table(["gemma-3-270m"]), COLUMNS)
        case "sequences":
            methods = ["memit", "alphaedit", "langedit", "langedit-released", "alphaedit, zh first"]
            shown = table(methods, ("own", "transfer", "subject", "different"))
            return plots_transfer.estimates(shown, COLUMNS, title="gemma-3-270m: after a whole sequence")
        case "gaps":
            return plots_transfer.estimates(with_gaps(), COLUMNS)
        case "nothing at all":
            empty = table(["atlas-lm"])
            empty[empty.columns[2:]] = np.nan
            return plots_transfer.estimates(empty, COLUMNS)


def test_a_dot_lies_at_its_value_within_its_interval_in_its_own_row():
    shown = with_gaps()
    axes, apart = plots_transfer.estimates(shown, COLUMNS).axes
    dots = {line.get_label(): line for line in (*axes.lines, *apart.lines) if line.get_label() in COLUMNS.values()}
    assert list(dots) == list(COLUMNS.values())
    assert [line.get_label() for line in apart.lines if line.get_label() in dots] == [COLUMNS["spared"]]
    for (name, label), bars in zip(COLUMNS.items(), (*axes.collections, *apart.collections), strict=True):
        x, y = dots[label].get_data()
        np.testing.assert_array_equal(x, shown[name])
        assert (np.abs(y - np.arange(len(shown))) < 0.5).all()  # nearer to its model than to another one
        colour, marker = plots_transfer.LOOKS[name]
        assert dots[label].get_marker() == marker and dots[label].get_color() == colour
        assert matplotlib.colors.to_hex(bars.get_color()[0]).upper() == colour.upper()
        drawn = {tuple(map(tuple, segment)) for segment in bars.get_segments() if len(segment)}
        intervals = zip(shown[f"{name}_low"], shown[f"{name}_high"], y, strict=True)
        assert drawn == {((low, at), (high, at)) for low, high, at in intervals if np.isfinite(low)}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == MODELS
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first model on top


def test_estimates_of_one_model_do_not_lie_on_one_another():
    axes = plots_transfer.estimates(table(), COLUMNS).axes[0]
    heights = [line.get_ydata()[0] for line in axes.lines if line.get_label() in COLUMNS.values()]
    assert len(set(heights)) == len(COLUMNS) - 1  # facts that were not edited are in a panel of their own


def test_what_a_table_lacks_is_left_out_and_an_unknown_estimate_is_grey():
    shown = table(columns=("own", "odd"))
    figure = plots_transfer.estimates(shown, COLUMNS | {"odd": "an odd one"})
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["edited language", "an odd one"]
    (odd,) = (line for line in figure.axes[0].lines if line.get_label() == "an odd one")
    assert odd.get_color() == plots_transfer.GREY
