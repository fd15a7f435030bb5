"""The `paper` profile has the published settings, and they run: on tiny models of the same three architectures."""

from __future__ import annotations

import math

import conftest
import pytest
import torch
import toy
import yaml
from typer.testing import CliRunner

from langedit_core import cli, models, study
from langedit_core.editors import METHODS, Editor, EditSettings
from langedit_core.models import EditableModel
from langedit_core.profiles import FOLDER, Profile, hyperparameters, load_profile
from langedit_core.results import Cell
from langedit_core.study import load_data, run_cells

PAPER = load_profile("paper")
TYPES = dict(zip(PAPER.models, ("gptj", "llama", "qwen2"), strict=True))
LAYERS = dict(zip(PAPER.models, ((3, 4, 5, 6, 7, 8), (4, 5, 6, 7, 8), (4, 5, 6, 7, 8)), strict=True))
RATES = dict(zip(PAPER.models, (0.5, 0.1, 0.5), strict=True))
RUN = list(dict.fromkeys(cell.method for cell in PAPER.cells("main")))
each_model = pytest.mark.parametrize("name", PAPER.models)


def clipped(settings: EditSettings) -> EditSettings:
    """The same settings on as many of the layers 1 and 2 as a tiny model can offer."""
    return EditSettings(**settings.model_dump() | dict(layers=(1, 2)[: len(settings.layers)]))


def tiny(name: str) -> EditableModel:
    """A random model of the paper's architecture that goes by the paper's name."""
    model = conftest.build_model(
        TYPES[name], **{("n_positions" if TYPES[name] == "gptj" else "max_position_embeddings"): 512}
    )
    model.name = name
    return model


# --- what is published ------------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("method", METHODS)
def test_settings_of_every_method_are_valid(name, method):
    settings = hyperparameters(name, method)
    assert (settings.finetune is None) == (not method.startswith("ft"))
    assert len(settings.layers) == (1 if method.startswith(("ft", "rome")) else len(LAYERS[name]))


@each_model
@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith(("ft", "rome"))])
def test_values_and_null_spaces_have_the_published_numbers(name, method):
    settings = hyperparameters(name, method)
    values = settings.values
    assert settings.layers == LAYERS[name] and settings.spread == "residual"
    assert (values.site, values.relative, values.optimiser, values.vocabulary) == ("residual", False, "adam", None)
    assert (values.steps, values.rate, values.clamp, values.kl) == (25, RATES[name], 0.75, 0.0625)
    assert (settings.threshold.kind, settings.threshold.value) == ("absolute", 2e-2)
    assert not settings.relative_ridge
    assert settings.ridge == (10 if method in ("alphaedit", "alphaedit-sphere", "langedit-released") else 1)
    assert settings.covariance_weight == (15000 if settings.space == "whole" else 0)


@each_model
def test_rome_and_fine_tuning_have_the_published_numbers(name):
    rome = hyperparameters(name, "rome")
    assert (rome.layers, rome.covariance_weight, rome.average, rome.meets) == ((5,), 0, "mean", "bare")
    assert (rome.values.site, rome.values.clamp, rome.values.rate) == ("write", 4, 0.5)
    for method in ("ft", "ft-released"):
        tuned = hyperparameters(name, method).finetune
        assert (tuned.relative, tuned.rate, tuned.box, tuned.steps) == (False, 5e-4, None, 25)
    assert hyperparameters(name, "ft-released").finetune.scored == "last"
    assert hyperparameters(name, "ft").finetune.scored == "own"


def test_every_model_is_edited_by_every_method_on_both_data_sets_with_five_seeds():
    methods = {"ft", "rome", "memit", "prune", "rect", "alphaedit", "langedit", "evoedit"}
    for name in PAPER.models:
        cells = PAPER.cells("main", name)
        assert {(c.method, c.data, c.seed) for c in cells} == {
            (m, d, s) for m in methods for d in ("mzsre", "bzsre") for s in range(5)
        }
        assert {c.batch for c in cells} == {100} and {c.model for c in cells} == {name}
        assert {c.langs for c in cells if c.data == "mzsre"} == {("en", "de", "nl", "es", "fr", "zh")}
        assert {c.langs for c in cells if c.data == "bzsre"} == {("en", "zh")}


