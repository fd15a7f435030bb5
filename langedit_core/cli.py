"""The command `langedit`: edit and trace models, handle patches and data, run profiles on a machine or a cluster.

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

from langedit_core.cli_common import (
    DeviceOption,
    DtypeOption,
    check_output,
    n_batches,
    n_facts,
    refuse,
    say,
    shown,
    torch_dtype,
    write_csv,
)
from langedit_core.cli_data import data_app
from langedit_core.cli_evaluate import evaluate
from langedit_core.cli_patch import patch_app
from langedit_core.cli_trace import trace

if TYPE_CHECKING:
    from langedit_core.results import Cell

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0],
    epilog="Exit status: 0 done, 1 input refused or work failed (the reason is the last line), 2 wrong usage.",
)  # fmt: skip
REPOSITORY = Path(__file__).resolve().parents[1]

ProfileOption = Annotated[
    str, typer.Option("--profile", help="smoke, quick, standard, small, smollm2, paper, or a YAML file")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", "--model_name_or_path", help="hub ID, folder, or packaged name; the profile's otherwise"),
]
OutputOption = Annotated[
    Path | None, typer.Option("--output-path", help="where reports/ and results/ go; the repository otherwise")
]


@app.callback()
def main(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False) -> None:
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s: %(message)s")


@app.command(
    epilog="Example: langedit run --profile quick --output-path here\n\n"
    "What it would take, without doing it: langedit run --profile standard --dry-run"
)
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
    notebooks: Annotated[
        str | None,
        typer.Option("--notebooks", help='execute only these, such as "03_null_spaces 06_transfer"; render all'),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list the cells, estimate memory and time; load and write nothing")
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option("--tflops", min=0.001, help="with --dry-run: float32 TFLOP/s of a device that is not here"),
    ] = None,
) -> None:
    """Compute a profile's cells (finished ones are not computed again), run its notebooks, render its reports."""
    from langedit_core.devices import VARIABLE
    from langedit_core.errors import unknown
    from langedit_core.models import canonical, load_model
    from langedit_core.notebooks import refusals, run_profile_notebooks
    from langedit_core.profiles import load_profile
    from langedit_core.results import is_known, keep_record
    from langedit_core.study import check_inputs, run_cells

    until = math.inf if hours is None else time.monotonic() + 3600 * hours
    if device:
        os.environ[VARIABLE] = device  # notebooks, whose kernels inherit it, load models too
    chosen = load_profile(profile)
    root, source = output_path or REPOSITORY, REPOSITORY / "notebooks"
    # Now, not when days of cells are computed. An installed package has no notebooks, and computes cells all the same.
    for _, reason in refusals(chosen.notebooks, chosen.grids, source) if source.is_dir() else ():
        raise ValueError(reason)
    wanted = None if notebooks is None else notebooks.split()
    for stem in wanted or ():
        if stem not in chosen.notebooks:
            raise unknown("notebook of this profile", stem, chosen.notebooks)
    if dry_run:
        from langedit_core.dryrun import told

        models = [model] if model else chosen.models
        typer.echo(told(chosen, models, root, device=chosen.device, tflops=tflops))
        return
    if model is None and len(chosen.models) > 1:
        for each in chosen.models:
            left = None if hours is None else max(0.0, (until - time.monotonic()) / 3600)
            run(profile, each, device, output_path, left, part, notebooks)
        return
    name = canonical(model or chosen.model)
    results, reports = root / "results", root / "reports" / chosen.folder(name)
    records = chosen.records(reports)
    cells = chosen.all_cells(name)
    waiting = [cell for cell in cells if not is_known(cell, results, records)]
    say(f"profile {chosen.name}: {len(cells)} cells, {len(waiting)} to compute, {len(chosen.notebooks)} notebooks")
    mine = [cell for cell in share(cells, part) if cell in waiting]
    computing = bool(mine) and until > time.monotonic()
    if computing or (model and Path(model).is_dir()):  # what lies in a folder may have changed under its name
        loaded = load_model(name, device=chosen.device)
        check_inputs([cell for cell in cells if cell not in waiting], loaded, results, records)
    if computing:
        absent: dict[str, None] = {}
        leave_out = (lambda error: absent.setdefault(str(error))) if chosen.partial else None
        run_cells(mine, loaded, results, until=until, without=leave_out)
        for reason in absent:
            say(f"left out: {reason}")
    if records is not None:
        for cell in cells:
            keep_record(cell, results, records)
    left = sum(not is_known(cell, results, records) for cell in cells)
    if part or (left and (left == len(cells) or not chosen.partial)):
        then = "the same command goes on with the others" if left else "without --part the reports are made"
        say(f"{len(cells) - left} of {len(cells)} cells are finished; {then}")
        return
    # Relative to the notebooks, where kernels run: a page says nothing about the machine it was made on.
    shared = dict(
        PROFILE=os.path.relpath(profile, source) if Path(profile).is_file() else str(profile),
        MODEL=name,
        RESULTS=os.path.relpath(results, source),
        REPORTS=os.path.relpath(reports, source),
    )
    entries = run_profile_notebooks(
        {stem: parameters | shared for stem, parameters in chosen.notebooks.items()},
        source=source,
        report_dir=reports,
        provenance=provenance(chosen.name, name),
        only=wanted,
    )
    say(f"done: {reports.resolve() / 'index.html'} ({len(entries)} reports)")


