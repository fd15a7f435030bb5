"""Patch files from strangers: whatever is wrong is refused with a message that helps, and never used."""

from __future__ import annotations

import json
import pickle

import pytest
import safetensors.torch
import torch
from toy_patch import recorded

from langedit_core.errors import RefusedInput
from langedit_core.patches import Patch
from langedit_core.storage import CorruptFile, load_tensors, save_tensors


@pytest.fixture
def path(tmp_path):
    patch, _ = recorded()
    patch.save(tmp_path / "patch.safetensors", with_base=True)
    return tmp_path / "patch.safetensors"


def rewrite(path, header=None, tensors=None) -> None:
    """The file with another content and a checksum that fits it: what a forger would write."""
    found, metadata = load_tensors(path)
    content = json.loads(metadata["patch"])
    if header:
        header(content)
    if tensors:
        tensors(found)
    save_tensors(path, found, {"patch": json.dumps(content)})


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5_000, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFile, match="no whole safetensors file"):
        Patch.load(path)


def test_one_flipped_bit_is_noticed(path):
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptFile, match="truncated or altered since it was written; nothing of it is used"):
        Patch.load(path)


def test_a_missing_file_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a patch written by `langedit edit`"):
        Patch.load(tmp_path / "none.safetensors")


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "patch.safetensors").write_bytes(pickle.dumps({"left": 1}))
    with pytest.raises(CorruptFile, match="no whole safetensors file"):
        Patch.load(tmp_path / "patch.safetensors")


@pytest.mark.parametrize(
    "metadata", [None, {}, {"langedit": "[]"}, {"langedit": "null"}, {"langedit": "{"}, {"langedit": '{"metadata": 3}'},
                 {"langedit": '{"metadata": {"patch": 3}}'}, {"langedit": "[" * 100_000}],
)  # fmt: skip
def test_another_safetensors_file_is_no_patch(tmp_path, metadata):
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, file, metadata)
    with pytest.raises((RefusedInput, CorruptFile), match="no patch|no whole"):
        Patch.load(file)


@pytest.mark.parametrize("header", ["{", "[]", "3", '"x"', "{}", '{"format": "langedit-patch-9"}', "[" * 100_000])
def test_a_header_that_is_no_patch_header_is_refused(tmp_path, header):
    save_tensors(tmp_path / "p.safetensors", {"x": torch.ones(2)}, {"patch": header})
    with pytest.raises(RefusedInput, match="no JSON|this version reads 'langedit-patch-1'"):
        Patch.load(tmp_path / "p.safetensors")


