"""Every case of the corpus is refused with a message that helps, or treated; none crashes, none is accepted."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from bad_corpus import Case, Verdict, datasets, facts, judge, kept, markup, models, patches, profiles

CASES = {
    f"{case.kind}: {case.name}": case
    for module in (facts, profiles, kept, patches, models, datasets, markup)
    for case in module.CASES
}
KINDS = list(dict.fromkeys(case.kind for case in CASES.values()))


@functools.cache
def verdict(name: str) -> Verdict:
    """Each case happens once per process, whether its own test or the summary asks first."""
    with tempfile.TemporaryDirectory(prefix="bad-") as folder:
        return judge(CASES[name], Path(folder))


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_refused_with_a_message_that_helps_or_treated(name):
    case: Case = CASES[name]
    found = verdict(name)
    expected = "refused" if case.treated is None else "treated"
    assert found.outcome == expected, f"{found.outcome}, expected {case.says!r}: {found.detail}"


def test_the_corpus_is_large_and_nothing_of_it_crashes_or_is_accepted(capsys):
    names = [f"{module.__name__} {case.kind} {case.name}" for module in (facts, profiles, kept, patches, models,
             datasets, markup) for case in module.CASES]  # fmt: skip
    assert len(names) == len(CASES) == len(set(CASES)), "two cases share their name"
    found = {kind: Counter(verdict(n).outcome for n, case in CASES.items() if case.kind == kind) for kind in KINDS}
    columns = ("refused", "treated", "useless", "crashed", "accepted")
    with capsys.disabled():
        print(f"\n{'kind':14}{'cases':>7}" + "".join(f"{name:>10}" for name in columns))
        for kind, counts in (found | {"all": sum(found.values(), Counter())}).items():
            print(f"{kind:14}{counts.total():>7}" + "".join(f"{counts[name]:>10}" for name in columns))
    total = sum(found.values(), Counter())
    assert total.total() >= 200 and min(counts.total() for counts in found.values()) >= 10
    assert (total["useless"], total["crashed"], total["accepted"]) == (0, 0, 0)
