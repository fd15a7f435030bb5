"""List prompts in 135 languages: four territories with their currencies, then a fifth territory; no words to translate.

prompt = "a₁: x₁ ↵ … a₄: x₄ ↵ {}:" with all names in one language; made by scripts/build_atlas_lists.py.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from langedit_core.records import digest

PATH = Path(__file__).with_name("data") / "atlas_lists.json"


@dataclass(frozen=True, kw_only=True)
class ListLanguage:
    """One language of the lists.

    Attributes:
        code: CLDR's code.
        name: English name.
        script: ISO 15924 code of its likely script; both Chinese orthographies are "Hani".
        family: Top-level family of Glottolog.
        branch: Branch of Indo-European; elsewhere the family.
        template: Prompt with one "{}" where a subject goes.
        subjects: Names of the same territories in every language, in the same order.
    """

    code: str
    name: str
    script: str
    family: str
    branch: str
    template: str
    subjects: tuple[str, ...]


@cache
def load_lists(path: Path = PATH) -> dict[str, ListLanguage]:
    """All languages, by code.

    Raises:
        ValueError: If the file is not JSON, lacks a section, or was altered.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        rows, header = content["languages"], content["header"]
        expected = header["sha256"]
        text = json.dumps([header["subjects"], rows], ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path.name} is damaged ({error!r}); reinstall the package") from error
    if digest(text) != expected:
        raise ValueError(f"{path.name} was altered (its checksum differs); reinstall the package")
    return {code: _language(code, row) for code, row in rows.items()}


def _language(code: str, row: dict) -> ListLanguage:
    shown = "".join(f"{territory}: {currency}\n" for territory, currency in row["examples"])
    return ListLanguage(
        code=code,
        **{name: row[name] for name in ("name", "script", "family", "branch")},
        template=shown + "{}:",
        subjects=tuple(row["names"]),
    )
