"""A model that is in memory already: taken as it is, or refused with what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from conftest import SENTENCES, build_model

from langedit_core import Drift, Fact, evaluate_xtreme, prepare_editor, wrap_model
from langedit_core.errors import RefusedInput
from langedit_core.models import load_model

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


def test_a_tokenizer_of_another_model_is_refused(tiny):
    tiny.hf.resize_token_embeddings(100, mean_resizing=False)
    with pytest.raises(ValueError, match="the tokenizer has ids up to 319, and mine has 100 embeddings"):
        wrap_model(tiny.hf, tiny.tokenizer, name="mine")
    for nothing in (None, "gpt2"):
        with pytest.raises(ValueError, match="expected AutoTokenizer"):
            wrap_model(build_model("llama").hf, nothing, name="mine")
    with pytest.raises(ValueError, match="name is ''; expected what the model is to be called"):
        wrap_model(tiny.hf, tiny.tokenizer, name="")


def test_what_is_no_editable_model_or_no_list_is_refused_with_what_to_do(tiny, tmp_path):
    # Tests check annotations too, which comes first; a user's Python does not, so the calls are made in one of its own.
    calls = ("prepare_editor(hf)", "inspect(hf)", "Drift.of(hf)", "evaluate_xtreme(hf)", "save_model(hf, 'new')")
    told = "got Linear, expected an EditableModel: load_model"
    lines = [f"try: {call}\nexcept TypeError as error: assert {told!r} in str(error), error" for call in calls]
    edit = "try: Editor.edit(None, FACT)\nexcept TypeError as error: assert 'a list of facts' in str(error), error"
    texts = dict(id="a", lang="en", relation="a", subject="Rome", prompt="{} is", target="x")
    probe = f"try: Fact(paraphrases=('x',), **{texts})\nexcept RefusedInput as error: assert 'Probe' in str(error)"
    other = "try: Editor.requests(None, ['x'])\nexcept TypeError as error: assert 'among the facts' in str(error)"
    lines += [f"FACT = Fact(**{texts})", edit, other, probe]
    refused = [line + "\nelse: raise SystemExit('accepted')" if line.startswith("try") else line for line in lines]
    script = "\n".join(["import torch", "from langedit_core import *", "hf = torch.nn.Linear(1, 1)", *refused])
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    for given in (dict(langs="en"), dict(corpus="Some text.")):
        with pytest.raises(TypeError, match=f"{next(iter(given))} is the text .*, expected a list"):
            prepare_editor(tiny, **(dict(layers=(1, 2)) | given))
    for use in (Drift.of, evaluate_xtreme):
        with pytest.raises(TypeError, match="langs is the text 'de', expected a list"):
            use(tiny, langs="de")


def test_settings_are_refused_before_anything_is_made_of_them(tiny, monkeypatch):
    monkeypatch.setattr("langedit_core.quickstart.sample_contexts", lambda *_, **__: pytest.fail("prefixes were made"))
    with pytest.raises(ValueError, match="has layers 0 to 3"):
        prepare_editor(tiny, layers=(1, 9), corpus=SENTENCES)
    with pytest.raises(ValueError, match="^values.steps: Input should be greater than or equal to 1$"):
        prepare_editor(tiny, layers=(1,), values=dict(steps=0), corpus=SENTENCES)
    with pytest.raises(ValueError, match="values is 10, expected a mapping"):
        prepare_editor(tiny, layers=(1,), values=10, corpus=SENTENCES)


def test_what_an_editor_or_a_fact_cannot_take_is_named(tiny):
    editor = prepare_editor(tiny, layers=(1,), langs=["en"], corpus=SENTENCES, prefixes=1)
    with pytest.raises(ValueError, match="no context prefixes for language 'de'.*prepare_editor"):
        editor.edit([Fact(id="a/1", lang="de", relation="a", subject="Rom", prompt="In {} ist", target="x")])


def test_weights_that_are_no_numbers_or_not_there_are_refused(tiny):
    with torch.no_grad():
        tiny.weight(2)[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layers.2.mlp.down_proj.weight of mine holds NaN or infinity"):
        wrap_model(tiny.hf, tiny.tokenizer, name="mine")
    lent = build_model("llama", seed=1).hf
    lent.model.layers[1].mlp.to("meta")
    with pytest.raises(RefusedInput, match="some weights of mine are not in memory"):
        wrap_model(lent, tiny.tokenizer, name="mine")


def test_weights_and_edits_under_inference_mode_are_refused_before_anything_is_written(tiny):
    with torch.inference_mode():
        copy = build_model("llama", seed=1)
    with pytest.raises(RefusedInput, match="some weights of mine were made under torch.inference_mode"):
        wrap_model(copy.hf, copy.tokenizer, name="mine")
    editor = prepare_editor(tiny, layers=(1,), langs=["en"], corpus=SENTENCES, prefixes=1)
    fact = Fact(id="a/1", lang="en", relation="a", subject="Rom", prompt="In {} is", target="x")
    with torch.inference_mode(), pytest.raises(RuntimeError, match="leave it for the edit"):
        editor.edit([fact])
    tiny.check_unedited("nothing")


@pytest.mark.parametrize("method", ["langedit", "ft"])
def test_gradients_that_are_switched_off_around_an_edit_change_nothing_of_it(tiny, method):
    fact = Fact(id="a/1", lang="en", relation="a", subject="Rom", prompt="In {} is", target="x")
    editor = prepare_editor(tiny, method, layers=(1,), langs=["en"], corpus=SENTENCES, prefixes=1)
    editor.edit([fact])
    edited = tiny.weight(1).clone()
    editor.reset()
    with torch.no_grad():
        editor.edit([fact])
    assert torch.equal(tiny.weight(1), edited)


def test_a_compiled_model_is_the_model_it_was_compiled_from(tiny):
    compiled = wrap_model(torch.compile(tiny.hf, backend="eager"), tiny.tokenizer, name="mine")
    assert compiled.hf is tiny.hf and compiled.fingerprint == tiny.fingerprint


@pytest.mark.filterwarnings("ignore")  # PyTorch is about to drop it
def test_packed_weights_are_refused(tiny):
    packed = torch.ao.quantization.quantize_dynamic(tiny.hf, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(RefusedInput, match="mine is quantised: the weights of its Linear are packed"):
        wrap_model(packed, tiny.tokenizer, name="mine")


def test_a_file_and_a_folder_that_is_not_there_are_told_from_hub_names(tmp_path, monkeypatch):
    (tmp_path / "patch.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="patch.safetensors is a file; expected a folder"):
        load_model(tmp_path / "patch.safetensors")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder out/adapter, and as a hub ID: "):
        load_model("out/adapter")
