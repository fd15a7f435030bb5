"""Keys read in big batches are those of one text at a time; list prompts are whole in every language."""

import json

import pytest
import reference
import torch
import toy
from conftest import build_model

from langedit_core import atlas_lists, subject_keys
from langedit_core.forward import hooked
from langedit_core.tokens import locate

FACTS = [toy.fact(i, lang) for lang in ("en", "de", "zh") for i in range(4)]


def groups(model):
    rows, kept = subject_keys.token_rows(model, [(f.prompt, f.subject) for f in FACTS])
    assert kept == list(range(len(FACTS)))
    return [rows[:4], rows[4:8], [], rows[8:]]


@pytest.mark.parametrize("layer", [0, 2])
def test_keys_are_those_of_the_whole_model_one_text_at_a_time(any_model, layer):
    found = subject_keys.read_keys(any_model, groups(any_model), layer, rows_per_batch=3)
    assert found.shape == (any_model.d_ff, len(FACTS))
    for i, of in enumerate(FACTS):
        row, seen = locate(any_model.tokenizer, of.prompt, of.subject), {}
        with torch.no_grad():
            reference.whole_model(any_model, row.ids, watch=seen)
        torch.testing.assert_close(found[:, i], seen[layer, "in"][row.lookup], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [0, 2])
def test_nothing_above_the_keys_that_are_read_is_run_for_the_shared_prefix_either(any_model, layer):
    of, begun, ended = groups(any_model), [0] * 4, [0] * 4

    def count(into, i):
        return lambda *_: into.__setitem__(i, into[i] + 1)

    attention = any_model.architecture.attention
    with hooked(
        *(any_model.layers[i].get_submodule(attention).register_forward_hook(count(begun, i)) for i in range(4)),
        *(any_model.write_port(i).register_forward_hook(count(ended, i)) for i in range(4)),
    ):
        subject_keys.read_keys(any_model, of, layer)
    forwards = 2 * sum(bool(rows) for rows in of)  # a prefix and a batch per group
    assert begun == [forwards if i <= layer else 0 for i in range(4)]
    assert ended == [forwards if i < layer else 0 for i in range(4)]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in any_model.hf.modules())


def test_a_subject_without_token_boundary_is_left_out_and_the_others_keep_their_index(tiny):
    tokens = tiny.tokenizer
    merged = next(
        (t, s)
        for t, s in (("{}and", "North"), ("{}town", "Quiet"), ("{}land", "Nor"), ("{}berg", "Ost"), ("{}apital", "c"))
        if len(tokens(t.replace("{}", s)).input_ids) < len(tokens(s).input_ids + tokens(t.split("{}")[1]).input_ids)
    )
    rows, kept = subject_keys.token_rows(tiny, [("So {}", "Norland"), merged, ("So {}", "Sweden")])
    assert kept == [0, 2] and len(rows) == 2


def test_kept_keys_are_read_once_and_a_damaged_file_is_made_again(tiny, tmp_path, monkeypatch, caplog):
    of = groups(tiny)
    first = subject_keys.cached_keys(tiny, of, 1, tmp_path)
    (path,) = (tmp_path / "keys").iterdir()
    read = subject_keys.read_keys
    monkeypatch.setattr(subject_keys, "read_keys", lambda *_, **__: pytest.fail("read again"))
    assert torch.equal(subject_keys.cached_keys(tiny, of, 1, tmp_path), first)
    for other in ((of[:2], 1), (of, 2)):  # other rows, another layer: other keys
        with pytest.raises(pytest.fail.Exception):
            subject_keys.cached_keys(tiny, *other, tmp_path)
    with pytest.raises(pytest.fail.Exception):
        subject_keys.cached_keys(build_model("llama", seed=1), of, 1, tmp_path)
    monkeypatch.setattr(subject_keys, "read_keys", read)
    path.write_bytes(path.read_bytes()[:-5])
    assert torch.equal(subject_keys.cached_keys(tiny, of, 1, tmp_path), first)
    assert "not a whole safetensors file" in caplog.text


def test_lists_have_the_same_territories_in_every_language():
    lists = atlas_lists.load_lists()
    assert len(lists) >= 100 and {"en", "de", "nl", "es", "fr", "zh", "sw", "hi", "ar", "ja"} <= set(lists)
    assert {len(one.subjects) for one in lists.values()} == {128}
    for one in lists.values():
        assert one.template.count("{}") == 1 and one.template.count("\n") == 4 and one.template.endswith("{}:")
        assert all(name.strip() for name in one.subjects) and one.family and one.branch and len(one.script) == 4
    assert "Japani: Yen ya Japani\n" in lists["sw"].template
    assert (lists["de"].family, lists["de"].branch) == ("Indo-European", "Germanic")
    assert lists["yue"].script == lists["zh"].script == "Hani"


@pytest.mark.parametrize("damage", [lambda c: c.update(languages={}), lambda c: c.pop("header")])
def test_altered_lists_are_refused(tmp_path, damage):
    content = json.loads(atlas_lists.PATH.read_text("utf-8"))
    damage(content)
    path = tmp_path / "atlas_lists.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(ValueError, match=r"atlas_lists.json (was altered|is damaged)"):
        atlas_lists.load_lists(path)
