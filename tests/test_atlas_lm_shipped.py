"""The checkpoint in the package: it is the one its log tells of, it knows what it was told, and it can be edited."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest

from langedit_core import packaged
from langedit_core.atlas_corpus import AtlasCorpus
from langedit_core.atlas_lm import ask_atlas
from langedit_core.atlas_variants import VARIANTS
from langedit_core.languages import CORE
from langedit_core.models import load_model
from langedit_core.packaged import EMBEDDED, embedded
from langedit_core.records import digest

FOLDER = EMBEDDED["atlas-lm"]
pytestmark = pytest.mark.skipif(
    not (FOLDER / "training.json").is_file(), reason="no checkpoint: python scripts/train_atlas_lm.py --ship"
)


@pytest.fixture(scope="module")
def corpus():
    return AtlasCorpus(VARIANTS["atlas-lm"])


@pytest.fixture(scope="module")
def answers(corpus):
    some = sorted(corpus.rows, key=lambda fact: digest("shipped", fact))[:80]
    return ask_atlas(load_model("atlas-lm", device="cpu"), corpus, some)


def test_it_is_small_and_was_trained_on_the_corpus_of_this_version(corpus):
    about = json.loads((FOLDER / "training.json").read_text("utf-8"))
    assert about["corpus_sha256"] == corpus.fingerprint
    assert about["variant"] == vars(corpus.variant)
    assert len(pd.read_csv(FOLDER / "training.csv")) == about["settings"]["epochs"]
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 12_000_000


def test_its_table_promises_the_told_facts_in_every_language():
    table = pd.read_csv(FOLDER / "accuracy.csv")
    told = table[table["told"]].groupby(["wording", "lang"]).apply(lambda t: (t["value"] * t["n"]).sum() / t["n"].sum())
    assert told["edit"].min() > 0.95
    assert told["held out"].min() > 0.8


@pytest.mark.parametrize("lang", CORE)
def test_it_answers_as_the_table_promises(answers, lang):
    told = answers[answers["told"] & (answers["lang"] == lang)]
    by_wording = told.groupby("wording")["em"].mean()
    assert by_wording["edit"] > 0.9 and by_wording["held out"] > 0.75  # of 80 facts


def test_an_altered_checkpoint_is_not_used(tmp_path, monkeypatch):
    copy = tmp_path / "atlas-lm"
    shutil.copytree(FOLDER, copy)
    monkeypatch.setitem(packaged.EMBEDDED, "atlas-lm", copy)
    assert embedded("atlas-lm") == copy
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\0\1\2\3")
    with pytest.raises(ValueError, match="model.safetensors was altered; reinstall"):
        load_model("atlas-lm")
    (copy / "training.json").unlink()
    with pytest.raises(ValueError, match="'atlas-lm' is not whole .*reinstall"):
        load_model("atlas-lm")


def test_an_unknown_embedded_model_is_named():
    with pytest.raises(ValueError, match="unknown embedded model 'atlas'; known: atlas-lm"):
        embedded("atlas")
