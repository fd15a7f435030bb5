"""Null spaces compared: covariance or full keys, where the spectrum is cut, static or dynamic, paper or released code.

All cells edit the same facts in the same order and differ in one thing each; differences are paired over facts, and
p-values are corrected over everything that is compared (Holm).
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd

from langedit_core import factors, mixing
from langedit_core.analysis import Study, open_study
from langedit_core.drift import METRICS as DRIFT
from langedit_core.nullspace import Threshold
from langedit_core.profiles import hyperparameters, load_profile
from langedit_core.results import Cell
from langedit_core.stats import SHOWN, judged, paired, per_fact, summarise
from langedit_core.tables import format_ci

BASE = "langedit"
FULL_KEYS = "langedit-full"
STATIC = "alphaedit, no past keys"
RELEASED = "langedit-released"
LITERAL = "langedit-literal"
MEASURES = {
    ("efficacy_tf", "immediate"): "efficacy, right after",
    ("efficacy_tf", "final"): "efficacy, at the end",
    ("specificity_same", "final"): "specificity",
    ("drift_kl", "final"): "drift KL",
}
PAIRS = {  # question -> a, b of each difference a − b; thresholds are found in the study
    "covariance or full keys": ((FULL_KEYS, BASE), ("evoedit", FULL_KEYS)),
    "static or dynamic": ((BASE, STATIC), (FULL_KEYS, STATIC), ("alphaedit", STATIC), (BASE, "alphaedit")),
    "formula or released code": ((RELEASED, BASE), (RELEASED, "alphaedit"), (LITERAL, BASE), (LITERAL, "alphaedit")),
}
THRESHOLDS = "threshold"
HELD = "λ held"
FOLLOWING = "λ following"
HELD_BESIDE = "λ held, beside others"
LARGER = "another λ"
LARGER_BESIDE = "another λ, beside others"
RIDGES = {"ridge": (HELD, HELD_BESIDE), "larger_ridge": (LARGER, LARGER_BESIDE)}  # cell group -> what its runs answer
WIDTHS = {"Gemma 3 270M": 2048, "Llama 3 8B": 14_336, "Llama 3 70B": 28_672}  # d_ff
FLOAT64, FLOAT32 = 8, 4  # bytes: a Gram matrix is summed in one, keys are kept in the other


def told(threshold: Threshold) -> str:
    """A threshold as people write it: "50 % free", "< 0.02"."""
    if threshold.kind == "fraction":
        return f"{100 * threshold.value:g} % free"
    if threshold.kind == "energy":
        return f"{100 * threshold.value:g} % of the energy"
    return f"< {threshold.value:g}" + (" × mean" if threshold.kind == "relative" else "")


def variant(cell: Cell, both: Collection[str] = (), ridges: Collection[str] = ()) -> str:
    """The method, and what the cell has otherwise than that method usually has on its model; of λ as asked.

    Args:
        cell: One of a study.
        both: Methods of which the study has cells whose λ is held and cells whose λ is not; there it is told which.
        ridges: Methods of which the study has cells with different λ; there another than the usual one is told.
    """
    settings = cell.settings
    usual, name = hyperparameters(cell.model, cell.method, layers=settings.layers), cell.method
    if usual.remember and not settings.remember:
        name += ", no past keys"
    if settings.threshold != usual.threshold:
        name += f", {told(settings.threshold)}"
    if settings.hold_ridge != usual.hold_ridge and cell.method in both:
        name += f", {HELD if settings.hold_ridge else FOLLOWING}"
    if cell.method in ridges and settings.ridge != usual.ridge:
        name += f", λ {settings.ridge:g}"
    return name


def names_of(study: Study) -> list[str]:
    """`variant` of every result."""
    cells = [r.cell for r in study.results]
    held, plain = ({c.method for c in cells if c.settings.hold_ridge == kind} for kind in (True, False))
    found = {(c.method, c.settings.ridge) for c in cells}
    ridges = {method for method, times in Counter(method for method, _ in found).items() if times > 1}
    return [variant(cell, held & plain, ridges) for cell in cells]


def by_variant(study: Study) -> Study:
    """The same study with every cell under its variant's name, so that all of `Study` works variant by variant.

    Raises:
        ValueError: Two cells have one name and would be taken for one.
    """
    renamed, seen = [], set()
    for result, name in zip(study.results, names_of(study), strict=True):
        cell = result.cell.model_copy(update=dict(method=name))
        if (key := (cell.data, cell.method, cell.seed)) in seen:
            raise ValueError(
                f"two cells are {cell.method!r} on {cell.data}, seed {cell.seed}; compare cells of one design"
            )
        seen.add(key)
        result = copy.copy(result)
        result.cell = cell
        renamed.append(result)
    return Study(renamed, study.missing)


def ridge_runs(
    profile: str, group: str, results: str | Path, records: str | Path, model: str
) -> list[tuple[Study, str]]:
    """Runs with λ held or with another λ, beside the ones they differ from: studies with their data sets.

    Args:
        profile: Profile name or YAML file; one without the cell group has none.
        group: One of `RIDGES`.
        results: Folder of cells.
        records: Folder of records.
        model: Another model than the profile's; "" for that one.
    """
    if group not in load_profile(profile).grids:
        return []
    variants = by_variant(open_study(profile, group, results, records=records, model_name=model or None))
    return [
        (variants, data)
        for data in variants.datasets
        if any(question in (HELD, LARGER) for question, *_ in pairs(variants, data))
    ]


def rows_of(variants: Study, data: str) -> pd.DataFrame:
    """Everything measured on one data set, a row per probe, with the variant as `method`."""
    parts = [r.rows.assign(method=r.cell.method, seed=r.cell.seed) for r in variants.results if r.cell.data == data]
    return pd.concat(parts, ignore_index=True)


def thresholds(variants: Study, data: str) -> dict[str, str]:
    """`langedit` and its variants that differ in the threshold alone -> that threshold; from few free directions up."""
    free, cut = {}, {}
    for r in variants.results:
        if r.cell.data == data and _is_base(r.cell.method):
            free[r.cell.method] = r.batches.loc[r.batches["step"] == 0, "rank"].mean()
            cut[r.cell.method] = told(r.cell.settings.threshold)
    return {name: cut[name] for name in sorted(free, key=free.get)}


def others(variants: Study, data: str) -> list[str]:
    """Variants at the usual threshold: what differs is the space and what is remembered."""
    return [name for name in variants.methods_of(data) if name == BASE or not _is_base(name)]


def _is_base(name: str) -> bool:
    """Whether a variant is `langedit`, or differs from it in the threshold."""
    return name == BASE or (name.startswith(f"{BASE}, ") and not _of_ridge(name))


def _of_ridge(name: str) -> bool:
    """Whether a variant differs from its method in λ."""
    return ", λ " in name


def usual_ridge(name: str) -> str:
    """The variant with the method's usual λ that one with another λ is compared with."""
    return name.split(", λ ")[0]


