"""The end of a sequence is found where it was put, and every failure is real: provoked on a tiny model."""

import numpy as np
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
    found = exhaustion.by_round(Study([failing()]), "atlas")
    assert found["edits"].tolist() == [12, 24, 36, 48, 60] and (found["n"] == 12).all()
    assert found["value"].tolist() == pytest.approx([0.9, 0.9, 0.9, 0.2, 0.2])
    assert found["capacity"].tolist() == pytest.approx([0.5, 0.42, 0.34, 0.26, 0.18])
    row = exhaustion.ends(found).iloc[0]
    assert row["its own edits < 0.5"] == "48" and row["exhausted"] == 4
    (told,) = exhaustion.reading(found, "atlas")
    assert "after 48 edits;" in told and "0.20 [0.20, 0.20] (n = 12 facts)" in told and "4 facts were exhausted" in told


def test_a_sequence_that_never_fails_says_so():
    found = exhaustion.by_round(Study([failing(fails=9), failing("langedit")]), "atlas")
    assert exhaustion.ends(found)["its own edits < 0.5"].tolist() == ["> 60", "48"]
    assert "so these 60 edits do not reach its limit" in exhaustion.reading(found, "atlas")[0]


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
