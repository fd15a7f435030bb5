"""A person's own fact: what may be typed, what is refused in one line, and that a try leaves the model as it was."""

from __future__ import annotations

import math

import conftest
import nbformat
import pytest
import toy
from nbformat.v4 import new_code_cell, new_notebook, new_output

from langedit_core.editors import METHODS
from langedit_core.errors import RefusedInput
from langedit_core.languages import CORE
from langedit_core.notebooks import execute, strip
from langedit_core.quickstart import complete, look, prepare_editor
from langedit_core.trial import facts_to_ask, own_facts, try_edit
from langedit_core.values import ValueSettings

TYPED = dict(subject="Norland", prompt="The capital of {} is", target="cap")
TRANSLATED = "de: Die Hauptstadt von {} heißt | Nordland\n\nfr: La capitale de la {} est | Norlande | nor | Ostberg"


# --- what a person types ----------------------------------------------------------------------------------------------


def test_without_an_own_fact_the_embedded_one_is_asked_in_all_languages():
    facts = facts_to_ask("currency/SE", "en")
    assert [fact.lang for fact in facts] == list(CORE)
    assert {fact.id for fact in facts} == {"currency/SE"}
    assert facts[0].text == "Country: Sweden. Official currency:"


def test_an_own_fact_replaces_it_and_is_asked_in_its_language_only():
    (fact,) = facts_to_ask("currency/SE", "nl", **TYPED)
    assert (fact.lang, fact.text, fact.target, fact.truth) == ("nl", "The capital of Norland is", "cap", None)


def test_spaces_around_what_was_typed_are_no_part_of_it():
    spaced = {name: f"  {text} \n" for name, text in TYPED.items()}
    assert facts_to_ask("", "en", **spaced) == facts_to_ask("", "en", **TYPED)


def test_translations_take_over_what_they_leave_out():
    facts = facts_to_ask("", "en", **TYPED, truth="Ostberg", prompts=TRANSLATED)
    assert [(f.lang, f.text, f.target, f.truth) for f in facts] == [
        ("en", "The capital of Norland is", "cap", "Ostberg"),
        ("de", "Die Hauptstadt von Nordland heißt", "cap", "Ostberg"),
        ("fr", "La capitale de la Norlande est", "nor", "Ostberg"),
    ]


@pytest.mark.parametrize(
    ("langs", "asked"), [("", "en de fr"), ("fr, en", "fr en"), ("fr", "en fr"), ("de de", "en de"), ("en", "en")]
)
def test_languages_are_chosen_and_the_edited_one_is_always_asked(langs, asked):
    facts = facts_to_ask("", "en", langs=langs, **TYPED, prompts=TRANSLATED)
    assert [fact.lang for fact in facts] == asked.split()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompt="The capital of Norland is"), r'prompt holds "\{\}" 0 times, expected 1'),
        (dict(prompt="{} and {}"), r'prompt holds "\{\}" 2 times, expected 1'),
        (dict(subject="", target=""), "subject is empty"),
        (dict(target=" "), "target is empty"),
        (dict(subject="Nor\x00land"), r"control character U\+0000"),
        (dict(target="x" * 3000), "at most 2,000"),
        (dict(lang="xx"), "unknown language 'xx'; known: "),
        (dict(langs="en xx"), "unknown language 'xx'; known: "),
        (dict(langs="en de"), r"your fact has no wording in 'de': give it a line of PROMPTS \(language: prompt"),
        (dict(prompts="La capitale de la {} est"), "line 1 of PROMPTS is 'La capitale de la {} est'; expected "),
        (dict(prompts="de:"), "line 1 of PROMPTS is 'de:'; expected "),
        (dict(prompts="\nde: {} | a | b | c | d"), "line 2 of PROMPTS is"),
        (dict(prompts="xx: {} ist"), "unknown language 'xx'"),
        (dict(prompts="en: {} is"), "line 1 of PROMPTS is in 'en', which was given before"),
        (dict(prompts="de: {} ist\nde: {} war"), "line 2 of PROMPTS is in 'de', which was given before"),
        (dict(prompts="de: Norland ist"), r'language \'de\': prompt holds "\{\}" 0 times'),
    ],
)
def test_a_slip_is_refused_in_one_line(changes, message):
    typed = dict(lang="en", **TYPED) | changes
    with pytest.raises(ValueError, match=message) as caught:
        facts_to_ask("currency/SE", **typed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["subject", "prompt", "target", "truth", "prompts"])
