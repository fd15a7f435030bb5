"""A metric says of a probe what greedy generation would, whatever else stands in the batch."""

from __future__ import annotations

import conftest
import pytest
import reference
import torch
import toy
from conftest import build_model
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core import drift
from langedit_core.errors import RefusedInput
from langedit_core.metrics import METRICS, WHEN, ProbeScore, ask, questions, rows_of, score_probes
from langedit_core.records import Probe
from langedit_core.tokens import continuation, encode

PROMPTS = [
    "The capital of Norland is",
    "Die Hauptstadt",
    "国家：瑞典。首都：",
    "A",
    "Monnaie officielle : euro. Pays :",
]
ANSWERS = [" Ostberg", " nor", "城市", " of the north, a quiet town", "b"]


def pairs():
    return [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]


def literal(model, prompt, answer) -> tuple[list[bool], float]:
    """Which answer tokens are the likeliest, and the mean −log p: whole model, one text."""
    before, after = encode(model.tokenizer, prompt), continuation(model.tokenizer, prompt, answer)
    with torch.no_grad():
        logits = model.hf(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    nll = -logits.log_softmax(-1)[range(len(after)), after].mean()
    return (logits.argmax(-1) == torch.tensor(after)).tolist(), float(nll)


def test_a_batch_of_probes_equals_one_probe_at_a_time(any_model):
    together = score_probes(any_model, pairs())
    small = score_probes(any_model, pairs(), tokens_per_batch=1)
    for one, other, (prompt, answer) in zip(together, small, pairs(), strict=True):
        right, nll = literal(any_model, prompt, answer)
        assert one.predicted == other.predicted
        assert one.tf == other.tf == pytest.approx(sum(right) / len(right))
        assert one.em == other.em == all(right)
        assert one.nll == pytest.approx(nll, abs=1e-3)
        assert other.nll == pytest.approx(nll, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(chosen=st.lists(st.sampled_from(pairs()), min_size=1, max_size=8), size=st.integers(1, 200))
def test_scores_come_back_in_the_order_they_were_asked_for(chosen, size):
    model = build_model("llama")
    alone = {pair: score_probes(model, [pair])[0] for pair in set(chosen)}
    scores = score_probes(model, chosen, tokens_per_batch=size)
    assert [s.predicted for s in scores] == [alone[pair].predicted for pair in chosen]
    assert [s.nll for s in scores] == pytest.approx([alone[pair].nll for pair in chosen], abs=1e-3)


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gptj"])
@pytest.mark.parametrize("spm", [False, True], ids=["byte-level", "sentencepiece"])
def test_exact_match_is_true_exactly_when_greedy_generation_gives_the_answer(model_type, spm):
    model = build_model(model_type, vocab_size=420) if spm else build_model(model_type)
    if spm:
        model.tokenizer = conftest.sentencepiece_tokenizer()
    tokenizer, found = model.tokenizer, {True: 0, False: 0}
    for prompt in PROMPTS:
        ids = encode(tokenizer, prompt)
        said = reference.greedy(model, ids, 4)
        own = [tokenizer.decode(said[:n], clean_up_tokenization_spaces=False) for n in (1, 2, 4)]
        answers = own + [text + "x" for text in own] + ["x" + own[0], *ANSWERS]
        for answer in answers:
            try:
                target = continuation(tokenizer, prompt, answer)
            except RefusedInput:  # the model said a space, or half a character that decodes to nothing
                continue
            (score,) = score_probes(model, [(prompt, answer)])
            generated = reference.greedy(model, ids, len(target))
            assert score.em == (generated == target)
            found[score.em] += 1
            # The first prediction is made before anything of the answer is fed in.
            assert score.predicted[0] == generated[0]
    assert found[True] >= 1 and found[False] >= 10


def test_exact_match_agrees_with_generation_on_ids_the_model_said_itself(any_model, monkeypatch):
    # Texts of random models rarely survive decoding, so the ids are put in directly.
    for prompt in PROMPTS:
        ids = encode(any_model.tokenizer, prompt)
        said = reference.greedy(any_model, ids, 3)
        for wrong in (None, 0, 1, 2):
            target = [t if i != wrong else (t + 1) % 300 for i, t in enumerate(said)]
            monkeypatch.setattr("langedit_core.metrics.continuation", lambda *_, target=target: target)
            (score,) = score_probes(any_model, [(prompt, "whatever")])
            assert score.em == (wrong is None) == (reference.greedy(any_model, ids, 3) == target)
            if wrong is None:
                assert score.tf == 1.0
                assert list(score.predicted) == said
            else:
                assert score.predicted[: wrong + 1] == tuple(said[: wrong + 1])  # right up to the altered one
                assert score.tf < 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_of_a_half_precision_model_are_those_of_its_logits(dtype, monkeypatch):
    model = build_model("llama")
    model.hf.to(dtype)
    logits = 12 * torch.randn(1, 320, generator=torch.Generator().manual_seed(0)).to(dtype)
    monkeypatch.setattr(type(model), "logits", lambda self, hidden, normed: logits.expand(len(hidden), -1))
    (score,) = score_probes(model, [("Who?", "a")])
    token = model.tokenizer("a").input_ids[0]
    assert score.nll == pytest.approx(-float(logits[0].double().log_softmax(-1)[token]), rel=1e-5)


def test_no_probes_give_no_scores_and_an_answer_without_tokens_is_refused(tiny):
    assert score_probes(tiny, []) == []
    with pytest.raises(RefusedInput, match="empty or has no tokens"):
        score_probes(tiny, [("The capital is", " ")])


# --- questions and rows -----------------------------------------------------------------------------------------------


def full_fact(lang="en"):
    probe = Probe(prompt="Norland's money is the", answer="krona", kind="portability")
    far = Probe(prompt="In Sweden they pay in", answer="krona", kind="locality")
    of = toy.fact(0, lang)
    return toy.fact(0, lang, portability=(probe,), neighbours=(*of.neighbours, far))


def test_a_fact_asks_the_edit_first_and_every_probe_under_its_family():
    asked = questions(full_fact())
    assert [(q.family, q.kind) for q in asked] == [
        ("efficacy", "edit"), ("generality", "paraphrase"), ("specificity", "neighbour_near"),
        ("specificity", "locality"), ("portability", "portability"),
    ]  # fmt: skip
    assert (asked[0].prompt, asked[0].answer) == ("The capital of Norland is", " Ostberg")
    assert all(q.answer.startswith(" ") and (q.fact, q.lang) == ("capital/0", "en") for q in asked)


def test_chinese_answers_follow_without_a_space():
    assert [q.answer for q in questions(toy.fact(0, "zh"))] == ["城市", "城市", "官方"]


def score(tf: float, predicted: tuple[int, ...]) -> ProbeScore:
    return ProbeScore(tf=tf, em=tf == 1.0, nll=0.5, predicted=predicted)


def test_rows_carry_the_metrics_of_their_family_and_their_moment():
    asked = questions(full_fact())
    before = [score(0.0, (1, 2)), score(0.5, (1,)), score(0.5, (4, 5, 6)), score(1.0, (7,)), score(0.0, (8, 9))]
    after = [score(1.0, (3, 2)), score(0.5, (1,)), score(0.0, (4, 0, 6)), score(0.0, (0,)), score(1.0, (8, 1))]
    rows = rows_of(asked, after, before, "immediate")
    values = [(row["metric"], row["kind"], row["value"]) for row in rows]
    assert values == [
        ("efficacy_tf", "edit", 1.0), ("efficacy_em", "edit", 1.0),
        ("generality_tf", "paraphrase", 0.5), ("generality_em", "paraphrase", 0.0),
        ("specificity_tf", "neighbour_near", 0.0), ("specificity_same", "neighbour_near", pytest.approx(2 / 3)),
        ("specificity_tf", "locality", 0.0), ("specificity_same", "locality", 0.0),
        ("portability_tf", "portability", 1.0), ("portability_em", "portability", 1.0),
    ]  # fmt: skip
    assert {row["metric"] for row in rows} == set(METRICS) - set(drift.METRICS)
    assert {row["when"] for row in rows} == {"immediate"} <= set(WHEN)
    assert all((row["fact"], row["lang"]) == ("capital/0", "en") for row in rows)


def test_the_unedited_model_has_the_same_answers_as_itself_and_an_edited_one_has_not(tiny):
    asked = questions(full_fact()) + questions(toy.fact(1, "de"))
    before = ask(tiny, asked)
    unchanged = [row["value"] for row in rows_of(asked, ask(tiny, asked), before, "before") if "same" in row["metric"]]
    assert unchanged == [1.0] * 3
    with torch.no_grad():
        tiny.weight(2).add_(torch.randn_like(tiny.weight(2)))
    changed = [row["value"] for row in rows_of(asked, ask(tiny, asked), before, "final") if "same" in row["metric"]]
    assert sum(changed) < 3


def test_questions_and_scores_that_do_not_belong_together_are_refused():
    asked = questions(full_fact())
    with pytest.raises(ValueError, match="zip|shorter|longer"):
        rows_of(asked, [score(1.0, (1,))], [score(1.0, (1,))], "final")