def pairs(variants: Study, data: str) -> Iterator[tuple[str, str, str]]:
    """What is compared: question, a, b, of the variants that are there."""
    there, wanted, seen = set(variants.methods_of(data)), {}, set()
    of_ridge = [(name, usual_ridge(name)) for name in variants.methods_of(data) if _of_ridge(name)]
    for question, beside in RIDGES.values():
        these = [pair for pair in of_ridge if pair[0].endswith((HELD, FOLLOWING)) == (question == HELD)]
        wanted[question] = [pair[::-1] if pair[0].endswith(FOLLOWING) else pair for pair in these]
        changed = [name for name, _ in wanted[question]]
        rivals = ["alphaedit", BASE, *(name for name in changed if usual_ridge(name) == "alphaedit")]
        wanted[beside] = [
            (name, other)
            for other in rivals
            for name in changed
            if usual_ridge(name) != "alphaedit" and other != usual_ridge(name)
        ]
    wanted |= PAIRS | {THRESHOLDS: [(name, BASE) for name in thresholds(variants, data) if name != BASE]}
    for question, of in wanted.items():
        for pair in of:
            if {*pair} <= there and pair not in seen:  # each pair once: it is one comparison of one family
                seen.add(pair)
                yield question, *pair


def comparisons(variants: Study, data: str, seed: int = 0) -> pd.DataFrame:
    """Paired differences a − b over facts (and seeds) of everything compared: one family for Holm's correction.

    Drift has intervals and no verdicts, as in `Study.tests`.

    Returns:
        Columns question, a, b, metric, when, difference, low, high, n, p, p_holm, verdict (about a, see
        `stats.judged`). Intervals are those of one comparison alone.
    """
    rows = rows_of(variants, data)
    keys = ["method", "metric", "when"]
    values = per_fact(rows[rows["metric"].isin({m for m, _ in MEASURES})], [*keys, "seed", "fact"])
    values = {key: part.droplevel(keys) for key, part in values.groupby(level=keys)}
    out = []
    for question, a, b in pairs(variants, data):
        for metric, when in MEASURES:
            found = paired(*(values[name, metric, when] for name in (a, b)), seed)
            d = found.difference
            out.append(
                dict(question=question, a=a, b=b, metric=metric, when=when, difference=d.value, low=d.low, high=d.high)
                | dict(n=d.n, p=found.p)
            )
    table = pd.DataFrame(out, columns=["question", "a", "b", "metric", "when", "difference", "low", "high", "n", "p"])
    return judged(table, DRIFT)


