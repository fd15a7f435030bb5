"""Constrained fine-tuning equals a literal training loop, stays in its box, and scores what it says it scores."""

from __future__ import annotations

import pytest
import reference
import torch
import toy
from conftest import build_model

from langedit_core.finetune import FineTuneSettings, _Chunk, fine_tune, scored

FACTS = [("en", 0), ("zh", 1), ("de", 2)]  # targets of one and of several tokens


def requests_of(model):
    return [toy.value_request(model, toy.fact(number, lang)) for lang, number in FACTS]


@pytest.mark.parametrize("form", ["own", "last"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma3_text"])
def test_training_equals_the_literal_loop(family, form):
    model = build_model(family)
    settings = FineTuneSettings(scored=form, relative=False, rate=2e-3, box=5e-3, steps=6)
    found = fine_tune(model, requests_of(model), (1,), settings)
    delta, losses = reference.fine_tune(model, requests_of(model), 1, settings, rate=2e-3, box=5e-3)
    assert found.loss == pytest.approx(losses, rel=1e-5)
    # Adam's first steps are signs: an entry whose gradient is all but zero may go either way.
    assert (found.delta[1] - delta).norm() < 1e-3 * delta.norm()
    assert losses[-1] < losses[0]


def test_rate_and_box_are_relative_to_the_size_of_the_weight():
    model = build_model("llama")
    size = float(model.weight(1).square().mean().sqrt())
    one = fine_tune(model, requests_of(model), (1,), FineTuneSettings(rate=0.02, box=0.05, steps=4))
    settings = FineTuneSettings(relative=False, rate=0.02 * size, box=0.05 * size, steps=4)
    other = fine_tune(model, requests_of(model), (1,), settings)
    torch.testing.assert_close(one.delta[1], other.delta[1])


@pytest.mark.parametrize("box", [1e-4, 3e-3, 0.1])
def test_no_entry_of_an_update_ever_leaves_the_box(box, tiny):
    for steps in (1, 2, 9):
        settings = FineTuneSettings(relative=False, rate=2e-3, box=box, steps=steps, stop=0.0)
        found = fine_tune(tiny, requests_of(tiny), (0, 1), settings)
        for delta in found.delta.values():
            assert delta.abs().max() <= torch.tensor(box)
    assert found.steps == 9
    reaches = found.delta[1].abs().max() == torch.tensor(box)
    assert reaches == (box < 0.1)  # the box binds where it is smaller than the way the steps can go


def test_without_a_box_more_is_learned(tiny):
    free = fine_tune(tiny, requests_of(tiny), (1,), FineTuneSettings(box=None))
    bound = fine_tune(tiny, requests_of(tiny), (1,), FineTuneSettings(box=0.01))
    assert free.loss[-1] < bound.loss[-1] < bound.loss[0]


def test_training_ends_below_the_stopping_loss_and_the_model_is_not_changed(tiny):
    toy.confident(tiny)
    before = toy.weights(tiny)
    found = fine_tune(tiny, requests_of(tiny), (1, 2), FineTuneSettings(rate=0.1, box=None, steps=80, stop=0.5))
    assert toy.same(before, toy.weights(tiny))
    assert found.loss[-1] < 0.5 <= min(found.loss[:-1])
    assert found.steps == len(found.loss) - 1 < 79
    assert sum(found.last) / 3 == pytest.approx(found.loss[-1])
    # And what was reached holds in the model itself.
    for layer, delta in found.delta.items():
        tiny.add_(layer, delta)
    again = fine_tune(tiny, requests_of(tiny), (1, 2), FineTuneSettings(steps=1))
    assert again.loss[0] == pytest.approx(found.loss[-1], rel=1e-3)


def test_microbatches_do_not_change_the_result(tiny):
    settings = FineTuneSettings(steps=4)
    whole = fine_tune(tiny, requests_of(tiny), (1,), settings)
    parts = fine_tune(tiny, requests_of(tiny), (1,), settings, microbatch=2)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    assert (parts.delta[1] - whole.delta[1]).norm() < 1e-3 * whole.delta[1].norm()


def test_where_memory_runs_out_training_begins_again_with_fewer_facts_at_once(tiny, monkeypatch):
    whole, nll, sizes = fine_tune(tiny, requests_of(tiny), (1,), FineTuneSettings(steps=4)), _Chunk.nll, []

    def one_at_a_time(chunk):
        sizes.append(chunk.rows)
        if chunk.rows > 1:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return nll(chunk)

    monkeypatch.setattr(_Chunk, "nll", one_at_a_time)
    parts = fine_tune(tiny, requests_of(tiny), (1,), FineTuneSettings(steps=4))
    assert sizes == [3, 2] + [1] * 12
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5) and parts.steps == whole.steps
    assert (parts.delta[1] - whole.delta[1]).norm() < 1e-3 * whole.delta[1].norm()

    def never(chunk):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)")

    monkeypatch.setattr(_Chunk, "nll", never)
    with pytest.raises(MemoryError, match="fine-tuning on one fact does not fit in memory"):
        fine_tune(tiny, requests_of(tiny), (1,), FineTuneSettings())


def test_the_released_form_scores_pads_at_one_position_and_ours_every_token_at_its_own(tiny):
    requests = requests_of(tiny)
    longest = max(len(request.target) for request in requests)
    assert min(len(request.target) for request in requests) < longest
    for request, own, last in zip(
        requests, scored(requests, "own", tiny.pad_id), scored(requests, "last", tiny.pad_id), strict=True
    ):
        prompt = len(request.contexts[0].ids) - len(request.target) + 1
        assert own.ids == request.target
        assert own.columns == tuple(range(prompt - 1, prompt - 1 + len(request.target)))
        assert last.columns == (prompt - 1,) * longest
        assert last.ids == request.target + (tiny.pad_id,) * (longest - len(request.target))


def test_a_loss_that_is_not_finite_stops_the_training(tiny):
    with torch.no_grad():
        tiny.hf.lm_head.weight[5, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="fine-tuning gave a loss of nan at step 0"):
        fine_tune(tiny, requests_of(tiny), (1,), FineTuneSettings())


def test_no_facts_are_refused(tiny):
    with pytest.raises(ValueError, match="no facts to train on"):
        fine_tune(tiny, [], (1,), FineTuneSettings())


def test_a_bias_is_trained_only_when_asked_for():
    model = build_model("gptj")
    settings = FineTuneSettings(steps=3)
    assert fine_tune(model, requests_of(model), (1,), settings).bias == {}
    found = fine_tune(model, requests_of(model), (1,), settings, bias=True)
    assert found.bias[1].shape == (model.d_model,)
    assert found.bias[1].any()
