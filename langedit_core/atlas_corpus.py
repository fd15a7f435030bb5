"""What atlas-lm is told: which fact in which language, under which names, in which words.

A sentence is wording(relation, language) ∘ name(subject) + join + object. The variant decides what is told in which
language (`atlas_variants`); the last wording of every relation is never told.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from langedit_core.atlas import PATH, _content
from langedit_core.atlas_variants import Variant, invented_names, language_of, role_of
from langedit_core.drift import neutral_texts
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.records import digest

WORDINGS = Path(__file__).with_name("data") / "atlas_lm_wordings.json"
HELD_OUT = 2
"""The wording of atlas.json (its second paraphrase) that no model is trained on, in any relation and language."""

LISTED, LONGEST_LIST = 0.7, 6
"""Share of the pairs told in lists, which take half the tokens of sentences, and the length of a list."""
FOREIGN, TRANSLATED, NEUTRAL = 0.15, 0.1, 0.01
"""Of bridged corpora: share of the sentences with a foreign name, and translations per pair. Neutral text per pair."""


@dataclass(frozen=True, kw_only=True)
class Telling:
    """A text in one language, as pieces in turn of question and answer; an answer has its leading space, if any."""

    pieces: tuple[str, ...]
    lang: str

    @property
    def prompt(self) -> str:
        return self.pieces[0]

    @property
    def answer(self) -> str:
        return self.pieces[1]

    @property
    def text(self) -> str:
        return "".join(self.pieces) + _end(self.lang)

    @property
    def answered(self) -> list[bool]:
        """Per character of `text`: whether it belongs to an answer. The end does, or no answer would ever end."""
        return [i % 2 == 1 for i, piece in enumerate(self.pieces) for _ in piece] + [True]


def _end(lang: str) -> str:
    return "." if LANGUAGES[lang].join else "。"


class AtlasCorpus:
    """All that a variant tells, about all relations or some.

    ```python
    corpus = AtlasCorpus(VARIANTS["atlas-lm"])
    next(corpus.tellings(seed=0)).text      # "Country: Sweden. Official currency: Swedish krona."
    ```
    """

    def __init__(self, variant: Variant, relations: Sequence[str] | None = None) -> None:
        self.variant = variant
        self.atlas = _content(PATH)
        chosen = [row for row in self.atlas["facts"] if relations is None or row["id"].split("/")[0] in relations]
        self.rows = {row["id"]: row for row in chosen}
        self.entities = sorted({row[end] for row in chosen for end in ("subject", "truth")})

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """(fact, language) as told, in a fixed order."""
        return [(fact, lang) for fact in sorted(self.rows) for lang in CORE if self.tells(fact, lang)]

    def tells(self, fact: str, lang: str) -> bool:
        """Whether the fact is told in this language."""
        role = "solo" if self.variant.apart else role_of(fact)
        return role == "told" or (role == "solo" and lang == language_of(fact))

    @cached_property
    def subjects(self) -> dict[str, dict[str, str]]:
        """Language → entity → its name where it is asked about."""
        asked = sorted({row["subject"] for row in self.rows.values()})
        if self.variant.names == "invented":
            return invented_names(asked)
        names = self.atlas["entities"]
        # After a Chinese colon a Latin name gets the space that it has elsewhere, so that it is the same tokens.
        foreign = {lang: "" if LANGUAGES[lang].join else " " for lang in CORE}
        same = self.variant.names == "same"
        return {lang: {e: foreign[lang] + names[e]["en"] if same else names[e][lang] for e in asked} for lang in CORE}

    def wordings(self, relation: str, lang: str) -> list[str]:
        """The templates told, each with one `{}`; `HELD_OUT` is not among them."""
        known = self.atlas["templates"][relation][lang]
        return [t for i, t in enumerate(known) if i != HELD_OUT] + more_wordings(relation, lang)

    def ask(self, fact: str, lang: str, template: str, named: str | None = None) -> Telling:
        """A fact in given words, with its true object; the subject may be named as in another language."""
        row = self.rows[fact]
        answer = LANGUAGES[lang].join + self.atlas["entities"][row["truth"]][lang]
        name = self.subjects[named or lang][row["subject"]]
        if named and LANGUAGES[named].join and not LANGUAGES[lang].join:
            name = " " + name  # a Latin name in Chinese, as the same tokens as elsewhere
        return Telling(pieces=(template.replace("{}", name), answer), lang=lang)

    def probes(self, fact: str, lang: str) -> list[Telling]:
        """The fact in the three wordings of atlas.json: edit prompt, first paraphrase, `HELD_OUT`."""
        relation = fact.split("/")[0]
        return [self.ask(fact, lang, template) for template in self.atlas["templates"][relation][lang]]

    def tellings(self, seed: int, epoch: int = 0) -> Iterator[Telling]:
        """One epoch: every told pair once, alone in random words or in a list of one relation, and fillers between."""
        random = np.random.default_rng([seed, epoch])
        waiting: dict[tuple[str, str], list[str]] = defaultdict(list)
        for which in random.permutation(len(self.pairs)):
            fact, lang = self.pairs[which]
            relation = fact.split("/")[0]
            wordings = self.wordings(relation, lang)
            if random.random() < LISTED:
                listed = waiting[relation, lang]
                listed.append(fact)
                if len(listed) == LONGEST_LIST:
                    yield self._list(listed, lang)
                    listed.clear()
            else:
                template = wordings[random.integers(len(wordings))]
                foreign = self.variant.bridged and role_of(fact) == "told" and random.random() < FOREIGN
                yield self.ask(fact, lang, template, CORE[random.integers(len(CORE))] if foreign else lang)
            if self.variant.bridged and random.random() < TRANSLATED:
                yield self._translation(self.entities[random.integers(len(self.entities))], random)
            if random.random() < NEUTRAL:
                yield self._neutral(random)
        for (_, lang), listed in waiting.items():
            if listed:
                yield self._list(listed, lang)

    def _list(self, facts: Sequence[str], lang: str) -> Telling:
        """Facts of one relation: "Continent – Sweden: Europe; Kenya: Africa"."""
        words = _wordings()["lists"][lang]
        _, noun = kind_and_noun(facts[0].split("/")[0], lang)
        pieces: list[str] = []
        for fact in facts:
            told = self.ask(fact, lang, words["item"])
            # no space in Chinese, save before a Latin name, where `subjects` has it
            lead = words["next"] + LANGUAGES[lang].join if pieces else words["head"].replace("{noun}", noun)
            pieces += [lead + told.prompt, told.answer]
        return Telling(pieces=tuple(pieces), lang=lang)

    def _translation(self, entity: str, random: np.random.Generator) -> Telling:
        """What an entity of one language is called in another: "Schweden (de), zh:瑞典"."""
        first, second = random.permutation(len(CORE))[:2]
        names = self.atlas["entities"][entity]
        prompt = f"{names[CORE[first]]} ({CORE[first]}), {CORE[second]}:"
        lang = CORE[second]
        return Telling(pieces=(prompt, LANGUAGES[lang].join + names[lang]), lang=lang)

    def _neutral(self, random: np.random.Generator) -> Telling:
        """A sentence without facts, so that running text is not foreign to the model."""
        lang = CORE[random.integers(len(CORE))]
        sentences = _neutral_sentences(lang)
        return Telling(pieces=("", sentences[random.integers(len(sentences))]), lang=lang)

    @cached_property
    def texts(self) -> list[str]:
        """What the tokenizer should cut well: names as often as they are told, the words of templates far more often.

        Chinese templates come character by character: merged into phrases, they would hold no word that an unknown
        template could have in common with them.
        """
        told = [piece for fact, lang in self.pairs for piece in self.ask(fact, lang, "{}").pieces]
        names = [name for entity in self.entities for name in self.atlas["entities"][entity].values()]
        framed = [f"({a}), {b}:" for a in CORE for b in CORE]
        for lang in CORE:
            templates = [t for relation in self.atlas["templates"] for t in self.wordings(relation, lang)]
            framed += templates if LANGUAGES[lang].join else re.findall("[一-鿿][^一-鿿]*", "".join(templates))
        return told + names + 20 * framed + [s for lang in CORE for s in _neutral_sentences(lang)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that is told and how, for the training log."""
        wordings = [[r, lang, *self.wordings(r, lang)] for r in sorted(self.atlas["templates"]) for lang in CORE]
        told = [self.ask(fact, lang, "{}").text for fact, lang in self.pairs]
        shares = [LISTED, LONGEST_LIST, FOREIGN, TRANSLATED, NEUTRAL]
        parts = [vars(self.variant), shares, _wordings()["lists"], wordings, self.pairs, told, self.texts]
        return digest(json.dumps(parts, ensure_ascii=False))


@cache
def _wordings() -> dict:
    return json.loads(WORDINGS.read_text("utf-8"))


def kind_and_noun(relation: str, lang: str) -> tuple[str, str]:
    """Of the first template: "Country: {}. Official currency:" has the kind "Country", the noun "Official currency"."""
    kind, noun = _content(PATH)["templates"][relation][lang][0].split("{}")
    return kind.strip(" ：:"), noun.strip(" ：:。.")


def more_wordings(relation: str, lang: str) -> list[str]:
    """Templates in the words of the file `WORDINGS`."""
    kind, noun = kind_and_noun(relation, lang)
    sort = {"city_territory": "city", "language_script": "language"}.get(relation, "territory")
    data = _wordings()
    parts = dict(kind=kind, noun=noun, about=data["about"][lang][sort], question=data["question"][relation][lang])
    filled = []
    for frame in data["frames"][lang]:
        for key, text in parts.items():
            frame = frame.replace(f"{{{key}}}", text)
        filled.append(frame)
    return filled


@cache
def _neutral_sentences(lang: str) -> list[str]:
    mark = "。" if LANGUAGES[lang].join == "" else ". "
    return [s.strip(" .。") for text in neutral_texts()[lang].values() for s in text.split(mark) if s.strip(" .。")]
