"""A model that is in memory already: taken as it is, or refused with what to do."""

from __future__ import annotations

import pytest
import torch
from conftest import SENTENCES, build_model

from langedit_core import Fact, prepare_editor, wrap_model
from langedit_core.errors import RefusedInput

FACT = Fact(id="a/1", lang="en", relation="a", subject="France", prompt="The capital of {} is", target="Lyon")


def test_a_wrapped_model_is_the_loaded_one(any_model):
    any_model.hf.train().requires_grad_(True)
    wrapped = wrap_model(any_model.hf, any_model.tokenizer, name="mine")
    assert wrapped.hf is any_model.hf and not wrapped.hf.training
    assert not any(parameter.requires_grad for parameter in wrapped.hf.parameters())
    assert wrapped.architecture == any_model.architecture and wrapped.fingerprint == any_model.fingerprint
    assert wrapped.provenance["dtype"] == "float32" and wrapped.provenance["model"] == "mine"


def test_a_wrapped_model_is_edited_in_place(tiny):
    wrapped = wrap_model(tiny.hf, tiny.tokenizer, name="mine")
    before = tiny.weight(1).clone()
    editor = prepare_editor(
        wrapped, layers=[1, 2], langs=("en",), corpus=SENTENCES, prefixes=1, values=dict(steps=2), seed=1
    )
    assert editor.settings.layers == (1, 2) and editor.settings.values.steps == 2
    editor.edit([FACT])
    assert not torch.equal(tiny.weight(1), before)


def test_adapters_are_refused_until_they_are_merged(tiny):
    peft = pytest.importorskip("peft", reason="installed with the extras `peft` and `test`")
    adapted = peft.get_peft_model(tiny.hf, peft.LoraConfig(target_modules=["down_proj"]))
    for unmerged in (adapted, adapted.base_model.model):
        with pytest.raises(RefusedInput, match="has PEFT adapters in it.*merge_and_unload"):
            wrap_model(unmerged, tiny.tokenizer, name="mine")
    merged = wrap_model(adapted.merge_and_unload(), tiny.tokenizer, name="mine")
    assert merged.fingerprint == build_model("llama").fingerprint  # LoRA begins at zero


def test_what_is_no_model_to_edit_is_refused(tiny):
    for part, message in (
        (tiny.hf.model, "LlamaModel without a head; load it with AutoModelForCausalLM"),
        (tiny.hf.model.layers[0], "without a configuration; expected a model of Transformers"),
    ):
        with pytest.raises(ValueError, match=message):
            wrap_model(part, tiny.tokenizer, name="mine")
    tiny.hf.config.model_type = "bloom"
    with pytest.raises(ValueError, match="unknown architecture 'bloom'"):
        wrap_model(tiny.hf, tiny.tokenizer, name="mine")


def test_weights_that_are_no_numbers_or_not_there_are_refused(tiny):
    with torch.no_grad():
        tiny.weight(2)[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layers.2.mlp.down_proj.weight of mine holds NaN or infinity"):
        wrap_model(tiny.hf, tiny.tokenizer, name="mine")
    lent = build_model("llama", seed=1).hf
    lent.model.layers[1].mlp.to("meta")
    with pytest.raises(RefusedInput, match="some weights of mine are not in memory"):
        wrap_model(lent, tiny.tokenizer, name="mine")
