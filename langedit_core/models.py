"""The one place that knows architectures: where a Hugging Face model keeps its layers, and how a weight is turned.

A layer adds `write(W k)` to the residual stream: `W` is the MLP output projection, `k` its input (the key) and
`write` the norm that follows it on some models (Gemma 2 and 3), the identity on all others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from langedit_core.devices import check_kind, settle, spread, usable_device
from langedit_core.errors import RefusedInput, unknown
from langedit_core.model_folders import check_config, check_folder, check_loaded, check_numbers
from langedit_core.packaged import EMBEDDED, PACKAGED, embedded, materialise
from langedit_core.tokens import TextTooLong


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Module paths of one `model_type`. A new one must declare these three things: layers, write port, post-norm."""

    layers: str
    write: str
    post_norm: str | None = None
    attention: str = "self_attn"
    mlp: str = "mlp"
    final_norm: str = "model.norm"
    embedding: str = "model.embed_tokens"
    transposed: bool = False  # Conv1D keeps its weight as d_in x d_out
    attention_kernel: str = "sdpa"


_LLAMA = Architecture(layers="model.layers", write="mlp.down_proj")
_GEMMA = dataclasses.replace(_LLAMA, post_norm="post_feedforward_layernorm")

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        layers="transformer.h", write="mlp.c_proj", attention="attn", transposed=True,
        final_norm="transformer.ln_f", embedding="transformer.wte",
    ),
    "gptj": Architecture(
        layers="transformer.h", write="mlp.fc_out", attention="attn", attention_kernel="eager",
        final_norm="transformer.ln_f", embedding="transformer.wte",
    ),
    "gpt_neox": Architecture(
        layers="gpt_neox.layers", write="mlp.dense_4h_to_h", attention="attention",
        final_norm="gpt_neox.final_layer_norm", embedding="gpt_neox.embed_in",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": dataclasses.replace(_GEMMA, attention_kernel="eager"),  # caps attention scores
    "gemma3_text": _GEMMA,
}  # fmt: skip


SAMPLE = "Zürich, 北京: 42"
"""What stands for a tokenizer: its ids are part of a model's fingerprint."""


