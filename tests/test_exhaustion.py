"""The end of a sequence is found where it was put, and every failure is real: provoked on a tiny model."""

import numpy as np
import pandas as pd
import pytest
import torch
import toy
import toy_study

from langedit_core import exhaustion
from langedit_core.analysis import Study
from langedit_core.profiles import hyperparameters


def failing(method="evoedit", rounds=5, fails=3):
    """A fabricated sequence whose batches succeed until round `fails`."""
    made = toy_study.fabricate(method, langs=("en", "de"), rounds=rounds, batch=6)
    kept = made.retention
    own = kept["edited"] == kept["step"]
    kept.loc[own, "tf"] = np.where(kept.loc[own, "step"] // 2 < fails, 0.9, 0.2)
    made.batches["capacity"] = 0.5 - 0.08 * (made.batches["step"] // 2)
    made.batches.loc[made.batches["step"] >= 8, "exhausted"] = 2
    return made


def test_rounds_gather_their_batches_and_the_end_is_the_first_that_fails():
    study = Study([failing()])
    found, batches = exhaustion.by_round(study, "atlas"), exhaustion.by_batch(study, "atlas")
    assert found["edits"].tolist() == [12, 24, 36, 48, 60] and (found["n"] == 12).all()
    assert found["value"].tolist() == pytest.approx([0.9, 0.9, 0.9, 0.2, 0.2])
    assert found["capacity"].tolist() == pytest.approx([0.5, 0.42, 0.34, 0.26, 0.18])
    row = exhaustion.ends(found, batches).iloc[0]
    assert row["its own edits < 0.5"] == "42" and row["exhausted"] == "4"
    (told,) = exhaustion.reading(found, batches, "atlas")
    assert "first fall below an efficacy of 0.5 after 42 edits (0.20, n = 6 facts)" in told
    assert "0.20 (n = 12 facts)" in told and "4 facts were exhausted" in told


def test_a_sequence_that_never_fails_says_so():
    study = Study([failing(fails=9), failing("langedit")])
    found, batches = exhaustion.by_round(study, "atlas"), exhaustion.by_batch(study, "atlas")
    assert exhaustion.ends(found, batches)["its own edits < 0.5"].tolist() == ["> 60", "42"]
    told = exhaustion.reading(found, batches, "atlas")[0]
    assert "no batch's own edits fall below an efficacy of 0.5 within 60 edits" in told
    assert "No direction is left" not in told


@pytest.mark.parametrize(("fails", "since"), [(0, "from the first batch on"), (1, "in the first batch already")])
def test_what_fails_from_the_first_batch_on_never_fell(fails, since):
    made = failing(fails=0)
    if fails:
        later = (made.retention["edited"] == made.retention["step"]) & (made.retention["step"] > 0)
        made.retention.loc[later, "tf"] = 0.9
    study = Study([made])
    batches = exhaustion.by_batch(study, "atlas")
    row = exhaustion.crossings(batches).iloc[0]
    assert (row["own_below"], row["first_edits"], row["edits"]) == (6, 6, 60)
    assert row["first_value"] == pytest.approx(0.2) and row["first_capacity"] == pytest.approx(0.5)
    (told,) = exhaustion.reading(exhaustion.by_round(study, "atlas"), batches, "atlas")
    assert f"a batch's own edits are below an efficacy of 0.5 {since} (0.20, n = 6 facts)" in told
    assert "where capacity is 0.50" in told and "fall below an efficacy" not in told


def test_the_last_direction_is_gone_before_the_batch_that_finds_none():
    made = failing()
    made.batches.loc[made.batches["step"] >= 4, "rank"] = 0
    row = exhaustion.crossings(exhaustion.by_batch(Study([made]), "atlas")).iloc[0]
    assert row["full_after"] == 24, "four batches of six were edited before"
    other = exhaustion.crossings(exhaustion.by_batch(Study([failing("langedit", fails=9)]), "atlas")).iloc[0]
    assert pd.isna(other["full_after"]) and pd.isna(other["own_below"])


def test_batches_are_told_from_the_first_on():
    study = Study([failing(fails=9), failing("langedit")])
    found = exhaustion.by_batch(study, "atlas")
    cell = study.cell("atlas")
    assert (
        found.groupby("method")["edits"].apply(list).tolist()
        == [[cell.batch * (t + 1) for t in range(cell.batches)]] * 2
    )
    rounds = exhaustion.by_round(study, "atlas").set_index(["method", "edits"])
    at_end = found.set_index(["method", "edits"]).loc[rounds.index]
    assert at_end["sofar"].tolist() == pytest.approx(rounds["sofar"].tolist())
    assert (found["low"] <= found["value"]).all() and (found["n"] == cell.batch).all()
    means = found[found["method"] == "langedit"]["value"].to_numpy().reshape(-1, len(cell.langs)).mean(1)
    assert means == pytest.approx(rounds.loc["langedit", "value"].to_numpy())


def test_studies_are_paired_with_their_data_sets():
    study = Study([failing()])
    assert exhaustion.runs([study]) == [(study, "atlas")] and exhaustion.runs([]) == []


@pytest.fixture
def provoked(tiny, monkeypatch):
    def quick(model, method, **changes):
        return hyperparameters(model, method, **(dict(ridge=0.03) | changes))

    monkeypatch.setattr(exhaustion, "hyperparameters", quick)
    before = toy.weights(tiny)
    covariance = toy.covariances(tiny, (2,))[2]
    found = exhaustion.signatures(tiny, covariance, 2, toy.facts("en", (0, 2)))
    assert toy.same(toy.weights(tiny), before), "the model is as it was"
    return found.set_index("failure")


def test_every_failure_is_reported_and_leaves_the_model_as_it_was(provoked):
    says = provoked["the report says"]
    assert "exhausted = 2 of 2 facts" in says["keys without energy"]
    assert "0.0e+00" in provoked.loc["keys without energy", "consequence"]
    assert "rank = 0, exhausted = 2 of 2" in says["rank 0"] and "0.0e+00" in provoked.loc["rank 0", "consequence"]
    low, high = (float(x) for x in says["values not written"].split(";")[0].removeprefix("written = ").split(" and "))
    assert low > 0.9 and high < 0.1
    assert "FloatingPointError: batch 0" in says["NaN"] and "as it was before" in says["NaN"]
    assert "the weights are those before it" in provoked.loc["NaN", "consequence"]
    assert float(provoked.loc["updates that grow", "consequence"].split()[4]) > 1
    assert len(provoked) == 6


def test_a_second_edit_of_the_same_facts_finds_its_keys_protected_by_exact_keys_only(tiny):
    covariance = toy.covariances(tiny, (2,))[2]
    of = exhaustion.Provoker(tiny, covariance, 2, toy.facts("en", (0, 2)))
    exact, running = (of.run(m, times=2, ridge=0.03)[0][1].layers[2] for m in ("evoedit", "langedit"))
    assert (
        exact.capacity < 1e-9 and torch.isfinite(torch.tensor(running.capacity)) and running.capacity > exact.capacity
    )
