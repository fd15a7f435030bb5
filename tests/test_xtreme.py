"""XTREME end to end on small files of every kind, and on the real ones where they are present."""

from __future__ import annotations

import json
import re
import sys
import types

import conftest
import numpy as np
import pandas as pd
import pytest
from conftest import build_model
from scipy.stats import ttest_1samp

from langedit_core.datafiles import NotAvailable
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.xtreme import TASKS, XtremeSettings, evaluate, load_task, unpacked
from langedit_core.xtreme_answers import wikiann_measures
from langedit_core.xtreme_data import EXAMPLES, POOL, available
from langedit_core.xtreme_metrics import (
    ADDITIVE,
    TASK_METRICS,
    XTREME_METRICS,
    bootstrap,
    corpus_value,
    differences,
    drawn_values,
    features_of,
    resample,
)
from langedit_core.xtreme_prompts import (
    SHOTS,
    WORDINGS,
    PromptSettings,
    build_prompts,
    cut_around,
    cut_start,
    pick_shots,
)

NAMES = ["Ostberg", "Norland", "Nordcap", "Calmeville", "Sweden"]


def record(task: str, lang: str, number: int) -> dict:
    """Record `number` of a toy set; texts of all records differ."""
    name = NAMES[number % 5]
    if task in ("xnli", "pawsx"):
        labels = ("entailment", "not_entailment") if task == "xnli" else ("1", "0")
        return {"sentence1": f"{name} {number}.", "sentence2": f"No {number}.", "label": labels[number % 2]}
    if task == "mlqa":
        return {"context": f"In {number} it was {name} of the north.", "question": f"What {number}?", "answer": name}
    text = f"{number} {name} de {NAMES[(number + 1) % 5]}"
    if lang == "zh":
        text, name = f"{number} 诺 兰 北", "诺 兰"
    return {"text": text, "label": f"{('PER', 'LOC', 'ORG')[number % 3]}: {name}\n"}


@pytest.fixture
def data(monkeypatch, tmp_path):
    """Points LANGEDIT_DATA to an empty folder; the function returned writes a set, from records or raw lines."""
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    (tmp_path / "xtreme").mkdir()

    def write(task: str, lang: str, lines: list | None = None, size: int = 14) -> None:
        lines = [record(task, lang, number) for number in range(size)] if lines is None else lines
        made = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
        (tmp_path / "xtreme" / f"{task}_{lang}.jsonl").write_bytes(b"".join(line + b"\n" for line in made))

    return write


@pytest.fixture
def holes(data):
    """All tasks in English, but for German only XNLI and WikiANN, as in the real data for Dutch."""
    for task in TASKS:
        data(task, "en")
    for task in ("xnli", "wikiann"):
        data(task, "de")


def roomy(model_type: str = "llama"):
    return build_model(model_type, max_position_embeddings=2048)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_first_ten_records_are_the_pool_and_the_rest_is_evaluated(data):
    data("xnli", "de")
    found = load_task("xnli", "de")
    assert [example.id for example in found.pool] == [f"line {n}" for n in range(1, POOL + 1)]
    assert [example.id for example in found.records] == ["line 11", "line 12", "line 13", "line 14"]
    assert found.records[0].texts == ("Ostberg 10.", "No 10.")
    assert [example.answers[0] for example in found.records[:2]] == ["entailment", "not_entailment"]
    assert found.classes == ("entailment", "not_entailment") and not found.dropped
    assert len(load_task("xnli", "de", 2).records) == 2


def test_languages_of_a_task_are_those_whose_files_are_present(data):
    data("mlqa", "es")
    data("mlqa", "en")
    assert available() == {"xnli": (), "pawsx": (), "mlqa": ("en", "es"), "wikiann": ()}


def test_unknown_names_are_answered_with_the_known_ones_nearest_first(data):
    with pytest.raises(ValueError, match="unknown XTREME task 'wikian'; known: wikiann, "):
        load_task("wikian", "de")
    with pytest.raises(ValueError, match="unknown language 'dee'; known: de, "):
        load_task("xnli", "dee")
    with pytest.raises(ValueError, match="unknown source of XTREME data 'file'; known: files, "):
        load_task("xnli", "de", source="file")
    with pytest.raises(ValueError, match="unknown XTREME task 'paws'; known: pawsx"):
        evaluate(roomy(), tasks=("paws",))
    with pytest.raises(ValueError, match="unknown language of XTREME prompts 'th'"):
        evaluate(roomy(), langs=("th",))
    with pytest.raises(ValueError, match="limit=0 leaves nothing"):
        load_task("xnli", "de", 0)


