"""What the repository promises as a whole: thin notebooks, one place for versions, no weights or pickles."""

import ast
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from langedit_core.notebooks import check_notebook, find_notebooks
from langedit_core.profiles import load_profile, reports_folder
from langedit_core.results import has_record, record_path
from langedit_core.storage import read_sealed

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(PYPROJECT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
NOTEBOOKS = find_notebooks(ROOT / "notebooks")
MODULES = sorted((ROOT / "langedit_core").rglob("*.py"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS.values(), ids=NOTEBOOKS.keys())


def names(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def tracked():
    """Files that git knows or would add; outside a clone there is nothing to ask."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in found if (ROOT / name).is_file()]


def test_there_are_notebooks_and_all_of_them_are_numbered():
    assert NOTEBOOKS
    assert sorted(path.name for path in NOTEBOOKS.values()) == sorted(
        path.name for path in (ROOT / "notebooks").glob("*.ipynb")
    )


@each_notebook
def test_a_notebook_writes_into_the_folder_of_its_profile_unless_told_another(path):
    defaults = check_notebook(path)
    second = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][1]
    scope = dict(PROFILE="standard", REPORTS=defaults["REPORTS"], MODEL=defaults["MODEL"])
    exec(second.source, scope)
    assert scope["REPORTS"] == "../reports/standard"
    assert reports_folder("elsewhere", "standard") == "elsewhere"
    assert reports_folder("", "paper", "EleutherAI/gpt-j-6b") == "../reports/paper-gpt-j-6b"


@each_notebook
def test_notebook_has_one_parameters_cell_of_scalars(path):
    assert check_notebook(path)


@each_notebook
def test_notebook_is_stored_without_outputs_and_with_the_kernel_of_any_environment(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None
    assert notebook.metadata.kernelspec.name == "python3"


@each_notebook
def test_notebook_defines_nothing_and_stays_thin(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code":
            continue
        tree = ast.parse(cell.source)
        for node in ast.walk(tree):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef), cell.source
        assert len(cell.source.splitlines()) <= 25, f"move this into langedit_core:\n{cell.source}"


@each_notebook
def test_prose_has_no_tex_because_pages_without_network_cannot_set_it(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"`[^`]*`", "", cell.source)
            assert not re.search(r"\$[^$\n]+\$|\\\(|\\\[|\\begin\{", prose), f"write it in Unicode: {prose}"


def test_no_pickle_and_no_weights_are_tracked():
    forbidden = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".gguf", ".joblib", ".dill"}
    for path in tracked():
        assert path.suffix not in forbidden, path
        assert path.stat().st_size < 5_000_000, path


def test_torch_is_pinned_in_pyproject():
    assert [text for text in EXTRAS["pinned"] if re.fullmatch(r"torch==\d+\.\d+\.\d+", text)]


def test_every_declared_dependency_is_pinned_within_its_range():
    pinned = {canonicalize_name(Requirement(text).name): Requirement(text) for text in EXTRAS["pinned"]}
    for text in [*PROJECT["dependencies"], *EXTRAS["models"], *EXTRAS["test"]]:
        wanted = Requirement(text)
        (exact,) = pinned[canonicalize_name(wanted.name)].specifier
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), f"pinned {exact} is outside of {wanted}"


def test_everything_imported_by_the_package_is_declared():
    known = packages_distributions()
    declared = names([*PROJECT["dependencies"], *EXTRAS["models"], *EXTRAS["xtreme"], *EXTRAS["slurm"], *EXTRAS["lab"]])
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"langedit_core"}:
                owners = {canonicalize_name(name) for name in known.get(module, [module])}
                assert owners & declared, f"{path.name} imports {module}, pyproject.toml does not declare {owners}"


def test_environment_yml_states_no_version_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    (python,) = re.findall(r"^# Exactly what .* were made with \(Python (\d\.\d+)\)", PYPROJECT, re.MULTILINE)
    assert plain == [f"python={python}", "pip"], "`pinned` is for one version of Python"
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python)
    torch, install = pip  # what make installs first is first here
    assert [torch] == [text for text in EXTRAS["pinned"] if Requirement(text).name == "torch"]
    used = re.fullmatch(r"-e \.\[([a-z,]+)\]", install)
    assert used and "pinned" in used.group(1) and set(used.group(1).split(",")) <= set(EXTRAS)


def test_new_versions_are_written_into_environment_yml_too():
    spec = importlib.util.spec_from_file_location("pin", ROOT / "scripts" / "pin.py")
    spec.loader.exec_module(pin := importlib.util.module_from_spec(spec))
    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(pin.environment(text, "3.14", "9.8.7"))["dependencies"]
    assert environment[0] == "python=3.14" and environment[-1]["pip"][0] == "torch==9.8.7"
    before = yaml.safe_load(text)["dependencies"]
    assert environment[1:-1] == before[1:-1] and environment[-1]["pip"][1:] == before[-1]["pip"][1:]


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("help", "env", "test", "smoke", "study", "report", "lab", "bench", "clean"):
        assert re.search(rf"^  {target} +\S", shown, re.MULTILINE), target


def test_make_installs_torch_alone_before_the_rest():
    shown = subprocess.run(
        ["make", "-n", "env", "VENV=/nowhere/env"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    installs = [line for line in shown.splitlines() if "pip install" in line]
    assert re.search(r'"torch==[\d.]+"$', installs[0])
    assert installs[1].endswith('-e ".[models,test,pinned]"')


def test_readme_shows_the_committed_tables():
    script = ROOT / "scripts" / "readme.py"
    checked = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_readme_script_stops_where_the_tables_say_something_else(tmp_path):
    for name in ("README.md", "scripts"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    for tables in (ROOT / "reports").glob("*/tables"):
        shutil.copytree(tables, tmp_path / tables.relative_to(ROOT))
    path = tmp_path / "reports" / "standard" / "tables" / "comparisons_mzsre.csv"
    text = path.read_text()
    path.write_text(text.replace("worse", "better"))
    run = [sys.executable, str(tmp_path / "scripts" / "readme.py")]
    stopped = subprocess.run(run, capture_output=True, text=True)
    assert stopped.returncode == 1 and "LangEdit keeps fewer edits than AlphaEdit" in stopped.stderr
    path.write_text(text.replace("efficacy_tf,langedit,alphaedit", "efficacy_tf,langedit,nobody"))
    stopped = subprocess.run(run, capture_output=True, text=True)
    assert "has 0 rows with" in stopped.stderr and "comparisons_mzsre.csv" in stopped.stderr
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_every_committed_record_is_whole_and_belongs_to_a_cell_of_its_profile():
    records = sorted((ROOT / "reports").glob("*/records/*.json.xz"))
    for path in records:
        profile = load_profile(path.parents[1].name)
        assert profile.partial
        known = {record_path(cell, path.parent): cell for group in profile.grids for cell in profile.cells(group)}
        assert path in known, f"{path.name} belongs to no cell of profile {profile.name}; compute it again"
        assert has_record(known[path], path.parent)
    traces = sorted((ROOT / "reports").glob("*/records/tracing/*"))
    assert all(read_sealed(path)["columns"] for path in traces)
    assert sum(path.stat().st_size for path in records + traces) < 20_000_000
