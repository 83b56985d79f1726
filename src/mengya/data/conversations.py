"""Conversations out of the shapes in which people publish them: one list of {"role", "content"} messages for all."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from mengya.data import fields, tools
from mengya.data.cleaning import strip_controls
from mengya.data.fields import Fields, Notes, as_json, is_filled, plain_text, structured, thought_in
from mengya.data.files import Paths
from mengya.data.intake import Intake
from mengya.data.readers import Rejected, Row
from mengya.data.spans import sentence_in
from mengya.data.transcripts import lines_of, prompt_of, turns_of
from mengya.data.turns import as_items, is_learnt, list_messages, map_roles, thinking
from mengya.text.chat import Message

T = TypeVar("T")


def read_parsed(paths: Paths, intake: Intake, parse: Callable[[Any, Notes], T]) -> Iterator[Row[T]]:
    """Every row of every file under `paths`, its value parsed; a row for which `parse` raises ValueError(reason) is
    quarantined."""
    for file in intake.files(paths):
        for row in intake.rows(file):
            notes = Notes()
            try:
                value = parse(row.value, notes)
            except ValueError as error:
                intake.add(Rejected(row.file, row.line, str(error), row.value))
            else:
                intake.use(row.file, notes)
                yield row._replace(value=value, partly=notes.partly)


def read_conversations(paths: Paths, intake: Intake, reasoning: bool = True) -> Iterator[Row[list[Message]]]:
    """The conversation in every row of every file under `paths`; rows without one are quarantined."""
    return read_parsed(paths, intake, lambda value, notes: parse_conversation(value, notes, reasoning))


def parse_conversation(value: Any, notes: Notes | None = None, reasoning: bool = True) -> list[Message]:
    """The messages of one row: no empty ones, no two of one role in a row but tools' (they are joined by a newline), an
    optional system message, then a user's; the last one is an assistant's. ValueError(reason) if it has no answer.

    An assistant's message that is context, and not learnt, has "supervised": False. `notes` is told which fields were
    read. `reasoning`: whether a thought is written before its answer, or left out.

    Shapes: a list of messages (see `list_messages`) or a text with marked turns (see `turns_of`), by itself or in one
    of `fields.LISTS`; or one question and answer in fields of their own, perhaps with a context, a history, a system
    prompt, tools and a thought; or a sentence with its entities (see `sentence_in`).
    """
    notes = Notes() if notes is None else notes
    messages = merge_turns(_all_messages(value, notes, reasoning), notes)
    while messages and messages[-1]["role"] != "assistant":
        notes.lost_turns += messages.pop()["role"] != "system"
    if not messages:
        raise ValueError("no answer after a question")
    if not any(is_supervised(message) for message in messages):
        raise ValueError("no turn of the assistant is to be learnt")
    return messages


def is_supervised(message: Message) -> bool:
    """Whether what the message says is learnt."""
    return message["role"] == "assistant" and message.get("supervised", True)


def merge_turns(messages: list[Message], notes: Notes) -> list[Message]:
    """`messages` cleaned: control characters and empty ones removed, those of one role in a row joined unless only one
    is learnt or tools say them, and what an assistant says before anybody asked left out, and counted."""
    merged: list[Message] = []
    asked = False
    for message in messages:
        role, content = message["role"], strip_controls(message["content"]).strip()
        asked = asked or (role == "user" and content != "")
        if not content:
            continue
        if role in ("assistant", "tool") and not asked:
            notes.lost_turns += 1
            continue
        last = merged[-1] if merged else {}
        if last.get("role") == role != "tool" and is_supervised(last) == is_supervised(message):
            if role != "system" or content not in last["content"]:
                last["content"] += "\n" + content
        else:
            merged.append(message | {"content": content})
    return merged


def _all_messages(value: Any, notes: Notes, reasoning: bool) -> list[Message]:
    value = structured(value)
    if isinstance(value, str):
        turns = turns_of(value)
        if turns is None:
            raise ValueError("plain text, not a conversation")
        return map_roles(turns)
    if isinstance(value, list):
        return list_messages(value, notes, reasoning=reasoning)
    if not isinstance(value, dict):
        raise ValueError("neither an object nor a list")
    row = Fields(value, notes)
    refuse_pictures(row)
    refuse_what_is_not_to_be_learnt(row)
    sentence = sentence_in(row)
    messages = _of_fields(row, notes, reasoning) if sentence is None else sentence.messages
    row.close()
    return messages


def refuse_pictures(row: Fields) -> None:
    """ValueError for a row whose words are about a picture or a sound."""
    pictures = [row.peek(name) for name in row if fields.PICTURES.fullmatch(name)]
    if any(is_filled(value) and value not in (False, 0, "no", "none", "false") for value in pictures):
        raise ValueError("a picture or a sound, which the model cannot see or hear")


def refuse_what_is_not_to_be_learnt(row: Fields) -> None:
    """ValueError for a row that says so, and for an answer that is marked as bad."""
    if not is_learnt(row):
        raise ValueError("a row that is not to be learnt")
    label = row.find(fields.LABELS)
    # KTO: an answer and a verdict. Beside an instruction a label may mean anything.
    judged = label is not None and (label == "kto_tag" or "completion" in row or row.find(fields.LISTS) is not None)
    if label is not None and judged and plain_text(row.get(label)).lower() in _BAD:
        raise ValueError(f"an answer that is marked as bad ({label} is false)")


_BAD = ("false", "0", "undesirable", "bad", "rejected")


def _of_fields(row: Fields, notes: Notes, reasoning: bool) -> list[Message]:
    history = row.find(fields.HISTORIES)
    has_history = history is not None and is_filled(row.peek(history))
    messages = prompt_messages(row, notes, reasoning)
    if messages[-1]["role"] == "assistant" and not has_history:
        # A list that is complete by itself; other fields are about it.
        return messages
    thought = thought_in(row.first(fields.THOUGHTS)) if reasoning else ""
    answer = _answer(row)
    if looks_like_messages(answer) or looks_like_message(answer):
        answered = list_messages(answer, notes, reasoning=reasoning)
        return messages + [message | {"role": "assistant"} if len(answered) == 1 else message for message in answered]
    if isinstance(answer, list) and len(answer) > 1 and any(isinstance(item, str) for item in answer):
        raise ValueError("several answers in one row: preference data")
    answer = answer[0] if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], str) else answer
    said = as_json(answer) if isinstance(answer, list | dict) else plain_text(answer)
    return [*messages, {"role": "assistant", "content": thinking(thought, said)}]


_RANKED = frozenset(("rank", "score", "rating"))


def _answer(row: Fields) -> Any:
    """The answer of a row; of several that are equally right, as in reading comprehension, the first."""
    name = row.find(fields.ANSWERS)
    if name is not None and is_filled(row.peek(name)):
        answer = structured_messages(row.get(name))
        if isinstance(answer, dict) and "aliases" in answer:  # TriviaQA
            return answer.get("value", answer)
        return _completed(answer)
    paired = row.find((*fields.CHOSEN, *fields.REJECTED))
    if paired and is_filled(row.peek(paired)):
        raise ValueError("a preference pair, not one answer: use it for dpo.path")
    if row.find(("answers",)):
        answers = structured(row.first(("answers",)))
        if tools.are_calls(answers):
            return tools.calls(answers)
        if isinstance(answers, dict):  # SQuAD: {"text": [...], "answer_start": [...]}
            answers = answers.get("text", "")
        if isinstance(answers, list) and any(isinstance(a, dict) and len(a.keys() & _RANKED) for a in answers):
            raise ValueError("several answers in one row: preference data")
        first = next(iter(answers), "") if isinstance(answers, list) else answers
        return first.get("text", first) if isinstance(first, dict) else first
    if row.find(fields.THOUGHTS) and row.find(("content",)):
        return row.first(("content",))
    return None


def _completed(answer: Any) -> Any:
    """The message in what a server answered, as logs of requests have it; any other answer as it is."""
    inner = answer.get("body", answer) if isinstance(answer, dict) else None
    choices = inner.get("choices") if isinstance(inner, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return answer
    if len(choices) > 1:
        raise ValueError("several answers in one row: preference data")
    return choices[0].get("message", answer)


def prompt_messages(row: Fields, notes: Notes, reasoning: bool = True) -> list[Message]:
    """Everything in a row except the final answer: system, tools, history, and either the list of messages or the
    question with its context. ValueError if it has neither."""
    messages = system_messages(row)
    listed = _listed(row, notes, reasoning)
    if listed is not None:
        return messages + listed
    history = row.first(fields.HISTORIES)
    if is_filled(history):
        turns = structured(history)
        if not isinstance(turns, list | dict | tuple):
            raise ValueError("a history that is not a list")
        messages += list_messages(turns, notes, "history.", reasoning)
    prompt = structured_messages(row.first(fields.PROMPTS))
    given = row.first(fields.INPUTS)
    if not is_filled(prompt) and isinstance(structured_messages(given), list):
        prompt = structured_messages(given)
    if isinstance(prompt, list) or looks_like_message(prompt):
        return messages + list_messages(prompt, notes, "prompt.", reasoning)
    question = _question(row, plain_text(prompt), _text_of(given))
    if not question and not is_filled(history):
        known = (*fields.PROMPTS, *fields.INPUTS, *fields.LISTS)
        raise ValueError("an empty question" if row.find(known) else "no field of a known conversation shape")
    if turns := prompt_of(question):  # "Human: … Assistant:"
        return messages + [message for message in map_roles(turns) if message["content"]]
    if not (messages and messages[-1] == {"role": "user", "content": question}):  # a history may end with it
        messages.append({"role": "user", "content": question})
    return messages


def _question(row: Fields, prompt: str, given: str) -> str:
    """Context, instruction, what it is about, and what can be chosen."""
    others = [name for name in fields.PROMPTS if name not in fields.INSTRUCTIONS and name in row]
    if row.find(fields.INSTRUCTIONS) and not given:  # an instruction for all rows, and the question of this one
        more = next((plain_text(row.get(n)) for n in others[:1] if isinstance(row.peek(n), str)), "")
        given = more if more not in prompt else ""
    question = "\n".join(filter(None, (prompt, given)))
    if not question:
        return ""
    context = _text_of(row.first(fields.CONTEXTS))
    parts = (context if context not in question else "", question, _options(row))
    return "\n\n".join(filter(None, parts[:2])) + (f"\n{parts[2]}" if parts[2] else "")


_LETTERS = ("a", "b", "c", "d", "e", "f")


def _options(row: Fields) -> str:
    """What a question lets one choose from, a line each."""
    options = structured(row.first(fields.OPTIONS))
    if isinstance(options, dict) and isinstance(options.get("text"), list):  # ARC: {"text": [...], "label": [...]}
        labels = options.get("label")
        options = dict(zip(labels, options["text"], strict=False)) if isinstance(labels, list) else options["text"]
    if isinstance(options, list):
        options = dict(zip("ABCDEFGHIJ", options, strict=False))
    if not is_filled(options) and all(name in row for name in _LETTERS[:3]):
        options = {name.upper(): row.get(name) for name in _LETTERS if name in row and is_filled(row.peek(name))}
    if isinstance(options, dict):
        return "\n".join(f"{name}. {_text_of(said)}" for name, said in options.items())
    return plain_text(options)


def _text_of(value: Any) -> str:
    """A text, or paragraphs that make one up; an object as JSON."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(filter(None, map(plain_text, value)))
    return as_json(value) if isinstance(value, list | dict) else plain_text(value)


