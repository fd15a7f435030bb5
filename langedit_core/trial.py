"""A fact of your own, tried out: edited in one language, asked in several before and after, and taken out again.

`facts_to_ask` reads what a person typed, `try_edit` makes the edit and undoes it, so that the next fact starts from the
same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from langedit_core import plots
from langedit_core.editing import usable
from langedit_core.editors import BatchReport
from langedit_core.languages import CORE, language
from langedit_core.models import EditableModel
from langedit_core.quickstart import complete, find_fact, look, prepare_editor
from langedit_core.records import Fact
from langedit_core.study import load_data

FORM = "language: prompt with {} | subject | new object | old object"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a model said before and after one edit.

    Attributes:
        facts: The same fact in the languages that were asked.
        lang: The one it was edited in.
        method: Name of the method.
        report: What the edit did, per layer too.
        scores: Columns lang, object, text, when, value, as `plots.before_after` draws them.
        said: Columns lang, prompt, before, after: greedy continuations.
    """

    facts: tuple[Fact, ...]
    lang: str
    method: str
    report: BatchReport
    scores: pd.DataFrame
    said: pd.DataFrame

    @property
    def layers(self) -> pd.DataFrame:
        """One row per edited layer."""
        return pd.DataFrame([dict(layer=layer) | vars(one) for layer, one in self.report.layers.items()])

    def figure(self) -> Figure:
        """Probability per token of the new object, and of the old one where it is known, before and after."""
        panels = {"new": "new object"}
        if (self.scores["object"] == "old").any():
            panels["old"] = "old object"
        (edited,) = [fact for fact in self.facts if fact.lang == self.lang]
        title = f"{edited.text} … edited in {self.lang} only"
        return plots.before_after(self.scores, title=title, xlabel="probability per token", panels=panels)

    def told(self) -> str:
        """What the edit did to the weights, as a sentence of Markdown."""
        layers = self.report.layers
        moved = ", ".join(f"{one.relative_update:.3f}" for one in layers.values())
        left = ", ".join(f"{one.capacity:.0%}" for one in layers.values())
        return (
            f"{self.report.steps[0]} optimisation steps, final loss {self.report.final_loss[0]:.3f}. The weights of "
            f"layers {', '.join(map(str, layers))} moved by {moved} of their norm; {left} of the key's energy was left "
            "after the projection."
            + (
                ""
                if self.report.converged
                else " The search for a value ended above its aim: the fact may not be said."
            )
        )

    def reading(self) -> str:
        """What the figure shows, as a sentence of Markdown."""
        new = self.scores[self.scores["object"] == "new"].pivot(index="lang", columns="when", values="value")
        text = (
            f"In **{self.lang}** the new object went from {new.loc[self.lang, 'before']:.3f} to "
            f"{new.loc[self.lang, 'after']:.3f}. "
        )
        gain = (new["after"] - new["before"]).drop(self.lang)
        if len(gain) == 1:
            text += f"In **{gain.index[0]}** it changed by {gain.iloc[0]:+.3f}. "
        elif len(gain):
            text += (
                f"In the other languages it changed by {gain.min():+.3f} to {gain.max():+.3f}, "
                f"most in **{gain.idxmax()}**. "
            )
        return text + "One fact is an anecdote; notebook 02 has the numbers."


