"""What may and what may not be concluded about transfer, in sentences made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from langedit_core.stats import Estimate
from langedit_core.transfer_analysis import (
    UNPROJECTED,
    beside_unprojected,
    by_probe,
    explained,
    over_facts,
    sequence_differences,
    told,
    transfer_of,
)

TOGETHER, APART = ("atlas-lm-same-names", "atlas-lm"), ("atlas-lm-apart-same-names", "atlas-lm-apart")


def about_variants(by_variant: Mapping[str, pd.DataFrame]) -> list[str]:
    """Whether the controlled models behave as they were built, pair by pair: told together, told apart."""
    sentences = []
    for together, apart in zip(TOGETHER, APART, strict=True):
        if together not in by_variant or apart not in by_variant:
            continue
        names = "under the same names" if together.endswith("same-names") else "under each language's own names"
        one, other = (_transfer(by_variant[name]) for name in (together, apart))
        above = one.low > other.high
        sentences.append(
            f"Facts told {names}: where all languages told them, an edit is chosen in another language by "
            f"{told(one)} more than after an unrelated edit; where one language told each, by {told(other)}. "
            + ("The first is well above the second." if above else "The two are not clearly apart.")
        )
        if "lang_told" in by_variant[apart]:
            known = by_variant[apart]
            taught = known[known["source_told"] & ~known["lang_told"]]
            if len(taught[taught["edit"] == "fact"]):
                sentences.append(
                    f"Of these, edits made in the one language that told the fact reach the others by "
                    f"{told(_transfer(taught))}."
                )
    if "atlas-lm" in by_variant:
        found = by_variant["atlas-lm"]
        direct = found[(found["probe"] == "direct") & (found["source"] != found["lang"])]
        different = direct[~(direct["same_subject"] | direct["same_object"])]
        subject = direct[direct["same_subject"] & ~direct["same_object"]]
        sentences.append(
            f"In atlas-lm with each language's own names, transfer is {told(_effect(subject))} where only the subject "
            f"is written alike and {told(_effect(different))} where nothing is: what carries an edit over is the "
            "subject's tokens."
            if _effect(subject).low > max(_effect(different).high, 0)
            else f"In atlas-lm with each language's own names, transfer is {told(_effect(different))} where nothing "
            "is written alike."
        )
    for name, found in by_variant.items():
        if sentence := _asymmetry(found, name):
            sentences.append(sentence)
    return sentences


def _asymmetry(found: pd.DataFrame, name: str) -> str | None:
    """The language that gives and takes most differently, if by more than both intervals; means hide such a one."""
    direct = found[(found["probe"] == "direct") & (found["source"] != found["lang"])]
    pairs = {
        lang: (_effect(direct[direct["source"] == lang]), _effect(direct[direct["lang"] == lang]))
        for lang in dict.fromkeys(direct["source"])
    }
    apart = {lang: abs(out.value - into.value) for lang, (out, into) in pairs.items()
             if out.high < into.low or into.high < out.low}  # fmt: skip
    if not apart:
        return None
    lang = max(apart, key=apart.get)
    out, into = pairs[lang]
    return (
        f"{name}: edits made in {lang} reach other languages in {told(out)} of the cases, edits made elsewhere reach "
        f"{lang} in {told(into)}; means over languages hide this, and it is not explained here."
    )


def about_model(found: pd.DataFrame, name: str, data: str) -> list[str]:
    """Transfer in a real model: raw, without identical strings, and what follows from an edit.

    Args:
        found: `transfer_analysis.gains` of one data set.
        name: Of the model.
        data: Of the data set.
    """
    parts = explained(found)
    raw, left, share = parts["raw"], parts["different"], parts["share"]
    own = over_facts(_direct(found, same=True), "gain_chosen")
    sentences = [
        f"{name}, {data}, n = {raw.n} facts: an edit is chosen {told(own)} more often than before in its own language, "
        f"and {told(raw)} more often than after an unrelated edit in another one."
    ]
    if left.n:
        explanation = (
            f"identical strings explain {share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of"
            if share.value > 0
            else "identical strings explain nothing of"
        )
        sentences.append(
            f"Where neither subject nor object is written alike it is {told(left)} (n = {left.n}): "
            + (
                f"{explanation} these facts' raw transfer, and the rest is no copy of a whole string."
                if left.low > 0
                else "no transfer beyond identical strings is shown."
            )
        )
    probes = by_probe(found).set_index(["question", "asked in"])
    for probe, means in (("implied", "what follows from the edit"), ("reversed", "the relation backwards")):
        rows = found[(found["probe"] == probe) & (found["edit"] == "fact")]
        own_rows, others = rows[rows["source"] == rows["lang"]], rows[rows["source"] != rows["lang"]]
        if (probe, "others") not in probes.index:
            continue
        mine, there = over_facts(own_rows, "gain_chosen"), over_facts(others, "gain_chosen")
        shown = [where for where, gain in (("its own language", mine), ("others", there)) if gain.low > 0]
        verdict = f"an edit changes it in {' and in '.join(shown)}" if shown else "an edit is not shown to change it"
        sentences.append(
            f"Asked for {means}, gains are {told(mine)} in the edited language and {told(there)} in others: {verdict}."
        )
    return sentences


def about_sequences(frames: Mapping[str, pd.DataFrame], name: str, reference: str = UNPROJECTED) -> list[str]:
    """Whether projecting off past keys suppresses transfer: methods after the same sequence, and its order."""
    table, sentences = beside_unprojected(frames, reference), []
    if len(table):
        less, more = (table.loc[table["verdict"] == verdict, "difference"] for verdict in ("less", "more"))
        together = f", all {len(table)} comparisons taken together by Bonferroni" if len(table) > 1 else ""
        sentences.append(
            f"{name}, after the whole sequence, beyond what facts not edited gain (n = {table['n'].min()} facts"
            f"{together}): beside {reference}, {_listed(less)} shown to reach other languages less, and "
            f"{_listed(more)} shown to reach them more."
        )
    for label in frames:
        method, _, order = label.partition(", ")
        if order and method in frames:
            row = sequence_differences({method: frames[method], label: frames[label]}, method).iloc[0]
            sources = [frames[x].groupby("fact")["source"].first() for x in (method, label)]
            both = pd.concat(sources, axis=1, keys=["usual", "other"], join="inner")
            moved = int((both["usual"] != both["other"]).sum())  # another order deals the facts to other languages
            verdict = "matters" if row["low"] > 0 or row["high"] < 0 else "is not shown to matter"
            what = "the order, or which language edits which fact," if moved else "the order"
            sentences.append(
                f"{name}, {method}: with {order} the gain in other languages changes by {row['other languages']} over "
                f"the facts both sequences edit (n = {row['n']}, {moved} of them in another language): {what} "
                f"{verdict}."
            )
    return sentences


def _listed(differences: pd.Series) -> str:
    names = [difference.partition(" − ")[0] for difference in differences]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}" if names else "no method is"


def limits(facts: int, choices: int) -> list[str]:
    """What the numbers cannot carry."""
    return [
        f"A forced choice among {choices} answers says which of them is likeliest, not that the model would say it; "
        "exact match, in the tables, says that and is lower.",
        f"{facts} facts of one data set, one seed and one set of layers: an interval covers the choice of facts, not "
        "that of the model, the prompts or the method's settings.",
        "Placebos are asked the edit prompt alone, so the gains of all other questions are not less what any "
        "disturbance of that size does.",
        "Transfer that stays when no string is alike is shared knowledge or shared form; only the controlled models, "
        "where it is known what was told in which language, can tell these apart.",
    ]


def _direct(found: pd.DataFrame, same: bool) -> pd.DataFrame:
    rows = found[(found["probe"] == "direct") & (found["edit"] == "fact")]
    return rows[(rows["source"] == rows["lang"]) == same]


def _transfer(found: pd.DataFrame) -> Estimate:
    return _effect(found[(found["probe"] == "direct") & (found["source"] != found["lang"])])


def _effect(rows: pd.DataFrame) -> Estimate:
    return transfer_of(rows[rows["edit"] == "fact"], rows[rows["edit"] == "unrelated"])
