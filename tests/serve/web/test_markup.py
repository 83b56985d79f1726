"""Whatever a model writes: nothing runs, nothing is fetched, formulas and code are drawn."""

import re
from html.parser import HTMLParser

import pytest

from mengya.serve.web.markup import blocks

SAFE = {
    "p", "strong", "em", "s", "code", "pre", "ul", "ol", "li", "blockquote", "hr", "br", "h2", "h3", "h4", "h5", "h6",
    "div", "span", "button", "table", "thead", "tbody", "tr", "th", "td", "math", "mrow", "mi", "mn", "mo", "mtext",
    "msup", "msub", "mfrac", "msqrt", "mspace", "mstyle", "mtable", "mtr", "mtd", "munderover", "msubsup", "munder",
    "mover", "mpadded",
}  # fmt: skip
ATTRIBUTES = {
    "class", "type", "tabindex", "role", "aria-label", "data-source", "xmlns", "display", "start", "stretchy", "fence",
    "form", "displaystyle", "scriptlevel", "mathvariant", "width", "movablelimits", "columnalign", "align", "accent",
    "largeop", "separator", "depth", "linethickness", "rowspacing", "columnspacing", "minsize",
    "maxsize", "lspace", "rspace",
}  # fmt: skip


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words += data


def drawn(text: str, sources=()) -> Tags:
    tags = Tags("".join(blocks(text, sources)))
    assert tags.tags <= SAFE, tags.tags - SAFE
    assert tags.attributes <= ATTRIBUTES, tags.attributes - ATTRIBUTES
    return tags


HOSTILE = [
    "<img src=x onerror=1>", "<svg onload=alert(1)>", "<script>alert(1)</script>", "[a](javascript:alert(1))",
    "[a](data:text/html;base64,PHN2Zz4=)", "![x](https://host.test/p.png?q=1)", "![x][r]\n\n[r]: https://host.test/x",
    "<svg><image href='https://host.test/x'/></svg>", "<div style='background:url(//host.test/x)'>", 
    "![x](//host.test/x)",
    "<https://host.test/>", "[x](https://host.test/y 'title')", "[![i](https://host.test/i)](https://host.test/j)",
    "$\\text{<img src=x onerror=1>}$", "$\\href{javascript:alert(1)}{x}$", "$\\style{background:url(x)}{y}$",
    "$\\class{x}{y}$ $\\unicode{60}$ $$\\text{&lt;script&gt;}$$", "```html\n<script>alert(1)</script>\n```",
    "```<img src=x onerror=1>\nx\n```", "`<img src=x>`", "| <img src=x> |\n|---|\n| <svg onload=1> |",
    "# <script>x</script>", "&lt;script&gt;alert(1)&lt;/script&gt;", "<a href='javascript:1'>x</a>", "\x00<img src=x>",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_becomes_a_tag_or_an_address(text):
    assert drawn(text, {1, 2, 3}).words.strip()
    for cut in range(len(text)):  # as it arrives
        drawn(text[:cut])


def test_links_and_pictures_are_words_with_their_address():
    words = drawn("看[这里](https://host.test/a)和![图](https://host.test/b.png)，<https://host.test/c>").words
    assert words == "看这里 (https://host.test/a)和图 (https://host.test/b.png)，https://host.test/c\n"


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("2H2 + O2 -> 2H2O", "2H2+O2⟶2H2O"), ("SO4^2- + Ba^2+ -> BaSO4 v", "SO42−+Ba2+⟶BaSO4↓"),
        ("CaCO3 ->[\\Delta] CaO + CO2 ^", "CaCO3→ΔCaO+CO2↑"), ("[Fe(CN)6]^3-", "[Fe(CN)6]3−"),
        ("N2 + 3H2 <=>[催化剂][高温] 2NH3", "N2+3H2⇌高温催化剂2NH3"), ("CuSO4.5H2O", "CuSO4·5H2O"),
        ("^{227}_{90}Th+", "90227Th+"), ("MnO4- + 8H+ + 5e- -> Mn^2+", "MnO4−+8H++5e−⟶Mn2+"),
        ("1/2O2(g)", "12O2(g)"), ("HC#CH, CH2=CH2", "HC≡CH,CH2=CH2"), ("C_nH_{2n+2}", "CnH2n+2"),
    ],
)  # fmt: skip
def test_chemical_formulas_are_set(formula, words):
    """Markpad#745, milkdown#1140: they were shown as they are written, or not at all."""
    tags = drawn(rf"$\ce{{{formula}}}$")
    assert "math" in tags.tags and "".join(tags.words.split()) == words


