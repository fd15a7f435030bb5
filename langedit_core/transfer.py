"""Does an edit made in one language hold in another? One fact edited at a time, asked in all languages, undone again.

Beside the edit of a fact f in language a stand two placebos: a random value of equal norm at the same key,
Δ' = r̃ bᵀ with ‖r̃‖ = ‖r‖ where Δ = r bᵀ, and the edit of another fact of the relation in a. What they do to the
answers about f is what any disturbance of that size and place does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field
from tqdm import tqdm

from langedit_core.contexts import sample_contexts
from langedit_core.covariance import cached_covariance, corpus_hash
from langedit_core.editors import Editor, EditSettings, Update, repeat
from langedit_core.factors import stored_updates
from langedit_core.keeping import kept
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.metrics import score_probes
from langedit_core.models import EditableModel
from langedit_core.records import Fact, FactSet, digest
from langedit_core.results import Cell, CellResult
from langedit_core.tokens import SubjectMerged, locate
from langedit_core.transfer_probes import PROBES, Asked, Questioner

ENGINE = 1
"""Raised whenever the same inputs would give other numbers; part of every result's hash."""

EDITS: dict[str, str] = {
    "none": "the unedited model",
    "fact": "the fact itself, in the source language",
    "random": "a random value of equal norm at the same key",
    "unrelated": "another fact of the same relation, in the source language",
}
COLUMNS = (
    "fact", "relation", "source", "lang", "probe", "edit", "chosen", "em", "margin", "same_subject", "same_object",
)  # fmt: skip
SEQUENCE_COLUMNS = (
    "fact", "source", "lang", "when", "chosen", "em", "margin", "same_subject", "same_object",
)  # fmt: skip


class TransferSettings(BaseModel):
    """What is edited and asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    facts: int = Field(3, ge=2, description="facts per relation; the next one of them is a fact's unrelated edit")
    langs: tuple[str, ...] = CORE
    probes: tuple[str, ...] = tuple(PROBES)
    placebo_probes: tuple[str, ...] = Field(("direct",), description="probes asked after a placebo")
    prefixes: int = Field(2, ge=0, description="context prefixes per language")
    corpus_limit: int | None = Field(150, ge=1, description="sentences per language for C₀; None takes all")
    split: str = "edit"
    seed: int = 0


def chosen_facts(
    model: EditableModel, data: FactSet, settings: TransferSettings, among: Iterable[str] | None = None
) -> list[str]:
    """The first facts of every relation, by sha256(seed|id), whose subjects have a token boundary in all languages.

    Args:
        model: Its tokenizer decides where a subject ends.
        data: Facts in several languages; only those that all languages have are taken.
        settings: How many, in which languages, of which split.
        among: Only these ids, if given.

    Raises:
        ValueError: A relation cannot give two facts, or no relation is left.
    """
    pool = [i for i in (data.facts if among is None else among) if data.splits[i] == settings.split]
    found: dict[str, list[str]] = {}
    for id_ in sorted(pool, key=lambda i: digest(str(settings.seed), i)):
        by_lang = data.facts[id_]
        if not all(lang in by_lang for lang in settings.langs):
            continue
        same = found.setdefault(by_lang[settings.langs[0]].relation, [])
        if len(same) < settings.facts and all(_located(model, by_lang[lang]) for lang in settings.langs):
            same.append(id_)
    few = {relation: len(ids) for relation, ids in found.items() if len(ids) < 2}
    if few or not found:
        counts = ", ".join(f"{relation}={n}" for relation, n in sorted(few.items())) or "none at all"
        raise ValueError(
            f"{data.name} gives too few facts of the split {settings.split!r} in {', '.join(settings.langs)}: "
            f"{counts}; at least two of every relation are needed, one as the other's unrelated edit"
        )
    return [id_ for relation in sorted(found) for id_ in found[relation]]


def _located(model: EditableModel, fact: Fact) -> bool:
    try:
        locate(model.tokenizer, fact.prompt, fact.subject)
    except SubjectMerged:
        return False
    return True


class SingleEdits:
    """Edits of single facts in an unedited model, each undone before the next.

    Args:
        model: Unedited; it is unedited again after every call.
        data: Facts, and the corpus for C₀.
        edit_settings: Method and layers.
        settings: What is asked.
    """

    def __init__(
        self, model: EditableModel, data: FactSet, edit_settings: EditSettings, settings: TransferSettings
    ) -> None:
        self.model, self.data, self.settings = model, data, settings
        langs = settings.langs
        corpus = [text for lang in langs for text in data.corpus[lang][: settings.corpus_limit]]
        layers = edit_settings.layers if edit_settings.needs_covariance else ()
        contexts = sample_contexts(model, langs, per_language=settings.prefixes, seed=settings.seed)
        self.editor = Editor(model, edit_settings, cached_covariance(model, layers, corpus), contexts)
        self.question = Questioner(data)
        self._updates: dict[tuple[str, str], dict[int, Update]] = {}

    def updates(self, fact: str, lang: str) -> dict[int, Update]:
        """What editing one fact in one language changes; the model is left unedited."""
        if (fact, lang) not in self._updates:
            try:
                self._updates[fact, lang] = self.editor.edit([self.data.facts[fact][lang]])[1]
            finally:
                self.editor.reset()
        return self._updates[fact, lang]

    def effects(self, fact: str, unrelated: str) -> pd.DataFrame:
        """All questions about a fact: unedited, after its edit in every language, and after every placebo.

        Args:
            fact: Id of the fact.
            unrelated: Id of another fact, edited as the second placebo.

        Returns:
            Columns `COLUMNS`; `source` is the edited language, empty for the unedited model. chosen: 1 where the first
            candidate is the likeliest; em: 1 where greedy generation gives it; margin: nats per token by which it is
            ahead of the best other one.
        """
        every = self._asked(fact, self.settings.probes)
        few = self._asked(fact, self.settings.placebo_probes)
        rows = self._rows(every, "none", "")
        for source in self.settings.langs:
            update = self.updates(fact, source)
            for edit, made, asked in (
                ("fact", update, every),
                ("random", randomised(update, digest(fact, source, str(self.settings.seed))), few),
                ("unrelated", self.updates(unrelated, source), few),
            ):
                try:
                    self.editor.apply(made)
                    rows += self._rows(asked, edit, source)
                finally:
                    self.editor.reset()
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _asked(self, fact: str, probes: Sequence[str]) -> list[Asked]:
        return [asked for lang in self.settings.langs for asked in self.question(fact, lang, probes)]

    def _rows(self, asked: Sequence[Asked], edit: str, source: str) -> list[dict]:
        rows = []
        for question, (chosen, em, margin) in zip(asked, choose(self.model, asked), strict=True):
            by_lang = self.data.facts[question.fact]
            there, here = by_lang[question.lang], by_lang[source or question.lang]
            rows.append(
                dict(
                    fact=question.fact, relation=there.relation, source=source, lang=question.lang,
                    probe=question.probe, edit=edit, chosen=chosen, em=em, margin=margin, **_identical(there, here),
                )
            )  # fmt: skip
        return rows


def _identical(there: Fact, here: Fact) -> dict[str, bool]:
    """What one fact's two languages write alike; the space that a Latin name has in Chinese does not count."""
    return dict(
        same_subject=there.subject.strip() == here.subject.strip(), same_object=there.target == here.target
    )  # fmt: skip