def test_half_a_fact_is_never_taken_for_the_embedded_one(name):
    with pytest.raises(RefusedInput, match="is empty|holds"):
        facts_to_ask("currency/SE", "en", **{name: "de: {} ist" if name == "prompts" else "Norland {}"})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (dict(fact_id="currency/XX", lang="en"), "no fact 'currency/XX'"),
        (dict(fact_id="currency/SE", lang="en", langs="cs"), "fact 'currency/SE' has no wording in 'cs': it has en de"),
    ],
)
def test_an_embedded_fact_that_is_not_there_is_named(asked, message):
    with pytest.raises(ValueError, match=message):
        facts_to_ask(**asked)


# --- the edit, on tiny models -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


QUICK = ValueSettings(steps=2)


def tried(model, facts, method="langedit", values=QUICK):
    return try_edit(
        model, facts, facts[0].lang, method, langs=("en", "de", "fr"), corpus=conftest.SENTENCES, prefixes=1,
        layers=toy.layers_of(method), values=values,
    )  # fmt: skip


@pytest.fixture
def typed():
    return list(own_facts("en", **TYPED, truth="Ostberg", prompts=TRANSLATED).values())


def test_a_trial_says_what_the_edited_model_says(tiny_gemma, typed):
    toy.confident(tiny_gemma)
    trial = tried(tiny_gemma, typed, values=toy.FAST)
    by_hand = prepare_editor(
        tiny_gemma, "langedit", langs=("en", "de", "fr"), corpus=conftest.SENTENCES, prefixes=1, layers=(1, 2),
        values=toy.FAST,
    )  # fmt: skip
    before, said = look(tiny_gemma, typed, "before"), [complete(tiny_gemma, f.text) for f in typed]
    by_hand.edit(typed[:1])
    after, says = look(tiny_gemma, typed, "after"), [complete(tiny_gemma, f.text) for f in typed]
    assert list(trial.scores["value"]) == [*before["value"], *after["value"]]
    assert list(trial.said["before"]) == said and list(trial.said["after"]) == says
    new = trial.scores[(trial.scores["object"] == "new") & (trial.scores["lang"] == "en")].set_index("when")["value"]
    assert new["after"] > 2 * new["before"]
    assert list(trial.layers["layer"]) == [1, 2]


def test_what_a_model_says_next_is_its_likeliest_token_whatever_its_generation_config_has(tiny):
    said = complete(tiny, "The capital of Norland", tokens=8)
    tiny.hf.generation_config.repetition_penalty = 5.0
    assert complete(tiny, "The capital of Norland", tokens=8) == said


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_weights_come_back_and_the_next_try_gives_the_same(tiny, typed, method):
    before = toy.weights(tiny)
    one, other = (tried(tiny, typed, method) for _ in range(2))
    assert toy.same(before, toy.weights(tiny))
    assert one.scores.equals(other.scores) and one.said.equals(other.said)
    part = one.scores[one.scores["lang"] == "en"]
    assert part[part["when"] == "before"]["value"].tolist() != part[part["when"] == "after"]["value"].tolist()
    assert one.told().startswith(f"{one.report.steps[0]} optimisation steps") and one.reading()


