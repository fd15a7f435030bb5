"""Mixed keys, their curves and sentences, on a tiny model; what was computed once is not computed again."""

import numpy as np
import pandas as pd
import pytest
import torch
import toy

from langedit_core import capacity, capacity_study, subject_keys
from langedit_core.covariance import KeyCovariance
from langedit_core.nullspace import NullSpace

FRACTIONS = (0.5, 1.0)


def mixed(model, results=None, **changes):
    options = dict(facts=14, layer=2, corpus_limit=5, results=results)
    return capacity_study.mixed_keys(model, [toy.fact_set(("en", "de", "zh"))], **(options | changes))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "results"


def test_mixed_keys_are_those_of_their_facts_in_one_order(tiny, home):
    found = mixed(tiny)
    assert found.keys.shape == (tiny.d_ff, 14) and len(found.facts) == 14
    assert found.facts["lang"].nunique() == 3 and found.facts["lang"].tolist() != sorted(found.facts["lang"])
    assert found.counts["used"].sum() == 14 and found.corpus == 15
    assert found.distinct == len(torch.unique(found.keys.round(decimals=3), dim=1).T)
    again = mixed(tiny, facts=6)
    torch.testing.assert_close(again.keys, found.keys[:, :6], rtol=1e-4, atol=1e-4)
    other = mixed(tiny, seed=1)
    assert not torch.equal(other.keys, found.keys)


def test_facts_that_feed_the_covariance_are_never_protected(tiny, home):
    data = toy.fact_set(("en",))
    splits = {i: "corpus" if i.endswith(("0", "1", "2")) else "edit" for i in data.facts}
    held = type(data)(name="toy", facts=data.facts, corpus=data.corpus, splits=splits)
    assert len(capacity_study.mixed_keys(tiny, [held], facts=99, layer=1).facts) == 6


def test_curves_are_computed_once_and_equal_those_of_capacity(tiny, home, monkeypatch):
    keys = mixed(tiny, home)
    found = capacity_study.curves(keys, FRACTIONS, batch=4, checkpoints=2, results=home)
    parts = capacity_study.series(found)
    assert list(parts) == [("exact keys", 0.5), ("exact keys", 1.0), ("running covariance", 0.5)]
    expected = capacity.incremental_curve(NullSpace(d=tiny.d_ff), keys.keys, 4)
    assert parts["exact keys", 1.0]["survival"].to_numpy() == pytest.approx(expected["survival"].to_numpy())
    assert parts["running covariance", 0.5]["protected"].tolist() == [0, 12]
    monkeypatch.setattr(subject_keys, "read_keys", lambda *_, **__: pytest.fail("keys read again"))
    monkeypatch.setattr(capacity_study, "incremental_curve", lambda *_: pytest.fail("curve made again"))
    again = capacity_study.curves(mixed(tiny, home), FRACTIONS, batch=4, checkpoints=2, results=home)
    assert again.equals(found)


def test_tables_and_sentences_say_where_capacity_ends(tiny, home):
    keys = mixed(tiny)
    found = capacity_study.curves(keys, FRACTIONS, batch=2, checkpoints=3)
    table = capacity_study.limits_table(found).set_index(["how", "free share"])
    assert (
        table.loc[("exact keys", 1.0), "free"] == tiny.d_ff and table.loc[("exact keys", 0.5), "free"] == tiny.d_ff // 2
    )
    assert table.loc[("exact keys", 0.5), "≤ 0.5"] == "at once"
    told = capacity_study.predictions(keys, found)
    assert set(told["fraction"]) == set(FRACTIONS) and told["predicted"].between(-1e-9, 1 + 1e-9).all()
    synthetic = capacity_study.synthetic("24 48", results=home)
    assert synthetic.equals(capacity_study.synthetic("24 48", results=home))
    fit = capacity.fit_limits(synthetic)
    read = capacity_study.fit_table(fit.assign(width=0.994, width_se=0.029, error=0.069))
    assert read["a, of d"].eq("0.99 ± 0.03").all() and read["error, median"].eq("7%").all()
    assert len(read) == len(fit) and read["synthetic keys"].tolist() == fit["n"].tolist()
    onto = capacity_study.fitted_on_real(fit, told, found, tiny.d_ff)
    assert len(onto) == len(FRACTIONS) * 2 and (onto["fitted"] > 0).all()
    sentences = capacity_study.reading(keys, found, told, synthetic, fit)
    assert f"n = 14 keys of layer 2 (d_ff = {tiny.d_ff}), 3 languages" in sentences[0]
    assert any("no earlier than exact keys" in s for s in sentences)
    assert any("no curve is predicted" in s for s in sentences) and not capacity_study.enough(keys)