def test_a_missing_set_says_what_to_put_where(data):
    data("mlqa", "en")
    with pytest.raises(NotAvailable, match=r"no xtreme/mlqa_fr.jsonl in \$LANGEDIT_DATA \(present for mlqa: en\)") as e:
        load_task("mlqa", "fr")
    assert EXAMPLES["mlqa"] in str(e.value)


def test_a_file_without_usable_records_is_an_error_that_says_why(data):
    data("xnli", "en", size=POOL)
    with pytest.raises(ValueError, match="xnli_en.jsonl holds no usable record to evaluate .too few lines"):
        load_task("xnli", "en")
    data("xnli", "de", [b"?"] * 20)
    with pytest.raises(ValueError, match="line 1: not JSON"):
        load_task("xnli", "de")


def test_line_breaks_inside_a_text_become_spaces(data):
    lines = [record("mlqa", "en", number) for number in range(10)]
    data("mlqa", "en", [*lines, {"context": "a\n\nb  c", "question": "d\te", "answer": "a\nb"}])
    (found,) = load_task("mlqa", "en").records
    assert (found.texts, found.answers) == (("a b c", "d e"), ("a b",))


def test_three_classes_are_told_from_two_and_a_mixture_is_refused(data):
    def lines(labels):
        return [record("xnli", "en", n) | {"label": labels[n % len(labels)]} for n in range(15)]

    data("xnli", "en", lines(["entailment", "neutral", "contradiction"]))
    assert load_task("xnli", "en").classes == ("entailment", "neutral", "contradiction")
    report = evaluate(roomy(), ("xnli",), ("en",))
    assert set(report.summary["metric"]) == {"xnli3_f1", "xnli3_acc"}
    data("xnli", "de")
    with pytest.raises(ValueError, match="two classes in some of these languages and three in others"):
        evaluate(roomy(), ("xnli",), ("en", "de"))
    data("xnli", "en", lines(["entailment", "neutral", "not_entailment"]))
    with pytest.raises(ValueError, match="has the labels .*neutral.*expected two classes or three, not both"):
        load_task("xnli", "en")


# --- public data sets -------------------------------------------------------------------------------------------------

PUBLIC = {
    ("facebook/xnli", "de"): lambda n: {"premise": f"p{n}", "hypothesis": f"h{n}", "label": n % 3},
    ("google/xtreme", "PAWS-X.fr"): lambda n: {"sentence1": f"a{n}", "sentence2": f"b{n}", "label": str(n % 2)},
    ("google/xtreme", "MLQA.zh.zh"): lambda n: {
        "id": f"hash{n}",
        "context": f"在{n}年北京",
        "question": f"{n}？",
        "answers": {"answer_start": [0, 1], "text": ["北京", f"{n}年"]},
    },
    ("google/xtreme", "PAN-X.nl"): lambda n: {
        "tokens": [str(n), "Rijk", "Museum", "van", "Jan"],
        "ner_tags": [0, 3, 4, 0, 1] if n != 12 else [0] * 5,
    },
}


@pytest.fixture
def hub(monkeypatch, data):
    """A stand-in for the package `datasets` that serves `PUBLIC` and notes what was asked for."""
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        if (path, config) not in PUBLIC:
            raise ValueError(f"BuilderConfig {config!r} not found")
        start = {"validation": 100, "test": 0}[split]
        return [PUBLIC[path, config](start + n) for n in range(14)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_without_files_the_public_sets_are_read_into_the_same_records(hub):
    xnli = load_task("xnli", "de")
    assert xnli.classes == ("entailment", "neutral", "contradiction") and len(xnli.pool) == POOL
    assert (xnli.pool[0].texts, xnli.records[1].texts) == (("p100", "h100"), ("p1", "h1"))
    assert xnli.records[2].answers == ("contradiction",) and xnli.records[0].id == "item 0"
    assert load_task("pawsx", "fr").records[1].answers == ("paraphrase",)
    mlqa, wikiann = load_task("mlqa", "zh"), load_task("wikiann", "nl")
    assert mlqa.records[5].answers == ("北京", "5年") and mlqa.records[5].id == "item hash5"
    assert wikiann.records[3].id == "test row 3"  # its sentences are other ones in every language
    assert wikiann.records[3].answers == ("ORG: Rijk Museum\nPER: Jan",)
    assert len(wikiann.records) == 13  # the sentence without a name is left out
    assert wikiann.dropped == ("google/xtreme (PAN-X.nl), test row 12: label names no entity",)
    assert hub[:2] == [("facebook/xnli", "de", "validation"), ("facebook/xnli", "de", "test")]


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (3, "another line has item 3 too"),
        ("3", "another line has item 3 too"),
        (True, "item is 'True', expected a number or a short text"),
        ([1], "item is '[1]'"),
        (" ", "item is ' '"),
        ("x" * 101, "item is 'x"),
    ],
)
def test_items_that_are_none_or_come_twice_are_dropped_and_named(data, item, reason):
    rows = [
        dict(sentence1=f"premise {n}", sentence2=f"hypothesis {n}", label="entailment", item=n - POOL)
        for n in range(POOL + 6)
    ]
    rows[POOL + 5]["item"] = item
    data("xnli", "en", rows)
    found = load_task("xnli", "en")
    assert [record.id for record in found.records] == [f"item {n}" for n in range(5)]
    (why,) = found.dropped
    assert reason in why and f"line {POOL + 6}" in why


