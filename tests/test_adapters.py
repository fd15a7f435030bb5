"""What others read: adapters that give the edited model's logits in plain PEFT, folders that reload bit for bit."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
import toy
from conftest import SENTENCES, build_model
from safetensors import SafetensorError
from safetensors.torch import load_file
from toy_patch import recorded

from langedit_core.adapters import new_folder, save_model, to_peft
from langedit_core.models import ARCHITECTURES, EditableModel, load_model
from langedit_core.storage import CannotWrite
from langedit_core.tokens import encode


@torch.no_grad()
def logits(model: EditableModel, hf=None) -> list[torch.Tensor]:
    return [(hf or model.hf)(torch.tensor([encode(model.tokenizer, text)])).logits for text in SENTENCES]


def edited(model_type: str, method: str = "langedit"):
    patch, _ = recorded(model_type, method)
    model = build_model(model_type)
    patch.apply(model)
    return patch, model


@pytest.mark.parametrize(
    "model_type, method",
    [*((name, "langedit") for name in sorted(ARCHITECTURES)), ("gpt2", "rect"), ("llama", "ft"), ("llama", "rome")],
)
def test_base_and_adapter_give_the_logits_of_the_edited_model_in_plain_peft(model_type, method, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed; the extra `test` has it")
    patch, model = edited(model_type, method)
    errors = to_peft(patch, tmp_path / "adapter")
    assert max(errors.values()) < 1e-6
    base = build_model(model_type)
    before, wanted = logits(base), logits(model)
    adapted = peft.PeftModel.from_pretrained(base.hf, tmp_path / "adapter").eval()
    for one, other, old in zip(logits(base, adapted), wanted, before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(one, old, atol=1e-2)
    merged = adapted.merge_and_unload()
    for one, other in zip(logits(base, merged), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_an_adapter_adds_what_the_patch_adds(model_type, tmp_path):
    """PEFT's own sum, (α/r) B A in the orientation of the module, without PEFT."""
    patch, model = edited(model_type)
    to_peft(patch, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    parameters, before = dict(model.hf.named_parameters()), dict(build_model(model_type).hf.named_parameters())
    assert len(tensors) == 2 * len(patch.layers) and config["layers_to_transform"] == list(patch.layers)
    for layer in patch.layers:
        (name,) = (n for n in tensors if f".{layer}." in n and n.endswith("lora_A.weight"))
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        assert module.endswith(config["target_modules"][0]) and f"{config['layers_pattern']}.{layer}." in module
        r = config["rank_pattern"].get(module, config["r"])
        alpha = config["alpha_pattern"].get(module, config["lora_alpha"])
        a, b = tensors[name], tensors[name.replace("lora_A", "lora_B")]
        assert a.shape[0] == b.shape[1] == r
        delta = alpha / r * (b @ a)
        if config["fan_in_fan_out"]:
            delta = delta.T
        changed = parameters[f"{module}.weight"] - before[f"{module}.weight"]
        torch.testing.assert_close(delta, changed, rtol=0, atol=1e-6)


def test_layers_of_different_rank_are_named_in_the_patterns(tmp_path):
    patch, _ = recorded()
    thin = patch.factors[0][1]
    for batch in patch.factors:  # layer 1 then has one direction only
        one = batch[1]
        batch[1] = type(one)(left=thin.left[:, :1].repeat(1, one.left.shape[1]), right=one.right, keys=one.keys)
    to_peft(patch, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 6
    assert config["rank_pattern"] == config["alpha_pattern"] == {"model.layers.1.mlp.down_proj": 1}


def test_an_adapter_of_low_rank_states_its_error(tmp_path):
    patch, _ = recorded()
    errors = to_peft(patch, tmp_path / "adapter", rank=1)
    assert all(0.01 < error < 1 for error in errors.values())
    assert errors == {layer: error for layer, (_, _, error) in patch.compacted(1).items()}


def test_masked_updates_need_the_base_to_be_exported(tmp_path):
    patch, _ = recorded("llama", "rect")
    patch.base = None
    with pytest.raises(ValueError, match="masks are found from the weights, needs the unedited matrices"):
        to_peft(patch, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    patch.attach(build_model("llama"))
    assert max(to_peft(patch, tmp_path / "adapter").values()) < 1e-6


@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2", "qwen2"])
def test_a_saved_model_reloads_to_the_same_bits_and_gives_its_edits_back(model_type, tmp_path):
    patch, model = edited(model_type)
    save_model(model, tmp_path / "edited")
    loaded = load_model(tmp_path / "edited", device="cpu")
    assert toy.same(toy.weights(loaded), toy.weights(model))
    assert patch.position(loaded) == 3
    assert patch.remove(loaded, 3, exact=True)
    assert toy.same(toy.weights(loaded), toy.weights(build_model(model_type)))


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="exists already and is not overwritten"):
        to_peft(recorded()[0], tmp_path / "there")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "new") as made:
        (made / "half").write_text("x")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_what_is_replaced_stays_until_the_new_one_is_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("x")
    with pytest.raises(KeyboardInterrupt), new_folder(folder, replace=True) as made:
        (made / "half").write_text("x")
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"]
    with new_folder(folder, replace=True) as made:
        (made / "new").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_replaced_folder_comes_back_where_the_new_one_cannot_take_its_name(tmp_path, monkeypatch):
    folder, rename = tmp_path / "model", os.rename
    folder.mkdir()
    (folder / "old").write_text("x")

    def refuse_new(source, to):
        if Path(source).suffix == ".partial":
            raise OSError(errno.ENOSPC, "No space left on device")
        rename(source, to)

    monkeypatch.setattr("langedit_core.adapters.os.rename", refuse_new)
    with (
        pytest.raises(CannotWrite, match="model cannot be written: the disk is full"),
        new_folder(folder, replace=True),
    ):
        pass
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_told_as_such_whoever_writes(tmp_path, monkeypatch):
    told = "Error while serializing: I/O error: No space left on device (os error 28)"

    def full(*_, **__):
        raise SafetensorError(told)

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(CannotWrite, match="adapter cannot be written: the disk is full"):
        to_peft(recorded()[0], tmp_path / "adapter")
    monkeypatch.setattr(type(build_model("llama").hf), "save_pretrained", full)
    with pytest.raises(CannotWrite, match="edited cannot be written: the disk is full"):
        save_model(build_model("llama"), tmp_path / "edited")
    assert not list(tmp_path.iterdir())
