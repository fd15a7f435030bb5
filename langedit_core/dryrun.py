"""`langedit run --dry-run`: the cells of a profile, and what they need in memory and time, told before anything starts.

Results are read to see what is done already; nothing is loaded and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from langedit_core.estimate import (
    BYTES_PER_TOKEN,
    DOUBLE_EFFICIENCY,
    EFFICIENCY,
    PASSES,
    XTREME_COLUMNS,
    Rate,
    Texts,
    corpus_tokens,
    memory,
    shapes_of,
    shared_work,
    texts_of,
    work,
)
from langedit_core.profiles import Profile
from langedit_core.records import FactSet
from langedit_core.results import Cell, is_known
from langedit_core.study import load_data


def told(
    profile: Profile, models: Sequence[str], root: Path, *, device: str = "auto", tflops: float | None = None
) -> str:
    """What `langedit run` would do: its cells, and per model memory and time; reads results, writes nothing.

    Args:
        profile: The profile.
        models: Its models, or the one asked for.
        root: Folder with `results/` and `reports/`.
        device: Where throughput is measured if it is not given.
        tflops: The device's float32 throughput, for a machine other than this one.
    """
    rate = Rate.measured(device) if tflops is None else Rate.given(tflops)
    texts = _AllTexts()
    listed, needs = [f"{'state':7} {'edits':>5} {'batches':>7} {'seed':>4}  method on data, model"], []
    for model in models:
        records = profile.records(root / "reports" / profile.folder(model))
        cells = profile.all_cells(model)
        missing = [cell for cell in cells if not is_known(cell, root / "results", records)]
        listed += [
            f"{'missing' if cell in missing else 'done':7} {cell.edits:5} {cell.batches:7} {cell.seed:4}  "
            f"{cell.method} on {cell.data}, {model}"
            for cell in cells
        ]
        needs += ["", *_about(model, cells, missing, texts, rate)]
    return "\n".join([f"profile {profile.name}: {profile.description}", "", *listed, *needs, "", *_assumptions(rate)])


class _AllTexts:
    """Data sets and texts, each read once for all models and methods."""

    def __init__(self) -> None:
        self.data: dict[tuple, FactSet | str] = {}
        self.texts: dict[tuple, list[Texts] | str] = {}

    def of(self, cell: Cell) -> tuple[FactSet, list[Texts]] | str:
        """The cell's data and texts, or why there are none."""
        name = (cell.data, cell.langs)
        data = self._kept(self.data, name, cell, lambda: load_data(*name))
        if isinstance(data, str):
            return data
        key = (*name, cell.batch, cell.rounds, cell.split, cell.seed, cell.parallel, cell.deal)
        texts = self._kept(self.texts, key, cell, lambda: texts_of(cell, data))
        return texts if isinstance(texts, str) else (data, texts)

    @staticmethod
    def _kept(known: dict, key: tuple, cell: Cell, make: Callable):
        if key not in known:
            try:
                known[key] = make()
            except (FileNotFoundError, ValueError) as error:
                known[key] = f"{cell.data}: {error}"
        return known[key]


def _beyond(cell: Cell, n_layers: int) -> str | None:
    """What is wrong with layers that the model does not have."""
    if cell.settings.layers[-1] < n_layers:
        return None
    return f"{cell.method} is to edit layers {list(cell.settings.layers)}, and the model has 0 to {n_layers - 1}"


def _about(model: str, cells: Sequence[Cell], missing: Sequence[Cell], texts: _AllTexts, rate: Rate) -> list[str]:
    """Memory and time of one model."""
    try:
        shapes = shapes_of(model)
    except FileNotFoundError as error:
        return [f"{model}: {len(missing)} of {len(cells)} cells to compute; not estimated: {error}"]
    lines = [
        f"{model}: {shapes.model_type}, {shapes.parameters / 1e9:.3g} billion parameters, {shapes.n_layers} layers, "
        f"d_model {shapes.d_model}, d_ff {shapes.d_ff}, from {shapes.source}"
    ]
    found = {cell: _beyond(cell, shapes.n_layers) or texts.of(cell) for cell in missing}
    ready = [(cell, *x) for cell, x in found.items() if not isinstance(x, str)]
    lines += [f"  cannot run yet: {why}" for why in dict.fromkeys(x for x in found.values() if isinstance(x, str))]
    if not ready:
        return [
            *lines,
            "  nothing to estimate" if missing else "  all cells are done" if cells else "  the profile has no cells",
        ]
    corpora = {cell.data: corpus_tokens(cell, data) for cell, data, _ in ready}
    lines += [
        f"  C0 of {data}: a mean over about {count} tokens" + (", singular below d_ff" if count < shapes.d_ff else "")
        for data, count in corpora.items()
    ]
    need = {cell: memory(shapes, cell, batches) for cell, _, batches in ready}
    rows: dict[str, dict[str, float]] = {}
    for cell, parts in need.items():
        rows[cell.method] = max(rows.get(cell.method, parts), parts, key=lambda p: p["peak"])
    lines.append(f"  {'memory, GB':17}" + "".join(f"{part:>12}" for part in next(iter(rows.values()))))
    for method, parts in rows.items():
        lines.append(f"  {method:17}" + "".join(f"{x / 1e9:12.2f}" for x in parts.values()))
    ends = []
    for high in (False, True):
        total: dict[str, float] = {"shared": rate.seconds({"": shared_work(shapes, ready)}, high)[""]}
        for cell, _, batches in ready:
            optimiser = "adam" if cell.settings.finetune else cell.settings.values.optimiser
            passes = 1.0 if high else PASSES[optimiser]
            for part, seconds in rate.seconds(work(shapes, cell, batches, passes), high).items():
                total[part] = total.get(part, 0.0) + seconds
        ends.append(total)
    low, high = ends
    lines += [f"  {'time, ' + part:22} {span(low[part], high[part])}" for part in low]
    skipped = f", {len(missing) - len(ready)} others not counted" if len(missing) > len(ready) else ""
    whole = span(sum(low.values()), sum(high.values()))
    lines.append(f"  {'time in all':22} {whole} for {len(ready)} cells on one device{skipped}")
    return lines


def _assumptions(rate: Rate) -> list[str]:
    (least, most), (double_least, double_most) = EFFICIENCY, DOUBLE_EFFICIENCY
    return [
        "assumptions (an estimate, not a measurement; disk, download and loading of weights are left out):",
        f"  throughput {rate.source}",
        f"  {least:.0%} to {most:.0%} of it for layers and head, {double_least:.0%} to {double_most:.0%} for float64 "
        "decompositions at 9 d³ FLOPs",
        f"  passes per fact: low end {PASSES['adam']:.0%} (Adam) or {PASSES['trust']:.0%} (trust region) of the steps "
        "allowed, high end all of them",
        f"  {BYTES_PER_TOKEN:g} UTF-8 bytes per token; XTREME {XTREME_COLUMNS} tokens per record; attention scores and "
        "padding are not counted; prune",
        "  is counted in full, though it takes over the batches of a finished memit",
        "  memory: float32 weights, float64 statistics, all on one device; peak: a micro-batch of the longest facts, "
        "least: one such fact",
        "  at a time, since values halve their micro-batch where memory runs out; statistics cannot shrink",
    ]


def span(low: int | float, high: int | float) -> str:
    """A range of seconds in the unit that suits its upper end."""
    units = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
    name, unit = next(((name, unit) for name, unit in units.items() if high >= 2 * unit), ("seconds", 1))
    low, high = (f"{x:.0f}" if x >= 10 else f"{x:.2g}" for x in (low / unit, high / unit))
    return f"{low} to {high} {name}"