@app.command(epilog="Example: langedit grid --profile standard --executor process --at-once 2 --output-path here")
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
    from langedit_core.devices import VARIABLE
    from langedit_core.executors import make_executor
    from langedit_core.grid import states, supervise
    from langedit_core.profiles import load_profile
    from langedit_core.results import has_record

    if device:
        os.environ[VARIABLE] = device
    chosen, root = load_profile(profile), output_path or REPOSITORY
    made = make_executor(executor, root / "results" / "jobs", at_once=at_once, options=_slurm(slurm or []))
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
            cells, root / "results", made, device=chosen.device, retries=retries, deadline=until, tell=tell
        )
    for slug, why in failed.items():
        say(f"not done: {slug}: {why}")
    run(profile, model, device, output_path, 0.0)
    if failed:
        raise typer.Exit(1)


@app.command(epilog="Example: langedit status --profile standard --output-path here --watch 60")
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


def _slurm(options: Sequence[str]) -> dict[str, str | int]:
    """Options of SLURM as submitit has them; whole numbers as such."""
    pairs = _pairs(options, "--slurm", r"[A-Za-z_][\w-]*", "partition=gpu")
    return {key.replace("-", "_"): int(value) if value.isdigit() else value for key, value in pairs}


def _pairs(options: Sequence[str], name: str, key: str, example: str) -> list[tuple[str, str]]:
    """The two sides of KEY=VALUE options.

    Raises:
        ValueError: Not of that form.
    """
    found = []
    for text in options:
        left, sign, right = text.partition("=")
        if not sign or not re.fullmatch(key, left) or not right:
            raise ValueError(f"{name} got {text!r}; expected KEY=VALUE, for example {example}")
        found.append((left, right))
    return found


@app.command(epilog="Example: langedit report --profile quick --output-path here")
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


