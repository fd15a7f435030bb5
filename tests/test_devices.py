"""A model on several devices: the engine moves what it must, and gives the same bytes as on one.

The devices are names (see several_devices.py); the hooks are Accelerate's.
"""

from __future__ import annotations

from pathlib import Path

import conftest
import pytest
import several_devices
import torch
import toy
from several_devices import SeveralDevices

from langedit_core import devices, drift, metrics, patches, shared_prefix
from langedit_core.covariance import cached_covariance
from langedit_core.editors import METHODS, Editor, settings_for
from langedit_core.errors import RefusedInput
from langedit_core.models import EditableModel, inspect, load_model, wrap_model
from langedit_core.tokens import encode
from langedit_core.tracing import TraceSettings, trace
from langedit_core.values import ValueSettings

ONE, TWO = "cuda:0", "cuda:1"
LAYERS = (1, 2)  # on either side of the border


def split(model: EditableModel, head: str = TWO) -> EditableModel:
    """The lower two layers on one device, the upper two and the final norm on another."""
    a, hf = model.architecture, model.hf
    where = {name: ONE for name, _ in hf.base_model.named_children()}
    prefix = hf.base_model_prefix
    where = {f"{prefix}.{name}": ONE for name in where} | {"lm_head": head, "embed_out": head, a.final_norm: TWO}
    del where[a.layers]
    where |= {f"{a.layers}.{i}": ONE if i < 2 else TWO for i in range(model.n_layers)}
    several_devices.scattered(hf, where)
    devices.settle(hf)
    return model


def edited(model: EditableModel, method: str, folder: Path, **changes) -> list:
    """Two batches, in two languages; the reports and updates of each."""
    layers = LAYERS if len(toy.layers_of(method)) > 1 else LAYERS[1:]
    if METHODS[method].get("finetune"):
        changes |= {"finetune": dict(steps=3)}
    settings = settings_for(method, on=dict(layers=layers, values=ValueSettings(steps=4)) | changes)
    found = cached_covariance(model, layers, conftest.SENTENCES, folder=folder)
    editor = Editor(model, settings, found, toy.CONTEXTS)
    made = [editor.edit(toy.facts(lang, numbers)) for lang, numbers in (("en", (0, 1)), ("zh", (2, 3)))]
    editor.finish()
    return made


def test_named_devices_fail_as_real_ones_do():
    with SeveralDevices():
        a, b = torch.arange(3.0, device=ONE), torch.arange(3.0, device=TWO)
        assert (a[1:] * 2).device == a.new_zeros(2).device == torch.device(ONE) and a.to(b).device == b.device
        at = torch.tensor([0, 2], device=TWO)
        assert a[at.cpu()].tolist() == [0, 2] and (a * torch.tensor(2.0)).device == a.device
        a.copy_(b)
        for wrong in (lambda: a + b, lambda: torch.cat([a, b]), lambda: a[at], lambda: a.index_add(0, at, b[at])):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()


SHARED = dict(values=ValueSettings(steps=4, site="residual", optimiser="adam"), spread="residual")
CASES = {method: (method, {}) for method in METHODS} | {"memit, residual shared": ("memit", SHARED)}


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_method_gives_the_same_bytes_on_two_devices(case: str, tmp_path):
    method, changes = CASES[case]
    whole = conftest.build_model("llama")
    expected = edited(whole, method, tmp_path / "one", **changes)
    with SeveralDevices():
        model = split(conftest.build_model("llama"))
        found = edited(model, method, tmp_path / "two", **changes)
        assert model.weight(1).device == torch.device(ONE) and model.weight(2).device == torch.device(TWO)
        assert not any(torch.equal(model.weight(i).cpu(), conftest.build_model("llama").weight(i)) for i in found[0][1])
    for layer in range(4):
        assert torch.equal(model.weight(layer), whole.weight(layer))
    assert [report.final_loss for report, _ in found] == [report.final_loss for report, _ in expected]


# A head that is tied to the embeddings is where they are, on the other device than the layers below it.
HEADS = {name: ONE if i % 2 else TWO for i, name in enumerate(sorted(conftest.CONFIGS))} | {"qwen2": ONE}


@pytest.mark.parametrize("model_type", sorted(conftest.CONFIGS))
def test_every_architecture_is_edited_asked_and_traced_on_two_devices(model_type: str, tmp_path):
    def study(model: EditableModel) -> tuple:
        before = drift.Drift.of(model, ("en", "zh"))
        edited(model, "langedit", tmp_path)
        prompts = [encode(model.tokenizer, text) for text in conftest.SENTENCES]
        options = [[[7, 8], [9]]] * len(prompts)
        return (
            metrics.ask(model, [q for fact in toy.facts("en", range(3)) for q in metrics.questions(fact)]),
            before.measure(model),
            shared_prefix.score_options(model, prompts, options),
            shared_prefix.generate(model, prompts, stop="e", tokens=8),
            trace(model, toy.fact(0), 0.1, TraceSettings(samples=2), columns=8),
        )

    expected = study(conftest.build_model(model_type))
    with SeveralDevices():
        found = study(split(conftest.build_model(model_type), HEADS[model_type]))
    assert str(found) == str(expected)


