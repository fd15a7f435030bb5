"""Runs every command of `langedit` as a new user would, on the embedded model, and writes what came out to docs/cli.md.

    python scripts/cli_docs.py

Everything happens in a temporary folder, without a network. Progress bars are left out, times and folders of the
machine are replaced; a command that ends otherwise than it should stops the script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = "116"
os.environ |= {
    "TERMINAL_WIDTH": WIDTH,
    "COLUMNS": WIDTH,
    "NO_COLOR": "1",
    "TERM": "dumb",
}  # read when Typer is imported
sys.path.insert(0, str(ROOT))  # the code beside this script, whatever is installed

import typer  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from langedit_core.atlas import load_atlas  # noqa: E402
from langedit_core.cli import app  # noqa: E402

PROFILE = """\
name: tiny
description: two facts in two languages, as small as a study can be
model: atlas-lm
notebooks:
  00_quickstart: {MODEL: atlas-lm}
grids:
  main: {data: [atlas], methods: [langedit], langs: [en, zh], batch: 1, prefixes: 1, corpus_limit: 60}
"""
PROGRESS = re.compile(r"\d+%\||\d+/\d+ \[\d+:\d+<")  # a bar; or a count without one


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command and what is said before it.

    Attributes:
        command: As a person would type it; what does not begin with `langedit` is a shell command.
        prose: Above it; empty goes on in the same block.
        status: Exit status it must have.
    """

    command: str
    prose: str = ""
    status: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    title: str
    steps: list[Step] = field(default_factory=list)


SESSION = [
    Part(
        title="Looking at a model",
        steps=[Step(command="langedit inspect atlas-lm", prose="`atlas-lm` is embedded; nothing is downloaded.")],
    ),
    Part(
        title="Tracing",
        steps=[
            Step(
                command="langedit trace --model atlas-lm --langs 'en zh' --limit 3 --samples 2 --output-path traced",
                prose="Which layers hold what the model knows? Three facts per language are too few to believe it, and "
                "quick; the same command with a higher limit goes on from these.",
            ),
            Step(command="cat traced/peaks.csv"),
        ],
    ),
    Part(
        title="Editing",
        steps=[
            Step(command="head -n 1 facts.jsonl",
                 prose="Facts are JSON lines; four fields are needed, questions that test the edit may follow. "
                 "`typo.jsonl` has a mistake in each of its two lines."),
            Step(command="langedit validate facts.jsonl typo.jsonl", status=1),
            Step(command="langedit edit --model atlas-lm --facts facts.jsonl --batch-size 2 --output-path edits",
                 prose="Out comes a patch, a file of low-rank factors, and a table of what it did."),
            Step(command="langedit validate edits/patch.safetensors"),
            Step(command="langedit evaluate --model atlas-lm --facts facts.jsonl --patch edits/patch.safetensors "
                 "--output-path asked",
                 prose="Any model can be asked about facts, edited here or elsewhere; with a patch before and after, "
                 "and for drift on neutral prose. `--xtreme 50` adds XTREME."),
            Step(command="head -n 3 asked/said.csv"),
        ],
    ),
    Part(
        title="Patches",
        steps=[
            Step(command="langedit patch info edits/patch.safetensors"),
            Step(command="langedit patch apply edits/patch.safetensors --output-path edited --exact"),
            Step(command="langedit patch remove edits/patch.safetensors --last 1 --edited edited --output-path shorter",
                 prose="The last batch is taken out of the edited model, or, without `--edited`, out of the patch."),
            Step(command="langedit patch remove edits/patch.safetensors --last 1 --output-path shorter.safetensors"),
            Step(command="langedit patch merge edits/patch.safetensors --output-path merged.safetensors"),
            Step(command="langedit patch export edits/patch.safetensors --output-path adapter"),
        ],
    ),
    Part(
        title="Data",
        steps=[
            Step(command="langedit data fetch bzsre pawsx --langs en --output-path fetched", status=1,
                 prose="Here the network is off, so the command says what to put where."),
            Step(command="langedit data check data", status=1,
                 prose="A file that was put there by hand, and whose second line is cut:"),
        ],
    ),
    Part(
        title="Studies",
        steps=[
            Step(command="cat tiny.yaml", prose="A profile says which cells are computed and which notebooks shown."),
            Step(command="langedit run --profile tiny.yaml --output-path here --dry-run --tflops 1"),
            Step(command="langedit status --profile tiny.yaml --output-path here"),
            Step(command="langedit grid --profile tiny.yaml --output-path here"),
            Step(command="langedit status --profile tiny.yaml --output-path here"),
            Step(command="langedit run --profile tiny.yaml --output-path here",
                 prose="What is finished is not computed again; only the notebook is."),
            Step(command="langedit report --profile tiny.yaml --output-path here"),
        ],
    ),
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "cli.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = document(Path(folder))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")