@dataclass(kw_only=True)
class EditableModel:
    """A causal language model together with the knowledge needed to edit it.

    ```python
    model = load_model("gemma-3-270m")
    with model.restored():                 # weights come back bit for bit
        model.add_(6, delta)               # delta: d_out x d_in
    ```
    """

    hf: nn.Module
    tokenizer: object
    architecture: Architecture
    name: str
    provenance: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.hf.eval().requires_grad_(False)
        self.layers: Sequence[nn.Module] = self.hf.get_submodule(self.architecture.layers)

    @property
    def device(self) -> torch.device:
        """Where token ids go in; a model on several devices has its embeddings there (see `devices.py`)."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def d_model(self) -> int:
        return self.weight(0).shape[0]

    @property
    def d_ff(self) -> int:
        return self.weight(0).shape[1]

    @property
    def pad_id(self) -> int:
        """Any valid id: padded columns are masked everywhere."""
        known = self.hf.get_input_embeddings().weight.shape[0]
        named = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        # A "[PAD]" may have been added to the tokenizer without a row in the model.
        return next(i for i in named if i is not None and i < known)

    def check_length(self, tokens: int, what: str, advice: str = "shorten it") -> None:
        """Refuse a text that is longer than this model was made for; some fail on it, others answer nonsense.

        Raises:
            TextTooLong: Names `what`, its tokens and how many the model takes.
        """
        most = getattr(self.hf.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise TextTooLong(f"{what} has {tokens} tokens, {self.name} has {most} positions; {advice}")

    def check_layers(self, layers: Sequence[int]) -> None:
        """Refuse layers this model does not have.

        Raises:
            ValueError: `layers` is empty, not ascending, or out of range.
        """
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= self.n_layers:
            raise ValueError(
                f"layers {list(layers)} cannot be edited: {self.name} has layers 0 to {self.n_layers - 1}; "
                "give at least one, in ascending order"
            )

    def write_port(self, layer: int) -> nn.Module:
        """The MLP output projection of `layer`; its input is the key, its output the value."""
        return self.layers[layer].get_submodule(self.architecture.write)

    def weight(self, layer: int) -> Float[Tensor, "d_out d_in"]:
        """The edited matrix, as a view of the parameter, always d_out x d_in."""
        weight = self.write_port(layer).weight
        return weight.T if self.architecture.transposed else weight

    @torch.no_grad()
    def add_(self, layer: int, delta: Float[Tensor, "d_out d_in"]) -> None:
        """Add `delta` to the weight of `layer` in place.

        Raises:
            ValueError: `delta` has another shape than the weight, or holds NaN or infinity.
        """
        weight = self.weight(layer)
        if delta.shape != weight.shape:
            raise ValueError(f"update for layer {layer} has shape {tuple(delta.shape)}, expected {tuple(weight.shape)}")
        if not torch.isfinite(delta).all():
            raise ValueError(f"update for layer {layer} holds NaN or infinity; the weights are left as they were")
        weight.add_(delta.to(weight))

    @contextlib.contextmanager
    def restored(self, layers: Sequence[int] | None = None) -> Iterator[EditableModel]:
        """Whatever is done to the edited matrices inside the block is undone bit for bit at its end."""
        layers = range(self.n_layers) if layers is None else layers
        kept = {layer: self.weight(layer).clone() for layer in layers}
        try:
            yield self
        finally:
            with torch.no_grad():
                for layer, weight in kept.items():
                    self.weight(layer).copy_(weight)

    def post_norm(self, layer: int, output: Float[Tensor, "*rows d_out"]) -> Float[Tensor, "*rows d_out"]:
        """What the residual stream receives when the projection of `layer` puts out `output`."""
        if self.architecture.post_norm is None:
            return output
        return self.layers[layer].get_submodule(self.architecture.post_norm)(output)

    def logits(
        self,
        hidden: Float[Tensor, "*rows d_model"],
        ids: Int[Tensor, " v"] | None = None,
        *,
        normed: bool = False,
    ) -> Float[Tensor, "*rows v"]:
        """Logits of residual-stream rows taken after the last layer.

        Args:
            hidden: Residual stream.
            ids: Compute these vocabulary entries only; the head of a multilingual model is half its cost.
            normed: The final norm was applied already (`last_hidden_state` of the base model).
        """
        return self.head(ids)(hidden, normed=normed)

    def head(self, ids: Int[Tensor, " v"] | None = None) -> Callable[..., Float[Tensor, "*rows v"]]:
        """`logits` with the rows of `ids` gathered once, for those who ask again and again."""
        head = self.hf.get_output_embeddings()
        weight, bias = head.weight, getattr(head, "bias", None)
        if ids is not None:
            ids = ids.to(weight.device)
            weight, bias = weight[ids], None if bias is None else bias[ids]
        cap = getattr(self.hf.config, "final_logit_softcapping", None)

        def logits(hidden: Float[Tensor, "*rows d_model"], *, normed: bool = False) -> Float[Tensor, "*rows v"]:
            asked = hidden.device
            if not normed:
                hidden = self.hf.get_submodule(self.architecture.final_norm)(hidden)
            out = nn.functional.linear(hidden.to(weight.device), weight, bias).to(asked)
            return out if cap is None else torch.tanh(out / cap) * cap

        return logits

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 that says which model this is, taken when it is first asked for and kept while the model is edited.

        It covers the name, shape, type and bytes of every parameter, and what the tokenizer makes of one sample. It
        does not cover the configuration (norm epsilons, rope's base, ...), buffers, or other texts' tokens: two models
        that differ in nothing else have the same. Stored results carry it, so what it covers cannot change.

        What is stored under it is about the weights it was taken of; see `check_unedited`.
        """
        self._versions = self._weight_versions()
        return self._weights_hash()

    def check_unedited(self, what: str) -> None:
        """Refuse to go on where the weights are not those of `fingerprint`; call before taking anything for its own.

        Costs nothing while no parameter was written to. After a write all are hashed once more, since they may be back
        where they were (8B parameters in float32: some 20 to 60 seconds).

        Args:
            what: What would be taken, for the message.

        Raises:
            ValueError: The weights are others; says what to do.
        """
        fingerprint, versions = self.fingerprint, self._weight_versions()
        if versions is not None and versions == getattr(self, "_versions", None):
            return
        if (found := self._weights_hash()) != fingerprint:
            raise ValueError(
                f"{what} cannot be taken: {self.name} is edited, its weights hash to {found[:12]} and no longer to the "
                f"{fingerprint[:12]} of its fingerprint; put the weights back first (`Editor.reset`, the end of "
                "`with model.restored()`, or the model loaded again)"
            )
        self._versions = versions

    def _weight_versions(self) -> list[tuple[int, int, int]] | None:
        """Where every parameter lies and how often it was written to in place; None where torch does not count that.

        Every write through the tensor or a view of it counts, also without gradients; one through `.data` does not.
        """
        parameters = list(self.hf.parameters())
        if any(p.is_inference() for p in parameters):
            return None
        return [(id(p), p.data_ptr(), p._version) for p in parameters]

    def _weights_hash(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self.hf.named_parameters()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            raw = tensor.detach().cpu().contiguous()
            digest.update(raw.view(torch.uint8).numpy() if raw.dtype == torch.bfloat16 else raw.numpy())
        digest.update(self.tokenizer(SAMPLE).input_ids.__repr__().encode())
        return digest.hexdigest()


def check_model(model: object) -> None:
    """Refuse what is no `EditableModel`, such as the Transformers model itself.

    Raises:
        TypeError: Says how to get one.
    """
    if not isinstance(model, EditableModel):
        raise TypeError(
            f"got {type(model).__name__}, expected an EditableModel: load_model(name), or for a model in memory "
            "wrap_model(hf, tokenizer, name=...)"
        )


def canonical(name: str) -> str:
    """The name a model and its cells go by: a folder's is its whole path, since another may be called so elsewhere."""
    own = bool(name) and name not in PACKAGED and name not in EMBEDDED
    return str(Path(name).resolve()) if own and Path(name).is_dir() else name


def load_model(
    name: str | Path,
    *,
    device: str | Mapping[str, str | int] = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    attention: str | None = None,
) -> EditableModel:
    """Load a model by hub name, local directory, or the name of a packaged one (`gemma-3-270m`, `atlas-lm`).

    Args:
        name: Hub ID, directory with `config.json` and safetensors, or a name in `PACKAGED` or `EMBEDDED`.
        device: `auto` takes the first GPU if there is one; `balanced`, `balanced_low_0` and `sequential` spread a model
            over all GPUs, as in Transformers, and a mapping of modules to devices says it exactly.
        dtype: float32 unless you know better: updates are small beside the weights.
        revision: Hub revision.
        attention: `eager` or `sdpa`; the architecture's own default otherwise.

    Raises:
        ValueError: Unknown architecture or device, files that are not whole or do not fit together, or neither a
            directory nor a well-formed name.
        RefusedInput: The model wants remote code, is quantised, ships pickled weights only, or does not fit in.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    name = canonical(str(name))
    if name in PACKAGED:
        source = str(materialise(name))
    elif name in EMBEDDED:
        source = str(embedded(name))
    elif Path(name).is_file():
        raise ValueError(f"{name} is a file; expected a folder written by `save_pretrained`, or a hub ID")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name) or (name and Path(name).is_dir()):
        source = name
    else:
        what = "model (not a directory, not an owner/name hub ID such as openai-community/gpt2)"
        raise unknown(what, name, (*PACKAGED, *EMBEDDED))

    device = usable_device(device)
    if Path(source).is_dir():
        check_folder(Path(source))
    with _told_as_ours(f"config.json of {source} cannot be used", name):
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    architecture = architecture_of(config.model_type)
    check_config(config, source)
    attention = attention or architecture.attention_kernel
    with _told_as_ours(f"the weights of {source} cannot be loaded, or do not fit its config.json", name):
        hf, info = AutoModelForCausalLM.from_pretrained(
            source, revision=revision, dtype=dtype, attn_implementation=attention, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, **({"device_map": device} if spread(device) else {}),
        )  # fmt: skip
    check_loaded(hf, info, architecture.layers, source)
    if spread(device):
        settle(hf)
    else:
        hf = hf.to(device)
    with _told_as_ours(f"the tokenizer of {source} cannot be read, expected tokenizer.json", name):
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    provenance = dict(
        model=name,
        revision=revision,
        dtype=str(dtype).removeprefix("torch."),
        device=device if isinstance(device, str) else "by a map",
        attention=attention,
    )
    return EditableModel(hf=hf, tokenizer=tokenizer, architecture=architecture, name=name, provenance=provenance)


def wrap_model(hf: nn.Module, tokenizer: object, *, name: str) -> EditableModel:
    """A model that Transformers has loaded already, or that was just trained; it is edited in place.

    It goes into evaluation mode, and its parameters stop asking for gradients.

    ```python
    hf = AutoModelForCausalLM.from_pretrained("openai-community/gpt2")
    model = wrap_model(hf, AutoTokenizer.from_pretrained("openai-community/gpt2"), name="openai-community/gpt2")
    editor = prepare_editor(model, layers=(3, 4, 5))
    ```

    Args:
        hf: A causal language model of a supported architecture, all its weights in memory; on several devices if
            Transformers spread it (`device_map`).
        tokenizer: Its own.
        name: What patches call it, and by which hyper-parameters and layers are looked up (`hparams.yaml`).

    Raises:
        ValueError: Unsupported architecture or kind of device, no language-model head, NaN or infinity among the
            weights.
        RefusedInput: Adapters in it, quantised, not wholly in memory, or made under `torch.inference_mode`.
    """
    if not name or not isinstance(name, str):
        raise ValueError(f"name is {name!r}; expected what the model is to be called, such as its hub ID")
    hf = getattr(hf, "_orig_mod", hf)  # of torch.compile, which shares its weights and names them otherwise
    if hasattr(hf, "peft_config") or getattr(hf, "_hf_peft_config_loaded", False):
        raise RefusedInput(
            f"{name} has PEFT adapters in it, beside which edits of its matrices would stand; merge them first: hf = "
            "peft_model.merge_and_unload()"
        )
    if not hasattr(getattr(hf, "config", None), "model_type"):
        raise ValueError(f"{name} is a {type(hf).__name__} without a configuration; expected a model of Transformers")
    architecture = architecture_of(hf.config.model_type)
    check_config(hf.config, name)
    if hf.get_output_embeddings() is None:
        raise ValueError(f"{name} is a {type(hf).__name__} without a head; load it with AutoModelForCausalLM")
    packed = (module for module in hf.modules() if hasattr(module, "weight") and callable(module.weight))
    if (module := next(packed, None)) is not None:  # what torch.ao.quantization puts in place of a matrix
        raise RefusedInput(
            f"{name} is quantised: the weights of its {type(module).__name__} are packed and cannot be edited; edit "
            "first, and quantise then"
        )
    if any(parameter.is_meta for parameter in hf.parameters()):
        raise RefusedInput(f"some weights of {name} are not in memory; load it without offloading, or use load_model")
    places = {parameter.device for parameter in hf.parameters()}
    for place in places:
        check_kind(place)
    if any(parameter.is_inference() for parameter in hf.parameters()):
        raise RefusedInput(
            f"some weights of {name} were made under torch.inference_mode(), which no gradient can go through; load it "
            "outside of it"
        )
    check_numbers(hf, name)
    if len(places) > 1:
        settle(hf)
    if not hasattr(tokenizer, "decode") or not callable(tokenizer):
        raise ValueError(
            f"the tokenizer of {name} is {type(tokenizer).__name__}; expected AutoTokenizer.from_pretrained(...)"
        )
    rows, ids = hf.get_input_embeddings().weight.shape[0], tokenizer(SAMPLE).input_ids
    if beyond := [i for i in (*ids, getattr(tokenizer, "vocab_size", 1) - 1) if i >= rows]:
        raise ValueError(
            f"the tokenizer has ids up to {max(beyond)}, and {name} has {rows} embeddings: it is another model's"
        )
    provenance = dict(
        model=name, revision=None, dtype=str(hf.dtype).removeprefix("torch."), device=str(hf.device),
        attention=hf.config._attn_implementation,
    )  # fmt: skip
    return EditableModel(hf=hf, tokenizer=tokenizer, architecture=architecture, name=name, provenance=provenance)


@contextlib.contextmanager
def _told_as_ours(what: str, name: str) -> Iterator[None]:
    """Whatever kind of error a damaged file ends in, down in Transformers, is a ValueError that says which file.

    Errors of the network and the disk, and lack of memory, are none of the file and stay what they are.
    """
    try:
        yield
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        if (
            isinstance(error, OSError)
            and not Path(name).exists()
            and Path(name).parent.name
            and Path(name).parent.is_dir()
        ):
            raise FileNotFoundError(f"there is no folder {name}, and as a hub ID: {error}") from error
        raise
    except Exception as error:  # tokenizers raises bare Exception, configurations a dozen kinds
        if "trust_remote_code" in str(error):
            raise RefusedInput(f"{name} wants to run its own code; only architectures built in are edited") from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if "ignore_mismatched_sizes" in reason:  # advice for the trainer of another head
            reason = "shapes differ; the table above names them"
        raise ValueError(f"{what} ({reason}); download or save the model again") from error


def architecture_of(model_type: str) -> Architecture:
    """Look up a `config.model_type`.

    Raises:
        ValueError: Not supported; lists what is, and what a new entry must declare.
    """
    if model_type not in ARCHITECTURES:
        error = unknown("architecture", model_type, ARCHITECTURES)
        raise ValueError(
            f"{error}. To add one, declare in ARCHITECTURES the path of its layers, of the MLP output projection "
            "inside a layer, and of the norm between that projection and the residual stream (None if there is none)"
        )
    return ARCHITECTURES[model_type]


def inspect(model: EditableModel) -> str:
    """A plain-text sheet: layers, shapes, write port, and whether a norm follows it."""
    check_model(model)
    port = f"{model.architecture.layers}.<layer>.{model.architecture.write}"
    norm, told = model.architecture.post_norm, model.provenance
    lines = [
        f"model        {model.name} ({model.hf.config.model_type}), fingerprint {model.fingerprint[:12]}",
        f"layers       {model.n_layers} (0 to {model.n_layers - 1}), residual width {model.d_model}",
        f"write port   {port}, W: {model.d_model} x {model.d_ff} (d_out x d_in)",
        f"post-norm    {norm or 'none'}"
        + (": values are optimised before it, at the output of W" if norm else ": residual stream receives W k"),
        f"vocabulary   {model.hf.get_output_embeddings().weight.shape[0]}",
        f"runs on      {_places(model)}, {told.get('dtype')}, attention {told.get('attention')}",
    ]
    return "\n".join(lines)


def _places(model: EditableModel) -> str:
    """Its device, or how many layers each of several devices has."""
    layers = Counter(str(model.weight(layer).device) for layer in range(model.n_layers))
    if len(layers) == 1:
        return str(model.device)
    return ", ".join(f"{device} ({n} layers)" for device, n in layers.items())
