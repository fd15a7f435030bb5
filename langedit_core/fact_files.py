"""Facts from a file a person wrote: JSON lines, one fact per line, errors with line numbers.

    {"lang": "en", "subject": "France", "prompt": "The capital of {} is", "target": "Lyon"}

These four are needed. `id`, `relation`, `truth` and the questions that test the edit may follow: `paraphrases`
(complete questions; as plain texts they are answered by the target), `neighbours` and `portability` ({"prompt",
"answer"}).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from langedit_core.datafiles import no_constant, without_repeats
from langedit_core.errors import RefusedInput, unknown
from langedit_core.records import Fact, Probe, printable

LONGEST_LINE = 1_000_000  # bytes
MOST = 100_000  # facts
LONGEST_SENTENCE = 20_000  # characters of a corpus line
_NEEDED = ("lang", "subject", "prompt", "target")
_TEXTS = (*_NEEDED, "id", "relation", "truth")
_PROBES = {"paraphrases": "paraphrase", "neighbours": "locality", "portability": "portability"}


@dataclass(frozen=True)
class Problem:
    """What is wrong with a file, and in which line (None: the file as a whole)."""

    path: Path
    line: int | None
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"


def read_facts(path: str | Path) -> list[Fact]:
    """All facts of a file, in its order.

    Raises:
        FileNotFoundError: Nothing there.
        RefusedInput: Any line is wrong; names the first ones with their numbers.
    """
    facts, problems = parse_facts(path)
    if problems:
        shown, more = problems[:5], len(problems) - 5
        raise RefusedInput("\n".join([*map(str, shown), *([f"and {more} more"] if more > 0 else [])]))
    return facts


def parse_facts(path: str | Path) -> tuple[list[Fact], list[Problem]]:
    """The facts of all good lines, and what is wrong with the others."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected facts as JSON lines")
    facts: list[Fact] = []
    problems: list[Problem] = []
    first: dict[tuple[str, str], int] = {}
    asked: dict[tuple[str, str], tuple[int, str]] = {}  # language and complete prompt -> line and target
    for number, line in _lines(path):
        try:
            if len(facts) == MOST:
                raise RefusedInput(f"more than {MOST:,} facts; split the file")
            fact = fact_of(_object(line), number)
        except (ValueError, RecursionError) as error:
            problems.append(Problem(path, number, str(error)))
            if len(facts) == MOST or len(problems) == MOST:
                break
            continue
        if earlier := first.get((fact.id, fact.lang)):
            problems.append(Problem(path, number, f"fact {fact.id!r} in {fact.lang!r} is in line {earlier} already"))
            continue
        first[fact.id, fact.lang] = number
        other, target = asked.setdefault((fact.lang, fact.text), (number, fact.target))
        if target != fact.target:
            told = f"{fact.text!r} is to be followed by {fact.target!r} here and by {target!r} in line {other}"
            problems.append(
                Problem(path, number, f"{told}; keep one of them, or edit the later one in a run of its own")
            )
            continue
        facts.append(fact)
    if not facts and not problems:
        problems.append(Problem(path, None, "holds no fact; expected one JSON object per line"))
    return facts, problems