def test_a_patch_goes_on_and_comes_off_on_two_devices(tmp_path):
    with SeveralDevices():
        model = split(conftest.build_model("llama"))
        unedited = {layer: model.weight(layer).clone() for layer in LAYERS}
        settings = settings_for("alphaedit", layers=LAYERS, values=ValueSettings(steps=3))
        found = cached_covariance(model, LAYERS, conftest.SENTENCES, folder=tmp_path)
        editor = Editor(model, settings, found, toy.CONTEXTS)
        patch = patches.Patch.record(editor, "alphaedit")
        patch.edit(editor, toy.facts("en", (0, 1)))
        after = {layer: model.weight(layer).clone() for layer in LAYERS}
        editor.reset()
        patch.save(tmp_path / "patch.safetensors")
        editor.apply(patches.Patch.load(tmp_path / "patch.safetensors").updates(0))
        assert all(torch.equal(model.weight(layer), after[layer]) for layer in LAYERS)
        editor.edit(toy.facts("zh", (2, 3)))  # pays for moving the keys that came from the file
        for layer in LAYERS:
            model.weight(layer).copy_(after[layer])
        patch.remove(model, 1)
        assert all(torch.equal(model.weight(layer), unedited[layer]) for layer in LAYERS)


def saved(model: EditableModel, folder: Path) -> str:
    model.hf.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_is_loaded_by_a_map_and_edited_as_any_other(tmp_path):
    folder = saved(conftest.build_model("llama"), tmp_path / "model")
    where = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    mapped = load_model(folder, device=where | {f"model.layers.{i}": "cpu" for i in range(4)})
    assert hasattr(mapped.hf.base_model, "_hf_hook") and mapped.provenance["device"] == "by a map"
    whole = load_model(folder, device="cpu")
    edited(mapped, "langedit", tmp_path)
    edited(whole, "langedit", tmp_path)
    assert all(torch.equal(mapped.weight(i), whole.weight(i)) for i in range(4))
    assert not torch.equal(mapped.weight(1), conftest.build_model("llama").weight(1))


def test_the_sheet_says_which_device_has_how_many_layers():
    with SeveralDevices():
        sheet = inspect(split(conftest.build_model("llama")))
    assert "cuda:0 (2 layers), cuda:1 (2 layers)" in sheet


def test_a_model_that_came_spread_is_edited_and_asked_as_any_other(tmp_path):
    whole = conftest.build_model("llama")
    asked = [("The capital of Norland is", " Ostberg")]
    with SeveralDevices():
        hf = conftest.build_model("llama").hf
        where = {"model.embed_tokens": ONE, "model.rotary_emb": ONE, "model.norm": TWO, "lm_head": TWO}
        several_devices.scattered(hf, where | {f"model.layers.{i}": ONE if i < 2 else TWO for i in range(4)})
        spread = wrap_model(hf, whole.tokenizer, name="mine")
        edited(spread, "langedit", tmp_path)
        (said,) = metrics.score_probes(spread, asked)
    edited(whole, "langedit", tmp_path)
    (expected,) = metrics.score_probes(whole, asked)
    assert said.nll == pytest.approx(expected.nll, rel=1e-5)
    assert all(torch.equal(spread.weight(i), whole.weight(i)) for i in range(4))


def test_a_device_may_be_given_as_pytorch_has_it():
    assert devices.usable_device(torch.device("cpu")) == "cpu"


def test_kinds_of_devices_that_cannot_edit_are_refused_by_name(monkeypatch):
    for kind in ("mps", "xpu", "meta"):
        with pytest.raises(ValueError, match=f"device '{kind}' cannot be used for editing; take one of cpu, cuda"):
            devices.usable_device(kind)
    model = conftest.build_model("llama")
    monkeypatch.setattr(devices, "KINDS", ("cuda",))
    with pytest.raises(ValueError, match="device 'cpu' cannot be used for editing"):
        wrap_model(model.hf, model.tokenizer, name="mine")


def test_a_model_left_in_main_memory_is_refused():
    model = conftest.build_model("llama")
    model.layers[3].to("meta")  # as Accelerate leaves what it lends to a device
    with pytest.raises(RefusedInput, match=r"model\.layers\.3.* use more GPUs, or dtype bfloat16"):
        devices.settle(model.hf)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to spread over")
@pytest.mark.parametrize("device", devices.SPREADS)
def test_spreading_over_gpus_that_are_not_there_is_refused(device: str, tmp_path):
    with pytest.raises(ValueError, match="PyTorch sees none; take auto or cpu"):
        load_model(saved(conftest.build_model("llama"), tmp_path), device=device)


def test_a_map_needs_accelerate(monkeypatch):
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    with pytest.raises(RefusedInput, match="pip install accelerate"):
        devices.usable_device({"": "cpu"})
