"""What was measured once is read again for the same key only, and never in a damaged state."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langedit_core.keeping import kept
from langedit_core.storage import read_sealed

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abß瑞", max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def again():
    pytest.fail("made again")


@given(made=JSON)
def test_what_was_made_is_read_again_as_it_was(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    assert kept(folder, "x", {"a": 1}, lambda: made) == made
    assert kept(folder, "x", {"a": 1}, again) == made  # also None, which is an outcome and no gap


@pytest.mark.parametrize(
    "other", [{"a": 2, "b": "ü"}, {"a": 1}, {"a": 1, "b": "u"}, {"a": 1, "b": "ü", "c": None}, {"a": "1", "b": "ü"}]
)
def test_another_key_is_another_file(tmp_path, other):
    count = itertools.count()
    assert kept(tmp_path, "x", {"a": 1, "b": "ü"}, lambda: next(count)) == 0
    assert kept(tmp_path, "x", other, lambda: next(count)) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_the_order_in_which_a_key_is_written_does_not_matter_but_its_name_does(tmp_path):
    kept(tmp_path, "x", {"a": 1, "b": [1, 2]}, lambda: "first")
    assert kept(tmp_path, "x", {"b": [1, 2], "a": 1}, again) == "first"
    assert kept(tmp_path, "x", {"a": 1, "b": [2, 1]}, lambda: "turned") == "turned"
    assert kept(tmp_path, "y", {"a": 1, "b": [1, 2]}, lambda: "named") == "named"
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["x", "x", "y"]


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    count = itertools.count()
    assert [kept(None, "x", {}, lambda: next(count)) for _ in range(2)] == [0, 1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda b: b"no", lambda b: b[: len(b) // 2], lambda b: b""])
def test_a_damaged_file_is_made_again_and_said(tmp_path, caplog, damage):
    kept(tmp_path, "x", {"a": 1}, lambda: [1.5, None])
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kept(tmp_path, "x", {"a": 1}, lambda: [2]) == [2]
    assert read_sealed(path) == [2] and path.name in caplog.text


def test_what_fails_leaves_nothing_behind(tmp_path):
    def fails():
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        kept(tmp_path, "x", {}, fails)
    with pytest.raises(ValueError):  # JSON has no NaN, so nothing could be read again
        kept(tmp_path, "x", {}, lambda: float("nan"))
    assert kept(tmp_path, "x", {}, lambda: 1) == 1 and len(list(tmp_path.iterdir())) == 1
