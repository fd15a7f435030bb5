"""Data sets that are not ours: mzsRE and XTREME as a failed download, another version or a stranger would have them."""

from __future__ import annotations

import json

from bad_corpus import Case, World
from langedit_core import mzsre
from langedit_core.mzsre import load_mzsre
from langedit_core.xtreme_data import load_task

ENTRY = {
    "subject": "Ada Byron", "src": "Where was Ada Byron born?", "rephrase": "In which city was Ada Byron born?",
    "alt": "Paris", "loc": "who wrote emma", "loc_ans": "Jane Austen",
}  # fmt: skip
HTML = b"<!DOCTYPE html>\n<html><body>Sign in to download</body></html>\n"


def _mzsre(*lines: bytes | object):
    def act(world: World) -> object:
        made = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
        return load_mzsre(world.write("mzsre.jsonl", b"\n".join(made)), ("en",))

    return act


def _entry(**changes):
    return _mzsre({"id": 0, "en": ENTRY | changes})


def _array_limit(world: World) -> object:
    world.patched.setattr(mzsre, "LONGEST_FILE", 1000)
    return load_mzsre(world.write("mzsre.jsonl", [{"id": 0, "en": ENTRY}] * 10), ("en",))


def _looked_for(world: World) -> object:
    world.patched.setenv("LANGEDIT_DATA", str(world.folder))
    (world.folder / "mzsre.jsonl").mkdir()
    return load_mzsre(None, ("en",))


MZSRE = {
    "HTML": (_mzsre(HTML), "mzsre.jsonl, line 1: not JSON"),
    "an empty file": (_mzsre(), "mzsre.jsonl holds no usable fact in en .the file is empty"),
    "half a line": (_mzsre({"id": 0, "en": ENTRY}, b'{"id": 1, '), "line 2: not JSON"),
    "a text for a record": (
        _mzsre({"id": 0, "en": ENTRY}, b"", b'"text"'), "line 3: expected a JSON object, found str"),
    "a list for a record": (_mzsre({"id": 0, "en": ENTRY}, [3]), "line 2: expected a JSON object, found list"),
    "Latin letters in another code": (_mzsre(b'{"id": 0, "en": "\xff"}'), r"line 1: not UTF-8 \(byte 17\)"),
    "a compressed file": (_mzsre(b"\x1f\x8b\x08\x00\x00\xff"), "line 1: not UTF-8|line 1: not JSON"),
    "a pickle": (_mzsre(b"\x80\x04\x95\x0c\x00"), "line 1: not UTF-8"),
    "an id given twice": (_mzsre({"id": 4}, {"id": "4"}), "line 2: id '4' occurs twice"),
    "an id that is a list": (_mzsre({"id": [1]}), r"line 1: id is \[1\], expected a number or a short text"),
    "an id that is true": (_mzsre({"id": True}), "line 1: id is True"),
    "an id that is NaN": (_mzsre(b'{"id": NaN}'), "line 1: not JSON .NaN is no JSON"),
    "an id with a control character": (_mzsre({"id": "\x1b[31m"}), r"line 1: id is '\\x1b"),
    "an id that turns the text around": (_mzsre({"id": "a\u202eb"}), r"line 1: id is 'a\\u202eb'"),
    "a field given twice": (
        _mzsre(b'{"id": 0, "en": {}, "en": {}}'), "line 1: not JSON .the field 'en' is there twice"),
    "a line without end": (
        _mzsre(b'{"id": 0, "x": "' + b"a" * 1_000_000 + b'"}'), "line 1: longer than 1,000,000 bytes"),
    "a record nested without end": (_mzsre(b'{"a":' * 100_000), "line 1: not JSON"),
    "an array of numbers": (_mzsre(b"[1, 2]"), "entry 0: expected a JSON object, found int"),
    "an array that is cut": (_mzsre(b'[{"en": 1},'), "mzsre.jsonl: not JSON"),
    "an array nested without end": (_mzsre(b"[" * 100_000), "mzsre.jsonl: not JSON"),
    "an array too large to be read": (_array_limit, "more than 1,000 bytes; split the array"),
    "facts of another language": (
        _mzsre({"id": 0, "de": ENTRY}), "holds no usable fact in en .no entry in this language"),
    "an entry that is a list": (_mzsre({"id": 0, "en": ["Ada"]}), "no entry in this language"),
    "an entry without a subject": (_entry(subject=None), "empty subject"),
    "a question that is a number": (_entry(src=3), "empty question"),
    "an answer that is blank": (_entry(alt="  "), "empty target"),
    "a subject that is not in the question": (_entry(subject="Bob"), "subject not in the question"),
    "a subject that is there twice": (_entry(src="Ada Byron or Ada Byron?"), "subject occurs more than once"),
    "a gap in the question": (_entry(src="Where was Ada Byron {} born?"), r"question or subject holds {}"),
    "a control character in the answer": (_entry(alt="Pa\x00ris"), "text that no record may hold"),
    "an answer turned around": (_entry(alt="\u202esiraP"), "text that no record may hold"),
    "a question of ten pages": (_entry(src="Ada Byron " + "x" * 20_000), "text that no record may hold"),
    "a folder": (lambda world: load_mzsre(world.folder, ("en",)), "is no file; expected mzsre as JSON lines"),
    "a folder where the file should be": (_looked_for, r"no mzsre.jsonl in \$LANGEDIT_DATA; put it there"),
    "an unknown language": (lambda world: load_mzsre(None, ("xx",)), "unknown language 'xx'"),
    "an unknown alignment": (
        lambda world: load_mzsre(None, ("en",), "exakt"), "unknown alignment 'exakt'; known: exact"),
}  # fmt: skip
CASES = [Case(kind="data sets", name=f"mzsRE: {name}", act=act, says=says) for name, (act, says) in MZSRE.items()]

