"""What may be published: notebooks that ran to their end, with checked parameters, as harmless pages."""

import re
import sys
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from langedit_core import notebooks
from langedit_core.notebooks import (
    NotebookFailed,
    check_notebook,
    check_parameters,
    execute,
    find_notebooks,
    run_profile_notebooks,
)
from langedit_core.rendering import ReportEntry, clean, render, write_index

DEFAULTS = "edits = 10\nrate = 0.5\nmodel = 'tiny'\nstrict = True\nlimit = None\nshift = -1"


def tagged(source=DEFAULTS, tag="parameters"):
    return new_code_cell(source, metadata={"tags": [tag]})


def write(folder, cells, name="00_tiny.ipynb"):
    notebook = new_notebook(cells=cells)
    # a kernel that no machine has: the runner must not depend on what the file asks for
    notebook.metadata["kernelspec"] = {"name": "nowhere", "display_name": "Nowhere", "language": "python"}
    path = folder / name
    nbformat.write(notebook, path)
    return path


def done(source, *outputs):
    return new_code_cell(source, execution_count=1, outputs=list(outputs))


def output(kind, data, **metadata):
    return done("shown", new_output(kind, data=data, metadata=metadata))


def shown(folder, cells):
    """HTML of a notebook whose cells are given as already executed."""
    page = folder / "page.html"
    render(write(folder, cells), page, provenance="model <tiny> & data")
    return page.read_text(encoding="utf-8")


def assert_harmless(page):
    """Nothing in the page runs by itself or is loaded from anywhere."""
    soup = BeautifulSoup(page, "html.parser")
    assert not soup(["script", "link", "iframe", "object", "embed", "svg", "base", "form"])
    for tag in soup.find_all():
        for name, value in tag.attrs.items():
            assert not name.startswith("on") and name not in ("srcset", "poster", "style"), tag
            assert name != "src" or value.startswith("data:image/"), tag
            assert name != "href" or re.match(r"https?:|[\w./]+$", value), tag
    assert not re.search(r"@import|url\(", "".join(style.text for style in soup("style")))


def test_defaults_are_read_from_the_tagged_cell(tmp_path):
    path = write(tmp_path, [new_markdown_cell("# Tiny"), tagged()])
    expected = {"edits": 10, "rate": 0.5, "model": "tiny", "strict": True, "limit": None, "shift": -1}
    assert check_notebook(path) == expected


@pytest.mark.parametrize("cells", [[new_code_cell("edits = 10")], [tagged("a = 1"), tagged("b = 2")]])
def test_a_notebook_needs_exactly_one_parameters_cell(tmp_path, cells):
    with pytest.raises(ValueError, match=f"{len(cells) if len(cells) > 1 else 0} cells tagged 'parameters'"):
        check_notebook(write(tmp_path, cells))


@pytest.mark.parametrize("line", ["a = [1]", "a = len('x')", "import os", "a, b = 1, 2", "a = b = 1", "a: int"])
def test_parameters_cell_holds_scalars_only(tmp_path, line):
    with pytest.raises(ValueError, match="may only give scalars"):
        check_notebook(write(tmp_path, [tagged("edits = 1\n" + line)]))


def test_unknown_parameter_is_refused_with_the_nearest_names_before_anything_starts(tmp_path):
    path = write(tmp_path, [tagged(), new_code_cell("raise SystemExit('started')")])
    with pytest.raises(ValueError, match=r"unknown parameter of 00_tiny.ipynb 'edit'; known: edits, "):
        execute(path, tmp_path / "out", {"edit": 3})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("edits", "3"), ("edits", True), ("edits", 2.0), ("strict", 1), ("model", None), ("limit", [1])],
)
def test_value_of_another_type_than_the_default_is_refused(tmp_path, name, value):
    path = write(tmp_path, [tagged()])
    with pytest.raises(ValueError, match=f"parameter {name} of 00_tiny.ipynb got"):
        check_parameters(path, {name: value})


def test_whole_number_is_accepted_for_a_float_and_anything_scalar_for_none(tmp_path):
    path = write(tmp_path, [tagged()])
    checked = check_parameters(path, {"rate": 1, "limit": 5})
    assert checked == {"rate": 1.0, "limit": 5}
    assert type(checked["rate"]) is float


