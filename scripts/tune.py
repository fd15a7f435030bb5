"""Choose each method's main hyper-parameter on the tuning splits, with the same budget for every method.

Run: python scripts/tune.py [--model NAME] [--batch N]. Cells are those of the study on split `tune`, whose subjects no
report edits; finished ones are loaded, so a stopped search goes on. Writes reports/tuning/tables/tuning.csv. The score
is the mean over data sets of (efficacy + generality + unchanged neighbours) / 3 at the end of the sequence.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from langedit_core.models import load_model
from langedit_core.profiles import hyperparameters
from langedit_core.study import Cell, run_cells
from langedit_core.tables import markdown_table, save_table

ROOT = Path(__file__).resolve().parents[1]
GRID: dict[str, tuple[dict, ...]] = {
    "memit": tuple(dict(covariance_weight=w) for w in (100, 1000, 3000, 10000)),
    "alphaedit": tuple(dict(ridge=r) for r in (0.03, 0.1, 0.3, 1.0)),
    "langedit": tuple(dict(ridge=r) for r in (0.03, 0.1, 0.3, 1.0)),
    "evoedit": tuple(dict(ridge=r) for r in (0.03, 0.1, 0.3, 1.0)),
    "rome": tuple(dict(layers=(layer,)) for layer in (3, 4, 5, 6)),
    "ft": tuple(dict(finetune=dict(rate=r)) for r in (0.005, 0.01, 0.02, 0.05)),
}
"""Four settings a method; rect, prune and memit-seq take MEMIT's choice, the sphere variants that of their base."""
SCORED = ("efficacy_tf", "generality_tf", "specificity_same")


def cells(model: str, methods: list[str], datasets: list[str], batch: int) -> list[tuple[str, dict, Cell]]:
    return [
        (method, changes, Cell(
            model=model, data=data, method=method, settings=hyperparameters(model, method, **changes),
            langs=("en", "de", "zh"), batch=batch, split="tune", corpus_limit=150,
        ))
        for method in methods
        for changes in GRID[method]
        for data in datasets
    ]  # fmt: skip


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: the three parts of the score, their mean, and which setting of a method is the best."""
    keys = ["method", "setting"]
    parts = found.groupby([*keys, "metric"], sort=False)["value"].mean().unstack("metric")[list(SCORED)]
    table = parts.assign(score=parts.mean(axis=1), n=found.groupby(keys, sort=False)["facts"].first()).reset_index()
    best = table.groupby("method")["score"].transform("max")
    return table.assign(chosen=(table["score"] == best).map({True: "yes", False: ""}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--data", nargs="+", default=["atlas", "mzsre"])
    parser.add_argument("--methods", nargs="+", choices=list(GRID), default=list(GRID))
    parser.add_argument("--batch", type=int, default=4, help="facts per language")
    options = parser.parse_args()
    wanted = cells(options.model, options.methods, options.data, options.batch)
    results = run_cells([cell for *_, cell in wanted], load_model(options.model), ROOT / "results")
    rows = []
    for (method, changes, _), result in zip(wanted, results, strict=True):
        final = result.rows[(result.rows["when"] == "final") & result.rows["metric"].isin(SCORED)]
        per_fact = final.groupby(["metric", "fact", "lang"])["value"].mean().groupby("metric").mean()
        setting = ", ".join(f"{k} {v}" for k, v in _flat(changes))
        n = final["fact"].nunique() * len(options.data)
        rows += [dict(method=method, setting=setting, metric=m, value=v, facts=n) for m, v in per_fact.items()]
    table = summary(pd.DataFrame(rows))
    save_table(table, ROOT / "reports" / "tuning" / "tables", "tuning")
    print(markdown_table(table))


def _flat(changes: dict) -> list[tuple[str, object]]:
    return [item for k, v in changes.items() for item in (_flat(v) if isinstance(v, dict) else [(k, v)])]


if __name__ == "__main__":
    main()
