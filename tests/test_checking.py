"""`langedit validate`: good files are called good, bad ones get their lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_patch import recorded

from langedit_core.checking import check_file
from langedit_core.profiles import FOLDER

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


CASES = {
    "an unknown field": (PROFILE + "speed: 3\n", 12, "speed: Extra inputs are not permitted"),
    "an unknown field of a grid": (PROFILE + "    bach: 2\n", 12, "bach: Extra inputs"),
    "a missing field": (PROFILE.replace("name: mine\n", ""), 1, "name: Field required"),
    "a word for a number": (PROFILE.replace("batch: 2", "batch: two"), 11, "valid integer"),
    "an unknown method": (PROFILE.replace("langedit]", "langdit]"), 7, "unknown method 'langdit'; known: langedit"),
    "an unknown data set": (PROFILE.replace("atlas", "altas"), 7, "unknown data set 'altas'; known: atlas"),
    "an unknown model": (PROFILE.replace("gemma-3-270m", "gemma-3-27b"), 7, "pass layers="),
    "settings that do not fit": (PROFILE + "    changes: [{ridge: -1}]\n", 7, "greater than 0"),
    "settings of a wrong kind": (PROFILE + "    changes: [3]\n", 12, "valid dictionary"),
    "an unknown notebook": (PROFILE.replace("00_quick", "00_quik"), 5, "unknown notebook '00_quikstart'"),
    "an unknown parameter": (PROFILE.replace("{}", "{SPEED: 3}"), 5, "unknown parameter of 00_quickstart.ipynb"),
    "broken YAML": (PROFILE.replace("[atlas]", "[atlas"), 9, "is no YAML"),
    "a tag that would run code": ("a: 1\nb: !!python/object/apply:os.system [ls]\n", None, "could not determine"),
    "a list": ("- 1\n- 2\n", None, "holds no mapping"),
    "nothing": ("", None, "holds no mapping"),
    "no UTF-8": (PROFILE.encode() + b"# \xff\n", None, "is no UTF-8"),
    "deep nesting": ("a: " + "[" * 2000, 1, "is nested more than"),
    "a list that holds itself": ("a: &a [*a]\n", None, "more than 100,000 entries"),
    "a bomb of aliases": (
        "a0: &a0 [x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 30)),
        None, "more than 100,000 entries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_profile_is_said_with_its_line(tmp_path, case):
    content, line, message = CASES[case]
    found = told(tmp_path, content)
    assert any(message in text and (line is None or at == line) for at, text in found), found
    assert all(len(text) < 1000 for _, text in found)


def test_several_mistakes_are_told_together_in_order(tmp_path):
    content = PROFILE.replace("batch: 2", "batch: two").replace("description", "descripton")
    assert [line for line, _ in told(tmp_path, content)] == [1, 2, 11]


def test_patches_and_facts_that_are_wrong_say_so(tmp_path):
    assert "no whole safetensors file" in told(tmp_path, b"xx", "p.safetensors")[0][1]
    assert told(tmp_path, "{}\nx\n", "f.jsonl")[1] == (2, "is no JSON (Expecting value at column 1)")


def test_other_files_are_refused(tmp_path):
    assert "unknown kind of file '.txt'; known: " in told(tmp_path, "x", "f.txt")[0][1]
    assert check_file(tmp_path / "none.jsonl").problems[0].message == "does not exist, or is no file"
    assert check_file(tmp_path).problems
