"""The chat template: ChatML, written so that text from users can never end a turn."""

END_OF_TEXT = "<|endoftext|>"
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
CONTROL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
ROLES = ("system", "user", "assistant", "tool")


def _defused(token: str) -> str:
    return token.replace("<|", "<| ").replace("|>", " |>")


def defuse(content: str) -> str:
    """`content` as the template shows it: trimmed, and every control token spelled out as harmless text."""
    for token in CONTROL_TOKENS:
        content = content.replace(token, _defused(token))
    return content.strip()


# The same in Jinja, so that transformers, vLLM and llama.cpp, which parse control tokens in the rendered text, are as
# safe as our own encoder. Trimming keeps the token boundary between the header's newline and the content stable.
_DEFUSE = "".join(f" | replace('{token}', '{_defused(token)}')" for token in CONTROL_TOKENS) + " | trim"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    f"{{{{- '{IM_START}' + message['role'] + '\\n' -}}}}"
    f"{{{{- message['content']{_DEFUSE} -}}}}"
    f"{{{{- '{IM_END}\\n' -}}}}"
    "{%- endfor -%}"
    f"{{%- if add_generation_prompt -%}}{{{{- '{IM_START}assistant\\n' -}}}}{{%- endif -%}}"
)
