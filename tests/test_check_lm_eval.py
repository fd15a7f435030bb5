"""The cross-check against lm-eval: agrees on models of several kinds, and notices the faults that it is there for."""

from __future__ import annotations

import ast
import copy
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import build_model, sentencepiece_tokenizer
from tokenizers import Tokenizer
from toy import same, weights
from transformers import PreTrainedTokenizerFast

import langedit_core.xtreme as xtreme
from langedit_core.models import EditableModel
from langedit_core.xtreme_answers import mlqa_measures
from langedit_core.xtreme_data import TASKS, Example, TaskData
from langedit_core.xtreme_metrics import corpus_value

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "check_lm_eval.py"
NAMES = ["Ostberg", "Norland", "Nordcap", "Calmeville", "Sweden"]
ANSWER = {"context": "In {n} it was {name} of the north.", "question": "What {n}?", "answer": "{name}"}


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import check_lm_eval

    return check_lm_eval


@pytest.fixture
def lm_eval(module):
    """The script, where the tool it talks to is installed."""
    pytest.importorskip("lm_eval", reason="the extra `lm-eval` is not installed")
    return module


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Toy sets of all four tasks, in English and Chinese, with prompts of different lengths."""
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    (tmp_path / "xtreme").mkdir()
    for lang in ("en", "zh"):
        for task in TASKS:
            lines = [record(task, lang, number) for number in range(15)]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (tmp_path / "xtreme" / f"{task}_{lang}.jsonl").write_text(text, encoding="utf-8")


def record(task: str, lang: str, number: int) -> dict:
    name = NAMES[number % 5] if lang == "en" else "诺 兰"
    if task in ("xnli", "pawsx"):
        # Three classes: in Chinese one of their words has several tokens.
        labels = ("entailment", "neutral", "contradiction") if task == "xnli" else ("1", "0")
        first = f"{name} {number}." * (1 + number % 3)
        return {"sentence1": first, "sentence2": f"No {number}.", "label": labels[number % len(labels)]}
    if task == "mlqa":
        return {key: text.format(n=number, name=name) for key, text in ANSWER.items()}
    return {"text": f"{number} {name} de", "label": f"{('PER', 'LOC', 'ORG')[number % 3]}: {name}"}


def with_line_break(tokenizer) -> PreTrainedTokenizerFast:
    """Bytes that are no special tokens and a line break that is no byte, as Gemma has.

    A line break among bytes that are no UTF-8 is a line break to lm-eval, which looks at the last tokens only, and none
    in the text of the whole answer.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["added_tokens"] = [token for token in parts["added_tokens"] if not token["content"].startswith("<0x")]
    parts["model"]["vocab"]["\n"] = len(parts["model"]["vocab"])
    plain = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def talkative(model_type: str):
    """A random model that says a line break so often that some answers end at the stop text and some do not."""
    positions = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    changes = {positions: 2048, "vocab_size": 430, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}
    model = build_model(model_type, seed=6 if model_type == "gpt2" else 7, **changes)
    if model_type == "gemma3_text":
        model.tokenizer = with_line_break(sentencepiece_tokenizer())
    (newline,) = model.tokenizer("\n", add_special_tokens=False).input_ids
    with torch.no_grad():
        model.hf.get_output_embeddings().weight[newline] *= 6
    return model


# --- without lm-eval --------------------------------------------------------------------------------------------------


def test_the_extra_is_pinned_and_nothing_else_asks_for_lm_eval():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (pinned,) = (text for text in extras.pop("lm-eval") if text.startswith("lm-eval"))
    assert pinned.startswith("lm-eval==")
    assert not [text for text in [*project["dependencies"], *sum(extras.values(), [])] if text.startswith("lm-eval")]


def test_lm_eval_is_imported_inside_functions_only():
    top = [node for node in ast.parse(SCRIPT.read_text(encoding="utf-8")).body]
    names = {a.name for node in top if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert "langedit_core.xtreme" in names and not [name for name in names if name.startswith("lm_eval")]


def test_without_lm_eval_the_error_names_the_extra(monkeypatch, module, data, tiny):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lm-eval\]'"):
        module.cross_check(tiny, limit=1)


