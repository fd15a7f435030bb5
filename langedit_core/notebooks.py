"""Runs notebooks so that nothing is published that failed, or ran with parameters other than those asked for.

report = render(strip(execute(check(notebook, parameters)))). Papermill only warns about an unknown
parameter and lets the defaults win when the tag `parameters` is missing, so everything is checked before a
kernel starts; what depends on time is removed afterwards, so equal results give equal files.
"""

import ast
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError

from langedit_core.errors import NotebookFailed, unknown
from langedit_core.rendering import ReportEntry, render, title_of, write_index

Scalar = str | int | float | bool | None
KERNEL = "langedit"
LARGEST = 100_000_000  # bytes of a notebook with its outputs
# Seconds until a kernel must answer. Papermill's 60 are too few where other processes share the cores or Python's files
# come over a network; waiting longer costs nothing, since a kernel that dies meanwhile is noticed within a second.
START_TIMEOUT = 600
WIDGET = "application/vnd.jupyter.widget-view+json"
GROUP = re.compile(r'\bPROFILE,\s*"(\w+)"')
NAME = re.compile(r"\d\d_\w+\.ipynb", re.ASCII)


def find_notebooks(folder: str | Path) -> dict[str, Path]:
    """Every `NN_name.ipynb` in `folder`, by stem, in order."""
    found = sorted(path for path in Path(folder).glob("*.ipynb") if NAME.fullmatch(path.name))
    return {path.stem: path.resolve() for path in found}


