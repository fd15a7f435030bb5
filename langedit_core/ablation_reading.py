"""What the null-space notebook found, in sentences made from its numbers, a few per question."""

from __future__ import annotations

import pandas as pd

from langedit_core.ablation import (
    BASE,
    FULL_KEYS,
    HELD,
    LARGER,
    LITERAL,
    RELEASED,
    STATIC,
    THRESHOLDS,
    sweep,
    usual_ridge,
)
from langedit_core.analysis import Study
from langedit_core.stats import VERDICTS
from langedit_core.tables import format_ci

ROUNDING = 1e-4  # what an update may move at keys it does not know, in float32
ON_THE_WAY = {
    "written": "share of a value that is written",
    "efficacy_tf immediate": "efficacy right after the batch",
    "efficacy_tf final": "efficacy at the end",
    "specificity_same final": "specificity",
    "drift_kl final": "drift in nats per token",
}


def reading(
    variants: Study, data: str, found: pd.DataFrame, leaked: pd.DataFrame, mixed: pd.DataFrame | None = None
) -> list[str]:
    """Sentences about one data set, question by question; what was not run is passed over.

    Args:
        variants: `ablation.by_variant`.
        data: One of its data sets.
        found: `ablation.comparisons` of that data set.
        leaked: `ablation.leaks`.
        mixed: `ablation.mixes` of that data set, if it is at hand.
    """
    return [
        *full_keys(found, leaked[leaked["data"] == data]),
        *threshold(variants, data, found),
        *dynamic(found),
        *released(variants, data, found, mixed),
    ]


def full_keys(found: pd.DataFrame, leaked: pd.DataFrame) -> list[str]:
    """Covariance or full keys: what full keys cost and give, what leaks through the covariance.

    Args:
        found: `ablation.comparisons` of one data set.
        leaked: `ablation.leaks` of the same.
    """
    sentences = []
    if row := _pair(found, FULL_KEYS, BASE):
        sentences.append(
            f"Full keys in place of the running covariance ({FULL_KEYS} − {BASE}, n = {row['final'].n} facts): "
            f"efficacy {_points(row['immediate'])} right after the batch and {_points(row['final'])} at the end."
        )
    of = leaked.groupby("method")[["leak", "moved"]].median() if len(leaked) else pd.DataFrame()
    if BASE in of.index:
        base, told = of.loc[BASE], ""
        if FULL_KEYS in of.index:
            full = of.loc[FULL_KEYS]
            share = f"{full['moved']:.1e} of that, rounding" if full["moved"] < ROUNDING else _percent(full["moved"])
            told = f"; under full keys by {share} (leak {full['leak']:.1e})"
        sentences.append(
            f"An update of {BASE} moves the outputs at the keys of earlier batches by {_percent(base['moved'])} of "
            f"what it moves those at its own keys (leak {base['leak']:.1e}, medians over batches and layers){told}."
        )
    if row := _pair(found, "evoedit", FULL_KEYS):
        final = row["final"]
        differs = f"its efficacy at the end differs by {_points(final)}; so much may two runs of one method differ."
        same = "at the end every fact has the same efficacy."
        sentences.append(
            "evoedit reaches the same space by one thin orthogonalisation per batch, and what differs is rounding: "
            + (same if final.difference == final.low == final.high == 0 else differs)
        )
    return sentences


def ridge(variants: Study, data: str, found: pd.DataFrame) -> list[str]:
    """What a λ that does not shrink with the room gives, or another λ, a sentence per variant.

    Args:
        variants: `ablation.by_variant`.
        data: One of its data sets.
        found: `ablation.comparisons` of that data set.
    """
    growth, sentences = variants.growth(data).groupby("method"), []
    ridges = {r.cell.method: r.cell.settings.ridge for r in variants.results if r.cell.data == data}
    rows = found[found["question"].isin([HELD, LARGER])]
    for question, name, other in dict.fromkeys(rows[["question", "a", "b"]].itertuples(index=False, name=None)):
        how = "held at the first batch's" if question == HELD else f"{ridges[name]:g} in place of {ridges[other]:g}"
        row, ends = _pair(found, name, other), [growth.get_group(m).iloc[-1] for m in (other, name)]
        sentences.append(
            f"{usual_ridge(name)} with λ {how}: efficacy {_points(row['immediate'])} right after the batch and "
            f"{_points(row['final'])} at the end (n = {row['final'].n} facts); of the last batch's values it writes "
            f"{ends[1]['written']:.2f} in place of {ends[0]['written']:.2f}, and the weights end at a distance of "
            f"{ends[1]['relative_total']:.2f} in place of {ends[0]['relative_total']:.2f} of their norm."
        )
    return sentences


def threshold(variants: Study, data: str, found: pd.DataFrame) -> list[str]:
    """Where the spectrum is cut: the best and the worst, what is shown to differ, and what happens on the way."""
    swept = sweep(variants, data)
    if len(swept) < 2:
        return []
    ranked = swept.sort_values("efficacy_tf final", ascending=False, kind="stable")
    best, worst = (ranked.iloc[i] for i in (0, -1))
    first, last = swept.iloc[0], swept.iloc[-1]
    shown = found[(found["question"] == THRESHOLDS) & (found["metric"] == "efficacy_tf") & (found["when"] == "final")]
    differ = [
        f"{r.a.removeprefix(f'{BASE}, ')} ({r.verdict}, {_points(r, verdict=False)})"
        for r in shown.itertuples()
        if r.verdict != VERDICTS[2]
    ]
    told = [
        f"Of {len(swept)} thresholds of {BASE} most efficacy is left at the end with {best['threshold']}, "
        f"{_share(best, 'efficacy_tf final')}, least with {worst['threshold']}, {_share(worst, 'efficacy_tf final')} "
        f"(n = {best['n']} facts)."
        if best["efficacy_tf final"] > worst["efficacy_tf final"]
        else f"With all {len(swept)} thresholds of {BASE} the efficacy at the end is the same, "
        f"{_share(best, 'efficacy_tf final')} (n = {best['n']} facts)."
    ]
    if usual := swept.set_index("method")["threshold"].get(BASE):
        differ = f"shown to differ are {', '.join(differ)}" if differ else "none is shown to differ"
        told.append(f"From this model's usual {usual} {differ}.")
    way = [f"{label} {first[column]:.2f} → {last[column]:.2f}" for column, label in ON_THE_WAY.items()]
    told.append(
        f"From {first['threshold']} to {last['threshold']}, {first['free']:.0f} to {last['free']:.0f} free directions: "
        f"{'; '.join(way)}."
    )
    return told


