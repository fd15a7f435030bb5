"""Gives the XTREME prompts of this package to lm-eval, the field's standard tool, and compares what the model says.

Run: pip install -e ".[lm-eval]", then python scripts/check_lm_eval.py [--model NAME] [--limit N]. The same weights and
texts go through EleutherAI's HFLM, every prompt whole and alone, so whatever differs comes from our shared prefixes,
batches, joining of tokens or stop texts. gap = max over options |log p_ours − log p_lm-eval|. Writes tables into
reports/lm-eval; exits with 1 where the two disagree. Nothing is downloaded: lm-eval's own data sets are not used.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from langedit_core.datafiles import NotAvailable
from langedit_core.languages import CORE
from langedit_core.models import EditableModel, load_model
from langedit_core.shared_prefix import score_options
from langedit_core.tables import markdown_table, save_table
from langedit_core.tokens import continuation, encode
from langedit_core.xtreme import TASKS, XtremeSettings, evaluate
from langedit_core.xtreme_data import TaskData, load_task
from langedit_core.xtreme_metrics import corpus_value
from langedit_core.xtreme_prompts import SHOTS, Prompts, build_prompts

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-3
"""Largest gap in nats that float32 explains: the same sums in another order."""


@dataclass(frozen=True, kw_only=True)
class CrossCheck:
    """What both tools say.

    Attributes:
        sets: task, lang, records, same (share of records with one prediction or answer), gap (the largest), stopped
            (free answers that ended before the token limit); gap is NaN for free answers, stopped for choices.
        records: task, lang, record, ours, lm_eval (class or answer), same, and gap in nats.
        metrics: task, lang, metric, n, ours, lm_eval; each side scores its own answers with its own code. Only metrics
            that lm-eval defines for the task and the language: none for WikiANN.
    """

    sets: pd.DataFrame
    records: pd.DataFrame
    metrics: pd.DataFrame

    def disagreements(self, tolerance: float = TOLERANCE) -> list[str]:
        """One sentence per record and metric on which the two differ, by more than `tolerance` where it is a number."""
        found = []
        for row in self.records.itertuples():
            what = f"{row.task} in {row.lang}, {row.record}"
            if not row.same:
                found.append(f"{what}: ours {row.ours!r}, lm-eval {row.lm_eval!r}")
            if row.gap > tolerance:
                found.append(f"{what}: log likelihoods differ by {row.gap:.2g} nats")
        for row in self.metrics.itertuples():
            if abs(row.ours - row.lm_eval) > tolerance:
                found.append(f"{row.task} in {row.lang}, {row.metric}: ours {row.ours:.4f}, lm-eval {row.lm_eval:.4f}")
        return found


def wrapped(model: EditableModel, batch_size: int = 1):
    """lm-eval's HFLM around the model as it is now; weights are shared, not copied.

    Args:
        model: Any editable model.
        batch_size: Rows that lm-eval pads to one length; 1 pads nothing, which makes it the plainest reference.

    Raises:
        ImportError: lm-eval is not installed; names the extra.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError(
            f"the cross-check needs lm-eval, which cannot be imported ({error}); "
            "install the extra `lm-eval`: pip install -e '.[lm-eval]'"
        ) from error
    # A copy, since HFLM gives a tokenizer without padding token one.
    tokenizer = copy.deepcopy(model.tokenizer)
    return HFLM(pretrained=model.hf, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


def cross_check(
    model: EditableModel,
    tasks: Sequence[str] = TASKS,
    langs: Sequence[str] = CORE,
    limit: int | None = None,
    *,
    settings: XtremeSettings | None = None,
    batch_size: int = 1,
    progress: Callable[[str, str], None] | None = None,
) -> CrossCheck:
    """Evaluate twice: `langedit_core.xtreme.evaluate`, and lm-eval on the prompts that it built.

    Args:
        model: Any editable model.
        tasks, langs, limit, settings: As in `evaluate`; combinations without a file are left out.
        batch_size: Of lm-eval, see `wrapped`.
        progress: Called with task and language when their turn comes.

    Raises:
        ImportError: lm-eval is not installed.
        ValueError: Unknown task or language, or none at all.
        NotAvailable: There is no file for any of the combinations; says where one is looked for.
    """
    settings = (settings or XtremeSettings()).model_copy(update={"source": "files"})
    lm = wrapped(model, batch_size)
    found: dict[tuple[str, str], TaskData] = {}
    missing: list[NotAvailable] = []
    for task in tasks:
        for lang in langs:
            try:
                found[task, lang] = load_task(task, lang, limit, source="files")
            except NotAvailable as error:
                missing.append(error)
    if not found:
        raise next(iter(missing), ValueError("no task or no language was asked for"))
    sets, records, metrics = [], [], []
    for (task, lang), data in found.items():
        if progress:
            progress(task, lang)
        prompts = build_prompts(model.tokenizer, data, SHOTS[task], settings.prompts)
        report = evaluate(model, (task,), (lang,), limit, settings=settings)
        if prompts.options:
            scores = likelihoods(lm, prompts)
            theirs = [data.classes[int(np.argmax(score))] for score in scores]
            gaps = np.abs(np.array(_own_likelihoods(model, prompts, settings)) - scores).max(axis=1)
            gaps = np.nan_to_num(gaps, nan=np.inf)  # a likelihood that is no number agrees with nothing
            stopped = float("nan")
        else:
            theirs = [text.strip() for text in answers(lm, prompts, settings.answer_tokens[task])]
            gaps = np.full(len(theirs), np.nan)
            stopped = len(theirs) - int(report.sets["unfinished"].sum())
        same = [one == other for one, other in zip(report.answers["said"], theirs, strict=True)]
        said = report.answers.drop(columns="true").rename(columns={"said": "ours"})
        records.append(said.assign(lm_eval=theirs, same=same, gap=gaps))
        where = dict(task=task, lang=lang)
        sets.append(where | dict(records=len(same), same=np.mean(same), gap=gaps.max(), stopped=stopped))
        for metric, value in their_metrics(data, theirs).items():
            pair = dict(ours=corpus_value(metric, report.rows), lm_eval=value)
            metrics.append(where | dict(metric=metric, n=len(theirs)) | pair)
    columns = ["task", "lang", "metric", "n", "ours", "lm_eval"]
    return CrossCheck(
        sets=pd.DataFrame(sets),
        records=pd.concat(records, ignore_index=True),
        metrics=pd.DataFrame(metrics, columns=columns),
    )


def _own_likelihoods(model: EditableModel, prompts: Prompts, settings: XtremeSettings) -> list[list[float]]:
    """What `evaluate` chooses by, which its report does not hold."""
    options = [[continuation(model.tokenizer, text, word) for word in prompts.options] for text in prompts.texts]
    return score_options(
        model, [encode(model.tokenizer, text) for text in prompts.texts], options, cells=settings.cells
    )


def likelihoods(lm, prompts: Prompts) -> list[list[float]]:
    """lm-eval's total log likelihood of each option, per prompt."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(text, option), idx=i)
        for text in prompts.texts
        for i, option in enumerate(prompts.options)
    ]
    found = [score for score, _ in lm.loglikelihood(requests, disable_tqdm=True)]
    return np.array(found).reshape(len(prompts.texts), len(prompts.options)).tolist()


def answers(lm, prompts: Prompts, tokens: int) -> list[str]:
    """lm-eval's greedy answer to each prompt, before the stop text and at most `tokens` tokens long."""
    from lm_eval.api.instance import Instance

    how = dict(until=[prompts.stop], max_gen_toks=tokens, do_sample=False)
    requests = [Instance(request_type="generate_until", doc={}, arguments=(text, how), idx=0) for text in prompts.texts]
    return lm.generate_until(requests, disable_tqdm=True)


def their_metrics(data: TaskData, said: Sequence[str]) -> dict[str, float]:
    """What lm-eval's own code makes of answers, by our name of the metric; empty where it has no metric.

    Accuracy and F1 are its registered aggregations, MLQA its task's scorer (without scorer for fr and nl).
    """
    from lm_eval.api.registry import get_aggregation

    mean = get_aggregation("mean")
    if data.classes:
        pairs = [(record.answers[0], one) for record, one in zip(data.records, said, strict=True)]
        name = f"xnli{len(data.classes)}" if data.task == "xnli" else data.task
        found = {f"{name}_acc": mean([float(true == one) for true, one in pairs])}
        if data.task == "pawsx":
            first = data.classes[0]
            found["pawsx_f1_positive"] = get_aggregation("f1")([(true == first, one == first) for true, one in pairs])
        return {metric: float(value) for metric, value in found.items()}
    if data.task != "mlqa":
        return {}
    from lm_eval.tasks.mlqa import utils

    score = getattr(utils, f"process_results_{data.lang}", None)
    if score is None:
        return {}
    scored = [score({"answers": record.answers}, [one]) for record, one in zip(data.records, said, strict=True)]
    return {"mlqa_f1": mean([s["f1"] for s in scored]), "mlqa_em": mean([float(s["exact_match"]) for s in scored])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--langs", nargs="+", choices=CORE, default=list(CORE))
    parser.add_argument("--limit", type=int, default=8, help="records per task and language, the first ones")
    parser.add_argument("--batch-size", type=int, default=1, help="of lm-eval; 1 pads nothing")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="in nats, and for metrics")
    parser.add_argument("--output-path", type=Path, default=ROOT / "reports" / "lm-eval" / "tables")
    options = parser.parse_args()
    model = load_model(options.model)
    found = cross_check(
        model, options.tasks, options.langs, options.limit, batch_size=options.batch_size,
        progress=lambda task, lang: print(f"{task} in {lang}", file=sys.stderr),
    )  # fmt: skip
    for name, table in (("agreement", found.sets), ("metrics", found.metrics)):
        table.insert(0, "model", model.name)
        save_table(table, options.output_path, name)
        print(markdown_table(table))
    differences = found.disagreements(options.tolerance)
    print("\n".join(differences) or f"all {len(found.records)} records and {len(found.metrics)} metrics agree")
    return bool(differences)


if __name__ == "__main__":
    sys.exit(main())
