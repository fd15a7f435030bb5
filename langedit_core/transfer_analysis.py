"""From answers to transfer: how much more often the edited language's new object is said in another language.

gain = mean over facts of (chosen after − chosen before), per edited and tested language; the placebos' gain is what a
disturbance of that size does anyway, so transfer = gain of the edit − gain of the placebo, paired over facts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from langedit_core.stats import (
    LEVEL,
    RESAMPLES,
    VERDICTS,
    Estimate,
    ends,
    interval,
    paired_difference,
    unpaired_difference,
)
from langedit_core.tables import format_ci

VALUES: dict[str, str] = {
    "chosen": "forced choice",
    "em": "exact match",
    "margin": "nats per token ahead of the best other candidate",
}
STRATA: dict[tuple[bool, bool], str] = {
    (True, True): "subject and object",
    (True, False): "subject only",
    (False, True): "object only",
    (False, False): "neither",
}
"""Which strings source and tested language have in common: (same subject, same object) → what it is called."""
TOLD = ("source_told", "lang_told")
"""Whether a controlled model was told the fact in the source language, and in the tested one."""
UNPROJECTED = "memit"
"""The method that others are held against after a sequence: it projects nothing."""
CODE = "currency_iso"
"""The relation whose objects, ISO codes, are written alike in every language."""
RELATED = (("es", "fr"), ("fr", "es"), ("de", "nl"), ("nl", "de"))
LATIN = ("en", "de", "nl", "es", "fr")
DISTANCES: dict[str, tuple[tuple[str, str], ...]] = {
    "same language": tuple((x, x) for x in (*LATIN, "zh")),
    "closely related": RELATED,
    "same script": tuple((a, b) for a in LATIN for b in LATIN if a != b and (a, b) not in RELATED),
    "another script": tuple(pair for x in LATIN for pair in ((x, "zh"), ("zh", x))),
}
"""How far the tested language is → pairs (edited, tested); every pair of the six languages is in one of them."""


def gains(frame: pd.DataFrame) -> pd.DataFrame:
    """What every edit and placebo changed: the frame of `transfer.transfer` without its unedited rows.

    Args:
        frame: Columns `transfer.COLUMNS`, and where it is known what a model was told, source_told and lang_told.

    Returns:
        Columns fact, relation, source, lang, probe, edit, same_subject, same_object, those of `TOLD` that the frame
        has, chosen, em and margin after the edit, the same as chosen_before and so on, and as gain_chosen and so on
        the difference; a probe's several questions (paraphrases) are averaged.
    """
    keys = ["fact", "relation", "lang", "probe"]
    values = list(VALUES)
    frame = frame.astype(dict.fromkeys(values, float))
    before = frame[frame["edit"] == "none"].groupby(keys, sort=False)[values].mean()
    known = [name for name in TOLD if name in frame]
    after = frame[frame["edit"] != "none"].groupby(
        [*keys, "source", "edit", "same_subject", "same_object", *known], sort=False
    )[values].mean()  # fmt: skip
    found = after.reset_index().merge(before.reset_index(), on=keys, suffixes=("", "_before"))
    return found.assign(**{f"gain_{name}": found[name] - found[f"{name}_before"] for name in values})


def over_facts(rows: pd.DataFrame, value: str) -> Estimate:
    """Mean over facts, with its interval; a fact's languages are averaged first. NaN where there is none."""
    return _mean(rows.groupby("fact", sort=False)[value].mean())


def _mean(per_fact: pd.Series) -> Estimate:
    return interval(per_fact) if len(per_fact) else Estimate(math.nan, 0, math.nan, math.nan)


def matrix(
    found: pd.DataFrame, *, edit: str = "fact", probe: str = "direct", value: str = "gain_chosen"
) -> pd.DataFrame:
    """Mean gain per edited language (rows) and tested language (columns); NaN where no fact is left."""
    rows = found[(found["edit"] == edit) & (found["probe"] == probe)]
    langs = list(dict.fromkeys(found["source"]))
    return rows.pivot_table(index="source", columns="lang", values=value).reindex(index=langs, columns=langs)


def matrix_table(found: pd.DataFrame, value: str = "gain_chosen") -> pd.DataFrame:
    """The matrices as a tidy table: source, lang, kind (edit, without identical strings, placebos), estimate."""
    different = found[(found["source"] == found["lang"]) | ~(found["same_subject"] | found["same_object"])]
    kinds = {
        "edit": found[found["edit"] == "fact"],
        "edit, no identical strings": different[different["edit"] == "fact"],
        "random value": found[found["edit"] == "random"],
        "unrelated edit": found[found["edit"] == "unrelated"],
    }
    out = []
    for kind, rows in kinds.items():
        for (source, lang), part in rows[rows["probe"] == "direct"].groupby(["source", "lang"], sort=False):
            estimate = over_facts(part, value)
            out.append(dict(source=source, lang=lang, kind=kind, **estimate._asdict()))
    return pd.DataFrame(out)


