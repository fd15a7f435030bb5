"""`langedit trace`: where a model holds facts, by causal tracing, and which layers that recommends to edit.

What is asked and traced is kept in the output folder, so that a stopped command goes on when it is given again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langedit_core.cli_common import DeviceOption, DtypeOption, check_output, refuse, say, shown, torch_dtype, write_csv

if TYPE_CHECKING:
    import pandas as pd

    from langedit_core.records import FactSet

LINES = {"early": "MLP outputs at the subject's last token", "late": "attention outputs at the prompt's last token"}


def trace(
    model: Annotated[str, typer.Option("--model", "--model_name_or_path", help="hub ID, folder, or packaged name")],
    output_path: Annotated[Path, typer.Option("--output-path", help="folder for tables, heat map and kept traces")],
    facts: Annotated[
        Path | None,
        typer.Option("--facts", help="JSON lines as for `edit`; traced is `truth`, or `target` where there is none"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="atlas (embedded; default), mzsre, bzsre, or one of your own")
    ] = None,
    langs: Annotated[
        str | None, typer.Option("--langs", help="codes separated by spaces; all of --facts, or the six of the study")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="known facts traced per language")] = 10,
    asked: Annotated[int, typer.Option("--asked", min=1, help="facts asked per language to find known ones")] = 100,
    samples: Annotated[int, typer.Option("--samples", min=1, help="noise samples per prompt")] = 10,
    width: Annotated[int, typer.Option("--width", min=1, help="neighbouring layers to recommend")] = 3,
    heat_map: Annotated[
        bool, typer.Option("--heat-map", help="draw heat.png and heat.svg: token roles by layers")
    ] = False,
    keep_layers: Annotated[
        bool, typer.Option("--keep-layers", help="make the recommended layers this model's default for editing")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="of the noise")] = 0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
) -> None:
    """Find the layers that hold facts: noise hides a subject, single states are put back, the answer returns or not.

    Only facts are traced that the model answers in full. An effect is what restoring adds to the answer's
    probability; an interval is of 95 % over facts. Tables are written as CSV: known, layers, peaks,
    recommended, traces.
    """
    from langedit_core import tracing_analysis
    from langedit_core.chosen_layers import keep_layers as keep
    from langedit_core.models import load_model
    from langedit_core.profiles import is_tuned
    from langedit_core.tracing import TraceSettings
    from langedit_core.tracing_study import trace_known

    check_output(output_path)
    if facts is not None and data is not None:
        raise typer.BadParameter("--facts and --data both say what to trace; give one of them")
    asked_for, codes = _facts(facts, data, langs)
    loaded = load_model(model, device=device, dtype=torch_dtype(dtype))
    if width > loaded.n_layers:
        raise typer.BadParameter(f"--width {width}: {loaded.name} has {loaded.n_layers} layers")
    settings = TraceSettings(samples=samples, seed=seed)
    found = trace_known(
        loaded, asked_for, codes, asked=asked, traced=limit, settings=settings, results=output_path,
        quiet=not sys.stderr.isatty(),
    )  # fmt: skip
    write_csv(found.counts, output_path, "known")
    typer.echo(shown(found.counts))
    if found.frame.empty:
        what = f"{found.counts['asked'].sum()} facts of {asked_for.name}"
        advice = "give the answer it does say as `truth`" if facts else "ask more with --asked"
        refuse(f"{model} answers none of the {what} in full, so there is nothing to trace; {advice}")
    # A prompt that ends with its subject has no last token of its own.
    sites = {name: site for name, site in _sites().items() if (found.frame["role"] == site[1]).any()}
    curves = {name: _curves(found.frame, *site) for name, site in sites.items()}
    peaks = _peaks(found.frame, sites, curves)
    for name, by_layer in curves.items():
        typer.echo(f"\naverage indirect effect by layer, {LINES[name]}")
        wide = by_layer.pivot(index="layer", columns="lang", values="value")[by_layer["lang"].unique()]
        typer.echo(shown(wide.reset_index()))
    typer.echo("\npeaks: layer [95 % interval of its place], effect there [95 % interval]")
    typer.echo(shown(_peak_table(peaks)))
    window = settings.window_of(loaded.n_layers)
    advice = tracing_analysis.recommend(found.frame, width, window)
    typer.echo("")
    if "late" in sites:
        for sentence in tracing_analysis.reading(found.frame, advice, loaded.name):
            typer.echo(sentence)
    typer.echo(
        f"recommended layers: {','.join(map(str, advice.layers))} "
        f"({advice.share:.0%} of what all layers bring back, n = {advice.n} facts)"
    )
    write_csv(_concat([*curves.values()]), output_path, "layers")
    write_csv(peaks, output_path, "peaks")
    write_csv(advice.table(loaded.name, asked_for.name), output_path, "recommended")
    write_csv(found.frame, output_path, "traces")
    written = "known.csv, layers.csv, peaks.csv, recommended.csv, traces.csv"
    if heat_map:
        _draw(found.frame, output_path, f"{loaded.name}, {asked_for.name}: average indirect effect")
        written += ", heat.png, heat.svg"
    if keep_layers:
        keep(model, advice.layers, f"causal tracing of {advice.n} facts of {asked_for.name}")
        first = ", but hparams.yaml names its layers and comes first" if is_tuned(model) else ""
        say(f"kept as default of {model}{first}")
    say(f"{written}: {output_path}")


def _facts(path: Path | None, data: str | None, langs: str | None) -> tuple[FactSet, list[str]]:
    """What is traced, and in which languages; a file's facts are all held out, since they are here to be looked at."""
    from langedit_core.errors import unknown
    from langedit_core.fact_files import read_facts
    from langedit_core.languages import CORE, language
    from langedit_core.records import FactSet
    from langedit_core.study import check_data, load_data

    codes = None if langs is None else list(dict.fromkeys(langs.replace(",", " ").split()))
    if codes == []:
        raise typer.BadParameter("--langs is empty; expected codes such as en de")
    for code in codes or ():
        language(code)
    if path is None:
        name = data or "atlas"
        check_data(name)
        codes = codes or (["en", "zh"] if name == "bzsre" else list(CORE))
        return load_data(name, codes), codes
    by_id: dict[str, dict] = {}
    for fact in read_facts(path):
        by_id.setdefault(fact.id, {})[fact.lang] = fact
    there = list(dict.fromkeys(lang for by_lang in by_id.values() for lang in by_lang))
    found = FactSet(name=path.stem, facts=by_id, corpus={}, splits=dict.fromkeys(by_id, "tune"))
    for code in codes or ():
        if code not in there:
            raise unknown(f"language of {path.name}", code, there)
    return found, codes or there


