"""Does the model say it? Every metric is named by an ID, and every number comes with the protocol it belongs to.

`*_tf`: share of the answer's tokens that are the likeliest ones when the answer is fed in (teacher forcing, as the
published code measures). `*_em`: 1 if all are, which is the case exactly when greedy generation produces the answer.
`specificity_same`: share of positions whose likeliest token is still that of the unedited model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from langedit_core import drift
from langedit_core.languages import LANGUAGES
from langedit_core.memory import alike, as_memory_allows
from langedit_core.models import EditableModel
from langedit_core.records import Fact, Probe
from langedit_core.tokens import Row, align, continuation, encode

METRICS: dict[str, str] = {
    "efficacy_tf": "edit prompt, share of target tokens right under teacher forcing",
    "efficacy_em": "edit prompt, greedy generation gives the whole target",
    "generality_tf": "paraphrases, share of target tokens right under teacher forcing",
    "generality_em": "paraphrases, greedy generation gives the whole target",
    "specificity_tf": "neighbours, share of the true answer's tokens right under teacher forcing",
    "specificity_same": "neighbours, share of positions predicted as by the unedited model",
    "portability_tf": "questions that follow from the edit, share of answer tokens right under teacher forcing",
    "portability_em": "questions that follow from the edit, greedy generation gives the whole answer",
} | drift.METRICS
WHEN: dict[str, str] = {
    "before": "unedited model",
    "immediate": "right after the fact's own batch",
    "final": "after the whole sequence",
}


@dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """How a model takes one probe.

    Attributes:
        tf: Share of answer tokens that are the argmax.
        em: All of them are.
        nll: Mean negative log likelihood per answer token, in nats.
        predicted: Argmax ids at the answer's positions.
    """

    tf: float
    em: bool
    nll: float
    predicted: tuple[int, ...]


@torch.no_grad()
def score_probes(
    model: EditableModel, probes: Sequence[tuple[str, str]], *, tokens_per_batch: int = 1536
) -> list[ProbeScore]:
    """Score (prompt, answer) pairs, the answer including its leading space; like lengths together, as memory allows.

    Raises:
        RefusedInput: An answer has no tokens, or a text is longer than the model takes.
        MemoryError: Even a single question does not fit.
    """
    rows: list[Row] = []
    for prompt, answer in probes:
        ids, target = encode(model.tokenizer, prompt), continuation(model.tokenizer, prompt, answer)
        model.check_length(len(ids) + len(target) - 1, f"the question {prompt[:60]!r} with its answer")
        rows.append(Row(ids=tuple(ids + target), lookup=len(ids)))
    scores: dict[int, ProbeScore] = {}

    def work(part: list[int]) -> None:
        scores.update(zip(part, _score([rows[i] for i in part], model), strict=True))

    def alone(i: int, error: RuntimeError) -> str:
        return f"a question of {len(rows[i].ids)} tokens does not fit in memory: {error}; use a larger device"

    for _ in as_memory_allows(alike([len(row.ids) for row in rows], tokens_per_batch), work, alone=alone):
        pass
    return [scores[i] for i in range(len(rows))]


def _score(rows: Sequence[Row], model: EditableModel) -> list[ProbeScore]:
    # The last answer token predicts nothing that is scored, so it is not fed in.
    fed = align([Row(ids=row.ids[:-1], lookup=row.lookup - 1) for row in rows], model.pad_id, model.device)
    hidden = model.hf.base_model(
        input_ids=fed.ids, attention_mask=fed.mask.long(), position_ids=fed.positions, use_cache=False
    ).last_hidden_state
    counts = [len(row.ids) - row.lookup for row in rows]
    at = torch.cat([hidden[i, fed.split : fed.split + n] for i, n in enumerate(counts)])
    logits = model.logits(at, normed=True).float()  # half precision rounds a probability of 0.99 to 1
    answer = torch.tensor([t for row in rows for t in row.ids[row.lookup :]], device=model.device)
    predicted = logits.argmax(-1)
    nll = logits.logsumexp(-1) - logits.gather(1, answer[:, None]).squeeze(1)
    right = predicted == answer
    return [
        ProbeScore(
            tf=float(r.double().mean()),
            em=bool(r.all()),
            nll=float(x.double().mean()),
            predicted=tuple(p.tolist()),
        )
        for r, x, p in zip(right.split(counts), nll.split(counts), predicted.split(counts), strict=True)
    ]


@dataclass(frozen=True, kw_only=True)
class Question:
    """A probe of a fact: which metric family it feeds, in which language."""

    fact: str
    lang: str
    family: str  # efficacy, generality, specificity, portability
    kind: str
    prompt: str
    answer: str


_FAMILY = {"edit": "efficacy", "paraphrase": "generality", "portability": "portability"}


def questions(fact: Fact) -> list[Question]:
    """All questions that test an edit of `fact`, the edit prompt first."""
    edit = Probe(prompt=fact.text, answer=fact.target, kind="edit")
    join = LANGUAGES[fact.lang].join
    return [
        Question(
            fact=fact.id, lang=fact.lang, family=_FAMILY.get(probe.kind, "specificity"), kind=probe.kind,
            prompt=probe.prompt, answer=join + probe.answer,
        )
        for probe in (edit, *fact.paraphrases, *fact.neighbours, *fact.portability)
    ]  # fmt: skip


def ask(model: EditableModel, asked: Sequence[Question]) -> list[ProbeScore]:
    """Score questions on the model as it is now."""
    return score_probes(model, [(q.prompt, q.answer) for q in asked])


def rows_of(
    asked: Sequence[Question], scores: Sequence[ProbeScore], before: Sequence[ProbeScore], when: str
) -> list[dict]:
    """One row per question and metric: fact, lang, kind, metric, when, value; bootstrap units are the facts."""
    rows = []
    for question, score, old in zip(asked, scores, before, strict=True):
        values = {"tf": score.tf, "em": float(score.em)}
        if question.family == "specificity":
            same = [a == b for a, b in zip(score.predicted, old.predicted, strict=True)]
            values = {"tf": score.tf, "same": sum(same) / len(same)}
        rows += [
            dict(fact=question.fact, lang=question.lang, kind=question.kind, metric=f"{question.family}_{name}",
                 when=when, value=value)
            for name, value in values.items()
        ]  # fmt: skip
    return rows
