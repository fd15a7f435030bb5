"""Real edits batch by batch, and what every failure of the method looks like in the editor's report.

Efficacy of a batch's own edits right after it, of all edits so far, and the capacity that the batch found; the limit is
the first batch whose own edits have an efficacy below one half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from langedit_core.contexts import Contexts
from langedit_core.covariance import KeyCovariance
from langedit_core.editors import BatchReport, Editor
from langedit_core.metrics import ask, questions
from langedit_core.models import EditableModel
from langedit_core.nullspace import Threshold
from langedit_core.profiles import hyperparameters
from langedit_core.records import Fact
from langedit_core.stats import Estimate, interval
from langedit_core.tables import format_ci

if TYPE_CHECKING:
    from langedit_core.analysis import Study

HALF = 0.5


def runs(studies: Sequence[Study]) -> list[tuple[Study, str]]:
    """Every study with each of its data sets."""
    return [(study, data) for study in studies for data in study.datasets]


def by_round(study: Study, data: str) -> pd.DataFrame:
    """What became of the sequence, a row per method and round.

    Returns:
        method, round, edits (so far, at its end), value, low, high, n (efficacy of the round's own edits, each right
        after its batch, over facts), sofar (efficacy of all tracked edits so far), capacity, rank, written,
        relative_update, relative_total (means over batches and layers, the total at the end), exhausted (facts, mean
        over seeds).
    """
    growth, kept = study.growth(data), study.kept(data)
    out = []
    for method in study.followed(data):
        cell, values = study.cell(data, method), _own(study, data, method)
        values = values.assign(round=values["step"] // len(cell.langs))
        mine = growth[growth["method"] == method]
        mine = mine.assign(round=mine["step"] // len(cell.langs))
        after = kept[kept["method"] == method].set_index("step")
        for number, part in values.groupby("round"):
            numbers, last = mine[mine["round"] == number], (number + 1) * len(cell.langs) - 1
            row = dict(method=method, round=int(number), edits=(last + 1) * cell.batch)
            row |= interval(part.groupby(["seed", "fact"])["tf"].mean())._asdict()
            row |= dict(sofar=after.loc[last, "all"], exhausted=round(float(numbers["exhausted"].sum()), 1))
            row |= {c: float(numbers[c].mean()) for c in ("capacity", "rank", "written", "relative_update")}
            out.append(row | dict(relative_total=float(numbers["relative_total"].iloc[-1])))
    return pd.DataFrame(out)


def _own(study: Study, data: str, method: str) -> pd.DataFrame:
    """Efficacy of every edit right after its batch: seed, fact, lang, edited, step, tf."""
    results = (r for r in study.results if (r.cell.data, r.cell.method) == (data, method))
    rows = pd.concat([r.retention.assign(seed=r.cell.seed) for r in results], ignore_index=True)
    return rows[rows["edited"] == rows["step"]]


def by_batch(study: Study, data: str) -> pd.DataFrame:
    """The same batch by batch.

    Returns:
        method, step, edits (so far, at its end), value, n, low, high (efficacy of the batch's own edits, over facts),
        sofar (efficacy of all edits so far), asked (how many of each batch `sofar` asks again), capacity, rank, written
        (as the batch found them).
    """
    found = study.growth(data).merge(study.kept(data).rename(columns={"all": "sofar"}), on=["method", "step"])
    rows = []
    for method in study.followed(data):
        cell = study.cell(data, method)
        asked = min(cell.track or cell.batch, cell.batch)
        for step, part in _own(study, data, method).groupby("step"):
            value = interval(part.groupby(["seed", "fact"])["tf"].mean())
            rows.append(dict(method=method, step=int(step), asked=asked) | value._asdict())
    columns = ["method", "step", "edits", *Estimate._fields, "sofar", "asked", "capacity", "rank", "written"]
    return found.merge(pd.DataFrame(rows), on=["method", "step"])[columns]


def crossings(batches: pd.DataFrame, level: float = HALF) -> pd.DataFrame:
    """How each method starts, and after how many edits it fails; what did not happen is missing.

    Args:
        batches: As `by_batch` gives it.
        level: Efficacy below which edits count as failed.

    Returns:
        method, edits (of the whole run), first_edits, first_value, first_low, first_high, first_n, first_sofar,
        first_capacity, first_written (the first batch), own_below, sofar_below (edits at the end of the first batch at
        which its own edits, or all edits so far, are below `level`), full_after (edits after which a batch found no
        direction left).
    """
    rows = []
    for method, part in batches.groupby("method", sort=False):
        first = part.iloc[0]
        row: dict[str, object] = dict(method=method, edits=part["edits"].iloc[-1])
        row |= {
            f"first_{name}": first[name]
            for name in ("edits", "value", "low", "high", "n", "sofar", "capacity", "written")
        }
        for name, column in (("own_below", "value"), ("sofar_below", "sofar")):
            below = part.loc[part[column] < level, "edits"]
            row[name] = below.iloc[0] if len(below) else pd.NA
        before = part["edits"].shift(fill_value=0)[part["rank"] == 0]
        rows.append(row | dict(full_after=before.iloc[0] if len(before) else pd.NA))
    counts = ("edits", "first_edits", "first_n", "own_below", "sofar_below", "full_after")
    return pd.DataFrame(rows).astype(dict.fromkeys(counts, "Int64"))


def ends(rounds: pd.DataFrame, batches: pd.DataFrame, level: float = HALF) -> pd.DataFrame:
    """`crossings` beside the last round, a row per method, as it is read."""
    out = []
    for row in crossings(batches, level).itertuples():
        part = rounds[rounds["method"] == row.method]
        first, last = part.iloc[0], part.iloc[-1]
        out.append(
            {"method": row.method, "first batch": format_ci(row.first_value, row.first_low, row.first_high)}
            | {f"its own edits < {level:g}": _told(row.own_below, row)}
            | {f"all edits so far < {level:g}": _told(row.sofar_below, row)}
            | {"efficacy of the last round": format_ci(last["value"], last["low"], last["high"]), "n": int(last["n"])}
            | {"of all": last["sofar"], "capacity": f"{first['capacity']:.2f} → {last['capacity']:.2f}"}
            | {"written": f"{first['written']:.2f} → {last['written']:.2f}"}
            | {"‖ΔW‖/‖W‖ per batch": f"{first['relative_update']:.2f} → {last['relative_update']:.2f}"}
            | {"exhausted": f"{part['exhausted'].sum():g}"}
        )
    return pd.DataFrame(out)


def _told(below: object, row: object) -> str:
    """The number of edits for a table's cell."""
    if pd.isna(below):
        return f"> {row.edits}"
    return f"{below} (first batch)" if below == row.first_edits else f"{below}"


def reading(rounds: pd.DataFrame, batches: pd.DataFrame, data: str) -> list[str]:
    """Sentences per method: whether its own edits and all edits so far fail, from when on, and the last round."""
    sentences = []
    for row in crossings(batches).itertuples():
        own = batches[batches["method"] == row.method].set_index("edits")
        last = rounds[rounds["method"] == row.method].iloc[-1]
        exhausted = rounds.loc[rounds["method"] == row.method, "exhausted"].sum()
        gone = f"{exhausted:g} facts were exhausted: nothing of their keys was left" if exhausted else ""
        full = "" if pd.isna(row.full_after) else f" No direction is left after {row.full_after} edits."
        sentences.append(
            f"{row.method} on {data}: {_own_edits(row, own)}; {_all_edits(row, own)}. In the last round the efficacy "
            f"right after a batch is {format_ci(last['value'], last['low'], last['high'])} (n = {int(last['n'])} "
            f"facts), capacity is {last['capacity']:.2f}, {last['written']:.2f} of each value is written, and in all "
            f"{gone or 'no fact was exhausted'}.{full}"
        )
    return sentences


def _own_edits(row: object, own: pd.DataFrame) -> str:
    if pd.isna(row.own_below):
        return f"no batch's own edits fall below an efficacy of {HALF:g} within {row.edits} edits"
    at = own.loc[row.own_below]
    value = f"{format_ci(at['value'], at['low'], at['high'])}, n = {int(at['n'])} facts"
    if row.own_below > row.first_edits:
        return f"a batch's own edits first fall below an efficacy of {HALF:g} after {row.own_below} edits ({value})"
    since = "from the first batch on" if (own["value"] < HALF).all() else "in the first batch already"
    return (
        f"a batch's own edits are below an efficacy of {HALF:g} {since} ({value}), where capacity is "
        f"{row.first_capacity:.2f} and {row.first_written:.2f} of each value is written"
    )


def _all_edits(row: object, own: pd.DataFrame) -> str:
    asked = f"all edits so far ({int(own['asked'].iloc[0])} of each batch are asked again)"
    if pd.isna(row.sofar_below):
        return f"{asked} do not fall below it"
    value = own.loc[row.sofar_below, "sofar"]
    if row.sofar_below > row.first_edits:
        return f"{asked} fall below it after {row.sofar_below} ({value:.2f})"
    return f"{asked} are below it at the first batch already ({value:.2f})"


# --- every way to fail, provoked --------------------------------------------------------------------------------------

QUICK = dict(steps=8)
"""Value optimisation of the demonstrations; what they show does not depend on how good the values are."""


class Provoker:
    """Editors of one layer of a model that is put back after each demonstration."""

    def __init__(self, model: EditableModel, covariance: KeyCovariance, layer: int, facts: Sequence[Fact]) -> None:
        self.model, self.covariance, self.layer, self.facts = model, covariance, layer, list(facts)

    def editor(self, method: str, **changes) -> Editor:
        bare = Contexts(prefixes={fact.lang: () for fact in self.facts})
        settings = hyperparameters(self.model.name, method, **(dict(layers=(self.layer,), values=QUICK) | changes))
        return Editor(self.model, settings, {self.layer: self.covariance}, bare)

    def run(self, method: str, times: int = 1, **changes) -> tuple[list[BatchReport], float]:
        """Reports of `times` edits of the same facts, and the share of target tokens that is right after the last."""
        with self.model.restored((self.layer,)):
            editor = self.editor(method, **changes)
            reports = [editor.edit(self.facts)[0] for _ in range(times)]
            asked = [q for fact in self.facts for q in questions(fact) if q.family == "efficacy"]
            return reports, float(np.mean([score.tf for score in ask(self.model, asked)]))


def signatures(model: EditableModel, covariance: KeyCovariance, layer: int, facts: Sequence[Fact]) -> pd.DataFrame:
    """Every failure of the null-space methods, provoked on this model with a few facts, as the editor reports it.

    Args:
        model: Unedited; it is left as it was.
        covariance: C₀ of the layer.
        layer: The one layer edited.
        facts: A few facts that can be located.

    Returns:
        failure, provoked by, the report says, consequence.
    """
    of = Provoker(model, covariance, layer, facts)
    makers = (_used_up, _nothing_free, _not_written, _growing, _not_protected, _nan)
    return pd.DataFrame([make(of) for make in makers])


def _row(failure: str, provoked: str, says: str, consequence: str) -> dict:
    return {"failure": failure, "provoked by": provoked, "the report says": says, "consequence": consequence}


def _used_up(of: Provoker) -> dict:
    (_, report), _ = of.run("evoedit", times=2)
    found = report.layers[of.layer]
    return _row(
        "keys without energy",
        "the same facts edited a second time: their keys are protected now",
        f"exhausted = {len(report.exhausted)} of {len(report.facts)} facts, capacity = {found.capacity:.1e}",
        f"nothing is written for them: ‖ΔW‖/‖W‖ = {found.relative_update:.1e}",
    )


def _nothing_free(of: Provoker) -> dict:
    (report,), _ = of.run("evoedit", threshold=Threshold(kind="fraction", value=0.0))
    found = report.layers[of.layer]
    return _row(
        "rank 0",
        "a threshold that frees no direction",
        f"rank = {found.rank}, exhausted = {len(report.exhausted)} of {len(report.facts)} facts",
        f"the model stays as it is: ‖ΔW‖/‖W‖ = {found.relative_update:.1e}, written = {found.written:.2f}",
    )


def _not_written(of: Provoker) -> dict:
    runs = [of.run("evoedit", ridge=ridge) for ridge in (0.03, 30.0)]
    (low, high), told = [reports[0].layers[of.layer].written for reports, _ in runs], [told for _, told in runs]
    return _row(
        "values not written",
        "λ of 0.03 and of 30 times the energy that the keys have left, as an absolute λ does when capacity shrinks",
        f"written = {low:.2f} and {high:.2f}; rank, capacity and loss of the values do not tell",
        f"efficacy {told[0]:.2f} and {told[1]:.2f}",
    )


def _growing(of: Provoker) -> dict:
    shares = (0.8, 0.1)
    runs = [of.run("evoedit", threshold=Threshold(kind="fraction", value=share)) for share in shares]
    wide, narrow = (reports[0].layers[of.layer] for reports, _ in runs)
    return _row(
        "updates that grow",
        f"{shares[0]:.0%} and {shares[1]:.0%} of directions free",
        f"capacity = {wide.capacity:.3f} and {narrow.capacity:.4f}, ‖ΔW‖/‖W‖ = {wide.relative_update:.2f} and "
        f"{narrow.relative_update:.2f}, written = {wide.written:.2f} and {narrow.written:.2f}",
        f"the same values cost {narrow.relative_update / wide.relative_update:.1f} times the change of W",
    )


def _not_protected(of: Provoker) -> dict:
    reports, _ = of.run("langedit", times=2)
    first, second = (report.layers[of.layer] for report in reports)
    return _row(
        "past keys not protected",
        "langedit as written: the same facts edited a second time",
        f"capacity = {first.capacity:.3f} before and {second.capacity:.3f} after their keys entered C̄, rank = "
        f"{first.rank} and {second.rank}: no warning",
        "the second update is free to overwrite the first",
    )


def _nan(of: Provoker) -> dict:
    model, weight = of.model, of.model.weight(of.layer)
    with model.restored((of.layer,)):
        with torch.no_grad():
            weight[0, 0] = torch.nan
        before = weight.clone()
        try:
            of.editor("evoedit").edit(of.facts)
            says = "nothing"
        except FloatingPointError as error:
            says = f"FloatingPointError: {error}"
        same = torch.equal(before.nan_to_num(), weight.nan_to_num())
    return _row(
        "NaN",
        "a NaN in the edited matrix",
        says,
        "the batch is refused, " + ("the weights are those before it" if same else "but the weights were changed"),
    )