def _sites() -> dict[str, tuple[str, str]]:
    from langedit_core.tracing_analysis import EARLY, LATE

    return dict(early=EARLY, late=LATE)


def _curves(frame: pd.DataFrame, kind: str, role: str) -> pd.DataFrame:
    """Effects by layer, all facts together and then every language."""
    from langedit_core.tracing_analysis import curve

    both = _concat([curve(frame, kind, role), curve(frame, kind, role, by_lang=True)])
    return both.assign(kind=kind, role=role)


def _peaks(frame: pd.DataFrame, sites: dict[str, tuple[str, str]], curves: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Peak layers with the interval of their place, and the effect there with its own."""
    from langedit_core.tracing_analysis import peaks

    tables = []
    for name, site in sites.items():
        effects = curves[name][["lang", "layer", "low", "high"]]
        effects = effects.rename(columns=dict(layer="peak", low="effect_low", high="effect_high"))
        tables.append(peaks(frame, *site).merge(effects, on=["lang", "peak"], how="left"))
    return _concat(tables)


def _peak_table(peaks: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    from langedit_core.tables import format_ci

    rows = []
    for row in peaks.itertuples():
        place = "" if pd.isna(row.low) else f" [{row.low}, {row.high}]"
        effect = format_ci(row.effect, row.effect_low, row.effect_high)
        rows.append(dict(state=row.kind, lang=row.lang, n=row.n, layer=f"{row.peak}{place}", effect=effect))
    return pd.DataFrame(rows)


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(frames, ignore_index=True)


def _draw(frame: pd.DataFrame, folder: Path, title: str) -> None:
    from langedit_core.plots import save
    from langedit_core.plots_tracing import heat_maps
    from langedit_core.tracing_analysis import SITE_NAMES, heat

    maps = {lang: {kind: heat(frame, kind, lang) for kind in SITE_NAMES} for lang in frame["lang"].unique()}
    save(heat_maps(maps, title=title), folder, "heat")
