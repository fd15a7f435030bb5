"""Files of facts: one bad line between two good ones, and files that are bad as a whole."""

from __future__ import annotations

import json

from bad_corpus import Case, World
from langedit_core import fact_files
from langedit_core.errors import RefusedInput
from langedit_core.fact_files import LONGEST_LINE, parse_facts, read_facts, read_sentences

GOOD = dict(lang="en", subject="France", prompt="The capital of {} is", target="Lyon")


def _line(line: object) -> bytes:
    return line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass")


def between(line: object):
    """The line between two good ones: it alone is refused, by its number, and the others are still read."""

    def act(world: World) -> object:
        path = world.write("facts.jsonl", b"\n".join(map(_line, (GOOD, line, GOOD | dict(lang="de")))))
        facts, problems = parse_facts(path)
        assert [fact.lang for fact in facts] == ["en", "de"] and [problem.line for problem in problems] == [2]
        try:
            return read_facts(path)
        except RefusedInput as error:
            assert str(error).startswith(f"{path}:2: ")
            raise

    return act


def without(name: str) -> dict:
    return {key: value for key, value in GOOD.items() if key != name}


LINES: dict[str, tuple[object, str]] = {
    # no JSON, or not of the right form
    "single quotes": (b"{'lang': 'en'}", "is no JSON .*column 2"),
    "cut": (_line(GOOD)[:-5], "is no JSON"),
    "cut inside a character": (_line(GOOD | dict(target="Köln"))[:-4], "is no UTF-8|is no JSON"),
    "two on a line": (_line(GOOD) * 2, "is no JSON .Extra data"),
    "HTML": (b"<html><body>Not found</body></html>", "is no JSON"),
    "a comment": (b"# " + _line(GOOD), "is no JSON"),
    "a comma at the end": (_line(GOOD)[:-1] + b",}", "is no JSON"),
    "no UTF-8": (_line(GOOD).replace(b"Lyon", b"Ly\xf6n"), "is no UTF-8 .byte"),
    "UTF-16": (json.dumps(GOOD).encode("utf-16-be"), "is no JSON|is no UTF-8"),
    "an overlong encoding": (_line(GOOD).replace(b"Lyon", b"Ly\xc0\xafn"), "is no UTF-8"),
    "a surrogate in UTF-8": (_line(GOOD).replace(b"Lyon", b"\xed\xa0\x80"), "is no UTF-8"),
    "a byte order mark inside the file": (b"\xef\xbb\xbf" + _line(GOOD), "is no JSON"),
    "NUL bytes": (b"\x00" * 50, "is no JSON"),
    "NUL behind the object": (_line(GOOD) + b"\x00", "is no JSON"),
    "a raw line break in a text": (_line(GOOD).replace(b"Lyon", b"Ly\ron"), "is no JSON"),
    "a list": ([GOOD], "holds a list, expected an object"),
    "text": (b'"France"', "holds text, expected an object"),
    "a number": (b"3", "holds a number"),
    "null": (b"null", "holds null"),
    "true": (b"true", "holds true or false"),
    "a bare NaN": (b"NaN", "NaN is no JSON"),
    "NaN as target": (_line(GOOD).replace(b'"Lyon"', b"NaN"), "NaN is no JSON"),
    "infinity as target": (_line(GOOD).replace(b'"Lyon"', b"-Infinity"), "-Infinity is no JSON"),
    "deep lists": (b'{"lang": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply|is no JSON"),
    "deep objects": (b'{"a":' * 100_000, "nested too deeply|is no JSON"),
    "a huge number": (b'{"lang": ' + b"9" * 10_000 + b"}", "integer|is no JSON|missing"),
    "a huge exponent": (_line(GOOD).replace(b'"Lyon"', b"1e999999"), "target is a number"),
    "a huge line": (b'{"lang": "' + b"x" * LONGEST_LINE + b'"}', "longer than 1,000,000 bytes"),
    # fields
    "an empty object": ({}, "lang, subject, prompt, target missing"),
    "no language": (without("lang"), "lang missing; a fact needs"),
    "no subject": (without("subject"), "subject missing"),
    "no prompt": (without("prompt"), "prompt missing"),
    "no target": (without("target"), "target missing; a fact needs"),
    "a misspelt field": (GOOD | dict(tagret="x"), "unknown field 'tagret'; known: target"),
    "a field in capitals": (without("lang") | dict(Lang="en"), "unknown field 'Lang'; known: lang"),
    "a field with an escape in its name": (GOOD | {"\x1b[31m": 1}, r"unknown field '\\x1b"),
    "a field named like a method": (GOOD | dict(__class__="Fact"), "unknown field '__class__'"),
    "a repeated field": (b'{"lang": "en", "lang": "de"}', "'lang' is there twice"),
    "a field repeated by escapes": (b'{"lang": "en", "l\\u0061ng": "de"}', "'lang' is there twice"),
    "a repeated field of a question": (
        _line(GOOD)[:-1] + b', "neighbours": [{"prompt": "a", "prompt": "b"}]}', "'prompt' is there twice"),
    # wrong types
    "a number as target": (GOOD | dict(target=3), "target is a number, expected text"),
    "a list as target": (GOOD | dict(target=["Lyon"]), "target is a list, expected text"),
    "an object as subject": (GOOD | dict(subject={"en": "France"}), "subject is an object, expected text"),
    "true as prompt": (GOOD | dict(prompt=True), "prompt is true or false, expected text"),
    "null as subject": (GOOD | dict(subject=None), "subject is null, expected text"),
    "a number as id": (GOOD | dict(id=7), "id is a number, expected text"),
    "null as id": (GOOD | dict(id=None), "id is null, expected text"),
    "a list as language": (GOOD | dict(lang=["en", "de"]), "lang is a list, expected text"),
    "paraphrases as text": (GOOD | dict(paraphrases="x"), "paraphrases is text, expected a list"),
    "paraphrases as an object": (GOOD | dict(paraphrases={"prompt": "x"}), "paraphrases is an object, expected a list"),
    "a paraphrase that is a number": (GOOD | dict(paraphrases=[3]), "paraphrases holds 3, expected objects with"),
    "a paraphrase that is a list": (GOOD | dict(paraphrases=[["x"]]), "expected objects with"),
    "a neighbour without answer": (GOOD | dict(neighbours=[{"prompt": "x"}]), "'x' has no answer"),
    "a neighbour as text": (GOOD | dict(neighbours=["x"]), "expected objects with"),
    "an answer that is null": (
        GOOD | dict(neighbours=[dict(prompt="x", answer=None)]), "answer is null, expected text"),
    "an unknown kind of question": (
        GOOD | dict(neighbours=[dict(prompt="x", answer="y", kind="z")]), "unknown probe kind"),
    "a question that is a number": (GOOD | dict(neighbours=[dict(prompt=3, answer="y")]), "prompt is a number"),
    "a question with more": (GOOD | dict(neighbours=[dict(prompt="x", answer="y", z=1)]), "expected objects with"),
    "an empty question": (GOOD | dict(portability=[dict(prompt=" ", answer="y")]), "portability prompt is empty"),
    "an empty answer": (GOOD | dict(portability=[dict(prompt="x", answer="")]), "portability answer is empty"),
    # gaps, empty texts, languages
    "no gap": (GOOD | dict(prompt="The capital of France is"), 'prompt holds "{}" 0 times, expected 1'),
    "two gaps": (GOOD | dict(prompt="{} and {}"), 'prompt holds "{}" 2 times'),
    "a named gap": (GOOD | dict(prompt="{subject} is"), 'prompt holds "{}" 0 times'),
    "a gap that reads attributes": (GOOD | dict(prompt="{0.__class__} is"), 'prompt holds "{}" 0 times'),
    "a gap in the subject": (GOOD | dict(subject="{}"), 'subject holds "{}" 1 times, expected 0'),
    "a gap in the target": (GOOD | dict(target="{}"), 'target holds "{}" 1 times'),
    "a gap in a paraphrase": (GOOD | dict(paraphrases=["{} is"]), 'paraphrase prompt holds "{}" 1 times'),
    "an empty target": (GOOD | dict(target=""), "target is empty"),
    "a blank target": (GOOD | dict(target="  "), "target is empty"),
    "a target of wide spaces": (GOOD | dict(target="\u3000\u00a0"), "target is empty"),
    "an empty id": (GOOD | dict(id=""), "id is empty"),
    "an unknown language": (GOOD | dict(lang="english"), "unknown language 'english'; known: "),
    "a language in capitals": (GOOD | dict(lang="EN"), "unknown language 'EN'; known: en"),
    "a language as a path": (GOOD | dict(lang="../en"), "unknown language '../en'"),
    "a language that colours the terminal": (GOOD | dict(lang="\x1b[31men"), r"unknown language '\\x1b"),
    # characters that do not show
    "a bell": (GOOD | dict(subject="Fra\u0007nce"), r"control character U\+0007"),
    "NUL in a text": (b'{"lang":"en","subject":"a\\u0000b","prompt":"{} is","target":"x"}', r"U\+0000"),
    "an escape sequence": (GOOD | dict(target="\x1b[2JLyon"), r"control character U\+001B"),
    "a line break in an id": (GOOD | dict(id="a\nb"), r"control character U\+000A"),
    "a C1 control": (GOOD | dict(target="a\u0085b"), r"control character U\+0085"),
    "a line separator": (GOOD | dict(prompt="{} \u2028 is"), r"control character U\+2028"),
    "half a surrogate": (b'{"lang":"en","subject":"\\ud800","prompt":"{} is","target":"x"}', r"U\+D800"),
    "a text turned around": (GOOD | dict(target="\u202enoyL"), r"control character U\+202E"),
    "an isolate": (GOOD | dict(subject="\u2067France\u2069"), r"control character U\+2067"),
    "an embedding in a prompt": (GOOD | dict(prompt="\u202a{} is\u202c"), r"control character U\+202A"),
    "a right-to-left mark": (GOOD | dict(subject="France\u200f"), r"invisible mark of direction U\+200F"),
    "a left-to-right mark": (GOOD | dict(target="\u200eLyon"), r"invisible mark of direction U\+200E"),
    "an Arabic letter mark": (GOOD | dict(id="a\u061c"), r"invisible mark of direction U\+061C"),
    "a prompt that ends in a space": (GOOD | dict(prompt="The capital of {} is "), "prompt .* ends in white space"),
    "a target with a space of its own": (GOOD | dict(target=" Lyon"), "target .* begins or ends in white space"),
    "a neighbour's answer with a space": (
        GOOD | dict(neighbours=[dict(prompt="Italy:", answer="Rome\u3000")]), "locality answer .* white space"),
    "a target that is the truth": (GOOD | dict(truth=GOOD["target"]), "target and truth are both 'Lyon', so nothing"),
    "a long subject": (GOOD | dict(subject="x" * 3000), "subject has 3,000 characters, at most 2,000"),
    "a long answer": (GOOD | dict(neighbours=[dict(prompt="x", answer="y" * 2001)]), "answer has 2,001 characters"),
}  # fmt: skip


def _twice(world: World) -> object:
    lines = (GOOD | dict(id="a"), GOOD | dict(id="a", lang="de"), GOOD | dict(id="a"))
    return read_facts(world.write("facts.jsonl", b"\n".join(map(_line, lines))))


def _contradiction(world: World) -> object:
    lines = (GOOD | dict(id="a"), GOOD | dict(id="b", lang="de", target="Bonn"), GOOD | dict(id="c", target="Nice"))
    return read_facts(world.write("facts.jsonl", b"\n".join(map(_line, lines))))


def _too_many(world: World) -> object:
    world.patched.setattr(fact_files, "MOST", 50)
    lines = (GOOD | dict(id=f"f/{i}") for i in range(60))
    return read_facts(world.write("facts.jsonl", b"\n".join(map(_line, lines))))


def _named(content: bytes, name: str = "facts.jsonl"):
    return lambda world: read_facts(world.write(name, content))


def _link(world: World) -> object:
    path = world.folder / "facts.jsonl"
    path.symlink_to(path)
    return read_facts(path)


def _corpus(content: bytes):
    return lambda world: read_sentences(world.write("corpus.txt", content))


FILES = {
    "an id given twice": (_twice, ":3: fact 'a' in 'en' is in line 1 already"),
    "one question with two answers": (
        _contradiction,
        ":3: 'The capital of France is' is to be followed by 'Nice' here and by 'Lyon' in line 1",
    ),
    "too many facts": (_too_many, ":51: more than 50 facts; split the file"),
    "many bad lines": (_named(b"x\n" * 500), "and 495 more"),
    "an empty file": (_named(b""), "holds no fact; expected one JSON object per line"),
    "blank lines only": (_named(b"\n\r\n \n"), "holds no fact"),
    "a byte order mark only": (_named(b"\xef\xbb\xbf"), "holds no fact"),
    "one array instead of lines": (_named(json.dumps([GOOD] * 3).encode()), ":1: holds a list, expected an object"),
    "an indented object": (_named(json.dumps(GOOD, indent=1).encode()), ":1: is no JSON"),
    "a compressed file": (_named(b"\x1f\x8b\x08\x00" + bytes(range(256))), ":1: is no UTF-8|:1: is no JSON"),
    "a pickle": (_named(b"\x80\x04\x95\x0c\x00\x00\x00cposix\nsystem\n."), ":1: is no UTF-8"),
    "a folder": (lambda world: read_facts(world.folder), "does not exist|is no file"),
    "a link to itself": (_link, "does not exist; expected facts as JSON lines"),
    "nothing there": (lambda world: read_facts(world.folder / "none.jsonl"), "expected facts as JSON lines"),
    "a corpus that is no UTF-8": (_corpus(b"One.\nTw\xf6.\n"), r"corpus.txt:2: is no UTF-8 \(byte 3\)"),
    "a corpus without sentences": (_corpus(b"\n \n"), "holds no sentence; expected one per line"),
    "a corpus that is one huge line": (_corpus(b"x" * 30_000), "corpus.txt:1: is longer than 20,000 characters"),
    "a corpus with NUL": (_corpus(b"One.\nTwo\x00.\n"), "corpus.txt:2: .*control characters"),
    "a corpus that is a folder": (lambda world: read_sentences(world.folder), "is no file; expected a text"),
}

CASES = [Case(kind="facts", name=name, act=between(line), says=says) for name, (line, says) in LINES.items()]
CASES += [Case(kind="facts", name=name, act=act, says=says) for name, (act, says) in FILES.items()]
