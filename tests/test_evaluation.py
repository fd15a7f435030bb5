"""What a model says: means and intervals over facts, with a patch before and after, and the command that shows it."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from conftest import build_model
from toy_patch import BATCHES, recorded
from typer.testing import CliRunner

import langedit_core.xtreme
from langedit_core import cli, evaluation
from langedit_core.drift import Drift
from langedit_core.errors import RefusedInput
from langedit_core.evaluation import evaluate, fact_table
from langedit_core.languages import CORE
from langedit_core.metrics import score_probes
from langedit_core.patches import Patch
from langedit_core.stats import interval
from langedit_core.xtreme import XtremeReport

FACTS = [fact for batch in BATCHES for fact in batch]
TEXTS = ("id", "lang", "relation", "subject", "prompt", "target")


@pytest.fixture
def patch() -> Patch:
    return recorded()[0]


def row(fact, value, when="final", lang="en", metric="efficacy_tf") -> dict:
    return dict(fact=fact, lang=lang, kind="edit", metric=metric, when=when, value=value)


def test_a_mean_is_over_facts_whatever_number_of_questions_each_has():
    rows = pd.DataFrame([
        row("a", 1.0), row("a", 0.0), row("a", 0.5), row("b", 1.0), row("c", 0.0),
        row("a", 0.25, "before"), row("b", 0.0, "before"), row("c", 0.5, "before"), row("a", 1.0, lang="de"),
    ])  # fmt: skip
    table = fact_table(rows).set_index("lang")
    expected = interval([0.5, 1.0, 0.0])
    assert table.loc["en"].to_dict() == dict(
        metric="efficacy_tf", facts=3, before=0.25, after=0.5, low=expected.low, high=expected.high
    )
    assert (
        table.loc["de", "after"] == 1 and math.isnan(table.loc["de", "low"]) and math.isnan(table.loc["de", "before"])
    )
    equal = fact_table(pd.DataFrame([row(fact, 1.0) for fact in "abc"])).iloc[0]
    assert equal["after"] == 1 and equal["facts"] == 3 and math.isnan(equal["low"])
    assert "before" not in fact_table(rows[rows["when"] == "final"])


def test_without_a_patch_a_model_is_asked_once_and_nothing_is_compared(tiny):
    found = evaluate(tiny, FACTS)
    assert set(found.rows["when"]) == {"final"} and found.drift.empty and not found.xtreme
    assert set(found.rows["metric"]) == {
        f"{name}_{kind}" for name in ("efficacy", "generality") for kind in ("tf", "em")
    } | {"specificity_tf"}
    for fact in FACTS:
        (score,) = score_probes(tiny, [(fact.text, ("" if fact.lang == "zh" else " ") + fact.target)])
        of = found.said[(found.said["fact"] == fact.id) & (found.said["lang"] == fact.lang)].iloc[0]
        assert of["tf"] == score.tf and of["probability"] == pytest.approx(math.exp(-score.nll))
        assert of["answer"] == fact.target and of["said"] == tiny.tokenizer.decode(score.predicted).strip()


def test_with_a_patch_it_is_asked_before_and_after(tiny, patch):
    drift = Drift.of(tiny)
    found = evaluate(tiny, FACTS, patch=patch)
    assert patch.position(tiny) == len(patch)
    by = found.rows.groupby(["metric", "when"])["value"].mean()
    assert by["specificity_same", "before"] == 1
    said = found.said.set_index(["when", "kind", "fact", "lang"])["probability"].groupby(level=[0, 1, 2, 3]).mean()
    assert (said["final", "edit"] != said["before", "edit"]).all()
    after = evaluate(tiny, FACTS)
    for metric in set(after.rows["metric"]):
        assert by[metric, "final"] == after.rows.query("metric == @metric")["value"].mean()
    measured = found.drift.query("when == 'final'").drop(columns="when").to_dict("records")
    assert measured == drift.measure(tiny) and {one["lang"] for one in measured} == set(CORE)
    kl = found.drift.query("metric == 'drift_kl'").set_index(["when", "lang"])["value"]
    assert (kl["before"] == 0).all() and (kl["final"] > 0).all()


def test_a_patch_of_another_model_or_on_an_edited_one_is_refused(patch):
    with pytest.raises(RefusedInput):
        evaluate(build_model("llama", seed=5), FACTS, patch=patch)
    model = build_model("llama")
    patch.apply(model)
    with pytest.raises(RefusedInput):
        evaluate(model, FACTS, patch=patch)


@pytest.fixture
def xtreme(monkeypatch):
    """XTREME that answers with what it was asked, and says how far it is."""
    asked = []

    def told(model, *, langs, limit, progress):
        asked.append((round(float(model.weight(1).sum()), 4), langs, limit))
        if progress:
            progress("xnli", langs[0], limit, limit)
        record = dict(task="xnli", lang=langs[0], record="1")
        rows = [record | dict(metric=f"xnli2_{name}", value=1.0) for name in ("gold", "predicted", "acc")]
        sets = pd.DataFrame([dict(task="xnli", lang=langs[0], records=1)])
        return XtremeReport(tasks=("xnli",), langs=tuple(langs), rows=pd.DataFrame(rows), answers=sets, sets=sets)

    monkeypatch.setattr(evaluation, "evaluate_xtreme", told)
    monkeypatch.setattr(langedit_core.xtreme, "fingerprint", lambda langs, limit: "0" * 64)
    return asked


def test_xtreme_is_asked_of_both_models(tiny, patch, xtreme):
    seen = []
    found = evaluate(tiny, patch=patch, xtreme=3, langs=("de",), progress=lambda *told: seen.append(told))
    assert list(found.xtreme) == ["before", "final"] and found.rows.empty
    assert seen == [("before", "xnli", "de", 3, 3), ("final", "xnli", "de", 3, 3)]
    (before, *first), (after, *second) = xtreme
    assert first == second == [("de",), 3] and before != after
    assert list(evaluate(tiny, xtreme=3, langs=("de",)).xtreme) == ["final"]


@pytest.fixture
def world(tmp_path, monkeypatch, patch):
    """The patch, its model as a folder, and its facts as a file."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    model = build_model("llama")
    model.hf.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    lines = []
    for fact in FACTS:
        record = {name: getattr(fact, name) for name in TEXTS}
        record["neighbours"] = [dict(prompt=probe.prompt, answer=probe.answer) for probe in fact.neighbours]
        lines.append(json.dumps(record))
    (tmp_path / "facts.jsonl").write_text("\n".join(lines), "utf-8")
    patch.save(tmp_path / "patch.safetensors")
    return tmp_path


