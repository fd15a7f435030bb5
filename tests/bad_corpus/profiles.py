"""Profiles, which are YAML, and the parameters of notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from bad_corpus import Case, Told, World
from langedit_core.checking import check_file
from langedit_core.editors import EditSettings, settings_for
from langedit_core.notebooks import check_parameters
from langedit_core.profiles import load_profile
from langedit_core.yaml_files import LARGEST

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
PROFILE = """name: mine
description: d
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


def _with(old: str, new: str) -> str:
    assert PROFILE.count(old) == 1
    return PROFILE.replace(old, new)


def _grid(text: str) -> str:
    return f"{PROFILE}    {text}\n"


def _bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 30)]
    return "\n".join(lines) + "\n"


# content -> (line that is named, None for any, and what is said about it)
TEXTS: dict[str, tuple[str | bytes, int | None, str]] = {
    "an unknown field": (PROFILE + "speed: 3\n", 12, "speed: Extra inputs are not permitted"),
    "an unknown field of a grid": (_grid("bach: 2"), 12, "bach: Extra inputs"),
    "a missing field": (_with("name: mine\n", ""), 1, "name: Field required"),
    "no model": (_with("model: gemma-3-270m\n", ""), None, "models: Field required"),
    "model and models": (PROFILE + "models: [a]\n", None, "either `model` or `models`, not both"),
    "no notebook": (_with("notebooks:\n  00_quickstart: {}", "notebooks: {}"), 4, "at least 1 item"),
    "a word for a number": (_with("batch: 2", "batch: two"), 11, "valid integer"),
    "a number as text": (_with("batch: 2", "batch: '2'"), 11, "valid integer"),
    "half a fact": (_with("batch: 2", "batch: 2.5"), 11, "valid integer"),
    "true as a number": (_with("batch: 2", "batch: true"), 11, "valid integer"),
    "NaN as a number": (_with("batch: 2", "batch: .nan"), 11, "valid integer"),
    "a negative number": (_with("batch: 2", "batch: -2"), 7, "batch: .*greater than or equal to 1"),
    "no facts at all": (_with("batch: 2", "batch: 0"), 7, "batch: .*greater than or equal to 1"),
    "negative rounds": (_grid("rounds: -1"), 7, "rounds: .*greater than or equal to 1"),
    "negative prefixes": (_grid("prefixes: -1"), 7, "prefixes: .*greater than or equal to 0"),
    "a seed as text": (_grid("seeds: ['1']"), 12, "valid integer"),
    "a word for true": (_grid("parallel: perhaps"), 12, "valid boolean"),
    "a mapping for a list": (_with("[atlas]", "{a: b}"), 8, "valid tuple"),
    "a text for a list": (_with("[atlas]", "atlas"), 8, "valid tuple"),
    "an unknown method": (_with("langedit]", "langdit]"), 7, "unknown method 'langdit'; known: langedit"),
    "a method as a path": (_with("langedit]", "../langedit]"), 7, r"unknown method '\.\./langedit'"),
    "an unknown data set": (_with("atlas", "altas"), 7, "unknown data set 'altas'; known: atlas"),
    "a data set as a path": (_with("[atlas]", "[../../etc/passwd]"), 7, r"unknown data set '\.\./\.\./etc/passwd'"),
    "an unknown model": (_with("gemma-3-270m", "gemma-3-27b"), 7, "pass layers="),
    "a name that leaves the folder": (_with("mine", "../../evil"), 1, "name: String should match pattern"),
    "an absolute name": (_with("mine", "/tmp/evil"), 1, "name: String should match pattern"),
    "a name of dots": (_with("mine", ".."), 1, "name: String should match pattern"),
    "a name with an escape": (_with("mine", '"a\\e[31m"'), 1, "name: String should match pattern"),
    "an endless name": (_with("mine", "x" * 500), 1, "name: String should have at most 60"),
    "settings that do not fit": (_grid("changes: [{ridge: -1}]"), 7, "greater than 0"),
    "settings of a wrong kind": (_grid("changes: [3]"), 12, "valid dictionary"),
    "an unknown setting": (_grid("changes: [{power: 3}]"), 7, "unknown setting 'power'; known: "),
    "a ridge that is NaN": (_grid("changes: [{ridge: .nan}]"), 7, "ridge: .*finite number|greater than 0"),
    "a ridge that is infinite": (_grid("changes: [{ridge: .inf}]"), 7, "ridge: .*finite number"),
    "a threshold that is NaN": (
        _grid("changes: [{threshold: {kind: absolute, value: .nan}}]"), 7, "threshold.value: .*finite|greater than"),
    "a threshold without end": (
        _grid("changes: [{threshold: {kind: absolute, value: .inf}}]"), 7, "threshold.value: .*finite"),
    "a share above one": (_grid("changes: [{threshold: {kind: fraction, value: 2}}]"), 7, "is a share; expected"),
    "an unknown threshold": (_grid("changes: [{threshold: {kind: magic, value: 1}}]"), 7, "threshold.kind"),
    "layers given twice": (
        _grid("changes: [{layers: [3, 3]}]"), 7, r"layers \[3, 3\] cannot be edited; give each once"),
    "layers in no order": (_grid("changes: [{layers: [5, 3]}]"), 7, "in ascending order"),
    "a negative layer": (_grid("changes: [{layers: [-1, 3]}]"), 7, "from 0 on"),
    "a layer as text": (_grid("changes: [{layers: ['3']}]"), 7, "layers.0: .*valid integer"),
    "no layer": (_grid("changes: [{layers: []}]"), 7, "layers: .*at least 1 item"),
    "an unknown notebook": (_with("00_quick", "00_quik"), 5, "unknown notebook '00_quikstart'"),
    "a notebook as a path": (_with("00_quickstart", "../00_quickstart"), 5, r"unknown notebook '\.\./00_quickstart'"),
    "an unknown parameter": (_with("{}", "{SPEED: 3}"), 5, "unknown parameter of 00_quickstart.ipynb"),
    "a parameter that is a list": (_with("{}", "{PROFILE: [a]}"), 5, "notebooks.00_quickstart.PROFILE"),
    # YAML itself
    "broken YAML": (_with("[atlas]", "[atlas"), 9, "is no YAML"),
    "a tab": (_with("  main:", "\tmain:"), 7, "is no YAML"),
    "a key given twice": (PROFILE + "name: other\n", 12, "the key 'name' is in line 1 already"),
    "a key of a grid given twice": (_grid("batch: 3"), 12, "the key 'batch' is in line 11 already"),
    "a list as a key": (PROFILE + "? [a, b]\n: c\n", 12, "list or mapping as a key"),
    "a number as a key": (PROFILE + "3: c\n", None, "3: (Extra inputs|Keys should be strings)"),
    "a tag that runs a command": ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "could not determine"),
    "a tag that makes an object": ("name: !!python/object/new:langedit_core.Fact {}\n", 1, "could not determine"),
    "a tag that names a module": ("name: !!python/name:os.system\n", 1, "could not determine"),
    "a tag of its own": ("name: !evil x\n", 1, "could not determine"),
    "an impossible date": ("name: 2026-99-99\n", None, "cannot be read|name: "),
    "a list": ("- 1\n- 2\n", None, "holds no mapping"),
    "nothing": ("", None, "holds no mapping"),
    "comments only": ("# nothing\n", None, "holds no mapping"),
    "a text": ("just words\n", None, "holds no mapping"),
    "two documents": (PROFILE + "---\nname: x\n", 12, "is no YAML: but found another document"),
    "no UTF-8": (PROFILE.encode() + b"# \xff\n", None, "is no UTF-8"),
    "NUL": (PROFILE.encode() + b"\x00", None, "is no YAML"),
    "HTML": ("<!DOCTYPE html>\n<html><body>Not found</body></html>\n", None, "is no YAML|holds no mapping"),
    "deep nesting": ("a: " + "[" * 2000, 1, "is nested more than 50 levels deep"),
    "an unknown alias": ("a: *b\n", 1, "is no YAML: found undefined alias"),
    "a list that holds itself": ("a: &a [*a]\n", None, "more than 100,000 entries"),
    "a bomb of aliases": (_bomb(), None, "more than 100,000 entries"),
    "a merge of itself": ("a: &a\n  <<: *a\n", None, "more than 100,000 entries"),
    "a huge file": ("a: '" + "x" * LARGEST + "'\n", None, "is larger than 1,000,000 bytes"),
}  # fmt: skip


