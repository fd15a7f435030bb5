"""From results on disk to the frames that figures and tables are made of, and to the sentences that follow from them.

Every number in a report passes through here: estimate = mean over facts, with its bootstrap interval and its n.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from langedit_core.metrics import METRICS, WHEN
from langedit_core.models import EditableModel, load_model
from langedit_core.profiles import Profile, load_profile
from langedit_core.results import Cell, CellResult, is_known, load_result
from langedit_core.stats import Estimate, best_cells, compare_methods, paired_difference, summarise
from langedit_core.study import run_cells
from langedit_core.tables import COLUMNS, format_ci


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


class Study:
    """Finished cells seen together.

    Attributes:
        results: The finished cells.
        missing: Cells of the same profile that are not finished.
    """

    def __init__(self, results: Sequence[CellResult], missing: Sequence[Cell] = ()) -> None:
        if not results:
            raise ValueError("no results given; open_study() computes or loads those of a profile")
        self.results, self.missing = list(results), list(missing)

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
        per_fact = rows.groupby(["method", "seed", "fact", "lang"])["value"].mean()
        return paired_difference(per_fact.loc[a], per_fact.loc[b])

    def tests(self, data: str, reference: str, when: str = "final") -> pd.DataFrame:
        """`reference` against every other method: the table of `compare_methods`, one family, metrics in their order.

        Raises:
            ValueError: Nothing was measured at that moment, or not of the reference.
        """
        rows = self._stack("rows", data)
        found = compare_methods(rows[(rows["when"] == when) & rows["metric"].isin(METRICS)], reference)
        order = {name: i for i, name in enumerate([*METRICS, *self.methods])}
        return found.sort_values(["metric", "b"], key=lambda names: names.map(order), ignore_index=True)

    def comparisons(self, data: str, reference: str, when: str = "final") -> pd.DataFrame:
        """`tests` as it is read: differences with their 95 % intervals, verdicts from the corrected p-values."""
        found = self.tests(data, reference, when)
        told = [format_ci(*row) for row in found[["difference", "low", "high"]].itertuples(index=False)]
        found = found.assign(difference=told).rename(columns={"b": f"{reference} against", "n_facts": "n"})
        return found[["metric", f"{reference} against", "difference", "n", "p_holm", "verdict"]]

    def bold(self) -> set[tuple]:
        """Cells of the headline table that may be bold: `headline(study.main, bold=study.bold())`."""
        return best_cells(self._stack("rows"), by=["model", "data"])

    def retention(self, data: str, method: str) -> pd.DataFrame:
        """Efficacy of each batch's edits (rows) after every later batch (columns), mean over facts and seeds."""
        rows = self._stack("retention", data)
        rows = rows[rows["method"] == method]
        cell = next(r.cell for r in self.results if (r.cell.data, r.cell.method) == (data, method))
        names = [f"{t + 1} {cell.langs[t % len(cell.langs)]}" for t in range(cell.batches)]
        table = rows.pivot_table(index="edited", columns="step", values="tf", aggfunc="mean")
        table = table.reindex(index=range(cell.batches), columns=range(cell.batches))
        return table.set_axis(names, axis=0).set_axis(names, axis=1)

    def drift(self, data: str) -> pd.DataFrame:
        """Per method and batch, drift on neutral text right after it: mean over languages, paragraphs and seeds."""
        rows = self._stack("drift", data)
        cell = next(r.cell for r in self.results if r.cell.data == data)
        table = rows.pivot_table(index=["method", "step"], columns="metric", values="value", aggfunc="mean", sort=False)
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
        names = {"efficacy_tf": "efficacy", "generality_tf": "generality", "specificity_same": "specificity"}
        sentences = []
        for when in ("immediate", "final"):
            told = []
            for method in self.methods:
                e = self.estimate(data, method, "efficacy_tf", when)
                told.append(f"{method} {format_ci(e.value, e.low, e.high)}")
            n = self.estimate(data, self.methods[0], "efficacy_tf", when).n
            sentences.append(f"Efficacy {WHEN[when]} (n = {n} edits): {', '.join(told)}.")
        words = {"better": "higher", "worse": "lower"}
        tests = self.tests(data, reference).set_index(["b", "metric"])
        for other in (m for m in self.methods if m != reference):
            parts = []
            for metric, name in names.items():
                d = tests.loc[(other, metric)]
                word = words.get(d["verdict"], "not distinguishable")
                parts.append(f"{name} {word} ({d['difference']:+.2f} [{d['low']:+.2f}, {d['high']:+.2f}])")
            sentences.append(f"{reference} against {other} at the end, paired over facts: {'; '.join(parts)}.")
        growth = self.growth(data)
        last = growth[growth["step"] == growth["step"].max()].set_index("method")["relative_total"]
        told = ", ".join(f"{method} {last[method]:.2f}" for method in self.methods)
        sentences.append(f"After the last batch ‖W − W₀‖/‖W₀‖ is {told}.")
        return sentences
