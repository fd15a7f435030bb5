"""Work that does not fit into memory is done in smaller parts, with the same result and nothing counted twice."""

import conftest
import pytest
import torch
import toy

from langedit_core.covariance import collect_covariance
from langedit_core.drift import Drift
from langedit_core.memory import alike
from langedit_core.metrics import score_probes

TEXTS = {"en": {f"t{i}": text for i, text in enumerate(conftest.SENTENCES[:6])}}
PROBES = [(f.text, " " + f.target) for f in toy.facts("en", range(6))]


def covariance(model) -> list:
    found = collect_covariance(model, (1, 2), conftest.SENTENCES)
    return [(of.gram, of.count) for of in found.values()]


def scores(model) -> list:
    return [(score.predicted, torch.tensor(score.nll)) for score in score_probes(model, PROBES)]


def drift(model) -> list:
    return [torch.tensor([of.kl, of.nll]) for of in Drift.of(model, ("en",), texts=TEXTS).paragraphs(model)]


def limit(model, monkeypatch, most: int) -> list[int]:
    """From now on no more rows fit through the model at once; returns the list of what is tried."""
    whole, tried = model.hf.base_model.forward, []

    def small(*args, input_ids, **options):
        tried.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")
        return whole(*args, input_ids=input_ids, **options)

    monkeypatch.setattr(model.hf.base_model, "forward", small)
    return tried


@pytest.mark.parametrize("measure", [covariance, scores, drift])
def test_what_does_not_fit_is_done_in_smaller_parts_with_the_same_result(tiny, monkeypatch, measure):
    expected = measure(tiny)
    tried = limit(tiny, monkeypatch, 2)
    # Products of kkᵀ are rounded in single precision, batch by batch.
    torch.testing.assert_close(measure(tiny), expected, rtol=1e-4, atol=1e-3)
    assert max(tried) > 2 and len(tried) > 3


@pytest.mark.parametrize(
    ("measure", "what"), [(covariance, "a corpus text"), (scores, "a question"), (drift, r"a neutral text.*\(en\)")]
)
def test_what_does_not_fit_alone_is_named(tiny, monkeypatch, measure, what):
    limit(tiny, monkeypatch, 0)
    with pytest.raises(
        MemoryError, match=rf"{what}.*does not fit in memory: tried to allocate 2.00 GiB; .*larger device"
    ):
        measure(tiny)


def test_rows_of_like_length_are_grouped_within_the_cells_and_each_once():
    lengths = [5, 1, 9, 1, 5, 30, 2]
    groups = alike(lengths, 12)
    assert groups == [[1, 3, 6], [0, 4], [2], [5]]  # 3 × 2, 2 × 5, 1 × 9, and one longer than a group may be
    assert alike(lengths, 12, room=1) == [[1, 3, 6], [0, 4], [2], [5]] and alike([], 12) == []
    assert alike([3, 3, 3], 9) == [[0, 1, 2]] and alike([3, 3, 3], 9, room=1) == [[0, 1], [2]]
