"""Facts of your own as a data set of profiles: `facts/NAME.jsonl` in the data folder is the data set NAME.

Its lines are those that `langedit edit --facts` takes; a fact told in several languages has one id. `facts/NAME.xx.txt`
may hold sentences in language xx, one a line, whose keys C₀ is made of and edits leave alone; a language without it has
the embedded benchmark's sentences.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from langedit_core.atlas import load_atlas
from langedit_core.datafiles import data_folder
from langedit_core.errors import RefusedInput, unknown
from langedit_core.fact_files import read_facts, read_sentences
from langedit_core.languages import CORE
from langedit_core.records import Fact, FactSet

FOLDER = "facts"
NAME = re.compile(r"\w[\w-]*", re.ASCII)  # figures and tables are called after it

log = logging.getLogger(__name__)


def own_path(name: str) -> Path | None:
    """The file of an own data set; None where there is none of this name."""
    path = data_folder()[0] / FOLDER / f"{name}.jsonl"
    return path if NAME.fullmatch(name) and path.is_file() else None


def own_names() -> list[str]:
    """The own data sets that are there."""
    return sorted(path.stem for path in (data_folder()[0] / FOLDER).glob("*.jsonl") if own_path(path.stem))


def where_own() -> str:
    """Where facts of one's own are put, for messages about a data set that does not exist."""
    return f"facts of your own are the data set NAME in {data_folder()[1]}/{FOLDER}/NAME.jsonl"


def load_own(name: str, langs: Sequence[str]) -> FactSet:
    """Facts of one's own, all of them to be edited.

    Args:
        name: Name of the file in the data folder's `facts/`, without its suffix.
        langs: Languages to load.

    Returns:
        The facts, and as corpus the sentences of `NAME.xx.txt`, or else the embedded ones that name none of the
        subjects: what is to be edited must not be protected.

    Raises:
        FileNotFoundError: No such file.
        RefusedInput: A line is wrong (named), or no language has any sentence.
        ValueError: A language the file has no fact in.
    """
    path = own_path(name)
    if path is None:
        raise FileNotFoundError(f"there is no data set {name!r}; {where_own()}")
    told = read_facts(path)
    there = list(dict.fromkeys(fact.lang for fact in told))
    for lang in langs:
        if lang not in there:
            raise unknown(f"language of {path.name}", lang, there)
    facts: dict[str, dict[str, Fact]] = {}
    for fact in told:
        if fact.lang in langs:
            facts.setdefault(fact.id, {})[fact.lang] = fact
    subjects = {lang: {by_lang[lang].subject for by_lang in facts.values() if lang in by_lang} for lang in langs}
    corpus = _corpus(path, langs, subjects)
    return FactSet(
        name=name,
        facts=facts,
        corpus=corpus,
        splits=dict.fromkeys(facts, "edit"),
        provenance={"file": path.name, "sentences": {lang: len(texts) for lang, texts in corpus.items()}},
    )


def _corpus(path: Path, langs: Sequence[str], subjects: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]]:
    embedded = load_atlas(CORE).corpus
    found = {}
    for lang in langs:
        own = path.with_name(f"{path.stem}.{lang}.txt")
        if own.is_file():
            found[lang] = tuple(read_sentences(own))
        else:
            found[lang] = tuple(text for text in embedded.get(lang, ()) if not any(s in text for s in subjects[lang]))
    without = [lang for lang, texts in found.items() if not texts]
    if len(without) == len(found):
        files = ", ".join(f"{path.stem}.{lang}.txt" for lang in without)
        raise RefusedInput(
            f"{path}: there is no embedded text in {', '.join(without)}, so nothing says which keys to leave alone; "
            f"put sentences into {files} beside it"
        )
    if without:
        log.warning(
            "no text in %s: what the model knows there is not protected; put sentences into %s",
            ", ".join(without), ", ".join(f"{path.stem}.{lang}.txt" for lang in without),
        )  # fmt: skip
    return found
