"""Choose each method's main hyper-parameter on the tuning splits, with the same budget for every method.

Run: python scripts/tune.py [--model NAME] [--batch N]. Cells are those of the study on split `tune`, whose subjects no
report edits; finished ones are loaded, so a stopped search goes on. Writes reports/tuning/tables/tuning.csv. The score
is the mean over data sets of (efficacy + generality + unchanged neighbours) / 3 at the end of the sequence.

With --long: the same budget once more on longer sequences, for all methods that have a λ, a λ₀ or a rate: 144 edits of
atlas, other facts in each of twelve batches, six languages in turn, one seed (mzsRE has too few facts of that split in
all six). Twelve edits reward what is written; here later batches destroy what they destroy. λ is held where the reports
hold it. Writes tuning_long.csv and, paired over facts, tuning_long_differences.csv, and keeps the cells' records in
reports/tuning/records, so that what is there is not computed again. The best setting is chosen on the facts it is
compared on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from langedit_core.languages import CORE
from langedit_core.models import load_model
from langedit_core.profiles import hyperparameters
from langedit_core.results import Cell, CellResult, keep_record
from langedit_core.stats import judged, paired, per_fact, summarise
from langedit_core.study import run_cells
from langedit_core.tables import format_ci, markdown_table, save_table

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
SHORT = dict(langs=("en", "de", "zh"), also=dict(hold_ridge=False))  # so that λ is relative to the same for all
LONG = dict(langs=CORE, batch=12, rounds=2, track=5)
RIDGES = (0.03, 0.1, 0.3, 1.0)
READINGS = ("langedit", "langedit-literal", "langedit-released")
LONG_GRID: dict[str, tuple[dict, ...]] = {  # the reports' setting first, which the others are compared with
    "memit": tuple(dict(covariance_weight=w) for w in (1000, 3000, 10000, 30000)),
    **{method: tuple(dict(ridge=r) for r in RIDGES) for method in ("alphaedit", *READINGS, "evoedit")},
    "ft": tuple(dict(finetune=dict(rate=r)) for r in (0.005, 0.001, 0.002, 0.01)),
}
SYMBOLS = {"ridge": "λ", "covariance_weight": "λ₀"}


def cells(
    model: str, grid: dict[str, tuple[dict, ...]], datasets: Sequence[str], also: dict | None = None, **design
) -> list[tuple[str, dict, Cell]]:
    return [
        (method, changes, Cell(
            model=model, data=data, method=method, split="tune", corpus_limit=150, **design,
            settings=hyperparameters(model, method, **(also or {}), **changes),
        ))
        for method, settings in grid.items()
        for changes in settings
        for data in datasets
    ]  # fmt: skip


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row per setting: the three parts of the score, their mean, and which setting of a method is the best."""
    keys = ["method", "setting"]
    parts = found.groupby([*keys, "metric"], sort=False)["value"].mean().unstack("metric")[list(SCORED)]
    table = parts.assign(score=parts.mean(axis=1), n=found.groupby(keys, sort=False)["facts"].first()).reset_index()
    best = table.groupby("method")["score"].transform("max")
    return table.assign(chosen=(table["score"] == best).map({True: "yes", False: ""}))


def tune_long(model: str, methods: Sequence[str]) -> None:
    """Compute what is missing of `methods`, and write the tables of these."""
    records = ROOT / "reports" / "tuning" / "records"
    wanted = cells(model, {method: LONG_GRID[method] for method in methods}, ["atlas"], **LONG)
    results = run_cells([cell for *_, cell in wanted], load_model(model), ROOT / "results", records=records)
    for *_, cell in wanted:
        keep_record(cell, ROOT / "results", records)
    found = {(method, label(changes)): result for (method, changes, _), result in zip(wanted, results, strict=True)}
    for table, name in ((long_table(found), "tuning_long"), (long_differences(found), "tuning_long_differences")):
        save_table(table, ROOT / "reports" / "tuning" / "tables", name)
        print(markdown_table(table))


def label(changes: dict) -> str:
    return ", ".join(f"{SYMBOLS.get(name, name)} {value:g}" for name, value in _flat(changes))


