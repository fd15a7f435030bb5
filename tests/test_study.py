"""A cell ends with the same bytes however often it was killed, and never uses a file that is not what it wrote."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy
import toy_study
from pydantic import ValidationError

from langedit_core import drift, editors, profiles, results, study
from langedit_core.analysis import Study
from langedit_core.datafiles import NotAvailable
from langedit_core.editors import METHODS
from langedit_core.metrics import METRICS, WHEN
from langedit_core.models import load_model
from langedit_core.profiles import Profile, hyperparameters, load_profile
from langedit_core.records import FactSet
from langedit_core.storage import read_json, write_json
from langedit_core.study import Cell, is_done, load_data, load_result, results_folder, run_cells

CELL = toy_study.cell()


@pytest.fixture(autouse=True)
def world(monkeypatch, tmp_path):
    """The toy data set under its name, and an empty cache."""
    monkeypatch.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    """Results of the cell, run once without trouble."""
    patch = pytest.MonkeyPatch()
    patch.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))
    root = tmp_path_factory.mktemp("undisturbed")
    run([CELL], root)
    patch.undo()
    return root


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    """A copy of those results that a test may damage."""
    root = tmp_path / "results"
    for file in (f for f in undisturbed.rglob("*") if f.is_file()):
        copy = root / file.relative_to(undisturbed)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return root


def run(cells, root, model=None):
    return run_cells(cells, model or toy_study.model(), root, quiet=True)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def alter(path: Path) -> None:
    """Change one character such that the file can still be read."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".json":
        digits = [i for i, byte in enumerate(content) if chr(byte).isdigit() and chr(content[i - 1]) in "0123456789."]
        content[digits[-1]] = ord("7") if content[digits[-1]] != ord("7") else ord("3")
        json.loads(content)
    else:
        content[-3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = {"truncated": truncate, "altered": alter, "empty": empty, "deleted": Path.unlink}


# --- killed and resumed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [("moments", "1"), ("writes",)], ids=["at random moments", "around every file"])
def test_a_killed_run_ends_with_the_bytes_of_an_undisturbed_one(how, tmp_path, undisturbed):
    cell = CELL if how[0] == "moments" else toy_study.cell(rounds=1)
    if how[0] == "writes":
        run([cell], tmp_path / "whole")
    program = Path(toy_study.__file__)
    environment = os.environ | {"HF_HOME": str(tmp_path / "killed-cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "killed"), *how], env=environment, capture_output=True, text=True,
        cwd=program.parents[1], timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout.split()[-1])
    assert kills >= (1 if how[0] == "moments" else 2 * len(toy_study.sealed(tmp_path / "killed", cell)))
    expected = toy_study.sealed(undisturbed if how[0] == "moments" else tmp_path / "whole", cell)
    assert toy_study.sealed(tmp_path / "killed", cell) == expected
    assert is_done(cell, tmp_path / "killed")


def test_batches_of_a_model_in_half_precision_are_taken_over_too(tmp_path, caplog, monkeypatch):
    def half():
        model = toy_study.model()
        model.hf.to(torch.bfloat16)
        return model

    edit = editors.Editor.edit

    def interrupted(editor, facts, progress=None):
        if editor.step == 2:
            raise KeyboardInterrupt
        return edit(editor, facts, progress)

    with monkeypatch.context() as patch:
        patch.setattr(editors.Editor, "edit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run([CELL], tmp_path / "stopped", half())
    caplog.clear()
    run([CELL], tmp_path / "stopped", half())
    assert "computed again" not in caplog.text
    run([CELL], tmp_path / "whole", half())
    sealed = [toy_study.sealed(tmp_path / name, CELL) for name in ("stopped", "whole")]
    assert sealed[0] == sealed[1]


@pytest.mark.parametrize("step", range(4))
def test_an_interrupt_leaves_the_model_unedited_and_the_next_run_goes_on(step, tmp_path, undisturbed, monkeypatch):
    model, edit, edited = toy_study.model(), editors.Editor.edit, []

    def interrupted(editor, facts, progress=None):
        if editor.step == step:
            raise KeyboardInterrupt
        return edit(editor, facts, progress)

    def counted(editor, facts, progress=None):
        edited.append(editor.step)
        return edit(editor, facts, progress)

    before = toy.weights(model)
    with monkeypatch.context() as patch:
        patch.setattr(editors.Editor, "edit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run([CELL], tmp_path, model)
    assert toy.same(before, toy.weights(model))
    assert not is_done(CELL, tmp_path)
    with pytest.raises(FileNotFoundError, match="is not finished .*langedit run"):
        load_result(CELL, tmp_path)

    monkeypatch.setattr(editors.Editor, "edit", counted)
    run([CELL], tmp_path, model)
    assert edited == list(range(step, 4))  # whole batches are not computed again
    assert toy.same(before, toy.weights(model))
    assert toy_study.sealed(tmp_path, CELL) == toy_study.sealed(undisturbed, CELL)


# --- files that are not what was written ------------------------------------------------------------------------------

DAMAGED = ["batch-000.json", "batch-001.safetensors", "final.json", "done.json"]


@pytest.mark.parametrize("damage", ["altered", "deleted", "truncated"])
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_result_is_noticed_and_computed_again_to_the_same_bytes(name, damage, finished, undisturbed):
    assert is_done(CELL, finished)
    DAMAGE[damage](results_folder(CELL, finished) / name)
    assert not is_done(CELL, finished)
    run([CELL], finished)
    assert toy_study.sealed(finished, CELL) == toy_study.sealed(undisturbed, CELL)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("inputs.json", damage) for damage in sorted(DAMAGE)]
    + [("contexts.json", "deleted")]
    + [("contexts.json", damage) for damage in ("altered", "empty", "truncated")],
)
def test_a_damaged_description_of_the_run_is_refused_or_made_again_but_never_used(name, damage, finished, undisturbed):
    path = results_folder(CELL, finished) / name
    if (name, damage) == ("contexts.json", "altered"):
        path.write_text(path.read_text("utf-8").replace("The", "Thy"), "utf-8")
    else:
        DAMAGE[damage](path)
    assert not is_done(CELL, finished)
    try:
        run([CELL], finished)
    except ValueError as refusal:
        assert name in str(refusal) or "begun with other inputs" in str(refusal)
        assert "delete" in str(refusal)
        assert not is_done(CELL, finished)
    else:
        assert toy_study.sealed(finished, CELL) == toy_study.sealed(undisturbed, CELL)


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_damaged_answers_of_the_unedited_model_are_refused_or_made_again_but_never_used(damage, finished, undisturbed):
    (before,) = finished.glob("before-*.json.xz")
    DAMAGE[damage](before)
    (results_folder(CELL, finished) / "final.json").unlink()  # so that they are needed
    try:
        run([CELL], finished)
    except ValueError as refusal:
        assert before.name in str(refusal)
    else:
        assert toy_study.sealed(finished, CELL) == toy_study.sealed(undisturbed, CELL)


def test_a_damaged_covariance_cache_does_not_change_a_result(finished, undisturbed, tmp_path):
    run([toy_study.cell("alphaedit")], tmp_path / "other")  # fills the cache
    for file in (tmp_path / "cache").rglob("*.safetensors"):
        alter(file)
    (results_folder(CELL, finished) / "batch-000.safetensors").unlink()
    run([CELL], finished)
    assert toy_study.sealed(finished, CELL) == toy_study.sealed(undisturbed, CELL)


def test_a_batch_of_another_run_under_the_right_name_is_not_used(finished, undisturbed):
    folder = results_folder(CELL, finished)  # each file is whole, but the two are no pair
    (folder / "batch-001.json").write_bytes((folder / "batch-002.json").read_bytes())
    assert not is_done(CELL, finished)
    run([CELL], finished)
    assert toy_study.sealed(finished, CELL) == toy_study.sealed(undisturbed, CELL)


def test_from_the_first_gap_on_every_batch_is_computed_again(finished, undisturbed, monkeypatch):
    (results_folder(CELL, finished) / "batch-001.safetensors").unlink()
    edit, edited = editors.Editor.edit, []
    monkeypatch.setattr(editors.Editor, "edit", lambda e, *a, **k: edited.append(e.step) or edit(e, *a, **k))
    run([CELL], finished)
    assert edited == [1, 2, 3]
    assert toy_study.sealed(finished, CELL) == toy_study.sealed(undisturbed, CELL)


def test_a_finished_cell_is_loaded_and_not_run(finished, monkeypatch):
    monkeypatch.setattr(study.CellRun, "run", lambda self: pytest.fail("computed again"))
    result = run([CELL], finished)[0]
    assert len(result.rows) > 0


# --- inputs that changed ----------------------------------------------------------------------------------------------


def altered_data(langs) -> FactSet:
    data = toy_study.load(langs)
    facts = {i: dict(by) for i, by in data.facts.items()}
    facts["capital/8"]["en"] = dataclasses.replace(facts["capital/8"]["en"], target="other")
    return dataclasses.replace(data, facts=facts, fingerprint="")


def altered_corpus(langs) -> FactSet:
    data = toy_study.load(langs)
    return dataclasses.replace(data, corpus={k: (*v, "One more.") for k, v in data.corpus.items()}, fingerprint="")


@pytest.mark.parametrize("change", ["model_fingerprint", "data_fingerprint", "corpus_sha256"])
def test_a_run_that_was_begun_with_other_inputs_is_refused_by_name(change, finished, monkeypatch):
    folder = results_folder(CELL, finished)
    (folder / "done.json").unlink()
    model = toy_study.model()
    if change == "model_fingerprint":
        with torch.no_grad():
            model.weight(3)[0, 0] += 1
    else:
        loader = altered_data if change == "data_fingerprint" else altered_corpus
        monkeypatch.setitem(study.LOADERS, toy_study.DATA, loader)
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ValueError, match=f"begun with other inputs .*{change}.* differ.*delete that folder"):
        run([CELL], finished, model)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept


def test_a_finished_cell_of_a_model_that_changed_under_its_name_is_refused(finished):
    model = toy_study.model()
    with torch.no_grad():
        model.weight(3)[0, 0] += 1
    with pytest.raises(ValueError, match="other inputs"):
        run([CELL], finished, model)


def test_a_finished_cell_of_data_that_changed_is_refused_and_passes_where_they_are_not_here(finished, monkeypatch):
    monkeypatch.setitem(study.LOADERS, toy_study.DATA, altered_data)
    with pytest.raises(
        ValueError, match=r"other inputs \(data_fingerprint differ\).*delete it to have it computed again"
    ):
        run([CELL], finished)

    def away(langs):
        raise NotAvailable("no toy.jsonl in $LANGEDIT_DATA", "put it there")

    monkeypatch.setitem(study.LOADERS, toy_study.DATA, away)
    assert len(run([CELL], finished)) == 1


def test_a_cell_whose_data_are_not_here_is_left_out_where_that_is_asked_for(tmp_path, monkeypatch):
    def away(langs):
        raise NotAvailable("no toy.jsonl in $LANGEDIT_DATA", "put it there")

    other = toy_study.cell("memit", data="elsewhere")
    monkeypatch.setitem(study.LOADERS, "elsewhere", away)
    with pytest.raises(FileNotFoundError, match=r"no toy\.jsonl in \$LANGEDIT_DATA; put it there"):
        run([other, CELL], tmp_path)
    absent = []
    results = study.run_cells([other, CELL], toy_study.model(), tmp_path, quiet=True, without=absent.append)
    assert [r.cell for r in results] == [CELL] and [error.reason for error in absent] == [
        "no toy.jsonl in $LANGEDIT_DATA"
    ]


def test_results_of_different_models_or_data_are_not_seen_together(finished, monkeypatch):
    monkeypatch.setitem(study.LOADERS, toy_study.DATA, altered_data)
    study.CellRun(toy_study.cell("memit"), toy_study.model(), finished).run()
    results = [load_result(cell, finished) for cell in (CELL, toy_study.cell("memit"))]
    with pytest.raises(ValueError, match=r"different inputs \(data_fingerprint differs\), so they cannot be compared"):
        Study(results)
    assert Study(results[:1]).methods == ["evoedit"]


def test_a_cell_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the cell is about gemma, the model given is tiny-llama"):
        run([toy_study.cell(model="gemma")], tmp_path)


# --- what cells share -------------------------------------------------------------------------------------------------


def test_cells_with_the_same_facts_share_the_answers_of_the_unedited_model(tmp_path, monkeypatch):
    cells, asked, ask = [toy_study.cell(m, rounds=1) for m in ("langedit", "memit")], [], study.ask
    monkeypatch.setattr(study, "ask", lambda model, questions: asked.append(len(questions)) or ask(model, questions))
    model = toy_study.model()
    results = run(cells, tmp_path, model)
    about_facts = results[0].rows[results[0].rows["kind"] != "neutral"]
    whole = len(about_facts[about_facts["when"] == "before"]) // 2
    assert len(list(tmp_path.glob("before-*.json.xz"))) == 1
    assert asked.count(whole) == 1 + 2  # before once, the end of each cell
    before = [r.rows[r.rows["when"] == "before"].reset_index(drop=True) for r in results]
    assert before[0].equals(before[1])
    final = [r.rows[r.rows["when"] == "final"]["value"].tolist() for r in results]
    assert len(final[0]) == len(final[1])
    assert toy_study.model().fingerprint == model.fingerprint


def test_the_order_of_cells_does_not_matter(tmp_path, undisturbed):
    run([toy_study.cell("memit"), CELL], tmp_path)
    assert toy_study.sealed(tmp_path, CELL) == toy_study.sealed(undisturbed, CELL)


# --- what a result holds ----------------------------------------------------------------------------------------------


def test_a_result_has_every_metric_at_every_moment(undisturbed):
    result = load_result(CELL, undisturbed)
    assert set(result.rows["metric"]) == set(METRICS) - {"portability_tf", "portability_em"}
    assert set(result.rows["when"]) == set(WHEN)
    assert set(result.rows["lang"]) == {"en", "de"}
    facts = CELL.batch * CELL.batches
    neutral = result.rows["kind"] == "neutral"
    counts = result.rows[~neutral].groupby(["when", "metric"]).size()
    assert (counts == facts).all()
    assert result.rows[~neutral]["value"].between(0, 1).all()
    assert set(result.rows[neutral]["metric"]) == set(drift.METRICS)
    immediate = result.rows[(result.rows["when"] == "before") & (result.rows["metric"] == "specificity_same")]
    assert (immediate["value"] == 1.0).all()


def test_drift_starts_at_zero_is_there_after_every_batch_and_ends_where_the_last_batch_left_it(undisturbed):
    result = load_result(CELL, undisturbed)
    kl = result.rows[result.rows["metric"] == "drift_kl"].set_index(["when", "lang", "fact"])["value"]
    assert (kl["before"] == 0).all() and (kl["final"] > 0).all()
    by_batch = result.drift[result.drift["metric"] == "drift_kl"]
    assert set(by_batch["step"]) == set(range(CELL.batches)) and (by_batch["value"] > 0).all()
    last = by_batch[by_batch["step"] == CELL.batches - 1].set_index(["lang", "fact"])["value"]
    assert last.to_dict() == kl["final"].to_dict()
    paragraphs = {f"neutral/{name}" for name in drift.neutral_texts()["en"]}
    assert len(last) == 2 * len(paragraphs)
    # A paragraph and its translation are one unit: they share their content.
    assert set(by_batch["fact"]) == set(kl["final"].reset_index()["fact"]) == paragraphs


def test_a_damaged_drift_state_is_made_again(tmp_path, caplog):
    run([CELL], tmp_path)
    (state,) = tmp_path.glob("drift-*.safetensors")
    state.write_bytes(state.read_bytes()[:-7])
    other = toy_study.cell("memit")
    run([other], tmp_path)
    assert "reads the neutral texts again" in caplog.text
    assert drift.Drift.load(state, toy_study.model()).langs == ("en", "de")


def test_batches_go_through_the_languages_round_by_round_with_different_facts(undisturbed):
    result = load_result(CELL, undisturbed)
    ids = result.provenance["facts"]
    assert len(ids) == 4 and all(len(batch) == 2 for batch in ids)
    assert len({i for batch in ids for i in batch}) == 8
    of_lang = result.rows.drop_duplicates("fact").set_index("fact")["lang"]
    assert [{of_lang[i] for i in batch} for batch in ids] == [{"en"}, {"de"}, {"en"}, {"de"}]
    assert result.batches["lang"].tolist() == [x for lang in ("en", "de", "en", "de") for x in (lang, lang)]
    assert result.batches["layer"].tolist() == [1, 2] * 4
    assert result.batches["rank"].tolist() == [38, 38, 36, 36, 34, 34, 32, 32]  # two keys a batch leave the space


def test_retention_follows_every_fact_to_the_end(undisturbed):
    retention = load_result(CELL, undisturbed).retention
    assert len(retention) == 2 * (1 + 2 + 3 + 4)
    assert (retention["step"] >= retention["edited"]).all()
    rows = load_result(CELL, undisturbed).rows
    last = retention[retention["step"] == 3].set_index("fact")["tf"]
    final = rows[(rows["when"] == "final") & (rows["metric"] == "efficacy_tf")].set_index("fact")["value"]
    assert last.sort_index().to_dict() == final.sort_index().to_dict()


def test_timings_are_kept_apart_from_what_is_sealed(undisturbed):
    result = load_result(CELL, undisturbed)
    assert set(result.seconds["phase"]) == {"values", "keys", "projection", "solve", "write", "measuring"}
    assert not any("time" in name for name in study.sealed_names(CELL))
    assert (result.seconds["processor"] >= 0).all() and result.seconds["processor"].sum() > 0
    text = (results_folder(CELL, undisturbed) / "batch-000.json").read_text("utf-8")
    assert "seconds" not in text and "processor" not in text


def test_timings_without_the_processors_are_read_as_not_taken(undisturbed, tmp_path):
    """As all cells have them that were computed before these were taken."""
    folder = results_folder(CELL, Path(shutil.copytree(undisturbed, tmp_path / "copy")))
    for path in folder.glob("batch-*.time.json"):
        write_json(path, {phase: s for phase, s in read_json(path).items() if phase != "processor"})
    seconds = load_result(CELL, folder.parent).seconds
    assert seconds["processor"].isna().all() and (seconds["seconds"] > 0).all()


def test_facts_whose_subject_merges_are_passed_over_and_named(tmp_path, monkeypatch):
    def load(langs):
        data = toy_study.load(langs)
        facts = {i: dict(by) for i, by in data.facts.items()}
        bad = facts["capital/0"]["en"]
        facts["capital/0"]["en"] = dataclasses.replace(bad, prompt="The {}land is", subject="Nor", paraphrases=())
        return dataclasses.replace(data, facts=facts, fingerprint="")

    monkeypatch.setitem(study.LOADERS, toy_study.DATA, load)
    cell = toy_study.cell(langs=("en",), rounds=1, batch=8)
    result = run([cell], tmp_path)[0]
    assert list(result.dropped) == ["capital/0 (en)"]
    assert "capital/0" not in result.provenance["facts"][0]
    assert len(result.provenance["facts"][0]) == 8


def test_cells_deal_their_facts_as_they_are_told(tmp_path):
    cells = [toy_study.cell(deal=deal, rounds=1) for deal in ("rounds", "lists")]
    rounds, lists = (r.provenance["facts"] for r in run(cells, tmp_path))
    assert lists == [
        [f.id for f in hand] for hand in toy_study.load(("en", "de")).select(("en", "de"), 2, deal="lists")
    ]
    assert lists != rounds


def test_parallel_cells_edit_the_same_facts_in_every_language(tmp_path):
    result = run([toy_study.cell(parallel=True, rounds=1)], tmp_path)[0]
    one, other = result.provenance["facts"]
    assert one == other


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [dict(seed=1), dict(batch=3), dict(langs=("de", "en")), dict(prefixes=2), dict(corpus_limit=5), dict(rounds=1)],
)
def test_every_setting_of_a_cell_changes_its_folder(changes):
    assert toy_study.cell(**changes).hash != CELL.hash
    assert toy_study.cell().hash == CELL.hash


