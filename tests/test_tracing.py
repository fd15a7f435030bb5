"""Restored runs give what one whole forward pass per intervention gives, for every architecture."""

import functools

import pytest
import torch
import toy
from conftest import build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core.forward import hidden_of, hooked
from langedit_core.models import load_model
from langedit_core.packaged import PACKAGED
from langedit_core.patching import SITES, Cell, PromptRuns
from langedit_core.tracing import (
    KINDS,
    SEVERED,
    TraceSettings,
    answer_ids,
    cells_of,
    embedding_deviation,
    noise_of,
    roles_of,
    subject_columns,
    trace,
)

FEW = TraceSettings(samples=3, window=2)
CLOSE = dict(rtol=2e-5, atol=1e-7)


def literal_scores(model, ids, subject, noise, answer, cell):
    """One whole forward pass, every sample beside the clean row, the head at every position.

    What is restored is read off the clean row of the same pass, as the published code does; what is severed comes from
    a corrupted pass before.
    """
    part = {"mlp": model.architecture.mlp, "attention": model.architecture.attention}
    corrupted = {}

    def module(site, layer):
        return model.layers[layer] if site == "hidden" else model.layers[layer].get_submodule(part[site])

    def add_noise(_m, _a, out):
        out = out.clone()
        columns = slice(subject[0], subject[-1] + 1)
        out[1:, columns] = (out[1:, columns].double() + noise).to(out.dtype)
        return out

    def keep(layer):
        return lambda _m, _a, out: corrupted.__setitem__(layer, hidden_of(out).clone())

    def put(layer, restored):
        def hook(_m, _a, out):
            tensor = hidden_of(out).clone()
            for token in cell.tokens:
                tensor[1:, token] = tensor[0, token] if restored else corrupted[layer][1:, token]
            return (tensor, *out[1:]) if isinstance(out, tuple) else tensor

        return hook

    def run(*hooks):
        embedding = model.hf.get_submodule(model.architecture.embedding)
        rows = torch.tensor(list(ids)).repeat(1 + len(noise), 1)
        with torch.no_grad(), hooked(embedding.register_forward_hook(add_noise), *hooks):
            return model.hf(input_ids=rows).logits[1:, -1].softmax(-1)[:, answer]

    frozen = range(max(cell.layers) + 1, model.n_layers) if cell.severed else ()
    run(*(module(cell.severed, layer).register_forward_hook(keep(layer)) for layer in frozen))
    return run(
        *(module(cell.site, layer).register_forward_hook(put(layer, True)) for layer in cell.layers),
        *(module(cell.severed, layer).register_forward_hook(put(layer, False)) for layer in frozen),
    )


def runs_of(model, fact=None, options=FEW, deviation=0.5):
    ids, subject = subject_columns(model.tokenizer, fact or toy.fact(0))
    noise = options.noise * deviation * noise_of(ids, subject, model.d_model, options)
    return PromptRuns(model, ids, subject=subject, noise=noise), noise


def whole_trace(runs, options=FEW):
    return cells_of(runs.model.n_layers, len(runs.ids), runs.subject, options)


def test_every_cell_equals_one_literal_forward_pass(any_model):
    runs, noise = runs_of(any_model)
    cells = list(whole_trace(runs).values())
    cells += [
        Cell(site="hidden", layers=(1,), tokens=tuple(runs.subject)),
        Cell(site="mlp", layers=(0, 2), tokens=(runs.subject[-1], len(runs.ids) - 1), severed="attention"),
        Cell(site="attention", layers=(1, 2, 3), tokens=(0, runs.subject[0])),
    ]
    found = runs.scores(cells)
    effects = []
    for cell, score in zip(cells, found, strict=True):
        expected = literal_scores(any_model, runs.ids.tolist(), runs.subject, noise, runs.answer, cell)
        torch.testing.assert_close(score, expected, **CLOSE)
        effects.append(float((expected - runs.corrupted).abs().max()))
    assert sum(effect > 1e-5 for effect in effects) > len(cells) // 4  # not a comparison of nothing with nothing


@pytest.mark.parametrize("prompt", ["{} is", "So {}"], ids=["subject first", "subject last"])
def test_subjects_at_the_ends_of_a_prompt(any_model, prompt):
    runs, noise = runs_of(any_model, toy.fact(1, prompt=prompt))
    cells = list(whole_trace(runs).values())
    for cell, score in zip(cells, runs.scores(cells), strict=True):
        expected = literal_scores(any_model, runs.ids.tolist(), runs.subject, noise, runs.answer, cell)
        torch.testing.assert_close(score, expected, **CLOSE)


def test_batched_equals_one_at_a_time_whatever_the_memory_bound(any_model):
    runs, _ = runs_of(any_model)
    cells = list(whole_trace(runs).values())
    together = runs.scores(cells, columns=10**6)
    for columns in (1, 100):
        torch.testing.assert_close(runs.scores(cells, columns=columns), together, **CLOSE)
    alone = torch.cat([runs.scores([cell]) for cell in cells])
    torch.testing.assert_close(alone, together, **CLOSE)


