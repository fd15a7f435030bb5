"""A grid of cells as jobs: one job computes one cell, and a supervisor starts again what ended before it was done.

A cell is done when its results say so (`results.is_done`), whoever computed it. Jobs know nothing of their executor, go
on where an earlier one was stopped, and put files in place whole, so that two jobs on one cell do no harm.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from langedit_core.executors import Executor
from langedit_core.models import load_model
from langedit_core.results import Cell, has_record, is_done, results_folder
from langedit_core.storage import CorruptFile, read_json, write_json
from langedit_core.study import run_cells

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CellTask:
    """One job: a cell as JSON, and where its results go. submitit carries it to the job in a file of its own making."""

    cell: str
    results: str
    device: str

    @classmethod
    def of(cls, cell: Cell, results: Path, device: str) -> CellTask:
        return cls(cell.model_dump_json(), str(Path(results).resolve()), device)

    def __call__(self) -> None:
        cell, results = Cell.model_validate_json(self.cell), Path(self.results)
        with noted(cell, results):
            model = load_model(cell.model, device=self.device)
            run_cells([cell], model, results, quiet=not sys.stderr.isatty())

    def checkpoint(self):
        """What submitit queues when SLURM announces a preemption or the time limit: the same again, which resumes."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


@contextlib.contextmanager
def noted(cell: Cell, root: Path) -> Iterator[None]:
    """Leave in the cell's folder who works on it, and how it ended, for `states`."""
    path = results_folder(cell, root) / "job.json"
    who = dict(host=socket.gethostname(), pid=os.getpid())
    write_json(path, who | dict(state="running"))
    try:
        yield
    except BaseException as error:
        write_json(path, who | dict(state="failed", error=f"{type(error).__name__}: {error}"))
        raise
    write_json(path, who | dict(state="finished"))


def supervise(
    cells: Sequence[Cell], root: Path, executor: Executor, *, device: str = "auto", retries: int = 2,
    deadline: float = math.inf, poll: float = 5.0, tell: Callable[[], None] = lambda: None,
) -> dict[str, str]:  # fmt: skip
    """Have all cells computed; one whose job ended before it was done is submitted again.

    Args:
        cells: The grid; what is done already is left alone.
        root: Results folder.
        executor: Where jobs run.
        device: For the model in each job.
        retries: Times a cell is submitted again.
        deadline: Moment of `time.monotonic()` after which jobs are cancelled.
        poll: Seconds between looks.
        tell: Called after every look.

    Returns:
        Slug of each cell that is not done -> why.
    """
    root, failed, tries = Path(root), {}, Counter()
    jobs: dict[Cell, str] = {}
    suspects: set[Cell] = set()  # over without a result: seen once, a shared file system may be behind
    queue = [cell for cell in cells if not is_done(cell, root)]
    while queue or jobs:
        if queue:
            tries.update(queue)
            names = executor.submit([CellTask.of(cell, root, device) for cell in queue])
            jobs |= dict(zip(queue, names, strict=True))
            queue = []
        gone = executor.over(jobs.values())
        for cell, name in list(jobs.items()):
            if _is_whole(cell, root):
                del jobs[cell]
            elif name in gone and cell not in suspects:
                suspects.add(cell)
            elif name in gone:
                suspects.discard(cell)
                del jobs[cell]
                why = _error_of(cell, root) or executor.last_words(name) or "its job ended without a word"
                log.warning("%s: %s (attempt %d)", cell.slug, why, tries[cell])
                if tries[cell] <= retries:
                    queue.append(cell)
                else:
                    failed[cell.slug] = why
        tell()
        if jobs and time.monotonic() > deadline:
            executor.cancel(jobs.values())
            return failed | {cell.slug: "the deadline passed before it was done" for cell in jobs}
        if jobs:
            time.sleep(poll)
    return failed


def states(cells: Sequence[Cell], root: Path, records: Path | None = None) -> pd.DataFrame:
    """A row per cell: cell, state, batches done, of, seconds since anything changed there, the last error.

    `finished`; `recorded` beside a report; `running` and `failed` by the word of its job, so that a killed one stays
    `running` while nothing changes any more; `begun`; `waiting`.
    """
    rows, now = [], time.time()
    for cell in cells:
        folder = results_folder(cell, root)
        job = _job(cell, root)
        files = list(folder.glob("*")) if folder.is_dir() else []
        batches = sum(path.suffix == ".safetensors" and path.name.startswith("batch-") for path in files)
        whole = (folder / "done.json").is_file()
        if whole:
            state = "finished"
        elif has_record(cell, records):
            state, batches = "recorded", cell.batches
        else:
            state = job.get("state") or ("begun" if batches else "waiting")
        rows.append(
            dict(
                cell=cell.slug, method=cell.method, data=cell.data, seed=cell.seed, state=state, batches=batches,
                of=cell.batches, idle=now - _last_change(files),
                error="" if whole else job.get("error", ""),
            )
        )  # fmt: skip
    return pd.DataFrame(rows)


def _last_change(files: Sequence[Path]) -> float:
    """The latest time of change, NaN for none; a file that a job renamed since it was listed is passed over."""
    times = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times, default=math.nan)


def table(found: pd.DataFrame) -> str:
    """`states` as text for a terminal."""
    shown = found.assign(
        progress=found["batches"].astype(str) + "/" + found["of"].astype(str),
        idle=[("" if math.isnan(x) else f"{x / 60:.0f} min") for x in found["idle"]],
        error=found["error"].str.slice(0, 60),
    )
    columns = ["cell", "seed", "state", "progress", "idle", "error"]
    counts = ", ".join(f"{n} {state}" for state, n in found["state"].value_counts().items())
    return f"{shown[columns].to_string(index=False)}\n{len(found)} cells: {counts}"


def _is_whole(cell: Cell, root: Path) -> bool:
    """`is_done`, without reading every file of a cell that does not even say it is."""
    return (results_folder(cell, root) / "done.json").is_file() and is_done(cell, root)


def _job(cell: Cell, root: Path) -> dict:
    try:
        found = read_json(results_folder(cell, root) / "job.json")
        return found if isinstance(found, dict) else {}
    except (FileNotFoundError, CorruptFile):
        return {}


def _error_of(cell: Cell, root: Path) -> str:
    return _job(cell, root).get("error", "")
