"""Fetching data sets: what is there and right stays, the rest is downloaded, checked, and put in place whole.

A checksum nobody published is recorded at the first download (trust on first use), in `sources.lock.json`, and is
compared from then on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from langedit_core.data_check import FAULTS_SHOWN, LOCK, Found, check_target, read_lock
from langedit_core.data_sources import (
    LARGEST_PAGE,
    LARGEST_PAIRS,
    MZSRE_FACTS,
    PAGE,
    PAIRS,
    REVISIONS,
    SOURCES,
    XNLI_CLASSES,
    Target,
    join_pairs,
    pair_name,
    pair_url,
    read_page,
    read_pairs,
    rows_url,
    two_classes,
    unlike_reports,
)
from langedit_core.download import DownloadFailed, Unreachable, download
from langedit_core.errors import RefusedInput, unknown
from langedit_core.storage import write_bytes, write_json
from langedit_core.xtreme_data import EXAMPLES, HUB, POOL, parse_example

DOWNLOADS = "downloads"  # what came as it came; a file may also be put there by hand
ENOUGH = POOL + 1  # records: with fewer, nothing is left to evaluate after the few-shot pool
OTHER_FACTS = f"the committed reports drew from the first {MZSRE_FACTS} facts, so that runs edit other ones here"
OTHER_ROWS = (
    "XTREME: these are the first rows of the public splits; the committed reports have another draw (equally many rows "
    "of each class in XNLI and PAWS-X, a Dutch XNLI that is not public), so scores compare with one another, not with "
    "theirs"
)


@dataclass
class Fetching:
    """One run of `langedit data fetch`.

    Attributes:
        folder: The data folder; made when the first file is written.
        base: Another server that answers under the same paths; None takes the public homes.
        limit: Most records of an XTREME set, beside its pool; a file fetched with a lower one is fetched again.
        facts: Of MzsRE, the first ones; None takes all. By default those of the committed reports.
        xnli_classes: 2 makes neutral and contradicting pairs one class, as in the committed reports.
        sha256: Name of a download or of a file -> the checksum it must have.
        say: Gets every line of text.
    """

    folder: Path
    base: str | None = None
    limit: int = 500
    facts: int | None = MZSRE_FACTS
    xnli_classes: int = XNLI_CLASSES[0]
    sha256: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if self.xnli_classes not in XNLI_CLASSES or (self.facts is not None and self.facts < 1):
            raise ValueError(
                f"got facts={self.facts} and xnli_classes={self.xnli_classes}; expected at least one fact, or None for "
                f"all, and {' or '.join(map(str, XNLI_CLASSES))} classes"
            )
        self._lock = read_lock(self.folder)
        self._gone: set[str] = set()  # hosts without a connection
        self._used: set[str] = set()
        self._warned = False

    def fetch(self, target: Target) -> bool:
        """Put one file in place; says what was done, or what to do by hand.

        Returns:
            Whether the file is there and right.
        """
        path = self.folder / target.path
        try:
            if path.exists():
                state = self._there(target)
                if state is not None:
                    self.say(f"{target.path}: {state}")
                    return True
            told = self._mzsre(target) if target.source == "mzsre" else self._xtreme(target)
        except DownloadFailed as error:
            self.say(f"{target.path}: not fetched: {error}")
            self._by_hand(target)
            return False
        except RefusedInput as error:
            self.say(f"{target.path}: not fetched: {error}")
            return False
        self.say(f"{target.path}: {told}")
        return True

    def unused_checksums(self) -> list[str]:
        """Names for which a checksum was given but nothing was compared."""
        return [name for name in self.sha256 if name not in self._used]

    def _there(self, target: Target) -> str | None:
        """What is said of a file that is already right; None if it is this command's own and lacks what is asked for.

        Raises:
            RefusedInput: It is damaged, altered, or lacks a language and was not made here.
        """
        found = check_target(self.folder, target, self._lock)
        advice = "move it away to have it fetched"
        if found.problems:
            raise RefusedInput(f"is there but damaged ({found.problems[0]}); {advice}")
        if why := self._lacks(target, found):
            if target.path not in self._lock["files"]:
                raise RefusedInput(f"is there {why}, and was not made by this command; {advice}")
            self.say(f"{target.path}: made again, since it is there {why}")
            return None
        self._compare(target.path, found.sha256, "the file that is there", advice)
        told = f"already there and right ({found.lines} records, SHA-256 {found.sha256[:12]})"
        return f"{told}; {OTHER_FACTS}" if target.source == "mzsre" and found.lines != MZSRE_FACTS else told

    def _lacks(self, target: Target, found: Found) -> str:
        """How a file is not what is asked for; of one that was not made here, nobody knows what it was asked to be."""
        if lacking := [code for code in target.langs if code not in found.langs]:
            return f"without {', '.join(lacking)}"
        entry = self._lock["files"].get(target.path)
        if entry is None:
            return ""
        if target.source == "mzsre":
            made, asked = _number(entry.get("facts"), math.inf), _number(self.facts, math.inf)
            differs = made != asked and found.lines >= min(made, asked)  # else there are no more
            return f"with {found.lines} facts and {_or_all(self.facts)} are asked for" if differs else ""
        limit = _number(entry.get("limit"), found.lines - POOL)  # older locks do not say
        if limit < self.limit:
            return f"with a limit of {limit} and {self.limit} is asked for"
        classes = _number(entry.get("classes"), XNLI_CLASSES[-1])
        if target.source == "xnli" and classes != self.xnli_classes:
            return f"with {classes} classes and {self.xnli_classes} are asked for"
        return ""

    def _mzsre(self, target: Target) -> str:
        kept = self._lock["files"].get(target.path, {}).get("langs", [])
        langs = [code for code in PAIRS if code in {*kept, *target.langs}]
        pairs, parts = {}, []
        for lang in langs or ["zh"]:  # English alone lies in every file of pairs
            content, part = self._pair_file(lang)
            pairs[lang] = read_pairs(pair_name(lang), content, lang)
            parts.append(part)
        records, apart = join_pairs(pairs)
        records = records[: self.facts]
        if not langs:
            records = [{name: record[name] for name in ("id", "en")} for record in records]
        self._put(target, records, ["en", *langs], parts, facts=self.facts)
        told = f"{len(records)} records in {' '.join(['en', *langs])}"
        if len(records) != MZSRE_FACTS:
            told += f"; {OTHER_FACTS}"
        elif others := unlike_reports(records, ["en", *langs]):
            told += f"; not word for word the facts of the committed reports in {', '.join(others)}"
        else:
            told += ", word for word the facts of the committed reports"
        if apart:
            told += "; left out, being of another fact: " + ", ".join(f"{n} in {lang}" for lang, n in apart.items())
        return told

    def _pair_file(self, lang: str) -> tuple[bytes, dict]:
        """A file of pairs from the folder of downloads, or from its home; and what the lock says of it."""
        name, url = pair_name(lang), pair_url(lang, self.base)
        path = self.folder / DOWNLOADS / name
        known = self._lock["downloads"].get(name)
        if path.is_file():
            if path.stat().st_size > LARGEST_PAIRS:
                raise RefusedInput(f"{DOWNLOADS}/{name} has more than {LARGEST_PAIRS:,} bytes; is it the right file?")
            content, how = path.read_bytes(), "found"
        else:
            content, how = self._get(url, LARGEST_PAIRS).content, "downloaded"
        digest = hashlib.sha256(content).hexdigest()
        self._compare(
            name, digest, f"{DOWNLOADS}/{name}" if how == "found" else url, "delete it" if how == "found" else ""
        )
        read_pairs(name, content, lang)  # before it is kept: what cannot be read is no download
        part = dict(name=name, url=pair_url(lang), sha256=digest, bytes=len(content))
        if known is None:
            self.say(f"  {name}: {how}, {len(content):,} bytes, SHA-256 {digest} ({self._trust(name)})")
            if how == "downloaded":
                write_bytes(path, content)
            self._lock["downloads"][name] = part
            self._keep_lock()
        elif how == "downloaded":
            write_bytes(path, content)
        return content, part

    def _compare(self, name: str, digest: str, what: str, advice: str) -> None:
        """Refuse what has another checksum than the one asked for, or than the one recorded."""
        wanted, whose = self.sha256.get(name), "asked for"
        if wanted is not None:
            self._used.add(name)
        elif known := (self._lock["downloads"].get(name) or self._lock["files"].get(name)):
            wanted, whose = known["sha256"], f"recorded in {LOCK}"
        if wanted is not None and wanted.lower() != digest:
            tail = f"; {advice}" if advice else ""
            raise RefusedInput(f"{what} has SHA-256 {digest}, {whose} is {wanted.lower()}{tail}")

    def _xtreme(self, target: Target) -> str:
        """The pool from the validation split, then records from the test split, rows the loader would drop left out."""
        task, (lang,) = target.source, target.langs
        lines: list[dict] = []
        revisions: set[str] = set()
        dropped: list[str] = []
        for split, wanted in (("validation", POOL), ("test", self.limit)):
            offset = taken = 0
            total = wanted
            while taken < wanted and offset < total:
                # The pool may need a few rows more than it has, the records are the first so many rows and no others.
                length = PAGE if split == "validation" else min(PAGE, wanted - offset)
                if length < 1:
                    break
                url = rows_url(task, lang, split, offset, length, self.base)
                body = self._get(url, LARGEST_PAGE)
                revisions |= {body.revision} if body.revision else set()
                where = f"{task} {lang}, {split} rows {offset} to {offset + length - 1}"
                page, total = read_page(where, body.content, task)
                if not page:
                    break
                for number, line in page:
                    if taken == wanted:
                        break
                    try:
                        if isinstance(line, RefusedInput):
                            raise line
                        parse_example(task, lang, f"row {number}", line)
                    except RefusedInput as reason:
                        dropped.append(f"{split} row {number}: {reason}")
                        continue
                    lines.append(two_classes(line) if task == "xnli" and self.xnli_classes == 2 else line)
                    taken += 1
                offset += len(page)
            if split == "validation" and taken < POOL:
                raise RefusedInput(
                    f"{task} {lang}: only {taken} usable validation rows came, {POOL} are the pool{_why(dropped)}"
                )
        if len(lines) < ENOUGH:
            raise RefusedInput(f"{task} {lang}: no usable test row came{_why(dropped)}")
        if len(revisions) > 1:
            raise RefusedInput(f"{task} {lang}: the data set changed while it was read; try again")
        dataset = HUB[task][0]
        revision = next(iter(revisions), None)
        asked = dict(limit=self.limit) | (dict(classes=self.xnli_classes) if task == "xnli" else {})
        digest = self._put(target, lines, [lang], [], dataset=dataset, revision=revision, **asked)
        if not self._warned:
            self.say(OTHER_ROWS)
            self._warned = True
        told = f"{len(lines)} records, SHA-256 {digest} ({self._trust(target.path)})"
        if asked.get("classes") == 2:
            told += "; neutral and contradiction written as not_entailment, as the committed reports have it"
        if revision and REVISIONS.get(dataset, revision) != revision:
            told += f"; {dataset} is at {revision[:12]} now, {REVISIONS[dataset][:12]} is the one known here"
        return told + (f"; {len(dropped)} rows left out{_why(dropped)}" if dropped else "")

    def _put(self, target: Target, records: list[dict], langs: list[str], parts: list[dict], **told: object) -> str:
        content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        digest = hashlib.sha256(content).hexdigest()
        if target.path in self.sha256:
            self._compare(target.path, digest, "what was made", "")
        write_bytes(self.folder / target.path, content)
        entry = dict(source=target.source, home=SOURCES[target.source].home, sha256=digest, bytes=len(content))
        self._lock["files"][target.path] = entry | dict(langs=langs, parts=parts) | told
        self._keep_lock()
        return digest

    def _trust(self, name: str) -> str:
        return "as asked for" if name in self.sha256 else "first seen: trusted and recorded"

    def _keep_lock(self) -> None:
        write_json(self.folder / LOCK, self._lock)

    def _get(self, url: str, most: int):
        host = url.split("/", 3)[2]
        if host in self._gone:
            raise Unreachable(f"{url}: {host} cannot be reached, as said above")
        try:
            return download(url, most=most)
        except Unreachable:
            self._gone.add(host)
            raise

    def _by_hand(self, target: Target) -> None:
        """What a person with a network can do: which file, from where, to where."""
        source = SOURCES[target.source]
        if target.source == "mzsre":
            kept = self._lock["files"].get(target.path, {}).get("langs", [])
            for lang in [code for code in PAIRS if code in {*kept, *target.langs}] or ["zh"]:
                path = self.folder / DOWNLOADS / pair_name(lang)
                if not path.is_file():
                    self.say(f"  by hand: save {pair_url(lang)} as {path}")
            self.say("  and give the same command again, which joins these files without a network")
        else:
            dataset, template, _ = HUB[target.source]
            config = template.format(lang=target.langs[0])
            self.say(
                f"  by hand: write {self.folder / target.path} from {dataset}, configuration {config}: {POOL} rows of "
                f"validation, then test, one JSON object a line: {EXAMPLES[target.source]}"
                + (" (neutral and contradiction are not_entailment)" if target.source == "xnli" else "")
            )
        self.say(f"  licence: {source.licence} ({source.home})")


def _number(value: object, otherwise: int | float) -> int | float:
    """A number of a lock file, which people may have changed."""
    return value if type(value) is int else otherwise


def _or_all(number: int | None) -> str:
    return "all" if number is None else str(number)


def parse_checksums(options: list[str]) -> dict[str, str]:
    """NAME=HEX options as a mapping.

    Raises:
        ValueError: Not of that form, or a name twice.
    """
    found: dict[str, str] = {}
    for text in options:
        name, _, value = text.rpartition("=")
        if not name or len(value) != 64 or not set(value.lower()) <= set("0123456789abcdef"):
            raise ValueError(f"--sha256 got {text!r}; expected NAME=, then 64 hexadecimal digits")
        if name in found:
            raise ValueError(f"--sha256 names {name!r} twice")
        found[name] = value.lower()
    return found


def check_names(checksums: Mapping[str, str], wanted: list[Target]) -> None:
    """Refuse checksums of files that are not asked for: a typo must not pass for a check.

    Raises:
        ValueError: An unknown name; lists the known ones.
    """
    known = [target.path for target in wanted] + [pair_name(lang) for lang in PAIRS]
    for name in checksums:
        if name not in known:
            raise unknown("file of --sha256", name, known)


def _why(dropped: list[str]) -> str:
    shown = "; ".join(dropped[:FAULTS_SHOWN])
    return f" ({shown}{', ...' if len(dropped) > FAULTS_SHOWN else ''})" if dropped else ""
