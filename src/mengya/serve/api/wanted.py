"""What the form of an answer is to be: a JSON schema for `response_format` and for calls that must come."""

from collections.abc import Mapping, Sequence
from typing import Any

from mengya.serve.api.bodies import ChatBody, NamedTool, Tool
from mengya.serve.api.errors import ApiError

Schema = dict[str, Any]
ANY_OBJECT: Schema = {"type": "object"}


def tools_of(body: ChatBody) -> list[Tool]:
    """The tools that may be called. ApiError for a choice that there is not."""
    tools, choice = body.tools or [], body.tool_choice
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        named = choice.function.name
        tools_named = [tool for tool in tools if tool.function.name == named]
        if not tools_named:
            raise ApiError(400, f"tool_choice names {named!r}, which is not among the tools", param="tool_choice")
    elif choice == "required" and not tools:
        raise ApiError(400, "tool_choice='required' needs tools; add some", param="tool_choice")
    return tools


def must_call(body: ChatBody) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def schema_of(body: ChatBody, tools: Sequence[Tool]) -> Schema | None:
    """What the whole answer must be; None: whatever it likes.

    With tools that may be called and a `response_format`, a call is as good as an answer in that format."""
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name][:1]
        return _call(tools[0], "#")
    if choice == "required":
        return _any_of(tools, None)
    asked = _format(body)
    return _any_of(tools, asked) if asked is not None and tools else asked


def _format(body: ChatBody) -> Schema | None:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    if asked.type == "json_object":
        if (asked.model_extra or {}).get("schema"):  # llama.cpp's way to say it
            param = "response_format.schema"
            message = f"{param} is not read with json_object; use json_schema, as OpenAI's API has it"
            raise ApiError(400, message, param=param)
        return ANY_OBJECT
    if asked.json_schema is None or asked.json_schema.schema_ is None:
        param = "response_format.json_schema.schema"
        raise ApiError(400, f"{param} is missing; give a JSON schema", param=param)
    return asked.json_schema.schema_


def _any_of(tools: Sequence[Tool], answer: Schema | None) -> Schema:
    """A call of one of the tools, or the answer."""
    places = {f"call{number}": tool for number, tool in enumerate(tools)}
    choices = {place: _call(tool, f"#/$defs/{place}") for place, tool in places.items()}
    if answer is not None:
        choices["answer"] = _moved(answer, "#/$defs/answer")
    return {"anyOf": [{"$ref": f"#/$defs/{place}"} for place in choices], "$defs": choices}


def _call(tool: Tool, place: str) -> Schema:
    """A call of this tool, the name first; it stands at `place` of the whole schema."""
    arguments = _moved(tool.function.parameters or ANY_OBJECT, f"{place}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(value: Any, place: str) -> Any:
    """A schema that was a whole one and now stands at `place`: its references begin there."""
    if isinstance(value, Mapping):
        return {
            key: place + item[1:]
            if key == "$ref" and isinstance(item, str) and item.startswith("#")
            else _moved(item, place)
            for key, item in value.items()
        }
    return [_moved(item, place) for item in value] if isinstance(value, list) else value
