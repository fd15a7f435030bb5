"""`langedit evaluate`: what a model says of a file of facts and of XTREME; with a patch, before and after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langedit_core.cli_common import DeviceOption, DtypeOption, check_output, say, shown, torch_dtype, write_csv

if TYPE_CHECKING:
    import pandas as pd

MOMENTS = {"before": "unedited", "final": "with the patch"}


def evaluate(
    model: Annotated[str, typer.Option("--model", "--model_name_or_path", help="hub ID, folder, or packaged name")],
    facts: Annotated[
        Path | None, typer.Option("--facts", help="JSON lines as for `edit`; asked are the prompts and all questions")
    ] = None,
    patch: Annotated[
        Path | None, typer.Option("--patch", help="a patch of this model: ask before and after it is applied")
    ] = None,
    xtreme: Annotated[
        int, typer.Option("--xtreme", min=0, help="records per XTREME task and language, from $LANGEDIT_DATA; 0: none")
    ] = 0,
    langs: Annotated[str | None, typer.Option("--langs", help="languages of XTREME; the six of the study")] = None,
    output_path: Annotated[
        Path | None, typer.Option("--output-path", help="folder for facts.csv, said.csv, drift.csv and xtreme.csv")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Ask a model, edited by whatever means, about facts and about XTREME's tasks.

    Means are over facts, with 95 % intervals over facts. With --patch everything is asked of the unedited
    model too, `specificity_same` compares the two, and drift on neutral prose is measured. said.csv has
    every question with what the model says.
    """
    import pandas as pd
    from tqdm import tqdm

    from langedit_core.editing import load_unedited
    from langedit_core.errors import unknown
    from langedit_core.evaluation import evaluate as ask
    from langedit_core.fact_files import read_facts
    from langedit_core.languages import CORE
    from langedit_core.models import load_model
    from langedit_core.patches import Patch
    from langedit_core.xtreme import fingerprint
    from langedit_core.xtreme_prompts import WORDINGS

    check_output(output_path)
    if facts is None and patch is None and not xtreme:
        raise typer.BadParameter("nothing is asked; give --facts, --patch or --xtreme")
    precision = torch_dtype(dtype)
    codes = tuple(CORE) if langs is None else tuple(dict.fromkeys(langs.replace(",", " ").split()))
    if not codes:
        raise typer.BadParameter("--langs is empty; expected codes such as en de")
    for code in codes:
        if code not in WORDINGS:
            raise unknown("language of XTREME prompts", code, WORDINGS)
    if xtreme:
        fingerprint(codes, xtreme)  # says now what is missing, and not after everything else was asked
    asked = [] if facts is None else read_facts(facts)
    applied = None if patch is None else Patch.load(patch)
    if applied is None:
        loaded = load_model(model, device=device, dtype=precision)
    elif dtype not in (None, applied.header.dtype):
        raise typer.BadParameter(f"--dtype {dtype}: {patch} was made in {applied.header.dtype}, and goes with it alone")
    else:
        loaded = load_unedited(model, applied, device)
    with tqdm(unit="record", disable=not (xtreme and sys.stderr.isatty()), dynamic_ncols=True) as bar:

        def progress(when: str, task: str, lang: str, done: int, total: int) -> None:
            bar.set_description(f"{task} in {lang}" + (f", {MOMENTS[when]}" if applied else ""))
            bar.total, bar.n = total, done
            bar.refresh()

        found = ask(loaded, asked, patch=applied, xtreme=xtreme, langs=codes, progress=progress)

    def write(frame: pd.DataFrame, name: str) -> None:
        if output_path is not None:
            write_csv(frame, output_path, name)

    if asked:
        table = found.table() if applied else found.table().rename(columns={"after": "value"})
        typer.echo(shown(table))
        write(table, "facts")
        write(found.said, "said")
    if applied:
        typer.echo(
            "\ndrift on neutral prose: KL from the unedited model in nats per token, perplexity before and after"
        )
        wide = found.drift.pivot(index="lang", columns=["metric", "when"], values="value").loc[list(CORE)]
        told = {"drift_kl": ("drift_kl", "final")}
        told |= {f"drift_ppl {name}": ("drift_ppl", when) for name, when in (("before", "before"), ("after", "final"))}
        typer.echo(shown(pd.DataFrame({name: wide[column] for name, column in told.items()}).reset_index()))
        write(found.drift, "drift")
    for when, report in found.xtreme.items():
        typer.echo(f"\nXTREME{f', {MOMENTS[when]}' if applied else ''}, {xtreme} records per task and language at most")
        typer.echo(str(report))
    if found.xtreme:
        write(_summaries(found.xtreme), "xtreme")
    if output_path is not None:
        say(f"tables: {output_path}")


def _summaries(reports: dict) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([report.summary.assign(when=when) for when, report in reports.items()], ignore_index=True)