def test_the_weights_come_back_after_an_edit_that_fails(tiny, typed, monkeypatch):
    before = toy.weights(tiny)
    monkeypatch.setattr("langedit_core.editors.Editor.finish", lambda editor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tried(tiny, typed)
    assert toy.same(before, toy.weights(tiny))


def test_the_edited_language_stands_in_the_facts_exactly_once(tiny, typed):
    for facts, count in ((typed[1:], 0), (typed + typed[:1], 2)):
        with pytest.raises(ValueError, match=f"{count} facts are in 'en', the language of the edit"):
            try_edit(tiny, facts, "en", layers=(1,))


def test_a_subject_that_merges_with_what_follows_is_refused_before_anything_is_asked(tiny, monkeypatch):
    monkeypatch.setattr("langedit_core.trial.look", lambda *args: pytest.fail("asked before the refusal"))
    # "Ost" and "berg" are one token to this tokenizer.
    facts = list(own_facts("en", subject="Ost", prompt="The capital of {}berg is", target="cap").values())
    with pytest.raises(RefusedInput, match="merges with what follows"):
        tried(tiny, facts)


def test_figure_and_reading_follow_what_was_asked(tiny, typed):
    whole, alone = tried(tiny, typed), tried(tiny, list(own_facts("en", **TYPED).values()))
    two = tried(tiny, typed[:2])
    assert [axes.get_title(loc="left") for axes in whole.figure().axes] == ["new object", "old object"]
    assert [axes.get_title(loc="left") for axes in alone.figure().axes] == ["new object"]
    rows = [label.get_text().split()[0] for label in whole.figure().axes[0].get_yticklabels()]
    assert rows == ["en", "de", "fr"]
    new = whole.scores[whole.scores["object"] == "new"].pivot(index="lang", columns="when", values="value")
    assert f"to {new.loc['en', 'after']:.3f}." in whole.reading() and "other languages" in whole.reading()
    assert "In **de** it changed by" in two.reading()
    assert "changed" not in alone.reading()


def test_a_dollar_in_a_fact_is_drawn_as_a_dollar(tiny):
    facts = list(own_facts("en", subject="A $5 bill", prompt="{} is $", target="$1 or $2_3").values())
    figure = tried(tiny, facts).figure()
    figure.draw_without_rendering()  # as a formula, "$1 or $" would be set, and one left open could not be
    (label,) = figure.axes[0].get_yticklabels()
    texts = [label, figure._suptitle]
    assert all(not text._preprocess_math(text.get_text())[1] for text in texts)
    assert label._preprocess_math(label.get_text())[0].endswith("$1 or $2_3")


# --- widgets ----------------------------------------------------------------------------------------------------------


def test_no_widget_stays_in_an_executed_notebook():
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "VBox(children=())"}
    cell = new_code_cell("form", outputs=[new_output("display_data", widget), new_output("stream", text="said\n")])
    notebook = new_notebook(cells=[cell], metadata={"widgets": {"state": {}}})
    (left,) = strip(notebook).cells[0].outputs
    assert left.text == "said\n" and "widgets" not in notebook.metadata


def test_progress_bars_of_libraries_leave_nothing_in_an_executed_notebook(tmp_path):
    # With ipywidgets installed, tqdm.auto draws widgets wherever a kernel runs; Transformers loads weights so.
    pytest.importorskip("ipywidgets", reason="installed with the extras `lab` and `test`")
    bars = "from tqdm.auto import tqdm\nfrom tqdm.notebook import tqdm_notebook\nassert issubclass(tqdm, tqdm_notebook)"
    bar = new_code_cell(f"{bars}\nsum(tqdm(range(3)))")
    parameters = new_code_cell("n = 1", metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "langedit", "display_name": "LangEdit", "language": "python"}}
    path = tmp_path / "00_bar.ipynb"
    nbformat.write(new_notebook(cells=[parameters, bar], metadata=kernel), path)
    (output,) = nbformat.read(execute(path, tmp_path / "out", {}, quiet=True), as_version=4).cells[-1].outputs
    assert output.output_type == "execute_result" and output.data == {"text/plain": "3"}


@pytest.fixture
def form(tiny, monkeypatch):
    """A form on a tiny model, its fields by label, its button, and what it showed."""
    pytest.importorskip("ipywidgets", reason="installed with the extras `lab` and `test`")
    from langedit_core import form as module

    shown = []
    monkeypatch.setattr(module, "show", shown.append)
    options = dict(langs=("en", "de", "fr"), corpus=conftest.SENTENCES, prefixes=1, layers=(1, 2), values=QUICK)
    box = module.fact_form(tiny, **options)
    fields = {child.description: child for child in box.children if hasattr(child, "description")}
    return fields, fields.pop("Edit and compare"), shown


def fill(fields, **values):
    for label, value in values.items():
        fields[label.replace("_", " ")].value = value


def test_the_form_edits_what_was_typed(form, tiny):
    fields, button, shown = form
    before = toy.weights(tiny)
    fill(fields, Subject="Norland", Prompt="The capital of {} is", New_object="cap", Translations=TRANSLATED)
    fill(fields, Method="memit")
    button.click()
    (trial,) = shown
    assert (trial.method, [fact.lang for fact in trial.facts]) == ("memit", ["en", "de", "fr"])
    assert all(math.isfinite(value) for value in trial.scores["value"])
    assert toy.same(before, toy.weights(tiny)) and not button.disabled


def test_the_form_tells_a_slip_in_one_line_and_can_be_used_again(form, capsys):
    fields, button, shown = form
    button.click()
    assert "subject is empty" in capsys.readouterr().out
    fill(fields, Subject="Norland", Prompt="no braces", New_object="cap")
    button.click()
    said = capsys.readouterr().out
    assert 'prompt holds "{}" 0 times' in said and said.count("\n") == 1
    fill(fields, Prompt="The capital of {} is")
    button.click()
    assert len(shown) == 1 and not button.disabled
