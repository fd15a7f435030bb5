"""What the numbers of one data set say, in a handful of sentences that stay as few when methods become many."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from langedit_core.metrics import WHEN
from langedit_core.stats import UNTESTED
from langedit_core.tables import FULL, format_ci

if TYPE_CHECKING:
    from langedit_core.analysis import Study

RIVAL = "alphaedit"


def reading(study: Study, data: str, reference: str = "langedit") -> list[str]:
    """At most six sentences: the order of methods, what was lost, how `reference` compares, what it costs.

    Args:
        study: Finished cells.
        data: One of its data sets.
        reference: Compared with all others; where it was not run, or alone, those sentences are left out.
    """
    methods = study.methods_of(data)
    sentences = [_order(study, data, methods, reference)]
    if data in study.sequences:
        sentences.append(_lost(study, data, methods))
    if reference in methods:
        tests = study.tests(data, reference)
        if len(tests):
            sentences += _against(tests, reference)
    return sentences + _cost(study, data, methods, reference)


def _order(study: Study, data: str, methods: list[str], reference: str) -> str:
    """Who keeps most: all methods where they are few, else the ends of the order and the reference."""
    found = {m: study.estimate(data, m, "efficacy_tf", "final") for m in methods}
    ranked = sorted(methods, key=lambda m: -found[m].value)
    told = {m: f"{m} {format_ci(*(found[m].value, found[m].low, found[m].high))}" for m in methods}
    shown = ranked
    if len(ranked) > 5:
        shown = [*ranked[:3], *ranked[-1:]]
        if reference in ranked[3:-1]:
            shown.insert(3, reference)
        for m in shown[3:]:
            told[m] += f" (rank {ranked.index(m) + 1} of {len(ranked)})"
    counts = [len({r.cell.seed for r in study.results if (r.cell.data, r.cell.method) == (data, m)}) for m in methods]
    few, many = min(counts), max(counts)
    n = sorted({e.n for e in found.values()})
    facts = f"{n[0]} fact{'s' if n[0] > 1 else ''}" if len(n) == 1 else f"{n[0]} to {n[-1]} facts"
    over = f"{few} to {many} seeds" if few < many else "one seed" if many == 1 else f"{many} seeds"
    return f"Efficacy {WHEN['final']} (n = {facts} per method, {over}): {', '.join(told[m] for m in shown)}."


def _lost(study: Study, data: str, methods: list[str]) -> str:
    """Efficacy right after the batch and at the end: of all methods where they are few, else of the two extremes."""
    both = {m: [study.estimate(data, m, "efficacy_tf", w).value for w in ("immediate", "final")] for m in methods}
    ranked = sorted(methods, key=lambda m: both[m][0] - both[m][1])
    few = len(ranked) <= 3
    told = [f"{m} {both[m][0]:.2f} → {both[m][1]:.2f}" for m in (ranked if few else (ranked[0], ranked[-1]))]
    if few:
        return f"Right after the batch → at the end: {', '.join(told)}."
    return f"Later batches take least from {told[0]} and most from {told[1]} (right after its batch → end)."


def _against(tests: pd.DataFrame, reference: str) -> list[str]:
    """The rival, or the only other method, in numbers; all others as counts."""
    sentences, others = [], list(dict.fromkeys(tests["b"]))
    rival = RIVAL if RIVAL in others else others[0]
    parts = []
    for metric in ("efficacy_tf", "generality_tf", "specificity_same"):
        for d in tests[(tests["b"] == rival) & (tests["metric"] == metric)].itertuples():
            told = format_ci(d.difference, d.low, d.high, d.n_facts, signed=True)
            parts.append(f"{FULL[metric]} {d.verdict} ({told})")
    sentences.append(f"{reference} against {rival} at the end, paired over facts: {'; '.join(parts)}.")
    tests = tests[tests["verdict"] != UNTESTED]
    if len(others) > 1:
        told = []
        for verdict in ("better", "worse"):
            rows = tests[tests["verdict"] == verdict]
            names = ", ".join(f"{m} ({n})" for m, n in rows.groupby("b", sort=False).size().items())
            told.append(f"{verdict} in {len(rows)}" + (f" — {names}" if names else ""))
        told.append(f"and not shown to differ in {sum(tests['verdict'] == 'no difference shown')}")
        sentences.append(
            f"Of {len(tests)} corrected comparisons with {len(others)} methods {reference} is {', '.join(told)}."
        )
    return sentences


def _cost(study: Study, data: str, methods: list[str], reference: str) -> list[str]:
    growth = study.growth(data)
    last = growth[growth["step"] == growth["step"].max()].set_index("method")["relative_total"]
    ranked = sorted((m for m in methods if m in last), key=lambda m: last[m])
    shown = [m for m in ranked if len(ranked) <= 4 or m in (ranked[0], reference, RIVAL, ranked[-1])]
    sentences = [f"After the last batch ‖W − W₀‖/‖W₀‖ is {', '.join(f'{m} {last[m]:.2f}' for m in shown)}."]
    left = growth[growth["step"] > 0].groupby("method", sort=False)["capacity"].mean()
    left = left[left < 1 - 1e-6].sort_values()
    if len(left):
        sentences.append(
            "Averaged over the batches after the first, projections leave of a key's energy "
            f"{', '.join(f'{m} {share:.2f}' for m, share in left.items())}. Values are written through what is left; "
            "of two updates that write the same values at the same keys, the one with less left is the larger."
        )
    return sentences