def read_notebook(path: str | Path) -> NotebookNode:
    """A notebook from a file.

    Raises:
        FileNotFoundError: Nothing there.
        ValueError: No notebook; names the file.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST:,} bytes; is it a notebook?")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        return notebook
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError, nbformat.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no whole notebook ({reason}); save it again from Jupyter") from error


def check_notebook(path: str | Path) -> dict[str, Scalar]:
    """Names and defaults of the parameters of a notebook.

    Raises:
        ValueError: There is not exactly one cell tagged `parameters`, or it holds anything but assignments of
            one scalar (text, number, truth value or None) to one name.
    """
    path = Path(path)
    cells = [c for c in read_notebook(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1 or cells[0].cell_type != "code":
        raise ValueError(
            f"{path.name} has {len(cells)} cells tagged 'parameters'; exactly one code cell must be, "
            "otherwise Papermill runs the defaults whatever is asked for"
        )
    defaults: dict[str, Scalar] = {}
    try:
        lines = ast.parse(cells[0].source).body
    except (SyntaxError, RecursionError, MemoryError, ValueError) as error:
        raise ValueError(f"{path.name}: the parameters cell is no Python ({error})") from error
    for line in lines:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        try:
            (name,) = targets
            value = ast.literal_eval(line.value)
            known = isinstance(name, ast.Name) and isinstance(value, Scalar) and name.id not in defaults
        except (AttributeError, TypeError, ValueError):
            known = False
        if not known:
            raise ValueError(
                f"{path.name}: the parameters cell may only give scalars to distinct names, as in "
                f"`edits = 10`, but line {line.lineno} is `{ast.unparse(line)}`"
            )
        defaults[name.id] = value
    return defaults


def check_parameters(path: str | Path, parameters: Mapping[str, object]) -> dict[str, Scalar]:
    """`parameters` as the notebook will receive them: whole numbers become floats where the default is one.

    Raises:
        ValueError: Unknown name (the known ones are listed, nearest first), or a value of another type than
            the default, or NaN or infinity. A default of None accepts every finite scalar.
    """
    defaults = check_notebook(path)
    checked: dict[str, Scalar] = {}
    for name, value in parameters.items():
        if name not in defaults:
            raise unknown(f"parameter of {Path(path).name}", name, defaults)
        wanted = type(defaults[name])
        if wanted is float and type(value) is int:
            value = float(value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"parameter {name} of {Path(path).name} got {value}; expected a finite number")
        if not isinstance(value, Scalar) or (defaults[name] is not None and type(value) is not wanted):
            raise ValueError(
                f"parameter {name} of {Path(path).name} got {value!r} of type {type(value).__name__}; "
                f"its default {defaults[name]!r} asks for {wanted.__name__}"
            )
        checked[name] = value
    return checked


def cell_groups(path: str | Path) -> tuple[str, ...]:
    """Cell groups of a profile that a notebook reads, by the calls in it that begin `(PROFILE, "group"`."""
    cells = [cell.source for cell in read_notebook(path).cells if cell.cell_type == "code"]
    return tuple(dict.fromkeys(GROUP.findall("\n".join(cells))))


def refusals(
    notebooks: Mapping[str, Mapping[str, object]], groups: Collection[str], source: str | Path
) -> Iterator[tuple[str, str]]:
    """What stands against running a profile's notebooks, as pairs of a stem and a sentence; nothing is started.

    Args:
        notebooks: Stem to parameters.
        groups: The profile's cell groups.
        source: Folder with the notebooks.
    """
    known = find_notebooks(source)
    for stem, parameters in notebooks.items():
        try:
            if stem not in known:
                raise unknown("notebook", stem, known)
            check_parameters(known[stem], parameters)
            for group in cell_groups(known[stem]):
                if group not in groups:
                    raise ValueError(
                        f"{stem} reads cells {group!r}; the profile's grids are: {', '.join(groups) or 'none'}. "
                        "Add that grid, or leave the notebook out"
                    )
        except ValueError as error:
            yield stem, str(error)


def execute(
    path: str | Path,
    out_dir: str | Path,
    parameters: Mapping[str, object],
    *,
    timeout: int | None = None,
    kernel: str | None = None,
    quiet: bool = False,
) -> Path:
    """Runs a notebook in its own folder and returns the executed copy, free of what depends on time.

    The kernel's stderr (progress, warnings) is shown and written to `<stem>.log` while it runs and is not
    kept in the copy, because it holds times and paths of one machine. A failure leaves
    `<stem>.failed.ipynb`.

    Args:
        path: The notebook; it is not changed.
        out_dir: Where `<stem>.ipynb` is put.
        parameters: Checked as in `check_parameters`.
        timeout: Seconds allowed for one cell; None waits for ever.
        kernel: Name of an installed kernel; by default the Python that runs this function.
        quiet: Show nothing while it runs; the log is written all the same.

    Raises:
        ValueError: The notebook or its parameters are refused; nothing was started.
        NotebookFailed: A cell raised, ran out of time or lost its kernel, or the kernel did not start.
    """
    path, out_dir = Path(path).resolve(), Path(out_dir).resolve()
    parameters = check_parameters(path, parameters)
    out_dir.mkdir(parents=True, exist_ok=True)
    target, failed = out_dir / path.name, out_dir / f"{path.stem}.failed.ipynb"
    target.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    with open(out_dir / f"{path.stem}.log", "w", encoding="utf-8") as log, _own_kernel() as own:
        try:
            papermill.execute_notebook(
                path,
                failed,  # becomes the target only when every cell has run
                parameters=dict(parameters),
                kernel_name=kernel or own,
                language="python",
                cwd=path.parent,
                progress_bar=False,
                stderr_file=_Tee(log, None if quiet else sys.stderr),
                start_timeout=START_TIMEOUT,
                execution_timeout=timeout,
            )
        except PapermillExecutionError as error:
            last = "\n".join(_plain("\n".join(error.traceback)).splitlines()[-12:])
            raise NotebookFailed(f"{path.name} stopped in cell {error.cell_index} of {failed}:\n{last}") from None
        except CellTimeoutError as error:
            raise NotebookFailed(f"{path.name}: a cell took more than {timeout} s\n{error}") from None
        except DeadKernelError as error:
            raise NotebookFailed(f"{path.name}: the kernel died, often for lack of memory\n{error}") from None
        except RuntimeError as error:  # jupyter_client has no other class for a kernel that never answers
            raise NotebookFailed(f"{path.name}: the kernel did not start; is the machine busy? {error}") from None
    notebook = strip(nbformat.read(failed, as_version=4))
    nbformat.write(notebook, failed)
    failed.replace(target)
    return target


def strip(notebook: NotebookNode) -> NotebookNode:
    """Removes what differs between two runs with equal results: times, widgets, ids, cuts in streams."""
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for number, cell in enumerate(notebook.cells):
        injected = "injected-parameters" in cell.metadata.get("tags", [])
        cell.id = "injected-parameters" if injected else f"cell-{number:02d}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        outputs: list[NotebookNode] = []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                continue
            if WIDGET in output.get("data", {}):  # a form, or a library's progress bar: dead on a page
                continue
            if output.output_type == "stream" and outputs and outputs[-1].output_type == "stream":
                outputs[-1].text += output.text  # how a stream is cut depends on time
                continue
            outputs.append(output)
        cell.outputs = outputs
    return notebook


def run_profile_notebooks(
    notebooks: Mapping[str, Mapping[str, object]],
    *,
    source: str | Path,
    report_dir: str | Path,
    provenance: str,
    only: Collection[str] | None = None,
    timeout: int | None = None,
    quiet: bool = False,
) -> list[ReportEntry]:
    """Checks all notebooks of a profile, executes and renders one after the other, and writes the index.

    A notebook that fails loses its report, since one of an older state beside new ones would mislead; the
    others are still made and the index says which one is missing.

    Args:
        notebooks: Stem such as "02_main" to parameters.
        source: Folder with the notebooks.
        report_dir: `reports/<profile>`; executed copies go to its subfolder `executed`.
        provenance: One line with model, commit and versions, shown in every report and in the index.
        only: Stems to execute; of the others the copies executed last are rendered, and pages whose copies are not here
            (the repository keeps pages alone) stay as they are. None executes all.
        timeout: Seconds for one cell.
        quiet: Show no progress.

    Raises:
        ValueError: A notebook is unknown or refused, or a parameter is; nothing was started.
        NotebookFailed: At least one notebook failed; raised after the last one.
    """
    known, report_dir = find_notebooks(source), Path(report_dir).resolve()
    for stem, parameters in notebooks.items():
        if stem not in known:
            raise unknown("notebook", stem, known)
        check_parameters(known[stem], parameters)
    for stem in only or ():
        if stem not in notebooks:
            raise unknown("notebook of this profile", stem, notebooks)
    entries, failures = [], []
    for stem, parameters in notebooks.items():
        page = report_dir / f"{stem}.html"
        try:
            executed = report_dir / "executed" / f"{stem}.ipynb"
            if only is None or stem in only:
                executed = execute(known[stem], report_dir / "executed", parameters, timeout=timeout, quiet=quiet)
            elif page.is_file() and not executed.is_file():
                entries.append(ReportEntry(page=page.name, title=_title(known[stem])))
                continue
            elif not executed.is_file():
                raise NotebookFailed(f"{stem} was not executed yet: name it too, or none to execute all")
            entries.append(render(executed, page, provenance=provenance))
        except NotebookFailed as error:
            page.unlink(missing_ok=True)
            failures.append(str(error))
            entries.append(ReportEntry(page=page.name, title=_title(known[stem]), finished=False))
    write_index(report_dir, entries, provenance=provenance)
    if failures:
        raise NotebookFailed("\n\n".join(failures))
    return entries


def _title(path: Path) -> str:
    return title_of(nbformat.read(path, as_version=4), path.stem)


@contextmanager
def _own_kernel() -> Iterator[str]:
    """A kernel that is this very interpreter, whatever kernels of the same name the machine has installed."""
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="langedit-kernel-") as folder:
        spec = Path(folder, "kernels", KERNEL)
        spec.mkdir(parents=True)
        # quiet: it warns of plain text over TCP, which stays on the loopback device of this machine
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
        content = {"argv": argv, "display_name": "LangEdit", "language": "python"}
        (spec / "kernel.json").write_text(json.dumps(content))
        os.environ["JUPYTER_PATH"] = os.pathsep.join([folder, *([before] if before else [])])
        try:
            yield KERNEL
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before


class _Tee:
    """A file that writes to several, so that progress is seen and kept."""

    def __init__(self, *files: TextIO | None):
        self.files = [file for file in files if file is not None]

    def write(self, text: str) -> None:
        for file in self.files:
            file.write(text)

    def flush(self) -> None:
        for file in self.files:
            file.flush()


def _plain(text: str) -> str:
    """`text` without terminal colours."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
