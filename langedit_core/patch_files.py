"""The file of a patch: one safetensors file with its checksum, read as if it came from a stranger.

Tensors are named `batch.layer.part` (part: left, right, keys, or dense) and `base.layer`; everything else, facts and
settings included, is one JSON text in the header. Nothing in a file is ever taken as a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from langedit_core.contexts import Contexts
from langedit_core.editors import FACTORS, EditSettings, Update
from langedit_core.errors import RefusedInput, unknown
from langedit_core.models import ARCHITECTURES
from langedit_core.records import Fact
from langedit_core.storage import CorruptFile, load_tensors, save_tensors

FORMAT = "langedit-patch-1"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
_STRICT = ConfigDict(frozen=True, extra="forbid")
_HEADER = "patch"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Merged(BaseModel):
    """What a merged batch stands for: how many batches, at which rank, and how far off it is.

    `error` is ‖Δ − Δ_merged‖/‖Δ‖ per layer (Frobenius), Δ the sum of the batches.
    """

    model_config = _STRICT

    batches: int = Field(ge=1)
    rank: dict[int, int]
    error: dict[int, float]


class BatchRecord(BaseModel):
    """One batch of a patch without its tensors.

    Attributes:
        facts: What was edited, in order.
        report: The batch's `BatchReport` without timings; empty for a merged batch.
        after: SHA-256 of each edited matrix right after the batch.
        merged: Set if the batch stands for several.
    """

    model_config = _STRICT

    facts: tuple[Fact, ...]
    report: dict
    after: dict[int, Sha256]
    merged: Merged | None = None


class PatchHeader(BaseModel):
    """Everything of a patch but its tensors.

    Attributes:
        model: Hub ID, packaged name, or name of the folder the base model came from.
        fingerprint: `EditableModel.fingerprint` of the unedited model.
        dtype: Of the edited matrices.
        base: SHA-256 of each edited matrix before the first batch.
        contexts: Prefixes the keys were averaged over; needed to go on with the sequence.
        corpus: SHA-256 of the texts C₀ comes from; None: the embedded ones.
    """

    model_config = _STRICT

    format: Literal["langedit-patch-1"] = FORMAT
    model: str = Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")
    model_type: str
    fingerprint: Sha256
    dtype: Literal["float32", "bfloat16", "float16", "float64"]
    d_out: int = Field(ge=1)
    d_in: int = Field(ge=1)
    method: str = Field(pattern=r"^[\w.-]{1,60}$")
    settings: EditSettings
    contexts: Contexts
    corpus: Sha256 | None = None
    base: dict[int, Sha256]
    batches: tuple[BatchRecord, ...] = ()

    @field_validator("model_type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise unknown("architecture", name, ARCHITECTURES)
        return name

    @model_validator(mode="after")
    def _about_the_same_layers(self) -> PatchHeader:
        layers = set(self.settings.layers)
        for what, named in (("base", self.base), *((f"batch {t}", b.after) for t, b in enumerate(self.batches))):
            if named.keys() != layers:
                raise ValueError(f"{what} names layers {sorted(named)}, the settings edit {sorted(layers)}")
        return self


@dataclass(frozen=True)
class Factors:
    """A change of one matrix: left rightᵀ, or `dense`. `keys` are kept to go on editing; a merged batch has none."""

    left: Tensor | None = None
    right: Tensor | None = None
    keys: Tensor | None = None
    dense: Tensor | None = None

    @classmethod
    def of(cls, update: Update) -> Factors:
        if update.dense is not None:
            return cls(dense=update.dense)
        return cls(left=update.left, right=update.right, keys=update.keys)

    def update(self) -> Update:
        """The editor's own form.

        Raises:
            ValueError: The keys are gone, since the batch was merged.
        """
        if self.dense is not None:
            return Update.of_dense(self.dense)
        if self.keys is None:
            raise ValueError("a merged batch has no keys, so no edits can follow it; go on from the patch it came from")
        return Update(left=self.left, right=self.right, keys=self.keys)

    @property
    def delta(self) -> Tensor:
        """The change, d_out x d_in."""
        return self.left @ self.right.T if self.dense is None else self.dense

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def to(self, device: torch.device | str) -> Factors:
        return Factors(**{name: tensor.to(device) for name, tensor in self.tensors().items()})


def write_patch(
    path: Path, header: PatchHeader, factors: Sequence[Mapping[int, Factors]], base: Mapping[int, Tensor] | None
) -> None:
    """Write a patch whole or not at all; equal patches give equal bytes."""
    tensors = {f"base.{layer}": matrix for layer, matrix in (base or {}).items()}
    for t, batch in enumerate(factors):
        for layer, one in batch.items():
            tensors |= {f"{t}.{layer}.{part}": tensor for part, tensor in one.tensors().items()}
    save_tensors(path, tensors, {_HEADER: header.model_dump_json()})


def read_patch(path: Path) -> tuple[PatchHeader, list[dict[int, Factors]], dict[int, Tensor] | None]:
    """Header, factors per batch and layer, and the base matrices if they were stored.

    Raises:
        FileNotFoundError: Nothing there.
        CorruptFile: Truncated or altered.
        RefusedInput: Whole, but no patch, of another version, or with content that does not fit together.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path} {what}; expected a patch written by `langedit edit`")
    _check_kind(path)
    try:
        tensors, metadata = load_tensors(path)
    except CorruptFile as error:
        raise CorruptFile(f"{path} was truncated or altered since it was written; nothing of it is used") from error
    try:
        header = PatchHeader.model_validate_json(metadata[_HEADER])
        factors, base = _sorted_out(header, tensors)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "header"
        raise RefusedInput(f"{path}, {where}: {first['msg']}; it was not written by this version") from error
    except ValueError as error:
        raise RefusedInput(f"{path}: {error}") from error
    return header, factors, base


