"""Train atlas-lm, or one of its variants, from scratch; a stopped run goes on with its next epoch.

Run: python scripts/train_atlas_lm.py [--variant NAME] [--threads N] [--set epochs=10]. State and result go to
results/NAME; `--ship` copies the finished default into the package.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from langedit_core.atlas_corpus import AtlasCorpus
from langedit_core.atlas_lm import LmSettings
from langedit_core.atlas_training import Trainer, save_model
from langedit_core.atlas_variants import VARIANTS
from langedit_core.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "langedit_core" / "data" / "atlas-lm"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="atlas-lm")
    parser.add_argument("--output", type=Path, help="folder; results/NAME by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="results are the same for the same number only")
    parser.add_argument("--every", type=int, default=3, help="ask facts after every so many epochs")
    parser.add_argument("--until", type=int, help="stop after this epoch; a later run goes on")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings other than the default")
    parser.add_argument("--ship", action="store_true", help="copy the result into the package")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.output or ROOT / "results" / options.variant
    settings = LmSettings(**dict(item.split("=", 1) for item in options.set))
    trainer = Trainer(AtlasCorpus(VARIANTS[options.variant]), settings, folder, options.device)
    trainer.train(until=options.until, every=options.every)
    if trainer.epoch < settings.epochs:
        print(f"stopped after epoch {trainer.epoch} of {settings.epochs}; run again to go on")
        return
    print(markdown_table(save_model(trainer, folder / "model")))
    if options.ship:
        SHIPPED.mkdir(exist_ok=True)
        for path in sorted((folder / "model").iterdir()):
            shutil.copyfile(path, SHIPPED / path.name)


if __name__ == "__main__":
    main()
