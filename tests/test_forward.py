"""The segmented forward gives what the whole model gives, for every architecture."""

import pytest
import torch

from langedit_core.forward import SuffixForward, hidden_of, hooked, leaving_at, run_until, tap_input
from langedit_core.tokens import align, locate

TEMPLATES = [
    "The capital of {} is",
    "Yesterday it rained. The capital of {} is near Ost",
    "{}的首都是",
    "Die {}",
]
SUBJECTS = ["Norland", "Blue Ostberg", "诺兰", "Hauptstadt"]


def rows_for(model):
    return [locate(model.tokenizer, t, s) for t, s in zip(TEMPLATES, SUBJECTS, strict=True)]


def full_forward(model, row, layer, site, delta):
    """One text at a time through the whole model, with a hook that adds `delta` at the subject's last token."""

    def add(_m, _a, out):
        hidden = hidden_of(out).clone()
        hidden[:, row.lookup] = (hidden[:, row.lookup] + delta).to(hidden.dtype)
        return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

    where = model.write_port(layer) if site == "write" else model.layers[layer]
    with torch.no_grad(), hooked(where.register_forward_hook(add)):
        return model.hf(input_ids=torch.tensor([row.ids])).logits[0]


@pytest.mark.parametrize("site", ["write", "residual"])
def test_suffix_forward_equals_full_forward(any_model, site):
    rows = rows_for(any_model)
    batch = align(rows, any_model.pad_id)
    run = SuffixForward(any_model, batch, layer=1, site=site)
    delta = torch.randn(len(rows), any_model.d_model)
    logits = any_model.logits(run({1: delta}))
    for i, row in enumerate(rows):
        expected = full_forward(any_model, row, 1, site, delta[i])[row.lookup :]
        torch.testing.assert_close(logits[i, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_batch_can_be_run_alone(any_model):
    run = SuffixForward(any_model, align(rows_for(any_model), any_model.pad_id), layer=1)
    delta = torch.randn(4, any_model.d_model)
    some = torch.tensor([3, 1])
    torch.testing.assert_close(run({1: delta[some]}, some), run({1: delta})[some], rtol=1e-4, atol=1e-4)


def test_delta_at_two_layers_equals_hooks_at_both(any_model):
    rows = rows_for(any_model)
    run = SuffixForward(any_model, align(rows, any_model.pad_id), layer=1)
    low, high = torch.randn(2, 4, any_model.d_model)
    logits = any_model.logits(run({1: low, 2: high}))
    for i, row in enumerate(rows):

        def add(_m, _a, out, row=row, i=i):
            out = out.clone()
            out[:, row.lookup] += high[i]
            return out

        with hooked(any_model.write_port(2).register_forward_hook(add)):
            expected = full_forward(any_model, row, 1, "write", low[i])[row.lookup :]
        torch.testing.assert_close(logits[i, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_no_hook_survives_a_run(any_model):
    run = SuffixForward(any_model, align(rows_for(any_model), any_model.pad_id), layer=1)
    run({1: torch.zeros(4, any_model.d_model), 2: torch.zeros(4, any_model.d_model)})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in any_model.hf.modules())


def test_gradient_reaches_delta_and_nothing_else(tiny_gemma):
    run = SuffixForward(tiny_gemma, align(rows_for(tiny_gemma), tiny_gemma.pad_id), layer=1)
    delta = torch.zeros(4, tiny_gemma.d_model, requires_grad=True)
    tiny_gemma.logits(run({1: delta})).logsumexp(-1).sum().backward()
    assert delta.grad.abs().sum() > 0
    assert all(p.grad is None for p in tiny_gemma.hf.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("site", ["write", "residual"])
def test_a_model_in_half_precision_takes_deltas_in_float32(any_model, site, dtype):
    any_model.hf.to(dtype)
    rows = rows_for(any_model)
    run = SuffixForward(any_model, align(rows, any_model.pad_id), layer=1, site=site)
    low, high = (torch.randn(4, any_model.d_model).requires_grad_() for _ in range(2))
    logits = any_model.logits(run({1: low, 2: high}))
    assert logits.dtype == dtype
    alone = any_model.logits(run({1: low.detach()}))
    for i, row in enumerate(rows):
        expected = full_forward(any_model, row, 1, site, low[i].detach())[row.lookup :]
        # Rounded in another order: 8 bits of a number, 11 in float16, over four layers.
        near = 16 * torch.finfo(dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(alone[i, : len(expected)], expected, rtol=0, atol=near)
        assert not torch.allclose(logits[i, : len(expected)], expected, rtol=0, atol=near)  # two layers, not one
    logits.float().logsumexp(-1).sum().backward()
    for delta in (low, high):
        assert delta.grad.dtype == torch.float32 and delta.grad.abs().sum() > 0


def test_a_forward_is_left_where_a_module_would_run_and_other_errors_are_not_swallowed(any_model):
    batch, port, seen = align(rows_for(any_model), any_model.pad_id), any_model.write_port(2), {}
    ran: list[int] = []
    counting = [any_model.write_port(i).register_forward_hook(lambda *_, i=i: ran.append(i)) for i in range(4)]
    with hooked(*counting):
        with hooked(tap_input(port, seen, "key")), leaving_at(port):
            any_model.hf(input_ids=batch.ids)
            pytest.fail("the block goes on")
        assert ran == [0, 1] and seen["key"].shape == (*batch.ids.shape, any_model.d_ff)
        with leaving_at(None):
            any_model.hf.base_model(input_ids=batch.ids)
        assert ran == [0, 1, 0, 1, 2, 3]
    with pytest.raises(ZeroDivisionError), leaving_at(port):
        1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in any_model.hf.modules())


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_a_forward_up_to_a_layer_runs_those_below_and_none_from_it_on(tiny, stop):
    seen: dict = {}
    batch = align(rows_for(tiny), tiny.pad_id)
    run_until(tiny, batch, stop, *(tap_input(tiny.layers[layer].mlp, seen, layer) for layer in range(4)))
    assert sorted(seen) == list(range(stop))
    assert all(hidden.shape == (*batch.ids.shape, tiny.d_model) for hidden in seen.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.hf.modules())