@pytest.mark.parametrize("formula", [r"\ce{H2O", r"\ce{@}", r"\pu{5 m/s}", r"\ce{$x$}"])
def test_chemistry_that_is_not_understood_is_shown_as_it_is_written(formula):
    tags = drawn(rf"\({formula}\)")
    assert "math" not in tags.tags and "code" in tags.tags and tags.words.strip() == formula


def test_words_above_an_arrow_have_their_width():
    made = "".join(blocks(r"$\xrightarrow[\text{高温}]{\text{催化剂}}$"))
    assert "催化剂" in made and "width" not in made


def test_one_upright_letter_is_upright():
    assert "<mtext>d</mtext>" in "".join(blocks(r"$\frac{\mathrm{d}y}{\mathrm{d}x}$"))


def test_numbers_and_signs_in_chemistry_stand_where_they_belong():
    assert "<msubsup>" in (made := "".join(blocks(r"$\ce{SO4^2-}$")))
    assert re.search(
        r"<mtext>O</mtext>(?:</mrow>)?<mrow><mn>4</mn></mrow><mrow><mn>2</mn><mo>−</mo></mrow></msubsup>", made
    )


@pytest.mark.parametrize("formula", ["Na+(aq)", "Na+, Cl-", "2Na+(aq) + CO3^2-(aq)"])
def test_a_charge_is_raised(formula):
    assert re.search(r">a</mi></mrow><mrow><mo>\+</mo></mrow></msup>", "".join(blocks(rf"$\ce{{{formula}}}$")))


@pytest.mark.parametrize("formula", ["(CH3)2C=C(CH3)2", "CH3-(CH2)4-CH3", "NaCl+(NH4)2CO3"])
def test_a_sign_before_a_group_is_not_a_charge(formula):
    assert "<msup>" not in "".join(blocks(rf"$\ce{{{formula}}}$"))


@pytest.mark.parametrize(
    "text",
    [
        "$x^2$", "\\(x^2\\)", "$$x^2$$", "\\[x^2\\]", "设$x^2$，则", "$$\nx^2\n$$", "因此：\n\\[\nx^2\n- 1\n\\]\n后",
        "则\\[x^2\\]成立", "- 项：\n  \\[\n  x^2\n  \\]", "> $$\n> x^2\n> $$", "$$x^2$$ (1)", "$速度^2 = 9$",
    ],
)  # fmt: skip
def test_formulas_become_mathml(text):
    assert {"math", "msup"} <= drawn(text).tags


@pytest.mark.parametrize("name", ["align", "align*", "aligned", "eqnarray", "split"])
@pytest.mark.parametrize("text", ["解：\n{}\n所以", "$$\n{}\n$$", "则 ${}$ 成立"])
def test_formulas_of_several_lines(name, text):
    """silverbulletmd/silverbullet-katex#2, goessner/mdmath#60: nothing was set, or the marks of columns were shown."""
    shown = drawn(text.format(f"\\begin{{{name}}}\na &= 2 \\nonumber \\\\\nc &= 3\n\\end{{{name}}}"))
    assert {"math", "mtable", "mtr"} <= shown.tags and not {"&", "\\"} & set(shown.words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\\begin{equation}\na = b \\label{eq:1}\n\\end{equation}", "a=b"), ("$\\N \\subset \\R$", "ℕ⊂ℝ"),
        ("$\\left( a \\middle| b \\right)$", "(a|b)"), ("\\begin{gather*}\nx\\\\y\n\\end{gather*}", "xy"),
        ("\\begin{alignat}{2}\na &= b\n\\end{alignat}", "a=b"),
    ],
)  # fmt: skip
def test_more_of_what_models_write_in_formulas(text, words):
    shown = drawn(text)
    assert "math" in shown.tags and "".join(shown.words.split()) == words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("| $P(A|B)$ | 二 |", ["P(A|B)", "二"]), ("|$|x|$|\\(|y|\\)|", ["|x|", "|y|"]), ("| $5 | $6 |", ["$5", "$6"]),
        ("|$5|$6|", ["$5", "$6"]), ("| $HOME | $PATH |", ["$HOME", "$PATH"]),
    ],
)  # fmt: skip
def test_a_bar_in_a_formula_ends_no_cell(row, words):
    """What stood behind it was lost."""
    for before in ("", "> ", "- 项\n\n  "):
        cells = blocks(f"{before}| 甲 | 乙 |\n{before[-2:]}|---|---|\n{before[-2:]}{row}")[-1].split("<td>")[1:]
        assert ["".join(re.sub("<[^>]*>", "", cell).split()) for cell in cells] == words
    assert "|" in "".join(blocks("```\n| a |\n|---|\n| $P(A|B)$ |\n```"))


