"""Capacity measured on a real model: which keys are read, the curves made of them, and the sentences that follow.

Everything is kept under the hash of what it depends on, so rendering twice computes once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.analysis import open_study
from langedit_core.capacity import (
    COLUMNS,
    LIMIT_COLUMNS,
    covariance_curve,
    fitted_limit,
    incremental_curve,
    knee,
    limit,
    participation,
    predicted,
    spectrum,
    synthetic_limits,
)
from langedit_core.covariance import KeyCovariance, cached_covariance, corpus_hash
from langedit_core.keeping import kept
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.nullspace import NullSpace, Threshold, exact_null_space
from langedit_core.profiles import hyperparameters
from langedit_core.records import Fact, FactSet, digest
from langedit_core.study import load_data
from langedit_core.subject_keys import cached_keys, token_rows

ENGINE = 1
"""Raised whenever the same inputs would give other numbers; part of every result's hash."""

SHARES = (0.5, 0.2, 0.1, 0.05)
"""Levels of capacity at which a limit is reported."""


AHEAD = 200
"""Keys whose mean is a curve's point, a twentieth of all at most: of fewer, chance would decide where curves bend."""


def remembered(results: str | Path | None, what: str, key: dict, make: Callable[[], object]):
    """`kept`, in the folder of this study."""
    folder = None if results is None else Path(results) / "capacity"
    return kept(folder, what, {"engine": ENGINE} | key, make)


@dataclass(frozen=True, kw_only=True)
class MixedKeys:
    """Keys of facts of several data sets and languages, in one mixed order.

    Attributes:
        keys: One column per fact, in the order they are protected.
        facts: One row per column: data, lang, relation.
        distinct: Different keys among them: facts whose prompts agree up to the subject's end have the same.
        counts: Per data set and language: facts used, and merged (no token boundary at the subject's end).
        covariance: C₀ of the same data sets' held-out sentences.
        corpus: Sentences behind C₀.
        layer: Whose keys these are.
        key: What all this depends on, for results that are kept.
    """

    keys: Float[Tensor, "d n"]
    facts: pd.DataFrame
    distinct: int
    counts: pd.DataFrame
    covariance: KeyCovariance
    corpus: int
    layer: int
    key: dict


def highest_layer(model: EditableModel) -> int:
    """The last layer that the hyper-parameters edit."""
    return hyperparameters(model.name, "langedit").layers[-1]


def available(names: str) -> tuple[list[FactSet], list[str]]:
    """Data sets by their names, separated by spaces, in all their languages, and a sentence for each that is absent."""
    found, absent = [], []
    for name in names.split():
        try:
            found.append(load_data(name, tuple(LANGUAGES) if name == "mzsre" else CORE))
        except FileNotFoundError as error:
            absent.append(f"{name} is left out: {error}")
    return found, absent


