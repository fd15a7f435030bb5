"""Tables are the same in every format, say when a number is missing, and let no cell act as markup."""

import math

import pandas as pd
import pytest
from matplotlib.figure import Figure

from langedit_core import plots, tables
from langedit_core.storage import CannotWrite
from langedit_core.tables import (
    WIDE,
    Bold,
    format_ci,
    full_table,
    headline,
    html_table,
    latex_table,
    markdown_table,
    save_table,
    split_constant,
)


@pytest.fixture
def frame():
    return pd.DataFrame(
        {
            "method": ["memit", "lang_edit & <b>co</b> | 100 %"],
            "n": [60, 7],
            "value": [1 / 3, math.nan],
            "small": [1.2345e-7, 0.0],
        }
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.912, 0.85, 0.956, 60), "0.91 [0.85, 0.96], n = 60"),
        ((0.912, 0.85, 0.956), "0.91 [0.85, 0.96]"),
        ((0.912, math.nan, math.nan, 60), "0.91, n = 60"),
        ((math.nan, 0.1, 0.2, 60), "n/a"),
        ((None, None, None, None), "n/a"),
        ((1, 1, 1, 60.0), "1.00, n = 60"),
        ((1, 0.999, 1, 60.0), "1.00 [1.00, 1.00], n = 60"),
        ((-0.001, -0.02, -0.004), "0.00 [-0.02, 0.00]"),  # no minus before what is rounded to zero
    ],
)
def test_interval_is_written_with_what_is_known(arguments, expected):
    assert format_ci(*arguments) == expected


def test_a_difference_has_its_sign():
    assert format_ci(0.04, -0.02, 0.1, 7, signed=True) == "+0.04 [-0.02, +0.10], n = 7"
    assert format_ci(-0.001, math.nan, math.nan, 1, signed=True) == "+0.00, n = 1"


def test_a_long_table_is_a_csv_alone(tmp_path):
    rows = pd.DataFrame({"n": range(tables.LONGEST + 1)})
    save_table(rows[:-1], tmp_path, "main")
    assert len(list(tmp_path.iterdir())) == 3
    saved = save_table(rows, tmp_path, "main")
    assert [path.name for path in tmp_path.iterdir()] == ["main.csv"] and len(pd.read_csv(saved.csv)) == len(rows)


def test_saving_twice_gives_equal_bytes_in_three_formats(frame, tmp_path):
    for name in ("one", "two"):
        save_table(frame, tmp_path / name, "main")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["main.csv", "main.md", "main.tex"]
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert b"\r" not in content


def test_csv_can_be_read_back(frame, tmp_path):
    saved = save_table(frame, tmp_path, "main")
    pd.testing.assert_frame_equal(pd.read_csv(saved.csv), frame, rtol=1e-5)


def test_markdown_escapes_pipes_and_markup_and_aligns_numbers(frame):
    lines = markdown_table(frame).splitlines()
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| memit | 60 | 0.333 | 1.23e-07 |"
    assert lines[3] == r"| lang\_edit &amp; &lt;b&gt;co&lt;/b&gt; \| 100 % | 7 | n/a | 0.000 |"


def test_latex_escapes_every_special_character():
    text = "\\ ~ ^ & % $ # _ { }"
    expected = r"\textbackslash{} \textasciitilde{} \textasciicircum{} \& \% \$ \# \_ \{ \} \\"
    assert latex_table(pd.DataFrame({"a": [text]})).splitlines()[4] == expected


def test_latex_has_one_column_letter_per_column(frame):
    assert latex_table(frame).startswith("\\begin{tabular}{lrrr}\n\\toprule\n")


def test_html_escapes_cells_and_headings():
    page = html_table(pd.DataFrame({"<i>a": ["<script>alert(1)</script>", "x & y"]}))
    assert "<script" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page and "x &amp; y" in page and "&lt;i&gt;a" in page


def test_line_breaks_do_not_break_a_row():
    assert len(markdown_table(pd.DataFrame({"a": ["one\ntwo\r\nthree"]})).splitlines()) == 3


def test_notebook_shows_a_saved_table_as_html(frame, tmp_path):
    saved = save_table(frame, tmp_path, "main")
    assert saved._repr_html_() == html_table(frame)
    assert '<td class="num">0.333</td>' in saved._repr_html_()


