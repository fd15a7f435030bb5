"""What a profile costs before it is started: memory and time from the shapes of its models and the texts of its facts.

    time = Σ FLOPs / (throughput · efficiency),  memory = weights + statistics + max(activations, workspace)

Only a model's configuration is read, its parameters are counted on the meta device; nothing is loaded or written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from langedit_core.devices import SPREADS, usable_device
from langedit_core.drift import neutral_texts
from langedit_core.editors import EditSettings
from langedit_core.metrics import questions
from langedit_core.models import architecture_of
from langedit_core.packaged import EMBEDDED, PACKAGED, converted
from langedit_core.records import Fact, FactSet
from langedit_core.results import Cell

PUBLISHED: dict[str, dict] = {
    "EleutherAI/gpt-j-6b": dict(
        model_type="gptj", vocab_size=50400, n_embd=4096, n_layer=28, n_head=16, rotary_dim=64, n_positions=2048,
        tie_word_embeddings=False,
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": dict(
        model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False,
    ),
    "Qwen/Qwen2.5-7B-Instruct": dict(
        model_type="qwen2", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False,
    ),
}  # fmt: skip
"""Shapes as in the config.json of these repositories on the hub, for a machine that has not seen them yet."""

BYTES_PER_TOKEN = 3.0  # UTF-8 bytes; Gemma's tokenizer has 3.3 to 3.8 on mzsRE and 2.6 to 3.8 on atlas
PASSES = {"trust": 0.32, "adam": 0.62}  # share of the steps used on average: 7.9 and 15.6 of 25, benchmarks/README.md
EFFICIENCY = (
    0.2,
    0.5,
)  # of a large product's throughput; benchmarks/README.md has 1/3.6 = 0.28 for values on two cores
DOUBLE_EFFICIENCY = (0.05, 1.0)  # of decompositions counted as 9 d³: near 1 on two cores (as above), low on a GPU
DOUBLE_OVER_SINGLE = 0.5  # float64 where only --tflops is known; data-centre GPUs. Others: 1/32 and less
UNION = 8  # words of a restricted softmax, in units of those kept per position: a few thousand where 512 are kept
XTREME_COLUMNS = 300  # per record, beside the solved examples that a set's records share
XTREME_TASKS = 4
DRIFT_TOKENS = 32  # of each neutral paragraph, one of two scored
DOUBLE = ("decompositions", "solve")  # parts that run in float64


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What of a model decides about cost; all counts are numbers of parameters.

    Attributes:
        layer: One transformer layer.
        head: The output embedding matrix.
        source: Where the configuration comes from.
    """

    model_type: str
    parameters: int
    layer: int
    head: int
    n_layers: int
    d_model: int
    d_ff: int
    source: str

    @property
    def vocabulary(self) -> int:
        return self.head // self.d_model

    @classmethod
    def of(cls, config: PreTrainedConfig, source: str = "configuration given") -> Shapes:
        """Count a model without making it: the meta device has shapes and no memory.

        Raises:
            ValueError: The architecture is not supported.
        """
        architecture = architecture_of(config.model_type)
        with torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config, attn_implementation=architecture.attention_kernel)
        layers = hf.get_submodule(architecture.layers)
        write = layers[0].get_submodule(architecture.write).weight
        d_model, d_ff = reversed(write.shape) if architecture.transposed else write.shape
        return cls(
            model_type=config.model_type, parameters=sum(p.numel() for p in hf.parameters()),
            layer=sum(p.numel() for p in layers[0].parameters()), head=hf.get_output_embeddings().weight.numel(),
            n_layers=len(layers), d_model=d_model, d_ff=d_ff, source=source,
        )  # fmt: skip