def mixed_keys(
    model: EditableModel,
    data: Sequence[FactSet],
    *,
    facts: int,
    corpus_limit: int | None = 150,
    layer: int | None = None,
    seed: int = 0,
    results: str | Path | None = None,
    quiet: bool = True,
) -> MixedKeys:
    """Keys of facts that feed no C₀, all data sets and languages in one order, that of sha256(seed|id|language).

    Args:
        model: Unedited.
        data: Data sets; all their languages are used.
        facts: At most as many facts, a fact counted once per language.
        corpus_limit: Held-out sentences per data set and language for C₀.
        layer: Whose keys; the highest edited one by default.
        seed: Changes the order.
        results: Folder of finished keys; None keeps nothing.
        quiet: No progress bar.
    """
    layer = highest_layer(model) if layer is None else layer
    candidates = [
        (of.name, fact)
        for of in data
        for id_, by_lang in of.facts.items()
        if of.splits[id_] != "corpus"
        for fact in by_lang.values()
    ]
    candidates.sort(key=lambda pair: digest(str(seed), pair[0], pair[1].id, pair[1].lang))
    chosen, tokens, merged = [], [], Counter()
    for name, fact in candidates:
        if len(chosen) == facts:
            break
        located, _ = token_rows(model, [(fact.prompt, fact.subject)])
        if located:
            chosen.append((name, fact))
            tokens += located
        else:
            merged[name, fact.lang] += 1
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, (name, fact) in enumerate(chosen):
        groups.setdefault((name, fact.lang, fact.relation), []).append(i)
    read = cached_keys(
        model, [[tokens[i] for i in members] for members in groups.values()], layer, results, quiet=quiet
    )
    keys = torch.empty_like(read)
    keys[:, [i for members in groups.values() for i in members]] = read
    told = pd.DataFrame([dict(data=name, lang=fact.lang, relation=fact.relation) for name, fact in chosen])
    used = Counter((name, fact.lang) for name, fact in chosen)
    counts = pd.DataFrame(
        [dict(data=d, lang=lang, used=n, merged=merged[d, lang]) for (d, lang), n in sorted(used.items())]
    )
    texts = [text for of in data for lang in of.languages for text in of.corpus[lang][:corpus_limit]]
    key = dict(
        model=model.fingerprint, layer=layer, seed=seed, facts=len(chosen), corpus=corpus_hash(texts),
        data=[of.fingerprint for of in data],
    )  # fmt: skip
    covariance = cached_covariance(model, (layer,), texts)[layer]
    return MixedKeys(
        keys=keys,
        facts=told,
        distinct=len(set(tokens)),
        counts=counts,
        covariance=covariance,
        corpus=len(texts),
        layer=layer,
        key=key,
    )


# --- curves -----------------------------------------------------------------------------------------------------------


