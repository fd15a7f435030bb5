"""A patch as others read it: a PEFT LoRA adapter, or a whole model folder with the edits in its weights.

LoRA adds (α/r) B A to W: with B = left, A = rightᵀ and α = r that is the sum of the updates. PEFT itself is not needed
to write one: an adapter is a JSON file and a safetensors file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch

from langedit_core.models import EditableModel, architecture_of, check_model
from langedit_core.patches import Patch
from langedit_core.storage import write_json, writing


def to_peft(patch: Patch, folder: str | Path, rank: int | None = None, *, replace: bool = False) -> dict[int, float]:
    """Write `adapter_config.json` and `adapter_model.safetensors` into a new folder.

    ```python
    base = AutoModelForCausalLM.from_pretrained(...)         # the unedited model
    edited = PeftModel.from_pretrained(base, "adapter")      # plain transformers and peft
    ```

    Args:
        patch: The edits; those of RECT need base matrices (`Patch.attach`).
        folder: Must not exist.
        rank: At most so many columns per layer; None keeps all above rounding.
        replace: It may exist, and is replaced once the new one is whole.

    Returns:
        Per layer ‖Δ − BA‖/‖Δ‖ (Frobenius), Δ the sum of all updates.

    Raises:
        FileExistsError: There is something already.
    """
    header, found = patch.header, patch.compacted(rank)
    architecture = architecture_of(header.model_type)
    tensors, ranks = {}, {}
    for layer, (left, right, _) in found.items():
        module = f"{architecture.layers}.{layer}.{architecture.write}"
        tensors[f"base_model.model.{module}.lora_A.weight"] = right.T.contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = left.contiguous()
        ranks[module] = left.shape[1]
    largest = max(ranks.values())
    others = {module: r for module, r in ranks.items() if r != largest}
    config = dict(
        peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=header.model, inference_mode=True,
        r=largest, lora_alpha=largest, lora_dropout=0.0, bias="none", use_rslora=False, use_dora=False,
        rank_pattern=others, alpha_pattern=others,  # α = r in every layer, so nothing is scaled
        target_modules=[architecture.write], layers_to_transform=sorted(found),
        layers_pattern=architecture.layers.rsplit(".", 1)[-1],
        fan_in_fan_out=architecture.transposed,  # GPT-2 keeps its matrices as d_in x d_out; A and B do not turn
    )  # fmt: skip
    about = dict(fingerprint=header.fingerprint, facts=str(len(patch.facts)), format="pt")
    with new_folder(folder, replace=replace) as made:
        write_json(made / "adapter_config.json", config)
        safetensors.torch.save_file(tensors, made / "adapter_model.safetensors", about)
    return {layer: error for layer, (_, _, error) in found.items()}


def save_model(model: EditableModel, folder: str | Path, *, replace: bool = False) -> None:
    """`save_pretrained` of model and tokenizer into a new folder, whole or not at all; it reloads to the same bits.

    Args:
        model: Any editable model.
        folder: Must not exist.
        replace: It may exist, and is replaced once the new one is whole.

    Raises:
        FileExistsError: There is something already.
        CannotWrite: Disk full, or no permission.
    """
    check_model(model)
    with new_folder(folder, replace=replace) as made:
        model.hf.save_pretrained(made)
        model.tokenizer.save_pretrained(made)


@contextlib.contextmanager
def new_folder(folder: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder that gets its name when everything in it is on the disk; what a kill leaves has another name.

    With `replace`, one that is there stays until then.

    Raises:
        FileExistsError: There is something of that name already.
        CannotWrite: Disk full, read-only, or no permission.
    """
    folder = Path(folder).absolute()
    if not replace:
        refuse_existing(folder)
    partial, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.{end}") for end in ("partial", "old"))
    try:
        with writing(folder):
            partial.mkdir(parents=True)
            yield partial
            for path in (*partial.rglob("*"), partial):
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            if replace and folder.exists():
                os.rename(folder, old)
            os.rename(partial, folder)
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        for path in (partial, old):
            shutil.rmtree(path, ignore_errors=True)


def refuse_existing(folder: Path) -> None:
    """Nothing is overwritten.

    Raises:
        FileExistsError: There is something of that name already.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already and is not overwritten; give another path or move it")
