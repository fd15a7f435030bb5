"""Work that is done together as far as memory allows, and in smaller parts where it does not."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch

_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
"""What errors say when memory ran out: CUDA's and MPS's, the processor's on Windows and on Linux, cuBLAS's."""


def lacks_memory(error: BaseException) -> bool:
    """Whether memory ran out. PyTorch has a class for it on GPUs only; elsewhere the text has to tell."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _MEMORY)


def alike(lengths: Sequence[int], cells: int, room: int = 0) -> list[list[int]]:
    """Which rows to do together: indices of like length, the shortest first.

    Args:
        lengths: Of the rows.
        cells: Rows times columns of a group, padding included; a longer row is a group of its own.
        room: Columns that a row grows by.
    """
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not groups or (len(groups[-1]) + 1) * (lengths[i] + room) > cells:
            groups.append([])
        groups[-1].append(i)
    return groups


def as_memory_allows(
    groups: Sequence[Sequence[int]],
    work: Callable[[list[int]], None],
    *,
    most: int | None = None,
    alone: Callable[[int, RuntimeError], str],
) -> Iterator[list[int]]:
    """Do `work` on the members of every group together, in parts that halve when memory runs out; yields parts done.

    Args:
        groups: What may be done together, in this order.
        work: May be called again with half of a part that failed.
        most: Members of a part at first; None: whole groups. Once memory ran out, parts stay as small as was needed.
        alone: Text of the error about a member that does not fit alone.

    Raises:
        MemoryError: Even a single member does not fit.
    """
    size = max(map(len, groups), default=0) if most is None else most
    for group in groups:
        rest = list(group)
        while rest:
            part = rest[:size]
            try:
                work(part)
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                if len(part) == 1:
                    raise MemoryError(alone(part[0], error)) from error
                size = math.ceil(len(part) / 2)
                continue
            rest = rest[len(part) :]
            yield part
