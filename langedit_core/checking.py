"""`langedit validate`: what is wrong with a file of facts, a patch or a profile, and in which line.

Nothing is loaded but the file itself: a patch's checksum is compared and its content read, a profile's cells are made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from langedit_core.errors import RefusedInput, told, unknown
from langedit_core.fact_files import Problem, parse_facts
from langedit_core.patches import Patch
from langedit_core.profiles import Profile, check_own_name
from langedit_core.yaml_files import BadYaml, read_mapping


@dataclass(frozen=True)
class Checked:
    """One file: what it holds, in a word or two, and what is wrong with it."""

    path: Path
    holds: str
    problems: list[Problem]


def check_file(path: str | Path, notebooks: Path | None = None) -> Checked:
    """Check a file by its suffix: .jsonl facts, .safetensors a patch, .yaml or .yml a profile.

    Args:
        path: The file.
        notebooks: Folder in which a profile's notebooks are looked up; None looks up none.
    """
    path = Path(path)
    checks: dict[str, Callable[[], Checked]] = {
        ".jsonl": lambda: _facts(path),
        ".safetensors": lambda: _patch(path),
        ".yaml": lambda: _profile(path, notebooks),
        ".yml": lambda: _profile(path, notebooks),
    }
    if not path.is_file():
        told = "is a folder, expected a file" if path.is_dir() else "does not exist, or is no file"
        return Checked(path, "nothing", [Problem(path, None, told)])
    if path.suffix not in checks:
        return Checked(path, "?", [Problem(path, None, str(unknown("kind of file", path.suffix, checks)))])
    return checks[path.suffix]()


def _facts(path: Path) -> Checked:
    facts, problems = parse_facts(path)
    langs = sorted({fact.lang for fact in facts})
    return Checked(path, f"{len(facts)} facts" + (f" in {' '.join(langs)}" if langs else ""), problems)


def _patch(path: Path) -> Checked:
    try:
        patch = Patch.load(path)
    except ValueError as error:
        return Checked(path, "no patch", [Problem(path, None, str(error).removeprefix(f"{path}: "))])
    batches = f"{len(patch)} batch{'es' if len(patch) != 1 else ''}"
    return Checked(path, f"patch of {patch.header.model}, {batches}, {len(patch.facts)} facts", [])


def _profile(path: Path, notebooks: Path | None) -> Checked:
    try:
        content, tree = read_mapping(path)
        profile = Profile.model_validate(content)
    except BadYaml as error:
        return Checked(path, "no profile", [Problem(path, error.line, error.message)])
    except ValidationError as error:
        found = [Problem(path, _line(tree, one["loc"]), _told(one)) for one in error.errors()]
        return Checked(path, "profile with errors", sorted(found, key=lambda problem: problem.line or 0))
    problems = [
        *_taken(path, tree, profile),
        *_bad_grids(path, tree, profile),
        *(_bad_notebooks(path, tree, profile, notebooks) if notebooks else []),
    ]
    cells = (
        0 if problems else sum(len(profile.cells(group, name)) for group in profile.grids for name in profile.models)
    )
    return Checked(path, f"profile {profile.name!r}, {cells} cells, {len(profile.notebooks)} notebooks", problems)


def _taken(path: Path, tree: yaml.Node, profile: Profile) -> list[Problem]:
    try:
        check_own_name(profile, path)
    except RefusedInput as error:
        return [Problem(path, _line(tree, ("name",)), str(error).removeprefix(f"{path}: "))]
    return []


def _bad_grids(path: Path, tree: yaml.Node, profile: Profile) -> list[Problem]:
    found = []
    for group in profile.grids:
        for name in profile.models:
            try:
                profile.cells(group, name)
            except ValidationError as error:
                found.append(Problem(path, _line(tree, ("grids", group)), f"grids.{group}: {told(error)}"))
            except (ValueError, TypeError) as error:
                found.append(Problem(path, _line(tree, ("grids", group)), f"grids.{group}: {error}"))
    return found


def _bad_notebooks(path: Path, tree: yaml.Node, profile: Profile, folder: Path) -> list[Problem]:
    from langedit_core.notebooks import refusals  # brings Papermill: seconds

    return [
        Problem(path, _line(tree, ("notebooks", stem)), message)
        for stem, message in refusals(profile.notebooks, profile.grids, folder)
    ]


def _told(error: dict) -> str:
    where = ".".join(map(str, error["loc"]))
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _line(node: yaml.Node, loc: tuple[str | int, ...]) -> int:
    """Line of the node that pydantic calls `loc`; of the nearest one around it where there is none."""
    line = node.start_mark.line + 1
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            if isinstance(step, int):  # a single grid may be written without its list
                continue
            pairs = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
            if step not in pairs:
                break
            # A block begins on the line after its key; the key is what a person looks for.
            key, node = pairs[step]
            line = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line
