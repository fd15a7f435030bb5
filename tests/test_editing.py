"""`edit_facts` keeps a patch as it goes: what is on the disk, when, and how a run goes on from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import toy
from conftest import build_model
from toy_patch import BATCHES, editor

from langedit_core import editing
from langedit_core.editing import edit_facts
from langedit_core.editors import Editor
from langedit_core.errors import RefusedInput
from langedit_core.patches import Patch

FACTS = [fact for batch in BATCHES for fact in batch]  # six


def run(path, facts=FACTS, method="langedit", model=None, **options):
    one = editor(model or build_model("llama"), method, **options.pop("changes", {}))
    return edit_facts(one, facts, batch=2, method=method, path=path, quiet=True, **options)


@pytest.mark.parametrize(("share", "sizes"), [(1e9, [1, 2, 3]), (1e-9, [1, 3])])
def test_the_patch_is_written_as_often_as_its_size_allows_and_in_the_end(share, sizes, tmp_path, monkeypatch):
    save, saved = Patch.save, []

    def counted(patch, path, **options):
        saved.append(len(patch))
        save(patch, path, **options)

    monkeypatch.setattr(Patch, "save", counted)
    monkeypatch.setattr(editing._Keeper, "SHARE", share)
    run(tmp_path / "patch.safetensors")
    assert saved == sizes
    assert len(Patch.load(tmp_path / "patch.safetensors")) == 3


@pytest.mark.parametrize("share", [1e9, 1e-9])
def test_an_interrupted_run_has_written_every_whole_batch_and_goes_on_to_the_same_bytes(share, tmp_path, monkeypatch):
    edit = Editor.edit

    def interrupted(one, facts, progress=None):
        if one.step == 2:
            raise KeyboardInterrupt
        return edit(one, facts, progress)

    monkeypatch.setattr(editing._Keeper, "SHARE", share)
    run(tmp_path / "whole.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(Editor, "edit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "patch.safetensors")
    assert len(Patch.load(tmp_path / "patch.safetensors")) == 2
    run(tmp_path / "patch.safetensors", resume=True)
    assert (tmp_path / "patch.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_a_later_batch_may_correct_an_earlier_one_and_a_batch_not_itself(tmp_path):
    first = FACTS[0]
    other = replace(first, id="other", target="Lima")
    run(tmp_path / "patch.safetensors", [first, FACTS[1], other])
    assert [fact.target for fact in Patch.load(tmp_path / "patch.safetensors").facts][::2] == [first.target, "Lima"]
    with pytest.raises(RefusedInput, match="or edit them one after the other"):
        run(tmp_path / "none.safetensors", [first, FACTS[1], FACTS[2], replace(FACTS[2], id="other", target="Lima")])
    assert not (tmp_path / "none.safetensors").exists()  # nothing was begun


def test_two_runs_do_not_write_over_each_other(tmp_path, monkeypatch):
    path, edit = tmp_path / "patch.safetensors", Editor.edit

    def meanwhile(one, facts, progress=None):
        if one.step == 1:
            with monkeypatch.context() as patched:
                patched.setattr(Editor, "edit", edit)
                run(path, FACTS[4:])
        return edit(one, facts, progress)

    monkeypatch.setattr(editing._Keeper, "SHARE", 1e9)
    monkeypatch.setattr(Editor, "edit", meanwhile)
    with pytest.raises(RefusedInput, match="was written by another run since this one began"):
        run(path)
    assert Patch.load(path).facts == FACTS[4:]


def test_a_run_goes_on_behind_a_batch_that_changed_nothing(tmp_path):
    """Both batches are the same two facts, whose keys are used up after the first."""
    path, method, changes = tmp_path / "patch.safetensors", "evoedit", dict(layers=(0,))
    run(path, FACTS[:2] * 2, method, changes=changes)
    patch = Patch.load(path)
    assert patch.header.batches[0].after == patch.header.batches[1].after != patch.header.base
    model = build_model("llama")
    made = run(path, [*FACTS[:2] * 2, *FACTS[2:4]], method, model, changes=changes, resume=True)
    assert len(made.patch) == 3
    again = build_model("llama")
    assert Patch.load(path).apply(again, exact=True)
    assert toy.same(toy.weights(again), toy.weights(model))


def test_a_resumed_patch_keeps_the_base_it_had_and_takes_one_that_is_asked_for(tmp_path):
    kept, bare = tmp_path / "kept.safetensors", tmp_path / "bare.safetensors"
    run(kept, FACTS[:2], keep_base=True)
    run(bare, FACTS[:2])
    assert (Patch.load(kept).base is None, Patch.load(bare).base is None) == (False, True)
    run(kept, FACTS[:4], resume=True)
    assert Patch.load(kept).base is not None and len(Patch.load(kept)) == 2
    run(bare, FACTS[:2], resume=True, keep_base=True)  # no new fact
    assert Patch.load(bare).base is not None and len(Patch.load(bare)) == 1
    before = bare.stat().st_mtime_ns
    run(bare, FACTS[:2], resume=True, keep_base=True)
    assert bare.stat().st_mtime_ns == before  # nothing to write