def test_a_prediction_of_many_gaussian_keys_is_close_to_their_curve():
    d = 40
    keys = torch.randn(d, 4000, generator=torch.Generator().manual_seed(0)).double()
    keys *= capacity.power_law(d, 0.5).sqrt()[:, None]
    found = capacity.incremental_curve(NullSpace(d=d), keys, 10).assign(how="exact keys", fraction=1.0)
    nothing = pd.DataFrame()
    made = capacity_study.MixedKeys(
        keys=keys, facts=nothing, distinct=4000, counts=nothing, covariance=KeyCovariance.empty(d),
        corpus=0, layer=0, key={},
    )  # fmt: skip
    assert capacity_study.enough(made)
    errors = capacity_study.model_errors(capacity_study.predictions(made, found))
    assert errors["n"].tolist() == [4] and errors["largest_gap"].iloc[0] < 0.08


@pytest.mark.parametrize(("level", "told"), [(1.0, "at once"), (0.25, "15"), (0.01, "> 20")])
def test_limits_are_told_in_words(level, told):
    curve = pd.DataFrame(dict(protected=[0, 10, 20], survival=[1.0, 0.5, 0.0 + 0.02]))
    curve.loc[2, "survival"] = 0.0 if level == 0.25 else 0.02
    assert capacity_study.told_limit(curve, level) == told


def test_a_damaged_result_is_made_again(tmp_path, caplog):
    made = capacity_study.remembered(tmp_path, "x", {"a": 1}, lambda: [1.5, None])
    (path,) = (tmp_path / "capacity").iterdir()
    assert capacity_study.remembered(tmp_path, "x", {"a": 1}, lambda: pytest.fail("again")) == made
    path.write_bytes(b"no")
    assert capacity_study.remembered(tmp_path, "x", {"a": 1}, lambda: [2]) == [2] and "not whole JSON" in caplog.text


def test_absent_data_are_told_and_a_few_facts_are_found(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    found, absent = capacity_study.available("atlas mzsre")
    assert [of.name for of in found] == ["atlas"] and "mzsre is left out" in absent[0]
    facts = capacity_study.few_facts(tiny, found, 3)
    assert len({f.id for f in facts}) == 3 and {f.lang for f in facts} == {"en"}


def test_an_unfinished_group_of_a_partial_profile_is_told_instead_of_failing(tmp_path):
    studies, told = capacity_study.finished("standard", "exhaustion", str(tmp_path), str(tmp_path), "")
    assert studies == [] and "none of the" in told[0]


def test_infinite_limits_leave_no_nan_in_sentences():
    assert capacity_study.whole(np.nan) == "" and capacity_study.whole(12.4) == "12"


def test_limits_of_real_keys_stand_beside_those_of_their_spectrum():
    x = np.arange(0, 101, 10)
    told = pd.DataFrame(dict(fraction=0.8, protected=x, survival=1 - x / 100, predicted=(1 - x / 80).clip(min=0)))
    fitted = pd.DataFrame({"free share": 0.8, "share": [0.5, 0.1], "fitted": [40.0, 54.0], "measured": [50.0, 90.0]})
    found = capacity_study.beside_spectrum(fitted, told)
    assert found["from the spectrum"].tolist() == pytest.approx([40, 72])
    assert capacity_study.limits_reading(found) == [
        "On these real keys the fit is 20 to 40 % too low (n = 2 limits); the limits told from the spectrum of the "
        "keys are 20 % too low."
    ]
    assert capacity_study.beside_spectrum(fitted, None)["from the spectrum"].isna().all()
    assert "spectrum" not in capacity_study.limits_reading(capacity_study.beside_spectrum(fitted, None))[0]
    assert capacity_study.limits_reading(found.assign(measured=np.nan)) == []
    mixed = capacity_study.limits_reading(found.assign(measured=[50.0, 50.0]))[0]
    assert "the fit is between 20 % too low and 8 % too high" in mixed
