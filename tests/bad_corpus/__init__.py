"""Bad inputs as data: each case builds one, hands it to the library, and says what has to come of it.

A case is judged refused (a documented error whose message helps), treated (not used, and said so; or made harmless),
useless (refused, but nobody could tell why), crashed (any other error) or accepted; only the first two may occur.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import ValidationError

from langedit_core import cli

DOCUMENTED = (ValueError, OSError, ImportError, ArithmeticError)
"""What the command line turns into one line and status 1."""
RAW = (UnicodeError, json.JSONDecodeError, ValidationError)
"""Of those, what a parser throws at a programmer: no file, no line, nothing to do."""


class Told(ValueError):
    """What the command line said before it ended with status 1 or 2."""


@dataclass
class World:
    """Where a case happens: a folder of its own, and what was logged meanwhile."""

    folder: Path
    patched: pytest.MonkeyPatch
    log: io.StringIO = field(default_factory=io.StringIO)

    def write(self, name: str, content: bytes | str | object) -> Path:
        """A file with these bytes, this text, or this as JSON."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    def command(self, *arguments: object) -> str:
        """`langedit` with these arguments, as its entry point runs it; what it printed.

        Raises:
            Told: It ended with status 1 or 2.
        """
        said, status = io.StringIO(), 0
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            self.patched.setattr(sys, "argv", ["langedit", *map(str, arguments)])
            try:
                cli.entry()
            except SystemExit as end:
                status = end.code
        if status in (1, 2):
            raise Told(re.sub(r"[^\n]*\r", "", said.getvalue()).strip())  # without progress bars
        if status:
            raise SystemError(f"status {status}: {said.getvalue()}")
        return said.getvalue()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One bad input.

    Attributes:
        kind: What sort of input.
        name: What is wrong with it.
        act: Builds it and hands it over; its result is what came of it.
        says: Must be found in the message; in the log, or in the result, of an input that is treated.
        treated: Whether the result is right although nothing was refused; None: it has to be refused.
    """

    kind: str
    name: str
    act: Callable[[World], object]
    says: str
    treated: Callable[[object], bool] | None = None


@dataclass(frozen=True)
class Verdict:
    outcome: str
    detail: str


def judge(case: Case, folder: Path) -> Verdict:
    """Let a case happen in an empty folder."""
    with pytest.MonkeyPatch.context() as patched:
        world = World(folder, patched)
        patched.setenv("HF_HOME", str(folder / "cache"))
        handler, root = logging.StreamHandler(world.log), logging.getLogger("langedit_core")
        root.addHandler(handler)
        try:
            result = case.act(world)
        except RAW as error:
            return Verdict("useless", f"{type(error).__name__}: {error}")
        except DOCUMENTED as error:
            return _of_message(case, str(error))
        except Exception as error:
            return Verdict("crashed", f"{type(error).__name__}: {error}")
        finally:
            root.removeHandler(handler)
        if case.treated is None or not case.treated(result):
            return Verdict("accepted", repr(result)[:300])
        told = f"{world.log.getvalue()}\n{result}"
        return Verdict("treated" if re.search(case.says, told) else "useless", told[-600:])


def _of_message(case: Case, message: str) -> Verdict:
    """A message helps if it says what is wrong in a few lines that a terminal can show."""
    fits = len(message) < 1500 and message.count("\n") < 12 and "Traceback" not in message
    harmless = not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", message)
    good = fits and harmless and re.search(case.says, message)
    return Verdict("refused" if good else "useless", message[:1500])
