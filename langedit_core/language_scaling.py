"""More languages, or only more edits? The same facts, edited first in every run, after 2, 4 and 6 languages.

Runs have the same facts in the same positions and differ in the languages of later batches alone: en de en de en de
against en de nl es en de against en de nl es fr zh. What the first batches lose within the first run is the price of
more edits, the difference between runs at the same number of edits is the price of more languages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from langedit_core.interference import followed
from langedit_core.stats import interval, judged, paired, per_fact, summarise
from langedit_core.tables import format_ci
from langedit_core.xtreme_metrics import differences

if TYPE_CHECKING:
    from langedit_core.analysis import Study
    from langedit_core.results import CellResult

F1 = "xtreme_f1"
METRICS = {"efficacy_tf": "efficacy", "generality_tf": "generality", "specificity_same": "specificity"}
PANELS = METRICS | {F1: "XTREME F1"}


def languages_of(result: CellResult) -> int:
    return len(set(result.cell.langs))


def _runs(study: Study, data: str) -> list[CellResult]:
    """Runs of one data set, fewest languages first."""
    return sorted((r for r in study.results if r.cell.data == data), key=languages_of)


def shared(study: Study, data: str) -> dict[int, set[tuple[int, str, str]]]:
    """Seed -> (position, fact, language) edited in every run: the facts that are compared.

    A position is a batch of the sequence. Facts that only some runs edited there are not among them, and neither are
    seeds under which some run is missing, unless that is so of all.
    """
    by_seed: dict[int, list[set]] = {}
    for r in _runs(study, data):
        names = [r.cell.langs[t % len(r.cell.langs)] for t in range(r.cell.batches)]
        edited = {(t, fact, names[t]) for t, facts in enumerate(r.provenance["facts"]) for fact in facts}
        by_seed.setdefault(r.cell.seed, []).append(edited)
    most = max(map(len, by_seed.values()), default=0)
    return {seed: set.intersection(*found) for seed, found in by_seed.items() if len(found) == most}


def rows(study: Study, data: str) -> pd.DataFrame:
    """Rows of the shared facts only, with method, seed, languages and position."""
    common, parts = shared(study, data), []
    for r in (r for r in _runs(study, data) if r.cell.seed in common):
        at = {(fact, lang): position for position, fact, lang in common[r.cell.seed]}
        found = r.rows[r.rows["metric"].isin(METRICS)]
        position = [at.get(pair) for pair in zip(found["fact"], found["lang"], strict=True)]
        found = found.assign(position=position, method=r.cell.method, seed=r.cell.seed, languages=languages_of(r))
        parts.append(found.dropna(subset=["position"]))
    return pd.concat(parts, ignore_index=True)


def by_languages(study: Study, data: str) -> pd.DataFrame:
    """method, languages, metric, when, value, n, low, high of the shared facts, in all their languages together."""
    found = summarise(rows(study, data), by=["method", "languages"])
    return found[found["lang"] == "all"].drop(columns="lang").reset_index(drop=True)


def design(study: Study, data: str) -> pd.DataFrame:
    """What was run: a row per sequence of languages, with the edits and the facts compared."""
    found = rows(study, data)
    compared = found[found["metric"] == "efficacy_tf"].drop_duplicates(["seed", "fact", "lang"])
    out = {}
    for r in _runs(study, data):
        c = r.cell
        names = [c.langs[t % len(c.langs)] for t in range(c.batches)]
        out.setdefault(
            (languages_of(r), " ".join(names)), {"edits": c.edits, "facts per batch": c.batch, "methods": []}
        )["methods"].append(c.method)
    return pd.DataFrame(
        [
            {"languages": n, "batches": names} | {**row, "methods": " ".join(dict.fromkeys(row["methods"]))}
            | {"facts compared": len(compared)}
            for (n, names), row in out.items()
        ]
    )  # fmt: skip


def table(study: Study, data: str) -> pd.DataFrame:
    """A row per method and number of languages: metrics of the shared facts, right after their batch → at the end."""
    found = by_languages(study, data).set_index(["method", "languages", "metric", "when"])
    out = []
    methods = list(dict.fromkeys(found.index.get_level_values("method")))
    pairs = dict.fromkeys((m, n) for m, n, *_ in found.index)
    for method, languages in sorted(pairs, key=lambda pair: methods.index(pair[0])):
        row: dict[str, object] = {"method": method, "languages": languages}
        for metric, heading in METRICS.items():
            if (method, languages, metric, "final") not in found.index:
                continue
            end = found.loc[(method, languages, metric, "final")]
            soon = found.loc[(method, languages, metric, "immediate"), "value"]
            row[heading] = f"{soon:.2f} → {format_ci(end['value'], end['low'], end['high'])}"
            row.setdefault("n", int(end["n"]))
        out.append(row)
    frame = pd.DataFrame(out)
    return frame[[c for c in ("method", "languages", *METRICS.values(), "n") if c in frame]]


def curve(study: Study, data: str) -> pd.DataFrame:
    """Efficacy of the first position's shared facts after every batch, with intervals."""
    first = {seed: {(f, lang) for t, f, lang in found if t == 0} for seed, found in shared(study, data).items()}
    out = []
    for r in (r for r in _runs(study, data) if r.cell.seed in first):
        kept = followed(r.retention.assign(seed=r.cell.seed)).rename(columns={"tested": "lang", "batch": "edited"})
        kept = kept[kept["edited"] == 0]
        known = first[r.cell.seed]
        kept = kept[[pair in known for pair in zip(kept["fact"], kept["lang"], strict=True)]]
        out.append(
            kept.assign(
                method=r.cell.method,
                seed=r.cell.seed,
                languages=languages_of(r),
                edits=(kept["step"] + 1) * r.cell.batch,
            )
        )
    frame = pd.concat(out, ignore_index=True)
    return pd.DataFrame(
        [
            dict(method=m, languages=n, edits=e) | interval(part.groupby(["seed", "fact"])["tf"].mean())._asdict()
            for (m, n, e), part in frame.groupby(["method", "languages", "edits"], sort=False)
        ]
    )


