"""Frames and sentences say what the results hold, on results made of known numbers."""

import math

import numpy as np
import pandas as pd
import pytest
import toy_study

from langedit_core import analysis, cli, reading
from langedit_core.editors import settings_for
from langedit_core.results import Cell, CellResult
from langedit_core.stats import holm
from langedit_core.tables import COLUMNS, FULL, Bold, headline, markdown_table

LEVELS = {
    ("memit", "final"): 0.2,
    ("langedit", "final"): 0.8,
    ("memit", "immediate"): 0.9,
    ("langedit", "immediate"): 0.9,
}


def fake_result(method: str):
    """What `CellResult` holds, with efficacy as in LEVELS: that share of the ten facts of each language is right."""
    cell = Cell(
        model="m", data="atlas", method=method, settings=settings_for(method, layers=(1,)), langs=("en", "zh"), batch=10
    )
    rows = [
        dict(
            fact=f"{lang}{i}", lang=lang, kind="edit", metric=metric, when=when,
            value=float(i < 10 * LEVELS[method, when]),
        )
        for when in ("immediate", "final")
        for metric in ("efficacy_tf", "generality_tf", "specificity_same")
        for lang in cell.langs
        for i in range(10)
    ]  # fmt: skip
    retention = [
        dict(fact="f", lang=cell.langs[edited], edited=edited, step=step, tf=1.0 if edited == step else 0.25)
        for step in range(2)
        for edited in range(step + 1)
    ]
    numbers = dict(rank=5, capacity=0.5, capacity_min=0.1, relative_update=0.1, relative_total=0.3, written=0.9)
    batches = [
        dict(step=t, lang=cell.langs[t], layer=1, facts=10, steps=5.0, converged=1.0, exhausted=0, **numbers)
        for t in range(2)
    ]
    seconds = [dict(step=t, phase="values", seconds=float(t + 1)) for t in range(2)]
    result = CellResult.__new__(CellResult)  # nothing is read from disk
    vars(result).update(
        cell=cell, rows=pd.DataFrame(rows), retention=pd.DataFrame(retention), batches=pd.DataFrame(batches),
        seconds=pd.DataFrame(seconds), dropped={"a (zh)": "merges"}, xtreme=pd.DataFrame(),
        provenance={},
    )  # fmt: skip
    return result


@pytest.fixture(scope="module")
def study():
    return analysis.Study([fake_result("memit"), fake_result("langedit")])


def test_main_table_has_the_promised_columns_and_numbers(study):
    assert list(study.main) == list(COLUMNS)
    found = study.estimate("atlas", "langedit", "efficacy_tf", "final")
    assert (found.value, found.n) == (0.8, 20) and found.low < 0.8 < found.high
    with pytest.raises(KeyError):
        study.estimate("atlas", "langedit", "efficacy_tf", "before")


def test_comparisons_call_a_difference_only_where_there_is_one(study):
    final = study.comparisons("atlas", "langedit").set_index("metric")
    assert final.loc["efficacy_tf", "verdict"] == "better"
    assert study.comparisons("atlas", "memit").set_index("metric").loc["efficacy_tf", "verdict"] == "worse"
    at_once = study.comparisons("atlas", "langedit", when="immediate").set_index("metric")
    assert at_once.loc["efficacy_tf", "verdict"] == "no difference shown"


def test_tests_are_one_family_in_the_order_of_the_metrics_and_comparisons_are_their_readable_form(study):
    tests, told = study.tests("atlas", "langedit"), study.comparisons("atlas", "langedit")
    assert tests["metric"].tolist() == ["efficacy_tf", "generality_tf", "specificity_same"]
    assert tests["p_holm"].tolist() == pytest.approx((3 * tests["p"]).tolist())  # three equally clear ones
    assert list(told) == ["metric", "method", "against", "difference", "n", "seeds", "p_holm", "verdict"]
    assert told["verdict"].tolist() == tests["verdict"].tolist() and told["p_holm"].tolist() == tests["p_holm"].tolist()
    d = study.compare("atlas", "efficacy_tf", "final", "langedit", "memit")
    assert tests.loc[0, ["difference", "low", "high", "n_facts"]].tolist() == pytest.approx(
        [d.value, d.low, d.high, d.n]
    )
    with pytest.raises(ValueError, match="no rows"):
        study.comparisons("atlas", "langedit", when="before")


