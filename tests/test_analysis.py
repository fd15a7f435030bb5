"""Frames and sentences say what the results hold, on results made of known numbers."""

import pandas as pd
import pytest

from langedit_core import analysis, cli
from langedit_core.editors import settings_for
from langedit_core.study import Cell, CellResult
from langedit_core.tables import COLUMNS, headline, markdown_table

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
        dict(fact=f"f{i}", lang=lang, kind="edit", metric=metric, when=when, value=float(i < 10 * LEVELS[method, when]))
        for when in ("immediate", "final")
        for metric in ("efficacy_tf", "generality_tf", "specificity_same")
        for lang in cell.langs
        for i in range(10)
    ]
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
        seconds=pd.DataFrame(seconds), dropped={"a (zh)": "merges"},
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
    assert list(told) == ["metric", "langedit against", "difference", "n", "p_holm", "verdict"]
    assert told["verdict"].tolist() == tests["verdict"].tolist() and told["p_holm"].tolist() == tests["p_holm"].tolist()
    d = study.compare("atlas", "efficacy_tf", "final", "langedit", "memit")
    assert tests.loc[0, ["difference", "low", "high", "n_facts"]].tolist() == pytest.approx(
        [d.value, d.low, d.high, d.n]
    )
    with pytest.raises(ValueError, match="no rows"):
        study.comparisons("atlas", "langedit", when="before")


def test_the_headline_can_mark_the_best_and_what_does_not_differ_from_it(study):
    shown = markdown_table(headline(study.main, bold=study.bold())).splitlines()[2:]
    final = {line.split("|")[3].strip(): line.count("**") // 2 for line in shown if "| final |" in line}
    at_once = {line.split("|")[3].strip(): line.count("**") // 2 for line in shown if "| immediate |" in line}
    assert final == {"memit": 0, "langedit": 3} and at_once == {"memit": 3, "langedit": 3}


def test_sentences_follow_the_numbers(study):
    text = " ".join(study.reading("atlas"))
    assert "langedit against memit at the end, paired over facts: efficacy higher (+0.60" in text
    assert "n = 20 edits" in text and "memit 0.30, langedit 0.30" in text


def test_retention_is_a_triangle_of_batches_over_time(study):
    table = study.retention("atlas", "memit")
    assert list(table.index) == list(table.columns) == ["1 en", "2 zh"]
    assert table.loc["1 en", "1 en"] == 1.0 and table.loc["1 en", "2 zh"] == 0.25
    assert pd.isna(table.loc["2 zh", "1 en"])


def test_seconds_are_medians_per_batch_and_dropped_facts_are_listed_once(study):
    assert study.seconds("atlas").set_index("method")["values"].to_dict() == {"memit": 1.5, "langedit": 1.5}
    assert study.dropped.to_dict("records") == [dict(data="atlas", fact="a (zh)", reason="merges")]


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
def test_the_command_line_answers_a_mistake_with_one_line_and_status_two(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["langedit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.entry()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
