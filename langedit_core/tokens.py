"""From facts to token rows: where the subject's last token stands, and which tokens the target consists of.

A row is located by a property, not by counting: the tokens of "text up to the subject's end" must be a prefix of
the tokens of the whole text, or some token must end exactly where the subject ends; else the subject merges with
its neighbour and is refused (arXiv 2202.05262 calls the position `subject_last`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from langedit_core.errors import RefusedInput


class SubjectMerged(RefusedInput):
    """The subject's last characters share a token with the text that follows it."""


class TextTooLong(RefusedInput):
    """A text has more tokens than the model has positions."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Token ids of one text and the column of the subject's last token."""

    ids: tuple[int, ...]
    lookup: int


def encode(tokenizer, text: str) -> list[int]:
    """Ids as the model expects them: with BOS where the tokenizer adds one, never with an end token."""
    ids = list(tokenizer(text, add_special_tokens=True).input_ids)
    begins = ids[:1] == [getattr(tokenizer, "bos_token_id", None)]  # in some tokenizers BOS is the end token, too
    if len(ids) > begins and ids[-1] == tokenizer.eos_token_id and not text.endswith(tokenizer.eos_token):
        ids.pop()
    return ids


def locate(tokenizer, template: str, subject: str, where: str = "") -> Row:
    """Encode `template` with `subject` filled in and find the subject's last token.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        template: Text with exactly one `{}`.
        subject: What replaces it.
        where: Record and language, for the error text.

    Raises:
        SubjectMerged: No token boundary at the subject's end.
        RefusedInput: `{}` is missing or doubled, or the subject is empty.
    """
    if template.count("{}") != 1:
        raise RefusedInput(f"{where}prompt {template!r} has {template.count('{}')} '{{}}', expected exactly one")
    if not subject.strip():
        raise RefusedInput(f"{where}the subject is empty in prompt {template!r}")
    head, tail = template.split("{}")
    text, end = head + subject + tail, len(head) + len(subject)
    ids, upto = encode(tokenizer, text), encode(tokenizer, head + subject)
    if ids[: len(upto)] == upto:
        return Row(ids=tuple(ids), lookup=len(upto) - 1)
    # The tail may change how the subject is cut without crossing its end: then offsets still show the boundary.
    if getattr(tokenizer, "is_fast", False):
        offsets = tokenizer(text, add_special_tokens=True, return_offsets_mapping=True).offset_mapping[: len(ids)]
        ending = [i for i, (start, stop) in enumerate(offsets) if start < stop == end]
        crossing = [i for i, (start, stop) in enumerate(offsets) if start < end < stop]
        if ending and not crossing:
            return Row(ids=tuple(ids), lookup=ending[-1])
    raise SubjectMerged(
        f"{where}subject {subject!r} merges with what follows it in {text!r}: no token ends where the subject ends; "
        "use another prompt, or put a space or punctuation after the subject"
    )


def continuation(tokenizer, prompt: str, answer: str) -> list[int]:
    """Ids of `answer` as the model would have to produce them after `prompt` (leading space included in `answer`).

    The prompt's own tokens stay as they are, since a model that generates cannot change them.

    Raises:
        RefusedInput: The answer is empty or tokenises to nothing.
    """
    before, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + answer)
    ids = whole[len(before) :]
    if whole[: len(before)] != before:
        # Alone, some tokenizers would put a space before it (Mistral); after a line break it stands inside a text.
        before, whole = encode(tokenizer, "\n"), encode(tokenizer, "\n" + answer)
        apart = whole[: len(before)] == before
        ids = whole[len(before) :] if apart else tokenizer(answer, add_special_tokens=False).input_ids
    if not answer.strip() or not ids:
        raise RefusedInput(f"answer {answer!r} of prompt {prompt!r} is empty or has no tokens")
    return list(ids)


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """Rows with every subject's last token in one column: `split`. Before it padding is on the left, after it right.

    `ids`, `mask` and `positions` are all (rows, columns).
    """

    ids: Int[Tensor, "b c"]
    mask: Bool[Tensor, "b c"]
    positions: Int[Tensor, "b c"]
    split: int

    @property
    def rows(self) -> int:
        return self.ids.shape[0]


def align(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu") -> Aligned:
    """Put the lookup token of every row into the same column; at least one column stands before it."""
    split = max(1, max(row.lookup for row in rows))
    width = split + max(len(row.ids) - row.lookup for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        start = split - row.lookup
        ids[i, start : start + len(row.ids)] = torch.tensor(row.ids)
        mask[i, start : start + len(row.ids)] = True
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    return Aligned(ids=ids.to(device), mask=mask.to(device), positions=positions.to(device), split=split)
