"""Downloads from a server that misbehaves: only a whole document of the allowed size is ever returned."""

from __future__ import annotations

import json
import time

import pytest
from toy_home import Home, answer, cut, endless, hang_up, redirect

from langedit_core import download as module
from langedit_core.data_sources import pair_url
from langedit_core.download import DownloadFailed, Unreachable, download

NAME = "enzh.json"


@pytest.fixture
def home(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    with Home() as made:
        yield made


@pytest.fixture
def waits(monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


def get(home: Home, most: int = 100_000) -> module.Body:
    return download(pair_url("zh", home.url), most=most)


def test_a_whole_document_arrives_as_it_was_sent(home):
    assert get(home).content == home.pairs("zh") and len(home.asked) == 1


def test_exactly_the_allowed_size_is_allowed_and_one_byte_more_is_not(home):
    size = len(home.pairs("zh"))
    assert len(get(home, size).content) == size
    with pytest.raises(DownloadFailed, match=f"{size:,} bytes announced, at most {size - 1:,} are read"):
        get(home, size - 1)


@pytest.mark.parametrize("fault", [cut, hang_up, answer(503), answer(429, Retry_After="7")])
def test_a_passing_fault_is_tried_again(home, waits, fault):
    home.faults[NAME] = [fault]
    assert get(home).content == home.pairs("zh")
    assert len(home.asked) == 2 and waits in ([1.0], [7.0])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (cut, r"[\d,]+ of [\d,]+ bytes came, 3 times"),
        (hang_up, "the connection broke 3 times"),
        (answer(503), "status 503"),
        (answer(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT"), "status 429"),
    ],
)
def test_a_lasting_fault_is_told_after_three_tries(home, waits, fault, message):
    home.faults[NAME] = [fault] * 9
    with pytest.raises(DownloadFailed, match=message):
        get(home)
    assert len(home.asked) == 3 and len(waits) == 2


def test_nobody_is_made_to_wait_for_as_long_as_a_server_likes(home, waits):
    home.faults[NAME] = [answer(503, Retry_After="86400")]
    get(home)
    assert waits == [module.LONGEST_WAIT]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (endless, "more than 100,000 bytes came"),
        (answer(200, b"[]", announced=10**12), "1,000,000,000,000 bytes announced"),
        (answer(200, b"\xef\xbb\xbf \n<!DOCTYPE html><html>sign in</html>"), "a web page came instead of data"),
        (answer(200, b" \n"), "an empty body came"),
        (answer(404), "status 404, no such file there; has it moved?"),
        (answer(401), "status 401, needs a login"),
        (answer(418), "status 418"),
        (redirect("file:///etc/passwd"), "redirected to what is no web address, which is not followed"),
        (redirect("ftp://example.org/x"), "which is not followed"),
    ],
)
def test_what_is_no_data_is_refused_at_once(home, waits, fault, message):
    home.faults[NAME] = [fault]
    with pytest.raises(DownloadFailed, match=message):
        get(home)
    assert len(home.asked) == 1 and not waits


def test_a_redirect_is_followed_and_a_circle_is_not(home):
    home.faults["/elsewhere/"] = [redirect(pair_url("zh", home.url))]
    assert download(f"{home.url}/elsewhere/x", most=100_000).content == home.pairs("zh")
    home.faults["/a"], home.faults["/b"] = [redirect("/b")] * 50, [redirect("/a")] * 50
    home.asked.clear()
    with pytest.raises(DownloadFailed, match="redirected in a circle or more than 5 times"):
        download(f"{home.url}/a", most=100)
    assert len(home.asked) <= 8
    home.faults["/step"] = [redirect(f"/step{n}") for n in range(50)]
    with pytest.raises(DownloadFailed, match="redirected in a circle or more than 5 times"):
        download(f"{home.url}/step", most=100)


def test_a_secure_address_never_leads_to_an_insecure_one(home):
    request = module.urllib.request.Request("https://example.org/x")
    with pytest.raises(DownloadFailed, match="redirected to 'http://example.org/y'"):
        module._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/y")


def test_no_connection_is_told_apart_and_not_tried_again(home, waits):
    home.__exit__()
    with pytest.raises(Unreachable, match="cannot be reached"):
        get(home)
    assert not waits


def test_offline_mode_opens_no_connection(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Unreachable, match=r"offline mode is on \(HF_HUB_OFFLINE=1\)"):
        get(home)
    assert not home.asked


@pytest.mark.parametrize("url", ["file:///etc/passwd", "x", ""])
def test_other_addresses_are_refused(url, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(DownloadFailed, match="begins with https://"):
        download(url, most=10)


def test_the_revision_is_what_the_server_names(home):
    assert get(home).revision is None
    rows = download(f"{home.url}/rows?dataset=facebook/xnli&config=de&split=test&offset=0&length=2", most=10_000)
    assert rows.revision == home.revision and len(json.loads(rows.content)["rows"]) == 2
