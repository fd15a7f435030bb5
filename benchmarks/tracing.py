"""Time a full trace of one prompt against one forward pass per cell: `python benchmarks/tracing.py`.

All tokens x layers x three kinds x noise samples on Gemma 3 270M. The literal reference runs, per cell, the whole model
on the clean row and all samples, with the head at every position, as the published code does; a second one applies the
head at the last position only. All cells of a reference cost the same, so a random part of them is timed, interleaved
with the engine in random order, and the median is taken times their number. On a busy machine the processor's seconds
mean more than those of the clock; both are given.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from run import HERE, MODEL, machine, table
from sections import Figures, say

from langedit_core.atlas import load_atlas
from langedit_core.forward import hidden_of, hooked
from langedit_core.models import EditableModel, load_model
from langedit_core.patching import Cell
from langedit_core.storage import write_json
from langedit_core.tracing import (
    TraceSettings,
    answer_ids,
    cells_of,
    embedding_deviation,
    noise_of,
    subject_columns,
    trace,
)
from langedit_core.tracing_study import find_known


def timed(run: Callable[[], object]) -> tuple[float, float, object]:
    """Seconds of the clock, of the processor, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


class Literal:
    """One forward pass of the whole model per cell; shares nothing with the engine but the noise."""

    def __init__(self, model: EditableModel, ids: tuple[int, ...], subject: range, noise: torch.Tensor, answer: int):
        self.model, self.subject, self.noise, self.answer = model, subject, noise, answer
        self.rows = torch.tensor(ids).repeat(1 + len(noise), 1)

    @torch.no_grad()
    def score(self, cell: Cell, *, whole_head: bool) -> float:
        """Mean probability of the answer over samples."""
        model, names = self.model, {"mlp": self.model.architecture.mlp, "attention": self.model.architecture.attention}

        def corrupt(_module, _args, out):
            out[1:, self.subject[0] : self.subject[-1] + 1] += self.noise
            return out

        def restore(_module, _args, out):
            tensor = hidden_of(out)
            for token in cell.tokens:
                tensor[1:, token] = tensor[0, token]
            return out

        blocks = (model.layers[layer] for layer in cell.layers)
        modules = (block if cell.site == "hidden" else block.get_submodule(names[cell.site]) for block in blocks)
        embedding = model.hf.get_submodule(model.architecture.embedding)
        hooks = [embedding.register_forward_hook(corrupt), *(m.register_forward_hook(restore) for m in modules)]
        with hooked(*hooks):
            logits = model.hf(input_ids=self.rows, use_cache=False, logits_to_keep=0 if whole_head else 1).logits
        return float(logits[1:, -1].softmax(-1)[:, self.answer].mean())


def compare(rounds: int, part: int, samples: int, rng: random.Random) -> Figures:
    """Trace the known English fact of median length, `rounds` times, beside `part` cells of each reference."""
    model, data = load_model(MODEL, device="cpu"), load_atlas(["en"])
    known = sorted(
        find_known(model, data, ["en"], asked=60, traced=60).facts, key=lambda f: len(model.tokenizer(f.text).input_ids)
    )
    fact, settings = known[len(known) // 2], TraceSettings(samples=samples, severed=False)
    deviation = embedding_deviation(model, [by_lang["en"].subject for by_lang in data.facts.values()])
    ids, subject = subject_columns(model.tokenizer, fact)
    cells = cells_of(model.n_layers, len(ids), subject, settings)
    noise = (settings.noise * deviation * noise_of(ids, subject, model.d_model, settings)).float()
    literal = Literal(model, ids, subject, noise, answer_ids(model, fact)[0])
    say(f"{fact.text!r}: {len(ids)} tokens, {len(subject)} of the subject, {len(cells)} cells, {samples} samples")
    taken: dict[str, list[tuple[float, float]]] = {"engine": [], "literal": [], "literal_last_head": []}
    worst, found = 0.0, trace(model, fact, deviation, settings).scores
    for _ in range(rounds):
        tasks = [("engine", None)] + [
            (name, key) for key in rng.sample(sorted(cells), part) for name in ("literal", "literal_last_head")
        ]
        for name, key in rng.sample(tasks, len(tasks)):
            if key is None:
                wall, cpu, _ = timed(lambda: trace(model, fact, deviation, settings))
            else:
                whole = name == "literal"
                wall, cpu, score = timed(lambda key=key, whole=whole: literal.score(cells[key], whole_head=whole))
                kind, token, layer = key
                worst = max(worst, abs(score - float(found[kind][token, layer].mean())))
            taken[name].append((wall, cpu))
            say(f"{name}: {wall:.2f} s, {cpu:.2f} s of the processor")
    figures: Figures = dict(
        tracing_tokens_n=len(ids), tracing_subject_tokens_n=len(subject), tracing_cells_n=len(cells),
        tracing_samples_n=samples, tracing_rounds_n=rounds, tracing_literal_cells_timed_n=len(taken["literal"]),
        tracing_largest_difference_of_a_score=worst,
    )  # fmt: skip
    for number, clock in enumerate(("wall", "cpu")):
        medians = {name: median(seconds[number] for seconds in found) for name, found in taken.items()}
        engine = figures[f"tracing_engine_{clock}_seconds_median"] = medians.pop("engine")
        for name, seconds in medians.items():
            figures[f"tracing_{name}_{clock}_seconds_per_cell_median"] = seconds
            figures[f"tracing_{name}_over_engine_{clock}"] = seconds * len(cells) / engine
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="traces by the engine")
    parser.add_argument("--cells", type=int, default=12, help="cells of each reference timed per round")
    parser.add_argument("--samples", type=int, default=10, help="noise samples per prompt")
    options = parser.parse_args()
    about = machine()
    figures = compare(options.rounds, options.cells, options.samples, random.Random(0))
    write_json(HERE / "tracing.json", dict(figures=figures, machine=about, model=MODEL))
    print(table(figures))


if __name__ == "__main__":
    main()
