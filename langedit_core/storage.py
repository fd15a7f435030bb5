"""Files that are either whole or not there: atomic writes, and tensors that carry the checksum of their content."""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import lzma
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_HEADER = "langedit"
LARGEST_JSON = 128_000_000  # bytes once decompressed; a cell's record has a few million
ABANDONED = 24 * 3600  # seconds after which a partial of another machine, whose processes cannot be asked, is nobody's


class CorruptFile(ValueError):
    """A file whose content does not match its checksum; it is never used."""


class CannotWrite(OSError):
    """A place where nothing can be written; says what to do. What was written before is still there, and whole."""


_CURES = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would be larger than this process may write: raise `ulimit -f`, or free some of the quota",
    errno.EROFS: "the file system is read-only: make it writable, or choose another folder with --output-path",
    errno.EACCES: "this user may not write there: change its permissions, or choose another folder with --output-path",
    errno.EPERM: "this user may not write there: change its permissions, or choose another folder with --output-path",
    errno.EISDIR: "a folder is in the place of this file: remove it",
    errno.ENOTEMPTY: "a folder is in the place of this file: remove it",
    errno.ENOTDIR: "a file is in the place of a folder: move it, or choose another folder with --output-path",
    errno.EEXIST: "a file is in the place of a folder: move it, or choose another folder with --output-path",
}


def cache_home() -> Path:
    """`$HF_HOME/langedit`, where converted models and covariances are kept."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "langedit"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a reader, or a power cut, sees the old file or the whole new one.

    Raises:
        CannotWrite: Disk or quota full, read-only, or no permission; names the folder and the cure.
    """
    partial = path.with_name(f".{path.name}.{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # on a full disk it only takes space
    _remove_partials(path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails in writing this file or folder, ours or that of a library, is told with its cure.

    Raises:
        CannotWrite: Disk or quota full, read-only, or no permission.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors writes in Rust, and tells in text alone
            number = int(found[1])
        cure = _CURES.get(number)
        if cure is None:
            raise
        raise CannotWrite(
            number,
            f"{path.name} cannot be written: {cure}, then give the same command again; what was finished is kept",
            str(path.parent),
        ) from error


def _remove_partials(path: Path) -> None:
    """Remove what killed processes left of earlier writes of this file: it may be gigabytes, and nobody reads it."""
    for name in glob.glob(f".{glob.escape(path.name)}.*.partial", root_dir=path.parent):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if not _being_written(path.with_name(name)):
                path.with_name(name).unlink()


def _being_written(partial: Path) -> bool:
    """Whether the process a partial is named after may still write it; one of another machine is judged by its age."""
    machine, process, *_ = partial.name.split(".")[-4:]
    if machine != _machine() or not process.isdecimal():
        return time.time() - partial.stat().st_mtime < ABANDONED
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it lives, and is another user's
        return True
    return True


@functools.cache
def _machine() -> str:
    """Where a process number means a process: the host, and on Linux the name space, since a container has its own."""
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    try:
        return f"{host}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return host


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8; line ends stay as they are."""
    write_bytes(path, text.encode())


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
        CorruptFile: Not whole, not JSON (which has no NaN), or larger than anything written here.
    """
    try:
        content = _decompressed(path) if path.suffix == ".xz" else path.read_bytes()
        return json.loads(content, parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise
    except (ValueError, OSError, EOFError, lzma.LZMAError, RecursionError) as error:
        raise CorruptFile(f"{path} is not whole JSON ({error}); delete it to have it made again") from error


def _decompressed(path: Path) -> bytes:
    """Content of an .xz file, of which a few kilobytes could stand for any number of gigabytes."""
    with lzma.open(path) as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"more than {LARGEST_JSON:,} bytes when decompressed")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


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
            if not isinstance(header, dict):
                raise ValueError("its header holds no object")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CorruptFile(
            f"{path} is not a whole safetensors file ({error}); delete it to have it made again"
        ) from error
    metadata = header.get("metadata", {})
    if header.get("sha256") != digest(tensors, metadata):
        raise CorruptFile(f"{path} does not match its checksum; delete it to have it made again")
    return tensors, metadata
