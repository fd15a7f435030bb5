"""Few-shot prompts for the XTREME tasks, every word in the language of the data.

prompt = instruction, blank line, k solved blocks, one open block; the part before the open block is the same for all
records of a task and language, so that a model has to read it once only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from langedit_core.errors import unknown
from langedit_core.languages import language
from langedit_core.xtreme_answers import names_of
from langedit_core.xtreme_data import Example, TaskData

SHOTS = {"xnli": 4, "pawsx": 4, "mlqa": 2, "wikiann": 4}
"""Solved examples per task; fewer for MLQA, whose contexts are long."""


class PromptSettings(BaseModel):
    """Lengths in tokens of the model at hand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shot_context: int = Field(96, ge=8, description="context of a solved MLQA example, cut around its answer")
    context: int = Field(384, ge=8, description="context of an evaluated MLQA record: its first tokens, answer unseen")


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a task is put in one language.

    Attributes:
        fields: What stands before each text, colon included.
        ask: What stands before the answer.
        instruction: First line of the prompt; empty where the question in each block says enough.
        labels: Class -> the word that stands for it.
    """

    fields: tuple[str, ...]
    ask: str
    instruction: str = ""
    labels: dict[str, str] = field(default_factory=dict)


def _pairs(
    xnli: tuple[str, str, str], pawsx: tuple[str, str, str], yes: str, no: str, maybe: str
) -> dict[str, Wording]:
    """The two tasks about sentence pairs; not following and contradicting share the word no, as in two-way data."""
    entailment = {"entailment": yes, "not_entailment": no, "neutral": maybe, "contradiction": no}
    return {
        "xnli": Wording(fields=xnli[:2], ask=xnli[2], labels=entailment),
        "pawsx": Wording(fields=pawsx[:2], ask=pawsx[2], labels={"paraphrase": yes, "different": no}),
    }


WORDINGS: dict[str, dict[str, Wording]] = {
    "en": _pairs(
        ("Premise:", "Hypothesis:", "Does the hypothesis follow from the premise?"),
        ("Sentence 1:", "Sentence 2:", "Do both sentences mean the same?"),
        "Yes", "No", "Maybe",
    ) | {
        "mlqa": Wording(
            fields=("Text:", "Question:"), ask="Answer:",
            instruction="Answer each question with a few words from the text.",
        ),
        "wikiann": Wording(
            fields=("Text:",), ask="Names:",
            instruction="List the names in each text: persons (PER), places (LOC) and organisations (ORG).",
        ),
    },
    "de": _pairs(
        ("Prämisse:", "Hypothese:", "Folgt die Hypothese aus der Prämisse?"),
        ("Satz 1:", "Satz 2:", "Bedeuten beide Sätze dasselbe?"),
        "Ja", "Nein", "Vielleicht",
    ) | {
        "mlqa": Wording(
            fields=("Text:", "Frage:"), ask="Antwort:",
            instruction="Beantworte jede Frage mit wenigen Wörtern aus dem Text.",
        ),
        "wikiann": Wording(
            fields=("Text:",), ask="Namen:",
            instruction="Nenne die Namen in jedem Text: Personen (PER), Orte (LOC) und Organisationen (ORG).",
        ),
    },
    "nl": _pairs(
        ("Premisse:", "Hypothese:", "Volgt de hypothese uit de premisse?"),
        ("Zin 1:", "Zin 2:", "Betekenen beide zinnen hetzelfde?"),
        "Ja", "Nee", "Misschien",
    ) | {
        "mlqa": Wording(
            fields=("Tekst:", "Vraag:"), ask="Antwoord:",
            instruction="Beantwoord elke vraag met enkele woorden uit de tekst.",
        ),
        "wikiann": Wording(
            fields=("Tekst:",), ask="Namen:",
            instruction="Noem de namen in elke tekst: personen (PER), plaatsen (LOC) en organisaties (ORG).",
        ),
    },
    "es": _pairs(
        ("Premisa:", "Hipótesis:", "¿Se deduce la hipótesis de la premisa?"),
        ("Frase 1:", "Frase 2:", "¿Significan lo mismo las dos frases?"),
        "Sí", "No", "Quizás",
    ) | {
        "mlqa": Wording(
            fields=("Texto:", "Pregunta:"), ask="Respuesta:",
            instruction="Responde a cada pregunta con pocas palabras del texto.",
        ),
        "wikiann": Wording(
            fields=("Texto:",), ask="Nombres:",
            instruction="Enumera los nombres de cada texto: personas (PER), lugares (LOC) y organizaciones (ORG).",
        ),
    },
    "fr": _pairs(
        ("Prémisse :", "Hypothèse :", "L’hypothèse découle-t-elle de la prémisse ?"),
        ("Phrase 1 :", "Phrase 2 :", "Les deux phrases ont-elles le même sens ?"),
        "Oui", "Non", "Peut-être",
    ) | {
        "mlqa": Wording(
            fields=("Texte :", "Question :"), ask="Réponse :",
            instruction="Réponds à chaque question par quelques mots du texte.",
        ),
        "wikiann": Wording(
            fields=("Texte :",), ask="Noms :",
            instruction="Relève les noms de chaque texte : personnes (PER), lieux (LOC) et organisations (ORG).",
        ),
    },
    "zh": _pairs(
        ("前提：", "假设：", "从前提能否推出假设？答案："),
        ("句子一：", "句子二：", "这两个句子的意思是否相同？答案："),
        "是", "否", "不一定",
    ) | {
        "mlqa": Wording(
            fields=("文本：", "问题："), ask="答案：", instruction="请用文本中的几个词回答每个问题。",
        ),
        "wikiann": Wording(
            fields=("文本：",), ask="名称：",
            instruction="请列出每个文本中的名称：人物（PER）、地点（LOC）和组织（ORG）。",
        ),
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a model is asked about one task in one language.

    Attributes:
        prefix: Instruction and solved blocks; every text begins with it.
        texts: One prompt per record of the data.
        options: What may follow, one continuation per class; empty where the answer is free text.
        stop: Text at which a free answer ends.
        cut: Records whose context was cut.
        lost: Those of them whose answer was cut off with it.
    """

    prefix: str
    texts: tuple[str, ...]
    options: tuple[str, ...]
    stop: str
    cut: int = 0
    lost: int = 0


