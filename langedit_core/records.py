"""The one record schema: a fact in one language, the questions testing its edit, and sets of facts.

The subject decides the split, first8(sha256(group)) mod 8, so one country is never both edited and held out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from langedit_core.errors import RefusedInput, unknown
from langedit_core.languages import LANGUAGES

KINDS = ("edit", "paraphrase", "neighbour_same", "neighbour_near", "neighbour_far", "locality", "portability")
GROUPS = {  # fields of a fact, and the kinds of questions that they hold
    "paraphrases": ("paraphrase",),
    "neighbours": ("neighbour_same", "neighbour_near", "neighbour_far", "locality"),
    "portability": ("portability",),
}
SPLITS = ("edit", "corpus", "tune")
Deal = Literal["rounds", "lists"]
LONGEST = 2_000  # characters; longer texts are pasted documents, not questions
# Control characters, line and paragraph separators, lone surrogates (which no UTF-8 file can hold), and characters that
# turn the direction of what follows, so that a text is not what it looks like.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# Marks of direction show nothing, but a subject with one has other tokens; natural data sets have them in long texts.
_MARKS = re.compile("[\u061c\u200e\u200f]")


def printable(text: str, longest: int = LONGEST) -> bool:
    """Whether a text is free of control characters and no longer than a record may be."""
    return len(text) <= longest and not _UNPRINTABLE.search(text)


def digest(*parts: str) -> str:
    """SHA-256 (hexadecimal) of the parts joined by "|"; every choice made in the data goes through it."""
    return hashlib.sha256("|".join(parts).encode("utf-8")).hexdigest()


def split_of(group: str) -> str:
    """Split of a subject: "corpus" (feeds C₀ only), "tune" (hyper-parameters, neighbours) or "edit"."""
    return {0: "corpus", 4: "tune"}.get(int(digest(group)[:8], 16) % 8, "edit")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One question and the answer that is checked.

    Attributes:
        prompt: Complete text, nothing left to fill in.
        answer: What should follow, without the language's join.
        kind: One of `KINDS`.
    """

    prompt: str
    answer: str
    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("probe kind", self.kind, KINDS)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact in one language, with the object it is edited to and the questions that test the edit.

    Attributes:
        id: Language-free identifier such as "currency/SE" or "mzsre/17".
        lang: Language code.
        relation: Relation name; "zsre" for mzsre.
        subject: The text that replaces "{}".
        prompt: Question with exactly one "{}" where the subject goes.
        target: The new, counterfactual object.
        truth: The object before the edit, None where the source does not tell.
        paraphrases: Other wordings of the prompt, answered by the target.
        neighbours: Questions whose answers must not change.
        portability: Questions whose answers should follow from the edit.
            A list of any of these becomes a tuple.

    Raises:
        RefusedInput: If a text is empty, too long, unprintable or has the wrong number of "{}", a question's kind is
            not one of its field's (`GROUPS`), or if there is white
            space behind the prompt or around target or truth: what stands between them is the language's.
    """

    id: str
    lang: str
    relation: str
    subject: str
    prompt: str
    target: str
    truth: str | None = None
    paraphrases: tuple[Probe, ...] | list[Probe] = ()
    neighbours: tuple[Probe, ...] | list[Probe] = ()
    portability: tuple[Probe, ...] | list[Probe] = ()

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            raise self._refused(str(unknown("language", self.lang, LANGUAGES)))
        for name in ("id", "relation", "subject", "prompt", "target"):
            self._check(name, getattr(self, name), braces=1 if name == "prompt" else 0)
        if self.truth is not None:
            self._check("truth", self.truth)
        for group, kinds in GROUPS.items():
            object.__setattr__(self, group, tuple(getattr(self, group)))
            for probe in getattr(self, group):
                if not isinstance(probe, Probe):
                    raise self._refused(f"{group} holds {type(probe).__name__} {probe!r:.60}, expected Probe(...)")
                if probe.kind not in kinds:
                    raise self._refused(
                        f"{group} holds a question of kind {probe.kind!r}; expected {' or '.join(kinds)}"
                    )
                self._check(f"{probe.kind} prompt", probe.prompt)
                self._check(f"{probe.kind} answer", probe.answer)

    @property
    def label(self) -> str:
        """What tells this fact from all others, for people: "capital/SE (de)"."""
        return f"{self.id} ({self.lang})"

    @property
    def opening(self) -> str:
        """The prompt up to the end of the subject, which is all that its key depends on."""
        return self.prompt.partition("{}")[0] + self.subject

    def _refused(self, message: str) -> RefusedInput:
        shown = repr(self.prompt)[:120]
        return RefusedInput(f"{message} (prompt {shown})", record=str(self.id), lang=str(self.lang))

    def _check(self, name: str, text: str, *, braces: int = 0) -> None:
        if not isinstance(text, str):
            raise self._refused(f"{name} is {type(text).__name__}, expected text")
        if not text.strip():
            raise self._refused(f"{name} is empty")
        # What is edited would be another thing. Probes only ask, and before a subject there may be the space that gives
        # it the same tokens in every language.
        edges = {"prompt": text.rstrip(), "target": text.strip(), "truth": text.strip()}.get(name, text)
        if text != edges:
            raise self._refused(
                f"{name} {ascii(text)[:80]} begins or ends in white space; remove it, the space between is put there"
            )
        if len(text) > LONGEST:
            raise self._refused(f"{name} has {len(text):,} characters, at most {LONGEST:,} are taken")
        if found := _UNPRINTABLE.search(text):
            raise self._refused(f"{name} holds the control character U+{ord(found[0]):04X}; remove it")
        if found := _MARKS.search(text):
            raise self._refused(f"{name} holds the invisible mark of direction U+{ord(found[0]):04X}; remove it")
        if text.count("{}") != braces:
            raise self._refused(f'{name} holds "{{}}" {text.count("{}")} times, expected {braces}')

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)

    @property
    def group(self) -> str:
        """The subject's identity, the same in all relations and languages; the split hashes it."""
        return self.id.removeprefix(f"{self.relation}/")