def prices(study: Study, data: str) -> pd.DataFrame:
    """What more edits and what more languages cost, paired over the shared facts.

    `n languages for m`: run with n languages − run with fewest, both at the end, so with as many edits. `more edits`:
    in the run with fewest languages, at the end − right after their own batch; of XTREME F1, which is compared over
    records where the answers were kept, − before any edit. P-values are corrected together (Holm).

    Returns:
        method, metric, effect, difference, low, high, n, p_holm, verdict.
    """
    found, out = rows(study, data), []
    for method, part in found.groupby("method", sort=False):
        counts = sorted(part["languages"].unique())
        for metric in (m for m in METRICS if m in set(part["metric"])):
            values = per_fact(part[part["metric"] == metric], ["languages", "when", "seed", "fact"])
            fewest = values.loc[counts[0]]
            pairs = {"more edits": (fewest.loc["final"], fewest.loc["immediate"])}
            for n in counts[1:]:
                pairs[f"{n} languages for {counts[0]}"] = (values.loc[n].loc["final"], fewest.loc["final"])
            for effect, (a, b) in pairs.items():
                told = paired(a, b)
                d = told.difference
                out.append(
                    dict(
                        method=method,
                        metric=metric,
                        effect=effect,
                        difference=d.value,
                        low=d.low,
                        high=d.high,
                        n=d.n,
                        p=told.p,
                    )
                )
        out += _xtreme_prices(study, data, method)
    return judged(pd.DataFrame(out)).drop(columns="p")


def _xtreme_prices(study: Study, data: str, method: str) -> list[dict]:
    """Rows of `prices` about XTREME F1; the seeds of a comparison are averaged."""
    kept: dict[int, dict[int, CellResult]] = {}
    for r in _runs(study, data):
        if r.cell.method == method and len(r.answers):
            kept.setdefault(languages_of(r), {})[r.cell.seed] = r
    if not kept:
        return []
    counts = sorted(kept)
    fewest = kept[counts[0]]
    pairs = {"more edits": [(r.answers_at("final"), r.answers_at("before")) for r in fewest.values()]}
    for n in counts[1:]:
        both = [(kept[n][seed], fewest[seed]) for seed in fewest if seed in kept[n]]
        if both:
            pairs[f"{n} languages for {counts[0]}"] = [(a.answers_at("final"), b.answers_at("final")) for a, b in both]
    out = []
    for effect, of in pairs.items():
        told = differences(*of)
        (row,) = told[(told["metric"] == F1) & (told["lang"] == "all")].to_dict("records")
        numbers = {name: row[name] for name in ("difference", "low", "high", "n", "p")}
        out.append(dict(method=method, metric=F1, effect=effect) | numbers)
    return out


def prices_table(found: pd.DataFrame) -> pd.DataFrame:
    """`prices` as it is read."""
    told = ["+" * (r.difference > 0) + format_ci(r.difference, r.low, r.high) for r in found.itertuples()]
    return found.assign(difference=told, metric=found["metric"].map(PANELS)).drop(columns=["low", "high"])


def xtreme(study: Study, data: str) -> pd.DataFrame:
    """XTREME F1 after the edits by number of languages; empty where no run measured it.

    Returns:
        method, languages, seed, metric, before, value, low, high, n (records), of_before and of_value (language -> F1).
    """
    order, out = study.methods_of(data), []
    for r in sorted(_runs(study, data), key=lambda r: order.index(r.cell.method)):
        if not len(r.xtreme):
            continue
        means = r.xtreme.query("task == 'xtreme'").set_index(["when", "lang"])
        end, values = means.loc[("final", "all")], means["value"]
        row = dict(method=r.cell.method, languages=languages_of(r), seed=r.cell.seed, metric=F1)
        row |= dict(before=values["before", "all"], **end[["value", "low", "high"]], n=int(end["n"]))
        before, after = (values[when].drop("all").to_dict() for when in ("before", "final"))
        out.append(row | dict(of_before=before, of_value=after))
    columns = ["method", "languages", "seed", "metric", "before", "value", "low", "high", "n", "of_before", "of_value"]
    return pd.DataFrame(out, columns=columns)


