"""Drift is the divergence it says it is, a bound where it says so, and belongs to one model and one text."""

from __future__ import annotations

import json
import math
import re

import pandas as pd
import pytest
import torch
from conftest import build_model
from torch import Tensor

from langedit_core import drift as drift_module
from langedit_core.atlas import load_atlas
from langedit_core.drift import Drift, ParagraphDrift, language_rows, neutral_texts, paragraph_rows
from langedit_core.errors import RefusedInput
from langedit_core.languages import CORE
from langedit_core.stats import interval, summarise
from langedit_core.storage import CorruptFile, save_tensors
from langedit_core.tokens import TextTooLong, encode

TEXTS = {
    "en": {"one": "A quiet town in the north, and the capital of it all.", "two": "The north is a cold one, said he."},
    "de": {"one": "Die Stadt liegt im Norden; sie ist ruhig.", "two": "Im Norden ist es kalt."},
}
SMALL = dict(langs=("en", "de"), texts=TEXTS, max_tokens=40, every=1, skip=1)


def pushed(model, size: float = 0.5, seed: int = 3):
    """The same model after a random change of two layers."""
    generator = torch.Generator().manual_seed(seed)
    for layer in (1, 2):
        weight = model.weight(layer)
        model.add_(layer, size * weight.std() * torch.randn(weight.shape, generator=generator))
    return model


def literal(model, text: str, max_tokens: int, every: int, skip: int) -> tuple[Tensor, Tensor]:
    """log p of all words, and of the word that follows, at the scored positions: whole model, one text, no batch."""
    ids = encode(model.tokenizer, text)[:max_tokens]
    with torch.no_grad():
        log_p = model.hf(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    at = list(range(skip, len(ids) - 1, every))
    return log_p[at], log_p[at, [ids[i + 1] for i in at]]


def values(rows, metric: str) -> dict[str, float]:
    return {row["lang"]: row["value"] for row in rows if row["metric"] == metric}


# --- the texts --------------------------------------------------------------------------------------------------------


def mentions(name: str, text: str, lang: str) -> bool:
    """Chinese by substring, others as whole words; currency codes (ALL, TOP) as they are written, in capitals."""
    if lang == "zh":
        return name in text
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, 0 if name.isupper() else re.IGNORECASE))


def test_the_search_for_names_finds_them():
    assert mentions("Euro", "Das kostet einen Euro.", "de") and mentions("euro", "Euros? One Euro", "en")
    assert not mentions("Oman", "Romane und Romantik", "de") and mentions("欧元", "一百欧元。", "zh")
    assert not mentions("ALL", "all night", "en") and mentions("ALL", "in ALL and EUR", "en")


@pytest.mark.parametrize("lang", CORE)
def test_neutral_texts_name_nothing_that_the_embedded_facts_are_about(lang):
    names = set()
    for by_lang in load_atlas([lang]).facts.values():
        fact = by_lang[lang]
        names |= {fact.subject, fact.target, fact.truth}
        names |= {probe.answer for probe in (*fact.paraphrases, *fact.neighbours, *fact.portability)}
    assert len(names) > 1000
    for paragraph, text in neutral_texts()[lang].items():
        assert not [name for name in names if mentions(name, text, lang)], paragraph


def test_every_language_tells_the_same_six_things_in_a_few_sentences():
    texts = neutral_texts()
    assert tuple(texts) == CORE
    assert len({tuple(by_name) for by_name in texts.values()}) == 1 and len(texts["en"]) == 6
    for lang, by_name in texts.items():
        for name, text in by_name.items():
            sentences = re.findall(r"[.。](?:\s|$)" if lang != "zh" else "。", text)
            assert 3 <= len(sentences) <= 4, (lang, name)
            assert text == text.strip() and not re.search(r"\s\s|\n", text)
    for name in texts["en"]:
        counts = {len(re.findall(r"[.。](?:\s|$)" if lang != "zh" else "。", texts[lang][name])) for lang in CORE}
        assert len(counts) == 1, name  # parallel: as many sentences in every language


def test_a_damaged_text_file_is_said_to_be_damaged(tmp_path, monkeypatch):
    path = tmp_path / "neutral.json"
    path.write_text('{"weather": {"en": "Rain."}}')
    monkeypatch.setattr(drift_module, "PATH", path)
    neutral_texts.cache_clear()
    try:
        with pytest.raises(CorruptFile, match="reinstall"):
            neutral_texts()
    finally:
        neutral_texts.cache_clear()


# --- the divergence ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_exact_drift_equals_two_whole_models_read_text_by_text(any_model, every):
    options = SMALL | dict(every=every)
    drift = Drift.of(any_model, keep=None, **options)
    asked = dict(max_tokens=40, every=every, skip=1)
    before = {(lang, n): literal(any_model, t, **asked) for lang, by in TEXTS.items() for n, t in by.items()}
    found = drift.paragraphs(pushed(any_model))
    assert [(p.lang, p.paragraph) for p in found] == list(before)
    for p in found:
        log_p0, _ = before[p.lang, p.paragraph]
        log_p, said = literal(any_model, TEXTS[p.lang][p.paragraph], **asked)
        forward = (log_p0.exp() * (log_p0 - log_p)).sum(-1).mean()
        backward = (log_p.exp() * (log_p - log_p0)).sum(-1).mean()
        assert p.n == len(said)
        assert p.kl == pytest.approx(float(forward), rel=1e-3, abs=1e-5)
        assert p.nll == pytest.approx(float(-said.mean()), abs=1e-3)
        assert float(forward) > 0.01 and abs(forward - backward) > 10 * abs(forward - p.kl)  # the direction shows