def matrices(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """`matrix_table` as one square matrix per kind; NaN where no fact is left."""
    langs = list(dict.fromkeys(table["source"]))
    return {
        kind: part.pivot(index="source", columns="lang", values="value").reindex(index=langs, columns=langs)
        for kind, part in table.groupby("kind", sort=False)
    }


def transfer_of(rows: pd.DataFrame, placebo: pd.DataFrame, value: str = "gain_chosen") -> Estimate:
    """Gain of the edit less gain of the placebo, paired over facts, with its interval."""
    if rows.empty:
        return Estimate(math.nan, 0, math.nan, math.nan)
    keys = ["fact", "source", "lang"]
    there = placebo.merge(rows[keys].drop_duplicates(), on=keys)
    a, b = (part.groupby("fact")[value].mean() for part in (rows, there))
    return paired_difference(a, b)


def strata(found: pd.DataFrame, value: str = "gain_chosen") -> pd.DataFrame:
    """Transfer into other languages by what source and tested language write alike.

    Returns:
        One row per stratum, then ISO codes, all but ISO codes (both only where there are some), and any, which is all:
        identical, pairs (fact, source, tested), facts, gain, placebo and transfer as texts with 95 % intervals, "n/a"
        where no fact is left, and value, low, high of transfer.
    """
    direct = found[(found["probe"] == "direct") & (found["source"] != found["lang"])]
    code = direct["relation"] == CODE
    parts = {name: (direct["same_subject"] == s) & (direct["same_object"] == o) for (s, o), name in STRATA.items()}
    if code.any():
        parts |= {"any: ISO codes": code, "any: all but ISO codes": ~code}
    parts |= {"any": code | ~code}
    out = []
    for name, chosen in parts.items():
        part = direct[chosen]
        rows, placebo = part[part["edit"] == "fact"], part[part["edit"] == "unrelated"]
        effect = transfer_of(rows, placebo, value)
        out.append(
            dict(
                identical=name, pairs=len(rows), facts=effect.n, gain=told(over_facts(rows, value)),
                placebo=told(over_facts(placebo, value)), transfer=told(effect),
                value=effect.value, low=effect.low, high=effect.high,
            )
        )  # fmt: skip
    return pd.DataFrame(out)


def explained(found: pd.DataFrame, value: str = "gain_chosen") -> dict[str, Estimate]:
    """How much of raw transfer is left once cases with an identical string are removed.

    Returns:
        `raw` and `different`: transfer over all off-diagonal cases, and over those in which neither subject nor
        object is written alike; `share`: 1 − different / raw over the facts that have both, with a bootstrap interval
        over them. NaN where no fact is left, and a share also where there is no raw transfer to explain.
    """
    direct = found[(found["probe"] == "direct") & (found["source"] != found["lang"])]
    wide = direct[direct["edit"].isin(("fact", "unrelated"))].pivot_table(
        index=["fact", "source", "lang", "same_subject", "same_object"], columns="edit", values=value
    )
    effect = (wide["fact"] - wide["unrelated"]).rename("effect").reset_index()
    different = ~(effect["same_subject"] | effect["same_object"])
    per_fact = pd.DataFrame(
        dict(
            raw=effect.groupby("fact")["effect"].mean(),
            left=effect[different].groupby("fact")["effect"].mean(),
        )
    )
    return dict(
        raw=_mean(per_fact["raw"]), different=_mean(per_fact["left"].dropna()), share=_share_removed(per_fact.dropna())
    )


def _share_removed(both: pd.DataFrame) -> Estimate:
    """1 − mean(left) / mean(raw), resampled over facts; NaN where there is nothing whose share it could be."""
    if both.empty or both["raw"].mean() <= 0:
        return Estimate(math.nan, len(both), math.nan, math.nan)
    draws = np.random.default_rng(0).integers(len(both), size=(RESAMPLES, len(both)))
    raw, left = (both[name].to_numpy()[draws].mean(axis=1) for name in ("raw", "left"))
    shares = 1 - left[raw != 0] / raw[raw != 0]
    low, high = np.quantile(shares, ends(len(both))) if len(both) > 1 else (math.nan, math.nan)
    return Estimate(float(1 - both["left"].mean() / both["raw"].mean()), len(both), float(low), float(high))


def distances(found: pd.DataFrame, value: str = "gain_chosen") -> pd.DataFrame:
    """Transfer by how far the tested language is: distance, all cases, and those without an identical string."""
    direct = found[found["probe"] == "direct"]
    out = []
    for name, pairs in DISTANCES.items():
        there = pd.Series(list(zip(direct["source"], direct["lang"], strict=True)), index=direct.index).isin(pairs)
        part = direct[there]
        row: dict[str, object] = dict(distance=name)
        for label, rows in (
            ("transfer", part), ("transfer, no identical strings", part[~(part["same_subject"] | part["same_object"])]),
        ):  # fmt: skip
            effect = transfer_of(rows[rows["edit"] == "fact"], rows[rows["edit"] == "unrelated"], value)
            row[label] = told(effect) if name != "same language" or label == "transfer" else ""
        out.append(row)
    return pd.DataFrame(out)


def by_probe(found: pd.DataFrame) -> pd.DataFrame:
    """What each kind of question shows, in the edited language and in others: chosen before → after, and the gain."""
    out = []
    for probe in dict.fromkeys(found["probe"]):
        rows = found[(found["probe"] == probe) & (found["edit"] == "fact")]
        for where, part in (
            ("the edited language", rows[rows["source"] == rows["lang"]]),
            ("others", rows[rows["source"] != rows["lang"]]),
            (
                "others, no identical strings",
                rows[(rows["source"] != rows["lang"]) & ~(rows["same_subject"] | rows["same_object"])],
            ),
        ):
            if part.empty:
                continue
            gain = over_facts(part, "gain_chosen")
            out.append(
                {
                    "question": probe,
                    "asked in": where,
                    "right before": part.groupby("fact")["chosen_before"].mean().mean(),
                    "right after": part.groupby("fact")["chosen"].mean().mean(),
                    "gain": told(gain),
                    "exact match after": part.groupby("fact")["em"].mean().mean(),
                    "n": gain.n,
                }
            )
    return pd.DataFrame(out)


def variants_table(by_variant: Mapping[str, pd.DataFrame], value: str = "gain_chosen") -> pd.DataFrame:
    """Several models beside one another: efficacy in the edited language, transfer into others, placebos.

    Returns:
        Per model a tidy row: model, facts, and as (value, low, high) columns own, transfer, transfer_different
        (no identical string), transfer_subject (identical subject, other object), random, unrelated.
    """
    out = []
    for name, found in by_variant.items():
        direct = found[found["probe"] == "direct"]
        own = direct[(direct["source"] == direct["lang"]) & (direct["edit"] == "fact")]
        other = direct[direct["source"] != direct["lang"]]
        placebo = other[other["edit"] == "unrelated"]
        edited = other[other["edit"] == "fact"]
        different = edited[~(edited["same_subject"] | edited["same_object"])]
        subject = edited[edited["same_subject"] & ~edited["same_object"]]
        estimates = dict(
            own=over_facts(own, value),
            transfer=transfer_of(edited, placebo, value),
            different=transfer_of(different, placebo, value),
            subject=transfer_of(subject, placebo, value),
            unrelated=over_facts(placebo, value),
            random=over_facts(other[other["edit"] == "random"], value),
        )
        row: dict[str, object] = dict(model=name, facts=found["fact"].nunique())
        for label, estimate in estimates.items():
            row |= {label: estimate.value, f"{label}_low": estimate.low, f"{label}_high": estimate.high}
            row[f"{label}_n"] = estimate.n
        out.append(row)
    return pd.DataFrame(out)


COLUMNS: dict[str, str] = {
    "own": "edited language",
    "transfer": "other languages",
    "subject": "same subject, other object",
    "different": "no identical string",
    "unrelated": "unrelated edit",
    "random": "random value",
    "spared": "facts not edited",
}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """`variants_table` or `sequences_table` with intervals as texts, and n where it is not that of the row's facts."""
    shown = table[["model", "facts"]].copy()
    for column, label in ((c, text) for c, text in COLUMNS.items() if c in table):
        numbers = table[[column, f"{column}_low", f"{column}_high", f"{column}_n"]].itertuples(index=False)
        shown[label] = [
            format_ci(value, low, high, None if n in (0, facts) else int(n))
            for (value, low, high, n), facts in zip(numbers, table["facts"], strict=True)
        ]
    return shown


def sequences_table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Methods after a whole sequence, one row each: own language, others, and others without identical strings.

    Args:
        frames: Label → the frame of `transfer.sequence_transfer`.

    Returns:
        model (the label), facts, and (value, low, high) of own, transfer, different, subject: gains of chosen, less
        those of facts that were not edited, in the same languages; and these, as spared.
    """
    out = []
    for name, frame in frames.items():
        found, spared = sequence_gains(frame)
        other = found[found["source"] != found["lang"]]
        identical = other["same_subject"] | other["same_object"]
        estimates = dict(
            own=_less(found[found["source"] == found["lang"]], spared),
            transfer=_less(other, spared),
            subject=_less(other[other["same_subject"] & ~other["same_object"]], spared),
            different=_less(other[~identical], spared),
            spared=over_facts(spared, "gain_chosen"),
        )
        row: dict[str, object] = dict(model=name, facts=found["fact"].nunique())
        for label, estimate in estimates.items():
            row |= {label: estimate.value, f"{label}_low": estimate.low, f"{label}_high": estimate.high}
            row[f"{label}_n"] = estimate.n
        out.append(row)
    return pd.DataFrame(out)


def sequence_gains(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers after a sequence less those before, per fact and language: of edited facts, and of others."""
    keys = ["fact", "source", "lang", "same_subject", "same_object"]
    frame = frame.astype(dict.fromkeys(VALUES, float))
    after = frame[frame["when"] == "after"].set_index(keys)[list(VALUES)]
    before = frame[frame["when"] == "before"].set_index(keys)[list(VALUES)]
    found = (after - before).add_prefix("gain_").reset_index()
    return found[found["source"] != ""], found[found["source"] == ""]


def sequence_differences(frames: Mapping[str, pd.DataFrame], reference: str) -> pd.DataFrame:
    """Methods less `reference` on the facts both edited, in other languages and in the edited one.

    What the two do to facts that neither edited is taken off: a method that leaves a model worn down would otherwise
    seem to transfer more. The verdict is about other languages, all rows taken together: the interval at a level of
    1 − 0.05 / rows (Bonferroni) excludes zero or does not; value, low and high are of one row alone.
    """
    base = dict(zip(("edited", "spared"), sequence_gains(frames[reference]), strict=True))
    out = []
    for name, frame in frames.items():
        if name == reference:
            continue
        edited, spared = sequence_gains(frame)
        difference = functools.partial(_difference, edited, base["edited"], spared, base["spared"])
        effects = {where: difference(own=own) for where, own in (("other languages", False), ("edited language", True))}
        effect, wide = effects["other languages"], difference(own=False, level=1 - (1 - LEVEL) / (len(frames) - 1))
        out.append(
            {"difference": f"{name} − {reference}", "other languages": told(effect)}
            | {"verdict": "more" if wide.low > 0 else "less" if wide.high < 0 else VERDICTS[-1]}
            | {"edited language": told(effects["edited language"]), "n": effect.n}
            | {"value": effect.value, "low": effect.low, "high": effect.high}
        )
    return pd.DataFrame(out)


def beside_unprojected(frames: Mapping[str, pd.DataFrame], reference: str = UNPROJECTED) -> pd.DataFrame:
    """`sequence_differences` of methods whose languages come in the usual order; empty where `reference` is missing.

    What a projection suppresses shows beside a method that projects nothing.
    """
    usual = {label: frame for label, frame in frames.items() if ", " not in label}
    if reference not in usual:
        return pd.DataFrame()
    return sequence_differences(usual, reference)


def _less(rows: pd.DataFrame, spared: pd.DataFrame) -> Estimate:
    """Gain of edited facts less that of facts not edited, asked in the same mix of languages."""
    if rows.empty or spared.empty:
        return over_facts(rows, "gain_chosen")
    return unpaired_difference(rows.groupby("fact")["gain_chosen"].mean(), _mixed(spared, rows["lang"]))


def _mixed(spared: pd.DataFrame, langs: pd.Series) -> pd.Series:
    """Per fact its mean gain, languages weighted as they occur in `langs`."""
    wide = spared.pivot_table(index="fact", columns="lang", values="gain_chosen").dropna()
    weights = langs.value_counts(normalize=True)
    return wide.reindex(columns=weights.index).mul(weights).sum(axis=1)


def _difference(
    a: pd.DataFrame, b: pd.DataFrame, spared_a: pd.DataFrame, spared_b: pd.DataFrame, *, own: bool, level: float = LEVEL
) -> Estimate:
    """a − b over the facts of both, less the same over facts that neither edited."""
    chosen = [rows[(rows["source"] == rows["lang"]) == own] for rows in (a, b)]
    means = [rows.groupby("fact")["gain_chosen"].mean() for rows in chosen]
    neither = set(spared_a["fact"]) & set(spared_b["fact"])
    if not neither:
        return paired_difference(*means, level=level)
    changed = (means[0] - means[1]).dropna()
    if changed.empty:
        raise ValueError("the two sequences have no edited fact in common")
    mixes = [_mixed(rows[rows["fact"].isin(neither)], chosen[0]["lang"]) for rows in (spared_a, spared_b)]
    return unpaired_difference(changed, mixes[0] - mixes[1], level=level)


def told(estimate: Estimate) -> str:
    """An estimate with its interval, "n/a" where there is none."""
    return format_ci(estimate.value, estimate.low, estimate.high)
