"""What editing did to text it is not about: per language, divergence from the unedited model, and perplexity.

Mean over tokens of KL(p₀ ‖ p) = Σ_w p₀(w) log(p₀(w)/p(w)), p₀ unedited, p edited; perplexity = exp(mean −log p).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from langedit_core.errors import RefusedInput, check_list, unknown
from langedit_core.languages import CORE, language
from langedit_core.memory import alike, as_memory_allows
from langedit_core.models import EditableModel, check_model
from langedit_core.storage import CorruptFile, load_tensors, save_tensors
from langedit_core.tokens import Row, align, encode

PATH = Path(__file__).with_name("data") / "neutral.json"
KEEP = 256
LOGITS = 2**26  # entries of one block of logits; float32 makes that 256 MiB, whatever the vocabulary
WORST = 300.0  # nats per token; exp of more, squared in a standard deviation, would be no float64
METRICS: dict[str, str] = {
    "drift_kl": "neutral text, KL divergence of the edited from the unedited model in nats per token; 0 is unchanged",
    "drift_ppl": "neutral text, perplexity of the model as it is",
}


@functools.cache
def neutral_texts() -> dict[str, dict[str, str]]:
    """The paragraphs that ship with the package, language → name → text; all languages tell the same things.

    Raises:
        CorruptFile: The file is not whole, or a paragraph is missing in some language.
    """
    try:
        paragraphs = json.loads(PATH.read_text("utf-8"))
        return {lang: {name: by_lang[lang] for name, by_lang in paragraphs.items()} for lang in CORE}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptFile(f"{PATH.name} is damaged ({error!r}); reinstall the package") from error


@dataclass(frozen=True, kw_only=True)
class ParagraphDrift:
    """One paragraph under the model as it is.

    Attributes:
        lang: Language code.
        paragraph: Name of the paragraph, the same in all languages.
        n: Scored tokens.
        kl: Mean KL(p₀ ‖ p) per token, in nats.
        nll: Mean −log p of the token that follows, in nats.
    """

    lang: str
    paragraph: str
    n: int
    kl: float
    nll: float


@dataclass(frozen=True, kw_only=True)
class _Passage:
    lang: str
    paragraph: str
    ids: tuple[int, ...]
    scored: range  # columns whose next token is predicted; the last one is the last column fed in

    @property
    def follows(self) -> list[int]:
        return [self.ids[i + 1] for i in self.scored]


@dataclass(frozen=True, kw_only=True)
class Drift:
    """The unedited model's predictions on neutral text, to hold an edited model against.

    ```python
    drift = Drift.of(model)                 # before the first edit
    editor.edit(facts)
    drift.measure(model)                    # [{"lang": "en", "metric": "drift_kl", "value": 0.01, "n": 60}, ...]
    ```

    The divergence is KL(p₀ ‖ p), not KL(p ‖ p₀): it averages over what the unedited model would have said, so it counts
    what was lost, in the unit in which cross-entropy on the model's own text rises, and p₀, the side that has to be
    remembered, never changes. The other direction averages over what the edited model says now; words that only became
    likely through an edit are not among those remembered of p₀.

    **Lower bound.** With `keep` = K, each position remembers its K likeliest words and one bucket for all others. By
    the log-sum inequality, merging words into a bucket can only lower a KL divergence, so the value reported is at most
    the exact one; what it misses is movement among the words outside the K. `keep=None` remembers all words and is
    exact, at 4 bytes per word and position: for small vocabularies.

    What is kept are unnormalised log probabilities as the head put them out; both sides are normalised in float64,
    which makes the divergence of a model from itself exactly zero, and no other one negative.

    Attributes:
        langs: Languages, in the order of the rows.
        keep: Words remembered per position, None for all.
        max_tokens: Tokens read of each paragraph.
        every: Every how many tokens one is scored.
        skip: Tokens before the first scored one.
        fingerprint: The unedited model's.
        text_hash: Of the paragraphs' names and tokens, and of which are scored.
        words: Ids of the remembered words, likeliest first; None when all are.
        scores: Their logits, and in a last column log Σ exp of all other logits.
    """

    langs: tuple[str, ...]
    keep: int | None
    max_tokens: int
    every: int
    skip: int
    fingerprint: str
    text_hash: str
    words: Int[Tensor, "n k"] | None
    scores: Float[Tensor, "n buckets"]
    passages: tuple[_Passage, ...]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: EditableModel,
        langs: Sequence[str] = CORE,
        *,
        keep: int | None = KEEP,
        max_tokens: int = 32,
        every: int = 2,
        skip: int = 4,
        texts: Mapping[str, Mapping[str, str]] | None = None,
    ) -> Drift:
        """Ask the unedited model.

        The defaults score about fourteen tokens of each paragraph, cheap enough for every batch. `max_tokens=128,
        every=1` scores all of them: about four times as much work, for the end of a run.

        Args:
            model: Unedited; its fingerprint is taken here.
            langs: Among the languages of the texts.
            keep: Words remembered per position, None for the exact divergence.
            max_tokens: Longer paragraphs are cut here.
            every: Score one token of so many; the head of a multilingual model costs more than all its layers.
            skip: Tokens read before the first scored one: at the very start all paragraphs look alike to the model.
            texts: Other texts than the package's, language → name → text.

        Raises:
            ValueError: The model is edited, unknown or no language, or a number out of range.
            RefusedInput: A text is too short for any token to be scored.
            TextTooLong: Or longer than the model has positions.
            FloatingPointError: The model gives NaN or infinity.
        """
        check_model(model)
        check_list("langs", langs)
        model.check_unedited("what the unedited model says")
        vocabulary = model.hf.get_output_embeddings().weight.shape[0]
        if keep is not None:
            if keep < 1:
                raise ValueError(f"keep is {keep}; expected the number of words to remember, or None for all")
            keep = min(keep, vocabulary - 1)  # with one word outside, the bucket is that word
        passages = _passages(model, langs, max_tokens, every, skip, texts)
        words, scores = [], []
        for _, logits in _blocks(model, passages, exact=keep is None):
            kept = None if keep is None else logits.topk(keep).indices
            scores.append(_bucketed(logits, kept).cpu())
            if kept is not None:
                words.append(kept.int().cpu())
        found = cls(
            langs=tuple(dict.fromkeys(langs)), keep=keep, max_tokens=max_tokens, every=every, skip=skip,
            fingerprint=model.fingerprint, text_hash=_text_hash(passages),
            words=torch.cat(words) if words else None, scores=torch.cat(scores), passages=passages,
        )  # fmt: skip
        _refuse_non_finite(found.scores.double().logsumexp(-1), passages, "unedited")
        return found

    def measure(self, model: EditableModel) -> list[dict]:
        """`drift_kl` and `drift_ppl` of every language: rows with lang, metric, value, n (tokens).

        Raises:
            ValueError: Another model than the one this was made with.
            FloatingPointError: The model gives NaN or infinity; names the languages.
        """
        return language_rows(self.paragraphs(model))

    @torch.no_grad()
    def paragraphs(self, model: EditableModel) -> list[ParagraphDrift]:
        """The same, paragraph by paragraph: what an interval over paragraphs, or a paired comparison, is made of."""
        if model.fingerprint != self.fingerprint:
            raise ValueError(_other("model fingerprint", self.fingerprint, model.fingerprint))
        follows = torch.tensor([i for p in self.passages for i in p.follows])
        kl, nll = torch.empty(len(follows)).double(), torch.empty(len(follows)).double()
        for at, logits in _blocks(model, self.passages, exact=self.keep is None):
            said = logits.gather(1, follows[at, None].to(logits.device)).squeeze(1).double()
            kept = None if self.words is None else self.words[at].long().to(logits.device)
            now, before = _bucketed(logits, kept).double(), self.scores[at].to(logits.device).double()
            log_p, log_p0 = now.log_softmax(-1), before.log_softmax(-1)
            kl[at] = (log_p0.exp() * (log_p0 - log_p)).sum(-1).cpu()
            nll[at] = (now.logsumexp(-1) - said).cpu()
        _refuse_non_finite(kl + nll, self.passages, "edited")
        sizes = [len(p.scored) for p in self.passages]
        return [
            ParagraphDrift(lang=p.lang, paragraph=p.paragraph, n=len(k), kl=float(k.mean()), nll=float(x.mean()))
            for p, k, x in zip(self.passages, kl.split(sizes), nll.split(sizes), strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write it as safetensors, with checksum."""
        tensors = {"scores": self.scores} | ({} if self.words is None else {"words": self.words})
        told = dict(langs=self.langs, keep=self.keep, max_tokens=self.max_tokens, every=self.every, skip=self.skip)
        hashes = {"fingerprint": self.fingerprint, "text_hash": self.text_hash}
        save_tensors(path, tensors, {"settings": json.dumps(told), **hashes})

    @classmethod
    def load(cls, path: Path, model: EditableModel, *, texts: Mapping[str, Mapping[str, str]] | None = None) -> Drift:
        """Read what `save` wrote, for the same model and the same texts.

        Args:
            path: The file.
            model: The model it was made with, as it was: a resumed run loads this before its first edit.
            texts: The texts it was made with, if not the package's.

        Raises:
            FileNotFoundError: Nothing there.
            CorruptFile: Truncated or altered.
            ValueError: It belongs to another model, or to other texts.
        """
        tensors, metadata = load_tensors(path)
        try:
            settings = json.loads(metadata["settings"])
            fingerprint, text_hash, scores = metadata["fingerprint"], metadata["text_hash"], tensors["scores"]
            settings["langs"] = tuple(settings["langs"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFile(f"{path} is no drift state ({error!r}); delete it to have it made again") from error
        if model.fingerprint != fingerprint:
            raise ValueError(f"{path}: {_other('model fingerprint', fingerprint, model.fingerprint)}")
        asked = [settings[name] for name in ("langs", "max_tokens", "every", "skip")]
        passages = _passages(model, *asked, texts)
        if (found := _text_hash(passages)) != text_hash:
            raise ValueError(f"{path}: {_other('hash of the neutral texts', text_hash, found)}")
        words, keep = tensors.get("words"), settings["keep"]
        vocabulary = model.hf.get_output_embeddings().weight.shape[0]
        rows = sum(len(passage.scored) for passage in passages)
        shapes = (None, (rows, vocabulary)) if keep is None else ((rows, keep), (rows, keep + 1))
        if (None if words is None else tuple(words.shape), tuple(scores.shape)) != shapes or scores.isnan().any():
            raise CorruptFile(f"{path} holds scores of another shape, or NaN; delete it to have it made again")
        if words is not None and not 0 <= int(words.min()) <= int(words.max()) < vocabulary:
            raise CorruptFile(f"{path} names words outside the vocabulary; delete it to have it made again")
        return cls(
            **settings, fingerprint=fingerprint, text_hash=text_hash, words=words, scores=scores, passages=passages
        )


def language_rows(paragraphs: Sequence[ParagraphDrift]) -> list[dict]:
    """Paragraphs pooled by language, each token counting once: rows with lang, metric, value, n."""
    rows = []
    for lang in dict.fromkeys(p.lang for p in paragraphs):
        own = [p for p in paragraphs if p.lang == lang]
        n = sum(p.n for p in own)
        kl, nll = (sum(p.n * getattr(p, name) for p in own) / n for name in ("kl", "nll"))
        rows += [
            dict(lang=lang, metric="drift_kl", value=kl, n=n),
            dict(lang=lang, metric="drift_ppl", value=_perplexity(nll), n=n),
        ]
    return rows


def paragraph_rows(paragraphs: Sequence[ParagraphDrift], when: str) -> list[dict]:
    """Rows as `metrics.rows_of` makes them, a paragraph in the place of the fact: ready for intervals and tests."""
    return [
        dict(fact=f"neutral/{p.paragraph}", lang=p.lang, kind="neutral", metric=metric, when=when, value=value)
        for p in paragraphs
        for metric, value in (("drift_kl", p.kl), ("drift_ppl", _perplexity(p.nll)))
    ]


def _perplexity(nll: float) -> float:
    return math.exp(min(nll, WORST))


def _passages(
    model: EditableModel, langs: Sequence[str], max_tokens: int, every: int, skip: int,
    texts: Mapping[str, Mapping[str, str]] | None,
) -> tuple[_Passage, ...]:  # fmt: skip
    texts = neutral_texts() if texts is None else texts
    if not langs or every < 1 or skip < 0 or max_tokens < 2:
        raise ValueError(
            f"got languages {list(langs)}, max_tokens {max_tokens}, every {every}, skip {skip}; expected at least one "
            "language, two tokens, a step of at least one and no negative number"
        )
    passages = []
    for lang in dict.fromkeys(langs):
        if lang not in texts:
            raise unknown("language of the neutral texts", lang, texts)
        for name, text in texts[lang].items():
            ids = encode(model.tokenizer, text)[:max_tokens]
            model.check_length(len(ids), f"neutral text {name!r} ({lang})", f"cut it (max_tokens={max_tokens} here)")
            scored = range(skip, len(ids) - 1, every)
            if not scored:
                raise RefusedInput(
                    f"neutral text {name!r} has {len(ids)} tokens and the first {skip} are skipped; at least "
                    f"{skip + 2} are needed", lang=lang,
                )  # fmt: skip
            passages.append(_Passage(lang=lang, paragraph=name, ids=tuple(ids[: scored[-1] + 2]), scored=scored))
    return tuple(passages)


def _text_hash(passages: Sequence[_Passage]) -> str:
    told = [[p.lang, p.paragraph, p.ids, list(p.scored)] for p in passages]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _hidden(model: EditableModel, passages: Sequence[_Passage], tokens_per_batch: int = 2048) -> Float[Tensor, "n d"]:
    """What the head reads at every scored position, passage after passage."""
    starts = [0]
    for p in passages:
        starts.append(starts[-1] + len(p.scored))
    found: Tensor | None = None

    def work(part: list[int]) -> None:
        nonlocal found
        # The last token predicts nothing that is scored, so it is not fed in.
        fed = [passages[i].ids[:-1] for i in part]
        batch = align([Row(ids=ids, lookup=len(ids) - 1) for ids in fed], model.pad_id, model.device)
        hidden = model.hf.base_model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.positions, use_cache=False
        ).last_hidden_state
        if found is None:
            found = hidden.new_empty(starts[-1], hidden.shape[-1])
        for i, ids, row in zip(part, fed, hidden, strict=True):
            found[starts[i] : starts[i + 1]] = row[-len(ids) :][passages[i].scored.start :: passages[i].scored.step]

    def alone(i: int, error: RuntimeError) -> str:
        return (
            f"a neutral text of {len(passages[i].ids)} tokens ({passages[i].lang}) does not fit in memory: {error}; "
            "use a larger device"
        )

    for _ in as_memory_allows(alike([len(p.ids) for p in passages], tokens_per_batch), work, alone=alone):
        pass
    return found


def _blocks(
    model: EditableModel, passages: Sequence[_Passage], *, exact: bool
) -> Iterator[tuple[slice, Float[Tensor, "b v"]]]:
    """Logits of all scored positions, some rows at a time; a block may be written to.

    In the exact mode all words are normalised in float64 afterwards, so a block is smaller.
    """
    hidden = _hidden(model, passages)
    vocabulary = model.hf.get_output_embeddings().weight.shape[0]
    size = max(1, LOGITS // vocabulary // (8 if exact else 1))
    for start in range(0, len(hidden), size):
        at = slice(start, start + size)
        yield at, model.logits(hidden[at], normed=True).float()


def _bucketed(logits: Float[Tensor, "b v"], words: Int[Tensor, "b k"] | None) -> Float[Tensor, "b buckets"]:
    """Logits of `words`, then log Σ exp of all other logits; `logits` is used up.

    The bucket is summed from its own words: as 1 minus the others, a small one would be lost to rounding.
    """
    if words is None:
        return logits
    kept = logits.gather(1, words)
    rest = logits.scatter_(1, words, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest], dim=1)


def _refuse_non_finite(values: Float[Tensor, " n"], passages: Sequence[_Passage], which: str) -> None:
    sizes = [len(p.scored) for p in passages]
    parts = zip(passages, values.split(sizes), strict=True)
    broken = dict.fromkeys(p.lang for p, part in parts if not torch.isfinite(part).all())
    if broken:
        named = ", ".join(f"{language(lang).name} ({lang})" for lang in broken)
        raise FloatingPointError(
            f"the {which} model gives NaN or infinity on neutral text in {named}; take the last update back"
            if which == "edited"
            else f"the {which} model gives NaN or infinity on neutral text in {named}; load it in float32"
        )


def _other(what: str, made: str, found: str) -> str:
    return (
        f"drift state was made with another {what} ({made[:12]}…, now {found[:12]}…); "
        "make it again from the unedited model with Drift.of()"
    )