def test_notebooks_are_found_by_number_and_in_order(tmp_path):
    for name in ("02_main.ipynb", "00_quickstart.ipynb", "draft.ipynb"):
        write(tmp_path, [tagged()], name)
    assert list(find_notebooks(tmp_path)) == ["00_quickstart", "02_main"]


def test_two_runs_give_equal_bytes_and_parameters_reach_the_notebook(tmp_path):
    cells = [
        new_markdown_cell("# Tiny"),
        tagged(),
        new_code_cell("import sys, pathlib\nprint(edits, rate, pathlib.Path('00_tiny.ipynb').exists())"),
        new_code_cell("import time\nprint(time.time(), file=sys.stderr)\nprint('sum', edits + shift)"),
        new_code_cell("from IPython.display import Markdown\nMarkdown(f'**{model}**')"),
    ]
    path = write(tmp_path, cells)
    pages = []
    for name in ("one", "two"):
        executed = execute(path, tmp_path / name, {"edits": 3, "rate": 1}, quiet=True)
        render(executed, tmp_path / name / "00_tiny.html", provenance="tiny")
        pages.append((executed.read_bytes(), (tmp_path / name / "00_tiny.html").read_bytes()))
        assert re.fullmatch(r"\d+\.\d+\s*", (tmp_path / name / "00_tiny.log").read_text())
        assert not (tmp_path / name / "00_tiny.failed.ipynb").exists()
    assert pages[0] == pages[1]
    text = pages[0][1].decode()
    assert "3 1.0 True" in text and "sum 2" in text and "<strong>tiny</strong>" in text


def test_failing_cell_gives_no_report_and_names_cell_and_error(tmp_path):
    cells = [
        new_markdown_cell("# Broken"),
        tagged(),
        new_code_cell("rows = 3\nassert rows == 4, 'four rows wanted'"),
    ]
    write(tmp_path, cells)
    report = tmp_path / "reports" / "smoke"
    report.mkdir(parents=True)
    (report / "00_tiny.html").write_text("an older state")
    with pytest.raises(
        NotebookFailed, match=r"(?s)00_tiny.ipynb stopped in cell 2 of .*failed.ipynb:.*four rows wanted"
    ):
        run_profile_notebooks({"00_tiny": {}}, source=tmp_path, report_dir=report, provenance="", quiet=True)
    assert not (report / "00_tiny.html").exists()
    assert not (report / "executed" / "00_tiny.ipynb").exists()
    assert (report / "executed" / "00_tiny.failed.ipynb").exists()
    index = (report / "index.html").read_text()
    assert "Broken <em>did not finish" in index and "00_tiny.html" not in index


def test_cell_that_takes_too_long_is_stopped(tmp_path):
    path = write(tmp_path, [tagged(), new_code_cell("import time\ntime.sleep(60)")])
    with pytest.raises(NotebookFailed, match="more than 1 s"):
        execute(path, tmp_path / "out", {}, timeout=1, quiet=True)
    assert not (tmp_path / "out" / "00_tiny.ipynb").exists()


def kernels_that(monkeypatch, tmp_path, *lines):
    """Kernels are started by a script of these lines."""
    script = tmp_path / "python"
    script.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    script.chmod(0o755)
    monkeypatch.setattr(notebooks.sys, "executable", str(script))


def test_a_kernel_that_never_answers_is_given_up_in_the_end(tmp_path, monkeypatch):
    assert notebooks.START_TIMEOUT >= 300, "on a busy machine a minute is too short"
    kernels_that(monkeypatch, tmp_path, "exec sleep 120")
    monkeypatch.setattr(notebooks, "START_TIMEOUT", 1)
    with pytest.raises(NotebookFailed, match=r"00_tiny.ipynb: the kernel did not start; .* in 1 seconds"):
        execute(write(tmp_path, [tagged()]), tmp_path / "out", {}, quiet=True)
    assert not (tmp_path / "out" / "00_tiny.ipynb").exists()


def test_after_a_kernel_that_does_not_start_the_other_notebooks_are_made(tmp_path, monkeypatch):
    write(tmp_path, [new_markdown_cell("# One"), tagged("n = 1")], "00_one.ipynb")
    write(tmp_path, [new_markdown_cell("# Two"), tagged("n = 1"), new_code_cell("n")], "01_two.ipynb")
    mark = tmp_path / "mark"
    kernels_that(monkeypatch, tmp_path, f'test -e {mark} && exec {sys.executable} "$@"', f"touch {mark}", "exit 1")
    with pytest.raises(NotebookFailed, match="00_one.ipynb: the kernel did not start"):
        run_profile_notebooks(
            {"00_one": {}, "01_two": {}}, source=tmp_path, report_dir=tmp_path / "out", provenance="", quiet=True
        )
    index = (tmp_path / "out" / "index.html").read_text()
    assert "One <em>did not finish" in index and "01_two.html" in index and (tmp_path / "out" / "01_two.html").is_file()


