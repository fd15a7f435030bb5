"""Rewrites the extra `pinned` of pyproject.toml, and environment.yml, so that exact versions are never typed by hand.

Pins = closure of (dependencies ∪ models ∪ test) over what is installed in the Python that runs this script.

Usage: `.venv/bin/python scripts/pin.py`, after the ranges were changed and the new versions passed the tests.
"""

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
ENVIRONMENT = PYPROJECT.with_name("environment.yml")
BLOCK = re.compile(r"^pinned = \[\n.*?^\]\n", re.MULTILINE | re.DOTALL)


def closure(requirements: list[str]) -> dict[str, str]:
    """Name and version of every installed distribution that `requirements` lead to, themselves included."""
    found: dict[str, str] = {}
    todo = [(Requirement(text), "") for text in requirements]
    seen = set()
    while todo:
        requirement, extra = todo.pop()
        key = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        if (key, *sorted(requirement.extras)) in seen:
            continue
        seen.add((key, *sorted(requirement.extras)))
        try:
            installed = distribution(key)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is required but not installed; run `make env`") from None
        found[key] = installed.version.split("+")[0]  # "+cpu" names a build, not a release
        todo += [(Requirement(r), e) for r in installed.requires or [] for e in ("", *requirement.extras)]
    return found


def environment(text: str, python: str, torch: str) -> str:
    """environment.yml with these versions, which conda and pip would otherwise choose by themselves."""
    text = re.sub(r"^(  - python=)\S+", rf"\g<1>{python}", text, flags=re.MULTILINE)
    return re.sub(r"^(      - torch==)\S+", rf"\g<1>{torch}", text, flags=re.MULTILINE)


def main() -> None:
    text = PYPROJECT.read_text()
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    versions = closure([*project["dependencies"], *extras["models"], *extras["test"]])
    lines = "".join(f'  "{name}=={version}",\n' for name, version in sorted(versions.items()))
    PYPROJECT.write_text(BLOCK.sub(f"pinned = [\n{lines}]\n", text))
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    ENVIRONMENT.write_text(environment(ENVIRONMENT.read_text(), python, versions["torch"]))
    print(f"{len(versions)} versions of Python {python} written")


if __name__ == "__main__":
    main()
