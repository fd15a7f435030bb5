"""Records of four XTREME tasks in six languages: XNLI, PAWS-X, MLQA, WikiANN (arXiv 2003.11080), few-shot pool apart.

A set is the file xtreme/<task>_<lang>.jsonl; pool = its first ten lines, records = the rest. What a file cannot give
is dropped and named; what does not exist is an error of its own, so that nobody averages over it by accident. Lines of
one task whose `item` is the same in several languages are translations of one another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from langedit_core.datafiles import NotAvailable, data_folder, json_lines
from langedit_core.errors import RefusedInput, unknown
from langedit_core.languages import LANGUAGES, language
from langedit_core.records import printable
from langedit_core.xtreme_answers import TYPES, locate_names, names_of

TASKS = ("xnli", "pawsx", "mlqa", "wikiann")
TRANSLATED = ("xnli", "pawsx", "mlqa")  # tasks whose public sets say the same things in every language
ITEM = "item "  # how the id of a record begins that has the same id in every language
SOURCES = ("auto", "files", "hub")
POOL = 10
LONGEST_TEXT = 20_000  # characters; contexts of MLQA are paragraphs
LONGEST_ITEM = 100

CLASSES: dict[str, dict[str, str]] = {
    "xnli": {name: name for name in ("entailment", "not_entailment", "neutral", "contradiction")},
    "pawsx": {"1": "paraphrase", "0": "different"},
}
"""Label in the file -> class."""
XNLI_TWO, XNLI_THREE = ("entailment", "not_entailment"), ("entailment", "neutral", "contradiction")

EXAMPLES = {
    "xnli": '{"sentence1": premise, "sentence2": hypothesis, "label": "entailment" or "not_entailment"}',
    "pawsx": '{"sentence1": ..., "sentence2": ..., "label": "1" (same meaning) or "0"}',
    "mlqa": '{"context": ..., "question": ..., "answer": words of the context}',
    "wikiann": '{"text": tokens joined by spaces, "label": "PER: name@name\\nORG: name"}',
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """One record.

    Attributes:
        id: `ITEM` and the item it is in every language, where its line names one; else the line or row it comes from.
        texts: (premise, hypothesis), (sentence, sentence), (context, question) or (sentence,), each on one line.
        answers: The class; or the true answers; or one label text with a line per entity type.
    """

    id: str
    texts: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task in one language.

    Attributes:
        classes: Names of the classes; empty where the answer is free text.
        pool: What few-shot examples are taken from.
        records: What is evaluated; none has the texts of a pool record.
        dropped: One sentence per record left out, with line number and reason.
        source: File or data set.
    """

    task: str
    lang: str
    classes: tuple[str, ...]
    pool: tuple[Example, ...]
    records: tuple[Example, ...]
    dropped: tuple[str, ...]
    source: str


def available() -> dict[str, tuple[str, ...]]:
    """Languages per task for which a file is present, in the study's order."""
    folder = data_folder()[0] / "xtreme"
    return {task: tuple(lang for lang in LANGUAGES if (folder / f"{task}_{lang}.jsonl").is_file()) for task in TASKS}


def load_task(task: str, lang: str, limit: int | None = None, *, source: str = "auto") -> TaskData:
    """Load one task in one language.

    Args:
        task: One of `TASKS`.
        lang: Language code.
        limit: Keep this many evaluated records, the first ones.
        source: "files" reads the data folder, "hub" the public data sets through the extra `xtreme`; "auto" takes the
            files as soon as there are any, so that a run never mixes the two.

    Raises:
        NotAvailable: No data for this task and language; says what to put where.
        ValueError: Unknown task, language or source; no usable record; a file with labels of both kinds.
    """
    if task not in TASKS:
        raise unknown("XTREME task", task, TASKS)
    if source not in SOURCES:
        raise unknown("source of XTREME data", source, SOURCES)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} leaves nothing to evaluate; give at least 1, or None for all records")
    language(lang)
    if source == "auto":
        source = "files" if any(available().values()) else "hub"
    lines, name = _file(task, lang) if source == "files" else _hub(task, lang)

    pool: list[Example] = []
    records: list[Example] = []
    dropped: list[str] = []
    items: set[str] = set()
    for position, (where, line) in enumerate(lines):
        try:
            if isinstance(line, RefusedInput):
                raise line
            example = parse_example(task, lang, where.rsplit(", ", 1)[-1], line)
            if position >= POOL and any(example.texts == shown.texts for shown in pool):
                raise RefusedInput("the same texts are in the few-shot pool")
            if position >= POOL and example.id in items:
                raise RefusedInput(f"another line has {example.id} too")
        except RefusedInput as reason:
            dropped.append(str(reason) if str(reason).startswith(where) else f"{where}: {reason}")
            continue
        (pool if position < POOL else records).append(example)
        items |= {example.id} if position >= POOL else set()
    if not records:
        raise ValueError(f"{name} holds no usable record to evaluate ({'; '.join(dropped[:3]) or 'too few lines'})")
    return TaskData(
        task=task, lang=lang, classes=_classes(task, name, [*pool, *records]), pool=tuple(pool),
        records=tuple(records[:limit]), dropped=tuple(dropped), source=name,
    )  # fmt: skip