def found(module, cells=None):
    records = pd.DataFrame(
        dict(task=["xnli", "xnli", "mlqa"], lang="en", record=["line 11", "line 12", "line 11"],
             ours=["entailment", "neutral", "north"], lm_eval=["entailment", "neutral", "north"],
             same=True, gap=[1e-6, 2e-5, np.nan])
    )  # fmt: skip
    metrics = pd.DataFrame(dict(task=["mlqa"], lang="en", metric="mlqa_f1", n=1, ours=[0.5], lm_eval=[0.5]))
    for (table, row, column), value in (cells or {}).items():
        {"records": records, "metrics": metrics}[table].loc[row, column] = value
    return module.CrossCheck(sets=pd.DataFrame(), records=records, metrics=metrics)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        ({}, None),
        ({("records", 1, "gap"): 5e-4}, None),
        ({("records", 1, "gap"): 2e-3}, "xnli in en, line 12: log likelihoods differ by 0.002 nats"),
        (
            {("records", 2, "same"): False, ("records", 2, "ours"): "nor"},
            "mlqa in en, line 11: ours 'nor', lm-eval 'north'",
        ),
        ({("metrics", 0, "ours"): 0.25}, "mlqa in en, mlqa_f1: ours 0.2500, lm-eval 0.5000"),
    ],
)
def test_what_differs_is_named_and_what_rounding_explains_is_not(module, cells, sentence):
    assert found(module, cells).disagreements() == ([] if sentence is None else [sentence])


# --- with lm-eval -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma3_text"])
def test_both_tools_agree_on_every_record_and_metric(lm_eval, data, model_type):
    check = lm_eval.cross_check(talkative(model_type), langs=("en", "zh"))
    assert check.disagreements(1e-4) == []
    assert len(check.sets) == 8 and set(check.sets["records"]) == {5} and set(check.sets["same"]) == {1.0}
    assert check.sets["gap"].notna().tolist() == [True] * 4 + [False] * 4 and check.sets["gap"].max() < 1e-4
    assert 0 < check.sets["stopped"].sum() < 20  # both ways to end are among what agrees
    for lang, metrics in check.metrics.groupby("lang"):
        assert metrics["metric"].tolist() == ["xnli3_acc", "pawsx_acc", "pawsx_f1_positive", "mlqa_f1", "mlqa_em"], lang


def test_batches_with_padding_on_the_side_of_lm_eval_change_nothing(lm_eval, data):
    check = lm_eval.cross_check(talkative("gemma3_text"), langs=("en",), batch_size=3)
    assert len(check.records) == 20 and check.disagreements(1e-4) == []


def test_answers_end_alike_where_a_model_has_two_end_tokens(lm_eval, data):
    model = talkative("llama")
    said = xtreme.evaluate(model, ("mlqa",), ("zh",)).answers["said"]
    assert said.str.contains("P").all() and not said.str.startswith("P").any()
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.add_tokens(["P"], special_tokens=True)
    model.hf.generation_config.eos_token_id = [2, model.tokenizer.convert_tokens_to_ids("P")]
    check = lm_eval.cross_check(model, ("mlqa",), ("zh",))
    assert check.disagreements() == [] and check.sets["stopped"].tolist() == [5]


def test_the_model_and_its_tokenizer_are_left_as_they_were(lm_eval, data, tiny):
    plain = copy.deepcopy(tiny.tokenizer)
    plain.pad_token = None  # as GPT-2's is; lm-eval would set it
    model = EditableModel(hf=tiny.hf, tokenizer=plain, architecture=tiny.architecture, name="plain")
    before = weights(model)
    lm_eval.wrapped(model)
    assert plain.pad_token is None and same(weights(model), before)


def without_last_token(score_options):
    return lambda model, prompts, options, **how: score_options(model, [p[:-1] for p in prompts], options, **how)


def without_stop(generate):
    return lambda model, prompts, *, stop, **how: generate(model, prompts, stop="\0", **how)


