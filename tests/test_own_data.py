"""Facts of one's own as a data set of the study: found by name, loaded whole, protected by the right sentences."""

from __future__ import annotations

import json

import pytest

from langedit_core.atlas import load_atlas
from langedit_core.errors import RefusedInput
from langedit_core.own_data import load_own, own_names, own_path
from langedit_core.profiles import load_profile
from langedit_core.results import Cell
from langedit_core.study import check_data, load_data

PROFILE = """\
name: mine
description: facts of my own
model: atlas-lm
notebooks: {02_main_runs: {}}
grids:
  main: {data: [capitals], methods: [langedit], langs: [en, de], batch: 1, parallel: true}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder with two facts in English and German, one of them in Czech as well."""
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    (tmp_path / "facts").mkdir()
    write(tmp_path, "capitals", [
        fact("FR", "en", "France"), fact("FR", "de", "Frankreich"), fact("FR", "cs", "Francie"),
        fact("SE", "en", "Sweden"), fact("SE", "de", "Schweden"),
    ])  # fmt: skip
    return tmp_path


def fact(key, lang, subject) -> dict:
    return dict(id=f"capital/{key}", relation="capital", lang=lang, subject=subject, prompt="{}:", target="Lyon")


def write(folder, name, facts) -> None:
    (folder / "facts" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, facts)), "utf-8")


def test_a_file_in_the_data_folder_is_a_data_set_by_its_name(folder):
    assert own_names() == ["capitals"]
    data = load_data("capitals", ("en", "de", "en"))
    assert data.name == "capitals" and data.languages == ("en", "de")
    assert data.counts()["edit"] == {"en": 2, "de": 2}
    lists = data.select(("de", "en"), 2, parallel=True)
    assert sorted(fact.subject for fact in lists[0]) == ["Frankreich", "Schweden"]
    assert [f.id for f in lists[0]] == [f.id for f in lists[1]]
    assert data.fingerprint != load_data("capitals", ("en",)).fingerprint


def test_sentences_are_ones_own_where_there_are_any_and_the_embedded_ones_elsewhere(folder, caplog):
    embedded = load_atlas(("en", "de")).corpus
    assert load_own("capitals", ("en", "de")).corpus == embedded
    (folder / "facts" / "capitals.de.txt").write_text("Ein Satz.\n\nNoch einer.\n", "utf-8")
    assert load_own("capitals", ("en", "de")).corpus == {"en": embedded["en"], "de": ("Ein Satz.", "Noch einer.")}
    with pytest.raises(RefusedInput, match="no embedded text in cs.* put sentences into capitals.cs.txt"):
        load_own("capitals", ("cs",))
    assert not caplog.records
    assert load_own("capitals", ("en", "cs")).corpus["cs"] == ()
    assert "no text in cs" in caplog.text
    (folder / "facts" / "capitals.cs.txt").write_text("Věta.\n", "utf-8")
    assert load_own("capitals", ("cs",)).corpus == {"cs": ("Věta.",)}


def test_what_is_not_there_is_named_with_what_is(folder):
    with pytest.raises(ValueError, match=r"unknown data set 'capitls'; known: capitals, .*LANGEDIT_DATA/facts/NAME"):
        check_data("capitls")
    with pytest.raises(ValueError, match="unknown language of capitals.jsonl 'fr'; known: .*en"):
        load_data("capitals", ("en", "fr"))
    with pytest.raises(FileNotFoundError, match="no data set 'nothing'; facts of your own are"):
        load_own("nothing")


@pytest.mark.parametrize("name", ["../facts/capitals", "", ".capitals", "facts/../capitals", "/etc/passwd"])
def test_a_name_is_no_path(folder, name):
    write(folder, ".capitals", [fact("FR", "en", "France")])
    assert own_path(name) is None and own_names() == ["capitals"]
    with pytest.raises(ValueError, match="unknown data set"):
        load_data(name, ("en",))


def test_a_bad_line_is_refused_with_its_number(folder):
    write(folder, "capitals", [fact("FR", "en", "France"), fact("SE", "en", "Sweden") | dict(prompt="Sweden:")])
    with pytest.raises(RefusedInput, match=r"capitals.jsonl:2: .*expected 1"):
        load_data("capitals", ("en",))


def test_a_profile_makes_cells_of_them(folder, tmp_path):
    (tmp_path / "mine.yaml").write_text(PROFILE)
    (cell,) = load_profile(tmp_path / "mine.yaml").cells("main")
    assert isinstance(cell, Cell) and cell.data == "capitals" and cell.slug.startswith("capitals-langedit-")
    (tmp_path / "other.yaml").write_text(PROFILE.replace("capitals", "cities"))
    with pytest.raises(ValueError, match="unknown data set 'cities'; known: capitals"):
        load_profile(tmp_path / "other.yaml").cells("main")
