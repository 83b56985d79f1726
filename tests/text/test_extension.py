"""Growing a tokenizer: old ids keep their meaning, nothing is lost, new text gets shorter, transformers agrees."""

import json
import random
import re
from itertools import pairwise

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.extension import _learn, _Words, extend_tokenizer, first_difference, pieces_of_new, vocabulary
from mengya.text.template import TEMPLATES, with_template_of
from mengya.text.tokenizer import CONTROL_TOKENS, read_backend, train_tokenizer

from .foreign import FAMILIES, byte_level, write

OLD = ["The quick brown fox jumps over the lazy dog; it's 12:30 on 2024-05-06.", "def f(x):\n    return x ** 2\n"] * 40
NEW = ["春眠不覺曉，處處聞啼鳥。夜來風雨聲，花落知多少。", "萌芽是一个小小的语言模型，它从原文长成。"] * 40
TEXTS = [
    "",
    " \n\n\t ",
    "the lazy 语言模型 jumps",
    "👩‍👩‍👧‍👦🇨🇳🏳️‍🌈 ☃️ 𠮷野家 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "\x00\x01\x1b[31m\x7f\x85\xa0\u200b\ufeff\ufffd",
    "e\u0301 العربية עברית ไทย 한국어",
    "x" * 500 + "好" * 500,
    *OLD[:2],
    *NEW[:2],
    *CONTROL_TOKENS,
]


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("old")
    train_tokenizer(OLD, 300, 12).save(path)
    return read_backend(path)


@pytest.fixture(scope="module")
def directory(old, tmp_path_factory):
    path = tmp_path_factory.mktemp("new")
    Chat(extend_tokenizer(old, NEW, 340, 12), "chatml").tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def new(directory):
    return read_backend(directory)


def ids(backend, text):
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


def random_text(rng):
    ranges = [(0, 0x80), (0x80, 0x800), (0x3000, 0xA000), (0xE000, 0x10000), (0x1F000, 0x20000)]
    letters = "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(30)))
    return letters + rng.choice(TEXTS)[:40]


def test_old_ids_are_the_same_tokens(old, new):
    assert vocabulary(new)[:300] == vocabulary(old)
    assert len(vocabulary(new)) == 340 and first_difference(old, new) is None


def test_round_trip_of_any_text_in_as_many_tokens_or_fewer(old, new):
    rng = random.Random(0)
    for text in TEXTS + [random_text(rng) for _ in range(300)]:
        tokens = ids(new, text)
        assert new.decode(tokens) == text
        assert len(tokens) <= len(ids(old, text))
        assert not set(tokens) & {new.token_to_id(token) for token in CONTROL_TOKENS}


def test_new_text_needs_fewer_tokens_and_old_text_the_same(old, new):
    text = "".join(NEW)
    assert len(ids(new, text)) < 0.6 * len(ids(old, text))
    assert ids(new, "".join(OLD)) == ids(old, "".join(OLD))


def test_no_new_entry_is_longer_than_asked(old):
    text = ["春眠不覺曉"] * 9  # 15 bytes
    for most, longest in ((2, 2), (6, 6), (14, 14), (15, 15), (99, 15)):
        with pytest.raises(UserError, match="more than this text allows") as caught:
            extend_tokenizer(old, text, 999, most)
        largest = int(re.search(r"it gives (\d+)", str(caught.value))[1])
        tokens = vocabulary(extend_tokenizer(old, text, largest, most)._backend)[300:]
        assert longest // 2 < max(map(len, tokens)) <= longest
    assert len(tokens) == 14 and "".join(tokens[-1:]) == text_in_bytes("春眠不覺曉")


def text_in_bytes(text):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]


def test_every_new_entry_can_be_reached(new):
    for number, token in enumerate(vocabulary(new)[300:], 300):
        assert [piece.id for piece in new.model.tokenize(token)] == [number]


def test_transformers_reads_the_same(directory, new):
    peer = AutoTokenizer.from_pretrained(directory)
    assert len(peer) == 340
    for text in TEXTS[: -len(CONTROL_TOKENS)]:
        assert peer.encode(text, add_special_tokens=False) == ids(new, text)
        assert peer.decode(ids(new, text), clean_up_tokenization_spaces=False) == text
    messages = [{"role": "user", "content": "你好"}]
    theirs = peer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert theirs[0] == new.token_to_id("<|im_start|>") == 1


def test_pieces_spell_the_new_tokens(old, new):
    tokens = vocabulary(old)
    pieces = pieces_of_new(old, new)
    assert len(pieces) == 40
    for token, spelled in zip(vocabulary(new)[300:], pieces, strict=True):
        assert len(spelled) > 1 and "".join(tokens[i] for i in spelled) == token


def test_merges_are_those_that_plain_bpe_learns():
    """Against a from-scratch reference on text that the old tokenizer splits into bytes alone."""
    bare = train_tokenizer(["a"], 259, 12)
    grown = extend_tokenizer(bare._backend, [" ".join(["abab", "abc", "bca", "cab", "xyz"] * 3)], 265, 12)
    words = Counter_of(["abab", " abc", " bca", " cab", " xyz", " abab"], [1, 3, 3, 3, 3, 2])
    assert vocabulary(grown._backend)[259:] == reference_merges(words, 6)


def Counter_of(words, counts):
    return {tuple(word.replace(" ", "Ġ")): count for word, count in zip(words, counts, strict=True)}


