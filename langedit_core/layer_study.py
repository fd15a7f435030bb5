"""Which layers to edit: what sets of layers give in every language, and whether causal tracing would have told.

ρ = Spearman's rank correlation, over layers, of a layer's average indirect effect with what editing it alone gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from langedit_core.metrics import METRICS
from langedit_core.stats import LEVEL, RESAMPLES, summarise
from langedit_core.tables import format_ci

if TYPE_CHECKING:
    from langedit_core.analysis import Study

FEWEST = 3  # layers below which a rank correlation says nothing


def name_of(layers: Sequence[int]) -> str:
    """A set of layers as people write it: "7", "3–5", "3, 6, 8"."""
    layers = list(layers)
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))


def _rows(study: Study, data: str) -> pd.DataFrame:
    """Rows of all cells of a data set, with the layers each edited; ranges first, then single layers, upwards."""
    results = [r for r in study.results if r.cell.data == data]
    results.sort(key=lambda r: (len(r.cell.settings.layers) == 1, r.cell.settings.layers))
    parts = [
        r.rows.assign(
            method=r.cell.method, seed=r.cell.seed, layers=name_of(r.cell.settings.layers),
            single=r.cell.settings.layers[0] if len(r.cell.settings.layers) == 1 else -1,
        )
        for r in results
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def by_layers(study: Study, data: str) -> pd.DataFrame:
    """Everything measured per set of layers: layers, method, metric, when, lang, value, n, low, high."""
    return summarise(_rows(study, data), by=["layers", "method"])


def table(study: Study, data: str, columns: dict[str, str]) -> pd.DataFrame:
    """A row per method and set of layers, for people: efficacy at once → at the end, then `columns` at the end.

    Args:
        study: Cells that differ in their layers.
        data: One of its data sets.
        columns: Metric -> heading, efficacy_tf first.
    """
    found = by_layers(study, data)
    found = found[found["lang"] == "all"].set_index(["method", "layers", "metric", "when"])
    rows = []
    for method, layers in dict.fromkeys((m, at) for m, at, *_ in found.index):
        row = {"method": method, "layers": layers}
        for metric, heading in columns.items():
            end = found.loc[(method, layers, metric, "final")]
            text = format_ci(end["value"], end["low"], end["high"])
            if metric == "efficacy_tf":
                text = f"{found.loc[(method, layers, metric, 'immediate'), 'value']:.2f} → {text}"
                row["n"] = int(end["n"])
            row[heading] = text
        rows.append(row)
    names = ["method", "layers", *columns.values(), "n"]
    return pd.DataFrame(rows)[names]


def languages(study: Study, data: str, metric: str, when: str = "final") -> dict[str, pd.DataFrame]:
    """Per method, languages x sets of layers.

    Raises:
        ValueError: Unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    found = by_layers(study, data)
    found = found[(found["metric"] == metric) & (found["when"] == when) & (found["lang"] != "all")]
    order = list(dict.fromkeys(found["layers"]))
    return {
        method: part.pivot(index="lang", columns="layers", values="value").reindex(
            index=list(dict.fromkeys(part["lang"])), columns=order
        )
        for method, part in found.groupby("method", sort=False)
    }


