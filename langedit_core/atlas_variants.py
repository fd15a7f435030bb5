"""Variants of what atlas-lm is told, so that sharing between languages is a fact of training and not a guess.

What each guarantees. Apart: nothing of a fact is ever seen in five languages, so an answer there is a guess or comes
from the subject's other facts. Together, as copies: every fact is seen in six, which six separate copies would satisfy
too; whether they are shared shows in `solo` facts, told in one language and asked in five, beside `never` facts, told
in none. Bridged: translations and foreign names tie the languages' names together, which sharing can be built on. With
the same names a subject is the same tokens everywhere; with invented ones no two languages have a subject in common.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

from langedit_core.errors import unknown
from langedit_core.languages import CORE
from langedit_core.records import digest, split_of

NAMES = ("own", "same", "invented")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A controlled corpus.

    Attributes:
        name: Of the model trained on it.
        apart: Every fact is told in one language only (facts are dealt to the languages by their hash).
            Otherwise in all six, save `solo` facts, told in one, and `never` facts, told in none.
        names: How a subject is called: `own` as each language does; `same` by its English name in all languages;
            `invented` by a made-up name in each, so that no subject has a string in common between languages.
            Objects keep their own names.
        bridged: Tells also how names translate, and asks with a subject's name from another language.
    """

    name: str
    apart: bool = False
    names: str = "own"
    bridged: bool = False

    def __post_init__(self) -> None:
        if self.names not in NAMES:
            raise unknown("way to name subjects", self.names, NAMES)
        if self.apart and self.bridged:
            raise ValueError("facts told apart cannot be bridged: translations would join what is to be apart")


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(name="atlas-lm", bridged=True),
        Variant(name="atlas-lm-copies"),
        Variant(name="atlas-lm-same-names", names="same"),
        Variant(name="atlas-lm-invented-names", names="invented"),
        Variant(name="atlas-lm-apart", apart=True),
        Variant(name="atlas-lm-apart-same-names", apart=True, names="same"),
        Variant(name="atlas-lm-apart-invented-names", apart=True, names="invented"),
    )
}
"""`atlas-lm` is shipped; the others are trained by scripts/train_atlas_lm.py."""


def role_of(fact: str) -> str:
    """How a fact is told where facts are not kept apart, from its id; only facts of the split "edit" are held back.

    `solo` (a tenth of them) is transfer's test: told in one language, asked in five. `never` (another tenth) is its
    control: what a guess from the relation and from the subject's other facts is worth.
    """
    if split_of(fact.split("/", 1)[1]) != "edit":
        return "told"
    return {0: "solo", 1: "never"}.get(int(digest("atlas-lm", fact)[:8], 16) % 10, "told")


def language_of(fact: str) -> str:
    """The one language a fact is told in, where it is told in one."""
    return CORE[int(digest("atlas-lm", fact, "language")[:8], 16) % len(CORE)]


def invented_names(entities: Sequence[str]) -> dict[str, dict[str, str]]:
    """A name of three or more syllables per entity and language, no two alike."""
    consonants = [c for c in string.ascii_lowercase if c not in "aeiouqxy"]
    syllables = {lang: [c + v for c in consonants for v in "aeiou"] for lang in CORE}
    syllables["zh"] = list("阿巴卡达尔法加哈伊杰克拉马纳奥帕里萨塔乌瓦亚扎比波德多戈古科库利洛米莫尼诺佩罗塞索特托维")
    taken: set[str] = set()
    found: dict[str, dict[str, str]] = {lang: {} for lang in CORE}
    for lang in CORE:
        for entity in entities:
            number = 0
            while (name := _spell(digest("name", entity, lang, str(number)), syllables[lang])) in taken:
                number += 1
            taken.add(name)
            found[lang][entity] = name
    return found


def _spell(hash_: str, syllables: list[str]) -> str:
    parts = (int(hash_[i : i + 6], 16) % len(syllables) for i in range(0, 18, 6))
    return "".join(syllables[part] for part in parts).capitalize()
