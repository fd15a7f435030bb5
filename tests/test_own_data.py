"""Facts of one's own as a data set of the study: found by name, loaded whole, protected by the right sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from langedit_core.atlas import load_atlas
from langedit_core.errors import RefusedInput
from langedit_core.notebooks import execute
from langedit_core.own_data import load_own, own_names, own_path
from langedit_core.profiles import load_profile
from langedit_core.results import Cell
from langedit_core.study import check_data, load_data

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
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
    assert load_own("capitals", ("en", "de")).corpus == embedded  # which names neither France nor Sweden
    (folder / "facts" / "capitals.de.txt").write_text("Ein Satz.\n\nNoch einer.\n", "utf-8")
    assert load_own("capitals", ("en", "de")).corpus == {"en": embedded["en"], "de": ("Ein Satz.", "Noch einer.")}
    with pytest.raises(RefusedInput, match="no embedded text in cs.* put sentences into capitals.cs.txt"):
        load_own("capitals", ("cs",))
    assert not caplog.records
    assert load_own("capitals", ("en", "cs")).corpus["cs"] == ()
    assert "no text in cs" in caplog.text
    (folder / "facts" / "capitals.cs.txt").write_text("Věta.\n", "utf-8")
    assert load_own("capitals", ("cs",)).corpus == {"cs": ("Věta.",)}


def test_what_is_to_be_edited_is_not_protected(folder):
    write(folder, "more", [fact("AM", "en", "Armenia"), fact("AM", "de", "Armenien"), fact("FR", "en", "France")])
    embedded, mine = load_atlas(("en", "de")).corpus, load_own("more", ("en", "de")).corpus
    named = [text for text in embedded["en"] if "Armenia" in text]
    assert len(named) > 5 and set(mine["en"]) == set(embedded["en"]) - set(named)
    assert not any("Armenien" in text for text in mine["de"]) and len(mine["de"]) < len(embedded["de"])


def test_a_name_of_the_study_is_refused(folder):
    write(folder, "atlas", [fact("FR", "en", "France")])
    with pytest.raises(ValueError, match="'atlas' is a data set of the study, and .*atlas.jsonl has its name; rename"):
        load_data("atlas", ("en",))


def test_what_is_not_there_is_named_with_what_is(folder):
    with pytest.raises(ValueError, match=r"unknown data set 'capitls'; known: capitals, .*LANGEDIT_DATA/facts/NAME"):
        check_data("capitls")
    with pytest.raises(ValueError, match="unknown language of capitals.jsonl 'fr'; known: .*en"):
        load_data("capitals", ("en", "fr"))
    with pytest.raises(FileNotFoundError, match="no data set 'nothing'; facts of your own are"):
        load_own("nothing", ("en",))


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


def test_the_page_of_bare_facts_in_languages_of_their_own_is_made(folder, tmp_path):
    # Four fields per fact, so there is no generality and no specificity; no neutral text in these languages either.
    facts = [fact(key, lang, name) for key, *names in (("FR", "Francie", "Франция"), ("SE", "Švédsko", "Швеция"))
             for lang, name in zip(("cs", "ru"), names, strict=True)]  # fmt: skip
    write(folder, "hory", facts)
    (folder / "facts" / "hory.cs.txt").write_text("Praha leží na Vltavě.\nZima je dlouhá.\n", "utf-8")
    grid = "data: [hory], methods: [memit, langedit], langs: [cs, ru], batch: 1, parallel: true, prefixes: 1"
    text = (
        PROFILE.replace("capitals", "hory").split("  main:")[0]
        + f"  main: {{{grid}, changes: [{{values: {{steps: 2}}}}]}}\n"
    )
    (tmp_path / "hory.yaml").write_text(text)
    given = dict(PROFILE=str(tmp_path / "hory.yaml"), RESULTS=str(tmp_path / "results"), REPORTS=str(tmp_path / "made"))
    execute(NOTEBOOKS / "02_main_runs.ipynb", tmp_path / "out", given, quiet=True)
    figures = {path.name for path in (tmp_path / "made" / "figures").glob("*.svg")}
    assert "main_hory.svg" in figures and "drift_hory.svg" not in figures
    winners = (tmp_path / "made" / "tables" / "winners.csv").read_text()
    assert "generality,n/a" in winners and "efficacy,n/a" not in winners


def test_a_profile_makes_cells_of_them(folder, tmp_path):
    (tmp_path / "mine.yaml").write_text(PROFILE)
    (cell,) = load_profile(tmp_path / "mine.yaml").cells("main")
    assert isinstance(cell, Cell) and cell.data == "capitals" and cell.slug.startswith("capitals-langedit-")
    (tmp_path / "other.yaml").write_text(PROFILE.replace("capitals", "cities"))
    with pytest.raises(ValueError, match="unknown data set 'cities'; known: capitals"):
        load_profile(tmp_path / "other.yaml").cells("main")