GOOD = {
    "xnli": {"sentence1": "Ostberg {}.", "sentence2": "No {}.", "label": "entailment"},
    "pawsx": {"sentence1": "Ostberg {}.", "sentence2": "No {}.", "label": "1"},
    "mlqa": {"context": "In {} it was Ostberg.", "question": "What {}?", "answer": "Ostberg"},
    "wikiann": {"text": "{} Ostberg", "label": "LOC: Ostberg"},
}


def _good(task: str, number: int) -> dict:
    return {name: text.replace("{}", str(number)) for name, text in GOOD[task].items()}


def _set(task: str, lines: list[bytes | object], limit: int | None = None, lang: str = "en"):
    def act(world: World) -> object:
        world.patched.setenv("LANGEDIT_DATA", str(world.folder))
        made = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
        world.write(f"xtreme/{task}_en.jsonl", b"\n".join(made) + b"\n")
        return load_task(task, lang, limit)

    return act


def _between(task: str, line: bytes | object):
    """A bad line among good ones is left out and named; the others are kept."""
    good = [_good(task, number) for number in range(13)]
    read = _set(task, [*good[:11], line, *good[11:]])

    def act(world: World) -> object:
        found = read(world)
        return found.dropped if [r.id for r in found.records] == ["line 11", "line 13", "line 14"] else found

    return act


def _one_left_out(dropped: object) -> bool:
    return isinstance(dropped, tuple) and len(dropped) == 1 and "_en.jsonl, line 12: " in dropped[0]


