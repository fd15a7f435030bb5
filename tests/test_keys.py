"""A key is what the whole model would show, one text at a time, however much of it was left out to read it."""

from __future__ import annotations

import pytest
import reference
import torch
import toy
from conftest import build_model

from langedit_core import keys
from langedit_core.forward import hooked
from langedit_core.keys import KeyReader
from langedit_core.tokens import Row

FACTS = [toy.fact(0, "en"), toy.fact(1, "de"), toy.fact(2, "zh"), toy.fact(3, "fr")]  # 3, 2, 2 and 3 contexts
LAYERS = (0, 1, 3)


def rows(model):
    return [toy.value_request(model, of).contexts for of in FACTS]


def expected_keys(model, layer, of=None):
    return torch.stack([reference.key(model, layer, contexts) for contexts in of or rows(model)], dim=1)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def random_update(model, layer):
    return 0.2 * torch.randn(model.d_model, model.d_ff, generator=torch.Generator().manual_seed(layer))


def test_keys_equal_the_full_forward_one_text_at_a_time_after_lower_layers_were_edited_too(any_model):
    reader = KeyReader(any_model, rows(any_model), LAYERS)
    for layer in LAYERS:
        unedited = KeyReader(build_model(any_model.hf.config.model_type), rows(any_model), (layer,)).keys(layer)
        keys = reader.keys(layer)
        assert keys.shape == (any_model.d_ff, len(FACTS))
        close(keys, expected_keys(any_model, layer))
        if layer > 0:  # the edits below are felt: reading an unedited model would be noticed
            assert (keys - unedited).norm() > 1e-3 * keys.norm()
        any_model.add_(layer, random_update(any_model, layer))


def test_the_stream_is_that_of_the_full_forward_as_edited_so_far(any_model):
    reader = KeyReader(any_model, rows(any_model), (1, 2))
    for layer in (1, 2):
        reader.keys(layer)
        any_model.add_(layer, random_update(any_model, layer))
        stream = reader.residual_stream()
        for i, contexts in enumerate(rows(any_model)):
            seen: dict = {}
            with torch.no_grad():
                reference.whole_model(any_model, contexts[0].ids, site="residual", watch=seen)
            close(stream[:, i], seen[2, "out"][contexts[0].lookup])  # of the last layer, at the bare prompt


def test_half_the_key_is_the_bare_prompt_and_half_the_mean_over_its_prefixes(tiny):
    reader = KeyReader(tiny, [contexts for contexts in rows(tiny)], (1,))
    of_rows = torch.arange(10.0)[:, None].repeat(1, 2)  # 3, 2, 2 and 3 rows
    averaged = reader.average(of_rows)
    expected = [(0 + (1 + 2) / 2) / 2, (3 + 4) / 2, (5 + 6) / 2, (7 + (8 + 9) / 2) / 2]
    assert averaged.tolist() == [expected, expected]


def test_a_fact_without_prefixes_has_the_key_of_its_bare_prompt(tiny):
    bare = [contexts[:1] for contexts in rows(tiny)]
    close(KeyReader(tiny, bare, (1,)).keys(1), expected_keys(tiny, 1, bare))


def test_what_follows_the_subject_does_not_change_its_key(tiny):
    longer = [tuple(Row(ids=(*row.ids, 5, 6, 7), lookup=row.lookup) for row in contexts) for contexts in rows(tiny)]
    close(KeyReader(tiny, longer, (2,)).keys(2), KeyReader(tiny, rows(tiny), (2,)).keys(2))


@pytest.mark.parametrize("microbatch", [1, 3])
def test_facts_are_read_in_parts_to_the_same_keys(any_model, microbatch):
    whole = KeyReader(any_model, rows(any_model), LAYERS)
    parts = KeyReader(any_model, rows(any_model), LAYERS, microbatch=microbatch)
    for layer in LAYERS:
        close(parts.keys(layer), whole.keys(layer))
        close(parts.residual_stream(), whole.residual_stream())
        any_model.add_(layer, random_update(any_model, layer))


def test_parts_get_smaller_where_memory_runs_out(tiny, monkeypatch):
    read, sizes = keys.run_until, []

    def at_most(most):
        def run(model, batch, layer):
            sizes.append(batch.rows)
            if batch.rows > most:
                raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
            read(model, batch, layer)

        return run

    whole = KeyReader(tiny, rows(tiny), (1,)).keys(1)
    monkeypatch.setattr(keys, "run_until", at_most(5))
    close(KeyReader(tiny, rows(tiny), (1,)).keys(1), whole)
    assert sizes == [10, 5, 5]
    monkeypatch.setattr(keys, "run_until", at_most(2))
    with pytest.raises(MemoryError, match=r"keys of one fact \(\d+ tokens in 3 contexts\) do not fit in memory"):
        KeyReader(tiny, rows(tiny), (1,))


def test_layers_are_read_in_ascending_order_only(tiny):
    reader = KeyReader(tiny, rows(tiny), (1, 2))
    reader.keys(2)
    with pytest.raises(ValueError, match=r"layer 1 was passed already \(now at 2\)"):
        reader.keys(1)
    close(reader.keys(2), expected_keys(tiny, 2))  # the same layer may be read again
    with pytest.raises(ValueError, match="ascending order"):
        KeyReader(tiny, rows(tiny), (2, 1))


def test_reading_again_after_the_layer_itself_was_edited_gives_the_same_key(tiny):
    reader = KeyReader(tiny, rows(tiny), (1, 2))
    before = reader.keys(1)
    tiny.add_(1, random_update(tiny, 1))
    assert torch.equal(reader.keys(1), before)


def test_a_reader_leaves_no_hook_and_no_gradient(tiny):
    reader = KeyReader(tiny, rows(tiny), (1, 2))
    assert not reader.keys(2).requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.hf.modules())


@pytest.mark.parametrize(
    ("stream", "layers", "below_the_projection", "whole"),
    [
        (False, (2,), [1, 1, 1, 0], [1, 1, 0, 0]),
        (False, (1, 2), [1, 3, 1, 0], [1, 2, 0, 0]),
        (False, (0, 1, 3), [3, 3, 2, 1], [2, 2, 2, 0]),
        (True, (1, 2), [1, 4, 3, 0], [1, 3, 2, 0]),
    ],
)
def test_no_layer_runs_further_or_more_often_than_a_key_needs(any_model, stream, layers, below_the_projection, whole):
    """Whole: once on the way to the last layer, once as edited; up to the projection: once more, to be read."""
    begun, ended = [0] * 4, [0] * 4

    def count(into, layer):
        return lambda *_: into.__setitem__(layer, into[layer] + 1)

    attention, port = any_model.architecture.attention, any_model.write_port
    with hooked(
        *(any_model.layers[i].get_submodule(attention).register_forward_hook(count(begun, i)) for i in range(4)),
        *(port(i).register_forward_hook(count(ended, i)) for i in range(4)),
    ):
        reader = KeyReader(any_model, rows(any_model), layers)
        for layer in layers:
            reader.keys(layer)
            if stream:
                reader.residual_stream()
            any_model.add_(layer, random_update(any_model, layer))
    assert begun == below_the_projection
    assert ended == whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_keys_of_a_model_in_half_precision_are_those_of_the_model_up_to_rounding(any_model, dtype):
    exact = KeyReader(any_model, rows(any_model), (1,)).keys(1)
    any_model.hf.to(dtype)
    found = KeyReader(any_model, rows(any_model), (1,)).keys(1)
    assert (found.float() - exact).norm() < 8 * torch.finfo(dtype).eps * exact.norm()
