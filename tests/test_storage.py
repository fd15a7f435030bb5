"""Atomic writes: what is there is whole, and what killed processes were writing does not stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from langedit_core import storage
from langedit_core.storage import CannotWrite, cache_home, write_bytes

ROOT = Path(__file__).resolve().parents[1]
STOPS = """
import os, sys
from pathlib import Path
from langedit_core import storage
def stop(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
storage.os.fsync = stop
storage.write_bytes(Path(sys.argv[1]), b"half")
"""


def partials(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".partial")]


@pytest.fixture
def writer(tmp_path):
    """Starts a process that is in the middle of writing `model.safetensors`."""
    begun = []

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", STOPS, str(tmp_path / "model.safetensors")],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun.append(process)
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_what_a_killed_process_was_writing_is_removed_by_the_next_good_write(tmp_path, writer):
    path, process = tmp_path / "model.safetensors", writer()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(partials(tmp_path)) == 1 and not path.exists()
    write_bytes(tmp_path / "another.json", b"{}")
    assert len(partials(tmp_path)) == 1, "it is another file's"
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole" and partials(tmp_path) == []


def test_what_a_living_process_is_writing_stays_and_is_put_in_place(tmp_path, writer):
    path, process = tmp_path / "model.safetensors", writer()
    (partial,) = partials(tmp_path)
    os.utime(tmp_path / partial, (0, 0))  # it may be stopped for as long as it likes
    write_bytes(path, b"whole")
    assert partials(tmp_path) == [partial]
    process.communicate("go on")
    assert process.returncode == 0 and path.read_bytes() == b"half" and partials(tmp_path) == []


def test_a_partial_of_another_machine_stays_until_nobody_can_be_writing_it(tmp_path):
    path = tmp_path / "a.json"
    young, old, of_old = (
        tmp_path / f".a.json.{name}.partial"
        for name in ("node7-4026531836.1.0123456789ab", "node8-4026531836.2.0123456789ab", "17")
    )
    for partial in (young, old, of_old):
        partial.write_bytes(b"")
    past = time.time() - storage.ABANDONED - 60
    for partial in (old, of_old):
        os.utime(partial, (past, past))
    write_bytes(path, b"{}")
    assert partials(tmp_path) == [young.name]


def test_equal_process_numbers_on_two_nodes_write_two_partials(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(storage.os, "getpid", lambda: 4711)
    replace = os.replace
    monkeypatch.setattr(storage.os, "replace", lambda source, to: (seen.append(source.name), replace(source, to)))
    for machine in ("node1", "node2", "node2"):
        monkeypatch.setattr(storage, "_machine", lambda machine=machine: machine)
        write_bytes(tmp_path / "a.json", b"{}")
    assert len(set(seen)) == 3 and all(name.startswith(".a.json.node") for name in seen)


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "[a].json"
    write_bytes(path, b"old")

    def fail(descriptor):
        raise error

    monkeypatch.setattr(storage.os, "fsync", fail)
    with pytest.raises(CannotWrite if isinstance(error, OSError) else KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and partials(tmp_path) == []


def test_the_cache_lies_where_hugging_face_keeps_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_home() == tmp_path / "a" / "langedit"
    monkeypatch.delenv("HF_HOME")
    assert cache_home() == tmp_path / "b" / "huggingface" / "langedit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "huggingface" / "langedit"


def test_git_does_not_see_partials(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    asked = ["reports/standard/records/.a.json.xz.node1.17.0123456789ab.partial", "a/.model.17.partial"]
    shown = subprocess.run(["git", "check-ignore", *asked], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout.split() == asked