@app.command(epilog="Example: langedit inspect gemma-3-270m")
def inspect(
    model: Annotated[str, typer.Argument(help="hub ID, folder, or packaged name")],
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Print a model's layers, shapes, write port, and whether a norm follows it."""
    from langedit_core.models import inspect as sheet
    from langedit_core.models import load_model

    typer.echo(sheet(load_model(model, device=device or "auto", dtype=torch_dtype(dtype))))


@app.command(
    epilog="Example: langedit edit --model gemma-3-270m --facts facts.jsonl --output-path capitals --peft\n\n"
    "To go on with more facts, add lines to the file and --resume to the command."
)
def edit(
    model: Annotated[str, typer.Option("--model", "--model_name_or_path", help="hub ID, folder, or packaged name")],
    facts: Annotated[
        Path, typer.Option("--facts", help="JSON lines: lang, subject, prompt with one {}, target; more is optional")
    ],
    output_path: Annotated[
        Path, typer.Option("--output-path", help="folder for patch.safetensors, adapter/, model/ and report.csv")
    ],
    method: Annotated[
        str, typer.Option("--method", help="langedit, alphaedit, memit, rome, ft, ...; another word lists all")
    ] = "langedit",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="facts written together")] = 50,
    layers: Annotated[
        str | None, typer.Option("--layers", help="such as 3,4,5; needed for a model without settings of its own")
    ] = None,
    corpus: Annotated[
        Path | None,
        typer.Option("--corpus", help="text, a sentence a line, whose keys are left alone; embedded facts otherwise"),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="the first so many facts only")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="a setting of the method, as ridge=0.5 or values.steps=20"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="of the context prefixes")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    patch_only: Annotated[bool, typer.Option("--patch-only", help="write the patch alone (default)")] = False,
    save_model: Annotated[bool, typer.Option("--save-model", help="write the edited model too, into model/")] = False,
    peft: Annotated[bool, typer.Option("--peft", help="write a PEFT LoRA adapter too, into adapter/")] = False,
    keep_base: Annotated[
        bool, typer.Option("--keep-base", help="put the unedited matrices into the patch, to remove edits without them")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="go on with the patch in the output folder; model/ and adapter/ are made anew"),
    ] = False,
) -> None:
    """Edit facts into a model: out come a patch, a PEFT adapter, or the edited model.

    The patch is written as it grows. Facts that the tokenizer cannot locate are left out and named.
    """
    from langedit_core.adapters import refuse_existing, to_peft
    from langedit_core.adapters import save_model as save
    from langedit_core.chosen_layers import parse_layers
    from langedit_core.covariance import corpus_hash
    from langedit_core.editing import edit_facts
    from langedit_core.editors import METHODS
    from langedit_core.errors import unknown
    from langedit_core.fact_files import read_facts, read_sentences
    from langedit_core.languages import CORE
    from langedit_core.models import load_model
    from langedit_core.patches import check_recordable
    from langedit_core.quickstart import prepare_editor

    if patch_only and (save_model or peft):
        raise typer.BadParameter("--patch-only leaves out what --save-model and --peft ask for")
    changes = parse_settings(settings or [])
    try:
        chosen = parse_layers(layers or "")
    except ValueError as error:
        raise typer.BadParameter(f"--layers: {error}") from error
    wanted = read_facts(facts)[:limit]
    texts = None if corpus is None else read_sentences(corpus)
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    damping = METHODS[method].get("damping")
    patch_path = None if damping and save_model and not peft else output_path / "patch.safetensors"
    if patch_path is not None:
        check_recordable(method, damping)
    if resume and not (patch_path and patch_path.is_file()):
        refuse(f"--resume: there is no {output_path / 'patch.safetensors'} to go on with")
    check_output(output_path)
    # Going on replaces what the shorter patch was written into: it is all in the patch.
    written = {output_path / "model": save_model, output_path / "adapter": peft}
    for path in [patch_path, *(path for path, asked in written.items() if asked)]:
        ours = resume and path is not None and (path == patch_path or any(path.glob("*config.json")))
        if path is not None and not ours:
            refuse_existing(path)
    loaded = load_model(model, device=device, dtype=torch_dtype(dtype))
    # All languages of the study, whatever is edited: their keys are left alone, and facts in any of them may follow.
    langs = tuple(dict.fromkeys((*CORE, *(fact.lang for fact in wanted))))
    editor = prepare_editor(loaded, method, layers=chosen, langs=langs, corpus=texts, seed=seed, **changes)
    edited = edit_facts(
        editor,
        wanted,
        batch=batch_size,
        method=method,
        path=patch_path,
        resume=resume,
        keep_base=keep_base,
        corpus=None if texts is None else corpus_hash(texts),
    )
    for reason in edited.dropped.values():
        say(f"left out: {reason}")
    table = edited.table()
    typer.echo(shown(table))
    write_csv(table, output_path, "report")
    if edited.patch is not None:
        say(f"patch of {n_batches(len(edited.patch))}, {n_facts(len(edited.patch.facts))}: {patch_path}")
    for group in edited.same_keys:
        say(
            f"facts {', '.join(fact.id for fact in group)} have one key, that of {group[0].opening!r} "
            f"({group[0].lang}), and overwrite one another; let their prompts differ before the subject"
        )
    unmet, tried = edited.unmet
    if unmet:
        say(f"the search for values ended above its aim for {unmet} of {tried} facts: they may not be said")
    for path, asked in written.items():
        if resume and path.exists() and not asked and tried:
            say(f"{path} is of the shorter patch; --resume with its option writes it anew")
    if peft:
        errors = to_peft(edited.patch, output_path / "adapter", replace=resume)
        say(f"PEFT adapter, relative error at most {max(errors.values()):.1e}: {output_path / 'adapter'}")
    if save_model:
        save(loaded, output_path / "model", replace=resume)
        say(f"edited model: {output_path / 'model'}")