def choose(model: EditableModel, asked: Sequence[Asked]) -> list[tuple[float, float, float]]:
    """Per question: is its first candidate the likeliest, is it generated, by how many nats per token is it ahead."""
    probes = [
        (question.prompt, LANGUAGES[question.lang].join + candidate)
        for question in asked
        for candidate in question.candidates
    ]
    scores = iter(score_probes(model, probes))
    found = []
    for question in asked:
        first, *others = [next(scores) for _ in question.candidates]
        margin = min(score.nll for score in others) - first.nll
        found.append((float(margin > 0), float(first.em), margin))
    return found


def randomised(updates: dict[int, Update], seed: str) -> dict[int, Update]:
    """The same change of the same size at the same keys, to a random value."""
    generator = torch.Generator().manual_seed(int(seed[:12], 16))
    found = {}
    for layer, update in updates.items():
        noise = torch.randn(update.left.shape, generator=generator, dtype=torch.float64).to(update.left)
        scale = update.left.norm(dim=0) / noise.norm(dim=0)
        found[layer] = Update(left=noise * scale, right=update.right, keys=update.keys)
    return found


def transfer(
    model: EditableModel, data: FactSet, edit_settings: EditSettings, settings: TransferSettings, *,
    among: Iterable[str] | None = None, results: str | Path | None = None, quiet: bool = False,
) -> pd.DataFrame:  # fmt: skip
    """Edit facts one by one in every language and ask them in every language.

    Args:
        model: Unedited.
        data: Facts, and the corpus for C₀.
        edit_settings: Method and layers. What is remembered between batches does not matter for single edits, and
            PRUNE's damping, which ends a sequence, is not applied: its single edits are MEMIT's.
        settings: What is edited and asked.
        among: Only these facts, if given.
        results: Folder in which every fact's answers are kept, so that a stopped run goes on.
        quiet: No progress bar.

    Returns:
        Columns `COLUMNS`, as `SingleEdits.effects`.

    Raises:
        ValueError: Too few facts, or an update that is no low-rank one (fine-tuning), which has no key to randomise at.
    """
    if edit_settings.finetune is not None:
        raise ValueError("fine-tuning has no key at which a random value could be put; choose a method that solves")
    ids = chosen_facts(model, data, settings, among)
    edits = SingleEdits(model, data, edit_settings, settings)
    folder = None if results is None else Path(results) / "transfer"
    key = dict(
        engine=ENGINE, model=model.fingerprint, data=data.fingerprint, settings=settings.model_dump(mode="json"),
        editing=edit_settings.model_dump(mode="json"),
        corpus=corpus_hash([t for lang in settings.langs for t in data.corpus[lang][: settings.corpus_limit]]),
    )  # fmt: skip
    frames = []
    for fact, unrelated in tqdm(partners(ids, data), unit="fact", disable=quiet, mininterval=1.0, dynamic_ncols=True):
        made = kept(
            folder, "fact", key | dict(fact=fact, unrelated=unrelated),
            lambda fact=fact, unrelated=unrelated: edits.effects(fact, unrelated).to_dict("list"),
        )  # fmt: skip
        frames.append(pd.DataFrame(made, columns=list(COLUMNS)))
    return pd.concat(frames, ignore_index=True)


