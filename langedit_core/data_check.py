"""Checking data files as they lie: every line read, every record held to what its loader takes, faults with file:line.

Nothing is fetched and nothing written; a checksum is compared where `sources.lock.json` has one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from langedit_core.data_sources import MZSRE_FILE, SOURCES, Target, targets
from langedit_core.datafiles import json_lines
from langedit_core.errors import RefusedInput
from langedit_core.fact_files import Problem
from langedit_core.languages import LANGUAGES
from langedit_core.storage import CorruptFile, file_digest, read_json
from langedit_core.xtreme_data import POOL, TASKS, parse_example

LOCK = "sources.lock.json"
FAULTS_SHOWN = 3
MOST_FAULTS = 100  # of one file; more say nothing new
_TEXTS = ("subject", "src", "alt")


@dataclass(frozen=True, kw_only=True)
class Found:
    """One file of a data folder.

    Attributes:
        target: Which one.
        lines: Records.
        langs: Language -> records that have it; empty for a missing file.
        sha256: Of the file; empty if it is missing.
        problems: What is wrong with it, and where.
    """

    target: Target
    lines: int = 0
    langs: dict[str, int]
    sha256: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def state(self) -> str:
        return "damaged" if self.problems else "found" if self.sha256 else "missing"


def read_lock(folder: Path) -> dict[str, dict]:
    """What earlier downloads recorded: files and downloads by name; empty where nothing was.

    Raises:
        CorruptFile: The lock is there but cannot be used.
    """
    path = folder / LOCK
    try:
        lock = read_json(path)
    except FileNotFoundError:
        return dict(files={}, downloads={})
    whole = isinstance(lock, dict) and all(
        isinstance(lock.get(part), dict)
        and all(isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in lock[part].values())
        for part in ("files", "downloads")
    )
    if not whole:
        raise CorruptFile(f"{path} has not the files and downloads that this command writes; move it away")
    return lock


def check_folder(folder: Path) -> tuple[list[Found], list[str]]:
    """All files the study reads, found or missing, further ones of the same kinds, and what nobody publishes.

    Raises:
        CorruptFile: The lock is there but cannot be used.
    """
    wanted, gaps = targets(["mzsre", "xtreme"])
    known = {target.path for target in wanted}
    for task in TASKS:
        for lang in LANGUAGES:
            path = f"xtreme/{task}_{lang}.jsonl"
            if path not in known and (folder / path).is_file():
                wanted.append(Target(path=path, source=task, langs=(lang,)))
    wanted.sort(key=lambda target: (list(SOURCES).index(target.source), list(LANGUAGES).index(target.langs[0])))
    lock = read_lock(folder)
    return [check_target(folder, target, lock) for target in wanted], gaps


def check_target(folder: Path, target: Target, lock: dict[str, dict]) -> Found:
    """One file: missing, found, or damaged."""
    path = folder / target.path
    if not path.exists():
        return Found(target=target, langs={})
    if not path.is_file():
        return Found(target=target, langs={}, problems=(Problem(path, None, "is no file"),))
    found = _mzsre(path, target) if target.path == MZSRE_FILE else _xtreme(path, target)
    found = replace(found, sha256=file_digest(path))
    recorded = lock["files"].get(target.path, {}).get("sha256")
    if recorded not in (None, found.sha256):
        altered = Problem(path, None, f"was altered: SHA-256 {found.sha256[:12]}, {LOCK} has {recorded[:12]}")
        found = replace(found, problems=(altered, *found.problems))
    return found


def _numbered(path: Path) -> Iterator[tuple[int, object]]:
    """Line numbers with what the lines say; a line that cannot be read is a RefusedInput without its place."""
    for where, record in json_lines(path):
        if isinstance(record, RefusedInput):
            record = RefusedInput(str(record).removeprefix(f"{where}: "))
        yield int(where.rsplit(" ", 1)[1]), record


def _mzsre(path: Path, target: Target) -> Found:
    with path.open("rb") as file:
        if file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            return _array(path, target)
    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    lines = 0
    for number, record in _numbered(path):
        if len(problems) == MOST_FAULTS:
            break
        lines += 1
        try:
            if isinstance(record, RefusedInput):
                raise record
            langs = _languages(record)
            id_ = str(record.get("id", lines - 1))
            if (earlier := seen.setdefault(id_, number)) != number:
                raise RefusedInput(f"id {id_!r} is in line {earlier} already")
            counts.update(langs)
        except RefusedInput as error:
            problems.append(Problem(path, number, str(error)))
    return _told(path, target, lines, counts, problems)


def _array(path: Path, target: Target) -> Found:
    """The original layout, one array; it has no lines to point to, so entries are counted from 0."""
    from langedit_core.mzsre import records

    counts: Counter[str] = Counter()
    problems: list[Problem] = []
    number = 0
    try:
        for number, (_, record) in enumerate(records(path), 1):
            try:
                counts.update(_languages(record))
            except RefusedInput as error:
                problems.append(Problem(path, None, f"entry {number - 1}: {error}"))
    except RefusedInput as error:
        problems.append(Problem(path, None, str(error).removeprefix(path.name).lstrip(",: ")))
    return _told(path, target, number, counts, problems[:MOST_FAULTS])


def _told(path: Path, target: Target, lines: int, counts: Counter[str], problems: list[Problem]) -> Found:
    if not lines and not problems:
        problems.append(Problem(path, None, "holds no record"))
    langs = {code: counts[code] for code in LANGUAGES if counts[code]}
    return Found(target=target, lines=lines, langs=langs, problems=tuple(problems))


def _languages(record: object) -> list[str]:
    """Languages in which a record has a question, its subject and its answer.

    Raises:
        RefusedInput: No object, a language is no object, or there is no complete one.
    """
    if not isinstance(record, dict):
        raise RefusedInput(f"expected a JSON object, found {type(record).__name__}")
    found = []
    for code in LANGUAGES:
        entry = record.get(code)
        if entry is not None and not isinstance(entry, dict):
            raise RefusedInput(f"{code} is {type(entry).__name__}, expected an object with {', '.join(_TEXTS)}")
        if entry and all(isinstance(entry.get(name), str) and entry[name].strip() for name in _TEXTS):
            found.append(code)
    if not found:
        raise RefusedInput(f"no language has {', '.join(_TEXTS)}")
    return found


def _xtreme(path: Path, target: Target) -> Found:
    (lang,) = target.langs
    problems: list[Problem] = []
    lines = good = 0
    for number, record in _numbered(path):
        if len(problems) == MOST_FAULTS:
            break
        lines += 1
        try:
            if isinstance(record, RefusedInput):
                raise record
            parse_example(target.source, lang, f"line {number}", record)
            good += 1
        except RefusedInput as error:
            problems.append(Problem(path, number, str(error)))
    if good <= POOL and not problems:
        problems.append(Problem(path, None, f"holds {good} records; {POOL} are the pool, so nothing is evaluated"))
    return Found(target=target, lines=lines, langs={lang: good} if good else {}, problems=tuple(problems))
