"""Facts as JSON lines: what is taken, and what is refused with the number of its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from langedit_core.errors import RefusedInput
from langedit_core.fact_files import fact_of, read_facts
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