def curves(
    mixed: MixedKeys,
    fractions: Sequence[float],
    *,
    batch: int = 100,
    checkpoints: int = 12,
    results: str | Path | None = None,
) -> pd.DataFrame:
    """Capacity against protected keys: how (`exact keys` or `running covariance`), fraction, and `capacity.COLUMNS`.

    With fraction 1 nothing is protected at the start: exact keys without C₀. The running covariance then has an
    infinite cut and protects nothing, so it is left out.

    Args:
        mixed: Keys and C₀.
        fractions: Shares of directions that C₀ leaves free.
        batch: Keys protected at a time.
        checkpoints: Decompositions of the running covariance.
        results: Folder of finished curves; None keeps nothing.
    """

    def make() -> list[dict]:
        parts = []
        for fraction in fractions:
            threshold = Threshold(kind="fraction", value=fraction)
            space = NullSpace(d=len(mixed.keys)) if fraction == 1 else spaces[threshold]
            made = incremental_curve(space, mixed.keys, batch, ahead)
            parts.append(made.assign(how="exact keys", fraction=fraction))
        below = [Threshold(kind="fraction", value=f) for f in fractions if f < 1]
        for threshold, made in covariance_curve(mixed.covariance, mixed.keys, below, batch, checkpoints, ahead).items():
            parts.append(made.assign(how="running covariance", fraction=threshold.value))
        frame = pd.concat(parts, ignore_index=True)
        return frame.astype(object).where(frame.notna(), None).to_dict("records")

    spaces = {
        threshold: exact_null_space(mixed.covariance.mean, threshold)
        for threshold in (Threshold(kind="fraction", value=f) for f in fractions if f < 1)
    }
    ahead = min(AHEAD, mixed.keys.shape[1] // 20)
    key = mixed.key | dict(fractions=list(fractions), batch=batch, checkpoints=checkpoints, ahead=ahead)
    frame = pd.DataFrame(remembered(results, "curves", key, make), columns=["how", "fraction", *COLUMNS])
    return frame.astype({"survival": float, "smallest": float, "exposed": float, "protected": int, "rank": int})


def series(found: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """Curves by (how, fraction)."""
    return {key: part.reset_index(drop=True) for key, part in found.groupby(["how", "fraction"], sort=False)}


def limits_table(found: pd.DataFrame, shares: Sequence[float] = SHARES) -> pd.DataFrame:
    """Per curve: free directions and capacity at the start, its knee, keys at which capacity falls to each share, and
    what is left, and how far past keys are exposed, at the end."""
    rows = []
    for (how, fraction), part in series(found).items():
        first, last = part.iloc[0], part.iloc[-1]
        row = {"how": how, "free share": fraction, "free": int(first["rank"]), "capacity at first": first["survival"]}
        row |= {f"≤ {share:g}": told_limit(part, share) for share in shares}
        row |= {"knee": whole(knee(part)), "keys": int(last["protected"])}
        rows.append(row | {"free at last": int(last["rank"]), "past keys exposed": last["exposed"]})
    return pd.DataFrame(rows)


def told_limit(curve: pd.DataFrame, share: float) -> str:
    """A limit as it is read: keys, "at once" if it is below the share from the start, "> n" if it never falls there."""
    found = limit(curve, share)
    if found == 0:
        return "at once"
    return f"> {int(curve['protected'].iloc[-1])}" if np.isnan(found) else f"{found:.0f}"


def _after(told: str) -> str:
    return told if told == "at once" else f"not within {told[2:]} keys" if told[0] == ">" else f"after {told} keys"


def whole(number: float) -> str:
    return "" if np.isnan(number) else f"{number:.0f}"


def predictions(mixed: MixedKeys, found: pd.DataFrame) -> pd.DataFrame:
    """What the spectrum of the keys predicts for the exact curves: fraction, protected, survival, predicted, and, once
    per fraction, free directions and participation."""
    rows = []
    for (how, fraction), part in series(found).items():
        if how != "exact keys":
            continue
        space = None
        if fraction < 1:
            space = exact_null_space(mixed.covariance.mean, Threshold(kind="fraction", value=fraction))
        values = spectrum(unit(mixed.keys), space)
        told = predicted(values, part["protected"].to_numpy()) * float(values.sum())
        rows.append(
            part[["fraction", "protected", "survival"]].assign(
                predicted=told, free=int(part["rank"].iloc[0]), participation=participation(values)
            )
        )
    return pd.concat(rows, ignore_index=True)


def enough(mixed: MixedKeys) -> bool:
    """Whether the spectrum of these keys says something about that of all keys: twice as many keys as directions."""
    return mixed.keys.shape[1] >= 2 * len(mixed.keys)


def finished(profile: str, group: str, results: str, records: str, model: str, *, loaded: EditableModel | None = None):
    """A cell group as a list of one study; of a partial profile without a finished cell, an empty one and why.

    Args:
        profile: Profile name or YAML file.
        group: Cell group.
        results: Folder of cells.
        records: Folder of records.
        model: Another model than the profile's; "" for that one.
        loaded: The model, if it is loaded already.

    Returns:
        Studies, none or one, and a sentence for each that is absent.
    """
    try:
        return [open_study(profile, group, results, records=records, model=loaded, model_name=model or None)], []
    except FileNotFoundError as error:
        return [], [f"No edits to show yet: {error}."]


def few_facts(model: EditableModel, data: Sequence[FactSet], n: int, seed: int = 0) -> list[Fact]:
    """The first facts to edit, by hash, in the first language of the first data set, that can be located."""
    of = data[0]
    lang = of.languages[0]
    ids = sorted(
        (i for i in of.facts if of.splits[i] == "edit" and lang in of.facts[i]), key=lambda i: digest(str(seed), i)
    )
    facts = (of.facts[i][lang] for i in ids)
    return list(islice((f for f in facts if token_rows(model, [(f.prompt, f.subject)])[0]), n))


def unit(keys: Float[Tensor, "d n"]) -> Float[Tensor, "d n"]:
    """Keys of length one: capacity is a mean of shares, so every key counts alike."""
    return keys.double() / keys.double().norm(dim=0).clamp_min(torch.finfo(torch.float64).tiny)


def model_errors(told: pd.DataFrame) -> pd.DataFrame:
    """How far the prediction is off: per fraction mean and largest |predicted − measured|.

    Over the `n` moments at which directions are left; later, both are zero.
    """
    told = told[told["protected"] < told["free"]]
    gap = (told["predicted"] - told["survival"]).abs()
    frame = told.assign(gap=gap).groupby("fraction", sort=False)
    return frame.agg(
        free=("free", "first"), participation=("participation", "first"), mean_gap=("gap", "mean"),
        largest_gap=("gap", "max"), n=("gap", "size"),
    ).reset_index()  # fmt: skip


def _limits_of(d: int, seed: int) -> list[dict]:
    return synthetic_limits((d,), seed=seed).to_dict("records")


def synthetic(widths: str, results: str | Path | None = None, seed: int = 0) -> pd.DataFrame:
    """`capacity.synthetic_limits` for widths separated by spaces, each kept by itself."""
    parts = [
        pd.DataFrame(remembered(results, "synthetic", dict(d=d, seed=seed), lambda d=d: _limits_of(d, seed)))
        for d in map(int, widths.split())
    ]
    return pd.concat(parts, ignore_index=True)[list(LIMIT_COLUMNS)]


def fit_table(fit: pd.DataFrame) -> pd.DataFrame:
    """`capacity.fit_limits` as it is read, exponents with their standard errors."""
    names = {
        "constant": "constant",
        "width": "a, of d",
        "fraction": "b, of f",
        "correlation": "c, of participation/free",
    }
    rows = [
        {"share of the start": row["share"], "synthetic keys": int(row["n"])}
        | {
            heading: f"{row[name]:.2f}" + ("" if name == "constant" else f" ± {row[f'{name}_se']:.2f}")
            for name, heading in names.items()
        }
        | {"error, median": "n/a" if np.isnan(row["error"]) else f"{row['error']:.0%}"}
        for row in fit.to_dict("records")
    ]
    return pd.DataFrame(rows)


def fitted_on_real(fit: pd.DataFrame, told: pd.DataFrame, found: pd.DataFrame, d: int) -> pd.DataFrame:
    """The fit of synthetic keys, asked about the real ones: fraction, share (of the capacity at the start), fitted,
    measured (NaN where it is not reached)."""
    rows = []
    for (how, fraction), part in series(found).items():
        if how != "exact keys":
            continue
        mine = told[told["fraction"] == fraction].iloc[0]
        for share in fit["share"]:
            guess = fitted_limit(fit, share, d, fraction, mine["participation"] / mine["free"])
            measured = limit(part, share * part["survival"].iloc[0])
            rows.append({"free share": fraction, "share": share, "fitted": guess, "measured": measured})
    return pd.DataFrame(rows)


def beside_spectrum(fitted: pd.DataFrame, predictions: pd.DataFrame | None) -> pd.DataFrame:
    """`fitted_on_real` with a column more: the limit of the curve that the spectrum predicts.

    Args:
        fitted: free share, share, fitted, measured.
        predictions: `predictions`; None where the keys are too few to predict anything.
    """
    told = [np.nan] * len(fitted)
    if predictions is not None:
        curves = dict(list(predictions.groupby("fraction")))
        asked = [(curves[free], share) for free, share in zip(fitted["free share"], fitted["share"], strict=True)]
        told = [limit(c.assign(survival=c["predicted"]), share * c["survival"].iloc[0]) for c, share in asked]
    return fitted.assign(**{"from the spectrum": told})


def limits_reading(found: pd.DataFrame) -> list[str]:
    """A sentence about how far the limits of `beside_spectrum` are from those measured; none where none was reached."""
    known = found.dropna(subset="measured")
    if known.empty:
        return []
    said = f"On these real keys the fit is {_off(known['fitted'], known['measured'])} (n = {len(known)} limits)"
    both = known.dropna(subset="from the spectrum")
    if len(both):
        said += (
            f"; the limits told from the spectrum of the keys are {_off(both['from the spectrum'], both['measured'])}"
        )
    return [f"{said}."]


def _off(told: pd.Series, measured: pd.Series) -> str:
    """How far predictions are off, as words and whole per cents."""
    low, high = (round(100 * end) for end in ((told / measured - 1).min(), (told / measured - 1).max()))
    if low < 0 < high:
        return f"between {-low} % too low and {high} % too high"
    ends = sorted((abs(low), abs(high)))
    span = f"{ends[1]} %" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} %"
    return f"{span} too {'low' if low < 0 else 'high'}" if ends[1] else "right to a per cent"


def reading(
    mixed: MixedKeys, found: pd.DataFrame, told: pd.DataFrame, synth: pd.DataFrame, fit: pd.DataFrame
) -> list[str]:
    """Sentences about where capacity ends, for exact keys and for the covariance, and what decides it."""
    by, n, langs = series(found), mixed.keys.shape[1], mixed.facts["lang"].nunique()
    sentences = [
        f"n = {n} keys of layer {mixed.layer} (d_ff = {len(mixed.keys)}), {langs} languages, "
        f"{' and '.join(dict.fromkeys(mixed.facts['data']))}; C₀ from {mixed.corpus} sentences, "
        f"{mixed.covariance.count} tokens. {mixed.distinct} keys are distinct: facts whose prompts agree up to the "
        f"subject's end share one, and the second of them finds nothing left."
    ]
    for (how, fraction), part in by.items():
        if how != "exact keys":
            continue
        bends = knee(part)
        words = [f"{share:g} {_after(told_limit(part, share))}" for share in SHARES if part["survival"].iloc[0] > share]
        start = "nothing protected at first" if fraction == 1 else f"{fraction:.0%} of directions free"
        sentences.append(
            f"Exact keys, {start}: capacity is {part['survival'].iloc[0]:.2f} at first"
            + (f" and falls to {', '.join(words)}" if words else "")
            + ("." if np.isnan(bends) else f"; its knee is at {bends:.0f} keys.")
        )
    for (how, fraction), part in by.items():
        other = by.get(("exact keys", fraction))
        if how == "exact keys" or other is None:
            continue
        last = part.iloc[-1]
        same = other[other["protected"] <= last["protected"]].iloc[-1]
        earlier = "earlier" if last["survival"] < same["survival"] - 1e-3 else "no earlier"
        level = 0.5 * part["survival"].iloc[0]
        words = [_after(told_limit(curve, level)) for curve in (part, other)]
        sentences.append(
            f"The running covariance ({fraction:.0%} free) reaches the limit {earlier} than exact keys: capacity "
            f"falls to half of its first value {words[0]} (exact keys: {words[1]}); after {int(last['protected'])} "
            f"keys {int(last['rank'])} directions and a capacity of {last['survival']:.2f} are left, against "
            f"{int(same['rank'])} and {same['survival']:.2f}. What it leaves is not protected: past keys keep "
            f"{last['exposed']:.2f} of their energy in the free space (exact keys: {same['exposed']:.1e})."
        )
    gaps = model_errors(told)
    off = (synth["predicted"] / synth["measured"] - 1).abs()
    sentences.append(
        f"κm/trΣ predicts the limits of synthetic keys (d = {synth['d'].min()} to {synth['d'].max()}, n = {len(off)}) "
        f"with a median error of {off.median():.1%}, at most {off.max():.1%}."
    )
    if enough(mixed):
        sentences.append(
            f"From the spectrum of all {n} real keys it gives their curves to {gaps['mean_gap'].mean():.3f} on average "
            f"and {gaps['largest_gap'].max():.3f} at most ({gaps['n'].sum()} moments while directions are left)."
        )
    else:
        sentences.append(
            f"The spectrum of {n} keys says little about d_ff = {len(mixed.keys)} directions: no curve is predicted."
        )
    for row in fit.itertuples():
        sentences.append(
            f"Fit on synthetic keys, capacity at {row.share:g} of its start (n = {row.n}): m* = {row.constant:.2f} · "
            f"d^{row.width:.2f}±{1.96 * row.width_se:.2f} · f^{row.fraction:.2f}±{1.96 * row.fraction_se:.2f} · "
            f"(participation / free directions)^{row.correlation:.2f}±{1.96 * row.correlation_se:.2f}"
            + ("." if np.isnan(row.error) else f"; widths left out are missed by {row.error:.1%} (median).")
        )
    return sentences
