"""How much room edits leave: the share of the next keys' energy that survives projection, and where it ends.

capacity(m) = E ‖P_m k‖² / ‖k‖² with P_m the projection after m keys are protected. For m keys of a Gaussian of
covariance Σ, protected exactly, E P_m ≈ κ(Σ + κI)⁻¹ with tr Σ(Σ + κI)⁻¹ = m (the equivalent of ridgeless regression,
e.g. Hastie et al., arXiv 1903.08560), so that capacity(m) = κ m / tr Σ: for uncorrelated keys 1 − m/r.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Real

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor

from langedit_core.covariance import KeyCovariance
from langedit_core.nullspace import NullSpace, Threshold, decompose
from langedit_core.projectors import projector_of

SAMPLE = 100
"""Protected keys that are looked at again, evenly spaced."""

COLUMNS = ("protected", "rank", "survival", "smallest", "exposed")


def incremental_curve(space: NullSpace, keys: Float[Tensor, "d n"], batch: int, ahead: int = 0) -> pd.DataFrame:
    """Protect keys batch by batch, exactly (EvoEdit's space), and see what is left for the next keys.

    Args:
        space: Free at the start: null(C₀), or everything.
        keys: In the order in which they are protected.
        batch: Keys protected at a time.
        ahead: How many of the next keys are looked at, at least a batch: the more, the smoother the curve.

    Returns:
        A row per batch that is still to come: `COLUMNS`; `survival` is the mean of the next keys, `smallest` their
        smallest, `exposed` the mean over keys protected already.

    Raises:
        ValueError: Less than one key, or a batch below one.
    """
    _check(keys, batch)
    keys, rows = keys.double(), []
    for start in range(0, keys.shape[1], batch):
        rows.append(_row(space, keys, start, keys[:, start : start + max(batch, ahead)]))
        if space.rank > 0:
            space = space.without(keys[:, start : start + batch])
    return pd.DataFrame(rows, columns=list(COLUMNS))


def covariance_curve(
    covariance: KeyCovariance,
    keys: Float[Tensor, "d n"],
    thresholds: Sequence[Threshold],
    batch: int,
    checkpoints: int = 12,
    ahead: int = 0,
) -> dict[Threshold, pd.DataFrame]:
    """The same with the running covariance and its cut (`projectors.Exact`, LangEdit as written), at some checkpoints.

    All thresholds cut the same sum, so one decomposition per checkpoint serves all of them.

    Args:
        covariance: C₀; it is left as it is.
        keys: In the order in which they are protected.
        thresholds: Where C₀ is cut.
        batch: Keys protected at a time.
        checkpoints: Moments, evenly spaced from the first key to the last batch.
        ahead: As for `incremental_curve`.

    Raises:
        ValueError: Less than one key, a batch or a number of checkpoints below one.
    """
    _check(keys, batch)
    if checkpoints < 1:
        raise ValueError(f"got {checkpoints} checkpoints; at least one is needed")
    first = decompose(covariance.mean)
    projectors = {t: projector_of("exact", covariance, t, spectrum=first) for t in thresholds}
    running, keys, done = covariance.copy(), keys.double(), 0
    last = max(0, (keys.shape[1] - 1) // batch * batch)
    moments = sorted({int(round(x / batch)) * batch for x in np.linspace(0, last, checkpoints)})
    rows: dict[Threshold, list[dict]] = {threshold: [] for threshold in thresholds}
    for moment in moments:
        running.update(keys[:, done:moment])
        done = moment
        found = decompose(running.gram) if moment else None
        for threshold, projector in projectors.items():
            space = projector.below_cut(*found) if found else projector.space
            rows[threshold].append(_row(space, keys, moment, keys[:, moment : moment + max(batch, ahead)]))
    return {threshold: pd.DataFrame(found, columns=list(COLUMNS)) for threshold, found in rows.items()}


def _check(keys: Tensor, batch: int) -> None:
    if keys.shape[1] < 1 or batch < 1:
        raise ValueError(f"got {keys.shape[1]} keys in batches of {batch}; at least one of each is needed")


def _row(space: NullSpace, keys: Tensor, protected: int, coming: Tensor) -> dict:
    left = space.survival(coming)
    known = keys[:, np.unique(np.linspace(0, protected - 1, min(SAMPLE, protected)).astype(int))] if protected else None
    exposed = float(space.survival(known).mean()) if known is not None else float("nan")
    return dict(
        protected=protected, rank=space.rank, survival=float(left.mean()), smallest=float(left.min()), exposed=exposed
    )


# --- where it ends ----------------------------------------------------------------------------------------------------


def limit(curve: pd.DataFrame, share: float) -> float:
    """Protected keys at which `survival` first falls to `share`, straight lines between rows; NaN if it does not."""
    x, y = curve["protected"].to_numpy(float), curve["survival"].to_numpy(float)
    below = np.flatnonzero(y <= share)
    if not len(below):
        return float("nan")
    i = int(below[0])
    if i == 0:
        return float(x[0])
    return float(x[i - 1] + (y[i - 1] - share) / (y[i - 1] - y[i]) * (x[i] - x[i - 1]))


def knee(curve: pd.DataFrame) -> float:
    """Where a falling curve bends most: the point farthest below the straight line from its first to its last point.

    That is Kneedle's rule (Satopää et al. 2011) without smoothing. The last point is the first one at which nothing is
    left (below 0.1 % of the start), since a longer tail of zeros would pull the knee to the left. NaN where no point
    lies below the line.
    """
    x, y = curve["protected"].to_numpy(float), curve["survival"].to_numpy(float)
    gone = np.flatnonzero(y <= 1e-3 * y[0])
    stop = int(gone[0]) + 1 if len(gone) else len(y)
    x, y = x[:stop], y[:stop]
    if stop < 3:
        return float("nan")
    depth = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0]) - y
    return float(x[depth.argmax()]) if depth.max() > 1e-9 else float("nan")


# --- how many keys fit, from the spectrum -----------------------------------------------------------------------------


def spectrum(keys: Float[Tensor, "d n"], space: NullSpace | None = None) -> Float[Tensor, " d"]:
    """Eigenvalues, ascending, of the second moment of keys projected into `space` (everything by default)."""
    keys = keys.double()
    inside = keys if space is None else space.project(keys)
    # The thinner Gram matrix has the same eigenvalues, apart from zeros.
    gram = inside.T @ inside if inside.shape[1] < inside.shape[0] else inside @ inside.T
    found = torch.linalg.eigvalsh(gram / keys.shape[1]).clamp_min(0)
    return torch.cat([found.new_zeros(max(0, len(keys) - len(found))), found])


def participation(eigenvalues: Float[Tensor, " d"]) -> float:
    """(Σλ)²/Σλ²: how many directions share the energy; d for uncorrelated keys, 1 if all point one way."""
    values = eigenvalues.double().clamp_min(0)
    return float(values.sum() ** 2 / values.square().sum()) if values.any() else 0.0


def predicted(eigenvalues: Float[Tensor, " d"], protected: Iterable[Real]) -> np.ndarray:
    """Capacity after so many keys, as a share of the energy in `eigenvalues`: κ m / Σλ, Σ λ/(λ + κ) = m.

    Args:
        eigenvalues: Of the keys' second moment, inside the space that is free at the start.
        protected: Numbers of keys; with as many as there are directions, nothing is left.
    """
    values = eigenvalues.double().numpy()
    values = values[values > 1e-12 * values.max(initial=0.0)]
    total = values.sum()
    inside = (min(max(float(m), 0.0), float(len(values))) for m in protected)
    shares = (1.0 if m == 0 else 0.0 if m == len(values) else m * _kappa(values, m) / total for m in inside)
    return np.array(list(shares))


def predicted_limit(eigenvalues: Float[Tensor, " d"], share: float) -> float:
    """Keys after which `predicted` falls to `share`."""
    top = int((eigenvalues > 1e-12 * eigenvalues.max()).sum())
    return float(brentq(lambda m: predicted(eigenvalues, [m])[0] - share, 0.0, float(top), xtol=1e-3))


def _kappa(values: np.ndarray, m: float) -> float:
    def excess(log_kappa: float) -> float:
        return float((values / (values + np.exp(log_kappa))).sum() - m)

    low, high = np.log(values.min()) - 40, np.log(values.max()) + 40
    return float(np.exp(brentq(excess, low, high, xtol=1e-10)))


# --- keys whose spectrum is known -------------------------------------------------------------------------------------

LIMIT_COLUMNS = ("d", "alpha", "fraction", "free", "participation", "share", "measured", "predicted")
ALPHAS = (0.0, 0.5, 1.0, 1.5)
FRACTIONS = (0.5, 0.8, 0.95, 1.0)


def power_law(d: int, alpha: float) -> Float[Tensor, " d"]:
    """λ_i = i^(−α), largest first, trace 1."""
    values = torch.arange(1, d + 1, dtype=torch.float64) ** -alpha
    return values / values.sum()


def energies_left(keys: Float[Tensor, "d n"]) -> Float[Tensor, " m"]:
    """‖P_i k_i‖² of each key outside the span of all keys before it, for the first min(d, n): the squared diagonal of R
    in one QR decomposition."""
    return torch.linalg.qr(keys.double(), mode="r").R.diagonal().square()


def synthetic_limits(
    widths: Sequence[int],
    alphas: Sequence[float] = ALPHAS,
    fractions: Sequence[float] = FRACTIONS,
    shares: Sequence[float] = (0.1, 0.05),
    seed: int = 0,
) -> pd.DataFrame:
    """Gaussian keys of a power-law spectrum: where their capacity falls to a share of what it was at the start.

    C₀ has the keys' own covariance, so that a fraction f of free directions is the tail of the spectrum.

    Returns:
        d, alpha, fraction, free (directions), participation (of the free spectrum), share, measured and predicted keys.
    """
    rows = []
    for d in widths:
        generator = torch.Generator().manual_seed(seed * 100_003 + d)
        noise = torch.randn(d, d, generator=generator, dtype=torch.float64)
        for alpha in alphas:
            values = power_law(d, alpha)
            for fraction in fractions:
                free = values[d - round(fraction * d) :]
                r = len(free)
                left = energies_left(noise[:r, :r] * free.sqrt()[:, None]) / free.sum()
                curve = _smoothed(left, max(8, d // 64))
                for share in shares:
                    rows.append(
                        dict(d=d, alpha=alpha, fraction=fraction, free=r, participation=participation(free))
                        | dict(share=share, measured=limit(curve, share), predicted=predicted_limit(free, share))
                    )
    return pd.DataFrame(rows, columns=list(LIMIT_COLUMNS))


def _smoothed(shares: Tensor, window: int) -> pd.DataFrame:
    """Means over windows, since one key alone says little, between the start and the end, which are known."""
    parts = shares[: len(shares) // window * window].reshape(-1, window).mean(1)
    at = (np.arange(len(parts)) + 0.5) * window
    return pd.DataFrame(dict(protected=np.r_[0.0, at, len(shares)], survival=np.r_[1.0, parts.numpy(), 0.0]))


def fit_limits(found: pd.DataFrame) -> pd.DataFrame:
    """log m* = a + b log d + c log f + e log(participation / free), by least squares, per share.

    Returns:
        share, n, constant (e^a), width (b), fraction (c), correlation (e), each with its standard error, and `error`,
        the median |m̂ − m*|/m* of widths left out of the fit, each in turn.
    """
    rows = []
    for share, part in found.dropna(subset=["measured"]).groupby("share", sort=False):
        x, y = _design(part), np.log(part["measured"].to_numpy())
        coefficients, errors = _least_squares(x, y)
        missed = []
        for d in part["d"].unique():
            out = (part["d"] == d).to_numpy()
            if out.all():
                continue
            guess = x[out] @ _least_squares(x[~out], y[~out])[0]
            missed += list(np.abs(np.exp(guess - y[out]) - 1))
        names = ("constant", "width", "fraction", "correlation")
        row = dict(share=share, n=len(part)) | dict(zip(names, coefficients, strict=True))
        row["constant"] = float(np.exp(row["constant"]))
        row |= {f"{name}_se": error for name, error in zip(names, errors, strict=True)}
        rows.append(row | dict(error=float(np.median(missed)) if missed else float("nan")))
    return pd.DataFrame(rows)


def fitted_limit(fit: pd.DataFrame, share: float, d: int, fraction: float, participation_share: float) -> float:
    """The fitted number of keys for a width, a fraction of free directions, and participation / free directions."""
    row = fit[fit["share"] == share].iloc[0]
    return float(
        row["constant"] * d ** row["width"] * fraction ** row["fraction"] * participation_share ** row["correlation"]
    )


def _design(part: pd.DataFrame) -> np.ndarray:
    logs = [np.log(part["d"]), np.log(part["fraction"]), np.log(part["participation"] / part["free"])]
    return np.column_stack([np.ones(len(part)), *logs])


def _least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their standard errors; columns that do not vary get 0."""
    solution, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    left = y - x @ solution
    variance = left @ left / max(1, len(y) - rank)
    return solution, np.sqrt(np.diag(variance * np.linalg.pinv(x.T @ x)).clip(0))
