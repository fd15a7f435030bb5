"""What was measured once is kept under the hash of everything it depends on, so a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from langedit_core.storage import read_sealed, write_sealed

log = logging.getLogger(__name__)


def kept(
    folder: str | Path | None,
    what: str,
    key: dict,
    make: Callable[[], object],
    read: Callable[[object], object] = lambda content: content,
):
    """What `make` gives, or what it gave before for the same key; a damaged file is made again.

    Args:
        folder: Where the file `what`-HASH.json.xz lies; None keeps nothing.
        what: Begins the file's name.
        key: Everything the outcome depends on, as JSON takes it.
        make: Gives something that JSON takes.
        read: Turns that into what is returned; a KeyError, TypeError or ValueError from it is damage too.
    """
    if folder is None:
        return read(make())
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    path = Path(folder) / f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.json.xz"
    try:
        return read(read_sealed(path))
    except FileNotFoundError:
        pass
    except (KeyError, TypeError, ValueError) as error:
        log.warning("made again: %s: %r", path, error)
    made = make()
    write_sealed(path, made)
    return read(made)
