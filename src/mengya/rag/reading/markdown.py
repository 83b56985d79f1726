"""Markdown: its headings, paragraphs, lists, code and tables, without the markup."""

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, reference
from markdown_it.token import Token

from mengya.rag.reading.draft import Draft, Source, clean
from mengya.rag.reading.encodings import decode
from mengya.rag.reading.html import add_fragment
from mengya.rag.reading.links import linked

_FRONT = re.compile(
    r"\A(?:---[ \t]*\n(?=(?:#[^\n]*\n)*[\w\"'][^\n]*:)(.*?)\n(?:---|\.\.\.)|\+\+\+[ \t]*\n(.*?)\n\+\+\+)"
    r"[ \t]*(?:\n|\Z)",
    re.DOTALL,
)
"""What stands before a text about it, in YAML or TOML; two lines across the page around a text are none."""
_TABLE = re.compile(r"<table\b.*?</table\s*>", re.DOTALL | re.IGNORECASE)
_LINK = re.compile(r"""<a\s(?:[^>]*\s)?href\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
_TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)


def read(source: Source, draft: Draft) -> None:
    text, notes = decode(source.path.read_bytes())
    for note in notes:
        draft.note(note)
    text = clean(text)
    if front := _FRONT.match(text):  # Markdown would take it for a heading
        draft.text(front[1] or front[2])
        text = text[front.end() :]
    text = _TABLE.sub(lambda table: re.sub(r"\n\s*\n", "\n", table[0]), text)  # a blank line would end it
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    markdown.block.ruler.at("reference", _address)
    _Blocks(draft).add(markdown.parse(text))


def _address(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Of a link, told elsewhere: [1]: https://… But what follows [^1]: is a footnote, and told to the reader."""
    footnote = state.src.startswith("[^", state.bMarks[first] + state.tShift[first])
    return not footnote and reference(state, first, last, silent)


class _Blocks:
    """Tokens as blocks. A list becomes one block with a line an item, its marks and depth kept."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._rows: list[list[str]] = []
        self._lists: list[int | None] = []  # the number of the next item of each list we are in; None without numbers
        self._lines: list[str] = []
        self._prefix = ""

    def add(self, tokens: Sequence[Token]) -> None:
        level = 0
        for token in tokens:
            kind = token.type
            if kind in ("bullet_list_open", "ordered_list_open"):
                self._lists.append(int(token.attrs.get("start", 1)) if kind.startswith("ordered") else None)
            elif kind in ("bullet_list_close", "ordered_list_close"):
                self._end_of_list()
            elif kind == "list_item_open":
                self._prefix = self._mark()
            elif kind == "heading_open":
                level = int(token.tag[1])
            elif kind == "heading_close":
                level = 0
            elif kind == "tr_open":
                self._rows.append([])
            elif kind == "table_close":
                self._flush()
                self._draft.table(self._rows)
                self._rows = []
            elif kind == "inline" and self._rows:
                self._rows[-1].append(_text(token))
            elif kind == "inline" and level:
                self._draft.heading(_text(token), level)
            elif kind == "html_block" and not self._lists:
                add_fragment(self._draft, token.content)
            elif kind in ("inline", "fence", "code_block", "html_block"):
                self._text(_TAG.sub("", token.content) if kind == "html_block" else _text(token))

    def _mark(self) -> str:
        depth, number = "  " * (len(self._lists) - 1), self._lists[-1]
        if number is None:
            return depth + "- "
        self._lists[-1] = number + 1
        return f"{depth}{number}. "

    def _text(self, text: str) -> None:
        if not self._lists:
            self._draft.text(text)
        elif text.strip():
            under = " " * len(self._prefix)
            self._lines.append(self._prefix + text.strip("\n").replace("\n", "\n" + under))
            self._prefix = under

    def _end_of_list(self) -> None:
        self._lists.pop()
        if not self._lists:
            self._flush()

    def _flush(self) -> None:
        self._draft.text("\n".join(self._lines))
        self._lines = []


def _text(token: Token) -> str:
    """What a reader sees of it: links, descriptions of pictures, no marks of emphasis."""
    if token.children is None:
        return token.content
    parts: list[str] = []
    opened: list[tuple[int, str]] = []  # where the words of each link begin that is open, and where it leads
    for child in token.children:
        if child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif child.type == "link_open":
            opened.append((len(parts), str(child.attrs.get("href"))))
        elif child.type == "html_inline" and (found := _LINK.match(child.content)):
            opened.append((len(parts), found[1]))
        elif opened and (child.type == "link_close" or (child.type, child.content) == ("html_inline", "</a>")):
            begin, target = opened.pop()
            parts[begin:] = [linked("".join(parts[begin:]), target)]
        elif child.type == "html_inline":
            parts.append("\n" if child.content.startswith("<br") else "")
        else:
            parts.append(_text(child) if child.children else child.content)
    return "".join(parts)
