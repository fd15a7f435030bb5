"""Ways to know which directions are free as keys arrive, behind one interface: take keys, tell the space left.

    exact        eigenvectors of Σ₀ + ΣKKᵀ below a cut, decomposed anew: O(d³) time
    full_keys    null(C₀) less the span of all keys stored so far, by an SVD of them: O(dn²) time, O(dn) memory
    incremental  the same space, one thin orthogonalisation per batch (EvoEdit, arXiv 2510.13851)
    randomized   as exact, its protected side found by a randomised range finder (Halko et al., arXiv 0909.4061)

A projector is a value: `taking` gives a new one and leaves the old as it was. Σ₀ is shared by all of them; what a batch
adds is kept as thin keys, until they are no longer thin and a sum of the projector's own takes them in.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.covariance import KeyCovariance
from langedit_core.errors import unknown
from langedit_core.nullspace import NullSpace, Threshold, cut_at, cut_spectrum, decompose, orthonormal, space_below

log = logging.getLogger(__name__)

# A cut may be an eigenvalue of C₀ itself, which is protected: rounding shall not let go of that one.
BELOW = 1 - 1e-7
TOLERANCE = 1e-6  # of the longest key; see NullSpace.without


@runtime_checkable
class Projector(Protocol):
    """What is protected so far."""

    space: NullSpace
    """The directions left; found at most once per projector."""

    def taking(self, keys: Float[Tensor, "d n"]) -> Projector:
        """The same with `keys` protected too."""
        ...

    @property
    def held(self) -> Mapping[str, Tensor | None]:
        """Tensors that have to be kept from one batch to the next, by name."""
        ...


def _factors(space: NullSpace) -> dict[str, Tensor | None]:
    return dict(kept=space.kept, removed=space.removed)


@dataclass(frozen=True)
class Fixed:
    """A space that no key changes (AlphaEdit; the whole space: MEMIT)."""

    space: NullSpace

    def taking(self, keys: Float[Tensor, "d n"]) -> Fixed:
        return self

    @property
    def held(self) -> dict[str, Tensor | None]:
        return _factors(self.space)


@dataclass(frozen=True)
class Incremental:
    """The start less the span of all keys, batch by batch."""

    space: NullSpace

    def taking(self, keys: Float[Tensor, "d n"]) -> Incremental:
        return replace(self, space=self.space.without(keys))

    @property
    def held(self) -> dict[str, Tensor | None]:
        return _factors(self.space)


@dataclass(frozen=True)
class FullKeys:
    """The start less the span of all keys, from the keys themselves: they are all stored, and decomposed every time."""

    start: NullSpace
    keys: tuple[Float[Tensor, "d _"], ...] = ()

    def taking(self, keys: Float[Tensor, "d n"]) -> FullKeys:
        return replace(self, keys=(*self.keys, keys))

    @cached_property
    def space(self) -> NullSpace:
        return full_keys_null_space(torch.cat(self.keys, dim=1), self.start) if self.keys else self.start

    @property
    def held(self) -> dict[str, Tensor | None]:
        keys = {f"keys {i}": keys for i, keys in enumerate(self.keys)}
        return _factors(self.start) | keys | {f"{name}, all": x for name, x in _factors(self.space).items()}


@dataclass(frozen=True)
class Exact:
    """Eigenvectors of gram + Σ KKᵀ below `cut`, by a full decomposition per batch (LangEdit, arXiv 2506.10800).

    Attributes:
        gram: Σ₀ = n₀C₀, shared with whoever gave it; once more than d keys were added, a sum of its own with them.
        cut: Where the sum is cut, n₀ x the cut of C₀. A sum never shrinks in any direction, so nothing gets free again.
            An infinite cut protects nothing, whatever is added.
        start: null(C₀), until the first key.
        protected: How many directions C₀ protects.
        added: How many keys were added in all.
        keys: Those of them that are not in `gram`, per batch.
    """

    gram: Float[Tensor, "d d"]
    cut: float
    start: NullSpace | None
    protected: int
    added: int = 0
    keys: tuple[Float[Tensor, "d _"], ...] = ()

    def taking(self, keys: Float[Tensor, "d n"]) -> Exact:
        taken = self._with(keys)
        if sum(k.shape[1] for k in taken.keys) <= len(self.gram):
            return taken
        # More keys than dimensions hold more than their sum does, and nothing else is asked of them.
        return replace(taken, gram=taken.matrix, keys=())

    def _with(self, keys: Float[Tensor, "d n"]) -> Exact:
        return replace(self, start=None, added=self.added + keys.shape[1], keys=(*self.keys, keys))

    @cached_property
    def space(self) -> NullSpace:
        return self.start or self.decomposed(self.matrix)

    @property
    def matrix(self) -> Float[Tensor, "d d"]:
        """What is decomposed; made when needed, and not kept."""
        if not self.keys:
            return self.gram
        keys = torch.cat(self.keys, dim=1).to(self.gram)
        return torch.addmm(self.gram, keys, keys.T)

    @property
    def limit(self) -> float:
        """Where `matrix` is cut."""
        return self.cut * BELOW

    def decomposed(self, matrix: Float[Tensor, "d d"]) -> NullSpace:
        # A key takes a direction only once it lifts one above the cut, which few do: C₀'s number is near enough. What
        # is known from the space before this one would be nearer, but a resumed sequence does not find that.
        return space_below(matrix, self.limit, self.protected)

    def below_cut(self, eigenvalues: Float[Tensor, " d"], vectors: Float[Tensor, "d d"]) -> NullSpace:
        """The space of a `matrix` that is decomposed already; several cuts can share one decomposition."""
        return cut_at(eigenvalues, vectors, self.limit)

    @property
    def held(self) -> dict[str, Tensor | None]:
        return {"gram": self.gram} | _factors(self.space) | {f"keys {i}": keys for i, keys in enumerate(self.keys)}


@dataclass(frozen=True)
class Randomized(Exact):
    """As `Exact`, its protected side found by a randomised range finder instead of a decomposition."""

    seed: int = 0

    def decomposed(self, matrix: Float[Tensor, "d d"]) -> NullSpace:
        # As if each key took a direction: the more columns beyond those there are, the better it finds them.
        guess = min(self.protected + self.added, len(matrix))
        return randomized_null_space(matrix, self.limit, guess, seed=self.seed)


@dataclass(frozen=True)
class Literal(Exact):
    """As `Exact`, with the paper's recursion for C̄ taken to the letter: the sum gets n K Kᵀ from a batch of n keys.

    C̄_t = (n̄_{t−1}/n̄_t) C̄_{t−1} + (n_t/n̄_t) K_t K_tᵀ is a mean of kkᵀ only if K Kᵀ is one; as a plain product it weighs
    a key n times as much.
    """

    def taking(self, keys: Float[Tensor, "d n"]) -> Literal:
        return super().taking(keys * keys.shape[1] ** 0.5)


@dataclass(frozen=True)
class ReleasedMix(Exact):
    """LangEdit's published code: a mix of the mean C₀ with cumulative sums, at fixed sample counts.

        mix_t = (n̄₀ mix_{t−1} + n Σ_{s≤t} K_s K_sᵀ) / (n̄₀ + n t),   mix_0 = C₀

    Unrolled, it is C₀ and every batch's K_s K_sᵀ, each with a weight. The cut is that of C₀, whose count is `count`.
    """

    count: int = 1
    counts: tuple[int, int] = (100_000, 100)

    def taking(self, keys: Float[Tensor, "d n"]) -> ReleasedMix:
        # Every batch changes the weights of all before it, so none is summed up.
        return self._with(keys)

    @property
    def weights(self) -> tuple[float, list[float]]:
        """The weight of C₀ in the mix, and that of each batch's K_s K_sᵀ."""
        documents, batch = self.counts
        whole, weights = 1.0, []
        for t in range(1, len(self.keys) + 1):
            total = documents + batch * t
            whole *= documents / total
            weights = [(documents * w + batch) / total for w in (*weights, 0.0)]
        return whole, weights

    @property
    def matrix(self) -> Float[Tensor, "d d"]:
        whole, weights = self.weights
        if not weights:
            return self.gram / self.count
        keys = torch.cat([w**0.5 * k.to(self.gram) for w, k in zip(weights, self.keys, strict=True)], dim=1)
        return torch.addmm(self.gram, keys, keys.T, beta=whole / self.count)

    @property
    def limit(self) -> float:
        return self.cut