def facts_to_ask(
    fact_id: str,
    lang: str,
    *,
    langs: str = "",
    subject: str = "",
    prompt: str = "",
    target: str = "",
    truth: str = "",
    prompts: str = "",
) -> list[Fact]:
    """A fact in every language it is to be asked in: a person's own, or one of the embedded benchmark.

    Args:
        fact_id: Embedded fact, taken where nothing of an own one is given.
        lang: Language of the edit, and of `prompt`.
        langs: Languages to ask, such as "en de zh"; all the fact has if empty. The edited one is always asked.
        subject: Own fact: what it is about.
        prompt: Own fact: a text with one "{}" for the subject, to be completed.
        target: Own fact: the new object.
        truth: Own fact: the object so far, where it is known.
        prompts: Own fact in other languages, a line each, as `FORM` says; what a line leaves out is as in `lang`.

    Raises:
        ValueError: Unknown fact or language, or a language the fact has no wording in.
        RefusedInput: A text is missing or cannot be used; says which.
    """
    language(lang)
    # Papermill makes a number of what looks like one: TARGET 1984.
    own = dict(subject=subject, prompt=prompt, target=target, truth=truth, prompts=prompts)
    own = {name: "" if text is None else str(text) for name, text in own.items()}
    if any(text.strip() for text in own.values()):
        known = own_facts(lang, **own)
        name, remedy = "your fact", f"give it a line of PROMPTS ({FORM})"
    else:
        data = load_data("atlas", CORE)
        find_fact(data, fact_id, lang)
        known = data.facts[fact_id]
        name, remedy = f"fact {fact_id!r}", f"it has {' '.join(known)}"
    wanted = list(dict.fromkeys(langs.replace(",", " ").split())) or list(known)
    for code in wanted:
        language(code)
        if code not in known:
            raise ValueError(f"{name} has no wording in {code!r}: {remedy}, or leave {code!r} out of LANGS")
    return [known[code] for code in ([] if lang in wanted else [lang]) + wanted]


def own_facts(
    lang: str, *, subject: str, prompt: str, target: str, truth: str = "", prompts: str = ""
) -> dict[str, Fact]:
    """A person's own fact by language, the one it is edited in first; arguments as in `facts_to_ask`.

    Raises:
        ValueError: An unknown language, one given twice, or a line of `prompts` that is not as `FORM` says.
        RefusedInput: A text is missing or cannot be used; says which.
    """
    own = dict(subject=subject.strip(), prompt=prompt.strip(), target=target.strip(), truth=truth.strip())
    facts = {lang: _own_fact(lang, own)}
    for number, line in enumerate(prompts.splitlines(), start=1):
        if not line.strip():
            continue
        code, sign, rest = line.partition(":")
        code, parts = code.strip(), [part.strip() for part in rest.split("|")]
        if not sign or not parts[0] or len(parts) > len(own):
            raise ValueError(f"line {number} of PROMPTS is {line.strip()[:80]!r}; expected {FORM!r}")
        language(code)
        if code in facts:
            raise ValueError(f"line {number} of PROMPTS is in {code!r}, which was given before; leave one out")
        given = zip(("prompt", "subject", "target", "truth"), parts, strict=False)
        facts[code] = _own_fact(code, own | {name: part for name, part in given if part})
    return facts


def _own_fact(lang: str, texts: Mapping[str, str]) -> Fact:
    return Fact(id="own/1", relation="own", lang=lang, **(texts | {"truth": texts["truth"] or None}))


def try_edit(model: EditableModel, facts: Sequence[Fact], lang: str, method: str = "langedit", **options) -> Trial:
    """Ask, edit in one language, ask again; the weights are then what they were, bit for bit.

    Args:
        model: Any supported model.
        facts: One fact, once per language, as `facts_to_ask` gives it.
        lang: The language it is edited in.
        method: `langedit`, `alphaedit`, `memit`, ...
        options: For `prepare_editor`, such as `layers=(5, 6, 7)` for a model without hyper-parameters of its own.

    Raises:
        ValueError: Unknown method, no layers known for the model, or not exactly one fact in `lang`.
        RefusedInput: The tokenizer does not let the subject be told from what follows it.
        FloatingPointError: The edit diverged.
    """
    edited = [fact for fact in facts if fact.lang == lang]
    if len(edited) != 1:
        raise ValueError(f"{len(edited)} facts are in {lang!r}, the language of the edit; expected exactly one")
    editor = prepare_editor(model, method, **(dict(langs=tuple(dict.fromkeys((*CORE, lang)))) | options))
    usable(editor, edited)
    before, said = look(model, facts, "before"), [complete(model, fact.text) for fact in facts]
    with model.restored(editor.settings.layers):
        report, _ = editor.edit(edited)
        editor.finish()  # PRUNE's last step; nothing for the others
        after, says = look(model, facts, "after"), [complete(model, fact.text) for fact in facts]
    rows = [
        dict(lang=fact.lang, prompt=fact.text, before=a, after=b) for fact, a, b in zip(facts, said, says, strict=True)
    ]
    return Trial(
        facts=tuple(facts),
        lang=lang,
        method=method,
        report=report,
        scores=pd.concat([before, after], ignore_index=True),
        said=pd.DataFrame(rows),
    )
