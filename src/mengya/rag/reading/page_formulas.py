"""Formulas of web pages: in TeX as their author wrote them, else on one line. Pages show each in several ways, of which
some are for screen readers alone."""

import re
from typing import Any

from mengya.rag.reading.formulas import of_mathml

_TEX = re.compile("(application/x-)?(la)?tex", re.IGNORECASE)
_AGAIN = frozenset("mwe-math-fallback-image-inline mwe-math-fallback-image-display katex-html MathJax MathJax_Preview "
                   "MathJax_Display MathJax_SVG MathJax_CHTML MJXc-display".split())  # fmt: skip
"""Classes of what shows a formula that stands beside it."""
_STYLE = re.compile(r"^\{?\s*\\(?:displaystyle|textstyle)\b\s*(.*?)\s*\}?$", re.DOTALL)


def write_formulas(root: Any) -> None:
    """Put the text of each formula in its place, once, and where it is seen."""
    shown = [*root.iter("math"), *(one for one in root.iter("script") if "math/tex" in (one.get("type") or ""))]
    if not shown:
        return
    for one in list(root.iter()):
        names = set((one.get("class") or "").split()) if isinstance(one.tag, str) else set()
        if names & _AGAIN and one.getparent() is not None and not any(True for _ in one.iter("math", "script")):
            one.drop_tree()
    for one in shown:
        if one.getparent() is None:
            continue
        text = _text(one)
        for around in [*one.iterancestors()][:2]:  # hidden, since something else shows it
            if any(name.startswith("mwe-math") for name in (around.get("class") or "").split()):
                around.attrib.pop("style", None)
        one.addprevious(shown_as := one.makeelement("span"))
        shown_as.text = text
        one.drop_tree()


def _text(element: Any) -> str:
    if element.tag == "script":
        return f"${(element.text or '').strip()}$"
    told = [one.text_content() for one in element.iter("annotation") if _TEX.fullmatch(one.get("encoding") or "")]
    tex = next((" ".join(one.split()) for one in [*told[-1:], element.get("alttext") or ""] if one.strip()), "")
    plain = _STYLE.match(tex)
    return f"${plain[1] if plain else tex}$" if tex else of_mathml(element)