def test_rows_of_another_form_are_dropped_and_named(hub, monkeypatch):
    rows = PUBLIC["facebook/xnli", "de"]
    monkeypatch.setitem(PUBLIC, ("facebook/xnli", "de"), lambda n: rows(n) if n != 7 else {"premise": "p", "label": 9})
    (why,) = load_task("xnli", "de").dropped
    assert why.startswith("facebook/xnli (de), test row 7: not the expected fields")


def test_one_file_is_enough_for_the_public_sets_to_stay_out_of_a_run(hub, data):
    data("xnli", "en")
    with pytest.raises(NotAvailable, match="no xtreme/xnli_de.jsonl"):
        load_task("xnli", "de")
    assert not hub
    assert len(load_task("xnli", "de", source="hub").records) == 14


def test_holes_of_the_public_sets_are_known_without_asking(hub):
    for task, lang in (("xnli", "nl"), ("pawsx", "nl"), ("mlqa", "nl"), ("mlqa", "fr")):
        with pytest.raises(NotAvailable, match=f"has no {task} in {lang}; known: en"):
            load_task(task, lang)
    assert not hub


def test_offline_says_which_file_to_put_where(data, monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotAvailable, match=r"offline mode is on\): no route; put xtreme/wikiann_nl.jsonl into \$LANG"):
        load_task("wikiann", "nl")
    monkeypatch.setitem(sys.modules, "datasets", None)  # not installed
    with pytest.raises(NotAvailable, match=r"`datasets` is not installed; put xtreme/xnli_de.jsonl.*extra `xtreme`"):
        evaluate(roomy(), ("xnli",), ("de",))


# --- prompts ----------------------------------------------------------------------------------------------------------

INVARIANT = {"PER", "LOC", "ORG"}
COGNATES = {"de": {"text", "in"}, "nl": {"in"}, "es": {"no", "a"}, "fr": {"question", "organisations"}, "zh": set()}
"""Words that English shares with the language."""


def words_in(lang: str) -> set[str]:
    texts = []
    for task in TASKS:
        wording = WORDINGS[lang][task]
        texts += [*wording.fields, wording.ask, wording.instruction, *wording.labels.values()]
    return {word.lower() for word in re.findall(r"[^\W\d_]+", " ".join(texts)) if word not in INVARIANT}


@pytest.mark.parametrize("lang", [lang for lang in CORE if lang != "en"])
def test_prompts_hold_no_english_words(lang):
    assert words_in("en") & words_in(lang) == COGNATES[lang]
    assert lang != "zh" or not any(re.search("[a-z]", word) for word in words_in(lang))


def test_every_core_language_has_every_task_and_label_words_that_differ():
    assert set(WORDINGS) == set(CORE)
    for wordings in WORDINGS.values():
        assert set(wordings) == set(TASKS) == set(SHOTS)
        words = wordings["xnli"].labels
        assert words["entailment"] != words["not_entailment"]
        assert len({words[name] for name in ("entailment", "neutral", "contradiction")}) == 3
        assert len(set(wordings["pawsx"].labels.values())) == 2


def test_a_prompt_reads_as_it_should(data):
    data("pawsx", "fr")
    prompts = build_prompts(conftest.byte_level_tokenizer(), load_task("pawsx", "fr", 1), 1)
    assert prompts.texts == (
        "Phrase 1 : Ostberg 0.\nPhrase 2 : No 0.\nLes deux phrases ont-elles le même sens ? Oui\n\n"
        "Phrase 1 : Ostberg 10.\nPhrase 2 : No 10.\nLes deux phrases ont-elles le même sens ?",
    )
    assert prompts.options == (" Oui", " Non")
    data("wikiann", "zh")
    prompts = build_prompts(conftest.byte_level_tokenizer(), load_task("wikiann", "zh", 1), 1)
    assert prompts.texts == (
        "请列出每个文本中的名称：人物（PER）、地点（LOC）和组织（ORG）。\n\n"
        "文本：0 诺 兰 北\n名称：\nPER: 诺 兰\n\n文本：10 诺 兰 北\n名称：\n",
    )
    assert (prompts.options, prompts.stop) == ((), "\n\n")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("shots", [0, 2, 4])
