"""Puts the headline table of a profile's reports into README.md, so that its numbers are those of the report.

Run after `make study PROFILE=standard`: python scripts/readme.py [PROFILE]; `--check` only says whether the two agree.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- headline:begin (made by scripts/readme.py from reports/standard/tables) -->", "<!-- headline:end -->"
METRICS = {
    "efficacy_tf": "efficacy",
    "efficacy_em": "efficacy, exact match",
    "generality_tf": "generality",
    "specificity_same": "specificity (unchanged)",
}


def block(profile: str) -> str:
    """The README's tables: what was measured of each method, and how it stands to the paper's claim."""
    tables = ROOT / "reports" / profile / "tables"
    main, design = pd.read_csv(tables / "main.csv"), pd.read_csv(tables / "design.csv")
    main = main[main["lang"] == "all"].set_index(["data", "method", "metric", "when"])
    lines = [
        f"| method | {' | '.join(METRICS.values())} | notebook |",
        f"|---|{'---|' * len(METRICS)}---|",
    ]
    for data, method in dict.fromkeys((d, m) for d, m, *_ in main.index):
        cells = []
        for metric in METRICS:
            now, end = (main.loc[(data, method, metric, when)] for when in ("immediate", "final"))
            cells.append(f"{now['value']:.2f} → {end['value']:.2f} [{end['low']:.2f}, {end['high']:.2f}]")
        link = f"[02](reports/{profile}/02_main_runs.html)"
        lines.append(f"| {method} on {data} | {' | '.join(cells)} | {link} |")
    told = [
        f"{row['data']}: {row['edits per run']} sequential edits per method in {row['languages']}, "
        f"{row['seeds']} seed{'s' if row['seeds'] > 1 else ''}"
        for _, row in design.iterrows()
    ]
    lines += [
        "",
        f"Gemma 3 270M ({'; '.join(told)}): right after each batch → after the whole sequence, with the 95 % interval "
        "over facts of the latter.",
        "",
        "| the paper, 7–8B models | here, efficacy at the end, paired over facts |",
        "|---|---|",
    ]
    for data in main.index.get_level_values("data").unique():
        path = tables / f"comparisons_{data}.csv"
        if not path.is_file():  # langedit was not run on it
            continue
        rows = pd.read_csv(path)
        rows = rows[rows["metric"] == "efficacy_tf"]
        told = "; ".join(f"langedit − {r.iloc[1]}: {r['difference']}, {r['verdict']}" for _, r in rows.iterrows())
        n = int(rows["n"].max())
        lines.append(
            f"| LangEdit up to +2.20 points efficacy over the best baseline | {data} (n = {n} facts): {told} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("profile", nargs="?", default="standard")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    made = f"{text[:start]}\n{block(options.profile)}\n{text[end:]}"
    if options.check:
        sys.exit(None if made == text else "README.md does not show the committed tables; run scripts/readme.py")
    path.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
