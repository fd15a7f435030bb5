"""The command `langedit`: run a profile's cells and notebooks, render its reports, look at a model.

run = cells (computed or loaded, with a progress bar) → notebooks (Papermill) → pages, tables, figures.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from langedit_core.results import Cell

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)
REPOSITORY = Path(__file__).resolve().parents[1]

ProfileOption = Annotated[str, typer.Option("--profile", help="smoke, quick, standard, paper, or a YAML file")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "--model_name_or_path", help="hub ID, folder, or packaged name; the profile's otherwise"),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda:0")]
OutputOption = Annotated[
    Path | None, typer.Option("--output-path", help="where reports/ and results/ go; the repository otherwise")
]


@app.callback()
def main(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


@app.command()
def run(
    profile: ProfileOption = "quick",
    model: ModelOption = None,
    device: DeviceOption = None,
    output_path: OutputOption = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0, help="begin no cell after so many hours; report what is finished")
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", help="2/3: the second of three shares, for as many processes; no reports")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the cells, estimate memory and time; load and write nothing")
    ] = False,
    tflops: Annotated[
        float | None, typer.Option("--tflops", help="with --dry-run: float32 TFLOP/s of a device that is not here")
    ] = None,
) -> None:
    """Compute a profile's cells (finished ones are not computed again), run its notebooks, render its reports."""
    from langedit_core.models import load_model
    from langedit_core.notebooks import run_profile_notebooks
    from langedit_core.profiles import load_profile
    from langedit_core.results import is_known, keep_record
    from langedit_core.study import run_cells

    until = math.inf if hours is None else time.monotonic() + 3600 * hours
    chosen = load_profile(profile)
    root = output_path or REPOSITORY
    if dry_run:
        from langedit_core.dryrun import told

        models = [model] if model else chosen.models
        typer.echo(told(chosen, models, root, device=device or chosen.device, tflops=tflops))
        return
    if model is None and len(chosen.models) > 1:
        for each in chosen.models:
            left = None if hours is None else max(0.0, (until - time.monotonic()) / 3600)
            run(profile, each, device, output_path, left, part)
        return
    name = model or chosen.model
    results, reports = root / "results", root / "reports" / chosen.folder(name)
    records = chosen.records(reports)
    cells = chosen.all_cells(name)
    waiting = [cell for cell in cells if not is_known(cell, results, records)]
    say(f"profile {chosen.name}: {len(cells)} cells, {len(waiting)} to compute, {len(chosen.notebooks)} notebooks")
    mine = [cell for cell in share(cells, part) if cell in waiting]
    if mine and until > time.monotonic():
        run_cells(mine, load_model(name, device=device or chosen.device), results, until=until)
    if records is not None:
        for cell in cells:
            keep_record(cell, results, records)
    left = sum(not is_known(cell, results, records) for cell in cells)
    if part or (left and (left == len(cells) or not chosen.partial)):
        say(f"{len(cells) - left} of {len(cells)} cells are finished; the same command goes on with the others")
        return
    # Relative to the notebooks, where kernels run: a page says nothing about the machine it was made on.
    source = REPOSITORY / "notebooks"
    shared = dict(
        PROFILE=str(profile), RESULTS=os.path.relpath(results, source), REPORTS=os.path.relpath(reports, source)
    )
    if model:
        shared["MODEL"] = model
    notebooks = {stem: shared | parameters for stem, parameters in chosen.notebooks.items()}
    entries = run_profile_notebooks(
        notebooks, source=source, report_dir=reports, provenance=provenance(chosen.name, name)
    )
    say(f"done: {reports.resolve() / 'index.html'} ({len(entries)} reports)")


@app.command()
def grid(
    profile: ProfileOption = "standard",
    model: ModelOption = None,
    device: DeviceOption = None,
    output_path: OutputOption = None,
    executor: Annotated[
        str, typer.Option("--executor", help="inline (here, one after the other), process (here, side by side), slurm")
    ] = "inline",
    at_once: Annotated[int, typer.Option("--at-once", min=1, help="most jobs at the same time")] = 2,
    retries: Annotated[int, typer.Option("--retries", min=0, help="times a cell is tried again")] = 2,
    hours: Annotated[float | None, typer.Option("--hours", min=0, help="cancel what is not done by then")] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option("--slurm", metavar="KEY=VALUE", help="for SLURM, for example partition=gpu, time=240, gres=gpu:1"),
    ] = None,
) -> None:
    """Compute a profile's cells as jobs, one per cell, then render its reports.

    A job that is cancelled, killed or preempted is submitted again and goes on where it was; stopping this command and
    giving it again does the same. `langedit status` looks on from another terminal. On a cluster the repository and
    --output-path lie on a file system that all nodes see:

    langedit grid --profile paper --executor slurm --at-once 8 --slurm partition=gpu --slurm gres=gpu:1 --slurm time=720
    """
    from langedit_core.executors import make_executor
    from langedit_core.grid import states, supervise
    from langedit_core.profiles import load_profile
    from langedit_core.results import has_record

    chosen, root = load_profile(profile), output_path or REPOSITORY
    made = make_executor(executor, root / "results" / "jobs", at_once=at_once, options=_pairs(slurm or []))
    until = math.inf if hours is None else time.monotonic() + 3600 * hours
    failed: dict[str, str] = {}
    for name in [model] if model else chosen.models:
        records = chosen.records(root / "reports" / chosen.folder(name))
        cells = [cell for cell in chosen.all_cells(name) if not has_record(cell, records)]
        told = [""]

        def tell(cells=cells, records=records, told=told) -> None:
            counts = states(cells, root / "results", records)["state"].value_counts()
            line = f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items())
            if line != told[0]:
                say(line)
            told[0] = line

        failed |= supervise(
            cells, root / "results", made, device=device or chosen.device, retries=retries, deadline=until, tell=tell
        )
    for slug, why in failed.items():
        say(f"not done: {slug}: {why}")
    run(profile, model, device, output_path, 0.0)
    if failed:
        raise typer.Exit(1)