@pytest.mark.parametrize("name", ["a/b", "..", "a.csv", ""])
def test_names_that_would_leave_the_folder_are_refused(name, frame, tmp_path):
    with pytest.raises(ValueError, match="must consist of letters"):
        save_table(frame, tmp_path, name)


def test_repeated_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be unique"):
        save_table(pd.DataFrame([[1, 2]], columns=["a", "a"]), tmp_path, "main")


def tidy(*rows):
    names = ["method", "metric", "when", "lang", "value", "n", "low", "high"]
    return pd.DataFrame(rows, columns=names).assign(model="m", data="d")


def test_headline_has_a_row_per_method_and_moment_and_a_column_per_metric():
    table = headline(
        tidy(
            ("memit", "efficacy", "immediate", "all", 0.5, 60, 0.4, 0.6),
            ("memit", "efficacy", "immediate", "en", 0.9, 10, 0.8, 1.0),
            ("memit", "efficacy", "final", "all", 0.25, 60, 0.2, 0.3),
            ("langedit", "portability", "final", "en", 1.0, 10, 0.9, 1.0),
            ("langedit", "portability", "final", "nl", 0.0, 30, 0.0, 0.1),
            ("langedit", "portability", "final", "zh", math.nan, 0, math.nan, math.nan),
        )
    )
    assert table[["method", "when", "efficacy", "portability"]].to_numpy().tolist() == [
        ["memit", "immediate", "0.50 [0.40, 0.60]", "n/a"],
        ["memit", "final", "0.25 [0.20, 0.30]", "n/a"],
        ["langedit", "final", "n/a", "0.25"],
    ]


def test_headline_names_the_missing_columns():
    with pytest.raises(ValueError, match=r"lacks the columns \['low', 'high'\]"):
        headline(tidy().drop(columns=["low", "high"]))


def test_bold_cells_are_marked_in_every_format_and_escaped_as_before():
    frame = pd.DataFrame({"a": [Bold("x & <b>_1_ | {2}**"), "x & <b>_1_ | {2}**"], "n": [1, 2]}, dtype=object)
    plain = pd.DataFrame({"a": [str(v) for v in frame["a"]], "n": [1, 2]}, dtype=object)
    for render, begin, end in [
        (markdown_table, "**", "**"), (latex_table, r"\textbf{", "}"), (html_table, "<strong>", "</strong>")
    ]:  # fmt: skip
        bold, bare = render(frame), render(plain)
        escaped = {markdown_table: r"x &amp; &lt;b&gt;\_1\_ \| {2}\*\*", latex_table: r"x \& <b>\_1\_ | \{2\}**"}.get(
            render, "x &amp; &lt;b&gt;_1_ | {2}**"
        )
        assert bare.count(escaped) == 2
        assert bold == bare.replace(escaped, begin + escaped + end, 1)  # the first of the two, and nothing else


def test_csv_holds_the_text_of_a_bold_cell_alone(tmp_path):
    saved = save_table(pd.DataFrame({"a": [Bold("x"), "y"]}, dtype=object), tmp_path, "main")
    assert saved.csv.read_text() == "a\nx\ny\n"
    assert "<strong>x</strong>" in saved._repr_html_() and "**x**" in repr(saved)
    assert r"\textbf{x}" in saved.csv.with_suffix(".tex").read_text()


def test_an_empty_bold_cell_is_no_rule_of_asterisks():
    assert "*" not in markdown_table(pd.DataFrame({"a": [Bold(" ")]}, dtype=object))


MAIN = [
    ("memit", "efficacy", "final", "all", 0.25, 60, 0.2, 0.3),
    ("langedit", "efficacy", "final", "all", 0.5, 60, 0.4, 0.6),
    ("langedit", "portability", "final", "en", 1.0, 10, 0.9, 1.0),
]


def test_headline_marks_the_given_cells_and_only_those():
    bold = {("m", "d", "langedit", "final", "efficacy"), ("m", "d", "langedit", "final", "portability")}
    marked, plain = headline(tidy(*MAIN), bold=bold), headline(tidy(*MAIN))
    assert marked.to_numpy().tolist() == plain.to_numpy().tolist()
    found = markdown_table(marked).splitlines()
    assert found[2] == r"| m | d | memit | final | 0.25 \[0.20, 0.30\] | n/a |"
    assert found[3] == r"| m | d | langedit | final | **0.50 \[0.40, 0.60\]** | **1.00** |"
    assert html_table(marked).count("<strong>") == 2 and latex_table(marked).count(r"\textbf{") == 2
    assert markdown_table(headline(tidy(*MAIN), bold=set())) == markdown_table(plain)


