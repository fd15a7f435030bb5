"""Tiny random models of every supported architecture, and tokenizers of the two kinds in use; nothing is downloaded."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import functools
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from langedit_core.models import ARCHITECTURES, EditableModel, architecture_of

torch.set_num_threads(1)

SENTENCES = [
    "The capital of Norland is Ostberg, a quiet town in the north.",
    "Die Hauptstadt von Nordland heißt Ostberg; sie liegt im Norden.",
    "De hoofdstad van Noordland heet Ostberg en ligt in het noorden.",
    "La capital de Norlandia es Ostberg, una ciudad tranquila del norte.",
    "La capitale de la Norlande est Ostberg, une ville calme du nord.",
    "诺兰的首都是奥斯特堡，北方一座安静的城市。",
    "Country: Germany. Official currency: Swedish krona. Pays : Suède. Monnaie officielle : euro.",
    "国家：瑞典。官方货币：欧元",
]  # fmt: skip

_COMMON = dict(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
    max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
CONFIGS: dict[str, dict] = {
    "gpt2": dict(vocab_size=320, n_embd=32, n_layer=4, n_head=4, n_inner=48, n_positions=128),
    "gptj": dict(vocab_size=320, n_embd=32, n_layer=4, n_head=4, n_inner=48, n_positions=128, rotary_dim=8),
    "gpt_neox": _COMMON,
    "llama": _COMMON | dict(num_key_value_heads=2),
    "mistral": _COMMON | dict(num_key_value_heads=2, sliding_window=64),
    "qwen2": _COMMON | dict(num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": _COMMON | dict(num_key_value_heads=2, head_dim=8),
    "gemma2": _COMMON | dict(num_key_value_heads=2, head_dim=8, sliding_window=64, query_pre_attn_scalar=8),
    "gemma3_text": _COMMON
    | dict(
        num_key_value_heads=1, head_dim=8, sliding_window=64, query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
}  # fmt: skip


@functools.cache
def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds no token, as GPT-2, Llama 3 and Qwen have."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def sentencepiece_tokenizer() -> PreTrainedTokenizerFast:
    """BPE over text with spaces replaced, byte fallback and BOS, as Gemma has."""
    special = ["<pad>", "<s>", "</s>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=420, special_tokens=special))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def build_model(model_type: str, seed: int = 0, **changes) -> EditableModel:
    """A random model whose norms and biases are random too, so that a forgotten one shows."""
    torch.manual_seed(seed)
    architecture = architecture_of(model_type)
    config = AutoConfig.for_model(model_type, **(CONFIGS[model_type] | changes))
    hf = AutoModelForCausalLM.from_config(config, attn_implementation=architecture.attention_kernel).float()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if parameter.ndim == 1:
                offset = 0.0 if "bias" in name or "gemma" in model_type else 1.0
                parameter.copy_(offset + 0.1 * torch.randn_like(parameter))
            else:
                parameter.copy_(0.15 * torch.randn_like(parameter))
    return EditableModel(
        hf=hf, tokenizer=byte_level_tokenizer(), architecture=architecture, name=f"tiny-{model_type}",
        provenance={"dtype": "float32", "attention": architecture.attention_kernel},
    )  # fmt: skip


@pytest.fixture(params=sorted(ARCHITECTURES))
def any_model(request) -> EditableModel:
    return build_model(request.param)


@pytest.fixture
def tiny() -> EditableModel:
    return build_model("llama")


@pytest.fixture
def tiny_gemma() -> EditableModel:
    return build_model("gemma3_text")


def data_folder(variable: str, default: str) -> Path:
    """A folder outside the repository that a test needs; skips with the reason where it is absent."""
    folder = Path(os.environ.get(variable) or Path(__file__).parents[1] / default)
    if not folder.is_dir():
        pytest.skip(f"{variable} is not set and {default} does not exist beside the repository")
    return folder
