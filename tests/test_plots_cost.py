"""Figures of cost: everything drawn, nothing cut off, equal data give equal bytes."""

import pandas as pd
import pytest
from test_cost import cubic, row

# Promises that every figure keeps, here to be collected with this file's `figure`.
from test_plots import (  # noqa: F401
    every_warning_is_an_error,
    test_legend_lies_outside_of_the_panels,
    test_no_label_is_cut_off,
    test_no_two_labels_of_an_axis_overlap,
    test_saving_twice_gives_equal_bytes_without_date_or_program,
)

from langedit_core import cost, plots_cost
from langedit_core.refresh import KINDS, frame, ratios

WIDTHS = (2048, 4096, 8192, 14336)


def phases():
    names = ["memit", "alphaedit", "langedit-released"]
    return pd.DataFrame({"method": names} | {name: [3.0, 2.0, 1.0] for name in plots_cost.OWN})


def refreshes():
    rows = [row(d, kind, 1e-9 * d**2 * (1 + i), n) for i, kind in enumerate(KINDS) for d in WIDTHS for n in (10, 100)]
    rows += [row(28672, "incremental", 1.0, n) for n in (10, 100)]
    return ratios(frame(rows))


FIGURES = {
    "phases": lambda: plots_cost.stacked(phases(), plots_cost.OWN, title="Seconds", xlabel="seconds"),
    "memory": lambda: plots_cost.stacked(
        cost.memory_table(), plots_cost.STATE, panel="block", title="State", xlabel="GB"
    ),
    "refresh": lambda: plots_cost.refresh_lines(refreshes(), title="Refresh"),
    "one width": lambda: plots_cost.refresh_lines(ratios(cubic((100,)))),
}


@pytest.fixture(params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def test_bars_are_as_long_as_their_parts_together():
    axes = plots_cost.stacked(phases(), plots_cost.OWN).axes[0]
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    assert max(ends) == pytest.approx(9.0)
    assert {text.get_text() for text in axes.texts} == {"9", "6", "3"}


def test_a_method_twice_in_a_panel_is_refused():
    with pytest.raises(ValueError, match="several rows in one panel"):
        plots_cost.stacked(pd.concat([phases(), phases()]), plots_cost.OWN)


def test_estimates_are_open_marks_and_named():
    figure = plots_cost.refresh_lines(refreshes())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "estimate" in labels and len(labels) == len(KINDS) + 1
    open_marks = [
        line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())
    ]
    assert {x for line in open_marks for x in line.get_xdata()} == {28672}
