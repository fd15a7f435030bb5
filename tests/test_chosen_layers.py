"""Layers that tracing chose: kept for a model, found by the settings of every method, never instead of tuned ones."""

import pytest

from langedit_core.chosen_layers import keep_layers, kept_layers
from langedit_core.profiles import hyperparameters, is_tuned
from langedit_core.storage import CorruptFile


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def test_a_model_without_an_entry_is_edited_where_tracing_said():
    with pytest.raises(ValueError, match="run notebook 01"):
        hyperparameters("org/my-model", "langedit")
    keep_layers("org/my-model", [2, 3], "a test")
    assert hyperparameters("org/my-model", "langedit").layers == (2, 3)
    assert hyperparameters("org/my-model", "memit").layers == (2, 3)
    assert hyperparameters("org/my-model", "memit", layers=(7,)).layers == (7,)
    with pytest.raises(ValueError, match="org/my-modem"):
        hyperparameters("org/my-modem", "langedit")


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
