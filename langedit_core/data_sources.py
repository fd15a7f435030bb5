"""Where the data sets have their public homes, under which licence, and how what lies there becomes the study's files.

MzsRE is a file of English–other pairs per language at a pinned commit; XTREME's tasks are rows of hub data sets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from langedit_core.datafiles import parse_json
from langedit_core.errors import RefusedInput, unknown
from langedit_core.languages import CORE, LANGUAGES, language
from langedit_core.xtreme_data import HUB, TASKS, XNLI_TWO, as_line

MZSRE_FILE = "mzsre.jsonl"
LARGEST_PAIRS = 20_000_000  # bytes; the largest has about one million characters
LARGEST_PAGE = 20_000_000
PAGE = 100  # rows, the most that one request may ask for
MOST_APART = 0.1  # share of records in which two files of pairs may hold different English questions


@dataclass(frozen=True, kw_only=True)
class Source:
    """Whose data it is.

    Attributes:
        home: Page for a person to read.
        licence: In a few words, for tables.
        terms: As far as they are known here, in a sentence.
    """

    home: str
    licence: str
    terms: str


SOURCES: dict[str, Source] = {
    "mzsre": Source(
        home="https://github.com/weixuan-wang123/ReMaKE",
        licence="not stated",
        terms="MzsRE (arXiv 2312.13040), translated from zsRE: its repository states no licence known here; "
        "read it, and ask its authors before passing the data on",
    ),
    "xnli": Source(
        home="https://huggingface.co/datasets/facebook/xnli",
        licence="CC BY-NC 4.0",
        terms="XNLI (arXiv 1809.05053): CC BY-NC 4.0, so not for commercial use",
    ),
    "pawsx": Source(
        home="https://github.com/google-research-datasets/paws/tree/master/pawsx",
        licence="free use",
        terms="PAWS-X (arXiv 1908.11828): free for any purpose, Google asks to be named as the source",
    ),
    "mlqa": Source(
        home="https://github.com/facebookresearch/MLQA",
        licence="CC BY-SA 3.0",
        terms="MLQA (arXiv 1910.07475): CC BY-SA 3.0, so copies keep the licence and name the source",
    ),
    "wikiann": Source(
        home="https://huggingface.co/datasets/google/xtreme",
        licence="not stated",
        terms="WikiANN / PAN-X (Pan et al. 2017): states no licence of its own known here; its sentences are "
        "Wikipedia's, which are CC BY-SA",
    ),
}

SETS: dict[str, tuple[str, ...]] = {"mzsre": ("mzsre",), "bzsre": ("mzsre",), "xtreme": TASKS}
"""What can be asked for, and the sources behind it; a single task of XTREME can be asked for by its name too."""

REVISIONS = {"facebook/xnli": "b8dd5d7af51114dbda02c0e3f6133f332186418e"}
"""Commits of hub data sets that are known; the row service has only the newest, so another one is told, not refused."""

_FIRST, _SECOND = "a820baed56078e6a64ca179f0957a4a9485773a6", "fbf9f6efd23c7f6a01fbec20d8d5161f53b1b2f6"
PAIRS: dict[str, tuple[str, str]] = {
    "de": ("de", _FIRST), "nl": ("du", _FIRST), "es": ("es", _FIRST), "fr": ("fr", _FIRST), "zh": ("zh", _FIRST),
    "cs": ("cz", _FIRST), "vi": ("vi", _FIRST),
    "pt": ("pt", _SECOND), "ru": ("ru", _SECOND), "th": ("th", _SECOND), "tr": ("tr", _SECOND),
}  # fmt: skip
"""Language -> what MzsRE calls it, and a commit of the repository that holds its file."""

MZSRE_FACTS = 600
"""Facts of MzsRE that the committed reports drew from, the first of those published. Runs draw by the hash of an id, so
with more facts to draw from they would edit other ones, and no number could be held against the reports'."""

