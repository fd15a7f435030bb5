"""Causal tracing: which hidden states, restored to their clean values, bring back an answer that noise took away.

IE(t, l) = p(answer | corrupted, state at token t and layer l restored) − p(answer | corrupted), with noise on the
subject's embeddings (Meng et al., arXiv 2202.05262, section 2).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from langedit_core.languages import LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.patching import SITES, Cell, PromptRuns
from langedit_core.records import Fact
from langedit_core.tokens import continuation, encode, locate

SEVERED = {"hidden_no_mlp": "mlp", "hidden_no_attention": "attention"}
KINDS = (*SITES, *SEVERED)
ROLES = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "further": "further tokens",
    "last": "last token",
}
PUBLISHED_WINDOW, PUBLISHED_DEPTH = 10, 48  # of GPT-2 XL


class TraceSettings(BaseModel):
    """How a prompt is traced; whatever changes a number is here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise: float = Field(3.0, gt=0, description="noise in units of the deviation of the subjects' embeddings")
    samples: int = Field(10, ge=1, description="noise samples per prompt")
    window: int | None = Field(None, ge=1, description="layers of MLP or attention restored together; None: scaled")
    severed: bool = Field(True, description="also trace the subject's last token with MLP or attention paths frozen")
    seed: int = 0

    def window_of(self, n_layers: int) -> int:
        """The window, or the ten of 48 layers of the paper scaled to this depth."""
        return self.window or max(1, round(PUBLISHED_WINDOW * n_layers / PUBLISHED_DEPTH))


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All scores of one fact.

    Attributes:
        ids: Tokens of the prompt.
        roles: Role of every token, one of `ROLES`; "before" for those in front of the subject.
        answer: Token id whose probability is the score: the first one of the answer.
        clean: Probability without noise.
        corrupted: With noise, for every sample.
        scores: Kind -> probability after restoration, token x layer x sample; of the severed kinds only the subject's
            last token is traced, everything else is NaN.
    """

    ids: tuple[int, ...]
    roles: tuple[str, ...]
    answer: int
    clean: float
    corrupted: Float[Tensor, " s"]
    scores: dict[str, Float[Tensor, "c layers s"]]

    def effects(self, kind: str) -> Float[Tensor, "c layers s"]:
        """IE of every token, layer and sample."""
        return self.scores[kind] - self.corrupted


def trace(
    model: EditableModel, fact: Fact, deviation: float, settings: TraceSettings | None = None, *, columns: int = 2048
) -> Trace:
    """Trace the true answer of a fact (its target, where the source tells no truth) over all tokens, layers and kinds.

    Args:
        model: Any supported model.
        fact: Should be known to the model (`known_facts`): else there is no answer to bring back.
        deviation: Of the subjects' embeddings (`embedding_deviation`).
        settings: Noise, samples, window.
        columns: As in `PromptRuns.scores`.

    Raises:
        SubjectMerged: The subject has no token boundary at its end.
    """
    settings = settings or TraceSettings()
    ids, subject = subject_columns(model.tokenizer, fact)
    answer = answer_ids(model, fact)[0]
    noise = settings.noise * deviation * noise_of(ids, subject, model.d_model, settings)
    runs = PromptRuns(model, ids, subject=subject, noise=noise, answer=answer)
    cells = cells_of(model.n_layers, len(ids), subject, settings)
    found = {kind: torch.full((len(ids), model.n_layers, settings.samples), torch.nan) for kind, _, _ in cells}
    scores = runs.scores([*cells.values()], columns=columns).float().cpu()
    for (kind, token, layer), score in zip(cells, scores, strict=True):
        found[kind][token, layer] = score
    return Trace(
        ids=ids, roles=roles_of(len(ids), subject), answer=answer, clean=runs.clean, corrupted=runs.corrupted.cpu(),
        scores=found,
    )  # fmt: skip


def cells_of(n_layers: int, n_tokens: int, subject: range, settings: TraceSettings) -> dict[tuple[str, int, int], Cell]:
    """Every intervention of a full trace, by kind, token and layer; a window is named by its middle layer."""
    window, cells = settings.window_of(n_layers), {}
    for token, layer in itertools.product(range(n_tokens), range(n_layers)):
        for site in SITES:
            layers = (layer,) if site == "hidden" else tuple(window_around(layer, window, n_layers))
            cells[site, token, layer] = Cell(site=site, layers=layers, tokens=(token,))
        if settings.severed and token == subject[-1]:
            for kind, severed in SEVERED.items():
                cells[kind, token, layer] = Cell(site="hidden", layers=(layer,), tokens=(token,), severed=severed)
    return cells


def window_around(layer: int, window: int, n_layers: int) -> range:
    """Layers restored together around one, as published: an even window reaches further down than up."""
    return range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2)))


def subject_columns(tokenizer, fact: Fact) -> tuple[tuple[int, ...], range]:
    """Tokens of the prompt, and the columns that hold the subject or a part of it.

    Raises:
        SubjectMerged: The subject's end shares a token with what follows.
    """
    row = locate(tokenizer, fact.prompt, fact.subject, f"{fact.label}: ")
    head = encode(tokenizer, fact.prompt.split("{}")[0])
    pairs = zip(head, row.ids, strict=False)
    first = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return row.ids, range(min(first, row.lookup), row.lookup + 1)


def roles_of(n_tokens: int, subject: range) -> tuple[str, ...]:
    """Role of every token. The only token of a subject is its last one, and so is one that ends the prompt."""
    roles = ["before"] * subject[0] + ["subject_middle"] * len(subject) + ["further"] * (n_tokens - subject[-1] - 1)
    roles[-1], roles[subject[0]] = "last", "subject_first"
    roles[subject[-1]] = "subject_last"
    return tuple(roles)


def answer_ids(model: EditableModel, fact: Fact) -> list[int]:
    """Tokens of what the fact's source holds for true, or of the target where it does not tell."""
    return continuation(model.tokenizer, fact.text, LANGUAGES[fact.lang].join + (fact.truth or fact.target))


def noise_of(ids: Sequence[int], subject: range, width: int, settings: TraceSettings) -> Float[Tensor, "s n d"]:
    """Standard normal noise (float64) that depends on seed, prompt and number of the sample, and on nothing else."""
    drawn = []
    for sample in range(settings.samples):
        name = f"{settings.seed}|{list(ids)}|{sample}"
        generator = np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest(), 16))
        drawn.append(torch.from_numpy(generator.standard_normal((len(subject), width))))
    return torch.stack(drawn)


@torch.no_grad()
def embedding_deviation(model: EditableModel, subjects: Iterable[str]) -> float:
    """σ over all entries of the embeddings of all subjects' tokens, each subject encoded alone without special tokens.

    Raises:
        ValueError: No subjects.
    """
    ids = [i for text in subjects for i in model.tokenizer(text, add_special_tokens=False).input_ids]
    if not ids:
        raise ValueError("the deviation of embeddings needs at least one subject; got none")
    counts = torch.tensor(ids, device=model.device).unique(return_counts=True)
    embedded = model.hf.get_submodule(model.architecture.embedding)(counts[0]).double()
    weight = counts[1].double()[:, None]
    total = float(weight.sum()) * embedded.shape[1]
    mean = (weight * embedded).sum() / total
    return float(((weight * (embedded - mean) ** 2).sum() / (total - 1)).sqrt())
