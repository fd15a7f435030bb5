"""The covariance counts every token once and no padding, and a file that is not what was computed is never used."""

from __future__ import annotations

import conftest
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langedit_core import covariance as module
from langedit_core.covariance import KeyCovariance, cached_covariance, collect_covariance, corpus_hash
from langedit_core.models import EditableModel
from langedit_core.storage import CorruptFile, load_tensors, save_tensors
from langedit_core.tokens import encode

TEXTS = conftest.SENTENCES
LAYERS = (0, 2)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def literal(model, layer, texts, max_tokens=128) -> tuple[torch.Tensor, int]:
    """Σ k kᵀ and the number of tokens: whole model, one text at a time."""
    gram, count = torch.zeros(model.d_ff, model.d_ff, dtype=torch.float64), 0
    for text in texts:
        seen: dict = {}
        with torch.no_grad():
            reference.whole_model(model, encode(model.tokenizer, text)[:max_tokens], watch=seen)
        keys = seen[layer, "in"].double().T
        gram, count = gram + keys @ keys.T, count + keys.shape[1]
    return gram, count


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()


# --- the statistic ----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(sum), st.integers(1, 6))
@settings(deadline=None)
def test_streaming_equals_one_batch_and_merging_equals_streaming(sizes, d):
    parts = [randn(d, n, seed=i) for i, n in enumerate(sizes)]
    streamed = KeyCovariance.empty(d)
    for keys in parts:
        streamed.update(keys)
    everything = torch.cat(parts, dim=1)
    torch.testing.assert_close(streamed.mean, everything @ everything.T / sum(sizes))
    assert streamed.count == sum(sizes)
    merged = KeyCovariance.empty(d)
    for keys in parts:
        one = KeyCovariance.empty(d)
        one.update(keys)
        merged = one.merge(merged)
    torch.testing.assert_close(merged.mean, streamed.mean)
    assert merged.count == streamed.count


def test_an_update_is_the_running_mean_of_the_paper():
    first, second = randn(4, 7), randn(4, 3, seed=1)
    covariance = KeyCovariance.empty(4)
    covariance.update(first)
    mean, count = reference.running_mean(first @ first.T / 7, 7, second)
    covariance.update(second)
    torch.testing.assert_close(covariance.mean, mean)
    assert covariance.count == count == 10


def test_a_copy_is_independent():
    covariance = KeyCovariance.empty(3)
    covariance.update(randn(3, 2))
    copy = covariance.copy()
    copy.update(randn(3, 2, seed=1))
    assert (covariance.count, copy.count) == (2, 4)
    assert not torch.equal(covariance.gram, copy.gram)


def test_single_precision_keys_are_summed_in_double():
    covariance = KeyCovariance.empty(3)
    for seed in range(50):
        covariance.update(randn(3, 4, seed=seed).float())
    everything = torch.cat([randn(3, 4, seed=seed) for seed in range(50)], dim=1)
    assert covariance.gram.dtype == torch.float64
    close(covariance.gram, everything @ everything.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keys_are_multiplied_in_single(dtype):
    # Σkk over 2,048 keys of 20 is 819,200, beyond float16; bfloat16 keeps three digits of it and no small eigenvalue.
    keys = (20 + 0.1 * randn(16, 2048)).to(dtype)
    covariance = KeyCovariance.empty(16)
    covariance.update(keys)
    expected = keys.double() @ keys.double().T
    assert (covariance.gram - expected).norm() < 1e-6 * expected.norm()
    ours, theirs = torch.linalg.eigvalsh(covariance.gram), torch.linalg.eigvalsh(expected)
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=0.1, atol=0)
    assert covariance.count == 2048


