"""Changes of earlier edits are differences from batch to batch, told apart by language and time."""

import numpy as np
import pandas as pd
import pytest

from langedit_core.interference import (
    FINDINGS,
    by_language,
    changes,
    followed,
    kept,
    matrix,
    periods,
    same_and_other,
    shown,
)

LANGS = ("en", "de", "zh")


def retention(rounds=3, facts=4, loss=lambda step, lang, age: 0.0, seeds=(0,), track=None):
    """Facts that start at 1 and lose what `loss` says under every later batch."""
    rows = []
    for seed in seeds:
        for edited in range(rounds * len(LANGS)):
            for i in range(facts):
                value = 1.0
                for step in range(edited, rounds * len(LANGS)):
                    if step > edited:
                        value -= loss(LANGS[step % 3], LANGS[edited % 3], step - edited) * (1 + 0.1 * i)
                    if step == edited or track is None or i < track:
                        row = dict(seed=seed, fact=f"{edited}/{i}", lang=LANGS[edited % 3], edited=edited)
                        rows.append(row | dict(step=step, tf=value))
    return pd.DataFrame(rows)


def test_a_change_belongs_to_the_batch_that_made_it():
    rows = pd.DataFrame(
        [
            dict(seed=0, fact="a", lang="en", edited=0, step=step, tf=tf)
            for step, tf in ((0, 1.0), (1, 0.75), (2, 0.75), (3, 0.25))
        ]
    )
    found = changes(rows, LANGS)
    assert found[["step", "edited", "tested", "round", "change"]].to_numpy().tolist() == [
        [1, "de", "en", 0, -25.0],
        [2, "zh", "en", 0, 0.0],
        [3, "en", "en", 1, -50.0],
    ]


def test_facts_that_are_not_asked_again_change_nothing():
    all_of, some = (changes(retention(track=track, loss=lambda *_: 0.02), LANGS) for track in (None, 2))
    assert len(some) * 2 == len(all_of)
    tracked = followed(retention(track=2))
    assert tracked[tracked["batch"] < 8].groupby("batch")["fact"].nunique().eq(2).all()
    assert tracked[tracked["batch"] == 8]["fact"].nunique() == 4  # nothing comes after the last batch


def test_the_matrix_names_the_guilty_language_and_its_victim():
    rows = retention(facts=1, loss=lambda cause, victim, age: 0.1 if (cause, victim) == ("zh", "en") else 0.0)
    found = matrix(by_language(changes(rows, LANGS)), LANGS)
    assert found.at["zh", "en"] == pytest.approx(-10)
    assert found.drop(index="zh").abs().max().max() == pytest.approx(0) and found.at["zh", "de"] == pytest.approx(0)


def test_the_mean_over_rounds_weighs_facts_and_periods_cover_every_round_once():
    table = by_language(changes(retention(loss=lambda cause, victim, age: 0.01 * age, rounds=4), LANGS))
    found = changes(retention(loss=lambda cause, victim, age: 0.01 * age, rounds=4), LANGS)
    plain = found.groupby(["edited", "tested"])["change"].mean().unstack()
    pd.testing.assert_frame_equal(matrix(table, LANGS), plain.loc[list(LANGS), list(LANGS)], check_names=False)
    parts = periods(table, LANGS, rounds=4, most=3)
    assert list(parts) == ["rounds 1–2", "round 3", "round 4"]
    assert np.isnan(matrix(table[table["round"] == 0], LANGS).at["en", "de"])  # en came before de
    assert list(periods(table, LANGS, rounds=4)) == [f"round {r}" for r in (1, 2, 3, 4)]


@pytest.mark.parametrize(("same", "other", "finding"), [(0.01, 0.03, FINDINGS[0]), (0.03, 0.01, FINDINGS[1])])
def test_the_language_that_hurts_more_is_found(same, other, finding):
    rows = retention(facts=8, loss=lambda cause, victim, age: same if cause == victim else other)
    (row,) = same_and_other({"m": changes(rows, LANGS)}, 3).to_dict("records")
    assert row["finding"] == finding
    assert row["same"].value == pytest.approx(-100 * same * 1.35) and row["n"] == row["same"].n == 5 * 8
    assert row["difference"].value == pytest.approx(row["other"].value - row["same"].value)
    assert row["any"].n == 8 * 8


