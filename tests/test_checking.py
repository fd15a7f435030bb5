"""`langedit validate`: good files are called good, bad ones get their lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_patch import recorded
from typer.testing import CliRunner

from langedit_core.checking import check_file
from langedit_core.cli import app
from langedit_core.errors import RefusedInput
from langedit_core.profiles import FOLDER, load_profile

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PROFILE = """\
name: mine
description: a profile of my own
model: gemma-3-270m
notebooks:
  00_quickstart: {}
grids:
  main:
    data: [atlas]
    methods: [memit, langedit]
    langs: [en, zh]
    batch: 2
"""


def told(tmp_path, content: str | bytes, name: str = "file.yaml") -> list[tuple[int | None, str]]:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(problem.line, problem.message) for problem in check_file(path, NOTEBOOKS).problems]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_packages_own_profiles_are_good(path):
    assert check_file(path, NOTEBOOKS).problems == []


def test_good_files_say_what_they_hold(tmp_path):
    (tmp_path / "p.yml").write_text(PROFILE)
    assert check_file(tmp_path / "p.yml", NOTEBOOKS).holds == "profile 'mine', 2 cells, 1 notebooks"
    recorded()[0].save(tmp_path / "p.safetensors")
    assert check_file(tmp_path / "p.safetensors").holds == "patch of tiny-llama, 3 batches, 6 facts"
    line = '{"lang": "de", "subject": "Peru", "prompt": "Die Hauptstadt von {} ist", "target": "Cusco"}'
    (tmp_path / "f.jsonl").write_text(line)
    assert check_file(tmp_path / "f.jsonl").holds == "1 facts in de"


def test_several_mistakes_are_told_together_in_order(tmp_path):
    content = PROFILE.replace("batch: 2", "batch: two").replace("description", "descripton")
    assert [line for line, _ in told(tmp_path, content)] == [1, 2, 11]


@pytest.mark.parametrize(
    "old, new, line, message",
    [
        ("langs: [en, zh]", "langs: [english]", 10, "unknown language 'english'; known: en"),
        ("langs: [en, zh]", "langs: []", 10, "grids.main.0.langs: is empty, so there would be no cell"),
        ("methods: [memit, langedit]", "methods: [memit, memit]", 9, "grids.main.0.methods: names 'memit' twice"),
        ("batch: 2", "seeds: [0, 0]", 11, "names 0 twice"),
        ("batch: 2", "split: test", 11, "unknown split 'test'; known: "),
        ("batch: 2", "xtreme_langs: [cs]", 11, "unknown language of XTREME prompts 'cs'"),
        ("name: mine", "name: standard", 1, "'standard' is the name of a shipped profile, and of its reports"),
    ],
)
def test_a_grid_that_could_not_be_run_is_no_good_profile(tmp_path, old, new, line, message):
    ((found, said),) = told(tmp_path, PROFILE.replace(old, new))
    assert found == line and message in said and "Value error" not in said


def test_a_profile_of_ones_own_does_not_write_over_shipped_reports(tmp_path):
    copied = tmp_path / "copied.yaml"
    copied.write_bytes((FOLDER / "smoke.yaml").read_bytes())
    with pytest.raises(RefusedInput, match="'smoke' is the name of a shipped profile"):
        load_profile(copied)
    assert load_profile(FOLDER / "smoke.yaml").name == "smoke"


def test_patches_and_facts_that_are_wrong_say_so(tmp_path):
    assert "no whole safetensors file" in told(tmp_path, b"xx", "p.safetensors")[0][1]
    assert told(tmp_path, "{}\nx\n", "f.jsonl")[1] == (2, "is no JSON (Expecting value at column 1)")


def test_other_files_are_refused(tmp_path):
    assert "unknown kind of file '.txt'; known: " in told(tmp_path, "x", "f.txt")[0][1]
    assert check_file(tmp_path / "none.jsonl").problems[0].message == "does not exist, or is no file"
    assert check_file(tmp_path).problems


def test_a_notebook_whose_cells_are_in_no_grid_is_told_before_anything_is_computed(tmp_path):
    content = PROFILE.replace("  00_quickstart: {}\n", "  00_quickstart: {}\n  03_null_spaces: {}\n")
    ((line, said),) = told(tmp_path, content, "own.yaml")
    assert line == 6 and said.startswith("03_null_spaces reads cells 'null_spaces'; the profile's grids are: main.")
    assert told(tmp_path, content.replace("03_null_spaces", "02_main_runs")) == []
    ran = CliRunner().invoke(app, ["run", "--profile", str(tmp_path / "own.yaml"), "--output-path", str(tmp_path)])
    assert ran.exit_code and "03_null_spaces reads cells 'null_spaces'" in str(ran.exception or ran.output)
    assert not (tmp_path / "results").exists()
