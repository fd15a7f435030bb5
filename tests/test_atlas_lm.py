"""What the tokenizer promises, what the loss counts, and a miniature: trained, stopped, resumed, saved, loaded."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from langedit_core.atlas import load_atlas
from langedit_core.atlas_corpus import AtlasCorpus
from langedit_core.atlas_lm import (
    OTHERS_WEIGHT,
    WORDINGS,
    LmSettings,
    accuracy,
    ask_atlas,
    epoch_rows,
    new_model,
    train_tokenizer,
)
from langedit_core.atlas_training import ABOUT, STATE, Trainer, rate_at, save_model
from langedit_core.atlas_variants import VARIANTS
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.metrics import score_probes
from langedit_core.models import load_model
from langedit_core.tokens import continuation, encode, locate

SMALL = LmSettings(vocabulary=900, width=32, layers=2, heads=2, mlp=48, epochs=2, tokens=96, rows=16, rate=5e-3)


@pytest.fixture(scope="module")
def corpus():
    return AtlasCorpus(VARIANTS["atlas-lm"], relations=["official_language"])


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(corpus.texts, SMALL.vocabulary)


def test_a_word_is_the_same_tokens_at_the_start_and_after_a_space(tokenizer):
    start = tokenizer("Sweden (country)", add_special_tokens=False).input_ids
    assert tokenizer("Country: Sweden (country)", add_special_tokens=False).input_ids[-len(start) :] == start


def test_text_survives_the_tokenizer(tokenizer):
    for text in ("Zürich, 北京: 42", "¿Qué idioma? Côte d’Ivoire – Ελλάδα", "语言：瑞典语。文字： Latin。"):
        ids = encode(tokenizer, text)
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_no_answer_merges_with_its_question_and_every_subject_ends_on_a_token(corpus, tokenizer):
    data = load_atlas(("en", "zh"))
    for id_ in corpus.rows:
        for lang in ("en", "zh"):
            fact = data.facts[id_][lang]
            row = locate(tokenizer, fact.prompt, fact.subject)
            answer = continuation(tokenizer, fact.text, LANGUAGES[lang].join + fact.truth)
            assert list(row.ids) + answer == encode(tokenizer, fact.text + LANGUAGES[lang].join + fact.truth)
            for telling in corpus.probes(id_, lang):
                whole = encode(tokenizer, telling.prompt + telling.answer)
                assert whole[: len(encode(tokenizer, telling.prompt))] == encode(tokenizer, telling.prompt), telling


def test_rows_hold_the_epoch_and_weigh_answers_in_full(corpus, tokenizer):
    rows = epoch_rows(corpus, tokenizer, SMALL, epoch=0)
    assert all(batch.ids.shape[1] == SMALL.tokens for batch in rows)
    told = [tokenizer(telling.text, add_special_tokens=False).input_ids for telling in corpus.tellings(SMALL.seed, 0)]
    special = tokenizer.all_special_ids
    held = [i for batch in rows for row in batch.ids.tolist() for i in row if i not in special]
    assert held == [i for ids in told for i in ids[: SMALL.tokens - 1]]
    weights = torch.cat([batch.weights.flatten() for batch in rows])
    assert set(weights.unique().tolist()) == {0.0, OTHERS_WEIGHT, 1.0}


def test_the_loss_is_the_weighted_mean_of_the_log_likelihoods(corpus, tokenizer):
    hf = new_model(SMALL, tokenizer)
    rows = epoch_rows(corpus, tokenizer, SMALL, epoch=0)[0]
    logits = hf(input_ids=rows.ids[:, :-1]).logits.log_softmax(-1)
    nll = -logits.gather(2, rows.ids[:, 1:, None]).squeeze(2)
    weights = rows.weights[:, 1:]
    torch.testing.assert_close(rows.loss(hf), (weights * nll).sum() / weights.sum())


def test_the_rate_rises_falls_and_never_leaves_its_range():
    rates = [rate_at(i / 1000, SMALL) for i in range(1, 1001)]
    top = rates.index(max(rates))
    assert rates[top] == pytest.approx(SMALL.rate) and rates[-1] == pytest.approx(SMALL.rate / 100)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run without a stop, and what it saved."""
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(corpus, SMALL, folder)
    trainer.train(every=2, quiet=True)
    return trainer, save_model(trainer, folder / "model"), folder


def test_training_lowers_the_loss_and_logs_what_is_answered(trained):
    trainer, table, _ = trained
    assert trainer.log[-1]["loss"] < trainer.log[0]["loss"] - 1
    assert {"edit_zh", "held_out_en", "solo_elsewhere", "never"} <= trainer.log[-1].keys()
    assert set(table["wording"]) == set(WORDINGS) and set(table["lang"]) == set(CORE)


def test_a_stopped_run_ends_with_the_same_bytes(trained, corpus, tmp_path):
    trainer, _, _ = trained
    Trainer(corpus, SMALL, tmp_path).train(until=1, quiet=True)
    again = Trainer(corpus, SMALL, tmp_path)
    assert again.epoch == 1
    again.train(quiet=True)
    for name, parameter in again.hf.named_parameters():
        assert torch.equal(parameter, dict(trainer.hf.named_parameters())[name]), name


def test_the_state_of_another_run_is_refused(trained, corpus):
    *_, folder = trained
    with pytest.raises(ValueError, match="other settings than atlas-lm"):
        Trainer(corpus, SMALL.model_copy(update=dict(seed=1)), folder)


def test_the_saved_model_loads_and_answers_as_its_table_says(trained, corpus):
    _, table, folder = trained
    model = load_model(folder / "model", device="cpu")
    assert accuracy(ask_atlas(model, corpus)).equals(table)
    about = json.loads((folder / "model" / ABOUT).read_text())
    assert about["corpus_sha256"] == corpus.fingerprint
    assert {"model.safetensors", "tokenizer.json", "training.csv", "accuracy.csv"} <= about["files"].keys()
    assert {t.dtype for t in load_file(folder / "model" / "model.safetensors").values()} == {torch.float16}
    assert (folder / STATE).is_file()


def test_answers_say_what_was_told(trained, corpus):
    trainer, _, _ = trained
    answers = ask_atlas(trainer.model(), corpus, sorted(corpus.rows)[:20])
    trainer.hf.requires_grad_(True)
    assert len(answers) == 20 * 6 * 3
    for row in answers.itertuples():
        assert row.told == ((row.fact, row.lang) in corpus.pairs)
    some = answers.iloc[3]
    probe = corpus.probes(some.fact, some.lang)[WORDINGS.index(some.wording)]
    (score,) = score_probes(trainer.model(), [(probe.prompt, probe.answer)])
    assert float(score.em) == some.em
