"""What the estimate counts is what a model really has, holds and multiplies, measured on tiny models."""

from __future__ import annotations

import math

import conftest
import pytest
import torch
import toy
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from langedit_core import estimate
from langedit_core.editors import Editor, Update, settings_for
from langedit_core.estimate import Rate, Shapes, Texts, memory, shapes_of, work
from langedit_core.keys import KeyReader
from langedit_core.metrics import ask, questions
from langedit_core.nullspace import Threshold
from langedit_core.packaged import converted
from langedit_core.results import Cell
from langedit_core.study import load_data
from langedit_core.tokens import encode
from langedit_core.values import ValueSettings, optimise_values

PAPERS = {  # model -> type, parameters: of the safetensors files on the hub, for GPT-J of the model transformers makes
    "EleutherAI/gpt-j-6b": ("gptj", 6_050_882_784),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", 8_030_261_248),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 7_615_616_512),
}
WIDE = {  # wide enough that attention scores, which are not counted, matter little
    "gptj": dict(n_embd=128, n_inner=512, rotary_dim=16),
    "llama": dict(hidden_size=128, intermediate_size=448),
    "qwen2": dict(hidden_size=128, intermediate_size=672),
}
PUBLISHED = ValueSettings.published(stop=1e-9, steps=4)  # no fact ever finishes
three = pytest.mark.parametrize("model_type", WIDE)


def cell(method="langedit", *, langs=("en",), facts=4, **changes) -> Cell:
    options = dict(layers=(1, 2), spread="residual", values=PUBLISHED)
    if toy.pays_for_the_covariance(method):
        options["covariance_weight"] = 1.0
    fields = dict(model="m", data="toy", method=method, langs=langs, batch=facts, prefixes=2, prefix_tokens=5)
    return Cell(settings=settings_for(method, on=options | changes), **fields)


def counted(model, requests, of) -> Texts:
    """Texts of a batch as its tokenizer cuts them, instead of by bytes."""
    bare = [request.contexts[0] for request in requests]
    after = [len(row.ids) - row.lookup for row in bare]
    asked = [q for fact in of for q in questions(fact)]
    length = {q: len(encode(model.tokenizer, q.prompt + q.answer)) - 1 for q in asked}
    answers = {q: length[q] + 1 - len(encode(model.tokenizer, q.prompt)) for q in asked}
    return Texts(
        facts=len(of), before=sum(row.lookup for row in bare), after=sum(after), longest=max(after),
        target=sum(len(r.target) for r in requests), subject=sum(r.kl.lookup + 1 for r in requests),
        asked=sum(length.values()), answers=sum(answers.values()),
        edits=sum(length[q] for q in asked if q.family == "efficacy"),
    )  # fmt: skip


@pytest.fixture
def batch(model_type):
    model = conftest.build_model(model_type, **WIDE[model_type])
    of = toy.facts("en", range(4))
    requests = [toy.value_request(model, fact) for fact in of]
    return model, requests, of, Shapes.of(model.hf.config), counted(model, requests, of)


def test_counts_are_those_of_the_model_that_is_built(any_model):
    shapes, head = Shapes.of(any_model.hf.config), any_model.hf.get_output_embeddings().weight
    assert shapes.parameters == sum(p.numel() for p in any_model.hf.parameters())
    assert shapes.layer == sum(p.numel() for p in any_model.layers[0].parameters())
    assert (shapes.n_layers, shapes.d_model, shapes.d_ff) == (any_model.n_layers, any_model.d_model, any_model.d_ff)
    assert (shapes.vocabulary, shapes.d_model) == tuple(head.shape)


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_models_have_their_published_size_without_network_or_weights(name):
    shapes = shapes_of(name)
    assert (shapes.model_type, shapes.parameters) == PAPERS[name]


def test_a_folder_needs_no_weights_and_what_is_missing_is_named(tmp_path, monkeypatch):
    AutoConfig.for_model("llama", **conftest.CONFIGS["llama"]).save_pretrained(tmp_path / "mine")
    assert shapes_of(str(tmp_path / "mine")).d_ff == conftest.CONFIGS["llama"]["intermediate_size"]
    with pytest.raises(FileNotFoundError, match="hf download nobody/has-this-model config.json"):
        shapes_of("nobody/has-this-model")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="langedit inspect gemma-3-270m"):
        shapes_of("gemma-3-270m")


