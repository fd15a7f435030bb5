"""What traces say: effects by token role and layer, where they peak, and which layers to edit.

AIE(role, l) = mean over facts of the mean over the role's tokens of IE(t, l), with bootstrap intervals over facts; one
that is traced in several languages is averaged over them first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from langedit_core.errors import unknown
from langedit_core.profiles import hyperparameters, is_tuned
from langedit_core.stats import LEVEL, RESAMPLES, ends, interval
from langedit_core.tables import format_ci
from langedit_core.tracing import KINDS, ROLES, SEVERED, window_around

SITE_NAMES = {"hidden": "hidden states", "mlp": "MLP outputs", "attention": "attention outputs"}
EARLY, LATE = ("mlp", "subject_last"), ("attention", "last")  # the two sites of Meng et al.
ENOUGH = 6  # facts of a language below which its peak shows nothing: a sign test of five has no p below 0.06


def per_fact(frame: pd.DataFrame, kind: str, role: str) -> pd.DataFrame:
    """Facts (index lang, fact) x layers: effects of one kind, mean over the tokens of a role.

    Raises:
        ValueError: Unknown kind or role, or no fact has them.
    """
    if kind not in KINDS:
        raise unknown("kind of restoration", kind, KINDS)
    if role not in ROLES:
        raise unknown("token role", role, ROLES)
    part = frame[(frame["kind"] == kind) & (frame["role"] == role)]
    if part.empty:
        raise ValueError(f"no trace of {kind} at {ROLES[role]}; trace at least one known fact")
    return part.pivot_table(index=["lang", "fact"], columns="layer", values="effect", aggfunc="mean", sort=False)


def _over_languages(effects: pd.DataFrame) -> pd.DataFrame:
    """One row per fact: what is traced in several languages is one fact."""
    return effects.groupby(level="fact", sort=False).mean()


def curve(frame: pd.DataFrame, kind: str, role: str, *, by_lang: bool = False) -> pd.DataFrame:
    """AIE by layer, of all facts together or of every language: lang, layer, value, n, low, high."""
    effects = per_fact(frame, kind, role)
    parts = effects.groupby(level="lang", sort=False) if by_lang else [("all", _over_languages(effects))]
    return pd.DataFrame(
        dict(lang=lang, layer=layer, **interval(part[layer])._asdict())
        for lang, part in parts
        for layer in effects.columns
    )


def role_panels(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Per kind of restoration, AIE at the subject's and at the prompt's last token; the column `line` tells which."""
    found = {}
    for kind, title in SITE_NAMES.items():
        lines = [curve(frame, kind, role).assign(line=ROLES[role]) for role in ("subject_last", "last")]
        found[title] = pd.concat(lines, ignore_index=True)
    return found