def _listed(row: Fields, notes: Notes, reasoning: bool) -> list[Message] | None:
    """The messages of the field that holds a list of them, known by its name or by what is in it; None if none does."""
    for name in (n for n in fields.LISTS if n in row and is_filled(row.peek(n))):
        value = structured(row.peek(name))
        if isinstance(value, str):
            turns = turns_of(value) or lines_of(value)
            if turns is not None:
                row.get(name)
                return map_roles(turns)
        if isinstance(value, list | dict | tuple):
            row.get(name)
            return list_messages(value, notes, f"{row.place(name)}.", reasoning)
    if row.find((*fields.PROMPTS, *fields.INPUTS)) is not None:
        return None
    for name in row.unread():
        value = structured_messages(row.peek(name))
        if looks_like_messages(value) or (name in fields.LOOSE_LISTS and _looks_like_turns(value)):
            row.get(name)
            return list_messages(value, notes, f"{row.place(name)}.", reasoning)
        if name in (*fields.TEXTS, *fields.LOOSE_LISTS) and isinstance(value, str) and (turns := turns_of(value)):
            row.get(name)
            return map_roles(turns)
    return None


def structured_messages(value: Any) -> Any:
    """Messages that are written as text, in columns or inside an object, as a list of them; any other value as it is.

    A text counts as messages only if each of them says who speaks: an answer may itself be JSON.
    """
    found = structured(value)
    found = list(found) if isinstance(found, tuple) else found
    if isinstance(found, dict) and not looks_like_message(found):
        with suppress(ValueError):
            found = as_items(found)
    if isinstance(value, str):
        return found if looks_like_messages(found) and all(map(_names_its_speaker, found)) else value
    return found if looks_like_messages(found) else value