def reference_merges(words, wanted):
    """The textbook algorithm (Sennrich et al. 2016), ties by byte order of the ids, as the bytes' ids are sorted."""
    order = {token: i for i, token in enumerate(vocabulary(train_tokenizer(["a"], 259, 12)._backend))}
    found = []
    while len(found) < wanted:
        pairs = {}
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] = pairs.get(pair, 0) + count
        best = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        found.append("".join(best))
        order[found[-1]] = len(order)
        merged = {}
        for word, count in words.items():
            out, i = [], 0
            while i < len(word):
                hit = word[i : i + 2] == best
                out.append(found[-1] if hit else word[i])
                i += 2 if hit else 1
            merged[tuple(out)] = merged.get(tuple(out), 0) + count
        words = merged
    return found


def test_a_token_reached_on_another_way_costs_no_entry():
    tokens = ["a", "b", "c", "bc", "abc"]
    merges = _learn(_Words({"\0\3": 5, "\0\3\1": 1}), tokens, 6, 9, set())
    assert merges == [("a", "bc"), ("abc", "b")] and tokens[5:] == ["abcb"]


def test_growing_is_deterministic_and_can_be_repeated(old, directory, tmp_path):
    extend_tokenizer(old, iter(NEW), 340, 12).save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (directory / "tokenizer.json").read_bytes()
    twice = extend_tokenizer(read_backend(directory), ["再长一次，再长一次。"] * 9, 344, 12)
    assert first_difference(read_backend(directory), twice._backend) is None


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_a_foreign_tokenizer_without_our_control_tokens(normalizer, tmp_path):
    """As GPT-2 and Llama 3 are made: added tokens of its own after the vocabulary, none of ChatML's."""
    foreign = tokenizers.Tokenizer(models.BPE())
    foreign.normalizer = normalizer
    foreign.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    foreign.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    foreign.train_from_iterator(OLD, trainer=trainer)
    foreign.add_special_tokens(["<s>", "</s>"])
    foreign.save(str(tmp_path / "tokenizer.json"))
    foreign = read_backend(tmp_path)
    grown = extend_tokenizer(foreign, NEW, 310, 12)
    grown.save(tmp_path / "grown")
    read = read_backend(tmp_path / "grown")
    assert vocabulary(read)[:292] == vocabulary(foreign)
    assert vocabulary(read)[290:295] == ["<s>", "</s>", *CONTROL_TOKENS]
    assert [len(spelled) > 0 for spelled in pieces_of_new(foreign, read)] == [False] * 3 + [True] * 15
    assert len(AutoTokenizer.from_pretrained(tmp_path / "grown")) == 310
    for text in TEXTS[6:11]:
        assert grown.decode(grown.encode(text)) == text


def test_the_first_difference_is_named(old, new):
    other = train_tokenizer(NEW, 300, 12)._backend
    number, ours, theirs = first_difference(old, other)
    assert vocabulary(old)[:number] == vocabulary(other)[:number] and ours != theirs
    assert (ours, theirs) == (vocabulary(old)[number], vocabulary(other)[number])
    assert first_difference(new, old) == (300, vocabulary(new)[300], None)


def test_what_cannot_be_extended(old, tmp_path):
    with pytest.raises(UserError, match=r"vocab_size=300 leaves no room: .* 300 entries .* above 300"):
        extend_tokenizer(old, NEW, 300, 12)
    with pytest.raises(UserError, match=r"vocab_size=5000 .*it gives (\d+); set tokenizer.vocab_size=\1"):
        extend_tokenizer(old, ["短短的一句话"], 5000, 12)
    pieces = tokenizers.Tokenizer(models.Unigram([("a", 0.0)], None))
    with pytest.raises(UserError, match="only a byte-level BPE tokenizer can be extended, and this one is Unigram"):
        extend_tokenizer(pieces, NEW, 300, 12)
    content = json.loads(old.to_str())
    content["model"]["vocab"] = {t: n + (n > 100) for t, n in content["model"]["vocab"].items()}
    with pytest.raises(UserError, match="no token of id 101"):
        vocabulary(tokenizers.Tokenizer.from_str(json.dumps(content)))


def test_a_grown_tokenizer_keeps_its_own_chat_template(tmp_path):
    llama = FAMILIES["llama3"](tmp_path / "llama")
    grown = extend_tokenizer(read_backend(llama), NEW, 360, 12)
    chat = Chat(with_template_of(llama, grown))
    chat.tokenizer.save(tmp_path / "grown")
    before = Chat.load(llama)
    assert chat.template == before.template
    assert chat.stop_ids == before.stop_ids | {chat.tokenizer.eos_id}, "and the new token between documents"
    messages = [{"role": "user", "content": "春眠不覺曉"}, {"role": "assistant", "content": "處處聞啼鳥"}]
    peer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert (len(peer), peer.eos_token) == (360, "<|end_of_text|>")
    assert peer.apply_chat_template(messages, return_dict=False) == chat.encode(messages)[0]
    assert len(chat.encode(messages)[0]) < len(before.encode(messages)[0])
    bare = write(tmp_path / "bare", byte_level(["</s>"]), eos_token="</s>")
    ours = Chat(with_template_of(bare, extend_tokenizer(read_backend(bare), NEW, 360, 12)))
    assert ours.template.source == TEMPLATES["chatml"].source