def readable(found: pd.DataFrame, question: str) -> pd.DataFrame:
    """`comparisons` of one question as they are read: a row per pair, a column per measure, verdicts where shown."""
    part = found[found["question"] == question]
    cells = [
        "+" * (r.difference > 0) + format_ci(r.difference, r.low, r.high) + f" {r.verdict}" * (r.verdict in SHOWN)
        for r in part.itertuples()
    ]
    measure = [MEASURES[key] for key in zip(part["metric"], part["when"], strict=True)]
    part = part.assign(pair=part["a"] + " − " + part["b"], cell=cells, measure=measure)
    table = part.pivot(index="pair", columns="measure", values="cell")
    table = table.reindex(index=part["pair"].unique(), columns=[m for m in MEASURES.values() if m in set(measure)])
    facts = part[part["metric"] == "efficacy_tf"].groupby("pair")["n"].max()
    return table.join(facts).rename_axis("difference").rename_axis(None, axis=1).reset_index()


def leaks(study: Study, results: str | Path, kept: str | Path) -> pd.DataFrame:
    """`factors.leaks` of every cell that has its factors here, or a kept table: columns data, method (the variant),
    seed and those of a leak."""
    parts = [pd.DataFrame(columns=["data", "method", "seed", *factors.LEAKS])]
    for result, name in zip(study.results, names_of(study), strict=True):
        try:
            found = factors.leaks(result, Path(results), Path(kept))
        except FileNotFoundError:
            continue
        parts.append(found.assign(data=result.cell.data, method=name, seed=result.cell.seed))
    found = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(found, ignore_index=True)[["data", "method", "seed", *factors.LEAKS]]


def mixes(study: Study, results: str | Path, kept: str | Path) -> dict[str, pd.DataFrame]:
    """Per data set `mixing.mixes` on the keys of its first `langedit` cell; only those whose keys are at hand."""
    found = {}
    for result, name in zip(study.results, names_of(study), strict=True):
        if name == BASE and result.cell.data not in found:
            with contextlib.suppress(FileNotFoundError):
                found[result.cell.data] = mixing.mixes(result, Path(results), Path(kept))
    return found


