"""`langedit trace` on a tiny model in a folder: what it shows, what it writes, and that a stopped run goes on."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
import toy
from conftest import build_model
from typer.testing import CliRunner

from langedit_core import cli, tracing_study
from langedit_core.chosen_layers import kept_layers
from langedit_core.languages import LANGUAGES
from langedit_core.metrics import score_probes
from langedit_core.tracing_analysis import EARLY, curve, recommend
from langedit_core.tracing_study import trace_facts

PROMPTS = {
    "en": ["The capital of {} is", "In {}, the capital is", "{} has", "The north: {} is", "A town of {} in"],
    "zh": ["国家：{}。首都：", "{}，首都：", "城市{}：", "{}的官方货币", "北方，{}是"],
}


def said(model, text: str) -> str:
    ids = model.tokenizer(text).input_ids
    return model.tokenizer.decode([int(model.hf(torch.tensor([ids])).logits[0, -1].argmax())])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, a file of facts of which it knows some, and the known ones."""
    folder = tmp_path_factory.mktemp("traced")
    model = build_model("llama")
    model.hf.save_pretrained(folder / "base")
    model.tokenizer.save_pretrained(folder / "base")
    facts, known = [], []
    for lang, prompts in PROMPTS.items():
        for n, prompt in enumerate(prompts):
            for m, subject in enumerate(toy.CHINESE if lang == "zh" else toy.SUBJECTS):
                answer = said(model, prompt.replace("{}", subject)).strip()
                if not answer.isprintable() or not answer or "\ufffd" in answer:
                    continue
                fact = toy.fact(0, lang, id=f"f{n}/{m}", subject=subject, prompt=prompt, truth=answer)
                facts.append(fact)
                asked = [(fact.text, LANGUAGES[lang].join + answer)]
                known += [fact] if score_probes(model, asked)[0].em else []
    lines = [
        json.dumps({name: getattr(fact, name) for name in ("id", "lang", "subject", "prompt", "target", "truth")})
        for fact in facts
    ]
    (folder / "facts.jsonl").write_text("\n".join(lines), "utf-8")
    return folder, model, known


@pytest.fixture(autouse=True)
def cache(world, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(world[0] / "cache"))


def run(folder, out, *more):
    arguments = [
        "trace", "--model", folder / "base", "--facts", folder / "facts.jsonl", "--output-path", folder / out,
        "--samples", 2, "--width", 2, "--device", "cpu", *more,
    ]  # fmt: skip
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_tables_are_those_of_the_traces_of_the_known_facts(world):
    folder, model, known = world
    made = run(folder, "out", "--limit", 99)
    assert made.exit_code == 0, made.output
    tables = {name: pd.read_csv(folder / "out" / f"{name}.csv") for name in ("known", "layers", "peaks", "traces")}
    assert len(known) > 4 and {fact.lang for fact in known} == {"en", "zh"}
    assert tables["known"]["traced"].sum() == len(known)
    assert set(zip(tables["traces"]["fact"], tables["traces"]["lang"], strict=True)) == {(f.id, f.lang) for f in known}
    settings = tracing_study.TraceSettings(samples=2)
    facts = map(json.loads, (folder / "facts.jsonl").read_text("utf-8").splitlines())
    deviation = tracing_study.embedding_deviation(model, [fact["subject"] for fact in facts])
    wanted = trace_facts(model, known, deviation, settings, quiet=True)
    pooled = tables["layers"].query("lang == 'all' and kind == 'mlp'")
    expected = curve(wanted, *EARLY)
    assert pooled["value"].to_numpy() == pytest.approx(expected["value"].to_numpy(), rel=1e-3, abs=1e-6)
    advice = recommend(wanted, 2, settings.window_of(4))
    assert f"recommended layers: {advice.layers[0]},{advice.layers[1]} (" in made.output
    assert tables["peaks"]["lang"].tolist()[:3] == ["all", "en", "zh"]
    best = pooled.set_index("layer")["value"].idxmax()
    assert tables["peaks"].iloc[0]["peak"] == best and f"mlp  all {len(known):>2} {best} [" in made.output


