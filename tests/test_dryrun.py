"""`langedit run --dry-run` lists what would run and what it needs; it loads nothing and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from langedit_core import cli, dryrun, models, profiles

MODELS = profiles.load_profile("paper").models


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1, 9, "1 to 9 seconds"), (60, 240, "1 to 4 minutes"), (3600, 36000, "1 to 10 hours"),
     (86400, 864000, "1 to 10 days"),
        (47, 119, "47 to 119 seconds"), (0.01, 0.1, "0.01 to 0.1 seconds")],
)  # fmt: skip
def test_a_range_is_told_in_the_unit_of_its_upper_end(low, high, said):
    assert dryrun.span(low, high) == said


@pytest.fixture
def untouched(tmp_path, monkeypatch):
    """No weights may be loaded, and nothing may appear in the results, the reports or the cache."""

    def refuse(*_, **__):
        raise AssertionError("a dry run loads nothing")

    monkeypatch.setattr(models, "load_model", refuse)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path / "nothing"))
    yield tmp_path / "root"
    assert not (tmp_path / "root").exists() and not (tmp_path / "cache").exists()


def dry_run(*arguments) -> str:
    result = CliRunner().invoke(cli.app, ["run", "--dry-run", "--tflops", "60", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def own_profile(tmp_path, **grid) -> Path:
    path = tmp_path / "own.yaml"
    grid = dict(data=["atlas"], methods=["langedit", "evoedit"], batch=3, langs=["en", "zh"]) | grid
    head = f"name: own\ndescription: d\nmodels: {[*MODELS]}\nnotebooks: {{02_main_runs: {{}}}}\n"
    path.write_text(f"{head}grids: {{main: {grid}}}")
    return path


def test_a_dry_run_lists_cells_memory_and_time_of_every_model(untouched, tmp_path):
    said = dry_run("--profile", own_profile(tmp_path), "--output-path", untouched)
    for name in MODELS:
        assert f"langedit on atlas, {name}" in said and f"evoedit on atlas, {name}" in said
    assert said.count("\nmissing") == 6 and said.count("memory, GB") == said.count("time in all") == 3
    assert "assumptions" in said and "60 TFLOP/s" in said


def test_layers_that_a_model_lacks_are_named_and_not_counted(untouched, tmp_path):
    path = own_profile(tmp_path, changes=[dict(layers=[1, 99])])
    said = dry_run("--profile", path, "--output-path", untouched, "--model", MODELS[0])
    assert "cannot run yet: langedit is to edit layers [1, 99], and the model has 0 to " in said
    assert "nothing to estimate" in said and "-0." not in said


def test_a_cell_of_two_groups_is_listed_and_counted_once(untouched, tmp_path):
    path = own_profile(tmp_path)
    grid = dict(data=["atlas"], methods=["evoedit", "memit"], batch=3, langs=["en", "zh"])
    path.write_text(path.read_text().replace("grids: {", f"grids: {{more: {grid}, "))
    said = dry_run("--profile", path, "--output-path", untouched, "--model", MODELS[0])
    assert [said.count(f"{method} on atlas, {MODELS[0]}") for method in ("langedit", "evoedit", "memit")] == [1, 1, 1]
    assert said.count("\nmissing") == 3 and "for 3 cells on one device\n" in said


def test_a_dry_run_of_the_smallest_profile_counts_the_cells_that_a_run_would(untouched):
    said = dry_run("--profile", "smoke", "--output-path", untouched)
    cells = profiles.load_profile("smoke").all_cells()
    assert said.count("\nmissing") == len(cells) and f"for {len(cells)} cells on one device\n" in said


def test_a_dry_run_warns_of_a_corpus_too_small_for_the_width(untouched, tmp_path):
    for limit, singular in ((5, 3), (None, 0)):
        path = own_profile(tmp_path, langs=["en", "de", "nl", "es", "fr", "zh"], corpus_limit=limit or 10**6)
        said = dry_run("--profile", path, "--output-path", untouched)
        assert said.count("C0 of atlas: a mean over about") == 3 and said.count("singular below d_ff") == singular


def test_a_dry_run_knows_what_is_done(untouched, tmp_path, monkeypatch):
    monkeypatch.setattr(dryrun, "is_known", lambda of, *_: of.method == "langedit")
    said = dry_run("--profile", own_profile(tmp_path), "--output-path", untouched, "--model", "EleutherAI/gpt-j-6b")
    assert said.count("\ndone") == said.count("\nmissing") == 1 and "for 1 cells" in said
    monkeypatch.setattr(dryrun, "is_known", lambda *_: True)
    said = dry_run("--profile", own_profile(tmp_path), "--output-path", untouched, "--model", "EleutherAI/gpt-j-6b")
    assert "all cells are done" in said and "time in all" not in said


@pytest.mark.parametrize(
    ("grid", "reason"),
    [(dict(data=["atlas", "mzsre"]), "cannot run yet: mzsre: no mzsre.jsonl"),
     (dict(batch=5000), "cannot run yet: atlas: 5000 different facts asked for")],
)  # fmt: skip
def test_a_dry_run_says_which_cells_could_not_start(grid, reason, untouched, tmp_path):
    said = dry_run("--profile", own_profile(tmp_path, **grid), "--output-path", untouched)
    assert said.count(reason) == 3
    assert ("2 others not counted" in said) if "data" in grid else ("nothing to estimate" in said)


def test_a_model_without_shapes_is_listed_and_not_estimated(untouched, tmp_path, monkeypatch):
    monkeypatch.setattr(profiles, "_hparams", lambda: {"nobody/here": {"all": {"layers": [1]}}})
    said = dry_run("--profile", own_profile(tmp_path), "--output-path", untouched, "--model", "nobody/here")
    assert "langedit on atlas, nobody/here" in said and "not estimated: the configuration of nobody/here" in said
