"""A recorded sequence of edits of a tiny model, shared by the tests of patches."""

from __future__ import annotations

import functools

import conftest
import torch
import toy

from langedit_core.editors import Editor, settings_for
from langedit_core.models import EditableModel
from langedit_core.nullspace import Threshold
from langedit_core.patches import Patch
from langedit_core.values import ValueSettings

BATCHES = [toy.facts("en", [0, 1, 2]), toy.facts("de", [3, 4]), toy.facts("zh", [5])]


def editor(model: EditableModel, method: str = "langedit", **changes) -> Editor:
    layers = toy.layers_of(method)
    options = dict(layers=layers, values=ValueSettings(steps=3), threshold=Threshold(kind="fraction", value=0.8))
    if toy.pays_for_the_covariance(method):
        options["covariance_weight"] = 0.1
    settings = settings_for(method, on=options | changes)
    return Editor(model, settings, toy.covariances(model, settings.layers), toy.CONTEXTS)


def recorded(model_type: str = "llama", method: str = "langedit") -> tuple[Patch, list[dict[str, torch.Tensor]]]:
    """The patch, and all weights of the model before the first batch and after each; edited once per kind."""
    patch, states = _recorded(model_type, method)
    return Patch(patch.header, [dict(batch) for batch in patch.factors], patch.base), states


@functools.cache
def _recorded(model_type: str, method: str) -> tuple[Patch, list[dict[str, torch.Tensor]]]:
    model = conftest.build_model(model_type)
    one = editor(model, method)
    patch, states = Patch.record(one, method), [toy.weights(model)]
    for batch in BATCHES:
        patch.edit(one, batch)
        states.append(toy.weights(model))
    return patch, states