def ends(study: Study, data: str, scores: pd.DataFrame) -> pd.DataFrame:
    """What `PANELS` show at the end, by method, languages and metric: value, low, high, before (of XTREME alone).

    Args:
        study: Runs that differ in their languages.
        data: One of its data sets.
        scores: `xtreme`; several seeds ask the same records, so their values and intervals are averaged.
    """
    facts = by_languages(study, data).query("when == 'final'")
    keys = ["method", "languages", "metric"]
    return pd.concat([facts, scores.groupby(keys, sort=False)[["value", "low", "high", "before"]].mean().reset_index()])


def xtreme_table(found: pd.DataFrame) -> pd.DataFrame:
    """`xtreme` as it is read: the unedited model, then each run, with a column per language."""
    if found.empty:
        return pd.DataFrame()

    def by_language(values: dict[str, float]) -> dict[str, str]:
        return {lang: format_ci(value, None, None) for lang, value in values.items()}

    first = found.iloc[0]
    rows = [
        {"method": "unedited", "languages": "–", "seed": "–", "XTREME F1": f"{first['before']:.2f}", "n": first["n"]}
        | by_language(first["of_before"])
    ]
    for r in found.itertuples():
        row = {"method": r.method, "languages": r.languages, "seed": r.seed}
        row |= {"XTREME F1": format_ci(r.value, r.low, r.high), "n": r.n}
        rows.append(row | by_language(r.of_value))
    return pd.DataFrame(rows)


def xtreme_reading(scores: pd.DataFrame, found: pd.DataFrame, data: str) -> list[str]:
    """Sentences on what edits, and what languages, cost beyond the facts.

    Args:
        scores: `xtreme`.
        found: `prices` of the same study.
        data: Its data set.
    """
    sentences = []
    for method, part in scores.groupby("method", sort=False):
        told = ", ".join(f"{format_ci(r.value, r.low, r.high)} in {r.languages}" for r in part.itertuples())
        sentence = (
            f"{method} on {data}: XTREME F1 is {part['before'].iloc[0]:.2f} before any edit, and after edits {told} "
            f"languages (n = {part['n'].iloc[0]} records, in the same languages for every run)."
        )
        mine = found[(found["method"] == method) & (found["metric"] == F1)]
        if len(mine):
            sentence += f" Paired over records: {_effects(mine)}."
        sentences.append(sentence)
    return sentences


def _effects(mine: pd.DataFrame) -> str:
    return "; ".join(
        f"{r.effect} {format_ci(r.difference, r.low, r.high, signed=True)} ({r.verdict})" for r in mine.itertuples()
    )


def reading(study: Study, data: str, found: pd.DataFrame) -> list[str]:
    """Sentences: whether languages or edits are to blame, and per method, what is left by number of languages.

    Args:
        study: Runs that differ in their languages.
        data: One of its data sets.
        found: `prices`.
    """
    counted = found[found["metric"].isin(METRICS)]
    worse, more = counted["verdict"] == "worse", counted["effect"] == "more edits"
    sentences = [
        f"On {data} more edits are shown to cost these facts something in {(worse & more).sum()} of {more.sum()} "
        f"comparisons, more languages for as many edits in {(worse & ~more).sum()} of {(~more).sum()}."
    ]
    ends = by_languages(study, data)
    ends = ends[(ends["metric"] == "efficacy_tf") & (ends["when"] == "final")]
    for method, part in ends.groupby("method", sort=False):
        told = ", ".join(f"{r.languages} languages {format_ci(r.value, r.low, r.high)}" for r in part.itertuples())
        edits = next(r.cell.edits for r in study.results if (r.cell.data, r.cell.method) == (data, method))
        sentences.append(
            f"{method} on {data}: efficacy of the same n = {part['n'].iloc[0]} facts after {edits} edits in {told}."
        )
        mine = found[(found["method"] == method) & (found["metric"] == "efficacy_tf")]
        sentences.append(f"Paired over these facts, p corrected over {len(found)} comparisons: {_effects(mine)}.")
    if (n := int(ends["n"].min())) < 30:
        sentences.append(f"Only {n} facts are compared: differences below a few tens of points cannot be seen.")
    return sentences


def panels(found: pd.DataFrame, methods: Sequence[str] | None = None) -> dict[str, pd.DataFrame]:
    """`curve` by method."""
    return {m: part for m, part in found.groupby("method", sort=False) if methods is None or m in methods}
