"""YAML a person wrote, read without trusting it: nothing is built before its size, aliases and keys were looked at.

size(node) = 1 + Σ size(children), with every alias counted as often as it is written out.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from langedit_core.errors import RefusedInput

LARGEST = 1_000_000  # bytes
MOST_NODES = 100_000  # of a tree with its aliases written out
DEEPEST = 50  # levels; a profile has five


class BadYaml(RefusedInput):
    """A file that gives no mapping; `line` is where, None if it is the file as a whole."""

    def __init__(self, path: Path, line: int | None, message: str) -> None:
        super().__init__(f"{path}:{line}: {message}" if line else f"{path}: {message}")
        self.line, self.message = line, message


def read_mapping(path: Path) -> tuple[dict, yaml.MappingNode]:
    """The content of a file that holds one mapping, and its tree, whose nodes know their lines.

    Raises:
        FileNotFoundError: Nothing there.
        BadYaml: Too large, no UTF-8, no YAML, no mapping, nested too deeply, a tag that would build objects, or a key
            given twice.
    """
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise BadYaml(path, None, f"is larger than {LARGEST:,} bytes; is it a profile?")
    try:
        text = data.decode("utf-8")
        _check_depth(path, text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise BadYaml(path, None, f"is no UTF-8 (byte {error.start + 1}); save the file as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise BadYaml(path, line, f"is no YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise BadYaml(path, None, f"is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, yaml.MappingNode):
        raise BadYaml(path, None, "holds no mapping of fields, expected lines such as `name: mine`")
    if _size(tree, {}) > MOST_NODES:
        raise BadYaml(path, None, f"has more than {MOST_NODES:,} entries with its aliases written out")
    _check_keys(path, tree)
    try:
        return yaml.safe_load(text), tree
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise BadYaml(path, line, f"cannot be read: {error.problem}") from error
    except (yaml.YAMLError, TypeError, ValueError, OverflowError) as error:
        raise BadYaml(path, None, f"cannot be read: {error}") from error


def _check_depth(path: Path, text: str) -> None:
    """Events come one by one, so that nothing recurses, or takes a minute, before the level is found too deep."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise BadYaml(path, event.start_mark.line + 1, f"is nested more than {DEEPEST} levels deep")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Entries of a tree whose aliases are written out; an alias of itself counts as too many."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1  # until it is counted: whoever meets it inside itself sees this
        known[id(node)] = 1 + sum(_size(child, known) for child in _children(node))
    return known[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _check_keys(path: Path, tree: yaml.Node) -> None:
    """Of two values under one key YAML's parser would take the last, without a word."""
    waiting, done = [tree], set()
    while waiting:
        node = waiting.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        seen: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else []:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise BadYaml(path, line, "has a list or mapping as a key, expected a name")
            if earlier := seen.get(key.value):
                raise BadYaml(path, line, f"the key {ascii(key.value)[:60]} is in line {earlier} already")
            seen[key.value] = line
        waiting += _children(node)
