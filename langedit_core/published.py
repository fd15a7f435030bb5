"""What the LangEdit paper (Sun et al., Findings of ACL 2025, arXiv 2506.10800) claims, beside what a study measured.

ours = mean over facts of LangEdit − other, with its paired interval; the other is AlphaEdit, or the best baseline.
LangEdit stands for both readings of its running mean, and for its released code.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from langedit_core.stats import UNTESTED, Estimate
from langedit_core.tables import format_ci

if TYPE_CHECKING:
    from langedit_core.analysis import Study

READINGS = ("langedit", "langedit-literal", "langedit-released")
"""The paper's method: C̄ as the mean of kkᵀ; its recursion to the letter, which weighs past keys more; its code."""

LANGEDIT, ALPHAEDIT = READINGS[0], "alphaedit"
BASELINES = ("ft", "rome", "memit", "memit-seq", "rect", "prune", "alphaedit")
"""What the paper could compare with; EvoEdit and SPHERE came later, and `-released` variants are no methods."""

EFFICACY = "efficacy (teacher-forced token accuracy)"
F1 = "XTREME F1 (mean of XNLI, PAWS-X, MLQA, WikiANN)"
PAPER_BATCH, PAPER_TRIPLETS = 100, 100_000
PAPER_SIZES, PAPER_SMALLEST = "6–8B", 6.0


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One number of the paper.

    Attributes:
        claim: What is claimed.
        points: The number, in points of 100.
        model, data: Of what it is said.
        metric: In the paper's sense.
        where: Where it stands.
    """

    claim: str
    points: float
    model: str
    data: str
    metric: str
    where: str


CLAIMS = (
    Claim(
        claim="LangEdit over the best baseline, at most", points=5.65, model="GPT-J-6B, Llama3-8B or Qwen2.5-7B",
        data="bzsre or mzsre", metric=F1, where="main results, Table 1",
    ),
    Claim(
        claim="LangEdit over the best baseline, at most", points=2.20, model="GPT-J-6B, Llama3-8B or Qwen2.5-7B",
        data="bzsre or mzsre", metric=EFFICACY, where="main results, Table 1",
    ),
    Claim(
        claim="LangEdit after the whole sequence", points=73.18, model="Llama3-8B", data="bzsre", metric=EFFICACY,
        where="main results, Table 1",
    ),
    Claim(
        claim="LangEdit after the whole sequence", points=73.14, model="Llama3-8B", data="bzsre", metric=F1,
        where="main results, Table 1",
    ),
)  # fmt: skip
GAIN = {claim.metric: claim.points for claim in CLAIMS[:2]}


def claims() -> pd.DataFrame:
    """The paper's numbers as a table."""
    return pd.DataFrame(asdict(claim) | {"points": f"{claim.points:.2f}"} for claim in CLAIMS)