KINDS = ("exact", "full_keys", "incremental", "randomized")


def projector_of(
    kind: str,
    covariance: KeyCovariance,
    threshold: Threshold | None = None,
    *,
    spectrum: tuple[Float[Tensor, " d"], Float[Tensor, "d d"]] | None = None,
) -> Projector:
    """A projector that starts from null(C₀), cut at `threshold`.

    Args:
        kind: One of `KINDS`; further "fixed" (no key changes it), "literal", and "released" (`ReleasedMix`, standard
            counts).
        covariance: C₀ with its count; not copied, and not to be updated afterwards.
        threshold: Where C₀'s spectrum is cut; None: as `Threshold()` does.
        spectrum: `decompose(covariance.mean)`, where it is known already; found here otherwise.

    Raises:
        ValueError: Unknown kind; lists the known ones.
        FloatingPointError: NaN or infinity in the covariance.
    """
    threshold = threshold or Threshold()
    eigenvalues, vectors = spectrum or decompose(covariance.mean)
    cut, asked = threshold.cut(eigenvalues), threshold.free(eigenvalues)
    # By the number that cuts later spectra too, for all kinds alike: where rounding lifts it, nothing gets free later.
    start = cut_at(eigenvalues, vectors, cut)
    if start.rank > asked:
        log.warning(
            "the covariance has %d directions above rounding where %d were to be protected: give it more "
            "tokens, unless a few keys are so much larger than the others that float32 cannot tell these from rounding",
            start.d - start.rank,
            start.d - asked,
        )
    match kind:
        case "fixed":
            return Fixed(start)
        case "incremental":
            return Incremental(start)
        case "full_keys":
            return FullKeys(start)
        case "exact" | "randomized" | "literal" | "released":
            of = dict(gram=covariance.gram, start=start, protected=start.d - start.rank)
            if kind == "released":
                return ReleasedMix(cut=cut, count=covariance.count, **of)
            made = dict(exact=Exact, randomized=Randomized, literal=Literal)[kind]
            return made(cut=cut * covariance.count, **of)
    raise unknown("projector", kind, (*KINDS, "fixed", "literal", "released"))


