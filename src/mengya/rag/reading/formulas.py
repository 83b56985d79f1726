"""Formulas of Office files, and of web pages (MathML), on one line: (a)/(b), x^2, x_i, √(x)."""

from typing import Any

from mengya.rag.reading.office import child, tag, value


def formula(element: Any) -> str:
    """Of an oMath, or of a part of one."""
    name = tag(element) if element is not None else ""
    if name == "t":
        return element.text or ""
    if name == "f":
        return f"({formula(child(element, 'num'))})/({formula(child(element, 'den'))})"
    if name == "rad":
        return f"{formula(child(element, 'deg'))}√({formula(child(element, 'e'))})"
    if name == "m":
        rows = [", ".join(formula(one) for one in row if tag(one) == "e") for row in element if tag(row) == "mr"]
        return "; ".join(rows)
    before, between, after = "", "", ""
    if name == "d":  # a sign that is left out is a bracket
        signs = (value(element, "dPr", sign) for sign in ("begChr", "sepChr", "endChr"))
        before, between, after = (sign if sign is not None else usual for sign, usual in zip(signs, "(|)", strict=True))
    elif name == "nary":
        sign = value(element, "naryPr", "chr")
        before = "∫" if sign is None else sign
    marks = {"sup": "^", "sub": "_"}
    parts, operands = [], 0
    for one in element if element is not None else ():
        text = formula(one)
        operands += tag(one) == "e"
        parts.append(between if tag(one) == "e" and operands > 1 else "")
        parts.append(scripted(text, marks[tag(one)]) if tag(one) in marks else text)
    return f"{before}{''.join(parts)}{after}"


def scripted(text: str, mark: str) -> str:
    """A power or an index; nothing of an empty one."""
    return f"{mark}({text})" if len(text) > 1 else mark + text if text else ""


def of_mathml(element: Any) -> str:
    """Of a formula of a web page, whose parts are told apart by their order."""
    name = tag(element)
    parts = [of_mathml(one) for one in element if not tag(one).startswith("annotation")]
    if name == "mfrac" and len(parts) == 2:
        return f"({parts[0]})/({parts[1]})"
    if name in ("msqrt", "mroot"):
        root, degree = ("".join(parts), "") if name == "msqrt" else (parts[0], "".join(parts[1:]))
        return f"{degree}√({root})"
    if name in ("msup", "mover") and len(parts) == 2:
        return parts[0] + scripted(parts[1], "^")
    if name in ("msub", "munder") and len(parts) == 2:
        return parts[0] + scripted(parts[1], "_")
    if name in ("msubsup", "munderover") and len(parts) == 3:
        return parts[0] + scripted(parts[1], "_") + scripted(parts[2], "^")
    if name in ("mtable", "mtr"):
        return ("; " if name == "mtable" else ", ").join(parts)
    return "".join((element.text or "").split()) + "".join(parts)
