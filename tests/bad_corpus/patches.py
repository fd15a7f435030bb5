"""Patch files: what a broken download, a mistaken program or a forger with the right checksum would leave."""

from __future__ import annotations

import copy
import functools
import json
import pickle
import tempfile
from pathlib import Path

import conftest
import safetensors.torch
import torch
from toy_patch import recorded

from bad_corpus import Case, World
from langedit_core.checking import check_file
from langedit_core.patches import Patch
from langedit_core.storage import digest, load_tensors, save_tensors


@functools.cache
def _whole() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "patch.safetensors")
        recorded()[0].save(path, with_base=True)
        return path.read_bytes()


def _loaded(content: bytes | None = None, change=lambda data: data):
    """`Patch.load` on the file after a change of its bytes; `langedit validate` says the same."""

    def act(world: World) -> object:
        path = world.write("patch.safetensors", change(_whole()) if content is None else content)
        return _load(path)

    return act


def _load(path) -> object:
    checked = check_file(path)
    try:
        return Patch.load(path)
    except ValueError as error:
        assert checked.problems and checked.problems[0].message in str(error)
        assert path.name in str(error) or "stored base" in str(error)
        raise


def _forged(header=None, tensors=None):
    """The file with another content and a checksum that fits it."""

    def act(world: World) -> object:
        path = world.write("patch.safetensors", _whole())
        found, metadata = load_tensors(path)
        content = json.loads(metadata["patch"])
        if header:
            header(content)
        if tensors:
            tensors(found)
        save_tensors(path, found, {"patch": json.dumps(content)})
        return _load(path)

    return act


def _metadata(metadata: dict | None):
    def act(world: World) -> object:
        path = world.folder / "patch.safetensors"
        safetensors.torch.save_file({"x": torch.ones(2)}, path, metadata)
        return _load(path)

    return act


def _sealed_header(text: str):
    def act(world: World) -> object:
        path = world.folder / "patch.safetensors"
        save_tensors(path, {"x": torch.ones(2)}, {"patch": text})
        return _load(path)

    return act


def _on(change, exact: bool = False):
    """The whole patch on a model that was changed."""

    def act(world: World) -> object:
        model = conftest.build_model("llama")
        model = change(model) or model
        return Patch.load(world.write("patch.safetensors", _whole())).apply(model, exact=exact)

    return act


def _removed(change, last: int):
    def act(world: World) -> object:
        patch, model = Patch.load(world.write("patch.safetensors", _whole())), conftest.build_model("llama")
        patch.apply(model)
        change(patch, model)
        return patch.remove(model, last)

    return act


def _nudged(layer: int):
    def change(model):
        with torch.no_grad():
            model.weight(layer)[0, 0] += 1e-3

    return change