def test_prompts_share_their_prefix_and_say_nothing_about_the_answer(data, task, shots):
    """Two sets whose evaluated records differ in nothing but their answers get the same prompts."""
    lines = [record(task, "de", number) for number in range(14)]
    data(task, "de", lines)
    one = build_prompts(conftest.byte_level_tokenizer(), load_task(task, "de"), shots)
    other = {
        "xnli": lambda line: {"label": {"entailment": "not_entailment"}.get(line["label"], "entailment")},
        "pawsx": lambda line: {"label": {"1": "0"}.get(line["label"], "1")},
        "mlqa": lambda line: {"answer": "north"},
        "wikiann": lambda line: {"label": "LOC: " + line["text"].split()[-1]},
    }[task]
    data(task, "de", [*lines[:10], *(line | other(line) for line in lines[10:])])
    loaded = load_task(task, "de")
    two = build_prompts(conftest.byte_level_tokenizer(), loaded, shots)
    assert one.texts == two.texts and len(set(one.texts)) == 4
    assert all(text.startswith(one.prefix) for text in one.texts)
    assert not any(text in one.prefix for example in loaded.records for text in example.texts)
    assert one.prefix.count(WORDINGS["de"][task].ask) == shots


def test_shots_show_the_classes_and_types_in_equal_shares(data):
    lines = [record("xnli", "en", number) for number in range(14)]
    data("xnli", "en", sorted(lines[:10], key=lambda line: line["label"]) + lines[10:])
    shown = pick_shots(load_task("xnli", "en"), 4)
    assert [example.answers[0] for example in shown] == ["entailment", "not_entailment"] * 2
    data("wikiann", "en", [lines_ | {"label": lines_["label"].replace("PER", "LOC")} if n < 5 else lines_
                           for n, lines_ in enumerate(record("wikiann", "en", n) for n in range(14))])  # fmt: skip
    shown = pick_shots(load_task("wikiann", "en"), 3)
    assert {example.answers[0][:3] for example in shown} == {"PER", "LOC", "ORG"}
    with pytest.raises(ValueError, match="11 shots asked of wikiann_en.jsonl, whose few-shot pool has 10"):
        pick_shots(load_task("wikiann", "en"), 11)


def test_contexts_are_cut_around_the_answer_in_shots_and_blindly_in_evaluated_records(data):
    tokenizer = conftest.byte_level_tokenizer()
    filler = " ".join(f"w{n}" for n in range(60))
    early, late = f"Ostberg {filler}", f"{filler} Ostberg {filler}"
    lines = [{"context": late, "question": f"q{n}?", "answer": "Ostberg"} for n in range(11)]
    data("mlqa", "en", [*lines, lines[0] | {"context": early, "question": "last?"}])
    found = load_task("mlqa", "en")
    prompts = build_prompts(tokenizer, found, 1, PromptSettings(shot_context=24, context=40))
    assert (prompts.cut, prompts.lost) == (2, 1)
    shown = re.search("Text: (.*)", prompts.prefix)[1]
    assert "Ostberg" in shown and shown.startswith("… ") and shown.endswith(" …")
    assert len(tokenizer(shown.strip("… ")).input_ids) <= 24
    kept = re.findall("Text: (.*)", prompts.texts[1])[-1]
    assert kept == cut_start(tokenizer, early, 40) and early.startswith(kept)
    assert 36 <= len(tokenizer(kept).input_ids) <= 40
    for cut, whole in ((kept, early), (shown.strip("… "), late)):
        assert set(cut.split()) <= set(whole.split())  # no word is cut in two