def test_early_damage_is_not_blamed_on_other_languages():
    """Most is lost right after an edit, when only other languages follow; language itself makes no difference."""
    rng = np.random.default_rng(0)
    rows = retention(rounds=4, facts=10, loss=lambda cause, victim, age: 0.2 / age**2 + rng.normal(0, 0.01))
    found = changes(rows, LANGS)
    naive = found.groupby(found["edited"] == found["tested"])["change"].mean()
    assert naive[False] < naive[True] - 2  # counting all batches would call others far worse
    (row,) = same_and_other({"m": found}, 3).to_dict("records")
    assert abs(row["difference"].value) < 2


@pytest.mark.parametrize(("langs", "rounds"), [(("en", "de"), 2), (("en", "de"), 4), (LANGS, 2), (LANGS, 4)])
def test_damage_that_depends_on_age_alone_shows_no_language(langs, rounds):
    rng, rows = np.random.default_rng(1), []
    for edited in range(len(langs) * rounds):
        for i in range(12):
            value = 1.0
            for step in range(edited, len(langs) * rounds):
                value -= 0.0 if step == edited else 0.2 / (step - edited) + rng.normal(0, 0.01)
                rows.append(
                    dict(
                        seed=0,
                        fact=f"{edited}/{i}",
                        lang=langs[edited % len(langs)],
                        edited=edited,
                        step=step,
                        tf=value,
                    )
                )
    (row,) = same_and_other({"m": changes(pd.DataFrame(rows), langs)}, len(langs)).to_dict("records")
    if len(langs) == 2:
        assert row["n"] == 0 and row["finding"] is None  # the neighbour before is the very first batch
    else:
        assert abs(row["difference"].value) < 2


def test_one_fact_in_several_languages_is_one_fact():
    rows = retention(facts=6, loss=lambda cause, victim, age: 0.02)
    shared = rows.assign(fact=rows["fact"].str.split("/").str[1])  # the same six facts in every batch
    found = same_and_other({"m": changes(shared, LANGS)}, 3).iloc[0]
    assert found["any"].n == found["same"].n == found["n"] == 6


def test_a_cell_is_shown_where_its_interval_excludes_zero():
    rng = np.random.default_rng(2)
    rows = retention(facts=20, loss=lambda cause, victim, age: 0.1 * (cause == "zh") + rng.normal(0, 0.05))
    table = shown(changes(rows, LANGS), LANGS)
    assert table.loc["zh"].all() and table.drop(index="zh").to_numpy().mean() < 0.4
    assert not shown(changes(rows, LANGS).iloc[:0], LANGS).any(axis=None)
    alike = changes(rows, LANGS).assign(change=-10.0)
    assert not shown(alike, LANGS).any(axis=None)  # an interval of no width says nothing
    apart = alike.assign(change=alike["change"] + rng.uniform(0, 1, len(alike)))
    assert shown(apart, LANGS).all(axis=None)


def test_one_round_has_no_test():
    found = changes(retention(rounds=1, loss=lambda *_: 0.1), LANGS)
    (row,) = same_and_other({"m": found}, 3).to_dict("records")
    assert row["finding"] is None and row["n"] == 0 and np.isnan(row["p_holm"]) and row["any"].n == 8


def test_kept_weighs_batches_not_facts():
    rows = retention(facts=4, track=2, loss=lambda *_: 0.05)
    found = kept(rows, first=1).set_index("step")
    own = rows.query("edited == 0 and step == 4")["tf"].mean()
    assert found.at[4, "earliest"] == pytest.approx(own)
    tracked = followed(rows).query("step == 8").groupby("batch")["tf"].mean()
    assert found.at[8, "all"] == pytest.approx(tracked.mean()) and len(tracked) == 9
