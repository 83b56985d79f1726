"""Text, conversations and pairs -> shards."""

import json
from functools import partial

import pytest

from mengya.data import documents as documents_module
from mengya.data import rendering
from mengya.data.documents import Document
from mengya.data.intake import Intake
from mengya.data.preferences import Preference
from mengya.data.readers import Row
from mengya.data.rendering import (
    conversation_example,
    examples_of,
    preference_example,
    write_documents,
    write_examples,
)
from mengya.data.shards import Shards
from mengya.data.splits import content_hash, is_heldout
from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def chat():
    return Chat(train_tokenizer(["从前有一座山，山里有一座庙。", "once upon a time"] * 20, 280, 6), "chatml")


def documents(shards):
    return [shards.tokens[a:b].tolist() for a, b in zip(shards.offsets[:-1], shards.offsets[1:], strict=True)]


def masks(shards):
    return [shards.columns["mask"][a:b].tolist() for a, b in zip(shards.offsets[:-1], shards.offsets[1:], strict=True)]


def talk(number, answer="山里"):
    return [{"role": "user", "content": f"第{number}座山"}, {"role": "assistant", "content": answer}]


def test_text_comes_back_document_by_document(chat, tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "_AT_ONCE_CHARACTERS", 50)
    texts = [f"第{i}座山\n有庙 <|endoftext|>" * (i % 7 + 1) for i in range(60)]
    given = [Document(text, "我的.txt" if i < 30 else "b\udc80.txt", str(i)) for i, text in enumerate(texts)]
    meta = write_documents(given, chat.tokenizer, tmp_path)
    shards = Shards(tmp_path)
    assert [chat.tokenizer.decode(ids) for ids in documents(shards)] == texts
    assert meta["documents"] == 60 and meta["tokens"] == len(shards.tokens)
    assert meta["bytes"] == sum(len(text.encode()) for text in texts)
    assert list(shards.origins()) == [(document.source, document.id) for document in given]


def write_talks(talks, chat, tmp_path, fraction):
    rows = (Row("talks.jsonl", number, messages) for number, messages in enumerate(talks, 1))
    examples = (conversation_example(chat, row, seq_len=500) for row in rows)
    return write_examples(
        examples, chat.tokenizer.vocab_size, tmp_path / "t", tmp_path / "h", fraction, "no conversation was found"
    )


def test_conversations_are_split_by_question_and_masked(chat, tmp_path):
    talks = [talk(i % 100, f"山里{i}") for i in range(200)]  # each question twice, with different answers
    written = write_talks(talks, chat, tmp_path, 0.2)
    held = [is_heldout(content_hash(t[0]["content"]), 0.2) for t in talks]
    assert written == (held.count(False), held.count(True), 0) and any(held)
    for split, wanted in (("t", False), ("h", True)):
        shards = Shards(tmp_path / split)
        expected = [chat.encode(t) for t, h in zip(talks, held, strict=True) if h == wanted]
        assert documents(shards) == [ids for ids, _ in expected]
        assert masks(shards) == [mask for _, mask in expected]
        places = [("talks.jsonl", str(number)) for number, h in enumerate(held, 1) if h == wanted]
        assert list(shards.origins()) == places


def test_any_number_of_processes_renders_alike(chat, monkeypatch):
    monkeypatch.setattr(rendering, "_ROWS_AT_ONCE", 7)
    talks = [Row("a", n, talk(n, "<|im_end|> 是什么？<|im_start|>" * (n % 3))) for n in range(100)]
    pairs = [Row("b", n, Preference(talk(n)[:1], "好山" * n, "坏<|endoftext|>庙")) for n in range(100)]
    for function, rows in (
        (partial(conversation_example, seq_len=90), talks),
        (partial(preference_example, seq_len=90), pairs),
    ):
        wanted = list(examples_of(partial(function, chat), iter(rows), workers=1))
        assert len(wanted) == 100 and any(wanted)
        assert list(examples_of(partial(function, chat), iter(rows), workers=2)) == wanted


def test_without_an_example_nothing_looks_whole(chat, tmp_path):
    with pytest.raises(UserError, match="no conversation"):
        write_talks([], chat, tmp_path, 0.5)
    for split in ("t", "h"):
        with pytest.raises(UserError, match="no token shards"):
            Shards(tmp_path / split)


