"""Bad input is answered before anything is computed with it; what comes from files is in the corpus, the rest here.

files of facts, profiles, parameters, patches,       test_bad_corpus (cases in bad_corpus/)
model folders, data sets, results, records, caches
markup and script in the texts of a data set         test_bad_corpus, test_notebooks
anything a parser may meet                           test_parsers
no room, no right to write, a kill                   test_faults, test_study
subject not in the prompt, `{}` missing or doubled   test_records, test_tokens
empty target, or one without tokens                  test_records, test_tokens, test_editors, test_metrics
unknown language, method, data set, cell group       test_records, test_study, test_editors
NaN or infinity in keys, values, covariance, update  test_solve, test_nullspace, test_covariance, test_values, here
out of memory                                        test_memory, test_values, test_keys, test_finetune
a text longer than the model takes                   test_editors, test_shared_prefix
two runs that write one file                         test_editing
a pickle beside weights, code beside a model         here; none is tracked: test_repository
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import conftest
import pytest
import torch
import toy
from bad_corpus.models import Bomb
from conftest import CONFIGS, build_model

from langedit_core import prepare_editor, sample_contexts, save_model
from langedit_core.chosen_layers import keep_layers
from langedit_core.errors import RefusedInput
from langedit_core.models import ARCHITECTURES, architecture_of, canonical, inspect, load_model
from langedit_core.packaged import PACKAGED
from langedit_core.profiles import load_profile


@pytest.fixture
def saved(tmp_path) -> Path:
    """A whole model folder as `save_pretrained` writes it."""
    model, folder = build_model("llama"), tmp_path / "model"
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_whole_folder_is_loaded_and_gives_the_saved_weights(saved):
    loaded, model = load_model(saved, device="cpu"), build_model("llama")
    assert loaded.name == str(saved)
    assert all(torch.equal(loaded.weight(i), model.weight(i)) for i in range(4))
    assert not any(parameter.requires_grad for parameter in loaded.hf.parameters())
    assert loaded.fingerprint == model.fingerprint
    assert loaded.provenance["dtype"] == "float32"


@pytest.mark.parametrize("alone", [True, False])
def test_a_folder_with_an_adapter_is_refused_since_saving_would_lose_the_edits(saved, alone):
    (saved / "adapter_config.json").write_text("{}")
    if alone:
        (saved / "config.json").unlink()
    with pytest.raises(RefusedInput, match=r"holds an adapter .* merge it first"):
        load_model(saved, device="cpu")


def test_tokens_that_only_the_tokenizer_has_are_neither_sampled_nor_used_as_padding(saved):
    expected = sample_contexts(load_model(saved, device="cpu"), ["en", "de"], per_language=1)
    tokenizer = load_model(saved, device="cpu").tokenizer
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(saved)
    model = load_model(saved, device="cpu")
    rows = model.hf.get_input_embeddings().weight.shape[0]
    assert max(model.tokenizer.all_special_ids) >= rows > model.pad_id
    assert sample_contexts(model, ["en", "de"], per_language=1) == expected
    editor = prepare_editor(model, langs=("en", "de"), corpus=conftest.SENTENCES, prefixes=1, layers=(1,))
    editor.edit([toy.fact(0), toy.fact(1, "de")])


def test_an_edited_model_is_saved_with_its_tokenizer(saved, tmp_path):
    model = load_model(saved, device="cpu")
    model.add_(1, torch.full_like(model.weight(1), 0.01))
    save_model(model, tmp_path / "edited")
    again = load_model(tmp_path / "edited", device="cpu")
    assert torch.equal(again.weight(1), model.weight(1))
    assert again.tokenizer.encode("The capital") == model.tokenizer.encode("The capital")


def test_a_folder_goes_by_its_whole_path_however_it_was_written(saved, monkeypatch):
    monkeypatch.chdir(saved.parent)
    names = {load_model(name, device="cpu").name for name in (saved.name, f"./{saved.name}", str(saved))}
    assert names == {str(saved)} == {canonical(saved.name)}
    monkeypatch.setenv("HF_HOME", str(saved.parent))
    keep_layers(saved.name, [1, 2], "a test")
    cells = [load_profile("smoke").all_cells(name) for name in (saved.name, str(saved))]
    assert cells[0] == cells[1] and {cell.model for cell in cells[0]} == {str(saved)}


def test_a_pickle_beside_whole_weights_is_not_touched(saved, tmp_path):
    (saved / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    assert torch.equal(load_model(saved, device="cpu").weight(0), build_model("llama").weight(0))
    assert not (tmp_path / "trace").exists()


CODE = "from pathlib import Path\nPath(__file__).with_name('trace').touch()\nraise SystemExit('own code was run')\n"


def test_own_code_beside_a_known_architecture_is_ignored(saved):
    edit_config(saved, auto_map={"AutoModelForCausalLM": "own.OwnModel", "AutoTokenizer": ["own.OwnTokenizer", None]})
    (saved / "own.py").write_text(CODE)
    assert type(load_model(saved, device="cpu").hf).__name__ == "LlamaForCausalLM"
    assert not (saved / "trace").exists()


def test_a_known_architecture_that_is_not_supported_lists_what_is_and_what_to_declare(saved):
    edit_config(saved, model_type="opt", architectures=["OPTForCausalLM"])
    with pytest.raises(ValueError, match="unknown architecture 'opt'") as caught:
        load_model(saved, device="cpu")
    message = str(caught.value)
    assert all(name in message for name in ARCHITECTURES)
    assert all(word in message for word in ("layers", "output projection", "norm"))
    with pytest.raises(ValueError, match="unknown architecture 'qwen'; known: qwen2, qwen3, "):
        architecture_of("qwen")


def test_an_unknown_name_lists_the_packaged_models_nearest_first():
    with pytest.raises(ValueError, match="unknown model .*'gemma-3-27m'; known: gemma-3-270m, ") as caught:
        load_model("gemma-3-27m")
    assert all(name in str(caught.value) for name in PACKAGED)
    with pytest.raises(ValueError, match="not a directory, not an owner/name hub ID"):
        load_model("/no/such/folder")


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_an_update_of_the_wrong_shape_or_with_nan_leaves_the_weights_alone(model_type):
    model = build_model(model_type)
    before = model.weight(1).clone()
    good = torch.randn(model.d_model, model.d_ff)
    with pytest.raises(ValueError, match=r"layer 1 has shape \(48, 32\), expected \(32, 48\)"):
        model.add_(1, good.T.contiguous())
    for bad in (float("nan"), float("inf")):
        delta = good.clone()
        delta[3, 4] = bad
        with pytest.raises(ValueError, match="layer 1 holds NaN or infinity; the weights are left"):
            model.add_(1, delta)
    assert torch.equal(model.weight(1), before)
    model.add_(1, good)
    torch.testing.assert_close(model.weight(1), before + good)


def test_a_model_is_restored_bitwise_even_after_an_error(any_model):
    before = {name: tensor.clone() for name, tensor in any_model.hf.state_dict().items()}
    with pytest.raises(KeyboardInterrupt), any_model.restored():
        for layer in range(4):
            any_model.add_(layer, torch.randn(any_model.d_model, any_model.d_ff))
        assert not torch.equal(any_model.weight(0), before[next(n for n in before if ".0." in n)])
        raise KeyboardInterrupt
    assert all(torch.equal(before[name], tensor) for name, tensor in any_model.hf.state_dict().items())


def test_inspect_tells_layers_shapes_port_and_norm(tiny, tiny_gemma):
    for model, norm in ((tiny, "none: residual"), (tiny_gemma, "post_feedforward_layernorm: values are optimised")):
        sheet = inspect(model)
        assert "4 (0 to 3), residual width 32" in sheet
        assert "model.layers.<layer>.mlp.down_proj, W: 32 x 48" in sheet
        assert norm in sheet
    assert set(CONFIGS) == set(ARCHITECTURES)  # every architecture has a tiny model, so every test covers it
    assert conftest.byte_level_tokenizer().is_fast
