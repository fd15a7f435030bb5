"""What taking new keys into a null space costs, by projector, on synthetic keys of any width.

A fifth of d directions is protected, `PAST` keys were edited before, and n more arrive. Whatever is compared runs
interleaved, in random order within a round, so that a slow minute of the machine hits all.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.nullspace import NullSpace, leak
from langedit_core.projectors import Exact, FullKeys, Incremental, Projector, Randomized

PROTECTED = 0.2
PAST = 500
CUT = 0.1  # between the eigenvalues of what is protected, 1 or more, and of what is free, 1e-6
KINDS = ("exact", "svd", "randomized", "full_keys", "incremental")
OF_A_MATRIX = ("exact", "svd", "randomized")  # need the d x d sum
REPEATS = 5  # of what is short beside the others


@dataclass(frozen=True)
class PublishedSVD(Exact):
    """The published form of `Exact`: a singular value decomposition of the whole matrix in float32."""

    def decomposed(self, matrix: Float[Tensor, "d d"]) -> NullSpace:
        left, values, _ = torch.linalg.svd(matrix.float())
        return NullSpace(d=len(matrix), kept=left[:, values < self.cut])


@dataclass(frozen=True, kw_only=True)
class Refresh:
    """One refresh of a projector.

    Attributes:
        rank: Directions left.
        leak: ‖ΔK̄‖ / (‖Δ‖ ‖K̄‖₂) of a random update inside the space, on the keys that shall be kept.
        seconds: Of taking the keys and finding the space, on the clock.
        processor: The same in seconds of this process on all its cores: what other programs take does not count.
        bytes: Held from then on.
    """

    rank: int
    leak: float
    seconds: float
    processor: float
    bytes: int


def refresh(
    projector: Projector, keys: Float[Tensor, "d n"], preserved: Sequence[Float[Tensor, "d _"]] = (), *,
    dtype: torch.dtype = torch.float32, seed: int = 0,
) -> tuple[Projector, Refresh]:  # fmt: skip
    """Take `keys` into `projector`, and measure what that costs and what an update inside the space does to them.

    Args:
        projector: The state before.
        keys: New keys.
        preserved: Further keys whose movement counts, such as those of earlier batches.
        dtype: In which the update is projected, that of the weights; in float32 nothing leaks less than rounding.
        seed: Of the random update of eight rows.
    """
    _wait(keys)
    start, own = time.perf_counter(), time.process_time()
    after = projector.taking(keys)
    space = after.space
    _wait(keys)
    seconds, processor = time.perf_counter() - start, time.process_time() - own
    generator = torch.Generator().manual_seed(seed)
    delta = space.project(torch.randn(space.d, 8, dtype=torch.float64, generator=generator).to(keys.device, dtype)).T
    kept = torch.cat([*(k.double() for k in preserved), keys.double()], dim=1)
    numbers = dict(rank=space.rank, leak=leak(delta, kept), bytes=bytes_of(after))
    return after, Refresh(seconds=seconds, processor=processor, **numbers)


def bytes_of(projector: Projector) -> int:
    """What the projector keeps between batches; a tensor under two names counts once."""
    return sum(
        t.numel() * t.element_size() for t in {id(t): t for t in projector.held.values()}.values() if t is not None
    )


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def seconds_of(run: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def interleaved(tasks: Mapping[str, Callable[[], object]], rng: random.Random) -> Iterator[tuple[str, float, object]]:
    """One round: every task once, in random order; name, seconds, result."""
    for name in rng.sample(sorted(tasks), len(tasks)):
        yield name, *seconds_of(tasks[name])


@dataclass(frozen=True)
class World:
    """Projectors of one width that all protect the same, and the keys to keep.

    Attributes:
        start: Kind -> projector, with the past keys taken in.
        kept: What must not move: the protected directions and the past keys.
    """

    start: dict[str, Projector]
    kept: Float[Tensor, "d m"]

    @classmethod
    def of(cls, d: int, kinds: Sequence[str] = KINDS, past: int = PAST, device: str = "cpu") -> World:
        """A world of width `d`; without a kind in OF_A_MATRIX nothing of d x d is made."""
        protected, generator = round(PROTECTED * d), torch.Generator().manual_seed(d)
        basis = torch.randn(d, protected, generator=generator, dtype=torch.float64).to(device)
        basis = torch.linalg.qr(basis).Q.contiguous()
        keys = torch.randn(d, past, generator=generator, dtype=torch.float64).to(device)
        space, found = NullSpace(d=d, removed=basis), {}
        if any(kind in OF_A_MATRIX for kind in kinds):
            gram = basis @ basis.T
            gram.diagonal().add_(1e-6)
            of = dict(gram=gram, cut=CUT, start=space, protected=protected)
            found = dict(exact=Exact(**of), svd=PublishedSVD(**of), randomized=Randomized(**of))
        found |= dict(full_keys=FullKeys(space), incremental=Incremental(space))
        start = {kind: found[kind].taking(keys) if past else found[kind] for kind in kinds}
        return cls(start=start, kept=torch.cat([basis, keys], dim=1))


def measure(
    d: int, added: int, rounds: int = 1, kinds: Sequence[str] = KINDS, *, past: int = PAST, device: str = "cpu",
    seed: int = 0, world: World | None = None,
) -> list[dict]:  # fmt: skip
    """Refreshes of every kind, interleaved: a row each with d, added, kind, lists of seconds, rank, leak, bytes.

    Args:
        d: Width.
        added: New keys.
        rounds: How often each kind is refreshed; `full_keys` and `incremental` five times as often, and the first of
            them does not count.
        kinds: Some of KINDS.
        past: Keys taken in before.
        device: Where.
        seed: Of the order.
        world: The same, if it is made already.
    """
    world = world or World.of(d, kinds, past, device)
    generator = torch.Generator().manual_seed(d + added)
    keys = torch.randn(d, added, generator=generator, dtype=torch.float64).to(world.kept.device)
    taken: dict[str, list[Refresh]] = {kind: [] for kind in kinds}
    rows, rng = {}, random.Random(seed)
    for number in range(rounds):
        for kind in rng.sample(list(kinds), len(kinds)):
            short = kind not in OF_A_MATRIX
            for again in range(1 + REPEATS * short):
                after = None  # what was found before is given back first
                after, told = refresh(world.start[kind], keys, [world.kept] if number == again == 0 else [])
                if not (short and again == 0):
                    taken[kind].append(told)
                if number == again == 0:
                    rows[kind] = dict(d=d, added=added, past=past, kind=kind, device=device) | asdict(told)
            del after
    for kind, row in rows.items():
        row |= dict(threads=torch.get_num_threads())
        row |= {name: [round(getattr(one, name), 6) for one in taken[kind]] for name in ("seconds", "processor")}
    return [rows[kind] for kind in kinds]


# --- reading what was measured ----------------------------------------------------------------------------------------


def load(path: str | Path) -> pd.DataFrame:
    """Rows kept by `benchmarks/cost.py`, with the median seconds in `median` and their number in `n`."""
    return frame(json.loads(Path(path).read_text("utf-8"))["rows"])


def frame(rows: Iterable[dict]) -> pd.DataFrame:
    """Rows of `measure` as a table, with the median of the seconds."""
    found = pd.DataFrame(list(rows))
    return found.assign(
        median=found["seconds"].map(median), processor=found["processor"].map(median), n=found["seconds"].map(len)
    )


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """seconds = a · d^exponent, fitted through the logarithms."""

    exponent: float
    log_a: float
    widths: tuple[int, ...]

    @classmethod
    def fit(cls, widths: Sequence[int], seconds: Sequence[float]) -> PowerLaw | None:
        """None with fewer than two widths."""
        if len(set(widths)) < 2:
            return None
        exponent, log_a = np.polyfit(np.log(widths), np.log(seconds), 1)
        return cls(exponent=float(exponent), log_a=float(log_a), widths=tuple(sorted(set(map(int, widths)))))

    def __call__(self, d: int) -> float:
        return math.exp(self.log_a + self.exponent * math.log(d))


def ratios(rows: pd.DataFrame, estimate_at: Sequence[int] = (28672,)) -> pd.DataFrame:
    """Per width and number of new keys, seconds of each kind over those of `incremental`; estimates say so.

    Columns d, new keys, kind, seconds (median), n (refreshes; 0: an estimate), times incremental (ratio of medians),
    the same in processor seconds, leak, rank, MB, source. An estimate extrapolates the kind's own medians by a power
    law, to widths at which `incremental` was measured.
    """
    out = []
    for added, part in rows.groupby("added"):
        base = part[part["kind"] == "incremental"].set_index("d")
        for kind, own in part.groupby("kind", sort=False):
            same = {"new keys": added, "kind": kind}
            for _, row in own.iterrows():
                other = base.loc[row["d"]]
                out.append(
                    {"d": row["d"]} | same | {"seconds": row["median"], "n": row["n"]}
                    | {"times incremental": row["median"] / other["median"]}
                    | {"times, processor": row["processor"] / other["processor"]}
                    | {"leak": row["leak"], "rank": row["rank"], "MB": row["bytes"] / 1e6, "source": "measured"}
                )  # fmt: skip
            law = PowerLaw.fit(own["d"].tolist(), own["median"].tolist())
            for d in sorted(set(estimate_at) & set(base.index) - set(own["d"])) if law else ():
                told = f"estimate: exponent {law.exponent:.2f} from d = {', '.join(map(str, law.widths))}"
                times = {"times incremental": law(d) / base.loc[d, "median"]}
                out.append({"d": d} | same | {"seconds": law(d), "n": 0, "source": told} | times)
    table = pd.DataFrame(out).astype({"rank": "Int64"})  # whole numbers, though estimates have none
    return table.sort_values(["new keys", "d"], kind="stable", ignore_index=True)
