"""Programs that run toy cells while something goes wrong around them; used by test_faults.py.

python toy_faults.py FOLDER    prints what was seen as JSON, one entry per kind of trouble

Every run is a fork of this one process, so that none pays for the imports; the first cell is always finished
beforehand, so that there is something to lose.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import toy_study

from langedit_core import storage, study
from langedit_core.results import is_done, results_folder
from langedit_core.storage import CannotWrite, CorruptFile, file_digest, load_tensors

FIRST, CELL = toy_study.cell(rounds=1, seed=1), toy_study.cell(rounds=4, batch=1)
REFUSED = 3
NOBODY = 65534


def run(root: Path, prepare: Callable[[], object] = lambda: None, said: int | None = None) -> int:
    """Fork and run both cells; where nothing can be written, it ends with `REFUSED` and sends its message to `said`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            prepare()
            study.run_cells([FIRST, CELL], MODEL, root, quiet=True)
            code = 0
        except CannotWrite as error:
            os.write(said, str(error).encode())
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def whole(root: Path) -> dict[str, list]:
    """What counts as done: whole batches of the cell with digest and time of writing, and finished cells."""
    found: dict[str, list] = {}
    for path in sorted(results_folder(CELL, root).glob("batch-*.safetensors")):
        try:
            measured = load_tensors(path)[1].get("measured")
        except CorruptFile:
            continue
        if measured == file_digest(path.with_suffix(".json")):
            found[path.stem] = [measured, file_digest(path), path.stat().st_mtime_ns]
    for cell in (FIRST, CELL):
        if is_done(cell, root):
            found[cell.slug] = [toy_study.sealed(root, cell)]
    return found


def kept(before: dict, after: dict) -> bool:
    """Whether all that was done is done still, and was not made a second time."""
    return before.items() <= after.items()


def interrupted(root: Path, prepare: Callable[[], object], cure: Callable[[], object]) -> dict:
    """One run in which writing fails, and one after the cause is gone."""
    hear, tell = os.pipe()
    failed = status(run(root, prepare, tell))
    os.close(tell)
    with os.fdopen(hear, encoding="utf-8") as pipe:
        said = pipe.read()
    left, remains = whole(root), [path.name for path in root.rglob("*.partial")]
    cure()
    again = status(run(root))
    return dict(
        root=str(root), failed=failed, said=said, partials=remains, batches=sum(n.startswith("batch") for n in left),
        first=FIRST.slug in left, again=again, kept=kept(left, whole(root)), sealed=toy_study.sealed(root, CELL),
    )  # fmt: skip


def finish_first(root: Path) -> None:
    study.run_cells([FIRST], MODEL, root, quiet=True)


def limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writing gives an error instead of ending the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def quota(folder: Path, size: int) -> dict:
    """No file may become larger than so many bytes."""
    finish_first(root := folder / "results")
    return interrupted(root, lambda: limit_files(size), lambda: None)