def test_only_some_are_executed_and_the_others_rendered_from_their_last_copies(tmp_path):
    write(tmp_path, [new_markdown_cell("# One"), tagged("n = 1"), new_code_cell("n")], "00_one.ipynb")
    write(tmp_path, [new_markdown_cell("# Two"), tagged("n = 1"), new_code_cell("n")], "01_two.ipynb")
    given = dict(source=tmp_path, report_dir=tmp_path / "out", provenance="", quiet=True)
    with pytest.raises(NotebookFailed, match="01_two was not executed yet"):
        run_profile_notebooks({"00_one": {}, "01_two": {}}, only=["00_one"], **given)
    run_profile_notebooks({"00_one": {"n": 5}, "01_two": {"n": 6}}, **given)
    entries = run_profile_notebooks({"00_one": {"n": 7}, "01_two": {"n": 8}}, only=["00_one"], **given)
    assert [entry.finished for entry in entries] == [True, True]
    executed = [nbformat.read(tmp_path / "out" / "executed" / f"{n}.ipynb", 4) for n in ("00_one", "01_two")]
    assert [notebook.cells[-1].outputs[0].data["text/plain"] for notebook in executed] == ["7", "6"]
    page = tmp_path / "out" / "01_two.html"
    before = page.read_text()
    (tmp_path / "out" / "executed" / "01_two.ipynb").unlink()  # as in a clone, which has the pages only
    run_profile_notebooks({"00_one": {"n": 9}, "01_two": {"n": 9}}, only=["00_one"], **given)
    assert page.read_text() == before and "01_two.html" in (tmp_path / "out" / "index.html").read_text()
    with pytest.raises(ValueError, match="unknown notebook of this profile '02_three'; known: 00_one, 01_two"):
        run_profile_notebooks({"00_one": {}, "01_two": {}}, only=["02_three"], **given)


def test_one_refused_notebook_keeps_all_others_from_starting(tmp_path):
    write(tmp_path, [tagged(), new_code_cell("1 + 1")])
    write(tmp_path, [new_code_cell("1 + 1")], "01_untagged.ipynb")
    with pytest.raises(ValueError, match="01_untagged.ipynb has 0 cells"):
        run_profile_notebooks(
            {"00_tiny": {}, "01_untagged": {}}, source=tmp_path, report_dir=tmp_path / "out", provenance=""
        )
    with pytest.raises(ValueError, match="unknown notebook '00_tny'; known: 00_tiny"):
        run_profile_notebooks({"00_tny": {}}, source=tmp_path, report_dir=tmp_path / "out", provenance="")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "cell",
    [
        new_code_cell("1 + 1"),  # never executed
        done("1 / 0", new_output("error", ename="ZeroDivisionError", evalue="", traceback=[])),
    ],
)
def test_unfinished_notebook_is_never_rendered(tmp_path, cell):
    with pytest.raises(ValueError, match="did not run to its end"):
        render(write(tmp_path, [cell]), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


EVIL = '<script>alert(1)</script><img src="https://a.example/x.png" onerror="b()"><b onclick="a()">bold</b>'


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("markdown", new_markdown_cell(f"{EVIL} [a](javascript:alert(4)) ![b](https://a.example/y.png)")),
        ("html", output("display_data", {"text/html": EVIL})),
        ("markdown output", output("display_data", {"text/markdown": EVIL})),
        ("plain", output("display_data", {"text/plain": EVIL})),
        ("stream", done("d", new_output("stream", text=EVIL))),
        ("javascript", output("display_data", {"application/javascript": "alert(5)"})),
        ("svg", output("display_data", {"image/svg+xml": f"<svg>{EVIL}</svg>"})),
        ("code", done(f"text = '''{EVIL}'''")),
        (
            "style",
            output(
                "display_data",
                {"text/html": f"<style>@import url(x)</style><a href='data:text/html,{EVIL}'>"},
            ),
        ),
    ],
)
def test_markup_in_data_is_harmless_in_a_report(tmp_path, kind, cell):
    page = shown(tmp_path, [cell])
    assert_harmless(page)
    assert "bold" in page or kind in ("javascript", "svg", "style"), "what is harmless is still shown"