def _checked(content: str | bytes, line: int | None):
    """`langedit validate` names the line; `langedit run` refuses the file too, unless only its cells are wrong."""

    def act(world: World) -> object:
        path = world.write("own.yaml", content)
        problems = check_file(path, NOTEBOOKS).problems
        if not problems:
            return "good"
        assert line is None or line in [problem.line for problem in problems], problems
        try:
            profile = load_profile(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error), error
        else:
            assert any(problem.message.startswith("grids.") or "notebook" in problem.message or "parameter" in
                       problem.message for problem in problems), profile  # fmt: skip
        raise Told("; ".join(map(str, problems))[:1400])

    return act


CASES = [
    Case(kind="profiles", name=name, act=_checked(content, line), says=says)
    for name, (content, line, says) in TEXTS.items()
]


def _run(*arguments):
    return lambda world: world.command("run", "--dry-run", "--output-path", world.folder, *arguments)


def _run_file(content: str):
    return lambda world: world.command("run", "--dry-run", "--profile", world.write("own.yaml", content))


COMMANDS = {
    "a profile nobody has": (_run("--profile", "quik"), "error: unknown profile 'quik'; known: quick"),
    "a profile as a path": (_run("--profile", "../../etc/passwd"), r"unknown profile '\.\./\.\./etc/passwd'"),
    "a profile that is another file": (_run("--profile", "../hparams"), "hparams.yaml: .*Field required"),
    "a file that is not there": (_run("--profile", "none.yaml"), "error: there is no file none.yaml"),
    "a file that is no YAML": (_run_file("a: ["), "own.yaml:2: is no YAML|own.yaml:1: is no YAML"),
    "a file with a typo": (_run_file(PROFILE + "girds: 1\n"), "own.yaml: girds: Extra inputs"),
    "a device that is none": (
        lambda world: world.command("inspect", "atlas-lm", "--device", "gpu"), "device 'gpu' is unknown; expected"),
    "negative hours": (_run("--profile", "smoke", "--hours", "-1"), "--hours"),
    "a processor of no speed": (_run("--profile", "smoke", "--tflops", "-1"), "--tflops"),
    "hours in words": (_run("--profile", "smoke", "--hours", "two"), "--hours.*valid number|'two' is not"),
}  # fmt: skip
CASES += [Case(kind="profiles", name=name, act=act, says=says) for name, (act, says) in COMMANDS.items()]

