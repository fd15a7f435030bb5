"""The transfer study's parts: a record stands for its model, what is absent is said, sequences are their cells' own."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd
import pytest
import toy
import toy_transfer
from conftest import build_model
from toy_transfer import SETTINGS, frame

from langedit_core import results, study, transfer, transfer_study
from langedit_core.atlas import load_atlas
from langedit_core.atlas_corpus import AtlasCorpus
from langedit_core.atlas_variants import VARIANTS, role_of
from langedit_core.contexts import Contexts
from langedit_core.covariance import cached_covariance
from langedit_core.editors import METHODS, Editor
from langedit_core.factors import stored_updates
from langedit_core.languages import CORE
from langedit_core.metrics import METRICS
from langedit_core.notebooks import check_notebook, check_parameters
from langedit_core.profiles import FOLDER, Profile, load_profile
from langedit_core.records import FactSet
from langedit_core.results import Cell
from langedit_core.storage import read_sealed
from langedit_core.transfer import COLUMNS, TransferSettings, choose, sequence_transfer
from langedit_core.transfer_probes import Questioner

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "notebooks" / "06_transfer.ipynb"
RECORDS = REPOSITORY / "reports" / "standard" / "records"
APART = "atlas-lm-apart"
corpus_of = functools.cache(AtlasCorpus)  # seconds each
TOLD = [fact for fact in corpus_of(VARIANTS[APART]).rows if role_of(fact) == "told"][:4]


@functools.cache
def atlas_under(name: str) -> FactSet:
    return load_atlas(CORE, corpus_of(VARIANTS[name]).subjects)


def load_once(langs, subjects):
    """`load_atlas` with the names of some variant."""
    (name, *_) = (name for name in VARIANTS if corpus_of(VARIANTS[name]).subjects is subjects)
    assert tuple(langs) == CORE
    return atlas_under(name)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(transfer_study, "AtlasCorpus", corpus_of)
    monkeypatch.setattr(transfer_study, "load_atlas", load_once)


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """A data set `toy` that has three of the six languages."""
    monkeypatch.setitem(
        study.LOADERS, "toy", lambda langs: toy_transfer.fact_set(tuple(x for x in langs if x in toy_transfer.LANGS))
    )


def answers() -> pd.DataFrame:
    third = lambda _, source, lang: 1 / 3 if source == lang else 0.0  # noqa: E731
    return frame(third, facts=TOLD, langs=("en", "zh"))


@pytest.fixture
def answered(monkeypatch):
    """Models and edits that cost nothing: the settings they were asked with, and answers that are known."""
    asked = []

    def transferred(model, data, editing, settings, *, among=None, **_):
        asked.append((model, data, settings, among))
        return answers()

    monkeypatch.setattr(transfer_study, "transfer", transferred)
    monkeypatch.setattr(transfer_study, "load_model", lambda name, device: str(name))
    return asked


def no_model(monkeypatch):
    monkeypatch.setattr(transfer_study, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(transfer_study, "transfer", lambda *_, **__: pytest.fail("facts were edited again"))


# --- controlled models ------------------------------------------------------------------------------------------------


def trained(root: Path, name: str) -> Path:
    folder = root / name / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def test_a_record_stands_for_a_model_that_is_not_there(tmp_path, monkeypatch, answered):
    folder = trained(tmp_path / "results", APART)
    options = dict(results=tmp_path / "results", records=tmp_path / "records", quiet=True)
    first = transfer_study.variants([APART], SETTINGS, **options)
    assert [model for model, *_ in answered] == [str(folder)] and not first.absent
    (folder / "model.safetensors").unlink()
    no_model(monkeypatch)
    again = transfer_study.variants([APART], SETTINGS, **options)
    pd.testing.assert_frame_equal(again.frames[APART], first.frames[APART], check_dtype=False)
    assert list(again.frames[APART])[: len(COLUMNS)] == list(COLUMNS)
    assert (tmp_path / "records" / "transfer").is_dir()
    # for other settings the record is of no use, and the model is asked for
    other = transfer_study.variants([APART], SETTINGS.model_copy(update=dict(seed=1)), **options)
    assert not other.frames and "was not trained" in other.absent[0]
    other = transfer_study.variants([APART], SETTINGS, method="alphaedit", **options)
    assert not other.frames


def test_a_record_keeps_five_digits_and_nothing_that_changes_a_verdict(tmp_path, answered):
    found = transfer_study.variants(["atlas-lm"], SETTINGS, results=tmp_path, records=tmp_path, quiet=True)
    columns = found.frames["atlas-lm"][list(COLUMNS)]
    pd.testing.assert_frame_equal(columns, answers(), rtol=1e-4, check_dtype=False)
    (path,) = (tmp_path / "transfer").iterdir()
    assert path.name.startswith("variant-atlas-lm-") and set(read_sealed(path)["margin"]) == {0.0, 3.3333}


def test_an_untrained_variant_is_named_with_the_command_that_trains_it(tmp_path, answered):
    found = transfer_study.variants(["atlas-lm", APART], SETTINGS, results=tmp_path, records=tmp_path, quiet=True)
    assert list(found.frames) == ["atlas-lm"]
    (sentence,) = found.absent
    assert sentence.startswith(f"{APART} was not trained: `python scripts/train_atlas_lm.py --variant {APART}`")
    assert (REPOSITORY / "scripts" / "train_atlas_lm.py").is_file()
    assert len(list((tmp_path / "transfer").iterdir())) == 1  # nothing is kept of the one that is absent


def test_an_unknown_variant_is_refused_with_the_known_ones(tmp_path, answered):
    with pytest.raises(ValueError, match="variant of atlas-lm 'atlas-lm-apar'.*atlas-lm-apart"):
        transfer_study.variants(["atlas-lm-apar"], SETTINGS, results=tmp_path)


def test_all_variants_are_asked_about_the_facts_that_the_bridged_one_was_told(tmp_path, answered):
    for name in (APART, "atlas-lm-same-names"):
        trained(tmp_path, name)
    transfer_study.variants(["atlas-lm", APART, "atlas-lm-same-names"], SETTINGS, results=tmp_path, quiet=True)
    (_, plain, _, told), (_, _, _, apart), (_, same, _, _) = answered
    assert told == apart and set(told) == {fact for fact in plain.facts if role_of(fact) == "told"}
    assert 0 < len(told) < len(plain.facts)
    assert plain.facts["capital/SE"]["de"].subject == "Schweden"
    assert {same.facts["capital/SE"][lang].subject.strip() for lang in CORE} == {"Sweden"}


def test_a_frame_says_what_the_model_was_told(tmp_path, answered):
    trained(tmp_path, APART)
    found = transfer_study.variants(["atlas-lm", APART], SETTINGS, results=tmp_path, quiet=True)
    together = found.frames["atlas-lm"]
    assert together["lang_told"].all() and together.loc[together["source"] != "", "source_told"].all()
    apart, corpus = found.frames[APART], corpus_of(VARIANTS[APART])
    edited = apart[apart["source"] != ""]
    for end in ("source", "lang"):
        expected = [corpus.tells(fact, lang) for fact, lang in zip(edited["fact"], edited[end], strict=True)]
        assert edited[f"{end}_told"].tolist() == expected
    assert not (edited["source_told"] & edited["lang_told"] & (edited["source"] != edited["lang"])).any()


def test_no_committed_record_is_stale(tmp_path, monkeypatch):
    """Every record of a controlled model in the repository is read by the settings of its profile."""
    kept = sorted((RECORDS / "transfer").glob("variant-*"))
    names = {path.name.removeprefix("variant-").removesuffix(".json.xz").rsplit("-", 1)[0] for path in kept}
    assert names
    parameters = load_profile("standard").notebooks["06_transfer"]
    no_model(monkeypatch)
    settings = TransferSettings(facts=parameters["VARIANT_FACTS"])
    found = transfer_study.variants(sorted(names), settings, results=tmp_path, records=RECORDS)
    assert set(found.frames) == names <= set(parameters["VARIANTS"].split()) and len(kept) == len(names)
    for rows in found.frames.values():
        assert not rows[["chosen", "em", "margin"]].isna().any(axis=None)
        assert set(rows["edit"]) == set(transfer.EDITS)
        assert set(rows.groupby(["relation"])["fact"].nunique()) == {settings.facts}


# --- real models ------------------------------------------------------------------------------------------------------


def test_data_sets_that_are_absent_are_said_and_the_others_asked(tmp_path, monkeypatch, answered):
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path))
    model = build_model("llama")
    monkeypatch.setattr(transfer_study, "hyperparameters", lambda *_: toy_transfer.editing())
    options = dict(facts={"mzsre": 9}, results=tmp_path, records=tmp_path / "records", quiet=True)
    found = transfer_study.real(model, "atlas mzsre", SETTINGS, **options)
    assert list(found.frames) == ["atlas"] and found.absent[0].startswith("mzsre is not there: no mzsre.jsonl")
    assert [settings.facts for *_, settings, _ in answered] == [SETTINGS.facts]
    transfer_study.real(model, "atlas", SETTINGS, **options | dict(facts={"atlas": 5}))
    assert answered[-1][2].facts == 5  # as many facts as the data set is given
    no_model(monkeypatch)
    again = transfer_study.real(model, "atlas", SETTINGS, **options)
    pd.testing.assert_frame_equal(again.frames["atlas"], found.frames["atlas"], check_dtype=False)
    with pytest.raises(pytest.fail.Exception, match="edited again"):  # another model's record is none of this one's
        transfer_study.real(build_model("llama", seed=1), "atlas", SETTINGS, **options)


# --- sequences --------------------------------------------------------------------------------------------------------

CHANGES = dict(
    layers=[1, 2], values=dict(steps=3), threshold=dict(kind="fraction", value=0.8), ridge=0.1, relative_ridge=True
)


def profile(**changes) -> Profile:
    grid = dict(
        data=["toy"], methods=["langedit"], langs=["en", "zh"], rounds=2, batch=2, prefixes=1, prefix_tokens=4,
        changes=[CHANGES],
    )  # fmt: skip
    return Profile.model_validate(
        dict(name="t", description="t", model="tiny-llama", notebooks={"06_transfer": {}},
             grids={"transfer": grid | changes})
    )  # fmt: skip


def cell_of(method="langedit", **changes) -> Cell:
    reads = CHANGES if METHODS[method]["space"] != "whole" else {k: v for k, v in CHANGES.items() if k != "ridge"}
    of = profile(methods=[method], changes=[reads]).cells("transfer")[0]
    return of.model_copy(update=changes)


@pytest.fixture
def run(tiny, tmp_path):
    (result,) = study.run_cells([cell_of()], tiny, tmp_path / "results", quiet=True)
    return result


def test_after_a_sequence_answers_are_those_of_the_edited_model(tiny, run, tmp_path):
    root, data = tmp_path / "results", toy_transfer.fact_set()
    unedited = toy.weights(tiny)
    found = sequence_transfer(run, tiny, data, root)
    assert toy.same(toy.weights(tiny), unedited)

    edited = {fact: run.cell.langs[t % 2] for t, facts in enumerate(run.provenance["facts"]) for fact in facts}
    assert len(edited) == 8
    question = Questioner(data, choices=2)
    asked = [q for fact in sorted(edited) for lang in ("en", "de", "zh") for q in question(fact, lang, ("direct",))]
    assert all(q.candidates == (f.target, f.truth) for q in asked for f in [data.facts[q.fact][q.lang]])
    corpus = [text for lang in run.cell.langs for text in data.corpus[lang]]
    prefixes = Contexts.model_validate(read_sealed(results.results_folder(run.cell, root) / "contexts.json"))
    before = choose(tiny, asked)
    with tiny.restored():
        editor = Editor(tiny, run.cell.settings, cached_covariance(tiny, run.cell.settings.layers, corpus), prefixes)
        for updates in stored_updates(run.cell, root):
            editor.apply(updates)
        after = choose(tiny, asked)
    assert before != after
    for when, expected in (("before", before), ("after", after)):
        rows = found[(found["when"] == when) & (found["source"] != "")].set_index(["fact", "lang"])
        assert len(rows) == len(asked)
        for q, numbers in zip(asked, expected, strict=True):
            row = rows.loc[(q.fact, q.lang)]
            # other rows stand in the batches, and so do other roundings
            assert (row["chosen"], row["em"], row["margin"]) == pytest.approx(numbers, abs=1e-4)
            assert row["source"] == edited[q.fact]
            alike = q.lang == row["source"] or "zh" not in (q.lang, row["source"])  # English and German share both
            assert row["same_subject"] == row["same_object"] == alike


def test_as_many_facts_that_were_not_edited_are_asked_and_a_share_can_be(tiny, run, tmp_path):
    data, root, known = toy_transfer.fact_set(), tmp_path / "results", {}
    whole = sequence_transfer(run, tiny, data, root, unedited=known)
    edited = {fact for facts in run.provenance["facts"] for fact in facts}
    spared = set(whole.loc[whole["source"] == "", "fact"])
    assert spared == {i for i in data.facts if data.splits[i] == run.cell.split} - edited or len(spared) == len(edited)
    assert spared and not spared & edited
    some = sequence_transfer(run, tiny, data, root, per_language=1, unedited=known)
    counts = some[some["source"] != ""].groupby("source")["fact"].nunique()
    assert counts.to_dict() == {"en": 1, "zh": 1} and len(known) == 2
    both = some.merge(whole, on=["fact", "lang", "when"], suffixes=("", "_whole"))
    assert len(both) and (both["margin"] - both["margin_whole"]).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["langedit", "rect", "prune", "prune-released"])
def test_after_a_sequence_the_edited_language_says_what_the_study_measured(tiny, tmp_path, method):
    weight = {"covariance_weight": 0.1} if toy.pays_for_the_covariance(method) else {}
    of = cell_of(method, settings=toy_transfer.editing(method, **weight))
    (run,) = study.run_cells([of], tiny, tmp_path, quiet=True)
    found = sequence_transfer(run, tiny, toy_transfer.fact_set(), tmp_path)
    own_language = found[found["source"] == found["lang"]].set_index(["when", "fact"])["em"]
    measured = run.rows[(run.rows["metric"] == "efficacy_em") & (run.rows["kind"] == "edit")].set_index("fact")
    assert "efficacy_em" in METRICS and len(own_language) == 16
    for when, moment in (("before", "before"), ("after", "final")):
        expected = measured[measured["when"] == moment]["value"]
        pd.testing.assert_series_equal(
            own_language[when].sort_index(), expected.sort_index(), check_names=False, check_index_type=False
        )


def test_languages_a_fact_is_not_there_in_are_not_asked(tiny, run, tmp_path):
    (lacking, *_), *_ = run.provenance["facts"]
    data = toy_transfer.fact_set(changed={(lacking, "de"): None})
    found = sequence_transfer(run, tiny, data, tmp_path / "results")
    assert set(found.loc[found["fact"] == lacking, "lang"]) == {"en", "zh"}
    assert set(found.loc[found["fact"] != lacking, "lang"]) == {"en", "de", "zh"}


def test_facts_that_several_languages_edit_are_left_out(tiny, tmp_path):
    of = cell_of(parallel=True)
    (result,) = study.run_cells([of], tiny, tmp_path, quiet=True)
    found = sequence_transfer(result, tiny, toy_transfer.fact_set(), tmp_path)
    assert found.empty and {"fact", "source", "lang", "when", "chosen"} <= set(found)


def test_a_cell_without_its_factors_is_refused_and_the_model_stays(tiny, run, tmp_path):
    unedited = toy.weights(tiny)
    with pytest.raises(FileNotFoundError, match="a record keeps no factors"):
        sequence_transfer(run, tiny, toy_transfer.fact_set(), tmp_path / "elsewhere")
    assert toy.same(toy.weights(tiny), unedited)


def test_sequences_are_computed_once_and_then_read(tiny, tmp_path, monkeypatch):
    of, options = profile(), dict(results=tmp_path / "results", records=tmp_path / "records", quiet=True)
    without = transfer_study.sequences(of, "transfer", tiny, **options, compute=False)
    assert not without.frames and without.absent == [f"{tiny.name}: langedit on toy was not computed"]
    made = transfer_study.sequences(of, "transfer", tiny, **options)
    assert list(made.frames) == ["langedit"] and not made.absent
    (cell,) = of.cells("transfer")
    (result,) = study.run_cells([cell], tiny, tmp_path / "results", quiet=True)
    expected = sequence_transfer(result, tiny, toy_transfer.fact_set(), tmp_path / "results")
    pd.testing.assert_frame_equal(made.frames["langedit"], expected, rtol=1e-4, check_like=True, check_dtype=False)

    finished = transfer_study.sequences(of, "transfer", tiny, results=options["results"], compute=False, quiet=True)
    pd.testing.assert_frame_equal(finished.frames["langedit"], made.frames["langedit"], check_like=True)
    monkeypatch.setattr(transfer_study, "run_cells", lambda *_: pytest.fail("computed again"))
    elsewhere = options | dict(results=tmp_path / "elsewhere")  # the record alone
    read = transfer_study.sequences(of, "transfer", tiny, **elsewhere, compute=False)
    pd.testing.assert_frame_equal(read.frames["langedit"], made.frames["langedit"], check_like=True)
    other = build_model("llama", seed=1)  # of the same name; the record is not about it
    assert transfer_study.sequences(of, "transfer", other, **elsewhere, compute=False).absent


def test_an_odd_order_of_languages_is_part_of_a_name():
    assert transfer_study.label(cell_of()) == "langedit"
    assert transfer_study.label(cell_of(langs=("zh", "en"))) == "langedit, zh first"


@pytest.mark.parametrize(
    "changes", [dict(seeds=[0, 1]), dict(changes=[CHANGES, CHANGES | dict(ridge=0.5)]), dict(data=["toy", "atlas"])]
)
def test_cells_of_one_name_are_refused(tiny, tmp_path, changes):
    with pytest.raises(ValueError, match="several cells of 'transfer' in profile 't' are called langedit;"):
        transfer_study.sequences(profile(**changes), "transfer", tiny, results=tmp_path, quiet=True)
    assert not list(tmp_path.glob("toy-*"))


# --- the notebook -----------------------------------------------------------------------------------------------------

PROFILES = [
    name
    for name in sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if "06_transfer" in load_profile(name).notebooks
]


def test_the_notebook_is_part_of_a_quick_and_of_a_long_profile():
    assert {"smoke", "standard"} <= set(PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_gives_the_notebook_what_it_takes(name):
    chosen = load_profile(name)
    given = check_notebook(NOTEBOOK) | check_parameters(NOTEBOOK, {"PROFILE": name, **chosen.notebooks["06_transfer"]})
    assert given["VARIANTS"].split() and set(given["VARIANTS"].split()) <= set(VARIANTS)
    assert given["DATA"].split() and set(given["DATA"].split()) <= set(study.LOADERS)
    for facts in ("VARIANT_FACTS", "FACTS", "NATURAL_FACTS"):
        assert TransferSettings(facts=given[facts]).facts == given[facts]
    for model in (chosen.model, transfer_study.SMALL):
        cells = chosen.cells("transfer", model)
        names = [transfer_study.label(cell) for cell in cells]
        assert len(set(names)) == len(names) and "alphaedit" in names  # what the sentences compare with
        for cell in cells:
            assert not cell.parallel
        designs = {(cell.data, cell.batch, cell.rounds, cell.split, cell.seed, frozenset(cell.langs)) for cell in cells}
        assert len(designs) == 1  # the same facts for all, so that differences are paired


@pytest.mark.parametrize("parameter", [dict(VARIANT_FACTS="2"), dict(FACT=2), dict(VARIANTS=None)])
def test_the_notebook_refuses_other_parameters(parameter):
    with pytest.raises(ValueError, match=next(iter(parameter))):
        check_parameters(NOTEBOOK, parameter)
