"""Web pages: what they are about, without scripts, hidden text, menus and the like, and how much of each was there."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mengya.rag.reading.draft import Draft, Source
from mengya.rag.reading.encodings import codec_of, decode
from mengya.rag.reading.links import absolute
from mengya.rag.reading.page_blocks import add_blocks
from mengya.rag.reading.page_formulas import write_formulas

_UNREAD = ("script", "style", "noscript", "template", "iframe", "object", "embed", "svg", "canvas", "link", "meta")
_CONTROLS = ("button", "select", "input", "textarea", "dialog")
_AROUND = ("nav", "aside", "footer", "menu")
_BOXES = ("div", "section", "ul", "ol", "dl", "header", "p", "table", "form")
_ROLES = frozenset("navigation banner contentinfo search dialog alertdialog complementary menu menubar toolbar".split())
_NAMES = frozenset(
    "nav navbar navigation menu submenu breadcrumb breadcrumbs sidebar footer cookie cookies consent gdpr banner "
    "popup modal share social sharing advert ads advertisement promo related recommend recommended pagination pager "
    "newsletter subscribe skip toolbar copyright".split()
)
"""Words in classes and ids of what stands around the content of a page."""
_HIDDEN_STYLE = re.compile(r"(display\s*:\s*none|visibility\s*:\s*hidden|(opacity|font-size)\s*:\s*0)(?![.\d])")
_RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
_MEDIA = re.compile(r"@[^{};]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}")
_CHARSET = re.compile(rb"""charset\s*=\s*["']?\s*([\w-]+)""", re.IGNORECASE)
_PROLOG = re.compile(r"^\s*(<\?xml[^>]*>\s*)?(<!doctype[^>\[]*\[[^\]]*\]\s*>)?", re.IGNORECASE)
"""Of XHTML: with entities that nobody needs, where any are declared."""
_SENTENCE = re.compile(r"[。！？；]|[.!?](\s|$)")


def read(source: Source, draft: Draft) -> None:
    add_html(draft, source.path.read_bytes(), source.name)


def add_html(draft: Draft, data: bytes, name: str = "") -> None:
    """A whole page. `name`: its address, perhaps."""
    text, notes = _decoded(data)
    for note in notes:
        draft.note(note)
    root = _parsed(_PROLOG.sub("", text, count=1).replace("\0", "") or "<p></p>", draft)
    title = " ".join((root.findtext(".//title") or "").split())
    _see_from(root, name)
    left_out: Counter[str] = Counter()
    left_out["frames, which are pages of their own"] = sum(bool(one.get("src")) for one in root.iter("frame", "iframe"))
    write_formulas(root)
    _drop_unseen(root, left_out)
    for head in root.iter("head", "frameset"):
        head.clear()
    body = root.find("body")
    content = _content(root if body is None else body, left_out)
    if title and not any(_length(one) for one in content.iter("h1")):
        draft.heading(title, 1)
    add_blocks(draft, content)
    for what, count in left_out.items():
        if count:
            draft.note(f"left out: {count:,} {what}")


def _see_from(root: Any, name: str) -> None:
    """Links of the page as they are seen from elsewhere, if it tells its own address, or has it as its name."""
    told = [one.get("href") for one in root.iter("base")] + [name]
    told += [one.get("href") for one in root.iter("link") if one.get("rel") == "canonical"]
    base = next((one for one in told if one and one.startswith(("http://", "https://"))), "")
    for link in root.iter("a") if base else ():
        link.set("href", absolute(link.get("href") or "", base))


def add_fragment(draft: Draft, text: str) -> None:
    """HTML that stands in a text of another kind."""
    root = _parsed(f"<div>{text}</div>", draft)
    write_formulas(root)
    _drop_unseen(root, Counter())
    add_blocks(draft, root)


def _parsed(text: str, draft: Draft) -> Any:
    """The root of a page. What is nested too deep the parser drops without an exception, and all that follows it."""
    from lxml import html

    parser = html.HTMLParser(remove_comments=True, remove_pis=True)
    root = html.document_fromstring(text, parser=parser)
    if any("depth" in error.message for error in parser.error_log):
        draft.note("its elements are nested too deep, perhaps because many are never closed; what follows was not read")
    return root


