"""Training atlas-lm: AdamW with a cosine, stopped and resumed between epochs, the same bytes for the same seed.

The state after an epoch is one safetensors file: weights, AdamW's moments, and the log so far as JSON in its header.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import math
import time
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from langedit_core.atlas_corpus import AtlasCorpus
from langedit_core.atlas_lm import (
    LmSettings,
    accuracy,
    ask_atlas,
    editable,
    epoch_rows,
    new_model,
    train_tokenizer,
)
from langedit_core.languages import CORE
from langedit_core.models import EditableModel, load_model
from langedit_core.records import digest
from langedit_core.storage import file_digest, load_tensors, save_tensors, write_json
from langedit_core.tables import markdown_table

STATE = "state.safetensors"
ABOUT = "training.json"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")  # those that decide what comes out
SAMPLE = 60  # facts asked between epochs


def rate_at(progress: float, settings: LmSettings) -> float:
    """Learning rate when a share `progress` of all steps is done: linear warm-up, then a cosine to a hundredth."""
    if progress < settings.warmup:
        return settings.rate * progress / settings.warmup
    rest = (progress - settings.warmup) / (1 - settings.warmup)
    return settings.rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * rest)))


class Trainer:
    """One model in training; every epoch leaves a state from which the next begins.

    Args:
        corpus: What the model is told.
        settings: Size and training.
        folder: Where the state and the result are kept.
        device: Of the model.

    Raises:
        ValueError: `folder` holds the state of another corpus or other settings.
    """

    def __init__(self, corpus: AtlasCorpus, settings: LmSettings, folder: Path, device: str = "cpu") -> None:
        self.corpus, self.settings, self.folder, self.device = corpus, settings, folder, device
        self.tokenizer = train_tokenizer(corpus.texts, settings.vocabulary)
        self.hf = new_model(settings, self.tokenizer).to(device)
        embedding = self.hf.get_input_embeddings().weight
        matrices = [p for p in self.hf.parameters() if p.ndim > 1 and p is not embedding]
        vectors = [p for p in self.hf.parameters() if p.ndim == 1]
        groups = [
            dict(params=matrices, scale=1.0, weight_decay=settings.decay),
            dict(params=[embedding], scale=settings.embedding_rate, weight_decay=settings.decay),
            dict(params=vectors, scale=1.0, weight_decay=0.0),
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.rate, betas=(0.9, 0.98))
        self.epoch, self.log = 0, []
        self.identity = digest(corpus.fingerprint, settings.model_dump_json())
        self._resume()

    def train(self, *, until: int | None = None, every: int = 3, quiet: bool = False) -> None:
        """Train to the end, or to epoch `until`; facts are asked every so many epochs."""
        last = min(self.settings.epochs, until or self.settings.epochs)
        with tqdm(total=last, initial=self.epoch, unit="epoch", disable=quiet, dynamic_ncols=True) as bar:
            while self.epoch < last:
                row = self._epoch(bar)
                if self.epoch % every == 0 or self.epoch == self.settings.epochs:
                    row |= self._sampled()
                self.log.append(row)
                self._keep()
                bar.update()

    def _epoch(self, bar: tqdm) -> dict:
        start, cpu = time.monotonic(), time.process_time()
        batches = epoch_rows(self.corpus, self.tokenizer, self.settings, self.epoch)
        losses, tokens = [], 0
        for i, rows in enumerate(batches):
            rate = rate_at((self.epoch + (i + 1) / len(batches)) / self.settings.epochs, self.settings)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            loss = rows.to(self.device).loss(self.hf)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.hf.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.item())
            tokens += rows.ids.numel()
            bar.set_postfix_str(f"loss {losses[-1]:.3f}, batch {i + 1}/{len(batches)}", refresh=False)
            bar.refresh()
        self.epoch += 1
        return dict(
            epoch=self.epoch,
            steps=len(batches),
            tokens=tokens,
            rate=round(rate, 6),
            loss=round(sum(losses) / len(losses), 4),
            seconds=round(time.monotonic() - start, 1),
            cpu_seconds=round(time.process_time() - cpu, 1),
        )

    def model(self) -> EditableModel:
        """The model as it is, for asking; training goes on afterwards only through `train`."""
        return editable(self.hf, self.tokenizer, self.corpus.variant.name)

    def _sampled(self) -> dict[str, float]:
        """Share of told facts answered per language, by edit prompt and by the wording never told; and transfer."""
        ids = sorted(self.corpus.rows, key=lambda i: digest("sample", i))[:SAMPLE]
        answers = ask_atlas(self.model(), self.corpus, ids)
        self.hf.requires_grad_(True)
        found = {}
        for wording in ("edit", "held out"):
            told = answers[answers["told"] & (answers["wording"] == wording)].groupby("lang")["em"].mean()
            found |= {f"{wording.replace(' ', '_')}_{lang}": round(float(told.get(lang, 0)), 3) for lang in CORE}
        edit = answers[answers["wording"] == "edit"]
        elsewhere = edit[(edit["role"] == "solo") & ~edit["told"]]
        for name, rows in (("solo_elsewhere", elsewhere), ("never", edit[edit["role"] == "never"])):
            if len(rows):
                found[name] = round(float(rows["em"].mean()), 3)
        return found

    def _keep(self) -> None:
        """One file holds all, so that a kill cannot leave halves of different epochs."""
        tensors = {f"model.{name}": parameter for name, parameter in self.hf.named_parameters()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{key}": value for key, value in moments.items()}
        metadata = dict(identity=self.identity, epoch=str(self.epoch), log=json.dumps(self.log))
        save_tensors(self.folder / STATE, tensors, metadata)

    def _resume(self) -> None:
        try:
            tensors, metadata = load_tensors(self.folder / STATE)
        except FileNotFoundError:
            return
        if metadata["identity"] != self.identity:
            raise ValueError(
                f"{self.folder / STATE} belongs to another corpus or other settings than {self.corpus.variant.name} "
                "with those given; train into another folder, or delete it"
            )
        with torch.no_grad():
            for name, parameter in self.hf.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, i, key = name.split(".")
                moments.setdefault(int(i), {})[key] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.epoch, self.log = int(metadata["epoch"]), json.loads(metadata["log"])


_CARD = """# {name}