def shapes_of(name: str) -> Shapes:
    """Shapes of a model by the names `load_model` takes, without network and without weights.

    Raises:
        FileNotFoundError: No configuration is at hand; says how to get it.
    """
    source, get = name, f"`hf download {name} config.json` gets it"
    if name in EMBEDDED:
        source, get = str(EMBEDDED[name]), "reinstalling the package brings it"
    if name in PACKAGED:
        source = str(converted(name))
        get = f"`langedit inspect {name}` converts it"
    try:
        if (name in PACKAGED or Path(source).is_dir()) and not (Path(source) / "config.json").is_file():
            raise OSError(f"{source} has no config.json")
        config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        return Shapes.of(config, "its config.json")
    except OSError as error:
        if name not in PUBLISHED:
            raise FileNotFoundError(f"the configuration of {name} is not on this machine; {get}") from error
    return Shapes.of(AutoConfig.for_model(**PUBLISHED[name]), "shapes published on the hub")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The facts of one batch, in tokens (columns); sums over the facts unless it says otherwise.

    Attributes:
        facts: Their number.
        before: Up to the subject, its last token left out.
        after: From the subject's last token on, without the target's last one.
        longest: The most of `after` that one fact has.
        target: The targets.
        subject: The subjects.
        asked: All questions about the facts, answers included; `answers`, `edits`: answers alone, edit prompts alone.
    """

    facts: int
    before: int
    after: int
    longest: int
    target: int
    subject: int
    asked: int
    answers: int
    edits: int

    @classmethod
    def of(cls, facts: Sequence[Fact]) -> Texts:
        halves = [fact.prompt.split("{}") for fact in facts]
        after = [tokens(tail) + tokens(fact.target) for (_, tail), fact in zip(halves, facts, strict=True)]
        asked = [q for fact in facts for q in questions(fact)]
        return cls(
            facts=len(facts),
            before=sum(tokens(head + fact.subject) for (head, _), fact in zip(halves, facts, strict=True)),
            after=sum(after),
            longest=max(after),
            target=sum(tokens(fact.target) for fact in facts),
            subject=sum(tokens(fact.subject) for fact in facts),
            asked=sum(tokens(q.prompt) + tokens(q.answer) for q in asked),
            answers=sum(tokens(q.answer) for q in asked),
            edits=sum(tokens(q.prompt) + tokens(q.answer) for q in asked if q.family == "efficacy"),
        )


def tokens(text: str) -> int:
    """How many tokens a text has, by its bytes: no tokenizer is loaded."""
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def texts_of(cell: Cell, data: FactSet) -> list[Texts]:
    """The cell's batches. Facts whose subject a tokenizer would merge with other text are not passed over here.

    Raises:
        ValueError: The data set has too few facts for the cell.
    """
    drawn = data.select(cell.langs, cell.batch * cell.rounds, cell.split, cell.seed, cell.parallel, deal=cell.deal)
    return [Texts.of(facts[r * cell.batch : (r + 1) * cell.batch]) for r in range(cell.rounds) for facts in drawn]


# --- memory -----------------------------------------------------------------------------------------------------------


def memory(
    shapes: Shapes, cell: Cell, batches: Sequence[Texts], dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Bytes per part; `peak` with a whole micro-batch, `least` with the values of one fact at a time.

    Args:
        shapes: The cell's model.
        cell: What is run.
        batches: Its texts.
        dtype: Of weights and activations; statistics are float64.
    """
    settings, size, square = cell.settings, dtype.itemsize, 8.0 * shapes.d_ff**2
    layer = state(settings, shapes.d_model, shapes.d_ff, cell.edits, itemsize=size)
    parts = {"weights": float(shapes.parameters * size)} | {k: len(settings.layers) * v for k, v in layer.items()}
    # The sum to decompose, eigenvectors, and twice a matrix for the solver, one layer at a time.
    workspace = 4 * square if settings.space != "whole" else square if _pays(settings) else 0.0
    facts = 1 if settings.one_by_one else min(settings.microbatch or cell.batch, cell.batch)
    whole, single = (_activations(shapes, cell, batches, count, size) for count in (facts, 1))
    held = sum(parts.values())
    return parts | {
        "micro-batch": whole, "workspace": workspace, "peak": held + max(whole, workspace),
        "least": held + max(single, workspace),
    }  # fmt: skip


def _pays(settings: EditSettings) -> bool:
    """Whether the method pays for what it changes elsewhere, by λ₀C₀."""
    return settings.space == "whole" and settings.covariance_weight > 0 and settings.finetune is None


