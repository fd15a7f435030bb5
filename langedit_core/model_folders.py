"""A model from a stranger: what its folder, its configuration and its loaded weights must be before it is edited.

Transformers fills what a file lacks with random numbers and reads an index wherever it points; here both are refused.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from langedit_core.errors import RefusedInput

LARGEST_CONFIG = 10_000_000  # bytes; an index of a thousand shards has a few hundred thousand
MOST_LAYERS = 1_000
_INDEX = "model.safetensors.index.json"


def check_folder(folder: Path) -> None:
    """Look at the files of a model folder; nothing is loaded.

    Raises:
        ValueError: No configuration, or one that is no JSON object; an index that names no files of this folder.
        RefusedInput: Pickled weights only, weights that are whole numbers, or an adapter beside or instead of them.
    """
    if (folder / "adapter_config.json").is_file():
        raise RefusedInput(
            f"{folder} holds an adapter (adapter_config.json), which transformers would put onto the model and save in "
            "its place; merge it first: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)"
        )
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; expected a folder written by `save_pretrained`")
    _object(folder / "config.json")
    weights = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not weights:
        raise RefusedInput(f"{folder} has no .safetensors file; pickled weights are never loaded, convert them first")
    if (folder / _INDEX).is_file() and not (folder / "model.safetensors").is_file():
        named = _object(folder / _INDEX).get("weight_map")
        if not isinstance(named, dict) or not named:
            raise ValueError(f"{folder / _INDEX} has no weight_map; download or save the model again")
        there = {path.name for path in weights}
        if foreign := sorted({str(name) for name in named.values()} - there):
            raise ValueError(
                f"{folder / _INDEX} names {foreign[0]!r}, which is no .safetensors file of this folder; "
                "download or save the model again"
            )
    for path in weights:
        _check_types(path)


def _object(path: Path) -> dict:
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_CONFIG + 1)
        if len(data) > LARGEST_CONFIG:
            raise ValueError(f"more than {LARGEST_CONFIG:,} bytes")
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid JSON file ({error}); download or save the model again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object, so it names no model_type; download or save the model again")
    return found


def _check_types(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"a weight file of {path.parent} is not whole ({error}); download or save it again") from error
    if whole := [name for name, kind in types.items() if kind[0] in "IU" and name.endswith(".weight")]:
        raise RefusedInput(
            f"{path}: {whole[0]!r} is of type {types[whole[0]]}; quantised weights cannot be edited, take the "
            "model in float32, bfloat16 or float16"
        )


def check_config(config: object, name: str) -> None:
    """Refuse what would load as another model than the one that was saved, or not come to an end.

    Raises:
        RefusedInput: Quantised.
        ValueError: A number of layers no model has.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise ValueError(f"config.json of {name} says num_hidden_layers {layers!r}; expected 1 to {MOST_LAYERS}")
    if getattr(config, "quantization_config", None):
        raise RefusedInput(f"{name} is quantised (quantization_config); take the model in float32, bfloat16 or float16")


def check_loaded(hf: nn.Module, info: dict, layers: str, name: str) -> None:
    """Refuse a model of which some weights came from no file, or are no numbers.

    Args:
        hf: The model as Transformers made it.
        info: Its `output_loading_info`.
        layers: Module path of the layers.
        name: What an error calls it.

    Raises:
        ValueError: Weights missing, layers left over, NaN or infinity.
    """
    if missing := sorted(info["missing_keys"]):
        raise ValueError(
            f"the weight files of {name} lack {len(missing)} tensors that its config.json asks for, {missing[0]} among "
            "them; download or save the model again"
        )
    n_layers = len(hf.get_submodule(layers))
    numbers = re.compile(r"(?:^|\.)" + re.escape(layers.split(".", 1)[-1]) + r"\.(\d+)\.")
    beyond = [key for key in sorted(info["unexpected_keys"]) if (x := numbers.search(key)) and int(x[1]) >= n_layers]
    if beyond:
        raise ValueError(
            f"the weight files of {name} hold {beyond[0]}, but its config.json says {n_layers} layers; "
            "download or save the model again"
        )
    check_numbers(hf, name)


def check_numbers(hf: nn.Module, name: str) -> None:
    """Refuse weights that are no numbers.

    Raises:
        ValueError: NaN or infinity; names the first tensor.
    """
    for key, tensor in hf.named_parameters():
        # The smallest and the largest number pass NaN and infinity on, and need no memory beside the weights.
        if tensor.numel() and not all(bool(torch.isfinite(x)) for x in torch.aminmax(tensor.detach())):
            raise ValueError(f"{key} of {name} holds NaN or infinity; download or save the model again")
