"""Errors that say what arrived, what was expected and what to do about it.

An unknown name is answered with the known ones sorted by similarity, so the likely typo comes first:
known = sort(names, by = −ratio(got, name)).
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RefusedInput(ValueError):
    """A record that cannot be used; loaders catch it and count, everybody else sees it.

    Attributes:
        record: Identifier of the refused record, None where it has none.
        lang: Language code of the refused text, None where unknown.
    """

    def __init__(self, message: str, *, record: str | None = None, lang: str | None = None):
        named = {"record": record, "language": lang}
        where = ", ".join(f"{what} {name!r}" for what, name in named.items() if name is not None)
        super().__init__(f"{where}: {message}" if where else message)
        self.record = record
        self.lang = lang


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message names the cell and ends with the last lines of its traceback."""


def told(error: ValidationError, most: int = 5) -> str:
    """What pydantic found, on one line: field and reason, the first few."""
    found = [
        f"{'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}".removeprefix(": ")
        for one in error.errors()
    ]
    return "; ".join(found[:most]) + (f"; and {len(found) - most} more" if len(found) > most else "")


def check_list(name: str, given: object) -> None:
    """Refuse a text where a list of texts is meant, whose letters would be taken for them, and a single number.

    Raises:
        TypeError: It is a text or a number.
    """
    if isinstance(given, int):
        raise TypeError(f"{name} is {given}, expected a list, such as [{given}]")
    if isinstance(given, str):
        raise TypeError(f"{name} is the text {given[:60]!r}, expected a list, such as [{given[:60]!r}]")


def unknown(what: str, got: str, known: Iterable[str]) -> ValueError:
    """Builds (does not raise) the error for a name outside a fixed set.

    Args:
        what: What the name stands for, for example "language".
        got: The name that arrived.
        known: Every name that would have been accepted.

    Returns:
        A ValueError listing the known names, nearest to `got` first.
    """
    wanted = str(got).casefold()

    def distance(name: str) -> tuple[float, str]:
        return -SequenceMatcher(None, wanted, name.casefold()).ratio(), name

    names = sorted({str(name) for name in known}, key=distance)
    return ValueError(f"unknown {what} {got!r}; known: {', '.join(names) if names else '(none)'}")
