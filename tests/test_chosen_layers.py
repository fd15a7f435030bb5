"""Layers that tracing chose: kept for a model, found by the settings of every method, never instead of tuned ones."""

from pathlib import Path

import nbformat
import pytest

from langedit_core.chosen_layers import ENOUGH, keep_if_enough, keep_layers, kept_layers
from langedit_core.profiles import hyperparameters, is_tuned
from langedit_core.storage import CorruptFile


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_a_model_without_an_entry_is_edited_where_tracing_said():
    with pytest.raises(ValueError, match="notebook 01 or `langedit trace --keep-layers`.*--layers"):
        hyperparameters("org/my-model", "langedit")
    keep_layers("org/my-model", [2, 3], "a test")
    assert hyperparameters("org/my-model", "langedit").layers == (2, 3)
    assert hyperparameters("org/my-model", "memit").layers == (2, 3)
    assert hyperparameters("org/my-model", "memit", layers=(7,)).layers == (7,)
    assert hyperparameters("org/my-model", "rome").layers == (3,)
    keep_layers("org/my-model", [2, 3, 4], "a test")
    assert hyperparameters("org/my-model", "rome").layers == (3,)
    with pytest.raises(ValueError, match="org/my-modem"):
        hyperparameters("org/my-modem", "langedit")


def test_layers_of_a_folder_belong_to_that_folder_wherever_it_is_called_from(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    keep_layers("model", [2, 3], "a test")
    assert kept_layers("model") == kept_layers("./model") == kept_layers(str(tmp_path / "a/model")) == (2, 3)
    monkeypatch.chdir(tmp_path / "b")
    assert kept_layers("model") is None and kept_layers("../a/model") == (2, 3)


def test_tuned_layers_stay_what_they_are():
    tuned = hyperparameters("gemma-3-270m", "langedit").layers
    keep_layers("gemma-3-270m", [17], "a test")
    assert is_tuned("gemma-3-270m") and hyperparameters("gemma-3-270m", "langedit").layers == tuned


def test_the_last_choice_counts_and_a_damaged_one_is_refused():
    assert kept_layers("m") is None
    keep_layers("m", [1], "a test")
    path = keep_layers("m", [4, 5], "a test")
    assert kept_layers("m") == (4, 5)
    path.write_text(path.read_text().replace("4", "3"))
    with pytest.raises(CorruptFile):
        kept_layers("m")


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [-1, 0]])
def test_what_is_no_set_of_layers_is_refused(layers):
    with pytest.raises(ValueError, match="ascending"):
        keep_layers("m", layers, "a test")
    assert kept_layers("m") is None


def test_layers_of_few_facts_are_not_kept_and_the_reader_is_told():
    assert keep_if_enough("org/x", (2, 3), ENOUGH, "atlas") == [] and kept_layers("org/x") == (2, 3)
    (told,) = keep_if_enough("org/x", (0, 1), ENOUGH - 1, "atlas")
    assert kept_layers("org/x") == (2, 3), "what many facts recommended is not replaced by chance"
    assert "not kept for later runs of org/x" in told
    assert f"at least {ENOUGH} traced facts, here n = {ENOUGH - 1} of atlas" in told
    assert "--keep-layers" in told


def test_notebook_01_keeps_layers_of_enough_facts_only():
    path = Path(__file__).parents[1] / "notebooks" / "01_causal_tracing.ipynb"
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert "keep_layers" not in code and "keep_if_enough(MODEL, advice.layers, advice.n, name)" in code
