"""Conversations as tokens: ours is transformers' rendering, and what people write stays text."""

import random

import pytest
from transformers import AutoTokenizer

from mengya.errors import UserError
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer, as_json, json_object

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


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "天气 of a <city>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLS = [
    {"type": "function", "function": {"name": "weather", "arguments": {"city": "北京", "day": None}}},
    {"name": "weather", "arguments": '{"city": "Paris"}'},
]
WITH_TOOLS = [
    {"role": "system", "content": " 你是萌芽。 "},
    {"role": "user", "content": [{"type": "text", "text": "北京"}, {"type": "text", "text": "天气？"}]},
    {"role": "assistant", "content": "我查一下。", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "1", "content": "晴"},
    {"role": "tool", "name": "weather", "content": [{"type": "text", "text": "rain"}]},
    {"role": "assistant", "content": None, "tool_calls": CALLS[:1]},
    {"role": "tool", "content": "plain"},
    {"role": "assistant", "content": "北京晴。"},
]
SYSTEM = """<|im_start|>system
你是萌芽。

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{"type": "function", "function": {"name": "weather", "description": "天气 of a <city>", "parameters": \
{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
""".replace("\\\n", "")
REST = """<|im_start|>user
北京天气？<|im_end|>
<|im_start|>assistant
[我查一下。
<tool_call>
{"name": "weather", "arguments": {"city": "北京", "day": null}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"city": "Paris"}}
</tool_call><|im_end|>]
<|im_start|>tool
<tool_response>
晴
</tool_response><|im_end|>
<|im_start|>tool
<tool_response>
rain
</tool_response><|im_end|>
<|im_start|>assistant
[<tool_call>
{"name": "weather", "arguments": {"city": "北京", "day": null}}
</tool_call><|im_end|>]
<|im_start|>tool
plain<|im_end|>
<|im_start|>assistant
[北京晴。<|im_end|>]
"""


def test_tools_their_calls_and_results(chat, peer):
    """[ and ] stand around what is supervised."""
    ids, mask = chat.encode(WITH_TOOLS, tools=TOOLS)
    assert ids == peer.apply_chat_template(WITH_TOOLS, tools=TOOLS, return_dict=False)
    text = chat.tokenizer._structure.decode(ids, skip_special_tokens=False)
    assert text == SYSTEM + REST.replace("\n[", "\n").replace("]\n", "\n")
    supervised = [number for number, m in zip(ids, mask, strict=True) if m]
    said = [part.split("]\n")[0] for part in REST.split("\n[")[1:]]
    assert chat.tokenizer._structure.decode(supervised, skip_special_tokens=False) == "".join(said)
    without_system = chat.encode(WITH_TOOLS[1:2], tools=TOOLS)[0]
    assert without_system == peer.apply_chat_template(WITH_TOOLS[1:2], tools=TOOLS, return_dict=False)


def test_marks_are_those_that_transformers_reads(chat, peer):
    for messages in [*conversations(), WITH_TOOLS]:
        theirs = peer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        assert chat.encode(messages) == (theirs["input_ids"], theirs["assistant_masks"])


@pytest.mark.parametrize("text", HOSTILE)
def test_our_template_alone_keeps_text_harmless(chat, peer, text):
    """In transformers, vLLM and llama.cpp nobody breaks control tokens before the template does."""
    call = {"function": {"name": text, "arguments": {text: text}}}
    tools = [{"function": {"name": text}}]
    messages = [
        {"role": text, "content": [{"type": "text", "text": text}]},
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "content": text, "name": text},
    ]
    for count in (1, 2, 3):
        ids = peer.apply_chat_template(messages[:count], tools=tools, return_dict=False)
        counts = [ids.count(number) for number in chat.tokenizer.control_ids.values()]
        assert counts == [0, count + 1, count + 1]


def test_parts_that_are_not_text_are_refused(chat):
    with pytest.raises(UserError, match="only parts of type text are understood"):
        chat.encode([{"role": "user", "content": [{"type": "image", "url": "x"}]}])
    with pytest.raises(UserError, match="use text, numbers, lists and objects"):
        chat.encode([{"role": "user", "content": object()}])


EARLIER = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}{{- message['content']"
    " | replace('<|endoftext|>', '<| endoftext |>') | replace('<|im_start|>', '<| im_start |>')"
    " | replace('<|im_end|>', '<| im_end |>') | trim -}}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def test_directories_of_earlier_versions_give_the_same(chat):
    """Their template has no marks: what is supervised follows from its renderings."""
    config = json_object(chat.tokenizer.files, "tokenizer_config.json") | {"chat_template": EARLIER}
    earlier = Chat(Tokenizer(chat.tokenizer.files | {"tokenizer_config.json": as_json(config)}))
    assert earlier.template.source == EARLIER and earlier.stop_ids == chat.stop_ids
    talks = list(conversations())
    assert [earlier.encode(messages) for messages in talks] == [chat.encode(messages) for messages in talks]


def test_stop_ids(chat):
    assert chat.stop_ids == {chat.tokenizer.control_ids["<|im_end|>"], chat.tokenizer.eos_id}
