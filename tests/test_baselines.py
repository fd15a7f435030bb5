"""The other methods' editors: what each promises, the known faults of published code, and every name end to end."""

from __future__ import annotations

import math

import conftest
import pytest
import reference
import torch
import toy
import toy_study
from conftest import build_model
from test_editors import every_method, simple_editor

from langedit_core import editors, quickstart, study
from langedit_core.analysis import Study
from langedit_core.drift import Drift
from langedit_core.editors import METHODS, EditSettings, Update, settings_for
from langedit_core.finetune import FineTuneSettings
from langedit_core.keys import KeyReader
from langedit_core.nullspace import Threshold
from langedit_core.profiles import hyperparameters
from langedit_core.quickstart import prepare_editor
from langedit_core.study import Cell, load_result, run_cells
from langedit_core.values import ValueSettings

SEQUENCE = [("en", range(0, 3)), ("de", range(3, 6)), ("fr", range(6, 9))]


def run(editor, sequence=SEQUENCE) -> list[dict[int, Update]]:
    return [editor.edit(toy.facts(lang, numbers))[1] for lang, numbers in sequence]


# --- LangEdit's running mean ------------------------------------------------------------------------------------------


def remembered(editor, keys: torch.Tensor) -> None:
    """A batch whose update is nothing, but whose keys are remembered."""
    d_out, n = editor.model.d_model, keys.shape[1]
    editor.apply({1: Update(left=torch.zeros(d_out, n), right=torch.zeros(len(keys), n), keys=keys)})


@pytest.mark.parametrize("kind", ["fraction", "absolute", "relative"])
def test_no_direction_that_the_covariance_protects_becomes_free_by_counting(tiny, kind):
    # Many keys along one protected direction: the mean shrinks everywhere else, and a fixed cut would let go of it.
    covariance = toy.covariances(tiny, (1,))[1]
    values, vectors = torch.linalg.eigh(covariance.mean)
    value = dict(fraction=0.6, absolute=float(values[29]), relative=float(values[29] / values.mean()))[kind]
    editor = simple_editor(tiny, "langedit", layers=(1,), threshold=Threshold(kind=kind, value=value))
    before = editor.layers[1].space()
    many = vectors[:, -1:].float().expand(-1, 9 * covariance.count).contiguous()
    remembered(editor, many)
    after = editor.layers[1].space()
    mean, _ = reference.running_mean(covariance.mean, covariance.count, many.double())
    freed = reference.null_projection(mean, Threshold(kind=kind, value=value).cut(values))
    assert torch.trace(freed) > before.rank + 5
    assert after.rank == before.rank
    torch.testing.assert_close(after.projection, before.projection, rtol=0, atol=1e-6)


def test_the_number_of_free_directions_never_grows_whatever_is_remembered(tiny):
    editor = simple_editor(tiny, "langedit", layers=(1,), threshold=Threshold(kind="fraction", value=0.6))
    ranks = [editor.layers[1].space().rank]
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        remembered(editor, 3.0 * torch.randn(tiny.d_ff, 40, generator=generator) * (0.2 + seed % 3))
        ranks.append(editor.layers[1].space().rank)
    assert ranks == sorted(ranks, reverse=True)
    assert ranks[-1] < ranks[0]


def test_a_key_takes_its_direction_once_its_energy_reaches_the_cut_of_the_sum(tiny):
    editor = simple_editor(tiny, "langedit", layers=(1,), threshold=Threshold(kind="fraction", value=0.6))
    state = editor.layers[1]
    rank, wanted = state.space().rank, state.projector.cut
    direction = torch.linalg.eigh(toy.covariances(tiny, (1,))[1].mean).eigenvectors[:, :1]
    remembered(editor, (0.5 * wanted**0.5 * direction).float())
    assert state.space().rank == rank
    assert state.space().survival(direction) == pytest.approx(1.0, abs=1e-6)
    remembered(editor, (0.9 * wanted**0.5 * direction).float())
    assert state.space().rank == rank - 1
    assert state.space().survival(direction) == pytest.approx(0.0, abs=1e-6)


# --- ROME -------------------------------------------------------------------------------------------------------------


