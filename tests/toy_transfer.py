"""Invented facts that every kind of question can be asked about, and frames of transfer whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import conftest
import pandas as pd
import toy

from langedit_core.editors import EditSettings, settings_for
from langedit_core.nullspace import Threshold
from langedit_core.records import Fact, FactSet, Probe
from langedit_core.transfer import COLUMNS, TransferSettings
from langedit_core.values import ValueSettings

PROMPTS = {
    "capital": {"en": "Country: {}. Capital:", "de": "Land: {}. Hauptstadt:", "zh": "国家：{}。首都："},
    "money": {"en": "Country: {}. Currency:", "de": "Land: {}. Währung:", "zh": "国家：{}。货币："},
}
CODES = ["AAA", "BBB", "CCC", "DDD", "EEE", "FFF", "GGG", "HHH", "III"]  # the same in every language
LANGS = ("en", "de", "zh")


def fact(number: int, lang: str = "en", relation: str = "capital", **changes) -> Fact:
    """Fact `number` of a relation: an old and a new object, another wording, and a code that follows from the edit."""
    texts = toy.CHINESE_TARGETS if lang == "zh" else toy.TARGETS
    code = CODES[number]
    fields = dict(
        id=f"{relation}/{number}", relation=relation, prompt=PROMPTS[relation][lang], truth=texts[(number + 3) % 9],
        portability=(Probe(prompt=f"{toy.fact(number, lang).subject} = ", answer=code, kind="portability"),),
    )  # fmt: skip
    return toy.fact(number, lang, **(fields | changes))


def fact_set(langs=LANGS, size: int = 9, relations=("capital",), changed: dict | None = None) -> FactSet:
    """`changed`: (fact id, language) → the fact that stands there instead, None for none."""
    facts = {
        f"{relation}/{n}": {lang: fact(n, lang, relation) for lang in langs}
        for relation in relations
        for n in range(size)
    }
    for (id_, lang), other in (changed or {}).items():
        facts[id_].pop(lang) if other is None else facts[id_].update({lang: other})
    return FactSet(
        name="toy", facts=facts, corpus={lang: tuple(conftest.SENTENCES) for lang in langs},
        splits=dict.fromkeys(facts, "edit"),
    )  # fmt: skip


def editing(method: str = "langedit", **changes) -> EditSettings:
    options = dict(
        layers=toy.layers_of(method), values=ValueSettings(steps=3), threshold=Threshold(kind="fraction", value=0.8),
        ridge=0.1,
    )  # fmt: skip
    return settings_for(method, on=options | changes)


SETTINGS = TransferSettings(facts=3, langs=("en", "de", "zh"), prefixes=1, corpus_limit=8)

# --- frames -----------------------------------------------------------------------------------------------------------

Value = Callable[[str, str, str], float]  # fact, source, tested language → value
Identical = Callable[[str, str, str], tuple[bool, bool]]  # the same → whether subject and object are written alike
IDS = tuple(f"capital/{n}" for n in range(10))


def nothing(*_) -> float:
    return 0.0


def different(*_) -> tuple[bool, bool]:
    return False, False


def frame(
    after: Value, *, facts: Sequence[str] = IDS, langs: Sequence[str] = ("en", "de", "zh"), before: float = 0.0,
    random: Value = nothing, unrelated: Value = nothing, identical: Identical = different,
    probe: str = "direct",
) -> pd.DataFrame:  # fmt: skip
    """What `transfer.transfer` gives; `chosen`, `em` and `margin` are the value, half of it and ten times it."""
    rows = []

    def add(fact: str, source: str, lang: str, edit: str, value: float) -> None:
        subject, target = (True, True) if source in ("", lang) else identical(fact, source, lang)
        rows.append(
            dict(fact=fact, relation=fact.split("/")[0], source=source, lang=lang, probe=probe, edit=edit, chosen=value,
                 em=value / 2, margin=10 * value, same_subject=subject, same_object=target)
        )  # fmt: skip

    for id_ in facts:
        for lang in langs:
            add(id_, "", lang, "none", before)
        for source in langs:
            for lang in langs:
                for edit, value in (("fact", after), ("random", random), ("unrelated", unrelated)):
                    add(id_, source, lang, edit, before + value(id_, source, lang))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def sequence(
    gain: Value, *, sources: dict[str, str], langs: Sequence[str] = ("en", "de", "zh"), before: float = 0.25,
    identical: Identical = different,
) -> pd.DataFrame:  # fmt: skip
    """What `transfer.sequence_transfer` gives; every fact is edited in its language of `sources`."""
    rows = []
    for when in ("before", "after"):
        for id_, source in sources.items():
            for lang in langs:
                subject, target = (True, True) if source == lang else identical(id_, source, lang)
                value = before + (gain(id_, source, lang) if when == "after" else 0.0)
                rows.append(
                    dict(fact=id_, source=source, lang=lang, when=when, chosen=value, em=value / 2, margin=10 * value,
                         same_subject=subject, same_object=target)
                )  # fmt: skip
    return pd.DataFrame(rows)


def own(_, source: str, lang: str) -> float:
    """An edit that holds in its own language only."""
    return float(source == lang)


def everywhere(*_) -> float:
    return 1.0