def test_buckets_bound_the_exact_divergence_from_below_and_tighten_with_every_word_kept(any_model):
    kept = [1, 4, 16, 64, 256, any_model.hf.config.vocab_size - 1]
    states = {keep: Drift.of(any_model, keep=keep, **SMALL) for keep in [*kept, None]}
    pushed(any_model)
    found = [values(states[keep].measure(any_model), "drift_kl") for keep in [*kept, None]]
    for lang in ("en", "de"):
        sequence = [f[lang] for f in found]
        assert all(a <= b + 1e-9 for a, b in zip(sequence, sequence[1:], strict=False))
        assert 0 < sequence[0] < 0.9 * sequence[-1]  # one word and a bucket miss something
        assert sequence[-2] == pytest.approx(sequence[-1], rel=1e-4)  # all words but one: the bucket is that word


def test_more_words_than_the_vocabulary_has_are_all_of_them(tiny):
    exact, all_kept = Drift.of(tiny, keep=None, **SMALL), Drift.of(tiny, keep=10**6, **SMALL)
    pushed(tiny)
    one, other = values(exact.measure(tiny), "drift_kl"), values(all_kept.measure(tiny), "drift_kl")
    assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("keep", [None, 16])
def test_a_model_has_no_drift_from_itself_not_even_by_rounding(any_model, keep):
    drift = Drift.of(any_model, keep=keep, **SMALL)
    assert values(drift.measure(any_model), "drift_kl") == {"en": 0.0, "de": 0.0}


def test_a_larger_change_drifts_further_and_a_restored_model_not_at_all(tiny_gemma):
    drift = Drift.of(tiny_gemma, keep=32, **SMALL)
    found = []
    for size in (0.1, 0.5):
        with tiny_gemma.restored():
            found.append(values(drift.measure(pushed(tiny_gemma, size)), "drift_kl"))
    assert all(0 < found[0][lang] < found[1][lang] for lang in ("en", "de"))
    assert values(drift.measure(tiny_gemma), "drift_kl") == {"en": 0.0, "de": 0.0}


def test_the_size_of_a_block_does_not_change_the_result(tiny, monkeypatch):
    drift = Drift.of(tiny, keep=16, **SMALL)
    pushed(tiny)
    whole = drift.paragraphs(tiny)
    monkeypatch.setattr(drift_module, "LOGITS", 1)  # one position at a time
    for one, other in zip(whole, drift.paragraphs(tiny), strict=True):
        assert (one.kl, one.nll) == pytest.approx((other.kl, other.nll), rel=1e-4, abs=1e-6)


def test_perplexity_is_that_of_the_words_that_follow(tiny):
    rows = Drift.of(tiny, keep=4, **SMALL).measure(tiny)
    said = torch.cat([literal(tiny, text, 40, 1, 1)[1] for text in TEXTS["de"].values()])
    (row,) = [r for r in rows if (r["lang"], r["metric"]) == ("de", "drift_ppl")]
    assert row["value"] == pytest.approx(float((-said.mean()).exp()), rel=1e-3) and row["n"] == len(said)


def test_a_small_state_is_kept_for_the_texts_that_ship_with_the_package(tiny):
    drift = Drift.of(tiny)
    assert drift.langs == CORE and len(drift.passages) == 36
    assert drift.scores.shape == (36 * 14, 257) and drift.words.shape == (36 * 14, 256)
    assert [(r["lang"], r["metric"]) for r in drift.measure(tiny)] == [
        (lang, metric) for lang in CORE for metric in drift_module.METRICS
    ]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_every_token_counts_once_in_a_language():
    paragraphs = [
        ParagraphDrift(lang="en", paragraph="long", n=30, kl=0.1, nll=1.0),
        ParagraphDrift(lang="en", paragraph="short", n=10, kl=0.5, nll=3.0),
    ]
    kl, ppl = language_rows(paragraphs)
    assert kl == dict(lang="en", metric="drift_kl", value=pytest.approx(0.2), n=40)
    assert ppl == dict(lang="en", metric="drift_ppl", value=pytest.approx(math.exp(1.5)), n=40)


def test_paragraphs_give_intervals_like_facts_do(tiny):
    drift = Drift.of(tiny, keep=32, **SMALL)
    found = drift.paragraphs(pushed(tiny))
    rows = pd.DataFrame(paragraph_rows(found, "final")).assign(method="m")
    table = summarise(rows, by=["method"]).set_index(["metric", "lang"])
    for lang in ("en", "de"):
        expected = interval([p.kl for p in found if p.lang == lang])
        assert tuple(table.loc[("drift_kl", lang), ["value", "low", "high"]]) == (
            expected.value, expected.low, expected.high,
        )  # fmt: skip
        assert table.loc[("drift_kl", lang), "n"] == 2


