"""Traces of many facts: what is asked, what is traced, and what is kept."""

import pandas as pd
import pytest
import torch
import toy
from conftest import build_model

from langedit_core import tracing_study
from langedit_core.errors import RefusedInput
from langedit_core.metrics import score_probes
from langedit_core.records import FactSet
from langedit_core.tracing import ROLES, TraceSettings, trace
from langedit_core.tracing_study import COLUMNS, DIGITS, data_sets, find_known, known_facts, trace_facts, trace_known

FEW = TraceSettings(samples=2, window=2)


def toy_set(model, langs=("en", "de")):
    """Facts whose truth the model says for even numbers only; all held out but the first."""
    facts = {}
    for number in range(8):
        by_lang = {}
        for lang in langs:
            asked = toy.fact(number, lang)
            said = int(model.hf(torch.tensor([model.tokenizer(asked.text).input_ids])).logits[0, -1].argmax())
            other = next(t for t in (" he", " in") if model.tokenizer(t).input_ids[0] != said)
            text = model.tokenizer.decode([said]) if number % 2 == 0 else other
            by_lang[lang] = toy.fact(number, lang, truth=text.strip())
        facts[f"capital/{number}"] = by_lang
    splits = {i: "edit" if i == "capital/0" else "tune" for i in facts}
    return FactSet(name="toy", facts=facts, corpus={}, splits=splits)


@pytest.fixture
def speaking(tiny):
    """A model that says a word with a space before it to whatever is asked."""
    word = tiny.tokenizer(" capital").input_ids
    assert len(word) == 1
    with torch.no_grad():
        tiny.hf.model.norm.weight.fill_(0.01)
        head = tiny.hf.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(len(head.weight)), requires_grad=False)
        head.bias[word[0]] = 10
    return tiny


def test_known_facts_are_those_whose_whole_answer_is_said(speaking):
    data = toy_set(speaking)
    facts = [by_lang["en"] for by_lang in data.facts.values()]
    scores = score_probes(speaking, [(f.text, " " + f.truth) for f in facts])
    assert known_facts(speaking, facts) == [f for f, s in zip(facts, scores, strict=True) if s.em]
    assert [f.id for f in known_facts(speaking, facts)] == [f"capital/{n}" for n in (0, 2, 4, 6)]
    # where no truth is told, the target stands for it
    assert known_facts(speaking, [toy.fact(1, target="capital")]) and not known_facts(speaking, [toy.fact(1)])


def test_only_held_out_facts_are_asked_and_all_are_counted(speaking):
    found = find_known(speaking, toy_set(speaking), ["en", "de"], asked=20, traced=2)
    assert "capital/0" not in {f.id for f in found.facts}
    assert found.counts.to_dict("records") == [
        dict(data="toy", lang=lang, asked=7, merged=0, known=3, traced=2) for lang in ("en", "de")
    ]
    assert [f.lang for f in found.facts] == ["en", "en", "de", "de"]
    assert len({f.id for f in found.facts}) == 2  # the same ones in every language
    assert found.deviation > 0


def test_a_longer_draw_begins_with_the_shorter_one(speaking):
    data = toy_set(speaking)
    few, many = (find_known(speaking, data, ["en"], asked=n, traced=9).facts for n in (4, 7))
    assert few == many[: len(few)]


@pytest.mark.parametrize("changes", [dict(asked=0), dict(traced=0), dict(langs=[])])
def test_nothing_asked_for_is_refused(tiny, changes):
    with pytest.raises(ValueError, match="at least one of each"):
        find_known(tiny, toy.fact_set(), **(dict(langs=["en"], asked=1, traced=1) | changes))


def test_an_unknown_language_is_refused(tiny):
    with pytest.raises(ValueError, match="fr"):
        find_known(tiny, toy.fact_set(), ["fr"], asked=1, traced=1)


def test_rows_are_what_the_trace_holds(tiny_gemma):
    fact = toy.fact(0)
    rows = trace_facts(tiny_gemma, [fact], 0.5, FEW, quiet=True)
    found = trace(tiny_gemma, fact, 0.5, FEW)
    assert list(rows) == list(COLUMNS)
    assert set(rows["role"]) <= set(ROLES)
    for row in rows.itertuples():
        effects = found.scores[row.kind][row.token, row.layer] - found.corrupted
        assert row.effect == pytest.approx(float(effects.mean()), abs=1e-7)
        assert row.error == pytest.approx(float(effects.std()) / 2**0.5, abs=1e-7)
    tokens = sum(role != "before" for role in found.roles)
    assert len(rows) == 4 * (3 * tokens + 2)
    assert rows["clean"].unique() == pytest.approx(found.clean)
    single = trace_facts(tiny_gemma, [fact], 0.5, TraceSettings(samples=1), quiet=True)
    assert single["error"].isna().all() and single["effect"].notna().all()


def test_prompts_do_not_influence_one_another(tiny):
    one, other = toy.fact(0), toy.fact(1, "zh")
    together = trace_facts(tiny, [one, other], 0.5, FEW, quiet=True)
    alone = [trace_facts(tiny, [fact], 0.5, FEW, quiet=True) for fact in (one, other)]
    pd.testing.assert_frame_equal(together, pd.concat(alone, ignore_index=True))


def test_no_fact_gives_no_row(tiny):
    assert trace_facts(tiny, [], 0.5, FEW, quiet=True).empty