def _names_its_speaker(message: dict[str, Any]) -> bool:
    return not {str(name).strip().lower() for name in message}.isdisjoint(fields.ROLES)


def looks_like_message(value: Any) -> bool:
    """Whether it is an object with who speaks, or with nothing but what is said."""
    if not isinstance(value, dict):
        return False
    names = {str(name).strip().lower() for name in value}
    return not names.isdisjoint(fields.CONTENTS) and (not names.isdisjoint(fields.ROLES) or len(names) == 1)


def looks_like_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(looks_like_message, value))


def _looks_like_turns(value: Any) -> bool:
    """Whether it is a list of strings in turn, of pairs of strings, or of objects with a field for each speaker; or an
    object of such objects."""
    value = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, list) or not value:
        return False
    if all(isinstance(item, str) for item in value):
        return len(value) > 1
    if all(isinstance(item, list) for item in value):
        return all(len(item) == 2 and all(isinstance(said, str) for said in item) for item in value)
    return all(isinstance(item, dict) for item in value)


def system_messages(row: Fields) -> list[Message]:
    """One system message, perhaps empty: the row's system prompt, and the tools that it offers."""
    offered = row.find(fields.TOOLS)
    offer = tools.offer(row.peek(offered)) if offered is not None else ""
    if offer and offered is not None:
        row.get(offered)
    words = [_text_of(_texts(row.first(fields.SYSTEMS))).removeprefix("SYSTEM:").lstrip(), offer]
    return [{"role": "system", "content": "\n\n".join(filter(None, words))}]


def _texts(value: Any) -> Any:
    """Parts of type text, perhaps inside an object, as a list of texts, any other value as it is."""
    value = value["parts"] if isinstance(value, dict) and "parts" in value else value
    if isinstance(value, list) and all(isinstance(p, dict) and p.get("type", "text") == "text" for p in value):
        return [part.get("text", "") for part in value]
    return value