def test_the_data_have_enough_facts():
    conftest.data_folder("LANGEDIT_DATA", "../shared/data")
    for cell in {c.data: c for c in PAPER.cells("main")}.values():  # all facts are shared, so no seed has fewer
        data = load_data(cell.data, cell.langs)
        drawn = data.select(cell.langs, cell.batch * cell.rounds, cell.split, cell.seed, cell.parallel)
        assert [len(facts) for facts in drawn] == [100] * len(cell.langs)


# --- they run ---------------------------------------------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("method", RUN)
def test_the_settings_edit_a_model_of_the_same_architecture(name, method):
    model, settings = tiny(name), clipped(hyperparameters(name, method))
    before = {layer: model.weight(layer).clone() for layer in settings.layers}
    facts = load_data("atlas", ("en", "zh")).select(("en", "zh"), 2)
    contexts = toy.Contexts(prefixes={"en": toy.PREFIXES["en"], "zh": toy.PREFIXES["zh"]})
    covariances = toy.covariances(model, settings.layers)
    for covariance in covariances.values():  # at the published cut half of a random model's directions are free
        middle = torch.linalg.eigvalsh(covariance.mean).median()
        covariance.gram *= settings.threshold.value / middle
    editor = Editor(model, settings, covariances, contexts)
    for batch in facts:
        report, _ = editor.edit(batch)
        assert all(math.isfinite(loss) for loss in report.final_loss)
        assert all(0 < layer.relative_update < math.inf for layer in report.layers.values())
    editor.finish()
    for layer, weight in before.items():
        assert torch.isfinite(model.weight(layer)).all() and not torch.equal(model.weight(layer), weight)


@each_model
def test_a_cell_of_the_profile_runs_from_the_data_to_the_result(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    fields = next(c for c in PAPER.cells("main", name) if c.method == "langedit").model_dump()
    fields |= dict(settings=clipped(hyperparameters(name, "langedit")), data="atlas", langs=("en", "de"))
    fields |= dict(batch=2, parallel=False, corpus_limit=20, xtreme=0)
    (result,) = run_cells([Cell(**fields)], tiny(name), tmp_path, quiet=True)
    assert set(result.rows["when"]) == {"before", "immediate", "final"}
    assert len(result.batches) == 4 and result.rows["value"].map(math.isfinite).all()
    assert result.batches["relative_total"].map(math.isfinite).all()


# --- several models in one profile ------------------------------------------------------------------------------------


def test_a_profile_has_one_model_or_several_and_a_folder_of_reports_for_each():
    assert len({PAPER.folder(name) for name in PAPER.models}) == 3
    assert PAPER.folder("Qwen/Qwen2.5-7B-Instruct") == "paper-qwen2.5-7b-instruct"
    content = yaml.safe_load((FOLDER / "quick.yaml").read_text("utf-8"))
    quick = Profile(**content)
    assert quick.models == (quick.model,) == ("gemma-3-270m",) and quick.folder("another/Model") == "quick"
    with pytest.raises(ValueError, match="either `model` or `models`"):
        Profile(**content, models=("a", "b"))


def test_one_command_goes_through_all_models(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(models, "load_model", lambda name, device: seen.append((name, device)) or name)
    monkeypatch.setattr(study, "check_inputs", lambda cells, *_: None)
    monkeypatch.setattr(
        study, "run_cells", lambda cells, model, root, until, without: seen.append((model, len(cells), root))
    )
    arguments = ["run", "--profile", "paper", "--output-path", str(tmp_path), "--device", "cpu"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    expected = [((name, "cpu"), (name, len(PAPER.cells("main")), tmp_path / "results")) for name in PAPER.models]
    assert seen == [step for pair in expected for step in pair]
    assert result.output.count("0 of 80 cells are finished") == 3  # nothing to report, so no notebook was started
    seen.clear()
    CliRunner().invoke(cli.app, [*arguments, "--model", PAPER.models[1]])
    assert [step[0] for step in seen] == [PAPER.models[1]] * 2


def test_a_dry_run_of_the_profile_names_every_cell_and_model(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("a dry run loads nothing"))
    arguments = ["run", "--profile", "paper", "--dry-run", "--tflops", "60", "--output-path", str(tmp_path / "none")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.count("\nmissing") == 3 * 80
    assert all(f"{method} on mzsre, {name}\n" in result.output for method in RUN for name in PAPER.models)
    assert not (tmp_path / "none").exists()
