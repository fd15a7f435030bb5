"""From results on disk to the frames that figures and tables are made of, and to the sentences that follow from them.

Every number in a report passes through here: estimate = mean over facts, with its bootstrap interval and its n.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import gmean

from langedit_core.drift import METRICS as DRIFT
from langedit_core.interference import (
    by_language,
    changes,
    followed,
    kept,
    matrix,
    periods,
    same_and_other,
    shown,
)
from langedit_core.metrics import METRICS, WHEN
from langedit_core.models import EditableModel, load_model
from langedit_core.profiles import Profile, load_profile
from langedit_core.reading import reading
from langedit_core.results import Cell, CellResult, is_known, load_result
from langedit_core.stats import (
    GEOMETRIC,
    LOWER_IS_BETTER,
    Estimate,
    best_cells,
    compare_methods,
    judged,
    paired_difference,
    per_fact,
    summarise,
)
from langedit_core.study import run_cells
from langedit_core.tables import COLUMNS, FULL, MISSING, Bold, format_ci, full_table
from langedit_core.xtreme_metrics import ALL, MEAN, differences
from langedit_core.xtreme_tables import over_seeds, readable, sizes

SOME_SEEDS = "xtreme_f1 of some seeds"
BY_SEED = {"efficacy_tf": "efficacy", "generality_tf": "generality", "specificity_same": "specificity"}


def open_study(
    profile: str | Path | Profile,
    group: str,
    results: str | Path,
    *,
    records: str | Path | None = None,
    model: EditableModel | None = None,
    model_name: str | None = None,
    quiet: bool = False,
) -> Study:
    """The results of a profile's cell group; what is missing is computed first, with a progress bar.

    Of a partial profile, what is finished, and `Study.missing` names the rest.

    Args:
        profile: Profile name, YAML file, or a loaded profile.
        group: Name of the cell group, for example `main`.
        results: Folder the cells' directories lie in.
        records: Folder of records of cells finished earlier or elsewhere.
        model: The profile's model, if it is loaded already.
        model_name: Another model than the profile's.
        quiet: No progress bar.

    Raises:
        FileNotFoundError: No cell of a partial profile is finished.
    """
    profile = profile if isinstance(profile, Profile) else load_profile(profile)
    cells, root = profile.cells(group, model_name), Path(results)
    records = None if records is None else Path(records)
    missing = [cell for cell in cells if not is_known(cell, root, records)]
    if missing and not profile.partial:
        model = model or load_model(model_name or profile.model, device=profile.device)
        return Study(run_cells(cells, model, root, quiet, records=records))
    if len(missing) == len(cells):
        raise FileNotFoundError(
            f"none of the {len(cells)} cells of {group!r} is finished in {root}; "
            f"compute some with `langedit run --profile {profile.name} --hours 1`"
        )
    return Study([load_result(cell, root, records) for cell in cells if cell not in missing], missing)


def _dealt(cell: Cell) -> str:
    """Whether its languages have the same facts."""
    if len(set(cell.langs)) == 1:
        return "one language"
    return "the same" if cell.parallel else "different"


class Study:
    """Finished cells seen together.

    Attributes:
        results: The finished cells.
        missing: Cells of the same profile that are not finished.

    Raises:
        ValueError: No results, or some of one model and data set were made of another model or other data.
    """

    def __init__(self, results: Sequence[CellResult], missing: Sequence[Cell] = ()) -> None:
        if not results:
            raise ValueError("no results given; open_study() computes or loads those of a profile")
        self.results, self.missing = list(results), list(missing)
        first: dict[tuple, CellResult] = {}
        for r in self.results:
            other = first.setdefault((r.cell.model, r.cell.data, frozenset(r.cell.langs)), r)
            for name in ("model_fingerprint", "data_fingerprint"):
                if r.provenance.get(name) != other.provenance.get(name):
                    raise ValueError(
                        f"{r.cell.slug} and {other.cell.slug} were made with different inputs ({name} differs), so "
                        "they cannot be compared; delete the one that is out of date and compute it again"
                    )

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(r.cell.method for r in self.results))

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(r.cell.data for r in self.results))

    @property
    def langs(self) -> list[str]:
        return list(dict.fromkeys(lang for r in self.results for lang in r.cell.langs))

    def _stack(self, part: str, data: str | None = None) -> pd.DataFrame:
        """One frame of all cells, with the columns that tell them apart."""
        return pd.concat(
            [
                getattr(r, part).assign(model=r.cell.model, data=r.cell.data, method=r.cell.method, seed=r.cell.seed)
                for r in self.results
                if data in (None, r.cell.data)
            ],
            ignore_index=True,
        )

    @functools.cached_property
    def main(self) -> pd.DataFrame:
        """The tidy main table: model, data, method, metric, when, lang, value, n, low, high."""
        return summarise(self._stack("rows"), by=["model", "data", "method"])[list(COLUMNS)]

    def of(self, data: str) -> pd.DataFrame:
        """The main table of one data set."""
        return self.main[self.main["data"] == data].reset_index(drop=True)

    def estimate(self, data: str, method: str, metric: str, when: str, lang: str = "all") -> Estimate:
        """One number of the main table.

        Raises:
            KeyError: It was not measured.
        """
        m = self.main
        wanted = dict(data=data, method=method, metric=metric, when=when, lang=lang)
        found = m[(m[list(wanted)] == pd.Series(wanted)).all(axis=1)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} rows for {wanted}")
        return Estimate(**found.iloc[0][["value", "n", "low", "high"]].to_dict())

    def compare(self, data: str, metric: str, when: str, a: str, b: str) -> Estimate:
        """Paired difference a − b over facts (and seeds)."""
        rows = self._stack("rows", data)
        rows = rows[(rows["metric"] == metric) & (rows["when"] == when)]
        values = per_fact(rows, ["method", "seed", "fact"])
        return paired_difference(values.loc[a], values.loc[b])

    def tests(self, data: str, reference: str, when: str = "final") -> pd.DataFrame:
        """`reference` against every other method: the table of `compare_methods`, metrics in their order.

        What facts say is one family; of drift on the paragraphs of neutral text there are differences and intervals.

        A method that was run with other seeds only shares no fact with the reference, and is left out.

        Raises:
            ValueError: Nothing was measured at that moment, or not of the reference.
        """
        return self._tests(data, reference, when).copy()

    @functools.cache  # noqa: B019 — thousands of resamples, asked for by tables and sentences
    def _tests(self, data: str, reference: str, when: str) -> pd.DataFrame:
        seeds = self._seeds(data, reference)
        others = [m for m in self.methods_of(data) if seeds & self._seeds(data, m)]
        rows = self._stack("rows", data)
        if seeds:
            rows = rows[rows["method"].isin(others)]
        # Between perplexities, which are geometric means, a difference would say what the difference of KL says.
        rows = rows[(rows["when"] == when) & rows["metric"].isin(set(METRICS) - GEOMETRIC)]
        # Six paragraphs can pass no correction, however far apart methods are: there are intervals, and no verdict.
        found = compare_methods(rows, reference, untested=DRIFT)
        order = {name: i for i, name in enumerate([*METRICS, *self.methods])}
        return found.sort_values(["metric", "b"], key=lambda names: names.map(order), ignore_index=True)

    def comparisons(self, data: str, *references: str, when: str = "final") -> pd.DataFrame:
        """`tests` as it is read: differences with their 95 % intervals, verdicts from the corrected p-values.

        Of several references every one is a family of its own, and those that are not in `compared` are left out.
        """
        found = [self.tests(data, m, when).assign(method=m) for m in references if data in self.compared(m)]
        rows = pd.concat(found, ignore_index=True)
        told = [format_ci(*row) for row in rows[["difference", "low", "high"]].itertuples(index=False)]
        rows = rows.assign(difference=told).rename(columns={"b": "against", "n_facts": "n", "n_seeds": "seeds"})
        return rows[["metric", "method", "against", "difference", "n", "seeds", "p_holm", "verdict"]]

    def bold(self) -> set[tuple]:
        """Cells of the headline table that may be bold: `headline(study.main, bold=study.bold())`."""
        return set().union(*(self._bold(data, when) for data in self.datasets for when in WHEN))

    @functools.cache  # noqa: B019 — as above
    def _bold(self, data: str, when: str) -> set[tuple]:
        """Where cells are missing, the methods that share the most common seed are compared, and no other is bold."""
        of = {method: self._seeds(data, method) for method in self.methods_of(data)}
        seed = Counter(seed for seeds in of.values() for seed in seeds).most_common(1)[0][0]
        rows = self._stack("rows", data)
        rows = rows[(rows["when"] == when) & rows["method"].isin([m for m, seeds in of.items() if seed in seeds])]
        rows = rows[~rows["metric"].isin(DRIFT)]  # see `_tests`
        return best_cells(rows, by=["model", "data"]) if len(rows) else set()

    def _seeds(self, data: str, method: str) -> set[int]:
        return {r.cell.seed for r in self.results if (r.cell.data, r.cell.method) == (data, method)}

    def methods_of(self, data: str) -> list[str]:
        """Methods that were run on a data set, in the profile's order."""
        return list(dict.fromkeys(r.cell.method for r in self.results if r.cell.data == data))

    def followed(self, data: str) -> list[str]:
        """Those of them whose state between batches is their own.

        PRUNE's is MEMIT's until the total update is damped at the end, so beside MEMIT it is left out.
        """
        damped = {r.cell.method for r in self.results if r.cell.data == data and r.cell.settings.damping is not None}
        methods = self.methods_of(data)
        return [m for m in methods if m not in damped] if "memit" in methods else methods

    def _sequence(self, part: str, data: str) -> pd.DataFrame:
        """`_stack` of the methods in `followed`."""
        rows = self._stack(part, data)
        return rows[rows["method"].isin(self.followed(data))]

    @property
    def sequences(self) -> list[str]:
        """Data sets edited in more than one batch, where a later batch can do something to an earlier one."""
        return [data for data in self.datasets if self.cell(data).batches > 1]

    def compared(self, *references: str) -> list[str]:
        """Data sets on which one of `references` and another method edited the same facts."""
        return [
            data
            for data in self.datasets
            if any(
                self._seeds(data, reference) & self._seeds(data, m)
                for reference in references
                for m in self.methods_of(data)
                if m != reference
            )
        ]

    def design(self) -> pd.DataFrame:
        """What was run: per data set languages, batches, edits of a run, methods, seeds, runs that are not finished.

        Seeds are as many as every method has at least, and behind them the methods that have more.
        """
        rows = []
        for data in self.datasets:
            cell, methods = self.cell(data), self.methods_of(data)
            runs = {(r.cell.method, r.cell.seed) for r in self.results if r.cell.data == data}
            seeds = Counter(method for method, _ in runs)
            fewest = min(seeds.values())
            more = [f"{method} {seeds[method]}" for method in methods if seeds[method] > fewest]
            missing = sum(cell.data == data for cell in self.missing)
            rows.append(
                {
                    "data": data,
                    "languages": " ".join(cell.langs),
                    "batches": cell.batches,
                    "facts per batch": cell.batch,
                }
                | {
                    "edits per run": cell.batches * cell.batch,
                    "facts per language": _dealt(cell),
                }
                | {"methods": len(methods), "seeds": f"{fewest} ({', '.join(more)})" if more else str(fewest)}
                | {"runs": sum(r.cell.data == data for r in self.results), "not finished": missing}
            )
        return pd.DataFrame(rows)

    def unfinished(self) -> str:
        """One sentence about the runs of the profile that are missing, per data set; empty if none are."""
        told = []
        for data in sorted({cell.data for cell in self.missing}):
            seeds, methods = defaultdict(list), defaultdict(list)  # of each method, and of each set of seeds
            for cell in self.missing:
                if cell.data == data:
                    seeds[cell.method].append(cell.seed)
            for method, of in seeds.items():
                methods[tuple(sorted(of))].append(method)
            parts = [
                f"{', '.join(named) if len(named) < 4 else f'{len(named)} methods'} "
                f"seed{'s' * (len(of) > 1)} {', '.join(map(str, of))}"
                for of, named in sorted(methods.items())
            ]
            runs = sum(map(len, seeds.values()))
            told.append(f"{data} {runs} run{'s' * (runs > 1)} ({'; '.join(parts)})")
        return f"Not finished, and not in what follows: {'; '.join(told)}." if told else ""

    def cell(self, data: str, method: str | None = None) -> Cell:
        """The design all cells of a data set share; method and seed are those of the first one."""
        return next(r.cell for r in self.results if r.cell.data == data and method in (None, r.cell.method))

    def table(self, data: str) -> pd.DataFrame:
        """Everything about one data set, a row per method: `tables.full_table` with XTREME F1, edits (over all
        seeds), facts and seeds.

        Intervals are over facts, a fact with all its languages and seeds being one; what is bold is the best in its
        column or not shown to differ from it.
        """
        rows, extra = self._stack("rows", data), {}
        edits = rows[rows["metric"] == "efficacy_tf"].drop_duplicates(["method", "seed", "fact", "lang"])
        if len(means := self.xtreme(data).query("task == 'xtreme' and lang == 'all'")):
            wide = means.pivot(index="method", columns="when", values=["value", "low", "high"])
            extra["XTREME F1"] = {
                m: f"{row['value', 'before']:.2f} → {format_ci(*(row[c, 'final'] for c in ('value', 'low', 'high')))}"
                for m, row in wide.iterrows()
            }
        extra["edits"] = edits.groupby("method").size().to_dict()
        whole = self.of(data).query("metric == 'efficacy_tf' and when == 'final' and lang == 'all'")
        extra["facts"] = whole.set_index("method")["n"].to_dict()
        extra["seeds"] = edits.groupby("method")["seed"].nunique().to_dict()
        return full_table(self.of(data), extra, bold=self._bold(data, "final"))

    def winners(self) -> pd.DataFrame:
        """Per metric and data set the best method at the end, and behind it those not shown to differ from it.

        Drift is not tested, and left out.
        """
        columns: dict[str, dict[str, str]] = {}
        for data in self.datasets:
            bold = {(method, metric) for _, _, method, _, metric in self._bold(data, "final")}
            for metric, heading in FULL.items():
                if metric in DRIFT:
                    continue
                methods = [method for method in self.methods_of(data) if (method, metric) in bold]
                sign = 1 if metric in LOWER_IS_BETTER else -1
                methods.sort(key=lambda m, of=(data, metric): sign * self.estimate(of[0], m, of[1], "final").value)
                columns.setdefault(data, {})[heading] = ", ".join(methods) or MISSING
        return pd.DataFrame(columns).rename_axis("metric").reset_index()

    def verdicts(self, data: str, *references: str) -> pd.DataFrame:
        """`tests` on a page: a row per pair of methods, a column per metric, bold where a difference is shown."""
        return pd.concat([self._verdicts(data, m) for m in references if data in self.compared(m)], ignore_index=True)

    def _verdicts(self, data: str, reference: str) -> pd.DataFrame:
        found = self.tests(data, reference)
        cells = [
            Bold(f"{told} {d.verdict}") if d.verdict in ("better", "worse") else told
            for d in found.itertuples()
            for told in ["+" * (d.difference > 0) + format_ci(d.difference, d.low, d.high)]
        ]
        wide = found.assign(cell=pd.Series(cells, dtype=object, index=found.index)).pivot(
            index="b", columns="metric", values="cell"
        )
        counts = found[found["metric"] == "efficacy_tf"].set_index("b")[["n_facts", "n_seeds"]]
        rows, names = list(dict.fromkeys(found["b"])), [m for m in FULL if m in set(found["metric"])]
        wide = wide.reindex(index=rows, columns=names).rename(columns=FULL)
        counts = counts.reindex(rows).rename(columns={"n_facts": "n", "n_seeds": "seeds"})
        shown = wide.join(counts).rename_axis("against", axis=0).rename_axis(None, axis=1).reset_index()
        shown.insert(0, "method", reference)
        return shown

    def languages(self, data: str, metric: str, when: str, unedited: bool = False) -> pd.DataFrame:
        """Methods × languages: one metric at one moment; with `unedited` the model before editing is the first row."""
        m = self.of(data)
        rows = m[(m["metric"] == metric) & (m["lang"] != "all")]
        langs = list(dict.fromkeys(self.cell(data).langs))
        wide = rows.pivot(index=["when", "method"], columns="lang", values="value").reindex(columns=langs)
        table = wide.loc[when].reindex(index=self.methods_of(data))
        if not unedited:
            return table
        return pd.concat([wide.loc["before"].iloc[[0]].set_axis(["unedited"], axis=0), table])

    def retention(self, data: str, method: str) -> pd.DataFrame:
        """Efficacy of each batch's edits (rows) after every later batch (columns), mean over facts and seeds.

        A row is about the same facts throughout: those that were asked again after later batches.
        """
        rows = followed(self._stack("retention", data).query("method == @method"))
        cell = self.cell(data, method)
        names = [f"{t + 1} {cell.langs[t % len(cell.langs)]}" for t in range(cell.batches)]
        table = rows.pivot_table(index="batch", columns="step", values="tf", aggfunc="mean")
        table = table.reindex(index=range(cell.batches), columns=range(cell.batches))
        return table.set_axis(names, axis=0).set_axis(names, axis=1)

    def kept(self, data: str) -> pd.DataFrame:
        """Per method and batch, efficacy of the earliest edits and of all edits so far: method, edits, earliest, all.

        The earliest are those of the first batch in every language, or of the first batch where there is one round;
        NaN until all of them are edited.
        """
        cell, parts = self.cell(data), []
        first = len(cell.langs) if cell.rounds > 1 else 1
        for method, rows in self._sequence("retention", data).groupby("method", sort=False):
            table = kept(rows, first)
            parts.append(table.assign(method=method, edits=(table["step"] + 1) * cell.batch))
        return pd.concat(parts, ignore_index=True)[["method", "step", "edits", "earliest", "all"]]

    @functools.cache  # noqa: B019 — a study lives as long as its notebook
    def _changes(self, data: str, method: str) -> pd.DataFrame:
        rows = self._stack("retention", data)
        return changes(rows[rows["method"] == method], self.cell(data, method).langs)

    def interference(self, data: str, method: str) -> pd.DataFrame:
        """What a batch does to the edits before it: `interference.by_language` of all seeds, in points of efficacy."""
        return by_language(self._changes(data, method))

    def interference_matrix(self, data: str, method: str) -> pd.DataFrame:
        """Language edited (rows) × language tested (columns), mean change per batch over all rounds."""
        return matrix(self.interference(data, method), self.cell(data).langs)

    def interference_shown(self, data: str, method: str) -> pd.DataFrame:
        """For every cell of that matrix, whether its interval over facts excludes zero."""
        return shown(self._changes(data, method), self.cell(data).langs)

    def interference_periods(self, data: str, method: str) -> dict[str, pd.DataFrame]:
        """The same for successive stretches of the sequence."""
        return periods(self.interference(data, method), self.cell(data).langs, self.cell(data).rounds)

    def same_and_other(self, data: str) -> pd.DataFrame:
        """`interference.same_and_other` as it is read, points of efficacy per batch."""
        found = {method: self._changes(data, method) for method in self.followed(data)}
        table = same_and_other(found, len(self.cell(data).langs))
        if table["same"].map(lambda e: e.n == 0).all():
            table = table[["method", "any", "seeds"]]
        columns = {"any": "any later batch", "same": "same language", "other": "other language beside it"}
        told = table.rename(columns=columns | {"difference": "other − same"})
        told["any later batch"] = [format_ci(e.value, e.low, e.high, e.n) for e in told["any later batch"]]
        return told.map(lambda e: format_ci(e.value, e.low, e.high) if isinstance(e, Estimate) else e)

    def drift(self, data: str) -> pd.DataFrame:
        """Per method and batch, drift on neutral text right after it: mean over languages, paragraphs and seeds.

        Perplexity is exp of the mean −log p, as in `main`.

        Empty where none of the languages has neutral text.
        """
        rows = self._sequence("drift", data)
        if rows.empty:
            return rows
        cell = next(r.cell for r in self.results if r.cell.data == data)
        table = rows.pivot_table(
            index=["method", "step"], columns="metric", values="value", sort=False,
            aggfunc=lambda values: gmean(values) if rows.loc[values.index[0], "metric"] in GEOMETRIC else values.mean(),
        )  # fmt: skip
        table = table.reset_index().rename_axis(columns=None)
        return table.assign(lang=[cell.langs[t % len(cell.langs)] for t in table["step"]])

    def batches(self, data: str) -> pd.DataFrame:
        """One row per method, batch and layer: capacity, ‖ΔW‖/‖W‖, steps, share converged."""
        keys = ["method", "seed", "step", "lang", "layer"]
        frame = self._stack("batches", data)
        return frame[[*keys, *(c for c in frame if c not in [*keys, "model", "data"])]]

    def growth(self, data: str) -> pd.DataFrame:
        """Per method and batch, the mean over layers and seeds of what the weights and the null space went through."""
        frame = self.batches(data)
        frame = frame[frame["method"].isin(self.followed(data))]
        columns = [
            "rank",
            "capacity",
            "relative_update",
            "relative_total",
            "written",
            "steps",
            "converged",
            "exhausted",
        ]
        return frame.groupby(["method", "step", "lang"], sort=False)[columns].mean().reset_index()

    def throughput(self) -> pd.DataFrame:
        """Edits per minute of each method, median over batches, with and without measuring, and on what machine.

        Columns method, per data set its name and "… measured", machine; what a machine did not run is empty.
        """
        parts = []
        for r in self.results:
            phases = r.seconds.pivot(index="step", columns="phase", values="seconds")
            facts = r.batches.drop_duplicates("step").set_index("step")["facts"]
            editing = phases.drop(columns="measuring", errors="ignore").sum(axis=1)
            rates = {r.cell.data: editing, f"{r.cell.data}, measured": phases.sum(axis=1)}
            told = [pd.DataFrame(dict(column=name, rate=60 * facts / seconds)) for name, seconds in rates.items()]
            parts.append(pd.concat(told).assign(method=r.cell.method, machine=machine(r.environment)))
        found = pd.concat(parts)
        wide = found.pivot_table(index=["method", "machine"], columns="column", values="rate", aggfunc="median")
        columns = [c for data in self.datasets for c in (data, f"{data}, measured")]
        wide = wide.reindex(columns=columns).map(lambda rate: "" if np.isnan(rate) else f"{rate:.1f}")
        wide = wide.reset_index().rename_axis(columns=None)[["method", *columns, "machine"]]
        return wide.sort_values("method", key=lambda m: m.map(self.methods.index), kind="stable", ignore_index=True)

    def xtreme(self, data: str) -> pd.DataFrame:
        """F1 on XTREME before and after, per task, language and method: `xtreme_tables.over_seeds`; may be empty."""
        parts = [r.xtreme.assign(method=r.cell.method) for r in self.results if r.cell.data == data and len(r.xtreme)]
        return over_seeds(parts)

    def by_seed(self, data: str) -> pd.DataFrame:
        """What each seed of a method that has several ends with: how far another order of facts moves a mean.

        Returns:
            method, seed, efficacy, generality, specificity, xtreme_f1 (n/a where it was not asked), n (facts); may be
            empty.
        """
        rows, out = self._stack("rows", data), []
        rows = rows[(rows["when"] == "final") & rows["metric"].isin(BY_SEED)]
        values = per_fact(rows, ["method", "seed", "metric", "fact"]).groupby(["method", "seed", "metric"])
        means, facts = values.mean(), values.size()
        for r in sorted((r for r in self.results if r.cell.data == data), key=lambda r: r.cell.seed):
            method, seed = r.cell.method, r.cell.seed
            if len(self._seeds(data, method)) < 2:
                continue
            f1 = r.xtreme[(r.xtreme["task"] == MEAN) & (r.xtreme["lang"] == ALL) & (r.xtreme["when"] == "final")]
            row = dict(method=method, seed=seed) | {
                name: means.get((method, seed, m), math.nan) for m, name in BY_SEED.items()
            }
            out.append(row | dict(xtreme_f1=f1["value"].mean(), n=int(facts[method, seed, "efficacy_tf"])))
        found = pd.DataFrame(out, columns=["method", "seed", *BY_SEED.values(), "xtreme_f1", "n"])
        return found.sort_values("method", key=lambda m: m.map(self.methods.index), kind="stable", ignore_index=True)

    def xtreme_tests(self, data: str, reference: str) -> pd.DataFrame:
        """XTREME F1 at the end, `reference` against every other method, paired over records and seeds; one family.

        Only runs whose answers were kept are compared, under the seeds that both have, with Holm's correction; it may
        be empty. Where both were asked under further seeds whose answers were not kept, nothing is tested: the seeds
        that were kept may be the ones that favour a method.

        Returns:
            a, b, mean_a, mean_b, difference, low, high, least and most (of a seed), n, n_seeds, p_holm, verdict.
        """
        kept: dict[str, dict[int, pd.DataFrame]] = {}
        for r in self.results:
            if r.cell.data == data and len(r.answers):
                kept.setdefault(r.cell.method, {})[r.cell.seed] = r.answers_at("final")
        asked = {m: {r.cell.seed for r in self.results if (r.cell.data, r.cell.method) == (data, m) and len(r.xtreme)}
                 for m in self.methods_of(data)}  # fmt: skip
        mine, rows = kept.get(reference, {}), []
        numbers = ["difference", "low", "high", "least", "most", "n", "p"]
        for method in (m for m in self.methods_of(data) if m in kept and m != reference):
            if seeds := sorted(mine.keys() & kept[method].keys()):
                told = differences(*((mine[seed], kept[method][seed]) for seed in seeds))
                (d,) = told[(told["metric"] == "xtreme_f1") & (told["lang"] == "all")].to_dict("records")
                metric = "xtreme_f1" if asked[reference] & asked[method] == set(seeds) else SOME_SEEDS
                row = dict(a=reference, b=method, mean_a=d["a"], mean_b=d["b"], n_seeds=len(seeds), metric=metric)
                rows.append(row | {name: d[name] for name in numbers})
        columns = ["a", "b", "mean_a", "mean_b", *numbers[:-2], "n", "n_seeds", "p"]
        found = pd.DataFrame(rows, columns=["metric", *columns])
        return judged(found, untested={SOME_SEEDS}).drop(columns=["metric", "p"])

    def xtreme_comparisons(self, data: str, *references: str) -> pd.DataFrame:
        """`xtreme_tests` as it is read; every reference is a family of its own."""
        found = pd.concat([self.xtreme_tests(data, m) for m in references], ignore_index=True)
        told = [format_ci(*row) for row in found[["difference", "low", "high"]].itertuples(index=False)]
        seeds = [f"{low:+z.3f} to {high:+z.3f}" for low, high in zip(found["least"], found["most"], strict=True)]
        found = found.assign(difference=told).rename(columns={"a": "method", "b": "against", "n_seeds": "seeds"})
        found["by seed"] = ["" if n == 1 else text for n, text in zip(found["seeds"], seeds, strict=True)]
        return found[
            ["method", "mean_a", "against", "mean_b", "difference", "by seed", "n", "seeds", "p_holm", "verdict"]
        ]

    def xtreme_table(self, data: str) -> pd.DataFrame:
        """The same as it is read."""
        return readable(self.xtreme(data))

    def xtreme_seconds(self) -> pd.DataFrame:
        """Per data set and task: records of one evaluation, its seconds, and where it is n/a."""
        parts = [sizes(self.xtreme(data)).assign(data=data) for data in self.datasets if len(self.xtreme(data))]
        return pd.concat(parts, ignore_index=True)[["data", "task", "records", "n/a in", "seconds"]]

    def seconds(self, data: str) -> pd.DataFrame:
        """Median seconds per batch and phase of each method; timings belong to the machine they were taken on."""
        frame = self._stack("seconds", data).groupby(["method", "phase"], sort=False)["seconds"].median()
        return frame.unstack("phase").reset_index().rename_axis(columns=None)

    @property
    def dropped(self) -> pd.DataFrame:
        """How many facts were passed over per data set because their subject has no token boundary, and which."""
        found = {(r.cell.data, fact): reason for r in self.results for fact, reason in r.dropped.items()}
        return pd.DataFrame(
            [dict(data=d, fact=f, reason=reason) for (d, f), reason in sorted(found.items())],
            columns=["data", "fact", "reason"],
        )

    def reading(self, data: str, reference: str = "langedit") -> list[str]:
        """Sentences about one data set, made from its numbers."""
        return reading(self, data, reference)


def machine(environment: Mapping) -> str:
    """One line about where a cell was run."""
    threads, torch = environment["threads"], environment["versions"]["torch"]
    parts = [environment["device"], environment["machine"], f"{threads} thread" + "s" * (threads > 1), f"torch {torch}"]
    return ", ".join(parts)