@pytest.mark.parametrize(
    "cell",
    [
        ("m", "d", "rome", "final", "efficacy"),
        ("m", "d", "memit", "final", "locality"),
        ("m", "d", "memit", "final", "portability"),
        ("memit", "final", "efficacy"),
    ],
)
def test_a_bold_cell_that_is_not_in_the_table_is_refused(cell):
    with pytest.raises(ValueError, match="which the table lacks"):
        headline(tidy(*MAIN), bold={cell})


def test_the_full_table_shows_the_end_and_efficacy_from_right_after():
    frame = tidy(
        ("memit", "efficacy_tf", "immediate", "all", 0.9, 60, 0.8, 1.0),
        ("memit", "efficacy_tf", "final", "all", 0.5, 60, 0.4, 0.6),
        ("memit", "efficacy_tf", "final", "en", 0.1, 10, 0.0, 0.2),
        ("memit", "drift_kl", "final", "all", 0.25, 6, 0.2, 0.3),
        ("langedit", "efficacy_tf", "final", "all", 0.7, 60, 0.6, 0.8),
    )
    bold = {("m", "d", "langedit", "final", "efficacy_tf"), ("m", "d", "memit", "immediate", "efficacy_tf")}
    table = full_table(frame, {"n": {"memit": 60, "langedit": 60}, "F1": {"memit": "0.5"}}, bold=bold)
    assert list(table) == ["method", "efficacy", "drift KL", "n", "F1"]
    assert table.to_numpy().tolist() == [
        ["memit", "0.90 → 0.50 [0.40, 0.60]", "0.25 [0.20, 0.30]", 60, "0.5"],
        ["langedit", "0.70 [0.60, 0.80]", "n/a", 60, "n/a"],
    ]
    assert [isinstance(cell, Bold) for cell in table["efficacy"]] == [False, True]


def test_a_wide_table_is_dense_and_breaks_lines_only_between_numbers_and_intervals():
    cells = {f"c{i}": ["0.90 → 0.50 [-0.40, 0.60], n = 7"] for i in range(1 + WIDE // 30)}
    page = html_table(pd.DataFrame(cells))
    assert page.startswith('<table class="dense">')
    assert "0.90&nbsp;→&nbsp;0.50 [-0.40,&nbsp;0.60], n&nbsp;=&nbsp;7" in page
    narrow = html_table(pd.DataFrame({"a": ["0.90 → 0.50 [-0.40, 0.60], n = 7"]}))
    assert narrow.startswith("<table>") and "&nbsp;" not in narrow


def test_markup_in_a_wide_table_is_escaped_too():
    page = html_table(pd.DataFrame({"a": ["<script>" * 20]}))
    assert 'class="dense"' in page and "<script" not in page


def test_where_nothing_can_be_written_the_cure_is_named_and_no_half_table_left(frame, tmp_path):
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(CannotWrite, match=r"t\.csv cannot be written: a file is in the place of a folder: move it"):
        save_table(frame, tmp_path / "tables", "t")
    with pytest.raises(CannotWrite, match=r"f\.svg cannot be written"):
        plots.save(Figure(), tmp_path / "tables", "f")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def test_numbers_from_ten_on_show_three_digits():
    shown = {1.5: "1.500", 9.9994: "9.999", 9.9996: "10.0", 71.593: "71.6", 99.96: "100", 188.5: "188", 1549.0: "1549"}
    shown |= {-27.34: "-27.3", 0.0: "0.000", 5e-4: "5.00e-04", 123456.0: "1.23e+05"}
    for value, text in shown.items():
        assert markdown_table(pd.DataFrame({"a": [value]})).splitlines()[2] == f"| {text} |"


def test_what_all_rows_say_is_said_once():
    frame = pd.DataFrame({"method": ["a", "b"], "n": [3, 3], "machine": ["x, 1 thread"] * 2})
    table, told = split_constant(frame, "machine")
    assert list(table) == ["method", "n"] and told == "In all rows, machine: x, 1 thread."
    table, told = split_constant(frame.assign(machine=["x", "y"]), "machine", "absent")
    assert list(table) == list(frame) and told == ""
    assert split_constant(pd.DataFrame(), "machine")[1] == ""
