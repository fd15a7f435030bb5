"""Real edits until the space is used up, and what every failure of the method looks like in the editor's report.

Efficacy of a round (all its batches together) right after each batch, of all edits so far, and the capacity the batch
found; the limit is the first round whose own edits succeed less than half of the time.
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
from langedit_core.stats import interval
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
        cell, own = study.cell(data, method), []
        for r in (r for r in study.results if (r.cell.data, r.cell.method) == (data, method)):
            now = r.retention[r.retention["edited"] == r.retention["step"]]
            own.append(now.assign(seed=r.cell.seed, round=now["step"] // len(cell.langs)))
        values = pd.concat(own, ignore_index=True)
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


def ends(found: pd.DataFrame, level: float = HALF) -> pd.DataFrame:
    """Per method: edits after which a round's own edits, and all edits so far, first have an efficacy below `level`."""
    out = []
    for method, part in found.groupby("method", sort=False):
        row: dict[str, object] = {"method": method}
        for column, heading in (("value", "its own edits"), ("sofar", "all edits so far")):
            below = part[part[column] < level]
            row[f"{heading} < {level:g}"] = f"{below['edits'].iloc[0]}" if len(below) else f"> {part['edits'].iloc[-1]}"
        last = part.iloc[-1]
        row |= {"efficacy of the last round": format_ci(last["value"], last["low"], last["high"]), "n": int(last["n"])}
        row |= {"of all": last["sofar"], "capacity": f"{part['capacity'].iloc[0]:.2f} → {last['capacity']:.2f}"}
        row |= {"written": f"{part['written'].iloc[0]:.2f} → {last['written']:.2f}"}
        row |= {"‖ΔW‖/‖W‖ per batch": f"{part['relative_update'].iloc[0]:.2f} → {last['relative_update']:.2f}"}
        out.append(row | {"exhausted": part["exhausted"].sum()})
    return pd.DataFrame(out)


def by_batch(study: Study, data: str) -> pd.DataFrame:
    """The same batch by batch, shares only: method, edits, value, sofar, capacity, written."""
    own = []
    for r in (r for r in study.results if r.cell.data == data):
        now = r.retention[r.retention["edited"] == r.retention["step"]]
        own.append(now.assign(method=r.cell.method)[["method", "step", "tf"]])
    values = pd.concat(own).groupby(["method", "step"])["tf"].mean().rename("value").reset_index()
    table = study.growth(data).merge(study.kept(data), on=["method", "step"]).merge(values, on=["method", "step"])
    return table.rename(columns={"all": "sofar"})[["method", "edits", "value", "sofar", "capacity", "written"]]


def reading(found: pd.DataFrame, data: str) -> list[str]:
    """A sentence per method: whether the limit was reached, and what went first."""
    sentences = []
    for row in ends(found).itertuples(index=False):
        part = found[found["method"] == row.method]
        own, every = row[1], row[2]
        went = "" if own[0] != ">" else f", so these {part['edits'].iloc[-1]} edits do not reach its limit"
        sentences.append(
            f"{row.method} on {data}: a round's own edits fall below an efficacy of {HALF:g} after {own} edits{went}; "
            f"all edits so far after {every}. In the last round {format_ci(*part.iloc[-1][['value', 'low', 'high']])} "
            f"(n = {int(part['n'].iloc[-1])} facts) succeed at once, capacity is {part['capacity'].iloc[-1]:.2f} and "
            f"{part['written'].iloc[-1]:.2f} of each value is written; {part['exhausted'].sum():g} facts were "
            f"exhausted."
        )
    return sentences


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
