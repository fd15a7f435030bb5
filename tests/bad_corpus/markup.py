"""HTML, script and other code in the strings of a data set: nothing of it is refused, all of it is made harmless."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from bad_corpus import Case, World
from langedit_core.fact_files import read_facts
from langedit_core.rendering import ReportEntry, render, write_index
from langedit_core.tables import save_table

SCRIPT = "<script>alert(1)</script>bold"
STRINGS = {
    "a script": SCRIPT,
    "a script in capitals": "<SCRIPT SRC=//a.example/x.js></SCRIPT>bold",
    "a script that is not closed": "bold<script>alert(1)",
    "a script inside a script": "<scr<script>ipt>alert(1)</scr</script>ipt>bold",
    "a picture that acts": '<img src=x onerror="alert(1)">bold',
    "a picture from elsewhere": '<img src="https://a.example/pixel.png">bold',
    "a drawing that acts": '<svg onload="alert(1)"><animate onbegin=alert(1)></svg>bold',
    "a frame": '<iframe srcdoc="<script>alert(1)</script>"></iframe>bold',
    "a form": '<form action="https://a.example"><input autofocus onfocus=alert(1)></form>bold',
    "a link that acts": '<a href="javascript:alert(1)">bold</a>',
    "a link that hides its kind": '<a href="java&#x09;script:alert(1)">bold</a>',
    "a link to data": '<a href="data:text/html,<script>alert(1)</script>">bold</a>',
    "a style": "<style>body{background:url(https://a.example)}</style><b style='position:fixed'>bold</b>",
    "the end of a table": "</td></tr></table><script>alert(1)</script>bold",
    "the end of a title": "</title><script>alert(1)</script>bold",
    "a comment left open": "<!-- bold",
    "an entity": "&lt;script&gt;alert(1)&lt;/script&gt;bold",
    "another base": '<base href="https://a.example/">bold',
    "a redirection": '<meta http-equiv="refresh" content="0;url=https://a.example">bold',
    "a template": "{{ config.__class__ }}{% for x in y %}bold",
    "Markdown": "[bold](javascript:alert(1)) ![x](https://a.example/y.png)",
    "a formula of LaTeX": "\\input{/etc/passwd} $x$ % bold & _ ^ ~ # {",
    "a cell that calculates": '=HYPERLINK("https://a.example","bold")',
    "columns and rows": 'bold | b\n| --- | "c", d\r\n',
}


def harmless(page: str) -> str:
    """Nothing in the page runs by itself, is loaded from anywhere, or moves what is around it.

    Raises:
        AssertionError: Something does.
    """
    soup = BeautifulSoup(page, "html.parser")
    acting = ["script", "link", "iframe", "object", "embed", "svg", "base", "form", "input", "meta"]
    found = [tag for tag in soup(acting) if tag.name != "meta" or tag.get("http-equiv")]
    assert not found, found
    for tag in soup.find_all():
        for name, value in tag.attrs.items():
            assert not name.startswith("on") and name not in ("srcset", "srcdoc", "poster", "style"), tag
            assert name != "src" or value.startswith("data:image/"), tag
            assert name != "href" or re.match(r"https?:|[\w./]+$", value), tag
    assert not re.search(r"@import|url\(", "".join(style.text for style in soup("style")))
    return page


def _page(cell: Callable[[str], object], text: str):
    """A report whose notebook holds the text in one cell."""

    def act(world: World) -> object:
        path, page = world.folder / "00_tiny.ipynb", world.folder / "page.html"
        nbformat.write(new_notebook(cells=[cell(text)]), path)
        render(path, page, provenance=text)
        return harmless(page.read_text("utf-8"))

    return act


def _output(kind: str):
    return lambda text: new_code_cell(
        "shown", execution_count=1, outputs=[new_output("display_data", data={kind: text}, metadata={})]
    )


def _table(text: str):
    """A table of the study with the text as heading and as cell, in all its forms, and a facts file it came through."""

    def act(world: World) -> object:
        one_line = " ".join(text.split())
        record = dict(lang="en", subject=one_line.replace("{}", ""), prompt="{} is", target="x")
        (fact,) = read_facts(world.write("facts.jsonl", json.dumps(record)))
        assert fact.subject == record["subject"]
        saved = save_table(pd.DataFrame({"fact": [text], text: [fact.subject], "value": [0.5]}), world.folder, "t")
        markdown, latex = (
            saved.csv.with_suffix(".md").read_text("utf-8"),
            saved.csv.with_suffix(".tex").read_text("utf-8"),
        )
        with open(saved.csv, encoding="utf-8", newline="") as file:
            assert [len(row) for row in csv.reader(file)] == [3, 3]  # no text has become a column or a row
        assert len(markdown.splitlines()) == 3 and not re.search(
            r"<\s*(script|img|iframe|svg|a|form|style)", markdown, re.I
        )
        assert not re.search(r"\\input|(?<!\\)[$#](?!\w*[{}])", latex)
        page = harmless(saved._repr_html_())
        soup = BeautifulSoup(page, "html.parser")
        assert len(soup("tr")) == 2 and len(soup("td")) == 3 and not soup.td.find_all()
        return page

    return act


def _index(text: str):
    """The text as a method of the headline table, as a report's title and as the line about the run."""

    def act(world: World) -> object:
        folder = world.folder / "reports" / "quick"
        (folder / "tables").mkdir(parents=True)
        fields = dict(
            model="m", data="d", metric="efficacy_tf", when="final", lang="all", value=0.5, n=6, low=0.4, high=0.6
        )
        pd.DataFrame([fields | dict(method=text)]).to_csv(folder / "tables" / "main.csv", index=False)
        write_index(folder, [ReportEntry(page="00.html", title=text)], provenance=text)
        above = (folder.parent / "index.html").read_text("utf-8")
        return harmless((folder / "index.html").read_text("utf-8")) + harmless(above)

    return act


def _kept(page: object) -> bool:
    return isinstance(page, str)


CASES = []
for _name, _text in STRINGS.items():
    CASES += [
        Case(kind="markup", name=f"{_name} in a table", act=_table(_text), says="bold", treated=_kept),
        Case(kind="markup", name=f"{_name} in the index", act=_index(_text), says="bold", treated=_kept),
        Case(kind="markup", name=f"{_name} as prose", act=_page(new_markdown_cell, _text), says="</html>",
             treated=_kept),
        Case(kind="markup", name=f"{_name} as rich output", act=_page(_output("text/html"), _text), says="</html>",
             treated=_kept),
    ]  # fmt: skip
