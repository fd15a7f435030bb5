"""Which layers to edit: what sets of layers give in every language, and whether causal tracing would have told.

ρ = Spearman's rank correlation, over layers, of a layer's average indirect effect with what editing it alone gives. Its
interval resamples facts and says nothing about other layers; the permutation test over layers does.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from langedit_core.metrics import METRICS
from langedit_core.stats import ALPHA, RESAMPLES, TEST_RESAMPLES, ends, summarise
from langedit_core.tables import format_ci

if TYPE_CHECKING:
    from langedit_core.analysis import Study

FEWEST = 3  # layers below which a rank correlation says nothing
FEW = 5  # facts of a language below which resampling them does not tell how far a difference is known
CORRELATION = ("method", "lang", "rho", "low", "high", "p_layers", "layers", "traced", "traced_facts", "edited")
ALIKE = ("method", "sets", "languages", "facts", "p", "half_width", "best", "behind", "lang")
EVERY = 9  # layers of which all orders are tried, 362,880 of nine; of more, as many are drawn


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
        method, lang, rho, low, high (95 % interval over facts), p_layers (`chance_of`), layers, traced (facts, over
        all languages those of each), traced_facts (different ones), edited (edits); empty where fewer than `FEWEST`
        layers were edited alone.
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
        different = effects.loc[langs].index.get_level_values("fact").nunique()
        for lang in langs:
            sides = [effects.loc[lang][layers].to_numpy(), values.loc[lang][layers].dropna().to_numpy()]
            mean[lang] = [side.mean(0) for side in sides]
            drawn[lang] = [
                rng.multinomial(len(side), np.full(len(side), 1 / len(side)), RESAMPLES) @ side / len(side)
                for side in sides
            ]
            counts[lang] = [len(sides[0]), effects.loc[lang].index.nunique(), len(sides[1])]
        if len(langs) > 1:
            mean["all"] = [np.mean([mean[lang][i] for lang in langs], axis=0) for i in (0, 1)]
            drawn["all"] = [np.mean([drawn[lang][i] for lang in langs], axis=0) for i in (0, 1)]
            traced, _, edited = np.sum([counts[lang] for lang in langs], axis=0)
            counts["all"] = [int(traced), different, int(edited)]
        for lang in (["all"] if len(langs) > 1 else []) + langs:
            rho = float(spearman(mean[lang][0][None], mean[lang][1][None])[0])
            found = spearman(*drawn[lang])
            found = found[np.isfinite(found)]
            few = min(counts[lang]) < 2 or not len(found)
            low, high = [np.nan] * 2 if few else np.quantile(found, ends(min(counts[lang])))
            out.append(
                dict(method=method, lang=lang, rho=rho, low=float(low), high=float(high))
                | dict(p_layers=chance_of(*mean[lang], seed=seed), layers=len(layers))
                | dict(zip(("traced", "traced_facts", "edited"), counts[lang], strict=True))
            )
    return pd.DataFrame(out, columns=list(CORRELATION))


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of every row of a with the same row of b, both (rows, layers); NaN where one is constant."""
    ranks = [rankdata(side, axis=1) - (side.shape[1] + 1) / 2 for side in (a, b)]
    norm = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
    with np.errstate(invalid="ignore"):
        return np.where(norm > 0, (ranks[0] * ranks[1]).sum(1) / np.where(norm > 0, norm, 1), np.nan)


def chance_of(effects: np.ndarray, values: np.ndarray, seed: int = 0) -> float:
    """Permutation test over layers: the share of all orders of them with a |ρ| as high as the one found, or higher.

    Exact up to `EVERY` layers; beyond, the orders are drawn and the one found is counted among them. NaN where one side
    is constant. Neighbouring layers are alike, so that they are not quite exchangeable and p is rather too small.

    Args:
        effects: What each layer brings back.
        values: What editing it alone gives.
        seed: Of drawn orders.
    """
    n, found = len(values), abs(spearman(effects[None], values[None])[0])
    if not np.isfinite(found):
        return float("nan")
    orders, drawn = _orders(n, seed), int(n > EVERY)
    ranks = [rankdata(side) - (n + 1) / 2 for side in (effects, values)]
    other = np.abs(ranks[1][orders] @ ranks[0]) / np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    return float(((other >= found - 1e-9).sum() + drawn) / (len(orders) + drawn))


@functools.cache
def _orders(n: int, seed: int) -> np.ndarray:
    """All orders of up to `EVERY` numbers, or as many drawn ones: (orders, n)."""
    if n <= EVERY:
        return np.array([*itertools.permutations(range(n))], dtype=np.int8)
    every = np.tile(np.arange(n, dtype=np.int8), (math.factorial(EVERY), 1))
    return np.random.default_rng(seed).permuted(every, axis=1)