def state(
    settings: EditSettings, d_out: int, d_in: int, edits: int, *, itemsize: int = 4, protected: float = 0.5
) -> dict[str, float]:
    """Bytes one edited layer holds from batch to batch.

    Args:
        settings: The method.
        d_out, d_in: Shape of the edited matrix.
        edits: Keys taken in so far.
        itemsize: Bytes of a weight and of a stored key; statistics are float64.
        protected: Share of directions C₀ protects; the thinner side is held, so at most half.

    Returns:
        `edited` the matrix as it was at first and before the batch, and the parameter's copy in an update;
        `covariances` C₀; `eigenbases` the thinner side of its spectrum; `method` what comes on top: a Cholesky factor,
        stored keys or, once they are more than dimensions and only their sum is needed, that sum, or the directions
        they took; a running mean sums them up every d_in keys, and the most it holds meanwhile is told. Of full keys
        both C₀'s side and the one extended by the keys.
    """
    square, keys = 8.0 * d_in**2, float(d_in * edits) * itemsize
    if settings.space in ("released", "full_keys"):
        held = keys
    elif settings.space in ("running", "literal", "randomized"):
        held = square + float(d_in * d_in) * itemsize if edits > d_in else keys
    elif settings.remember:
        held = square if edits > d_in and settings.constraint == "penalty" else keys
    else:
        held = 0.0
    grown = 8.0 * d_in * min(edits, d_in) if settings.space in ("incremental", "full_keys") else 0.0
    basis = 8.0 * d_in * round(min(protected, 1 - protected) * d_in) if settings.space != "whole" else 0.0
    return {
        "edited": 3.0 * d_out * d_in * itemsize,
        "covariances": square * settings.needs_covariance,
        "eigenbases": basis * (2 if settings.space == "full_keys" else 1),
        "method": square * _pays(settings) + held + grown,
    }


def _activations(shapes: Shapes, cell: Cell, batches: Sequence[Texts], facts: int, size: int) -> float:
    """What one forward and backward pass of the values of `facts`, or of fine-tuning, holds at once."""
    settings = cell.settings
    length = max(math.ceil(b.before / b.facts) + b.longest for b in batches)
    targets = max(math.ceil(b.target / b.facts) for b in batches)
    per_column = size * (6 * shapes.d_model + 4 * shapes.d_ff)  # a layer's tensors that its backward pass needs
    if settings.finetune is not None:
        trained = 20.0 * len(settings.layers) * shapes.d_model * shapes.d_ff  # start, copy, gradient, two moments
        columns = facts * length * (shapes.n_layers - settings.layers[0])
        return trained + columns * per_column + 3.0 * facts * targets * shapes.vocabulary * size
    rows, above = facts * (1 + cell.prefixes), shapes.n_layers - 1 - _first(settings)
    columns = rows * max(b.longest for b in batches) + facts
    context = cell.prefix_tokens if cell.prefixes else 0
    # Keys and values of all columns: the prefix's in every layer, and those joined for a pass in every layer above.
    attended = rows * (length + context) * 2 * shapes.d_model * size * (shapes.n_layers + above)
    words = _words(shapes, settings)
    logits = size * (3.0 * (rows * targets + facts) * words + 2.0 * facts * shapes.vocabulary)
    return columns * above * per_column + attended + logits


def _words(shapes: Shapes, settings: EditSettings) -> int:
    """Words a softmax runs over while values are optimised."""
    kept = settings.values.vocabulary
    return shapes.vocabulary if kept is None else min(shapes.vocabulary, UNION * kept)


def _first(settings: EditSettings) -> int:
    """The lowest layer a δ is added at."""
    return settings.layers[0] if settings.spread == "joint" else settings.layers[-1]


# --- time -------------------------------------------------------------------------------------------------------------