def correlation(
    study: Study, data: str, effects: pd.DataFrame, metric: str = "efficacy_tf", when: str = "final", seed: int = 0
) -> pd.DataFrame:
    """Do layers with a high indirect effect edit well? Per method and language, and for all languages together.

    Only layers that were edited alone count. Traced facts and edited facts are resampled apart, within languages: other
    facts are traced than are edited. "all" averages the languages' means, those that were both traced and edited.

    Args:
        study: Cells that differ in their layers.
        data: One of its data sets.
        effects: Indirect effects, index (lang, fact), a column per layer: `tracing_analysis.per_fact`.
        metric: What editing gives.
        when: Measured when.
        seed: Of the resampling.

    Returns:
        method, lang, rho, low, high (95 % interval), layers, traced (facts), edited (facts); empty where fewer than
        `FEWEST` layers were edited alone.
    """
    rows = _rows(study, data)
    rows = rows[(rows["single"] >= 0) & (rows["metric"] == metric) & (rows["when"] == when)]
    out = []
    for method, part in rows.groupby("method", sort=False):
        values = part.pivot_table(index=["lang", "seed", "fact"], columns="single", values="value", aggfunc="mean")
        layers = [layer for layer in values.columns if layer in effects.columns]
        if len(layers) < FEWEST:
            continue
        traced_langs = set(effects.index.get_level_values("lang"))
        langs = [lang for lang in dict.fromkeys(part["lang"]) if lang in traced_langs]
        rng, drawn, mean, counts = np.random.default_rng(seed), {}, {}, {}
        for lang in langs:
            sides = [effects.loc[lang][layers].to_numpy(), values.loc[lang][layers].dropna().to_numpy()]
            mean[lang] = [side.mean(0) for side in sides]
            drawn[lang] = [
                rng.multinomial(len(side), np.full(len(side), 1 / len(side)), RESAMPLES) @ side / len(side)
                for side in sides
            ]
            counts[lang] = [len(side) for side in sides]
        if len(langs) > 1:
            mean["all"] = [np.mean([mean[lang][i] for lang in langs], axis=0) for i in (0, 1)]
            drawn["all"] = [np.mean([drawn[lang][i] for lang in langs], axis=0) for i in (0, 1)]
            counts["all"] = [sum(counts[lang][i] for lang in langs) for i in (0, 1)]
        for lang in (["all"] if len(langs) > 1 else []) + langs:
            rho = float(spearman(mean[lang][0][None], mean[lang][1][None])[0])
            found = spearman(*drawn[lang])
            found = found[np.isfinite(found)]
            few = min(counts[lang]) < 2 or not len(found)
            low, high = [np.nan] * 2 if few else np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            out.append(
                dict(method=method, lang=lang, rho=rho, low=float(low), high=float(high), layers=len(layers))
                | dict(zip(("traced", "edited"), counts[lang], strict=True))
            )
    return pd.DataFrame(out, columns=["method", "lang", "rho", "low", "high", "layers", "traced", "edited"])


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of every row of a with the same row of b, both (rows, layers); NaN where one is constant."""
    ranks = [rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (a, b)]
    norm = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.where(norm > 0, (ranks[0] * ranks[1]).sum(1) / np.where(norm > 0, norm, 1), np.nan)


def alone(study: Study, data: str, metric: str, when: str = "final") -> dict[str, pd.DataFrame]:
    """Per method, what editing one layer alone gives, over all languages: layer, value, n, low, high."""
    rows = _rows(study, data)
    rows = rows[(rows["single"] >= 0) & (rows["metric"] == metric) & (rows["when"] == when)]
    if rows.empty:
        return {}
    found = summarise(rows.assign(layer=rows["single"]), by=["method", "layer"])
    found = found[found["lang"] == "all"].sort_values("layer", kind="stable")
    return {method: part.reset_index(drop=True) for method, part in found.groupby("method", sort=False)}


def reading(study: Study, data: str, correlations: pd.DataFrame) -> list[str]:
    """Sentences about one data set: the best sets of layers, the best per language, and what tracing is worth."""
    found = by_layers(study, data)
    final = found[(found["metric"] == "efficacy_tf") & (found["when"] == "final")]
    sentences = []
    for method, part in final.groupby("method", sort=False):
        whole = part[part["lang"] == "all"].sort_values("value", ascending=False, kind="stable")
        told = ", ".join(f"{r.layers} {format_ci(r.value, r.low, r.high)}" for r in whole.head(3).itertuples())
        worst = whole.iloc[-1]
        n = int(whole["n"].iloc[0])
        sentences.append(
            f"{method} on {data}, n = {n} facts: most is left after the sequence in layers {told}; "
            f"least in {worst['layers']}, {format_ci(worst['value'], worst['low'], worst['high'])}."
        )
        rest = part[part["lang"] != "all"]
        best = rest.loc[rest.groupby("lang", sort=False)["value"].idxmax()]
        told = ", ".join(f"{r.lang} {r.layers} ({r.value:.2f})" for r in best.itertuples())
        sentences.append(f"Best set per language, chosen on these facts: {told}.")
    for row in correlations[correlations["lang"] == "all"].itertuples():
        clear = row.low > 0 or row.high < 0
        verdict = "tells" if row.low > 0 else "misleads about" if row.high < 0 else "does not tell"
        sentences.append(
            f"Over {row.layers} layers edited alone, tracing {verdict} which ones edit well with {row.method}: rank "
            f"correlation {format_ci(row.rho, row.low, row.high)}, {row.traced} facts traced, {row.edited} edited"
            + ("." if clear else "; the interval holds zero.")
        )
    return sentences
