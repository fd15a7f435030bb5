"""One symmetric solve for the whole family of locate-then-edit methods.

    minimise ‖ΔK − R‖² + tr(ΔAΔᵀ) + λ‖Δ‖²  over Δ = XUᵀ
    ⇒ Δ = R (I + Kᵀ M⁺ K)⁻¹ Kᵀ M⁺,   M⁺ = U (UᵀAU + λI)⁻¹ Uᵀ

Past keys to be kept at zero change are further columns of K with zero residual. The n x n system is used where it is
the thinner one, the d x d system else; both are symmetric positive definite, solved by Cholesky in float64. Without the
identity in the n x n system the residual is met exactly (ROME, arXiv 2202.05262): the limit of a vanishing M.
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
    """A = λ₀C₀ on the whole space (MEMIT, arXiv 2210.07229); C₀ is factored once, and only its factor kept."""

    def __init__(self, covariance: Float[Tensor, "d d"], weight: float) -> None:
        if not weight > 0:
            raise ValueError(f"covariance weight is {weight}; expected a positive number")
        if not torch.isfinite(covariance).all():
            raise FloatingPointError("the covariance holds NaN or infinity; no update is computed with it")
        matrix = weight * covariance.double()
        self.factor, info = torch.linalg.cholesky_ex(matrix)
        if info > 0:
            # Fewer tokens than dimensions: unseen directions would cost nothing, so they get a small cost. Products of
            # keys are made in float32 (`KeyCovariance`), so what counts as zero is relative to the largest eigenvalue.
            floor = 1e-5 * torch.linalg.eigvalsh(matrix)[-1]
            log.warning("the covariance is singular; %.1e is added to its diagonal (give it more tokens)", floor)
            self.factor = _cholesky(matrix + floor * torch.eye(len(matrix), dtype=torch.float64, device=floor.device))

    def inverse(self, keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        return torch.cholesky_solve(keys, self.factor)

    def solve_dense(self, gram: Float[Tensor, "d d"], keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
        return cholesky_solve(torch.addmm(gram, self.factor, self.factor.T), keys)


def solve_update(
    keys: Float[Tensor, "d_in n"],
    metric: Metric,
    past: Float[Tensor, "d_in m"] | None = None,
    *,
    gram: Float[Tensor, "d_in d_in"] | None = None,
    exact: bool = False,
    at: Float[Tensor, "d_in n"] | None = None,
) -> Float[Tensor, "d_in n"]:
    """The right factor B of the update: Δ = R Bᵀ carries `keys` to any residual R, as far as `metric` lets it.

    B does not depend on R, so a rank-n update is stored as the pair (R, B). With `exact`, Bᵀ `keys` = I and
    Bᵀ `past` = 0, at the lowest cost in `metric`: for one fact u/(kᵀu) with u = M⁺k.

    Args:
        keys: Inputs to the edited matrix, one fact per column.
        metric: What the update costs elsewhere.
        past: Keys of earlier edits that shall not move, one per column (the A = K̄K̄ᵀ of AlphaEdit).
        gram: Σ kkᵀ of further ones: where they are more than dimensions, nothing else of them is needed.
        exact: An equality constraint instead of a penalty on what is missing.
        at: The keys at which the exact constraint holds, where these are not `keys`: ROME's code takes the direction
            M⁺k from a key averaged over contexts and meets the residual at the bare prompt's.

    Raises:
        FloatingPointError: NaN or infinity in keys or result, or keys so alike that no update meets all of them.
    """
    if exact:
        if gram is not None:
            raise ValueError("an exact constraint needs every earlier key; pass them as `past`, not as `gram`")
        return _exact(keys, metric, past, at)
    if at is not None:
        raise ValueError("`at` says where an exact constraint holds; pass exact=True, or leave it out")
    n = keys.shape[1]
    if not torch.isfinite(keys).all():
        raise FloatingPointError("keys hold NaN or infinity; no update is computed")
    keys = keys.double()
    columns = keys if past is None else torch.cat([keys, past.double()], dim=1)
    if gram is None and columns.shape[1] <= columns.shape[0]:
        weighted = metric.inverse(columns)
        small = columns.T @ weighted
        small = (small + small.T) / 2 + torch.eye(len(small), dtype=small.dtype, device=small.device)
        right = weighted @ cholesky_solve(small, torch.eye(len(small), n, dtype=small.dtype, device=small.device))
    else:
        everything = columns @ columns.T if gram is None else torch.addmm(gram, columns, columns.T)
        right = metric.solve_dense(everything, keys)
    if not torch.isfinite(right).all():
        raise FloatingPointError("the solve gave NaN or infinity; raise the ridge or check the keys")
    return right


def _exact(keys: Tensor, metric: Metric, past: Tensor | None, at: Tensor | None) -> Tensor:
    """B = M⁺K (AᵀM⁺K)⁻¹ with A = K, or `at`; earlier keys are further columns of both."""
    met = keys if at is None else at
    if past is not None:
        keys, met = torch.cat([keys, past], dim=1), torch.cat([met, past], dim=1)
    if not (torch.isfinite(keys).all() and torch.isfinite(met).all()):
        raise FloatingPointError("keys hold NaN or infinity; no update is computed")
    n = keys.shape[1] - (0 if past is None else past.shape[1])
    keys, met = keys.double(), met.double()
    weighted = metric.inverse(keys)
    small = met.T @ weighted
    # Unit diagonal first: what counts as dependent shall not depend on how long the keys are.
    scale = small.diagonal().abs().clamp_min(torch.finfo(small.dtype).tiny).rsqrt()
    inverse, info = torch.linalg.inv_ex(scale[:, None] * small * scale)
    error = (small @ (scale[:, None] * inverse * scale) - torch.eye(len(small)).to(small)).abs().amax()
    if info > 0 or not error < 1e-6:
        raise FloatingPointError(
            f"no update meets {keys.shape[1]} constraints exactly in {keys.shape[0]} dimensions: keys are dependent; "
            "edit fewer facts at once, one after another, or with a penalty (constraint='penalty')"
        )
    return weighted @ (scale[:, None] * inverse * scale)[:, :n]


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
