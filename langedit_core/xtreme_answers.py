"""How a free answer is compared with the true one: MLQA's bag of words, WikiANN's names found in the sentence.

F1 = 2 |said ∩ true| / (|said| + |true|), over words or over (type, start, stop); the released variants stand beside.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nervaluate import Evaluator

from langedit_core.errors import RefusedInput
from langedit_core.languages import language

# --- MLQA -------------------------------------------------------------------------------------------------------------

ARTICLES: dict[str, tuple[str, ...]] = {
    "en": ("a", "an", "the"),
    "es": ("un", "una", "unos", "unas", "el", "la", "los", "las"),
    "de": ("ein", "eine", "einen", "einem", "eines", "einer", "der", "die", "das", "den", "dem", "des"),
    "nl": ("de", "het", "een"),
    "fr": ("un", "une", "des", "le", "la", "les"),
}
"""Removed as whole words. Languages without an entry (Chinese) have no articles."""
_ELIDED = re.compile(r"\bl['’]", re.IGNORECASE)  # French: gone with its apostrophe, or l'hôpital would become lhôpital
_HAN = re.compile("[\u4e00-\u9fa5]")
_ASCII_PUNCTUATION = frozenset(string.punctuation)


def words_of(answer: str, lang: str) -> list[str]:
    """Words of an answer after MLQA's normalisation (arXiv 1910.07475): lower case, no punctuation, no articles.

    Punctuation is every character of a Unicode category P and the ASCII punctuation; letters of all scripts stay. In
    Chinese every Han character is a word and what stands between them is cut at spaces.
    """
    text = answer.lower()
    if lang == "fr":
        text = _ELIDED.sub(" ", text)
    text = "".join(c for c in text if c not in _ASCII_PUNCTUATION and not unicodedata.category(c).startswith("P"))
    if articles := ARTICLES.get(lang):
        text = re.sub(rf"\b({'|'.join(articles)})\b", " ", text)
    if lang == "zh":
        text = _HAN.sub(lambda found: f" {found.group()} ", text)
    return text.split()


def released_words_of(answer: str) -> list[str]:
    """Words as the released code sees them: "Zürich" becomes "zrich", Chinese becomes nothing."""
    kept = re.sub(r"[^a-z0-9\s]", "", answer.lower())
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def overlap_f1(said: Sequence[str], true: Sequence[str]) -> float:
    """F1 of two bags of words; 0 where they share none, also where both are empty."""
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true)) if common else 0.0


def mlqa_measures(said: str, answers: Sequence[str], lang: str) -> dict[str, float]:
    """Values of one record, each the best over its true answers."""
    words, plain = words_of(said, lang), released_words_of(said)
    true = [words_of(answer, lang) for answer in answers]
    return {
        "mlqa_f1": max(overlap_f1(words, each) for each in true),
        "mlqa_em": float(words in true),
        "mlqa_f1_released": max(overlap_f1(plain, released_words_of(answer)) for answer in answers),
    }


# --- WikiANN ----------------------------------------------------------------------------------------------------------

TYPES = ("PER", "LOC", "ORG")
_LINE = re.compile(rf"\s*({'|'.join(TYPES)})\s*[:：](.*)")


@dataclass(frozen=True, order=True)
class Span:
    """A named entity: tokens `start` to `stop`, `stop` not included."""

    start: int
    stop: int
    type: str


def names_of(text: str) -> list[tuple[str, str]]:
    """(type, name) pairs of lines such as "ORG: name@name"; other lines say nothing."""
    found = (match for line in text.split("\n") if (match := _LINE.fullmatch(line)))
    return [(match[1], name.strip()) for match in found for name in match[2].split("@") if name.strip()]


def locate_names(names: Sequence[tuple[str, str]], text: str, lang: str) -> tuple[list[Span], list[tuple[str, str]]]:
    """Where names stand among the space-separated tokens of a sentence, and those that stand nowhere.

    Longer names choose first, so that "Paris" is not found inside "Paris Saint-Germain" when both are named; each takes
    its leftmost place that is still free. A name is a run of whole tokens. Languages without spaces are written in
    WikiANN one character a token, so there the spaces of a name do not count.

    Returns:
        Spans in the order of the sentence, and the distinct names without a place; a repeat of a name that has its
        place already is neither.
    """
    tokens = text.split()
    unspaced = language(lang).join == ""

    def places(name: str) -> list[tuple[int, int]]:
        if not unspaced:
            wanted = name.split()
            size = len(wanted)
            return [(i, i + size) for i in range(len(tokens) - size + 1) if tokens[i : i + size] == wanted]
        ends = np.cumsum([0, *map(len, tokens)]).tolist()
        joined, wanted = "".join(tokens), "".join(name.split())
        at = {end: i for i, end in enumerate(ends)}
        starts = (m.start() for m in re.finditer(f"(?={re.escape(wanted)})", joined))
        return [(at[s], at[s + len(wanted)]) for s in starts if s in at and s + len(wanted) in at]

    free = [True] * len(tokens)
    spans: list[Span] = []
    nowhere: dict[tuple[str, str], None] = {}
    placed: set[tuple[str, str]] = set()
    for type_, name in sorted(names, key=lambda pair: -len("".join(pair[1].split()))):
        pair = (type_, "".join(name.split()) if unspaced else " ".join(name.split()))
        for start, stop in places(name):
            if all(free[start:stop]):
                free[start:stop] = [False] * (stop - start)
                spans.append(Span(start, stop, type_))
                placed.add(pair)
                break
        else:
            if pair not in placed:
                nowhere[pair] = None
    return sorted(spans), list(nowhere)


def bio_tags(spans: Sequence[Span], tokens: int) -> list[str]:
    """One tag per token: B- at the start of a span, I- inside, O elsewhere."""
    tags = ["O"] * tokens
    for span in spans:
        tags[span.start : span.stop] = [f"B-{span.type}"] + [f"I-{span.type}"] * (span.stop - span.start - 1)
    return tags


def wikiann_measures(said: str, label: str, text: str, lang: str) -> dict[str, float]:
    """Counts of one record: correct, predicted and gold entities; tokens, and those whose tag is right.

    Raises:
        RefusedInput: The true label names something that the sentence does not hold.
    """
    gold, lost = locate_names(names_of(label), text, lang)
    if lost or not gold:
        raise RefusedInput(f"label {label!r} does not name parts of the sentence {text!r}")
    spans, nowhere = locate_names(names_of(said), text, lang)
    tokens = len(text.split())
    true, tags = bio_tags(gold, tokens), bio_tags(spans, tokens)
    # A name that stands nowhere has no tags. Behind the sentence, where no true one is, it counts as the error it is.
    for type_, _ in nowhere:
        tags += [f"B-{type_}", "O"]
    padded = true + ["O"] * (len(tags) - tokens)
    strict = Evaluator([padded], [tags], tags=list(TYPES), loader="list").evaluate()["overall"]["strict"]
    return {
        "wikiann_correct": float(strict.correct),
        "wikiann_predicted": float(strict.actual),
        "wikiann_gold": float(strict.possible),
        "wikiann_tokens_right": float(sum(a == b for a, b in zip(true, tags[:tokens], strict=True))),
        "wikiann_tokens": float(tokens),
    }
