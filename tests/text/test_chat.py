"""Conversations as tokens: ours is transformers' rendering, and what people write stays text."""

import random

import pytest
from transformers import AutoTokenizer

from mengya.errors import UserError
from mengya.text.chat import Chat

from .conftest import HOSTILE, TEXTS, random_text


@pytest.fixture(scope="module")
def chat(tokenizer):
    return Chat(tokenizer, "chatml")


@pytest.fixture(scope="module")
def peer(chat, tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat")
    chat.tokenizer.save(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
def test_contents_add_no_control_token_to_a_conversation(chat, peer, role, text):
    ids, _ = chat.encode([{"role": role, "content": text}])
    counts = [ids.count(number) for number in chat.tokenizer.control_ids.values()]
    assert counts == [0, 1, 1], "no end of text, one start and one end of a turn"
    theirs = peer.apply_chat_template([{"role": role, "content": text}], tokenize=True, return_dict=False)
    assert theirs == ids


def conversations():
    rng = random.Random(1)
    contents = [
        *TEXTS,
        *HOSTILE,
        "你好",
        "\n\n换行",
        "\x1c开头",
        "\x85x\x85",
        "\u3000全角空格\u3000",
        "1+1=2",
        "\u200b",
    ]
    yield [{"role": "user", "content": "你好"}]
    yield [{"role": "system", "content": ""}, {"role": "user", "content": " \n "}, {"role": "assistant", "content": ""}]
    for _ in range(150):
        roles = [rng.choice(["system", "user", "assistant", "tool"]) for _ in range(rng.randrange(1, 6))]
        yield [{"role": r, "content": rng.choice(contents) + rng.choice(["", random_text(rng)])} for r in roles]


@pytest.mark.parametrize("prompt", [False, True])
def test_conversations_equal_transformers(chat, peer, prompt):
    for messages in conversations():
        ids, mask = chat.encode(messages, add_generation_prompt=prompt)
        theirs = peer.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt, return_dict=False)
        assert ids == theirs, messages
        assert len(mask) == len(ids)


def test_mask_marks_what_the_assistant_says_and_its_end(chat):
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "问"},
        {"role": "assistant", "content": " 答一 "},
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "答二"},
    ]
    ids, mask = chat.encode(messages, add_generation_prompt=True)
    marked = [i for i, m in zip(ids, mask, strict=True) if m]
    end = chat.tokenizer.control_ids["<|im_end|>"]
    assert marked == [*chat.tokenizer.encode("答一"), end, *chat.tokenizer.encode("答二"), end]
    assert set(mask) == {0, 1}


def test_generation_prompt_is_how_an_answer_begins(chat):
    prompt = [{"role": "user", "content": "问 "}]
    before, _ = chat.encode(prompt, add_generation_prompt=True)
    whole, mask = chat.encode([*prompt, {"role": "assistant", "content": "\n答"}])
    assert whole[: len(before)] == before
    assert mask.index(1) == len(before)


def test_unknown_role_is_refused(chat):
    with pytest.raises(UserError, match="wizard"):
        chat.encode([{"role": "wizard", "content": ""}])
