"""The commands edit, patch and validate as a person would use them, on a tiny model in a folder."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
import toy
from conftest import SENTENCES, build_model
from toy_patch import BATCHES, recorded
from typer.testing import CliRunner

from langedit_core import cli, cli_patch, notebooks
from langedit_core.models import load_model
from langedit_core.packaged import EMBEDDED, PACKAGED
from langedit_core.patches import Patch

FACTS = [BATCHES[0][0], BATCHES[0][1], BATCHES[1][0], BATCHES[2][0]]  # en en de zh


def line(fact) -> str:
    fields = ("id", "lang", "relation", "subject", "prompt", "target")
    record = {name: getattr(fact, name) for name in fields}
    record["paraphrases"] = [probe.prompt for probe in fact.paraphrases]
    record["neighbours"] = [dict(prompt=probe.prompt, answer=probe.answer) for probe in fact.neighbours]
    return json.dumps(record, ensure_ascii=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, facts, a corpus, and what `langedit edit` made of them."""
    folder = tmp_path_factory.mktemp("world")
    model = build_model("llama")
    model.hf.save_pretrained(folder / "base")
    model.tokenizer.save_pretrained(folder / "base")
    (folder / "facts.jsonl").write_text("\n".join(map(line, FACTS)), encoding="utf-8")
    (folder / "corpus.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_HOME", str(folder / "cache"))
        made = edit(folder, "out", "--save-model", "--peft", "--keep-base")
    assert made.exit_code == 0, made.output
    return folder, made


@pytest.fixture(autouse=True)
def cache(world, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(world[0] / "cache"))


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def edit(folder, out, *more, facts="facts.jsonl"):
    return run(
        "edit", "--model", folder / "base", "--facts", folder / facts, "--output-path", folder / out, "--layers", "1,2",
        "--corpus", folder / "corpus.txt", "--batch-size", 2, "--device", "cpu", *more,
    )  # fmt: skip


def test_edit_leaves_a_patch_a_model_an_adapter_and_a_table(world):
    folder, made = world
    out = folder / "out"
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "model", "patch.safetensors", "report.csv"]
    patch = Patch.load(out / "patch.safetensors")
    assert len(patch) == 2
    assert [fact.id for fact in patch.facts] == [fact.id for fact in FACTS]
    assert patch.header.model == "base" and patch.base is not None
    assert patch.position(load_model(out / "model", device="cpu")) == 2
    table = pd.read_csv(out / "report.csv")
    assert set(table["lang"]) == {"en", "de", "zh"}
    assert {"efficacy_tf", "efficacy_em", "generality_tf", "specificity_same"} <= set(table["metric"])
    of = table.set_index(["lang", "metric"])
    assert of.loc["en", "specificity_same"]["before"] == 1 and of.loc["en", "efficacy_tf"]["facts"] == 2
    assert "efficacy_tf" in made.output and "edited model: " in made.output


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(world):
    folder, _ = world
    (folder / "first.jsonl").write_text("\n".join(map(line, FACTS[:2])), encoding="utf-8")
    assert edit(folder, "again", "--keep-base", facts="first.jsonl").exit_code == 0
    refused = edit(folder, "again", "--keep-base")
    assert isinstance(refused.exception, FileExistsError)
    assert edit(folder, "again", "--keep-base", "--resume").exit_code == 0
    assert (folder / "again/patch.safetensors").read_bytes() == (folder / "out/patch.safetensors").read_bytes()
    other = edit(folder, "again", "--resume", "--seed", 3)
    assert "made with other context prefixes (seed" in str(other.exception)
    other = str(edit(folder, "again", "--resume", "--set", "ridge=0.25").exception)
    assert "other settings of the method than this run (ridge: " in other and " there, 0.25 here)" in other
    (folder / "turned.jsonl").write_text("\n".join(map(line, FACTS[::-1])), encoding="utf-8")
    turned = edit(folder, "again", "--resume", facts="turned.jsonl")
    assert "holds other facts than the first 4 given" in str(turned.exception)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("langedit_core.covariance.corpus_hash", lambda texts: "0" * 64)
        assert "made with other corpus" in str(edit(folder, "again", "--resume").exception)


