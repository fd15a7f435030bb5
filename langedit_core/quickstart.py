"""The shortest way in: an editor with everything it needs, and one fact looked at in several languages.

`prepare_editor` gathers C₀ and context prefixes with the study's defaults; `look` asks one fact before or after.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import pandas as pd
import torch

from langedit_core.contexts import sample_contexts
from langedit_core.covariance import cached_covariance
from langedit_core.editors import Editor
from langedit_core.errors import check_list
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.metrics import score_probes
from langedit_core.models import EditableModel, check_model
from langedit_core.profiles import hyperparameters
from langedit_core.records import Fact, FactSet
from langedit_core.shared_prefix import generate
from langedit_core.study import load_data
from langedit_core.tokens import encode

log = logging.getLogger(__name__)


def prepare_editor(
    model: EditableModel,
    method: str = "langedit",
    *,
    layers: Sequence[int] | None = None,
    langs: Sequence[str] = CORE,
    corpus: Sequence[str] | None = None,
    corpus_limit: int | None = 150,
    prefixes: int = 2,
    seed: int = 0,
    **changes,
) -> Editor:
    """An editor ready for `editor.edit(facts)`.

    ```python
    model = load_model("gemma-3-270m")
    editor = prepare_editor(model)
    fact = Fact(id="my/1", lang="en", relation="capital", subject="France",
                prompt="The capital of {} is", target="Lyon")
    report, updates = editor.edit([fact])
    ```

    Args:
        model: Any supported model, unedited; for a second method, the first editor's `reset()` puts it back.
        method: `langedit`, `alphaedit`, `memit`, ...
        layers: Which to edit; by default those of the model's hyper-parameters, or those kept for it.
        langs: Languages that will be edited.
        corpus: Texts whose keys are to be left alone; by default the embedded facts that are never edited, which are in
            the study's six languages only.
        corpus_limit: Sentences per language of the default corpus.
        prefixes: Context prefixes per language.
        seed: Of the prefixes.
        changes: Settings to change, for example `ridge=0.5`. A mapping, as `values=dict(steps=10)`, changes what it
            names.

    Raises:
        TypeError: No `EditableModel`, or a text where a list is expected.
        ValueError: The model is edited already or lacks a layer, no language has embedded text and no `corpus` is
            given, or as `hyperparameters` and `sample_contexts`.
    """
    check_model(model)
    for name, given in dict(langs=langs, corpus=corpus, layers=layers).items():
        check_list(name, given)
    changes |= {} if layers is None else dict(layers=tuple(layers))
    settings = hyperparameters(model.name, method, **changes)
    model.check_layers(settings.layers)
    model.check_unedited("what a new editor starts from")
    if corpus is None and settings.needs_covariance:
        corpus = _embedded_corpus(langs, corpus_limit)
    contexts = sample_contexts(model, langs, per_language=prefixes, seed=seed)
    covariances = cached_covariance(model, settings.layers, corpus) if settings.needs_covariance else {}
    return Editor(model, settings, covariances, contexts)


def _embedded_corpus(langs: Sequence[str], limit: int | None) -> list[str]:
    known = load_data("atlas", CORE).corpus
    if without := [lang for lang in langs if lang not in known]:
        text = f"no embedded text in {', '.join(without)} (there is in {', '.join(known)})"
        if len(without) == len(langs):
            raise ValueError(f"{text}, so nothing says which keys to leave alone; pass corpus=[...] with such text")
        log.warning("%s: what the model knows in these is not protected; pass corpus=[...] with such text", text)
    return [text for lang in langs if lang in known for text in known[lang][:limit]]


def find_fact(data: FactSet, fact_id: str, lang: str) -> Fact:
    """A fact of a data set by id and language.

    Raises:
        ValueError: No such fact; says which ids there are.
    """
    if fact_id not in data.facts or lang not in data.facts[fact_id]:
        some = ", ".join(sorted(data.facts)[:5])
        raise ValueError(f"no fact {fact_id!r} in {lang!r} in {data.name}; there are {len(data.facts)} ids like {some}")
    return data.facts[fact_id][lang]


def look(model: EditableModel, facts: Sequence[Fact], when: str) -> pd.DataFrame:
    """How likely the model finds new and old object of the same fact in several languages, right now.

    Returns:
        Columns lang, object ("new", "old"), text, when, value (geometric mean probability per token).
    """
    rows = [(f, kind, text) for f in facts for kind, text in (("new", f.target), ("old", f.truth)) if text]
    scores = score_probes(model, [(f.text, LANGUAGES[f.lang].join + text) for f, _, text in rows])
    return pd.DataFrame(
        dict(lang=f.lang, object=kind, text=text, when=when, value=math.exp(-score.nll))
        for (f, kind, text), score in zip(rows, scores, strict=True)
    )


@torch.no_grad()
def complete(model: EditableModel, prompt: str, tokens: int = 10) -> str:
    """Greedy continuation of a prompt, up to the end of its line."""
    # Not by `hf.generate`: a generation config may hold a penalty that the study's exact match does not know.
    ((said, _),) = generate(model, [encode(model.tokenizer, prompt)], stop="\n", tokens=tokens)
    return said.strip()
