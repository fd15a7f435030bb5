import pandas as pd
import pytest

from langedit_core import same_keys
from langedit_core.records import Fact
from langedit_core.records import same_keys as groups_of


def fact(id_: str, prompt: str, subject: str = "Peru", lang: str = "en") -> Fact:
    return Fact(id=id_, lang=lang, relation="r", subject=subject, prompt=prompt, target="Lima")


def test_prompts_that_are_alike_up_to_the_subjects_end_have_one_key():
    facts = [
        fact("a", "Country: {}. Continent:"), fact("b", "Country: {}. Capital:"), fact("c", "The capital of {} is"),
        fact("d", "Country: {}. Capital:", lang="de"), fact("e", "Country: {}. Capital:", subject="Chile"),
    ]  # fmt: skip
    assert facts[0].opening == "Country: Peru"
    assert [[each.id for each in group] for group in groups_of(facts)] == [["a", "b"]]


def rows(values: dict[str, float], key: str, n: int, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        dict(fact=f"{key}{i}", lang="en", method=method, seed=seed, metric="efficacy_tf", when=when, key=key,
             value=value + 0.01 * (i % 3) if when == "final" else 1.0)
        for method, value in values.items() for i in range(n) for when in ("immediate", "final")
    )  # fmt: skip


def test_edits_with_a_key_of_their_own_are_told_apart_from_the_others():
    own = rows({"memit": 0.3, "alphaedit": 0.6, "ft": 0.6}, "own", 12)
    shared = rows({"memit": 0.1, "alphaedit": 0.2, "ft": 0.5}, "shared", 9)
    found = same_keys.told_apart(pd.concat([own, shared])).set_index(["key", "method"])
    assert list(found.index.get_level_values("key").unique()) == ["own", "shared"]
    assert found.loc[("own", "memit"), "facts"] == 12 and found.loc[("shared", "ft"), "facts"] == 9
    assert found.loc[("own", "memit"), "difference"] == pytest.approx(-0.3)
    assert found.loc[("own", "memit"), "low"] <= -0.3 + 1e-9 <= found.loc[("own", "memit"), "high"] + 2e-9
    assert found["verdict"].to_dict() | {("own", "alphaedit"): "", ("shared", "alphaedit"): ""} == {
        ("own", "memit"): "worse", ("own", "alphaedit"): "", ("own", "ft"): "no difference shown",
        ("shared", "memit"): "worse", ("shared", "alphaedit"): "", ("shared", "ft"): "better",
    }  # fmt: skip
    table = same_keys.readable(found.reset_index()).set_index("method")
    assert table.at["memit", "a key of their own, 12 edits"] == "1.00 → 0.31"
    assert table.at["ft", "a key that others share, 9 edits: minus alphaedit"].endswith("better")
    assert table.at["alphaedit", "a key of their own, 12 edits: minus alphaedit"] == "–"


def test_where_no_key_is_shared_there_is_nothing_to_tell():
    assert same_keys.told_apart(rows({"memit": 0.3}, "own", 4)).empty
