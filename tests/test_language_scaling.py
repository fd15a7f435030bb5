"""More languages told from more edits, on results in which the loss is known."""

import pandas as pd
import pytest
import toy_study

from langedit_core import language_scaling
from langedit_core.analysis import Study
from langedit_core.study import load_data

RUNS = {
    2: ("en", "de", "en", "de", "en", "de"),
    4: ("en", "de", "nl", "es", "en", "de"),
    6: ("en", "de", "nl", "es", "fr", "zh"),
}
COST = {2: 0.1, 4: 0.1, 6: 0.4}  # efficacy lost at the end, by languages: four are as good as two


def run(languages, method="langedit", xtreme=False, batch=12):
    made = toy_study.fabricate(method, langs=RUNS[languages], rounds=1, batch=batch, xtreme=xtreme)
    ids = [[f"atlas/0/{t}/{i}" for i in range(batch)] for t in range(6)]
    made.provenance["facts"] = ids
    rows = made.rows
    values = {"immediate": 0.9, "final": 0.9 - COST[languages]}
    for when, value in values.items():
        rows.loc[(rows["metric"] == "efficacy_tf") & (rows["when"] == when), "value"] = value
    return made


@pytest.fixture(scope="module")
def study():
    return Study([run(n, method) for n in (6, 2, 4) for method in ("memit", "langedit")])


def test_only_facts_edited_in_the_same_position_and_language_by_every_run_are_compared(study):
    (found,) = language_scaling.shared(study, "atlas").values()
    assert {(t, lang) for t, _, lang in found} == {(0, "en"), (1, "de")}
    rows = language_scaling.rows(study, "atlas")
    assert set(rows["position"]) == {0, 1} and set(rows["languages"]) == {2, 4, 6}
    assert rows.groupby(["method", "languages"])["fact"].nunique().eq(24).all()


def test_the_same_facts_are_drawn_in_the_same_positions_whatever_the_languages():
    data = load_data("atlas", RUNS[6])
    drawn = [[[f.id for f in hand] for hand in data.select(langs, 30)] for langs in RUNS.values()]
    assert drawn[0] == drawn[1] == drawn[2]


def test_more_edits_and_more_languages_are_told_apart(study):
    found = language_scaling.prices(study, "atlas")
    mine = found[(found["method"] == "langedit") & (found["metric"] == "efficacy_tf")].set_index("effect")
    assert mine["difference"].to_dict() == pytest.approx(
        {"more edits": -0.1, "4 languages for 2": 0.0, "6 languages for 2": -0.3}, abs=1e-9
    )
    assert mine["verdict"].to_dict() == {
        "more edits": "worse", "4 languages for 2": "no difference shown", "6 languages for 2": "worse"
    }  # fmt: skip
    assert (mine["n"] == 24).all()
    shown = language_scaling.prices_table(found)
    assert shown["metric"].iloc[0] == "efficacy" and shown["difference"].iloc[0] == "-0.10"


def test_tables_and_curves_are_about_the_compared_facts(study):
    table = language_scaling.table(study, "atlas").set_index(["method", "languages"])
    assert table.loc[("langedit", 6), "efficacy"].startswith("0.90 → 0.50") and table.loc[("langedit", 6), "n"] == 24
    design = language_scaling.design(study, "atlas")
    assert design["languages"].tolist() == [2, 4, 6] and (design["edits"] == 72).all()
    assert design["batches"].iloc[1] == "en de nl es en de" and design["methods"].iloc[0] == "memit langedit"
    curve = language_scaling.curve(study, "atlas")
    assert sorted(curve["edits"].unique()) == [12 * (t + 1) for t in range(6)]
    assert 1 < curve["n"].min() == curve["n"].max() < 12  # the facts that were asked again, from their own batch on
    assert list(language_scaling.panels(curve)) == ["memit", "langedit"]


