"""Model folders: damaged, incomplete, of another kind than they say, or with something in them that wants to run."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import conftest
import safetensors.torch
import torch

from bad_corpus import Case, World
from langedit_core.models import load_model

MATRIX = "model.layers.1.mlp.down_proj.weight"


class Bomb:
    """Leaves a trace if anybody unpickles it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@functools.cache
def _whole() -> tempfile.TemporaryDirectory:
    folder, model = tempfile.TemporaryDirectory(prefix="model-"), conftest.build_model("llama")
    model.hf.save_pretrained(folder.name)
    model.tokenizer.save_pretrained(folder.name)
    return folder


def _loaded(change: Callable[[Path], object]):
    """A whole folder after a change; nothing in it may have run, whatever comes of it."""

    def act(world: World) -> object:
        folder = world.folder / "model"
        shutil.copytree(_whole().name, folder)
        change(folder)
        try:
            return load_model(folder, device="cpu")
        finally:
            assert not (world.folder / "trace").exists(), "something in the folder was run"

    return act


def _config(**changes):
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))

    return change


def _tensors(change: Callable[[dict], object]):
    def act(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file(tensors, path, {"format": "pt"})

    return act


def _file(name: str, content: bytes | str | object):
    if isinstance(content, str):
        content = content.encode()
    return lambda folder: (folder / name).write_bytes(
        content if isinstance(content, bytes) else json.dumps(content).encode()
    )


def _both(*changes: Callable[[Path], object]):
    return lambda folder: [change(folder) for change in changes]


def _gone(*names: str):
    return lambda folder: [(folder / name).unlink() for name in names]


def _cut(name: str, keep: int):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def _pickled(name: str):
    return lambda folder: (folder / name).write_bytes(pickle.dumps(Bomb(folder.parent / "trace")))


def _own_code(folder: Path) -> None:
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(folder.parent / 'trace')!r}).touch()\nraise SystemExit('it ran')\n"
    )