def full(folder: Path, spare: int) -> dict:
    """A file system of its own with so many bytes left."""
    with mounted(folder, "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)):
        finish_first(root := folder / "results")
        filler, free = folder / "filler", os.statvfs(folder)
        filler.write_bytes(bytes(free.f_bavail * free.f_frsize - spare))
        return interrupted(root, lambda: None, filler.unlink)


def read_only(folder: Path) -> dict:
    """A file system that is mounted without the right to write."""
    finish_first(folder)
    with mounted(folder, "--bind", str(folder), str(folder)):
        mount("-o", "remount,ro,bind", str(folder))
        return interrupted(folder, lambda: None, lambda: mount("-o", "remount,rw,bind", str(folder)))


def forbidden(folder: Path) -> dict:
    """A folder that the user of the run may read and not write."""
    with tempfile.TemporaryDirectory(prefix="forbidden-") as anywhere:  # all that is above may be read by anybody
        Path(anywhere).chmod(0o755)
        finish_first(root := Path(anywhere, "results"))
        root.chmod(0o555)
        prepare = (lambda: os.setuid(NOBODY)) if os.geteuid() == 0 else (lambda: None)  # no mode keeps root out
        return interrupted(root, prepare, lambda: root.chmod(0o755))


def kills(folder: Path, seed: int) -> dict:
    """Six runs, each killed at a moment drawn beforehand; after each one, all that was done is done still."""
    finish_first(root := folder / "results")
    begun = time.monotonic()
    assert status(run(root)) == 0
    length, chance = time.monotonic() - begun, random.Random(seed)
    shutil.rmtree(results_folder(CELL, root))
    killed, losses, seen = [], 0, whole(root)
    for _ in range(20):  # a run may end before it is killed
        if len(killed) == 6:
            break
        pid = run(root)
        time.sleep(length * chance.uniform(0.05, 0.5))
        os.kill(pid, signal.SIGKILL)
        over = status(pid) == 0
        now = whole(root)
        losses += not kept(seen, now)
        seen = now
        if over:
            shutil.rmtree(results_folder(CELL, root))
            seen = whole(root)
        else:
            killed.append(sum(name.startswith("batch") for name in now))
    again = status(run(root))
    losses += not kept(seen, whole(root))
    left = [path.name for path in root.rglob("*.partial")]
    return dict(killed=killed, losses=losses, again=again, partials=left, sealed=toy_study.sealed(root, CELL))


def kills_while_writing(folder: Path) -> dict:
    """Runs killed in the middle of each of their first writes; then one that is left alone."""
    finish_first(root := folder / "results")
    seen, killed, losses, begun = whole(root), [], 0, set()
    for write in range(6):
        pid = run(root, lambda write=write: stop_writing(write))
        os.waitpid(pid, os.WUNTRACED)
        os.kill(pid, signal.SIGKILL)
        status(pid)
        begun |= {path.name for path in root.rglob("*.partial")}
        now = whole(root)
        losses += not kept(seen, now)
        seen = now
        killed.append(sum(name.startswith("batch") for name in now))
    again = status(run(root))
    losses += not kept(seen, whole(root))
    left = [path.name for path in root.rglob("*.partial")]
    sealed = toy_study.sealed(root, CELL)
    return dict(killed=killed, losses=losses, again=again, begun=len(begun), partials=left, sealed=sealed)


def stop_writing(number: int) -> None:
    """From now on, the write of this number stops this process once half of the content is in its partial."""
    count = itertools.count()
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if next(count) == number:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGSTOP)
        sync(descriptor)

    storage.os.fsync = fsync


class NotAllowed(Exception):
    """Why a fault cannot be made here."""


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise NotAllowed(f"mount is not allowed here: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    try:
        mount(*arguments)
    except FileNotFoundError as error:
        raise NotAllowed(f"there is no mount here: {error}") from error
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


KINDS: dict[str, Callable[[Path], dict]] = {
    "no file larger than 600 bytes": lambda folder: quota(folder, 600),
    "no file larger than 6000 bytes": lambda folder: quota(folder, 6000),
    "no byte left": lambda folder: full(folder, 0),
    "20 kilobytes left": lambda folder: full(folder, 20_000),
    "80 kilobytes left": lambda folder: full(folder, 80_000),
    "read-only": read_only,
    "forbidden": forbidden,
    "kills 1": lambda folder: kills(folder, 1),
    "kills 2": lambda folder: kills(folder, 2),
    "kills while writing": kills_while_writing,
}


def main(folder: Path) -> None:
    found: dict[str, dict] = {}
    finish_first(folder / "undisturbed")
    study.run_cells([CELL], MODEL, folder / "undisturbed", quiet=True)
    found["undisturbed"] = dict(sealed=toy_study.sealed(folder / "undisturbed", CELL))
    for number, (name, kind) in enumerate(KINDS.items()):
        own = folder / f"fault-{number}"
        own.mkdir()
        try:
            found[name] = kind(own)
        except NotAllowed as reason:
            found[name] = dict(skip=str(reason))
    print(json.dumps(found))


if __name__ == "__main__":
    study.LOADERS[toy_study.DATA] = toy_study.load
    MODEL = toy_study.model()
    main(Path(sys.argv[1]))
