"""A small cell of the study, and a program that runs it while killing itself; used by test_study.py.

python toy_study.py ROOT moments SEED      kill the run after random delays, then let it end
python toy_study.py ROOT writes            kill it before and after every file it puts in place, then let it end
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import toy

from langedit_core import storage, study
from langedit_core.editors import settings_for
from langedit_core.models import EditableModel
from langedit_core.nullspace import Threshold
from langedit_core.study import Cell
from langedit_core.values import ValueSettings

DATA = "toy"


def model() -> EditableModel:
    return conftest.build_model("llama")


def cell(method: str = "evoedit", **changes) -> Cell:
    options = dict(
        layers=toy.layers_of(method),
        values=ValueSettings(steps=3),
        threshold=Threshold(kind="fraction", value=0.8),
    )
    if toy.pays_for_the_covariance(method):
        options["covariance_weight"] = 0.1
    fields = dict(
        model="tiny-llama", data=DATA, method=method, settings=settings_for(method, on=options), langs=("en", "de"),
        rounds=2, batch=2, prefixes=1, prefix_tokens=4,
    )  # fmt: skip
    return Cell(**(fields | changes))


RATES = {  # share of its efficacy that an edit loses per later batch, in the fabricated studies
    "ft": 0.30, "rome": 0.12, "memit": 0.04, "memit-seq": 0.02, "rect": 0.05, "prune": 0.06, "alphaedit": 0.003,
    "langedit": 0.010, "langedit-literal": 0.009, "langedit-released": 0.008, "evoedit": 0.003,
    "alphaedit-sphere": 0.004,
}  # fmt: skip
TASKS = {"xnli": "xnli2_f1", "pawsx": "pawsx_f1", "mlqa": "mlqa_f1", "wikiann": "wikiann_f1"}


def fabricate(method: str, data: str = "atlas", seed: int = 0, xtreme: bool = True, **changes) -> study.CellResult:
    """A finished cell of random numbers: efficacy decays by RATES, faster under batches of another language."""
    fields = dict(langs=("en", "de", "zh"), rounds=2, batch=6)
    of = Cell(
        model="toy-270m", data=data, method=method, seed=seed,
        settings=settings_for(method, layers=(1,)), **(fields | changes),
    )  # fmt: skip
    rng, rate, names = np.random.default_rng([seed, *map(ord, method + data)]), RATES[method], of.langs
    language = [names[t % len(names)] for t in range(of.batches)]
    facts = [(f"{data}/{seed}/{t}/{i}", language[t], t) for t in range(of.batches) for i in range(of.batch)]
    rows, retention = [], []
    for fact, lang, edited in facts:
        value, soon = rng.uniform(0.8, 1.0), None
        for step in range(edited, of.batches):
            if step > edited:
                loss = rate * (0.6 if language[step] == lang else 1.0)
                value = float(np.clip(value * (1 - loss) + rng.normal(0, 0.01), 0, 1))
            soon = value if soon is None else soon
            if step == edited or fact.endswith(("0", "1", "2")):  # a fixed sample is asked again
                retention.append(dict(fact=fact, lang=lang, edited=edited, step=step, tf=value))
        for when, level in (("before", 0.1), ("immediate", soon), ("final", value)):
            measures = dict(efficacy_tf=level, efficacy_em=float(level > 0.7), generality_tf=0.8 * level)
            measures |= dict(specificity_same=1.0 if when == "before" else 0.9 - rate, portability_tf=0.3 * level)
            rows += [dict(fact=fact, lang=lang, kind="-", metric=m, when=when, value=v) for m, v in measures.items()]
    scales = {"drift_kl": 1.0, "drift_ppl": 40.0}
    drift = [
        dict(fact=f"p{i}", lang=lang, metric=m, step=step, value=scales[m] * (1 + step) * (rate + rng.uniform(0, 0.01)))
        for step in range(of.batches)
        for i, lang in enumerate(names)
        for m in scales
    ]
    last = [{k: v for k, v in row.items() if k != "step"} for row in drift if row["step"] == of.batches - 1]
    rows += [row | dict(kind="-", when="final") for row in last]
    numbers = dict(layer=1, facts=of.batch, steps=5.0, converged=1.0, exhausted=0, rank=50, capacity=0.5, written=0.9)
    batches = [
        dict(step=t, lang=language[t], relative_update=rate, relative_total=0.1 + rate * (t + 1)) | numbers
        for t in range(of.batches)
    ]
    phases = dict(values=6.0, keys=0.2, projection=rate, solve=0.1, write=0.1, measuring=3.0)
    seconds = [dict(step=t, phase=p, seconds=s, processor=s) for t in range(of.batches) for p, s in phases.items()]
    result = study.CellResult.__new__(study.CellResult)  # nothing is read from disk
    vars(result).update(
        cell=of, rows=pd.DataFrame(rows), retention=pd.DataFrame(retention), drift=pd.DataFrame(drift),
        batches=pd.DataFrame(batches), seconds=pd.DataFrame(seconds), dropped={}, provenance=dict(corpus_sentences=900),
        environment=dict(device="cpu", machine="x86_64", threads=1, versions=dict(torch="2.13.0")),
        xtreme=xtreme_summary(names, rate, rng) if xtreme else pd.DataFrame(columns=XTREME_COLUMNS),
        answers=xtreme_answers({}, "final"),
    )  # fmt: skip
    return result


XTREME_COLUMNS = ["task", "lang", "metric", "when", "value", "n", "low", "high", "seconds"]


def xtreme_summary(langs, rate: float, rng: np.random.Generator) -> pd.DataFrame:
    """What a cell holds of XTREME: XNLI has no Dutch, MLQA neither Dutch nor French, everything loses with `rate`."""
    lacking, nothing, rows = {"xnli": ["nl"], "mlqa": ["nl", "fr"]}, float("nan"), []
    for when, kept in (("before", 1.0), ("final", 1.0 - rate)):
        per_lang = {lang: [] for lang in langs}
        for i, (task, metric) in enumerate(TASKS.items()):
            found = []
            for lang in langs:
                row = dict(task=task, lang=lang, metric=metric, when=when)
                if lang in lacking.get(task, ()):
                    rows.append(row | dict(value=nothing, n=0, low=nothing, high=nothing, seconds=nothing))
                    continue
                value = kept * (0.4 + 0.05 * i) + rng.uniform(-0.01, 0.01)
                rows.append(row | dict(value=value, n=50, low=value - 0.05, high=value + 0.05, seconds=20.0))
                rows.append(row | dict(metric=f"{task}_other", value=0.0, n=50, low=0.0, high=0.0, seconds=20.0))
                found.append(value)
                per_lang[lang].append(value)
            mean = np.mean(found)
            whole = dict(task=task, lang="all", metric=metric, when=when, value=mean, n=50 * len(found))
            rows.append(whole | dict(low=mean - 0.03, high=mean + 0.03, seconds=nothing))
        per_lang["all"] = [value for values in per_lang.values() for value in values]
        for lang, values in per_lang.items():
            mean, n = np.mean(values), 50 * len(values)
            row = dict(task="xtreme", lang=lang, metric="xtreme_f1", when=when, value=mean, n=n)
            rows.append(row | dict(low=mean - 0.02, high=mean + 0.02, seconds=nothing))
    return pd.DataFrame(rows, columns=XTREME_COLUMNS)


def xtreme_answers(right: dict[str, int], when: str, n: int = 20) -> pd.DataFrame:
    """Answers to n records per task and language, of which the first `right[lang]` are right, in every task alike."""
    rows = []
    for lang, k in right.items():
        for i in range(n):
            gold, good = i % 2, i < k
            said = gold if good else 1 - gold
            measures = dict(xnli2_gold=gold, xnli2_predicted=said, xnli2_acc=good)
            measures |= dict(pawsx_gold=gold, pawsx_predicted=said, pawsx_acc=good)
            measures |= dict(mlqa_f1=good, mlqa_em=good, mlqa_f1_released=good)
            measures |= dict(wikiann_correct=good, wikiann_predicted=1, wikiann_gold=1)
            measures |= dict(wikiann_tokens_right=good, wikiann_tokens=1)
            key = dict(when=when, lang=lang, record=f"r{i:02d}")
            rows += [
                key | dict(task=m.partition("_")[0].rstrip("2"), metric=m, value=float(v)) for m, v in measures.items()
            ]
    return pd.DataFrame(rows, columns=["when", "task", "lang", "record", "metric", "value"])


def load(langs):
    return toy.fact_set(tuple(langs))


def sealed(root: Path, of: Cell) -> dict[str, str]:
    """Digests of all files whose bytes are the result."""
    folder = study.results_folder(of, root)
    return {name: storage.file_digest(folder / name) for name in (*study.sealed_names(of), "done.json")}


def _child(root: Path, unedited: EditableModel, of: Cell, prepare=lambda: None) -> int:
    """Fork, so that no run pays for the imports."""
    pid = os.fork()
    if pid == 0:
        prepare()
        study.run_cells([of], unedited, root, quiet=True)
        os._exit(0)
    return pid


def _ended(pid: int) -> bool:
    """Wait for a child: True if it ran to its end, False if it was killed; anything else is an error."""
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status != 0:
        sys.exit(f"the run failed with status {status}")
    return True


def _killing_at_the_first_new_file(after: bool) -> None:
    """From now on, the process kills itself just before, or just after, it puts a new file in place."""
    replace = os.replace

    def put(source, target):
        new = not os.path.exists(target)
        if new and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if new:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = put


def main(root: Path, how: str, seed: str = "0") -> None:
    study.LOADERS[DATA] = load
    unedited, of, kills = model(), cell(rounds=1) if how == "writes" else cell(), 0
    if how == "writes":
        for after in itertools.cycle((False, True)):  # with every second run there is one file more
            if _ended(_child(root, unedited, of, lambda after=after: _killing_at_the_first_new_file(after))):
                break
            kills += 1
    else:
        start, chance = time.monotonic(), random.Random(int(seed))
        _ended(_child(root.with_name(root.name + "-timing"), unedited, of))
        whole = time.monotonic() - start
        for _ in range(8):
            pid = _child(root, unedited, of)
            time.sleep(whole * chance.uniform(0.05, 0.5))
            os.kill(pid, signal.SIGKILL)
            if _ended(pid):
                break
            kills += 1
        _ended(_child(root, unedited, of))
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