def test_a_stopped_run_goes_on_where_it_was(world, monkeypatch):
    folder, *_ = world
    traced, real = [], tracing_study.trace

    def counted(model, fact, *args, **kwargs):
        if len(traced) == 2:
            raise KeyboardInterrupt
        traced.append(fact.id)
        return real(model, fact, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(tracing_study, "trace", counted)
        assert run(folder, "stopped", "--limit", 2).exit_code == 130
    assert len(traced) == 2 and not (folder / "stopped/layers.csv").exists()
    traced.clear()
    traced.append("room for one only")
    with monkeypatch.context() as patched:
        patched.setattr(tracing_study, "trace", counted)
        assert run(folder, "stopped", "--limit", 2).exit_code == 130  # two were read, the third made, the fourth not
    assert len(traced) == 2
    whole = run(folder, "whole", "--limit", 2)
    assert run(folder, "stopped", "--limit", 2).stdout == whole.stdout
    for path in (folder / "whole").glob("*.csv"):
        assert path.read_bytes() == (folder / "stopped" / path.name).read_bytes()


def test_languages_and_the_number_of_facts_are_as_asked(world):
    folder, *_ = world
    made = run(folder, "few", "--langs", "zh", "--limit", 1, "--heat-map")
    assert made.exit_code == 0, made.output
    assert pd.read_csv(folder / "few/known.csv")[["lang", "traced"]].values.tolist() == [["zh", 1]]
    assert (folder / "few/heat.png").read_bytes().startswith(b"\x89PNG") and (folder / "few/heat.svg").is_file()
    assert "heat.png, heat.svg" in made.output


def test_recommended_layers_are_kept_on_request_only(world):
    folder, *_ = world
    name = str(folder / "base")
    run(folder, "few", "--langs", "zh", "--limit", 1)
    assert kept_layers(name) is None
    made = run(folder, "few", "--langs", "zh", "--limit", 1, "--keep-layers")
    assert f"kept as default of {name}" in made.output
    told = made.output.split("recommended layers: ")[1].split(" ")[0]
    assert ",".join(map(str, kept_layers(name))) == told


def test_prompts_that_end_with_their_subject_have_no_late_site(world):
    folder, model, _ = world
    lines = []
    for prompt in ("国家：{}", "城市，{}", "北方的{}", "官方：{}", "首都{}"):
        for subject in toy.CHINESE:
            answer = said(model, prompt.replace("{}", subject)).strip()
            if answer.isprintable() and answer and "\ufffd" not in answer:
                record = dict(lang="zh", subject=subject, prompt=prompt, target="x", truth=answer, id=f"{len(lines)}")
                lines.append(json.dumps(record))
    (folder / "ends.jsonl").write_text("\n".join(lines), "utf-8")
    made = run(folder, "ends", "--facts", folder / "ends.jsonl")
    assert made.exit_code == 0, made.output
    assert "recommended layers: " in made.output and "at the prompt's last token" not in made.output
    assert set(pd.read_csv(folder / "ends/peaks.csv")["kind"]) == {"mlp"}


def test_a_model_that_knows_nothing_is_told_what_is_missing(world):
    folder, *_ = world
    record = dict(lang="en", subject="Norland", prompt="The capital of {} is", target="a very long wrong answer")
    (folder / "wrong.jsonl").write_text(json.dumps(record), "utf-8")
    made = run(folder, "none", "--facts", folder / "wrong.jsonl")
    assert made.exit_code == 1 and "answers none of the 1 facts of wrong in full" in made.output
    assert "`truth`" in made.output and not (folder / "none/layers.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--data", "atlas"), 2, "--facts and --data both say"),
        (("--langs", "fr"), 1, "unknown language of facts.jsonl 'fr'; known: "),
        (("--langs", "xx"), 1, "unknown language 'xx'"),
        (("--langs", " "), 2, "--langs is empty"),
        (("--width", "5"), 2, "has 4 layers"),
        (("--limit", "0"), 2, ""),
        (("--samples", "none"), 2, ""),
        (("--facts", "nowhere.jsonl"), 1, "nowhere.jsonl does not exist"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_traced(world, arguments, status, message):
    refused = run(world[0], "never", *arguments)
    assert refused.exit_code == status, refused.output
    assert message in " ".join((refused.output + str(refused.exception)).replace("│", " ").split())
    assert not (world[0] / "never").exists()


def test_an_unknown_data_set_is_answered_with_the_known_ones(world):
    made = CliRunner().invoke(
        cli.app, ["trace", "--model", str(world[0] / "base"), "--data", "atals", "--output-path", str(world[0] / "x")]
    )
    assert made.exit_code == 1 and "unknown data set 'atals'; known: atlas" in str(made.exception)


@pytest.mark.parametrize("command", ["trace", "run", "grid", "status", "report", "inspect"])
def test_help_has_an_example(command):
    shown = CliRunner().invoke(cli.app, [command, "--help"])
    assert shown.exit_code == 0 and f"Example: langedit {command} " in " ".join(shown.output.split())
