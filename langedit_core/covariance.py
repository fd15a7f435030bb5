"""Second moments of keys over a corpus that is never edited: C = E[k kᵀ], one matrix per layer.

The statistic is streamed, keeps its token count, and is cached under the model's and the corpus's hash; a running
mean C̄_t = (n̄_{t−1}/n̄_t) C̄_{t−1} + (1/n̄_t) K_t K_tᵀ (LangEdit, arXiv 2506.10800, read as a mean of kkᵀ) is the same
object, updated.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from langedit_core.forward import run_until, tap_input
from langedit_core.memory import alike, as_memory_allows
from langedit_core.models import EditableModel
from langedit_core.storage import CorruptFile, cache_home, load_tensors, save_tensors
from langedit_core.tokens import Row, align, encode

log = logging.getLogger(__name__)

PRODUCTS = "products"
"""Entry of a file that says in what kkᵀ was made; earlier files have none, and made it in the model's own precision."""


@dataclass
class KeyCovariance:
    """Uncentred second moment of keys that carries its count, so that a mean can never meet a sum.

    ```python
    covariance = KeyCovariance.empty(d_in)
    covariance.update(keys)                 # d_in x n
    covariance.mean                         # E[k kᵀ]
    ```
    """

    gram: Float[Tensor, "d d"]  # Σ k kᵀ: products of each batch in float32 or better, batches added up in float64
    count: int

    @classmethod
    def empty(cls, d_in: int, device: torch.device | str = "cpu") -> KeyCovariance:
        return cls(gram=torch.zeros(d_in, d_in, dtype=torch.float64, device=device), count=0)

    @property
    def mean(self) -> Float[Tensor, "d d"]:
        """E[k kᵀ], float64.

        Raises:
            ValueError: No key was seen yet.
        """
        if not self.count:
            raise ValueError("the covariance has seen no key; call update() or collect_covariance() first")
        return self.gram / self.count

    def update(self, keys: Float[Tensor, "d n"]) -> None:
        """Add keys, one per column.

        Raises:
            ValueError: Wrong number of rows.
            FloatingPointError: NaN or infinity among the keys, or keys so long that their products are.
        """
        if keys.shape[0] != self.gram.shape[0]:
            raise ValueError(
                f"keys have {keys.shape[0]} rows but the covariance takes {self.gram.shape[0]}; "
                "pass inputs of the MLP output projection, one per column"
            )
        if not torch.isfinite(keys).all():
            raise FloatingPointError("keys hold NaN or infinity; the covariance is left as it was")
        # Half precision overflows on two thousand keys of length 20, and loses the small eigenvalues before that.
        keys = keys.to(torch.promote_types(keys.dtype, torch.float32))
        product = keys @ keys.T
        if not torch.isfinite(product).all():
            raise FloatingPointError(
                f"products of the keys overflow {keys.dtype}; the covariance is left as it was (are they MLP inputs?)"
            )
        self.gram += product.to(self.gram)
        self.count += keys.shape[1]

    def merge(self, other: KeyCovariance) -> KeyCovariance:
        """The covariance of both samples together."""
        return KeyCovariance(gram=self.gram + other.gram, count=self.count + other.count)

    def copy(self) -> KeyCovariance:
        return KeyCovariance(gram=self.gram.clone(), count=self.count)


def corpus_hash(texts: Sequence[str]) -> str:
    """SHA-256 of a corpus; part of the cache key and of every report."""
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode() + b"\0")
    return sha.hexdigest()


