"""How far two runs of one sequence differ: records that were computed anew, beside what they were at earlier revisions.

Seeds fix facts, order and contexts, not rounding, and what is rounded otherwise (by another processor, another number
of threads, later code) decides now and then which pass of a search is the last one. Writes the table `repeated_runs` of
a profile: python scripts/repeated_runs.py [--revisions 8c61e48 ...] [--profile standard]. It needs the repository's
history.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pandas as pd

from langedit_core.profiles import load_profile
from langedit_core.results import Cell, CellResult, has_record, load_result
from langedit_core.study import same_edits
from langedit_core.tables import save_table

ROOT = Path(__file__).resolve().parents[1]
NOWHERE = Path("no results")  # records alone are compared
FIRST = ("8c61e48", "0101013")  # the last revisions whose records hold first runs; of a cell the earliest counts
KEYS = ["data", "edits", "languages", "method", "seed"]
COLUMNS = ["data", "method", "languages", "edits", "seed", "first", "second", "difference", "sd"]
COLUMNS += ["F1, first", "F1, second"]


def repeated(profile: str, before: Path, now: Path) -> pd.DataFrame:
    """A row per cell of `profile` whose edits were made twice.

    Args:
        profile: Its cells are looked for.
        before: Folder of the earlier records.
        now: Folder of the later ones.

    Returns:
        Columns data, method, languages, edits, seed, efficacy at the end in the first and the second run, their
        difference, sd (of the difference, over facts in a language), XTREME F1 in both where both were asked alike.
    """
    rows, known = [], load_profile(profile)
    for cell in dict.fromkeys(cell for group in known.grids for cell in known.cells(group)):
        earlier = [c for c in (cell, *same_edits(cell)) if c.method == cell.method and has_record(c, before)]
        if not earlier or not has_record(cell, now):
            continue
        first, second = load_result(earlier[0], NOWHERE, before), load_result(cell, NOWHERE, now)
        a, b = (efficacy(result) for result in (first, second))
        if a.equals(b):  # one and the same run
            continue
        difference = b - a
        rows.append(
            dict(data=cell.data, method=cell.method, languages=len(set(cell.langs)), edits=cell.edits, seed=cell.seed)
            | dict(first=a.mean(), second=b.mean(), difference=difference.mean(), sd=difference.std())
            | ({"F1, first": f1(first), "F1, second": f1(second)} if asked_alike(cell, earlier[0]) else {})
        )
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[-2:], float))
    return table.sort_values(KEYS, ignore_index=True)


def efficacy(result: CellResult) -> pd.Series:
    """At the end, per fact and language."""
    rows = result.rows.query("metric == 'efficacy_tf' and when == 'final'")
    return rows.groupby(["fact", "lang"])["value"].mean().sort_index()


def f1(result: CellResult) -> float | None:
    """The mean of XTREME's tasks at the end."""
    if not len(result.xtreme):
        return None
    return float(result.xtreme.query("task == 'xtreme' and lang == 'all' and when == 'final'")["value"].iloc[0])


def asked_alike(cell: Cell, other: Cell) -> bool:
    return (cell.xtreme, cell.asked_in) == (other.xtreme, other.asked_in)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--revisions", nargs="+", default=FIRST, help="their records are the first runs")
    parser.add_argument("--profile", default="standard")
    options = parser.parse_args()
    records = Path("reports") / options.profile / "records"
    found = []
    for revision in options.revisions:
        packed = subprocess.run(["git", "archive", revision, str(records)], cwd=ROOT, check=True, capture_output=True)
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(folder, filter="data")
            found.append(repeated(options.profile, Path(folder) / records, ROOT / records))
    table = pd.concat(found).drop_duplicates(KEYS).sort_values(KEYS, ignore_index=True)
    print(save_table(table, ROOT / "reports" / options.profile / "tables", "repeated_runs"))


if __name__ == "__main__":
    main()