def build_prompts(tokenizer, data: TaskData, shots: int, settings: PromptSettings | None = None) -> Prompts:
    """Prompts for all records of `data`.

    Args:
        tokenizer: Counts the tokens of MLQA contexts; must be a fast one for these.
        data: Task in one language.
        shots: Solved examples, taken from the pool.
        settings: Lengths.

    Raises:
        ValueError: No wording in this language; more shots than the pool has.
    """
    if data.lang not in WORDINGS:
        raise unknown("language of XTREME prompts", data.lang, WORDINGS)
    settings = settings or PromptSettings()
    wording = WORDINGS[data.lang][data.task]
    join = language(data.lang).join
    lines_follow = data.task == "wikiann"  # one line per type

    def block(texts: Sequence[str], answer: str | None) -> str:
        lines = [f"{name}{join}{text}" for name, text in zip(wording.fields, texts, strict=True)]
        # An open block of names ends with the line break, so that the answer begins as in the solved ones.
        said = "\n" if lines_follow else "" if answer is None else join
        return "\n".join([*lines, wording.ask + said + (answer or "")])

    cut = lost = 0
    solved = []
    for shown in pick_shots(data, shots):
        texts, answer = shown.texts, shown.answers[0]
        if data.task == "mlqa":
            texts = (cut_around(tokenizer, texts[0], answer, settings.shot_context), texts[1])
        solved.append(block(texts, wording.labels.get(answer, answer)))
    prefix = "".join(f"{part}\n\n" for part in ([wording.instruction] if wording.instruction else []) + solved)
    prompts = []
    for record in data.records:
        texts = record.texts
        if data.task == "mlqa":
            texts = (cut_start(tokenizer, texts[0], settings.context), texts[1])
            cut += texts[0] != record.texts[0]
            lost += not any(answer in texts[0] for answer in record.answers)
        prompts.append(prefix + block(texts, None))
    return Prompts(
        prefix=prefix, texts=tuple(prompts), options=tuple(join + wording.labels[name] for name in data.classes),
        stop="\n\n" if data.task == "wikiann" else "\n", cut=cut, lost=lost,
    )  # fmt: skip


def pick_shots(data: TaskData, shots: int) -> list[Example]:
    """Examples of the pool: the classes in turn, or entity types not yet shown first, else in the order of the pool.

    Raises:
        ValueError: The pool has fewer.
    """
    if not 0 <= shots <= len(data.pool):
        raise ValueError(f"{shots} shots asked of {data.source}, whose few-shot pool has {len(data.pool)} records")

    def kinds(example: Example) -> set[str]:
        if data.classes:
            return set(example.answers)
        return {type_ for type_, _ in names_of(example.answers[0])} if data.task == "wikiann" else set()

    rest, chosen, seen = list(data.pool), [], set()
    for _ in range(shots):
        fresh = next((example for example in rest if kinds(example) - seen), None)
        if fresh is None:  # every kind left was shown: begin anew
            fresh, seen = rest[0], set()
        rest.remove(fresh)
        chosen.append(fresh)
        seen |= kinds(fresh)
    return chosen


def cut_start(tokenizer, text: str, budget: int) -> str:
    """The first `budget` tokens of a text, less the word that would be cut in two."""
    spans = _token_spans(tokenizer, text)
    return text if len(spans) <= budget else text[: _word_end(text, spans[budget - 1][1], 1)]


def cut_around(tokenizer, text: str, answer: str, budget: int) -> str:
    """About `budget` tokens of a text with the first occurrence of `answer` in their middle; dots mark what is gone."""
    spans = _token_spans(tokenizer, text)
    if len(spans) <= budget:
        return text
    start, stop = text.index(answer), text.index(answer) + len(answer)
    inside = [i for i, span in enumerate(spans) if span[1] > start and span[0] < stop]
    spare = max(0, budget - len(inside))
    first = max(0, min(inside[0] - spare // 2, len(spans) - budget))
    last = min(len(spans), max(first + budget, inside[-1] + 1))
    begin, end = spans[first][0], spans[last - 1][1]
    begin = len(text) - _word_end(text[::-1], len(text) - begin, len(text) - start)
    kept = text[begin : _word_end(text, end, stop)].strip()
    return ("… " if first else "") + kept + (" …" if last < len(spans) else "")


LONGEST_WORD = 30  # characters; a space farther off than this does not end the word that is cut


def _word_end(text: str, end: int, least: int) -> int:
    """`end`, or where the word before ends if `end` stands inside one; never below `least`."""
    if end >= len(text) or text[end].isspace() or text[end - 1].isspace():
        return end
    space = text.rfind(" ", max(least, end - LONGEST_WORD), end)
    return end if space < 0 else space


def _token_spans(tokenizer, text: str) -> list[tuple[int, int]]:
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError("contexts are cut at token boundaries, which only a fast tokenizer tells; load one")
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
    return [(start, stop) for start, stop in found if start < stop]
