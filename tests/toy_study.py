"""A small cell of the study, and a program that runs it while killing itself; used by test_study.py.

python toy_study.py ROOT moments SEED      kill the run after random delays, then let it end
python toy_study.py ROOT writes            kill it before and after every file it puts in place, then let it end
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import conftest
import toy

from langedit_core import storage, study
from langedit_core.editors import settings_for
from langedit_core.models import EditableModel
from langedit_core.nullspace import Threshold
from langedit_core.study import Cell
from langedit_core.values import ValueSettings

DATA = "toy"


def model() -> EditableModel:
    return conftest.build_model("llama")


def cell(method: str = "evoedit", **changes) -> Cell:
    options = dict(
        layers=toy.layers_of(method),
        values=ValueSettings(steps=3),
        threshold=Threshold(kind="fraction", value=0.8),
    )
    if toy.pays_for_the_covariance(method):
        options["covariance_weight"] = 0.1
    fields = dict(
        model="tiny-llama", data=DATA, method=method, settings=settings_for(method, **options), langs=("en", "de"),
        rounds=2, batch=2, prefixes=1, prefix_tokens=4,
    )  # fmt: skip
    return Cell(**(fields | changes))


def load(langs):
    return toy.fact_set(tuple(langs))


def sealed(root: Path, of: Cell) -> dict[str, str]:
    """Digests of all files whose bytes are the result."""
    folder = study.results_folder(of, root)
    return {name: storage.file_digest(folder / name) for name in (*study.sealed_names(of), "done.json")}


def _child(root: Path, unedited: EditableModel, of: Cell, prepare=lambda: None) -> int:
    """Fork, so that no run pays for the imports."""
    pid = os.fork()
    if pid == 0:
        prepare()
        study.run_cells([of], unedited, root, quiet=True)
        os._exit(0)
    return pid


def _ended(pid: int) -> bool:
    """Wait for a child: True if it ran to its end, False if it was killed; anything else is an error."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status != 0:
        sys.exit(f"the run failed with status {status}")
    return True


def _killing_at_the_first_new_file(after: bool) -> None:
    """From now on, the process kills itself just before, or just after, it puts a new file in place."""
    replace = os.replace

    def put(source, target):
        new = not os.path.exists(target)
        if new and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if new:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = put


def main(root: Path, how: str, seed: str = "0") -> None:
    study.LOADERS[DATA] = load
    unedited, of, kills = model(), cell(rounds=1) if how == "writes" else cell(), 0
    if how == "writes":
        for after in itertools.cycle((False, True)):  # with every second run there is one file more
            if _ended(_child(root, unedited, of, lambda after=after: _killing_at_the_first_new_file(after))):
                break
            kills += 1
    else:
        start, chance = time.monotonic(), random.Random(int(seed))
        _ended(_child(root.with_name(root.name + "-timing"), unedited, of))
        whole = time.monotonic() - start
        for _ in range(8):
            pid = _child(root, unedited, of)
            time.sleep(whole * chance.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
            if _ended(pid):
                break
            kills += 1
        _ended(_child(root, unedited, of))
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