def test_the_order_of_cells_is_kept(tiny):
    runs, _ = runs_of(tiny)
    cells = list(whole_trace(runs).values())
    order = torch.randperm(len(cells), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(runs.scores([cells[i] for i in order]), runs.scores(cells)[order], **CLOSE)


def test_no_batch_is_larger_than_asked_for(tiny, monkeypatch):
    runs, _ = runs_of(tiny)
    widest = []
    for layer in tiny.layers:
        layer.register_forward_pre_hook(
            lambda _m, args, kwargs: widest.append((args[0] if args else kwargs["hidden_states"]).shape[:2].numel()),
            with_kwargs=True,
        )
    runs.scores(list(whole_trace(runs).values()), columns=60)
    assert 30 < max(widest) <= 60


def test_restoring_everything_gives_the_clean_run(any_model):
    runs, _ = runs_of(any_model)
    everywhere = tuple(range(len(runs.ids)))
    layers = tuple(range(any_model.n_layers))
    cells = [Cell(site="hidden", layers=(layer,), tokens=everywhere) for layer in layers]
    cells += [Cell(site="hidden", layers=layers, tokens=everywhere)]
    found = runs.scores(cells)
    torch.testing.assert_close(found, torch.full_like(found, runs.clean), **CLOSE)


def test_restoring_nothing_gives_the_corrupted_run(any_model):
    silent, noise = runs_of(any_model)
    before = [Cell(site=site, layers=(1,), tokens=(silent.subject[0] - 1,)) for site in SITES]
    top = Cell(site="hidden", layers=(any_model.n_layers - 1,), tokens=(silent.subject[-1],))
    assert torch.equal(silent.scores([*before, top]), silent.corrupted.repeat(4, 1))
    for cell in (*before, top):  # and the shortcut is right
        expected = literal_scores(any_model, silent.ids.tolist(), silent.subject, noise, silent.answer, cell)
        torch.testing.assert_close(silent.corrupted, expected, **CLOSE)


def test_without_noise_every_run_is_the_clean_one(any_model):
    ids, subject = subject_columns(any_model.tokenizer, toy.fact(0))
    runs = PromptRuns(any_model, ids, subject=subject, noise=torch.zeros(2, len(subject), any_model.d_model).double())
    found = runs.scores(list(whole_trace(runs, TraceSettings(samples=2)).values()))
    torch.testing.assert_close(found, torch.full_like(found, runs.clean), **CLOSE)


def test_severing_changes_what_goes_through_the_layers_above_and_nothing_at_the_top(tiny):
    runs, _ = runs_of(tiny)
    last = len(runs.ids) - 1
    cells = whole_trace(runs)
    for kind, severed in SEVERED.items():
        whole, cut = (runs.scores([cells[name, runs.subject[-1], 0]]) for name in ("hidden", kind))
        assert (whole - cut).abs().max() > 1e-5
        at_top = Cell(site="hidden", layers=(3,), tokens=(last,), severed=severed)
        free = Cell(site="hidden", layers=(3,), tokens=(last,))
        torch.testing.assert_close(runs.scores([at_top]), runs.scores([free]), **CLOSE)


def test_noise_depends_on_seed_prompt_and_sample_alone():
    ids, subject = (5, 6, 7, 8), range(1, 3)
    few, many = (noise_of(ids, subject, 8, TraceSettings(samples=n)) for n in (2, 5))
    assert torch.equal(few, many[:2])
    assert not torch.equal(few, noise_of(ids, subject, 8, TraceSettings(samples=2, seed=1)))
    assert not torch.equal(few, noise_of((5, 6, 7, 9), subject, 8, TraceSettings(samples=2)))
    assert len({float(x) for x in many.flatten()}) == many.numel()
    large = noise_of(ids, subject, 4000, TraceSettings(samples=10))
    assert abs(float(large.mean())) < 0.02 and abs(float(large.std()) - 1) < 0.02


def test_a_trace_does_not_depend_on_what_was_traced_before(tiny):
    alone = trace(tiny, toy.fact(1), 0.5, FEW)
    for number in (0, 2):
        trace(tiny, toy.fact(number), 0.5, FEW)
    again = trace(tiny, toy.fact(1), 0.5, FEW)
    for kind in KINDS:
        assert torch.equal(alone.scores[kind].nan_to_num(-1), again.scores[kind].nan_to_num(-1))


def test_trace_holds_every_token_layer_and_kind(any_model):
    found = trace(any_model, toy.fact(0), 0.5, FEW)
    assert found.answer == answer_ids(any_model, toy.fact(0))[0]
    for kind in SITES:
        assert found.scores[kind].shape == (len(found.ids), 4, 3) and found.scores[kind].isfinite().all()
    for kind in SEVERED:
        traced = found.scores[kind].isfinite().all(-1).all(-1)
        assert [role for role, there in zip(found.roles, traced, strict=True) if there] == ["subject_last"]
    # the whole subject or the prompt's end in the last layer decide by themselves
    torch.testing.assert_close(found.scores["hidden"][-1, -1], torch.full((3,), found.clean), **CLOSE)
    total = found.clean - found.corrupted
    torch.testing.assert_close(found.effects("hidden")[-1, -1], total, rtol=1e-4, atol=1e-7)
    assert set(trace(any_model, toy.fact(0), 0.5, TraceSettings(samples=1, severed=False)).scores) == set(SITES)


@pytest.mark.parametrize(
    ("n_tokens", "subject", "roles"),
    [
        (7, range(1, 5), "before subject_first subject_middle subject_middle subject_last further last"),
        (4, range(1, 2), "before subject_last further last"),
        (3, range(0, 2), "subject_first subject_last last"),
        (3, range(1, 3), "before subject_first subject_last"),
        (1, range(0, 1), "subject_last"),
    ],
)
def test_roles(n_tokens, subject, roles):
    assert roles_of(n_tokens, subject) == tuple(roles.split())


@pytest.mark.parametrize(("depth", "window"), [(48, 10), (28, 6), (18, 4), (6, 1), (2, 1)])
def test_the_window_is_scaled_to_the_depth(depth, window):
    assert TraceSettings().window_of(depth) == window
    assert TraceSettings(window=3).window_of(depth) == 3


def test_windows_are_cut_off_at_both_ends():
    cells = cells_of(6, 1, range(0, 1), TraceSettings(window=4))
    found = [cells["mlp", 0, layer].layers for layer in range(6)]
    assert found == [(0, 1), (0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5)]
    assert all(cells["hidden", 0, layer].layers == (layer,) for layer in range(6))


@pytest.mark.parametrize("lang", ["en", "de", "zh"])
def test_subject_columns_spell_the_subject(tiny, lang):
    for number in range(len(toy.SUBJECTS)):
        fact = toy.fact(number, lang)
        ids, subject = subject_columns(tiny.tokenizer, fact)
        spelt = tiny.tokenizer.decode(ids[subject[0] : subject[-1] + 1])
        assert spelt.strip() == fact.subject
        assert tiny.tokenizer.decode(ids) == fact.text


@given(st.lists(st.sampled_from(toy.SUBJECTS + toy.CHINESE), min_size=1, max_size=9))
@settings(deadline=None, max_examples=20)
def test_the_deviation_is_that_of_all_entries_of_all_subject_tokens(subjects):
    model = _tiny()
    embedding = model.hf.get_input_embeddings()
    rows = [embedding(torch.tensor(model.tokenizer(s, add_special_tokens=False).input_ids)) for s in subjects]
    assert embedding_deviation(model, subjects) == pytest.approx(float(torch.cat(rows).std()), rel=1e-5)


@functools.cache
def _tiny():
    return build_model("gemma3_text")


def test_bad_input_is_refused_with_what_was_expected(tiny):
    runs, noise = runs_of(tiny)
    ids = runs.ids.tolist()
    with pytest.raises(ValueError, match="do not lie in a prompt of"):
        PromptRuns(tiny, ids, subject=range(3, 99), noise=noise)
    with pytest.raises(ValueError, match=r"noise has shape .* expected samples x"):
        PromptRuns(tiny, ids, subject=runs.subject, noise=noise[:, 1:])
    for cell in (
        Cell(site="key", layers=(0,), tokens=(0,)),
        Cell(site="mlp", layers=(4,), tokens=(0,)),
        Cell(site="mlp", layers=(0,), tokens=()),
        Cell(site="hidden", layers=(0,), tokens=(99,)),
        Cell(site="hidden", layers=(0,), tokens=(0,), severed="hidden"),
    ):
        with pytest.raises(ValueError, match="cannot be run: expected a site of hidden, mlp, attention"):
            runs.scores([cell])
    with pytest.raises(ValueError, match="at least one subject"):
        embedding_deviation(tiny, [])
    with torch.no_grad():
        tiny.weight(2).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="float32"):
        runs_of(tiny)


@pytest.mark.gemma
@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PACKAGED))
def test_real_weights_agree_with_the_literal_reference(name):
    try:
        model = load_model(name, device="cpu")
    except ImportError as missing:
        pytest.skip(str(missing))
    fact = toy.fact(0, prompt="Country: {}. Continent:", subject="Denmark", target="Europe")
    ids, subject = subject_columns(model.tokenizer, fact)
    options = TraceSettings(samples=1)
    noise = options.noise * embedding_deviation(model, [fact.subject]) * noise_of(ids, subject, model.d_model, options)
    runs = PromptRuns(model, ids, subject=subject, noise=noise, answer=answer_ids(model, fact)[0])
    middle = model.n_layers // 2
    cells = [whole_trace(runs)[kind, subject[-1], middle] for kind in KINDS]
    cells += [whole_trace(runs)["attention", len(ids) - 1, middle + 2]]
    for cell, score in zip(cells, runs.scores(cells), strict=True):
        expected = literal_scores(model, ids, subject, noise, runs.answer, cell)
        torch.testing.assert_close(score, expected, rtol=1e-3, atol=1e-7)
    assert runs.clean > float(runs.corrupted)