def _headed(header: dict) -> bytes:
    """A safetensors file without tensors, whatever its header says."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def _put(name: str, value):
    return lambda tensors: tensors.update({name: value(tensors.get(name))})


def _with(value: float):
    def changed(x):
        x = x.clone()
        x[0, 0] = value
        return x

    return changed


def _fact(**changes):
    return lambda header: header["batches"][0]["facts"][0].update(changes)


BYTES = {
    "nothing": (_loaded(b""), "no whole safetensors file"),
    "the length alone": (_loaded(change=lambda data: data[:8]), "no whole safetensors file"),
    "half the length": (_loaded(change=lambda data: data[:5]), "no whole safetensors file"),
    "half the header": (_loaded(change=lambda data: data[:100]), "no whole safetensors file"),
    "half the tensors": (_loaded(change=lambda data: data[: len(data) // 2]), "no whole safetensors file"),
    "one byte short": (_loaded(change=lambda data: data[:-1]), "no whole safetensors file"),
    "one byte more": (_loaded(change=lambda data: data + b"x"), "no whole safetensors file"),
    "a flipped bit": (
        _loaded(change=lambda data: data[:-1000] + bytes([data[-1000] ^ 1]) + data[-999:]),
        "truncated or altered since it was written; nothing of it is used"),
    "a header of 2^63 bytes": (_loaded(b"\xff" * 7 + b"\x7f{}"), "no whole safetensors file"),
    "a header that is no JSON": (_loaded((2).to_bytes(8, "little") + b"[["), "no whole safetensors file"),
    "a header nested without end": (
        _loaded((100_000).to_bytes(8, "little") + b'{"a":' * 20_000), "no whole safetensors file"),
    "offsets beyond the file": (
        _loaded(_headed({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}})),
        "no whole safetensors file"),
    "a shape of 2^60 numbers": (
        _loaded(_headed({"x": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}) + bytes(4)),
        "no whole safetensors file"),
    "a pickle": (_loaded(pickle.dumps({"left": 1})), "no whole safetensors file"),
    "HTML": (_loaded(b"<!DOCTYPE html><html>404</html>"), "no whole safetensors file"),
    "no metadata": (_metadata(None), "is a safetensors file but no patch"),
    "metadata of something else": (_metadata({"format": "pt"}), "is a safetensors file but no patch"),
    "metadata that is a list": (_metadata({"langedit": "[]"}), "no patch"),
    "metadata that is no JSON": (_metadata({"langedit": "{"}), "no whole safetensors file"),
    "metadata that is a number": (_metadata({"langedit": '{"metadata": 3}'}), "no patch"),
    "metadata nested without end": (_metadata({"langedit": "[" * 100_000}), "no whole safetensors file|no patch"),
    "a patch without a checksum": (
        _metadata({"langedit": '{"metadata": {"patch": "{\\"format\\": \\"langedit-patch-1\\"}"}}'}),
        "truncated or altered"),
    "a patch header that is no JSON": (_sealed_header("{"), "has a header that is no JSON"),
    "a patch header that is a list": (_sealed_header("[]"), "this version reads 'langedit-patch-1'"),
    "a patch header of nothing": (_sealed_header("{}"), "has the format None, this version reads"),
    "a patch of a later version": (
        _sealed_header('{"format": "langedit-patch-9"}'), "has the format 'langedit-patch-9'"),
    "a patch header nested without end": (_sealed_header("[" * 100_000), "no JSON|this version reads"),
    "a patch header of a megabyte": (
        _sealed_header(json.dumps({"format": "langedit-patch-1", "model": "x" * 1_000_000})), "model"),
}  # fmt: skip

HEADERS = {
    "a path as model": (lambda h: h.update(model="../../etc/passwd"), "model"),
    "an absolute path as model": (lambda h: h.update(model="/etc"), "model"),
    "a model above": (lambda h: h.update(model=".."), "model"),
    "a line break in the model": (lambda h: h.update(model="a\nb"), "model"),
    "a method that colours the terminal": (lambda h: h.update(method="\x1b[31mred"), "method"),
    "a method as a path": (lambda h: h.update(method="../evil"), "method"),
    "no fingerprint": (lambda h: h.pop("fingerprint"), "fingerprint"),
    "a short fingerprint": (lambda h: h.update(fingerprint="abc"), "fingerprint"),
    "a fingerprint that is a number": (lambda h: h.update(fingerprint=3), "fingerprint"),
    "an unknown architecture": (lambda h: h.update(model_type="llamma"), "known: llama"),
    "an unknown type of number": (lambda h: h.update(dtype="int8"), "dtype"),
    "another width": (lambda h: h.update(d_in=49), r"base\.1 has shape \(32, 48\), expected \(32, 49\)"),
    "a width of text": (lambda h: h.update(d_in="wide"), "d_in"),
    "a negative width": (lambda h: h.update(d_out=-32), "d_out"),
    "another layer": (lambda h: h["settings"].update(layers=[1, 3]), r"base names layers \[1, 2\]"),
    "a layer given twice": (lambda h: h["settings"].update(layers=[1, 1]), "give each once"),
    "a negative layer": (lambda h: h["settings"].update(layers=[-1, 2]), "from 0 on"),
    "an unknown setting": (lambda h: h["settings"].update(power=3), "power"),
    "a ridge that is NaN": (lambda h: h["settings"].update(ridge=float("nan")), "ridge|JSON"),
    "settings that contradict": (lambda h: h["settings"].update(space="whole"), "covariance_weight > 0"),
    "prefixes that are numbers": (lambda h: h["contexts"].update(prefixes={"en": [3]}), "contexts.prefixes"),
    "a field too many": (lambda h: h.update(run="rm -rf /"), "run"),
    "a corpus that is no hash": (lambda h: h.update(corpus="../corpus.txt"), "corpus"),
    "a batch without tensors": (
        lambda h: h["batches"].append(copy.deepcopy(h["batches"][0])), r"batch 3, layer 1 has the tensors \[\]"),
    "a batch too few": (lambda h: h["batches"].pop(), "tensors that belong to no batch"),
    "a hash of another layer": (lambda h: h["batches"][0]["after"].update({"9": "0" * 64}), "batch 0 names layers"),
    "an altered hash of the base": (lambda h: h["base"].update({"1": "0" * 64}), "not those the patch was made from"),
    "batches that are no list": (lambda h: h.update(batches=3), "batches"),
    "merged but with keys": (
        lambda h: h["batches"][0].update(merged=dict(batches=2, rank={"1": 3}, error={"1": 0.0})),
        r"batch 0, layer 1 has the tensors \['keys', 'left', 'right'\]"),
    # hostile facts
    "a fact without a gap": (_fact(prompt="no gap"), "batches.0.facts"),
    "a fact with NUL": (_fact(target="a\x00b"), "control character"),
    "a fact that clears the screen": (_fact(id="\x1b[2J"), "control character"),
    "a fact turned around": (_fact(target="\u202etxt.exe"), r"control character U\+202E"),
    "a fact in no language": (_fact(lang="xx"), "unknown language"),
    "a fact of a hundred thousand letters": (_fact(subject="x" * 100_000), "100,000 characters"),
    "a fact with a field too many": (_fact(run="x"), "batches.0.facts.0.run"),
    "facts that are no list": (lambda h: h["batches"][0].update(facts={"a": 1}), "facts"),
}  # fmt: skip

TENSORS = {
    "NaN": (_put("0.1.left", _with(float("nan"))), r"0\.1\.left holds NaN or infinity"),
    "infinity": (_put("1.2.right", _with(float("inf"))), r"1\.2\.right holds NaN or infinity"),
    "NaN among the keys": (_put("2.1.keys", _with(float("nan"))), r"2\.1\.keys holds NaN or infinity"),
    "NaN in the base": (_put("base.1", _with(float("nan"))), r"base\.1 holds NaN or infinity"),
    "a factor turned": (_put("0.1.left", lambda x: x.T.contiguous()), r"0\.1\..* has shape"),
    "one column short": (_put("0.1.right", lambda x: x[:, 1:].contiguous()), r"0\.1\.right has shape \(48, 2\)"),
    "one axis": (_put("0.1.left", lambda x: x.reshape(-1).contiguous()), r"0\.1\..* has shape"),
    "three axes": (_put("0.1.left", lambda x: x[None].contiguous()), r"0\.1\..* has shape"),
    "no axis": (_put("0.1.left", lambda x: torch.tensor(1.0)), r"0\.1\..* has shape"),
    "whole numbers": (_put("0.1.left", lambda x: x.long()), "is torch.int64, expected torch.float32"),
    "half precision": (_put("0.1.left", lambda x: x.half()), "is torch.float16, expected torch.float32"),
    "double precision": (_put("0.1.keys", lambda x: x.double()), "is torch.float64, expected torch.float32"),
    "complex numbers": (_put("0.1.keys", lambda x: x.to(torch.complex64)), "is torch.complex64"),
    "truth values": (_put("0.1.keys", lambda x: x > 0), "is torch.bool"),
    "keys missing": (lambda t: t.pop("2.1.keys"), r"batch 2, layer 1 has the tensors \['left', 'right'\]"),
    "a layer missing": (
        lambda t: [t.pop(f"1.2.{p}") for p in ("left", "right", "keys")], r"batch 1, layer 2 has .* \[\]"),
    "factors and dense": (_put("0.1.dense", lambda _: torch.zeros(32, 48)), "batch 0, layer 1 has the tensors"),
    "a path as name": (_put("../../evil", lambda _: torch.zeros(2)), r"belong to no batch: '\.\./\.\./evil'"),
    "control characters in a name": (_put("a\x1b[31m\n", lambda _: torch.zeros(2)), r"belong to no batch: 'a\\x1b"),
    "a layer nobody edits": (_put("0.9.left", lambda _: torch.zeros(32, 3)), "belong to no batch"),
    "a negative batch": (_put("-1.1.left", lambda _: torch.zeros(32, 3)), "belong to no batch"),
    "another base": (_put("base.1", lambda x: x + 1), "not those the patch was made from"),
    "half a base": (lambda t: t.pop("base.1"), r"base matrices of layers \[2\]"),
}  # fmt: skip

MODELS = {
    "another model": (_on(lambda model: conftest.build_model("llama", seed=1)), "the patch belongs to tiny-llama"),
    "another architecture": (_on(lambda model: conftest.build_model("gpt2")), "the patch belongs to tiny-llama"),
    "a model with fewer layers": (
        _on(lambda model: conftest.build_model("llama", num_hidden_layers=2)), "the patch belongs to tiny-llama"),
    "a weight changed where it edits": (_on(_nudged(1)), "the patch belongs to tiny-llama .*fingerprint"),
    "a weight changed elsewhere": (_on(_nudged(3)), "the patch belongs to tiny-llama .*fingerprint"),
    "in another precision": (
        _on(lambda model: model.hf.bfloat16() and None), r"model given is tiny-llama \(llama, bfloat16"),
    "applied twice": (
        _on(lambda model: recorded()[0].apply(model) and None), "holds 3 of the patch's 3 batches already"),
    "more removed than it holds": (_removed(lambda patch, model: None, 4), "holds 3 batches of this patch; expected 1"),
    "removed from a model edited again": (
        _removed(lambda patch, model: _nudged(1)(model), 1), "does not hold this patch: its matrices"),
    "removed without the base": (
        _removed(lambda patch, model: setattr(patch, "base", None), 1), "needs the unedited matrices: call attach"),
}  # fmt: skip


def _folder(world: World) -> object:
    (world.folder / "patch.safetensors").mkdir()
    return Patch.load(world.folder / "patch.safetensors")


def _to(name: str):
    return lambda world: world.command(
        "patch", "remove", world.write("patch.safetensors", _whole()), "--last", 1, "--output-path", world.folder / name
    )


def _forged_base(world: World) -> object:
    """A patch whose header and stored base agree with each other, but not with the model."""
    path = world.write("patch.safetensors", _whole())
    tensors, metadata = load_tensors(path)
    tensors["base.1"] += 1
    header = json.loads(metadata["patch"])
    header["base"]["1"] = digest({"weight": tensors["base.1"]})
    save_tensors(path, tensors, {"patch": json.dumps(header)})
    patch, model = Patch.load(path), conftest.build_model("llama")
    recorded()[0].apply(model)
    return patch.remove(model, 3)


FILES = {
    "a folder": (_folder, "is a folder; expected a patch"),
    "nothing there": (lambda world: Patch.load(world.folder / "none.safetensors"), "expected a patch written by"),
    "a new patch over an old one": (_to("patch.safetensors"), "exists already and is not overwritten"),
    "a new patch without its suffix": (_to("patch.bin"), "a patch is a file called something.safetensors"),
    "a base that belongs to another model": (_forged_base, "the patch belongs to tiny-llama"),
    "more batches than there are, by command": (
        lambda world: world.command("patch", "remove", world.write("p.safetensors", _whole()), "--last", 9,
                                    "--output-path", world.folder / "q.safetensors"), "--last 9: the patch holds 3"),
    "another model, by command": (
        lambda world: world.command("patch", "apply", world.write("p.safetensors", _whole()), "--model", "atlas-lm",
                                    "--output-path", world.folder / "out"), "error: the patch belongs to tiny-llama"),
    "a damaged file, by command": (
        lambda world: world.command("patch", "info", world.write("p.safetensors", _whole()[:-3])),
        "error: .*p.safetensors is no whole safetensors file"),
}  # fmt: skip

CASES = [
    Case(kind="patches", name=name, act=act, says=says)
    for group in (BYTES, MODELS, FILES)
    for name, (act, says) in group.items()
]
CASES += [Case(kind="patches", name=name, act=_forged(header=h), says=says) for name, (h, says) in HEADERS.items()]
CASES += [Case(kind="patches", name=name, act=_forged(tensors=t), says=says) for name, (t, says) in TENSORS.items()]