def test_a_batch_of_rome_is_as_many_edits_each_on_the_model_so_far(tiny):
    together, apart = simple_editor(tiny, "rome"), simple_editor(build_model("llama"), "rome")
    report, updates = together.edit(toy.facts("en", range(3)))
    parts = [apart.edit([of])[1][1] for of in toy.facts("en", range(3))]
    assert toy.same(toy.weights(tiny), toy.weights(apart.model))
    assert toy.same(updates[1].tensors(), Update.joined(parts).tensors())
    assert updates[1].right.shape == (tiny.d_ff, 3)
    assert len(report.steps) == len(report.final_loss) == 3


def test_the_progress_of_rome_counts_facts(tiny):
    seen: list[int] = []
    simple_editor(tiny, "rome").edit(toy.facts("en", range(3)), progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("meets", ["average", "bare"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_rome_meets_its_constraint_exactly_and_spreads_by_the_covariance(tiny, meets, weight):
    editor = simple_editor(tiny, "rome", meets=meets, average="mean", covariance_weight=weight)
    request = toy.value_request(tiny, toy.fact(0))
    rows = KeyReader(tiny, [request.contexts], (1,)).read(1).double()
    update = editor.edit([toy.fact(0)])[1][1]
    mean = rows.mean(0)
    torch.testing.assert_close(update.keys[:, 0].double(), mean, rtol=1e-5, atol=1e-6)
    met = mean if meets == "average" else rows[0]
    torch.testing.assert_close(update.delta @ met.float(), update.left[:, 0], rtol=1e-4, atol=1e-5)
    covariance = toy.covariances(build_model("llama"), (1,))[1].mean
    direction = torch.linalg.solve(covariance, mean) if weight else mean
    cosine = torch.nn.functional.cosine_similarity(update.right[:, 0].double(), direction, dim=0)
    assert abs(float(cosine)) == pytest.approx(1.0, abs=1e-6)


def test_memit_on_one_fact_tends_to_rome_as_the_penalty_vanishes():
    rome = simple_editor(build_model("llama"), "rome").edit([toy.fact(0)])[1][1].delta
    errors = []
    for weight in (1e-1, 1e-3, 1e-5):
        editor = simple_editor(build_model("llama"), "memit", layers=(1,), covariance_weight=weight)
        memit = editor.edit([toy.fact(0)])[1][1].delta
        errors.append(float((memit - rome).norm() / rome.norm()))
    assert errors[0] > 20 * errors[1] > 400 * errors[2]
    assert errors[-1] < 1e-3


# --- RECT -------------------------------------------------------------------------------------------------------------


def test_rect_with_a_share_of_one_is_memit_to_the_bit():
    rect, memit = (
        simple_editor(build_model("llama"), m, **c) for m, c in (("rect", {"keep_share": 1.0}), ("memit", {}))
    )
    run(rect), run(memit)
    assert toy.same(toy.weights(rect.model), toy.weights(memit.model))


def test_rect_writes_the_largest_relative_changes_of_each_batch_on_the_weight_so_far(tiny):
    editor = simple_editor(tiny, "rect")
    for lang, numbers in SEQUENCE:
        before = {layer: tiny.weight(layer).clone() for layer in (1, 2)}
        report, updates = editor.edit(toy.facts(lang, numbers))
        for layer, start in before.items():
            change = tiny.weight(layer) - start
            expected = reference.rect(updates[layer].delta, start, 40)
            torch.testing.assert_close(change, expected, rtol=0, atol=1e-6)
            assert 0.39 < float((change != 0).float().mean()) < 0.42
            norm = float(change.norm() / build_model("llama").weight(layer).norm())
            assert report.layers[layer].relative_update == pytest.approx(norm, rel=1e-5)
            assert report.layers[layer].written < 0.95


def test_keys_of_higher_layers_are_those_of_the_whole_update_as_published():
    rect = simple_editor(build_model("llama"), "rect").edit(toy.facts("en", range(3)))[1]
    memit = simple_editor(build_model("llama"), "memit").edit(toy.facts("en", range(3)))[1]
    for layer in (1, 2):
        assert toy.same(rect[layer].tensors(), memit[layer].tensors())


# --- PRUNE ------------------------------------------------------------------------------------------------------------


def loud(editor) -> dict[int, torch.Tensor]:
    """W₀ made quiet, so that the edits' singular values exceed its largest; returns it."""
    for state in editor.layers.values():
        with torch.no_grad():
            editor.model.weight(state.layer).mul_(0.05)
        state.weight = state.initial = editor.model.weight(state.layer).clone()
    return {layer: state.initial.double() for layer, state in editor.layers.items()}


def test_prune_ends_with_the_first_weight_and_the_damped_total_and_the_released_form_applies_the_update_twice():
    for method in ("prune", "prune-released"):
        editor = simple_editor(build_model("llama"), method)
        start = loud(editor)
        run(editor)
        undamped = {layer: editor.model.weight(layer).double().clone() for layer in start}
        editor.finish()
        for layer, first in start.items():
            total = undamped[layer] - first
            assert torch.linalg.svdvals(total)[0] > torch.linalg.svdvals(first)[0]
            right, twice = (x + reference.prune(total, first) for x in (first, undamped[layer]))
            ended = editor.model.weight(layer).double()
            torch.testing.assert_close(ended, right if method == "prune" else twice, rtol=1e-5, atol=1e-6)
            other = twice if method == "prune" else right
            assert (ended - other).norm() > 0.5 * total.norm()


@pytest.mark.parametrize(("method", "base"), [("prune", 2.0), ("prune-released", 1.2)])
def test_prune_damps_to_the_base_of_its_settings(method, base):
    editor = simple_editor(build_model("llama"), method, damping_base=base)
    start = loud(editor)
    run(editor)
    undamped = {layer: editor.model.weight(layer).double().clone() for layer in start}
    editor.finish()
    for layer, first in start.items():
        left, values, right = torch.linalg.svd(undamped[layer] - first, full_matrices=False)
        largest = float(torch.linalg.svdvals(first)[0])
        damped = [s if s <= largest else math.log(s, base) - math.log(largest, base) + largest for s in values.tolist()]
        onto = first if method == "prune" else undamped[layer]
        expected = onto + left @ torch.diag(torch.tensor(damped, dtype=torch.float64)) @ right
        torch.testing.assert_close(editor.model.weight(layer).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_base_is_part_of_the_settings_only_where_it_is_another():
    plain = settings_for("prune", layers=(1,))
    assert "damping_base" not in plain.model_dump(mode="json") and plain.damping_base == math.e
    other = settings_for("prune", layers=(1,), damping_base=2)
    assert other.model_dump(mode="json")["damping_base"] == 2
    cells = [Cell(model="m", data="toy", method="prune", settings=s) for s in (plain, other)]
    assert "damping_base" not in cells[0].model_dump_json() and cells[0].hash != cells[1].hash
    for settings in (plain, other):
        assert EditSettings.model_validate_json(settings.model_dump_json()) == settings


def test_until_its_end_a_sequence_of_prune_is_one_of_memit():
    prune, memit = (simple_editor(build_model("llama"), method) for method in ("prune", "memit"))
    run(prune), run(memit)
    assert toy.same(toy.weights(prune.model), toy.weights(memit.model))


def test_prune_changes_nothing_where_no_singular_value_exceeds_the_largest_of_the_weight():
    editor = simple_editor(build_model("llama"), "prune", values=ValueSettings(steps=2, radius=1e-2))
    run(editor)
    before = toy.weights(editor.model)
    for state in editor.layers.values():
        total = torch.linalg.svdvals(editor.model.weight(state.layer) - state.initial)
        assert 0 < total[0] < torch.linalg.svdvals(state.initial)[0]
    editor.finish()
    for name, weight in toy.weights(editor.model).items():
        torch.testing.assert_close(weight, before[name], rtol=1e-6, atol=0)


@every_method
def test_finishing_twice_is_finishing_once_and_only_prune_has_something_to_finish(method):
    editor = simple_editor(build_model("llama"), method)
    loud(editor)
    run(editor, SEQUENCE[:2])
    before = toy.weights(editor.model)
    editor.finish()
    once = toy.weights(editor.model)
    editor.finish()
    assert toy.same(toy.weights(editor.model), once)
    assert toy.same(before, once) != method.startswith("prune")


@pytest.mark.parametrize("method", ["prune", "prune-released"])
def test_no_batch_follows_the_end_of_a_damped_sequence(method):
    editor = simple_editor(build_model("llama"), method)
    updates = run(editor, SEQUENCE[:1])[0]
    editor.finish()
    before = toy.weights(editor.model)
    for more in (lambda: editor.edit(toy.facts("de", range(2))), lambda: editor.apply(updates)):
        with pytest.raises(ValueError, match="sequence is finished"):
            more()
    assert toy.same(before, toy.weights(editor.model))


# --- SPHERE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["alphaedit-sphere", "langedit-sphere"])
def test_with_strength_one_an_update_leaves_the_main_directions_of_the_weight_as_it_was_unmoved(method, tiny):
    editor = simple_editor(tiny, method, sphere=1.0)
    for lang, numbers in SEQUENCE[:2]:
        rows = {i: torch.nn.functional.normalize(tiny.weight(i).double(), dim=1) for i in (1, 2)}
        for layer, update in editor.edit(toy.facts(lang, numbers))[1].items():
            values, vectors = torch.linalg.eigh(rows[layer].T @ rows[layer])
            wanted = int((values.flip(0).cumsum(0) < 0.5 * values.sum()).sum()) + 1
            inside = update.delta.double() @ vectors[:, -wanted:]
            assert inside.norm() < 1e-5 * update.delta.double().norm()
            assert wanted >= 3


@pytest.mark.parametrize("method", ["alphaedit", "langedit", "memit", "rome"])
def test_without_strength_sphere_is_the_method_it_stands_on(method):
    one = simple_editor(build_model("llama"), method, sphere=0.0)
    other = simple_editor(build_model("llama"), method)
    run(one, SEQUENCE[:1]), run(other, SEQUENCE[:1])
    assert toy.same(toy.weights(one.model), toy.weights(other.model))


def test_sphere_goes_on_top_of_any_method_and_makes_its_factor_shorter():
    for method in ("memit", "rome", "evoedit", "rect", "prune"):
        plain = simple_editor(build_model("llama"), method).edit([toy.fact(0)])[1][1]
        turned = simple_editor(build_model("llama"), method, sphere=0.5).edit([toy.fact(0)])[1][1]
        assert torch.equal(plain.left, turned.left)
        assert 0 < turned.right.norm() < plain.right.norm()


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def test_a_trained_update_is_stored_whole_and_stays_in_its_box(tiny):
    start = tiny.weight(1).clone()
    editor = simple_editor(tiny, "ft", layers=(1,), finetune=FineTuneSettings(relative=False, rate=1e-2, box=2e-3))
    report, updates = editor.edit(toy.facts("en", range(3)))
    update = updates[1]
    assert set(update.tensors()) == {"left", "right", "keys", "dense"}
    assert update.left.numel() == update.right.numel() == update.keys.numel() == 0
    assert update.delta.abs().max() <= torch.tensor(2e-3)
    assert torch.equal(tiny.weight(1), start + update.dense)
    assert report.layers[1].written is None
    assert report.layers[1].relative_update == pytest.approx(float(update.dense.norm() / start.norm()), rel=1e-4)
    assert len(report.final_loss) == 3


@pytest.mark.parametrize("method", ["ft", "ft-released"])
def test_fine_tuning_makes_its_facts_likelier(method, tiny):
    settings = METHODS[method]["finetune"].model_copy(update=dict(relative=True, rate=0.05, box=0.3))
    editor = simple_editor(tiny, method, finetune=settings)
    first, _ = editor.edit(toy.facts("en", range(3)))
    again, _ = editor.edit(toy.facts("en", range(3)))
    assert sum(again.final_loss) < sum(first.final_loss)


def test_what_is_not_finite_in_training_leaves_the_model_as_it_was(tiny):
    editor = simple_editor(tiny, "ft")
    editor.edit(toy.facts("en", range(2)))
    before = tiny.weight(1).clone()
    with torch.no_grad():
        tiny.hf.lm_head.weight[5, 5] = float("nan")
    with pytest.raises(FloatingPointError, match="batch 1, values: fine-tuning gave a loss of nan"):
        editor.edit(toy.facts("de", range(2)))
    assert torch.equal(before, tiny.weight(1))
    assert editor.step == 1


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("rome", dict(layers=(1, 2)), "edits one layer"),
        ("memit", dict(meets="bare"), "meets='bare'"),
        ("memit", dict(covariance_weight=0.0), "covariance_weight"),
        ("rect", dict(keep_share=0.0), "keep_share"),
        ("rect", dict(keep_share=1.5), "keep_share"),
        ("ft", dict(damping="initial"), "finetune"),
        ("prune", dict(damping_base=1.0), "damping_base"),
        ("memit", dict(damping_base=2.0), "damping_base=2.0 says how PRUNE damps"),
        ("ft", dict(finetune=dict(scored="first")), "scored"),
        ("langedit-sphere", dict(sphere=1.5), "sphere"),
    ],
)
def test_settings_of_the_baselines_that_make_no_sense_are_refused_by_name(method, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        settings_for(method, **(dict(layers=(1,)) | changes))
    assert "Value error" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_setting_that_does_not_exist_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown setting 'layer'; known: layers, "):
        settings_for("langedit", layer=3)


def test_a_change_of_the_training_leaves_its_form_as_the_name_has_it():
    changed = settings_for("ft-released", layers=(1,), finetune=dict(box=0.5)).finetune
    assert changed == METHODS["ft-released"]["finetune"].model_copy(update=dict(box=0.5))
    assert changed.scored == "last"


def test_the_names_differ_in_what_their_papers_say_they_differ_in():
    chosen = {name: settings_for(name, layers=(1,)) for name in METHODS}
    assert len({s.model_dump_json() for s in chosen.values()}) == len(METHODS)
    assert chosen["langedit"].space == "running" and not chosen["langedit"].remember
    assert chosen["evoedit"].space == "incremental" and not chosen["evoedit"].remember
    assert chosen["rect"].keep_share == 0.4
    for name in ("alphaedit", "langedit"):
        on_top = chosen[f"{name}-sphere"].model_copy(update=dict(sphere=0.0))
        assert on_top == chosen[name]
        assert (chosen[f"{name}-sphere"].sphere, chosen[f"{name}-sphere"].sphere_share) == (0.5, 0.5)
    assert EditSettings.model_validate_json(chosen["ft-released"].model_dump_json()) == chosen["ft-released"]


# --- every name, end to end -------------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch, tmp_path):
    monkeypatch.setitem(study.LOADERS, toy_study.DATA, toy_study.load)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def test_a_prepared_editor_gathers_a_covariance_only_where_one_is_read(tiny, world, monkeypatch):
    def refused(*_args, **_kwargs):
        raise AssertionError("C₀ was gathered")

    monkeypatch.setattr(quickstart, "cached_covariance", refused)
    options = dict(langs=("en",), corpus=conftest.SENTENCES, prefixes=1, layers=(1,))
    prepare_editor(tiny, "ft", **options)
    prepare_editor(tiny, "rome", covariance_weight=0.0, **options)
    with pytest.raises(AssertionError, match="C₀ was gathered"):
        prepare_editor(tiny, "rome", covariance_weight=1.0, **options)


def test_languages_without_embedded_text_are_named_and_need_a_corpus(tiny, world, caplog):
    options = dict(prefixes=1, layers=(1,))
    with pytest.raises(ValueError, match=r"no embedded text in cs, th .*pass corpus="):
        prepare_editor(tiny, "langedit", langs=("cs", "th"), **options)
    with caplog.at_level("WARNING"):
        prepare_editor(tiny, "langedit", langs=("en", "cs"), corpus_limit=2, **options)
    assert "no embedded text in cs" in caplog.text and "is not protected" in caplog.text
    caplog.clear()
    prepare_editor(tiny, "langedit", langs=("cs",), corpus=conftest.SENTENCES, **options)
    prepare_editor(tiny, "ft", langs=("cs",), **options)  # reads no covariance
    assert not caplog.text
    with pytest.raises(ValueError, match="no text to gather keys from"):
        prepare_editor(tiny, "langedit", langs=("cs",), corpus=[], **options)


def test_a_second_editor_of_an_edited_model_is_refused_whether_the_covariance_is_on_disk_or_not(tiny, world):
    options = dict(langs=("en",), corpus=conftest.SENTENCES, prefixes=1, layers=(1,))
    editor = prepare_editor(tiny, "langedit", **options)
    editor.edit(toy.facts("en", range(2)))
    for method in ("alphaedit", "ft"):
        with pytest.raises(ValueError, match=r"what a new editor starts from cannot be taken: .*Editor.reset"):
            prepare_editor(tiny, method, **options)
    with pytest.raises(ValueError, match="what the unedited model says cannot be taken"):
        Drift.of(tiny, ("en",))
    editor.reset()
    prepare_editor(tiny, "alphaedit", **options)


@pytest.mark.parametrize("model", ["gemma-3-270m", "EleutherAI/gpt-j-6b", "a model of one's own"])
@pytest.mark.parametrize("method", ["langedit", "ft"])
def test_a_change_of_one_setting_leaves_the_others_as_the_model_needs_them(model, method):
    layers = {} if model in ("gemma-3-270m", "EleutherAI/gpt-j-6b") else dict(layers=(1,))
    tuned = hyperparameters(model, method, **layers).model_dump()
    changes = [("values", "steps", 7), ("threshold", "value", 0.5)]
    for name, field, value in [*changes, ("finetune", "steps", 7)] if method == "ft" else changes:
        changed = hyperparameters(model, method, **layers, **{name: {field: value}}).model_dump()
        assert changed[name][field] == value != tuned[name][field]
        assert changed == tuned | {name: tuned[name] | {field: value}}


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
@every_method
def test_every_method_works_from_its_name_to_a_finished_cell(method, family, world, tmp_path):
    model = build_model(family)
    options = dict(layers=toy.layers_of(method), values=ValueSettings(steps=2))
    editor = prepare_editor(model, method, langs=("en", "de"), corpus=conftest.SENTENCES, prefixes=1, **options)
    assert editor.settings == hyperparameters(model.name, method, **options)
    seen: list[int] = []
    report, updates = editor.edit(toy.facts("en", range(2)), progress=seen.append)
    editor.finish()
    assert seen[-1] == 2
    assert report.facts == ["capital/0", "capital/1"]
    assert tuple(updates) == options["layers"]
    assert all(float(update.delta.norm()) > 0 for update in updates.values())

    model = build_model(family)
    before = toy.weights(model)
    cell = Cell(
        model=model.name, data=toy_study.DATA, method=method, settings=settings_for(method, on=options),
        langs=("en", "de"), batch=2, prefixes=1, prefix_tokens=3,
    )  # fmt: skip
    (result,) = run_cells([cell], model, tmp_path, quiet=True)
    assert toy.same(before, toy.weights(model))
    assert len(result.batches) == 2 * len(options["layers"])
    assert {"before", "immediate", "final"} == set(result.rows["when"])


def test_trained_and_solved_updates_stand_in_one_table(world, tmp_path):
    cells = [toy_study.cell(method, rounds=1) for method in ("ft", "memit")]
    results = run_cells(cells, toy_study.model(), tmp_path, quiet=True)
    growth = Study(results).growth(toy_study.DATA).set_index("method")
    assert growth.loc["ft", "written"].isna().all()
    assert growth.loc["memit", "written"].between(0, 1.01).all()
    assert (growth["relative_total"] > 0).all()


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"memit", "memit-seq", "alphaedit"}))
def test_a_run_interrupted_and_resumed_skips_no_edit_and_ends_with_the_same_bytes(method, world, tmp_path, monkeypatch):
    # Published runners skip the edits made before an interruption: the model then lacks them.
    cell, edit = toy_study.cell(method), editors.Editor.edit

    def interrupted(editor, facts, progress=None):
        if editor.step == 2:
            raise KeyboardInterrupt
        return edit(editor, facts, progress)

    run_cells([cell], toy_study.model(), tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(editors.Editor, "edit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_cells([cell], toy_study.model(), tmp_path / "resumed", quiet=True)
    run_cells([cell], toy_study.model(), tmp_path / "resumed", quiet=True)
    assert toy_study.sealed(tmp_path / "resumed", cell) == toy_study.sealed(tmp_path / "whole", cell)
    assert not load_result(cell, tmp_path / "resumed").rows.empty


@pytest.mark.parametrize("method", ["prune", "prune-released"])
def test_the_final_measurement_of_a_cell_is_that_of_the_damped_model(method, world, tmp_path, monkeypatch):
    damped = run_cells([toy_study.cell(method)], toy_study.model(), tmp_path / "damped", quiet=True)[0]
    monkeypatch.setattr(editors, "damp", lambda total, *_: 0.0 * total)
    other = run_cells([toy_study.cell(method)], toy_study.model(), tmp_path / "other", quiet=True)[0]
    final = [r.rows[r.rows["when"] == "final"]["value"].to_numpy() for r in (damped, other)]
    at_once = [r.rows[r.rows["when"] == "immediate"]["value"].to_numpy() for r in (damped, other)]
    assert (at_once[0] == at_once[1]).all()
    assert (final[0] != final[1]).any()