SETTINGS = {
    "a clamp that is NaN": (lambda: settings_for("langedit", layers=(1,), values=dict(clamp=float("nan"))), "clamp"),
    "a penalty that is infinite": (
        lambda: settings_for("langedit", layers=(1,), values=dict(penalty=float("inf"))), "penalty"),
    "a share of nothing": (lambda: settings_for("rect", layers=(1,), keep_share=float("nan")), "keep_share"),
    "a step that is infinite": (lambda: settings_for("ft", layers=(1,), finetune=dict(rate=float("inf"))), "rate"),
    "a layer that is true": (lambda: EditSettings(layers=(True,), space="static"), "layers.0"),
}  # fmt: skip


def _setting(make):
    def act(world: World) -> object:
        try:
            return make()
        except ValueError as error:  # pydantic's own: these are calls of a program, which sees the exception
            raise Told(" ".join(str(error).split())[:1400]) from error

    return act


CASES += [Case(kind="profiles", name=name, act=_setting(make), says=says) for name, (make, says) in SETTINGS.items()]

# --- parameters of notebooks ------------------------------------------------------------------------------------------

DEFAULTS = "edits = 10\nrate = 0.5\nmodel = 'tiny'\nstrict = True\nlimit = None"


def _tagged(source: str, tag: str = "parameters"):
    return new_code_cell(source, metadata={"tags": [tag]})


