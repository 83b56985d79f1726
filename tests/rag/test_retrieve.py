"""What is found: short words, names stuck to Han, any width and script; and that no input is an error."""

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

import numpy as np

from mengya.errors import UserError
from mengya.rag.document import Block, Document
from mengya.rag.retrieve import Retriever, expression
from mengya.rag.store import Embedder, KnowledgeFolder


@pytest.fixture
def base(tmp_path):
    """base(*texts) -> a knowledge base with a file of each."""
    made = KnowledgeFolder(tmp_path / "knowledge").open_or_create("合同")

    def fill(*texts):
        for number, text in enumerate(texts):
            made.add(Document(f"{number}.txt", "text", (Block("text", text),)), str(number))
        return made

    return fill


def found(base, query, **more):
    return [hit.stored.passage.text for hit in Retriever(**more).find(base, [query])]


CONTRACT, OTHER = "合同违约金为百分之五", "春天来了，花开了"


@pytest.mark.parametrize("query", ["违约", "违约金", "百分之五", "金", "五", "同违", "約金", "违约 春"])
def test_short_words_and_parts_of_words(base, query):
    assert found(base(CONTRACT, OTHER), query)[0] == CONTRACT


def test_a_short_term_counts(base):
    texts = "quick brown fox", "quick ok", "is it ok"
    assert found(base(*texts), "quick ok")[0] == "quick ok"
    assert found(base(*texts), "快 ok")[0] in texts[1:]


@pytest.mark.parametrize("query", ["itgc", "清零", "gen-itgc", "重跑", "ITGC"])
def test_names_stuck_to_han(base, query):
    assert found(base("重跑gen-itgc后清零", OTHER), query) == ["重跑gen-itgc后清零"]


@pytest.mark.parametrize(("text", "query"), [
    ("⾼⽴⽅⼀", "高立方一"), ("高立方一", "⾼⽴⽅⼀"), ("⻘年", "青"), ("ＧＢ２０２４标准", "gb2024"), ("國際論壇",
    "国际论坛"),
    ("国际论坛", "國際論壇"), ("單價５㎏", "5kg"), ("单价5kg", "５㎏"), ("㍻三年", "平成"), ("C++ 与 C#", "C++"),
    ("增长100%", "100%"),
    ("cafe\u0301", "café"), ("ｶﾞﾗｽ", "ガラス"), ("The articles", "article"), ("三菱A4纸", "A4"), ("𠮷野家", "𠮷野"),
    ("25℃", "℃"), ("Le café naïve", "cafe naive"), ("Cafe", "CAFÉ"), ("Straße", "strasse"),
    ("the cities", "city"),
    ("a company", "companies"), ("two boxes", "box"), ("合\u00ad同违\u200b约 con\u00adtract", "合同 contract"),
    ("葛\U000e0100城", "葛城"), ("金额壹拾万元整", "100000元"), ("共100,000.00元", "10万元"),
    ("电话：010-6235 8888，分机2", "01062358888"), ("合 同 书\n甲方：某某", "合同书"), ("姓　　名：张三", "姓名"),
    ("甲方逾期付款的，违约金为本合同总价款的百\n分之五，逐日计算", "百分之五"),
])  # fmt: skip
def test_spellings_of_the_same(base, text, query):
    """And of words that are cut or set apart: sumatrapdf#1189, pdf.js#9186, obsidian-text-extractor#35,
    mj_pdf#52."""
    assert found(base(OTHER, text), query) == [text]


@pytest.mark.parametrize(("text", "query"), [
    ("第三条 甲方付款。", "第3条"), ("第3条 甲方付款。", "第三条说什么？"), ("成立于二〇二四年。", "2024年"),
    ("成立于2024年。", "二〇二四年"), ("违约金一百零五元", "105元"), ("第二十一章 附则", "21章"),
])  # fmt: skip
def test_numbers_in_digits_and_in_words(base, text, query):
    years = (("四", "二〇〇四"), ("13", "2014"), ("三十", "1924"))
    others = [f"第{n}条 甲方付款，成立于{year}年。" for n, year in years]
    assert found(base(*others, text), query)[0] == text