def alike(study: Study, data: str, metric: str = "efficacy_tf", when: str = "final", seed: int = 0) -> pd.DataFrame:
    """Is what sets of layers give the same in every language? A permutation test, and how much it could miss.

    A fact's profile is its value per set of layers, less its mean over them. Statistic: Σ over languages of the number
    of its facts times the squared distance of its mean profile from that of all facts; under the null hypothesis facts
    belong to languages by chance, so languages are dealt to them anew. No best set is chosen, so none is flattered.

    Returns:
        method, sets (of layers), languages, facts (the fewest of a language), p, half_width (median half-width of the
        95 % intervals of the difference of two sets in one language; missing below `FEW` facts), best (the set that is
        best over all languages), behind (how much better a language's own best is, at most), lang (where that is);
        empty with fewer than two languages.
    """
    rows = _rows(study, data)
    rows = rows[(rows["metric"] == metric) & (rows["when"] == when)]
    out = []
    for method, part in rows.groupby("method", sort=False):
        values = part.pivot_table(index=["lang", "fact"], columns="layers", values="value", aggfunc="mean").dropna()
        codes, langs = pd.factorize(values.index.get_level_values("lang"))
        if len(langs) < 2 or len(values.columns) < 2:
            continue
        profiles = values.to_numpy() - values.to_numpy().mean(1, keepdims=True)
        counts, rng = np.bincount(codes), np.random.default_rng(seed)

        def apart(codes: np.ndarray, profiles: np.ndarray = profiles, counts: np.ndarray = counts) -> float:
            sums = np.stack([profiles[codes == code].sum(0) for code in range(len(counts))])
            return float((sums**2 / counts[:, None]).sum())  # the part about the mean of all facts never changes

        found = apart(codes) - 1e-9
        as_far = sum(apart(rng.permutation(codes)) >= found for _ in range(TEST_RESAMPLES))
        means = values.groupby(level="lang", sort=False).mean()
        best = means.mean().idxmax()
        behind = means.max(axis=1) - means[best]
        widths = [_half_width(profiles[codes == code], rng) for code in range(len(langs))]
        out.append(
            dict(method=method, sets=len(values.columns), languages=len(langs), facts=int(counts.min()))
            | dict(p=(1 + as_far) / (1 + TEST_RESAMPLES), half_width=float(np.median(np.concatenate(widths))))
            | dict(best=best, behind=float(behind.max()), lang=behind.idxmax())
        )
    return pd.DataFrame(out, columns=list(ALIKE))


def _half_width(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Half the length of the interval over facts (rows) of the difference of every two columns."""
    n, pairs = len(values), [*itertools.combinations(range(values.shape[1]), 2)]
    if n < FEW:
        return np.full(len(pairs), np.nan)
    drawn = rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) @ values / n
    one, two = np.array(pairs).T
    return np.ptp(np.quantile(drawn[:, one] - drawn[:, two], ends(n), axis=0), axis=0) / 2


def alone(study: Study, data: str, metric: str, when: str = "final") -> dict[str, pd.DataFrame]:
    """Per method, what editing one layer alone gives, over all languages: layer, value, n, low, high."""
    rows = _rows(study, data)
    rows = rows[(rows["single"] >= 0) & (rows["metric"] == metric) & (rows["when"] == when)]
    if rows.empty:
        return {}
    found = summarise(rows.assign(layer=rows["single"]), by=["method", "layer"])
    found = found[found["lang"] == "all"].sort_values("layer", kind="stable")
    return {method: part.reset_index(drop=True) for method, part in found.groupby("method", sort=False)}


def reading(study: Study, data: str, correlations: pd.DataFrame, languages: pd.DataFrame) -> list[str]:
    """Sentences about one data set: the best sets of layers, languages, and what tracing is worth.

    Args:
        study: Cells that differ in their layers.
        data: One of its data sets.
        correlations: As `correlation` gives it.
        languages: As `alike` gives it.
    """
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
        sentences += [
            _by_language(row, study.cell(data).langs) for row in languages[languages["method"] == method].itertuples()
        ]
    return sentences + [_traced(row) for row in correlations[correlations["lang"] == "all"].itertuples()]


def _by_language(row: object, langs: Sequence[str]) -> str:
    over = f"over {row.sets} sets of layers languages are"
    if row.p < ALPHA:
        said = (
            f"No: {over} further apart than if facts were dealt to them by chance (permutation test, p = {_p(row.p)}). "
            f"Each is edited in its turn, {langs[0]} first and {langs[-1]} last, which may be the reason."
        )
    else:
        said = (
            f"No difference is shown: {over} no further apart than they may be if facts are dealt to them by chance "
            f"(permutation test, p = {_p(row.p)})."
        )
    behind = f"is at most {row.behind:.2f} behind the best of a language ({row.lang})"
    if row.behind < 0.005:
        behind = "is the best, or as good as the best, of every language"
    said += f" The set that is best over all ({row.best}) {behind}."
    if np.isnan(row.half_width):
        said += f" With {_count(row.facts, 'fact')} per language nothing can be told about a single language."
    else:
        said += (
            f" With {row.facts} facts per language the difference of two sets of layers is known to "
            f"±{row.half_width:.2f} only (median half-width of 95 % intervals): smaller ones cannot be told."
        )
    return f"The same in every language? {said}"


def _traced(row: object) -> str:
    sure = row.low > 0 or row.high < 0
    shown = sure and row.p_layers < ALPHA
    verdict = "is not shown to agree with" if not shown else "agrees with" if row.rho > 0 else "contradicts"
    if np.isnan(row.low):
        why = "; the facts are too few for an interval."
    elif not sure:
        why = "; the interval holds zero."
    else:
        why = "." if shown else f". Other facts would hardly change the sign, but {row.layers} layers are too few."
    return (
        f"Over {row.layers} layers edited alone, tracing {verdict} what editing them with {row.method} gives: rank "
        f"correlation {format_ci(row.rho, row.low, row.high)} (interval over facts: {_count(row.traced, 'trace')} of "
        f"{_count(row.traced_facts, 'fact')}, {_count(row.edited, 'edit')}), p = {_p(row.p_layers)} (permutation test "
        f"over layers){why}"
    )


def _count(n: Integral, word: str) -> str:
    return f"{n} {word}" + ("s" if n != 1 else "")


def _p(p: Real) -> str:
    """A p-value after "p = "."""
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"
