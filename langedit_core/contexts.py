"""Prefixes put before a prompt, so that an edit does not hold at the start of a text only.

They are sampled once, from the unedited model, with a seed, in the language of the fact, and stored with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import BaseModel, ConfigDict

from langedit_core.languages import LANGUAGES, language
from langedit_core.models import EditableModel
from langedit_core.tokens import Row, encode, locate


class Contexts(BaseModel):
    """Prefix texts per language; the bare prompt always comes first and is not listed."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prefixes: Mapping[str, tuple[str, ...]]

    def rows(self, model: EditableModel, prompt: str, subject: str, lang: str, where: str = "") -> tuple[Row, ...]:
        """The bare prompt and its prefixed forms as token rows.

        Raises:
            SubjectMerged: The subject has no token boundary at its end.
            ValueError: No prefixes were made for `lang`.
        """
        if lang not in self.prefixes:
            raise ValueError(
                f"no context prefixes for language {lang!r}; made for {sorted(self.prefixes)}. Name all languages that "
                "will be edited: prepare_editor(..., langs=[...])"
            )
        templates = ["{}", *(prefix + "{}" for prefix in self.prefixes[lang])]
        return tuple(locate(model.tokenizer, t.replace("{}", prompt), subject, where) for t in templates)


@torch.no_grad()
def sample_contexts(
    model: EditableModel, langs: Sequence[str], *, per_language: int = 2, length: int = 8, seed: int = 0
) -> Contexts:
    """Let the unedited model continue short sentence starters in every language.

    Args:
        model: The unedited model.
        langs: Language codes with starters in `languages.LANGUAGES`.
        per_language: Prefixes per language; 0 edits at the bare prompt only.
        length: Tokens sampled per prefix.
        seed: The prefixes are a function of model, languages, counts and seed.
    """
    prefixes: dict[str, tuple[str, ...]] = {}
    for number, lang in enumerate(langs):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        starters = language(lang).starters
        made = []
        for i in range(per_language):
            text = _continue(model, starters[i % len(starters)], length, generator)
            text = " ".join(text.replace("{", "").replace("}", "").split()).rstrip(" .。,，")
            made.append(text + ("。" if LANGUAGES[lang].join == "" else ". "))
        prefixes[lang] = tuple(made)
    return Contexts(prefixes=prefixes)


def _continue(model: EditableModel, text: str, length: int, generator: torch.Generator, top_k: int = 50) -> str:
    """Sample a continuation on the CPU's generator, so that a GPU run gets the same prefixes."""
    ids = encode(model.tokenizer, text)
    for _ in range(length):
        hidden = model.hf.base_model(input_ids=torch.tensor([ids], device=model.device)).last_hidden_state
        logits = model.logits(hidden[0, -1], normed=True).float().cpu()
        # A tokenizer may have tokens that the model has not (Gemma 3's image token in a text model).
        logits[[special for special in model.tokenizer.all_special_ids if special < len(logits)]] = -torch.inf
        best = logits.topk(min(top_k, len(logits)))
        ids.append(int(best.indices[torch.multinomial(best.values.softmax(0), 1, generator=generator)]))
    return model.tokenizer.decode(ids, skip_special_tokens=True)
