"""`langedit data`: fetch the data sets that are not shipped, and check the files that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from langedit_core.cli_common import refuse, say

data_app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False,
    help="Fetch the data sets that are not shipped (mzsre, bzsre, xtreme), and check what is there.",
)  # fmt: skip
_WIDTHS = (27, 8, 6, 36, 13)


@data_app.command(
    epilog="Example: langedit data fetch mzsre --output-path data\n\n"
    'Example: langedit data fetch xnli wikiann --langs "en nl" --limit 200 --output-path data\n\n'
    "Then: export LANGEDIT_DATA=data"
)
def fetch(
    sets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SET]...",
            help="mzsre, bzsre (its English and Chinese), xtreme, or one of xtreme's "
            "tasks xnli, pawsx, mlqa, wikiann; mzsre and xtreme if none is named",
        ),
    ] = None,
    output_path: Annotated[
        Path | None, typer.Option("--output-path", help="the data folder; $LANGEDIT_DATA otherwise")
    ] = None,
    langs: Annotated[str, typer.Option("--langs", help="language codes, separated by spaces")] = "en de nl es fr zh",
    limit: Annotated[
        int,
        typer.Option(
            "--limit", min=1, help="test rows per XTREME set, after a pool of ten; a file with fewer is fetched again"
        ),
    ] = 500,
    all_facts: Annotated[
        bool, typer.Option("--all-facts", help="all facts of MzsRE; the committed reports drew from the first 600")
    ] = False,
    xnli_classes: Annotated[
        int, typer.Option("--xnli-classes", min=2, max=3, help="2: neutral and contradiction are one class, as there")
    ] = 2,
    sha256: Annotated[
        list[str] | None,
        typer.Option("--sha256", metavar="NAME=HEX", help="checksum that a download, or a finished file, must have"),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="a mirror that answers under the same paths as the public homes")
    ] = None,
) -> None:
    """Download what the study reads from its public homes, and say under which licence it is.

    What is there and right is left alone, so a stopped command is simply given again. MzsRE is read at a
    pinned commit, XTREME through the hub's row service, which has the newest state only. No checksums of
    either are known, so they are recorded at the first download, in sources.lock.json, and every later one
    must agree; with --sha256 the first one must agree too. Without a network the command says which file to
    put where, and ends with status 1.
    """
    from langedit_core.data_fetch import Fetching, check_names, parse_checksums
    from langedit_core.data_sources import MZSRE_FACTS, SOURCES, targets
    from langedit_core.datafiles import data_folder

    wanted, gaps = targets(sets or ["mzsre", "xtreme"], langs.replace(",", " ").split())
    checksums = parse_checksums(sha256 or [])
    check_names(checksums, wanted)
    folder = output_path or data_folder()[0]
    facts = None if all_facts else MZSRE_FACTS
    fetching = Fetching(
        folder, base=base_url, limit=limit, facts=facts, xnli_classes=xnli_classes, sha256=checksums, say=say
    )
    for source in dict.fromkeys(target.source for target in wanted):
        say(f"licence of {source}: {SOURCES[source].terms} ({SOURCES[source].home})")
    for gap in gaps:
        say(gap)
    left = sum(not fetching.fetch(target) for target in wanted)
    if unused := fetching.unused_checksums():
        refuse(f"--sha256 of {', '.join(unused)} was compared with nothing: that file was not read")
    if left:
        refuse(f"{left} of {len(wanted)} files are not there; what was fetched is kept, give the same command again")
    say(f"{len(wanted)} of {len(wanted)} files are there: set LANGEDIT_DATA={folder}")


@data_app.command(epilog="Example: langedit data check data --strict")
def check(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="the data folder; $LANGEDIT_DATA otherwise")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="status 1 too where a file is missing")] = False,
) -> None:
    """Read every data file to its end: found, missing or damaged, records, languages, checksum, licence.

    Status 1 if anything is damaged, with file and line; what is missing is only told. Checksums are compared
    with those that `langedit data fetch` recorded; files from elsewhere are held to what the study's loaders
    take.
    """
    from langedit_core.data_check import check_folder
    from langedit_core.data_sources import SOURCES
    from langedit_core.datafiles import data_folder

    where = folder or data_folder()[0]
    if not where.is_dir():
        refuse(f"{where} is no folder; name the data folder, or fetch one with: langedit data fetch --output-path DIR")
    files, gaps = check_folder(where)
    _row("file", "state", "lines", "languages", "sha256", "licence")
    for found in files:
        several = len(found.target.langs) > 1
        langs = " ".join(found.langs) if several else "".join(found.langs or found.target.langs)
        lines = f"{found.lines:,}" if found.sha256 else ""
        _row(found.target.path, found.state, lines, langs, found.sha256[:12], SOURCES[found.target.source].licence)
    for gap in gaps:
        typer.echo(gap)
    for found in files:
        for problem in found.problems:
            typer.echo(str(problem))
    count = {state: sum(found.state == state for found in files) for state in ("found", "missing", "damaged")}
    say(", ".join(f"{number} {state}" for state, number in count.items()))
    if count["missing"]:
        say(f"to fetch what is missing: langedit data fetch --output-path {where}")
    if count["damaged"] or (strict and count["missing"]):
        refuse(
            "damaged files cannot be used" if count["damaged"] else f"{count['missing']} files are missing (--strict)"
        )


def _row(*cells: str) -> None:
    *fixed, last = cells
    typer.echo("".join(f"{cell:<{width}}" for cell, width in zip(fixed, _WIDTHS, strict=True)) + last)