@torch.no_grad()
def collect_covariance(
    model: EditableModel,
    layers: Sequence[int],
    texts: Sequence[str],
    *,
    tokens_per_batch: int = 2048,
    max_tokens: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, KeyCovariance]:
    """Keys at all tokens of `texts`, at every layer in `layers`; nothing above the last layer runs.

    Args:
        model: Unedited model.
        layers: Layers whose keys are read, ascending.
        texts: The corpus.
        tokens_per_batch: Padded size of one forward; memory grows with it, not with the corpus.
        max_tokens: Longer texts are cut here.
        progress: Called with (texts done, texts in all).

    Raises:
        MemoryError: Even a single text does not fit.
    """
    model.check_layers(layers)
    found = {layer: KeyCovariance.empty(model.d_ff, model.weight(layer).device) for layer in layers}
    rows = [ids for ids in (encode(model.tokenizer, text)[:max_tokens] for text in texts) if ids]
    keys: dict[int, Tensor] = {}

    def work(part: list[int]) -> None:
        chunk = [Row(ids=tuple(rows[i]), lookup=len(rows[i]) - 1) for i in part]
        batch, seen = align(chunk, model.pad_id, model.device), {}
        run_until(model, batch, layers[-1] + 1, *(tap_input(model.write_port(i), seen, i) for i in layers))
        keys.update({layer: seen[layer][batch.mask.to(seen[layer].device)].T for layer in layers})

    def alone(i: int, error: RuntimeError) -> str:
        return (
            f"a corpus text of {len(rows[i])} tokens does not fit in memory: {error}; cut texts shorter (max_tokens) "
            "or use a larger device"
        )

    done = 0
    for part in as_memory_allows(alike([len(row) for row in rows], tokens_per_batch), work, alone=alone):
        for layer in layers:  # only once a part is done, since it may be begun again in smaller ones
            found[layer].update(keys.pop(layer))
        done += len(part)
        if progress:
            progress(done, len(rows))
    return found


def cached_covariance(
    model: EditableModel,
    layers: Sequence[int],
    texts: Sequence[str],
    *,
    folder: Path | None = None,
    max_tokens: int = 128,
    **options,
) -> dict[int, KeyCovariance]:
    """`collect_covariance`, kept on disk per (model, corpus, `max_tokens`, layer); says whether it was found.

    A truncated or altered file is noticed by its checksum and computed again. What is found is C₀ of the model as its
    fingerprint has it, even while that model is edited.

    Raises:
        ValueError: There is no text; or a layer is missing on disk and the model is edited: what would be gathered now
            is not C₀.
    """
    texts = list(texts)
    if not texts:
        raise ValueError("no text to gather keys from; C₀ needs sentences in the languages whose keys shall be kept")
    folder = folder or cache_home() / "covariance"
    stem = f"{model.fingerprint[:16]}-{corpus_hash(texts)[:16]}-{max_tokens}"
    paths = {layer: folder / f"{stem}-layer{layer}.safetensors" for layer in layers}
    found: dict[int, KeyCovariance] = {}
    for layer, path in paths.items():
        try:
            tensors, metadata = load_tensors(path)
            found[layer] = _covariance(tensors, metadata, model, layer)
        except FileNotFoundError:
            continue
        except (CorruptFile, KeyError, TypeError, ValueError) as error:
            log.warning("covariance of layer %d is computed again: %s: %r", layer, path, error)
    missing = [layer for layer in layers if layer not in found]
    log.info("covariance cache: %d layers found, %d to compute (%s)", len(found), len(missing), folder)
    if missing:
        model.check_unedited(f"the covariance of layers {missing}")
        for layer, covariance in collect_covariance(model, missing, texts, max_tokens=max_tokens, **options).items():
            save_tensors(paths[layer], {"gram": covariance.gram}, {"count": str(covariance.count), PRODUCTS: "float32"})
            found[layer] = covariance
    return {layer: found[layer] for layer in layers}


def _covariance(
    tensors: dict[str, torch.Tensor], metadata: dict[str, str], model: EditableModel, layer: int
) -> KeyCovariance:
    gram, count = tensors["gram"], int(metadata["count"])
    if gram.shape != (model.d_ff, model.d_ff) or gram.dtype != torch.float64 or count < 1:
        raise ValueError(
            f"{tuple(gram.shape)} numbers of {gram.dtype} from {count} keys, expected {model.d_ff} x {model.d_ff} "
            "of torch.float64 from at least one"
        )
    if not torch.isfinite(gram).all():
        raise ValueError("it holds NaN or infinity")
    if model.weight(layer).dtype.itemsize < 4 and PRODUCTS not in metadata:
        raise ValueError("its products were rounded to half precision")
    return KeyCovariance(gram=gram.to(model.weight(layer).device), count=count)
