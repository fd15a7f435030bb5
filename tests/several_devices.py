"""Devices that are only names, for machines without a GPU: tensors carry one, and mixing them fails as on real GPUs.

All numbers stay in main memory. Every call that Python makes on tensors is seen, so what a test learns is which
tensors meet; how fast they meet, and what kernels do, only real devices tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

HOME = torch.device("cpu")
_PLACE = "_named_device"
_INDEXED = {"__getitem__", "__setitem__"}
_MOVING = {"copy_", "backward", "__get__", "__set__", "__delete__", "set_", "requires_grad_", "register_hook"}


class SeveralDevices(TorchFunctionMode):
    """Inside the block a tensor belongs to the device it was made on or moved to.

    ```python
    with SeveralDevices():
        a, b = torch.zeros(2, device="cuda:0"), torch.zeros(2, device="cuda:1")
        a + b                                                   # RuntimeError
    ```
    As with PyTorch, numbers without dimensions and indices may come from main memory, and `copy_` crosses devices.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if getattr(func, "__self__", None) is Tensor.device:
            return _device(args[0])
        if name in ("to", "cpu", "cuda", "type_as"):
            return _moved(name, args, kwargs)
        if name == "numpy" and _device(args[0]) != HOME:
            raise TypeError(f"can't convert {_device(args[0])} tensor to numpy; use Tensor.cpu() first")
        asked = kwargs.pop("device", None)
        if name.startswith("_foreach") or name == "split_with_sizes_copy":  # lists may span devices
            return func(*args, **kwargs)
        if name in _INDEXED:
            where = _index(name, args)
        elif name in _MOVING or (name == "grad" and func is torch.autograd.grad):
            where = None
        else:
            where = _common(name, (*args, *kwargs.values()))
        out = func(*args, **kwargs)
        if func is torch.autograd.grad:
            for one, source in zip(out, args[1] if len(args) > 1 else kwargs["inputs"], strict=True):
                _put(one, _device(source))
            return out
        if where is None:
            where = next((_device(x) for x in _tensors(args)), HOME)
        for one in _tensors([out]):
            _put(one, where if asked is None else torch.device(asked))
        return out


def scattered(hf: nn.Module, device_map: dict[str, str]) -> nn.Module:
    """Give every module its named device, with the hooks that Accelerate gives a model loaded with `device_map`."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for name, parameter in (*hf.named_parameters(), *hf.named_buffers()):
        owner = max((key for key in device_map if f"{name}.".startswith(f"{key}.")), key=len)
        _put(parameter, torch.device(device_map[owner]))
    for name, module in hf.named_modules():
        owner = max((key for key in device_map if f"{name}.".startswith(f"{key}.")), key=len, default=None)
        if owner is not None:
            skip = hf._skip_keys_device_placement
            add_hook_to_module(
                module, AlignDevicesHook(execution_device=device_map[owner], skip_keys=skip), append=True
            )
    hook = AlignDevicesHook(io_same_device=True, skip_keys=hf._skip_keys_device_placement)
    add_hook_to_module(hf, hook, append=True)
    hf.hf_device_map = dict(device_map)
    return hf


def _device(tensor: Tensor) -> torch.device:
    return tensor.__dict__.get(_PLACE, HOME)


def _put(tensor: object, device: torch.device) -> None:
    if isinstance(tensor, Tensor):
        tensor.__dict__[_PLACE] = device


def _tensors(items: Iterable) -> Iterator[Tensor]:
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)
        elif isinstance(item, dict):
            yield from _tensors(item.values())


def _common(name: str, items: Iterable) -> torch.device | None:
    tensors = list(_tensors(items))
    counted = {_device(x) for x in tensors if x.ndim or _device(x) != HOME}
    if len(counted) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {sorted(map(str, counted))} in {name}"
        )
    return next(iter(counted), None)


def _index(name: str, args: tuple) -> torch.device:
    where = _device(args[0])
    if wrong := {str(_device(x)) for x in _tensors(args[1:2])} - {str(where), str(HOME)}:
        raise RuntimeError(
            f"indices should be either on cpu or on the same device as the indexed tensor ({where}), not {wrong}"
        )
    if wrong := {str(_device(x)) for x in _tensors(args[2:]) if x.ndim} - {str(where)}:
        raise RuntimeError(f"Expected all tensors to be on the same device ({where}), but found {wrong} in {name}")
    return where


def _moved(name: str, args: tuple, kwargs: dict) -> Tensor:
    tensor, *rest = args
    target, kept = kwargs.pop("device", None), []
    if name == "cpu":
        target = HOME
    for one in (*rest, *([kwargs.pop("other")] if "other" in kwargs else [])):
        if isinstance(one, str | torch.device):
            target = one
        elif isinstance(one, Tensor):
            target, kept = _device(one), [*kept, one.dtype]
        else:
            kept.append(one)
    target = _device(tensor) if target is None else torch.device(target)
    out = tensor.to(*kept, **kwargs) if kept or kwargs else tensor
    if target != _device(tensor) and out is tensor:
        out = tensor.clone()
    _put(out, target)
    return out
