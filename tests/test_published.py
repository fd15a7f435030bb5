"""The paper's numbers stand beside ours, and sentences about the difference follow from results."""

import re

import numpy as np
import pytest
import toy_study

from langedit_core import analysis, published
from langedit_core.profiles import hyperparameters
from langedit_core.published import BASELINES, CLAIMS, EFFICACY, F1, beside, reasons, size_of, verdicts

METHODS = ("memit", "rect", "alphaedit", "langedit", "evoedit")


def fabricated(methods=METHODS, data=("mzsre",), **changes):
    return analysis.Study(
        [toy_study.fabricate(m, d, seed, **changes) for d in data for m in methods for seed in (0, 1)]
    )


@pytest.fixture(scope="module")
def study():
    return fabricated()


def test_claims_are_those_of_the_paper():
    found = {(c.points, c.metric) for c in CLAIMS}
    assert found == {(5.65, F1), (2.20, EFFICACY), (73.18, EFFICACY), (73.14, F1)}
    assert published.claims()["points"].tolist() == ["5.65", "2.20", "73.18", "73.14"]
    assert all(c.data == "bzsre" and c.model == "Llama3-8B" for c in CLAIMS[2:])


def test_the_best_baseline_is_one_of_the_papers_and_named_with_its_difference(study):
    table = beside(study).set_index("metric")
    assert table.at[EFFICACY, "against"] == "alphaedit, best baseline"  # evoedit is no baseline of the paper
    d = study.compare("mzsre", "efficacy_tf", "final", "langedit", "alphaedit")
    assert table.at[EFFICACY, "difference"] == f"{100 * d.value:.2f} [{100 * d.low:.2f}, {100 * d.high:.2f}]"
    assert table.at[EFFICACY, "n"] == 72 and table.at[EFFICACY, "seeds"] == 2
    assert table.at[EFFICACY, "paper"] == "up to +2.20" and table.at[F1, "paper"] == "up to +5.65"
    assert table.at[F1, "verdict"] == "not tested"
    assert "evoedit" not in BASELINES and not any(name.startswith("langedit") for name in BASELINES)


def test_xtreme_is_tested_over_records_where_the_answers_were_kept():
    right = dict(memit=12, alphaedit=18, langedit=8)
    runs = [toy_study.fabricate(method, "mzsre", seed) for method in right for seed in (0, 1)]
    for r in runs:
        if (r.cell.method, r.cell.seed) != ("memit", 0):  # computed before answers were kept
            k = right[r.cell.method] + r.cell.seed
            r.answers = toy_study.xtreme_answers({"en": k, "zh": k}, "final")
    both = analysis.Study(runs)
    found = both.xtreme_tests("mzsre", "langedit").set_index("b")
    assert (
        found.at["alphaedit", "difference"] == pytest.approx(-0.5, abs=0.01) and found.at["alphaedit", "n_seeds"] == 2
    )
    assert found.at["memit", "n_seeds"] == 1 and found.at["alphaedit", "n"] == 4 * 2 * 20
    assert found["verdict"].to_dict() == {
        "memit": "not tested",
        "alphaedit": "worse",
    }  # memit's other seed is known too
    told = both.xtreme_comparisons("mzsre", "langedit").set_index("against")
    assert told.at["alphaedit", "difference"].startswith("-0.50 [-0.")
    assert told.at["memit", "by seed"] == "" and re.fullmatch(r"-0.5\d+ to -0.[45]\d+", told.at["alphaedit", "by seed"])
    table = beside(both).set_index("metric").loc[[F1]].set_index("against")
    assert float(table.at["alphaedit, best baseline", "difference"].split()[0]) == pytest.approx(-50, abs=1)
    (sentence,) = (s for s in verdicts(both) if "XTREME F1" in s)
    assert "is contradicted" in sentence and "n = 160 records, 2 seeds (-5" in sentence and "+5.65" in sentence
    assert both.xtreme_tests("mzsre", "absent").empty


def test_alphaedit_has_a_row_of_its_own_where_another_baseline_is_best(monkeypatch):
    monkeypatch.setitem(toy_study.RATES, "rect", 0.0001)
    table = beside(fabricated(xtreme=False))
    assert table[table["metric"] == EFFICACY]["against"].tolist() == ["rect, best baseline", "alphaedit"]
    assert F1 not in set(table["metric"])