HEADERS = {
    "a path as model": (lambda h: h.update(model="../../etc/passwd"), "model"),
    "an absolute path as model": (lambda h: h.update(model="/etc"), "model"),
    "a model above": (lambda h: h.update(model=".."), "model"),
    "a line break in the model": (lambda h: h.update(model="a\nb"), "model"),
    "a method that colours the terminal": (lambda h: h.update(method="\x1b[31mred"), "method"),
    "no fingerprint": (lambda h: h.pop("fingerprint"), "fingerprint"),
    "a short fingerprint": (lambda h: h.update(fingerprint="abc"), "fingerprint"),
    "an unknown architecture": (lambda h: h.update(model_type="llamma"), "known: llama"),
    "an unknown type of number": (lambda h: h.update(dtype="int8"), "dtype"),
    "another width": (lambda h: h.update(d_in=49), r"base\.1 has shape \(32, 48\), expected \(32, 49\)"),
    "a width of text": (lambda h: h.update(d_in="wide"), "d_in"),
    "a negative width": (lambda h: h.update(d_out=-32), "d_out"),
    "another layer": (lambda h: h["settings"].update(layers=[1, 3]), r"base names layers \[1, 2\]"),
    "an unknown setting": (lambda h: h["settings"].update(power=3), "power"),
    "settings that contradict": (lambda h: h["settings"].update(space="whole"), "covariance_weight > 0"),
    "a field too many": (lambda h: h.update(run="rm -rf /"), "run"),
    "a batch without tensors": (
        lambda h: h["batches"].append(h["batches"][0]), r"batch 3, layer 1 has the tensors \[\]"),
    "a batch too few": (lambda h: h["batches"].pop(), "tensors that belong to no batch"),
    "a hash of another layer": (lambda h: h["batches"][0]["after"].update({"9": "0" * 64}), "batch 0 names layers"),
    "an altered hash of the base": (lambda h: h["base"].update({"1": "0" * 64}), "not those the patch was made from"),
    "a fact without a gap": (lambda h: h["batches"][0]["facts"][0].update(prompt="no gap"), "batches.0.facts"),
    "a fact with a control character": (lambda h: h["batches"][0]["facts"][0].update(target="a\x00b"), "control"),
    "a fact in no language": (lambda h: h["batches"][0]["facts"][0].update(lang="xx"), "unknown language"),
    "facts that are no list": (lambda h: h["batches"][0].update(facts={"a": 1}), "facts"),
    "batches that are no list": (lambda h: h.update(batches=3), "batches"),
    "merged but with keys": (
        lambda h: h["batches"][0].update(merged=dict(batches=2, rank={"1": 3}, error={"1": 0.0})),
        r"batch 0, layer 1 has the tensors \['keys', 'left', 'right'\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADERS)
def test_a_forged_header_is_refused(path, case):
    change, message = HEADERS[case]
    rewrite(path, header=change)
    with pytest.raises(RefusedInput, match=message) as caught:
        Patch.load(path)
    assert str(path) in str(caught.value) or "stored base" in str(caught.value)


def put(name, value):
    return lambda tensors: tensors.update({name: value(tensors.get(name))})


def nan(x):
    x = x.clone()
    x[0, 0] = float("nan")
    return x


TENSORS = {
    "NaN": (put("0.1.left", nan), r"0\.1\.left holds NaN or infinity"),
    "infinity": (put("1.2.right", lambda x: x / 0), r"1\.2\.right holds NaN or infinity"),
    "NaN in the base": (put("base.1", nan), r"base\.1 holds NaN or infinity"),
    "turned": (put("0.1.left", lambda x: x.T.contiguous()), r"0\.1\..* has shape"),
    "one column short": (put("0.1.right", lambda x: x[:, 1:].contiguous()), r"0\.1\.right has shape \(48, 2\)"),
    "flat": (put("0.1.left", lambda x: x.reshape(-1).contiguous()), r"0\.1\..* has shape"),
    "no axis": (put("0.1.left", lambda x: torch.tensor(1.0)), r"0\.1\..* has shape"),
    "whole numbers": (put("0.1.left", lambda x: x.long()), "is torch.int64, expected torch.float32"),
    "double precision": (put("0.1.keys", lambda x: x.double()), "is torch.float64, expected torch.float32"),
    "complex": (put("0.1.keys", lambda x: x.to(torch.complex64)), "is torch.complex64"),
    "missing": (lambda tensors: tensors.pop("2.1.keys"), r"batch 2, layer 1 has the tensors \['left', 'right'\]"),
    "factors and dense": (put("0.1.dense", lambda _: torch.zeros(32, 48)), "batch 0, layer 1 has the tensors"),
    "a path as name": (put("../../evil", lambda _: torch.zeros(2)), r"belong to no batch: '\.\./\.\./evil'"),
    "control characters in a name": (put("a\x1b[31m\n", lambda _: torch.zeros(2)), r"belong to no batch: 'a\\x1b"),
    "a layer nobody edits": (put("0.9.left", lambda _: torch.zeros(32, 3)), "belong to no batch"),
    "another base": (put("base.1", lambda x: x + 1), "not those the patch was made from"),
    "half a base": (lambda tensors: tensors.pop("base.1"), r"base matrices of layers \[2\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_forged_tensors_are_refused(path, case):
    change, message = TENSORS[case]
    rewrite(path, tensors=change)
    with pytest.raises(RefusedInput, match=message):
        Patch.load(path)


def test_a_folder_is_known_by_its_own_name_only():
    from langedit_core.patches import _public_name

    assert _public_name("google/gemma-3-270m") == "google/gemma-3-270m"
    assert _public_name("/home/somebody/my models/a b") == "a-b"
    assert _public_name("/") == "model"
