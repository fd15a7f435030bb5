"""Value optimisation: a batch equals one fact at a time equals the literal form, and every limit it promises holds."""

from __future__ import annotations

import pytest
import reference
import torch
import toy
from conftest import build_model
from pydantic import ValidationError
from test_shared_prefix import LACK, raising

from langedit_core import values as engine
from langedit_core.editors import METHODS, Editor, settings_for
from langedit_core.tokens import continuation
from langedit_core.values import ValueSettings, optimise_values

FORMS = {
    "scale-free": ValueSettings(optimiser="adam", steps=4, rate=0.4, clamp=1.0, penalty=0.3, kl=0.5, vocabulary=None),
    "published": ValueSettings.published(steps=4, rate=0.5, clamp=0.75, kl=0.5),
}
MIXED = [toy.fact(0, "en"), toy.fact(1, "de"), toy.fact(2, "zh"), toy.fact(3, "fr")]  # 3, 2, 2 and 3 contexts


def requests(model, facts=MIXED):
    return [toy.value_request(model, of) for of in facts]


def simple(facts, prompt="So {}"):
    """Facts a confident random model can be convinced of."""
    return [toy.fact(number, prompt=prompt) for number in facts]


# --- three ways to the same values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    ("model_type", "layers"),
    [("llama", (1,)), ("llama", (1, 2)), ("gemma3_text", (1,)), ("gemma3_text", (1, 2)), ("gpt2", (1, 2))],
)
def test_a_batch_equals_one_fact_at_a_time_equals_the_literal_reference(model_type, layers, form):
    model, settings = build_model(model_type), FORMS[form]
    asked = requests(model, MIXED[:3])
    together = optimise_values(model, asked, layers, settings)
    for i, request in enumerate(asked):
        alone = optimise_values(model, [request], layers, settings)
        literal = reference.OneValue(model, request, layers, settings)
        assert together.steps[i] == alone.steps[0] == literal.steps
        torch.testing.assert_close(together.loss[i], alone.loss[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.loss[i], literal.losses, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.start[:, i], literal.start, rtol=1e-4, atol=1e-5)
        for layer in layers:
            scale = float(literal.delta[layer].norm())
            assert scale > 0.03 * float(literal.start.norm())
            assert (together.delta[layer][:, i] - literal.delta[layer]).norm() < 1e-3 * scale
            assert (alone.delta[layer][:, 0] - literal.delta[layer]).norm() < 1e-3 * scale


def test_order_and_company_of_a_fact_do_not_matter(tiny):
    asked = requests(tiny)
    one = optimise_values(tiny, asked, (1,), FORMS["scale-free"])
    other = optimise_values(tiny, asked[::-1], (1,), FORMS["scale-free"])
    torch.testing.assert_close(other.delta[1].flip(1), one.delta[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("microbatch", [1, 3])
def test_microbatches_give_the_same_values_and_report_progress(tiny, microbatch):
    asked, seen = requests(tiny), []
    whole = optimise_values(tiny, asked, (1, 2), FORMS["scale-free"])
    parts = optimise_values(tiny, asked, (1, 2), FORMS["scale-free"], microbatch=microbatch, progress=seen.append)
    assert seen == {1: [1, 2, 3, 4], 3: [3, 4]}[microbatch]
    assert parts.steps == whole.steps
    for layer in (1, 2):
        torch.testing.assert_close(parts.delta[layer], whole.delta[layer], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parts.nll, whole.nll, rtol=1e-4, atol=1e-4)


# --- the restricted softmax -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [300, 319, 320, 10_000])  # below 320, several positions keep all words together
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text"])
def test_a_restricted_softmax_over_all_words_is_the_exact_one(model_type, vocabulary):
    model = build_model(model_type)
    asked, exact = requests(model), FORMS["scale-free"]
    whole = optimise_values(model, asked, (1,), exact)
    restricted = optimise_values(model, asked, (1,), exact.model_copy(update={"vocabulary": vocabulary}))
    torch.testing.assert_close(restricted.loss, whole.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(restricted.delta[1], whole.delta[1], rtol=1e-3, atol=1e-5)


def test_the_first_pass_of_a_restricted_softmax_is_exact_at_any_size(tiny):
    whole = optimise_values(tiny, requests(tiny), (1,), FORMS["scale-free"])
    for vocabulary in (1, 8, 100):
        few = FORMS["scale-free"].model_copy(update={"vocabulary": vocabulary})
        restricted = optimise_values(tiny, requests(tiny), (1,), few)
        for ours, theirs in zip(restricted.loss, whole.loss, strict=True):
            assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
        assert restricted.loss != whole.loss  # later passes are not: the test would notice an ignored setting


def exact_nll(model, request, delta) -> float:
    """−log p of the target with the whole vocabulary, whole model, one row at a time."""
    total = 0.0
    with torch.no_grad():
        for row in request.contexts:
            logits = reference.whole_model(model, row.ids, delta, row.lookup)[-len(request.target) :]
            total -= logits.log_softmax(-1)[range(len(request.target)), list(request.target)].mean().item()
    return total / len(request.contexts)


@pytest.mark.parametrize("vocabulary", [1, 4, 32, None])
def test_a_fact_is_finished_only_when_the_exact_loss_says_so(tiny, vocabulary):
    # With one to four words in the softmax the rest is frozen in a bucket, so the restricted loss is far too hopeful.
    model = toy.confident(tiny)
    asked = requests(model, simple(range(6)))
    settings = ValueSettings(
        optimiser="adam", steps=30, rate=1.0, clamp=30.0, penalty=0.0, kl=0.0, vocabulary=vocabulary
    )
    found = optimise_values(model, asked, (1,), settings)
    assert found.converged > 0
    for i, request in enumerate(asked):
        if found.loss[i][-1] < settings.stop:
            nll = exact_nll(model, request, {1: found.delta[1][:, i]})
            assert nll == pytest.approx(found.nll[i], abs=1e-4)
            assert nll == pytest.approx(found.loss[i][-1], abs=1e-4)
            assert nll < settings.stop
        assert all(loss >= settings.stop for loss in found.loss[i][:-1])


def test_a_restricted_softmax_alone_would_have_stopped_too_early(tiny, monkeypatch):
    # Shows that the case above does occur: without the exact check some fact would have been declared finished.
    model = toy.confident(tiny)
    asked = requests(model, simple(range(6)))
    settings = ValueSettings(optimiser="adam", steps=30, rate=1.0, clamp=30.0, penalty=0.0, kl=0.0, vocabulary=1)
    monkeypatch.setattr(engine._Batch, "verify", lambda self, found: found.loss.detach())
    found = optimise_values(model, asked, (1,), settings)
    done = [i for i, losses in enumerate(found.loss) if losses[-1] < settings.stop]
    really = {i: exact_nll(model, asked[i], {1: found.delta[1][:, i]}) for i in done}
    assert max(really.values()) > 2 * settings.stop


# --- what happens on the way ------------------------------------------------------------------------------------------


def test_finished_facts_do_not_move_and_are_not_run_any_more(tiny):
    model, passes = toy.confident(tiny), []
    asked = requests(model, simple(range(6)))
    settings = ValueSettings(optimiser="adam", steps=30, rate=1.0, clamp=30.0, penalty=1e-4, kl=1e-3, vocabulary=None)
    found = optimise_values(model, asked, (1, 2), settings, observe=passes.append)
    lengths = [len(loss) for loss in found.loss]
    assert len(set(lengths)) > 1 and max(lengths) == len(passes)
    first_row = [sum(len(r.contexts) for r in asked[:i]) for i in range(len(asked) + 1)]
    for i, length in enumerate(lengths):
        assert [bool(p.active[i]) for p in passes] == [True] * length + [False] * (len(passes) - length)
        for number, one in enumerate(passes):
            mine = set(range(first_row[i], first_row[i + 1]))
            assert (mine <= set(one.rows.tolist())) == (number < length)
            assert bool(mine & set(one.rows.tolist())) == (number < length)
        for layer in (1, 2):
            for later in passes[length:]:
                assert torch.equal(later.delta[layer][i], passes[length - 1].delta[layer][i])
            assert torch.equal(found.delta[layer][:, i], passes[length - 1].delta[layer][i])
        assert found.steps[i] == length - 1


def test_every_fact_equals_itself_alone_although_its_company_finished_at_other_times(tiny):
    model = toy.confident(tiny)
    asked = requests(model, simple(range(5)))
    settings = ValueSettings(optimiser="adam", steps=12, rate=1.0, clamp=30.0, penalty=1e-4, kl=1e-3, vocabulary=None)
    together = optimise_values(model, asked, (1,), settings)
    assert len(set(together.steps)) > 1
    for i, request in enumerate(asked):
        literal = reference.OneValue(model, request, (1,), settings)
        assert together.steps[i] == literal.steps
        torch.testing.assert_close(together.loss[i], literal.losses, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("form", sorted(FORMS))
def test_no_value_leaves_the_clamp_and_it_is_reached(tiny, form):
    settings = FORMS[form].model_copy(update={"clamp": 0.3, "steps": 8, "penalty": 0.0})
    passes = []
    found = optimise_values(tiny, requests(tiny), (1, 2), settings, observe=passes.append)
    for layer in (1, 2):
        sizes = []
        for request in requests(tiny):
            seen: dict = {}
            with torch.no_grad():
                reference.whole_model(tiny, request.contexts[0].ids, site=settings.site, watch=seen)
            sizes.append(seen[layer, "out"][request.contexts[0].lookup].norm())
        share = found.delta[layer].norm(dim=0) / torch.stack(sizes)
        assert share.max() <= 0.3 * (1 + 1e-5)
        assert share.max() >= 0.3 * (1 - 1e-5)
        for one in passes:
            assert (one.delta[layer].norm(dim=1) / torch.stack(sizes)).max() <= 0.3 * (1 + 1e-5)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_the_loss_goes_down(model_type):
    model = toy.confident(build_model(model_type))
    settings = ValueSettings(steps=20, rate=0.5, clamp=30.0, penalty=1e-3, kl=0.05)
    found = optimise_values(model, requests(model, simple(range(4))), (1, 2), settings)
    assert all(losses[-1] < 0.5 * losses[0] for losses in found.loss)
    assert all(losses[1] < losses[0] for losses in found.loss)


def test_what_is_observed_adds_up_to_the_loss(tiny):
    passes = []
    asked = requests(tiny)
    found = optimise_values(tiny, asked, (1,), FORMS["scale-free"], observe=passes.append)
    of_row = torch.tensor([i for i, request in enumerate(asked) for _ in request.contexts])
    for number, one in enumerate(passes):
        nll = torch.stack([one.row_nll[of_row == i].mean() for i in range(len(asked))])
        torch.testing.assert_close(nll + one.kl + one.penalty, one.loss)
        assert [losses[number] for losses in found.loss] == one.loss.tolist()
    assert not passes[0].delta[1].any()
    assert passes[0].kl.abs().max() < 1e-6  # nothing has drifted before the first step
    assert passes[-1].kl.min() > 1e-4


def test_a_fact_that_is_known_already_takes_no_step(tiny):
    model = toy.confident(tiny)
    of = simple([0])[0]
    request = toy.value_request(model, of, toy.BARE)
    loss = exact_nll(model, request, {})
    found = optimise_values(model, [request], (1,), ValueSettings(stop=loss + 1))
    assert found.steps == [0]
    assert found.converged == 1.0
    assert not found.delta[1].any()
    assert found.loss[0] == pytest.approx([loss], rel=1e-4)


def test_one_pass_means_no_step(tiny):
    found = optimise_values(tiny, requests(tiny), (1,), FORMS["scale-free"].model_copy(update={"steps": 1}))
    assert found.steps == [0] * len(MIXED)
    assert found.converged == 0.0
    assert not found.delta[1].any()


def test_weights_are_left_alone(tiny):
    before = toy.weights(tiny)
    optimise_values(tiny, requests(tiny), (1, 2), FORMS["scale-free"])
    assert toy.same(before, toy.weights(tiny))
    assert all(parameter.grad is None for parameter in tiny.hf.parameters())


# --- models in half precision -----------------------------------------------------------------------------------------

HALF = [torch.bfloat16, torch.float16]


def in_half(model_type, dtype):
    model = toy.confident(build_model(model_type))
    model.hf.to(dtype)
    return model


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gptj"])
@pytest.mark.parametrize(
    "settings",
    [
        ValueSettings(steps=6, radius=1.0, clamp=30.0, vocabulary=32),
        ValueSettings.published(steps=6, clamp=30.0),
    ],
    ids=["trust", "published"],
)
def test_a_model_in_half_precision_has_the_values_of_the_model_up_to_rounding(model_type, dtype, settings):
    model = in_half(model_type, dtype)
    asked, passes = requests(model, simple(range(4))), []
    found = optimise_values(model, asked, (1, 2), settings, observe=passes.append)
    # Steps follow slopes that were rounded on their way, so paths part; the first pass is the same but for rounding.
    exact = optimise_values(toy.confident(build_model(model_type)), asked, (1, 2), settings)
    for ours, theirs, best in zip(found.loss, exact.loss, found.final, strict=True):
        assert ours[0] == pytest.approx(theirs[0], abs=32 * torch.finfo(dtype).eps * theirs[0])
        assert best < 0.9 * ours[0]
    tensors = [*found.delta.values(), found.start]
    tensors += [x for one in passes for x in (*one.delta.values(), one.row_nll, one.kl, one.penalty, one.loss)]
    assert {x.dtype for x in tensors} == {torch.float32}
    assert {p.dtype for p in model.hf.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", HALF)
def test_losses_of_a_model_in_half_precision_are_not_rounded_to_its_few_digits(dtype):
    passes: list = []
    model = in_half("llama", dtype)
    optimise_values(model, requests(model), (1,), ValueSettings(steps=3, vocabulary=32), observe=passes.append)
    losses = torch.cat([one.row_nll for one in passes])
    assert not torch.equal(losses, losses.to(dtype).float())


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_edits_a_model_in_half_precision(method, dtype):
    model, layers = in_half("llama", dtype), toy.layers_of(method)
    values = ValueSettings(steps=4, radius=1.0, clamp=30.0)
    editor = Editor(
        model, settings_for(method, on=dict(layers=layers, values=values)), toy.covariances(model, layers), toy.CONTEXTS
    )
    check_edits(editor, dtype)


@pytest.mark.parametrize("dtype", HALF)
def test_the_published_form_edits_a_model_in_half_precision(dtype):
    model, values = in_half("llama", dtype), ValueSettings.published(steps=4)
    settings = settings_for("memit", layers=(1, 2), spread="residual", values=values)
    check_edits(Editor(model, settings, toy.covariances(model, (1, 2)), toy.CONTEXTS), dtype)


def check_edits(editor, dtype):
    """Two batches and the end: the edited matrices move, all others stay, and everything keeps its type."""
    model, layers = editor.model, editor.settings.layers
    before = toy.weights(model)
    for batch in (MIXED[:2], MIXED[2:]):
        report, _ = editor.edit(batch)
        for told in report.layers.values():
            assert 0 < told.relative_update < 10
            assert told.written is None or 0.1 < told.written < 1.1
    editor.finish()
    edited = {name for name, tensor in toy.weights(model).items() if not torch.equal(tensor, before[name])}
    assert len(edited) == len(layers)
    assert all(torch.isfinite(model.weight(layer)).all() for layer in layers)
    assert {p.dtype for p in model.hf.parameters()} == {dtype}


# --- failures ---------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_raises_and_names_the_step(tiny):
    with torch.no_grad():
        tiny.hf.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"loss of .*nan.* at step 0"):
        optimise_values(tiny, requests(tiny), (1,), FORMS["scale-free"])


def out_of_memory_above(limit: int, calls: list[int], lack):
    real = engine._optimise

    def limited(model, chunk, *rest):
        calls.append(len(chunk))
        if len(chunk) > limit:
            lack()
        return real(model, chunk, *rest)

    return limited


@pytest.mark.parametrize("lack", LACK)
def test_running_out_of_memory_halves_the_batch_and_gives_the_same_values(tiny, monkeypatch, lack):
    asked, calls, seen = requests(tiny, [*MIXED, toy.fact(4, "en")]), [], []
    whole = optimise_values(tiny, asked, (1,), FORMS["scale-free"])
    monkeypatch.setattr(engine, "_optimise", out_of_memory_above(2, calls, lack))
    halved = optimise_values(tiny, asked, (1,), FORMS["scale-free"], progress=seen.append)
    assert calls == [5, 3, 2, 2, 1]  # once found, the smaller size stays
    assert seen == [2, 4, 5]
    assert halved.steps == whole.steps
    torch.testing.assert_close(halved.delta[1], whole.delta[1], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(halved.start, whole.start, rtol=1e-4, atol=1e-5)


def test_one_fact_that_does_not_fit_is_an_error_with_its_size_and_advice(tiny, monkeypatch):
    calls: list[int] = []
    lack = raising(torch.OutOfMemoryError("tried to allocate 2.00 GiB"))
    monkeypatch.setattr(engine, "_optimise", out_of_memory_above(0, calls, lack))
    asked = requests(tiny, MIXED[:2])
    tokens = sum(len(row.ids) for row in asked[0].contexts)
    message = rf"one fact \({tokens} tokens in 3 contexts\) do not fit.*2.00 GiB.*fewer or shorter contexts"
    with pytest.raises(MemoryError, match=message):
        optimise_values(tiny, asked, (1,), FORMS["scale-free"])
    assert calls == [2, 1]


def test_other_runtime_errors_are_not_taken_for_a_lack_of_memory(tiny, monkeypatch):
    calls: list[int] = []
    monkeypatch.setattr(engine, "_optimise", out_of_memory_above(0, calls, raising(RuntimeError("shape mismatch"))))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        optimise_values(tiny, requests(tiny), (1,), FORMS["scale-free"])
    assert calls == [4]


def test_no_facts_are_refused(tiny):
    with pytest.raises(ValueError, match="no facts"):
        optimise_values(tiny, [], (1,), FORMS["scale-free"])


@pytest.mark.parametrize("changes", [dict(steps=0), dict(rate=0.0), dict(site="port"), dict(clamp=-1.0), dict(lr=1.0)])
def test_settings_that_make_no_sense_are_refused_by_name(changes):
    with pytest.raises(ValidationError, match=next(iter(changes))):
        ValueSettings(**changes)


def test_targets_of_several_tokens_are_scored_token_by_token(tiny):
    of = toy.fact(0, "zh")
    request = toy.value_request(tiny, of)
    assert len(request.target) > 3
    assert list(request.target) == continuation(tiny.tokenizer, of.text, of.target)
    found = optimise_values(tiny, [request], (1,), FORMS["scale-free"])
    assert found.loss[0][0] == pytest.approx(exact_nll(tiny, request, {}), rel=1e-5)
