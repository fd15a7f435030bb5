"""Tables of the study: one frame becomes CSV for programs, Markdown for reading and LaTeX for a paper.

CSV keeps six significant digits, the others show three decimals, of numbers from ten on three digits; nothing depends
on time, so equal frames give equal bytes.
"""

import html
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import pandas as pd

from langedit_core.storage import write_text

COLUMNS = ("model", "data", "method", "metric", "when", "lang", "value", "n", "low", "high")
MISSING = "n/a"
FULL = {  # columns of the full table: metric to heading
    "efficacy_tf": "efficacy",
    "efficacy_em": "exact match",
    "generality_tf": "generality",
    "specificity_same": "specificity",
    "portability_tf": "portability",
    "drift_kl": "drift KL",
}
LONGEST = 200  # rows of a table that is also written as text
WIDE = 95  # characters a page holds side by side; wider tables are set smaller and may break lines
_LATEX = {c: "\\" + c for c in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


class Bold(str):
    """A cell to be set in bold; its text is escaped like any other, and a CSV holds the text alone."""


@dataclass(frozen=True, kw_only=True)
class SavedTable:
    """A table on disk, shown by a notebook with the same rounding as its Markdown file.

    Attributes:
        frame: The rows.
        csv: Path of the CSV; `.md` and `.tex` lie beside it.
    """

    frame: pd.DataFrame
    csv: Path

    def _repr_html_(self) -> str:
        return html_table(self.frame)

    def __repr__(self) -> str:
        return markdown_table(self.frame)


def format_ci(
    value: Real | None, low: Real | None, high: Real | None, n: Real | None = None, *, signed: bool = False
) -> str:
    """`0.91 [0.85, 0.96], n = 60`; parts that are not known are left out, "n/a" if the value itself is not.

    So is an interval of no width: resampling equal values says nothing about facts that were not drawn.

    Args:
        value: The estimate.
        low: Lower end of its interval.
        high: Upper end.
        n: Number of observations; None leaves it out.
        signed: Differences: with a plus where they are not negative.
    """
    form = "+z.2f" if signed else "z.2f"
    if _absent(value):
        return MISSING
    interval = "" if _absent(low) or _absent(high) or low == high else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{interval}" + ("" if n is None or _absent(n) else f", n = {int(n)}")


def save_table(frame: pd.DataFrame, folder: str | Path, name: str) -> SavedTable:
    """Writes `name`.csv, `name`.md and `name`.tex; the index of `frame` is left out, so reset it if needed.

    A table of more than `LONGEST` rows is data, which nobody reads as text: it is a CSV alone.

    Args:
        frame: Any table with text and number columns.
        folder: Made if missing.
        name: File name without ending: letters, digits, "-" and "_".

    Raises:
        ValueError: `name` holds other characters, or a column name occurs twice.
        CannotWrite: Full disk, no permission; see `storage.write_bytes`.
    """
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise ValueError(f"table name {name!r} must consist of letters, digits, '-' and '_', no ending")
    if not frame.columns.is_unique:
        raise ValueError(f"columns of table {name!r} must be unique, got {list(frame.columns)}")
    folder = Path(folder)
    write_text(folder / f"{name}.csv", csv_table(frame))
    for ending, text_of in ((".md", markdown_table), (".tex", latex_table)):
        if len(frame) > LONGEST:
            (folder / f"{name}{ending}").unlink(missing_ok=True)  # of a shorter one
        else:
            write_text(folder / f"{name}{ending}", text_of(frame))
    return SavedTable(frame=frame, csv=folder / f"{name}.csv")


def csv_table(frame: pd.DataFrame) -> str:
    """Comma-separated values, numbers with six digits."""
    return frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def markdown_table(frame: pd.DataFrame) -> str:
    """Pipe table with numbers to the right; markup inside a cell is shown, not obeyed."""
    rule = ["---:" if right else "---" for right in _right(frame)]
    rows = [[_markdown(str(c)) for c in frame.columns], rule]
    rows += [[_cell(v, _markdown, "**{}**") for v in row] for row in frame.itertuples(index=False)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def latex_table(frame: pd.DataFrame) -> str:
    """A booktabs `tabular`; compile Chinese cells with XeLaTeX or LuaLaTeX."""
    rows = [[_cell(v, _latex, r"\textbf{{{}}}") for v in row] for row in frame.itertuples(index=False)]
    lines = [
        r"\begin{tabular}{" + "".join("r" if right else "l" for right in _right(frame)) + "}",
        r"\toprule",
        " & ".join(_latex(str(c)) for c in frame.columns) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def html_table(frame: pd.DataFrame) -> str:
    """An HTML table with every cell escaped and class `num` on the cells of number columns; wide ones are `dense`."""
    right = _right(frame)
    longest = [max((len(_show(v)) for v in (name, *frame[name])), default=0) for name in frame]
    dense = sum(longest) + 1.5 * len(longest) > WIDE

    def text(value: str) -> str:
        """Where lines may break, an interval, a pair of numbers or "n = 60" stays whole."""
        value = html.escape(value)
        return re.sub(r"(?<=\d)(,| →) (?=[-+\d])|n = (?=\d)", whole, value) if dense else value

    def whole(found: re.Match) -> str:
        return found[0].replace(" ", "&nbsp;")

    def row(tag: str, cells: list[str]) -> str:
        marks = [' class="num"' if r else "" for r in right]
        inner = (f"<{tag}{m}>{c}</{tag}>" for m, c in zip(marks, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>\n"

    head = row("th", [html.escape(str(c)) for c in frame.columns])
    shown = ([_cell(v, text, "<strong>{}</strong>") for v in cells] for cells in frame.itertuples(index=False))
    body = "".join(row("td", cells) for cells in shown)
    kind = ' class="dense"' if dense else ""
    return f"<table{kind}>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>"


def split_constant(frame: pd.DataFrame, *columns: str) -> tuple[pd.DataFrame, str]:
    """The table without those of `columns` that say the same in every row, and a sentence that says it once."""
    same = {name: frame[name].iloc[0] for name in columns if name in frame and frame[name].nunique(dropna=False) == 1}
    told = "; ".join(f"{name}: {_show(value)}" for name, value in same.items())
    return frame.drop(columns=list(same)), f"In all rows, {told}." if told else ""


def headline(frame: pd.DataFrame, bold: Collection[tuple] = ()) -> pd.DataFrame:
    """The tidy main table in the form people read: a row per method and moment, a column per metric.

    A cell is `format_ci` of the row whose lang is "all". Where a metric has no such row, it is the mean over
    languages weighted by n, without an interval, because intervals do not average.

    Args:
        frame: Rows with the columns `COLUMNS`.
        bold: Cells to mark, each (model, data, method, when, metric), as `stats.best_cells` finds them. A cell alone
            in its column is bold too; leave such cells out where there is nothing to compare.

    Raises:
        ValueError: A column is missing, or a cell to mark is not in the table.
    """
    missing = [c for c in COLUMNS if c not in frame.columns]
    if missing:
        raise ValueError(f"main table lacks the columns {missing}; it needs {', '.join(COLUMNS)}")
    keys = ["model", "data", "method", "when"]
    rows = []
    for labels, group in frame.groupby(keys, sort=False):
        row = dict(zip(keys, labels, strict=True))
        for metric, part in group.groupby("metric", sort=False):
            whole = part[part["lang"] == "all"]
            known = part[part["value"].notna()]
            if len(whole) == 1:
                row[metric] = format_ci(*whole[["value", "low", "high"]].iloc[0])
            elif known["n"].sum() > 0:
                mean = (known["value"] * known["n"]).sum() / known["n"].sum()
                row[metric] = format_ci(mean, math.nan, math.nan)
        rows.append(row)
    metrics = list(dict.fromkeys(frame["metric"]))
    table = pd.DataFrame(rows, columns=[*keys, *metrics]).fillna(MISSING)
    if not bold:
        return table
    table = table.astype(dict.fromkeys(metrics, object))  # a column of strings would forget what kind of string
    at = {tuple(row): i for i, row in enumerate(table[keys].itertuples(index=False))}
    for *where, metric in bold:
        i = at.get(tuple(where))
        if i is None or metric not in metrics or table.at[i, metric] == MISSING:
            raise ValueError(f"bold names the cell {(*where, metric)}, which the table lacks; expected {keys} + metric")
        table.at[i, metric] = Bold(table.at[i, metric])
    return table


def full_table(
    frame: pd.DataFrame, extra: Mapping[str, Mapping[str, object]], bold: Collection[tuple] = ()
) -> pd.DataFrame:
    """The main table of one model and data set, a row per method: values at the end, efficacy also right after.

    Args:
        frame: Rows with the columns `COLUMNS`; those with lang "all" are shown.
        extra: More columns: heading → method → value.
        bold: Cells to mark, as for `headline`; those of other moments than "final" and other metrics are passed over.
    """
    whole = frame[frame["lang"] == "all"]
    marked = {(method, metric) for *_, method, when, metric in bold if when == "final"}
    at = whole.set_index(["method", "metric", "when"])[["value", "low", "high"]]
    rows = []
    for method in dict.fromkeys(whole["method"]):
        row: dict[str, object] = {"method": method}
        for metric, heading in FULL.items():
            if (method, metric, "final") not in at.index:
                continue
            told = format_ci(*at.loc[(method, metric, "final")])
            if metric == "efficacy_tf" and (method, metric, "immediate") in at.index:
                told = f"{at.loc[(method, metric, 'immediate'), 'value']:.2f} → {told}"
            row[heading] = Bold(told) if (method, metric) in marked else told
        rows.append(row | {name: by_method.get(method) for name, by_method in extra.items()})
    headings = [h for h in ("method", *FULL.values(), *extra) if any(h in row for row in rows)]
    texts = {h: object for h in headings if h in FULL.values()}
    table = pd.DataFrame(rows, columns=headings).astype(texts)
    return table.where(table.notna(), MISSING)


def _absent(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value))


def _show(value: object) -> str:
    if _absent(value):
        return MISSING
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    if size and not 1e-3 <= size < 1e5:
        return f"{value:.2e}"
    return f"{value:.{3 if size < 9.9995 else 1 if size < 99.95 else 0}f}"


def _cell(value: object, escape: Callable[[str], str], bold: str) -> str:
    text = escape(_show(value))
    return bold.format(text) if isinstance(value, Bold) and text.strip() else text


def _right(frame: pd.DataFrame) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]


def _markdown(text: str) -> str:
    text = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|$])", r"\\\1", text)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))