def test_the_hash_of_a_cell_holds_the_engine_and_the_editor_settings(monkeypatch):
    settings = CELL.settings.model_copy(update={"ridge": 0.123})
    assert CELL.model_copy(update={"settings": settings}).hash != CELL.hash
    before = CELL.hash
    monkeypatch.setattr(results, "ENGINE", results.ENGINE + 1)
    assert CELL.hash != before


def test_unknown_data_sets_list_the_known_ones_nearest_first():
    with pytest.raises(ValueError, match="unknown data set 'mzrse'; known: mzsre, bzsre"):
        load_data("mzrse", ("en",))


def test_unknown_profiles_list_the_known_ones_nearest_first(tmp_path, monkeypatch):
    for name in ("smoke", "quick", "standard"):
        (tmp_path / f"{name}.yaml").write_text("{}")
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="unknown profile 'quik'; known: quick, "):
        load_profile("quik")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.yaml"):
        load_profile(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a list", "holds no mapping of fields"),
        ("name: x", "description"),
        ("name: x\ndescription: d\nmodel: m\nnotebooks: {a: {}}\ngirds: {}", "girds"),
        ("name: x\ndescription: d\nmodel: m\nnotebooks: {}", "notebooks"),
        ("name: x\ndescription: d\nmodel: m\nnotebooks: {a: {}}\ngrids: {g: {data: [a], methods: [m], s: 1}}", "g.0.s"),
    ],
)  # fmt: skip
def test_a_profile_that_makes_no_sense_is_refused_by_the_name_of_the_field(text, message, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_profile(path)


def test_a_profile_asks_for_known_groups_data_and_methods_only():
    grids = dict(main=dict(data=("atlas",), methods=("langedit",)), odd=dict(data=("altas",), methods=("langedit",)),
                 worse=dict(data=("atlas",), methods=("memitt",)))  # fmt: skip
    profile = Profile(name="p", description="d", model="gemma-3-270m", notebooks={"a": {}}, grids=grids)
    assert [cell.method for cell in profile.cells("main")] == ["langedit"]
    with pytest.raises(ValueError, match="profile 'p' has no cells 'mian'; it has: main"):
        profile.cells("mian")
    with pytest.raises(ValueError, match="unknown data set 'altas'; known: atlas, "):
        profile.cells("odd")
    with pytest.raises(ValueError, match="unknown method 'memitt'; known: memit, memit-seq"):
        profile.cells("worse")


def test_unknown_methods_and_models_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown method 'alphedit'; known: alphaedit, ") as caught:
        hyperparameters("gemma-3-270m", "alphedit")
    assert all(method in str(caught.value) for method in METHODS)
    with pytest.raises(ValueError, match=r"unknown model .*'gemma-3-270'; known: gemma-3-270m.*pass layers="):
        hyperparameters("gemma-3-270", "langedit")
    assert hyperparameters("my-own", "langedit", layers=(3,)).layers == (3,)
    with pytest.raises(ValueError, match=r"unknown model .*'gemma-3-270'; known: gemma-3-270m, "):
        load_model("gemma-3-270")


@pytest.mark.parametrize("model", ["gemma-3-270m", "atlas-lm", "my-own", "EleutherAI/gpt-j-6b"])
def test_lambda_stays_where_past_keys_take_the_room_it_would_be_relative_to(model):
    settings = {method: hyperparameters(model, method, layers=(3,)) for method in METHODS}
    held = {method for method, of in settings.items() if of.hold_ridge}
    takes_room = {m for m, of in settings.items() if of.space in ("incremental", "full_keys", "literal", "released")}
    published = not settings["langedit"].relative_ridge
    assert held == (set() if published else takes_room) and published == model.startswith("EleutherAI")


def test_too_many_facts_and_unknown_languages_are_refused(tmp_path):
    with pytest.raises(ValueError, match="facts asked for|different facts"):
        run([toy_study.cell(batch=5)], tmp_path)
    with pytest.raises(ValueError, match="unknown language"):
        study.load_data("atlas", ("xx",))
    with pytest.raises(ValidationError, match="batch"):
        toy_study.cell(batch=0)
    with pytest.raises(ValidationError, match="bacth"):
        Cell(**(CELL.model_dump() | {"bacth": 3}))