def _cells(*cells, **parameters):
    def act(world: World) -> object:
        path = world.folder / "00_tiny.ipynb"
        nbformat.write(new_notebook(cells=list(cells)), path)
        return check_parameters(path, parameters)

    return act


def _given(**parameters):
    return _cells(_tagged(DEFAULTS), **parameters)


def _raw(content: object):
    return lambda world: check_parameters(world.write("00_tiny.ipynb", content), {})


PARAMETERS = {
    "an unknown name": (_given(edit=3), "unknown parameter of 00_tiny.ipynb 'edit'; known: edits"),
    "a name with a line break": (_given(**{"edits\nimport os": 3}), r"unknown parameter .*'edits\\nimport os'"),
    "a name in capitals": (_given(EDITS=3), "unknown parameter of 00_tiny.ipynb 'EDITS'; known: edits"),
    "a number as text": (_given(edits="10"), "parameter edits .* got '10' of type str; its default 10 asks for int"),
    "half a number": (_given(edits=1.5), "asks for int"),
    "true for a number": (_given(edits=True), "got True of type bool"),
    "a number for true": (_given(strict=1), "asks for bool"),
    "a number for a text": (_given(model=3), "asks for str"),
    "nothing for a text": (_given(model=None), "got None of type NoneType"),
    "a list": (_given(limit=[1]), r"got \[1\] of type list"),
    "a mapping": (_given(limit={"a": 1}), "of type dict"),
    "NaN": (_given(rate=float("nan")), "parameter rate of 00_tiny.ipynb got nan; expected a finite number"),
    "infinity": (_given(rate=float("inf")), "parameter rate .* got inf; expected a finite number"),
    "NaN where anything goes": (_given(limit=float("nan")), "parameter limit .* got nan"),
    "bytes": (_given(limit=b"x"), "of type bytes"),
    "no cell of parameters": (_cells(new_code_cell("a = 1")), "has 0 cells tagged 'parameters'"),
    "two cells of parameters": (_cells(_tagged("a = 1"), _tagged("b = 1")), "has 2 cells tagged 'parameters'"),
    "parameters in prose": (
        _cells(new_markdown_cell("a = 1", metadata={"tags": ["parameters"]})), "exactly one code cell must be"),
    "a call among the defaults": (_cells(_tagged("a = open('x')")), "may only give scalars .* line 1"),
    "an import among the defaults": (_cells(_tagged("a = 1\nimport os")), "line 2 is `import os`"),
    "a default given twice": (_cells(_tagged("a = 1\na = 2")), "line 2 is `a = 2`"),
    "defaults that are no Python": (_cells(_tagged("a = = 1")), "00_tiny.ipynb: the parameters cell is no Python"),
    "a magic among the defaults": (_cells(_tagged("%load_ext evil")), "the parameters cell is no Python"),
    "NUL among the defaults": (_cells(_tagged("a = 1\x00")), "the parameters cell is no Python"),
    "defaults nested without end": (_cells(_tagged("a = " + "-" * 100_000 + "1")), "no Python|may only give scalars"),
    "a notebook that is cut": (_raw('{"cells": ['), "00_tiny.ipynb is no whole notebook"),
    "a notebook that is a list": (_raw([]), "is no whole notebook"),
    "a notebook that is empty": (_raw(""), "is no whole notebook"),
    "a notebook that is HTML": (_raw("<html></html>"), "is no whole notebook"),
    "a notebook without cells": (_raw({"nbformat": 4, "nbformat_minor": 5, "metadata": {}}), "is no whole notebook"),
    "a notebook whose cells are numbers": (
        _raw({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [3]}), "is no whole notebook"),
    "a notebook of a later format": (
        _raw({"nbformat": 99, "nbformat_minor": 0, "metadata": {}, "cells": []}), "is no whole notebook"),
    "a notebook nested without end": (_raw('{"cells": ' + "[" * 100_000), "is no whole notebook"),
}  # fmt: skip
CASES += [Case(kind="parameters", name=name, act=act, says=says) for name, (act, says) in PARAMETERS.items()]