def test_keys_whose_products_overflow_are_refused_and_nothing_is_added():
    covariance = KeyCovariance.empty(3)
    covariance.update(randn(3, 2))
    before = covariance.gram.clone()
    with pytest.raises(FloatingPointError, match="overflow torch.float32; the covariance is left as it was"):
        covariance.update(torch.full((3, 1), 1e20))
    assert torch.equal(covariance.gram, before) and covariance.count == 2
    covariance.update(torch.full((3, 1), 1e20, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_keys_with_nan_or_infinity_are_refused_and_nothing_is_added(bad):
    covariance = KeyCovariance.empty(3)
    covariance.update(randn(3, 2))
    before, keys = covariance.gram.clone(), randn(3, 2)
    keys[0, 1] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinity; the covariance is left as it was"):
        covariance.update(keys)
    assert torch.equal(covariance.gram, before)
    assert covariance.count == 2


def test_keys_of_another_width_and_an_empty_mean_are_refused():
    covariance = KeyCovariance.empty(3)
    with pytest.raises(ValueError, match="no key"):
        _ = covariance.mean
    with pytest.raises(ValueError, match="4 rows but the covariance takes 3"):
        covariance.update(randn(4, 2))


# --- over a corpus ----------------------------------------------------------------------------------------------------


def test_every_token_is_counted_once_and_no_padding(any_model):
    found = collect_covariance(any_model, LAYERS, TEXTS)
    tokens = sum(len(encode(any_model.tokenizer, text)) for text in TEXTS)
    for layer in LAYERS:
        gram, count = literal(any_model, layer, TEXTS)
        assert found[layer].count == count == tokens
        close(found[layer].gram, gram)


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10_000])
def test_the_size_of_a_forward_does_not_matter(tiny, tokens_per_batch):
    seen: list[tuple[int, int]] = []
    found = collect_covariance(
        tiny, LAYERS, TEXTS, tokens_per_batch=tokens_per_batch, progress=lambda *done: seen.append(done)
    )
    for layer in LAYERS:
        close(found[layer].gram, literal(tiny, layer, TEXTS)[0])
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    assert len(seen) == {1: len(TEXTS), 60: len(seen), 10_000: 1}[tokens_per_batch]


def test_long_texts_are_cut_and_empty_ones_count_nothing(tiny):
    texts = [" ".join(TEXTS) * 3, "", "Ost"]
    longest = len(encode(tiny.tokenizer, texts[0]))
    assert longest > 100
    found = collect_covariance(tiny, (1,), texts, max_tokens=20)[1]
    gram, count = literal(tiny, 1, [texts[0], texts[2]], max_tokens=20)
    assert found.count == count == 20 + len(encode(tiny.tokenizer, "Ost"))
    close(found.gram, gram)


def test_keys_that_are_not_numbers_stop_the_collection(tiny):
    with torch.no_grad():
        tiny.weight(0)[3, 3] = float("nan")
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        collect_covariance(tiny, (1,), TEXTS)


def test_layers_the_model_does_not_have_are_refused(tiny):
    with pytest.raises(ValueError, match="layers 0 to 3"):
        collect_covariance(tiny, (4,), TEXTS)


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch) -> list[tuple[int, ...]]:
    """The layers of every computation."""
    calls, collect = [], module.collect_covariance

    def counted(model, layers, texts, **options):
        calls.append(tuple(layers))
        return collect(model, layers, texts, **options)

    monkeypatch.setattr(module, "collect_covariance", counted)
    return calls


def test_a_cached_covariance_is_loaded_to_the_bit_and_only_missing_layers_are_computed(tiny, tmp_path, computed):
    first = cached_covariance(tiny, (0, 2), TEXTS, folder=tmp_path)
    again = cached_covariance(tiny, (0, 1, 2), TEXTS, folder=tmp_path)
    assert computed == [(0, 2), (1,)]
    assert list(again) == [0, 1, 2]
    for layer in (0, 2):
        assert torch.equal(first[layer].gram, again[layer].gram)
        assert first[layer].count == again[layer].count
    close(again[1].gram, literal(tiny, 1, TEXTS)[0])


