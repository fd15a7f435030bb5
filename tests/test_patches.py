"""Patches: what was recorded is applied and removed to the bit, merged with a stated error, and refused elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
from conftest import build_model
from toy_patch import BATCHES, editor, recorded

from langedit_core.adapters import to_peft
from langedit_core.compaction import compact, factored
from langedit_core.editors import METHODS
from langedit_core.errors import RefusedInput
from langedit_core.models import ARCHITECTURES
from langedit_core.patches import Patch

RECORDABLE = [method for method in METHODS if not METHODS[method].get("damping")]


def saved(patch: Patch, folder: Path, **options) -> Patch:
    patch.save(folder / "patch.safetensors", **options)
    return Patch.load(folder / "patch.safetensors")


def check_every_suffix(model_type: str, method: str, folder: Path) -> None:
    patch, states = recorded(model_type, method)
    loaded = saved(patch, folder)
    model = build_model(model_type)
    assert loaded.apply(model, exact=True)
    assert toy.same(toy.weights(model), states[3])
    for last, left in ((1, 2), (2, 0)):
        assert loaded.remove(model, last, exact=True)
        assert toy.same(toy.weights(model), states[left])
        assert loaded.position(model) == left


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_any_suffix_is_removed_to_the_bit_in_every_architecture(model_type, tmp_path):
    check_every_suffix(model_type, "alphaedit", tmp_path)


@pytest.mark.parametrize("method", RECORDABLE)
def test_any_suffix_is_removed_to_the_bit_for_every_method(method, tmp_path):
    check_every_suffix("gpt2" if method in ("rect", "rome", "ft") else "llama", method, tmp_path)


def test_subtraction_would_not_have_restored_the_bits():
    patch, states = recorded()
    model = build_model("llama")
    patch.apply(model)
    with torch.no_grad():
        for batch in reversed(patch.factors):
            for layer, one in batch.items():
                model.weight(layer).sub_(one.left @ one.right.T)
    assert not toy.same(toy.weights(model), states[0])


def test_edits_are_removed_from_the_model_that_was_edited_one_suffix_after_another():
    model = build_model("llama")
    one = editor(model)
    patch, states = Patch.record(one, "langedit"), [toy.weights(model)]
    for batch in BATCHES:
        patch.edit(one, batch)
        states.append(toy.weights(model))
    for left in (2, 1, 0):
        assert patch.remove(model, 1) and toy.same(toy.weights(model), states[left])
    with pytest.raises(ValueError, match="holds 0 batches"):
        patch.remove(model, 1)
    assert patch.apply(model) and toy.same(toy.weights(model), states[3])


def test_a_prefix_gives_the_weights_of_that_day(tmp_path):
    patch, states = recorded()
    model = build_model("llama")
    saved(patch.prefix(2), tmp_path).apply(model, exact=True)
    assert toy.same(toy.weights(model), states[2])
    assert [fact.id for fact in patch.prefix(2).facts] == [fact.id for batch in BATCHES[:2] for fact in batch]


def test_a_loaded_patch_lets_the_sequence_go_on_as_if_never_stopped(tmp_path):
    whole, states = recorded(method="alphaedit")
    model = build_model("llama")
    one = editor(model, "alphaedit")
    first = saved(whole.prefix(2), tmp_path)
    for t in range(2):
        one.apply(first.updates(t))
    first.edit(one, BATCHES[2])
    assert toy.same(toy.weights(model), states[3])
    assert first.header == whole.header


def test_facts_reports_and_settings_come_back_as_they_were(tmp_path):
    patch, _ = recorded()
    loaded = saved(patch, tmp_path)
    assert loaded.header == patch.header
    assert loaded.facts == [fact for batch in BATCHES for fact in batch]
    assert loaded.header.batches[1].report["facts"] == [fact.id for fact in BATCHES[1]]
    assert not {"seconds", "processor"} & set(loaded.header.batches[1].report)


def test_equal_edits_give_equal_bytes(tmp_path):
    for name in ("one", "other"):
        one = editor(build_model("llama"))
        patch = Patch.record(one, "langedit")
        patch.edit(one, BATCHES[1])
        patch.save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_with_its_base_stored_a_patch_is_removed_without_the_base_model(tmp_path):
    patch, states = recorded("gpt2")
    model = build_model("gpt2")
    patch.apply(model)
    without = saved(patch, tmp_path)
    with pytest.raises(ValueError, match=r"needs the unedited matrices: call attach"):
        without.remove(model, 2)
    assert saved(patch, tmp_path, with_base=True).remove(model, 2, exact=True)
    assert toy.same(toy.weights(model), states[1])


# --- merged -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["alphaedit", "rect", "rome", "ft"])
def test_a_merged_patch_is_one_batch_with_the_error_it_states(method, tmp_path):
    patch, states = recorded("gpt2", method)
    merged = saved(patch.merge(), tmp_path)
    model = build_model("gpt2")
    assert merged.apply(model, exact=True)
    told = merged.header.batches[0].merged
    assert len(merged) == 1 and told.batches == 3 and merged.facts == patch.facts
    before = build_model("gpt2")
    for layer in merged.layers:
        name = f"transformer.h.{layer}.mlp.c_proj.weight"
        wanted = states[-1][name].T.double() - states[0][name].T.double()
        got = merged.factors[0][layer].left.double() @ merged.factors[0][layer].right.T.double()
        assert float((got - wanted).norm() / wanted.norm()) < 2e-6  # the weights themselves are rounded
        assert told.error[layer] < 1e-6
        torch.testing.assert_close(model.weight(layer), states[-1][name].T, rtol=0, atol=2e-6)
        assert told.rank[layer] == 6 if method not in ("rect", "ft") else told.rank[layer] <= before.d_model
    merged.remove(model, 1, exact=True)
    assert toy.same(toy.weights(model), states[0])


def test_a_merged_patch_of_low_rank_is_the_nearest_one_and_says_how_near():
    patch, _ = recorded()
    merged = patch.merge(rank=2)
    for layer in patch.layers:
        total = sum(batch[layer].left.double() @ batch[layer].right.T.double() for batch in patch.factors)
        s = torch.linalg.svdvals(total)
        best = float(s[2:].norm() / s.norm())
        told = merged.header.batches[0].merged
        assert told.rank[layer] == 2 and told.error[layer] == pytest.approx(best, rel=1e-5)


def test_merging_a_merged_patch_counts_all_batches():
    patch, _ = recorded()
    assert patch.merge().merge().header.batches[0].merged.batches == 3


def test_edits_cannot_follow_a_merged_batch():
    with pytest.raises(ValueError, match="a merged batch has no keys"):
        recorded()[0].merge().updates(0)


@pytest.mark.parametrize("shape", [(3, 7, 2), (7, 3, 5), (4, 4, 9), (5, 6, 1)])
def test_compaction_keeps_the_product_and_measures_its_error(shape):
    d_out, d_in, n = shape
    torch.manual_seed(0)
    left, right = torch.randn(d_out, n).double(), torch.randn(d_in, n).double()
    for rank in (None, 1):
        thin_left, thin_right, error = compact(left, right, rank)
        assert thin_left.dtype == torch.float32 and thin_left.shape[1] == thin_right.shape[1] <= min(d_out, d_in, n)
        off = (left @ right.T - thin_left.double() @ thin_right.T.double()).norm() / (left @ right.T).norm()
        assert error == pytest.approx(float(off), rel=1e-4, abs=1e-12)
    a, b = factored(left @ right.T)
    torch.testing.assert_close(a @ b.T, left @ right.T)


def test_nothing_compacts_to_nothing():
    left, right, error = compact(torch.zeros(3, 2), torch.zeros(4, 2))
    assert left.shape == (3, 1) and right.shape == (4, 1) and error == 0 and not left.any()
    with pytest.raises(ValueError, match="rank is 0"):
        compact(torch.ones(3, 2), torch.ones(4, 2), 0)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_another_model_is_refused_and_left_alone():
    patch, _ = recorded()
    for model in (build_model("llama", seed=1), build_model("qwen2"), build_model("llama", num_hidden_layers=2)):
        before = toy.weights(model)
        with pytest.raises(RefusedInput, match="the patch belongs to tiny-llama .llama, float32, fingerprint"):
            patch.apply(model)
        assert toy.same(toy.weights(model), before)


def test_another_precision_is_refused():
    patch, _ = recorded()
    model = build_model("llama")
    model.hf.to(torch.bfloat16)
    with pytest.raises(RefusedInput, match="llama, bfloat16"):
        patch.apply(model)


def test_facts_may_come_from_an_iterator_and_are_noted_down():
    one = editor(model := build_model("llama"))
    patch = Patch.record(one, "langedit")
    report = patch.edit(one, iter(BATCHES[0]))
    assert [fact.id for fact in patch.facts] == report.facts == [fact.id for fact in BATCHES[0]]
    assert patch.position(model) == 1


def test_a_model_that_a_patch_edited_is_known_to_be_edited():
    patch, _ = recorded()
    patch.apply(model := build_model("llama"))
    with pytest.raises(ValueError, match="edited"):
        model.check_unedited("drift")


def test_a_patch_is_not_applied_twice():
    patch, states = recorded()
    model = build_model("llama")
    patch.apply(model)
    with pytest.raises(RefusedInput, match="holds 3 of the patch's 3 batches already"):
        patch.apply(model)
    assert toy.same(toy.weights(model), states[3])


def test_nothing_is_removed_from_a_model_that_does_not_hold_the_patch():
    patch, _ = recorded()
    model = build_model("llama", seed=1)
    before = toy.weights(model)
    with pytest.raises(RefusedInput, match="does not hold this patch"):
        patch.remove(model, 1)
    assert toy.same(toy.weights(model), before)


def test_a_model_changed_outside_the_edited_matrices_is_noticed():
    patch, _ = recorded()
    model = build_model("llama")
    patch.apply(model)
    with torch.no_grad():
        model.weight(3).add_(1e-3)
    before = toy.weights(model)
    with pytest.raises(RefusedInput, match="the patch belongs to"):
        patch.remove(model, 1)
    assert toy.same(toy.weights(model), before)


@pytest.mark.parametrize("last", [0, -1, 4])
def test_only_as_many_batches_as_there_are_can_be_removed(last):
    patch, states = recorded()
    model = build_model("llama")
    patch.apply(model)
    with pytest.raises(ValueError, match="holds 3 batches of this patch; expected 1 to 3"):
        patch.remove(model, last)
    assert toy.same(toy.weights(model), states[3])


@pytest.mark.parametrize("method", ["prune", "prune-released"])
def test_prune_is_refused_with_its_reason(method):
    with pytest.raises(ValueError, match="singular values of the whole change are damped.*save the edited model"):
        Patch.record(editor(build_model("llama"), method), method)


def test_a_patch_begins_before_the_first_edit_and_takes_each_batch_once():
    one = editor(build_model("llama"))
    patch = Patch.record(one, "langedit")
    report, updates = one.edit(BATCHES[0])
    patch.append(one, BATCHES[0], report, updates)
    with pytest.raises(ValueError, match="append each once"):
        patch.append(one, BATCHES[0], report, updates)
    for wrong, message in (
        ("langedit", "langedit edits in the space 'running', this editor in"),
        ("memmit", "unknown method"),
    ):
        with pytest.raises(ValueError, match=message):
            Patch.record(editor(build_model("llama"), "memit"), wrong)
    with pytest.raises(ValueError, match="begins before the first one"):
        Patch.record(one, "langedit")


def test_a_batch_that_changed_nothing_is_removed_without_the_one_before_it():
    model = build_model("llama")
    one = editor(model, "evoedit", layers=(0,))  # the first layer's keys depend on no other edit
    patch, states = Patch.record(one, "evoedit"), [toy.weights(model)]
    for _ in range(2):
        report = patch.edit(one, BATCHES[0])
        states.append(toy.weights(model))
    assert len(report.exhausted) == len(BATCHES[0]) and toy.same(states[1], states[2])
    assert not toy.same(states[0], states[1])
    assert patch.position(model) == 2
    assert patch.remove(model, 1)
    assert toy.same(toy.weights(model), states[1])
    assert patch.remove(model, 2)
    assert toy.same(toy.weights(model), states[0])


def test_what_was_removed_is_not_edited_upon_and_the_kept_batches_go_on_in_a_new_editor():
    model = build_model("llama")
    one = editor(model)
    patch = Patch.record(one, "langedit")
    for batch in BATCHES[:2]:
        patch.edit(one, batch)
    held = dict(patch.header)
    patch.remove(model, 1)
    before = toy.weights(model)
    with pytest.raises(ValueError, match="something else wrote to the matrices"):
        patch.edit(one, BATCHES[2])
    assert toy.same(toy.weights(model), before) and dict(patch.header) == held
    kept, model = patch.prefix(1), build_model("llama")
    other = editor(model)
    with pytest.raises(ValueError, match=r"has done 0 batches, the patch holds 1; .* give it `editor.apply"):
        kept.edit(other, BATCHES[2])
    assert other.step == 0
    other.apply(kept.updates(0))
    kept.edit(other, BATCHES[2])
    again = build_model("llama")
    assert kept.apply(again, exact=True)
    assert toy.same(toy.weights(again), toy.weights(model))


def test_a_shorter_state_leaves_the_later_ones_known():
    other, patch = recorded()[0], recorded()[0]  # `patch` was applied nowhere itself
    model, again = build_model("llama"), build_model("llama")
    other.apply(model)
    other.apply(again)
    patch.remove(model, 2)
    assert patch.position(model) == 1 and patch.position(again) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["langedit", "rect", "ft"])
def test_edits_of_a_model_in_half_precision_are_stored_loaded_and_removed_to_the_bit(dtype, method, tmp_path):
    def half():
        model = build_model("llama")
        model.hf.to(dtype)
        return model

    model = half()
    one = editor(model, method)
    patch, states = Patch.record(one, method), [toy.weights(model)]
    for batch in BATCHES:
        patch.edit(one, batch)
        states.append(toy.weights(model))
    assert not toy.same(states[0], states[3])
    loaded, fresh = saved(patch, tmp_path, with_base=True), half()
    assert loaded.apply(fresh, exact=True)
    assert toy.same(toy.weights(fresh), states[3])
    assert loaded.remove(fresh, 2, exact=True)
    assert toy.same(toy.weights(fresh), states[1])
    merged = loaded.merge()
    merged.save(tmp_path / "merged.safetensors")
    other = half()
    assert Patch.load(tmp_path / "merged.safetensors").apply(other, exact=True)


def test_other_bits_are_told_or_refused_and_can_still_be_removed():
    """As on another processor: products come out a rounding apart from those recorded."""
    patch, states = recorded()
    one = patch.factors[1][1]
    moved = one.left.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(9e9)) * (1 + 1e-6)
    patch.factors[1][1] = type(one)(left=moved, right=one.right, keys=one.keys)
    model = build_model("llama")
    with pytest.raises(RefusedInput, match="differ from the recorded ones by rounding"):
        patch.apply(model, exact=True)
    assert toy.same(toy.weights(model), states[0])
    assert not patch.apply(model)
    assert patch.position(model) == 3
    assert patch.remove(model, 2)  # batch 1 was not touched: its bits are the recorded ones
    assert toy.same(toy.weights(model), states[1])


def test_a_failure_in_the_middle_leaves_the_model_as_it_was(monkeypatch):
    patch, states = recorded()
    model = build_model("llama")
    add, calls = Patch._add, []

    def fail_at_the_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        add(*args)

    monkeypatch.setattr(Patch, "_add", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        patch.apply(model)
    assert toy.same(toy.weights(model), states[0])
    monkeypatch.setattr(Patch, "_add", add)
    patch.apply(model)
    calls.clear()
    monkeypatch.setattr(Patch, "_add", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        patch.remove(model, 1)
    assert toy.same(toy.weights(model), states[3])


# --- a kill while saving ----------------------------------------------------------------------------------------------

KILL = """
import os, signal, sys
from pathlib import Path
from langedit_core.adapters import to_peft
from langedit_core.patches import Patch

source, target, adapter = map(Path, sys.argv[1:])
patch = Patch.load(source)
tasks = {
    "fsync": lambda: patch.prefix(1).save(target),
    "replace": lambda: patch.prefix(1).save(target),
    "rename": lambda: to_peft(patch, adapter),
}
for name, task in tasks.items():
    if os.fork() == 0:
        setattr(os, name, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        task()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_kill_in_the_middle_of_saving_leaves_no_half_file(tmp_path):
    source, target, adapter = (tmp_path / name for name in ("source.safetensors", "target.safetensors", "adapter"))
    patch, _ = recorded()
    patch.save(source)
    patch.save(target)
    done = subprocess.run([sys.executable, "-c", KILL, source, target, adapter], capture_output=True, text=True)
    assert done.stdout.split() == ["-9"] * 3, done.stderr
    assert target.read_bytes() == source.read_bytes()
    assert not adapter.exists()
    to_peft(patch, adapter)  # what the kill left is in nobody's way
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_folder_is_known_by_its_own_name_only():
    from langedit_core.patches import _public_name

    assert _public_name("google/gemma-3-270m") == "google/gemma-3-270m"
    assert _public_name("/home/somebody/my models/a b") == "a-b"
    assert _public_name("/") == "model"
