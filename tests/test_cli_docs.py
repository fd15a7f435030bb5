"""docs/cli.md is what scripts/cli_docs.py makes of the command line that is here; run it again where this fails."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import typer

from langedit_core.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")
AGAIN = "run python scripts/cli_docs.py"


def every_command():
    def walk(command, path):
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*path, name])

    return list(walk(typer.main.get_command(app), ["langedit"]))


def help_of(path: list[str]) -> str:
    start = f"$ {' '.join(path)} --help\n"
    assert PAGE.count(start) == 1, f"{start.strip()} is not in docs/cli.md; {AGAIN}"
    return PAGE.split(start)[1].split("\n```")[0]


@pytest.mark.parametrize(("path", "command"), every_command(), ids=lambda x: " ".join(x) if isinstance(x, list) else "")
def test_every_command_and_option_is_in_the_page(path, command):
    shown = help_of(path)
    for parameter in command.params:
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name.startswith("-"):
                assert re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", shown), f"{name} of {path}; {AGAIN}"
    for name in getattr(command, "commands", {}):
        assert re.search(rf"│ {name} ", shown), f"{name} of {path}; {AGAIN}"


@pytest.mark.parametrize("path", [path for path, command in every_command() if not hasattr(command, "commands")])
def test_every_command_is_run_in_the_session(path):
    session = PAGE.split("\n## Help\n")[0]
    assert re.search(rf"^\$ {' '.join(path)} (?!--help)", session, re.MULTILINE), f"{' '.join(path)}; {AGAIN}"


def test_the_page_has_no_option_that_is_gone():
    known = {name for _, command in every_command() for parameter in command.params for name in parameter.opts}
    known |= {name for _, command in every_command() for p in command.params for name in p.secondary_opts} | {"--help"}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", PAGE)) <= known


def test_the_page_says_nothing_of_the_machine_it_was_made_on():
    assert not re.search(r"(?<![\w.:/…-])/(?:tmp|home|root|usr|work|opt|var)\b|Traceback|Warning|\d+%\|", PAGE)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("cli_docs", ROOT / "scripts" / "cli_docs.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patched:
        for name in ("TERMINAL_WIDTH", "COLUMNS", "NO_COLOR", "TERM"):
            patched.setenv(name, "1")  # put back afterwards, since the script sets them for good
        patched.setattr("sys.path", ["", *__import__("sys").path])
        patched.setitem(__import__("sys").modules, "cli_docs", module)
        spec.loader.exec_module(module)
        yield module


def test_output_is_shown_without_progress_times_and_folders(script, tmp_path):
    raw = (
        f"\rLoading:   0%|     | 0/5 [00:00<?, ?it/s]\rLoading: 100%|####| 5/5 [00:00<00:00, 9.1it/s] data lang\n"
        f"\r3/5 [00:01<00:02, 1.5fact/s]\nmade {tmp_path}/x in 12.5 s, 3 min\n\n{script.ROOT}/docs/y\n\n"
    )
    assert script.clean(raw, tmp_path) == ["data lang", "made x in … s, … min", "", "docs/y"]


def test_a_command_that_ends_otherwise_stops_the_script(script, tmp_path):
    with pytest.raises(SystemExit, match="ended with 3, not 0"):
        script.run(script.Step(command="echo no; exit 3"), tmp_path)
    assert script.run(script.Step(command="echo no; exit 3", status=3), tmp_path) == ["no", "[exit status 3]"]
