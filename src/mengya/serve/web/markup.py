"""Markdown, formulas and code as HTML that is safe whatever a model or a document wrote.

Nothing of the text becomes a tag or an address: raw HTML stays text, pictures and links are shown as words with the
address behind them, so that a browser asks nobody anything. Formulas become MathML, which browsers draw themselves.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mengya.serve.web.formulas import LONGEST, mathml

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token

_LONGEST = 200_000
"""Characters that are set as Markdown; longer texts stay as they are."""
_CODE = 40_000
"""Characters of code that is coloured."""
_LINES = 60
"""Lines of a formula, at most."""
_OPENS = re.compile(
    r"\$\$|\\\[|\\begin\{((?:align|aligned|alignat|eqnarray|equation|gather|gathered|multline|split|cases|[pbvBV]?matrix)\*?)\}"
)
"""What a formula of its own begins with."""
_IN_LINE = re.compile(r"\$(?![\s\d])[^$\n]{1,300}?(?<![\s\\])\$(?![0-9A-Za-z])|\\\(.{1,300}?\\\)")
"""A formula in a line, such as a cell; it begins with no digit, as a price does."""
_BAR = "\ue07c"
"""In the place of a bar that ends no cell."""
_UNDER_HEADER = re.compile(r"[\s>|:-]+")
_CITATION = r"\[(\d{1,3}(?:\s*[,，、]\s*\d{1,3})*)\]|【(\d{1,3}(?:\s*[,，、]\s*\d{1,3})*)】"


def blocks(text: str, sources: Collection[int] = ()) -> list[str]:
    """The HTML of each block of a Markdown text. [1] and 【1】 become buttons for those of the `sources`; if there
    are any, other numbers are left out."""
    if len(text) > _LONGEST:
        return [f"<pre>{html.escape(text)}</pre>"]
    markdown = _markdown()
    environment = {"sources": sources}
    tokens = markdown.parse(text, environment)
    return [markdown.renderer.render(group, markdown.options, environment) for group in _groups(tokens)]


def _groups(tokens: Sequence["Token"]) -> Iterator[Sequence["Token"]]:
    begin, depth = 0, 0
    for number, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            yield tokens[begin : number + 1]
            begin = number + 1


@functools.cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath.index import math_inline_dollar

    markdown = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True}).enable(
        ["table", "strikethrough"]
    )
    markdown.inline.parse = functools.partial(_inline, markdown.inline)  # type: ignore[method-assign]
    markdown.disable("reference")  # an address that stands elsewhere in the text
    markdown.inline.ruler.before("escape", "math_brackets", _brackets)
    markdown.inline.ruler.before("escape", "math_dollars", math_inline_dollar(False, False, True))
    markdown.block.ruler.at("table", _table_rule, {"alt": ["paragraph", "reference"]})
    may_end = ["paragraph", "reference", "blockquote", "list"]
    markdown.block.ruler.before("fence", "math_block", _formula_block, {"alt": may_end})
    rules: dict[str, Any] = {
        "image": _image, "link_open": _nothing, "link_close": _address, "fence": _fence, "code_block": _fence,
        "text": _text, "heading_open": _heading, "heading_close": _heading, "table_open": _table,
        "table_close": _table,
    }  # fmt: skip
    rules |= {"math_inline": functools.partial(_math, display=False)}
    rules |= dict.fromkeys(("math_inline_double", "math_block"), functools.partial(_math, display=True))
    renderer: Any = markdown.renderer
    renderer.rules |= rules
    return markdown


def _inline(parser: Any, source: str, markdown: "MarkdownIt", env: Any, tokens: Any) -> Any:
    """As the parser does it, but Chinese is written without spaces: in **注意：**这 the second mark ends what is
    strong, where CommonMark sees a mark between a colon and a word."""
    from markdown_it.rules_inline.state_inline import Scanned, StateInline

    class Chinese(StateInline):
        def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
            found = super().scanDelims(start, canSplitWord)
            before = self.src[start - 1 : start]
            after = self.src[start + found.length : start + found.length + 1]
            if not (_wide(before) or _wide(after)):
                return found
            return Scanned(bool(after) and not after.isspace(), bool(before) and not before.isspace(), found.length)

    state = Chinese(source, markdown, env, tokens)
    parser.tokenize(state)
    for rule in parser.ruler2.getRules(""):
        rule(state)
    return state.tokens


def _wide(character: str) -> bool:
    return bool(character) and unicodedata.east_asian_width(character) in "WF"


def _brackets(state: "StateInline", silent: bool) -> bool:
    r"""\(…\), and \[…\] within a line."""
    opened = state.src[state.pos : state.pos + 2]
    if opened not in ("\\(", "\\["):
        return False
    begin = state.pos + 2
    end = state.src.find("\\)" if opened == "\\(" else "\\]", begin, begin + LONGEST)
    if end < 0 or not state.src[begin:end].strip():
        return False
    if not silent:
        token = state.push("math_inline" if opened == "\\(" else "math_inline_double", "math", 0)
        token.content, token.markup = state.src[begin:end], opened
    state.pos = end + 2
    return True


def _formula_block(state: "StateBlock", first: int, last: int, silent: bool) -> bool:
    r"""$$…$$, \[…\] and \begin{align}…\end{align} that begin a line and end one, not far below: a model may repeat the
    mark for ever."""
    opened = _OPENS.match(state.src, state.bMarks[first] + state.tShift[first])
    if opened is None or state.is_code_block(first):
        return False
    closed = rf"\end{{{opened[1]}}}" if opened[1] else {"$$": "$$", "\\[": "\\]"}[opened[0]]
    for line in range(first, min(last, first + _LINES)):
        text = state.src[state.bMarks[line] + state.tShift[line] : state.eMarks[line]].rstrip()
        if text and state.sCount[line] < state.blkIndent:
            return False
        at = text.find(closed, len(opened[0]) if line == first else 0)
        if at >= 0:
            break
    else:
        return False
    if at + len(closed) != len(text):  # more follows: it belongs to a paragraph
        return False
    if not silent:
        token = state.push("math_block", "math", 0)
        whole = state.getLines(first, line + 1, state.blkIndent, False).strip()
        token.content = whole if opened[1] else whole[2:-2]
        token.markup, token.block, token.map = closed, True, [first, line + 1]
        state.line = line + 1
    return True


def _table_rule(state: "StateBlock", first: int, last: int, silent: bool) -> bool:
    """As the parser does it, but what stands in a formula ($P(A|B)$) ends no cell."""
    from markdown_it.rules_block import table

    if first + 1 >= last or not _UNDER_HEADER.fullmatch(state.src, state.bMarks[first + 1], state.eMarks[first + 1]):
        return False
    source, before = state.src, len(state.tokens)
    state.src = _without_bars(source)
    try:
        return table(state, first, last, silent)
    finally:
        state.src = source
        for token in state.tokens[before:]:
            token.content = token.content.replace(_BAR, "|")


@functools.lru_cache(2)  # each table of a text asks
def _without_bars(text: str) -> str:
    return _IN_LINE.sub(lambda found: found[0].replace("|", _BAR), text)


def _nothing(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    return ""


def _image(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    return html.escape(token.content) + _shown(str(token.attrs.get("src", "")))


def _address(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    """Of the link that ends here."""
    depth, opened = 1, index
    while depth and opened:
        opened -= 1
        depth += {"link_close": 1, "link_open": -1}.get(tokens[opened].type, 0)
    href = str(tokens[opened].attrs.get("href", ""))
    words = "".join(token.content for token in tokens[opened:index])
    return "" if words == href else _shown(href)


def _shown(address: str) -> str:
    return f' <span class="address">({html.escape(address)})</span>' if address else ""


def _heading(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    """Below the headings of the page."""
    token = tokens[index]
    level = min(6, int(token.tag[1]) + 1)
    return f"<h{level}>" if token.nesting == 1 else f"</h{level}>\n"


def _table(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    opened = '<div class="table" role="region" tabindex="0" aria-label="table"><table>'
    return opened if tokens[index].nesting == 1 else "</table></div>\n"


def _text(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    sources, text = env["sources"], tokens[index].content
    if not sources:
        return html.escape(text)
    made, end = "", 0
    for found in re.finditer(_CITATION, text):
        numbers = [int(n) for n in re.findall(r"\d+", found[0])]
        made += html.escape(text[end : found.start()]) + "".join(_cite(n) for n in numbers if n in sources)
        end = found.end()
    return made + html.escape(text[end:])


def _cite(number: int) -> str:
    return f'<button type="button" class="cite" data-source="{number}">{number}</button>'


def _fence(tokens: Sequence["Token"], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    language = token.info.split()[0] if token.info.split() else ""
    return (
        f'<div class="code"><div class="code-head"><span>{html.escape(language[:30])}</span>'
        '<button type="button" class="copy-code"></button></div>'
        f'<pre tabindex="0"><code>{_coloured(token.content, language)}</code></pre></div>\n'
    )


@functools.lru_cache(256)  # while an answer grows, the blocks above it stay
def _coloured(code: str, language: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    if not language or len(code) > _CODE:
        return html.escape(code)
    try:
        lexer = get_lexer_by_name(language, stripnl=False)
    except ClassNotFound:
        return html.escape(code)
    return highlight(code, lexer, HtmlFormatter(nowrap=True))


def _math(tokens: Sequence["Token"], index: int, options: Any, env: Any, display: bool) -> str:
    formula = tokens[index].content.strip()
    if tokens[index].markup == "$" and _words_between_dollars(tokens, index):
        return html.escape(f"${tokens[index].content}$")
    set_formula = mathml(formula, display)
    shown = set_formula or f"<code>{html.escape(formula)}</code>"
    return f'<span class="formula" tabindex="0">{shown}</span>' if display else shown


def _words_between_dollars(tokens: Sequence["Token"], index: int) -> bool:
    """Whether they are prices (从$100涨到200$) or names ($HOME:$PATH)."""
    after = tokens[index + 1].content[:1] if index + 1 < len(tokens) else ""
    if "A" <= after <= "Z" or after in ("_", "{"):
        return True
    formula = tokens[index].content
    return any(map(_wide, formula)) and not re.search(r"[\\=^_+<>×÷*/]", formula)
