"""Edits that have the key of another one, which no method that edits at keys can tell apart.

A key is read at the subject's last token of a causal model, so nothing behind the subject is in it: "Country: Peru.
Continent:" and "Country: Peru. Capital:" have one key, to the bit. One key has one value; the later of two edits
replaces the earlier one, or, where past keys are protected, is not written.
"""

from __future__ import annotations

import contextlib

import pandas as pd

from langedit_core.analysis import Study
from langedit_core.datafiles import NotAvailable
from langedit_core.records import same_keys
from langedit_core.stats import compare_methods, per_fact
from langedit_core.study import load_data
from langedit_core.tables import format_ci

REFERENCE = "alphaedit"
OWN, SHARED = "own", "shared"
METRIC = "efficacy_tf"


def keyed(study: Study, data: str) -> pd.DataFrame:
    """Efficacy of every edit on a data set, with `key`: its own, or shared with another edit of the same run.

    Args:
        study: Finished runs.
        data: A data set that is at hand.

    Returns:
        Columns fact, lang, method, seed, metric, when, value, key.

    Raises:
        NotAvailable: The data set is not here.
    """
    parts = []
    for result in (r for r in study.results if r.cell.data == data):
        cell = result.cell
        rows = result.rows[(result.rows["metric"] == METRIC) & result.rows["when"].isin(["immediate", "final"])]
        facts = load_data(data, cell.langs).facts
        edits = rows[["fact", "lang"]].drop_duplicates().itertuples(index=False)
        shared = {(f.id, f.lang) for group in same_keys(facts[e.fact][e.lang] for e in edits) for f in group}
        key = [SHARED if edit in shared else OWN for edit in zip(rows["fact"], rows["lang"], strict=True)]
        parts.append(rows.assign(method=cell.method, seed=cell.seed, key=key))
    return pd.concat(parts, ignore_index=True)


def of_study(study: Study) -> dict[str, pd.DataFrame]:
    """`told_apart` of every data set in which edits share keys; one that is not here is passed over."""
    found = {}
    for data in study.datasets:
        with contextlib.suppress(NotAvailable):
            if len(table := told_apart(keyed(study, data))):
                found[data] = table
    return found


def told_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Every method beside `REFERENCE` at the end, on edits with a key of their own and on the others; one family.

    Args:
        rows: `keyed`.

    Returns:
        Columns key, method, facts, immediate and final (means), difference (method − `REFERENCE`), low, high, p_holm,
        verdict; those of the difference are missing where there is no `REFERENCE`. Empty where no edit shares its key.
    """
    if SHARED not in set(rows["key"]):
        return pd.DataFrame(columns=["key", "method", "facts", "immediate", "final"])
    unit = ["key", "method", "when", "seed", "fact"]
    means = per_fact(rows, unit).groupby(["key", "method", "when"]).mean().unstack("when")
    facts = rows.groupby(["key", "method"])["fact"].nunique().rename("facts")
    table = means.join(facts)[["facts", "immediate", "final"]]
    if REFERENCE in set(rows["method"]):
        final = rows[rows["when"] == "final"]
        seeds = set(final.loc[final["method"] == REFERENCE, "seed"])
        found = compare_methods(final[final["seed"].isin(seeds)], REFERENCE, by=["key"]).rename(columns={"b": "method"})
        found = found.assign(difference=-found["difference"], low=-found["high"], high=-found["low"])
        found["verdict"] = found["verdict"].replace({"better": "worse", "worse": "better"})
        table = table.join(found.set_index(["key", "method"])[["difference", "low", "high", "p_holm", "verdict"]])
    order = {name: i for i, name in enumerate([OWN, SHARED, *rows["method"].unique()])}
    return table.reset_index().sort_values(["key", "method"], key=lambda c: c.map(order), ignore_index=True)


def readable(found: pd.DataFrame) -> pd.DataFrame:
    """`told_apart` as it is read: a row per method, both kinds of edits side by side."""
    columns: dict[str, dict[str, str]] = {}
    for key, part in found.groupby("key", sort=False):
        facts = f"{part['facts'].max():,} edits"
        heading = f"a key of their own, {facts}" if key == OWN else f"a key that others share, {facts}"
        columns[heading] = {r.method: f"{r.immediate:.2f} → {r.final:.2f}" for r in part.itertuples()}
        if "difference" in part:
            columns[f"{heading}: minus {REFERENCE}"] = {
                r.method: format_ci(r.difference, r.low, r.high, signed=True)
                + f" {r.verdict}" * (r.verdict in ("better", "worse"))
                for r in part.itertuples()
                if r.method != REFERENCE
            }
    table = pd.DataFrame(columns, index=pd.Index(found["method"].unique(), name="method"))
    return table.astype(object).where(table.notna(), "–").reset_index()
