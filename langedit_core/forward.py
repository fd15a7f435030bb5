"""Run only what an edit can change: the columns from the subject's last token on, in the layers above the edit.

Attention is causal, so with tokens x_<s before the lookup column s, h_l(x_<s) does not depend on what is added at
s; their keys and values are computed once. The result equals the full forward; `tests/test_forward.py` says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from langedit_core.models import EditableModel
from langedit_core.tokens import Aligned


class PrefixCache(DynamicCache):
    """Attention keys and values of the prefix, joined to those of the suffix on every call and never changed.

    `rows` restricts all layers to some rows of the batch. Padded prefix columns must hold zeros, not NaN.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        super().__init__()
        self._keys, self._values = list(keys), list(values)
        self.rows: Int[Tensor, " b"] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        if self.rows is not None:
            rows = self.rows.to(keys.device)
            keys, values = keys[rows], values[rows]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._keys[layer_idx].shape[-2]

    def get_mask_sizes(self, query: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        query_length = query if isinstance(query, int) else query.shape[0]  # transformers 5.0 passed positions
        return self.get_seq_length(layer_idx) + query_length, 0


@contextlib.contextmanager
def hooked(*handles) -> Iterator[None]:
    """Hooks exist only inside the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Left(Exception):
    """Raised by a hook to leave a forward."""


@contextlib.contextmanager
def leaving_at(module: nn.Module | None) -> Iterator[None]:
    """A forward inside the block is left when it comes to `module`, and the block with it; None leaves nowhere.

    Hooks on the module's input that were there before still see it, so a tap is opened first:

    ```python
    with hooked(tap_input(port, seen, "key")), leaving_at(port):
        model.hf(ids)                  # nothing from `port` on runs, and nothing below this line
    ```
    """

    def leave(*_):
        raise _Left

    handles = [] if module is None else [module.register_forward_pre_hook(leave)]
    with hooked(*handles), contextlib.suppress(_Left):
        yield


def hidden_of(output: Tensor | tuple) -> Tensor:
    """A layer's hidden states; GPT-J returns a tuple, the others a bare tensor."""
    return output[0] if isinstance(output, tuple) else output


class Replay:
    """Calls single layers again with exactly the arguments the model gave them.

    Recording runs the model's own forward once, so masks, rotary tables and layer types are always the model's.
    """

    def __init__(self, model: EditableModel, batch_rows: int, first: int, stop: int) -> None:
        self.model, self.batch_rows, self.first, self.stop = model, batch_rows, first, stop
        self.arguments: dict[int, tuple[tuple, dict]] = {}
        self.entry: Float[Tensor, "b c d"] | None = None

    def recording(self) -> contextlib.AbstractContextManager[None]:
        def keep(layer: int) -> Callable:
            def hook(_module, args, kwargs):
                if "hidden_states" in kwargs:
                    kwargs = dict(kwargs)
                    hidden, rest = kwargs.pop("hidden_states"), ()
                else:
                    hidden, *rest = args
                self.arguments[layer] = (tuple(rest), dict(kwargs))
                if layer == self.first:
                    self.entry = hidden.detach()

            return hook

        layers = self.model.layers
        return hooked(
            *(layers[i].register_forward_pre_hook(keep(i), with_kwargs=True) for i in range(self.first, self.stop))
        )

    def __call__(
        self, layer: int, hidden: Float[Tensor, "b c d"], rows: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c d"]:
        args, kwargs = self.arguments[layer]
        if rows is not None:
            args, kwargs = _take(args, rows, self.batch_rows), _take(kwargs, rows, self.batch_rows)
        return hidden_of(self.model.layers[layer](hidden, *args, **kwargs))


def _take(item, rows: Tensor, batch: int):
    """Select rows of every batched tensor in nested arguments; 1-D tensors are positions, never batches."""
    if isinstance(item, Tensor):
        return item[rows.to(item.device)] if item.ndim >= 2 and item.shape[0] == batch else item
    if isinstance(item, tuple | list):
        return type(item)(_take(x, rows, batch) for x in item)
    if isinstance(item, Mapping):
        return {key: _take(value, rows, batch) for key, value in item.items()}
    return item


class SuffixForward:
    """The part of a forward pass above the first edited layer, on the columns from the subject's last token on.

    ```python
    run = SuffixForward(model, align(rows, model.pad_id), layer=6)
    hidden = run({6: delta})          # delta (rows, d) added at the write port; residual stream after the last layer
    ```

    `site="write"` adds at the output of the projection W, before a post-norm if there is one; `site="residual"` adds
    at the output of the whole layer, as the published code does.

    Attributes:
        clean: Residual stream after the last layer, of the model as it is.
        outputs: What stands at the subject's last token where a δ would be added, layer -> (rows, d).
    """

    @torch.no_grad()
    def __init__(self, model: EditableModel, batch: Aligned, *, layer: int, site: str = "write") -> None:
        if site not in ("write", "residual"):
            raise ValueError(f"site {site!r} is not a place to add a value; expected 'write' or 'residual'")
        self.model, self.batch, self.layer, self.site = model, batch, layer, site
        split, base = batch.split, model.hf.base_model
        prefix = DynamicCache()
        base(
            input_ids=batch.ids[:, :split], attention_mask=batch.mask[:, :split].long(),
            position_ids=batch.positions[:, :split], past_key_values=prefix, use_cache=True,
        )  # fmt: skip
        seen = batch.mask[:, None, :split, None]
        self.cache = PrefixCache(
            [c.keys.masked_fill(~seen.to(c.keys.device), 0) for c in prefix.layers],
            [c.values.masked_fill(~seen.to(c.values.device), 0) for c in prefix.layers],
        )

        self.replay = Replay(model, batch.rows, layer, model.n_layers)
        above = range(layer, model.n_layers)
        ports, blocks = {}, {}

        def keep(into: dict, name: int):
            return lambda _m, _a, out: into.__setitem__(name, hidden_of(out))

        with (
            self.replay.recording(),
            hooked(
                *(model.write_port(i).register_forward_hook(keep(ports, i)) for i in above),
                *(model.layers[i].register_forward_hook(keep(blocks, i)) for i in above),
            ),
        ):
            base(
                input_ids=batch.ids[:, split:], attention_mask=batch.mask.long(),
                position_ids=batch.positions[:, split:], past_key_values=self.cache, use_cache=True,
            )  # fmt: skip
        self.replay.entry = None
        self.block: Float[Tensor, "b c d"] = blocks[layer].clone()
        self.clean: Float[Tensor, "b c d"] = blocks[model.n_layers - 1].to(model.device, copy=True)
        self.outputs: dict[int, Float[Tensor, "b d"]] = {
            i: out[:, 0].to(model.device, copy=True) for i, out in (ports if site == "write" else blocks).items()
        }
        self.port: Float[Tensor, "b d"] = ports[layer][:, 0].clone()

    def __call__(
        self, deltas: Mapping[int, Float[Tensor, "b d"]] | None = None, rows: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b c d"]:
        """Residual stream after the last layer, with `deltas[layer]` added at the subject's last token.

        Args:
            deltas: One (rows, d) tensor per edited layer, none below `self.layer`; None runs the clean model. In
                float32 whatever the model is: rounded as it is, its gradient and short steps would be lost.
            rows: Run these rows of the batch only.
        """
        deltas = dict(deltas or {})
        take = slice(None) if rows is None else rows.to(self.block.device)
        hidden, port = self.block[take], self.port[take]
        if (delta := deltas.pop(self.layer, None)) is not None:
            if self.site == "residual":
                first = _sum(hidden[:, 0], delta)
            else:
                write = self.model.post_norm
                first = hidden[:, 0] + (write(self.layer, _sum(port, delta)) - write(self.layer, port))
            hidden = torch.cat([first[:, None], hidden[:, 1:]], dim=1)
        self.cache.rows = rows
        with hooked(*(self._adding(layer, delta) for layer, delta in deltas.items())):
            for layer in range(self.layer + 1, self.model.n_layers):
                hidden = self.replay(layer, hidden, rows)
        return hidden.to(self.model.device)

    def _adding(self, layer: int, delta: Tensor):
        def add(_module, _args, out):
            hidden = hidden_of(out)
            hidden = torch.cat([_sum(hidden[:, :1], delta[:, None]), hidden[:, 1:]], dim=1)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        where = self.model.write_port(layer) if self.site == "write" else self.model.layers[layer]
        return where.register_forward_hook(add)


def _sum(output: Float[Tensor, "*rows d"], delta: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """`output` + δ in the precision of the model, which the next layer takes; only the sum is rounded, δ is not."""
    return (output + delta.to(output.device)).to(output.dtype)


@torch.no_grad()
def run_until(model: EditableModel, batch: Aligned, stop: int, *taps) -> None:
    """Run the model's forward up to, not including, layer `stop`.

    Args:
        model: As it is now.
        batch: b token rows of c columns, padding included; layers get hidden states of shape (b, c, d_model).
        stop: The first layer that does not run; `model.n_layers` runs all of them and the final norm.
        taps: Open hooks (see `tap_input`), by which the caller sees anything; they are closed at the end.
    """
    with hooked(*taps), leaving_at(model.layers[stop] if stop < model.n_layers else None):
        model.hf.base_model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            position_ids=batch.positions,
            use_cache=False,
        )


def tap_input(module: nn.Module, into: dict, name: object) -> object:
    """A hook that keeps `module`'s input in `into[name]`."""
    return module.register_forward_pre_hook(lambda _m, args: into.__setitem__(name, args[0]))
