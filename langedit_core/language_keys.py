"""Keys of the same facts in many languages: what one language's keys take from another's, and which lie together.

Overlap, energy taken and clusters are those of `subspaces`; here are the prompts, the tables and the sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from langedit_core.atlas_lists import load_lists
from langedit_core.capacity_study import highest_layer
from langedit_core.languages import LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.records import FactSet, digest
from langedit_core.subject_keys import cached_keys, token_rows
from langedit_core.subspaces import (
    Halves,
    Tree,
    angles,
    chance_taken,
    cluster,
    contrasts,
    directions,
    grouped,
    overlaps,
    relative,
    taken,
)
from langedit_core.tables import format_ci

SCRIPTS = {  # ISO 15924 codes of scripts that several languages share, as people call them
    "Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari", "Ethi": "Ethiopic", "Beng": "Bengali",
    "Hani": "Chinese",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LanguageKeys:
    """Keys of the same facts in several languages, in two halves, and what they say about each other.

    Attributes:
        name: Which prompts.
        halves: Language -> its keys.
        marks: Index language: name, script, family, branch.
        facts: Most facts asked for in a language; those without token boundary in one are left out of that one only.
        k: Main directions compared.
        layer: Whose keys.
        overlap: Mean cos² of the principal angles, of keys as they are (uncentred).
        centred: The same of keys less their language's mean.
        taken: Share of the column's energy that the span of the row's keys takes away.
    """

    name: str
    halves: dict[str, Halves]
    marks: pd.DataFrame
    facts: int
    k: int
    layer: int
    overlap: pd.DataFrame
    centred: pd.DataFrame
    taken: pd.DataFrame

    @property
    def langs(self) -> list[str]:
        return list(self.halves)

    @property
    def likeness(self) -> pd.DataFrame:
        """Centred overlap, relative to the split halves: what is clustered and compared."""
        return relative(self.centred)

    @property
    def tree(self) -> Tree:
        return cluster(self.likeness)


def fact_keys(
    model: EditableModel, data: FactSet, *, facts: int, k: int, layer: int | None = None, seed: int = 0,
    results: str | Path | None = None, quiet: bool = True,
) -> LanguageKeys:  # fmt: skip
    """Keys of facts of a data set, at most `facts` per language: of all splits, since nothing is edited.

    In mzsre not every fact can be located in every language, so each language has its own facts in the same order of
    hashes, halved by another hash: a fact lies in the same half in every language. The language with the fewest facts
    says how many are used of each.
    """
    prompts = {}
    for lang in data.languages:
        ids = sorted((i for i in data.facts if lang in data.facts[i]), key=lambda i: digest(str(seed), i))[:facts]
        prompts[lang] = [
            (data.facts[i][lang].prompt, data.facts[i][lang].subject, int(digest("half", i)[:8], 16) % 2) for i in ids
        ]
    lists = load_lists()
    marks = {lang: lists[lang] for lang in prompts}
    return _compared(model, data.name, prompts, marks, k, layer, results, quiet)


def list_keys(
    model: EditableModel, *, langs: int | None = None, facts: int, k: int, layer: int | None = None, seed: int = 0,
    results: str | Path | None = None, quiet: bool = True,
) -> LanguageKeys:  # fmt: skip
    """Keys of the list prompts (`atlas_lists`), the same territories in every language.

    Args:
        model: Unedited.
        langs: Only so many languages, the first in the order of sha256(seed|code) after those of the study; None: all.
        facts: Territories, the first in the order of sha256(seed|position).
        k: Main directions compared.
        layer: Whose keys; the highest edited one by default.
        seed: Changes territories, halves and languages.
        results: Folder of finished keys.
        quiet: No progress bar.
    """
    lists = load_lists()
    core = [code for code in LANGUAGES if code in lists]
    rest = sorted((code for code in lists if code not in core), key=lambda code: digest(str(seed), code))
    chosen = [*core, *rest][:langs]
    size = len(next(iter(lists.values())).subjects)
    order = sorted(range(size), key=lambda i: digest(str(seed), str(i)))[:facts]
    prompts = {
        code: [(lists[code].template, lists[code].subjects[i], rank % 2) for rank, i in enumerate(order)]
        for code in chosen
    }
    return _compared(model, "lists", prompts, {c: lists[c] for c in chosen}, k, layer, results, quiet)


def _compared(
    model: EditableModel, name: str, prompts: dict[str, list[tuple[str, str, int]]], marks: dict, k: int,
    layer: int | None, results: str | Path | None, quiet: bool,
) -> LanguageKeys:  # fmt: skip
    layer = highest_layer(model) if layer is None else layer
    groups, sides = [], []
    for found in prompts.values():
        rows, located = token_rows(model, [(template, subject) for template, subject, _ in found])
        groups.append(rows)
        sides.append(torch.tensor([found[i][2] for i in located], dtype=torch.long))
    keys = cached_keys(model, groups, layer, results, quiet=quiet)
    pairs = {
        lang: (part[:, side == 0], part[:, side == 1])
        for lang, part, side in zip(prompts, keys.split([len(g) for g in groups], dim=1), sides, strict=True)
    }
    pairs = {lang: pair for lang, pair in pairs.items() if min(half.shape[1] for half in pair) > k}
    # As many keys in every half of every language: more would take more, and lie closer to their span.
    size = min((half.shape[1] for pair in pairs.values() for half in pair), default=0)
    halves = {lang: Halves(first=a[:, :size], second=b[:, :size]) for lang, (a, b) in pairs.items()}
    if len(halves) < 3:
        raise ValueError(
            f"only {list(halves)} have more than {k} keys in both halves; ask for more facts or fewer directions"
        )
    told = pd.DataFrame(
        {
            c: dict(name=m.name, script=SCRIPTS.get(m.script, m.script), family=m.family, branch=m.branch)
            for c, m in marks.items()
        }
    ).T
    return LanguageKeys(
        name=name, halves=halves, marks=told.loc[list(halves)], facts=max(map(len, prompts.values())), k=k, layer=layer,
        overlap=overlaps(halves, k), centred=overlaps(halves, k, centred=True), taken=taken(halves),
    )  # fmt: skip


# --- tables and sentences ---------------------------------------------------------------------------------------------


def per_language(of: LanguageKeys) -> pd.DataFrame:
    """A row per language: marks, keys, overlap with itself (split half) and others, energy taken from it."""
    like = of.likeness.to_numpy(copy=True)
    np.fill_diagonal(like, -np.inf)
    off = ~np.eye(len(like), dtype=bool)
    takes = of.taken.to_numpy()
    frame = of.marks.reset_index(names="lang")
    frame["keys"] = [h.first.shape[1] + h.second.shape[1] for h in of.halves.values()]
    frame["split half"] = np.diag(of.centred)
    frame["overlap with others"] = [of.centred.to_numpy()[i, off[i]].mean() for i in range(len(off))]
    frame["taken by itself"] = np.diag(takes)
    frame["taken by others"] = [takes[off[:, i], i].mean() for i in range(len(off))]
    frame["most like"] = [of.langs[i] for i in like.argmax(1)]
    return frame


def angle_table(of: LanguageKeys, pairs: Sequence[tuple[str, str]] | None = None) -> pd.DataFrame:
    """Smallest, median and largest principal angle in degrees, of named pairs or the most and least alike.

    Between one half of a language and the other half of the other language; a language with itself is its split half.
    """
    if pairs is None:
        like = of.likeness.to_numpy()
        upper = sorted((like[i, j], i, j) for i in range(len(like)) for j in range(i))
        ends = [*upper[:3], *upper[-3:]][::-1]
        pairs = [(of.langs[i], of.langs[j]) for _, i, j in dict.fromkeys(ends)]
        pairs += [(lang, lang) for lang in dict.fromkeys(lang for pair in pairs for lang in pair)][:3]
    rows = []
    for a, b in pairs:
        row: dict[str, object] = {"languages": f"{a} – {b}" if a != b else f"{a}, split half"}
        for name, centred in (("as they are", False), ("centred", True)):
            one = directions(of.halves[a].first, of.k, centred=centred)
            other = directions(of.halves[b].second, of.k, centred=centred)
            found = angles(one, other).rad2deg()
            row[name] = f"{found[0]:.0f} / {found.median():.0f} / {found[-1]:.0f}"
        rows.append(row)
    return pd.DataFrame(rows)


def contrast_table(of: LanguageKeys, seed: int = 0) -> pd.DataFrame:
    """`subspaces.contrasts` of the likeness."""
    return contrasts(of.likeness, of.marks, seed)


def blocks(of: LanguageKeys, by: str = "branch", smallest: int = 2) -> pd.DataFrame:
    """Mean likeness between groups of languages, ordered as their clusters are.

    Args:
        of: Keys.
        by: Column of the marks.
        smallest: Languages that make a group; smaller ones are pooled as "others".
    """
    groups = group_of(of, by, smallest)
    matrix = grouped(of.likeness, groups)
    if len(matrix) < 3:
        return matrix
    filled = matrix.copy()
    values = filled.to_numpy(copy=True)
    values[np.isnan(values)] = np.nanmean(values)
    order = cluster(pd.DataFrame(values, index=matrix.index, columns=matrix.columns)).order
    return matrix.loc[order, order]


def group_of(of: LanguageKeys, by: str, smallest: int = 2) -> list[str]:
    """Group of every language with its size, for example "Germanic (14)"."""
    sizes = of.marks[by].value_counts()
    big = [name if sizes[name] >= smallest else "others" for name in of.marks[by]]
    return [f"{name} ({big.count(name)})" for name in big]


def reading(of: LanguageKeys, table: pd.DataFrame) -> list[str]:
    """Sentences: what one language takes from another, whether languages differ, what scripts and families do to it.

    Args:
        of: Keys.
        table: `contrast_table`.
    """
    off = ~np.eye(len(of.langs), dtype=bool)
    takes, own = of.taken.to_numpy(), np.diag(of.taken)
    d, size = next(iter(of.halves.values())).first.shape
    sentences = [
        f"{of.name}: {len(of.langs)} languages, up to {of.facts} facts each, layer {of.layer}; {of.k} main directions, "
        f"two halves of the facts."
    ]
    i, j = np.unravel_index(np.where(off, takes, -1).argmax(), takes.shape)
    a, b = np.unravel_index(np.where(off, takes, 2).argmin(), takes.shape)
    sentences.append(
        f"Protecting {size} keys of one language takes {np.mean(takes[off]):.2f} of the energy of another's (mean of "
        f"{off.sum()} ordered pairs; most {takes[i, j]:.2f}, {of.langs[i]} from {of.langs[j]}; least "
        f"{takes[a, b]:.2f}, {of.langs[a]} from {of.langs[b]}) and {own.mean():.2f} of its own other half's "
        f"(n = {len(own)}); as many random directions would take {chance_taken(of.halves):.2f}."
    )
    for name, matrix in (("as they are", of.overlap), ("less their language's mean", of.centred)):
        values = matrix.to_numpy()
        sentences.append(
            f"Overlap of main directions of keys {name}: {values[off].mean():.2f} between languages, "
            f"{np.diag(values).mean():.2f} between two halves of one language, {of.k / d:.3f} by chance."
        )
    for row in table.itertuples():
        if row.pairs.startswith("same") and "−" in row.pairs and np.isfinite(row.value):
            shown = "shown" if np.isfinite(row.p) and row.p < 0.05 and row.low > 0 else "not shown"
            why = " (its interval holds zero)" if shown == "not shown" and row.p < 0.05 else ""
            sentences.append(
                f"Likeness, {row.pairs}: {format_ci(row.value, row.low, row.high)}, n = {row.n} languages, "
                f"p = {row.p:.4f} (permuted over languages): a difference is {shown}{why}."
            )
    return sentences
