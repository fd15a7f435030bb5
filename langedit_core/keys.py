"""Read keys: what enters the edited matrix at the subject's last token, averaged over contexts.

    k = ½ k("{}") + ½ · mean over prefixes of k(prefix)        (the weighting of the published MEMIT code)

Tokens after the subject cannot change its key, so rows end there; later layers are read again after each edit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.forward import Replay, hooked, leaving_at, run_until, tap_input
from langedit_core.memory import as_memory_allows
from langedit_core.models import EditableModel
from langedit_core.tokens import Row, align


class KeyReader:
    """Keys of a batch at several layers, while those layers are being edited from the lowest up.

    ```python
    reader = KeyReader(model, contexts, layers=(3, 4, 5))
    for layer in (3, 4, 5):
        keys = reader.keys(layer)          # d_in x n, on the model as it is now
        model.add_(layer, ...)
    ```
    Facts go through the model together, or in parts where memory asks for it; only the rounding of products depends on
    that. One forward of a part reaches the last layer, and notes on the way what else each is called with (masks,
    rotary tables). After it, reading a layer costs the layers since the last one read, and its own up to the
    projection, which does not run.
    """

    def __init__(
        self, model: EditableModel, contexts: Sequence[Sequence[Row]], layers: Sequence[int], *,
        microbatch: int | None = None,
    ) -> None:  # fmt: skip
        """Args:
        model: Model whose layers are read.
        contexts: For every fact its rows; the first is the bare prompt.
        layers: Edited layers, ascending.
        microbatch: Facts of a part; None: all. Halves when memory runs out.

        Raises:
            MemoryError: Even a single fact does not fit.
        """
        model.check_layers(layers)
        self.model, self.counts = model, [len(rows) for rows in contexts]
        self.parts: list[_Part] = []

        def work(facts: list[int]) -> None:
            self.parts.append(_Part(model, [contexts[i] for i in facts], tuple(layers)))

        def alone(fact: int, error: RuntimeError) -> str:
            return (
                f"keys of one fact ({sum(row.lookup + 1 for row in contexts[fact])} tokens in {self.counts[fact]} "
                f"contexts) do not fit in memory: {error}; use fewer or shorter contexts, or a larger device"
            )

        for _ in as_memory_allows([range(len(contexts))], work, most=microbatch, alone=alone):
            pass

    def read(self, layer: int) -> Float[Tensor, "rows d_in"]:
        """Key of every row at `layer`; layers must be asked for in ascending order."""
        return torch.cat([part.read(layer) for part in self.parts])

    def residual_stream(self) -> Float[Tensor, "d_model n"]:
        """Output of the last layer in `layers` at the bare prompts, on the model as it is now and on its device."""
        return torch.cat([part.residual_stream() for part in self.parts], dim=1)

    def average(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "d n"]:
        """Half the bare prompt, half the mean over its prefixes, for every fact."""
        means = [x[0] if len(x) == 1 else (x[0] + x[1:].mean(0)) / 2 for x in rows.split(self.counts)]
        return torch.stack(means, dim=1)

    def keys(self, layer: int) -> Float[Tensor, "d_in n"]:
        """Keys of all facts at `layer`, averaged over contexts, one column per fact."""
        return self.average(self.read(layer))


class _Part:
    """Rows of some facts, as far up as they were read; see `KeyReader`."""

    def __init__(self, model: EditableModel, contexts: Sequence[Sequence[Row]], layers: tuple[int, ...]) -> None:
        self.model, self.layers = model, layers
        # The lookup column stands last: rows end at the subject.
        cut = [Row(ids=row.ids[: row.lookup + 1], lookup=row.lookup) for rows in contexts for row in rows]
        batch = align(cut, model.pad_id, model.device)
        self.replay = Replay(model, batch.rows, layers[0], layers[-1] + 1)
        with self.replay.recording():
            run_until(model, batch, layers[-1])
        self.at, self.hidden = layers[0], self.replay.entry
        self.bare = [sum(len(rows) for rows in contexts[:i]) for i in range(len(contexts))]

    @torch.no_grad()
    def read(self, layer: int) -> Float[Tensor, "rows d_in"]:
        if layer < self.at:
            raise ValueError(f"layer {layer} was passed already (now at {self.at}); read layers in ascending order")
        while self.at < layer:
            self.hidden = self.replay(self.at, self.hidden)
            self.at += 1
        seen: dict[str, Tensor] = {}
        port = self.model.write_port(layer)
        with hooked(tap_input(port, seen, "key")), leaving_at(port):
            self.replay(layer, self.hidden)
        return seen["key"][:, -1].clone().float()  # what is solved with them, and kept, has more digits than half

    @torch.no_grad()
    def residual_stream(self) -> Float[Tensor, "d_model n"]:
        hidden = self.hidden
        for layer in range(self.at, self.layers[-1] + 1):
            hidden = self.replay(layer, hidden)
        return hidden[torch.tensor(self.bare, device=hidden.device), -1].T.contiguous().to(self.model.device)