# --- null spaces without a decomposition of d x d ---------------------------------------------------------------------


def full_keys_null_space(
    keys: Float[Tensor, "d n"],
    within: NullSpace | None = None,
    threshold: Threshold | None = None,
    tolerance: float = TOLERANCE,
) -> NullSpace:
    """What of `within` is orthogonal to `keys`, by a singular value decomposition of the keys themselves.

    Without a threshold the whole span is protected. With one, `keys` are a sample as C₀ is: σ²/n are its eigenvalues,
    cut as `exact_null_space` cuts them, but from n columns of which none was squared.

    Args:
        keys: Directions to protect, one per column.
        within: Where the space begins; None: everything. With a threshold, nothing else.
        threshold: Where the spectrum of E[kkᵀ] is cut.
        tolerance: Singular values below `tolerance` x the longest key are nothing new; not used with a threshold.

    Raises:
        ValueError: Both `within` and `threshold` are given.
        FloatingPointError: NaN or infinity among the keys.
    """
    if not torch.isfinite(keys).all():
        raise FloatingPointError("keys hold NaN or infinity; no null space is taken from them")
    keys, d = keys.double(), keys.shape[0]
    if threshold is not None:
        if within is not None:
            raise ValueError("a threshold cuts the spectrum of the keys alone; leave `within` out, or the threshold")
        left, values, _ = torch.linalg.svd(keys, full_matrices=True)
        eigenvalues = values.new_zeros(d)
        eigenvalues[: len(values)] = values.square() / keys.shape[1]
        return cut_spectrum(eigenvalues.flip(0), left.flip(1), threshold)
    within = within or NullSpace(d=d)
    if not keys.shape[1]:
        return within
    scale = keys.norm(dim=0).amax()
    left, values, _ = torch.linalg.svd(within.project(keys), full_matrices=False)
    left = left[:, values > tolerance * scale]
    if left.shape[1] == 0:
        return within
    left = orthonormal(within.project(left), 0.5)  # small singular values magnified what rounding left of the basis
    old = within.removed if within.removed is not None else left[:, :0]
    return replace(within, removed=torch.cat([old.to(left), left], dim=1))


def randomized_null_space(
    matrix: Float[Tensor, "d d"], cut: float, guess: int, *, powers: int = 4, oversampling: int = 32, seed: int = 0
) -> NullSpace:
    """The complement of the directions in which `matrix` has `cut` or more, found in a random sample of its range.

    Halko, Martinsson and Tropp (arXiv 0909.4061), algorithms 4.4 and 5.3: orthonormalised power iterations on a
    Gaussian sample, then the eigenvectors within it. The sample is doubled until it reaches below the cut. Directions
    whose eigenvalues are close to the cut come out turned; that is what leaks.

    Args:
        matrix: Symmetric, positive semidefinite.
        cut: Eigenvalues from here on are protected.
        guess: About how many they are.
        powers: Products with `matrix` beyond the first one.
        oversampling: Columns of the sample beyond `guess`.
        seed: Of the sample.
    """
    if not torch.isfinite(matrix).all():
        raise FloatingPointError("the covariance holds NaN or infinity; no null space is taken from it")
    matrix, d, size = matrix.double(), len(matrix), guess + oversampling
    generator = torch.Generator().manual_seed(seed)
    while True:
        size = min(size, d)
        basis = torch.randn(d, size, dtype=torch.float64, generator=generator).to(matrix)
        for _ in range(powers + 1):
            basis = torch.linalg.qr(matrix @ basis).Q
        small = basis.T @ (matrix @ basis)
        values, mix = torch.linalg.eigh((small + small.T) / 2)
        above = values >= cut
        if size == d or not above.all():
            return NullSpace(d=d, removed=basis @ mix[:, above])
        size *= 2