def language_panels(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The early site and the late one, a line per language."""
    return {
        f"{SITE_NAMES[kind]}, {ROLES[role]}": curve(frame, kind, role, by_lang=True).assign(line=lambda f: f["lang"])
        for kind, role in (EARLY, LATE)
    }


def severed_panels(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Hidden states at the subject's last token, with nothing, MLP paths or attention paths frozen above them."""
    names = {"hidden": "nothing frozen", "hidden_no_mlp": "MLP frozen", "hidden_no_attention": "attention frozen"}
    lines = [curve(frame, kind, "subject_last").assign(line=name) for kind, name in names.items()]
    return {f"hidden states, {ROLES['subject_last']}": pd.concat(lines, ignore_index=True)}


def heat(frame: pd.DataFrame, kind: str, lang: str) -> pd.DataFrame:
    """AIE of one language, roles x layers; a role that no traced fact has is left out."""
    part = frame[(frame["kind"] == kind) & (frame["lang"] == lang)]
    by_fact = part.groupby(["role", "layer", "fact"])["effect"].mean()
    table = by_fact.groupby(["role", "layer"]).mean().unstack("layer")
    return table.reindex([role for role in ROLES if role in table.index])


def peaks(frame: pd.DataFrame, kind: str, role: str, seed: int = 0, level: float = LEVEL) -> pd.DataFrame:
    """The layer of the highest AIE, per language and for all, with the 95 % interval of its place over facts.

    The interval holds the layers that are highest in resamples of the facts; `effect` is the AIE there, which is chosen
    for being the highest, and so rather too high.
    """
    effects = per_fact(frame, kind, role)
    rows = []
    for lang, part in [("all", _over_languages(effects)), *effects.groupby(level="lang", sort=False)]:
        best = part.mean().idxmax()
        low, high = _place(part.columns, lambda drawn: drawn.argmax(1), [part.to_numpy()], seed, level)
        names = dict(kind=kind, role=role, lang=lang, n=len(part))
        rows.append(names | dict(peak=best, low=low, high=high, effect=part[best].mean()))
    return pd.DataFrame(rows).astype(dict.fromkeys(("low", "high"), "Int64"))


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """Neighbouring layers to edit, and how sure their place is.

    Attributes:
        layers: As many as asked for, where the summed score is highest.
        low: Lower end of the 95 % interval of the first of them; NaN from a single fact per language.
        high: Upper end.
        share: Their part of the positive scores of all layers.
        n: Facts it rests on.
    """

    layers: tuple[int, ...]
    low: float
    high: float
    share: float
    n: int

    def table(self, model: str, data: str) -> pd.DataFrame:
        """One row, as it is kept beside a report."""
        told = dict(layers=" ".join(map(str, self.layers)), first_low=self.low, first_high=self.high)
        row = pd.DataFrame([dict(model=model, data=data, **told, share=self.share, n=self.n)])
        return row.astype(dict.fromkeys(("first_low", "first_high"), "Int64"))


def recommend(frame: pd.DataFrame, width: int, window: int, seed: int = 0) -> Recommendation:
    """`width` neighbouring layers with the highest summed score, every language counting the same.

    The score of a layer is the mean AIE, at the subject's last token, of the windows of MLP outputs that hold it: the
    middle of the best window alone would say nothing about the layers around it.

    Args:
        frame: Traces.
        width: Layers to choose.
        window: Of the traces (`TraceSettings.window_of`).
        seed: Of the resampling.

    Raises:
        ValueError: More layers than the model has, or none.
    """
    effects = per_fact(frame, *EARLY)
    n_layers = len(effects.columns)
    if not 1 <= width <= n_layers:
        raise ValueError(f"width {width} is not possible: the model has {n_layers} layers")
    holds = np.zeros((n_layers, n_layers))  # window x layer
    for middle in range(n_layers):
        holds[middle, list(window_around(middle, window, n_layers))] = 1
    groups = [part.to_numpy() @ (holds / holds.sum(0)) for _, part in effects.groupby(level="lang", sort=False)]

    def first(scores: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(scores, width, axis=1).sum(-1).argmax(1)

    mean = np.mean([group.mean(0) for group in groups], axis=0)
    start = int(first(mean[None])[0])
    low, high = _place(effects.columns, first, groups, seed)
    share = mean[start : start + width].sum() / max(mean.clip(min=0).sum(), 1e-30)
    return Recommendation(
        layers=tuple(range(start, start + width)),
        low=low,
        high=high,
        share=float(share),
        n=len(_over_languages(effects)),
    )


def _place(
    layers: pd.Index,
    find: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[np.ndarray],
    seed: int,
    level: float = LEVEL,
) -> tuple[float, float]:
    """Interval of a layer, facts resampled within every group; NaN where no group has two facts."""
    if max(len(group) for group in groups) < 2:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    drawn = np.mean(
        [rng.multinomial(len(g), np.full(len(g), 1 / len(g)), RESAMPLES) @ g / len(g) for g in groups], axis=0
    )
    few = min(len(group) for group in groups if len(group) > 1)
    low, high = np.quantile(find(drawn), ends(few, level), method="inverted_cdf")
    return float(layers[int(low)]), float(layers[int(high)])


def reading(frame: pd.DataFrame, found: Recommendation, model: str) -> list[str]:
    """Sentences about one data set, made from its numbers."""
    facts = frame.drop_duplicates(["lang", "fact"]).groupby("fact", sort=False)[["clean", "corrupted"]].mean()
    total = interval(facts["clean"] - facts["corrupted"])
    sentences = [
        f"Noise takes the answer's probability from {facts['clean'].mean():.2f} to {facts['corrupted'].mean():.2f}: "
        f"total effect {format_ci(total.value, total.low, total.high, total.n)} facts."
    ]
    early = {kind: peaks(frame, kind, "subject_last").iloc[0] for kind in ("hidden", "mlp", "attention")}
    late = {kind: peaks(frame, kind, "last").iloc[0] for kind in ("mlp", "attention")}
    told = ", ".join(f"{kind} {p['effect']:.2f} at layer {p['peak']}" for kind, p in early.items())
    sentences.append(f"Highest average indirect effect at the subject's last token: {told}.")
    told = ", ".join(f"{kind} {p['effect']:.2f} at layer {p['peak']}" for kind, p in late.items())
    sentences.append(f"At the prompt's last token: {told}.")
    sentences += [_same_place(frame, *site) for site in (EARLY, LATE)] if frame["lang"].nunique() > 1 else []
    if set(SEVERED) <= set(frame["kind"]):
        sentences += _severed(frame)
    return [*sentences, _comparison(found, model)]


def _same_place(frame: pd.DataFrame, kind: str, role: str) -> str:
    """Whether the peak of one site lies elsewhere in one language than in another.

    That is shown where their intervals do not overlap, after both are widened for the number of pairs (Bonferroni).
    """
    found = peaks(frame, kind, role)
    found = found[found["lang"] != "all"]
    enough = found.loc[found["n"] >= ENOUGH, "lang"].tolist()
    pairs = list(combinations(enough, 2))
    wide = peaks(frame, kind, role, level=1 - (1 - LEVEL) / max(1, len(pairs))).set_index("lang")
    apart = [
        f"{a} and {b}"
        for a, b in pairs
        if wide.loc[a, "high"] < wide.loc[b, "low"] or wide.loc[b, "high"] < wide.loc[a, "low"]
    ]
    first, last = found["peak"].min(), found["peak"].max()
    place = f"in layer {first}" if first == last else f"in layers {first} to {last}"
    told = ", ".join(
        f"{r.lang} {r.peak}" + ("" if pd.isna(r.low) else f" [{r.low}, {r.high}]") for r in found.itertuples()
    )
    fewest, most = found["n"].min(), found["n"].max()
    told += f"; n = {most if fewest == most else f'{fewest} to {most}'} facts per language"
    corrected = " (intervals overlap)"
    if len(pairs) > 1:  # those are wider than the ones that are told
        corrected = f" (intervals widened for {len(pairs)} pairs overlap)"
    if not pairs:
        verdict = f"with fewer than {ENOUGH} facts in all languages but one, none could be shown to differ"
    elif apart:
        verdict = f"{', '.join(apart)} are shown to differ{corrected.replace('overlap', 'do not overlap')}"
    else:
        verdict = f"no two languages are shown to differ{corrected}"
    few = [lang for lang in found["lang"] if lang not in enough]
    if pairs and few:
        verdict += f"; fewer than {ENOUGH} facts, and left out: {', '.join(few)}"
    return f"By language the peak of {SITE_NAMES[kind]} at the {ROLES[role]} lies {place} ({told}): {verdict}."


def _severed(frame: pd.DataFrame) -> list[str]:
    """What frozen paths take; only what can be seen in the two decimals that are printed."""
    kinds = ("hidden", "hidden_no_mlp", "hidden_no_attention")
    found = [_over_languages(per_fact(frame, kind, "subject_last")).mean() for kind in kinds]
    whole, no_mlp, no_attention = (effects.round(2) + 0.0 for effects in found)  # + 0.0 makes −0 a plain zero
    left = {"MLP": no_mlp.iloc[0], "attention": no_attention.iloc[0]}
    if whole.iloc[0] > max(0, *left.values()):
        said = (
            f"Of the {whole.iloc[0]:.2f} that the hidden state of layer 0 brings back, {left['MLP']:.2f} is left with "
            f"the MLP paths above it frozen and {left['attention']:.2f} with the attention paths frozen."
        )
    else:
        none = [name for name, rest in left.items() if rest >= whole.iloc[0]] or [*left]
        said = (
            f"The hidden state of layer 0 brings back {whole.iloc[0]:.2f}, with the MLP paths above it frozen "
            f"{left['MLP']:.2f} and with the attention paths frozen {left['attention']:.2f}: that "
            f"{' or '.join(none)} paths carry its effect is not shown."
        )
    step = int(found[1].diff().idxmax())
    if no_mlp[step] > no_mlp[step - 1]:
        said += (
            f" Without MLP paths the effect rises most from layer {step - 1} to layer {step}, from "
            f"{no_mlp[step - 1]:.2f} to {no_mlp[step]:.2f}: what the MLP of layer {step} wrote is in the restored "
            "state from there on."
        )
    return [said]


def _comparison(found: Recommendation, model: str) -> str:
    place = "" if np.isnan(found.low) else f" (95 % interval of the first: {found.low:.0f} to {found.high:.0f})"
    traced = (
        f"MLP outputs of layers {', '.join(map(str, found.layers))} bring back most, {found.share:.0%} of what all "
        f"layers do{place}, n = {found.n} facts"
    )
    if not is_tuned(model):
        return f"{traced}; hparams.yaml has no entry for {model}."
    edited = hyperparameters(model, "langedit").layers
    both = len({*edited} & {*found.layers})
    return f"{traced}; hparams.yaml edits {', '.join(map(str, edited))}, {both} of {len(edited)} in common."
