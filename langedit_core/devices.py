"""Where a model runs: one device, or several when no single one holds it.

A model on several devices is spread by Accelerate, which gives every module a hook that brings its inputs to it. Three
rules make the rest of the package indifferent to the map:

* token ids, row indices, values and what is measured are on `EditableModel.device`, where the embeddings are;
* what belongs to a layer (keys, C₀, null space, update) is where its matrix is, `EditableModel.weight(layer).device`;
* the base model and `EditableModel.logits` answer where they were asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec

import torch
from torch import nn

from langedit_core.errors import RefusedInput

VARIABLE = "LANGEDIT_DEVICE"
"""Environment variable: the device where none is named; `--device` sets it for the kernels of notebooks."""
KINDS = ("cpu", "cuda")
"""PyTorch's kinds of devices on which every step of an edit runs."""
SPREADS = ("balanced", "balanced_low_0", "sequential")
"""Accelerate's ways to fill all GPUs: evenly, evenly but for a first one that is spared, or one after the other."""


def usable_device(device: str | torch.device | Mapping[str, str | int]) -> str | dict[str, str | int]:
    """`device` as it is; for `auto` that of `LANGEDIT_DEVICE`, else the first GPU, the processor if there is none.

    Raises:
        ValueError: Not a device, or not one of this machine.
        RefusedInput: Several devices are asked for, and Accelerate is not installed.
    """
    if isinstance(device, torch.device):
        device = str(device)
    if device == "auto":
        device = os.environ.get(VARIABLE) or device
    if not isinstance(device, str) or device in SPREADS:
        if find_spec("accelerate") is None:
            raise RefusedInput(f"device {device!r} needs Accelerate: pip install accelerate, or take one device")
        if not isinstance(device, str):
            return {
                module: place if isinstance(place, int) else usable_device(place) for module, place in device.items()
            }
        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} spreads a model over GPUs, and PyTorch sees none; take auto or cpu")
        return device
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        expected = f"auto, cpu, a GPU such as cuda:0, or for several GPUs {', '.join(SPREADS)}"
        raise ValueError(f"device {device!r} is unknown; expected {expected}") from error
    check_kind(kind)
    if kind.type == "cuda" and (kind.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} GPUs; take auto or cpu"
        )
    return device


def check_kind(device: torch.device) -> None:
    """Refuse a kind of device on which some steps do not run (second moments of keys are float64, which MPS lacks).

    Raises:
        ValueError: Says which kinds there are.
    """
    if device.type not in KINDS:
        raise ValueError(f"device {str(device)!r} cannot be used for editing; take one of {', '.join(KINDS)}")


def spread(device: str | dict) -> bool:
    """Whether a usable device stands for several."""
    return not isinstance(device, str) or device in SPREADS


def settle(hf: nn.Module) -> None:
    """Make a model that was loaded with a device map ready to be edited.

    Raises:
        RefusedInput: Parts of it are kept in main memory or on disk and only lent to a GPU: an edit of such a part
            would be lost, and every pass of the search for values would move it anew.
    """
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    if lent := [name for name, parameter in hf.named_parameters() if parameter.is_meta]:
        raise RefusedInput(
            f"the GPUs do not hold the whole model: {len(lent)} of its tensors, {lent[0]} first, are left in main "
            "memory or on disk and cannot be edited there; use more GPUs, or dtype bfloat16"
        )
    skip = getattr(hf, "_skip_keys_device_placement", None)
    add_hook_to_module(hf.base_model, AlignDevicesHook(io_same_device=True, skip_keys=skip), append=True)
