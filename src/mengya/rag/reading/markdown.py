"""Markdown: its headings, paragraphs, lists, code and tables, without the markup."""

import re
from collections.abc import Callable, Sequence

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, reference
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from mengya.rag.reading.draft import Draft, Source, clean
from mengya.rag.reading.encodings import decode
from mengya.rag.reading.html import add_fragment
from mengya.rag.reading.links import linked
from mengya.rag.reading.marks import lowered, raised, struck

_FRONT = re.compile(
    r"\A(?:---[ \t]*\n(?=(?:#[^\n]*\n)*[\w\"'][^\n]*:)(.*?)\n(?:---|\.\.\.)|\+\+\+[ \t]*\n(.*?)\n\+\+\+)"
    r"[ \t]*(?:\n|\Z)",
    re.DOTALL,
)
"""What stands before a text about it, in YAML or TOML; two lines across the page around a text are none."""
_TABLE = re.compile(r"<table\b.*?</table\s*>", re.DOTALL | re.IGNORECASE)
_LINK = re.compile(r"""<a\s(?:[^>]*\s)?href\s*=\s*["']?([^"'\s>]+)""", re.IGNORECASE)
_FORMULA = re.compile(
    r"\$\$[^$]+\$\$|\$(?![\s$])(?:[^$\\\n]|\\.)+(?<!\s)\$(?!\d)"
    r"|\\\((?=[^)]*(?:\\[a-zA-Z]|[\^_=]))(?:.|\n)+?\\\)|\\\[(?=[^\]]*(?:\\[a-zA-Z]|[\^_=]))(?:.|\n)+?\\\]"
)
"""In TeX; a bracket alone may be one that is no markup."""
_CLOSING = re.compile(r"</(?:a|sup|sub|del|strike|s)\s*>", re.IGNORECASE)
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
    markdown.block.ruler.before("fence", "formula", _formula_block)
    markdown.inline.ruler.before("escape", "formula", _formula)
    _Blocks(draft).add(markdown.parse(text))


def _address(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Of a link, told elsewhere: [1]: https://… But what follows [^1]: is a footnote, and told to the reader."""
    footnote = state.src.startswith("[^", state.bMarks[first] + state.tShift[first])
    return not footnote and reference(state, first, last, silent)


def _formula(state: StateInline, silent: bool) -> bool:
    """In TeX, whose signs are no markup."""
    found = _FORMULA.match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        state.push("text_special", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _formula_block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Lines from one that begins with $$ to one that ends so."""
    if not state.src.startswith("$$", state.bMarks[first] + state.tShift[first]):
        return False
    opening = state.src[state.bMarks[first] + state.tShift[first] + 2 : state.eMarks[first]]
    end = next((i for i in range(first + 1, last) if state.src[: state.eMarks[i]].rstrip().endswith("$$")), None)
    if "$$" in opening or end is None:
        return False
    if not silent:
        state.push("code_block", "", 0).content = state.getLines(first, end + 1, state.blkIndent, False)
        state.line = end + 1
    return True


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
    # Where words begin that are marked, and what that makes of them.
    opened: list[tuple[int, Callable[[str], str]]] = []
    for child in token.children:
        if child.type in ("softbreak", "hardbreak"):
            parts.append("\n")
        elif (mark := _mark_of(child)) is not None:
            opened.append((len(parts), mark))
        elif opened and (child.type in ("link_close", "s_close") or _CLOSING.fullmatch(child.content)):
            begin, mark = opened.pop()
            parts[begin:] = [mark("".join(parts[begin:]))]
        elif child.type == "html_inline":
            parts.append("\n" if child.content.startswith("<br") else "")
        else:
            parts.append(_text(child) if child.children else child.content)
    return "".join(parts)


def _mark_of(token: Token) -> Callable[[str], str] | None:
    """What becomes of the words behind it; None: it opens nothing."""
    if token.type == "s_open":
        return struck
    address = str(token.attrs.get("href")) if token.type == "link_open" else None
    if token.type == "html_inline":
        tag = re.match(r"<(sup|sub|del|strike|s)\b[^/]*>", token.content)
        if tag:
            return {"sup": raised, "sub": lowered}.get(tag[1], struck)
        link = _LINK.match(token.content)
        address = link[1] if link else None
    return None if address is None else lambda words: linked(words, address)
