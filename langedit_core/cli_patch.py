"""`langedit patch`: look at a patch, apply it, take edits out, merge them, export them for PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langedit_core.cli_common import DeviceOption, n_batches, n_facts, refuse, say

if TYPE_CHECKING:
    from langedit_core.patches import Patch

patch_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="Look at stored edits, apply, remove, merge and export them.",
)  # fmt: skip

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="a patch written by `langedit edit`")]
BaseOption = Annotated[
    str | None,
    typer.Option("--model", "--model_name_or_path", help="the unedited model; the one named in the patch otherwise"),
]
RankOption = Annotated[
    int | None, typer.Option("--rank", min=1, help="at most so many columns per layer; all above rounding otherwise")
]
ExactOption = Annotated[
    bool, typer.Option("--exact", help="refuse where weights would differ from the recorded ones by rounding")
]


@patch_app.command(epilog="Example: langedit patch info capitals/patch.safetensors")
def info(file: FileArgument) -> None:
    """What a patch holds: model, method, layers, and its batches with their facts. The checksum is compared."""
    patch = _load(file)
    header = patch.header
    typer.echo(
        f"model        {header.model} ({header.model_type}, {header.dtype}), fingerprint {header.fingerprint[:12]}"
    )
    typer.echo(
        f"method       {header.method}, layers {', '.join(map(str, patch.layers))}, W: {header.d_out} x {header.d_in}"
    )
    typer.echo(f"holds        {n_batches(len(patch))}, {n_facts(len(patch.facts))}, {file.stat().st_size / 1e6:.2f} MB")
    typer.echo(f"base         {'stored: edits can be removed without the base model' if patch.base else 'not stored'}")
    for t, record in enumerate(header.batches, 1):
        langs = " ".join(dict.fromkeys(fact.lang for fact in record.facts))
        factors = patch.factors[t - 1].values()
        rank = max((one.left.shape[1] for one in factors if one.left is not None), default="dense")
        line = f"batch {t:<6} {n_facts(len(record.facts))} ({langs}), rank {rank}, weights {_short(record.after)}"
        if record.merged:
            line += f", {record.merged.batches} batches merged, relative error {max(record.merged.error.values()):.1e}"
        typer.echo(line)
        for fact in record.facts[:3]:
            typer.echo(f"             {fact.lang} {fact.id}: {fact.text} → {fact.target}")
        if len(record.facts) > 3:
            typer.echo(f"             and {len(record.facts) - 3} more")


@patch_app.command(epilog="Example: langedit patch apply capitals/patch.safetensors --output-path edited")
def apply(
    file: FileArgument,
    output_path: Annotated[Path, typer.Option("--output-path", help="new folder for the edited model")],
    model: BaseOption = None,
    device: DeviceOption = "auto",
    exact: ExactOption = False,
) -> None:
    """Add a patch to the unedited model and save the result as a model folder."""
    from langedit_core.adapters import refuse_existing, save_model
    from langedit_core.editing import load_unedited

    refuse_existing(output_path)
    patch = _load(file)
    base = load_unedited(_base_name(patch, model), patch, device)
    same = patch.apply(base, exact=exact)
    save_model(base, output_path)
    say(f"{n_batches(len(patch))}, {n_facts(len(patch.facts))} added, {_bits(same)}: {output_path}")


@patch_app.command(
    epilog="Example: langedit patch remove capitals/patch.safetensors --last 1 --output-path shorter.safetensors\n\n"
    "Example: langedit patch remove capitals/patch.safetensors --last 1 --edited edited --output-path restored"
)
def remove(
    file: FileArgument,
    last: Annotated[int, typer.Option("--last", min=1, help="how many batches, from the end")],
    output_path: Annotated[Path, typer.Option("--output-path", help="new patch; with --edited, new model folder")],
    edited: Annotated[
        str | None, typer.Option("--edited", help="model folder that holds the patch; its edits are taken out")
    ] = None,
    model: BaseOption = None,
    device: DeviceOption = "auto",
    exact: ExactOption = False,
) -> None:
    """Take the last batches out: of the patch, or, with --edited, of a model that holds it, bit for bit."""
    import torch

    from langedit_core.adapters import refuse_existing, save_model
    from langedit_core.models import load_model

    patch = _load(file)
    if last > len(patch):
        refuse(f"--last {last}: the patch holds {len(patch)} batches")
    if edited is None:
        refuse_taken(output_path)
        patch.prefix(len(patch) - last).save(output_path, with_base=patch.base is not None)
        say(f"{n_batches(len(patch) - last)} kept, {last} removed: {output_path}")
        return
    refuse_existing(output_path)
    if patch.base is None:
        _attach(patch, model)
    holder = load_model(edited, device=device, dtype=getattr(torch, patch.header.dtype))
    same = patch.remove(holder, last, exact=exact)
    left = patch.position(holder)
    save_model(holder, output_path)
    unedited = ", which is the unedited model" if left == 0 else ""
    say(f"{n_batches(last)} removed, {left} left{unedited}, {_bits(same)}: {output_path}")


@patch_app.command(epilog="Example: langedit patch merge capitals/patch.safetensors --output-path merged.safetensors")
def merge(
    file: FileArgument,
    output_path: Annotated[Path, typer.Option("--output-path", help="new patch")],
    rank: RankOption = None,
    model: BaseOption = None,
) -> None:
    """Make one batch of all, with the error that makes; merged edits can only be removed together."""
    patch = _load(file)
    refuse_taken(output_path)
    stored = patch.base is not None
    if not stored:
        _attach(patch, model)
    merged = patch.merge(rank)
    merged.save(output_path, with_base=stored)
    told = merged.header.batches[0].merged
    for layer in merged.layers:
        typer.echo(f"layer {layer}: rank {told.rank[layer]}, relative error {told.error[layer]:.1e}")
    say(f"{len(patch)} batches merged, {file.stat().st_size:,} bytes → {output_path.stat().st_size:,}: {output_path}")


@patch_app.command(epilog="Example: langedit patch export capitals/patch.safetensors --output-path adapter")
def export(
    file: FileArgument,
    output_path: Annotated[Path, typer.Option("--output-path", help="new folder for the adapter")],
    rank: RankOption = None,
    model: BaseOption = None,
) -> None:
    """Write a PEFT LoRA adapter, which plain `peft` puts on the unedited model."""
    from langedit_core.adapters import refuse_existing, to_peft

    patch = _load(file)
    refuse_existing(output_path)
    if patch.base is None and patch.header.settings.keep_share < 1:
        _attach(patch, model)
    for layer, error in to_peft(patch, output_path, rank).items():
        typer.echo(f"layer {layer}: relative error {error:.1e}")
    say(f"adapter of {n_facts(len(patch.facts))}: {output_path}")
    typer.echo(
        f'edited = PeftModel.from_pretrained(base, "{output_path.name}")  # base: {patch.header.model}, unedited'
    )


def _load(file: Path) -> Patch:
    from langedit_core.patches import Patch

    return Patch.load(file)


def _attach(patch: Patch, model: str | None) -> None:
    from langedit_core.editing import load_unedited

    load_unedited(_base_name(patch, model), patch, "cpu")


def _base_name(patch: Patch, given: str | None) -> str:
    """The model asked for, or the one the patch names if that can be found by name."""
    from langedit_core.packaged import EMBEDDED, PACKAGED

    name = given or patch.header.model
    if given is None and name not in (*PACKAGED, *EMBEDDED) and "/" not in name:
        refuse(f"the patch was made from a folder called {name!r}; say where it lies with --model")
    return name


def refuse_taken(path: Path) -> None:
    """A new patch gets a name of its own, with the suffix by which `langedit validate` knows it."""
    if path.suffix != ".safetensors":
        refuse(f"--output-path {path}: a patch is a file called something.safetensors")
    if path.exists():
        refuse(f"{path} exists already and is not overwritten")


def _bits(same: bool) -> str:
    return "bit for bit the recorded weights" if same else "the recorded weights up to rounding"


def _short(hashes: dict[int, str]) -> str:
    return " ".join(value[:8] for value in hashes.values())
