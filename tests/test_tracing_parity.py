"""Causal traces against numbers recorded from the published implementation, with the same noise."""

import pytest
import torch
from test_parity import ARCHITECTURES, FIXTURES, PUBLISHED, Recorded, agree

from langedit_core.patching import SITES, PromptRuns
from langedit_core.records import Fact
from langedit_core.tracing import TraceSettings, cells_of, embedding_deviation, subject_columns

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not ARCHITECTURES, reason=f"no fixtures in {FIXTURES}; set LANGEDIT_FIXTURES"),
]
NAMES = {"attn": "attention", "mlp": "mlp", "hidden": "hidden", "uniform": "hidden"}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def recorded(request) -> Recorded:
    return Recorded(request.param)


def test_deviation_of_the_embeddings(recorded):
    theirs, about = recorded.tensors("trace"), recorded.requests["causal_trace"]
    ours = embedding_deviation(recorded.model(), [prompt["subject"] for prompt in about["prompts"]])
    agree(torch.tensor(ours), theirs["embedding_std"], PUBLISHED, "deviation")
    agree(torch.tensor(TraceSettings().noise * ours), theirs["noise_level"], PUBLISHED, "noise level")


def test_scores_of_every_token_layer_and_kind(recorded):
    theirs, about, model, seen = recorded.tensors("trace"), recorded.requests["causal_trace"], recorded.model(), set()
    settings = TraceSettings(window=about["window"], samples=about["samples"], severed=False)

    def compare(name, ours):
        seen.add(name)
        agree(torch.as_tensor(ours), theirs[name], PUBLISHED, f"trace: {name}")

    for number, prompt in enumerate(about["prompts"]):
        here = f"p{number}"
        subject, text = prompt["subject"], prompt["prompt"]
        fact = Fact(
            id=here, lang="en", relation="traced", subject=subject, prompt=text.replace(subject, "{}"), target="any"
        )
        ids, columns = subject_columns(recorded.tokenizer, fact)
        assert list(ids) == theirs[f"{here}/input_ids"].tolist()
        assert [columns[0], columns[-1] + 1] == theirs[f"{here}/subject_range"].tolist()
        cells = cells_of(model.n_layers, len(ids), columns, settings)
        for prefix, level, kinds in (
            ("", float(theirs["noise_level"]), [k for k in NAMES if k != "uniform"]),
            ("uniform/", about["uniform_noise_level"], ["uniform"]),
        ):
            runs = PromptRuns(model, ids, subject=columns, noise=level * theirs[f"{here}/{prefix}noise_raw"])
            assert runs.answer == int(theirs[f"{here}/answer_t"])
            compare(f"{here}/high_score", runs.clean)
            compare(f"{here}/{prefix}low_score", runs.corrupted.double().mean())
            scores = runs.scores(list(cells.values())).mean(1)
            found = {site: torch.empty(len(ids), model.n_layers) for site in SITES}
            for (site, token, layer), score in zip(cells, scores, strict=True):
                found[site][token, layer] = score
            for kind in kinds:
                compare(f"{here}/{kind}/scores", found[NAMES[kind]])
    unread = ("input_ids", "subject_range", "noise_raw", "answer_t")
    left = {name for name in theirs if name.startswith("p") and not name.endswith(unread)} - seen
    assert not left, f"recorded but not compared: {sorted(left)[:8]}"