def work(shapes: Shapes, cell: Cell, batches: Sequence[Texts], passes: float) -> dict[str, float]:
    """FLOPs of one cell, per part; two per multiply-add, products with the weights only.

    Args:
        shapes: The cell's model.
        cell: What is run.
        batches: Its texts.
        passes: Share of the allowed steps that facts use on average.
    """
    found = dict.fromkeys(("values", "keys", "solve", "decompositions", "measuring"), 0.0)
    for number, texts in enumerate(batches):
        found["values"] += _values(shapes, cell, texts, passes)
        found["keys"] += _keys(shapes, cell, texts)
        found["solve"] += _solve(shapes, cell, texts, number)
        tracked = sum(b.edits * min(1, (cell.track or b.facts) / b.facts) for b in batches[:number]) + texts.edits
        # Right after the batch, its questions and the edit prompts so far; at the end, its questions again.
        found["measuring"] += _forward(shapes, 2 * texts.asked + tracked, 2 * texts.answers)
    paragraphs = sum(len(neutral_texts().get(lang, ())) for lang in set(cell.langs))
    read = (len(batches) + 1) * paragraphs * DRIFT_TOKENS
    found["measuring"] += _forward(shapes, read, read / 2) + _xtreme(shapes, cell)
    found["decompositions"] += _decompositions(shapes, cell)
    return found


def _forward(shapes: Shapes, columns: int | float, positions: int | float = 0) -> float:
    """All layers on some columns, the head at some positions."""
    return 2.0 * (shapes.layer * shapes.n_layers * columns + shapes.head * positions)


def _values(shapes: Shapes, cell: Cell, texts: Texts, passes: float) -> float:
    settings, contexts = cell.settings, 1 + cell.prefixes
    if (tuned := settings.finetune) is not None:
        columns = texts.before + texts.after
        above = shapes.layer * (shapes.n_layers - settings.layers[0]) * columns
        gradient = len(settings.layers) * shapes.d_model * shapes.d_ff * columns
        steps = max(1, passes * tuned.steps)
        return _forward(shapes, columns) + steps * (4.0 * (above + shapes.head * texts.target) + 2.0 * gradient)
    values, positions = settings.values, contexts * texts.target + texts.facts
    columns = contexts * texts.after
    setup = _forward(shapes, _context_columns(cell, texts) + columns + texts.subject, texts.facts)
    above = shapes.layer * (shapes.n_layers - 1 - _first(settings)) * (columns + texts.facts)
    head = shapes.head * positions
    if values.vocabulary is not None:  # all words once at the start and once at the stopping test
        setup, head = setup + 4.0 * head, _words(shapes, settings) * shapes.d_model * positions
    return setup + max(1, passes * values.steps) * 4.0 * (above + head)


def _context_columns(cell: Cell, texts: Texts) -> int:
    """Columns before the subject's last token, over all contexts."""
    return (1 + cell.prefixes) * texts.before + texts.facts * cell.prefixes * cell.prefix_tokens


def _keys(shapes: Shapes, cell: Cell, texts: Texts) -> float:
    layers = cell.settings.layers
    if cell.settings.finetune is not None:
        return 0.0
    # Up to the last layer, then on from each edited one, which runs up to its projection to be read.
    read = 1 - shapes.d_model * shapes.d_ff / shapes.layer
    runs = layers[-1] + layers[-1] - layers[0] + len(layers) * read
    if cell.settings.spread == "residual":  # what is missing is measured at the last layer, before each update
        runs += sum(layers[-1] - layer + 1 for layer in layers)
    return 2.0 * shapes.layer * runs * (_context_columns(cell, texts) + (1 + cell.prefixes) * texts.facts)


def _solve(shapes: Shapes, cell: Cell, texts: Texts, number: int) -> float:
    settings, d, n = cell.settings, shapes.d_ff, texts.facts
    if settings.finetune is not None:
        return 0.0
    columns = n * (number + 1) if settings.remember else n
    # Keys pass a d x d factor in the solve, for the report and for the state; then the small system, and ΔW itself.
    return len(settings.layers) * (6.0 * d**2 * columns + columns**3 / 3 + 2.0 * d * n * (columns + shapes.d_model))


