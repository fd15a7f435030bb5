"""A full disk, a folder without the right to write, a kill at any moment: nothing that was reported done is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_faults

PROGRAM = Path(toy_faults.__file__)
CURES = {
    "no file": "raise `ulimit -f`, or free some of the quota",
    "no byte": "the disk is full: free some space",
    "20 kilo": "the disk is full: free some space",
    "80 kilo": "the disk is full: free some space",
    "read-on": "the file system is read-only: make it writable, or choose another folder with --output-path",
    "forbidd": "this user may not write there: change its permissions, or choose another folder with --output-path",
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    """What the program saw, all kinds of trouble in one process."""
    folder = tmp_path_factory.mktemp("faults")
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder)], capture_output=True, text=True, cwd=PROGRAM.parents[1],
        env=os.environ | {"HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def of(seen: dict[str, dict], kind: str) -> dict:
    if "skip" in seen[kind]:
        pytest.skip(seen[kind]["skip"])
    return seen[kind]


@pytest.mark.parametrize("kind", [kind for kind in toy_faults.KINDS if not kind.startswith("kills")])
def test_a_run_that_cannot_write_says_where_and_what_to_do_and_loses_nothing(seen, kind):
    found = of(seen, kind)
    assert found["failed"] == toy_faults.REFUSED
    assert found["root"] in found["said"] and CURES[kind[:7]] in found["said"]
    assert "give the same command again; what was finished is kept" in found["said"]
    assert found["partials"] == [], "files that were begun take space that is short"
    assert found["first"], "a finished cell is lost"
    assert found["again"] == 0 and found["kept"], "what was done before is done still, and was not made again"
    assert found["sealed"] == seen["undisturbed"]["sealed"]


def test_the_disk_fills_before_the_first_batch_and_between_batches(seen):
    batches = [of(seen, kind)["batches"] for kind in ("no byte left", "20 kilobytes left", "80 kilobytes left")]
    assert batches[0] == 0 and batches[-1] >= 1 and batches == sorted(batches)


@pytest.mark.parametrize("kind", [kind for kind in toy_faults.KINDS if kind.startswith("kills")])
def test_runs_killed_at_six_moments_lose_nothing_and_end_as_an_undisturbed_one(seen, kind):
    found = of(seen, kind)
    assert len(found["killed"]) == 6, "too few runs were still at work when they were to be killed"
    assert found.get("begun", 1), "no run was killed in the middle of a write"
    assert found["losses"] == 0 and found["again"] == 0
    assert found["partials"] == [], "what a killed run was writing stays for ever"
    assert found["sealed"] == seen["undisturbed"]["sealed"]