def test_sentences_hold_the_numbers(study):
    prices = language_scaling.prices(study, "atlas")
    told = language_scaling.reading(study, "atlas", prices)
    worse, edits = prices["verdict"] == "worse", prices["effect"] == "more edits"
    counted = f"in {sum(worse & edits)} of {sum(edits)} comparisons, more languages for as many edits in "
    assert f"{counted}{sum(worse & ~edits)} of {sum(~edits)}." in told[0]
    assert any("n = 24 facts after 72 edits" in s and "6 languages 0.50" in s for s in told)
    assert any("6 languages for 2 -0.30" in s and "(worse)" in s for s in told)
    assert "Only 24 facts" in told[-1]


def test_xtreme_is_shown_where_it_was_measured_only(study):
    assert language_scaling.xtreme(study, "atlas").empty
    measured = Study([run(n, xtreme=True) for n in (6, 2)])
    found = language_scaling.xtreme(measured, "atlas")
    prices = language_scaling.prices(measured, "atlas")
    assert found["languages"].tolist() == [2, 6] and "xtreme_f1" not in set(prices["metric"])  # no answers were kept
    table = language_scaling.xtreme_table(found)
    assert table["method"].tolist() == ["unedited", "langedit", "langedit"] and {"en", "de"} <= set(table)
    (sentence,) = language_scaling.xtreme_reading(found, prices, "atlas")
    assert "before any edit" in sentence and "Paired" not in sentence
    assert language_scaling.xtreme_table(language_scaling.xtreme(study, "atlas")).empty


def test_xtreme_is_compared_record_by_record_with_the_unedited_model_and_the_run_in_the_fewest_languages():
    right = {("memit", 2): 16, ("memit", 4): 16, ("memit", 6): 6, ("langedit", 2): 10, ("langedit", 6): 10}
    runs = []
    for (method, n), k in right.items():
        made = run(n, method, xtreme=True)
        answered = [toy_study.xtreme_answers({"en": of, "de": of}, when) for when, of in (("before", 20), ("final", k))]
        made.answers = pd.concat(answered)
        runs.append(made)
    study = Study(runs)
    scores, prices = language_scaling.xtreme(study, "atlas"), language_scaling.prices(study, "atlas")
    assert scores["method"].tolist() == ["memit"] * 3 + ["langedit"] * 2
    mine = prices[prices["metric"] == "xtreme_f1"].set_index(["method", "effect"])
    assert mine["difference"].to_dict() == pytest.approx(
        {
            ("memit", "more edits"): -0.2, ("memit", "4 languages for 2"): 0, ("memit", "6 languages for 2"): -0.5,
            ("langedit", "more edits"): -0.5, ("langedit", "6 languages for 2"): 0,
        },
        abs=0.01,
    )  # fmt: skip
    nothing = mine.loc[("memit", "4 languages for 2")]
    assert nothing["verdict"] == "no difference shown" and nothing[["low", "high"]].tolist() == [0, 0]
    assert mine.loc[("memit", "6 languages for 2"), "verdict"] == "worse" and (mine["n"] == 4 * 2 * 20).all()
    shown = language_scaling.prices_table(prices)
    assert "XTREME F1" in set(shown["metric"])
    facts = prices[prices["metric"] != "xtreme_f1"]
    count = f"of {(facts['effect'] == 'more edits').sum()} comparisons"
    assert any(count in sentence for sentence in language_scaling.reading(study, "atlas", prices))
    told = language_scaling.xtreme_reading(scores, prices, "atlas")
    assert "6 languages for 2 -0.50 [-0." in told[0] and "(worse)" in told[0]
    panels = language_scaling.ends(study, "atlas", scores)
    drawn = panels[panels["metric"] == "xtreme_f1"]
    assert len(drawn) == 5 and drawn["before"].notna().all() and set(panels["metric"]) == set(language_scaling.PANELS)


def test_runs_that_were_asked_different_records_are_not_compared():
    runs = [run(n, xtreme=True) for n in (2, 6)]
    for made, langs in zip(runs, ({"en": 5}, {"en": 5, "de": 5}), strict=True):
        made.answers = toy_study.xtreme_answers(langs, "final")
    with pytest.raises(ValueError, match="compare models that were asked the same records"):
        language_scaling.prices(Study(runs), "atlas")