def test_going_on_replaces_what_the_shorter_patch_was_written_into(world):
    folder, _ = world
    (folder / "first.jsonl").write_text("\n".join(map(line, FACTS[:2])), encoding="utf-8")
    assert edit(folder, "longer", "--save-model", "--peft", facts="first.jsonl").exit_code == 0
    stale = edit(folder, "longer", "--resume", "--save-model")
    assert stale.exit_code == 0 and f"{folder / 'longer/adapter'} is of the shorter patch" in stale.output
    patch = Patch.load(folder / "longer/patch.safetensors")
    assert patch.position(load_model(folder / "longer/model", device="cpu")) == len(patch) == 2
    old = (folder / "longer/adapter/adapter_model.safetensors").read_bytes()
    assert edit(folder, "longer", "--resume", "--peft").exit_code == 0
    assert (folder / "longer/adapter/adapter_model.safetensors").read_bytes() != old


def test_facts_that_share_a_key_are_told(world):
    folder, _ = world
    first = json.loads(line(FACTS[0]))
    ends_alike = first | dict(id="twin", prompt=first["prompt"].partition("{}")[0] + "{} has", paraphrases=[])
    lines = [json.dumps(each, ensure_ascii=False) for each in (first, ends_alike)]
    (folder / "twins.jsonl").write_text("\n".join(lines), encoding="utf-8")
    told = edit(folder, "twins", facts="twins.jsonl").output
    assert f"facts {first['id']}, twin have one key" in told and "overwrite one another" in told
    assert "have one key" not in edit(folder, "apart").output


def test_values_that_were_not_found_are_told(world):
    folder, _ = world
    told = edit(folder, "few", "--set", "values.steps=1", "--set", "values.stop=1e-6").output
    assert "the search for values ended above its aim for 4 of 4 facts" in told
    assert "above its aim" not in edit(folder, "met", "--set", "values.stop=100").output


def test_resuming_without_a_patch_is_refused(world):
    refused = edit(world[0], "nowhere", "--resume")
    assert refused.exit_code == 1 and "no " in refused.output and "to go on with" in refused.output
    assert not (world[0] / "nowhere").exists()


def test_prune_gives_a_model_but_no_patch(world):
    folder, _ = world
    refused = edit(folder, "pruned", "--method", "prune")
    assert "cannot be stored as a patch" in str(refused.exception)
    assert edit(folder, "pruned", "--method", "prune", "--save-model", "--limit", 1).exit_code == 0
    assert sorted(path.name for path in (folder / "pruned").iterdir()) == ["model", "report.csv"]


def test_settings_and_precision_are_those_asked_for(world):
    folder, _ = world
    given = ("--set", "values.steps=2", "--set", "ridge=5e-1", "--set", "threshold={kind: fraction, value: 0.7}")
    assert edit(folder, "set", *given, "--limit", 1, "--dtype", "bfloat16").exit_code == 0
    header = Patch.load(folder / "set/patch.safetensors").header
    before = Patch.load(folder / "out/patch.safetensors").header.settings
    changed = before.values.model_copy(update=dict(steps=2))
    threshold = before.threshold.model_copy(update=dict(kind="fraction", value=0.7))
    assert header.settings == before.model_copy(update=dict(values=changed, ridge=0.5, threshold=threshold))
    assert header.dtype == "bfloat16"