def test_corpus_model_and_cut_are_part_of_the_key(tiny, tmp_path, computed):
    cached_covariance(tiny, (1,), TEXTS, folder=tmp_path)
    cached_covariance(tiny, (1,), TEXTS[:-1], folder=tmp_path)
    cached_covariance(conftest.build_model("llama", seed=1), (1,), TEXTS, folder=tmp_path)
    short = cached_covariance(tiny, (1,), TEXTS, folder=tmp_path, max_tokens=5)[1]
    assert len(computed) == 4
    assert short.count == 5 * len(TEXTS)
    assert cached_covariance(tiny, (1,), TEXTS, folder=tmp_path)[1].count > short.count
    assert len(computed) == 4


def truncate(content: bytes) -> bytes:
    return content[:-30]


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def recount(content: bytes) -> bytes:
    """Another token count in the header: the numbers are untouched, the mean is not."""
    at = content.index(b"count")
    digit = next(i for i in range(at, at + 30) if chr(content[i]).isdigit())
    return content[:digit] + (b"9" if content[digit : digit + 1] != b"9" else b"8") + content[digit + 1 :]


def foreign(_content: bytes) -> bytes:
    return b"not a tensor file"


@pytest.mark.parametrize("damage", [truncate, flip, recount, foreign])
def test_a_damaged_file_is_noticed_and_computed_again(tiny, tmp_path, computed, damage, caplog):
    good = cached_covariance(tiny, (1,), TEXTS, folder=tmp_path)[1]
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = cached_covariance(tiny, (1,), TEXTS, folder=tmp_path)[1]
    assert computed == [(1,), (1,)]
    assert torch.equal(again.gram, good.gram)
    assert again.count == good.count
    assert path.read_bytes() == whole
    assert "layer 1 is computed again" in caplog.text


def edit(model, layer=1) -> None:
    model.add_(layer, 0.1 * torch.randn(model.d_model, model.d_ff, generator=torch.Generator().manual_seed(0)))