def _classes(task: str, name: str, examples: list[Example]) -> tuple[str, ...]:
    if task != "xnli":
        return tuple(CLASSES.get(task, {}).values())
    found = {example.answers[0] for example in examples}
    kinds = [kind for kind in (XNLI_TWO, XNLI_THREE) if found <= set(kind)]
    if not kinds:
        raise ValueError(f"{name} has the labels {', '.join(sorted(found))}; expected two classes or three, not both")
    return kinds[0]


def _text(record: Mapping, name: str) -> str:
    """A field on one line: a line break would end the field in a prompt."""
    value = record.get(name)
    if not isinstance(value, str):
        raise RefusedInput(f"{name} is {'missing' if value is None else type(value).__name__}, expected a text")
    text = " ".join(value.split())
    if not text:
        raise RefusedInput(f"{name} is empty")
    if not printable(text, LONGEST_TEXT):
        raise RefusedInput(f"{name} is too long or holds a control character")
    return text


def parse_example(task: str, lang: str, id_: str, record: object) -> Example:
    """Check one line of a file.

    Raises:
        RefusedInput: With the reason for which it is dropped.
    """
    if not isinstance(record, dict):
        raise RefusedInput(f"expected a JSON object, found {type(record).__name__}")
    if (item := record.get("item")) is not None:
        if type(item) not in (str, int) or not str(item).strip() or not printable(str(item), LONGEST_ITEM):
            raise RefusedInput(f"item is {str(item)[:40]!r}, expected a number or a short text")
        id_ = ITEM + str(item)
    if task in CLASSES:
        texts = (_text(record, "sentence1"), _text(record, "sentence2"))
        label = str(record.get("label"))
        if label not in CLASSES[task]:
            raise RefusedInput(f"label is {label[:40]!r}, expected one of {', '.join(CLASSES[task])}")
        return Example(id=id_, texts=texts, answers=(CLASSES[task][label],))
    if task == "mlqa":
        texts = (_text(record, "context"), _text(record, "question"))
        others = record.get("answers", ())
        if not isinstance(others, list | tuple):
            raise RefusedInput(f"answers is {type(others).__name__}, expected a list of texts")
        answers = [_text(record, "answer"), *(_text({"answers": other}, "answers") for other in others)]
        if any(answer not in texts[0] for answer in answers):
            raise RefusedInput("the answer is not in the context")
        return Example(id=id_, texts=texts, answers=tuple(dict.fromkeys(answers)))
    text = _text(record, "text")
    lines = record["label"].split("\n") if isinstance(record.get("label"), str) else []
    label = "\n".join(" ".join(line.split()) for line in lines if line.strip())
    if not label:
        raise RefusedInput("label names no entity")
    if not all(names_of(line) for line in label.split("\n")):
        raise RefusedInput(f"label {label[:60]!r} has a line that is not TYPE: name@name with a type of {TYPES}")
    if lost := locate_names(names_of(label), text, lang)[1]:
        raise RefusedInput(f"the label's {lost[0][1][:40]!r} is not in the text")
    return Example(id=id_, texts=(text,), answers=(label,))


def _file(task: str, lang: str) -> tuple[Iterator[tuple[str, object]], str]:
    folder, called = data_folder()
    path = folder / "xtreme" / f"{task}_{lang}.jsonl"
    if not path.is_file():
        present = available()[task]
        raise NotAvailable(
            f"no xtreme/{path.name} in {called} (present for {task}: {', '.join(present) or 'nothing'})",
            f"put it there, one JSON object per line, {EXAMPLES[task]}, or set LANGEDIT_DATA to what holds xtreme/",
        )
    return json_lines(path), path.name