def test_finished_traces_are_read_and_only_missing_ones_made(tiny, tmp_path, monkeypatch):
    made = []
    real = tracing_study.trace

    def counted(model, fact, *args, **kwargs):
        made.append(fact.id)
        return real(model, fact, *args, **kwargs)

    monkeypatch.setattr(tracing_study, "trace", counted)
    facts = toy.facts("en", range(3))
    trace_facts(tiny, facts[:2], 0.5, FEW, results=tmp_path, quiet=True)  # as if it had been stopped here
    whole = trace_facts(tiny, facts, 0.5, FEW, results=tmp_path, quiet=True)
    assert made == [f.id for f in facts]
    pd.testing.assert_frame_equal(trace_facts(tiny, facts, 0.5, FEW, results=tmp_path, quiet=True), whole)
    pd.testing.assert_frame_equal(trace_facts(tiny, facts, 0.5, FEW, quiet=True), whole)
    assert len(made) == 6


@pytest.mark.parametrize("change", ["model", "deviation", "settings", "subject", "answer"])
def test_nothing_kept_is_used_for_something_else(tiny, tmp_path, change):
    trace_facts(tiny, [toy.fact(0)], 0.5, FEW, results=tmp_path, quiet=True)
    model, fact, deviation, settings = tiny, toy.fact(0), 0.5, FEW
    if change == "model":
        model = build_model("llama", seed=1)
    elif change == "deviation":
        deviation = 0.25
    elif change == "settings":
        settings = TraceSettings(samples=2, window=1)
    else:
        fact = toy.fact(0, **{"subject": "Norlandia"} if change == "subject" else {"target": "north"})
    kept = trace_facts(model, [fact], deviation, settings, results=tmp_path, quiet=True)
    pd.testing.assert_frame_equal(kept, trace_facts(model, [fact], deviation, settings, quiet=True))
    assert len(list((tmp_path / "tracing").glob("trace-*"))) == 2


def test_what_an_edited_model_does_is_not_kept_as_the_unedited_ones(tiny, tmp_path):
    facts = [toy.fact(0)]
    with tiny.restored(), torch.no_grad():
        assert tiny.fingerprint
        tiny.write_port(1).weight.mul_(1.5)
        with pytest.raises(ValueError, match="a trace cannot be taken: tiny-llama is edited"):
            trace_facts(tiny, facts, 0.5, FEW, results=tmp_path, quiet=True)
        with pytest.raises(ValueError, match="is edited"):
            known_facts(tiny, facts, tmp_path)
        assert len(trace_facts(tiny, facts, 0.5, FEW, quiet=True)), "it may be traced, though"
    assert not list(tmp_path.rglob("*.xz"))


def test_a_damaged_trace_is_made_again(tiny, tmp_path, caplog):
    whole = trace_facts(tiny, [toy.fact(0)], 0.5, FEW, results=tmp_path, quiet=True)
    (path,) = (tmp_path / "tracing").iterdir()
    before = path.read_bytes()
    path.write_bytes(before[: len(before) // 2])
    pd.testing.assert_frame_equal(trace_facts(tiny, [toy.fact(0)], 0.5, FEW, results=tmp_path, quiet=True), whole)
    assert path.read_bytes() == before
    assert "not whole" in caplog.text


def test_a_subject_without_a_boundary_is_refused_by_name(tiny):
    with pytest.raises(RefusedInput, match="capital/0"):
        merged = toy.fact(0, subject="capita", prompt="The {}l of Norland is")
        trace_facts(tiny, [merged], 0.5, FEW, quiet=True)


def test_absent_data_are_said_and_unknown_names_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    found, absent = data_sets("atlas mzsre", ["en", "zh"])
    assert list(found) == ["atlas"]
    assert len(absent) == 1 and absent[0].startswith("mzsre is not traced: no mzsre.jsonl")
    with pytest.raises(ValueError, match="atlas"):
        data_sets("atlass", ["en"])


def test_a_record_of_traces_stands_for_the_traces(speaking, tmp_path, monkeypatch):
    data, ask = toy_set(speaking), dict(asked=20, traced=2, settings=FEW, quiet=True)
    made = trace_known(speaking, data, ["en", "de"], **ask, records=tmp_path)
    known = find_known(speaking, data, ["en", "de"], asked=20, traced=2)
    whole = trace_facts(speaking, known.facts, known.deviation, FEW, quiet=True)
    pd.testing.assert_frame_equal(made.frame, whole, rtol=10.0 ** (1 - DIGITS))
    pd.testing.assert_frame_equal(made.counts, known.counts)

    monkeypatch.setattr(tracing_study, "find_known", None)  # from here on nothing can be asked or traced
    read = trace_known(speaking, data, ["en", "de"], **ask, records=tmp_path)
    pd.testing.assert_frame_equal(read.frame, made.frame)
    assert read.deviation == made.deviation
    for other in (dict(asked=19), dict(traced=1), dict(settings=TraceSettings(samples=1, window=2))):
        with pytest.raises(TypeError):
            trace_known(speaking, data, ["en", "de"], **(ask | other), records=tmp_path)
    with pytest.raises(TypeError):
        trace_known(speaking, data, ["en"], **ask, records=tmp_path)


def test_traces_of_a_model_that_knows_nothing_are_an_empty_frame(speaking, tmp_path):
    data = toy_set(speaking)
    unknown = {i: by for i, by in data.facts.items() if int(i.split("/")[1]) % 2}
    data = FactSet(name="toy", facts=unknown, corpus={}, splits={i: data.splits[i] for i in unknown})
    for _ in range(2):  # made, then read
        found = trace_known(speaking, data, ["de"], asked=9, traced=1, settings=FEW, quiet=True, records=tmp_path)
        assert found.frame.empty and list(found.frame.columns) == list(COLUMNS)
        assert found.counts["known"].tolist() == [0]
