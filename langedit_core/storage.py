"""Files that are either whole or not there: atomic writes, and tensors that carry the checksum of their content."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_HEADER = "langedit"


class CorruptFile(ValueError):
    """A file whose content does not match its checksum; it is never used."""


def cache_home() -> Path:
    """`$HF_HOME/langedit`, where converted models and covariances are kept."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "langedit"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a reader, or a power cut, sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, content: object) -> None:
    """Stable bytes: sorted keys, no NaN (JSON has none); compressed if named `.xz`."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
    content = (text + "\n").encode()
    write_bytes(path, lzma.compress(content) if path.suffix == ".xz" else content)


def write_sealed(path: Path, content: object) -> None:
    """`write_json` with a checksum of the content, for files that are read again."""
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    write_json(path, {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": content})


def read_sealed(path: Path):
    """The content of what `write_sealed` wrote.

    Raises:
        FileNotFoundError: Nothing there.
        CorruptFile: Truncated, altered, or without a checksum.
    """
    sealed = read_json(path)
    if isinstance(sealed, dict) and {"sha256", "content"} <= sealed.keys():
        text = json.dumps(sealed["content"], ensure_ascii=False, sort_keys=True)
        if hashlib.sha256(text.encode()).hexdigest() == sealed["sha256"]:
            return sealed["content"]
    raise CorruptFile(f"{path} does not match its checksum; delete it to have it made again")


def read_json(path: Path):
    """JSON of a file.

    Raises:
        FileNotFoundError: Nothing there.
        CorruptFile: Not whole.
    """
    try:
        content = path.read_bytes()
        return json.loads(lzma.decompress(content) if path.suffix == ".xz" else content)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, lzma.LZMAError) as error:
        raise CorruptFile(f"{path} is not whole JSON ({error}); delete it to have it made again") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 over names, shapes, types and bytes, and the metadata."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())  # as bytes: numpy has no bfloat16
    sha.update(json.dumps(metadata or {}, sort_keys=True).encode())
    return sha.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Save as safetensors, atomically, with the content's SHA-256 in the header.

    The header has one entry: safetensors writes several in random order, and equal content shall give equal bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = dict(metadata or {})
    header = json.dumps({"sha256": digest(tensors, metadata), "metadata": metadata}, sort_keys=True)
    write_bytes(path, safetensors.torch.save(tensors, {_HEADER: header}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote: tensors and metadata.

    Raises:
        FileNotFoundError: Nothing there.
        CorruptFile: Truncated, altered, or without a checksum.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFile(
            f"{path} is not a whole safetensors file ({error}); delete it to have it made again"
        ) from error
    metadata = header.get("metadata", {})
    if header.get("sha256") != digest(tensors, metadata):
        raise CorruptFile(f"{path} does not match its checksum; delete it to have it made again")
    return tensors, metadata
