"""Text, conversations and pairs -> shards."""

import json

import numpy as np
import pytest

from mengya.data.cleaning import content_hash, is_heldout
from mengya.data.preferences import Preference
from mengya.data.shards import Shards
from mengya.data.tokenization import (
    first_texts,
    read_texts,
    sample_texts,
    write_conversation_shards,
    write_preference_shards,
    write_text_shards,
)
from mengya.errors import UserError
from mengya.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["从前有一座山，山里有一座庙。", "once upon a time"] * 20, 280, 6)


def documents(shards):
    return [shards.tokens[a:b].tolist() for a, b in zip(shards.offsets[:-1], shards.offsets[1:], strict=True)]


def masks(shards):
    return [shards.mask[a:b].tolist() for a, b in zip(shards.offsets[:-1], shards.offsets[1:], strict=True)]


def talk(number, answer="山里"):
    return [{"role": "user", "content": f"第{number}座山"}, {"role": "assistant", "content": answer}]


def test_text_comes_back_document_by_document(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("mengya.data.tokenization._AT_ONCE_CHARACTERS", 50)
    texts = [f"第{i}座山\n有庙 <|endoftext|>" * (i % 7 + 1) for i in range(60)]
    meta = write_text_shards(texts, tokenizer, tmp_path)
    shards = Shards(tmp_path)
    assert [tokenizer.decode(ids) for ids in documents(shards)] == texts
    assert meta["documents"] == 60 and meta["tokens"] == len(shards.tokens)
    assert meta["bytes"] == sum(len(text.encode()) for text in texts)


def test_conversations_are_split_by_content_and_masked(tokenizer, tmp_path):
    talks = [talk(i) for i in range(200)]
    used, kept = write_conversation_shards(talks, tokenizer, tmp_path / "train", tmp_path / "heldout", 0.2)
    held = [is_heldout(content_hash(json.dumps(t, ensure_ascii=False)), 0.2) for t in talks]
    assert (used["documents"], kept["documents"]) == (held.count(False), held.count(True)) and any(held)
    for split, wanted in (("train", False), ("heldout", True)):
        shards = Shards(tmp_path / split)
        expected = [tokenizer.encode_chat(t) for t, h in zip(talks, held, strict=True) if h == wanted]
        assert documents(shards) == [ids for ids, _ in expected]
        assert masks(shards) == [mask for _, mask in expected]


@pytest.mark.parametrize(
    ("count", "fraction", "message"),
    [(0, 0.5, "no conversation"), (5, 0.0, "raise heldout"), (5, 1.0, "lower heldout")],
)
def test_an_empty_split_is_an_error_and_leaves_nothing_that_looks_whole(tokenizer, tmp_path, count, fraction, message):
    with pytest.raises(UserError, match=message):
        write_conversation_shards(map(talk, range(count)), tokenizer, tmp_path / "t", tmp_path / "h", fraction)
    for split in ("t", "h"):
        with pytest.raises(UserError, match="no token shards"):
            Shards(tmp_path / split)


def write_pairs(pairs, tokenizer, tmp_path, seq_len, fraction=0.5):
    return write_preference_shards(pairs, tokenizer, tmp_path / "t", tmp_path / "h", fraction, seq_len)


def test_pairs_are_neighbours_with_only_the_completions_supervised(tokenizer, tmp_path):
    prompt = [*talk(1, "早先的回答"), {"role": "user", "content": "再说"}]
    pairs = [Preference([*prompt[:-1], {"role": "user", "content": f"再说{i}"}], "好山", "坏庙庙") for i in range(40)]
    used, kept, too_long = write_pairs(pairs, tokenizer, tmp_path, 1000)
    assert used["documents"] + kept["documents"] == 80 and used["documents"] and kept["documents"] and not too_long
    for split in ("t", "h"):
        shards = Shards(tmp_path / split)
        found = list(zip(documents(shards), masks(shards), strict=True))
        for (chosen, mask), (rejected, other) in zip(found[::2], found[1::2], strict=True):
            for ids, marks, answer in ((chosen, mask, "好山"), (rejected, other, "坏庙庙")):
                supervised = [i for i, m in zip(ids, marks, strict=True) if m]
                assert supervised == [*tokenizer.encode(answer), tokenizer.im_end_id]
            begin = mask.index(1)
            assert chosen[:begin] == rejected[:begin] and other.index(1) == begin


@pytest.mark.parametrize("seq_len", [100, 101])
def test_long_pairs_lose_the_oldest_of_the_prompt_equally(tokenizer, tmp_path, seq_len):
    pairs = [Preference([{"role": "user", "content": f"{i} " + "山" * 300}], "好" * 9, "坏" * 5) for i in range(20)]
    _, _, too_long = write_pairs(pairs, tokenizer, tmp_path, seq_len)
    assert too_long == 0
    shards = Shards(tmp_path / "t")
    whole = {}
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            ids, _ = tokenizer.encode_chat([*pair.prompt, {"role": "assistant", "content": side}])
            whole[side] = ids
    for chosen, rejected in zip(documents(shards)[::2], documents(shards)[1::2], strict=True):
        assert seq_len - 2 < len(chosen) + len(rejected) <= seq_len
        assert whole[pairs[0].chosen][-len(chosen) :] == chosen
        assert whole[pairs[0].rejected][-len(rejected) :] == rejected
        assert len(whole[pairs[0].chosen]) - len(chosen) == len(whole[pairs[0].rejected]) - len(rejected)


def test_pairs_whose_completions_do_not_fit_are_counted(tokenizer, tmp_path):
    short = [Preference([{"role": "user", "content": f"问{i}"}], "好", "坏") for i in range(20)]
    long = [Preference([{"role": "user", "content": "问"}], "好" * 200, "坏" * 200)] * 3
    assert write_pairs([*short, *long], tokenizer, tmp_path, 100)[2] == 3
    with pytest.raises(UserError, match="seq_len=100"):
        write_pairs(long, tokenizer, tmp_path, 100)


def test_reading_and_sampling_a_corpus_file(tmp_path):
    path = tmp_path / "train.jsonl"
    texts = [f"第{i}行\u2028 还是一行\n第二行" for i in range(2000)]
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
    assert list(read_texts(path)) == texts
    assert first_texts(path, 3) == texts[:3]
    assert list(sample_texts(path, 10**9)) == texts
    sample = list(sample_texts(path, path.stat().st_size // 10))
    assert 120 < len(sample) < 280
    places = np.array([texts.index(t) for t in sample])
    assert abs(places.mean() - 1000) < 150, "spread over the file"


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_sample_is_drawn_independently_of_the_split(tmp_path, split):
    """The split is a hash of the content, too: a sample by the same bits would be all of one side or nothing."""
    texts = [f"第{number}篇文章，讲的是第{number}件事。" for number in range(20_000)]
    kept = [text for text in texts if is_heldout(content_hash(text), 0.1) == (split == "heldout")]
    path = tmp_path / "split.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in kept), encoding="utf-8")
    sample = list(sample_texts(path, path.stat().st_size // 20))
    assert 0.03 < len(sample) / len(kept) < 0.07
    assert list(sample_texts(path, path.stat().st_size)) == kept
