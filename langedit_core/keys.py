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
    One forward reaches the last layer, and notes on the way what else each is called with (masks, rotary tables). After
    it, reading a layer costs the layers since the last one read, and its own up to the projection, which does not run.
    """

    def __init__(self, model: EditableModel, contexts: Sequence[Sequence[Row]], layers: Sequence[int]) -> None:
        """Args:
        model: Model whose layers are read.
        contexts: For every fact its rows; the first is the bare prompt.
        layers: Edited layers, ascending.
        """
        model.check_layers(layers)
        self.model, self.layers = model, tuple(layers)
        self.counts = [len(rows) for rows in contexts]
        # The lookup column stands last: rows end at the subject.
        cut = [Row(ids=row.ids[: row.lookup + 1], lookup=row.lookup) for rows in contexts for row in rows]
        batch = align(cut, model.pad_id, model.device)
        self.replay = Replay(model, batch.rows, layers[0], layers[-1] + 1)
        with self.replay.recording():
            run_until(model, batch, layers[-1])
        self.at, self.hidden = layers[0], self.replay.entry

    @torch.no_grad()
    def read(self, layer: int) -> Float[Tensor, "rows d_in"]:
        """Key of every row at `layer`; layers must be asked for in ascending order."""
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
        """Output of the last layer in `layers` at the bare prompts, on the model as it is now and on its device."""
        hidden = self.hidden
        for layer in range(self.at, self.layers[-1] + 1):
            hidden = self.replay(layer, hidden)
        bare = torch.tensor([sum(self.counts[:i]) for i in range(len(self.counts))], device=hidden.device)
        return hidden[bare, -1].T.contiguous().to(self.model.device)

    def average(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "d n"]:
        """Half the bare prompt, half the mean over its prefixes, for every fact."""
        means = [x[0] if len(x) == 1 else (x[0] + x[1:].mean(0)) / 2 for x in rows.split(self.counts)]
        return torch.stack(means, dim=1)

    def keys(self, layer: int) -> Float[Tensor, "d_in n"]:
        """Keys of all facts at `layer`, averaged over contexts, one column per fact."""
        return self.average(self.read(layer))
