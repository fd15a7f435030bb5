"""Which directions an update may use: an orthogonal projection P that removes what earlier keys occupy.

P = UUᵀ with U the eigenvectors of C̄ below a threshold (AlphaEdit, arXiv 2410.02355; LangEdit, arXiv 2506.10800), or
P ← P − QQᵀ with Q an orthonormal basis of P K_t (the incremental form, EvoEdit, arXiv 2510.13851), which needs no
decomposition of d x d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor


class Threshold(BaseModel):
    """Where the spectrum of C is cut; everything below is free for updates.

    `absolute`: eigenvalue < value (published: 2e-2). `relative`: eigenvalue < value x mean eigenvalue.
    `energy`: the largest eigenvalues holding this share of the trace are protected.
    `fraction`: this share of the directions, the lowest, is free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: Literal["absolute", "relative", "energy", "fraction"] = "fraction"
    value: float = Field(0.8, ge=0)

    @model_validator(mode="after")
    def _shares_are_at_most_one(self) -> Threshold:
        if self.kind in ("fraction", "energy") and self.value > 1:
            raise ValueError(f"threshold {self.kind}={self.value} is a share; expected a number from 0 to 1")
        return self

    def free(self, eigenvalues: Float[Tensor, " d"]) -> int:
        """How many of the ascending `eigenvalues` lie below the cut."""
        d = len(eigenvalues)
        if self.kind == "fraction":
            return round(self.value * d)
        if self.kind == "energy":
            protected = eigenvalues.flip(0).clamp_min(0).cumsum(0)
            wanted = self.value * protected[-1]
            return d - int((protected < wanted).sum()) - 1 if wanted > 0 else d
        cut = self.value * (eigenvalues.mean() if self.kind == "relative" else 1.0)
        return int((eigenvalues < cut).sum())

    def cut(self, eigenvalues: Float[Tensor, " d"]) -> float:
        """Where this threshold cuts `eigenvalues`, as a number a later spectrum can be cut at too (`cut_at`).

        Infinite where it protects nothing (`fraction` 1, `energy` 0): such a cut never protects anything.
        """
        if self.kind == "absolute":
            return self.value
        if self.kind == "relative":
            return self.value * float(eigenvalues.mean())
        free = self.free(eigenvalues)
        # Directions no key ever had carry rounding noise, different in every spectrum: the cut stays above it.
        return max(float(eigenvalues[free]), 1e-6 * float(eigenvalues[-1])) if free < len(eigenvalues) else math.inf


