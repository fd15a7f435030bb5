"""The subject's last token is found by what the tokens say, or the fact is refused; never by counting."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import conftest
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from langedit_core.errors import RefusedInput
from langedit_core.tokens import Row, SubjectMerged, align, continuation, encode, locate


@functools.cache
def with_bos(which: str) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer, adding BOS (as Llama 3) or an end token too (as some converted ones)."""
    tokenizer = Tokenizer.from_str(conftest.byte_level_tokenizer().backend_tokenizer.to_str())
    single = {"bos": "<s> $A", "bos and eos": "<s> $A </s>"}[which]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@functools.cache
def prefixing() -> PreTrainedTokenizerFast:
    """SentencePiece with a space put before every text, BOS and byte fallback, as Llama 2 and Mistral have."""
    special = ["<pad>", "<s>", "</s>", "<unk>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.train_from_iterator(conftest.SENTENCES, trainers.BpeTrainer(vocab_size=420, special_tokens=special))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


@functools.cache
def trimming() -> PreTrainedTokenizerFast:
    """Byte-level as GPT-2 really is: its offsets leave the space before a word out."""
    tokenizer = Tokenizer.from_str(conftest.byte_level_tokenizer().backend_tokenizer.to_str())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


TOKENIZERS = {
    "byte-level": conftest.byte_level_tokenizer,
    "byte-level with trimmed offsets": trimming,
    "byte-level with BOS": lambda: with_bos("bos"),
    "byte-level with BOS and end": lambda: with_bos("bos and eos"),
    "sentencepiece": conftest.sentencepiece_tokenizer,
    "sentencepiece with a space in front": prefixing,
}
every_tokenizer = pytest.mark.parametrize("name", sorted(TOKENIZERS))


def said(tokenizer, ids) -> str:
    """What tokens say, byte tokens included (the toy tokenizers call them special)."""
    added = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return tokenizer.decode([i for i in ids if i not in added], clean_up_tokenization_spaces=False)


CASES = [
    ("{} is a town", "Norland", "start"),
    ("The capital of {} is", "Norland", "middle"),
    ("The capital of {}", "Norland", "end"),
    ("The capital of {}, a quiet", "Blue Ostberg", "two words"),
    ("{}的首都是", "诺兰", "Chinese at the start"),
    ("国家：{}。首都：", "阿尔及利亚", "Chinese unknown to the vocabulary, split into bytes"),
    ("国家：{}", "瑞典", "Chinese at the end"),
    ("Pays : {}. Capitale :", "Côte d’Ivoire", "accents and a curly apostrophe"),
    ("Land: {}. Hauptstadt:", "São Tomé", "accented end"),
    ("{}", "Norland", "nothing else"),
    ("I like {} 🎉", "the 🇨🇭", "emoji of several characters"),
]


@every_tokenizer
@pytest.mark.parametrize(("template", "subject", "why"), CASES, ids=[case[2] for case in CASES])
def test_the_tokens_up_to_the_lookup_end_exactly_with_the_subject(name, template, subject, why):
    tokenizer = TOKENIZERS[name]()
    head = template.split("{}")[0]
    if name.startswith("sentencepiece") and why in ("start", "middle", "two words"):
        # These toy vocabularies have "n▁" and "Ostberg,▁": no token ends with the subject.
        with pytest.raises(SubjectMerged):
            locate(tokenizer, template, subject)
        return
    row = locate(tokenizer, template, subject)
    assert said(tokenizer, row.ids[: row.lookup + 1]) == head + subject
    assert said(tokenizer, row.ids[: row.lookup]) != head + subject  # it is the last token, not one behind
    assert said(tokenizer, row.ids) == template.replace("{}", subject)
    assert list(row.ids) == encode(tokenizer, template.replace("{}", subject))


@every_tokenizer
@settings(max_examples=200, deadline=None)
@given(
    head=st.sampled_from(["", "The capital of ", "国家：", "So, ", "Die\u00a0", "x"]),
    subject=st.text(
        st.sampled_from("NorlandOstberg 诺兰瑞典éß’'-1.é한👍"), min_size=1, max_size=8
    ).filter(lambda s: s == s.strip()),
    tail=st.sampled_from(["", " is", "land", ", ", "的首都", "’s", ". Ost", "\u0301", "  two", "berg, a"]),
)  # fmt: skip
def test_a_located_subject_ends_where_its_tokens_end_for_any_text(name, head, subject, tail):
    tokenizer = TOKENIZERS[name]()
    try:
        row = locate(tokenizer, head + "{}" + tail, subject)
    except SubjectMerged:
        # Only ever refused when the tokens of the whole text really have no such boundary.
        ids = encode(tokenizer, head + subject + tail)
        assert all(said(tokenizer, ids[:n]) != head + subject for n in range(1, len(ids) + 1))
        return
    upto = said(tokenizer, row.ids[: row.lookup + 1])
    assert upto == head + subject
    assert said(tokenizer, row.ids) == head + subject + tail


def test_known_merges_are_refused():
    for name in ("byte-level", "byte-level with trimmed offsets", "byte-level with BOS"):
        with pytest.raises(SubjectMerged, match="fact 7 .*'Nor' merges with what follows"):
            locate(TOKENIZERS[name](), "The {}land is", "Nor", "fact 7 (en): ")
    with pytest.raises(SubjectMerged, match="put a space or punctuation after"):
        locate(conftest.sentencepiece_tokenizer(), "s {}, near", "Ostberg")
    assert issubclass(SubjectMerged, RefusedInput)


class Cutting:
    """A tokenizer that cuts the subject differently when something follows, without crossing its end."""

    eos_token_id, eos_token, is_fast = 99, "</s>", True
    # "é" is two byte tokens with the same offsets; then a token of no width, as trimmed spaces are.
    texts = {
        "xaé b": ([7, 1, 2, 3, 4, 5], [(0, 1), (1, 2), (2, 3), (2, 3), (3, 3), (3, 5)]),
        "xaé": ([8, 2, 3], [(0, 2), (2, 3), (2, 3)]),
        "xaéb": ([8, 2, 6], [(0, 2), (2, 3), (2, 4)]),
    }

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False):
        ids, offsets = self.texts[text]
        return SimpleNamespace(input_ids=ids, offset_mapping=offsets)