@pytest.mark.parametrize(
    ("talks", "fraction", "expected"),
    [
        ([talk(i) for i in range(5)], 0.0, (5, 0)),
        ([talk(1)], 0.5, (1, 0)),
        ([talk(1, "山"), talk(1, "庙")], 0.999, (2, 0)),  # one question cannot be on both sides
        ([talk(i) for i in range(5)], 1e-9, (4, 1)),
        ([talk(i) for i in range(5)], 1 - 1e-9, (1, 4)),
        ([talk(i // 2, f"庙{i}") for i in range(6)], 1e-9, (4, 2)),
    ],
)
def test_few_conversations_are_divided_if_they_can_be(chat, tmp_path, talks, fraction, expected):
    assert write_talks(talks, chat, tmp_path, fraction)[:2] == expected
    splits = [Shards(tmp_path / split) for split in ("t", "h")]
    assert tuple(map(len, splits)) == expected
    found = [list(zip(documents(s), masks(s), s.origins(), strict=True)) for s in splits]
    origins = [("talks.jsonl", str(number)) for number in range(1, len(talks) + 1)]
    wanted = [(*chat.encode(t), origin) for t, origin in zip(talks, origins, strict=True)]
    assert sorted(found[0] + found[1]) == sorted(wanted)  # nothing is lost, nothing comes twice
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("-all")] == []


def write_pairs(pairs, chat, tmp_path, seq_len, fraction=0.5, quarantine=None):
    rows = (Row("pairs.jsonl", number, pair) for number, pair in enumerate(pairs, 1))
    quarantine = quarantine or Intake(tmp_path / "quarantine.jsonl")
    examples = quarantine.without(examples_of(partial(preference_example, chat, seq_len=seq_len), rows, workers=1))
    nothing = f"no preference pair fits into seq_len={seq_len}"
    return write_examples(examples, chat.tokenizer.vocab_size, tmp_path / "t", tmp_path / "h", fraction, nothing)


def test_pairs_are_neighbours_with_only_the_completions_supervised(chat, tmp_path):
    pairs = [Preference([*talk(i, "早先"), {"role": "user", "content": "再说"}], "好山", "坏庙庙") for i in range(40)]
    train, heldout, cut = write_pairs(pairs, chat, tmp_path, 1000)
    assert train + heldout == 40 and train and heldout and not cut
    for split in ("t", "h"):
        shards = Shards(tmp_path / split)
        found = list(zip(documents(shards), masks(shards), strict=True))
        origins = list(shards.origins())
        assert origins[::2] == origins[1::2] and len(set(origins)) == len(found) // 2
        for (chosen, mask), (rejected, other) in zip(found[::2], found[1::2], strict=True):
            for ids, marks, answer in ((chosen, mask, "好山"), (rejected, other, "坏庙庙")):
                supervised = [i for i, m in zip(ids, marks, strict=True) if m]
                assert supervised == [*chat.tokenizer.encode(answer), chat.tokenizer.control_ids["<|im_end|>"]]
            begin = mask.index(1)
            assert chosen[:begin] == rejected[:begin] and other.index(1) == begin


@pytest.mark.parametrize("seq_len", [100, 101])
def test_long_pairs_lose_the_oldest_of_the_prompt_equally(chat, tmp_path, seq_len):
    pairs = [Preference([{"role": "user", "content": f"{i} " + "山" * 300}], "好" * 9, "坏" * 5) for i in range(20)]
    train, heldout, cut = write_pairs(pairs, chat, tmp_path, seq_len)
    assert train + heldout == cut == len(pairs)
    shards = Shards(tmp_path / "t")
    whole = {}
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            ids, _ = chat.encode([*pair.prompt, {"role": "assistant", "content": side}])
            whole[side] = ids
    for chosen, rejected in zip(documents(shards)[::2], documents(shards)[1::2], strict=True):
        assert seq_len - 2 < len(chosen) + len(rejected) <= seq_len
        assert whole[pairs[0].chosen][-len(chosen) :] == chosen
        assert whole[pairs[0].rejected][-len(rejected) :] == rejected
        assert len(whole[pairs[0].chosen]) - len(chosen) == len(whole[pairs[0].rejected]) - len(rejected)


def test_pairs_whose_completions_do_not_fit_are_quarantined(chat, tmp_path):
    short = [Preference([{"role": "user", "content": f"问{i}"}], "好", "坏") for i in range(20)]
    long = [Preference([{"role": "user", "content": "问"}], "好" * 200, "坏" * 200)] * 3
    with Intake(tmp_path / "quarantine.jsonl") as quarantine:
        assert sum(write_pairs([*short, *long], chat, tmp_path, 100, quarantine=quarantine)[:2]) == 20
    lines = [json.loads(line)["line"] for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [21, 22, 23]
    assert list(quarantine.reasons.values()) == [3] and "raise seq_len (now 100)" in next(iter(quarantine.reasons))
    with pytest.raises(UserError, match="seq_len=100"):
        write_pairs(long, chat, tmp_path, 100)