REPORTED: dict[str, str] = {
    "en": "11d04742f186301a09ac73381cce5f78c811e4d17f270e58f59c7626da97ac43",
    "de": "61fc4a0451498c82d03c51d9470c934767935e9afb85f9eb4678d4fcdfb17953",
    "nl": "a0b4650637fcc67f514ffcdcbf3a9a2ebf116302ab24599b0f4e8eb9c6d58029",
    "es": "4fb0976990e9a9166828c5ff79860ea9c6ad5b0da3320bdeca4fc7b24ae00898",
    "fr": "65c34b5d7a9d2dc331d3996a9c0b2629439f27dfb0708a0e8b403bd254371a94",
    "zh": "763bb2e0866c7ac17d37055f66d9df9603f7a40c7c0beb6f7f81a7cd561bebd8",
    "cs": "29a1effd361b4001b15fc3eb56fae5d99aa292c403934d41648b9032de641389",
    "pt": "fb5218b2a8f04122104714fc2f1b723ee8ced6650b2b3295be751634473747a0",
    "ru": "4ace4e590ce9f53a501149bd9abb21ade4c82053fa9dbf4a4d354bca67d2f49b",
    "th": "930c0441b678c4b80e8561bd03157ec645f5963fe495a1f99fb0db3dde110fea",
    "tr": "f0285c7ae8bd2db7a0b4dfefbb110b34867aa381c7b0d6a4d190a49abe47ec45",
    "vi": "7c402b9f1fbfa3cac3e97b313f549f3b61015d208ddb97a64e7bf82f32b09ab7",
}
"""Language -> `digest_of` those facts in the reports' data, which are not ours to ship."""

XNLI_CLASSES = (2, 3)
"""What XNLI can be written with; the committed reports have two: entailed or not."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file the study reads.

    Attributes:
        path: Below the data folder.
        source: Key of `SOURCES`.
        langs: Languages it shall hold.
    """

    path: str
    source: str
    langs: tuple[str, ...]


def targets(names: Sequence[str], langs: Sequence[str] = CORE) -> tuple[list[Target], list[str]]:
    """Files of some data sets, and a sentence for every part that nobody publishes.

    Args:
        names: Keys of `SETS`, or tasks of XTREME.
        langs: Language codes; `bzsre` is always English and Chinese.

    Raises:
        ValueError: Unknown name or language, or none.
    """
    codes = tuple(language(code).code for code in dict.fromkeys(langs))
    if not codes or not names:
        raise ValueError(f"got data sets {list(names)} and languages {list(langs)}; expected at least one of each")
    wanted: list[str] = []
    for name in names:
        if name not in SETS and name not in TASKS:
            raise unknown("data set", name, (*SETS, *TASKS))
        wanted += TASKS if name == "xtreme" else [name]
    found, gaps = [], []
    pairs = {name: ("en", "zh") if name == "bzsre" else ("en", *codes) for name in wanted if name in ("mzsre", "bzsre")}
    if pairs:
        together = {code for codes_ in pairs.values() for code in codes_}
        ordered = tuple(code for code in LANGUAGES if code in together)
        found.append(Target(path=MZSRE_FILE, source="mzsre", langs=ordered))
    for task in dict.fromkeys(name for name in wanted if name in TASKS):
        published = [code for code in codes if code in HUB[task][2]]
        found += [Target(path=f"xtreme/{task}_{code}.jsonl", source=task, langs=(code,)) for code in published]
        if absent := [code for code in codes if code not in published]:
            gaps.append(f"{task} is not published in {', '.join(absent)}")
    return found, gaps


def _home(url: str, base: str | None) -> str:
    """The address at another server that answers under the same paths."""
    return url if base is None else base.rstrip("/") + "/" + url.split("://", 1)[1].split("/", 1)[1]


def pair_name(lang: str) -> str:
    """Name of MzsRE's file of English and `lang`."""
    return f"mzsre_test_duplicate_en{PAIRS[lang][0]}.json"


def pair_url(lang: str, base: str | None = None) -> str:
    """Address of that file; `base` is a mirror."""
    home = f"https://raw.githubusercontent.com/weixuan-wang123/ReMaKE/{PAIRS[lang][1]}/data/MzsRE"
    return _home(f"{home}/{pair_name(lang)}", base)


def rows_url(task: str, lang: str, split: str, offset: int, length: int, base: str | None = None) -> str:
    """Address of some rows of a task; `base` is a mirror."""
    dataset, template, _ = HUB[task]
    asked = dict(dataset=dataset, config=template.format(lang=lang), split=split, offset=offset, length=length)
    return _home(f"https://datasets-server.huggingface.co/rows?{urlencode(asked)}", base)