XNLI = GOOD["xnli"]
LINES = {
    "half a line": ("xnli", b"{", "not JSON"),
    "HTML": ("xnli", HTML.split(b"\n")[1], "not JSON"),
    "another code": ("xnli", b'{"sentence1": "\xff"}', "not UTF-8"),
    "a list": ("xnli", [], "expected a JSON object, found list"),
    "a missing sentence": ("xnli", {"sentence1": "a", "label": "entailment"}, "sentence2 is missing"),
    "a sentence that is a number": ("xnli", XNLI | {"sentence1": 3}, "sentence1 is int, expected a text"),
    "a sentence that is NaN": (
        "xnli", b'{"sentence1": NaN, "sentence2": "b", "label": "entailment"}', "NaN is no JSON"),
    "a sentence given twice": ("xnli", b'{"sentence1": "a", "sentence1": "b"}', "'sentence1' is there twice"),
    "an empty sentence": ("xnli", XNLI | {"sentence2": " "}, "sentence2 is empty"),
    "NUL": ("xnli", XNLI | {"sentence1": "a\x00"}, "control character"),
    "a sentence turned around": ("xnli", XNLI | {"sentence1": "\u202eabc"}, "control character"),
    "an unknown label": ("xnli", XNLI | {"label": "maybe"}, "label is 'maybe', expected one of entail"),
    "a label that is a list": ("xnli", XNLI | {"label": ["entailment"]}, "expected one of entail"),
    "no label": ("pawsx", {"sentence1": "a", "sentence2": "b"}, "label is 'None'"),
    "a line of the examples again": ("pawsx", _good("pawsx", 3), "the same texts are in the few-shot pool"),
    "an answer from elsewhere": (
        "mlqa", {"context": "a b", "question": "c", "answer": "d"}, "answer is not in the context"),
    "answers as a text": (
        "mlqa", {"context": "a b", "question": "c", "answer": "a", "answers": "b"}, "answers is str, expected a list"),
    "a context of a book": ("mlqa", {"context": "x" * 20_001, "question": "c", "answer": "x"}, "context is too long"),
    "no entity": ("wikiann", {"text": "a b", "label": "\n"}, "label names no entity"),
    "a label of another kind": ("wikiann", {"text": "a b", "label": ["PER: a"]}, "label names no entity"),
    "an unknown type of entity": ("wikiann", {"text": "a b", "label": "PER: a\nMISC: b"}, "is not TYPE: name"),
    "an entity from elsewhere": ("wikiann", {"text": "a b", "label": "PER: a@c"}, "the label's 'c' is not in the text"),
    "a line nested without end": ("wikiann", b"[" * 100_000, "not JSON"),
    "a line without end": ("wikiann", b'{"text": "' + b"x" * 1_000_000 + b'"}', "longer than 1,000,000 bytes"),
}  # fmt: skip
CASES += [
    Case(kind="data sets", name=f"XTREME: {name}", act=_between(task, line), says=says, treated=_one_left_out)
    for name, (task, line, says) in LINES.items()
]

SETS = {
    "a page instead of a set": (_set("xnli", [HTML]), "xnli_en.jsonl holds no usable record .*line 1: not JSON"),
    "an empty file": (_set("xnli", []), "xnli_en.jsonl holds no usable record to evaluate .too few lines"),
    "examples only": (
        _set("xnli", [_good("xnli", i) for i in range(10)]), "no usable record to evaluate .too few lines"),
    "labels of both kinds": (
        _set("xnli", [_good("xnli", i) | {"label": ("neutral", "not_entailment")[i % 2]} for i in range(20)]),
        "has the labels .*expected two classes or three, not both"),
    "a language that is not there": (
        _set("xnli", [_good("xnli", i) for i in range(20)], lang="de"), "no xtreme/xnli_de"),
    "a language nobody knows": (_set("xnli", [], lang="../en"), r"unknown language '\.\./en'"),
    "nothing asked for": (_set("xnli", [_good("xnli", i) for i in range(20)], 0), "limit=0 leaves nothing to evaluate"),
    "a task as a path": (lambda world: load_task("../mzsre", "en"), r"unknown XTREME task '\.\./mzsre'"),
}  # fmt: skip
CASES += [Case(kind="data sets", name=f"XTREME: {name}", act=act, says=says) for name, (act, says) in SETS.items()]
