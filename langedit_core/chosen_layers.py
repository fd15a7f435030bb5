"""The layers that causal tracing recommends for a model, kept where every later run of that model finds them.

`hparams.yaml` comes first: for a model it names, what is kept here is not read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from langedit_core.models import canonical
from langedit_core.storage import CorruptFile, cache_home, read_sealed, write_sealed

ENOUGH = 10
"""Facts that must have been traced before a notebook keeps layers: the recommendation of fewer, as in the smallest
profile, is mostly chance, and would replace that of many in every later run of the model."""


def parse_layers(text: str | int) -> tuple[int, ...] | None:
    """Layers from "3,4,5"; None from an empty text: the model's own. Papermill makes a number of a single one.

    Raises:
        ValueError: Anything else.
    """
    text = str(text)
    if not text.strip():
        return None
    if not re.fullmatch(r"\d+([ ,]+\d+)*", text.strip()):
        raise ValueError(f"layers are {text!r}; expected numbers such as 3,4,5")
    return tuple(map(int, re.split("[ ,]+", text.strip())))


def keep_if_enough(model: str, layers: Sequence[int], facts: int, data: str) -> list[str]:
    """`keep_layers` if at least `ENOUGH` facts were traced.

    Args:
        model: As in `keep_layers`.
        layers: As in `keep_layers`.
        facts: Traced facts behind the recommendation.
        data: Name of their data set.

    Returns:
        Nothing, or a sentence that says why nothing was kept and what to do.
    """
    if facts >= ENOUGH:
        keep_layers(model, layers, f"causal tracing of {facts} facts of {data}")
        return []
    return [
        f"These layers are not kept for later runs of {model}: that takes at least {ENOUGH} traced facts, here "
        f"n = {facts} of {data}. ASKED and FACTS ask for more; `langedit trace` with `--keep-layers` keeps any."
    ]


def keep_layers(model: str, layers: Sequence[int], source: str) -> Path:
    """Make `layers` the default for a model that `hparams.yaml` does not name.

    Args:
        model: Its name, as it is loaded.
        layers: Ascending.
        source: What recommended them, for a reader of the file.

    Raises:
        ValueError: No layer, or not ascending.
    """
    layers = [int(layer) for layer in layers]
    if not layers or layers != sorted(set(layers)) or layers[0] < 0:
        raise ValueError(f"got layers {layers}; expected at least one, ascending, counted from 0")
    path = _path(model)
    write_sealed(path, dict(model=canonical(model), layers=layers, source=source))
    return path


def kept_layers(model: str) -> tuple[int, ...] | None:
    """The layers kept for a model; None if nothing was.

    Raises:
        CorruptFile: The file was altered, or is about another model.
    """
    path = _path(model)
    try:
        kept = read_sealed(path)
        layers = kept["layers"]
        if kept["model"] != canonical(model) or not layers or any(type(layer) is not int for layer in layers):
            raise TypeError
        return tuple(layers)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{path} holds no layers for {model}; delete it and run notebook 01 again") from error


def _path(model: str) -> Path:
    return cache_home() / "layers" / f"{hashlib.sha256(canonical(model).encode()).hexdigest()[:16]}.json"
