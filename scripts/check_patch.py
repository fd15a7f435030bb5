"""Is a patch what it says, on a real model? Edits, and then compares bits and logits with and without PEFT.

    python scripts/check_patch.py --model gemma-3-270m

Needs the extra `peft`. Nothing is kept: files go to a temporary folder.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from peft import PeftModel

from langedit_core import EditableModel, load_data, load_model, prepare_editor
from langedit_core.adapters import save_model, to_peft
from langedit_core.languages import CORE
from langedit_core.patches import Patch
from langedit_core.tokens import encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--method", default="langedit")
    parser.add_argument("--facts", type=int, default=4, help="per language; each language is a batch")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check(options.model, options.method, options.facts, Path(folder))


def check(name: str, method: str, n: int, folder: Path) -> None:
    """Everything a patch promises, printed line by line."""
    batches = load_data("atlas", CORE).select(CORE, n)
    prompts = [fact.text for batch in batches for fact in batch] + ["The weather today is", "今天的天气"]
    model = load_model(name)
    base = {key: tensor.clone() for key, tensor in model.hf.state_dict().items()}
    editor = prepare_editor(model, method)
    patch = Patch.record(editor, method)
    for batch in batches:
        patch.edit(editor, batch)
    edited, wanted = {key: x.clone() for key, x in model.hf.state_dict().items()}, logits(model, model.hf, prompts)
    print(f"{name}, {method}: {len(patch)} batches, {len(patch.facts)} facts, layers {list(patch.layers)}")

    patch.save(folder / "patch.safetensors")
    save_model(model, folder / "edited")
    size = (folder / "patch.safetensors").stat().st_size
    whole = sum(path.stat().st_size for path in (folder / "edited").glob("*.safetensors"))
    print(f"patch {size / 1e6:.1f} MB, edited model {whole / 1e6:.0f} MB")
    loaded = Patch.load(folder / "patch.safetensors")
    loaded.base = patch.base

    holder = load_model(folder / "edited")
    print("saved edited model reloads bit for bit:", same(holder.hf.state_dict(), edited))
    for last in (1, len(patch) - 1):
        exact = loaded.remove(holder, last)
        print(f"last {last} removed, the matrices have their recorded hashes:", exact)
    print("all removed, every weight is the base model's bit for bit:", same(holder.hf.state_dict(), base))
    print("applied again, every weight is the edited model's bit for bit:", end=" ")
    loaded.apply(holder)
    print(same(holder.hf.state_dict(), edited))
    merged = loaded.merge()
    told = merged.header.batches[0].merged
    print("merged: rank", *told.rank.values(), "relative error", *(f"{error:.1e}" for error in told.error.values()))
    loaded.remove(holder, len(patch))
    merged.apply(holder)
    report("merged patch against the edited model", logits(holder, holder.hf, prompts), wanted)
    merged.remove(holder, 1)

    unedited = logits(holder, holder.hf, prompts)
    to_peft(loaded, folder / "adapter")
    adapted = PeftModel.from_pretrained(holder.hf, folder / "adapter").eval()
    report("base + PEFT adapter against the edited model", logits(holder, adapted, prompts), wanted)
    report("for scale: base against the edited model", unedited, wanted)


@torch.no_grad()
def logits(model: EditableModel, hf: torch.nn.Module, prompts: list[str]) -> list[torch.Tensor]:
    """Logits at every position of each prompt."""
    return [hf(torch.tensor([encode(model.tokenizer, p)], device=model.device)).logits[0].cpu() for p in prompts]


def report(what: str, one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    """Largest difference of any logit, beside the largest logit."""
    off = max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))
    largest = max(float(b.abs().max()) for b in other)
    agree = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(one, other, strict=True))
    print(f"{what}: largest logit difference {off:.1e} (logits up to {largest:.0f}, {len(one)} prompts), ", end="")
    print(f"same likeliest token at {agree} of {sum(len(b) for b in other)} positions")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


if __name__ == "__main__":
    main()