def test_a_converted_model_is_found_in_the_cache_that_the_environment_names(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    AutoConfig.for_model("llama", **conftest.CONFIGS["llama"]).save_pretrained(converted("gemma-3-270m"))
    assert converted("gemma-3-270m").is_relative_to(tmp_path)
    assert shapes_of("gemma-3-270m").d_ff == conftest.CONFIGS["llama"]["intermediate_size"]


# --- memory -----------------------------------------------------------------------------------------------------------


@three
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_take_what_their_precision_takes(batch, dtype):
    model, _, _, shapes, texts = batch
    held = sum(p.numel() * p.element_size() for p in model.hf.to(dtype).parameters())
    assert memory(shapes, cell(), [texts], dtype)["weights"] == held


@three
@pytest.mark.parametrize(
    "method",
    ["memit", "memit-seq", "alphaedit", "langedit", "langedit-released", "langedit-full", "langedit-randomized",
     "evoedit", "ft"],
)  # fmt: skip
def test_statistics_are_those_an_editor_holds(batch, method):
    model, requests, of, shapes, texts = batch
    of_cell = cell(method, threshold=Threshold(kind="fraction", value=0.8))
    covariances = toy.covariances(model, of_cell.settings.layers)
    editor = Editor(model, of_cell.settings, covariances, toy.CONTEXTS)
    editor.edit(of)
    parts, states = memory(shapes, of_cell, [texts]), editor.layers.values()

    def held(*tensors) -> int:  # a tensor held by two is held once
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors if t is not None}.values())

    assert parts["covariances"] == held(*(c.gram for c in covariances.values())) * of_cell.settings.needs_covariance
    kept = [dict(s.projector.held) for s in states]
    grams = [own.pop("gram", None) for own in kept]
    if method.startswith("langedit") and method != "langedit-full":  # the editor makes no matrix of its own
        assert all(gram is covariance.gram for gram, covariance in zip(grams, covariances.values(), strict=True))
    for state, own in zip(states, kept, strict=True):
        # What keys took is part of a decomposed basis, and beside C₀'s in those that grow.
        start = state.settings.space in ("static", "incremental", "full_keys")
        share = round(0.2 * shapes.d_ff) / shapes.d_ff if start else 1 - state.space().rank / shapes.d_ff
        layer = estimate.state(of_cell.settings, shapes.d_model, shapes.d_ff, len(of), protected=share)
        real = held(*own.values(), *state.past, state.metric and state.metric.factor)
        assert real == layer["eigenbases"] + layer["method"]
    assert parts["method"] == len(states) * layer["method"]
    assert parts["edited"] == 3 * held(*(s.weight for s in states))


