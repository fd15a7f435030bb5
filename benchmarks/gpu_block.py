"""Edit a randomly initialised model of a published shape, and time the phases: no weights, no tokenizer, no network.

    python benchmarks/gpu_block.py --shape llama3-8b --device cuda:0           # batches of 100, float32: about 70 GB
    python benchmarks/gpu_block.py --shape llama3-70b-block --device cuda:0    # one edited layer of 28,672 columns
    python benchmarks/gpu_block.py --shape tiny --facts 3 --device cpu         # what the tests run

What costs time does not depend on what the weights say, except the number of steps: all allowed ones are taken
(`--steps`), where trained models need fewer. C₀ is a random Gram matrix with a decaying spectrum. On a GPU every kernel
is waited for, so that seconds belong to the phase they were spent in.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("CUDA_LAUNCH_BLOCKING", "1")  # read when CUDA starts
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from machine import machine
from transformers import AutoConfig, AutoModelForCausalLM

from langedit_core.contexts import Contexts
from langedit_core.covariance import KeyCovariance
from langedit_core.editors import BatchReport, Editor, settings_for
from langedit_core.estimate import PUBLISHED
from langedit_core.models import EditableModel, architecture_of
from langedit_core.nullspace import Threshold
from langedit_core.storage import write_json
from langedit_core.tokens import Row
from langedit_core.values import ValueRequest, ValueSettings

_LLAMA3 = PUBLISHED["meta-llama/Meta-Llama-3-8B-Instruct"]
SHAPES: dict[str, tuple[dict, tuple[int, ...]]] = {  # configuration, edited layers
    "llama3-8b": (_LLAMA3, (4, 5, 6, 7, 8)),
    # Two of 80 layers: the lower one is edited, and values are found through the other.
    "llama3-70b-block": (
        _LLAMA3 | dict(hidden_size=8192, intermediate_size=28672, num_hidden_layers=2, num_attention_heads=64), (0,),
    ),
    "tiny": (
        _LLAMA3 | dict(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
                       num_key_value_heads=2), (1, 2),
    ),
}  # fmt: skip
PREFIX, SUBJECT, TAIL, TARGET = 10, 4, 6, 3  # tokens of a fact's parts


def build(shape: str, device: str, seed: int = 0) -> tuple[EditableModel, tuple[int, ...]]:
    """A random float32 model on `device`, and the layers to edit."""
    options, layers = SHAPES[shape]
    architecture = architecture_of(options["model_type"])
    torch.manual_seed(seed)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**options), attn_implementation=architecture.attention_kernel, dtype=torch.float32
        )
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)  # rows are made of numbers, nothing is encoded
    return EditableModel(hf=hf, tokenizer=tokenizer, architecture=architecture, name=shape), layers


def requests(vocabulary: int, facts: int, prefixes: int, seed: int) -> list[ValueRequest]:
    """Random facts: a bare prompt and `prefixes` longer ones, subject, tail and target."""
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, vocabulary, (count,), generator=generator).tolist())

    found = []
    for _ in range(facts):
        subject, tail, target = ids(SUBJECT), ids(TAIL), ids(TARGET)
        starts = [ids(1), *(ids(PREFIX) for _ in range(prefixes))]
        rows = tuple(
            Row(ids=s + subject + tail + target[:-1], lookup=len(s) + SUBJECT - 1) for s in starts
        )  # fmt: skip
        found.append(ValueRequest(contexts=rows, target=target, kl=Row(ids=ids(1) + subject + ids(2), lookup=SUBJECT)))
    return found


def covariance(d: int, device: str, seed: int = 0) -> KeyCovariance:
    """A Gram matrix of 2d random keys, whose scale falls over the dimensions as 1/i."""
    generator = torch.Generator(device).manual_seed(seed)
    found = KeyCovariance.empty(d, device)
    scale = 1 / torch.arange(1, d + 1, device=device, dtype=torch.float64)[:, None]
    for start in range(0, 2 * d, 4096):
        keys = torch.randn(d, min(4096, 2 * d - start), generator=generator, device=device, dtype=torch.float64)
        found.update(scale * keys)
    return found


def run(
    shape: str, methods: Sequence[str], *, facts: int, batches: int, device: str, steps: int = 25, microbatch: int = 8
) -> dict:
    """Seconds per phase of every batch and peak memory, per method: rows, and what was run."""
    cuda, rows = device.startswith("cuda"), []
    for method in methods:
        model, layers = build(shape, device)
        settings = settings_for(
            method, layers=layers, spread="residual", threshold=Threshold(kind="fraction", value=0.8),
            values=ValueSettings.published(steps=steps, stop=1e-9), microbatch=microbatch, ridge=0.1,
        )  # fmt: skip
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        start = time.perf_counter()
        covariances = {layer: covariance(model.d_ff, device, layer) for layer in layers}
        editor = Editor(model, settings, covariances, Contexts(prefixes={}))
        setup = time.perf_counter() - start
        for t in range(batches):
            given = requests(model.hf.config.vocab_size, facts, prefixes=5, seed=t)
            report = BatchReport(step=t, facts=[f"{t}/{i}" for i in range(facts)])
            start = time.perf_counter()
            editor.write(given, report)
            seconds = {name: round(value, 4) for name, value in report.seconds.items()}
            rows.append(
                dict(shape=shape, method=method, step=t, facts=facts, layers=len(layers), d_ff=model.d_ff, steps=steps)
                | dict(seconds=seconds, total=round(time.perf_counter() - start, 4), setup=round(setup, 4))
                | dict(peak_bytes=torch.cuda.max_memory_allocated(device) if cuda else None)
            )
            print(f"{shape} {method} batch {t}: {rows[-1]['total']:.2f} s {seconds}", flush=True)
        del editor, model, covariances
        if cuda:
            torch.cuda.empty_cache()
    about = machine() | dict(device=torch.cuda.get_device_name(device) if cuda else device)
    return dict(machine=about, rows=rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama3-8b")
    parser.add_argument("--methods", nargs="+", default=["alphaedit", "langedit"])
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--batches", type=int, default=3, help="the first one decomposes nothing anew")
    parser.add_argument("--steps", type=int, default=25, help="of Adam, per fact")
    parser.add_argument("--microbatch", type=int, default=8, help="facts whose values are found together")
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="default: gpu_SHAPE.json beside this script")
    options = parser.parse_args()
    found = run(
        options.shape, options.methods, facts=options.facts, batches=options.batches, device=options.device,
        steps=options.steps, microbatch=options.microbatch,
    )  # fmt: skip
    write_json(options.output or Path(__file__).resolve().parent / f"gpu_{options.shape}.json", found)


if __name__ == "__main__":
    main()
