"""Prompts that begin alike are run once as far as they agree; the rest runs in batches on top of those keys and values.

With x_<p common to all rows, h(x_<p) is the same for all of them, because attention is causal. A row that is shorter
than its batch takes its last prefix tokens along once more instead of being padded, so every row stays in one piece:
columns differ as positions do, which windowed attention counts. The result equals the full forward.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from langedit_core.forward import leaving_at
from langedit_core.memory import alike, as_memory_allows
from langedit_core.models import EditableModel

CELLS = 8192
"""Rows times columns of attention keys held at a time; what a batch needs in memory is proportional to it."""


class RoomyCache(DynamicCache):
    """Attention keys and values in buffers with room for the tokens to come, so that a step copies nothing."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], used: int, room: int) -> None:
        super().__init__()
        self._keys, self._values, self._used, self._room = list(keys), list(values), [used] * len(keys), room

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        if layer_idx == len(self._keys):  # nothing was cached before the first call
            for buffers, states in ((self._keys, key_states), (self._values, value_states)):
                buffers.append(states.new_zeros(*states.shape[:2], self._room, states.shape[-1]))
            self._used.append(0)
        keys, values, start = self._keys[layer_idx], self._values[layer_idx], self._used[layer_idx]
        stop = start + key_states.shape[-2]
        keys[:, :, start:stop], values[:, :, start:stop] = key_states, value_states
        self._used[layer_idx] = stop
        return keys[:, :, :stop], values[:, :, :stop]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self._keys = [keys[rows.to(keys.device)] for keys in self._keys]
        self._values = [values[rows.to(values.device)] for values in self._values]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._used[layer_idx] if layer_idx < len(self._used) else 0

    def get_mask_sizes(self, query: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        query_length = query if isinstance(query, int) else query.shape[0]  # transformers 5.0 passed positions
        return self.get_seq_length(layer_idx) + query_length, 0


class SharedPrefix:
    """The common beginning of `rows`, run once.

    ```python
    prefix = SharedPrefix(model, rows)
    run = prefix.batch(rows[:8], room=32)      # run.hidden: last columns of every row, right-aligned
    hidden = run.step(ids)                     # one more token per row
    ```
    """

    @torch.no_grad()
    def __init__(
        self,
        model: EditableModel,
        rows: Sequence[Sequence[int]],
        *,
        most: int | None = None,
        leave: nn.Module | None = None,
    ) -> None:
        """
        Args:
            model: Any editable model, as it is edited now.
            rows: Token ids; none may be empty.
            most: Share at most this many tokens; tests compare with 0.
            leave: For batches that are left at this module (`leaving_at`): the layers above it are not run here either.
        """
        if not rows or not all(rows):
            raise ValueError("a shared prefix needs at least one row, each with at least one token")
        self.model = model
        low, high = min(rows), max(rows)  # the common prefix of the extremes is that of all
        length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
        # Every row keeps a token of its own, whose hidden state is wanted.
        self.length = min(length, min(map(len, rows)) - 1, *([] if most is None else [most]))
        self.ids = tuple(rows[0][: self.length])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        if self.length:
            cache = DynamicCache()
            ids = torch.tensor([self.ids], device=model.device)
            with leaving_at(leave):
                model.hf.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            self.keys = [layer.keys for layer in cache.layers]
            self.values = [layer.values for layer in cache.layers]

    def batch(self, rows: Sequence[Sequence[int]], room: int = 0) -> Running:
        """Run `rows` (all with this prefix), leaving room for `room` more tokens."""
        return Running(self, rows, room)

    def buffers(self, tensors: Sequence[Tensor], lengths: Sequence[int], room: int) -> list[Tensor]:
        """Copies of the prefix with `room` columns, row i holding its first `lengths[i]` tokens; zeros elsewhere."""
        made = []
        for tensor in tensors:
            _, heads, _, width = tensor.shape
            buffer = tensor.new_zeros(len(lengths), heads, room, width)
            for i, n in enumerate(lengths):
                buffer[i, :, self.length - n : self.length] = tensor[0, :, :n]
            made.append(buffer)
        return made


class Running:
    """A batch of rows on top of a shared prefix.

    Attributes:
        hidden: Hidden states, final norm applied, of the last columns of each row; the last one is the row's end.
    """

    @torch.no_grad()
    def __init__(self, prefix: SharedPrefix, rows: Sequence[Sequence[int]], room: int) -> None:
        self.model, p = prefix.model, prefix.length
        if any(tuple(row[:p]) != prefix.ids for row in rows):
            raise ValueError("a row does not begin with the shared prefix; build it from all rows")
        own = max(map(len, rows)) - p
        cached = [max(0, len(row) - own) for row in rows]
        device = self.model.device
        ids = torch.full((len(rows), own), self.model.pad_id, dtype=torch.long)
        for i, row in enumerate(rows):
            tail = torch.tensor(row[-own:])
            ids[i, own - len(tail) :] = tail
        lengths = torch.tensor([len(row) for row in rows])
        columns = torch.arange(p + own)
        self.mask = (columns >= (p + own - lengths)[:, None]).long().to(device)
        self.positions = (columns[p:] - (p + own - lengths)[:, None]).clamp_min(0).to(device)
        room += p + own
        keys, values = (prefix.buffers(tensors, cached, room) for tensors in (prefix.keys, prefix.values))
        self.cache = RoomyCache(keys, values, p, room)
        self.hidden: Float[Tensor, "b c d"] = self._forward(ids.to(device))

    def _forward(self, ids: Tensor) -> Float[Tensor, "b c d"]:
        return self.model.hf.base_model(
            input_ids=ids, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state  # fmt: skip

    @torch.no_grad()
    def step(self, ids: Tensor) -> Float[Tensor, "b d"]:
        """Append one token to every row; hidden state of the new column."""
        self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        self.positions = self.positions[:, -1:] + 1
        return self._forward(ids[:, None])[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.mask, self.positions = self.mask[rows], self.positions[rows]
        self.cache.keep(rows)


def in_batches(
    rows: Sequence[Sequence[int]], room: int, cells: int, work: Callable[[list[int]], None]
) -> Iterator[list[int]]:
    """Do `work` on indices of rows of like length together, as memory allows, and yield them when done.

    Args:
        rows: Token ids.
        room: Columns that a row grows by.
        cells: Rows times columns of a batch, as far as a single row allows.
        work: May be called again with parts of a batch that failed.

    Raises:
        MemoryError: Even a single row does not fit.
    """

    def alone(i: int, error: RuntimeError) -> str:
        return (
            f"a prompt of {len(rows[i])} tokens does not fit in memory: {error}; "
            "ask for fewer shots or shorter contexts, or use a larger device"
        )

    return as_memory_allows(alike([len(row) for row in rows], cells, room), work, alone=alone)


def check_room(model: EditableModel, rows: Sequence[Sequence[int]], room: int) -> None:
    """Refuse rows that the model has no positions for.

    Raises:
        TextTooLong: Says how long the longest row is and what the model takes.
    """
    longest = max(map(len, rows))
    model.check_length(longest + room, "a prompt with its examples and answer", "ask with fewer shots")


@torch.no_grad()
def score_options(
    model: EditableModel,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    *,
    cells: int = CELLS,
    share: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Total log-probability of each option after its prompt.

    Args:
        model: Any editable model.
        prompts: Token ids.
        options: For each prompt the token ids of what may follow, none empty.
        cells: Rows times columns of a batch.
        share: Share at most this many prefix tokens; all by default.
        progress: Called with the number of prompts done.

    Raises:
        TextTooLong: A prompt is too long for the model.
    """
    # An option's last token is not fed in; what is fed in for a longer option serves the shorter ones that begin it.
    rows: list[tuple[int, ...]] = []
    owner: list[int] = []
    for i, (prompt, said) in enumerate(zip(prompts, options, strict=True)):
        fed = sorted({tuple(option[:-1]) for option in said}, key=len)
        for j, one in enumerate(fed):
            if not any(other[: len(one)] == one for other in fed[j + 1 :]):
                rows.append((*prompt, *one))
                owner.append(i)
    check_room(model, rows, 0)
    prefix = SharedPrefix(model, rows, most=min(map(len, prompts)) - 1 if share is None else share)
    scores = [[0.0] * len(said) for said in options]

    def work(chunk: list[int]) -> None:
        run = prefix.batch([rows[i] for i in chunk])
        # Columns that predict an option's tokens: from the prompt's last one to the row's end.
        counts = [len(rows[i]) - len(prompts[owner[i]]) + 1 for i in chunk]
        at = torch.cat([run.hidden[row, -n:] for row, n in enumerate(counts)])
        log_p = model.logits(at, normed=True).float().log_softmax(-1).split(counts)
        for i, table in zip(chunk, log_p, strict=True):
            fed = rows[i][len(prompts[owner[i]]) :]
            for j, option in enumerate(options[owner[i]]):
                if fed[: len(option) - 1] == tuple(option[:-1]):  # equal numbers where several rows serve
                    scores[owner[i]][j] = sum(float(table[k, token]) for k, token in enumerate(option))

    waiting = Counter(owner)
    for chunk in in_batches(rows, 0, cells, work):
        waiting -= Counter(owner[i] for i in chunk)
        if progress:
            progress(len(prompts) - len(waiting))
    return scores


def end_tokens(model: EditableModel) -> frozenset[int]:
    """Ids after which the model has said all: the tokenizer's end token and those of the generation config.

    Chat models end a turn with another token than a text, and only the generation config names both.
    """
    named = model.hf.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return frozenset(i for i in (model.tokenizer.eos_token_id, *ids) if i is not None)


@torch.no_grad()
def generate(
    model: EditableModel,
    prompts: Sequence[Sequence[int]],
    *,
    stop: str,
    tokens: int,
    cells: int = CELLS,
    share: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[str, bool]]:
    """Greedy continuations, up to the text `stop`, an end token or `tokens` tokens; the head runs at the last column.

    Returns:
        For each prompt its continuation before `stop`, and whether it ended by itself.

    Raises:
        TextTooLong: A prompt is too long for the model.
    """
    check_room(model, prompts, tokens)
    prefix = SharedPrefix(model, prompts, most=share)
    ends = end_tokens(model)
    found: list[tuple[str, bool] | None] = [None] * len(prompts)

    def work(chunk: list[int]) -> None:
        run = prefix.batch([prompts[i] for i in chunk], room=tokens)
        said: dict[int, list[int]] = {i: [] for i in chunk}
        hidden, alive = run.hidden[:, -1], list(chunk)
        for n in range(1, tokens + 1):
            likeliest = model.logits(hidden, normed=True).argmax(-1)
            going = []
            for at, (i, token) in enumerate(zip(alive, likeliest.tolist(), strict=True)):
                ended = token in ends
                if not ended:
                    said[i].append(token)
                text = model.tokenizer.decode(said[i], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                if ended or stop in text or n == tokens:
                    found[i] = (text.split(stop)[0], ended or stop in text)
                else:
                    going.append(at)
            if not going:
                return
            if len(going) < len(alive):
                kept = torch.tensor(going, device=model.device)
                run.keep(kept)
                likeliest, alive = likeliest[kept], [alive[at] for at in going]
            hidden = run.step(likeliest)

    finished = 0
    for chunk in in_batches(prompts, tokens, cells, work):
        finished += len(chunk)
        if progress:
            progress(finished)
    return [each for each in found if each is not None]
