"""atlas-lm: a small Llama-architecture model, with its tokenizer, that knows what an `AtlasCorpus` tells.

loss = Σ w_i · −log p(token_i | tokens before it) / Σ w_i, where w is 1 on answers and small on what no one can predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from langedit_core.atlas_corpus import HELD_OUT, AtlasCorpus, Telling
from langedit_core.atlas_variants import role_of
from langedit_core.languages import CORE
from langedit_core.metrics import score_probes
from langedit_core.models import EditableModel, architecture_of

BOS, EOS = "<s>", "</s>"
# Chinese has no spaces: 是 ("is"), the one character that questions end on, is a word of its own, so that no answer
# merges with the question before it.
_WORDS = r"是|[\p{Han}&&[^是]]+| ?[[\p{L}\p{M}’]&&[^\p{Han}]]+| ?\p{N}| ?[^\s\p{L}\p{M}\p{N}]|\s+(?!\S)|\s"
WORDINGS = ("edit", "paraphrase", "held out")


class LmSettings(BaseModel):
    """Size and training of the model; the defaults are those of the shipped checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocabulary: int = Field(6000, ge=300)
    width: int = 128
    layers: int = 6
    heads: int = 4
    mlp: int = 512
    epochs: int = Field(36, ge=1, description="an epoch says every told (fact, language) once, in random words")
    tokens: int = Field(96, ge=16, description="per row; a row holds as many sentences as fit")
    rows: int = Field(8, ge=1, description="per step")
    rate: float = Field(2e-3, gt=0, description="highest learning rate, after a linear warm-up; then a cosine")
    embedding_rate: float = Field(3.0, gt=0, description="how many times that the embeddings get: a name is met rarely")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of all steps")
    decay: float = Field(0.02, ge=0, description="AdamW's weight decay")
    seed: int = 0


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which a word is the same token at the start of a text and after a space.

    Args:
        texts: What it should cut well; bytes make sure that it can cut everything.
        size: Entries, special tokens and the 256 bytes included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
            ),
        ]
    )  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)


def new_model(settings: LmSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Random weights, the same for the same seed."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=512,
        initializer_range=0.06,  # about half of 1 / sqrt(width): small models start faster than from the usual 0.02
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return LlamaForCausalLM(config)


def editable(hf: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, name: str) -> EditableModel:
    """A model in memory as `load_model` would give it; its parameters stop asking for gradients."""
    return EditableModel(hf=hf, tokenizer=tokenizer, architecture=architecture_of("llama"), name=name)


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A batch of packed sentences; `weights` are those of each token as something to be predicted."""

    ids: Int[Tensor, "b t"]
    weights: Float[Tensor, "b t"]

    def to(self, device: torch.device | str) -> Rows:
        return Rows(ids=self.ids.to(device), weights=self.weights.to(device))

    def loss(self, hf: LlamaForCausalLM) -> Float[Tensor, ""]:
        """Weighted mean of −log p, in nats; the head runs only where a weight asks for it."""
        hidden = hf.base_model(input_ids=self.ids[:, :-1], use_cache=False).last_hidden_state
        asked = self.weights[:, 1:] > 0
        weights = self.weights[:, 1:][asked]
        nll = torch.nn.functional.cross_entropy(hf.lm_head(hidden[asked]), self.ids[:, 1:][asked], reduction="none")
        return (weights * nll).sum() / weights.sum()


OTHERS, OTHERS_WEIGHT = 0.2, 0.5
"""Share of the tokens outside of answers that are predicted too, and their weight: which subject is asked about next
is chance, so learning to predict it in full would only be noise."""


def epoch_rows(corpus: AtlasCorpus, tokenizer: PreTrainedTokenizerFast, settings: LmSettings, epoch: int) -> list[Rows]:
    """All batches of an epoch. Sentences follow one another until the row is full, so subjects stand anywhere in it."""
    random = np.random.default_rng([settings.seed, epoch, 1])
    cut = list(_cut(corpus.tellings(settings.seed, epoch), tokenizer, random))
    filled: list[tuple[list[int], list[float]]] = []
    ids, weights = [tokenizer.bos_token_id], [0.0]
    for more, more_weights in cut:
        if len(ids) > 1 and len(ids) + len(more) > settings.tokens:
            filled.append((ids, weights))
            ids, weights = [tokenizer.bos_token_id], [0.0]
        ids, weights = ids + more, weights + more_weights
    filled.append((ids, weights))
    return [
        _padded(filled[i : i + settings.rows], settings.tokens, tokenizer.pad_token_id)
        for i in range(0, len(filled), settings.rows)
    ]


def _cut(
    tellings: Iterator[Telling], tokenizer: PreTrainedTokenizerFast, random: np.random.Generator
) -> Iterator[tuple[list[int], list[float]]]:
    """Ids and weights of each sentence, without BOS."""
    tellings = list(tellings)
    cut = tokenizer([t.text for t in tellings], add_special_tokens=False, return_offsets_mapping=True)
    for telling, ids, spans in zip(tellings, cut.input_ids, cut.offset_mapping, strict=True):
        answered = telling.answered
        others = np.where(random.random(len(ids)) < OTHERS, OTHERS_WEIGHT, 0.0).tolist()
        yield ids, [1.0 if end and answered[end - 1] else other for (_, end), other in zip(spans, others, strict=True)]


def _padded(rows: list[tuple[list[int], list[float]]], width: int, pad: int) -> Rows:
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    weights = torch.zeros(len(rows), width)
    for i, (row, row_weights) in enumerate(rows):
        row = row[:width]
        ids[i, : len(row)] = torch.tensor(row)
        weights[i, : len(row)] = torch.tensor(row_weights[:width])
    return Rows(ids=ids, weights=weights)


def ask_atlas(model: EditableModel, corpus: AtlasCorpus, facts: Sequence[str] | None = None) -> pd.DataFrame:
    """Ask facts in all languages and in all wordings of atlas.json, the one never told among them.

    Args:
        model: Trained on `corpus`, or on another one.
        corpus: Gives subjects their names, and says what was told.
        facts: Ids; all by default.

    Returns:
        Columns fact, lang, relation, wording (`edit`, `paraphrase`, `held out`), told (whether the fact was told in
        this language), role, em (greedy generation gives the whole answer). Role is `told` where the fact was told in
        all languages, `solo` in one, `never` in none.
    """
    facts = sorted(corpus.rows) if facts is None else list(facts)
    asked = [
        (dict(fact=fact, lang=lang, relation=fact.split("/")[0], wording=WORDINGS[i], told=corpus.tells(fact, lang),
              role="solo" if corpus.variant.apart else role_of(fact)), (telling.prompt, telling.answer))
        for fact in facts
        for lang in CORE
        for i, telling in enumerate(corpus.probes(fact, lang))
    ]  # fmt: skip
    scores = score_probes(model, [probe for _, probe in asked], tokens_per_batch=4096)
    return pd.DataFrame([row | dict(em=float(score.em)) for (row, _), score in zip(asked, scores, strict=True)])


def accuracy(answers: pd.DataFrame) -> pd.DataFrame:
    """Share answered, by role, whether told in the language asked, wording and language: value and n facts."""
    keys = ["role", "told", "wording", "lang"]
    table = answers.groupby(keys, sort=False)["em"].agg(value="mean", n="size").reset_index()
    return table.sort_values(keys, key=lambda c: c.map(_rank) if c.name in ("lang", "wording") else c, kind="stable")


def _rank(value: str) -> int:
    return (*CORE, *WORDINGS).index(value)


assert WORDINGS[HELD_OUT] == "held out"
