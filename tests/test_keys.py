"""A key is what the whole model would show, one text at a time, however much of it was left out to read it."""

from __future__ import annotations

import pytest
import reference
import torch
import toy
from conftest import build_model

from langedit_core.forward import run_until, tap_input
from langedit_core.keys import KeyReader
from langedit_core.tokens import Row, align

FACTS = [toy.fact(0, "en"), toy.fact(1, "de"), toy.fact(2, "zh"), toy.fact(3, "fr")]  # 3, 2, 2 and 3 contexts
LAYERS = (0, 1, 3)


def rows(model):
    return [toy.value_request(model, of).contexts for of in FACTS]


def expected_keys(model, layer):
    return torch.stack([reference.key(model, layer, contexts) for contexts in rows(model)], dim=1)


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


def test_outputs_of_the_projection_and_the_stream_are_those_of_the_full_forward(any_model):
    reader = KeyReader(any_model, rows(any_model), (1, 2))
    for layer in (1, 2):
        _, values = reader.read(layer)
        flat = [row for contexts in rows(any_model) for row in contexts]
        assert len(values) == len(flat)
        for value, row in zip(values, flat, strict=True):
            seen: dict = {}
            with torch.no_grad():
                reference.whole_model(any_model, row.ids, watch=seen)
            close(value, seen[layer, "out"][row.lookup])
        any_model.add_(layer, random_update(any_model, layer))
        stream = reader.residual_stream()
        for i, contexts in enumerate(rows(any_model)):
            seen = {}
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
    reader = KeyReader(tiny, bare, (1,))
    keys, _ = KeyReader(tiny, bare, (1,)).read(1)
    close(reader.keys(1), keys.T)


def test_what_follows_the_subject_does_not_change_its_key(tiny):
    longer = [tuple(Row(ids=(*row.ids, 5, 6, 7), lookup=row.lookup) for row in contexts) for contexts in rows(tiny)]
    close(KeyReader(tiny, longer, (2,)).keys(2), KeyReader(tiny, rows(tiny), (2,)).keys(2))


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


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_forward_that_stops_early_ran_the_layers_below_and_none_above(tiny, stop):
    seen: dict = {}
    batch = align([contexts[0] for contexts in rows(tiny)], tiny.pad_id)
    run_until(tiny, batch, stop, *(tap_input(tiny.write_port(layer), seen, layer) for layer in range(4)))
    assert sorted(seen) == list(range(stop))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.hf.modules())
