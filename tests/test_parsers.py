"""Whatever bytes arrive, a parser gives what they say or a documented error; and what was written is read back."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import nbformat
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_notebook

from langedit_core.checking import check_file
from langedit_core.datafiles import json_lines
from langedit_core.errors import RefusedInput
from langedit_core.fact_files import parse_facts, read_facts, read_sentences
from langedit_core.languages import LANGUAGES
from langedit_core.mzsre import load_mzsre
from langedit_core.notebooks import check_parameters
from langedit_core.patches import Patch
from langedit_core.profiles import load_profile
from langedit_core.records import Fact, Probe
from langedit_core.storage import CorruptFile, load_tensors, read_json, read_sealed, write_sealed
from langedit_core.yaml_files import BadYaml, read_mapping

unhurried = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
FLAWS = [
    b"",
    b"\x00",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b'"',
    b"NaN",
    b"\n",
    b"\xe2\x80\xae",
    b"1e999",
    b"&a *a",
    b"!!python/x ",
]

numbers = st.integers() | st.floats() | st.booleans() | st.none()
trees = st.recursive(
    numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@st.composite
def damaged(draw, whole: bytes):
    """A whole file in which a piece was replaced."""
    start = draw(st.integers(0, len(whole)))
    end = draw(st.integers(start, min(len(whole), start + 12)))
    return whole[:start] + draw(st.sampled_from(FLAWS) | st.binary(max_size=6)) + whole[end:]


# --- facts ------------------------------------------------------------------------------------------------------------

words = (
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]), min_size=1, max_size=20)
    .map(lambda text: text.replace("{", "(").replace("}", ")"))
    .map(str.strip)
    .filter(bool)
)
prompts = st.tuples(words, words).map("{}".join)


def asked(kinds: list[str]):
    return st.lists(st.fixed_dictionaries(dict(prompt=words, answer=words, kind=st.sampled_from(kinds))), max_size=2)


fields = st.fixed_dictionaries(
    dict(
        id=words, lang=st.sampled_from(sorted(LANGUAGES)), relation=words, subject=words, prompt=prompts, target=words,
        truth=st.none() | words, paraphrases=asked(["paraphrase"]), neighbours=asked(["locality", "neighbour_near"]),
        portability=asked(["portability"]),
    )
).filter(lambda record: record["truth"] != record["target"])  # fmt: skip


def fact_of(record: dict) -> Fact:
    return Fact(**{k: tuple(Probe(**x) for x in v) if isinstance(v, list) else v for k, v in record.items()})


@unhurried
@given(
    st.lists(
        fields,
        min_size=1,
        max_size=4,
        unique_by=(
            lambda record: (record["id"], record["lang"]),
            lambda record: (record["lang"], record["prompt"].replace("{}", record["subject"])),
        ),
    )
)
def test_facts_that_are_written_are_read_back(tmp_path, written):
    path = tmp_path / "facts.jsonl"
    path.write_text("\n".join(json.dumps(x, ensure_ascii=False) for x in written) + "\n", encoding="utf-8")
    assert read_facts(path) == list(map(fact_of, written))


LINE = json.dumps(
    dict(
        lang="de", subject="Perú", prompt="{} hat", target="利马", neighbours=[dict(prompt="x", answer="y")]
    ), ensure_ascii=False,
).encode()  # fmt: skip


@unhurried
@given(st.binary(max_size=200) | damaged(LINE) | trees.map(lambda tree: json.dumps(tree).encode()))
def test_any_lines_are_facts_or_problems_that_can_be_shown(tmp_path, content):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(content)
    found, problems = parse_facts(path)
    assert found or problems
    told = [str(problem) for problem in (*problems, *check_file(path).problems)]
    assert all(text.startswith(str(path)) and len(text) < 1200 for text in told)
    assert all(character >= " " or character == "\t" for text in told for character in text), told
    if problems:
        with pytest.raises(RefusedInput):
            read_facts(path)


@unhurried
@given(st.binary(max_size=300))
@example(b"\x1c")
@example("\u3000".encode())
def test_any_bytes_are_sentences_or_refused_by_their_line(tmp_path, content):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    try:
        sentences = read_sentences(path)
    except RefusedInput as error:
        assert str(error).startswith(str(path))
        return
    assert sentences and all(sentence.strip() for sentence in sentences)


# --- data sets --------------------------------------------------------------------------------------------------------

RECORD = json.dumps(
    {"id": 1, "en": {"subject": "Ada", "src": "Where was Ada born?", "alt": "Paris", "loc": "x", "loc_ans": "y"}}
).encode()


@unhurried
@given(st.binary(max_size=200) | damaged(RECORD) | trees.map(lambda tree: json.dumps([tree]).encode()))
def test_any_data_set_is_loaded_or_refused_with_its_file(tmp_path, content):
    path = tmp_path / "mzsre.jsonl"
    path.write_bytes(content)
    for where, record in json_lines(path):
        assert where.startswith("mzsre.jsonl, line ")
        assert not isinstance(record, RefusedInput) or str(record).startswith(where)
    try:
        data = load_mzsre(path, ("en",))
    except ValueError as error:
        assert not isinstance(error, json.JSONDecodeError | UnicodeError) and "mzsre.jsonl" in str(error)
        return
    assert data.facts


# --- records ----------------------------------------------------------------------------------------------------------

finite = st.recursive(
    st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans() | st.none() | st.text(
        st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@unhurried
@given(finite, st.sampled_from(["record.json", "record.json.xz"]))
def test_a_record_that_is_written_is_read_back(tmp_path, content, name):
    write_sealed(tmp_path / name, content)
    assert read_sealed(tmp_path / name) == content


@unhurried
@given(st.data())
def test_a_record_of_any_other_bytes_is_corrupt(tmp_path, data):
    name = data.draw(st.sampled_from(["record.json", "record.json.xz"]))
    path = tmp_path / name
    write_sealed(path, {"rows": [1, 2.5, "x"], "of": "cell"})
    whole = path.read_bytes()
    plain = lzma.decompress(whole) if path.suffix == ".xz" else whole
    packed = (lambda text: lzma.compress(text)) if path.suffix == ".xz" else (lambda text: text)
    content = data.draw(
        st.binary(max_size=100) | damaged(whole) | damaged(plain).map(packed) | trees.map(
            lambda tree: packed(json.dumps(tree).encode()))
    )  # fmt: skip
    path.write_bytes(content)
    try:
        found = read_sealed(path)
    except CorruptFile as error:
        assert str(path) in str(error) and "delete it" in str(error)
        return
    assert found == {"rows": [1, 2.5, "x"], "of": "cell"}  # spaces and the like change no content


@unhurried
@given(st.binary(max_size=100) | trees.map(lambda tree: json.dumps(tree).encode()))
def test_any_bytes_are_json_or_corrupt(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    try:
        found = read_json(tmp_path / "x.json")
    except CorruptFile:
        return
    json.dumps(found, allow_nan=False)


@unhurried
@given(st.binary(max_size=100) | st.binary(max_size=60).map(lambda text: len(text).to_bytes(8, "little") + text))
def test_any_bytes_are_no_tensors_and_no_patch(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (load_tensors, Patch.load):
        with pytest.raises((CorruptFile, RefusedInput), match=r"x\.safetensors"):
            read(path)


# --- profiles and notebooks -------------------------------------------------------------------------------------------

PROFILE = (Path(__file__).parents[1] / "langedit_core/profiles/smoke.yaml").read_bytes()


@unhurried
@given(st.binary(max_size=200) | damaged(PROFILE) | trees.map(lambda tree: yaml.safe_dump({"name": tree}).encode()))
def test_any_profile_is_loaded_or_refused_with_its_file_on_one_line(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    told = check_file(path).problems
    try:
        profile = load_profile(path)
    except RefusedInput as error:
        assert str(path) in str(error) and "\n" not in str(error) and told
        return
    assert profile.models and profile.notebooks


@unhurried
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5), finite, max_size=4))
def test_a_mapping_that_is_written_as_yaml_is_read_back_or_too_deep(tmp_path, content):
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")  # other characters as escapes, which keep them
    try:
        found, tree = read_mapping(path)
    except BadYaml as error:
        assert "is no YAML" in str(error) or "already" in str(error)  # characters that YAML cannot hold; 1 and True
        return
    assert found == content and len(tree.value) == len(content)


@unhurried
@given(st.dictionaries(st.sampled_from(["a", "b", "c", "d", "e"]), trees, max_size=3))
def test_any_parameters_arrive_as_they_are_or_are_refused(tmp_path, parameters):
    path = tmp_path / "00_tiny.ipynb"
    cell = new_code_cell("a = 1\nb = 0.5\nc = 'x'\nd = None", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[cell]), path)
    try:
        checked = check_parameters(path, parameters)
    except ValueError as error:
        assert "00_tiny.ipynb" in str(error)
        return
    assert checked == parameters and json.dumps(checked, allow_nan=False)
