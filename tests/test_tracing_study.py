"""Traces of many facts: what is traced, what is kept, and what is read out of it."""

import numpy as np
import pandas as pd
import pytest
import torch
import toy

from langedit_core import tracing_study
from langedit_core.errors import RefusedInput
from langedit_core.metrics import score_probes
from langedit_core.records import FactSet
from langedit_core.stats import interval
from langedit_core.tracing import KINDS, ROLES, SEVERED, TraceSettings, trace
from langedit_core.tracing_study import (
    COLUMNS,
    Recommendation,
    curve,
    data_sets,
    find_known,
    heat,
    known_facts,
    peaks,
    per_fact,
    reading,
    recommend,
    trace_facts,
)

FEW = TraceSettings(samples=2, window=2)


def made_up(curves, kind="mlp", role="subject_last"):
    """A frame in which fact i of a language has the given effects by layer."""
    rows = [
        dict(fact=f"f/{i}", lang=lang, kind=kind, token=3, role=role, layer=layer, effect=effect, error=0.0)
        | dict(clean=0.9, corrupted=0.1)
        for lang, facts in curves.items()
        for i, effects in enumerate(facts)
        for layer, effect in enumerate(effects)
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def frame():
    """Every kind and role of two languages, three facts each, six layers."""
    rng = np.random.default_rng(0)
    parts = [
        made_up({lang: rng.normal(size=(3, 6)) for lang in ("en", "zh")}, kind, role)
        for kind in KINDS
        for role in (["subject_last"] if kind in SEVERED else ROLES)
    ]
    return pd.concat(parts, ignore_index=True)


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
        from conftest import build_model

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


# --- what is read out -------------------------------------------------------------------------------------------------


def test_tokens_of_a_role_count_as_one_and_facts_alike():
    frame = made_up({"en": [[1.0, 0.0], [0.0, 0.0]]}, role="subject_middle")
    second = frame[frame["fact"] == "f/0"].assign(token=4, effect=0.0)
    effects = per_fact(pd.concat([frame, second]), "mlp", "subject_middle")
    assert effects.to_numpy().tolist() == [[0.5, 0.0], [0.0, 0.0]]
    table = heat(pd.concat([frame, second]), "mlp", "en")
    assert table.index.tolist() == ["subject_middle"] and table.to_numpy().tolist() == [[0.25, 0.0]]


def test_curves_are_means_with_intervals_over_facts(frame):
    pooled = curve(frame, "mlp", "subject_last")
    assert pooled["lang"].unique().tolist() == ["all"] and pooled["n"].unique().tolist() == [6]
    effects = per_fact(frame, "mlp", "subject_last")
    for row in pooled.itertuples():
        assert (row.value, row.n, row.low, row.high) == tuple(interval(effects[row.layer]))
    assert curve(frame, "mlp", "subject_last", by_lang=True)["n"].tolist() == [3] * 12


def test_peaks_are_found_per_language_with_the_interval_of_their_place():
    rng = np.random.default_rng(1)
    bump = np.exp(-((np.arange(9) - 3.0) ** 2))
    sure = bump + 0.01 * rng.normal(size=(20, 9))
    unsure = rng.normal(size=(20, 9))
    table = peaks(made_up({"en": sure, "zh": unsure}), "mlp", "subject_last").set_index("lang")
    assert table.loc["en", ["peak", "low", "high", "n"]].tolist() == [3, 3, 3, 20]
    assert table.loc["zh", "high"] - table.loc["zh", "low"] >= 2
    assert table.loc["zh", "low"] <= table.loc["zh", "peak"] <= table.loc["zh", "high"]
    assert table.loc["en", "effect"] == pytest.approx(sure[:, 3].mean())
    alone = peaks(made_up({"en": sure[:1]}), "mlp", "subject_last").iloc[0]
    assert alone["peak"] == 3 and np.isnan(alone["low"])


def test_recommended_layers_are_neighbours_with_the_most_effect():
    curves = {"en": [[0.9, 0, 0, 0.5, 0.5, 0.5, 0]] * 2, "zh": [[0.0, 0, 0, 0.5, 0.5, 0.5, 0]] * 2}
    found = recommend(made_up(curves), 3, 1)
    assert (found.layers, found.low, found.high, found.n) == ((3, 4, 5), 3, 3, 4)
    assert found.share == pytest.approx(1.5 / 1.95)
    assert recommend(made_up(curves), 1, 1).layers == (3,)
    assert recommend(made_up({"en": curves["en"]}), 1, 1).layers == (0,)
    assert recommend(made_up(curves), 7, 1).share == pytest.approx(1)
    row = found.table("m", "d").iloc[0]
    assert row["layers"] == "3 4 5" and row["n"] == 4


def test_every_language_counts_the_same_whatever_its_number_of_facts():
    curves = {"en": [[1.0, 0.0]] * 30, "zh": [[0.0, 1.5]] * 2}
    assert recommend(made_up(curves), 1, 1).layers == (1,)


def test_a_layer_is_scored_by_the_windows_that_hold_it():
    # only layer 3 matters: with windows l-2 to l+1, those named 2 to 5 hold it, and the middle of these is not 3
    for window, effects in ((4, [0.0, 0, 1, 1, 1, 1, 0, 0]), (3, [0.0, 0, 1, 1, 1, 0, 0, 0])):
        assert recommend(made_up({"en": [effects] * 2}), 1, window).layers == (3,)
        assert recommend(made_up({"en": [effects] * 2}), 3, window).layers == (2, 3, 4)


@pytest.mark.parametrize("width", [0, 8])
def test_a_width_the_model_does_not_have_is_refused(width):
    with pytest.raises(ValueError, match="the model has 7 layers"):
        recommend(made_up({"en": [[0.0] * 7]}), width, 1)


def test_unknown_kinds_and_roles_are_refused(frame):
    with pytest.raises(ValueError, match="attention"):
        per_fact(frame, "attn", "last")
    with pytest.raises(ValueError, match="subject_last"):
        per_fact(frame, "mlp", "subject_lst")
    with pytest.raises(ValueError, match="no trace of hidden_no_mlp at last token"):
        per_fact(frame, "hidden_no_mlp", "last")


def test_sentences_say_the_numbers_of_the_frame(frame):
    found = recommend(frame, 3, 2)
    text = " ".join(reading(frame, found, "gemma-3-270m"))
    assert "from 0.90 to 0.10" in text and "n = 6 facts" in text
    best = peaks(frame, "hidden", "subject_last").iloc[0]
    assert f"hidden {best['effect']:.2f} at layer {best['peak']}" in text
    assert f"layers {', '.join(map(str, found.layers))} bring back most" in text
    assert "hparams.yaml edits 3, 4, 5" in text and f"{len({3, 4, 5} & set(found.layers))} of 3 in common" in text
    assert "no entry for another" in reading(frame, found, "another")[-1]
    whole = frame[~frame["kind"].isin(SEVERED)]
    assert not any("frozen" in sentence for sentence in reading(whole, found, "another"))
    sure = Recommendation(layers=(1,), low=float("nan"), high=float("nan"), share=0.5, n=1)
    assert "between" not in reading(frame, sure, "another")[-1]
