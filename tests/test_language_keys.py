"""Languages compared by their keys: the same halves everywhere, tables that name, sentences that count."""

import numpy as np
import pytest
import toy

from langedit_core import language_keys


@pytest.fixture(scope="module")
def lists():
    from conftest import build_model

    return language_keys.list_keys(build_model("llama"), langs=8, facts=24, k=3, layer=1)


def test_core_languages_come_first_and_a_longer_list_begins_with_the_shorter(lists):
    assert lists.langs[:6] == ["en", "de", "nl", "es", "fr", "zh"] and len(lists.langs) == 8
    sizes = {h.first.shape[1] for h in lists.halves.values()} | {h.second.shape[1] for h in lists.halves.values()}
    assert len(sizes) == 1 and sizes.pop() <= 12, "as many keys in every half of every language"
    for matrix in (lists.overlap, lists.centred, lists.taken):
        assert list(matrix.index) == list(matrix.columns) == lists.langs
        assert matrix.to_numpy().min() >= -1e-6 and matrix.to_numpy().max() <= 1 + 1e-5
    assert np.allclose(lists.centred, lists.centred.T) and np.allclose(np.diag(lists.likeness), 1)


def test_tables_say_what_languages_are_and_which_lie_together(lists):
    table = language_keys.per_language(lists).set_index("lang")
    assert table.loc["en", "name"] == "English" and table.loc["zh", "script"] == "Chinese"
    assert table.loc["de", "branch"] == "Germanic" and table.loc["de", "family"] == "Indo-European"
    like = lists.likeness.to_numpy(copy=True)
    np.fill_diagonal(like, -1)
    assert table.loc["en", "most like"] == lists.langs[like[0].argmax()]
    others = lists.taken["en"].drop("en").mean()
    assert table.loc["en", "taken by others"] == pytest.approx(others)
    assert table.loc["en", "taken by itself"] == pytest.approx(lists.taken.loc["en", "en"])


def test_angles_of_named_pairs_are_in_order(lists):
    table = language_keys.angle_table(lists, [("en", "de"), ("en", "en")])
    assert table["languages"].tolist() == ["en – de", "en, split half"]
    for text in table["centred"]:
        small, middle, large = (float(x) for x in text.split(" / "))
        assert 0 <= small <= middle <= large <= 90
    assert len(language_keys.angle_table(lists)) == 9


def test_groups_have_their_sizes_and_small_ones_are_pooled(lists):
    groups = language_keys.group_of(lists, "branch")
    assert groups[:3] == ["Germanic (3)"] * 3 and groups[3:5] == [groups[3]] * 2
    assert any(g.startswith("others (") for g in groups)
    blocks = language_keys.blocks(lists)
    assert list(blocks.index) == list(blocks.columns) and set(blocks.index) == set(groups)


def test_sentences_hold_the_numbers(lists):
    told = language_keys.reading(lists, language_keys.contrast_table(lists))
    off = ~np.eye(8, dtype=bool)
    assert told[0].startswith("lists: 8 languages, up to 24 facts each, layer 1; 3 main directions")
    assert f"takes {lists.taken.to_numpy()[off].mean():.2f} of the energy" in told[1] and "56 ordered pairs" in told[1]
    assert f"{3 / 48:.3f} by chance" in told[2]
    assert all("n = 8 languages" in s for s in told[4:])


def test_facts_of_a_data_set_are_halved_alike_in_every_language(tiny):
    data = toy.fact_set(("en", "de", "fr"))
    found = language_keys.fact_keys(tiny, data, facts=9, k=1, layer=1)
    assert len({h.first.shape[1] for h in found.halves.values()}) == 1
    again = language_keys.fact_keys(tiny, data, facts=9, k=1, layer=1)
    assert again.taken.equals(found.taken)


def test_too_few_facts_for_the_directions_are_refused(tiny):
    with pytest.raises(ValueError, match="ask for more facts or fewer directions"):
        language_keys.list_keys(tiny, langs=4, facts=6, k=5, layer=1)