def partners(ids: Sequence[str], data: FactSet) -> list[tuple[str, str]]:
    """Every fact with the next one of its relation, the last with the first, whose new object is another one."""
    relation = {i: next(iter(data.facts[i].values())).relation for i in ids}
    target = {i: next(iter(data.facts[i].values())).target for i in ids}
    found = []
    for i in ids:
        same = [j for j in ids if relation[j] == relation[i]]
        turned = same[same.index(i) + 1 :] + same[: same.index(i)]
        found.append((i, next((j for j in turned if target[j] != target[i]), turned[0])))
    return found


def sequence_transfer(
    result: CellResult, model: EditableModel, data: FactSet, root: Path, *, per_language: int | None = None,
    unedited: dict[tuple[Asked, ...], list[tuple[float, float, float]]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """After a whole sequence of batches: what is answered in all languages about edited facts, and about others.

    A long sequence wears a model down, and then it prefers a new object to the old one by chance, whatever was edited.
    So as many facts that no batch edited are asked in the same way: what they gain is not transfer.

    Args:
        result: A finished cell.
        model: Unedited, and unedited again afterwards.
        data: The cell's data set in all languages that are asked.
        root: Results folder with the cell's updates.
        per_language: Ask only so many facts of every edited language, the first ones by sha256(id).
        unedited: Answers of the unedited model by what was asked, read and added to: cells of one design share them.

    Returns:
        Columns `SEQUENCE_COLUMNS`: source is the language a fact was edited in, empty for one that was not edited
        (same_subject and same_object then say nothing), when is "before" or "after". Facts that
        several languages edited (parallel cells) are left out, and so are languages that a fact is not there in.

    Raises:
        FileNotFoundError: The cell's updates are not in `root`.
    """
    cell: Cell = result.cell
    edited = result.rows[(result.rows["kind"] == "edit") & (result.rows["when"] == "final")]
    sources = edited.groupby("fact")["lang"].unique()
    by_source: dict[str, list[str]] = {}
    for fact, langs in sorted(sources.items(), key=lambda pair: digest(pair[0])):
        if len(langs) == 1:
            by_source.setdefault(langs[0], []).append(fact)
    pairs = [(fact, lang) for lang, facts in by_source.items() for fact in facts[:per_language]]
    spared = [i for i in data.facts if data.splits[i] == cell.split and i not in sources.index]
    pairs += [(fact, "") for fact in sorted(spared, key=digest)[: len(pairs)]]
    question = Questioner(data, choices=2)
    asked = [
        q
        for fact, _ in pairs
        for lang in data.languages
        if lang in data.facts[fact]
        for q in question(fact, lang, ("direct",))
    ]
    source = dict(pairs)

    def rows(when: str, answers: list[tuple[float, float, float]]) -> list[dict]:
        return [
            dict(fact=q.fact, source=source[q.fact], lang=q.lang, when=when, chosen=chosen, em=em, margin=margin,
                 **_identical(data.facts[q.fact][q.lang], data.facts[q.fact][source[q.fact] or q.lang]))
            for q, (chosen, em, margin) in zip(asked, answers, strict=True)
        ]  # fmt: skip

    unedited = {} if unedited is None else unedited
    if (key := tuple(asked)) not in unedited:
        unedited[key] = choose(model, asked)
    found = rows("before", unedited[key])
    with model.restored(cell.settings.layers):
        repeat(model, cell.settings, stored_updates(cell, root))
        found += rows("after", choose(model, asked))
    return pd.DataFrame(found, columns=list(SEQUENCE_COLUMNS))