@pytest.mark.parametrize("text", ["北京 " * 30 + "诺兰" + "的首都" * 30, "诺兰" + " a" * 90, "a " * 90 + "诺兰"])
@pytest.mark.parametrize("budget", [8, 20, 50, 1000])
def test_a_cut_context_keeps_the_whole_answer_wherever_it_stands(text, budget):
    for tokenizer in (conftest.byte_level_tokenizer(), conftest.sentencepiece_tokenizer()):
        cut = cut_around(tokenizer, text, "诺兰", budget)
        assert "诺兰" in cut and cut.strip("… ") in text
        assert cut == text or len(cut) < len(text)


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_a_report_has_every_number_and_says_what_it_lacks(holes):
    seen = []
    report = evaluate(
        roomy(), langs=("en", "de"), limit=3, shots=1, progress=lambda *args: seen.append(args),
        settings=XtremeSettings(answer_tokens={"mlqa": 4, "wikiann": 4}),
    )  # fmt: skip
    assert set(report.missing) == {("pawsx", "de"), ("mlqa", "de")}
    assert report.parts == {"en": TASKS, "de": ("xnli", "wikiann")}
    summary = report.summary.set_index(["task", "lang", "metric"])
    assert list(summary.columns) == ["value", "n", "low", "high"]
    for task in ("pawsx", "mlqa"):
        for metric in TASK_METRICS[task]:
            lacking = summary.loc[task, "de", metric]
            assert np.isnan(lacking["value"]) and lacking["n"] == 0
            assert summary.loc[task, "all", metric]["value"] == summary.loc[task, "en", metric]["value"]
    there = summary[summary["n"] > 0]
    assert there["value"].between(0, 1).all() and (there["low"] <= there["high"]).all()
    main = {task: report.metrics_of(task)[0] for task in TASKS}
    mean = np.mean([summary.loc[task, "de", main[task]]["value"] for task in ("xnli", "wikiann")])
    assert summary.loc["xtreme", "de", "xtreme_f1"]["value"] == pytest.approx(mean)
    mean = np.mean([summary.loc[task, "all", main[task]]["value"] for task in TASKS])
    assert summary.loc["xtreme", "all", "xtreme_f1"]["value"] == pytest.approx(mean)
    assert summary.loc["xtreme", "all", "xtreme_f1"]["n"] == 18
    assert set(report.summary["metric"]) <= set(XTREME_METRICS)
    assert report.table().loc["pawsx_f1", "de"] == "n/a"
    assert "n/a: mlqa in de: no xtreme/mlqa_de.jsonl" in str(report)
    assert "mean of de is over xnli, wikiann" in str(report)
    assert (report.sets["seconds"] > 0).all() and set(report.sets["records"]) == {3}
    assert [args[2:] for args in seen if args[:2] == ("wikiann", "de")][-1] == (3, 3)
    assert len(report.answers) == 18 and not report.answers["record"].isin([f"line {n}" for n in range(1, 11)]).any()


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gpt2"])
def test_the_size_of_batches_changes_nothing_and_a_second_run_repeats_the_first(holes, model_type):
    model = roomy(model_type)
    answer = {"mlqa": 5, "wikiann": 5}
    runs = [
        evaluate(model, langs=("en", "de"), shots=2, settings=XtremeSettings(answer_tokens=answer, cells=cells))
        for cells in (8192, 8192, 1)
    ]
    for other in runs[1:]:
        pd.testing.assert_frame_equal(other.rows, runs[0].rows)
        pd.testing.assert_frame_equal(other.answers, runs[0].answers)
        pd.testing.assert_frame_equal(other.summary, runs[0].summary)


def test_the_likelier_label_word_is_the_prediction_by_the_whole_model(data):
    data("xnli", "de", size=16)
    model = roomy()
    report = evaluate(model, ("xnli",), ("de",), shots=2)
    found = load_task("xnli", "de")
    prompts = build_prompts(model.tokenizer, found, 2)
    from test_shared_prefix import literal

    from langedit_core.tokens import continuation, encode

    for text, said in zip(prompts.texts, report.answers["said"], strict=True):
        ids = encode(model.tokenizer, text)
        scores = [literal(model, ids, continuation(model.tokenizer, text, word)) for word in (" Ja", " Nein")]
        assert said == found.classes[int(np.argmax(scores))]


def test_an_edit_is_seen_because_nothing_is_remembered_between_runs(data):
    data("mlqa", "en")
    model = roomy()
    before = evaluate(model, ("mlqa",), ("en",), shots=1)
    with model.restored():
        for layer in range(model.n_layers):
            model.weight(layer).mul_(-3)
        assert not evaluate(model, ("mlqa",), ("en",), shots=1).answers["said"].equals(before.answers["said"])
    assert evaluate(model, ("mlqa",), ("en",), shots=1).answers["said"].equals(before.answers["said"])


def test_no_xtreme_mean_is_given_when_not_all_tasks_were_asked_for(holes):
    report = evaluate(roomy(), ("xnli", "wikiann"), ("en",), limit=2, shots={"wikiann": 1, "xnli": 1})
    assert "xtreme_f1" not in set(report.summary["metric"])