def read_sentences(path: str | Path) -> list[str]:
    """A corpus: a sentence per line, blank lines left out.

    Raises:
        FileNotFoundError: No file there.
        RefusedInput: No UTF-8, or a line that is too long or holds control characters (named), or no sentence at all.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; expected a text with a sentence per line")
    found = []
    for number, line in _lines(path):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise RefusedInput(f"{path}:{number}: is no UTF-8 (byte {error.start + 1}); save it as UTF-8") from error
        if not text:  # white space of Unicode, which a line of bytes is not seen to be
            continue
        if not printable(text.replace("\t", " "), LONGEST_SENTENCE):
            raise RefusedInput(
                f"{path}:{number}: is longer than {LONGEST_SENTENCE:,} characters or holds control characters; "
                "expected a sentence per line"
            )
        found.append(text)
    if not found:
        raise RefusedInput(f"{path}: holds no sentence; expected one per line")
    return found


def fact_of(record: dict, number: int = 1) -> Fact:
    """A fact from its JSON object; without an id it is called after its line.

    Raises:
        RefusedInput: A field is missing, unknown, or not what `Fact` takes.
    """
    known = (*_TEXTS, *_PROBES)
    for name in record:
        if name not in known:
            raise RefusedInput(str(unknown("field", name, known)))
    if missing := [name for name in _NEEDED if name not in record]:
        raise RefusedInput(f"{', '.join(missing)} missing; a fact needs {', '.join(_NEEDED)}")
    for name in _TEXTS:
        if name in record and not (isinstance(record[name], str) or (name == "truth" and record[name] is None)):
            raise RefusedInput(f"{name} is {_kind(record[name])}, expected text")
    texts = dict(id=f"line-{number}", relation="fact") | {name: record[name] for name in _TEXTS if name in record}
    probes = {
        name: tuple(_probes(name, record[name], kind, record["target"]))
        for name, kind in _PROBES.items()
        if name in record
    }
    fact = Fact(**texts, **probes)
    if odd := next(_unedged(fact), None):
        raise RefusedInput(odd)
    if fact.target == fact.truth:
        raise RefusedInput(
            f"target and truth are both {fact.target!r}, so nothing would change; leave truth out where the model is "
            "to learn what is true"
        )
    return fact


def _unedged(fact: Fact) -> Iterator[str]:
    """Texts that begin or end in white space where `Fact` lets them: in a file a slip is likelier than a purpose."""
    probes = [*fact.paraphrases, *fact.neighbours, *fact.portability]
    named = [("subject", fact.subject), ("prompt", fact.prompt)]
    named += [(f"{probe.kind} {part}", getattr(probe, part)) for probe in probes for part in ("prompt", "answer")]
    for name, text in named:
        if text != text.strip():
            yield f"{name} {ascii(text)[:80]} begins or ends in white space; remove it, the space between is put there"


def _probes(name: str, found: object, kind: str, target: str) -> Iterator[Probe]:
    if not isinstance(found, list):
        raise RefusedInput(f"{name} is {_kind(found)}, expected a list")
    for one in found:
        if isinstance(one, str) and name == "paraphrases":
            one = {"prompt": one}
        if not isinstance(one, dict) or not {"prompt"} <= one.keys() <= {"prompt", "answer", "kind"}:
            needs = '"prompt" and "answer"' if name != "paraphrases" else '"prompt", or a text alone'
            raise RefusedInput(f"{name} holds {ascii(one)[:60]}, expected objects with {needs}")
        if "answer" not in one and name != "paraphrases":
            raise RefusedInput(f"{name}: {ascii(one['prompt'])[:60]} has no answer")
        one = dict(answer=target, kind=kind) | one
        for part, text in one.items():
            if not isinstance(text, str):
                raise RefusedInput(f"{name}: a question's {part} is {_kind(text)}, expected text")
        yield Probe(**one)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers; a line too long to be a fact comes cut, and so is no JSON."""
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 2):
            number += 1
            while len(line) > LONGEST_LINE + 1 and (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def _object(line: bytes) -> dict:
    if len(line) > LONGEST_LINE + 1:
        raise RefusedInput(f"longer than {LONGEST_LINE:,} bytes; is it one fact per line?")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedInput(f"is no UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    try:
        found = json.loads(text, object_pairs_hook=without_repeats, parse_constant=no_constant)
    except json.JSONDecodeError as error:
        raise RefusedInput(f"is no JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise RefusedInput("is nested too deeply for a fact") from error
    if not isinstance(found, dict):
        raise RefusedInput(f'holds {_kind(found)}, expected an object like {{"lang": "en", ...}}')
    return found


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )
