"""`langedit data fetch` and `check` against a small home on this machine: what arrives, is refused, and is kept."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from conftest import data_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_home import Home, answer, cut, endless, redirect
from typer.testing import CliRunner

from langedit_core import cli, data_sources
from langedit_core.data_check import LOCK, check_folder
from langedit_core.data_fetch import OTHER_FACTS, OTHER_ROWS, Fetching
from langedit_core.data_sources import (
    MZSRE_FACTS,
    PAIRS,
    REPORTED,
    REVISIONS,
    digest_of,
    join_pairs,
    pair_name,
    read_page,
    read_pairs,
    targets,
    unlike_reports,
)
from langedit_core.errors import RefusedInput
from langedit_core.languages import CORE, LANGUAGES
from langedit_core.mzsre import load_bzsre, load_mzsre
from langedit_core.storage import CorruptFile
from langedit_core.xtreme_data import HUB, ITEM, TASKS, XNLI_THREE, XNLI_TWO, load_task


@pytest.fixture
def home(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with Home() as made:
        yield made


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGEDIT_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def run(*arguments):
    return CliRunner().invoke(cli.app, ["data", *map(str, arguments)])


def fetch(home, *arguments):
    return run("fetch", *arguments, "--base-url", home.url)


def lock(folder) -> dict:
    return json.loads((folder / LOCK).read_text())


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- fetching -------------------------------------------------------------------------------------------------------


def test_mzsre_is_joined_from_its_pairs_and_read_by_its_loader(home, folder):
    done = fetch(home, "mzsre", "--langs", "de nl zh")
    assert done.exit_code == 0, done.output
    data = load_mzsre(langs=("en", "de", "nl", "zh"))
    assert sorted(data.facts) == [f"mzsre/{n}" for n in range(6)] and not data.dropped
    assert data.facts["mzsre/3"]["nl"].prompt == "nl: {}?"  # the repository calls Dutch "du"
    assert data.facts["mzsre/3"]["en"].text == "Where was Ada 3 born?"
    assert [url.rsplit("/", 1)[1] for url in home.asked] == [pair_name(code) for code in ("de", "nl", "zh")]
    assert all(len(url.split("/")[3]) == 40 for url in home.asked)  # a commit, not a branch
    assert len(load_bzsre().facts) == 6


def test_licences_are_told_before_anything_is_written(home, folder):
    told = fetch(home, "mzsre", "xtreme", "--langs", "en").output
    for source in ("mzsre", *TASKS):
        assert told.index(f"licence of {source}: ") < told.index("mzsre_test_duplicate_enzh.json: downloaded")
    assert "CC BY-NC 4.0" in told and "CC BY-SA 3.0" in told


@pytest.mark.parametrize("task", TASKS)
def test_a_task_becomes_a_pool_and_records_that_its_loader_takes(home, folder, task):
    done = fetch(home, task, "--langs", "de", "--limit", 105)
    assert done.exit_code == 0, done.output
    data = load_task(task, "de")
    nobody = 10 if task == "wikiann" else 0  # rows without a name, of 105
    assert (len(data.pool), len(data.records), data.dropped) == (10, 105 - nobody, ())
    assert "validation" in str(data.pool[0].texts) and "test" in str(data.records[0].texts)
    assert ("rows left out" in done.output) == bool(nobody)
    assert all(record.id.startswith(ITEM) == (task != "wikiann") for record in data.records)
    assert "first seen: trusted and recorded" in done.output
    entry = lock(folder)["files"][f"xtreme/{task}_de.jsonl"]
    assert entry["sha256"] == hashlib.sha256((folder / f"xtreme/{task}_de.jsonl").read_bytes()).hexdigest()
    assert entry["revision"] == home.revision and entry["dataset"] == HUB[task][0]


def test_what_is_there_and_right_is_not_asked_for_again(home, folder):
    fetch(home, "bzsre", "xnli", "--langs", "en")
    before, asked = contents(folder), len(home.asked)
    again = fetch(home, "bzsre", "xnli", "--langs", "en")
    assert again.exit_code == 0 and again.output.count("already there and right") == 2
    assert len(home.asked) == asked and contents(folder) == before


def test_a_language_is_added_without_fetching_the_others_again(home, folder):
    fetch(home, "bzsre")
    assert lock(folder)["files"]["mzsre.jsonl"]["langs"] == ["en", "zh"]
    home.asked.clear()
    assert fetch(home, "mzsre", "--langs", "fr").exit_code == 0
    assert len(home.asked) == 1 and pair_name("fr") in home.asked[0]
    assert len(load_mzsre(langs=("en", "fr", "zh")).select(("zh",), 1)) == 1
    assert not load_mzsre(langs=("en", "fr", "zh")).dropped


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(home, folder, tmp_path):
    home.faults[pair_name("fr")] = [answer(404)]
    home.faults["config=fr&split=test"] = [cut] * 3
    stopped = fetch(home, "mzsre", "xnli", "--langs", "de fr")
    assert stopped.exit_code == 1 and "2 of 3 files are not there; what was fetched is kept" in stopped.output
    assert sorted(contents(folder)) == [f"downloads/{pair_name('de')}", LOCK, "xtreme/xnli_de.jsonl"]
    home.asked.clear()
    assert fetch(home, "mzsre", "xnli", "--langs", "de fr").exit_code == 0
    assert not any(pair_name("de") in url or "config=de" in url for url in home.asked)
    whole = tmp_path / "whole"
    assert fetch(home, "mzsre", "xnli", "--langs", "de fr", "--output-path", whole).exit_code == 0
    assert contents(whole) == contents(folder)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (endless, "bytes came; is it the right file?"),
        (answer(200, b"<html>sign in</html>"), "a web page came instead of data"),
        (answer(200, b"[1, 2"), "not JSON"),
        (answer(200, b"\xff\xfe[]"), "not UTF-8"),
        (answer(200, b"[" * 100_000), "not JSON"),
        (answer(200, b"[]"), "expected "),
        (
            answer(200, b'{"rows": [], "num_rows_total": 5}'),
            "usable validation rows came, 10 are the pool|expected an array",
        ),
        (answer(200, b'{"rows": [3], "num_rows_total": 5}'), "without row_idx and row|expected an array"),
        (redirect("/nowhere"), "status 404"),
    ],
)
@pytest.mark.parametrize("name", ["bzsre", "pawsx"])
def test_no_damaged_answer_leaves_a_file(home, folder, monkeypatch, fault, message, name):
    monkeypatch.setattr("langedit_core.data_fetch.LARGEST_PAIRS", 200_000)
    monkeypatch.setattr("langedit_core.data_fetch.LARGEST_PAGE", 200_000)
    home.faults["/"] = [fault]
    done = fetch(home, name, "--langs", "en")
    assert done.exit_code == 1 and re.search(message, done.output), done.output
    assert not folder.exists()
    assert fetch(home, name, "--langs", "en").exit_code == 0


def test_a_cell_that_the_service_cut_is_no_record(home, folder):
    page = json.loads(home.page("mlqa", "en", dict(offset="0", length="20", split="validation")))
    page["rows"][3]["truncated_cells"] = ["context"]
    home.faults["/rows"] = [answer(200, json.dumps(page).encode())]
    done = fetch(home, "mlqa", "--langs", "en")
    assert done.exit_code == 1 and "row 3: the service cut a cell" in done.output


def test_a_data_set_that_changes_while_it_is_read_is_refused(home, folder):
    def moved(handler, content):
        handler.server.revision = "2" * 40
        answer(200, content)(handler, content)

    home.faults["split=test&offset=0"] = [moved]
    done = fetch(home, "xnli", "--langs", "en")
    assert done.exit_code == 1 and "changed while it was read" in done.output
    assert not folder.exists()


def test_another_revision_than_the_known_one_is_told(home, folder):
    assert "is at 111111111111 now" in fetch(home, "xnli", "--langs", "en").output
    home.revision = REVISIONS["facebook/xnli"]
    assert "is the one known here" not in fetch(home, "xnli", "--langs", "de").output


# --- as much as is asked for, and the same as in the committed reports ------------------------------------------------


def fetched(home, folder, name, **asked) -> list[str]:
    """What is said while one file is fetched."""
    lines: list[str] = []
    (target,), _ = targets([name], ("en",))
    assert Fetching(folder, base=home.url, say=lines.append, **asked).fetch(target)
    return lines


def test_a_file_with_fewer_rows_than_asked_for_is_fetched_again_and_one_with_more_is_not(home, folder):
    path = folder / "xtreme/pawsx_en.jsonl"
    for limit, made, told in (
        (20, 30, "30 records"),
        (100, 110, "with a limit of 20 and 100 is asked for"),
        (50, 110, "already there and right (110 records"),
        (500, 140, "with a limit of 100 and 500 is asked for"),
        (400, 140, "already there and right (140 records"),
    ):
        home.asked.clear()
        done = fetch(home, "pawsx", "--langs", "en", "--limit", limit)
        assert done.exit_code == 0 and told in done.output, done.output
        assert len(path.read_bytes().splitlines()) == made
        assert bool(home.asked) == ("already there" not in told)


def test_a_lock_that_does_not_tell_the_limit_is_judged_by_the_records(home, folder):
    fetch(home, "pawsx", "--langs", "en", "--limit", 60)
    for limit, again in ((60, 0), (61, 1)):
        recorded = lock(folder)
        recorded["files"]["xtreme/pawsx_en.jsonl"].pop("limit", None)  # as older versions wrote it
        (folder / LOCK).write_text(json.dumps(recorded))
        done = fetch(home, "pawsx", "--langs", "en", "--limit", limit)
        assert done.exit_code == 0 and done.output.count("made again") == again
    assert len((folder / "xtreme/pawsx_en.jsonl").read_bytes().splitlines()) == 71


def test_what_cannot_be_fetched_again_stays_as_it_is(home, folder):
    fetch(home, "pawsx", "--langs", "en", "--limit", 20)
    before = contents(folder)
    home.faults["/rows"] = [answer(404)]
    done = fetch(home, "pawsx", "--langs", "en", "--limit", 100)
    assert done.exit_code == 1 and "not fetched: " in done.output and contents(folder) == before


def test_mzsre_has_the_facts_of_the_committed_reports_and_says_whether_they_are_the_same(home, folder, monkeypatch):
    home.facts = MZSRE_FACTS + 3
    done = fetch(home, "bzsre")
    assert "600 records in en zh; not word for word the facts of the committed reports in en, zh" in done.output
    records = [json.loads(line) for line in (folder / "mzsre.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == list(range(MZSRE_FACTS))
    monkeypatch.setattr(data_sources, "REPORTED", {lang: digest_of(records, lang) for lang in ("en", "zh")})
    (folder / "mzsre.jsonl").unlink()
    assert "600 records in en zh, word for word the facts of the committed reports\n" in fetch(home, "bzsre").output


def test_more_facts_are_made_on_request_and_told_to_be_others_than_the_reports(home, folder):
    home.facts = MZSRE_FACTS + 3
    path = folder / "mzsre.jsonl"
    for asked, lines, told in (
        (dict(facts=None), 603, f"603 records in en zh; {OTHER_FACTS}"),
        (dict(facts=None), 603, f"; {OTHER_FACTS}"),
        (dict(), 600, "with 603 facts and 600 are asked for"),
        (dict(facts=601), 601, "with 600 facts and 601 are asked for"),
        (dict(facts=None), 603, "with 601 facts and all are asked for"),
    ):
        assert told in "\n".join(fetched(home, folder, "bzsre", **asked))
        assert len(path.read_bytes().splitlines()) == lines
    assert len(home.asked) == 1, "what was downloaded is kept"
    recorded = lock(folder)
    del recorded["files"]["mzsre.jsonl"]["facts"]  # older versions wrote all facts
    (folder / LOCK).write_text(json.dumps(recorded))
    assert "with 603 facts and 600 are asked for" in fetch(home, "bzsre").output


def test_xnli_has_the_two_classes_of_the_committed_reports_unless_three_are_asked_for(home, folder):
    done = fetch(home, "xnli", "--langs", "en de", "--limit", 30)
    assert done.output.count("neutral and contradiction written as not_entailment") == 2
    labels = [example.answers[0] for example in load_task("xnli", "en").records]
    assert labels == [XNLI_TWO[n % 3 > 0] for n in range(30)] and load_task("xnli", "en").classes == XNLI_TWO
    told = fetched(home, folder, "xnli", xnli_classes=3, limit=30)
    assert "with 2 classes and 3 are asked for" in told[0] and load_task("xnli", "en").classes == XNLI_THREE
    recorded = lock(folder)
    del recorded["files"]["xtreme/xnli_en.jsonl"]["classes"]  # older versions wrote three
    (folder / LOCK).write_text(json.dumps(recorded))
    assert "with 3 classes and 2 are asked for" in fetch(home, "xnli", "--langs", "en", "--limit", 30).output
    assert load_task("xnli", "en").classes == XNLI_TWO


def test_other_rows_than_those_of_the_reports_are_told_once(home, folder):
    assert fetch(home, "xtreme", "--langs", "en de").output.count(OTHER_ROWS) == 1


@pytest.mark.parametrize("asked", [dict(facts=0), dict(xnli_classes=4)])
def test_no_facts_and_other_classes_are_refused(folder, asked):
    with pytest.raises(ValueError, match="expected at least one fact, or None for all, and 2 or 3 classes"):
        Fetching(folder, **asked)


def test_the_reports_data_are_the_facts_that_are_recognised():
    path = data_folder("LANGEDIT_DATA", "../shared/data") / "mzsre.jsonl"
    if not path.is_file():
        pytest.skip("no mzsre.jsonl")
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [record["id"] for record in records] == list(range(MZSRE_FACTS))
    assert set(REPORTED) == set(LANGUAGES) and unlike_reports(records, tuple(LANGUAGES)) == []
    records[7] = records[7] | {"nl": records[8]["nl"]}
    assert unlike_reports(records, tuple(LANGUAGES)) == ["nl"]


# --- checksums ------------------------------------------------------------------------------------------------------


def test_a_checksum_that_is_asked_for_decides(home, folder):
    name = pair_name("zh")
    wrong = fetch(home, "bzsre", "--sha256", f"{name}={'0' * 64}")
    assert wrong.exit_code == 1 and f"asked for is {'0' * 64}" in wrong.output and not folder.exists()
    right = hashlib.sha256(home.pairs("zh")).hexdigest()
    done = fetch(home, "bzsre", "--sha256", f"{name}={right.upper()}")
    assert done.exit_code == 0 and "as asked for" in done.output


def test_a_finished_file_can_be_held_to_a_checksum_whether_made_or_there(home, folder):
    wrong = fetch(home, "pawsx", "--langs", "en", "--sha256", f"xtreme/pawsx_en.jsonl={'0' * 64}")
    assert wrong.exit_code == 1 and "what was made has SHA-256" in wrong.output and not folder.exists()
    fetch(home, "pawsx", "--langs", "en")
    right = lock(folder)["files"]["xtreme/pawsx_en.jsonl"]["sha256"]
    for digest, status in ((right, 0), ("0" * 64, 1)):
        again = fetch(home, "pawsx", "--langs", "en", "--sha256", f"xtreme/pawsx_en.jsonl={digest}")
        assert again.exit_code == status


def test_a_checksum_that_is_compared_with_nothing_is_no_success(home, folder):
    fetch(home, "bzsre")
    unused = fetch(home, "bzsre", "--sha256", f"{pair_name('zh')}={'0' * 64}")
    assert unused.exit_code == 1 and "compared with nothing" in unused.output
    typo = fetch(home, "bzsre", "--sha256", f"enzh.json={'0' * 64}")
    assert "unknown file of --sha256 'enzh.json'; known: " in str(typo.exception)


@pytest.mark.parametrize("text", ["", "x", "=" + "0" * 64, "a=", f"a={'0' * 63}", f"a={'g' * 64}", f"a={'０' * 64}"])
def test_a_malformed_checksum_is_refused(home, folder, text):
    refused = fetch(home, "bzsre", "--sha256", text)
    assert refused.exit_code == 1 and "expected NAME=, then 64 hexadecimal digits" in str(refused.exception)


def test_a_second_download_must_agree_with_the_first(home, folder):
    fetch(home, "bzsre")
    (folder / "mzsre.jsonl").unlink()
    (folder / "downloads" / pair_name("zh")).unlink()
    home.facts = 7  # it has changed since
    changed = fetch(home, "bzsre")
    assert changed.exit_code == 1 and f"recorded in {LOCK} is" in changed.output
    assert not (folder / "mzsre.jsonl").exists()
    home.facts = 6
    assert fetch(home, "bzsre").exit_code == 0


# --- without a network, and with files put there by hand ------------------------------------------------------------


def test_without_a_network_it_says_what_to_put_where(home, folder):
    home.__exit__()
    done = fetch(home, "bzsre", "xtreme", "--langs", "en zh")
    assert done.exit_code == 1 and not folder.exists()
    assert f"as {folder / 'downloads' / pair_name('zh')}" in done.output
    assert "save https://raw.githubusercontent.com/weixuan-wang123/ReMaKE/" in done.output
    for task in TASKS:
        assert f"write {folder / 'xtreme' / f'{task}_zh.jsonl'} from {HUB[task][0]}" in done.output
    assert "9 of 9 files are not there" in done.output
    assert done.output.count("as said above") == 8  # one host was tried once, by whichever file came first


def test_offline_mode_asks_nobody(home, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = fetch(home, "bzsre")
    assert done.exit_code == 1 and "offline mode is on" in done.output and not home.asked


def test_a_pair_file_saved_by_hand_is_joined_without_a_network(home, folder, monkeypatch):
    (folder / "downloads").mkdir(parents=True)
    (folder / "downloads" / pair_name("zh")).write_bytes(home.pairs("zh"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = fetch(home, "bzsre")
    assert done.exit_code == 0 and not home.asked and len(load_bzsre().facts) == 6
    assert "found, " in done.output and "first seen: trusted and recorded" in done.output


def test_a_saved_pair_file_that_is_altered_later_is_refused(home, folder):
    fetch(home, "bzsre")
    (folder / "downloads" / pair_name("zh")).write_bytes(home.pairs("zh").replace(b"Paris", b"Lyon"))
    (folder / "mzsre.jsonl").unlink()
    done = fetch(home, "bzsre")
    assert done.exit_code == 1 and f"recorded in {LOCK} is" in done.output and "delete it" in done.output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is there but damaged"),
        (
            b'{"id": 0, "en": {"subject": "A", "src": "A?", "alt": "B"}}\n',
            "is there without zh, and was not made by this",
        ),
        (b"", "holds no record"),
    ],
)
def test_a_file_of_ones_own_is_never_overwritten(home, folder, content, message):
    folder.mkdir()
    (folder / "mzsre.jsonl").write_bytes(content)
    done = fetch(home, "bzsre")
    assert done.exit_code == 1 and message in done.output and "move it away" in done.output
    assert (folder / "mzsre.jsonl").read_bytes() == content and not home.asked


def test_a_damaged_lock_is_refused(home, folder):
    fetch(home, "bzsre")
    for content in (b"{", b"[]", b'{"files": {}, "downloads": {"x": 3}}'):
        (folder / LOCK).write_bytes(content)
        assert isinstance(fetch(home, "bzsre").exception, CorruptFile)
        assert isinstance(run("check").exception, CorruptFile)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mzrse",), "unknown data set 'mzrse'; known: mzsre"),
        (("mzsre", "--langs", "dee"), "unknown language 'dee'; known: de"),
        (("mzsre", "--langs", " "), "expected at least one of each"),
    ],
)
def test_unknown_names_are_refused_before_anything_is_asked(home, folder, arguments, message):
    refused = fetch(home, *arguments)
    assert refused.exit_code == 1 and message in str(refused.exception) and not home.asked


# --- what is wanted, and how it is read -----------------------------------------------------------------------------


def test_every_published_set_is_a_target_and_every_other_one_is_named():
    wanted, gaps = targets(["mzsre", "bzsre", "xtreme"], tuple(LANGUAGES))
    paths = [target.path for target in wanted]
    assert len(paths) == len(set(paths)) and paths[0] == "mzsre.jsonl" and set(wanted[0].langs) == set(LANGUAGES)
    assert len(paths) == 1 + sum(len(HUB[task][2]) for task in TASKS)
    for task in TASKS:
        for lang in LANGUAGES:
            named = any(gap.startswith(f"{task} ") and lang in gap.split(" in ")[1].split(", ") for gap in gaps)
            assert (f"xtreme/{task}_{lang}.jsonl" in paths) != named
    assert set(PAIRS) == set(LANGUAGES) - {"en"}
    assert set(targets(["bzsre"], CORE)[0][0].langs) == {"en", "zh"}


def test_entries_of_other_facts_are_left_out_and_files_that_do_not_belong_together_refused():
    def pair(lang, differs):
        return [{"en": {"src": f"{'x' if n in differs else ''}{n}"}, lang: {"src": f"{lang} {n}"}} for n in range(20)]

    joined, apart = join_pairs({"de": pair("de", ()), "fr": pair("fr", (3,))})
    assert apart == {"fr": 1} and [n for n in range(20) if "fr" not in joined[n]] == [3]
    assert joined[4] == {"id": 4, "en": {"src": "4"}, "de": {"src": "de 4"}, "fr": {"src": "fr 4"}}
    with pytest.raises(RefusedInput, match="3 of 20 English questions are not those of the other files"):
        join_pairs({"de": pair("de", ()), "fr": pair("fr", (3, 4, 5))})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["rows", "row", "row_idx", "en", "zh", "src", "num_rows_total", "x"]), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(JSON, st.binary(max_size=30))
def test_whatever_a_server_sends_is_read_or_refused(value, junk):
    for content in (json.dumps(value).encode(), junk):
        for read in (lambda c: read_pairs("x", c, "zh"), *(lambda c, t=t: read_page("x", c, t) for t in TASKS)):
            try:
                read(content)
            except RefusedInput as error:
                assert str(error).startswith("x")


# --- checking -------------------------------------------------------------------------------------------------------


def test_check_lists_what_is_there_and_what_is_missing(home, folder):
    fetch(home, "mzsre", "xnli", "--langs", "de fr")
    shown = run("check")
    assert shown.exit_code == 0, shown.output
    lines = {line.split()[0]: line.split() for line in shown.output.splitlines() if line.strip()}
    digest = lock(folder)["files"]["mzsre.jsonl"]["sha256"]
    assert lines["mzsre.jsonl"] == ["mzsre.jsonl", "found", "6", "en", "de", "fr", digest[:12], "not", "stated"]
    assert lines["xtreme/xnli_de.jsonl"][1:4] == ["found", "140", "de"]
    assert lines["xtreme/xnli_es.jsonl"][1:3] == ["missing", "es"]
    assert "mlqa is not published in nl, fr" in shown.output and "3 found, 18 missing, 0 damaged" in shown.output
    strict = run("check", folder, "--strict")
    assert strict.exit_code == 1 and "18 files are missing" in strict.output


def test_check_sees_a_changed_byte_of_a_fetched_file(home, folder):
    fetch(home, "pawsx", "--langs", "en")
    path = folder / "xtreme/pawsx_en.jsonl"
    path.write_bytes(path.read_bytes().replace(b"It is", b"It Is", 1))
    shown = run("check")
    assert shown.exit_code == 1 and "pawsx_en.jsonl: was altered" in shown.output and "1 damaged" in shown.output


FACT = '{"id": 0, "en": {"subject": "A", "src": "A?", "alt": "B"}}'
RECORD = '{"sentence1": "a", "sentence2": "b", "label": "1"}'


@pytest.mark.parametrize(
    ("name", "lines", "problem"),
    [
        ("mzsre.jsonl", [FACT, "{"], ":2: not JSON"),
        ("mzsre.jsonl", [FACT, "", FACT], ":3: id '0' is in line 1 already"),
        ("mzsre.jsonl", ["3"], ":1: expected a JSON object, found int"),
        ("mzsre.jsonl", ['{"en": {"src": "A?"}}'], ":1: no language has subject, src, alt"),
        ("mzsre.jsonl", ['{"en": "A?"}'], ":1: en is str, expected an object"),
        ("mzsre.jsonl", ["[" + FACT + ", 3]"], ": entry 1: expected a JSON object"),
        ("mzsre.jsonl", ["[" + FACT], ": not JSON"),
        ("mzsre.jsonl", [""], ": holds no record"),
        ("xtreme/pawsx_de.jsonl", [RECORD] * 12 + ['{"sentence1": "a"'], ":13: not JSON"),
        ("xtreme/pawsx_de.jsonl", [RECORD] * 12 + [RECORD.replace('"1"', '"7"')], ":13: label is '7', expected one of"),
        ("xtreme/pawsx_de.jsonl", [RECORD] * 10, ": holds 10 records; 10 are the pool"),
        ("xtreme/pawsx_th.jsonl", [RECORD] * 12 + ["null"], ":13: expected a JSON object, found NoneType"),
    ],
)
def test_check_names_file_and_line_of_what_is_damaged(folder, name, lines, problem):
    (folder / "xtreme").mkdir(parents=True)
    (folder / name).write_text("\n".join(lines) + "\n", "utf-8")
    shown = run("check", folder)
    assert shown.exit_code == 1 and f"{folder / name}{problem}" in shown.output, shown.output


def test_check_reads_bytes_that_are_no_text_and_lines_that_do_not_end(folder):
    (folder / "xtreme").mkdir(parents=True)
    path = folder / "xtreme" / "pawsx_de.jsonl"
    path.write_bytes(b"\xff\n" + (RECORD + "\n").encode() * 12 + b"[" * 2_000_000)
    shown = run("check", folder)
    assert shown.exit_code == 1
    assert f"{path}:1: not UTF-8" in shown.output and f"{path}:14: longer than 1,000,000 bytes" in shown.output
    path.unlink()
    path.mkdir()
    assert f"{path}: is no file" in run("check", folder).output


def test_check_of_no_folder_says_how_to_get_one(folder):
    shown = run("check")
    assert shown.exit_code == 1 and "langedit data fetch --output-path DIR" in shown.output


def test_check_takes_the_array_layout_and_writes_nothing(home, folder):
    folder.mkdir()
    (folder / "mzsre.jsonl").write_bytes(home.pairs("zh"))
    found = check_folder(folder)[0][0]
    assert (found.state, found.lines, found.langs) == ("found", 6, {"en": 6, "zh": 6})
    assert list(contents(folder)) == ["mzsre.jsonl"]


def test_the_real_files_are_whole():
    files, _ = check_folder(data_folder("LANGEDIT_DATA", "../shared/data"))
    assert any(found.state == "found" for found in files)
    assert [str(problem) for found in files for problem in found.problems] == []


@pytest.mark.parametrize("command", ["fetch", "check"])
def test_help_has_an_example(command):
    assert f"Example: langedit data {command} " in " ".join(run(command, "--help").output.split())
