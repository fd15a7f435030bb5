"""`python -m langedit_core`."""

from langedit_core.cli import entry

entry()
