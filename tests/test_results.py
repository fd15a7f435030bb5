"""Records say what the cells said, a stopped profile shows what it has, and nothing is computed twice."""

from __future__ import annotations

import lzma
import math
import time
from types import SimpleNamespace

import pandas as pd
import pytest
import toy_study
from pandas.testing import assert_frame_equal

from langedit_core import cli, editors, profiles, results, study
from langedit_core.analysis import open_study
from langedit_core.profiles import Profile
from langedit_core.results import Cell, CellResult, has_record, is_done, keep_record, load_result, record_path
from langedit_core.storage import read_json, write_json
from langedit_core.study import run_cells

CELL = toy_study.cell()
FRAMES = ("rows", "retention", "drift", "xtreme", "batches", "seconds")


@pytest.fixture(autouse=True)
def world(monkeypatch, tmp_path):
    """The toy data set under its name, and an empty cache."""
    monkeypatch.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Results of the cell, and its record: (root, records)."""
    patch = pytest.MonkeyPatch()
    patch.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
    root, records = tmp_path_factory.mktemp("results"), tmp_path_factory.mktemp("records")
    run([CELL], root)
    assert keep_record(CELL, root, records) == record_path(CELL, records)
    patch.undo()
    return root, records


def run(cells, root, **options):
    return run_cells(cells, toy_study.model(), root, quiet=True, **options)


@pytest.fixture
def no_editing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a batch was computed")

    monkeypatch.setattr(editors.Editor, "edit", refuse)


def same(one: CellResult, other: CellResult) -> None:
    for name in FRAMES:
        assert_frame_equal(getattr(one, name), getattr(other, name))
    assert (one.dropped, one.provenance, one.environment) == (other.dropped, other.provenance, other.environment)


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_holds_all_that_the_cell_measured_in_one_small_file(computed, tmp_path):
    root, records = computed
    same(load_result(CELL, tmp_path, records), load_result(CELL, root))
    (record,) = records.iterdir()
    whole = sum(f.stat().st_size for f in results.results_folder(CELL, root).iterdir() if f.suffix == ".json")
    assert record.stat().st_size < whole / 4
    assert CELL.hash in record.name


def test_a_cell_with_a_record_is_not_computed(computed, tmp_path, no_editing):
    (result,) = run([CELL], tmp_path, records=computed[1])
    same(result, load_result(CELL, computed[0]))
    assert not list(tmp_path.glob("toy-*"))


def test_equal_results_give_equal_records_and_a_record_is_written_once(computed, tmp_path):
    root, records = computed
    assert keep_record(CELL, root, records) is None
    assert keep_record(CELL, root, tmp_path).read_bytes() == record_path(CELL, records).read_bytes()
    assert keep_record(toy_study.cell(seed=7), root, tmp_path) is None  # not finished
    assert [f.name for f in tmp_path.iterdir() if f.suffix == ".xz"] == [record_path(CELL, records).name]


@pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "not compressed"])
def test_a_damaged_record_is_passed_over_with_a_warning(damage, computed, tmp_path, caplog):
    path = record_path(CELL, tmp_path)
    content = record_path(CELL, computed[1]).read_bytes()
    plain = lzma.decompress(content).decode()
    altered = plain.replace('"tf": 0.0', '"tf": 1.0', 1)
    assert altered != plain
    path.write_bytes(
        {
            "truncated": content[:-30],
            "altered": lzma.compress(altered.encode()),
            "empty": b"",
            "not compressed": plain.encode(),
        }[damage]
    )
    assert not has_record(CELL, tmp_path)
    assert "record of" in caplog.text and "not used" in caplog.text
    with pytest.raises(FileNotFoundError, match="is not finished"):
        load_result(CELL, tmp_path, tmp_path)


def test_a_record_of_another_engine_or_another_model_is_not_used(computed, tmp_path, monkeypatch):
    other = toy_study.model()
    other.fingerprint = "f" * 64
    with pytest.raises(ValueError, match=f"{CELL.hash}.json.xz was made with other inputs .model_fingerprint differ"):
        run_cells([CELL], other, tmp_path, quiet=True, records=computed[1])
    monkeypatch.setattr(results, "ENGINE", results.ENGINE + 1)
    assert not has_record(CELL, computed[1])  # the hash, and so the name, is another


# --- a long profile, in parts -----------------------------------------------------------------------------------------


def test_no_cell_is_begun_after_the_time_is_over(tmp_path, no_editing):
    assert run([CELL], tmp_path, until=time.monotonic()) == []
    with pytest.raises(AssertionError, match="was computed"):
        run([CELL], tmp_path, until=math.inf)


def profile(monkeypatch, **changes) -> Profile:
    """Two methods on the toy data, partial unless changed."""
    monkeypatch.setattr(profiles, "hyperparameters", lambda model, method, **_: toy_study.cell(method).settings)
    grid = dict(
        data=["toy"], methods=["evoedit", "memit"], langs=["en", "de"], rounds=2, batch=2, prefixes=1, prefix_tokens=4
    )
    fields = dict(name="toy", description="d", model="tiny-llama", notebooks={"00": {}}, grids={"g": grid})
    return Profile(**(fields | dict(partial=True) | changes))


def test_a_partial_profile_shows_what_is_finished_and_names_the_rest(computed, tmp_path, monkeypatch, no_editing):
    toy = profile(monkeypatch)
    assert [cell.method for cell in toy.cells("g")] == ["evoedit", "memit"]
    found = open_study(toy, "g", tmp_path, records=computed[1])
    assert found.methods == ["evoedit"] and [cell.method for cell in found.missing] == ["memit"]
    with pytest.raises(FileNotFoundError, match="none of the 2 cells of 'g' is finished .* --profile toy --hours 1"):
        open_study(toy, "g", tmp_path)


def test_a_profile_that_is_not_partial_computes_what_is_missing(computed, tmp_path, monkeypatch, no_editing):
    toy = profile(monkeypatch, partial=False)
    with pytest.raises(AssertionError, match="was computed"):
        open_study(toy, "g", tmp_path, records=computed[1], model=toy_study.model(), quiet=True)


def test_a_group_may_hold_several_grids_and_one_may_stand_alone(monkeypatch):
    one = profile(monkeypatch)
    grid = one.grids["g"][0].model_dump()
    two = profile(monkeypatch, grids={"g": [grid, grid | dict(langs=["en"], seeds=[1, 2], track=3)]})
    assert len(one.cells("g")) == 2 and len(two.cells("g")) == 2 + 4
    assert {(cell.langs, cell.track) for cell in two.cells("g")[2:]} == {(("en",), 3)}


def test_a_field_that_came_later_leaves_earlier_cells_their_hash():
    """What is committed under reports/ was computed before `deal` existed."""
    assert "deal" not in CELL.model_dump(mode="json") and CELL.model_copy(update=dict(deal="rounds")) == CELL
    dealt = CELL.model_copy(update=dict(deal="lists"))
    assert dealt.hash != CELL.hash and Cell.model_validate_json(dealt.model_dump_json()) == dealt


def test_shares_of_the_cells_are_disjoint_and_together_all():
    cells = list(range(7))
    shares = [cli.share(cells, f"{i}/3") for i in (1, 2, 3)]
    assert sorted(x for part in shares for x in part) == cells
    assert cli.share(cells, None) == cells
    for wrong in ("0/3", "4/3", "1", "1/0", "a/b", "1/2/3"):
        with pytest.raises(ValueError, match="expected i/n"):
            cli.share(cells, wrong)


# --- what a cell measures ---------------------------------------------------------------------------------------------


def test_tracked_facts_are_asked_again_and_the_others_only_once(tmp_path):
    cell = toy_study.cell(track=1)
    retention = run([cell], tmp_path)[0].retention
    assert len(retention) == 4 * 2 + (1 + 2 + 3)  # a whole batch at its own time, one fact of it later
    own = retention[retention["step"] == retention["edited"]]
    later = retention[retention["step"] > retention["edited"]]
    assert (own.groupby("edited").size() == 2).all()
    assert (later.groupby(["edited", "step"]).size() == 1).all()
    assert later.groupby("edited")["fact"].nunique().max() == 1  # the same fact each time


def test_prune_takes_the_batches_of_a_finished_memit_and_ends_as_if_it_had_made_them(tmp_path, monkeypatch):
    monkeypatch.setattr(editors, "damp", lambda total, *_: 0.0 * total)  # so that damping shows on a tiny model
    damped = toy_study.cell("prune")
    settings = damped.settings.model_copy(update=dict(damping=None))
    plain = damped.model_copy(update=dict(method="memit", settings=settings))
    alone = run([damped], tmp_path / "alone")[0]
    undamped = run([plain], tmp_path / "both")[0]
    monkeypatch.setattr(editors.Editor, "edit", lambda *_, **__: pytest.fail("a batch was computed"))
    taken = run([damped], tmp_path / "both")[0]
    assert toy_study.sealed(tmp_path / "both", damped) == toy_study.sealed(tmp_path / "alone", damped)
    assert_frame_equal(taken.rows, alone.rows)
    same_at_once = [result.rows[result.rows["when"] == "immediate"]["value"].tolist() for result in (taken, undamped)]
    at_the_end = [result.rows[result.rows["when"] == "final"]["value"].tolist() for result in (taken, undamped)]
    assert same_at_once[0] == same_at_once[1] and at_the_end[0] != at_the_end[1]


def test_xtreme_is_asked_before_once_for_all_methods_and_after_each(tmp_path, monkeypatch):
    asked = []

    def evaluate(model, langs, limit):
        asked.append((langs, limit))
        summary = [
            dict(task="xnli", lang="en", metric="xnli2_f1", value=0.5 + 0.01 * len(asked), n=3, low=0.4, high=0.6),
            dict(task="mlqa", lang="de", metric="mlqa_f1", value=math.nan, n=0, low=math.nan, high=math.nan),
        ]
        sets = [dict(task="xnli", lang="en", seconds=1.5)]
        answers = [dict(task="xnli", lang="en", record=["r0", "r1"], measures=dict(xnli2_acc=[0.0, float(len(asked))]))]
        return SimpleNamespace(summary=pd.DataFrame(summary), sets=pd.DataFrame(sets), packed=lambda: answers)

    monkeypatch.setattr(study, "evaluate_xtreme", evaluate)
    monkeypatch.setattr(study, "xtreme_fingerprint", lambda langs, limit: "the sets as they are")
    cells = [toy_study.cell(method, rounds=1, xtreme=3) for method in ("evoedit", "memit")]
    for result in run(cells, tmp_path):
        assert result.xtreme["when"].tolist() == ["before", "before", "final", "final"]
        assert result.xtreme["seconds"].tolist()[::2] == [1.5, 1.5]
        assert result.xtreme[["value", "low", "seconds"]].iloc[1].isna().all() and result.xtreme["n"].iloc[1] == 0
        assert result.xtreme["value"].iloc[0] == pytest.approx(0.51)
        assert result.answers["when"].tolist() == ["before"] * 2 + ["final"] * 2
        assert result.answers["value"].tolist()[:3] == [0.0, 1.0, 0.0] and result.answers["value"].iloc[3] in (2.0, 3.0)
    assert asked == [(("en", "de"), 3)] * 3  # the unedited model once, then each edited one
    assert is_done(cells[0], tmp_path)
    without = run([toy_study.cell(rounds=1)], tmp_path)[0]
    assert without.xtreme.empty and without.answers.empty
    monkeypatch.setattr(study, "xtreme_fingerprint", lambda langs, limit: "other sets")
    run([toy_study.cell("alphaedit", rounds=1, xtreme=3)], tmp_path)
    assert len(asked) == 5  # the unedited model too


def test_xtreme_is_added_to_edits_that_were_made_without_it_in_languages_of_its_own(tmp_path, monkeypatch):
    asked = []

    def evaluate(model, langs, limit):
        asked.append(langs)
        sets = pd.DataFrame([dict(task="xnli", lang="en", seconds=1.5)])
        score = dict(task="xnli", lang="en", metric="xnli2_f1", value=0.5, n=3, low=0.4, high=0.6)
        return SimpleNamespace(summary=pd.DataFrame([score]), sets=sets, packed=list)

    monkeypatch.setattr(study, "evaluate_xtreme", evaluate)
    monkeypatch.setattr(study, "xtreme_fingerprint", lambda langs, limit: "the sets as they are")
    plain = toy_study.cell(rounds=1)
    measured = plain.model_copy(update=dict(xtreme=3, xtreme_langs=("en", "fr")))
    alone = run([measured], tmp_path / "alone")[0]
    run([plain], tmp_path / "added")
    monkeypatch.setattr(editors.Editor, "edit", lambda *_, **__: pytest.fail("a batch was computed"))
    added = run([measured], tmp_path / "added")[0]
    assert_frame_equal(added.rows, alone.rows)
    assert set(asked) == {("en", "fr")} and len(added.xtreme) == 2
    assert toy_study.sealed(tmp_path / "added", measured) == toy_study.sealed(tmp_path / "alone", measured)
    assert plain.asked_in == plain.langs and plain.hash == toy_study.cell(rounds=1, xtreme_langs=None).hash


def test_answers_of_the_unedited_model_belong_to_one_engine(tmp_path, monkeypatch):
    run([toy_study.cell(rounds=1)], tmp_path)
    monkeypatch.setattr(study, "ENGINE", study.ENGINE + 1)
    run([toy_study.cell("memit", rounds=1)], tmp_path)
    assert len(list(tmp_path.glob("before-*"))) == len(list(tmp_path.glob("drift-*"))) == 2


def test_prune_leaves_the_batches_of_a_memit_that_was_made_of_other_data(tmp_path, monkeypatch):
    damped = toy_study.cell("prune", rounds=1)
    plain = damped.model_copy(
        update=dict(method="memit", settings=damped.settings.model_copy(update=dict(damping=None)))
    )
    run([plain], tmp_path)
    path, edit, edited = results.results_folder(plain, tmp_path) / "inputs.json", editors.Editor.edit, []
    write_json(path, read_json(path) | {"data_fingerprint": "another"})
    known = results.is_done
    for module in (results, study):
        monkeypatch.setattr(module, "is_done", lambda cell, root: cell == plain or known(cell, root))
    monkeypatch.setattr(editors.Editor, "edit", lambda e, *a, **k: edited.append(e.step) or edit(e, *a, **k))
    study.CellRun(damped, toy_study.model(), tmp_path).run()
    assert edited == [0, 1]
