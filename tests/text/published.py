"""Published models' chat templates beside small tokenizers with their control tokens; and what each writes, by hand.

Of every oracle: the documents that a conversation is learnt as, ⟦ and ⟧ around what is supervised. A template's text is
data; where an installed trl ships it, it is read from there.
"""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import tokenizers

from .foreign import LLAMA2, ZEPHYR, byte_level, sentencepiece, write


def shipped(name: str) -> str:
    """The template of a model, or the one to train it with, as trl has it."""
    (folder,) = importlib.util.find_spec("trl").submodule_search_locations
    return (Path(folder) / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


# Of version 3; `␣` is a space behind a control token, which the Tekken version does not write.
_MISTRAL = """{%- set system = messages[0].content if messages[0].role == 'system' else none -%}
{%- set talk = messages[1:] if system is not none else messages -%}
{%- set asked = talk | selectattr('role', 'equalto', 'user') | list -%}
{%- set ns = namespace(turn=0) -%}
{%- for m in talk if m.role in ('user', 'assistant') and not m.tool_calls -%}
    {%- if (m.role == 'user') != (ns.turn % 2 == 0) -%}
        {{- raise_exception('conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- set ns.turn = ns.turn + 1 -%}
{%- endfor -%}
{{- bos_token -}}
{%- for m in talk -%}
    {%- if m.role == 'user' -%}
        {%- if tools and m == asked[-1] -%}
            {{- '[AVAILABLE_TOOLS]␣' + tools | tojson + '[/AVAILABLE_TOOLS]' -}}
        {%- endif -%}
        {{- '[INST]␣' + (system + '\\n\\n' if loop.last and system is not none else '') + m.content + '[/INST]' -}}
    {%- elif m.tool_calls -%}
        {{- '[TOOL_CALLS]␣[' -}}
        {%- for call in m.tool_calls -%}
            {%- if not call.id is defined or call.id | length != 9 -%}
                {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
            {%- endif -%}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') -}}
        {%- endfor -%}
        {{- eos_token -}}
    {%- elif m.role == 'assistant' -%}
        {{- '␣' + m.content + eos_token -}}
    {%- elif m.role == 'tool' -%}
        {%- if not m.tool_call_id is defined or m.tool_call_id | length != 9 -%}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') -}}
        {%- endif -%}
        {{- '[TOOL_RESULTS]␣{"content": ' + m.content + ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' -}}
    {%- else -%}
        {{- raise_exception('only user and assistant roles, and one system message at the beginning') -}}
    {%- endif -%}
{%- endfor -%}"""
_GLM4 = """[gMASK]<sop>{% for m in messages %}<|{{ 'observation' if m.role == 'tool' else m.role }}|>
{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
_GLM_TOKENS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
_MISTRAL_TOKENS = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
_MISTRAL_TOKENS += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
_LLAMA3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_PLAIN = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def unmarked(made: tokenizers.Tokenizer, prefix: str) -> tokenizers.Tokenizer:
    """With the entries that begin so as plain ones of the vocabulary, as a converted SentencePiece model has them."""
    content = json.loads(made.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith(prefix)]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def by_answer(write_one: Callable[[list], str]) -> Callable[[list], list[str]]:
    """Of a template that writes earlier turns otherwise: a document for each answer."""

    def documents(messages: list) -> list[str]:
        ends = [number + 1 for number, message in enumerate(messages) if message["role"] == "assistant"]
        return [write_one(messages[:end]) for end in ends]

    return documents


def whole(write_one: Callable[[list], str]) -> Callable[[list], list[str]]:
    return lambda messages: [write_one(messages)]


def rounds(messages: list) -> tuple[str | None, list[tuple[str, str]]]:
    """(system, [(question, answer)])"""
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    said = [message["content"] for message in messages if message["role"] != "system"]
    return system, list(zip(said[::2], said[1::2], strict=True))


def chatml(messages: list, default: str | None) -> str:
    system, talk = rounds(messages)
    system = default if system is None else system
    text = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    for q, a in talk:
        text += f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n⟦{a}<|im_end|>⟧\n"
    return text


def qwen3(messages: list) -> str:
    """The last answer with its thought, here an empty one."""
    before, _, answer = chatml(messages, None).rpartition("⟦")
    return before.replace("⟦", "").replace("⟧", "") + "⟦<think>\n\n</think>\n\n" + answer


def llama2(messages: list) -> str:
    system, talk = rounds(messages)
    first = "" if system is None else f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    questions = [first * (number == 0) + q for number, (q, _) in enumerate(talk)]
    return "".join(f"<s>[INST] {q} [/INST]⟦ {a} </s>⟧" for q, (_, a) in zip(questions, talk, strict=True))


def llama3(messages: list) -> str:
    system, talk = rounds(messages)
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    text = "<|begin_of_text|>" + ("" if system is None else head.format("system") + system + "<|eot_id|>")
    for q, a in talk:
        text += head.format("user") + q + "<|eot_id|>" + head.format("assistant") + f"⟦{a}<|eot_id|>⟧"
    return text


def llama31(messages: list) -> str:
    dates = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    return llama3([{"role": "system", "content": dates + system}, *rest])


def mistral(space: str) -> Callable[[list], list[str]]:
    def one(messages: list) -> str:
        """The system prompt stands in the last question."""
        system, talk = rounds(messages)
        *earlier, (q, a) = talk
        said = "".join(f"[INST]{space}{q}[/INST]{space}{a}</s>" for q, a in earlier)
        asked = q if system is None else f"{system}\n\n{q}"
        return f"<s>{said}[INST]{space}{asked}[/INST]⟦{space}{a}</s>⟧"

    def plain(messages: list) -> str:
        return "<s>" + "".join(f"[INST]{space}{q}[/INST]⟦{space}{a}</s>⟧" for q, a in rounds(messages)[1])

    return lambda messages: (by_answer(one) if messages[0]["role"] == "system" else whole(plain))(messages)


def zephyr(messages: list) -> str:
    system, talk = rounds(messages)
    text = "" if system is None else f"<|system|>\n{system}</s>\n"
    return text + "".join(f"<|user|>\n{q}</s>\n<|assistant|>\n⟦{a}</s>⟧\n" for q, a in talk)


def baichuan2(messages: list) -> str:
    system, talk = rounds(messages)
    *earlier, (q, a) = talk
    said = "".join(f"<reserved_106>{q}<reserved_107>{a}" for q, a in earlier)
    return (system or "") + said + f"<reserved_106>{q}<reserved_107>⟦{a}</s>⟧"


def chatglm2(messages: list) -> str:
    *earlier, (q, a) = rounds(messages)[1]
    said = "".join(f"[Round {n}]\n\n问：{q}\n\n答：{a}\n\n" for n, (q, a) in enumerate(earlier, 1))
    return f"[gMASK]sop{said}[Round {len(earlier) + 1}]\n\n问：{q}\n\n答：⟦{a}</s>⟧"


def glm(start: str, space: str, closed: bool) -> Callable[[list], str]:
    """What begins the next turn ends an answer; a template of our own writes it, too, behind the last one."""

    def one(messages: list) -> str:
        system, talk = rounds(messages)
        text = start + ("" if system is None else f"<|system|>\n{space}{system}") + "<|user|>"
        end = "<|user|>⟧" if closed else "⟧<|user|>"
        text += "".join(f"\n{space}{q}<|assistant|>⟦\n{space}{a}{end}" for q, a in talk)
        return text if closed else text.removesuffix("<|user|>")

    return one


def tiny_llama2(messages: list) -> str:
    system, talk = rounds(messages)
    return ("" if system is None else system + "\n") + "".join(f"{q}<s>⟦{a}</s>⟧" for q, a in talk)


class Published(NamedTuple):
    make: Callable[[Path], Path]
    documents: Callable[[list], list[str]]
    ours: str | None = None
    """Our template, which is named; None: the directory has its own."""
    system: bool = True
    """Whether it takes a system prompt."""
    end: str = "</s>"
    """What ends an answer."""


def _qwen(name: str) -> Callable[[Path], Path]:
    return lambda path: write(
        path, byte_level(_QWEN_TOKENS), shipped(name), eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _llama3(name: str) -> Callable[[Path], Path]:
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|eot_id|>"}
    return lambda path: write(path, byte_level(_LLAMA3_TOKENS), shipped(name), **names)


def _pieces(special: list[str], template: str | None, scheme: str = "first") -> Callable[[Path], Path]:
    return lambda path: write(path, sentencepiece(special, scheme), template, **_PLAIN)


def _baichuan(path: Path) -> Path:
    made = sentencepiece(["<s>", "</s>", "<reserved_106>", "<reserved_107>"], "always")
    return write(path, unmarked(made, "<reserved"), None, **_PLAIN)


_CHATGLM_TOKENS = ["<s>", "</s>", "[gMASK]", "sop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]

_TEKKEN = _MISTRAL.replace("␣", "")
PUBLISHED = {
    "qwen2.5": Published(
        _qwen("qwen2_5"),
        whole(lambda m: chatml(m, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")),
        end="<|im_end|>",
    ),
    "qwen3": Published(_qwen("qwen3"), by_answer(qwen3), end="<|im_end|>"),
    "chatml": Published(_qwen("qwen2_5"), whole(lambda m: chatml(m, None)), ours="chatml", end="<|im_end|>"),
    "llama2": Published(_pieces(["<s>", "</s>"], LLAMA2), whole(llama2)),
    "llama3": Published(_llama3("llama3"), whole(llama3), end="<|eot_id|>"),
    "llama3.1": Published(_llama3("llama3_1"), whole(llama31), end="<|eot_id|>"),
    "mistral-v3": Published(_pieces(_MISTRAL_TOKENS, _MISTRAL.replace("␣", " ")), mistral(" ")),
    "mistral-v3-tekken": Published(
        lambda path: write(path, byte_level(_MISTRAL_TOKENS), _TEKKEN, bos_token="<s>", eos_token="</s>"), mistral("")
    ),
    "zephyr": Published(_pieces(["<s>", "</s>"], ZEPHYR, "always"), whole(zephyr)),
    "baichuan2": Published(_baichuan, by_answer(baichuan2), ours="baichuan2"),
    "chatglm2": Published(_pieces(_CHATGLM_TOKENS, None), by_answer(chatglm2), ours="chatglm2", system=False),
    "chatglm3": Published(
        _pieces(_CHATGLM_TOKENS, None), whole(glm("[gMASK]sop", " ", True)), ours="chatglm3", end="<|user|>"
    ),
    "glm-4": Published(
        lambda path: write(path, byte_level(_GLM_TOKENS), _GLM4, eos_token="<|endoftext|>"),
        whole(glm("[gMASK]<sop>", "", False)),
        end="<|user|>",
    ),
    "glm4": Published(
        lambda path: write(path, byte_level(_GLM_TOKENS), _GLM4, eos_token="<|endoftext|>"),
        whole(glm("[gMASK]<sop>", "", True)),
        ours="glm4",
        end="<|user|>",
    ),
    "tiny-llama2": Published(_pieces(["<s>", "</s>"], None), whole(tiny_llama2), ours="tiny-llama2"),
}
