"""Passages: where they are cut, that nothing is lost, and that each knows its place."""

import random

import pytest

from mengya.rag.document import Block, Document
from mengya.rag.passages import LIMIT, SIZE, cut, sentences, text_of


def document(*blocks: Block) -> Document:
    return Document("a.txt", "text", blocks)


def paragraphs(*texts: str, page: int | None = None) -> Document:
    return document(*(Block("text", text, page) for text in texts))


def check_places(whole: Document) -> list:
    """Every piece stands in the document as it stands in the passage; the passages, which are returned."""
    passages, text = cut(whole), text_of(whole)
    for passage in passages:
        assert passage.text.strip() and len(passage.text) <= LIMIT
        for piece in passage.pieces:
            assert passage.text[piece.at : piece.at + piece.end - piece.begin] == text[piece.begin : piece.end]
        covered = sum(piece.end - piece.begin for piece in passage.pieces)
        assert len(passage.text) - covered <= len(passage.pieces) - 1
    return passages


def test_3000_han_characters_without_a_line_break_are_cut_at_sentences():
    sentence = "他说：“春天来了，我们去山上看花。”"
    passages = check_places(paragraphs(sentence * (3000 // len(sentence))))
    assert len(passages) > 5
    for passage in passages:
        assert passage.text.startswith("他说") and passage.text.endswith("。”") and len(passage.text) <= SIZE


def test_one_sentence_of_2000_characters_is_cut_at_its_commas():
    passages = check_places(paragraphs("春风吹过山岗，" * 285 + "花开了。"))
    assert all(passage.text[-1] in "，。" and len(passage.text) <= SIZE for passage in passages)


def test_what_has_no_mark_at_all_is_cut_at_the_limit():
    passages = check_places(paragraphs("山" * 2000))
    assert "".join(passage.text for passage in passages) == "山" * 2000
    assert all(len(passage.text) <= SIZE for passage in passages)


@pytest.mark.parametrize(("text", "expected"), [
    ("来了。走了！真的？", ["来了。", "走了！", "真的？"]),
    ("“来了。”他说……然后走了；再见", ["“来了。”", "他说……", "然后走了；", "再见"]),
    ("It costs 3.50 today. We pay.\nThen we go", ["It costs 3.50 today.", "We pay.", "Then we go"]),
    ("（见附件。）下文", ["（见附件。）", "下文"]),
    ("", []),
])  # fmt: skip
def test_sentences(text, expected):
    assert [text[begin:end] for begin, end in sentences(text)] == expected


def test_headings_are_a_path_and_stand_with_what_follows():
    whole = document(
        Block("heading", "合同", level=1), Block("heading", "第一章 总则", level=2), Block("text",
        "本合同由甲乙双方订立。"),
        Block("heading", "第二章 违约", level=2), Block("heading", "第一节", level=3), Block("text",
        "违约金为百分之五。"),
        Block("heading", "附则", level=1), Block("text", "自签字之日起生效。"),
    )  # fmt: skip
    passages = check_places(whole)
    assert [passage.headings for passage in passages] == [
        ("合同", "第一章 总则"), ("合同", "第二章 违约", "第一节"), ("附则",)
    ]  # fmt: skip
    assert passages[1].text == "第二章 违约\n第一节\n违约金为百分之五。"


def test_a_heading_alone_is_not_lost():
    assert [passage.text for passage in check_places(document(Block("heading", "只有标题", level=1)))] == ["只有标题"]


def test_a_passage_over_a_page_break_knows_both_pages():
    passages = check_places(document(Block("text", "违约金为百分", 1), Block("text", "之五。另行约定。", 2)))
    (passage,) = passages
    assert passage.text == "违约金为百分之五。另行约定。" and passage.pages == (1, 2)
    assert [(piece.page, piece.begin, piece.end) for piece in passage.located(4, 9)] == [(1, 4, 6), (2, 7, 10)]
    (english,) = check_places(document(Block("text", "the fine is five", 1), Block("text", "percent of it.", 2)))
    assert english.text == "the fine is five percent of it."
    (apart,) = check_places(document(Block("text", "到此为止。", 1), Block("text", "新的一页。", 2)))
    assert apart.text == "到此为止。\n新的一页。" and apart.pages == (1, 2)


ROWS = (("型号", "价格", "库存"), *((f"M-{n:03}", f"{n * 10} 元", f"{n % 7} 件") for n in range(1, 61)))


def table(rows=ROWS, page=1) -> Block:
    return Block("table", "\n".join(" | ".join(row) for row in rows), page, rows=rows)


def test_a_long_table_repeats_its_caption_and_header_and_is_never_cut_in_a_row():
    whole = document(
        Block("text", "前文在此。", 1), Block("text", "表1 型号与价格", 1), table(), Block("text", "后文。", 2)
    )
    passages = check_places(whole)
    first, *parts, last = passages
    assert (first.text, last.text) == ("前文在此。", "后文。") and len(parts) > 1
    lines = [" | ".join(row) for row in ROWS]
    seen = []
    for part in parts:
        caption, header, *rows = part.text.split("\n")
        assert (caption, header) == ("表1 型号与价格", lines[0]) and set(rows) <= set(lines)
        seen += rows
    assert seen == lines[1:]
    assert any("M-057 | 570 元 | 1 件" in part.text for part in parts)


def test_a_wide_table_is_cut_between_columns():
    """ragflow PR#19509: a row of a wide sheet is longer than a passage, and lost the names of its columns."""
    rows = [("城市", *(f"指标{i}" for i in range(1, 121)))]
    rows += [(f"城市{n}", *(f"{n * 1000 + i}" for i in range(1, 121))) for n in range(1, 31)]
    table = Block("table", "\n".join(" | ".join(row) for row in rows), 1, rows=tuple(rows))
    passages = check_places(document(table))
    for passage in passages:
        names, *below = (line.split(" | ") for line in passage.text.split("\n"))
        assert names[0] == "城市" and below
        for city, *values in below:
            assert [str(int(city[2:]) * 1000 + int(name[2:])) for name in names[1:]] == values
    assert sum("17057" in passage.text for passage in passages) == 1


def test_both_rows_of_a_header_are_repeated():
    rows = (("地区", "收入", "", "支出", ""), ("地区", "上年", "本年", "上年", "本年"))
    rows += tuple((f"城市{n}", *["1000000"] * 4) for n in range(40))
    passages = cut(Document("a.xlsx", "xlsx", (Block("table", "\n".join(" | ".join(r) for r in rows), 1, rows=rows),)))
    assert len(passages) > 1
    assert all(p.text.startswith("地区 | 收入 |  | 支出 | \n地区 | 上年 | 本年 | 上年 | 本年\n城市") for p in passages)


def test_a_short_table_stays_whole_with_its_heading():
    whole = document(Block("heading", "价目", level=1), table(ROWS[:4]))
    (passage,) = check_places(whole)
    assert passage.text.count("\n") == 4 and passage.headings == ("价目",)


def test_a_row_that_is_too_long_by_itself_and_a_header_that_is():
    long = "说明" * 700 + "。"
    rows = (("型号", "说明"), ("M-1", long), ("M-2", "短"))
    passages = check_places(document(table(rows)))
    assert "".join(p.text for p in passages).count("说明") >= 700 and passages[-1].text == "型号 | 说明\nM-2 | 短"
    check_places(document(table((("列" * 900, "值"), ("a", "b")))))


def test_nothing_is_lost_whatever_comes():
    rng = random.Random(0)
    for _ in range(60):
        blocks = []
        for _ in range(rng.randrange(1, 12)):
            kind = rng.choice(["heading", "text", "text", "table"])
            text = "".join(rng.choice("春夏秋冬，。！\n ab.…”") for _ in range(rng.randrange(0, 1500)))
            rows = tuple(tuple(line.split("，")) for line in text.split("\n")) if kind == "table" else ()
            text = "\n".join(" | ".join(row) for row in rows) if rows else text
            blocks.append(Block(kind, text, rng.choice([None, 1, 2]), rng.randrange(4), rows))
        whole = document(*blocks)
        covered = set()
        for passage in check_places(whole):
            for piece in passage.pieces:
                covered.update(range(piece.begin, piece.end))
        text = text_of(whole)
        assert all(i in covered for i, character in enumerate(text) if character.isalnum())


def test_each_part_of_a_long_cell_says_what_it_is_of():
    """hindsight#3195: of a long answer in a table of questions, only the first part had the question."""
    answer = "请携带身份证到出入境大厅办理。" * 80
    rows = (("编号", "问题", "答复", "备注"), ("1", "怎么办理护照", answer, "长"), ("2", "多少钱", "一百二十元", ""))
    table = Block("table", "\n".join(" | ".join(row) for row in rows), rows=rows)
    *parts, last = check_places(Document("a.csv", "csv", (table,)))
    assert len(parts) > 2 and last.text == "编号 | 问题 | 答复 | 备注\n2 | 多少钱 | 一百二十元 | "
    before = "编号 | 问题 | 答复 | 备注\n1 | 怎么办理护照 | "
    assert all(part.text.startswith(before) and len(part.text) <= LIMIT for part in parts)
    assert "".join(part.text.removeprefix(before) for part in parts) == f"{answer} | 长"
