"""One symmetric solve for the whole family of locate-then-edit methods.

    minimise ‖ΔK − R‖² + tr(ΔAΔᵀ) + λ‖Δ‖²  over Δ = XUᵀ
    ⇒ Δ = R (I + Kᵀ M⁺ K)⁻¹ Kᵀ M⁺,   M⁺ = U (UᵀAU + λI)⁻¹ Uᵀ

Past keys to be kept at zero change are further columns of K with zero residual. The n x n system is used where it is
the thinner one, the d x d system else; both are symmetric positive definite, solved by Cholesky in float64.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.nullspace import NullSpace

log = logging.getLogger(__name__)


@runtime_checkable
class Metric(Protocol):
    """What an update costs where nothing is edited: the quadratic form M on the space an update may use."""

    def inverse(self, keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """M⁺ `keys`."""
        ...

    def solve_dense(self, gram: Float[Tensor, "d d"], keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        """(M + `gram`)⁺ `keys` restricted to the space."""
        ...


@dataclass(frozen=True)
class RidgeMetric:
    """A = 0: updates stay inside `space` and pay λ‖Δ‖² (AlphaEdit, LangEdit)."""

    space: NullSpace
    ridge: float

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; the system is singular unless it is positive")

    def inverse(self, keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        return self.space.project(keys) / self.ridge

    def solve_dense(self, gram: Float[Tensor, "d d"], keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        inside = self.space.project(self.space.project(gram).T)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return cholesky_solve(inside + self.ridge * eye, self.space.project(keys))


class CovarianceMetric:
    """A = λ₀C₀ on the whole space (MEMIT, arXiv 2210.07229); C₀ is factored once per layer."""

    def __init__(self, covariance: Float[Tensor, "d d"], weight: float) -> None:
        if not weight > 0:
            raise ValueError(f"covariance weight is {weight}; expected a positive number")
        if not torch.isfinite(covariance).all():
            raise FloatingPointError("the covariance holds NaN or infinity; no update is computed with it")
        self.matrix = weight * covariance.double()
        self.factor, info = torch.linalg.cholesky_ex(self.matrix)
        if info > 0:
            # Fewer tokens than dimensions: unseen directions would cost nothing, so they get a small cost. The Gram
            # matrix is summed in float32, so what counts as zero is relative to its largest eigenvalue.
            floor = 1e-5 * torch.linalg.eigvalsh(self.matrix)[-1]
            log.warning("the covariance is singular; %.1e is added to its diagonal (give it more tokens)", floor)
            self.matrix = self.matrix + floor * torch.eye(len(self.matrix), dtype=torch.float64, device=floor.device)
            self.factor = _cholesky(self.matrix)

    def inverse(self, keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        return torch.cholesky_solve(keys, self.factor)

    def solve_dense(self, gram: Float[Tensor, "d d"], keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        return cholesky_solve(self.matrix + gram, keys)


def solve_update(
    keys: Float[Tensor, "d_in n"],
    metric: Metric,
    past: Float[Tensor, "d_in m"] | None = None,
) -> Float[Tensor, "d_in n"]:
    """The right factor B of the update: Δ = R Bᵀ carries `keys` to any residual R, as far as `metric` lets it.

    B does not depend on R, so a rank-n update is stored as the pair (R, B).

    Args:
        keys: Inputs to the edited matrix, one fact per column.
        metric: What the update costs elsewhere.
        past: Keys of earlier edits that shall not move, one per column (the A = K̄K̄ᵀ of AlphaEdit).

    Raises:
        FloatingPointError: NaN or infinity in keys or result.
    """
    n = keys.shape[1]
    if not torch.isfinite(keys).all():
        raise FloatingPointError("keys hold NaN or infinity; no update is computed")
    keys = keys.double()
    columns = keys if past is None else torch.cat([keys, past.double()], dim=1)
    if columns.shape[1] <= columns.shape[0]:
        weighted = metric.inverse(columns)
        small = columns.T @ weighted
        small = (small + small.T) / 2 + torch.eye(len(small), dtype=small.dtype, device=small.device)
        right = weighted @ cholesky_solve(small, torch.eye(len(small), n, dtype=small.dtype, device=small.device))
    else:
        right = metric.solve_dense(columns @ columns.T, keys)
    if not torch.isfinite(right).all():
        raise FloatingPointError("the solve gave NaN or infinity; raise the ridge or check the keys")
    return right


def cholesky_solve(matrix: Float[Tensor, "k k"], columns: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """Solve a symmetric positive definite system."""
    return torch.cholesky_solve(columns, _cholesky(matrix))


def _cholesky(matrix: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info > 0:
        raise FloatingPointError(
            f"the {len(matrix)} x {len(matrix)} system is not positive definite (pivot {int(info)}); "
            "raise the ridge, or give the covariance more tokens than the layer has dimensions"
        )
    return factor
