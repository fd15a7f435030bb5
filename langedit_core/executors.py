"""Where the cells of a grid are computed: in this process, in processes of this machine, or as SLURM jobs.

An executor takes tasks and says later which of them are over. Whether a task succeeded is told by what it left in the
results folder, never by its executor: a cancelled SLURM job looks alive to submitit where there is no accounting.
"""

from __future__ import annotations

import logging
import re
import subprocess
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from langedit_core.errors import unknown

log = logging.getLogger(__name__)

KINDS = ("inline", "process", "slurm")
ACTIVE = frozenset((
    "PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED",
    "SPECIAL_EXIT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
))  # fmt: skip
"""States of SLURM in which a job may still go on (squeue's manual, "job state codes"); in all others it is over."""


@runtime_checkable
class Executor(Protocol):
    def submit(self, tasks: Sequence[Callable[[], object]]) -> list[str]:
        """Start tasks, or have them queued; a name for each."""

    def over(self, names: Iterable[str]) -> set[str]:
        """Those that neither run nor wait any more, for whatever reason."""

    def last_words(self, name: str) -> str:
        """What a task that is over said at its end; one line, empty if nothing."""

    def cancel(self, names: Iterable[str]) -> None:
        """End tasks that are not over."""


class Inline:
    """Tasks one after the other in this process."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def submit(self, tasks: Sequence[Callable[[], object]]) -> list[str]:
        first = len(self.said)
        for task in tasks:
            try:
                task()
                self.said.append("")
            except Exception as error:
                log.debug("%s", traceback.format_exc())
                self.said.append(f"{type(error).__name__}: {error}")
        return [str(i) for i in range(first, len(self.said))]

    def over(self, names: Iterable[str]) -> set[str]:
        return set(names)

    def last_words(self, name: str) -> str:
        return self.said[int(name)]

    def cancel(self, names: Iterable[str]) -> None:
        pass


class Submitit:
    """Tasks as jobs of submitit, on this machine (`local`) or on SLURM, where those of one call are one array.

    Args:
        folder: Where scripts and output of the jobs go; all nodes must see it.
        cluster: `local` or `slurm`.
        at_once: Jobs of one call that may run at the same time.
        options: Passed to SLURM, for example partition, time (minutes), gres, mem, cpus_per_task, account.
    """

    def __init__(
        self, folder: Path, cluster: str, *, at_once: int = 16, options: Mapping[str, str | int] | None = None
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ImportError(f"{error}; install the extra that has it: pip install 'langedit-core[slurm]'") from error
        self.cluster, self.at_once, self.jobs = cluster, at_once, {}
        self.executor = submitit.AutoExecutor(folder=folder / "%j", cluster=cluster)
        if cluster == "slurm":
            self.executor.update_parameters(
                name="langedit", slurm_array_parallelism=at_once,
                **{f"slurm_{name}": value for name, value in (options or {}).items()},
            )  # fmt: skip
        else:
            self.executor.update_parameters(timeout_min=60 * 24 * 30)
        self.queue: list[tuple[str, Callable[[], object]]] = []  # local jobs beyond `at_once`
        self.count = 0

    def submit(self, tasks: Sequence[Callable[[], object]]) -> list[str]:
        names = [f"{self.cluster}-{self.count + i}" for i in range(len(tasks))]
        self.count += len(tasks)
        if self.cluster == "slurm":
            # The tasks themselves, not a function of them: submitit looks for `checkpoint` in what it was given.
            self.jobs |= dict(zip(names, self.executor.submit_array(tasks), strict=True))
        else:
            self.queue += zip(names, tasks, strict=True)
            self._start()
        return names

    def _start(self) -> None:
        running = sum(not job.done() for job in self.jobs.values())
        while self.queue and running < self.at_once:
            name, task = self.queue.pop(0)
            self.jobs[name] = self.executor.submit(task)
            running += 1

    def over(self, names: Iterable[str]) -> set[str]:
        if self.cluster == "slurm":
            active = _active_jobs()
            if active is None:
                return set()
            return {name for name in names if self.jobs[name].job_id not in active}
        self._start()
        return {name for name in names if name in self.jobs and self.jobs[name].done()}

    def last_words(self, name: str) -> str:
        lines = (self.jobs[name].stderr() or "").splitlines()
        told = (line.strip() for line in reversed(lines) if "%|" not in line)  # a progress bar is no word
        return next((line for line in told if line), "")

    def cancel(self, names: Iterable[str]) -> None:
        names = set(names)
        self.queue = [(name, task) for name, task in self.queue if name not in names]
        for name in names & self.jobs.keys():
            self.jobs[name].cancel(check=False)


def _active_jobs() -> set[str] | None:
    """Jobs and array tasks ("7", "8_3") the SLURM controller may still run; None if it does not answer."""
    try:
        found = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("SLURM's controller is not asked: %s", error)
        return None
    if found.returncode:
        log.warning("SLURM's controller does not answer: %s", found.stderr.strip())
        return None
    return active_jobs(found.stdout)


def active_jobs(listing: str) -> set[str]:
    """Names of the active jobs in what `scontrol show job -o` printed; tasks still pending come as a range there."""
    active = set()
    for line in listing.splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if fields.get("JobState", "") not in ACTIVE:
            continue
        if "ArrayTaskId" not in fields:
            active.add(fields["JobId"])
            continue
        for part in fields["ArrayTaskId"].split("%")[0].split(","):
            first, _, last = part.partition("-")
            last, _, step = last.partition(":")
            ids = range(int(first), int(last or first) + 1, int(step or 1))
            active |= {f"{fields['ArrayJobId']}_{i}" for i in ids}
    return active


def make_executor(kind: str, folder: Path, *, at_once: int = 16, options: Mapping[str, str | int] | None = None):
    """An executor by its kind.

    Raises:
        ValueError: Unknown kind, or options for one that takes none.
        ImportError: submitit is not installed.
    """
    if kind not in KINDS:
        raise unknown("executor", kind, KINDS)
    if options and kind != "slurm":
        raise ValueError(f"got SLURM options {dict(options)} for the executor {kind!r}; they need --executor slurm")
    if kind == "inline":
        return Inline()
    return Submitit(folder, "local" if kind == "process" else "slurm", at_once=at_once, options=options)
