"""Data that is not ours to redistribute: where it is looked for, and how its lines are read without trusting them.

folder = $LANGEDIT_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from langedit_core.errors import RefusedInput

LONGEST_LINE = 1_000_000  # bytes; a longer line is no record of any data set read here


class NotAvailable(FileNotFoundError):
    """Data that are not here; `reason` says which, the message also what to put where."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}; {advice}")
        self.reason = reason


def data_folder() -> tuple[Path, str]:
    """The folder, which need not exist, and what an error calls it."""
    folder = os.environ.get("LANGEDIT_DATA")
    if folder:
        return Path(folder), "$LANGEDIT_DATA"
    return Path(__file__).resolve().parents[2] / "shared" / "data", "../shared/data"


def parse_json(where: str, data: bytes) -> object:
    """Decode and parse.

    Raises:
        RefusedInput: Not UTF-8, not JSON (which has no NaN), or a field given twice; begins with `where`.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=without_repeats, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise RefusedInput(f"{where}: not UTF-8 (byte {error.start}); convert the file") from error
    except (ValueError, RecursionError) as error:
        raise RefusedInput(f"{where}: not JSON ({error})") from error


def without_repeats(pairs: Sequence[tuple[str, object]]) -> dict:
    """An object from its fields, for `json.loads`, which by itself takes the last of two without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedInput(f"the field {ascii(twice)[:60]} is there twice")
    return found


def no_constant(name: str) -> None:
    """For `json.loads`, which by itself takes NaN and Infinity."""
    raise RefusedInput(f"{name} is no JSON")


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """Every line that is not blank, as (where it stands, what it says); a line that cannot be read is a RefusedInput.

    The error is yielded, not raised: who reads decides whether one bad line spoils the file.
    """
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            where = f"{path.name}, line {number}"
            if len(line) > LONGEST_LINE:
                yield where, RefusedInput(f"{where}: longer than {LONGEST_LINE:,} bytes, which no record is")
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE)
            elif line.strip():
                try:
                    yield where, parse_json(where, line)
                except RefusedInput as error:
                    yield where, error