app.command(
    epilog="Example: langedit trace --model atlas-lm --data atlas --langs 'en zh' --limit 5 --output-path traced\n\n"
    "To trace more, raise --limit and give the same folder: finished traces are read."
)(trace)
app.command(
    epilog="Example: langedit evaluate --model gemma-3-270m --patch capitals/patch.safetensors --facts facts.jsonl\n\n"
    "Example: langedit evaluate --model edited --facts facts.jsonl --xtreme 50 --output-path asked"
)(evaluate)


@app.command(epilog="Example: langedit validate facts.jsonl capitals/patch.safetensors my_profile.yaml")
def validate(
    files: Annotated[list[Path], typer.Argument(help=".jsonl: facts, .safetensors: a patch, .yaml: a profile")],
) -> None:
    """Say what is wrong with files of facts, patches and profiles, with line numbers; status 1 if anything is."""
    from langedit_core.checking import check_file

    notebooks = REPOSITORY / "notebooks"
    bad = 0
    for path in files:
        checked = check_file(path, notebooks if notebooks.is_dir() else None)
        for problem in checked.problems:
            typer.echo(str(problem))
        bad += bool(checked.problems)
        if not checked.problems:
            typer.echo(f"{path}: good ({checked.holds})")
    if bad:
        refuse(f"{bad} of {len(files)} files cannot be used as they are")


app.add_typer(patch_app, name="patch")
app.add_typer(data_app, name="data")


def parse_settings(options: Sequence[str]) -> dict[str, object]:
    """Changes of `EditSettings` from "ridge=0.5", "values.steps=20"; values are read as YAML, a dot goes into a part.

    Raises:
        ValueError: Not of that form, unknown, given twice, or with an option of its own.
    """
    import yaml

    from langedit_core.editors import EditSettings
    from langedit_core.errors import unknown

    found: dict[str, object] = {}
    for key, text in _pairs(options, "--set", r"[a-z_]+(\.[a-z_]+)*", "ridge=0.5"):
        if key == "layers":
            raise ValueError(f"--set got {key}; give them as --layers {text}")
        *parts, last = key.split(".")
        if (first := key.split(".")[0]) not in EditSettings.model_fields:
            raise unknown("setting", first, EditSettings.model_fields)
        place: object = found
        for part in parts:
            place = place.setdefault(part, {}) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last in place:
            raise ValueError(f"--set got {key!r} twice, or beside what it is a part of; give it once")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(
                f"--set {key}={text}: {text!r} is no value; expected a number, a word, or [1, 2]"
            ) from error
    return found


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


def entry() -> None:
    """`langedit`: refused input, failed work and memory that ran out are one line and exit status 1.

    Anything else keeps its traceback. Wrong usage ends with status 2, which Typer sees to.
    """
    from langedit_core.errors import NotebookFailed

    try:
        app()
    except (ValueError, OSError, ImportError, ArithmeticError, MemoryError, NotebookFailed, RuntimeError) as error:
        if "-v" in sys.argv or "--verbose" in sys.argv or _unexpected(error):
            raise
        from pydantic import ValidationError

        from langedit_core.errors import told

        say(f"error: {told(error) if isinstance(error, ValidationError) else error}")
        raise SystemExit(1) from error


def _unexpected(error: Exception) -> bool:
    """PyTorch says with a RuntimeError that a device's memory ran out; any other one is a fault of ours."""
    from langedit_core.errors import NotebookFailed
    from langedit_core.memory import lacks_memory

    return isinstance(error, RuntimeError) and not isinstance(error, NotebookFailed) and not lacks_memory(error)


if __name__ == "__main__":
    entry()
