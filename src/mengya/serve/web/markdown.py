"""A conversation as Markdown, for people."""

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mengya.serve.web.pictures import Picture
from mengya.serve.web.store import Conversation
from mengya.text.thoughts import split_thoughts

_ENDS = {"<!--": "-->", "<?": "?>", "<![CDATA[": "]]>"}
"""What begins a block of HTML that no empty line ends -> what ends it; else a tag that is closed, or a declaration."""


def to_markdown(conversation: Conversation, pictures: Iterable[Picture] = ()) -> str:
    """The branch in sight, without what was thought. Pictures stand at the end, so that the text can be read as it
    is."""
    data = {picture.id: picture.data for picture in pictures}
    shown: list[str] = []
    parts = [f"# {_name(conversation.title)}"]
    if system := conversation.settings.get("system"):
        parts += ["**System**", _closed(system)]
    for message in conversation.branch():
        asked = message.role == "user"
        parts += ["**You 你**" if asked else f"**{_name(message.info.get('model') or 'Model')}**"]
        for picture in message.info.get("pictures", ()):
            if picture["id"] in data:
                shown.append(picture["id"])
            parts += [f"![{_name(picture['name'])}]" + (f"[picture {len(shown)}]" if picture["id"] in data else "")]
        parts += [_closed(message.text if asked else split_thoughts(message.text)[1])]
        parts += [_quoted("\n\n".join(map(_source, sources)))] if (sources := message.info.get("sources")) else []
    places = (f"[picture {n}]: data:image/jpeg;base64,{_coded(data[id])}" for n, id in enumerate(shown, 1))
    return "\n\n".join([*filter(None, parts), *places]) + "\n"


def _name(text: str) -> str:
    """Of a file, a picture or a model, on a line of ours: no markup of its own."""
    return re.sub(r"[\\<\[\]`]", r"\\\g<0>", text)


def _source(source: Mapping[str, Any]) -> str:
    pages = f", p. {', '.join(map(str, source['pages']))}" if source["pages"] else ""
    return _closed(f"[{source['id']}] {_name(source['file'])}{pages}: {source['quote']}")


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}" for line in text.split("\n"))


def _coded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _closed(text: str) -> str:
    """With the end of a block of code, or of HTML, that is left open, as in an answer that was stopped: what follows
    belongs to neither."""
    from markdown_it import MarkdownIt

    last = MarkdownIt("commonmark").parse(f"{text}\n\nwhat follows")[-1]
    if last.type == "fence":
        return f"{text}\n{last.markup}"
    if last.type != "html_block":
        return text
    begun = last.content.lstrip()
    end = next((end for begin, end in _ENDS.items() if begun.startswith(begin)), "")
    tag = re.match(r"<(\w+)", begun)
    return f"{text}\n{end or (f'</{tag[1]}>' if tag else '>')}"