def _decoded(data: bytes) -> tuple[str, tuple[str, ...]]:
    """UTF-8 if it is; else what the page says of itself, if that is true; else the likeliest."""
    declared = _CHARSET.search(data[:4096])
    name = codec_of(declared[1].decode("ascii")) if declared else ""
    if name in ("gb2312", "gbk", "gb18030"):
        name = ""  # left to what tells it from Big5: the name is often wrong
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return (data.decode(name), ()) if name and not name.startswith("utf") else decode(data)
        except (LookupError, UnicodeDecodeError):
            return decode(data)
    return decode(data)


def _length(element: Any) -> int:
    return len("".join(element.text_content().split()))


def _drop_unseen(root: Any, left_out: Counter[str]) -> None:
    """Take away what no reader of the page sees."""
    hiding = _hiding_rules("\n".join(style.text or "" for style in root.iter("style")))
    left_out["scripts"] = len(list(root.iter("script")))
    for element in list(root.iter(*_UNREAD, *_CONTROLS)):
        if element.getparent() is not None and element.tag != "body":
            element.drop_tree()
    for element in list(root.iter()):
        if not isinstance(element.tag, str) or element.tag in ("html", "body") or element.getparent() is None:
            continue
        if _is_hidden(element, hiding):
            left_out["characters of hidden text"] += _length(element)
            element.drop_tree()


def _hiding_rules(styles: str) -> set[str]:
    """Classes and ids ( ".x", "#y") that the page's own styles hide, but for those of other screens or of print."""
    found = set()
    for selectors, rules in _RULE.findall(_MEDIA.sub("", styles)):
        if _HIDDEN_STYLE.search(rules.lower()):
            found |= {one.strip() for one in selectors.split(",") if re.fullmatch(r"\s*[.#][\w-]+\s*", one)}
    return found


def _is_hidden(element: Any, hiding: set[str]) -> bool:
    if element.get("hidden") is not None or element.get("aria-hidden") == "true":
        return True
    if _HIDDEN_STYLE.search((element.get("style") or "").lower()):
        return True
    names = {f".{name}" for name in (element.get("class") or "").split()} | {f"#{element.get('id')}"}
    return bool(names & hiding)


def _content(body: Any, left_out: Counter[str]) -> Any:
    """The part of the page that it is about."""
    whole = _length(body)
    around = _outermost([one for one in body.iter() if isinstance(one.tag, str) and _is_around(one, body, whole)])
    menus = sum(map(_length, around))
    rest = "".join(_text_without(body, set(around)))
    if not _SENTENCE.search(rest) and len(rest) < 0.5 * whole:
        # A page of links, or one whose content bears the name of a menu: then only what says so by its tag goes.
        around = _outermost(list(body.iter("nav", "footer")))
        menus = sum(map(_length, around))
        around = around if menus < whole else []
    for element in around:
        element.drop_tree()
    main = [one for one in body.iter() if one.tag == "main" or one.get("role") == "main"] or list(body.iter("article"))
    content = main[0] if len(main) == 1 and 2 * _length(main[0]) > _length(body) else body
    left_out["characters of menus and the like"] = whole - _length(content)
    return content


def _is_around(element: Any, body: Any, whole: int) -> bool:
    if element is body or element.tag in ("main", "article", "h1"):
        return False
    if element.tag in _AROUND or element.get("role") in _ROLES:
        return not (element.tag == "footer" and any(one.tag == "blockquote" for one in element.iterancestors()))
    length = _length(element)
    words = set(re.split(r"[\s_-]+", f"{element.get('class') or ''} {element.get('id') or ''}".lower()))
    wraps = any(True for _ in element.iterdescendants("main", "article", "h1"))
    if words & _NAMES and not wraps and 2 * length < whole and element.tag in _BOXES:
        return True
    if element.tag not in _BOXES or not length:
        return False
    links = list(element.iter("a"))
    linked = sum(map(_length, links))
    if len(links) < 4 or linked < 0.7 * length or linked > 25 * len(links):
        return False
    return not _SENTENCE.search("".join(_text_without(element, set(links))))


def _text_without(element: Any, without: set[Any]) -> Iterator[str]:
    if element not in without:
        yield element.text or ""
        for one in element:
            yield from _text_without(one, without) if isinstance(one.tag, str) else ()
            yield one.tail or ""


def _outermost(elements: list[Any]) -> list[Any]:
    chosen = set(elements)
    return [one for one in elements if not any(ancestor in chosen for ancestor in one.iterancestors())]