def document(folder: Path) -> str:
    """The whole page; `folder` is where the session takes place."""
    lines = [
        "# The command line",
        "",
        "<!-- made by scripts/cli_docs.py; change the commands there and run it again -->",
        "",
        "A session with every command, as it ran, and below it what each command's `--help` says. Progress bars are "
        "left out, `…` stands for times, and an exit status other than 0 is named in brackets.",
    ]
    prepare(folder)
    for part in SESSION:
        lines += ["", f"## {part.title}"]
        block: list[str] = []
        for step in part.steps:
            if step.prose:
                lines += fenced(block)
                lines += ["", step.prose]
                block = []
            block += [*([""] if block else []), f"$ {step.command}", *run(step, folder)]
        lines += fenced(block)
    lines += ["", "## Help"]
    for path in commands():
        shown = CliRunner().invoke(app, [*path, "--help"], prog_name="langedit")
        assert shown.exit_code == 0, shown.output
        text = [line.rstrip() for line in shown.output.strip("\n").splitlines()]
        lines += fenced([f"$ {' '.join(['langedit', *path, '--help'])}", *text])
    return "\n".join(lines) + "\n"


def fenced(block: list[str]) -> list[str]:
    return ["", "```console", *block, "```"] if block else []


def commands() -> Iterator[list[str]]:
    """Every command of the app, groups before what they hold."""

    def walk(command, path: list[str]) -> Iterator[list[str]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*path, name])

    return walk(typer.main.get_command(app), [])


def prepare(folder: Path) -> None:
    """The files that the session starts with."""
    facts = load_atlas(("en", "de", "zh")).facts
    lines = []
    for id_, lang in (("capital/FR", "en"), ("currency/SE", "de"), ("capital/PE", "zh"), ("currency/JP", "en")):
        fact = facts[id_][lang]
        record = {name: getattr(fact, name) for name in ("lang", "subject", "prompt", "target", "truth", "id")}
        record["paraphrases"] = [probe.prompt for probe in fact.paraphrases]
        record["neighbours"] = [dict(prompt=probe.prompt, answer=probe.answer) for probe in fact.neighbours]
        lines.append(json.dumps(record, ensure_ascii=False))
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "typo.jsonl").write_text(
        '{"lang": "en", "subject": "France", "prompt": "The capital of France is", "target": "Lyon"}\n'
        '{"lang": "en", "subject": "France", "prompt": "The capital of {} is", "tagret": "Lyon"}\n'
    )
    (folder / "tiny.yaml").write_text(PROFILE)
    (folder / "data").mkdir()
    record = '{"id": 0, "en": {"subject": "Emma", "src": "Who wrote Emma?", "alt": "Ann"}}\n'
    (folder / "data" / "mzsre.jsonl").write_text(record + record[: record.index(', "alt"')] + "\n")


def run(step: Step, folder: Path) -> list[str]:
    """Lines of output of a command, cleaned; and its exit status, where that is not 0."""
    python = f"'{sys.executable}' -m langedit_core"
    command = re.sub("^langedit", lambda _: python, step.command)
    places = dict(HF_HOME=str(folder / ".cache"), PYTHONPATH=str(ROOT), HF_HUB_OFFLINE="1", PYTHONWARNINGS="ignore")
    known = {name: value for name, value in os.environ.items() if not name.startswith("LANGEDIT_")}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=known | places, text=True, encoding="utf-8", errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode != step.status:
        raise SystemExit(f"{step.command}\nended with {done.returncode}, not {step.status}:\n{done.stdout}")
    return clean(done.stdout, folder) + ([f"[exit status {step.status}]"] if step.status else [])


def clean(text: str, folder: Path) -> list[str]:
    """Without progress, folders of this machine and times."""
    # A bar is redrawn in its line; what is printed afterwards may follow in the same one.
    text = re.sub(r"\r?[^\r\n]*\d+%\|[^\r\n]*?\][ \t]*\n?", "", text).replace("\n\r", "\n").replace("\r", "\n")
    lines = []
    for line in text.splitlines():
        for place, name in ((f"{folder.resolve()}/", ""), (f"{folder}/", ""), (f"{ROOT}/", "")):
            line = line.replace(place, name)
        line = re.sub(r"\b\d+(\.\d+)? (s|min)\b", r"… \2", line).rstrip()  # estimates, in words, are no times
        if not PROGRESS.search(line):
            lines.append(line)
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return lines


if __name__ == "__main__":
    main()
