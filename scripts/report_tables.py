"""Looks numbers up in the committed tables of a report, for the README's sentences."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

import pandas as pd

REPORTS = Path(__file__).resolve().parents[1] / "reports"


def path_of(name: str, profile: str = "standard") -> Path:
    return REPORTS / profile / "tables" / f"{name}.csv"


@functools.cache
def table(name: str, profile: str = "standard") -> pd.DataFrame:
    return pd.read_csv(path_of(name, profile))


def row(name: str, profile: str = "standard", **where: object) -> pd.Series:
    """The one row of a table that has these values; a column's spaces are written as underscores.

    Raises:
        LookupError: There is none, or there are several.
    """
    found = table(name, profile)
    columns = {column.replace(" ", "_"): column for column in found}
    for column, value in where.items():
        found = found[found[columns[column]] == value]
    if len(found) != 1:
        raise LookupError(f"{path_of(name, profile)} has {len(found)} rows with {where}, expected one")
    return found.iloc[0]


def at(data: str, method: str, metric: str, when: str) -> pd.Series:
    """A method's mean over all languages in the main runs."""
    return row("main", data=data, method=method, metric=metric, when=when, lang="all")


def ci(found: pd.Series, value: str = "value", low: str = "low", high: str = "high") -> str:
    """A value with its interval, where there is one: of equal values there is none."""
    bounds = f" [{found[low]:.2f}, {found[high]:.2f}]" if found[low] < found[high] else ""
    return minus(f"{found[value]:.2f}{bounds}")


def points(text: str) -> str:
    """A difference of shares as tables tell it, in points: "-0.16 [-0.20, -0.12]" → "−16 [−20, −12]"."""
    whole = re.sub(r"[+-]?\d+\.\d+", lambda found: f"{100 * float(found[0]):+.0f}", text)
    return minus(re.sub(r"[+-]0\b", "0", whole))


def minus(text: str) -> str:
    """Numbers with the sign that running text has, and no minus before a zero."""
    return text.replace("-0.00", "0.00").replace("-", "−")


def holds(condition: object, claim: str) -> None:
    """Stop where the tables say something else than a sentence does."""
    if not condition:
        sys.exit(f"the tables contradict what scripts/findings.py says: {claim}; write that sentence anew")
