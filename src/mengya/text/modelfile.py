"""Ollama's Modelfile of a GGUF file: a Go template that writes what the chat template writes, stops and parameters.

A chat template is a program; what it writes around each turn is found by trying it, and the Go template made of these
pieces is compared with it on whole conversations.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mengya.errors import UserError
from mengya.text.chat import Chat, Message
from mengya.text.proof import talks
from mengya.text.template import TEMPLATES

_NO_TOOLS = "No tools: the chat template has no turns of tools that could be told in general."


class _Irregular(Exception):
    """A template that does more than to write something before and after each turn."""


class Turns(NamedTuple):
    """What a chat template writes around what is said."""

    head: str
    """Before everything, where there is no system prompt."""
    system: tuple[str, str]
    """Around the system prompt, `head` included; ("", "") if the template takes none."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    tool: tuple[str, str] | None
    """Around a result; None if the template takes none."""
    prompt: str
    """Where an answer begins."""

    def write(self, messages: Sequence[Message]) -> str:
        """A conversation for which an answer is due, as the Go template writes it."""
        has_system = messages[0]["role"] == "system"
        before, after = self.system
        out = before + messages[0]["content"] + after if has_system else self.head
        for message in messages[has_system:]:
            before, after = getattr(self, message["role"])
            out += before + message["content"] + after
        return out + self.prompt


def turns_of(chat: Chat) -> Turns | None:
    """What the template writes around turns; None if conversations are not made of them alone."""
    system, tool = chat.writes("system"), chat.writes("tool")
    try:
        found = _found(chat, system, tool)
        same = all(found.write(talk) == chat.text(talk, add_generation_prompt=True) for talk in talks(system, tool))
    except (_Irregular, UserError):
        return None
    return found if same else None


def _found(chat: Chat, system: bool, tool: bool) -> Turns:
    user, answer, more = (
        {"role": r, "content": w} for r, w in (("user", "Sow"), ("assistant", "Sap"), ("user", "Oak"))
    )

    def around(talk: list, prompt: bool = False) -> list[str]:
        """What stands before, between and after what is said."""
        text, pieces = chat.text(talk, add_generation_prompt=prompt), []
        for message in talk:
            before, said, text = text.partition(message["content"])
            if not said:
                raise _Irregular
            pieces.append(before)
        return [*pieces, text]

    _, after_user = around([user])
    begin, to_answer, _ = around([user, answer])
    after_answer = around([user, answer])[-1]
    to_user = around([user, answer, more])[2]
    before_user = _without(to_user, after_answer, "start")
    prompt = _without(around([user], prompt=True)[-1], after_user, "start")
    around_system = ("", "")
    if system:
        first, second, _ = around([{"role": "system", "content": "Elm"}, user])
        around_system = (first, _without(second, before_user, "end"))
    around_tool = None
    if tool:
        *_, to_tool, after_tool = around([user, answer, {"role": "tool", "content": "Ash", "name": "f"}])
        around_tool = (_without(to_tool, after_answer, "start"), after_tool)
    return Turns(
        head=_without(begin, before_user, "end"),
        system=around_system,
        user=(before_user, after_user),
        assistant=(_without(to_answer, after_user, "start"), after_answer),
        tool=around_tool,
        prompt=prompt,
    )


def _without(text: str, part: str, where: str) -> str:
    """`text` without `part`, which it must begin ("start") or end with."""
    if not (text.startswith(part) if where == "start" else text.endswith(part)):
        raise _Irregular
    return text[len(part) :] if where == "start" else text[: len(text) - len(part)]


# ---- Go --------------------------------------------------------------------------------------------------------------

# Qwen's way to offer and call tools, which our ChatML has; .Function and .Arguments are written as JSON, without the
# spaces that Python puts into it.
_TOOLS = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    '{{ range .Tools }}\n{"type": "function", "function": {{ .Function }}}{{ end }}'
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_CALLS = (
    "{{ range $j, $call := $m.ToolCalls }}{{ if or $m.Content $j }}\n{{ end }}<tool_call>\n"
    '{"name": "{{ $call.Function.Name }}", "arguments": {{ $call.Function.Arguments }}}\n</tool_call>{{ end }}'
)


def go_template(turns: Turns, with_tools: bool) -> str:
    """The template of Go's text/template that Ollama fills (docs/template.md there)."""
    (before, after), head = turns.system, turns.head
    system = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{head}{{{{ end }}}}"
    if before == after == "":
        system = head
    if with_tools:
        system = (
            f"{{{{ if .Tools }}}}{before}{{{{ if .System }}}}{{{{ .System }}}}\n\n{{{{ end }}}}{_TOOLS}{after}"
            f"{{{{ else }}}}{system}{{{{ end }}}}"
        )
    roles = []
    for role in ("user", "assistant", "tool"):
        if (around := getattr(turns, role)) is not None:
            before, after = around
            calls = _CALLS if with_tools and role == "assistant" else ""
            # An answer that is the last is one to go on with.
            after = f"{{{{ if not $last }}}}{after}{{{{ end }}}}" if role == "assistant" else after
            said = f"{before}{{{{ $m.Content }}}}{calls}{after}"
            roles.append(f'if eq $m.Role "{role}" }}}}{said}')
    written = "{{ " + "{{ else ".join(roles) + "{{ end }}"
    prompt = f'{{{{ if and $last (ne $m.Role "assistant") }}}}{turns.prompt}{{{{ end }}}}'
    last = "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    return f"{system}{{{{ range $i, $m := .Messages }}}}{last}{written}{prompt}{{{{ end }}}}"


def modelfile(
    weights: str, chat: Chat | None, stops: Sequence[str], context: int, generation: Mapping[str, Any]
) -> tuple[str, list[str]]:
    """The Modelfile for the file `weights` beside it, and what the user should know.

    `generation`: the content of generation_config.json; what it does not say is switched off, not Ollama's default.
    """
    out, notes = [f"FROM ./{weights}"], []
    turns = turns_of(chat) if chat else None
    if chat is None:
        out.append('TEMPLATE """{{ .Prompt }}"""')
    elif turns is None or any(mark in str(turns) for mark in ("{{", '"""')):
        notes.append("the chat template is no row of turns, so that the Modelfile has none: Ollama may take another")
    else:
        tools = chat.template.source == TEMPLATES["chatml"].source
        out.append(f'TEMPLATE """{go_template(turns, tools)}"""')
        if not tools and turns.tool is None:
            out.append(f"# {_NO_TOOLS}")
    out += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    values = {
        "temperature": generation.get("temperature", 1.0) if generation.get("do_sample") else 0.0,
        "top_p": generation.get("top_p") or 1.0,
        "top_k": generation.get("top_k") or 0,
        "min_p": generation.get("min_p") or 0.0,
        "repeat_penalty": generation.get("repetition_penalty") or 1.0,
        "num_ctx": context,
    }
    out += [f"PARAMETER {name} {value}" for name, value in values.items()]
    return "\n".join(out) + "\n", notes