def test_shots_of_an_unknown_task_and_too_many_are_refused(holes):
    with pytest.raises(ValueError, match="unknown XTREME task 'xlni'; known: xnli"):
        evaluate(roomy(), shots={"xlni": 1})
    with pytest.raises(ValueError, match="12 shots asked of xnli_en.jsonl"):
        evaluate(roomy(), langs=("en",), shots=12)
    with pytest.raises(ValueError, match="no task or no language"):
        evaluate(roomy(), tasks=())


def test_answers_come_back_from_a_file_as_they_were(holes):
    answer = XtremeSettings(answer_tokens={"mlqa": 4, "wikiann": 4})
    report = evaluate(roomy(), langs=("en", "de"), limit=3, shots=1, settings=answer)
    read = unpacked(json.loads(json.dumps(report.packed(), allow_nan=False)))
    keys = ["task", "lang", "record", "metric"]
    assert not read.duplicated(keys).any()
    pd.testing.assert_series_equal(
        read.set_index(keys)["value"].sort_index(), report.rows.set_index(keys)["value"].sort_index()
    )
    known = drawn_values(read, TASKS, ("en", "de"))
    for row in report.summary.itertuples():
        assert known[row.task, row.lang, row.metric][0] == pytest.approx(
            (row.value, row.n, row.low, row.high), nan_ok=True
        )
    with pytest.raises(ValueError, match="shorter"):
        unpacked([dict(task="mlqa", lang="en", record=["a", "b"], measures=dict(mlqa_f1=[1.0]))])


# --- from rows to numbers ---------------------------------------------------------------------------------------------


