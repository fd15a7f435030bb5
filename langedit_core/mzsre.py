"""Loads mzsre, the multilingual zsRE questions, and its English–Chinese pair bzsre; counts what it drops.

A question is usable when its subject can be cut out: prompt = src with the subject's only occurrence as {}.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from langedit_core.datafiles import NotAvailable, data_folder, json_lines, parse_json
from langedit_core.errors import RefusedInput, unknown
from langedit_core.languages import CORE, LANGUAGES, language
from langedit_core.records import Fact, FactSet, Probe, printable, split_of

ALIGNMENTS = ("exact", "fuzzy")
LONGEST_FILE = 256_000_000  # bytes of the array layout, which has to be read at once
SIMILAR = 0.75  # lowest difflib ratio of subject and span that fuzzy alignment takes
UNSPACED = ("zh", "th")  # compared by characters, for want of spaces between words


def default_path() -> Path:
    """Where mzsre.jsonl is expected: $LANGEDIT_DATA, else ../shared/data beside the repository.

    Raises:
        NotAvailable: If there is none; says what to put where.
    """
    folder, expected = data_folder()
    path = folder / "mzsre.jsonl"
    if not path.is_file():
        raise NotAvailable(
            f"no {path.name} in {expected}",
            "put it there, set LANGEDIT_DATA to its folder, or pass path=. "
            'One JSON object per line: {"id": 0, "en": {"subject": ..., "src": ..., "rephrase": ..., '
            '"alt": ..., "loc": ..., "loc_ans": ..., "portability": {"New Question": ..., '
            '"New Answer": ...}}, "de": {...}}',
        )
    return path


def records(path: Path) -> Iterator[tuple[str, dict]]:
    """Pairs (id, record) of a file in either layout: JSON lines, or one array of objects.

    Raises:
        RefusedInput: If a line is too long, not UTF-8, no JSON object, or an id occurs twice; names the line.
    """
    seen: set[str] = set()

    def checked(where: str, position: int, record: object) -> tuple[str, dict]:
        if not isinstance(record, dict):
            raise RefusedInput(f"{where}: expected a JSON object, found {type(record).__name__}")
        id_ = record.get("id", position)
        if isinstance(id_, bool) or not isinstance(id_, int | str) or not printable(str(id_)):
            raise RefusedInput(f"{where}: id is {ascii(id_)[:80]}, expected a number or a short text")
        if str(id_) in seen:
            raise RefusedInput(f"{where}: id {id_!r} occurs twice")
        seen.add(str(id_))
        return str(id_), record

    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"["):
            file.seek(0)
            data = file.read(LONGEST_FILE + 1)
            if len(data) > LONGEST_FILE:
                raise RefusedInput(f"{path.name}: more than {LONGEST_FILE:,} bytes; split the array or use JSON lines")
            for index, record in enumerate(parse_json(path.name, data)):
                yield checked(f"{path.name}, entry {index}", index, record)
            return
    for position, (where, record) in enumerate(json_lines(path)):
        if isinstance(record, RefusedInput):
            raise record
        yield checked(where, position, record)


def _cut(question: str, span: tuple[int, int]) -> str:
    return question[: span[0]] + "{}" + question[span[1] :]


def _fuzzy_span(question: str, subject: str, lang: str) -> tuple[int, int] | None:
    """The stretch of the question most like the subject, by difflib ratio; None where none reaches `SIMILAR`.

    Windows are runs of words (in unspaced languages of characters, Latin words in one piece), up to a third
    longer or shorter than the subject, compared without regard to case. Of equally good windows the first and
    then the shortest is taken.
    """
    pattern = r"[A-Za-z0-9][A-Za-z0-9.\-]*|\S" if lang in UNSPACED else r"[\w(][\w.()\-]*[\w)]|\w"
    spans = [match.span() for match in re.finditer(pattern, question)]
    size = len(re.findall(pattern, subject))
    slack = max(1, size // 3)
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(subject.casefold())
    best, found = SIMILAR, None
    for length in range(max(1, size - slack), size + slack + 1):
        for first in range(len(spans) - length + 1):
            start, end = spans[first][0], spans[first + length - 1][1]
            matcher.set_seq1(question[start:end].casefold())
            if matcher.real_quick_ratio() < best or matcher.quick_ratio() < best:
                continue
            ratio = matcher.ratio()
            if ratio > best or (ratio == best and (found is None or (start, end) < found)):
                best, found = ratio, (start, end)
    return found


def _align(question: str, subject: str, lang: str, alignment: str) -> tuple[str, str]:
    """Prompt with {} and the subject as the question spells it.

    Exact alignment compares letter for letter, case included: a differently capitalised name is tokenised
    differently, so taking it for the same would be a guess; fuzzy alignment makes that guess on request.

    Raises:
        RefusedInput: With the reason for which the question is dropped.
    """
    occurrences = question.count(subject)
    if occurrences == 1:
        start = question.index(subject)
        return _cut(question, (start, start + len(subject))), subject
    if occurrences > 1:
        raise RefusedInput("subject occurs more than once in the question")
    span = _fuzzy_span(question, subject, lang) if alignment == "fuzzy" else None
    if span is None:
        raise RefusedInput("subject not in the question")
    found = question[span[0] : span[1]]
    if question.count(found) != 1:
        raise RefusedInput("subject occurs more than once in the question")
    return _cut(question, span), found


def _text(entry: dict, name: str) -> str:
    """A field without surrounding spaces; "" where it is missing or no text."""
    value = entry.get(name)
    return value.strip() if isinstance(value, str) else ""


def _questions(entry: dict) -> list[tuple[str, str, str]]:
    """The complete (kind, prompt, answer) triples of one record in one language, besides the edit itself."""
    nested = entry.get("portability")
    portability = nested if isinstance(nested, dict) else {}
    triples = [
        ("paraphrase", _text(entry, "rephrase"), _text(entry, "alt")),
        ("locality", _text(entry, "loc"), _text(entry, "loc_ans")),
        ("portability", _text(portability, "New Question"), _text(portability, "New Answer")),
    ]
    return [triple for triple in triples if triple[1] and triple[2]]


def _fact(id_: str, lang: str, entry: object, alignment: str) -> Fact:
    """One record in one language.

    Raises:
        RefusedInput: With the reason for which it is dropped.
    """
    if not isinstance(entry, dict):
        raise RefusedInput("no entry in this language")
    for name, label in (("src", "question"), ("subject", "subject"), ("alt", "target")):
        if not _text(entry, name):
            raise RefusedInput(f"empty {label}")
    if "{}" in _text(entry, "src") + _text(entry, "subject"):
        raise RefusedInput("question or subject holds {}")
    prompt, subject = _align(_text(entry, "src"), _text(entry, "subject"), lang, alignment)
    probes: dict[str, list[Probe]] = defaultdict(list)
    for kind, question, answer in _questions(entry):
        probes[kind].append(Probe(prompt=question, answer=answer, kind=kind))
    try:
        return Fact(
            id=id_,
            lang=lang,
            relation="zsre",
            subject=subject,
            prompt=prompt,
            target=_text(entry, "alt"),
            paraphrases=tuple(probes["paraphrase"]),
            neighbours=tuple(probes["locality"]),
            portability=tuple(probes["portability"]),
        )
    except RefusedInput as error:
        raise RefusedInput("text that no record may hold (control character, {} or too long)") from error


def _sentences(lang: str, entry: object) -> Iterator[str]:
    """Complete sentences of a corpus record; locality questions stay out, they are for testing."""
    if isinstance(entry, dict):
        questions = [("edit", _text(entry, "src"), _text(entry, "alt")), *_questions(entry)]
        for kind, question, answer in questions:
            sentence = question + LANGUAGES[lang].join + answer
            if kind != "locality" and question and answer and printable(sentence):
                yield sentence


def load_mzsre(
    path: str | Path | None = None,
    langs: Sequence[str] = CORE,
    alignment: str = "exact",
    *,
    name: str = "mzsre",
) -> FactSet:
    """Loads multilingual zsRE.

    Two layouts are read: JSON lines (id → language → fields) and the original array of objects keyed by
    language. Splits come from sha256("mzsre/" + id); the corpus holds question, rephrase and portability
    question of the corpus split with their answers, whether or not their subject could be aligned.

    Args:
        path: The file; by default mzsre.jsonl in $LANGEDIT_DATA or ../shared/data.
        langs: Language codes to load.
        alignment: "exact" takes a question only if it holds the subject letter for letter, exactly once;
            "fuzzy" also aligns other spellings (difflib ratio at least 0.75); the aligned span becomes the
            subject.
        name: Name of the resulting set.

    Returns:
        The usable facts; `dropped` counts the others per reason and language.

    Raises:
        FileNotFoundError: If there is no file; says what to put where.
        RefusedInput: If the file is malformed; names the line.
        ValueError: If a language or alignment is unknown, or no fact is usable.
    """
    if alignment not in ALIGNMENTS:
        raise unknown("alignment", alignment, ALIGNMENTS)
    codes = tuple(language(code).code for code in dict.fromkeys(langs))
    source = Path(path) if path is not None else default_path()
    if not source.is_file():
        raise FileNotFoundError(f"{source} is no file; expected mzsre as JSON lines or one JSON array")
    facts: dict[str, dict[str, Fact]] = {}
    corpus: dict[str, dict[str, None]] = {lang: {} for lang in codes}  # ordered, without repetitions
    dropped: dict[str, Counter] = defaultdict(Counter)
    read = 0
    for number, record in records(source):
        read += 1
        id_ = f"mzsre/{number}"
        by_lang = {}
        for lang in codes:
            try:
                by_lang[lang] = _fact(id_, lang, record.get(lang), alignment)
            except RefusedInput as reason:
                dropped[str(reason)][lang] += 1
            if split_of(id_) == "corpus":
                corpus[lang] |= dict.fromkeys(_sentences(lang, record.get(lang)))
        if by_lang:
            facts[id_] = by_lang
    if not facts:
        reasons = "; ".join(f"{why}: {dict(n)}" for why, n in sorted(dropped.items())) or "the file is empty"
        raise ValueError(f"{source.name} holds no usable fact in {', '.join(codes)} ({reasons})")
    return FactSet(
        name=name,
        facts=facts,
        corpus={lang: tuple(texts) for lang, texts in corpus.items()},
        splits={id_: split_of(id_) for id_ in facts},
        dropped={why: dict(sorted(n.items())) for why, n in sorted(dropped.items())},
        provenance={"file": source.name, "records": read, "alignment": alignment, "languages": list(codes)},
    )


def load_bzsre(path: str | Path | None = None, alignment: str = "exact") -> FactSet:
    """Loads the English–Chinese pair of the same file; see `load_mzsre`."""
    return load_mzsre(path, ("en", "zh"), alignment, name="bzsre")