def half_the_tokens(generate):
    return lambda model, prompts, *, tokens, **how: generate(model, prompts, tokens=tokens // 2, **how)


@pytest.mark.parametrize(
    ("task", "name", "fault", "sentence"),
    [
        ("xnli", "score_options", without_last_token, "log likelihoods differ"),
        ("mlqa", "generate", without_stop, "ours "),
        ("wikiann", "generate", half_the_tokens, "ours "),
    ],
)
def test_a_fault_on_our_side_shows(monkeypatch, lm_eval, data, task, name, fault, sentence):
    wrong = fault(getattr(xtreme, name))
    for place in (xtreme, lm_eval):
        monkeypatch.setattr(place, name, wrong, raising=False)
    differences = lm_eval.cross_check(talkative("llama"), (task,), ("en",)).disagreements()
    assert any(text.startswith(f"{task} in en, line 1") and sentence in text for text in differences)


def test_a_likelihood_that_is_no_number_is_a_disagreement(monkeypatch, lm_eval, data):
    broken = [[float("nan"), -1.0]] * 5
    monkeypatch.setattr(lm_eval, "score_options", lambda *args, **how: broken)
    differences = lm_eval.cross_check(talkative("llama"), ("pawsx",), ("en",)).disagreements()
    assert differences == [f"pawsx in en, line {n}: log likelihoods differ by inf nats" for n in range(11, 16)]


SAID = ["Ostberg", "the Ostberg, of the north.", "Zürich – Ostberg", "", "诺兰在北方 Ostberg。"]


@pytest.mark.parametrize("lang", ["en", "de", "es", "zh"])
def test_mlqa_scores_of_given_answers_are_those_of_lm_eval(lm_eval, lang):
    true = ["Ostberg", "die Ostberg", "das Zürich-Ostberg", "une ville", "北方（诺兰）"]
    records = tuple(
        Example(id=f"line {i}", texts=("c", "q"), answers=(text, "el norte")) for i, text in enumerate(true)
    )
    toy = TaskData(task="mlqa", lang=lang, classes=(), pool=(), records=records, dropped=(), source="toy")
    measured = [mlqa_measures(said, record.answers, lang) for said, record in zip(SAID, records, strict=True)]
    theirs = lm_eval.their_metrics(toy, SAID)
    assert 0 < theirs["mlqa_f1"] < 1
    assert theirs == {name: pytest.approx(np.mean([m[name] for m in measured])) for name in ("mlqa_f1", "mlqa_em")}


@pytest.mark.parametrize(("task", "lang", "classes"), [("mlqa", "fr", ()), ("mlqa", "nl", ()), ("wikiann", "en", ())])
def test_what_lm_eval_cannot_score_has_no_metric(lm_eval, task, lang, classes):
    toy = TaskData(task=task, lang=lang, classes=classes, pool=(), records=(), dropped=(), source="toy")
    assert lm_eval.their_metrics(toy, []) == {}


def test_f1_of_paraphrases_is_that_of_lm_eval(lm_eval):
    classes = ("paraphrase", "different")
    true, said = [0, 0, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0, 1]
    records = tuple(Example(id=f"line {i}", texts=("a", "b"), answers=(classes[c],)) for i, c in enumerate(true))
    toy = TaskData(task="pawsx", lang="en", classes=classes, pool=(), records=records, dropped=(), source="toy")
    rows = pd.DataFrame(
        dict(record=record.id, metric=metric, value=value)
        for record, gold, predicted in zip(records, true, said, strict=True)
        for metric, value in dict(pawsx_gold=gold, pawsx_predicted=predicted, pawsx_acc=gold == predicted).items()
    )
    expected = {name: pytest.approx(corpus_value(name, rows)) for name in ("pawsx_acc", "pawsx_f1_positive")}
    assert lm_eval.their_metrics(toy, [classes[c] for c in said]) == expected


def test_the_script_writes_both_tables_and_its_exit_status_says_whether_all_agrees(
    monkeypatch, capsys, lm_eval, data, tmp_path
):
    monkeypatch.setattr(lm_eval, "load_model", lambda name: talkative("llama"))
    command = ["check_lm_eval.py", "--tasks", "pawsx", "--langs", "en", "de", "--output-path", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    assert lm_eval.main() == 0
    assert "all 5 records and 2 metrics agree" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "out" / "agreement.csv")[["model", "task", "lang", "records"]].values.tolist() == [
        ["tiny-llama", "pawsx", "en", 5]
    ]
    assert pd.read_csv(tmp_path / "out" / "metrics.csv")["metric"].tolist() == ["pawsx_acc", "pawsx_f1_positive"]
    monkeypatch.setattr(sys, "argv", [*command, "--tolerance", "0"])
    assert lm_eval.main() == 1
    assert "pawsx in en, line 11: log likelihoods differ" in capsys.readouterr().out


def test_unknown_and_no_names_are_refused(lm_eval, data, tiny):
    with pytest.raises(ValueError, match="unknown XTREME task 'paws'; known: pawsx"):
        lm_eval.cross_check(tiny, ("xnli", "paws"), ("en",))
    with pytest.raises(ValueError, match="unknown language 'xx'"):
        lm_eval.cross_check(tiny, ("xnli",), ("en", "xx"))
    with pytest.raises(ValueError, match="no task or no language"):
        lm_eval.cross_check(tiny, ())


def test_without_files_the_error_says_where_they_go(lm_eval, monkeypatch, tmp_path, tiny):
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no xtreme/mlqa_de.jsonl in \$LANGEDIT_DATA"):
        lm_eval.cross_check(tiny, ("mlqa",), ("de",))