def read_pairs(where: str, content: bytes, lang: str) -> list[dict]:
    """Records of a file of pairs, each with its languages under the codes used here.

    Raises:
        RefusedInput: Not UTF-8, not JSON, no array, or an entry without both languages; names the entry.
    """
    records = parse_json(where, content)
    if not isinstance(records, list) or not records:
        raise RefusedInput(f"{where}: expected an array of records, found {_kind(records)}")
    own, found = PAIRS[lang][0], []
    for number, record in enumerate(records):
        pair = (
            {code: record.get(name) for code, name in (("en", "en"), (lang, own))} if isinstance(record, dict) else {}
        )
        for code in ("en", lang):
            if not isinstance(pair.get(code), dict) or not isinstance(pair[code].get("src"), str):
                raise RefusedInput(
                    f"{where}, entry {number}: expected questions in 'en' and {own!r}, {code} is missing"
                )
        found.append(pair)
    return found


def join_pairs(pairs: Mapping[str, Sequence[dict]]) -> tuple[list[dict], dict[str, int]]:
    """One record per fact, with all languages; and per language how many entries did not belong to the same fact.

    The files list the same facts in the same order, so an id is a position. Where the English question differs, the
    entry is left out.

    Args:
        pairs: Language -> its records, as `read_pairs` gives them.

    Raises:
        RefusedInput: More than a tenth of a language differs: these files do not belong together.
    """
    longest = max(pairs.values(), key=len)
    joined = [dict(id=number, en=record["en"]) for number, record in enumerate(longest)]
    apart = {}
    for lang, records in pairs.items():
        fits = [one["en"]["src"] == whole["en"]["src"] for one, whole in zip(records, joined, strict=False)]
        for record, whole, same in zip(records, joined, fits, strict=False):
            if same:
                whole[lang] = record[lang]
        apart[lang] = fits.count(False)
        if apart[lang] > MOST_APART * len(records):
            raise RefusedInput(
                f"{pair_name(lang)}: {apart[lang]} of {len(records)} English questions are not those of the other "
                "files; fetch all of them from one revision"
            )
    return joined, {lang: number for lang, number in apart.items() if number}


def digest_of(records: Sequence[dict], lang: str) -> str:
    """SHA-256 of what all records say in one language, whatever else they hold."""
    return hashlib.sha256(json.dumps([record.get(lang) for record in records], sort_keys=True).encode()).hexdigest()


def unlike_reports(records: Sequence[dict], langs: Sequence[str]) -> list[str]:
    """Languages in which these are not, word for word and in this order, the facts of the committed reports."""
    return [lang for lang in langs if digest_of(records, lang) != REPORTED[lang]]


def two_classes(line: dict) -> dict:
    """A line of XNLI, whose neutral and contradicting pairs are one class where it is only asked what is entailed."""
    entailed, not_entailed = XNLI_TWO
    return line | {"label": entailed if line["label"] == entailed else not_entailed}


def read_page(where: str, content: bytes, task: str) -> tuple[list[tuple[int, object]], int]:
    """Rows of a page of the row service, as lines of the study's files, and how many rows the split has.

    A row without the expected fields is a `RefusedInput` in place of its line.

    Raises:
        RefusedInput: The page is not what the service documents, or a cell was cut by it.
    """
    page = parse_json(where, content)
    rows = page.get("rows") if isinstance(page, dict) else None
    total = page.get("num_rows_total") if isinstance(page, dict) else None
    if not isinstance(rows, list) or not isinstance(total, int):
        raise RefusedInput(f"{where}: expected an object with rows and num_rows_total, found {_kind(page)}")
    lines: list[tuple[int, object]] = []
    for entry in rows:
        number, row = (entry.get("row_idx"), entry.get("row")) if isinstance(entry, dict) else (None, None)
        if not isinstance(number, int) or not isinstance(row, dict):
            raise RefusedInput(f"{where}: a row is {_kind(entry)} without row_idx and row")
        if entry.get("truncated_cells"):
            raise RefusedInput(f"{where}, row {number}: the service cut a cell; the record would not be whole")
        try:
            lines.append((number, as_line(task, number, row)))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            lines.append((number, RefusedInput(f"not the expected fields ({error!r})")))
    return lines, total


def _kind(value: object) -> str:
    return (
        f"an object with {', '.join(map(repr, list(value)[:4]))}" if isinstance(value, dict) else type(value).__name__
    )
