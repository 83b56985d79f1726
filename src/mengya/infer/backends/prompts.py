"""Prompts as token ids, for the backends that take these."""

from mengya.errors import UserError
from mengya.infer.request import Conversation, Prompt
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer


def token_ids(prompt: Prompt, tokenizer: Tokenizer, chat: Chat | None, name: str) -> list[int]:
    """UserError for a conversation if the model, called `name`, has no template for it, or the template refuses it."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if not isinstance(prompt, Conversation):
        return list(prompt)
    if chat is None:
        raise UserError(f"{name} has no chat template; ask it to continue a text, or give it a template")
    messages = [dict(message) for message in prompt.messages]
    return chat.encode(messages, prompt.tools, add_generation_prompt=True)[0]
