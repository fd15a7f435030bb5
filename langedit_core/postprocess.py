"""What some methods do to an update after the solve: keep its largest entries, damp it, turn it off main directions.

RECT: ΔW where |ΔW/W| is among the largest, else 0. PRUNE: σ ← log_α σ − log_α σ_max(W₀) + σ_max(W₀) above σ_max(W₀).
SPHERE: ΔW ← ΔW (I − α U_w U_wᵀ). Each is a pure function of factors and weights, so stored updates stay thin.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def keep_largest(
    delta: Float[Tensor, "d_out d_in"], weight: Float[Tensor, "d_out d_in"], share: float
) -> Float[Tensor, "d_out d_in"]:
    """RECT (arXiv 2401.04700): the `share` of entries with the largest relative change |ΔW/(W + 1e-8)|, all else zero.

    The entry at the cut is kept, as in the published code, so one more than the share may remain; of N entries the
    cut is the ⌊(1 − share)·N⌋-th smallest.
    """
    dropped = delta.numel() - math.ceil(share * delta.numel())
    if dropped < 1:
        return delta
    relative = (delta / (weight.float() + 1e-8)).abs()  # float16 would lose the 1e-8
    cut = relative.flatten().kthvalue(dropped).values
    return torch.where(relative >= cut, delta, 0)


def damp(total: Float[Tensor, "o d"], largest: float, base: float = math.e) -> Float[Tensor, "o d"]:
    """PRUNE (arXiv 2405.16821): singular values s > σ of the total update become log_α s − log_α σ + σ.

    Its code (mjy1111/PRUNE, `reduce_type`) has α = e (`log`), 2, 1.5 and 1.2 (`log1_5`, `log1_2`): the larger α, the
    more is taken away. The result contracts where σ ln α ≥ 1 only; below that, values just above σ grow
    (d/ds log_α s = 1/(s ln α)).

    Args:
        total: W_T − W₀, what all edits together did.
        largest: σ, the largest singular value of W₀. An update without a larger one is returned as it is.
        base: α.

    Raises:
        ValueError: α is not above one.
    """
    if not base > 1:
        raise ValueError(f"the base of PRUNE's logarithm is {base}; expected a number above 1")
    left, singular, right = torch.linalg.svd(total.double(), full_matrices=False)
    if not bool((singular > largest).any()):
        return total.double()
    damped = torch.where(singular > largest, (singular / largest).log() / math.log(base) + largest, singular)
    return (left * damped) @ right


def leading_directions(weight: Float[Tensor, "d_out d_in"], share: float) -> Float[Tensor, "d_in r"]:
    """Eigenvectors of ŴᵀŴ for its largest eigenvalues; Ŵ is `weight` with rows of length one.

    r is the smallest number of eigenvalues whose sum reaches `share` of the sum of all (which is the number of rows
    that are not zero, since every row has length one). Computed on the thinner side, ŴŴᵀ or ŴᵀŴ, in float64.
    """
    rows = torch.nn.functional.normalize(weight.double(), dim=1)
    tall = rows.shape[0] > rows.shape[1]
    values, vectors = torch.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    r = int((values.cumsum(0) < share * values.sum() * (1 - 1e-12)).sum()) + 1 if share > 0 else 0
    r = min(r, int((values > 1e-10 * values[0]).sum()))  # directions no row has are none
    leading = vectors[:, :r]
    # From the other side, Ŵᵀu has length √eigenvalue; a QR takes that away and what rounding left of the angles.
    return leading if tall else torch.linalg.qr(rows.T @ leading).Q


def spread_off(
    right: Float[Tensor, "d_in n"], weight: Float[Tensor, "d_out d_in"], strength: float, share: float
) -> Float[Tensor, "d_in n"]:
    """SPHERE (arXiv 2510.01172): ΔW (I − α U_w U_wᵀ), which changes the right factor of ΔW = left rightᵀ only.

    How the definition is read here: the rows of W (one per output) are the neurons, put on the unit sphere; U_w are
    their principal directions, the leading eigenvectors of ŴᵀŴ in input space, taken of the weight as it is when the
    update is made (all earlier edits in it); `share` η is a share of the sum of eigenvalues, not of their number; and
    `strength` α is how much of the update's part inside span(U_w) is taken away, all of it if α = 1.
    Published: α = η = 0.5.
    """
    leading = leading_directions(weight, share)
    inside = leading @ (leading.T @ right.double())
    return (right.double() - strength * inside).to(right)