# --- public data sets -------------------------------------------------------------------------------------------------

HUB: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "xnli": ("facebook/xnli", "{lang}", ("en", "de", "es", "fr", "zh", "ru", "th", "tr", "vi")),
    "pawsx": ("google/xtreme", "PAWS-X.{lang}", ("en", "de", "es", "fr", "zh")),
    "mlqa": ("google/xtreme", "MLQA.{lang}.{lang}", ("en", "de", "es", "zh", "vi")),
    "wikiann": ("google/xtreme", "PAN-X.{lang}", ("en", "de", "nl", "es", "fr", "zh", "pt", "ru", "th", "tr", "vi")),
}
"""Data set, configuration, and the languages it has among those of the study. All are Parquet: no script is run."""
_XNLI_LABELS = ("entailment", "neutral", "contradiction")
_NER_TAGS = ("O", *(f"{edge}-{type_}" for type_ in ("PER", "ORG", "LOC") for edge in "BI"))


def _hub(task: str, lang: str) -> tuple[Iterator[tuple[str, object]], str]:
    """Pool from the validation split, records from the test split, each row in the form of the files."""
    path, template, langs = HUB[task]
    config = template.format(lang=lang)
    name = f"{path} ({config})"
    advice = f"put xtreme/{task}_{lang}.jsonl into $LANGEDIT_DATA, one JSON object per line, {EXAMPLES[task]}"
    if lang not in langs:
        raise NotAvailable(f"{path} has no {task} in {lang}", f"known: {', '.join(langs)}; or {advice}")
    try:
        import datasets
    except ImportError as error:
        raise NotAvailable(
            f"no files of {task} in {lang} and the package `datasets` is not installed",
            f"{advice}; or install the extra `xtreme` (pip install 'langedit-core[xtreme]') and go online",
        ) from error
    try:
        pool = datasets.load_dataset(path, config, split="validation")
        test = datasets.load_dataset(path, config, split="test")
    except (OSError, ValueError) as error:  # no network, offline mode, a configuration that is gone
        offline = " (offline mode is on)" if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0") else ""
        raise NotAvailable(f"{name} cannot be read{offline}: {error}", advice) from error

    def rows() -> Iterator[tuple[str, object]]:
        for split, part in (("validation", islice(pool, POOL)), ("test", test)):
            for number, row in enumerate(part):
                where = f"{name}, {split} row {number}"
                try:
                    yield where, as_line(task, number, row)
                except (KeyError, IndexError, TypeError) as error:
                    yield where, RefusedInput(f"{where}: not the expected fields ({error!r})")

    return rows(), name


def _label_of(tokens: list[str], tags: list[int]) -> str:
    """Lines TYPE: name@name in the order in which types first occur."""
    names: dict[str, list[list[str]]] = {}
    for token, tag in zip(tokens, (_NER_TAGS[tag] for tag in tags), strict=True):
        edge, _, type_ = tag.partition("-")
        if edge == "B":
            names.setdefault(type_, []).append([token])
        elif edge == "I" and names.get(type_):
            names[type_][-1].append(token)
    return "\n".join(f"{type_}: {'@'.join(map(' '.join, found))}" for type_, found in names.items())


AS_FILE = {
    "xnli": lambda row: {
        "sentence1": row["premise"], "sentence2": row["hypothesis"], "label": _XNLI_LABELS[row["label"]],
    },
    "pawsx": lambda row: {name: row[name] for name in ("sentence1", "sentence2", "label")},
    "mlqa": lambda row: {
        "context": row["context"], "question": row["question"], "answer": row["answers"]["text"][0],
        "answers": row["answers"]["text"],
    },
    "wikiann": lambda row: {"text": " ".join(row["tokens"]), "label": _label_of(row["tokens"], row["ner_tags"])},
}  # fmt: skip
"""Task -> a row of the public data set in the form of a line of the files."""


def as_line(task: str, number: int, row: Mapping) -> dict:
    """A row of a public set as a line of the files; a translated one with the item it is in every language.

    XNLI's and PAWS-X's rows stand in the same order in all languages, MLQA's carry ids.
    """
    item = row.get("id") if task == "mlqa" else number if task in TRANSLATED else None
    return ({} if item is None else {"item": item}) | AS_FILE[task](row)