@pytest.mark.parametrize("kind", ["image/png", "image/svg+xml"])
def test_provenance_and_alternative_texts_are_escaped(tmp_path, kind):
    cell = output("display_data", {kind: "iVBORw0KGgo="}, **{kind: {"alt": 'x" onload="y'}})
    page = shown(tmp_path, [new_markdown_cell("# A <b>& B"), cell])
    assert "model &lt;tiny&gt; &amp; data" in page
    assert BeautifulSoup(page, "html.parser").img["alt"] == 'x" onload="y'
    assert_harmless(page)


def test_a_drawing_is_in_the_page_as_text_that_gives_the_drawing_back(tmp_path):
    drawing = '<svg viewBox="0 0 9 9"><!-- 100 % \u2212 "数" -->\n<path d="M 1 2 \nL 3 4" style="fill: #0072B2"/></svg>'
    page = shown(tmp_path, [output("display_data", {"image/svg+xml": drawing, "image/png": "iVBORw0KGgo="})])
    [picture] = BeautifulSoup(page, "html.parser")("img")
    kind, _, text = picture["src"].partition(",")
    assert kind == "data:image/svg+xml" and unquote(text) == drawing
    assert not re.search(r"[\n\"#<>]", picture["src"]), "characters that would end the address or be left out of it"
    assert_harmless(page)


def test_report_has_title_folded_code_and_link_back(tmp_path):
    page = shown(tmp_path, [new_markdown_cell("# Main *runs*"), done("answer = 42")])
    assert "<title>Main runs</title>" in page
    assert page.count('<a href="index.html">') == 2
    assert re.search(r"<details><summary>Code</summary>\s*<div.*answer", page, re.S)
    assert "data:image" not in page and "http" not in page


def test_embedded_pictures_and_tables_survive_cleaning():
    kept = '<table class="dataframe"><tbody><tr><td class="num">0.50</td></tr></tbody></table>'
    assert clean(kept) == kept
    assert clean('<img alt="x" src="data:image/png;base64,AA==">') == '<img alt="x" src="data:image/png;base64,AA==">'
    assert clean("<style>p {color: red}</style>数 &lt;") == "数 &lt;"


FULL = 'method,efficacy,n\nmemit,"0.9 → 0.50 [0.40, 0.60]",60\n<script>,nan,40\n'


def test_index_links_every_report_and_shows_the_main_tables(tmp_path):
    report = tmp_path / "quick"
    (report / "tables").mkdir(parents=True)
    (report / "tables" / "full_atlas.csv").write_text(FULL)
    (report / "tables" / "main.csv").write_text("model\nm\n")
    write_index(report, [ReportEntry(page="02_main.html", title="Main & runs")], provenance="tiny")
    first = (report / "index.html").read_bytes()
    page = first.decode()
    assert page.index("02_main.html") < page.index("<table>") < page.index('"tables/full_atlas.csv"')
    assert "<h3>atlas</h3>" in page and "0.9 → 0.50" in page and "Main &amp; runs" in page and "<td>nan</td>" in page
    assert "&lt;script&gt;" in page and "<script" not in page
    above = (tmp_path / "index.html").read_text()
    assert 'href="quick/index.html"' in above and "<table>" not in above
    write_index(report, [ReportEntry(page="02_main.html", title="Main & runs")], provenance="tiny")
    assert (report / "index.html").read_bytes() == first


def test_index_above_has_the_most_thorough_profile_first(tmp_path):
    for profile in ("smoke", "standard", "quick"):
        write_index(tmp_path / profile, [])
    page = (tmp_path / "index.html").read_text()
    assert page.index("standard/index.html") < page.index("quick/index.html") < page.index("smoke/index.html")


def test_a_profile_of_several_models_has_a_folder_per_model_and_its_place_in_the_index(tmp_path):
    for folder in ("papers", "standard", "paper-gpt-j-6b", "quick", "paper-llama-3-8b"):
        write_index(tmp_path / folder, [])
    page = (tmp_path / "index.html").read_text()
    listed = re.findall(r'href="([\w-]+)/index.html"', page)
    assert listed == ["paper-gpt-j-6b", "paper-llama-3-8b", "standard", "quick", "papers"]
