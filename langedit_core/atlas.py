"""The embedded benchmark: 1,632 facts, eight relations, six languages; made by scripts/build_atlas.py.

The file keeps names and templates apart: fact[lang] = template[relation][lang] ∘ name[entity][lang].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from langedit_core.errors import unknown
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.records import Fact, FactSet, Probe, digest, split_of

PATH = Path(__file__).with_name("data") / "atlas.json"


@cache
def _content(path: Path) -> dict:
    """The file's sections, after comparing them with the checksum in its header.

    Raises:
        ValueError: If the file is not JSON, lacks a section, or was altered.
    """
    try:
        atlas = json.loads(path.read_text("utf-8"))
        parts = [atlas["templates"], atlas["entities"], atlas["facts"]]
        expected = atlas["header"]["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged ({error!r}); reinstall the package") from error
    found = digest(json.dumps(parts, ensure_ascii=False, sort_keys=True, separators=(",", ":")))
    if found != expected:
        hashes = f"content hashes to {found[:12]}…, header says {str(expected)[:12]}…"
        raise ValueError(f"{path.name} was altered ({hashes}); reinstall the package")
    return atlas


class _Speaker:
    """Says the atlas's entities and questions in one language."""

    def __init__(self, atlas: dict, lang: str, subjects: Mapping[str, str]):
        self.lang = lang
        self.join = LANGUAGES[lang].join
        self.names = {entity: names[lang] for entity, names in atlas["entities"].items()}
        self.subjects = self.names | subjects
        self.templates = {relation: by_lang[lang] for relation, by_lang in atlas["templates"].items()}
        self.rows = {row["id"]: row for row in atlas["facts"]}

    def ask(self, relation: str, subject: str, answer: str, kind: str, template: int = 0) -> Probe:
        """The question of a relation about an entity, answered by another entity."""
        prompt = self.templates[relation][template].replace("{}", self.subjects[subject])
        return Probe(prompt=prompt, answer=self.names[answer], kind=kind)

    def neighbour(self, kind: str, id_: str) -> Probe:
        row = self.rows[id_]
        return self.ask(id_.split("/")[0], row["subject"], row["truth"], f"neighbour_{kind}")

    def fact(self, row: dict) -> Fact:
        """One row of the file in this language; other facts are asked about with their first template."""
        relation = row["id"].split("/")[0]
        subject, target = row["subject"], row["target"]
        return Fact(
            id=row["id"],
            lang=self.lang,
            relation=relation,
            subject=self.subjects[subject],
            prompt=self.templates[relation][0],
            target=self.names[target],
            truth=self.names[row["truth"]],
            paraphrases=tuple(
                self.ask(relation, subject, target, "paraphrase", i) for i in range(1, len(self.templates[relation]))
            ),
            neighbours=tuple(
                self.neighbour(kind, row["neighbours"][kind])
                for kind in ("same", "near", "far")
                if kind in row["neighbours"]
            ),
            portability=tuple(self.ask(*entry, "portability") for entry in row["portability"]),
        )

    def sentences(self, row: dict) -> list[str]:
        """The true fact in every wording, as complete sentences."""
        relation = row["id"].split("/")[0]
        probes = [
            self.ask(relation, row["subject"], row["truth"], "edit", i) for i in range(len(self.templates[relation]))
        ]
        return [probe.prompt + self.join + probe.answer for probe in probes]


def load_atlas(langs: Sequence[str] = CORE, subjects: Mapping[str, Mapping[str, str]] | None = None) -> FactSet:
    """Loads the embedded facts.

    Every fact has two paraphrases, up to three neighbours (same object; same region, other object; far away)
    and up to one question that follows from the edit. Neighbours come from the tune split, so that no tested
    neighbour is a sentence of the corpus.

    Args:
        langs: Languages to load, among the six core ones.
        subjects: Language -> entity -> another name for it where it is asked about (`AtlasCorpus.subjects`).

    Returns:
        The facts, and as corpus all wordings of the corpus split's true facts; `provenance` is the file's
        header (sources, licences, seed, counts, and what was left out and why).

    Raises:
        ValueError: If a language is not in the atlas, or the file was altered.
    """
    atlas = _content(PATH)
    if not langs:
        raise ValueError("no language asked for; name at least one")
    for lang in langs:
        if lang not in atlas["header"]["languages"]:
            raise unknown("language of the atlas", lang, atlas["header"]["languages"])
    speakers = [_Speaker(atlas, lang, (subjects or {}).get(lang, {})) for lang in dict.fromkeys(langs)]
    facts = {row["id"]: {speaker.lang: speaker.fact(row) for speaker in speakers} for row in atlas["facts"]}
    splits = {id_: split_of(next(iter(by_lang.values())).group) for id_, by_lang in facts.items()}
    held_out = [row for row in atlas["facts"] if splits[row["id"]] == "corpus"]
    return FactSet(
        name="atlas",
        facts=facts,
        corpus={s.lang: tuple(text for row in held_out for text in s.sentences(row)) for s in speakers},
        splits=splits,
        provenance=dict(atlas["header"]),
    )
