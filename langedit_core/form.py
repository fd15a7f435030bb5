"""A small form for JupyterLab around `trial.py`: type a fact, choose language and method, see before and after.

It is for a person at a screen and comes with the extra `lab`; a notebook that runs by itself shows none.
"""

from __future__ import annotations

import tempfile

from IPython.display import HTML, Markdown, display

from langedit_core import plots
from langedit_core.editors import METHODS
from langedit_core.languages import LANGUAGES
from langedit_core.models import EditableModel
from langedit_core.tables import html_table
from langedit_core.trial import FORM, Trial, own_facts, try_edit

TEXTS = {  # argument of `own_facts`: label, example
    "subject": ("Subject", "France"),
    "prompt": ("Prompt", "The capital of {} is"),
    "target": ("New object", "Lyon"),
    "truth": ("Old object", "Paris (may stay empty)"),
}


def fact_form(model: EditableModel, *, lang: str = "en", method: str = "langedit", **options):
    """A form whose button edits the fact that was typed, shows what changed, and takes the edit out again.

    Args:
        model: Any supported model, unedited; it is unedited again after each try.
        lang: Language chosen at first.
        method: Method chosen at first.
        options: For `prepare_editor`, such as `layers=(5, 6, 7)`.

    Returns:
        An ipywidgets box; as the last line of a cell it is shown.

    Raises:
        ImportError: ipywidgets is not installed.
    """
    try:
        import ipywidgets
    except ImportError as error:
        raise ImportError(
            "the form needs ipywidgets, which is not installed; `make lab` installs it, or pip install -e '.[lab]'. "
            "The parameters of the notebook do the same without it"
        ) from error
    wide = dict(layout=ipywidgets.Layout(width="42em"), style={"description_width": "7em"})
    fields = {
        name: ipywidgets.Text(description=label, placeholder=example, **wide)
        for name, (label, example) in TEXTS.items()
    }
    fields["prompts"] = ipywidgets.Textarea(description="Translations", placeholder=f"a line each: {FORM}", **wide)
    spoken = ipywidgets.Dropdown(
        options=[(one.name, code) for code, one in LANGUAGES.items()], value=lang, description="Language", **wide
    )
    chosen = ipywidgets.Dropdown(options=list(METHODS), value=method, description="Method", **wide)
    button = ipywidgets.Button(description="Edit and compare", button_style="primary")
    output = ipywidgets.Output()

    def clicked(_) -> None:
        button.disabled = True
        output.clear_output()
        with output:  # where a kernel runs, this shows every exception with its traceback and ends it
            try:
                facts = own_facts(spoken.value, **{name: field.value for name, field in fields.items()})
                show(try_edit(model, list(facts.values()), spoken.value, chosen.value, **options))
            except (ValueError, FloatingPointError) as error:  # a slip, or an edit that diverged: one line will do
                print(error)
        button.disabled = False

    button.on_click(clicked)
    return ipywidgets.VBox([spoken, *fields.values(), chosen, button, output])


def show(trial: Trial) -> None:
    """Figure, continuations and sentences of a trial, below one another."""
    with tempfile.TemporaryDirectory() as folder:
        display(plots.save(trial.figure(), folder, "trial"))
    display(HTML(html_table(trial.said)), Markdown(f"{trial.reading()} {trial.told()}"))