def _decompositions(shapes: Shapes, cell: Cell) -> float:
    settings, d, narrow = cell.settings, shapes.d_ff, min(shapes.d_ff, shapes.d_model)
    once = 0.0
    if settings.space != "whole":
        again = cell.batches - 1 if settings.space in ("running", "literal", "released") else 0
        once = 9.0 * d**3 * (1 + again)
    elif settings.covariance_weight > 0 and settings.finetune is None:
        once = d**3 / 3
    if settings.sphere > 0:
        once += cell.batches * (9.0 * narrow**3 + 2.0 * narrow**2 * d)
    if settings.damping is not None:  # two singular value decompositions of the weight's shape
        once += 2 * 22.0 * narrow**2 * d
    return len(settings.layers) * once


def _xtreme(shapes: Shapes, cell: Cell) -> float:
    return _forward(shapes, cell.xtreme * XTREME_TASKS * len(cell.asked_in) * XTREME_COLUMNS)


def corpus_tokens(cell: Cell, data: FactSet) -> int:
    """Tokens that C₀ is a mean over; fewer than `d_ff` leave it singular."""
    texts = (text for lang in set(cell.langs) for text in data.corpus[lang][: cell.corpus_limit])
    return sum(min(128, tokens(text)) for text in texts)


def shared_work(shapes: Shapes, cells: Iterable[tuple[Cell, FactSet, Sequence[Texts]]]) -> float:
    """FLOPs of what cells of one model share through files: covariances, and the unedited model's answers."""
    answers: dict[tuple, float] = {}
    layers: dict[tuple, set[int]] = {}
    columns: dict[tuple, int] = {}
    for cell, data, batches in cells:
        asked, answered = sum(b.asked for b in batches), sum(b.answers for b in batches)
        answers[cell.data, cell.langs, cell.seed, cell.edits] = _forward(shapes, asked, answered)
        answers["xtreme", cell.asked_in, cell.xtreme] = _xtreme(shapes, cell)
        corpus = (cell.data, cell.langs, cell.corpus_limit)
        if corpus not in columns:
            columns[corpus] = corpus_tokens(cell, data)
        layers.setdefault(corpus, set()).update(cell.settings.layers if cell.settings.needs_covariance else ())
    covariances = sum(
        2.0 * columns[corpus] * (shapes.layer * (max(found) + 1) + len(found) * shapes.d_ff**2)
        for corpus, found in layers.items()
        if found
    )
    return covariances + sum(answers.values())


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Throughput of a device in FLOPs per second, for large products in float32 and float64."""

    single: float
    double: float
    source: str

    @classmethod
    def given(cls, tflops: int | float) -> Rate:
        if not tflops > 0:
            raise ValueError(f"--tflops is {tflops}; expected the device's float32 TFLOP/s, for example 60")
        told = f"{tflops:g} TFLOP/s in float32 as given, {DOUBLE_OVER_SINGLE:g} of that in float64 (data-centre GPUs)"
        return cls(single=tflops * 1e12, double=DOUBLE_OVER_SINGLE * tflops * 1e12, source=told)

    @classmethod
    def measured(cls, device: str) -> Rate:
        """The best of a few products on `device`, or the first of several, which take turns; below a second."""
        if device in ("auto", *SPREADS):
            device = usable_device("auto")
        single, double = (_product_rate(device, dtype) for dtype in (torch.float32, torch.float64))
        told = f"{single / 1e12:.3g} and {double / 1e12:.3g} TFLOP/s in float32 and float64, measured on {device}"
        return cls(single=single, double=double, source=told)

    def seconds(self, flops: dict[str, float], high: bool) -> dict[str, float]:
        """Seconds per part, at the low or the high end of the range."""
        single, double = (self.single * EFFICIENCY[not high], self.double * DOUBLE_EFFICIENCY[not high])
        return {part: count / (double if part in DOUBLE else single) for part, count in flops.items()}


def _product_rate(device: str, dtype: torch.dtype) -> float:
    n, wait = (8192, torch.cuda.synchronize) if device.startswith("cuda") else (1024, lambda: None)
    x = torch.ones(n, n, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):  # the first one warms up
        wait()
        start = time.perf_counter()
        x @ x
        wait()
        best = min(best, time.perf_counter() - start)
    return 2.0 * n**3 / best