def rows_of(measures: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame(
        dict(record=f"r{i:02d}", metric=metric, value=value) for metric, values in measures.items()
        for i, value in enumerate(values)
    )  # fmt: skip


def test_f1_of_classes_is_worked_out_by_hand():
    rows = rows_of({"pawsx_gold": [0, 0, 0, 1, 1], "pawsx_predicted": [0, 0, 1, 1, 0], "pawsx_acc": [1, 1, 0, 1, 0]})
    positive, negative = 2 * 2 / (2 * 2 + 1 + 1), 2 * 1 / (2 * 1 + 1 + 1)
    assert corpus_value("pawsx_f1_positive", rows) == pytest.approx(positive)
    assert corpus_value("pawsx_f1", rows) == pytest.approx((positive + negative) / 2)
    assert corpus_value("pawsx_acc", rows) == pytest.approx(0.6)


def test_always_saying_yes_is_worth_two_thirds_on_the_positive_class_and_one_third_on_both():
    rows = rows_of({"pawsx_gold": [0, 1] * 50, "pawsx_predicted": [0] * 100})
    assert corpus_value("pawsx_f1_positive", rows) == pytest.approx(2 / 3)
    assert corpus_value("pawsx_f1", rows) == pytest.approx(1 / 3)


def test_a_class_that_never_occurs_is_left_out_of_the_mean():
    rows = rows_of({"xnli3_gold": [0, 0, 2, 2], "xnli3_predicted": [0, 2, 2, 2]})
    assert corpus_value("xnli3_f1", rows) == pytest.approx((2 / 3 + 4 / 5) / 2)
    rows = rows_of({"pawsx_gold": [1, 1], "pawsx_predicted": [1, 1]})
    assert corpus_value("pawsx_f1_positive", rows) == 0.0


def test_entity_f1_is_of_the_corpus_not_a_mean_of_sentences():
    found = [
        wikiann_measures("LOC: a", "LOC: a", "a b", "en"),
        wikiann_measures("", "PER: a@b@c", "a , b , c", "en"),
    ]
    rows = rows_of({metric: [each[metric] for each in found] for metric in found[0]})
    assert corpus_value("wikiann_f1", rows) == pytest.approx(2 * 1 / (1 + 4))
    assert corpus_value("wikiann_f1_released", rows) == pytest.approx((2 + 2) / 7)


@pytest.mark.parametrize("metric", ["pawsx_f1", "wikiann_f1", "mlqa_f1"])
def test_a_bootstrap_draw_is_the_metric_of_resampled_records(metric):
    rng = np.random.default_rng(0)
    measures = {name: rng.integers(0, 2, 30).astype(float).tolist() for name in ADDITIVE[metric].measures}
    if metric == "wikiann_f1":
        measures = {"wikiann_correct": [0, 1] * 15, "wikiann_predicted": [1, 2] * 15, "wikiann_gold": [2, 1] * 15}
    rows = rows_of(measures)
    counts = rng.multinomial(30, [1 / 30] * 30)
    picked = [i for i, n in enumerate(counts) for _ in range(n)]
    again = rows_of({name: [values[i] for i in picked] for name, values in measures.items()})
    drawn = ADDITIVE[metric].value(counts[None] @ features_of(metric, rows))
    assert float(drawn[0]) == pytest.approx(corpus_value(metric, again))
    found = bootstrap(metric, rows)
    assert found == bootstrap(metric, rows) and found.n == 30
    assert found.low < found.value < found.high
    assert found.value == corpus_value(metric, rows)


def test_an_interval_covers_about_as_often_as_it_says():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(60):
        right = (rng.random(80) < 0.7).astype(float)
        found = bootstrap("mlqa_em", rows_of({"mlqa_em": right.tolist()}))
        hits += found.low <= 0.7 <= found.high
    assert 51 <= hits <= 60


def test_one_record_has_no_interval():
    found = bootstrap("mlqa_f1", rows_of({"mlqa_f1": [0.5]}))
    assert (found.value, found.n) == (0.5, 1) and np.isnan(found.low) and np.isnan(found.high)


def test_rows_that_cannot_make_a_metric_are_refused():
    with pytest.raises(ValueError, match="unknown XTREME metric 'mlqa_f2'; known: mlqa_f1"):
        corpus_value("mlqa_f2", rows_of({"mlqa_f1": [1.0]}))
    with pytest.raises(ValueError, match="pawsx_f1 needs pawsx_gold, pawsx_predicted of every record"):
        corpus_value("pawsx_f1", rows_of({"pawsx_gold": [1.0]}))
    with pytest.raises(ValueError, match="a record occurs twice; give the rows of one task and language"):
        corpus_value("mlqa_f1", pd.concat([rows_of({"mlqa_f1": [1.0]})] * 2))


def test_every_metric_has_a_protocol_and_every_protocol_a_metric():
    assert set(XTREME_METRICS) == {*ADDITIVE, "xtreme_f1"} == {*sum(TASK_METRICS.values(), ()), "xtreme_f1"}
    assert all("\n" not in text and len(text) > 20 for text in XTREME_METRICS.values())


# --- the real files ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    found = available()
    if not any(found.values()):
        pytest.skip("no XTREME files here; they are not ours to redistribute (set LANGEDIT_DATA)")
    return found


def test_the_real_files_load_and_nothing_is_dropped_but_repeats_of_the_pool(real):
    for task, langs in real.items():
        for lang in langs:
            data = load_task(task, lang)
            assert len(data.pool) == POOL and len(data.records) > 200
            assert all("the same texts are in the few-shot pool" in why for why in data.dropped)
            assert len(data.dropped) == (5 if (task, lang) == ("wikiann", "nl") else 0)
            assert lang in LANGUAGES


def test_the_real_labels_score_full_marks_against_themselves(real):
    for lang in real["wikiann"]:
        for example in load_task("wikiann", lang).records:
            found = wikiann_measures(example.answers[0], example.answers[0], example.texts[0], lang)
            assert found["wikiann_correct"] == found["wikiann_gold"] == found["wikiann_predicted"]
            assert found["wikiann_tokens"] == found["wikiann_tokens_right"]


def answers(right: dict[str, int], n: int = 40) -> pd.DataFrame:
    """MLQA of n records per language, of which the first few are answered."""
    return pd.concat(
        [
            rows_of({"mlqa_f1": [1.0] * k + [0.0] * (n - k), "mlqa_em": [0.0] * n, "mlqa_f1_released": [0.0] * n})
            .assign(task="mlqa", lang=lang)
            for lang, k in right.items()
        ],
        ignore_index=True,
    )  # fmt: skip


def test_translations_of_one_item_are_resampled_together():
    """An item answered in both languages or in neither is one piece of news: the mean is as wide as one language's."""
    apart = answers({"en": 20, "de": 20})
    together = apart.assign(record=apart["record"].map("item {}".format))
    half = 1.96 * 0.5 / np.sqrt(40)
    width = {}
    for name, rows in (("apart", apart), ("together", together)):
        found = drawn_values(rows, ("mlqa",), ("en", "de"))
        assert found["mlqa", "all", "mlqa_f1"][0].value == 0.5 and found["mlqa", "all", "mlqa_f1"][0].n == 80
        width[name] = {lang: np.diff(found["mlqa", lang, "mlqa_f1"][0][2:])[0] / 2 for lang in ("en", "all")}
    assert width["apart"] == pytest.approx({"en": half, "all": half / np.sqrt(2)}, rel=0.1)
    assert width["together"] == pytest.approx({"en": half, "all": half}, rel=0.1)


def test_few_items_in_many_languages_are_few():
    """Six translations of five items are five pieces of news, and the interval is Student's of five."""
    langs = ("en", "de", "nl", "es", "fr", "zh")
    rows = answers(dict.fromkeys(langs, 3), n=5)
    apart, together = (
        np.diff(drawn_values(found, ("mlqa",), langs)["mlqa", "all", "mlqa_f1"].value[2:])[0]
        for found in (rows, rows.assign(record=rows["record"].map("item {}".format)))
    )
    one = np.diff(drawn_values(rows, ("mlqa",), ("en",))["mlqa", "en", "mlqa_f1"].value[2:])[0]
    assert together == pytest.approx(one, rel=0.05) and apart < 0.6 * one


def test_a_handful_of_records_that_differ_proves_nothing():
    one, other = answers({"en": 25}, n=100), answers({"en": 20}, n=100)
    found = differences((one, other)).set_index("metric").loc["mlqa_f1"].iloc[0]
    assert found["difference"] == pytest.approx(0.05) and found["p"] == 2.0**-4


def test_items_that_not_all_languages_have_are_drawn_with_those_that_do():
    counts = resample("mlqa", {"en": ["item a", "item b", "item c"], "de": ["item b"], "zh": ["r0", "r1"]}, 500)
    assert {lang: drawn.shape for lang, drawn in counts.items()} == {"en": (500, 3), "de": (500, 1), "zh": (500, 2)}
    drawn = counts["en"][:, 1] > 0
    assert (counts["de"][drawn, 0] == counts["en"][drawn, 1]).all() and 250 < drawn.sum() < 450
    assert (counts["de"][~drawn] == 1).all()  # no draw is empty
    assert (counts["zh"].sum(axis=1) == 2).all()


def test_two_models_are_compared_record_by_record():
    one, other = answers({"en": 30, "de": 20}), answers({"en": 20, "de": 20})
    found = differences((one, other)).set_index(["lang", "metric"])
    assert list(found.index.get_level_values("lang").unique()) == ["en", "de", "all"]
    english, german, both = (found.loc[(lang, "mlqa_f1")] for lang in ("en", "de", "all"))
    assert english["difference"] == 0.25 and german["difference"] == 0.0 and both["difference"] == 0.125
    assert (german[["low", "high"]] == 0).all() and german["p"] == 1.0
    assert english["n"] == 40 and both["n"] == 80
    # The ten records that differ are 10 of 40: the mean of a difference of 0 or 1, not of two rates apart.
    spread = np.sqrt(0.25 * 0.75 / 40)
    assert english["high"] - english["low"] == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert ttest_1samp(np.r_[np.ones(10), np.zeros(30)], 0).pvalue < english["p"] == 2.0**-9  # ten signs say no more
    assert both["p"] < 0.01
    mirrored = differences((other, one)).set_index(["lang", "metric"]).loc[("all", "mlqa_f1")]
    assert (mirrored["difference"], mirrored["low"], mirrored["high"]) == (-0.125, -both["high"], -both["low"])
    assert (both["a"], both["b"]) == (0.625, 0.5)


def test_seeds_are_averaged_and_drawn_independently_of_the_records():
    one, other, third = answers({"en": 30}), answers({"en": 20}), answers({"en": 10})
    once = differences((one, other)).set_index("metric").loc["mlqa_f1"].iloc[0]
    twice = differences((one, other), (one, other)).set_index("metric").loc["mlqa_f1"].iloc[0]
    pd.testing.assert_series_equal(once, twice)
    mixed = differences((one, other), (one, third)).set_index("metric").loc["mlqa_f1"].iloc[0]
    assert mixed["difference"] == pytest.approx(0.375) and mixed["n"] == 40
    assert (mixed["least"], mixed["most"]) == (0.25, 0.5) and once["least"] == once["most"] == 0.25
    # Between two seeds drawn with replacement 0.25, 0.375 or 0.5 is the mean; records vary around it as by hand.
    seeds, records = 0.125**2 / 2, (0.25 * 0.1875 + 0.25 * 0.25 + 0.5 * 0.171875) / 40
    assert mixed["high"] - mixed["low"] == pytest.approx(2 * 1.96 * np.sqrt(seeds + records), rel=0.1)
    assert mixed["high"] - mixed["low"] > 1.5 * (once["high"] - once["low"])


def test_models_that_were_asked_different_records_are_not_compared():
    one = answers({"en": 3}, n=5)
    with pytest.raises(ValueError, match="9 answers of 15 are of one model alone.*compare models that were asked"):
        differences((one, one[one["record"].isin(["r00", "r01"])]))
    with pytest.raises(ValueError, match="nothing to compare"):
        differences()
