"""TeX formulas as MathML that is safe whatever a model wrote."""

import functools
import html
import re
from xml.etree.ElementTree import Element, tostring

from mengya.serve.web.chemistry import with_chemistry

LONGEST = 2_000
"""Characters of a formula that is set."""
_ALIKE = {
    "aligned": "align*", "alignedat": "align*", "alignat": "align*", "alignat*": "align*", "eqnarray": "align*",
    "eqnarray*": "align*", "gather": "matrix", "gather*": "matrix", "gathered": "matrix", "multline": "matrix",
    "multline*": "matrix", "dcases": "cases", "darray": "array",
}  # fmt: skip
"""Environments that the converter does not know -> those that look much the same."""
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(" + "|".join(map(re.escape, _ALIKE)) + r")\}")
_NUMBERED = re.compile(r"(\\begin\{align(?:ed)?at\*?\})\s*\{\d+\}")
_WITHOUT = re.compile(r"\\(?:begin|end)\{equation\*?\}|\\(?:nonumber|notag|middle)(?![A-Za-z])|\\label\{[^{}]*\}")
"""What only a whole document has a use for, or the size of a bracket."""
_UPRIGHT = re.compile(r"\\mathrm\s*\{([A-Za-z])\}")
"""One letter, which the converter would slant."""
_NUMBERS = re.compile(r"\\([NZQRC])(?![A-Za-z])")


@functools.lru_cache(1024)
def mathml(formula: str, display: bool) -> str:
    """Empty if it is no formula that is understood."""
    from latex2mathml.converter import convert_to_element

    if len(formula) > LONGEST:
        return ""
    try:
        element = convert_to_element(_known(formula), display="block" if display else "inline")
        _clean(element)
        return tostring(element, encoding="unicode", short_empty_elements=False)
    except Exception:  # somebody else's parser, of what a model made up: it fails in many ways
        return ""


def _known(formula: str) -> str:
    """In words that the converter knows."""
    plain = _WITHOUT.sub(" ", _NUMBERED.sub(r"\1", with_chemistry(formula)))
    plain = _UPRIGHT.sub(r"\\text{\1}", plain)
    plain = _ENVIRONMENT.sub(lambda found: f"\\{found[1]}{{{_ALIKE[found[2]]}}}", plain)
    return _NUMBERS.sub(r"\\mathbb{\1}", plain)


def _clean(element: Element) -> None:
    """The converter writes characters as entities, and takes addresses and styles from formulas."""
    element.text = html.unescape(element.text) if element.text else None
    if element.attrib.get("width", "").startswith("+"):  # more than its content, which browsers do not know any more
        element.attrib.clear()
    for name in list(element.attrib):
        if name not in _ATTRIBUTES:
            del element.attrib[name]
        else:
            element.attrib[name] = html.unescape(element.attrib[name])
    if element.tag not in _TAGS:
        raise ValueError(element.tag)
    for child in element:
        _clean(child)


_TAGS = frozenset(
    "math mrow mi mo mn ms mtext mspace msub msup msubsup munder mover munderover mfrac msqrt mroot mtable mtr mtd "
    "mstyle mpadded mphantom menclose mmultiscripts mprescripts none mfenced merror".split()
)
_ATTRIBUTES = frozenset(
    "xmlns display displaystyle scriptlevel mathvariant stretchy fence form separator accent accentunder lspace rspace "
    "minsize maxsize movablelimits linethickness columnalign rowspacing columnspacing columnlines rowlines width "
    "height depth voffset notation open close separators symmetric largeop".split()
)