@dataclass(frozen=True, kw_only=True)
class NullSpace:
    """An orthogonal projection P = (UUᵀ or I) − QQᵀ, held by its thin factors, never as a d x d matrix.

    `kept` is U (None: everything), `removed` is Q, whose columns lie inside span(U). Both have orthonormal columns.
    """

    d: int
    kept: Float[Tensor, "d r"] | None = None
    removed: Float[Tensor, "d q"] | None = None

    @property
    def rank(self) -> int:
        """Dimensions left for updates."""
        kept = self.d if self.kept is None else self.kept.shape[1]
        return kept - (0 if self.removed is None else self.removed.shape[1])

    def project(self, keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """P `keys`, in the precision of the keys."""
        out = keys
        # (kᵀU)ᵀ rather than Uᵀk: for a few keys it reads the tall factor along its rows, four times as fast.
        if self.kept is not None:
            kept = self.kept.to(keys)
            out = kept @ (out.T @ kept).T
        if self.removed is not None:
            removed = self.removed.to(keys)
            out = out - removed @ (out.T @ removed).T
        return out

    @property
    def projection(self) -> Float[Tensor, "d d"]:
        """P as a matrix; for tests and figures."""
        factor = self.kept if self.kept is not None else self.removed
        dtype = torch.float64 if factor is None else factor.dtype
        return self.project(torch.eye(self.d, dtype=dtype, device=None if factor is None else factor.device))

    def survival(self, keys: Float[Tensor, "d n"]) -> Float[Tensor, " n"]:
        """Remaining capacity: the share ‖Pk‖²/‖k‖² of each key's energy that is left; 0 for a zero key."""
        keys = keys.double()
        energy = keys.square().sum(0)
        return self.project(keys).square().sum(0) / energy.clamp_min(torch.finfo(torch.float64).tiny)

    def without(self, keys: Float[Tensor, "d n"], tolerance: float = 1e-6) -> NullSpace:
        """The part of this space orthogonal to `keys`, by a thin orthogonalisation, O(d · (q + n) · n).

        Args:
            keys: Directions to protect from now on.
            tolerance: Directions whose singular value is below `tolerance` x the longest key add nothing new.
        """
        keys = keys.to(torch.float64)
        scale = keys.norm(dim=0).amax() if keys.numel() else keys.new_zeros(())
        left = orthonormal(self.project(keys), tolerance * scale)
        if left.shape[1] == 0:
            return self
        # Twice is enough (Parlett): small singular values magnified what rounding left of the old basis.
        left = orthonormal(self.project(left), 0.5)
        old = self.removed if self.removed is not None else left[:, :0]
        return replace(self, removed=torch.cat([old.to(left), left], dim=1))


def orthonormal(columns: Float[Tensor, "d n"], smallest: Tensor | float) -> Float[Tensor, "d r"]:
    """A basis of the directions in which `columns` have a singular value above `smallest`.

    Through the n x n Gram matrix, many times as fast as a QR of tall columns. Squaring costs half the digits: enough
    for a tolerance, and none of it where the columns are nearly orthonormal already.
    """
    energy, mix = torch.linalg.eigh(columns.T @ columns)
    new = energy > smallest**2
    return columns @ (mix[:, new] * energy[new].rsqrt())


def exact_null_space(covariance: Float[Tensor, "d d"], threshold: Threshold) -> NullSpace:
    """Eigenvectors of `covariance` below `threshold`, by a full decomposition, O(d³).

    Raises:
        FloatingPointError: NaN or infinity in the covariance.
    """
    return cut_spectrum(*decompose(covariance), threshold)


def decompose(covariance: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues, ascending, and eigenvectors of a covariance, in float64.

    Raises:
        FloatingPointError: NaN or infinity in the covariance.
    """
    _check_finite(covariance)
    return tuple(torch.linalg.eigh(covariance.double()))


def _check_finite(covariance: Float[Tensor, "d d"]) -> None:
    if not torch.isfinite(covariance).all():
        raise FloatingPointError("the covariance holds NaN or infinity; no null space is taken from it")


def cut_spectrum(eigenvalues: Float[Tensor, " d"], vectors: Float[Tensor, "d d"], threshold: Threshold) -> NullSpace:
    """The null space of a covariance whose eigenvectors are known, by its thinner side."""
    return _lowest(vectors, threshold.free(eigenvalues))


def cut_at(eigenvalues: Float[Tensor, " d"], vectors: Float[Tensor, "d d"], cut: float) -> NullSpace:
    """The same with a number that was found before: eigenvalues below `cut` are free, all of them if it is infinite."""
    return _lowest(vectors, int((eigenvalues < cut).sum()))


def space_below(matrix: Float[Tensor, "d d"], cut: float, protected: int) -> NullSpace:
    """`cut_at(*decompose(matrix), cut)`, on a CPU without the eigenvectors that are free, which are most.

    Args:
        matrix: Symmetric, positive semidefinite.
        cut: Eigenvalues below it are free.
        protected: A guess of how many are not; where it is more than half of all, all eigenvectors are found.

    Raises:
        FloatingPointError: NaN or infinity in the matrix.
        numpy.linalg.LinAlgError: LAPACK did not converge (a ValueError).
    """
    d = len(matrix)
    if matrix.device.type != "cpu" or not math.isfinite(cut) or 2 * protected >= d:
        return cut_at(*decompose(matrix), cut)
    _check_finite(matrix)
    # LAPACK's dsyevr takes a range; torch.linalg has nothing that does.
    _, vectors = scipy.linalg.eigh(
        matrix.double().numpy(), driver="evr", subset_by_value=(np.nextafter(cut, -np.inf), np.inf), check_finite=False
    )
    return NullSpace(d=d, removed=torch.from_numpy(np.ascontiguousarray(vectors)))


def _lowest(vectors: Float[Tensor, "d d"], free: int) -> NullSpace:
    d = len(vectors)
    if free <= d - free:
        return NullSpace(d=d, kept=vectors[:, :free].contiguous())
    return NullSpace(d=d, removed=vectors[:, free:].contiguous())


def leak(delta: Float[Tensor, "o d"], keys: Float[Tensor, "d n"]) -> float:
    """‖ΔK̄‖ / (‖Δ‖ ‖K̄‖₂): what an update does to keys it should not move, relative to the worst it could do."""
    delta, keys = delta.double(), keys.double()
    # The largest singular value needs no decomposition of the keys themselves: squaring harms only small ones.
    gram = keys.T @ keys if keys.shape[1] <= keys.shape[0] else keys @ keys.T
    worst = delta.norm() * torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt()
    return float((delta @ keys).norm() / worst) if worst > 0 else 0.0