def run(folder, *more):
    arguments = ["evaluate", "--model", folder / "base", "--device", "cpu", *more]
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_the_command_shows_and_writes_what_was_measured(world, patch, xtreme):
    facts, out = ("--facts", world / "facts.jsonl"), world / "asked"
    done = run(
        world, *facts, "--patch", world / "patch.safetensors", "--output-path", out, "--xtreme", 2, "--langs", "en"
    )
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == ["drift.csv", "facts.csv", "said.csv", "xtreme.csv"]
    patched = pd.read_csv(out / "facts.csv").set_index(["lang", "metric"])
    assert {"before", "after", "low", "high"} <= set(patched.columns) and ("en", "specificity_same") in patched.index
    assert set(pd.read_csv(out / "xtreme.csv")["when"]) == {"before", "final"} and "XTREME, unedited" in done.output
    assert "drift_ppl after" in done.output and len(pd.read_csv(out / "said.csv")) % 2 == 0

    model = build_model("llama")
    patch.apply(model)
    model.hf.save_pretrained(world / "edited")
    model.tokenizer.save_pretrained(world / "edited")
    plain = run(world, "--model", world / "edited", *facts, "--output-path", world / "plain")
    assert plain.exit_code == 0 and "XTREME" not in plain.output and "drift" not in plain.output
    alone = pd.read_csv(world / "plain" / "facts.csv").set_index(["lang", "metric"])
    assert list(alone.columns) == ["facts", "value", "low", "high"] and len(alone) == len(patched) - 3
    assert alone["value"].tolist() == patched.loc[alone.index, "after"].tolist()
    said = pd.read_csv(out / "said.csv").query("when == 'final'")
    assert pd.read_csv(world / "plain" / "said.csv")["probability"].tolist() == said["probability"].tolist()


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        ((), 2, "nothing is asked"),
        (("--xtreme", "2", "--langs", "en xx"), 1, "unknown language of XTREME prompts 'xx'"),
        (("--xtreme", "2", "--langs", "cs"), 1, "unknown language of XTREME prompts 'cs'"),
        (("--facts", "facts.jsonl", "--langs", " "), 2, "--langs is empty"),
        (("--facts", "facts.jsonl", "--xtreme", "2"), 1, "no files of xnli"),
        (("--facts", "facts.jsonl", "--output-path", "facts.jsonl"), 2, "is a file; expected a folder"),
        (("--facts", "nowhere.jsonl"), 1, "nowhere.jsonl does not exist"),
        (("--facts", "facts.jsonl", "--dtype", "half"), 2, "expected float32, bfloat16, float16"),
        (("--patch", "patch.safetensors", "--dtype", "half"), 2, "expected float32, bfloat16, float16"),
        (("--patch", "patch.safetensors", "--dtype", "float16"), 2, "was made in float32"),
    ],
)
def test_bad_requests_are_refused(world, monkeypatch, arguments, status, message):
    monkeypatch.chdir(world)
    monkeypatch.setenv("LANGEDIT_DATA", str(world / "none"))
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **__: pytest.fail("it was asked"))
    refused = run(world, *arguments)
    told = " ".join((refused.output + str(refused.exception)).replace("│", " ").split())
    assert refused.exit_code == status and message in told
