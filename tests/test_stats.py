"""Intervals cover what they should, and facts, not probes, are the unit."""

import numpy as np
import pandas as pd
import pytest

from langedit_core.stats import interval, paired_difference, summarise


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [e.low <= 0.7 <= e.high for e in (interval(rng.binomial(1, 0.7, 60).astype(float)) for _ in range(60))]
    assert 0.85 <= np.mean(inside) <= 1.0
    assert not all(e.high - e.low > 0.6 for e in [interval(rng.binomial(1, 0.7, 60).astype(float))])


def test_interval_is_a_function_of_values_and_seed():
    values = np.arange(20) / 20
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_equal_values_have_an_interval_of_width_zero_and_one_value_has_none():
    assert interval(np.ones(5))[2:] == (1.0, 1.0)
    one = interval(np.array([0.5]))
    assert one.n == 1 and np.isnan(one.low) and np.isnan(one.high)


@pytest.mark.parametrize("values", [[], [0.1, np.nan], [np.inf, 1.0]])
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        interval(np.array(values))


def test_probes_of_one_fact_count_once():
    rows = pd.DataFrame(
        dict(fact=fact, lang="en", metric="generality_tf", when="final", value=value, method="m")
        for fact, values in {"a": [1, 1, 1, 1], "b": [0]}.items()
        for value in values
    )
    table = summarise(rows, by=["method"]).set_index("lang")
    assert table.loc["all", "value"] == 0.5 and table.loc["all", "n"] == 2


def test_facts_of_different_seeds_and_languages_are_different_facts():
    rows = pd.DataFrame(
        dict(fact="a", lang=lang, seed=seed, metric="efficacy_tf", when="final", value=1.0, method="m")
        for lang in ("en", "de")
        for seed in (0, 1)
    )
    table = summarise(rows, by=["method"]).set_index("lang")
    assert table["n"].to_dict() == {"all": 4, "en": 2, "de": 2}


def test_paired_difference_uses_common_facts_only_and_is_narrower_than_unpaired():
    rng = np.random.default_rng(1)
    hard = pd.Series(rng.random(50), index=[f"f{i}" for i in range(50)])
    better = (hard + 0.1).drop("f0")
    found = paired_difference(better, hard)
    assert found.n == 49 and found.value == pytest.approx(0.1)
    assert found.high - found.low < 0.02 < interval(hard.to_numpy()).high - interval(hard.to_numpy()).low
    with pytest.raises(ValueError, match="in common"):
        paired_difference(better, hard.rename(lambda name: name + "x"))
