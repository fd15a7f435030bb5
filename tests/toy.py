"""A small world of invented facts, and editors of tiny models that know it; shared by the tests of the engine."""

from __future__ import annotations

import conftest
import reference
import torch

from langedit_core.contexts import Contexts
from langedit_core.covariance import KeyCovariance, collect_covariance
from langedit_core.editors import METHODS, Editor, settings_for
from langedit_core.languages import LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.nullspace import Threshold
from langedit_core.records import Fact, FactSet, Probe
from langedit_core.tokens import Row, continuation, locate
from langedit_core.values import ValueRequest, ValueSettings

PROMPTS = {
    "en": "The capital of {} is",
    "de": "Die Hauptstadt von {} heißt",
    "fr": "La capitale de la {} est",
    "zh": "国家：{}。首都：",
}
REWORDED = {
    "en": "In {}, the capital is",
    "de": "Die Hauptstadt: {} hat",
    "fr": "La ville de {} est",
    "zh": "{}，首都：",
}
SUBJECTS = ["Norland", "Ostberg", "Sweden", "Suedia", "Terranor", "Calmeville", "Ostrand", "Quietland", "Nordcap"]
CHINESE = ["诺兰", "瑞典", "奥斯特", "安静", "北方", "欧元", "城市", "国家", "首都"]
TARGETS = ["Ostberg", "Norland", "capital", "nor", "cap", "de", "he", "of", "in"]  # one token each, after a space
CHINESE_TARGETS = ["城市", "北方", "欧元", "安静", "官方", "货币", "首都", "国家", "瑞典"]  # several bytes each
PREFIXES = {
    "en": ("A quiet town. ", "The north: "),
    "de": ("Im Norden. ",),
    "fr": ("Une ville. ", "Officielle. "),
    "zh": ("城市。",),
}
CONTEXTS = Contexts(prefixes=PREFIXES)


def fact(number: int, lang: str = "en", **changes) -> Fact:
    """Fact `number`, the same subject and object in every language."""
    at = number % len(SUBJECTS)
    subject, target = (CHINESE[at], CHINESE_TARGETS[at]) if lang == "zh" else (SUBJECTS[at], TARGETS[at])
    other = (at + 1) % len(SUBJECTS)
    neighbour = (CHINESE if lang == "zh" else SUBJECTS)[other]
    known = (CHINESE_TARGETS if lang == "zh" else TARGETS)[(at + 4) % len(TARGETS)]
    fields = dict(
        id=f"capital/{number}", lang=lang, relation="capital", subject=subject, prompt=PROMPTS[lang], target=target,
        paraphrases=(Probe(prompt=REWORDED[lang].replace("{}", subject), answer=target, kind="paraphrase"),),
        neighbours=(Probe(prompt=PROMPTS[lang].replace("{}", neighbour), answer=known, kind="neighbour_near"),),
    )  # fmt: skip
    return Fact(**(fields | changes))


def facts(lang: str, numbers) -> list[Fact]:
    return [fact(number, lang) for number in numbers]


def fact_set(langs=("en", "de"), size: int = 9) -> FactSet:
    ids = [f"capital/{number}" for number in range(size)]
    return FactSet(
        name="toy",
        facts={i: {lang: fact(number, lang) for lang in langs} for number, i in enumerate(ids)},
        corpus={lang: tuple(conftest.SENTENCES) for lang in langs},
        splits={i: "edit" for i in ids},
    )


def value_request(model: EditableModel, of: Fact, contexts: Contexts = CONTEXTS) -> ValueRequest:
    """Token rows of a fact, as the editor makes them."""
    target = tuple(continuation(model.tokenizer, of.text, LANGUAGES[of.lang].join + of.target))
    rows = contexts.rows(model, of.prompt, of.subject, of.lang)
    kl = locate(model.tokenizer, "{} is a", of.subject)
    return ValueRequest(
        contexts=tuple(Row(ids=row.ids + target[:-1], lookup=row.lookup) for row in rows), target=target, kl=kl
    )


def layers_of(method: str) -> tuple[int, ...]:
    """Two layers, where the method edits more than one."""
    return (1,) if METHODS[method].get("one_by_one") else (1, 2)


def pays_for_the_covariance(method: str) -> bool:
    return "covariance_weight" in METHODS[method]


def covariances(model: EditableModel, layers) -> dict[int, KeyCovariance]:
    return collect_covariance(model, layers, conftest.SENTENCES)


# --- a setting in which an edit is exact ------------------------------------------------------------------------------
# No prefixes, so that the key is that of the bare prompt; the subject last and targets of one token, so that nothing
# follows it; and a covariance of exactly the other tokens, so that none of them changes. Then, without a ridge, the
# edited model is at the subject's last token what the optimisation saw.

BARE = Contexts(prefixes={lang: () for lang in PREFIXES})
SHORT = {"en": "So {}", "de": "Also {}", "fr": "Et {}"}
# A random model is hard to convince: larger steps, and a larger clamp, than a trained one needs.
FAST = ValueSettings(radius=1.0, clamp=30.0, penalty=0.0, steps=30, kl=0.0)


def short_facts(lang: str, numbers) -> list[Fact]:
    return [fact(number, lang, prompt=SHORT[lang]) for number in numbers]


def confident(model: EditableModel) -> EditableModel:
    """A sharper head and louder post-norms: in a random model, one layer can then decide what is said."""
    with torch.no_grad():
        model.hf.get_output_embeddings().weight.mul_(4)
        if model.architecture.post_norm:
            for layer in model.layers:
                layer.get_submodule(model.architecture.post_norm).weight.add_(5)
    return model


def covariances_of_other_tokens(model: EditableModel, layers, batches) -> dict[int, KeyCovariance]:
    """Keys of all tokens before the subject's last one."""
    found = {layer: KeyCovariance.empty(model.d_ff) for layer in layers}
    for of in (f for batch in batches for f in batch):
        row, seen = locate(model.tokenizer, of.prompt, of.subject), {}
        with torch.no_grad():
            reference.whole_model(model, row.ids, watch=seen)
        for layer in layers:
            found[layer].update(seen[layer, "in"][: row.lookup].T.double())
    return found


def exact_editor(model: EditableModel, method: str, batches, layers=None, **changes) -> Editor:
    layers = layers or layers_of(method)
    options = dict(
        layers=layers, values=FAST, ridge=1e-8, threshold=Threshold(kind="relative", value=1e-5),
        released_counts=(100, 10),
    )  # fmt: skip
    found = covariances_of_other_tokens(model, layers, batches)
    if pays_for_the_covariance(method):
        options["covariance_weight"] = 1.0
        for covariance in found.values():  # memit has no hard projection: other tokens are expensive, the rest is free
            covariance.gram = 1e8 * covariance.gram + 1e-6 * covariance.count * torch.eye(model.d_ff).double()
    return Editor(model, settings_for(method, on=options | changes), found, BARE)


def weights(model: EditableModel) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.hf.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Bitwise equality of two sets of weights."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
