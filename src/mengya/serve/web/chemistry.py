r"""What stands in \ce{…}, as mhchem has it, in TeX that the converter of formulas knows."""

import re

_ARROWS = {
    "<=>": (r"\rightleftharpoons", r"\xrightleftharpoons"),
    "<->": (r"\leftrightarrow", r"\xleftrightarrow"),
    "->": (r"\longrightarrow", r"\xrightarrow"),
    "<-": (r"\longleftarrow", r"\xleftarrow"),
}
"""Alone, and with something above it."""
_CE = re.compile(r"\\(?:ce|cee)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_PART = re.compile(
    r"""(?P<arrow><=>|<->|->|<-)\s*(?:\[(?P<above>[^\[\]]*)\])?(?:\[(?P<below>[^\[\]]*)\])?
    | (?P<space>\s+)
    | (?P<gas>\(\^\)|\^(?=\s|$)) | (?P<solid>\(v\)|v(?=\s|$))
    | (?P<mark>[\^_])(?:\{(?P<braced>[^{}]*)\}|(?P<plain>\d*[+-](?![A-Za-z\d])|-?\d+|[a-z]))
    | (?P<count>(?<=[A-Za-z)\]])\d+) | (?P<number>\d+(?:/\d+|\.\d+)?)
    | (?P<state>\((?:aq|s|l|g|cr)\))
    | (?P<atom>[A-Z][a-z]?) | (?P<letter>[a-z])
    | (?P<open>[(\[]) | (?P<close>[)\]])
    | (?P<dot>[*·.]) | (?P<bond>\#) | (?P<sign>[+=-]) | (?P<comma>,)
    | (?P<command>\\[A-Za-z]+(?:\{[^{}]*\})?) | (?P<han>[\u3400-\u9fff]+)""",
    re.VERBOSE,
)


def with_chemistry(formula: str) -> str:
    r"""With each \ce{…} in plain TeX. ValueError for one that is not understood."""
    plain = _CE.sub(lambda found: f"{{{_plain(found[1])}}}", formula)
    if re.search(r"\\(?:ce|cee|pu)(?![A-Za-z])", plain):
        raise ValueError(formula)
    return plain


def _plain(text: str) -> str:
    # What kind of part stands before tells an amount from a number of atoms, and a charge from a plus.
    made, at, before = [], 0, "space"
    while at < len(text):
        found = _PART.match(text, at)
        if found is None or found.lastgroup is None:
            raise ValueError(text[at:])
        kind, at = next(name for name in _KINDS if found[name] is not None), found.end()
        following = _PART.match(text, at)
        ends = at == len(text) or text[at] in " ])<^," or bool(following and following["state"])
        made.append(_part(kind, found, before, ends))
        before = before if kind == "mark" and before != "space" else "isotope" if kind == "mark" else kind
    return "".join(made)


_KINDS = tuple(
    "arrow space gas solid mark count number state atom letter open close dot bond sign comma command han".split()
)
_SUBSTANCE = ("atom", "close", "letter", "count", "number", "command", "han")


def _part(kind: str, found: re.Match[str], before: str, ends: bool) -> str:
    text = found[kind]
    if kind == "arrow":
        alone, labelled = _ARROWS[text]
        above, below = found["above"], found["below"]
        under = f"[{_label(below)}]" if below else ""
        return f" {labelled}{under}{{{_label(above or '')}}} " if above or below else f" {alone} "
    if kind == "mark":
        script = found["braced"] if found["plain"] is None else found["plain"]
        return ("{}" if before == "space" else "") + f"{text}{{{script}}}"
    if kind == "count":
        return f"_{{{text}}}"
    if kind == "number":
        above, bar, below = text.partition("/")
        return rf"\frac{{{above}}}{{{below}}}" if bar else text
    if kind == "sign" and before in _SUBSTANCE and text != "=" and ends:
        return f"^{{{text}}}"
    if kind in ("atom", "state"):
        return rf"\mathrm{{{text}}}"
    plain = {"space": " ", "gas": r"\uparrow ", "solid": r"\downarrow ", "dot": r"\cdot ", "bond": r"\equiv "}
    return rf"\text{{{text}}}" if kind == "han" else plain.get(kind, text)


def _label(text: str) -> str:
    """Above or below an arrow: a substance, or words."""
    if re.fullmatch(r"\s*\\[A-Za-z]+\s*", text):  # such as \Delta
        return text
    try:
        return rf"\text{{{text}}}" if re.search(r"[a-z]{3}|[\u3400-\u9fff]", text) else _plain(text)
    except ValueError:
        return rf"\text{{{text}}}"
