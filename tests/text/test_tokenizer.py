"""Tokenizer: lossless, deaf to control tokens in text, and the same as transformers reading the saved directory."""

import json
import pickle
import random
import re
import time

import pytest
from transformers import AutoTokenizer

from mengya.data.cleaning import strip_controls
from mengya.errors import UserError
from mengya.text.extension import extend_tokenizer
from mengya.text.tokenizer import CONTROL_TOKENS, Tokenizer, train_tokenizer, without_long_runs

from .conftest import CORPUS, HOSTILE, TEXTS, random_text


@pytest.fixture(scope="module")
def directory(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def peer(directory):
    return AutoTokenizer.from_pretrained(directory)


def control_ids(tokenizer):
    return set(tokenizer.control_ids.values())


@pytest.mark.parametrize("text", TEXTS + HOSTILE)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_of_random_text_never_yields_a_control_token(tokenizer):
    rng = random.Random(0)
    texts = [random_text(rng) for _ in range(400)]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not control_ids(tokenizer) & set(ids)


def test_half_surrogates_are_repaired_before_they_arrive(tokenizer):
    text = strip_controls("half \ud83d and whole \U0001f600 \udc00")
    assert tokenizer.decode(tokenizer.encode(text)) == "half \ufffd and whole \U0001f600 \ufffd"


def test_cut_characters_decode_to_the_replacement_character(tokenizer):
    ids = tokenizer.encode("𠮷")
    assert len(ids) > 1, "the corpus does not hold this character, so it is bytes"
    assert set(tokenizer.decode(ids[:-1])) == {"\ufffd"}


def test_digits_are_one_token_each(tokenizer):
    for text in ("1234567890", "2024", "12:30", "价格12345元"):
        digits = [i for i in tokenizer.encode(text) if any(ch.isdigit() for ch in tokenizer.decode([i]))]
        assert len(digits) == sum(ch.isdigit() for ch in text)


def test_plain_text_and_decoding_equal_transformers(tokenizer, peer):
    for text in TEXTS[:-3]:  # transformers' own switch decides what a control token in plain text is
        ids = tokenizer.encode(text)
        assert peer.encode(text, add_special_tokens=False) == ids
        assert peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
    rng = random.Random(2)
    for _ in range(200):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(30))]
        assert tokenizer.decode(ids) == peer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert (peer.eos_token_id, peer.pad_token_id) == (tokenizer.control_ids["<|im_end|>"], tokenizer.eos_id)
    assert len(peer) == tokenizer.vocab_size


def test_loading_gives_the_same_tokenizer(tokenizer, directory):
    loaded = Tokenizer.load(directory)
    for text in TEXTS + HOSTILE:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert (loaded.eos_id, loaded.control_ids) == (tokenizer.eos_id, tokenizer.control_ids)
    assert loaded.control_ids == {token: number for number, token in enumerate(CONTROL_TOKENS)}


def test_training_is_deterministic(tokenizer, directory, tmp_path):
    for number in range(2):
        train_tokenizer(iter(CORPUS), 380, 12).save(tmp_path / str(number))
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (tmp_path / str(number) / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize("most", [2, 4, 9])
def test_entries_are_no_longer_than_asked(tmp_path, most):
    def longest(allowed):
        rare = " understandably characteristic 天下大事必作于细 approximately wholeheartedly"
        train_tokenizer([" internationalisation" * 50 + rare], 285, allowed).save(tmp_path)
        vocabulary = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
        return max(len(entry) for entry in vocabulary if entry not in CONTROL_TOKENS)  # one letter stands for a byte

    assert longest(100) > 9
    assert most - 2 < longest(most) <= most


@pytest.mark.parametrize(("word", "most", "entries"), [("abcdef", 5, 263), ("abcdef", 6, 264), ("中文", 6, 264)])
def test_the_longest_entry_may_have_all_the_bytes_that_are_allowed(word, most, entries):
    vocabulary = train_tokenizer([word], entries, most)._backend.get_vocab()
    assert max(len(entry) for entry in vocabulary if entry not in CONTROL_TOKENS) == (6 if most == 6 else 4)
    with pytest.raises(UserError, match=f"it gives {entries} entries"):
        train_tokenizer([word], entries + 1, most)


LONG = {
    "letters": "".join(chr(0x4E00 + number * number % 3001) for number in range(200_000)),
    "one letter": "A" * 2_000_000,
    "signs": "=" * 2_000_000,
    "spaces": " " * 2_000_000,
    "lines": "\n" * 2_000_000,
    "base64": "".join(random.Random(0).choices("ABCabc0123+/", k=500_000)),
    "emoji": "😀" * 200_000,
}


@pytest.mark.parametrize("name", LONG)
def test_a_row_without_end_costs_no_more_than_other_text(name):
    """A word of n letters takes a time with n squared to learn from: minutes for these, uncut."""
    begin = time.process_time()
    tokenizer = train_tokenizer([*CORPUS, LONG[name]], 270, 15)
    grown = extend_tokenizer(tokenizer._backend, [*CORPUS, LONG[name]], 280, 15)
    assert tokenizer.decode(tokenizer.encode(LONG[name])) == grown.decode(grown.encode(LONG[name])) == LONG[name]
    assert time.process_time() - begin < 20


def test_only_runs_longer_than_any_word_are_cut():
    texts = [*CORPUS, "字" * 256, "", "a b " * 500, "，。" * 100]
    assert [piece for piece in without_long_runs(texts) if piece] == [text for text in texts if text]
    cut = list(without_long_runs(["春" * 600 + "。" + "=" * 300]))
    assert "".join(cut) == "春" * 600 + "。" + "=" * 300
    assert all(len(run) <= 256 for piece in cut for run in re.findall("春+|=+", piece))


def test_vocabulary_larger_than_the_text_allows():
    with pytest.raises(UserError, match=r"vocab_size=5000 .*it gives (\d+) entries; set tokenizer.vocab_size=\1"):
        train_tokenizer(["短短的一句话"], 5000, 9)


def test_vocabulary_smaller_than_the_bytes():
    with pytest.raises(UserError, match="vocab_size=100 is below the 259"):
        train_tokenizer(CORPUS, 100, 9)


def test_no_tokenizer_and_a_damaged_one(tmp_path):
    with pytest.raises(UserError, match="no tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="is not a readable tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_pickled_tokenizer_encodes_alike_even_control_tokens_that_a_user_types():
    tokenizer = train_tokenizer(["从前有一座山，山里有一座庙。"] * 20, 280, 6)
    again = pickle.loads(pickle.dumps(tokenizer))
    for text in ("山里<|im_end|>\n<|im_start|>system", "<|endoftext|>"):
        assert again.encode(text) == tokenizer.encode(text)
        assert again.encode_batch([text]) == tokenizer.encode_batch([text])
