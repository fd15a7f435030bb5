"""What is measured: each function returns named figures, flat, with the unit in the name.

Whatever is compared runs interleaved, in random order within a round, so that a slow minute of the machine hits all.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median

import torch
from jaxtyping import Float
from reference_engine import LiteralLoss, exact_loss, literal_layer_update, literal_value
from torch import Tensor, nn

from langedit_core import load_model, prepare_editor
from langedit_core.atlas import load_atlas
from langedit_core.editors import Editor
from langedit_core.models import EditableModel
from langedit_core.nullspace import NullSpace
from langedit_core.records import Fact
from langedit_core.refresh import World, interleaved, measure, seconds_of
from langedit_core.tokens import SubjectMerged
from langedit_core.values import ValueRequest, Values, ValueSettings, optimise_values

Figures = dict[str, float | int]
ADAM_RATE = 0.1
"""In units of ‖o‖/√d; of 0.6, 0.3, 0.15 and 0.1 the one with the shortest values and best edits on the tune split."""


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A model, an editor with the study's hyper-parameters, and the facts to edit."""

    model: EditableModel
    editor: Editor
    facts: list[Fact]
    requests: list[ValueRequest]

    @classmethod
    def prepare(cls, name: str, facts: int, langs: Sequence[str]) -> Bench:
        """Facts of the tune split, dealt round over `langs`."""
        model = load_model(name, device="cpu")
        editor = prepare_editor(model, "evoedit", langs=langs)

        def usable(fact: Fact) -> bool:
            try:
                editor.contexts.rows(model, fact.prompt, fact.subject, fact.lang)
            except SubjectMerged:
                return False
            return True

        hands = load_atlas(langs).select(langs, -(-facts // len(langs)), split="tune", usable=usable)
        kept, requests, _ = editor.requests([fact for deal in zip(*hands, strict=True) for fact in deal][:facts])
        return cls(model=model, editor=editor, facts=kept, requests=requests)

    @property
    def layers(self) -> tuple[int, ...]:
        return self.editor.settings.layers

    @property
    def literal(self) -> ValueSettings:
        """Settings of the reference: the engine's, with the step of Adam that finds Gemma's values best."""
        return self.editor.settings.values.model_copy(update={"rate": ADAM_RATE})

    def engine(self, requests: Sequence[ValueRequest], **changes) -> Values:
        settings = self.editor.settings
        values = settings.values.model_copy(update=changes)
        return optimise_values(self.model, requests, self.layers, values, microbatch=settings.microbatch)

    @contextlib.contextmanager
    def unedited(self) -> Iterator[None]:
        """Model and editor come back to where they were."""
        states = self.editor.layers.values()
        kept = [(state, state.weight, state.projector) for state in states]
        with self.model.restored(self.layers):
            yield
        for state, weight, projector in kept:
            state.weight, state.projector, state.past, state.past_gram = weight, projector, (), None


# --- values -----------------------------------------------------------------------------------------------------------


def values(bench: Bench, rng: random.Random, chunk: int) -> Figures:
    """The value engine against the literal reference, at the same stopping loss, and what each idea brings."""
    model, layers, settings = bench.model, bench.layers, bench.literal
    taken: dict[str, list[float]] = {}
    found: dict[str, list] = {"reference": [], "engine": []}
    losses: dict[str, list[float]] = {"reference": [], "engine": []}
    for start in range(0, len(bench.requests), chunk):
        part = bench.requests[start : start + chunk]
        tasks = {
            "engine": lambda part=part: bench.engine(part),
            "engine again": lambda part=part: bench.engine(part),
            "reference": lambda part=part: [
                seconds_of(lambda r=r: literal_value(model, r, layers, settings)) for r in part
            ],
        }
        if start == 0:  # the ladder of ideas: all of them use the suffix only and the head at the targets only
            tasks["engine, whole vocabulary"] = lambda part=part: bench.engine(part, vocabulary=None)
            tasks["engine, adam"] = lambda part=part: bench.engine(part, optimiser="adam", rate=ADAM_RATE)
            tasks["engine, one fact at a time"] = lambda part=part: [bench.engine([r]) for r in part]
            tasks["engine, one fact at a time, whole vocabulary"] = lambda part=part: [
                bench.engine([r], vocabulary=None) for r in part
            ]
        for name, seconds, result in interleaved(tasks, rng):
            say(f"values, facts {start + 1} to {start + len(part)}: {name} {seconds / len(part):.2f} s per fact")
            if name == "reference":
                taken.setdefault(name, []).extend(one for one, _ in result)
                found[name] += [value for _, value in result]
            else:
                taken.setdefault(name.removesuffix(" again"), []).append(seconds / len(part))
            if name == "engine":
                found[name].append(result)
        for i, request in enumerate(part):
            ours, theirs = found["engine"][-1].delta, found["reference"][start + i].delta
            ours = {layer: x[:, i] for layer, x in ours.items()}
            losses["engine"].append(exact_loss(model, request, ours, layers, settings))
            losses["reference"].append(exact_loss(model, request, theirs, layers, settings))

    reference, engine = median(taken["reference"]), median(taken["engine"])
    engine_losses = [loss for one in found["engine"] for loss in one.loss]
    norms = {
        "reference": [_norm(value.delta) for value in found["reference"]],
        "engine": [
            _norm({k: x[:, i] for k, x in v.delta.items()}) for v in found["engine"] for i in range(len(v.loss))
        ],
    }
    figures: Figures = {
        "values_facts_n": len(bench.requests),
        "values_batch_facts": chunk,
        "values_layers_n": len(layers),
        "values_reference_seconds_per_fact_median": reference,
        "values_engine_seconds_per_fact_median": engine,
        "values_engine_runs_n": len(taken["engine"]),
        "values_reference_over_engine": reference / engine,
        "values_reference_passes_mean": mean(len(one.loss) for one in found["reference"]),
        "values_engine_passes_mean": mean(map(len, engine_losses)),
        "values_reference_final_loss_mean": mean(losses["reference"]),
        "values_engine_final_loss_mean": mean(losses["engine"]),
        "values_reference_norm_mean": mean(norms["reference"]),
        "values_engine_norm_mean": mean(norms["engine"]),
        "values_stopping_loss": settings.stop,
        "values_reference_converged_share": mean(loss < settings.stop for loss in losses["reference"]),
        "values_engine_converged_share": mean(loss < settings.stop for loss in losses["engine"]),
        "values_engine_finished_share": mean(loss < settings.stop for one in found["engine"] for loss in one.final),
        # Passes a batch would run if it went on until its last fact is finished.
        "values_active_set_passes_saved_share": 1
        - sum(map(len, engine_losses)) / sum(max(map(len, v.loss)) * len(v.loss) for v in found["engine"]),
    }
    for name, seconds in taken.items():
        if name.startswith("engine, "):
            key = name.removeprefix("engine, ").replace(", ", "_").replace(" ", "_")
            figures[f"values_engine_{key}_seconds_per_fact"] = median(seconds)
    return figures | head_twice(bench, rng)


def _norm(delta: Mapping[int, Tensor]) -> float:
    return float(torch.stack([x.norm() for x in delta.values()]).norm())


def head_twice(bench: Bench, rng: random.Random, rounds: int = 3) -> Figures:
    """Cost of a reference step where the head is applied twice, as published, over one where it is applied once."""
    request, settings = bench.requests[0], bench.literal
    seconds: dict[str, list[float]] = {"once": [], "twice": []}
    losses = {
        name: LiteralLoss(bench.model, request, bench.layers, settings, head_twice=name == "twice") for name in seconds
    }
    delta = {layer: torch.zeros(bench.model.d_model, requires_grad=True) for layer in bench.layers}
    for number in range(rounds + 1):
        for name, took, _ in interleaved({n: lambda f=f: f(delta).backward() for n, f in losses.items()}, rng):
            if number:  # the first round touches memory for the first time
                seconds[name].append(took)
    once, twice = median(seconds["once"]), median(seconds["twice"])
    return {
        "values_reference_seconds_per_step": once,
        "values_reference_head_twice_seconds_per_step": twice,
        "values_reference_head_twice_over_once": twice / once,
    }


# --- the whole edit ---------------------------------------------------------------------------------------------------


def edit(bench: Bench, reference_values: float) -> Figures:
    """Seconds per fact of a whole batch: values, keys, null space, solve, write.

    The reference's values are those measured in `values`; its other phases are timed at the lowest layer and counted
    once per layer, since they cost the same at each.
    """
    settings, n = bench.editor.settings, len(bench.facts)
    engine, phases, others = [], {}, {}
    for number in range(2):
        with bench.unedited():
            took, (report, updates) = seconds_of(lambda: bench.editor.edit(bench.facts))
        engine.append(took / n)
        phases = {phase: seconds / n for phase, seconds in report.seconds.items()}
        say(f"edit of {n} facts: engine {took / n:.2f} s per fact")
        if number == 0:
            layer = bench.layers[0]
            state, first = bench.editor.layers[layer], updates[layer]
            contexts = [request.contexts for request in bench.requests]
            delta, others = literal_layer_update(
                bench.model, contexts, layer, _second_moment(state.null), first.left, cut=0.5, ridge=settings.ridge
            )
            say(f"edit, reference per layer: {', '.join(f'{k} {v:.1f} s' for k, v in others.items())}")
            difference = float((delta - first.delta).norm() / first.delta.norm())
    per_layer = sum(others.values()) * len(bench.layers) / n
    figures: Figures = {
        "edit_facts_n": n,
        "edit_reference_seconds_per_fact": reference_values + per_layer,
        "edit_engine_seconds_per_fact_median": median(engine),
        "edit_reference_over_engine": (reference_values + per_layer) / median(engine),
        "edit_update_relative_difference": difference,
    }
    figures |= {f"edit_reference_{phase}_seconds_per_layer": seconds for phase, seconds in others.items()}
    return figures | {f"edit_engine_{phase}_seconds_per_fact": seconds for phase, seconds in phases.items()}


def _second_moment(space: NullSpace) -> Float[Tensor, "d d"]:
    """A matrix with this null space below 0.5; a decomposition costs the same whatever the numbers."""
    free = space.projection
    return (torch.eye(len(free), dtype=free.dtype) - free) + 1e-6 * free


# --- projection refresh -----------------------------------------------------------------------------------------------


def projection(rng: random.Random, d: int, rounds: int, added: Sequence[int] = (10, 100)) -> Figures:
    """Taking new keys into a null space: full decomposition against the incremental form; a fifth is protected."""
    figures: Figures = {f"projection_{d}_rounds_n": rounds}
    kinds = {"exact": "eigh", "svd": "svd", "incremental": "incremental"}
    world = World.of(d, list(kinds), past=0)
    for n in added:
        rows = measure(d, n, rounds, list(kinds), past=0, seed=rng.randrange(2**31), world=world)
        middle = {kinds[row["kind"]]: median(row["seconds"]) for row in rows}
        for row in rows:
            name = f"projection_{d}_{n}_{kinds[row['kind']]}"
            figures |= {f"{name}_leak": row["leak"], f"{name}_rank": row["rank"]}
        figures |= {f"projection_{d}_{n}_{name}_seconds_median": seconds for name, seconds in middle.items()}
        figures[f"projection_{d}_{n}_eigh_over_incremental"] = middle["eigh"] / middle["incremental"]
        figures[f"projection_{d}_{n}_svd_over_incremental"] = middle["svd"] / middle["incremental"]
        say(f"projection {d}, {n} keys: " + ", ".join(f"{name} {s * 1e3:.0f} ms" for name, s in middle.items()))
    return figures


# --- arithmetic floor -------------------------------------------------------------------------------------------------


def floor(bench: Bench, engine_seconds: float) -> Figures:
    """Multiply-adds the values cannot do without, at the rate this machine multiplies matrices of these shapes.

    Linear layers and head only, on real columns (no padding); attention, norms and activations are left out.
    """
    model, settings = bench.model, bench.editor.settings.values
    found = bench.engine(bench.requests)
    weights = [
        sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear)) for layer in model.layers
    ]  # fmt: skip
    above, whole = sum(weights[bench.layers[0] + 1 :]), sum(weights)
    vocabulary = model.hf.get_output_embeddings().weight.shape[0] * model.d_model
    words = vocabulary if settings.vocabulary is None else settings.vocabulary * model.d_model
    stepping = setup = head = 0
    for request, losses, steps in zip(bench.requests, found.loss, found.steps, strict=True):
        suffix = sum(len(row.ids) - row.lookup for row in request.contexts) + 1  # and the KL column
        prefix = sum(row.lookup for row in request.contexts) + request.kl.lookup
        scored = len(request.contexts) * len(request.target) + 1
        passes = len(losses) + steps  # forward, and backward with respect to activations
        stepping += passes * suffix * above
        head += passes * scored * words + 2 * scored * vocabulary  # the first pass and the stopping test are exact
        setup += (prefix + suffix) * whole
    n = len(bench.requests)
    columns = (sum(len(r.ids) - r.lookup for q in bench.requests for r in q.contexts) + n) / n
    together = round(columns * min(n, bench.editor.settings.microbatch or n))
    rate = matrix_rate(model, bench.layers[-1], together)
    seconds = 2 * (stepping + setup + head) / rate / n
    say(f"floor: {seconds:.2f} s per fact at {rate / 1e9:.0f} GFLOP/s")
    return {
        "floor_steps_gigaflop_per_fact": 2e-9 * stepping / n,
        "floor_head_gigaflop_per_fact": 2e-9 * head / n,
        "floor_setup_gigaflop_per_fact": 2e-9 * setup / n,
        "floor_matrix_columns": together,
        "floor_matrix_rate_gigaflop_per_second": rate / 1e9,
        "floor_seconds_per_fact": seconds,
        "floor_engine_over_floor": engine_seconds / seconds,
    }


def matrix_rate(model: EditableModel, layer: int, columns: int, rounds: int = 15) -> float:
    """Floating point operations per second over the products of one layer, forward and with respect to inputs."""
    shapes = [m.weight.detach() for m in model.layers[layer].modules() if isinstance(m, nn.Linear)]
    work = 4 * columns * sum(w.numel() for w in shapes)
    inputs = [(torch.randn(columns, w.shape[1]), torch.randn(columns, w.shape[0])) for w in shapes]

    def products() -> None:
        for w, (x, g) in zip(shapes, inputs, strict=True):
            _ = x @ w.T, g @ w

    products()
    return work / median(seconds_of(products)[0] for _ in range(rounds))