@pytest.mark.parametrize("text", ["\\begin{itemize}\n\\item x\n\\end{itemize}", "\\begin{cases}\nx=1"])
def test_what_is_no_environment_of_formulas_stays(text):
    assert drawn(text).tags <= {"p", "br"}


@pytest.mark.parametrize(
    "text", ["价格 $5 和 $6。", "花了$5，还剩$6", "`$x$`", "$\\frac$", "$" + "{" * 900 + "$", "$x"]
)
def test_what_is_no_formula_stays(text):
    assert drawn(text).words.replace("$", "").strip()


@pytest.mark.parametrize(
    "text",
    ["从$100涨到200$", "Only $59(save $100)", "$PATH:$HOME/bin", "$/PR is down but $/session is up", "\\(", "\\[a"],
)
def test_prices_and_names_are_no_formulas(text):
    """cherry-studio 1396, lobehub 8553: what stands between two dollars is not always one."""
    assert drawn(text).tags == {"p"} and drawn(text).words.strip() == text.replace("\\", "")


def test_the_end_of_a_formula_is_near():
    """A model that repeats $$ for ever would otherwise have each of them looked for to the end of the text."""
    for begin, end in (("$$", "$$"), ("\\[", "\\]")):
        assert "math" in drawn(f"{begin}\n{'x + ' * 9}\ny\n{end}").tags
        assert "math" not in drawn(f"{begin}\n" + "x +\n\n" * 100 + f"y\n{end}").tags
    assert "math" not in drawn("\\(" + "x" * 3000 + "\\)").tags


def test_lines_stay_lines():
    assert "br" in drawn("床前明月光，\n疑是地上霜。").tags


@pytest.mark.parametrize("text", ["**注意：**这是", "这是**“引文”**的", "**粗体**字", "a **b** c", "**「好」**吗"])
def test_chinese_without_spaces_is_strong(text):
    assert "strong" in drawn(text).tags


def test_code_keeps_its_words():
    code = "for x in y:\n    print('<b>&amp;')  # 三\n"
    assert drawn(f"```python\n{code}```").words.strip().endswith(code.strip())
    assert "span" in drawn("```python\nprint(1)\n```").tags
    assert "不认识" in drawn("```没有这种\n不认识\n```").words


def test_citations_are_buttons_where_there_is_a_source():
    html = "".join(blocks("零[0]一[2][9]二【1】三[1, 3]四[1、2]", {1, 2, 3}))
    assert re.findall(r'data-source="(\d+)"', html) == ["2", "1", "1", "3", "1", "2"]
    assert Tags(html).words.replace("\n", "") == "零一2二1三13四12"
    assert Tags("".join(blocks("数组[1]"))).words == "数组[1]\n"
    assert "button" not in re.sub("copy-code.*?</button>", "", "".join(blocks("`[1]`\n\n```\n[1]\n```", {1}))).replace(
        '<button type="button" class="', ""
    )


def test_blocks_above_do_not_change_while_an_answer_grows():
    whole = "一段\n\n## 题\n\n- 甲\n- 乙\n\n```python\nx = 1\n```\n\n尾"
    last: list[str] = []
    for cut in range(len(whole)):
        now = blocks(whole[:cut])
        assert now[: max(0, len(last) - 2)] == last[: max(0, len(last) - 2)]
        last = now


def test_a_very_long_answer_is_text():
    assert drawn("<b>字</b>" * 30_000).tags == {"pre"}
    assert drawn(">" * 5000 + "深").words and drawn("*" * 5000).words and drawn("[" * 5000).words