def same_keys(facts: Iterable[Fact]) -> list[list[Fact]]:
    """Groups of facts with one key: one language, and prompts that are alike up to the end of the subject."""
    groups: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in facts:
        groups[fact.lang, fact.opening].append(fact)
    return [group for group in groups.values() if len(group) > 1]


@dataclass(frozen=True, kw_only=True)
class FactSet:
    """Facts in several languages, their splits, and the sentences C₀ is estimated from.

    Attributes:
        name: Name of the data set, for result files.
        facts: Fact id → language → fact; a language may be missing.
        corpus: Language → sentences of the corpus split.
        splits: Fact id → "edit", "corpus" or "tune".
        dropped: Reason → language → number of records not used.
        provenance: Sources, licences, options: whatever a report should print.
        fingerprint: SHA-256 of facts, corpus and splits; computed, and compared where one is given.

    Raises:
        ValueError: If keys disagree with the facts, a subject lies in two splits, or the fingerprint differs.
    """

    name: str
    facts: Mapping[str, Mapping[str, Fact]]
    corpus: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, str]
    dropped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.facts.keys() != self.splits.keys():
            odd = sorted(self.facts.keys() ^ self.splits.keys())[:5]
            raise ValueError(f"facts and splits must have the same ids; in one only: {', '.join(odd)}")
        split_by_group: dict[str, str] = {}
        for key, by_lang in self.facts.items():
            split = self.splits[key]
            if split not in SPLITS:
                raise unknown("split", split, SPLITS)
            for lang, fact in by_lang.items():
                if (fact.id, fact.lang) != (key, lang):
                    raise ValueError(f"fact {fact.id!r} in {fact.lang!r} is filed under {key!r}, {lang!r}")
                if split_by_group.setdefault(fact.group, split) != split:
                    raise ValueError(f"subject {fact.group!r} lies in two splits; split facts by their group")
        found = self._hash()
        if self.fingerprint and self.fingerprint != found:
            raise ValueError(f"facts hash to {found[:12]}…, expected {self.fingerprint[:12]}…; load them afresh")
        object.__setattr__(self, "fingerprint", found)

    def _hash(self) -> str:
        sha = hashlib.sha256()

        def feed(*row: object) -> None:
            sha.update(json.dumps(row, ensure_ascii=True).encode() + b"\n")

        for key in sorted(self.facts):
            feed(key, self.splits[key])
            for lang in sorted(self.facts[key]):
                f = self.facts[key][lang]
                probes = [[p.kind, p.prompt, p.answer] for p in f.paraphrases + f.neighbours + f.portability]
                feed(lang, f.relation, f.subject, f.prompt, f.target, f.truth, probes)
        for lang in sorted(self.corpus):
            feed(lang, list(self.corpus[lang]))
        return sha.hexdigest()

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages with at least one fact, in the order of `LANGUAGES`."""
        present = {lang for by_lang in self.facts.values() for lang in by_lang}
        return tuple(lang for lang in LANGUAGES if lang in present)

    def counts(self) -> dict[str, dict[str, int]]:
        """Number of facts per split and language: split → language → count."""
        tally = Counter((self.splits[key], lang) for key, by_lang in self.facts.items() for lang in by_lang)
        return {split: {lang: tally[split, lang] for lang in self.languages} for split in SPLITS}

    def select(
        self,
        langs: Sequence[str],
        n: int,
        split: str = "edit",
        seed: int = 0,
        parallel: bool = False,
        usable: Callable[[Fact], bool] = lambda fact: True,
        deal: Deal = "rounds",
    ) -> list[list[Fact]]:
        """Draws n facts per language, the same ones on every machine.

        Facts are ordered by sha256(seed|id). Parallel selections take the first n that all languages share; distinct
        ones are dealt, either a fact to every list in turn, so that a smaller n gives a prefix of a larger one, or all
        of a list's facts before the next list's, so that a list depends on the languages before it alone.

        Args:
            langs: Language codes in the order wanted; a repeated code gets its own list.
            n: Facts per language.
            split: Which split to draw from.
            seed: Changes the order, hence the draw.
            parallel: True gives every language the same ids; False never uses an id twice.
            usable: Facts it refuses are passed over, for example those a tokenizer cannot locate.
            deal: `rounds` or `lists`, for distinct selections.

        Returns:
            One list of n facts per entry of `langs`.

        Raises:
            ValueError: If a language or split is unknown, or there are too few facts (says how many).
        """
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        for lang in langs:
            if lang not in self.languages:
                raise unknown(f"language of the data set {self.name!r}", lang, self.languages)
        if n < 1 or not langs:
            raise ValueError(f"asked for {n} facts in {len(langs)} languages; ask for at least one of each")
        ids = sorted((i for i in self.facts if self.splits[i] == split), key=lambda i: digest(str(seed), i))
        if parallel:
            everywhere = (i for i in ids if all(lang in self.facts[i] for lang in langs))
            shared = list(islice((i for i in everywhere if all(usable(self.facts[i][x]) for x in langs)), n))
            if len(shared) < n:
                raise ValueError(
                    f"{n} facts asked for, but only {len(shared)} of the split {split!r} of {self.name!r} "
                    f"exist in all of {', '.join(dict.fromkeys(langs))}; ask for fewer or other languages"
                )
            return [[self.facts[i][lang] for i in shared[:n]] for lang in langs]
        hands: list[list[Fact]] = [[] for _ in langs]
        used: set[str] = set()
        queues = [iter([i for i in ids if lang in self.facts[i]]) for lang in langs]
        turns = list(range(len(langs))) * n
        for turn in turns if deal == "rounds" else sorted(turns):
            lang, hand = langs[turn], hands[turn]
            chosen = next((i for i in queues[turn] if i not in used and usable(self.facts[i][lang])), None)
            if chosen is None:
                there = {code: sum(code in self.facts[i] for i in ids) for code in dict.fromkeys(langs)}
                total = ", ".join(f"{code}={count}" for code, count in there.items())
                to = "each" if deal == "rounds" else f"to list {turn + 1}, {lang}"
                raise ValueError(
                    f"{n} different facts asked for in each of {len(langs)} lists, but split {split!r} "
                    f"of {self.name!r} gives only {len(hand)} {to} ({total} in all, shared between the "
                    f"languages); ask for fewer or set parallel=True"
                )
            used.add(chosen)
            hand.append(self.facts[chosen][lang])
        return hands
