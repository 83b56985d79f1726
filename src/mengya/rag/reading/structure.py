"""Headings that a text without markup shows by their words: chapters and sections, as laws and books number them."""

import re

_PART = re.compile(r"第[〇零一二三四五六七八九十百千\d]{1,7}([编篇卷部回章节])|(Chapter|Part) [\dIVX]+\b")
_LEVELS = {"编": 1, "篇": 1, "卷": 1, "部": 1, "回": 2, "章": 2, "节": 3}


def heading_level(line: str) -> int:
    """1 to 3 of a line such as "第二章 总则"; 0: it is none."""
    line = line.strip()
    found = _PART.match(line)
    if not found or len(line) > 40 or line[-1] in "。，；,.;…":
        return 0
    return _LEVELS.get(found[1], 2)