@app.command()
def status(
    profile: ProfileOption = "standard",
    model: ModelOption = None,
    output_path: OutputOption = None,
    watch: Annotated[float | None, typer.Option("--watch", min=1, help="print again every so many seconds")] = None,
) -> None:
    """Where a profile's cells are: state, batches, minutes since the last change, last error."""
    from langedit_core.grid import states, table
    from langedit_core.profiles import load_profile

    chosen, root = load_profile(profile), output_path or REPOSITORY
    while True:
        for name in [model] if model else chosen.models:
            records = chosen.records(root / "reports" / chosen.folder(name))
            typer.echo(table(states(chosen.all_cells(name), root / "results", records)))
        if watch is None:
            return
        time.sleep(watch)


def _pairs(options: Sequence[str]) -> dict[str, str | int]:
    """KEY=VALUE options as a mapping; whole numbers as such.

    Raises:
        ValueError: Not of that form.
    """
    found = {}
    for text in options:
        key, sign, value = text.partition("=")
        if not sign or not re.fullmatch(r"[A-Za-z_][\w-]*", key) or not value:
            raise ValueError(f"--slurm got {text!r}; expected KEY=VALUE, for example partition=gpu")
        found[key.replace("-", "_")] = int(value) if value.isdigit() else value
    return found


@app.command()
def report(profile: ProfileOption = "quick", output_path: OutputOption = None) -> None:
    """Render a profile's reports again from the notebooks executed last."""
    from langedit_core.notebooks import find_notebooks
    from langedit_core.profiles import load_profile
    from langedit_core.rendering import render, write_index

    chosen = load_profile(profile)
    for model in chosen.models:
        reports = (output_path or REPOSITORY) / "reports" / chosen.folder(model)
        executed = find_notebooks(reports / "executed")
        if missing := [stem for stem in chosen.notebooks if stem not in executed]:
            raise FileNotFoundError(
                f"not executed yet: {', '.join(missing)}; run `langedit run --profile {profile}` first"
            )
        line = provenance(chosen.name, model)
        entries = [render(executed[stem], reports / f"{stem}.html", provenance=line) for stem in chosen.notebooks]
        write_index(reports, entries, provenance=line)
        say(f"rendered {len(entries)} reports into {reports.resolve()}")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="hub ID, folder, or packaged name")], device: DeviceOption = None
) -> None:
    """Print a model's layers, shapes, write port, and whether a norm follows it."""
    from langedit_core.models import inspect as sheet
    from langedit_core.models import load_model

    typer.echo(sheet(load_model(model, device=device or "auto")))


def share(cells: Sequence[Cell], part: str | None) -> Sequence[Cell]:
    """Every n-th of some cells, by "i/n"; all without.

    Raises:
        ValueError: Not of that form, or i is not among 1 to n.
    """
    if part is None:
        return cells
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--part is {part!r}; expected i/n with i from 1 to n, for example 1/2")
    return cells[int(found[1]) - 1 :: int(found[2])]


def provenance(profile: str, model: str) -> str:
    """One line for every page: profile, model, and the versions that decide about numbers."""
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("langedit-core", "torch", "transformers"))
    return f"profile {profile} · model {model} · {versions}{commit()}"


def commit() -> str:
    """The commit of a source checkout whose code is unchanged; empty elsewhere, so that pages stay stable."""
    try:
        git = ["git", "-C", str(REPOSITORY)]
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "--", "langedit_core", "notebooks"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        found = subprocess.run(
            [*git, "log", "-1", "--format=%h", "--", "langedit_core", "notebooks"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f" · code {found}{' with changes' if dirty else ''}" if found else ""


def say(text: str) -> None:
    typer.echo(text, err=True)


def entry() -> None:
    """`langedit`: errors of callers are one line and exit status 2, everything else keeps its traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, ImportError) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv:
            raise
        say(f"error: {error}")
        raise SystemExit(2) from error


if __name__ == "__main__":
    entry()
