"""Facts as JSON lines: what is taken, and what is refused with the number of its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langedit_core.errors import RefusedInput
from langedit_core.fact_files import LONGEST_LINE, fact_of, parse_facts, read_facts
from langedit_core.records import Probe

GOOD = dict(lang="en", subject="France", prompt="The capital of {} is", target="Lyon")


def write(tmp_path, *lines, end="\n"):
    path = tmp_path / "facts.jsonl"
    content = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(content) + end.encode())
    return path


def test_four_fields_are_enough_and_a_fact_without_id_is_called_after_its_line(tmp_path):
    one, other = read_facts(write(tmp_path, GOOD, b"", b"  ", GOOD | dict(id="my/1", truth=None)))
    assert (one.id, one.relation, one.text, one.target) == ("line-1", "fact", "The capital of France is", "Lyon")
    assert (other.id, other.truth) == ("my/1", None)


def test_questions_come_along(tmp_path):
    (fact,) = read_facts(write(tmp_path, GOOD | dict(
        paraphrases=["France's capital is", {"prompt": "Capital of France:", "answer": "Lyon!"}],
        neighbours=[{"prompt": "The capital of Italy is", "answer": "Rome", "kind": "neighbour_near"}],
        portability=[{"prompt": "The seat of the French president is in", "answer": "Lyon"}],
    )))  # fmt: skip
    assert fact.paraphrases[0] == Probe(prompt="France's capital is", answer="Lyon", kind="paraphrase")
    assert fact.paraphrases[1].answer == "Lyon!"
    assert [p.kind for p in (*fact.neighbours, *fact.portability)] == ["neighbour_near", "portability"]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path, end):
    path = write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r", GOOD | dict(lang="de"), end=end)
    assert [fact.lang for fact in read_facts(path)] == ["en", "de"]


BAD = {
    "no JSON": (b"{'lang': 'en'}", "is no JSON .*column 2"),
    "cut": (json.dumps(GOOD).encode()[:-5], "is no JSON"),
    "two on a line": (json.dumps(GOOD).encode() * 2, "is no JSON .Extra data"),
    "no UTF-8": (json.dumps(GOOD).encode().replace(b"Lyon", b"Ly\xf6n"), "is no UTF-8 .byte"),
    "a list": ([GOOD], "holds a list, expected an object"),
    "text": (b'"France"', "holds text, expected an object"),
    "a number": (b"3", "holds a number"),
    "null": (b"null", "holds null"),
    "a missing target": ({k: v for k, v in GOOD.items() if k != "target"}, "target missing; a fact needs"),
    "a misspelt field": (GOOD | dict(tagret="x"), "unknown field 'tagret'; known: target"),
    "a repeated field": (b'{"lang": "en", "lang": "de"}', "'lang' is there twice"),
    "a number as target": (GOOD | dict(target=3), "target is a number, expected text"),
    "null as subject": (GOOD | dict(subject=None), "subject is null, expected text"),
    "no gap": (GOOD | dict(prompt="The capital of France is"), 'prompt holds "{}" 0 times, expected 1'),
    "two gaps": (GOOD | dict(prompt="{} and {}"), 'prompt holds "{}" 2 times'),
    "an empty target": (GOOD | dict(target="  "), "target is empty"),
    "an unknown language": (GOOD | dict(lang="english"), "unknown language 'english'; known: "),
    "a control character": (GOOD | dict(subject="Fra\u0007nce"), r"control character U\+0007"),
    "half a surrogate": (b'{"lang":"en","subject":"\\ud800","prompt":"{} is","target":"x"}', r"U\+D800"),
    "a long text": (GOOD | dict(subject="x" * 3000), "3,000 characters"),
    "paraphrases as text": (GOOD | dict(paraphrases="x"), "paraphrases is text, expected a list"),
    "a neighbour without answer": (GOOD | dict(neighbours=[{"prompt": "x"}]), "'x' has no answer"),
    "a neighbour as text": (GOOD | dict(neighbours=["x"]), "expected objects with"),
    "an unknown kind of question": (
        GOOD | dict(neighbours=[dict(prompt="x", answer="y", kind="z")]), "unknown probe kind"),
    "a question that is a number": (
        GOOD | dict(neighbours=[dict(prompt=3, answer="y")]), "prompt is a number, expected text"),
    "a question with more": (GOOD | dict(neighbours=[dict(prompt="x", answer="y", z=1)]), "expected objects with"),
    "deep nesting": (b'{"lang": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply|is no JSON"),
    "a huge number": (b'{"lang": ' + b"9" * 10_000 + b"}", "integer|is no JSON|missing"),
    "a huge line": (b'{"lang": "' + b"x" * LONGEST_LINE + b'"}', "longer than 1,000,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_line_is_refused_with_its_number_and_the_good_ones_are_still_read(tmp_path, case):
    line, message = BAD[case]
    path = write(tmp_path, GOOD, line, GOOD | dict(lang="de"))
    with pytest.raises(RefusedInput, match=message) as caught:
        read_facts(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    facts, problems = parse_facts(path)
    assert [fact.lang for fact in facts] == ["en", "de"] and [problem.line for problem in problems] == [2]
    assert len(str(caught.value)) < 600


def test_a_fact_given_twice_names_both_lines(tmp_path):
    path = write(tmp_path, GOOD | dict(id="a"), GOOD | dict(id="a", lang="de"), GOOD | dict(id="a"))
    with pytest.raises(RefusedInput, match=":3: fact 'a' in 'en' is in line 1 already"):
        read_facts(path)


def test_many_bad_lines_are_counted(tmp_path):
    with pytest.raises(RefusedInput, match="and 15 more"):
        read_facts(write(tmp_path, *[b"x"] * 20))


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_says_what_is_expected(tmp_path, content):
    (tmp_path / "facts.jsonl").write_text(content)
    with pytest.raises(RefusedInput, match="holds no fact; expected one JSON object per line"):
        read_facts(tmp_path / "facts.jsonl")
    with pytest.raises(FileNotFoundError, match="expected facts as JSON lines"):
        read_facts(tmp_path / "none.jsonl")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
probes = st.fixed_dictionaries({"prompt": scalars}, optional={"answer": scalars, "kind": scalars, "x": scalars})
values = scalars | st.lists(scalars | probes, max_size=2) | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


@unhurried
@given(st.dictionaries(st.sampled_from([*GOOD, "id", "truth", "paraphrases", "neighbours"]), values))
def test_any_object_is_a_fact_or_refused(record):
    try:
        fact = fact_of({**GOOD, **record})
    except RefusedInput:
        return
    assert fact.text and fact.target


@unhurried
@given(st.binary(max_size=200))
def test_any_bytes_are_facts_or_problems(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "facts.jsonl"
    path.write_bytes(content)
    facts, problems = parse_facts(path)
    assert facts or problems