def test_the_verdict_follows_the_corrected_test(monkeypatch):
    monkeypatch.setitem(toy_study.RATES, "langedit", 0.1)
    (sentence,) = verdicts(fabricated(xtreme=False))
    assert "is contradicted (AlphaEdit is ahead)" in sentence and "2 seeds" in sentence and "n = 72" in sentence
    assert "does not hold the +2.20" in sentence
    monkeypatch.setitem(toy_study.RATES, "langedit", 0.0001)
    monkeypatch.setitem(toy_study.RATES, "alphaedit", 0.05)
    (sentence,) = verdicts(fabricated(xtreme=False))
    assert "the advantage of langedit over AlphaEdit is shown" in sentence


def test_both_readings_of_the_mean_are_held_beside_the_claims(monkeypatch):
    monkeypatch.setitem(toy_study.RATES, "langedit", 0.1)
    monkeypatch.setitem(toy_study.RATES, "langedit-literal", 0.0001)
    both = fabricated(("memit", "alphaedit", *published.READINGS), xtreme=False)
    mean, letter, _ = verdicts(both)
    assert "advantage of langedit over AlphaEdit is contradicted" in mean
    assert "advantage of langedit-literal over AlphaEdit is" in letter and "contradicted" not in letter
    table = beside(both).set_index(["method", "metric"])
    for method in published.READINGS:
        d = both.compare("mzsre", "efficacy_tf", "final", method, "alphaedit")
        told = table.at[(method, EFFICACY), "difference"]
        assert told.removeprefix("+") == f"{100 * d.value:.2f} [{100 * d.low:.2f}, {100 * d.high:.2f}]"
        assert float(table.at[(method, EFFICACY), "value"]) == pytest.approx(
            100 * both.estimate("mzsre", method, "efficacy_tf", "final").value, abs=0.051
        )


def test_equal_methods_show_no_difference_and_say_whether_the_claim_fits(monkeypatch):
    one = toy_study.fabricate("langedit", "mzsre", xtreme=False)
    twin = toy_study.fabricate("alphaedit", "mzsre", xtreme=False)
    rng = np.random.default_rng(0)
    twin.rows = one.rows.assign(value=one.rows["value"] + rng.normal(0, 0.05, len(one.rows)))
    (sentence,) = verdicts(analysis.Study([one, twin]))
    assert "is not shown" in sentence and ("holds the +2.20" in sentence or "does not hold the +2.20" in sentence)


def test_without_langedit_or_without_alphaedit_nothing_is_claimed():
    without = fabricated(("memit", "alphaedit"), xtreme=False)
    assert beside(without).empty and verdicts(without) == []
    alone = fabricated(("langedit",), xtreme=False)
    assert beside(alone).empty and verdicts(alone) == []
    assert any("toy-270m" in why for why in reasons(without))


def test_reasons_hold_the_numbers_of_the_study(study):
    told = " ".join(reasons(study))
    tf, em = (100 * study.estimate("mzsre", "langedit", m, "final").value for m in ("efficacy_tf", "efficacy_em"))
    for part in ("270M", "6 batches of 6 in en, de, zh", f"{tf:.1f}", f"{em:.1f}", "900 sentences", "Write port"):
        assert part in told, part


def test_what_lambda_is_relative_to_is_told_of_every_method_that_has_one():
    found = fabricated(("langedit", "evoedit", "memit"), xtreme=False)
    settings = {m: hyperparameters("gemma-3-270m", m) for m in ("langedit", "evoedit", "memit")}
    for r in found.results:
        r.cell = r.cell.model_copy(update=dict(settings=settings[r.cell.method]))
    (told,) = (sentence for sentence in reasons(found) if sentence.startswith("λ"))
    assert told.endswith("of every batch's in langedit and of the first batch's in evoedit.")
    for r in found.results:
        r.cell = r.cell.model_copy(update=dict(settings=r.cell.settings.model_copy(update=dict(relative_ridge=False))))
    assert not any(sentence.startswith("λ") for sentence in reasons(analysis.Study(found.results)))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gemma-3-270m", "270M"), ("EleutherAI/gpt-j-6b", "6B"), ("meta-llama/Meta-Llama-3-8B-Instruct", "8B"),
        ("smollm2-1.7b", "1.7B"), ("gpt2", None), ("tiny-llama", None),
    ],
)  # fmt: skip
def test_a_size_is_read_from_a_name_only_where_it_stands_there(name, size):
    assert size_of(name) == size
