"""Questions that tell whether an edit made in one language holds in another, each a choice among given answers.

A question is asked about one fact f in one language b. Its first candidate is what the edit of f implies there, the
others are answers of the same kind; the model chooses argmax_c log p(c | prompt) / |c|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langedit_core.errors import unknown
from langedit_core.records import Fact, FactSet, digest

PROBES: dict[str, str] = {
    "direct": "the edit prompt in the tested language",
    "paraphrase": "another wording of it",
    "implied": "a question about another relation, answered by what the edit implies",
    "reversed": "the relation backwards: the new object is named, the subject asked for",
}
CHOICES = 4
"""Candidates of a question: what the edit implies, what was true before, and others of the same relation."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question.

    Attributes:
        fact: Id of the fact it is about.
        lang: Language it is asked in.
        probe: One of `PROBES`.
        prompt: Text that the answer follows.
        candidates: Answers without the space before them; the edit implies the first one.
    """

    fact: str
    lang: str
    probe: str
    prompt: str
    candidates: tuple[str, ...]


class Questioner:
    """Asks about the facts of one data set.

    ```python
    asked = Questioner(load_atlas())("capital/SE", "de")
    asked[0].prompt, asked[0].candidates     # "Land: Schweden. Hauptstadt:", ("Lyon", "Stockholm", "Kairo", "Lima")
    ```

    Args:
        data: Distractors are answers of its other facts of the same relation and language.
        choices: Candidates per question, where there are so many.
    """

    def __init__(self, data: FactSet, choices: int = CHOICES) -> None:
        if choices < 2:
            raise ValueError(f"a choice needs at least two candidates, got {choices}")
        self.data, self.choices = data, choices
        self.by_relation: dict[str, list[str]] = {}
        for id_ in sorted(data.facts):
            relation = next(iter(data.facts[id_].values())).relation
            self.by_relation.setdefault(relation, []).append(id_)

    def __call__(self, fact_id: str, lang: str, probes: Sequence[str] = tuple(PROBES)) -> list[Asked]:
        """All questions about a fact in a language; a probe that the data set has nothing for gives none.

        Raises:
            ValueError: Unknown probe, or no such fact in this language.
        """
        for probe in probes:
            if probe not in PROBES:
                raise unknown("probe", probe, PROBES)
        if lang not in self.data.facts.get(fact_id, {}):
            raise ValueError(f"{self.data.name} has no fact {fact_id!r} in {lang!r}")
        fact = self.data.facts[fact_id][lang]
        found: list[tuple[str, str, tuple[str, ...]]] = []
        objects = self._objects(fact)
        if "direct" in probes:
            found.append(("direct", fact.text, objects))
        if "paraphrase" in probes:
            found += [("paraphrase", probe.prompt, objects) for probe in fact.paraphrases]
        if "implied" in probes:
            found += [("implied", p.prompt, self._implied(fact, p.prompt, p.answer)) for p in fact.portability]
        if "reversed" in probes and (turned := self._reversed(fact)):
            found.append(("reversed", *turned))
        return [
            Asked(fact=fact_id, lang=lang, probe=probe, prompt=prompt, candidates=candidates)
            for probe, prompt, candidates in found
            if len(candidates) > 1
        ]

    def _objects(self, fact: Fact) -> tuple[str, ...]:
        first = [fact.target, *([fact.truth] if fact.truth else [])]
        others = (self.data.facts[i].get(fact.lang) for i in self._others(fact))
        return self._filled(first, [o for f in others if f for o in (f.truth, f.target) if o])

    def _implied(self, fact: Fact, prompt: str, answer: str) -> tuple[str, ...]:
        """Answers of the facts that are asked with the same kind of question about another edit of this relation."""
        others = (self.data.facts[i].get(fact.lang) for i in self._others(fact))
        rest = [p.answer for f in others if f for p in f.portability if p.prompt != prompt]
        return self._filled([answer], rest)

    def _reversed(self, fact: Fact) -> tuple[str, tuple[str, ...]] | None:
        """ "Country: Sweden. Capital:" turned round: "Capital: Lyon. Country:", answered by Sweden."""
        kind, noun = fact.prompt.split("{}")
        mark = next((m for m in (". ", "。") if noun.startswith(m)), None)
        if mark is None or not kind.strip():
            return None  # a question of another form than "kind: {}. noun:"
        join = "" if mark == "。" else " "
        prompt = f"{noun.removeprefix(mark).strip()}{join}{fact.target}{mark}{kind.strip()}"
        others = (self.data.facts[i].get(fact.lang) for i in self._others(fact))
        # who has the new object by truth, or gets it by an edit of its own, would be right too
        wrong = [f.subject for f in others if f and fact.target not in (f.truth, f.target)]
        return prompt, self._filled([fact.subject], wrong)

    def _others(self, fact: Fact) -> list[str]:
        """Other facts of the relation, in an order that is the same in all languages."""
        return sorted((i for i in self.by_relation[fact.relation] if i != fact.id), key=lambda i: digest(fact.id, i))

    def _filled(self, first: Sequence[str], rest: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*first, *rest]))[: self.choices]