def dynamic(found: pd.DataFrame) -> list[str]:
    """What remembering gives: against the static null space that remembers nothing, and langedit against alphaedit."""
    ways = {BASE: "the running mean", FULL_KEYS: "full keys", "alphaedit": "past keys as a penalty in the solve"}
    told = {way: _pair(found, name, STATIC) for name, way in ways.items()}
    told = [f"{way} {_points(row['final'])}" for way, row in told.items() if row]
    sentences = []
    if told:
        sentences.append(f"Against null(C₀) with nothing remembered, efficacy at the end: {'; '.join(told)}.")
    if row := _pair(found, BASE, "alphaedit"):
        sentences.append(
            f"{BASE} − alphaedit (n = {row['final'].n}): efficacy {_points(row['immediate'])} right after the batch, "
            f"{_points(row['final'])} at the end."
        )
    return sentences


def released(variants: Study, data: str, found: pd.DataFrame, mixed: pd.DataFrame | None) -> list[str]:
    """The released running mix: how heavy a key is in it, what it leaves free, what that does to efficacy.

    Args:
        variants: `ablation.by_variant`.
        data: One of its data sets.
        found: `ablation.comparisons`.
        mixed: `mixing.mixes`; None where no cell's keys are at hand.
    """
    sentences = []
    if mixed is not None and mixed["step"].max() > 0:
        at = mixed.set_index(["formula", "step"])
        last = mixed["step"].max()
        mean, code = ({s: at.loc[(formula, s)] for s in (1, last)} for formula in ("mean", "released"))
        ratio = {s: code[s]["first_key"] / mean[s]["first_key"] for s in (1, last)}
        sentences.append(
            f"In C̄ one key of the first batch weighs {mean[1]['first_key']:.1e} after that batch as a mean, and "
            f"{code[1]['first_key']:.1e} by the released code, {ratio[1]:.0f} times as much: it adds sums of kkᵀ to a "
            "mean, at fixed counts that are not those of keys. It adds all past keys again after every batch, so after "
            f"batch {last} the factor is {ratio[last]:.0f}, and the trace has become {code[last]['trace']:.2f} times "
            f"that of C₀ (mean: {mean[last]['trace']:.2f})."
        )
        sentences.append(
            f"On the same {mean[last]['keys']:.0f} keys the mean leaves {mean[last]['free']:.0f} directions free, "
            f"and {100 * mean[last]['left']:.0f} % of those keys' energy lies within them; the released code leaves "
            f"{code[last]['free']:.0f} and {100 * code[last]['left']:.0f} % (layer {mixed['layer'].iloc[0]})."
        )
    growth = variants.growth(data)
    ranks = growth[growth["step"] == growth["step"].max()].set_index("method")["rank"]
    if row := _pair(found, RELEASED, BASE):
        sentences.append(
            f"{RELEASED} − {BASE} (n = {row['final'].n}): efficacy {_points(row['immediate'])} right after the batch, "
            f"{_points(row['final'])} at the end; the last batch had {ranks[RELEASED]:.0f} free directions against "
            f"{ranks[BASE]:.0f}. The released code also pays for moving past keys in the solve, as alphaedit does."
        )
    if row := _pair(found, LITERAL, BASE):
        sentences.append(
            "The paper's recursion to the letter, in which a batch's K Kᵀ is a sum and weighs as many times more as "
            f"the batch has keys: {LITERAL} − {BASE} (n = {row['final'].n}): efficacy {_points(row['immediate'])} "
            f"right after the batch, {_points(row['final'])} at the end; the last batch had {ranks[LITERAL]:.0f} free "
            f"directions against {ranks[BASE]:.0f}."
        )
    for name in (RELEASED, LITERAL):
        if row := _pair(found, name, "alphaedit"):
            sentences.append(
                f"Beside alphaedit: {name} − alphaedit, n = {row['final'].n}: {_points(row['final'])} at the end."
            )
    return sentences


def _pair(found: pd.DataFrame, a: str, b: str) -> dict | None:
    """Efficacy of one pair by moment; None if it was not compared."""
    part = found[(found["a"] == a) & (found["b"] == b) & (found["metric"] == "efficacy_tf")]
    return {row.when: row for row in part.itertuples()} or None


def _points(row, verdict: bool = True) -> str:
    """A difference of shares in points, its interval and what is shown."""
    text = f"{100 * row.difference:+.1f} points [{100 * row.low:+.1f}, {100 * row.high:+.1f}]"
    return f"{text} ({row.verdict})" if verdict else text


def _percent(share: float) -> str:
    """Two digits, however small."""
    return f"{float(f'{100 * share:.2g}'):g} %"


def _share(row: pd.Series, measure: str) -> str:
    return format_ci(row[measure], row[f"{measure} low"], row[f"{measure} high"])