def test_offsets_find_the_last_token_of_a_subject_that_is_cut_differently_in_its_text():
    assert locate(Cutting(), "x{} b", "aé") == Row(ids=(7, 1, 2, 3, 4, 5), lookup=3)
    with pytest.raises(SubjectMerged):  # one token ends there, but another crosses
        locate(Cutting(), "x{}b", "aé")


@pytest.mark.parametrize("template", ["no gap", "{} and {}", "", "{ }"])
def test_a_prompt_without_exactly_one_gap_is_refused(template):
    with pytest.raises(RefusedInput, match="fact 3: prompt .*expected exactly one"):
        locate(conftest.byte_level_tokenizer(), template, "Norland", "fact 3: ")


@pytest.mark.parametrize("subject", ["", " ", "\u3000"])
def test_an_empty_subject_is_refused(subject):
    with pytest.raises(RefusedInput, match="subject is empty"):
        locate(conftest.byte_level_tokenizer(), "The {} is", subject)


# --- encode -----------------------------------------------------------------------------------------------------------


@every_tokenizer
def test_texts_have_bos_where_the_tokenizer_adds_one_and_never_an_end(name):
    tokenizer = TOKENIZERS[name]()
    ids = encode(tokenizer, "The capital")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert (ids[0] == bos) == (name not in ("byte-level", "byte-level with trimmed offsets"))
    assert ids.count(bos) <= 1
    assert ids[-1] != eos
    assert encode(tokenizer, "The end</s>").count(eos) == 1 + (name == "byte-level with BOS and end")


def test_a_beginning_that_is_also_the_end_stays_before_an_empty_text():
    tokenizer = with_bos("bos")
    tokenizer.eos_token = tokenizer.bos_token
    assert encode(tokenizer, "") == [tokenizer.bos_token_id] == encode(tokenizer, "The capital")[:1]


# --- continuation -----------------------------------------------------------------------------------------------------

PAIRS = [
    ("The capital of Norland is", " Ostberg"),
    ("国家：瑞典。首都：", "斯德哥尔摩"),
    ("诺兰的首都是", "城市"),
    ("北", "方一座"),  # one token together
    ("The Nor", "land"),  # one token together
    ("Die Hauptstadt:", " São Tomé"),
    ("A", "B"),
]


@every_tokenizer
@pytest.mark.parametrize(("prompt", "answer"), PAIRS)
def test_prompt_and_continuation_say_the_text_and_leave_the_prompt_alone(name, prompt, answer):
    tokenizer = TOKENIZERS[name]()
    before, after = encode(tokenizer, prompt), continuation(tokenizer, prompt, answer)
    assert after
    assert said(tokenizer, before + after) == prompt + answer
    assert not set(after) & {tokenizer.bos_token_id, tokenizer.eos_token_id}


@every_tokenizer
@settings(max_examples=100, deadline=None)
@given(
    prompt=st.text(st.sampled_from("NorlandOstberg 北方城市é.,:"), min_size=1, max_size=8),
    answer=st.text(st.sampled_from("NorlandOstberg 北方城市é.,:"), min_size=1, max_size=8),
)
def test_any_continuation_says_the_answer(name, prompt, answer):
    tokenizer = TOKENIZERS[name]()
    assume(answer.strip() and prompt.strip() and not prompt.startswith(" "))
    assert said(tokenizer, encode(tokenizer, prompt) + continuation(tokenizer, prompt, answer)) == prompt + answer


def test_a_continuation_is_what_the_whole_text_has_after_the_prompt_where_nothing_merges():
    tokenizer = conftest.byte_level_tokenizer()
    whole = encode(tokenizer, "The capital of Norland is Ostberg")
    assert continuation(tokenizer, "The capital of Norland is", " Ostberg") == whole[-1:]


@pytest.mark.parametrize("answer", ["", " ", "\n"])
@every_tokenizer
def test_an_answer_that_says_nothing_is_refused(name, answer):
    with pytest.raises(RefusedInput, match="empty or has no tokens"):
        continuation(TOKENIZERS[name](), "The capital is", answer)


# --- align ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_alignment_puts_every_lookup_in_one_column_and_loses_nothing(shapes):
    rows = [
        Row(ids=tuple(100 * i + j for j in range(before + 1 + after)), lookup=before)
        for i, (before, after) in enumerate(shapes, 1)
    ]
    batch = align(rows, pad_id=7)
    assert batch.split >= 1
    assert batch.ids.shape[1] == batch.split + 1 + max(after for _, after in shapes)
    for i, row in enumerate(rows):
        kept = batch.mask[i]
        assert batch.ids[i][kept].tolist() == list(row.ids)
        assert batch.ids[i, batch.split] == row.ids[row.lookup]
        assert batch.positions[i][kept].tolist() == list(range(len(row.ids)))
        assert set(batch.ids[i][~kept].tolist()) <= {7}
        first, last = kept.nonzero().flatten()[[0, -1]].tolist()
        assert last - first + 1 == len(row.ids)
        assert batch.positions[i].min() == 0