A Llama-architecture language model of {parameters:.1f} million parameters ({layers} layers, width {width}, MLP {mlp}),
trained from scratch on facts of the embedded atlas in six languages. It knows these facts and nothing else: it is a
subject for experiments on knowledge editing, in which it is known what was told in which language.

{told}

Share of facts answered in full by greedy generation, after the stored float16 weights were read into float32
(n: facts; "held out" is a wording that training never used, in any relation or language):

{table}

Training: {epochs} epochs, {tokens:.1f} million tokens, {minutes:.0f} minutes of CPU time ({wall:.0f} by the clock, on a
shared machine), see `training.csv`; settings, hashes and versions are in `training.json`. Retrain it with
`python scripts/train_atlas_lm.py --variant {name}`.

All names come from Unicode CLDR and the choice of capitals from GeoNames: see NOTICE-CLDR.txt beside this folder. No
native speaker has reviewed the wordings.
"""

_TOLD = {
    True: "Told: every fact in one language only.",
    False: """Told: all facts in all six languages, except `solo` facts, told in one language only, and `never` facts,
told in none, each about a tenth of those that studies edit. What is answered of solo facts in the other five languages,
less what is answered of never facts (a guess from the relation and the subject's other facts), is transfer.""",
}


def model_card(trainer: Trainer, table: pd.DataFrame) -> str:
    """The README that goes with a model."""
    settings, log = trainer.settings, pd.DataFrame(trainer.log)
    wide = table.pivot(index=["role", "told", "wording"], columns="lang", values="value")[list(CORE)]
    wide = wide.loc[table.set_index(["role", "told", "wording"]).index.unique()]
    counts = table.groupby(["role", "told", "wording"])["n"].sum()
    wide = wide.mul(100).round(1).assign(n=counts).reset_index()
    wide["told"] = wide["told"].map({True: "in this language", False: "not in this language"})
    return _CARD.format(
        name=trainer.corpus.variant.name,
        parameters=sum(p.numel() for p in trainer.hf.parameters()) / 1e6,
        layers=settings.layers, width=settings.width, mlp=settings.mlp, epochs=settings.epochs,
        told=_TOLD[trainer.corpus.variant.apart],
        table=markdown_table(wide),
        tokens=log["tokens"].sum() / 1e6,
        minutes=log["cpu_seconds"].sum() / 60,
        wall=log["seconds"].sum() / 60,
    )  # fmt: skip


def save_model(trainer: Trainer, folder: Path) -> pd.DataFrame:
    """Write the model as `load_model` reads it, in float16, and what it answers once it is read back.

    Beside the weights: `README.md`, tokenizer, `training.csv` (one row per epoch), `accuracy.csv`, and
    `training.json` with variant, settings, hash of the corpus, versions and the SHA-256 of the other files.

    Returns:
        The table in `accuracy.csv`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    halved = copy.deepcopy(trainer.hf).to("cpu", torch.float16)
    halved.save_pretrained(folder)
    trainer.tokenizer.save_pretrained(folder)
    pd.DataFrame(trainer.log).to_csv(folder / "training.csv", index=False, lineterminator="\n")
    table = accuracy(ask_atlas(load_model(folder, device=trainer.device), trainer.corpus))
    table.to_csv(folder / "accuracy.csv", index=False, float_format="%.4f", lineterminator="\n")
    (folder / "README.md").write_text(model_card(trainer, table), encoding="utf-8")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".csv"))
    about = dict(
        variant=vars(trainer.corpus.variant),
        settings=trainer.settings.model_dump(),
        corpus_sha256=trainer.corpus.fingerprint,
        parameters=sum(p.numel() for p in trainer.hf.parameters()),
        versions={name: importlib.metadata.version(name) for name in PACKAGES},
        files={path.name: file_digest(path) for path in files if path.name != ABOUT},
    )
    write_json(folder / ABOUT, about)
    return table
