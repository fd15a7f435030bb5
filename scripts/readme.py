"""Puts tables and findings of the reports into README.md: every number there is looked up in a report's tables.

Run after `make study PROFILE=standard`: python scripts/readme.py; `--check` only says whether the two agree. Where new
tables contradict what a sentence says, it stops and names the sentence, which then has to be written anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from findings import findings, in_short, open_questions, ran, repeated, verdict
from report_tables import at, path_of, points, table

from langedit_core.published import READINGS

ROOT = Path(__file__).resolve().parents[1]
METRICS = {
    "efficacy_tf": "efficacy",
    "efficacy_em": "efficacy, exact match",
    "generality_tf": "generality",
    "specificity_same": "specificity (unchanged)",
}

PAGE = "reports/standard/02_main_runs.html"


def headline() -> str:
    """What was measured of each method, and, folded, how it stands to the paper's claim; the first data set open."""
    parts = []
    for number, (_, design) in enumerate(table("design").iterrows()):
        data = design["data"]
        parts.append(measured(design) if number == 0 else folded(f"The same on {data}", measured(design)))
        if path_of(f"comparisons_{data}").is_file():  # langedit was run on it
            parts.append(folded(f"LangEdit less each other method on {data}, paired over facts", compared(data)))
    return "\n\n".join(parts)


def folded(summary: str, text: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def measured(design: pd.Series) -> str:
    """Every method's scores on one data set."""
    data, main = design["data"], table("main")
    lines = [f"| method | {' | '.join(METRICS.values())} |", f"|---|{'---|' * len(METRICS)}"]
    methods = main.loc[main["data"] == data, "method"].unique()
    cells = [
        "–" if metric == "specificity_same" else f"{at(data, methods[0], metric, 'before')['value']:.2f}"
        for metric in METRICS
    ]
    lines.append(f"| *unedited* | {' | '.join(cells)} |")
    for method in methods:
        cells = []
        for metric in METRICS:
            now, end = (at(data, method, metric, when) for when in ("immediate", "final"))
            cells.append(f"{now['value']:.2f} → {end['value']:.2f} [{end['low']:.2f}, {end['high']:.2f}]")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    counts = {int(at(data, method, "efficacy_tf", "final")["n"]) for method in methods}
    facts = f"{min(counts):,}" if len(counts) == 1 else f"{min(counts):,}, in several seeds up to {max(counts):,}"
    lines += [
        "",
        f"Gemma 3 270M on {data}, {design['edits per run']} sequential edits per method in {design['languages']}, "
        f"seeds: {design['seeds']}. Right after each batch → after the whole sequence, with the 95 % interval over "
        f"facts of the latter, n = {facts} ([notebook 02]({PAGE})).",
    ]
    return "\n".join(lines)


def compared(data: str) -> str:
    """LangEdit, read in both ways and as released, beside every other method."""
    lines = [
        "The paper reports up to +2.20 points of efficacy over the best baseline, on models of 6 to 8 billion "
        "parameters. Here, at the end of the sequence:",
        "",
        f"| points of efficacy beside | facts in seeds | {' | '.join(f'`{method}` minus it' for method in READINGS)} |",
        f"|---|---|{'---|' * len(READINGS)}",
    ]
    found = table(f"comparisons_{data}").query("metric == 'efficacy_tf'")
    told = {(r["method"], r["against"]): f"{points(r['difference'])} {verdict(r)}".strip() for _, r in found.iterrows()}
    for other in dict.fromkeys(found["against"]):
        if other == READINGS[0]:  # beside the other readings: the negative of what their rows say
            continue
        cells = [told.get((method, other), "–") for method in READINGS]
        sizes = dict.fromkeys(f"{r['n']} in {r['seeds']}" for _, r in found[found["against"] == other].iterrows())
        lines.append(f"| {other} | {' and '.join(sizes)} | {' | '.join(cells)} |")
    told = (
        "Better, worse: shown after Holm's correction; in plain type under one seed only, so for one order of these "
        "facts. The others are not shown to differ."
    )
    return "\n".join([*lines, "", told])


BLOCKS = {
    "in short": in_short,
    "headline": headline,
    "repeated runs": repeated,
    "what was run": ran,
    "findings": findings,
    "open questions": open_questions,
}


def filled(text: str) -> str:
    """The README with every block made anew."""
    for name, make in BLOCKS.items():
        begin = f"<!-- {name}:begin (made by scripts/readme.py from the tables of the reports) -->"
        start, end = text.index(begin) + len(begin), text.index(f"<!-- {name}:end -->")
        text = f"{text[:start]}\n{make()}\n{text[end:]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where README.md shows other numbers")
    options = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    made = filled(text)
    if options.check:
        sys.exit(None if made == text else "README.md does not show the committed tables; run scripts/readme.py")
    path.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
