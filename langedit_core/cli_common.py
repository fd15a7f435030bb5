"""What all commands of `langedit` share: options, sentences to standard error, tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd
    import torch

DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda:0; balanced: over all GPUs")]
DTYPES = ("float32", "bfloat16", "float16")
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32 (default), bfloat16, float16: of the weights; small edits can round away in half"
    ),
]


def torch_dtype(name: str | None) -> torch.dtype:
    """The precision an option names; float32 where it names none.

    Raises:
        typer.BadParameter: None of `DTYPES`.
    """
    import torch

    if name not in (None, *DTYPES):
        raise typer.BadParameter(f"--dtype is {name!r}; expected {', '.join(DTYPES)}")
    return getattr(torch, name or DTYPES[0])


def say(text: str) -> None:
    typer.echo(text, err=True)


def refuse(message: str) -> None:
    """End with status 1 and the reason on one line."""
    say(f"error: {message}")
    raise typer.Exit(1)


def counted(n: int, one: str, many: str) -> str:
    """A number with its noun: "1 batch", "2 batches"."""
    return f"{n} {one if n == 1 else many}"


def n_batches(n: int) -> str:
    return counted(n, "batch", "batches")


def n_facts(n: int) -> str:
    return counted(n, "fact", "facts")


def shown(frame: pd.DataFrame) -> str:
    """A table for a terminal; what there is no number for stays empty."""
    return frame.to_string(index=False, float_format="{:.3f}".format, na_rep="")


def check_output(folder: Path | None) -> None:
    """Refuse a file where a folder is to be written into, before anything is computed.

    Raises:
        typer.BadParameter: It is one.
    """
    if folder is not None and folder.exists() and not folder.is_dir():
        raise typer.BadParameter(f"--output-path {folder} is a file; expected a folder, which may be new")


def write_csv(frame: pd.DataFrame, folder: Path, name: str) -> None:
    from langedit_core.storage import write_text
    from langedit_core.tables import csv_table

    write_text(folder / f"{name}.csv", csv_table(frame))
