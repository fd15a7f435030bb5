"""Runs of one prompt in which single states are set to what they are in another run of it.

Attention is causal and layers only read what is below: a state restored at token t and layer l changes columns from t
on in layers above l. Only those are computed again, for many interventions and all noise samples in one batch, in which
every intervention joins at its own layer; the vocabulary head is applied at the last token only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from langedit_core.forward import PrefixCache, Replay, hidden_of, hooked
from langedit_core.models import EditableModel

SITES = ("hidden", "mlp", "attention")
LOGITS = 2**25  # logits held at a time: 128 MB in float32


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One intervention on the corrupted run.

    Attributes:
        site: What is restored: outputs of whole layers (`hidden`), or of their `mlp` or `attention` modules.
        layers: Layers in which it is restored.
        tokens: Columns at which it is restored.
        severed: `mlp` or `attention`: at the same tokens and in all higher layers these outputs stay what they were
            in the corrupted run, so that the restored state cannot act through them.
    """

    site: str
    layers: tuple[int, ...]
    tokens: tuple[int, ...]
    severed: str | None = None

    @property
    def entry(self) -> int:
        """The first layer that has to be computed again."""
        return min(self.layers) + (self.site == "hidden")


class PromptRuns:
    """Clean and corrupted run of one prompt, and corrupted runs in which something is restored.

    ```python
    runs = PromptRuns(model, ids, subject=range(4, 7), noise=noise)
    runs.scores([Cell(site="hidden", layers=(5,), tokens=(6,))])  # (1, samples)
    ```

    Args:
        model: Any supported model.
        ids: The prompt, c tokens.
        subject: Columns whose embeddings get the noise.
        noise: What is added to them, one matrix per sample.
        answer: Token id whose probability is the score; the likeliest one of the clean run by default.

    Attributes:
        clean: Score without noise.
        corrupted: Score of every noise sample.

    Raises:
        ValueError: `subject` lies outside the prompt, or `noise` has another shape than it asks for.
        FloatingPointError: The model gives NaN or infinity.
    """

    @torch.no_grad()
    def __init__(
        self, model: EditableModel, ids: Sequence[int], *, subject: range, noise: Float[Tensor, "s n d"],
        answer: int | None = None,
    ) -> None:  # fmt: skip
        if not subject or subject[0] < 0 or subject[-1] >= len(ids):
            raise ValueError(f"the subject's columns {subject} do not lie in a prompt of {len(ids)} tokens")
        if tuple(noise.shape[1:]) != (len(subject), model.d_model):
            raise ValueError(
                f"noise has shape {tuple(noise.shape)}, expected samples x {len(subject)} subject tokens x "
                f"{model.d_model}, the width of the embeddings"
            )
        self.model, self.subject, self.samples = model, subject, len(noise)
        self.ids = torch.tensor(list(ids), device=model.device)
        # Row 0 is clean, the others are the samples; layer -> (1 + samples, c, d).
        self.outputs: dict[str, list[Tensor]] = {site: [] for site in SITES}
        cache = DynamicCache()
        with hooked(*self._watching(noise)):
            model.hf.base_model(
                input_ids=self.ids.repeat(1 + self.samples, 1), attention_mask=self._mask(1 + self.samples),
                position_ids=torch.arange(len(ids), device=model.device)[None], past_key_values=cache, use_cache=True,
            )  # fmt: skip
        self._keys, self._values = [c.keys[1:] for c in cache.layers], [c.values[1:] for c in cache.layers]
        last = self.outputs["hidden"][-1][:, -1]
        self.answer = int(model.logits(last[:1]).argmax()) if answer is None else answer
        found = self._probability(last)
        if not torch.isfinite(found).all():
            raise FloatingPointError(f"{model.name} gives NaN or infinity on a prompt; load it in float32")
        self.clean, self.corrupted = float(found[0]), found[1:]

    @torch.no_grad()
    def scores(self, cells: Sequence[Cell], *, columns: int = 2048) -> Float[Tensor, "cells s"]:
        """Probability of the answer after each intervention, for every noise sample.

        Args:
            cells: Any interventions, in any order.
            columns: Token columns per batch, samples included: what bounds the memory.

        Raises:
            ValueError: A cell names a site, layer or token that does not exist.
        """
        for cell in cells:
            self._check(cell)
        found = self.corrupted.repeat(len(cells), 1)
        live = [i for i, cell in enumerate(cells) if not self._inert(cell)]
        live.sort(key=lambda i: (min(cells[i].tokens), cells[i].entry))
        for start, group in itertools.groupby(live, key=lambda i: min(cells[i].tokens)):
            numbers, replay, cache = list(group), *self._suffix(start)
            size = max(1, columns // (self.samples * (len(self.ids) - start)))
            for chunk in (numbers[i : i + size] for i in range(0, len(numbers), size)):
                found[chunk] = self._run([cells[i] for i in chunk], start, replay, cache)
        return found

    def _run(self, cells: Sequence[Cell], start: int, replay: Replay, cache: PrefixCache) -> Float[Tensor, "cells s"]:
        """Cells in order of entry climb the layers together; each joins where it first differs."""
        samples = torch.arange(self.samples, device=self.ids.device)
        hidden, running = self.outputs["hidden"][0][:0, start:], 0
        for layer in range(cells[0].entry, self.model.n_layers + 1):  # the last round only restores
            joining = sum(cell.entry == layer for cell in cells)
            below = self._entry if layer == 0 else self.outputs["hidden"][layer - 1]
            hidden = torch.cat([hidden.to(below.device), below[1:, start:].repeat(joining, 1, 1)])
            running += joining
            self._set(hidden, "hidden", layer - 1, cells[:running], start)
            if layer < self.model.n_layers:
                cache.rows = samples.repeat(running)
                with hooked(*self._setting(layer, cells[:running], start)):
                    hidden = replay(layer, hidden)
        return self._probability(hidden[:, -1]).view(len(cells), self.samples)

    def _set(self, out: Float[Tensor, "b c d"], site: str, layer: int, cells: Sequence[Cell], start: int) -> None:
        """Put clean, and where severed corrupted, values into the output of one module; in place."""
        out = out.unflatten(0, (len(cells), self.samples))
        for at, row in (
            (_places(c.tokens if c.site == site and layer in c.layers else () for c in cells), "clean"),
            (_places(c.tokens if c.severed == site and layer > max(c.layers) else () for c in cells), "corrupted"),
        ):
            if at:
                numbers, tokens = torch.tensor(at, device=out.device).T
                known = self.outputs[site][layer][:, tokens].transpose(0, 1)  # (places, 1 + samples, d)
                out[numbers, :, tokens - start] = known[:, :1] if row == "clean" else known[:, 1:]

    def _setting(self, layer: int, cells: Sequence[Cell], start: int) -> list:
        """Hooks for the modules of `layer` that some cell touches."""

        def hook(site: str):
            return lambda _m, _a, out: self._set(hidden_of(out), site, layer, cells, start)

        touched = {c.site for c in cells if layer in c.layers} | {c.severed for c in cells if layer > max(c.layers)}
        return [
            _module(self.model, layer, site).register_forward_hook(hook(site)) for site in SITES[1:] if site in touched
        ]

    def _suffix(self, start: int) -> tuple[Replay, PrefixCache]:
        """What the layers are called with on the columns from `start` on, and the corrupted columns before them."""
        model = self.model
        cache = PrefixCache([k[:, :, :start] for k in self._keys], [v[:, :, :start] for v in self._values])
        cache.rows = torch.zeros(1, dtype=torch.long, device=self.ids.device)
        replay = Replay(model, 1, 0, model.n_layers)
        with replay.recording():
            model.hf.base_model(
                input_ids=self.ids[None, start:], attention_mask=self._mask(1),
                position_ids=torch.arange(start, len(self.ids), device=self.ids.device)[None],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        replay.entry = None
        return replay, cache

    def _watching(self, noise: Tensor) -> list:
        """Hooks of the first run: noise into the embeddings, and every output kept."""
        model, subject = self.model, slice(self.subject[0], self.subject[-1] + 1)

        def corrupt(_module, _args, out):
            noisy = out[1:, subject].double() + noise.to(out.device).double()
            out = out.clone()
            out[1:, subject] = noisy.to(out.dtype)
            return out

        def enter(_module, args, kwargs):
            self._entry = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        def keep(site: str):
            return lambda _m, _a, out: self.outputs[site].append(hidden_of(out).clone())

        where = [(_module(model, layer, site), site) for layer in range(model.n_layers) for site in SITES]
        return [
            model.hf.get_submodule(model.architecture.embedding).register_forward_hook(corrupt),
            model.layers[0].register_forward_pre_hook(enter, with_kwargs=True),
            *(module.register_forward_hook(keep(site)) for module, site in where),
        ]

    def _mask(self, rows: int) -> Tensor:
        return torch.ones(rows, len(self.ids), dtype=torch.long, device=self.ids.device)

    def _probability(self, hidden: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        head = self.model.head()
        size = max(1, LOGITS // self.model.hf.get_output_embeddings().weight.shape[0])
        logits = (head(part).float() for part in hidden.split(size))
        # Σ exp(z − z_answer) in place; where it overflows, the probability is zero to all digits.
        return torch.cat([x.sub_(x[:, self.answer, None].clone()).exp_().sum(-1).reciprocal() for x in logits])

    def _inert(self, cell: Cell) -> bool:
        """Nothing to restore before the subject, and no way from the top layer to another token."""
        before = max(cell.tokens) < self.subject[0]
        top = self.model.n_layers - 1
        return before or (min(cell.layers) == top and len(self.ids) - 1 not in cell.tokens)

    def _check(self, cell: Cell) -> None:
        layers, tokens = range(self.model.n_layers), range(len(self.ids))
        known = cell.site in SITES and (cell.severed is None or cell.severed in SITES[1:])
        if not (known and cell.layers and cell.tokens and {*cell.layers} <= {*layers} and {*cell.tokens} <= {*tokens}):
            raise ValueError(
                f"{cell} cannot be run: expected a site of {', '.join(SITES)}, severed None, mlp or attention, and "
                f"at least one layer below {len(layers)} and token below {len(tokens)}"
            )


def _module(model: EditableModel, layer: int, site: str) -> torch.nn.Module:
    names = {"mlp": model.architecture.mlp, "attention": model.architecture.attention}
    return model.layers[layer] if site == "hidden" else model.layers[layer].get_submodule(names[site])


def _places(tokens: Iterable[tuple[int, ...]]) -> list[tuple[int, int]]:
    return [(number, token) for number, some in enumerate(tokens) for token in some]
