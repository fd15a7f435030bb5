"""The thinnest pair of factors for a change of one matrix, with the error of it stated.

Δ = L Rᵀ = Q_L (T_L T_Rᵀ) Q_Rᵀ, so the SVD of a small core gives that of Δ (Eckart and Young: no other pair of that
rank is nearer). All in float64; the error is measured on the factors as they are stored.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-7
"""Singular values below this share of the largest are rounding of float32 factors."""


def compact(
    left: Float[Tensor, "d_out n"], right: Float[Tensor, "d_in n"], rank: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "d_in r"], float]:  # fmt: skip
    """Factors of rank at most `rank`, and ‖left rightᵀ − their product‖ / ‖left rightᵀ‖.

    Both factors get the same length, the root of each singular value, so that neither overflows a short type.

    Args:
        left: One factor.
        right: The other.
        rank: At most so many columns; None keeps all above rounding. At least one column is kept.
        dtype: Of the result.

    Raises:
        ValueError: `rank` is not positive.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}, expected at least 1")
    left, right = left.double(), right.double()
    (q_left, t_left), (q_right, t_right) = torch.linalg.qr(left), torch.linalg.qr(right)
    u, s, vh = torch.linalg.svd(t_left @ t_right.T, full_matrices=False)
    r = max(1, int((s > ROUNDING * s.max()).sum()))
    r = r if rank is None else min(r, rank)
    root = s[:r].sqrt()
    thin_left, thin_right = ((q_left @ u[:, :r]) * root).to(dtype), ((q_right @ vh[:r].T) * root).to(dtype)
    size = float(torch.linalg.vector_norm(s))
    # The difference of two products is one product of stacked factors; its triangles have its norm.
    off_left = torch.linalg.qr(torch.cat([left, -thin_left.double()], 1), mode="r").R
    off_right = torch.linalg.qr(torch.cat([right, thin_right.double()], 1), mode="r").R
    return thin_left, thin_right, float((off_left @ off_right.T).norm()) / size if size else 0.0


def factored(
    delta: Float[Tensor, "d_out d_in"],
) -> tuple[Float[Tensor, "d_out n"], Float[Tensor, "d_in n"]]:
    """A dense change as the product of an identity and itself, on the thinner side, for `compact`."""
    one = torch.eye(min(delta.shape), dtype=delta.dtype, device=delta.device)
    return (one, delta.T) if delta.shape[0] <= delta.shape[1] else (delta, one)