def _index(**weights: str):
    return _both(
        lambda folder: (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors"),
        _file("model.safetensors.index.json", {"metadata": {}, "weight_map": weights}),
    )


AUTO = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
WHOLE = "download or save the model again"
FOLDERS = {
    # configuration
    "no configuration": (_gone("config.json"), "has no config.json; expected a folder written by"),
    "an empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()], "has no config.json; expected a folder"),
    "a configuration that is empty": (_file("config.json", ""), f"config.json is not a valid JSON file .*{WHOLE}"),
    "a configuration that is cut": (_cut("config.json", 50), "config.json is not a valid JSON file"),
    "a configuration that is HTML": (_file("config.json", "<html>"), "config.json is not a valid JSON file"),
    "a configuration in UTF-16": (_file("config.json", b"\xff\xfe{"), "config.json is not a valid JSON file"),
    "a configuration that is a list": (_file("config.json", []), "holds no JSON object, so it names no model_type"),
    "a configuration nested without end": (_file("config.json", "[" * 100_000), "config.json is not a valid JSON file"),
    "a configuration of ten megabytes": (_file("config.json", b" " * 10_000_001), "more than 10,000,000 bytes"),
    "a configuration that is a folder": (
        _both(_gone("config.json"), lambda folder: (folder / "config.json").mkdir()), "has no config.json"),
    "no architecture": (_config(model_type=None), "config.json of .* cannot be used .*model_type"),
    "an architecture nobody knows": (_config(model_type="own_architecture"), "own_architecture"),
    "an architecture as a path": (_config(model_type="../llama"), r"\.\./llama"),
    "an architecture that is not edited": (
        _config(model_type="opt"), "unknown architecture 'opt'; known: .*To add one"),
    "an architecture that is a number": (_config(model_type=3), "cannot be used"),
    "more layers than weights": (_config(num_hidden_layers=6), "lack 18 tensors that its config.json asks for"),
    "fewer layers than weights": (_config(num_hidden_layers=2), "hold model.layers.2.* but its config.json says 2"),
    "no layers": (_config(num_hidden_layers=0), "says num_hidden_layers 0; expected 1 to 1000"),
    "fewer layers than none": (_config(num_hidden_layers=-3), "says num_hidden_layers -3; expected 1 to 1000"),
    "a billion layers": (_config(num_hidden_layers=10**9), "says num_hidden_layers 1000000000; expected 1 to 1000"),
    "layers in words": (_config(num_hidden_layers="four"), "num_hidden_layers' expected int, got str"),
    "another width": (_config(hidden_size=48), f"do not fit its config.json .shapes differ.*{WHOLE}"),
    "no width": (_config(hidden_size=0), "do not fit its config.json|cannot be used"),
    "another vocabulary": (_config(vocab_size=1000), "do not fit its config.json .shapes differ"),
    "heads that do not divide the width": (_config(num_attention_heads=5), "not a multiple of the number of attention"),
    "an activation nobody knows": (_config(hidden_act="evil"), "cannot be loaded, .*evil"),
    "a type of number nobody knows": (_config(dtype="evil"), "cannot be used .*evil"),
    "tied weights, perhaps": (_config(tie_word_embeddings="maybe"), "cannot be used .*tie_word_embeddings"),
    "a token that is a text": (_config(eos_token_id="x"), "cannot be used .*eos_token_id"),
    "quantised": (_config(quantization_config={"quant_method": "evil"}), r"is quantised \(quantization_config\)"),
    # code
    "own code": (_both(_config(model_type="own", auto_map=AUTO), _own_code), "wants to run its own code"),
    "own code without an architecture": (
        _both(_config(model_type=None, auto_map=AUTO), _own_code), "wants to run its own code"),
    "a tokenizer of its own code": (
        _both(_own_code, _file("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {
            "AutoTokenizer": ["own.Own", None]}})), "wants to run its own code"),
    # weights
    "no weights": (_gone("model.safetensors"), r"has no \.safetensors file"),
    "pickled weights only": (
        _both(_gone("model.safetensors"), _pickled("pytorch_model.bin")), "pickled weights are never"),
    "pickled weights of an old name": (
        _both(_gone("model.safetensors"), _pickled("model.pt")), "pickled weights are never"),
    "a pickle that is called safetensors": (_pickled("model.safetensors"), "is not whole"),
    "a folder that is called safetensors": (
        _both(_gone("model.safetensors"), lambda folder: (folder / "model.safetensors").mkdir()), "pickled weights"),
    "weights that are cut": (_cut("model.safetensors", -50), "a weight file of .*model is not whole"),
    "weights that are empty": (_file("model.safetensors", ""), "a weight file of .*model is not whole"),
    "weights that are HTML": (_file("model.safetensors", "<html>404</html>"), "a weight file of .*model is not whole"),
    "weights with a header without end": (_file("model.safetensors", b"\xff" * 8 + b"{}"), "is not whole"),
    "a matrix missing": (_tensors(lambda t: t.pop(MATRIX)), f"lack 1 tensors .*{MATRIX} among them"),
    "all matrices missing": (_tensors(lambda t: t.clear()), "lack 39 tensors"),
    "a matrix under another name": (_tensors(lambda t: t.update({"x": t.pop(MATRIX)})), f"lack 1 tensors .*{MATRIX}"),
    "a matrix turned": (_tensors(lambda t: t.update({MATRIX: t[MATRIX].T.contiguous()})), "shapes differ"),
    "a matrix with NaN": (_tensors(lambda t: t[MATRIX].fill_(float("nan"))), f"{MATRIX} of .* holds NaN or infinity"),
    "a matrix with one infinity": (
        _tensors(lambda t: t[MATRIX][3, 4].fill_(float("-inf"))), f"{MATRIX} of .* holds NaN or infinity"),
    "a matrix of whole numbers": (
        _tensors(lambda t: t.update({MATRIX: t[MATRIX].long()})), "is of type I64; quantised"),
    "a matrix of bytes": (
        _tensors(lambda t: t.update({MATRIX: t[MATRIX].to(torch.int8)})), "is of type I8; quantised weights cannot"),
    # the list of shards
    "shards elsewhere": (
        _index(**{MATRIX: "../../evil.safetensors"}), r"names '\.\./\.\./evil.safetensors', which is no"),
    "shards at an absolute path": (_index(**{MATRIX: "/etc/passwd"}), "names '/etc/passwd', which is no"),
    "a shard that is missing": (
        _index(**{MATRIX: "model-00002-of-00002.safetensors"}), "which is no .safetensors file"),
    "a pickled shard": (
        _both(_index(**{MATRIX: "own.bin"}), _pickled("own.bin")), "names 'own.bin', which is no .safetensors"),
    "no shards": (_index(), "has no weight_map"),
    "a list of shards that is cut": (
        _both(_index(a="b"), _cut("model.safetensors.index.json", 9)), "index.json is not a valid JSON file"),
    # tokenizer
    "no tokenizer": (_gone("tokenizer.json", "tokenizer_config.json"), "the tokenizer of .* cannot be read, expected"),
    "a tokenizer without its words": (
        _gone("tokenizer.json"), "the tokenizer of .* cannot be read, expected tokenizer"),
    "a tokenizer that is empty": (_file("tokenizer.json", {}), "the tokenizer of .* cannot be read"),
    "a tokenizer that is HTML": (_file("tokenizer.json", "<html>"), "the tokenizer of .* cannot be read"),
    "a tokenizer that is cut": (_cut("tokenizer.json", 2000), "the tokenizer of .* cannot be read"),
    "tokenizer settings that are a list": (_file("tokenizer_config.json", []), "the tokenizer of .* cannot be read"),
}  # fmt: skip
CASES = [Case(kind="models", name=name, act=_loaded(change), says=says) for name, (change, says) in FOLDERS.items()]

NAMES = {
    "a name nobody knows": ("gemma-3-27m", "unknown model .*'gemma-3-27m'; known: gemma-3-270m"),
    "a name above": ("../gemma", "Repo id must use alphanumeric chars"),
    "a path that is not there": ("/no/such/folder", "not a directory, not an owner/name hub ID"),
    "a name with too many parts": ("a/b/c", "not a directory, not an owner/name hub ID"),
    "an empty name": ("", "unknown model"),
    "a name with NUL": ("google/gemma\x00", r"unknown model .*'google/gemma\\x00'"),
    "a name that colours the terminal": ("\x1b[31mred", r"unknown model .*\\x1b\[31mred"),
}
CASES += [
    Case(kind="models", name=name, act=lambda world, given=given: load_model(given, device="cpu"), says=says)
    for name, (given, says) in NAMES.items()
]