def beside(study: Study) -> pd.DataFrame:
    """Our numbers for the paper's comparisons, a row per data set, metric and opponent, in points.

    Efficacy is paired over facts and seeds, its verdict from the corrected tests of the data set. XTREME is paired over
    records and seeds where both have answers that were kept (`Study.xtreme_tests`); else its interval treats the two
    methods as independent, which is too wide, since both answer the same records, and no verdict is given. Columns
    data, metric, method (a reading), its value, against ("best baseline" is the one that does best beside it on the
    facts and seeds they share), the other's value, difference, n, seeds, paper (largest gain it reports), verdict;
    values are those of what the two share.
    """
    rows = []
    for data, method in _read(study):
        found = {EFFICACY: _efficacy(study, data, "efficacy_tf", method)}
        found |= {"efficacy (exact match)": _efficacy(study, data, "efficacy_em", method)}
        found |= {F1: _xtreme(study, data, method)}
        for metric, differences in found.items():
            for name, role in _opponents(differences):
                d = differences[name]
                rows.append(
                    dict(data=data, metric=metric, method=method, value=f"{100 * d['ours']:.1f}")
                    | dict(against=f"{name}{role}", theirs=f"{100 * d['theirs']:.1f}")
                    | dict(difference=_points(d["difference"]), n=d["difference"].n, seeds=d["seeds"])
                    | dict(paper=GAIN.get(metric, float("nan")), verdict=d["verdict"])
                )
    names = ["data", "metric", "method", "value", "against", "theirs", "difference", "n", "seeds", "paper", "verdict"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(paper=[f"up to {p:+z.2f}" if np.isfinite(p) else "–" for p in table["paper"]])


def verdicts(study: Study) -> list[str]:
    """Is LangEdit's advantage over AlphaEdit real on this model? One sentence per data set, metric and reading."""
    sentences = []
    for data, method in _read(study):
        for metric, found, of in (
            (EFFICACY, _efficacy(study, data, "efficacy_tf", method), "facts"),
            (F1, _xtreme(study, data, method), "records"),
        ):
            if ALPHAEDIT not in found or found[ALPHAEDIT]["verdict"] == UNTESTED:
                continue
            d, verdict, seeds = (found[ALPHAEDIT][k] for k in ("difference", "verdict", "seeds"))
            told = {"better": "is shown", "worse": "is contradicted (AlphaEdit is ahead)"}.get(verdict, "is not shown")
            over = f"n = {d.n} {of}, {'one seed' if seeds == 1 else f'{seeds} seeds'}"
            if seeds > 1 and "by_seed" in found[ALPHAEDIT]:
                least, most = found[ALPHAEDIT]["by_seed"]
                over += f" ({100 * least:+z.1f} to {100 * most:+z.1f} by seed)"
            sentence = (
                f"On {data} the advantage of {method} over AlphaEdit {told}: {_points(d)} points of "
                f"{metric.partition(' (')[0]} at the end, paired over {over}"
            )
            if np.isfinite(d.low) and d.low < d.high:
                claimed = GAIN[metric]
                inside = 100 * d.low <= claimed <= 100 * d.high
                sentence += (
                    f"; the interval {'holds' if inside else 'does not hold'} the {claimed:+z.2f} that the paper "
                    "reports at most over its best baseline"
                )
            sentences.append(sentence + ".")
    return sentences


def _relative(study: Study) -> str:
    """What λ is relative to in which methods; empty where none is."""
    cells = [r.cell for r in study.results if r.cell.settings.relative_ridge and r.cell.settings.space != "whole"]
    held, following = (
        list(dict.fromkeys(c.method for c in cells if c.settings.hold_ridge == kind)) for kind in (True, False)
    )
    told = [f"of every batch's in {', '.join(following)}"] * bool(following)
    told += [f"of the first batch's in {', '.join(held)}"] * bool(held)
    if not told:
        return ""
    return (
        f"λ: the paper's is a constant; here it is relative to the energy that the projection leaves of keys, "
        f"{' and '.join(told)}."
    )


def reasons(study: Study) -> list[str]:
    """Why the two may differ, each with the numbers of this study."""
    cells = [r.cell for r in study.results]
    model, out = cells[0].model, []
    size = size_of(model)
    sentence = f"Model: {model}{f' ({size} parameters)' if size else ''} against {PAPER_SIZES} in the paper"
    if size is None or not size.endswith("B") or float(size[:-1]) < PAPER_SMALLEST:
        sentence += "; a smaller matrix has fewer directions to spare, and less knowledge that editing could harm"
    out.append(f"{sentence}.")
    told = []
    for data in study.datasets:
        cell = study.cell(data)
        batches = f"{cell.batches} batches of {cell.batch}" if cell.batches > 1 else f"one batch of {cell.batch}"
        told.append(f"{data} {batches} in {', '.join(dict.fromkeys(cell.langs))}")
    out.append(f"Data: {'; '.join(told)}; the paper edits {PAPER_BATCH} facts at a time.")
    several = {data: len(set(study.cell(data).langs)) > 1 for data in study.datasets}
    if same := [data for data in study.datasets if study.cell(data).parallel and several[data]]:
        out.append(
            f"Which facts: on {', '.join(same)} all languages get the same facts here, so a fact's keys come back in "
            "every other language. In the paper every batch has other facts. The same facts are hardest for methods "
            "that protect past keys exactly."
        )
    for data in study.datasets:
        if LANGEDIT not in study.methods_of(data):
            continue
        try:
            tf, em = (study.estimate(data, LANGEDIT, m, "final").value for m in ("efficacy_tf", "efficacy_em"))
        except KeyError:
            continue
        out.append(
            f"Metric: on {data} the same LangEdit edits score {100 * tf:.1f} by token accuracy under teacher forcing, "
            f"which the paper reports, and {100 * em:.1f} by exact match: {100 * (tf - em):.1f} points between two "
            f"ways of counting, where the claim is {GAIN[EFFICACY]:.2f}."
        )
    if any(cell.settings.values.site == "write" for cell in cells):
        out.append(
            "Write port: values are optimised at the output of the edited matrix, before the norm that follows it in "
            "some models; the paper optimises in the residual stream, where such a model cannot be written additively."
        )
    if relative := _relative(study):
        out.append(relative)
    sentences = sorted({r.provenance["corpus_sentences"] for r in study.results if "corpus_sentences" in r.provenance})
    if sentences:
        span = f"{sentences[0]:,}" + (f" to {sentences[-1]:,}" if len(sentences) > 1 else "")
        out.append(
            f"C₀: from {span} sentences about facts that are never edited; the paper takes {PAPER_TRIPLETS:,} triplets."
        )
    return out


def size_of(model: str) -> str | None:
    """The size that a model's name tells, such as 270M; None if it tells none."""
    found = re.search(r"(?:^|[-_/])(\d+(?:\.\d+)?)([mb])(?:$|[-_])", model, re.IGNORECASE)
    return f"{found[1]}{found[2].upper()}" if found else None


def _opponents(differences: dict[str, dict]) -> list[tuple[str, str]]:
    """The best baseline and AlphaEdit; one row where they are the same."""
    known = {m: d["difference"].value for m, d in differences.items() if m in BASELINES}
    if not known:
        return []
    best = min(known, key=known.get)
    pairs = [(best, ", best baseline")]
    return pairs if best == ALPHAEDIT or ALPHAEDIT not in known else [*pairs, (ALPHAEDIT, "")]


def _read(study: Study) -> list[tuple[str, str]]:
    """Every data set with each reading that was run on it."""
    return [(data, method) for data in study.datasets for method in READINGS if method in study.methods_of(data)]


def _efficacy(study: Study, data: str, metric: str, method: str) -> dict[str, dict]:
    """Other that shares facts with `method` -> both means at the end over what they share, and their difference."""
    tests = study.tests(data, method)
    tests = tests[tests["metric"] == metric].set_index("b")
    return {
        b: dict(
            ours=d["mean_a"],
            theirs=d["mean_b"],
            difference=Estimate(d["difference"], d["n_facts"], d["low"], d["high"]),
            seeds=d["n_seeds"],
            verdict=d["verdict"],
        )
        for b, d in tests.iterrows()
    }


def _xtreme(study: Study, data: str, method: str) -> dict[str, dict]:
    """As `_efficacy`: paired over records where the answers were kept, else from the intervals of the two."""
    means = study.xtreme(data).query("task == 'xtreme' and lang == 'all' and when == 'final'").set_index("method")
    if method not in means.index:
        return {}
    ours, differences = means.loc[method], {}
    for other, row in means.drop(index=method).iterrows():
        half = np.hypot(ours["high"] - ours["low"], row["high"] - row["low"]) / 2
        d = ours["value"] - row["value"]
        differences[other] = dict(
            ours=ours["value"],
            theirs=row["value"],
            difference=Estimate(d, int(row["n"]), d - half, d + half),
            seeds=int(min(ours["seeds"], row["seeds"])),
            verdict=UNTESTED,
        )
    for d in study.xtreme_tests(data, method).to_dict("records"):
        differences[d["b"]] = dict(
            ours=d["mean_a"],
            theirs=d["mean_b"],
            difference=Estimate(d["difference"], d["n"], d["low"], d["high"]),
            seeds=d["n_seeds"],
            by_seed=(d["least"], d["most"]),
            verdict=d["verdict"],
        )
    return differences


def _points(e: Estimate) -> str:
    sign = "+" if e.value > 0 else ""
    return sign + format_ci(*(100 * part for part in (e.value, e.low, e.high)))