@pytest.mark.parametrize("query", [
    "GB/T 5972-2016", "C++", "100%", "(", '"', "*", "a-b", "AND", "NOT", "OR", "NEAR(a b)", "为什么？", "", " ", "'",
    "x\x00y",
    "words : a", "^a", "a" * 5000, "金" * 5000, "\ud800", "🎉", "^", "{", "title:a", "-", "+", '"a" "b', "a*", "\\",
])  # fmt: skip
def test_any_input_is_a_query(base, query):
    whole = base("按 GB/T 5972-2016 用 C++ 写 100% 的 a-b，and NOT or：为什么？", OTHER)
    hits = Retriever().find(whole, [query])
    assert len(hits) <= 2
    if query in ("GB/T 5972-2016", "C++", "100%", "a-b", "AND", "NOT", "为什么？"):
        assert hits[0].stored.file == "0.txt"
    if not any(character.isalnum() for character in query) and query != "🎉":
        assert expression(query) == "" and hits == []


def test_headings_and_names_of_files_are_searched(tmp_path):
    base = KnowledgeFolder(tmp_path).open_or_create("b")
    blocks = (Block("heading", "违约责任", level=1), Block("text", "按百分之五支付。" * 80))
    base.add(Document("租赁合同.docx", "docx", blocks), "1")
    base.add(Document("食谱.docx", "docx", (Block("text", "加盐五克。"),)), "2")
    hits = Retriever().find(base, ["违约责任"])
    assert len(hits) > 1 and {hit.stored.passage.headings for hit in hits} == {("违约责任",)}
    assert Retriever().find(base, ["食谱"])[0].stored.file == "食谱.docx"


def letters(texts):
    """Vectors of unit length, alike where letters are."""
    counts = np.array([[text.count(letter) for letter in "abcdef"] for text in texts], "f4") + 1e-3
    return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_vectors_find_what_words_do_not(tmp_path):
    base, embedder = KnowledgeFolder(tmp_path).open_or_create("b"), Embedder("letters", letters)
    for text in ("aab xyz", "ccd xyz", "eef xyz"):
        base.add(Document(text, "text", (Block("text", text),)), text, embedder)
    assert found(base, "cdc", embedder=embedder)[0] == "ccd xyz" and found(base, "cdc") == []
    assert found(base, "eef", embedder=embedder)[0] == "eef xyz"
    base.remove("ccd xyz")
    assert "ccd xyz" not in found(base, "cdc", embedder=embedder)


def test_vectors_of_another_model_are_refused_and_a_base_without_any_is_found_by_its_words(tmp_path):
    folder, embedder = KnowledgeFolder(tmp_path), Embedder("letters", letters)
    words, other = folder.open_or_create("words"), folder.open_or_create("other")
    words.add(Document("a", "text", (Block("text", "aab xyz"),)), "1")
    other.add(Document("a", "text", (Block("text", "aab xyz"),)), "1", Embedder("others", letters))
    assert found(words, "xyz", embedder=embedder) == ["aab xyz"]
    with pytest.raises(UserError, match="base other has vectors of others, not of letters; use that one"):
        found(other, "xyz", embedder=embedder)
    words.add(Document("a", "text", (Block("text", "aab xyz"),)), "1", embedder)
    scores = [hit.score for base in (words, folder.open("words")) for hit in Retriever(embedder).find(base, ["xyz"])]
    plain = folder.open_or_create("plain")
    plain.add(Document("a", "text", (Block("text", "aab xyz"),)), "1")
    assert scores[0] == scores[1] > Retriever(embedder).find(plain, ["xyz"])[0].score  # which are compared


def test_vectors_of_a_base_that_was_made_anew(tmp_path):
    folder, embedder = KnowledgeFolder(tmp_path), Embedder("letters", letters)
    for text in ("aab", "ccd"):
        folder.open_or_create("b").add(Document("a", "text", (Block("text", text),)), "1", embedder)
        assert found(folder.open("b"), "dab", embedder=embedder) == [text]
        folder.remove("b")


def test_another_query_adds_what_it_finds(base):
    whole = base("高血压的症状是头晕。", "用药：降压药。", OTHER)
    hits = Retriever().find(whole, ["用什么药", "高血压"])
    assert {hit.stored.file for hit in hits} == {"0.txt", "1.txt"}


def test_ranking_again(base):
    def shortest(question, texts):
        assert question == "违约金"
        return [-len(text) for text in texts]

    assert found(base("违约金违约金的约定见下", "违约金"), "违约金", rerank=shortest)[0] == "违约金"