@pytest.mark.parametrize("method", ["langedit", "langedit-literal", "langedit-randomized"])
def test_a_sequence_of_any_length_holds_no_more_than_two_sums(method):
    model = conftest.build_model("llama")
    of_cell, d = cell(method), model.d_ff
    state = Editor(model, of_cell.settings, toy.covariances(model, (1, 2)), toy.CONTEXTS).layers[1]
    projector, shared = state.projector, state.projector.gram
    for edits in range(d // 2, 4 * d, d // 2):
        projector = projector.taking(torch.randn(d, d // 2))
        own = () if projector.gram is shared else (projector.gram,)
        real = sum(t.numel() * t.element_size() for t in (*projector.keys, *own))
        estimated = estimate.state(of_cell.settings, model.d_model, d, edits)["method"]
        assert real == estimated if edits <= d else 8 * d**2 <= real <= estimated


@pytest.mark.parametrize("method", ["alphaedit", "memit-seq"])
@pytest.mark.parametrize("more", [0, 1])
def test_more_past_keys_than_dimensions_are_held_as_their_sum(method, more):
    model = conftest.build_model("llama")
    of_cell, d = cell(method), model.d_ff
    state = Editor(model, of_cell.settings, toy.covariances(model, (1, 2)), toy.CONTEXTS).layers[1]
    keys = torch.randn(d, d + more)
    known = state.remembered(Update(left=keys[: model.d_model], right=keys, keys=keys))
    tensors = [*known["past"], *([] if known["past_gram"] is None else [known["past_gram"]])]
    none, many = (estimate.state(of_cell.settings, model.d_model, d, n)["method"] for n in (0, d + more))
    assert sum(t.numel() * t.element_size() for t in tensors) == many - none


@three
def test_a_micro_batch_holds_at_most_what_is_estimated_and_not_much_less(batch):
    model, requests, of, shapes, texts = batch
    own, found = {p.untyped_storage().data_ptr() for p in model.hf.parameters()}, {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage  # kept, so that no address is used twice
        return tensor

    one_pass = PUBLISHED.model_copy(update={"steps": 1})
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        optimise_values(model, requests, (2,), one_pass, microbatch=len(of))
    held = sum(storage.nbytes() for storage in found.values())
    estimated = memory(shapes, cell(), [texts])["micro-batch"]
    assert held <= estimated <= 3 * held


@three
def test_peak_is_what_is_held_and_the_larger_of_what_comes_by_turns(batch):
    *_, texts = batch
    shapes = shapes_of("EleutherAI/gpt-j-6b")  # of a tiny model, a decomposition takes more than any micro-batch
    texts = Texts(**{name: value if name == "longest" else 16 * value for name, value in vars(texts).items()})
    parts = memory(shapes, cell(facts=64), [texts])
    held = sum(parts[name] for name in ("weights", "edited", "covariances", "eigenbases", "method"))
    assert parts["peak"] == held + max(parts["micro-batch"], parts["workspace"])
    alone = memory(shapes, cell(facts=64, microbatch=1), [texts])
    assert alone["peak"] == alone["least"] == parts["least"] < parts["peak"]
    values = PUBLISHED.model_copy(update={"site": "write"})
    rome = cell("rome", facts=64, layers=(1,), spread="joint", values=values)
    found = memory(shapes, rome, [texts])
    assert found["peak"] == found["least"]  # one fact after another, whatever the batch


# --- time -------------------------------------------------------------------------------------------------------------


def flops(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@three
@pytest.mark.parametrize("vocabulary", [None, 16])
def test_flops_of_values_are_those_counted_while_they_run(batch, vocabulary):
    model, requests, _, shapes, texts = batch
    values = PUBLISHED.model_copy(update={"steps": 12, "vocabulary": vocabulary})
    real = flops(lambda: optimise_values(model, requests, (2,), values))
    estimated = work(shapes, cell(values=values), [texts], 1.0)["values"]
    assert 0.75 <= estimated / real <= 1.25


@three
def test_flops_of_keys_and_of_measuring_are_those_counted_while_they_run(model_type):
    model = conftest.build_model(model_type, **WIDE[model_type])
    of = toy.facts("en", (0, 9, 18, 27))  # four times the same words, so that no row is padded
    requests = [toy.value_request(model, fact, toy.BARE) for fact in of]
    shapes, texts = Shapes.of(model.hf.config), counted(model, requests, of)
    of_cell = cell().model_copy(update={"prefixes": 0})

    def read():
        reader = KeyReader(model, [r.contexts for r in requests], of_cell.settings.layers)
        for layer in of_cell.settings.layers:
            reader.read(layer)
            reader.residual_stream()

    found = work(shapes, of_cell, [texts], 1.0)
    assert 0.75 <= found["keys"] / flops(read) <= 1.25
    real = flops(lambda: ask(model, [q for fact in of for q in questions(fact)]))
    assert 0.75 <= estimate._forward(shapes, texts.asked, texts.answers) / real <= 1.25


@three
def test_flops_of_fine_tuning_are_those_counted_while_it_runs(batch):
    model, _, of, shapes, texts = batch
    of_cell = cell("ft", finetune=dict(steps=12, stop=0.0))
    editor = Editor(model, of_cell.settings, toy.covariances(model, (1, 2)), toy.CONTEXTS)
    estimated = work(shapes, of_cell, [texts], 1.0)["values"]
    assert 0.75 <= estimated / flops(lambda: editor.edit(of)) <= 1.25


@three
def test_work_grows_linearly_with_the_edits_and_decompositions_with_the_batches(batch):
    *_, shapes, texts = batch
    doubled = Texts(**{name: 2 * value for name, value in vars(texts).items()})
    one, two = (work(shapes, cell(facts=f), [t], 0.5) for f, t in ((4, texts), (8, doubled)))
    assert two["values"] == pytest.approx(2 * one["values"]) and two["keys"] == pytest.approx(2 * one["keys"])
    assert two["decompositions"] == one["decompositions"] > 0
    long = cell(langs=("en", "de", "fr"))
    for method, times in (("langedit", 3), ("langedit-released", 3), ("alphaedit", 1), ("evoedit", 1)):
        found = work(shapes, cell(method, langs=long.langs), [texts] * 3, 0.5)["decompositions"]
        assert found == pytest.approx(times * one["decompositions"])
    for method in ("memit", "ft"):
        assert work(shapes, cell(method), [texts], 0.5)["decompositions"] < one["decompositions"]
    fewer = work(shapes, cell(), [texts], 0.25)["values"]
    assert one["values"] / 2 < fewer < one["values"]


@three
def test_a_covariance_is_counted_once_however_many_cells_use_it(batch):
    *_, shapes, texts = batch
    data, both = toy.fact_set(("en",)), [cell("langedit"), cell("evoedit")]
    once, twice = (estimate.shared_work(shapes, [(c, data, [texts]) for c in cells]) for cells in (both[:1], both))
    assert twice == once > 0


def test_a_corpus_is_as_long_as_its_sentences_up_to_the_cut():
    data, languages = toy.fact_set(("en", "de")), cell(langs=("en", "de", "en"))
    assert estimate.corpus_tokens(languages, data) == 2 * sum(map(estimate.tokens, conftest.SENTENCES))
    first = languages.model_copy(update={"corpus_limit": 1})
    assert estimate.corpus_tokens(first, data) == 2 * estimate.tokens(conftest.SENTENCES[0])


def test_a_token_is_counted_by_its_bytes():
    assert estimate.tokens("") == 0
    assert estimate.tokens("Oslo") == math.ceil(4 / estimate.BYTES_PER_TOKEN)
    assert estimate.tokens("挪威") == math.ceil(6 / estimate.BYTES_PER_TOKEN)


def test_texts_are_those_of_the_cells_facts():
    data = toy.fact_set(("en", "de"))
    batches = estimate.texts_of(cell(langs=("en", "de")), data)
    assert [b.facts for b in batches] == [4, 4]
    fact = toy.fact(0)
    one = Texts.of([fact])
    assert one.after == one.longest == estimate.tokens(" is") + estimate.tokens(fact.target)
    assert one.before == estimate.tokens(f"The capital of {fact.subject}")
    with pytest.raises(ValueError, match="facts asked for"):
        estimate.texts_of(cell(facts=50), data)


def test_seconds_are_work_over_throughput_and_a_range():
    rate = Rate(single=1e12, double=1e11, source="")
    low, high = (rate.seconds({"values": 1e12, "decompositions": 1e12}, end) for end in (False, True))
    assert low["values"] == 1 / estimate.EFFICIENCY[1] < high["values"] == 1 / estimate.EFFICIENCY[0]
    assert low["decompositions"] == pytest.approx(10 / estimate.DOUBLE_EFFICIENCY[1])
    assert high["decompositions"] == pytest.approx(10 / estimate.DOUBLE_EFFICIENCY[0])
    assert Rate.given(60).single == 60e12
    with pytest.raises(ValueError, match="--tflops is 0"):
        Rate.given(0)
    measured = Rate.measured("cpu")
    assert 0 < measured.single < math.inf and 0 < measured.double < math.inf and "cpu" in measured.source


def test_the_estimate_of_a_longer_run_is_longer():
    shapes = shapes_of("EleutherAI/gpt-j-6b")
    data = load_data("atlas", ("en", "zh"))
    totals = []
    for facts in (5, 10):
        of_cell = cell("evoedit", langs=("en", "zh"), facts=facts)
        found = work(shapes, of_cell, estimate.texts_of(of_cell, data), 1.0)
        totals.append(found["values"])
    assert 1.6 < totals[1] / totals[0] < 2.5  # other facts, of other lengths


def test_an_embedded_model_is_estimated_from_the_package():
    shapes = shapes_of("atlas-lm")
    assert (shapes.model_type, shapes.n_layers, shapes.source) == ("llama", 6, "its config.json")