def test_the_perplexity_of_a_ruined_model_is_still_a_number_and_so_is_its_square():
    (_, ppl) = language_rows([ParagraphDrift(lang="en", paragraph="p", n=1, kl=5000.0, nll=5000.0)])
    assert ppl["value"] > 1e100 and math.isfinite(ppl["value"] ** 2)
    assert json.loads(json.dumps(ppl, allow_nan=False)) == ppl


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_a_model_that_gives_nan_is_named_with_the_language(tiny):
    texts = TEXTS | {"zh": {"one": "北方一座安静的城市。"}}
    options = SMALL | dict(langs=("en", "de", "zh"), texts=texts, keep=16)
    drift = Drift.of(tiny, **options)
    elsewhere = {i for lang in TEXTS for text in TEXTS[lang].values() for i in encode(tiny.tokenizer, text)}
    only = next(i for i in encode(tiny.tokenizer, texts["zh"]["one"]) if i not in elsewhere)
    for broken in (float("nan"), float("inf")):
        with torch.no_grad():
            tiny.hf.get_input_embeddings().weight[only] = broken
        with pytest.raises(FloatingPointError, match="edited.*Chinese") as told:
            drift.measure(tiny)
        assert "English" not in str(told.value) and "German" not in str(told.value)
    other = build_model("llama")
    with torch.no_grad():
        other.hf.get_input_embeddings().weight[only] = float("nan")
    with pytest.raises(FloatingPointError, match="unedited.*Chinese"):
        Drift.of(other, **options)


def test_a_drift_read_back_measures_the_same(tiny_gemma, tmp_path):
    for keep in (16, None):
        drift = Drift.of(tiny_gemma, keep=keep, **SMALL)
        drift.save(tmp_path / "drift.safetensors")
        again = Drift.load(tmp_path / "drift.safetensors", tiny_gemma, texts=TEXTS)
        assert (again.langs, again.keep, again.text_hash) == (drift.langs, keep, drift.text_hash)
        with tiny_gemma.restored():
            pushed(tiny_gemma)
            assert again.paragraphs(tiny_gemma) == drift.paragraphs(tiny_gemma)


def test_a_drift_belongs_to_one_model(tiny, tmp_path):
    drift, other = Drift.of(tiny, keep=4, **SMALL), build_model("llama", seed=1)
    drift.save(tmp_path / "drift.safetensors")
    with pytest.raises(ValueError, match="another model fingerprint"):
        Drift.load(tmp_path / "drift.safetensors", other, texts=TEXTS)
    with pytest.raises(ValueError, match="another model fingerprint"):
        drift.measure(other)


def test_a_drift_belongs_to_its_texts(tiny, tmp_path):
    Drift.of(tiny, keep=4, **SMALL).save(tmp_path / "drift.safetensors")
    changed = TEXTS | {"de": TEXTS["de"] | {"two": "Im Norden war es kalt."}}
    with pytest.raises(ValueError, match="another hash of the neutral texts"):
        Drift.load(tmp_path / "drift.safetensors", tiny, texts=changed)


def test_an_altered_or_foreign_file_is_never_used(tiny, tmp_path):
    path = tmp_path / "drift.safetensors"
    Drift.of(tiny, keep=4, **SMALL).save(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="checksum"):
        Drift.load(path, tiny, texts=TEXTS)
    save_tensors(path, {"gram": torch.eye(2)}, {"count": "2"})
    with pytest.raises(CorruptFile, match="no drift state"):
        Drift.load(path, tiny, texts=TEXTS)
    with pytest.raises(FileNotFoundError):
        Drift.load(tmp_path / "nothing.safetensors", tiny)


@pytest.mark.parametrize("changes", [dict(langs=()), dict(every=0), dict(skip=-1), dict(max_tokens=1), dict(keep=0)])
def test_numbers_out_of_range_are_refused(tiny, changes):
    with pytest.raises(ValueError, match="expected"):
        Drift.of(tiny, **(SMALL | changes))


def test_an_unknown_language_is_answered_with_the_known_ones(tiny):
    with pytest.raises(ValueError, match="unknown language of the neutral texts 'ge'; known: .*de"):
        Drift.of(tiny, ["ge"])


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_texts_longer_than_the_model_has_positions_are_refused(model_type):
    model = build_model(model_type)
    model.hf.config.max_position_embeddings = 24
    with pytest.raises(TextTooLong, match=r"has 32 tokens, .* has 24 positions; cut it \(max_tokens=32 here\)"):
        Drift.of(model)
    assert Drift.of(model, max_tokens=24).max_tokens == 24


def test_a_text_too_short_to_be_scored_is_refused(tiny):
    with pytest.raises(RefusedInput, match="'short' has 1 tokens.*at least 6"):
        Drift.of(tiny, ["en"], texts={"en": {"short": "A"}})