def by_batch(variants: Study, data: str, leaked: pd.DataFrame) -> pd.DataFrame:
    """Per variant and batch, means over layers and seeds: method, step, edits, rank, capacity, written, earliest, all,
    and leak and moved where they are known."""
    of = leaked[leaked["data"] == data].groupby(["method", "step"])[["leak", "moved"]].mean().reset_index()
    table = variants.growth(data)[["method", "step", "rank", "capacity", "written"]]
    return table.merge(variants.kept(data), on=["method", "step"]).merge(of, on=["method", "step"], how="left")


def sweep(variants: Study, data: str) -> pd.DataFrame:
    """One row per threshold of `langedit`, from few free directions to many.

    Returns:
        Columns method, threshold, free (directions before the first batch, mean over layers), free_end, capacity and
        written (mean over batches and layers), and per measure of `MEASURES` its `metric when`, `… low`, `… high`, n.
    """
    rows, names = rows_of(variants, data), thresholds(variants, data)
    estimates = summarise(rows[rows["method"].isin(names)], by=["method"]).query("lang == 'all'")
    estimates = estimates.set_index(["method", "metric", "when"])
    out = []
    for name, cut in names.items():
        of = [r for r in variants.results if (r.cell.data, r.cell.method) == (data, name)]
        batches = pd.concat([r.batches for r in of])
        ends = [batches.loc[batches["step"] == step, "rank"].mean() for step in (0, batches["step"].max())]
        row = dict(method=name, threshold=cut, free=ends[0], free_end=ends[1])
        row |= dict(capacity=batches["capacity"].mean(), written=batches["written"].mean())
        for metric, when in MEASURES:
            e = estimates.loc[(name, metric, when)]
            row |= {
                f"{metric} {when}": e["value"],
                f"{metric} {when} low": e["low"],
                f"{metric} {when} high": e["high"],
            }
        out.append(row | dict(n=int(estimates.loc[(name, "efficacy_tf", "final"), "n"])))
    return pd.DataFrame(out)


def sweep_table(found: pd.DataFrame) -> pd.DataFrame:
    """`sweep` as it is read."""
    table = found[["threshold"]].assign(
        **{"free directions": [f"{r.free:.0f} → {r.free_end:.0f}" for r in found.itertuples()]},
        capacity=found["capacity"],
        written=found["written"],
    )
    for (metric, when), label in MEASURES.items():
        columns = [f"{metric} {when}", f"{metric} {when} low", f"{metric} {when} high"]
        table[label] = [format_ci(*row) for row in found[columns].itertuples(index=False)]
    return table.assign(n=found["n"])


def spaces_table(variants: Study, data: str, leaked: pd.DataFrame) -> pd.DataFrame:
    """One row per variant at the usual threshold: directions, what is left of keys, what is written, what leaks."""
    rows = []
    for name in others(variants, data):
        batches = pd.concat([r.batches for r in variants.results if (r.cell.data, r.cell.method) == (data, name)])
        ends = [batches[batches["step"] == step] for step in (0, batches["step"].max())]
        rank, capacity = ([end[column].mean() for end in ends] for column in ("rank", "capacity"))
        row = {"method": name, "free directions": "{:.0f} → {:.0f}".format(*rank)}
        row |= {"capacity": "{:.2f} → {:.2f}".format(*capacity), "written": batches["written"].mean()}
        part = leaked[(leaked["data"] == data) & (leaked["method"] == name)]
        row |= {
            "leak, median": part["leak"].median(),
            "leak, largest": part["leak"].max(),
            "moved": part["moved"].median(),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def memory(counts: tuple[int, ...] = (200, 10_000, 100_000)) -> pd.DataFrame:
    """Bytes one layer keeps: a covariance, 8 d², beside n full keys, 4 n d; in megabytes, and where they are equal."""
    rows = []
    for name, d in WIDTHS.items():
        row = {"model": name, "d_ff": d, "covariance, MB": FLOAT64 * d**2 / 1e6}
        row |= {f"{n:,} keys, MB": FLOAT32 * n * d / 1e6 for n in counts}
        rows.append(row | {"equal at, keys": FLOAT64 * d // FLOAT32})
    return pd.DataFrame(rows)