def test_a_covariance_of_an_edited_model_is_never_kept_as_that_of_the_unedited_one(any_model, tmp_path):
    unedited = cached_covariance(any_model, (0, 1), TEXTS, folder=tmp_path)
    with any_model.restored():
        edit(any_model)
        again = cached_covariance(any_model, (0, 1), TEXTS, folder=tmp_path)  # what is there is C₀ still
        assert all(torch.equal(again[layer].gram, unedited[layer].gram) for layer in (0, 1))
        with pytest.raises(ValueError, match=r"covariance of layers \[2\] cannot be taken.*edited.*Editor.reset"):
            cached_covariance(any_model, (0, 2), TEXTS, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    fresh = collect_covariance(conftest.build_model(any_model.hf.config.model_type), (2,), TEXTS)[2]
    restored = cached_covariance(any_model, (2,), TEXTS, folder=tmp_path)[2]
    assert torch.equal(restored.gram, fresh.gram)


def test_a_model_that_was_edited_before_it_was_asked_who_it_is_keeps_its_covariance_under_its_own_name(tiny, tmp_path):
    other = conftest.build_model("llama")
    edit(other)
    assert other.fingerprint != tiny.fingerprint
    kept = cached_covariance(other, (2,), TEXTS, folder=tmp_path)[2]
    assert not torch.equal(kept.gram, cached_covariance(tiny, (2,), TEXTS, folder=tmp_path)[2].gram)
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_are_hashed_again_only_after_something_was_written(tiny, monkeypatch):
    calls, hashed = [], EditableModel._weights_hash

    def counted(model):
        calls.append(1)
        return hashed(model)

    monkeypatch.setattr(EditableModel, "_weights_hash", counted)
    tiny.check_unedited("nothing")
    tiny.check_unedited("nothing")
    assert len(calls) == 1  # the fingerprint itself
    with tiny.restored():
        edit(tiny)
        for _ in range(2):
            with pytest.raises(ValueError, match="tiny-llama is edited"):
                tiny.check_unedited("something")
    assert len(calls) == 3
    tiny.check_unedited("nothing")
    tiny.check_unedited("nothing")
    assert len(calls) == 4  # restored: looked at once, then known


def test_weights_that_are_other_tensors_are_looked_at_too(tiny):
    tiny.check_unedited("nothing")
    port = tiny.write_port(1)
    port.weight = torch.nn.Parameter(port.weight + 1, requires_grad=False)
    with pytest.raises(ValueError, match="tiny-llama is edited"):
        tiny.check_unedited("something")


def test_weights_whose_writes_are_not_counted_are_hashed_every_time():
    with torch.inference_mode():
        model = conftest.build_model("llama")
        model.check_unedited("nothing")
        edit(model)
        with pytest.raises(ValueError, match="tiny-llama is edited"):
            model.check_unedited("something")


def test_a_file_of_a_half_precision_model_from_before_products_were_made_in_single_is_made_again(
    tmp_path, computed, caplog
):
    model = conftest.build_model("llama")
    model.hf.to(torch.bfloat16)
    good = cached_covariance(model, (1,), TEXTS, folder=tmp_path)[1]
    (path,) = tmp_path.iterdir()
    save_tensors(path, {"gram": 2 * good.gram}, {"count": str(good.count)})
    again = cached_covariance(model, (1,), TEXTS, folder=tmp_path)[1]
    assert computed == [(1,), (1,)] and torch.equal(again.gram, good.gram)
    assert "products were rounded to half precision" in caplog.text


def test_a_file_of_a_single_precision_model_from_before_is_good(tiny, tmp_path, computed):
    good = cached_covariance(tiny, (1,), TEXTS, folder=tmp_path)[1]
    (path,) = tmp_path.iterdir()
    save_tensors(path, {"gram": good.gram}, {"count": str(good.count)})
    assert torch.equal(cached_covariance(tiny, (1,), TEXTS, folder=tmp_path)[1].gram, good.gram)
    assert computed == [(1,)]


def test_the_cache_lies_under_hf_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    cached_covariance(tiny, (1,), TEXTS)
    assert [path.suffix for path in (tmp_path / "langedit" / "covariance").iterdir()] == [".safetensors"]


def test_the_hash_of_a_corpus_knows_order_and_boundaries():
    assert corpus_hash(["ab", "c"]) != corpus_hash(["a", "bc"]) != corpus_hash(["bc", "a"])
    assert corpus_hash(["ab", "c"]) == corpus_hash(("ab", "c"))


# --- files of tensors -------------------------------------------------------------------------------------------------


def test_equal_tensors_give_equal_bytes_and_come_back_with_their_metadata(tmp_path):
    tensors = {"b": randn(2, 3), "a": torch.ones(4, dtype=torch.bfloat16), "c": torch.tensor(3)}
    for number in range(20):  # safetensors alone writes several metadata entries in random order
        save_tensors(tmp_path / str(number), tensors, {"one": "1", "two": "2", "three": "3"})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    found, metadata = load_tensors(tmp_path / "0")
    assert metadata == {"one": "1", "two": "2", "three": "3"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert load_tensors(tmp_path / "1")[1] == metadata


def test_any_single_altered_byte_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": randn(3)}, {"count": "12"})
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            tensors, metadata = load_tensors(path)
        except CorruptFile:
            continue
        # White space in the header may change without a change of content.
        assert torch.equal(tensors["a"], randn(3)) and metadata == {"count": "12"}, f"byte {at}"


def test_a_file_without_a_checksum_is_not_used(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": randn(3)}, tmp_path / "plain.safetensors")
    with pytest.raises(CorruptFile, match="does not match its checksum; delete it"):
        load_tensors(tmp_path / "plain.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tensors(tmp_path / "none.safetensors")