@pytest.mark.parametrize(
    "options, message",
    [
        (["ridge"], "--set got 'ridge'; expected KEY=VALUE, for example ridge=0.5"),
        (["values.=2"], "expected KEY=VALUE"),
        (["layers=[1]"], "give them as --layers"),
        (["seed=1"], "unknown setting 'seed'; known: "),  # an argument of prepare_editor, not of the method
        (["corpus_limit=5"], "unknown setting 'corpus_limit'"),
        (["ridge=1", "ridge=2"], "'ridge' twice"),
        (["values=1", "values.steps=2"], "'values.steps' twice, or beside what it is a part of"),
        (["values.steps=2", "values={steps: 2}"], "'values' twice"),
        (["ridge=[1"], "'[1' is no value"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.parse_settings(options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--set", "rigde=0.5"), "unknown setting 'rigde'; known: ridge"),
        (("--set", "ridge=much"), "ridge"),
        (("--method", "langdit"), "unknown method 'langdit'; known: langedit"),
        (("--layers", "1,9"), "has layers 0 to 3"),
        (("--save-model", "--output-path", "out"), "exists already and is not overwritten"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_edited(world, arguments, message, monkeypatch):
    monkeypatch.chdir(world[0])
    refused = edit(world[0], "never", *arguments)
    assert refused.exit_code == 1 and message in str(refused.exception)
    assert not (world[0] / "never").exists()


@pytest.mark.parametrize(
    "arguments",
    [("--patch-only", "--peft"), ("--layers", "one"), ("--batch-size", "0"), ("--speed", "3"), ("--dtype", "f4")],
)
def test_wrong_usage_ends_with_status_two(world, arguments):
    assert edit(world[0], "usage", *arguments).exit_code == 2


def test_a_bad_line_of_facts_is_named(world):
    (world[0] / "bad.jsonl").write_text(line(FACTS[0]) + "\n{}\n")
    refused = edit(world[0], "bad", facts="bad.jsonl")
    assert "bad.jsonl:2: lang, subject, prompt, target missing" in str(refused.exception)


def test_info_tells_model_batches_and_facts(world):
    shown = run("patch", "info", world[0] / "out/patch.safetensors")
    assert shown.exit_code == 0
    assert "base (llama, float32)" in shown.output and "2 batches, 4 facts" in shown.output
    assert f"en capital/0: {FACTS[0].text} → {FACTS[0].target}" in shown.output


def test_apply_gives_the_edited_model_and_remove_gives_the_base_back(world):
    folder, _ = world
    patch = folder / "out/patch.safetensors"
    asks = run("patch", "apply", patch, "--output-path", folder / "edited")
    assert asks.exit_code == 1 and "folder called 'base'; say where it lies with --model" in asks.output
    done = run(
        "patch", "apply", patch, "--model", folder / "base", "--output-path", folder / "edited", "--device", "cpu"
    )
    assert done.exit_code == 0 and "bit for bit the recorded weights" in done.output
    wanted = toy.weights(load_model(folder / "out/model", device="cpu"))
    assert toy.same(toy.weights(load_model(folder / "edited", device="cpu")), wanted)
    done = run(
        "patch", "remove", patch, "--last", 2, "--edited", folder / "edited", "--output-path", folder / "restored"
    )
    assert done.exit_code == 0 and "which is the unedited model, bit for bit" in done.output
    assert toy.same(toy.weights(load_model(folder / "restored", device="cpu")), toy.weights(build_model("llama")))
    other = build_model("llama", seed=1)
    other.hf.save_pretrained(folder / "other")
    other.tokenizer.save_pretrained(folder / "other")
    refused = run("patch", "apply", patch, "--model", folder / "other", "--output-path", folder / "never")
    assert refused.exit_code == 1 and "the patch belongs to base" in str(refused.exception)
    assert not (folder / "never").exists()


@pytest.mark.parametrize("name", [*PACKAGED, *EMBEDDED, "owner/model"])
def test_a_model_that_is_known_by_name_need_not_be_named_again(name):
    patch, _ = recorded()
    patch.header = patch.header.model_copy(update=dict(model=name))
    assert cli_patch._base_name(patch, None) == name


def test_remove_without_a_model_shortens_the_patch(world):
    folder, _ = world
    patch, short = folder / "out/patch.safetensors", folder / "short.safetensors"
    assert run("patch", "remove", patch, "--last", 1, "--output-path", short).exit_code == 0
    assert len(Patch.load(short)) == 1
    again = run("patch", "remove", patch, "--last", 1, "--output-path", short)
    assert again.exit_code == 1 and "is not overwritten" in again.output
    assert "holds 2 batches" in run("patch", "remove", patch, "--last", 4, "--output-path", folder / "x").output
    assert "called something.safetensors" in run(
        "patch", "remove", patch, "--last", 1, "--output-path", folder / "x"
    ).output.replace("\n", " ")


def test_merge_and_export_state_their_error(world):
    folder, _ = world
    patch = folder / "out/patch.safetensors"
    done = run("patch", "merge", patch, "--output-path", folder / "merged.safetensors")
    assert done.exit_code == 0 and "layer 1: rank 4, relative error" in done.output
    assert "2 batches merged, relative error" in run("patch", "info", folder / "merged.safetensors").output
    done = run("patch", "export", folder / "merged.safetensors", "--output-path", folder / "adapter", "--rank", 2)
    assert done.exit_code == 0 and "relative error" in done.output
    config = json.loads((folder / "adapter/adapter_config.json").read_text())
    assert config["r"] == 2 and config["base_model_name_or_path"] == "base"


def test_validate_counts_what_is_bad_in_its_exit_status(world):
    folder, _ = world
    good = run("validate", folder / "facts.jsonl", folder / "out/patch.safetensors")
    assert good.exit_code == 0 and good.output.count(": good (") == 2
    (folder / "worse.jsonl").write_text("x\n" + line(FACTS[0]))
    bad = run("validate", folder / "worse.jsonl", folder / "facts.jsonl")
    assert bad.exit_code == 1
    assert "worse.jsonl:1: is no JSON" in bad.output and "1 of 2 files" in bad.output


@pytest.mark.parametrize("arguments, status", [(["validate", "none.jsonl"], 1), (["inspect", "no-such-model"], 1),
                                               (["run", "--profile", "none"], 1), (["patch", "info"], 2),
                                               (["no-such-command"], 2), (["--help"], 0)])  # fmt: skip
def test_exit_statuses_can_be_trusted_by_scripts(monkeypatch, capsys, arguments, status):
    monkeypatch.setattr("sys.argv", ["langedit", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.entry()
    assert stopped.value.code == status
    assert "Traceback" not in capsys.readouterr().err


def test_memory_that_ran_out_is_told_on_one_line_and_other_faults_of_torch_keep_their_traceback(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["langedit", "inspect", "x"])

    def raising(text):
        def app():
            raise RuntimeError(text)

        monkeypatch.setattr(cli, "app", app)

    raising("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(SystemExit) as stopped:
        cli.entry()
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith("error: CUDA out of memory.")
    raising("shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        cli.entry()


def test_a_setting_out_of_range_is_told_on_one_line(world, monkeypatch, capsys):
    folder, _ = world
    arguments = ["edit", "--model", folder / "base", "--facts", folder / "facts.jsonl", "--output-path", folder / "no",
                 "--layers", "1,2", "--device", "cpu", "--set", "values.steps=0"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["langedit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.entry()
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 1
    assert last == "error: values.steps: Input should be greater than or equal to 1"


def test_notebooks_find_a_profile_given_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("name: mine\ndescription: d\nmodel: atlas-lm\nnotebooks: {00_quickstart: {}}\n")
    given = {}
    monkeypatch.setattr(notebooks, "run_profile_notebooks", lambda stems, **_: given.update(stems) or [])
    assert run("run", "--profile", "mine.yaml", "--output-path", "here").exit_code == 0
    folder, told = cli.REPOSITORY / "notebooks", given["00_quickstart"]
    assert (folder / told["PROFILE"]).resolve() == tmp_path / "mine.yaml"
    assert (folder / told["REPORTS"]).resolve() == tmp_path / "here/reports/mine"
    assert (folder / told["RESULTS"]).resolve() == tmp_path / "here/results"


@pytest.mark.parametrize("command", ["edit", "evaluate", "validate", "patch info", "patch apply", "patch remove",
                                     "patch merge", "patch export"])  # fmt: skip
def test_help_has_an_example_of_each_command(command):
    shown = run(*command.split(), "--help")
    assert shown.exit_code == 0 and f"Example: langedit {command} " in " ".join(shown.output.split())
