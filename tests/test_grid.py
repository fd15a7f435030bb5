"""Cells as jobs: the same results from every executor, and nothing lost when jobs are killed, cancelled or fail."""

import contextlib
import hashlib
import math
import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
import toy_study
from conftest import build_model
from slurm_cluster import slurm_cluster

from langedit_core import cli, grid
from langedit_core.executors import Inline, active_jobs, make_executor
from langedit_core.grid import CellTask, noted, states, supervise, table
from langedit_core.models import load_model
from langedit_core.results import is_done, results_folder, sealed_names
from langedit_core.storage import read_json
from langedit_core.study import run_cells

pytest.importorskip("submitit", reason="submitit is not installed: pip install 'langedit-core[slurm]'")
from submitit.core.job_environment import SignalHandler  # noqa: E402
from submitit.core.utils import DelayedSubmission  # noqa: E402


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    """A tiny model that any process can load."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    model = build_model("llama")
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def cells_of(folder, methods=("evoedit", "memit", "alphaedit", "langedit"), **changes):
    fields = dict(model=str(folder), data="atlas", corpus_limit=4) | changes
    return [toy_study.cell(method, **fields) for method in methods]


def digest(cells, root) -> str:
    """One hash over every byte that is a result."""
    sha = hashlib.sha256()
    for cell in cells:
        for name in sealed_names(cell):
            sha.update((results_folder(cell, root) / name).read_bytes())
    return sha.hexdigest()


class Flaky:
    """Runs tasks at once, except that the first attempts at each end before anything was done."""

    def __init__(self, bad: int) -> None:
        self.bad, self.tries, self.submitted, self.cancelled = bad, {}, 0, []

    def submit(self, tasks):
        names = []
        for task in tasks:
            self.tries[task.cell] = self.tries.get(task.cell, 0) + 1
            if self.tries[task.cell] > self.bad:
                task()
            self.submitted += 1
            names.append(str(self.submitted))
        return names

    def over(self, names):
        return set(names)

    def last_words(self, name):
        return "Killed"

    def cancel(self, names):
        self.cancelled += names


def test_what_ends_before_it_is_done_is_tried_again_and_no_more_often_than_asked(model_folder, tmp_path):
    cells = cells_of(model_folder, ["evoedit"], rounds=1, batch=1)
    executor = Flaky(bad=2)
    assert supervise(cells, tmp_path / "a", executor, device="cpu", retries=2, poll=0.0) == {}
    assert executor.submitted == 3 and is_done(cells[0], tmp_path / "a")
    executor = Flaky(bad=9)
    assert supervise(cells, tmp_path / "b", executor, device="cpu", retries=1, poll=0.0) == {cells[0].slug: "Killed"}
    assert executor.submitted == 2
    executor = Flaky(bad=0)
    assert supervise(cells, tmp_path / "a", executor, poll=0.0) == {} and executor.submitted == 0


def test_an_error_inside_a_job_is_told_by_its_own_words(model_folder, tmp_path):
    (cell,) = cells_of(model_folder / "gone", ["evoedit"])
    failed = supervise([cell], tmp_path, Inline(), device="cpu", retries=0, poll=0.0)
    assert list(failed) == [cell.slug] and "gone" in failed[cell.slug] and failed[cell.slug].startswith("ValueError")
    found = states([cell], tmp_path)
    assert found["state"].tolist() == ["failed"] and "gone" in found["error"][0]
    assert "failed" in table(found)


def test_after_the_deadline_jobs_are_cancelled_and_named(model_folder, tmp_path):
    class Endless(Flaky):
        def over(self, names):
            return set()

    cells, executor = cells_of(model_folder, ["evoedit", "memit"]), Endless(bad=9)
    failed = supervise(cells, tmp_path, executor, deadline=time.monotonic() - 1, poll=0.0)
    assert set(failed) == {cell.slug for cell in cells} and executor.cancelled == ["1", "2"]


def test_states_tell_how_far_every_cell_is(model_folder, tmp_path):
    done, begun, waiting, running = cells_of(model_folder, rounds=1, batch=1)
    run_cells([done], load_model(str(model_folder), device="cpu"), tmp_path, quiet=True)
    folder = results_folder(begun, tmp_path)
    folder.mkdir()
    (folder / "batch-000.safetensors").write_bytes(b"")
    with noted(running, tmp_path):
        found = states([done, begun, waiting, running], tmp_path)
    assert found["state"].tolist() == ["finished", "begun", "waiting", "running"]
    assert found["batches"].tolist() == [2, 1, 0, 0] and set(found["of"]) == {2}
    assert found["idle"].isna().tolist() == [False, False, True, False]
    assert "4 cells" in table(found)


def test_an_interrupted_job_is_noted_as_failed(model_folder, tmp_path):
    (cell,) = cells_of(model_folder, ["evoedit"])
    with pytest.raises(KeyboardInterrupt), noted(cell, tmp_path):
        raise KeyboardInterrupt
    assert read_json(results_folder(cell, tmp_path) / "job.json")["state"] == "failed"


@pytest.mark.parametrize(
    ("line", "active"),
    [
        ("JobId=7 JobName=x JobState=RUNNING Reason=None", {"7"}),
        ("JobId=7 JobName=x JobState=CANCELLED Reason=None", set()),
        ("JobId=9 ArrayJobId=8 ArrayTaskId=3 JobState=COMPLETING", {"8_3"}),
        ("JobId=8 ArrayJobId=8 ArrayTaskId=0-3%2 JobState=PENDING", {"8_0", "8_1", "8_2", "8_3"}),
        ("JobId=8 ArrayJobId=8 ArrayTaskId=1,4-8:2 JobState=PENDING", {"8_1", "8_4", "8_6", "8_8"}),
        ("JobId=9 ArrayJobId=8 ArrayTaskId=3 JobState=NODE_FAIL", set()),
        ("No jobs in the system", set()),
    ],
)
def test_the_controllers_listing_is_read(line, active):
    assert active_jobs(line) == active


def test_bad_executors_and_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="slurm"):
        make_executor("slrum", tmp_path)
    with pytest.raises(ValueError, match="--executor slurm"):
        make_executor("inline", tmp_path, options={"partition": "gpu"})
    for text in ("partition", "=gpu", "partition=", "a b=c"):
        with pytest.raises(ValueError, match="KEY=VALUE"):
            cli._slurm([text])
    assert cli._slurm(["time=60", "gres=gpu:1", "cpus-per-task=2"]) == dict(time=60, gres="gpu:1", cpus_per_task=2)


class Disturbing:
    """An executor around another: disturbs the first submission of two cells once they are in the middle."""

    def __init__(self, inner, root, kill, cancel) -> None:
        self.inner, self.root, self.kill, self.cancelled = inner, root, kill, cancel
        self.log, self.names = [], {}

    def submit(self, tasks):
        names = self.inner.submit(tasks)
        for task, name in zip(tasks, names, strict=True):
            cell = grid.Cell.model_validate_json(task.cell)
            self.names.setdefault(cell.slug, []).append(name)
        return names

    def disturb(self) -> None:
        # submitit passes over the SIGTERM of a cancellation; the SIGKILL that SLURM sends later does not wait here.
        for cell, how, sign in (
            (self.kill, "killed", "batch-000.safetensors"), (self.cancelled, "cancelled", "job.json"),
        ):  # fmt: skip
            folder = results_folder(cell, self.root)
            if how in dict(self.log) or not (folder / sign).is_file():
                continue
            if (folder / "done.json").is_file():
                pytest.fail("the cell was done before it could be disturbed")
            if how == "killed":
                os.kill(read_json(folder / "job.json")["pid"], signal.SIGKILL)
            else:
                self.inner.cancel([self.names[cell.slug][0]])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(read_json(folder / "job.json")["pid"], signal.SIGKILL)
            self.log.append((how, cell.slug))

    def over(self, names):
        self.disturb()
        return self.inner.over(names)

    def last_words(self, name):
        return self.inner.last_words(name)

    def cancel(self, names):
        self.inner.cancel(names)


def _undisturbed(cells, tmp_path):
    run_cells(cells, load_model(cells[0].model, device="cpu"), tmp_path / "inline", quiet=True)
    return digest(cells, tmp_path / "inline")


def test_a_file_that_is_renamed_while_it_is_listed_does_not_stop_the_table(tmp_path):
    there = tmp_path / "batch-000.json"
    there.write_text("{}")
    assert grid._last_change([there, tmp_path / ".batch-001.json.7.partial"]) == there.stat().st_mtime
    assert math.isnan(grid._last_change([]))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves processes
def test_local_jobs_of_which_one_is_killed_end_as_an_undisturbed_run(model_folder, tmp_path):
    cells = cells_of(model_folder, ["evoedit", "memit"], rounds=8)
    inner = make_executor("process", tmp_path / "jobs", at_once=1)
    executor = Disturbing(inner, tmp_path / "grid", kill=cells[0], cancel=cells[1])
    assert supervise(cells, tmp_path / "grid", executor, device="cpu", poll=0.05) == {}
    assert dict(executor.log) == {"killed": cells[0].slug, "cancelled": cells[1].slug}
    assert [len(executor.names[cell.slug]) for cell in cells] == [2, 2]
    assert digest(cells, tmp_path / "grid") == _undisturbed(cells, tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # submitit leaves processes
@pytest.mark.slurm
def test_slurm_jobs_cancelled_and_killed_end_as_an_undisturbed_run(model_folder, tmp_path, capsys):
    with slurm_cluster(tmp_path / "cluster"):
        cells = cells_of(model_folder, rounds=12)
        inner = make_executor("slurm", tmp_path / "jobs", at_once=2, options=dict(partition="debug", time=10))
        executor = Disturbing(inner, tmp_path / "grid", kill=cells[0], cancel=cells[1])
        seen = []

        def tell():
            line = states(cells, tmp_path / "grid")["state"].value_counts().to_dict()
            if line not in seen:
                seen.append(line)

        assert supervise(cells, tmp_path / "grid", executor, device="cpu", poll=0.2, tell=tell) == {}
        listing = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True, check=True).stdout
    assert dict(executor.log) == {"killed": cells[0].slug, "cancelled": cells[1].slug}
    assert [len(executor.names[cell.slug]) for cell in cells[:2]] == [2, 2]
    assert "JobState=CANCELLED" in listing and "JobState=COMPLETED" in listing
    ours, undisturbed = digest(cells, tmp_path / "grid"), _undisturbed(cells, tmp_path)
    with capsys.disabled():
        print(f"\nslurm: {executor.log}, attempts { {k: len(v) for k, v in executor.names.items()} }, states {seen}")
        print(f"slurm: results {ours[:16]}, of an undisturbed inline run {undisturbed[:16]}")
    assert ours == undisturbed


@pytest.mark.parametrize("methods", [("evoedit",), ("evoedit", "memit")])
def test_a_task_that_slurm_interrupts_is_queued_again_as_it_is(model_folder, tmp_path, monkeypatch, methods):
    """One job and an array, as they lie in the files that SLURM's jobs read, at their time limit."""
    (tmp_path / "bin").mkdir()
    for name, words in (("srun", ""), ("sbatch", "Submitted batch job 7")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\necho {words}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    tasks = [CellTask.of(cell, tmp_path, "cpu") for cell in cells_of(model_folder, methods)]
    executor = make_executor("slurm", tmp_path / "jobs", options=dict(time=10))
    for name, task in zip(executor.submit(tasks), tasks, strict=True):
        paths, queued = executor.jobs[name].paths, []
        submitted = DelayedSubmission.load(paths.submitted_pickle)
        assert hasattr(submitted.function, "checkpoint") and submitted.function == task
        environment = SimpleNamespace(global_rank=0, _requeue=queued.append)
        handler = SignalHandler(environment, paths, submitted)
        monkeypatch.setattr(handler, "has_timed_out", lambda: True)
        monkeypatch.setattr(handler, "_exit", lambda: None)
        handler.checkpoint_and_try_requeue(signal.SIGUSR2)
        assert len(queued) == 1 and DelayedSubmission.load(paths.submitted_pickle).function == task