def _check_kind(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("langedit", "null"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CorruptFile(f"{path} is no whole safetensors file ({error}); get it again") from error
    metadata = about.get("metadata") if isinstance(about, dict) else None
    if not isinstance(metadata, dict) or not isinstance(metadata.get(_HEADER), str):
        raise RefusedInput(f"{path} is a safetensors file but no patch; expected one written by `langedit edit`")
    try:
        found = json.loads(metadata[_HEADER])
    except (ValueError, RecursionError) as error:
        raise RefusedInput(f"{path} has a header that is no JSON ({error})") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        got = found.get("format") if isinstance(found, dict) else type(found).__name__
        raise RefusedInput(f"{path} has the format {got!r}, this version reads {FORMAT!r}")


def _sorted_out(header: PatchHeader, tensors: dict[str, Tensor]) -> tuple[list[dict[int, Factors]], dict | None]:
    layers = header.settings.layers
    named = {int(x[1]): name for name in tensors if (x := re.fullmatch(r"base\.(\d{1,6})", name))}
    base = {layer: tensors.pop(name) for layer, name in named.items()} or None
    if base and base.keys() != set(layers):
        raise ValueError(f"base matrices of layers {sorted(base)}, expected {list(layers)}")
    for layer, matrix in (base or {}).items():
        _check(f"base.{layer}", matrix, (header.d_out, header.d_in), _DTYPES[header.dtype])
    factors: list[dict[int, Factors]] = []
    for t, record in enumerate(header.batches):
        factors.append({})
        for layer in layers:
            stem = f"{t}.{layer}."
            parts = {p: tensors.pop(stem + p) for p in ("left", "right", "keys", "dense") if stem + p in tensors}
            if parts.keys() not in ({"dense"}, {"left", "right"} if record.merged else {"left", "right", "keys"}):
                raise ValueError(f"batch {t}, layer {layer} has the tensors {sorted(parts)}; some are missing")
            rank = parts["left"].shape[-1] if "left" in parts and parts["left"].ndim else 0
            rows = dict(left=(header.d_out, rank), right=(header.d_in, rank), keys=(header.d_in, rank))
            for part, tensor in parts.items():
                _check(stem + part, tensor, rows.get(part, (header.d_out, header.d_in)), FACTORS)
            factors[-1][layer] = Factors(**parts)
    if tensors:
        raise ValueError(f"holds tensors that belong to no batch: {', '.join(sorted(map(ascii, tensors))[:3])}")
    return factors, base


def _check(name: str, tensor: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}, expected {dtype}")
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinity")
