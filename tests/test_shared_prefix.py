"""Prompts on a shared prefix give what each gives alone through the whole model, for every architecture."""

from __future__ import annotations

import copy
import random

import pytest
import reference
import torch
from conftest import build_model
from hypothesis import given, settings
from hypothesis import strategies as st

import langedit_core.shared_prefix as module
from langedit_core.errors import RefusedInput
from langedit_core.shared_prefix import SharedPrefix, generate, score_options

WORDS = [[5], [6, 7], [6, 7, 8], [9, 9]]  # one that begins another, one of several tokens, one alone


def prompts_of(common: int, own: tuple[int, ...], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    shared = [rng.randrange(3, 320) for _ in range(common)]
    return [shared + [rng.randrange(3, 320) for _ in range(n)] for n in own]


PROMPTS = prompts_of(40, (1, 30, 7, 12, 44))


def literal(model, prompt, option) -> float:
    """Total log-probability of the option: whole model, one text."""
    with torch.no_grad():
        logits = model.hf(torch.tensor([prompt + option])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(option)), option].double().sum())


def test_options_score_as_in_the_full_forward(any_model):
    expected = [[literal(any_model, prompt, word) for word in WORDS] for prompt in PROMPTS]
    for how in ({}, {"cells": 1}, {"share": 0}, {"share": 17}):
        found = score_options(any_model, PROMPTS, [WORDS] * len(PROMPTS), **how)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("model_type", ["gemma3_text", "gemma2", "mistral"])
def test_a_window_shorter_than_the_prompts_is_counted_in_positions(model_type):
    model = build_model(model_type, sliding_window=9)
    expected = [[literal(model, prompt, word) for word in WORDS] for prompt in PROMPTS]
    for share in (0, 17, None):
        found = score_options(model, PROMPTS, [WORDS] * len(PROMPTS), share=share)
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
    wide = build_model(model_type, sliding_window=100)
    assert literal(wide, PROMPTS[1], [5]) != pytest.approx(expected[1][0], abs=1e-3)  # the window does matter


def test_hidden_states_equal_the_full_forward_also_after_rows_left(any_model):
    prefix = SharedPrefix(any_model, PROMPTS)
    assert prefix.length == 40
    run = prefix.batch(PROMPTS, room=2)

    def whole(row):
        with torch.no_grad():
            return any_model.hf.base_model(torch.tensor([row])).last_hidden_state[0]

    for hidden, row in zip(run.hidden, PROMPTS, strict=True):
        torch.testing.assert_close(hidden[-5:], whole(row)[-5:], rtol=1e-4, atol=1e-4)
    run.step(torch.tensor([11, 12, 13, 14, 15]))
    run.keep(torch.tensor([3, 1]))
    for hidden, row in zip(
        run.step(torch.tensor([21, 22])), ([*PROMPTS[3], 14, 21], [*PROMPTS[1], 12, 22]), strict=True
    ):
        torch.testing.assert_close(hidden, whole(row)[-1], rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    common=st.integers(0, 30), own=st.lists(st.integers(1, 40), min_size=1, max_size=5), cells=st.integers(1, 300),
    model_type=st.sampled_from(["llama", "gemma3_text", "gpt2"]), seed=st.integers(0, 5),
)  # fmt: skip
def test_what_stands_beside_a_prompt_does_not_matter(common, own, cells, model_type, seed):
    model, prompts = build_model(model_type), prompts_of(common, tuple(own), seed)
    together = score_options(model, prompts, [WORDS] * len(prompts), cells=cells)
    for prompt, scores in zip(prompts, together, strict=True):
        assert score_options(model, [prompt], [WORDS])[0] == pytest.approx(scores, abs=1e-4)
    said = generate(model, prompts, stop="\n", tokens=4, cells=cells)
    assert said == [generate(model, [prompt], stop="\n", tokens=4)[0] for prompt in prompts]


def test_generation_is_greedy_and_the_same_however_it_is_batched(any_model):
    ids = [reference.greedy(any_model, prompt, 8) for prompt in PROMPTS]
    eos = any_model.tokenizer.eos_token_id
    ids = [said[: said.index(eos)] if eos in said else said for said in ids]
    texts = [any_model.tokenizer.decode(said, skip_special_tokens=True).split("\n")[0] for said in ids]
    for how in ({}, {"cells": 1}, {"share": 0}, {"share": 17}):
        assert [text for text, _ in generate(any_model, PROMPTS, stop="\n", tokens=8, **how)] == texts