def long_table(found: dict[tuple[str, str], CellResult]) -> pd.DataFrame:
    """One row per method and setting: efficacy right after and at the end, the rest of the score, which is best."""
    rows = []
    for (method, setting), result in found.items():
        told = summarise(result.rows[result.rows["metric"].isin(SCORED)].assign(method=method), ["method"])
        of = told[told["lang"] == "all"].set_index(["metric", "when"])
        ends = {metric: of.loc[(metric, "final")] for metric in SCORED}
        soon = of.loc[("efficacy_tf", "immediate")]
        rows.append(
            {"method": method, "setting": setting}
            | {"efficacy, right after": format_ci(*soon[["value", "low", "high"]])}
            | {f"{metric}, at the end": format_ci(*end[["value", "low", "high"]]) for metric, end in ends.items()}
            | {"score": sum(end["value"] for end in ends.values()) / len(ends), "n": int(soon["n"])}
        )
    table = pd.DataFrame(rows)
    best = table.groupby("method")["score"].transform("max")
    return table.assign(best=(table["score"] == best).map({True: "yes", False: ""}))


def long_differences(found: dict[tuple[str, str], CellResult]) -> pd.DataFrame:
    """Efficacy at the end, a − b paired over facts: each setting beside the first of its method, each reading of
    LangEdit beside AlphaEdit under each λ, and every method beside AlphaEdit, each at its best; without AlphaEdit the
    first alone. All are one family for Holm's correction."""
    ends = {}
    for key, result in found.items():
        rows = result.rows[(result.rows["metric"] == "efficacy_tf") & (result.rows["when"] == "final")]
        ends[key] = per_fact(rows, ["fact"])
    table = long_table(found)
    best = {r["method"]: (r["method"], r["setting"]) for r in table[table["best"] == "yes"].to_dict("records")}
    first = {method: next(key for key in found if key[0] == method) for method in best}
    pairs = [("another setting", key, first[key[0]]) for key in found if key != first[key[0]]]
    if "alphaedit" in best:
        pairs += [("the same λ", key, ("alphaedit", key[1])) for key in found if key[0] in READINGS]
        theirs = [(key, best["alphaedit"]) for method, key in best.items() if method != "alphaedit"]
        asked = {(a, b) for _, a, b in pairs}  # equal ones are a pair of the same λ already
        pairs += [("each its best setting, chosen on these facts", *pair) for pair in theirs if pair not in asked]
    rows = []
    for what, a, b in pairs:
        compared = paired(ends[a], ends[b])
        d = compared.difference
        rows.append(
            dict(differ=what, a=", ".join(a), b=", ".join(b), metric="efficacy_tf", difference=d.value)
            | dict(low=d.low, high=d.high, n=d.n, p=compared.p)
        )
    return judged(pd.DataFrame(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--data", nargs="+", default=["atlas", "mzsre"])
    parser.add_argument(
        "--methods", nargs="+", choices=list(GRID | LONG_GRID), help="all that have a grid, if not given"
    )
    parser.add_argument("--batch", type=int, default=4, help="facts per language")
    parser.add_argument("--long", action="store_true", help="once more on 144 edits of atlas")
    options = parser.parse_args()
    grids = LONG_GRID if options.long else GRID
    if unknown := set(options.methods or ()) - set(grids):
        parser.error(f"no grid {'with' if options.long else 'without'} --long has {', '.join(sorted(unknown))}")
    methods = options.methods or list(grids)
    if options.long:
        if (options.data, options.batch) != (parser.get_default("data"), parser.get_default("batch")):
            parser.error("--long has its data and batches; leave --data and --batch out")
        tune_long(options.model, methods)
        return
    grid = {method: GRID[method] for method in methods}
    wanted = cells(options.model, grid, options.data, batch=options.batch, **SHORT)
    results = run_cells([cell for *_, cell in wanted], load_model(options.model), ROOT / "results")
    rows = []
    for (method, changes, _), result in zip(wanted, results, strict=True):
        final = result.rows[(result.rows["when"] == "final") & result.rows["metric"].isin(SCORED)]
        means = final.groupby(["metric", "fact", "lang"])["value"].mean().groupby("metric").mean()
        setting = ", ".join(f"{k} {v}" for k, v in _flat(changes))
        n = final["fact"].nunique() * len(options.data)
        rows += [dict(method=method, setting=setting, metric=m, value=v, facts=n) for m, v in means.items()]
    table = summary(pd.DataFrame(rows))
    save_table(table, ROOT / "reports" / "tuning" / "tables", "tuning")
    print(markdown_table(table))


def _flat(changes: dict) -> list[tuple[str, object]]:
    return [item for k, v in changes.items() for item in (_flat(v) if isinstance(v, dict) else [(k, v)])]


if __name__ == "__main__":
    main()
