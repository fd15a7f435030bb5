"""A public home of data in miniature: an HTTP server on this machine that can misbehave as real ones do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from langedit_core.data_sources import HUB, PAIRS, pair_name


class Home(ThreadingHTTPServer):
    """Serves `mzsre` and rows of the XTREME tasks under the paths of their real homes.

    Attributes:
        faults: Part of an address -> what happens to the next requests for it, in order; afterwards all is well.
        asked: Addresses of all requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.faults: dict[str, list[Callable[[_Handler, bytes], None]]] = {}
        self.asked: list[str] = []
        self.facts = 6
        self.rows = 130
        self.revision = "1" * 40
        self.english: dict[str, str] = {}  # language -> prefix of its English questions

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Home:
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def content(self, address: str) -> bytes | None:
        """The true answer to a request; None where there is nothing."""
        parts = urlsplit(address)
        for lang in PAIRS:
            if parts.path.endswith(f"/data/MzsRE/{pair_name(lang)}"):
                return self.pairs(lang)
        if parts.path != "/rows":
            return None
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        for task, (dataset, template, langs) in HUB.items():
            for lang in langs:
                if (asked["dataset"], asked["config"]) == (dataset, template.format(lang=lang)):
                    return self.page(task, lang, asked)
        return None

    def pairs(self, lang: str) -> bytes:
        records = []
        for n in range(self.facts):
            english = entry(f"{self.english.get(lang, '')}Where was Ada {n} born?", f"Ada {n}", "Paris")
            records.append({"en": english, PAIRS[lang][0]: entry(f"{lang}: Ada {n}?", f"Ada {n}", "París")})
        return json.dumps(records, ensure_ascii=False, indent=4).encode()

    def page(self, task: str, lang: str, asked: dict[str, str]) -> bytes:
        first = int(asked["offset"])
        last = min(self.rows, first + min(int(asked["length"]), 100))
        rows = [
            dict(row_idx=n, row=row(task, f"{asked['split']} {lang} {n}", n), truncated_cells=[])
            for n in range(first, last)
        ]
        page = dict(features=[], rows=rows, num_rows_total=self.rows, num_rows_per_page=100, partial=False)
        return json.dumps(page, ensure_ascii=False).encode()


def entry(question: str, subject: str, answer: str) -> dict:
    return dict(
        subject=subject, src=question, rephrase=f"So, {question}", alt=answer, loc="who wrote emma", loc_ans="Austen",
        portability={"New Question": f"And {question}", "New Answer": "France"},
    )  # fmt: skip


def row(task: str, name: str, n: int) -> dict:
    """A row as the hub's data sets have it."""
    if task == "xnli":
        return dict(premise=f"It is {name}.", hypothesis=f"It is not {name}.", label=n % 3)
    if task == "pawsx":
        return dict(sentence1=f"It is {name}.", sentence2=f"{name} is it.", label=str(n % 2))
    if task == "mlqa":
        return dict(
            id=f"{name}#1",
            context=f"In {name} it was he.",
            question="Who?",
            answers=dict(text=["he"], answer_start=[0]),
        )
    tags = [0, 0, 0] if n % 10 == 7 else [1, 2, 0]  # every tenth sentence names nobody
    return dict(tokens=[f"Ada{n}", "Byron", name], ner_tags=tags, langs=["xx"] * 3)


class _Handler(BaseHTTPRequestHandler):
    server: Home

    def do_GET(self) -> None:  # noqa: N802 (the base class's name)
        self.server.asked.append(self.path)
        content = self.server.content(self.path)
        for part, faults in self.server.faults.items():
            if part in self.path and faults:
                faults.pop(0)(self, content or b"")
                return
        if content is None:
            answer(404, b'{"error": "no such file"}')(self, b"")
        else:
            answer(200, content)(self, content)

    def log_message(self, *_) -> None:
        pass


def answer(status: int, content: bytes | None = None, announced: int | None = None, **headers: str):
    """Answers with this status and content (the true one by default), announced as longer than it is where asked."""

    def fault(handler: _Handler, true: bytes) -> None:
        body = true if content is None else content
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body) if announced is None else announced))
        if handler.path.startswith("/rows"):
            handler.send_header("X-Revision", handler.server.revision)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return fault


def cut(handler: _Handler, true: bytes) -> None:
    """All bytes are announced, half of them come."""
    answer(200, true[: len(true) // 2], announced=len(true))(handler, true)


def hang_up(handler: _Handler, true: bytes) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True


def endless(handler: _Handler, true: bytes) -> None:
    """Nothing is announced, and the body does not end until nobody listens."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(b"[" * 65536)
    except OSError:
        handler.close_connection = True


def redirect(to: str):
    return answer(302, b"", Location=to)