def test_generation_ends_at_the_stop_text_or_the_end_token_and_says_when_it_did_not(tiny):
    prompt = PROMPTS[1]
    ids = reference.greedy(tiny, prompt, 8)
    text = tiny.tokenizer.decode(ids)
    assert generate(tiny, [prompt], stop="\n\n\n", tokens=8) == [(text, False)]
    stop = tiny.tokenizer.decode(ids[4:5])
    assert stop and generate(tiny, [prompt], stop=stop, tokens=8) == [(text.split(stop)[0], True)]
    tiny.tokenizer = copy.deepcopy(tiny.tokenizer)
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(ids[4])
    before = tiny.tokenizer.decode(ids[: ids.index(ids[4])], skip_special_tokens=True)
    assert generate(tiny, [prompt], stop="\n\n\n", tokens=8) == [(before, True)]


@pytest.mark.parametrize("listed", [True, False])
def test_generation_ends_at_end_tokens_that_only_the_generation_config_names(tiny, listed):
    """As the end of a turn in chat models, beside the end of a text."""
    ids = reference.greedy(tiny, PROMPTS[1], 8)
    tiny.hf.generation_config.eos_token_id = [2, ids[4]] if listed else ids[4]
    before = tiny.tokenizer.decode(ids[: ids.index(ids[4])], skip_special_tokens=True)
    assert generate(tiny, [PROMPTS[1]], stop="\n\n\n", tokens=8) == [(before, True)]
    tiny.hf.generation_config.eos_token_id = None
    assert generate(tiny, [PROMPTS[1]], stop="\n\n\n", tokens=8) == [(tiny.tokenizer.decode(ids), False)]


def test_prompts_that_are_all_the_same_keep_a_token_of_their_own(tiny):
    assert SharedPrefix(tiny, [PROMPTS[0]] * 3).length == len(PROMPTS[0]) - 1
    same = score_options(tiny, [PROMPTS[0]] * 3, [WORDS] * 3)
    assert same[0] == pytest.approx(same[2], abs=1e-5)
    assert same[0] == pytest.approx([literal(tiny, PROMPTS[0], word) for word in WORDS], abs=1e-4)


def test_progress_counts_prompts_and_ends_with_all_of_them(tiny):
    scored, said = [], []
    score_options(tiny, PROMPTS, [WORDS] * 5, cells=1, progress=scored.append)
    generate(tiny, PROMPTS, stop="\n", tokens=2, cells=1, progress=said.append)
    assert scored == sorted(scored) and scored[-1] == 5
    assert said == [1, 2, 3, 4, 5]


def test_a_prompt_longer_than_the_model_is_refused_before_anything_runs(tiny):
    long = [[3] * 126]
    assert len(score_options(tiny, long, [[[5], [6, 7]]])) == 1
    with pytest.raises(
        RefusedInput,
        match="a prompt with its examples and answer has 129 tokens, .* 128 positions; ask with fewer shots",
    ):
        generate(tiny, long, stop="\n", tokens=3)


def test_no_rows_and_rows_of_another_prefix_are_refused(tiny):
    with pytest.raises(ValueError, match="at least one row"):
        SharedPrefix(tiny, [])
    with pytest.raises(ValueError, match="does not begin with the shared prefix"):
        SharedPrefix(tiny, PROMPTS).batch([[1] * 60])


def out_of_memory():
    """What PyTorch says itself when it asks the processor's memory for more than an address can name."""
    torch.empty(2**46)


def raising(error):
    def fail():
        raise error

    return fail


LACK = [
    out_of_memory,
    raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")),
    raising(
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate")
    ),
    raising(RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)")),
    raising(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")),
]


@pytest.mark.parametrize("lack", LACK)
def test_a_batch_too_large_for_memory_is_halved_with_the_same_result(monkeypatch, tiny, lack):
    expected = generate(tiny, PROMPTS, stop="\n", tokens=3)
    whole, tried = SharedPrefix.batch, []

    def small(self, rows, room=0):
        tried.append(len(rows))
        if len(rows) > 2:
            lack()
        return whole(self, rows, room)

    monkeypatch.setattr(module.SharedPrefix, "batch", small)
    assert generate(tiny, PROMPTS, stop="\n", tokens=3) == expected
    assert tried == [5, 3, 2, 2, 1]  # once found, the smaller size stays

    def never(self, rows, room=0):
        lack()

    monkeypatch.setattr(module.SharedPrefix, "batch", never)
    with pytest.raises(MemoryError, match="41 tokens does not fit in memory.*fewer shots"):
        generate(tiny, PROMPTS, stop="\n", tokens=3)


def test_errors_that_are_not_about_memory_are_not_swallowed(monkeypatch, tiny):
    def broken(self, rows, room=0):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(module.SharedPrefix, "batch", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        generate(tiny, PROMPTS, stop="\n", tokens=3)
