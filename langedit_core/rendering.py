"""Executed notebooks become pages that open without a network and obey no markup found in data.

page = template(clean(markdown and outputs)). `clean` keeps an explicit list of tags and attributes and
drops all else, scripts and styles with their content; pictures are embedded, and no run time or date is
written.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from urllib.parse import quote, urlsplit

import bleach
import jinja2
import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from langedit_core.storage import write_text
from langedit_core.tables import html_table

TEMPLATES = files("langedit_core") / "templates"
PROFILES = ("paper", "standard", "quick", "smoke")  # the most thorough first
TAGS = {
    *(
        "a",
        "abbr",
        "b",
        "blockquote",
        "br",
        "code",
        "del",
        "details",
        "div",
        "em",
        "figcaption",
        "figure",
        "hr",
    ),
    *("h1", "h2", "h3", "h4", "h5", "h6", "i", "img", "kbd", "li", "ol", "p", "pre", "s", "small", "span"),
    *(
        "strong",
        "sub",
        "summary",
        "sup",
        "ul",
        "caption",
        "table",
        "tbody",
        "td",
        "tfoot",
        "th",
        "thead",
        "tr",
    ),
}
SAFE = " /:;,=()!?@+*-._~{}"  # written as they are in the address of a picture: they end no attribute and no address
ATTRIBUTES = {
    "*": ["class", "id", "title", "lang"],
    "td": ["colspan", "rowspan"],
    "th": ["colspan", "rowspan"],
}


@dataclass(frozen=True, kw_only=True)
class ReportEntry:
    """One line of the index.

    Attributes:
        page: File name of the report beside the index.
        title: First heading of the notebook.
        finished: False if the notebook failed, so that there is no page.
    """

    page: str
    title: str
    finished: bool = True


def clean(markup: str) -> str:
    """HTML with only harmless tags and attributes; links may lead away, but nothing is loaded by itself."""
    soup = BeautifulSoup(markup, "html.parser")
    for tag in soup(["script", "style", "iframe", "object", "template", "noscript"]):
        tag.decompose()  # bleach would keep what is written between the tags
    for picture in soup.find_all("img", src=lambda src: not (src or "").startswith("data:image/")):
        picture.decompose()  # nothing is fetched, and a broken picture tells nobody anything

    def allowed(tag: str, name: str, value: str) -> bool:
        if name in ATTRIBUTES["*"] or name in ATTRIBUTES.get(tag, ()):
            return True
        if tag == "a" and name == "href":
            return urlsplit(value).scheme in ("", "http", "https", "mailto") and not value.startswith("//")
        if tag == "img":
            return name in ("alt", "width", "height") or (name == "src" and value.startswith("data:image/"))
        return False

    protocols = {"http", "https", "mailto", "data"}  # data: passes `allowed` for pictures only
    return bleach.clean(str(soup), tags=TAGS, attributes=allowed, protocols=protocols, strip=True)


def title_of(notebook: NotebookNode, stem: str) -> str:
    """Text of the first Markdown heading, or `stem` where there is none."""
    for cell in notebook.cells:
        found = re.search(r"^#+\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if found:
            return re.sub(r"[*`_]", "", found.group(1)).strip()
    return stem


def render(executed: str | Path, page: str | Path, *, provenance: str = "") -> ReportEntry:
    """Writes one standalone HTML page.

    Args:
        executed: An executed notebook; one with an error in it is refused.
        page: Where the HTML goes, beside the `index.html` it links to; replaced as a whole or not at all.
        provenance: One line under the header: model, data, commit, versions.

    Raises:
        ValueError: A cell of the notebook ended in an error or was not run.
    """
    executed, page = Path(executed), Path(page)
    notebook = nbformat.read(executed, as_version=4)
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        if cell.execution_count is None or any(o.output_type == "error" for o in cell.outputs):
            raise ValueError(f"{executed.name} cannot be a report: cell {number} did not run to its end; run it again")
    title = title_of(notebook, executed.stem)
    report = {"title": title, "provenance": provenance, "style": _style()}
    with as_file(TEMPLATES) as folder:
        exporter = HTMLExporter(
            template_name="report",
            extra_template_basedirs=[str(folder)],
            embed_images=True,
            exclude_anchor_links=True,
            filters={"clean": clean, "data_url": _data_url},
            # The template loads none of these; blank, so that no later edit of it can.
            mathjax_url="",
            require_js_url="",
            jquery_url="",
            mermaid_js_url="",
            jupyter_widgets_base_url="",
        )
        resources = {"report": report, "metadata": {"name": executed.stem, "path": str(executed.parent)}}
        body, _ = exporter.from_notebook_node(notebook, resources=resources)
    _write_page(page, body)
    return ReportEntry(page=page.name, title=title)


def write_index(report_dir: str | Path, entries: Sequence[ReportEntry], *, provenance: str = "") -> None:
    """Writes `report_dir/index.html`, and the index of profiles above it.

    The profile's links its pages, shows the main tables (`tables/full_*.csv`, as notebook 02 has them) where they are
    there, and links every table. The one above links all profiles and shows no number, so that it is never out of date.
    """
    report_dir = Path(report_dir).resolve()
    profile, root = report_dir.name, report_dir.parent
    pages = [{"href": e.page if e.finished else "", "text": e.title} for e in entries]
    downloads = [
        {"href": p.relative_to(report_dir).as_posix(), "text": p.name} for p in sorted(report_dir.glob("tables/*.csv"))
    ]
    shown = [
        # all text: a language or method is never missing
        {"title": p.stem.removeprefix("full_"), "html": html_table(pd.read_csv(p, dtype=str, keep_default_na=False))}
        for p in sorted(report_dir.glob("tables/full_*.csv"))
    ]
    _write_page(
        report_dir / "index.html",
        _index(
            f"Study, profile {profile}", provenance=provenance, up="../index.html", links=pages, heading="Reports",
            tables=shown, downloads=downloads,
        ),
    )  # fmt: skip
    found = sorted((p.parent.name for p in root.glob("*/index.html")), key=lambda name: (_rank(name), name))
    links = [{"href": f"{name}/index.html", "text": f"Profile {name}"} for name in found]
    _write_page(root / "index.html", _index("Multilingual knowledge editing", links=links, heading="Profiles"))


def _rank(folder: str) -> int:
    """Place of a folder among the profiles; that of one with several models ends in the model, `paper-gpt-j-6b`."""
    profile = folder.partition("-")[0]
    return PROFILES.index(profile) if profile in PROFILES else len(PROFILES)


def _index(title: str, **context: object) -> str:
    """HTML of an index page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    template = environment.from_string((TEMPLATES / "index.html.j2").read_text(encoding="utf-8"))
    return template.render(title=title, style=_style(), **context)


def _style() -> str:
    return (TEMPLATES / "style.css").read_text(encoding="utf-8")


def _data_url(svg: str) -> str:
    """Address of a picture that a page holds itself: as text, of which version control keeps the changes only."""
    return "data:image/svg+xml," + quote(svg, safe=SAFE)


def _write_page(path: Path, text: str) -> None:
    write_text(path, text.rstrip("\n") + "\n")
