"""One bounded HTTP GET: a whole JSON body of at most so many bytes, or an error that says what came instead.

Redirects are few and never lead from https to http; a short, oversized, or HTML body is refused, never used.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

TRIES = 3
LONGEST_WAIT = 60.0  # seconds, whatever a server asks for
TIMEOUT = 30.0  # seconds without a byte
MOST_REDIRECTS = 5
_LATER = (429, 500, 502, 503, 504)  # worth another try: the server is busy, not unwilling
_BLOCK = 1 << 16


class DownloadFailed(OSError):
    """Nothing usable arrived; the message has the address and what came instead."""


class Unreachable(DownloadFailed):
    """No connection to that host at all, so that asking it for more is pointless."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """What was downloaded.

    Attributes:
        content: All bytes.
        revision: Commit of a data set, where the server names it (header X-Revision); else None.
    """

    content: bytes
    revision: str | None


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MOST_REDIRECTS
    max_repeats = 2

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: N803 (urllib's names)
        allowed = ("https://",) if req.full_url.startswith("https://") else ("https://", "http://")
        if not newurl.lower().startswith(allowed):
            raise DownloadFailed(f"{req.full_url}: redirected to {newurl[:200]!r}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def offline() -> str | None:
    """Why no connection is tried: Hugging Face's switch for that, honoured for all hosts; None if it is off."""
    if os.environ.get("HF_HUB_OFFLINE", "0").strip().lower() in ("1", "true", "yes", "on"):
        return f"offline mode is on (HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']})"
    return None


def download(url: str, *, most: int, timeout: float = TIMEOUT) -> Body:
    """Get a JSON document; busy servers and cut connections are tried again.

    Args:
        url: http or https.
        most: Bytes; a larger body is refused before it is read to its end.
        timeout: Seconds without a byte.

    Raises:
        Unreachable: No connection, or offline mode.
        DownloadFailed: Another status than 200, a redirect too many, a body that is too large, shorter than announced,
            empty, or a web page.
    """
    if why := offline():
        raise Unreachable(f"{url}: {why}")
    if not url.startswith(("https://", "http://")):
        raise DownloadFailed(f"{url}: expected an address that begins with https:// or http://")
    for tried in range(1, TRIES + 1):
        try:
            return _get(url, most, timeout)
        except urllib.error.HTTPError as error:
            with error:
                if error.code not in _LATER or tried == TRIES:
                    raise DownloadFailed(f"{url}: status {error.code}, {_reason(error)}") from error
                wait = _asked_wait(error.headers.get("Retry-After"))
        except DownloadFailed:
            raise
        except _Short as error:
            if tried == TRIES:
                raise DownloadFailed(f"{url}: {error}, {TRIES} times; try again later") from error
            wait = None
        except (http.client.HTTPException, ConnectionResetError, TimeoutError) as error:
            if tried == TRIES:
                raise DownloadFailed(
                    f"{url}: the connection broke {TRIES} times ({error!r}); try again later"
                ) from error
            wait = None
        except urllib.error.URLError as error:
            raise Unreachable(f"{url}: cannot be reached ({error.reason})") from error
        time.sleep(2.0 ** (tried - 1) if wait is None else wait)
    raise AssertionError("the last try returns or raises")


class _Short(Exception):
    """Fewer bytes than announced."""


def _get(url: str, most: int, timeout: float) -> Body:
    opener = urllib.request.build_opener(_Redirects)
    request = urllib.request.Request(url, headers={"User-Agent": "langedit-core", "Accept": "application/json, */*"})
    with opener.open(request, timeout=timeout) as answer:
        told = answer.headers.get("Content-Length", "")
        announced = int(told) if told.isascii() and told.isdigit() else None
        if announced is not None and announced > most:
            raise DownloadFailed(
                f"{url}: {announced:,} bytes announced, at most {most:,} are read; is it the right file?"
            )
        content = bytearray()
        while block := answer.read(_BLOCK):
            content += block
            if len(content) > most:
                raise DownloadFailed(f"{url}: more than {most:,} bytes came; is it the right file?")
        if announced is not None and len(content) < announced:
            raise _Short(f"{len(content):,} of {announced:,} bytes came")
        revision = answer.headers.get("X-Revision")
    start = bytes(content[:200]).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise DownloadFailed(f"{url}: an empty body came")
    if start.startswith(b"<"):
        raise DownloadFailed(f"{url}: a web page came instead of data; a login page, or a proxy's?")
    return Body(content=bytes(content), revision=revision)


def _asked_wait(header: str | None) -> float | None:
    """Seconds of a Retry-After header; None where it names none, or a date."""
    return min(float(header), LONGEST_WAIT) if header and header.isascii() and header.isdigit() else None


def _reason(error: urllib.error.HTTPError) -> str:
    if error.code in (301, 302, 303, 307, 308):
        if "not allowed" in str(error.msg):  # urllib's own refusal of any scheme but http, https and ftp
            return "redirected to what is no web address, which is not followed"
        return f"redirected in a circle or more than {MOST_REDIRECTS} times"
    return {404: "no such file there; has it moved?", 401: "needs a login", 403: "not allowed"}.get(
        error.code, str(error.reason)
    )