def test_each_of_several_references_is_corrected_on_its_own_and_those_not_run_are_left_out(study):
    asked = ("langedit", "memit", "rome")
    both = study.comparisons("atlas", *asked)
    assert both["method"].unique().tolist() == ["langedit", "memit"]
    for method, rows in both.groupby("method"):
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), study.comparisons("atlas", method))
    shown = study.verdicts("atlas", *asked)
    assert shown[["method", "against"]].to_numpy().tolist() == [["langedit", "memit"], ["memit", "langedit"]]
    assert study.compared("rome") == [] and study.compared("rome", "memit") == ["atlas"]


def test_the_headline_can_mark_the_best_and_what_does_not_differ_from_it(study):
    shown = markdown_table(headline(study.main, bold=study.bold())).splitlines()[2:]
    final = {line.split("|")[3].strip(): line.count("**") // 2 for line in shown if "| final |" in line}
    at_once = {line.split("|")[3].strip(): line.count("**") // 2 for line in shown if "| immediate |" in line}
    assert final == {"memit": 0, "langedit": 3} and at_once == {"memit": 3, "langedit": 3}


def test_sentences_follow_the_numbers(study):
    text = " ".join(study.reading("atlas"))
    assert "langedit against memit at the end, paired over facts: efficacy better (+0.60" in text
    assert "n = 20 facts per method, one seed" in text and "memit 0.30, langedit 0.30" in text
    assert "memit 0.90 → 0.20" in text and "langedit 0.90 → 0.80" in text


def test_a_difference_of_one_fact_has_no_interval():
    one = dict(b="memit", metric="efficacy_tf", difference=0.5, low=math.nan, high=math.nan, n_facts=1)
    (sentence,) = reading._against(pd.DataFrame([one | dict(verdict="no difference shown")]), "langedit")
    assert sentence.endswith("paired over facts: efficacy no difference shown (+0.50, n = 1).")


def test_retention_is_a_triangle_of_batches_over_time(study):
    table = study.retention("atlas", "memit")
    assert list(table.index) == list(table.columns) == ["1 en", "2 zh"]
    assert table.loc["1 en", "1 en"] == 1.0 and table.loc["1 en", "2 zh"] == 0.25
    assert pd.isna(table.loc["2 zh", "1 en"])


def test_seconds_are_medians_per_batch_and_dropped_facts_are_listed_once(study):
    assert study.seconds("atlas").set_index("method")["values"].to_dict() == {"memit": 1.5, "langedit": 1.5}
    assert study.dropped.to_dict("records") == [dict(data="atlas", fact="a (zh)", reason="merges")]


MANY = tuple(toy_study.RATES)


@pytest.fixture(scope="module")
def many():
    """Eleven methods, three seeds, two data sets; XTREME on one of them and with one seed."""
    return analysis.Study(
        [
            toy_study.fabricate(method, data, seed, xtreme=data == "mzsre" and seed == 0, **design)
            for data, design in (("bzsre", dict(langs=("en", "zh"))), ("mzsre", dict(langs=("en", "nl", "zh"))))
            for method in MANY
            for seed in range(3)
        ]
    )


@pytest.fixture(scope="module")
def partial():
    """evoedit shares no seed with the others, alphaedit only one; langedit was not run on atlas."""
    runs = [("memit", 0), ("memit", 1), ("alphaedit", 0), ("langedit", 0), ("langedit", 1), ("evoedit", 2)]
    found = [toy_study.fabricate(method, "mzsre", seed, xtreme=False) for method, seed in runs]
    found += [toy_study.fabricate(m, "atlas", xtreme=False, rounds=1, langs=("en", "zh")) for m in ("memit", "rect")]
    return analysis.Study(found, missing=[found[0].cell.model_copy(update=dict(seed=2))])


def test_the_full_table_has_a_row_per_method_and_says_what_it_rests_on(many):
    table = many.table("mzsre").set_index("method")
    assert list(table.index) == list(MANY)
    columns = ["efficacy", "exact match", "generality", "specificity", "portability", "drift KL", "XTREME F1"]
    assert list(table) == [*columns, "edits", "facts", "seeds"]
    assert set(table["edits"]) == {3 * 6 * 6} and set(table["seeds"]) == {3}
    assert table.at["rome", "facts"] == many.estimate("mzsre", "rome", "efficacy_tf", "final").n
    now, end = (many.estimate("mzsre", "rome", "efficacy_tf", when) for when in ("immediate", "final"))
    assert table.at["rome", "efficacy"] == f"{now.value:.2f} → {end.value:.2f} [{end.low:.2f}, {end.high:.2f}]"
    bold = {m for m in MANY if isinstance(table.at[m, "efficacy"], Bold)}
    assert bold == {m for m in MANY if ("toy-270m", "mzsre", m, "final", "efficacy_tf") in many.bold()}
    assert "XTREME F1" not in many.table("bzsre")


def test_winners_are_the_bold_ones_best_first(many):
    winners = many.winners().set_index("metric")
    named = winners.at["efficacy", "mzsre"].split(", ")
    values = [many.estimate("mzsre", m, "efficacy_tf", "final").value for m in named]
    assert values == sorted(values, reverse=True)
    assert values[0] == max(many.estimate("mzsre", m, "efficacy_tf", "final").value for m in MANY)


def test_verdicts_tell_what_the_corrected_tests_show(many):
    shown = many.verdicts("mzsre", "langedit").set_index("against")
    tests = many.tests("mzsre", "langedit").set_index(["b", "metric"])
    for (method, metric), row in tests.iterrows():
        if metric not in FULL:
            continue
        cell = shown.at[method, FULL[metric]]
        shown_to = row["verdict"] in ("better", "worse")
        assert isinstance(cell, Bold) == shown_to and cell.endswith(row["verdict"]) == shown_to
    assert shown.at["ft", "efficacy"].startswith("+") and shown.at["ft", "efficacy"].endswith("better")
    assert shown.at["ft", "drift KL"].startswith("-")  # less drift, and with few paragraphs no verdict


def test_drift_has_intervals_and_no_verdict_and_costs_what_facts_say_nothing(many):
    tests = many.tests("bzsre", "langedit")
    drift = tests[tests["metric"] == "drift_kl"]
    assert "drift_ppl" not in set(tests["metric"])
    assert set(drift["n_facts"]) == {2} and set(drift["verdict"]) == {"not tested"} and drift["p_holm"].isna().all()
    assert drift[["difference", "low", "high"]].notna().all(axis=None)
    assert "drift KL" not in set(many.winners()["metric"]) and not {cell for cell in many.bold() if "drift" in cell[-1]}
    of_facts = tests.drop(index=drift.index)
    assert of_facts["p_holm"].tolist() == pytest.approx(holm(of_facts["p"]))
    assert (of_facts["verdict"] != "no difference shown").any()


def test_sentences_stay_few_when_methods_are_many_and_name_the_reference(many):
    for data in many.datasets:
        sentences = many.reading(data)
        assert len(sentences) <= 6
        assert "langedit" in sentences[0] and f"of {len(MANY)})" in sentences[0] and "3 seeds" in sentences[0]
        assert "langedit against alphaedit" in sentences[2]
        tests = many.tests(data, "langedit")
        tests = tests[tests["verdict"] != "not tested"]
        assert f"Of {len(tests)} corrected comparisons with {len(MANY) - 1} methods" in sentences[3]
        assert f"better in {sum(tests['verdict'] == 'better')}" in sentences[3]


def test_a_partial_study_compares_what_was_run_on_the_same_facts(partial):
    tests = partial.tests("mzsre", "langedit").set_index(["b", "metric"])
    assert set(tests.index.get_level_values("b")) == {"memit", "alphaedit"}
    assert tests.at[("memit", "efficacy_tf"), "n_seeds"] == 2 and tests.at[("alphaedit", "efficacy_tf"), "n_seeds"] == 1
    assert partial.comparisons("mzsre", "langedit")["seeds"].tolist() == tests["n_seeds"].tolist()
    assert not {cell for cell in partial.bold() if cell[2] == "evoedit"}
    assert partial.compared("langedit") == ["mzsre"]
    assert partial.table("mzsre").set_index("method").loc["evoedit", ["edits", "facts", "seeds"]].tolist() == [
        36,
        36,
        1,
    ]
    assert partial.methods_of("atlas") == ["memit", "rect"]
    assert not any("langedit" in sentence for sentence in partial.reading("atlas"))
    design = partial.design().set_index("data")
    assert design["runs"].to_dict() == {"mzsre": 6, "atlas": 2}
    assert design["not finished"].to_dict() == {"mzsre": 1, "atlas": 0}
    assert partial.unfinished() == "Not finished, and not in what follows: mzsre 1 run (memit seed 2)."
    assert design["seeds"].to_dict() == {"mzsre": "1 (memit 2, langedit 2)", "atlas": "1"}
    assert set(partial.winners()) == {"metric", "mzsre", "atlas"}


def test_languages_are_methods_times_languages_in_editing_order(many):
    table = many.languages("mzsre", "efficacy_tf", "final")
    assert list(table.index) == list(MANY) and list(table) == ["en", "nl", "zh"]
    assert table.at["ft", "nl"] == many.estimate("mzsre", "ft", "efficacy_tf", "final", "nl").value


def test_retention_follows_the_facts_that_are_asked_again(many):
    result = next(r for r in many.results if (r.cell.data, r.cell.method, r.cell.seed) == ("mzsre", "rome", 0))
    table = analysis.Study([result]).retention("mzsre", "rome")
    first = result.retention[result.retention["edited"] == 0]
    again = set(first[first["step"] == 1]["fact"])
    assert len(again) < result.cell.batch
    at_once = first[(first["step"] == 0) & first["fact"].isin(again)]
    assert table.iloc[0, 0] == pytest.approx(at_once["tf"].mean())
    whole = result.retention[result.retention["edited"] == result.cell.batches - 1]
    assert table.iloc[-1, -1] == pytest.approx(whole["tf"].mean())


def test_interference_sums_up_to_what_the_followed_facts_lost(many):
    table = many.interference("mzsre", "rome")
    assert list(table) == ["edited", "tested", "round", "change", "n", "seeds"]
    assert set(table["round"]) == {0, 1} and (table["seeds"] == 3).all()
    lost = 0.0
    for r in many.results:
        if (r.cell.data, r.cell.method) == ("mzsre", "rome"):
            of = r.retention[r.retention.groupby("fact")["step"].transform("max") > r.retention["edited"]]
            of = of.sort_values("step").groupby("fact")["tf"]
            lost += 100 * (of.last() - of.first()).sum()
    assert (table["change"] * table["n"]).sum() == pytest.approx(lost)
    matrix = many.interference_matrix("mzsre", "rome")
    assert list(matrix.index) == list(matrix) == ["en", "nl", "zh"] and (matrix.to_numpy() < 0).all()
    over_time = many.interference_periods("mzsre", "rome")
    assert list(over_time) == ["round 1", "round 2"] and np.isnan(over_time["round 1"].at["en", "zh"])


def test_same_and_other_language_are_told_apart_and_one_round_has_nothing_to_compare(many, partial):
    table = many.same_and_other("mzsre").set_index("method")
    assert table.at["rome", "finding"] == "another language hurts more"
    assert table.at["rome", "n"] == 3 * 3 * 2  # seeds, facts asked again, batches with both neighbours
    once = partial.same_and_other("atlas")
    assert list(once) == ["method", "any later batch", "seeds"]


def test_curves_of_kept_edits_start_at_the_first_batch_and_count_edits(many, partial):
    kept = many.kept("mzsre")
    rome = kept[kept["method"] == "rome"].set_index("edits")
    assert list(rome.index) == [6, 12, 18, 24, 30, 36]
    assert rome["earliest"].isna().tolist() == [True] * 2 + [False] * 4  # three batches are the first round
    assert rome["earliest"].iloc[2] == rome["all"].iloc[2] and (rome["earliest"] <= rome["all"]).iloc[2:].all()
    once = partial.kept("atlas")
    assert (once["earliest"] != once["all"]).any()  # one round: the earliest edits are the first batch


def test_xtreme_is_read_per_task_and_language_and_what_is_missing_stays_missing(many):
    found = many.xtreme("mzsre")
    assert list(dict.fromkeys(found["task"])) == ["xnli", "pawsx", "mlqa", "wikiann", "xtreme"]
    assert set(found["metric"]) == {*toy_study.TASKS.values(), "xtreme_f1"} and (found["seeds"] == 1).all()
    table = many.xtreme_table("mzsre").set_index(["task", "method"])
    assert table.at[("xnli", "rome"), "nl"] == "n/a" and table.at[("pawsx", "rome"), "nl"] != "n/a"
    assert table.at[("xnli", "unedited"), "n"] == table.at[("xnli", "rome"), "n"] == 100
    before, final = (
        found.query("task == 'xnli' and lang == 'all' and method == 'rome' and `when` == @when")["value"].item()
        for when in ("before", "final")
    )
    assert table.at[("xnli", "rome"), "all"].startswith(f"{before:.2f} → {final:.2f} [")
    assert table.at[("xnli", "rome"), "seconds"] == "40"
    seconds = many.xtreme_seconds().set_index("task")
    assert seconds.at["mlqa", "n/a in"] == "nl" and seconds.at["mlqa", "seconds"] == 40
    assert many.xtreme("bzsre").empty


def test_xtreme_of_a_part_of_the_seeds_is_told_and_not_tested():
    runs = [toy_study.fabricate(method, "mzsre", seed) for method in ("langedit", "memit") for seed in (0, 1)]
    for r in runs:
        k = 18 if r.cell.method == "langedit" else 2
        r.answers = toy_study.xtreme_answers({"en": k, "zh": k}, "final")
    whole = analysis.Study(runs).xtreme_tests("mzsre", "langedit").iloc[0]
    assert whole["n_seeds"] == 2 and whole["verdict"] == "better" and whole["p_holm"] < 0.05
    runs[0].answers = runs[0].answers.iloc[:0]  # computed before answers were kept
    part = analysis.Study(runs).xtreme_tests("mzsre", "langedit").iloc[0]
    assert part["n_seeds"] == 1 and part["verdict"] == "not tested" and np.isnan(part["p_holm"])
    assert part["difference"] == whole["difference"] and part["low"] > 0


def test_methods_of_several_seeds_are_told_seed_by_seed(partial):
    found = partial.by_seed("mzsre").set_index(["method", "seed"])
    assert list(found.index) == [("memit", 0), ("memit", 1), ("langedit", 0), ("langedit", 1)]
    of = found.xs("memit", level="method")
    assert of["efficacy"].mean() == pytest.approx(partial.estimate("mzsre", "memit", "efficacy_tf", "final").value)
    assert of["efficacy"].nunique() == 2 and (of["n"] > 0).all() and of["xtreme_f1"].isna().all()
    assert partial.by_seed("atlas").empty


def test_an_interval_of_xtreme_is_no_narrower_for_more_seeds():
    runs = [toy_study.fabricate("memit", "mzsre", seed) for seed in (0, 1)]
    one, two = (analysis.Study(runs[:n]).xtreme("mzsre") for n in (1, 2))
    width = [(f["high"] - f["low"]).dropna() for f in (one, two)]
    assert np.allclose(*width) and set(two["seeds"]) == {2}
    assert np.allclose(two["n"], one["n"])


def test_throughput_is_the_median_rate_with_and_without_measuring_on_its_machine(many):
    table = many.throughput().set_index("method")
    assert list(table.index) == list(MANY)
    seconds = 6.0 + 0.2 + toy_study.RATES["rome"] + 0.1 + 0.1
    assert float(table.at["rome", "bzsre"]) == pytest.approx(60 * 6 / seconds, abs=0.05)
    assert float(table.at["rome", "bzsre, measured"]) == pytest.approx(60 * 6 / (seconds + 3), abs=0.05)
    assert table.at["rome", "machine"] == "cpu, x86_64, 1 thread, torch 2.13.0"


def test_machines_are_not_mixed():
    here, there = (toy_study.fabricate("memit", data, xtreme=False) for data in ("atlas", "mzsre"))
    there.environment = there.environment | dict(threads=2)
    table = analysis.Study([here, there]).throughput().set_index("machine")
    assert table.loc["cpu, x86_64, 2 threads, torch 2.13.0", "atlas"] == ""
    assert float(table.loc["cpu, x86_64, 1 thread, torch 2.13.0", "atlas"]) > 0


def test_a_study_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no results"):
        analysis.Study([])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--profile", "quik"], "unknown profile 'quik'; known: quick"),
        (["inspect", "gemma-3-270"], "gemma-3-270m"),
        (["report", "--profile", "smoke", "--output-path", "nowhere"], "run `langedit run --profile smoke` first"),
    ],
)
def test_the_command_line_answers_a_mistake_with_one_line_and_status_one(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["langedit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.entry()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_runs_without_paraphrases_or_neighbours_are_told_by_seed_too():
    study = analysis.Study([toy_study.fabricate("memit", "own", seed, xtreme=False) for seed in (0, 1)])
    for result in study.results:
        result.rows = result.rows[result.rows["metric"].str.startswith("efficacy")]
    found = study.by_seed("own")
    assert found["seed"].tolist() == [0, 1] and found["efficacy"].notna().all() and found["generality"].isna().all()
