"""Sentences with entities, in the shapes of public sets: as conversations, as questions, and faulty ones."""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

from mengya.data.conversations import parse_conversation, read_conversations
from mengya.data.documents import read_documents
from mengya.data.entities import INSTRUCTIONS, of_tags
from mengya.data.fields import Notes
from mengya.data.intake import Intake
from mengya.data.readers.tagged import MAX_TOKENS
from mengya.data.schoolbook import ENTITY_FILES, entities, write_entities
from mengya.errors import UserError
from mengya.tasks.questions import read_questions

from ..conftest import write_jsonl

Found = list[tuple[str, dict[str, list[str]]]]
"""Sentence -> what is to be said of it."""


def found_in(path: Path, quarantine: Path | None = None) -> tuple[Found, list[tuple[int, str]]]:
    """What training reads of a file, and (line, reason) of what is put aside."""
    quarantine = quarantine or path.with_name("quarantine.jsonl")
    with Intake(quarantine) as intake:
        talks = [row.value for row in read_conversations(str(path), intake)]
    found = []
    for user, assistant in talks:
        instruction, _, sentence = user["content"].partition("\n")
        assert instruction in INSTRUCTIONS and (user["role"], assistant["role"]) == ("user", "assistant")
        found.append((sentence, json.loads(assistant["content"])))
    lines = quarantine.read_text("utf-8").splitlines() if quarantine.exists() else []
    return found, [(row["line"], row["reason"]) for row in map(json.loads, lines)]


def columns(*sentences: str, divider: str = " ", end: str = "\n") -> bytes:
    """ "海/B-LOC 淀/I-LOC" -> a file."""
    lines = [end.join(divider.join(pair.rsplit("/", 1)) for pair in s.split()) + end for s in sentences]
    return end.join(lines).encode()


def read_bytes(tmp_path: Path, content: bytes, name: str = "a.bio") -> tuple[Found, list[tuple[int, str]]]:
    (tmp_path / name).write_bytes(content)
    return found_in(tmp_path / name)


# --- columns ----------------------------------------------------------------------------------------------------------

SENTENCES = "王/B-PER 伟/I-PER 在/O 海/B-LOC 淀/I-LOC 。/O", "下/O 雨/O 了/O"
WANTED: Found = [("王伟在海淀。", {"人名": ["王伟"], "地名": ["海淀"]}), ("下雨了", {})]


@pytest.mark.parametrize("name", ["a.bio", "a.bioes", "a.bmes", "a.conll", "a.txt", "a.tsv", "a.CONLL.gz"])
@pytest.mark.parametrize("divider", [" ", "\t", " \t "])
@pytest.mark.parametrize(("end", "mark"), [("\n", b""), ("\r\n", b"\xef\xbb\xbf")])
def test_columns(tmp_path, name, divider, end, mark):
    content = mark + columns(*SENTENCES, divider=divider, end=end)
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert read_bytes(tmp_path, content, name) == (WANTED, [])


def test_columns_in_gb18030_and_without_a_last_newline(tmp_path):
    content = columns(*SENTENCES * 3).decode().rstrip().encode("gb18030")
    assert read_bytes(tmp_path, content) == (WANTED * 3, [])


@pytest.mark.parametrize(
    ("tags", "wanted"),
    [
        ("BIO", [("B-X I-X O B-X", "01 3"), ("B-X B-X I-X O", "0 12"), ("B_X I_X B_Y I_Y", "01 23y")]),
        ("BIOES", [("S-X B-X E-X O", "0 12"), ("B-X I-X E-X S-X", "012 3"), ("B-X E-X B-X E-X", "01 23")]),
        ("BMES", [("B-X M-X M-X E-X", "0123"), ("S-X S-X O O", "0 1")]),
        ("BILOU", [("B-X I-X L-X U-X", "012 3"), ("U-X O U-X O", "0 2")]),
        # As conlleval: what continues nothing begins, and another type begins another entity.
        (
            "I alone",
            [("I-X I-X O I-X", "01 3"), ("O E-X O O", "1"), ("B-X I-Y I-Y O", "0 12y"), ("E-X I-X O O", "0 1")],
        ),
        ("one kind", [("B I O B", "01 3"), ("X-B X-I O X_B", "01 3")]),
    ],
)
def test_schemes(tags, wanted):
    for written, places in wanted:
        sentence = of_tags(list("甲乙丙丁"), written.split())
        kinds = [k.replace("ENTITY", "X") for k, _, _ in sentence.entities]
        spans = ["".join(map(str, range(start, end))) for _, start, end in sentence.entities]
        assert [s + ("y" if k == "Y" else "") for s, k in zip(spans, kinds, strict=True)] == places.split(), written


def oracle(tags: list[str]) -> set[tuple[str, int, int]]:
    """conlleval's rules for the start and the end of a chunk, written out."""
    found, start = set(), 0
    before, kind_before = "O", ""
    for i, tag in enumerate([*tags, "O"]):
        place, kind = tag[0], tag[2:]
        ends = before in "ES" or (before in "BI" and (place in "BSO" or kind != kind_before))
        if before != "O" and ends:
            found.add((kind_before, start, i))
        if place != "O" and (place in "BS" or before in "OES" or kind != kind_before):
            start = i
        before, kind_before = place, kind
    return found


def test_any_tags_are_read_as_conlleval_reads_them():
    noise = random.Random(0)
    for _ in range(3000):
        tags = [noise.choice(["O", *(f"{p}-{k}" for p in "BIES" for k in "XY")]) for _ in range(noise.randrange(1, 9))]
        assert {tuple(entity) for entity in of_tags(["字"] * len(tags), tags).entities} == oracle(tags), tags


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        (["EU", "rejects", "German", "call", "."], "EU rejects German call ."),
        (["I", "B", "M", "在", "中", "国"], "IBM在中国"),
        (["去", "New", "York", "玩"], "去New York玩"),
        (["北京", "大学", "2019", "年"], "北京大学2019年"),
        (["a", " ", "b"], "a b"),
        (["😀", "张", "三", "ＡＢ"], "😀张三ＡＢ"),
    ],
)
def test_tokens_are_joined_as_their_language_joins_them(tokens, text):
    sentence = of_tags(tokens, ["O"] * (len(tokens) - 2) + ["B-X", "I-X"])
    ((_, start, end),) = sentence.entities
    assert sentence.text == text and text[start:end].startswith(tokens[-2]) and end == len(text)


def test_names_of_kinds_are_in_the_language_of_the_sentence(tmp_path):
    content = columns("王/B-NR 伟/I-NR", "Tom/B-PER lives/O in/O New/B-LOC York/I-LOC", "甲/B-ODD-ONE")
    assert [said for _, said in read_bytes(tmp_path, content)[0]] == [
        {"人名": ["王伟"]},
        {"person": ["Tom"], "place": ["New York"]},
        {"ODD-ONE": ["甲"]},
    ]


def test_the_ways_of_public_files(tmp_path):
    """CoNLL-2003's columns and marks, numbers before tokens, Weibo's places in a word, spaces that are tokens."""
    conll = b"-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\ncalls VBZ B-VP O\n\n# id 12\tdomain=zh\nTom _ _ B-PER\n"
    wanted = [("EU calls", {"organisation": ["EU"]}), ("Tom", {"person": ["Tom"]})]
    assert read_bytes(tmp_path, conll, "a.txt") == (wanted, [])
    assert read_bytes(tmp_path, b"1 EU NNP B-ORG\n2 has VB O\n3 2 CD O\n") == (
        [("EU has 2", {"organisation": ["EU"]})],
        [],
    )
    weibo = "科0\tO\n技1\tO\n王0\tB-PER.NAM\n伟1\tI-PER.NAM\n10\tO\n".encode()
    assert read_bytes(tmp_path, weibo) == ([("科技王伟1", {"人名": ["王伟"]})], [])
    spaces = "王 B-PER\n  I-PER\n伟 I-PER\n\u3000 O\n#\tO\n\t\tO\n好 O\n".encode()
    assert read_bytes(tmp_path, spaces) == ([("王 伟\u3000# 好", {"人名": ["王 伟"]})], [])
    assert read_bytes(tmp_path, "\n\n \t\n王 B-PER\n\n\n\n伟 O\n\u2028 O\n".encode())[1] == []


def test_faulty_lines_are_put_aside_with_their_sentence(tmp_path):
    good = "王 B-PER\n伟 I-PER\n\n"
    content = (
        f"{good}甲 O\n乙\n丙 O\n\n{good}甲 O\n乙 X-\n\n{good}甲 0\n\n{good}".encode()
        + b"\xff\xfe O\n\n"
        + good.encode()
    )
    found, aside = read_bytes(tmp_path, content)
    assert found == [("王伟", {"人名": ["王伟"]})] * 5
    no_tag = "a tag that is neither O nor like B-PER"
    assert [line for line, _ in aside] == [5, 12, 17, 22]
    assert [reason for _, reason in aside[:3]] == ["a line that is not a token and a tag", no_tag, no_tag]


def test_a_file_without_blank_lines_is_no_sentence(tmp_path):
    found, aside = read_bytes(tmp_path, "字 O\n".encode() * (MAX_TOKENS + 1) + "\n王 B-PER\n".encode())
    assert found == [("王", {"人名": ["王"]})] and aside == [(1, "no blank line among 5,000 tokens")]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf\r\n"])
def test_a_file_without_a_sentence(tmp_path, content):
    found, aside = read_bytes(tmp_path, content)
    assert found == [] and aside in ([], [(0, "empty file")])


@pytest.mark.parametrize("text", ["Plan B\nis the best\nvitamin B", "今天 O\n天气很好", "a\tb\n1\t2\n", "1. O\n"])
def test_prose_and_tables_are_not_taken_for_tags(tmp_path, text):
    for name in ("a.txt", "a.tsv"):
        assert read_bytes(tmp_path, text.encode(), name)[0] == []


def test_columns_are_text_of_a_corpus(tmp_path):
    (tmp_path / "a.bio").write_bytes(columns(*SENTENCES))
    with Intake(None) as intake:
        assert [document.text for document in read_documents(str(tmp_path), None, intake)] == [t for t, _ in WANTED]


# --- spans ------------------------------------------------------------------------------------------------------------

TEXT = "😀王伟在海淀，王伟笑"
BOTH = {"人名": ["王伟"], "地名": ["海淀"]}
CLUENER = {"text": "浙商银行叶老桂", "label": {"name": {"叶老桂": [[4, 6]]}, "company": {"浙商银行": [[0, 3]]}}}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (CLUENER, {"公司": ["浙商银行"], "人名": ["叶老桂"]}),
        ({"text": TEXT, "label": {"name": {"王伟": [[1, 2], [7, 8]]}, "game": None}}, {"人名": ["王伟", "王伟"]}),
        ({"text": TEXT, "label": [[1, 3, "PER"], [4, 6, "LOC"]]}, BOTH),
        ({"text": TEXT, "label": [["LOC", 4, 6], ["PER", 1, 3]]}, BOTH),
        ({"text": TEXT, "label": "[[1, 3, 'PER'], [4.0, 6, 'LOC']]"}, BOTH),
        (
            {"text": TEXT, "entities": [{"label": "PER", "start_offset": 1, "end_offset": 3}], "label": "新闻"},
            {"人名": ["王伟"]},
        ),
        ({"text": TEXT, "entities": [{"type": "PER", "start": 1, "end": 2, "text": "王伟"}]}, {"人名": ["王伟"]}),
        (
            {"text": TEXT, "entities": [{"type": "LOC", "start": 5, "end": 7, "word": "海淀"}]},
            {"地名": ["海淀"]},
        ),  # UTF-16
        ({"text": TEXT, "entities": [{"type": "LOC", "text": "海淀"}]}, {"地名": ["海淀"]}),
        (
            {"text": TEXT, "entities": [{"labels": ["PER"], "start_idx": 1, "end_idx": 3, "entity": "王伟"}]},
            {"人名": ["王伟"]},
        ),
        ({"text": "北京大学", "entities": [[0, 2, "LOC"], [0, 4, "ORG"]]}, {"地名": ["北京"], "组织": ["北京大学"]}),
        ({"text": "王伟 来", "entities": [[0, 3, "PER"]]}, {"人名": ["王伟"]}),
        (
            {"text": "王伟来", "tokens": [{"text": "王"}], "spans": [{"start": 0, "end": 2, "label": "PER"}]},
            {"人名": ["王伟"]},
        ),
        ({"text": "王伟来", "tokens": ["王", "伟"], "labels": [[0, 2, "PER"]]}, {"人名": ["王伟"]}),
        ({"text": TEXT, "label": []}, {}),
        ({"text": TEXT, "label": {}}, {}),
        ({"tokens": ["王", "伟", "来"], "ner_tags": ["B-PER", "I-PER", "O"]}, {"人名": ["王伟"]}),
        (
            {"tokens": ["王", "伟", "来"], "ner_tags": [1, 2, 0], "tag_names": ["O", "B-PER", "I-PER"]},
            {"人名": ["王伟"]},
        ),
        ({"tokens": ["王"], "tags": ["1"], "id2label": {"0": "O", "1": "S-PER"}}, {"人名": ["王"]}),
        ({"tokens": '["王"]', "ner_tags": '["B-PER"]'}, {"人名": ["王"]}),
    ],
)
def test_rows_with_entities(row: dict[str, Any], wanted: dict[str, list[str]]):
    notes = Notes()
    user, assistant = parse_conversation(row, notes)
    assert json.loads(assistant["content"]) == wanted
    assert user["content"].split("\n")[1] in (row.get("text"), "王伟来", "王")
    assert notes.not_read <= {"label", "tokens"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "王伟", "label": [[0, 3, "PER"]]}, "an entity outside of its text"),
        ({"text": "王伟", "label": [[-2, 2, "PER"]]}, "an entity outside of its text"),
        ({"text": "王伟", "label": [[1, 1, "PER"]]}, "an entity outside of its text"),
        (
            {"text": "王伟", "label": [[0, 2, "PER"], [0, 1]]},
            "an entity that is neither an object nor [start, end, type]",
        ),
        (
            {"text": "王伟", "label": {"name": {"李四": [[0, 1]]}}},
            "an entity whose words are not what stands at its span",
        ),
        ({"text": "王伟", "label": {"name": {"王伟": [[0]]}}}, "an entity whose span is not two numbers"),
        ({"text": "王伟", "entities": [{"type": "PER", "text": "李四"}]}, "an entity outside of its text"),
        (
            {"text": "王伟", "entities": [{"type": "PER", "start": "0", "end": "2"}]},
            "an entity whose span is not two numbers",
        ),
        ({"text": "王伟", "entities": [{"type": " ", "start": 0, "end": 2}]}, "an entity without a type"),
        ({"text": "王 ", "entities": [[1, 2, "PER"]]}, "an entity that is white space"),
        ({"text": " ", "entities": [[0, 1, "PER"]]}, "an empty sentence"),
        ({"tokens": ["王", "伟"], "ner_tags": ["B-PER"]}, "not as many tags as tokens"),
        ({"tokens": ["王", "伟"], "ner_tags": [1, 2]}, "tags as numbers, without a list tag_names of what they mean"),
        ({"tokens": ["王"], "ner_tags": [9], "tag_names": ["O"]}, "a number for a tag that has no name"),
        ({"tokens": ["王", 1], "ner_tags": ["O", "O"]}, "a token that is not text"),
        ({"tokens": ["王"], "ner_tags": ["Q"]}, "a tag that is neither O nor like B-PER"),
        ({"tokens": [], "ner_tags": []}, "an empty sentence"),
    ],
)
def test_faulty_rows_are_put_aside(tmp_path, row, reason):
    write_jsonl(tmp_path / "rows.jsonl", [CLUENER, row, CLUENER])
    found, aside = found_in(tmp_path / "rows.jsonl")
    assert len(found) == 2 and aside == [(2, reason)]
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / "rows.jsonl")
    assert str(caught.value) == f"{tmp_path / 'rows.jsonl'}:2: {reason}"


@pytest.mark.parametrize(
    "row",
    [
        {"text": "很好", "label": "positive"},
        {"text": "很好", "label": ["positive"]},
        {"text": "很好", "labels": [0, 1]},
        {"text": "很好", "label": {"a": {"b": 1}}},
        {"text": "很好", "entities": {"urls": []}, "id": 3},
        {"text": "很好"},
        {"tokens": ["很", "好"]},
        {"text": "Human: 你好\n\nAssistant: 你好！", "entities": []},
        {"prompt": "你好", "response": "好", "text": "你好", "entities": [[0, 2, "X"]]},
    ],
)
def test_rows_of_other_kinds_are_none(row):
    try:
        assert INSTRUCTIONS[0] not in parse_conversation(row)[0]["content"]
    except ValueError as error:
        assert str(error) in ("no field of a known conversation shape", "an empty question")


# --- as questions -----------------------------------------------------------------------------------------------------


def test_a_file_of_either_shape_is_questions(tmp_path):
    (tmp_path / "dev.bio").write_bytes(columns(*SENTENCES))
    write_jsonl(tmp_path / "dev.json", [CLUENER, {"kind": "exact", "prompt": "1", "answer": "2"}])
    tagged, spans = read_questions(tmp_path / "dev.bio"), read_questions(tmp_path / "dev.json")
    assert [(q.task.name, q.id) for q in tagged] == [("extraction", "dev.bio:1"), ("extraction", "dev.bio:8")]
    assert [(q.task.name, q.id) for q in spans] == [("extraction", "dev.json:1"), ("exact", "dev.json:2")]
    assert [json.loads(q.answer) for q in tagged] == [said for _, said in WANTED]
    assert tagged[0].messages()[0]["content"] == f"{INSTRUCTIONS[0]}\n王伟在海淀。"
    (tmp_path / "bad.bio").write_text("王 B-PER\n伟\n", "utf-8")
    with pytest.raises(UserError, match=r"bad\.bio:2: a line that is not a token and a tag: '伟'"):
        read_questions(tmp_path / "bad.bio")


# --- the schoolbook's -------------------------------------------------------------------------------------------------


def test_the_schoolbook_makes_a_set_whose_held_out_names_are_new(tmp_path):
    assert write_entities(tmp_path, 1) == dict(zip(ENTITY_FILES, (4000, 400), strict=True))
    train, held = ([json.loads(x) for x in (tmp_path / n).read_text("utf-8").splitlines()] for n in ENTITY_FILES)
    read = "\n".join(row["text"] for row in train)
    names = {row["text"][e["start"] : e["end"]] for row in held for e in row["entities"]}
    assert len(names) > 300 and not [name for name in names if name in read]
    assert not {row["text"] for row in train} & {row["text"] for row in held}
    for rows in (train, held):
        assert len({row["text"] for row in rows}) == len(rows)
        kinds = [{e["type"] for e in row["entities"]} for row in rows]
        assert 0.02 < sum(not k for k in kinds) / len(rows) < 0.12
        assert all(sum(kind in k for k in kinds) > 0.2 * len(rows) for kind in ("PER", "LOC", "ORG"))
        assert 0.1 < sum(row["text"].isascii() for row in rows) / len(rows) < 0.3
    assert not any("{" in row["text"] or "|" in row["text"] for row in train + held)
    found, aside = found_in(tmp_path / "entities.jsonl")
    assert len(found) == 4000 and not aside and len(read_questions(tmp_path / "heldout_entities.jsonl")) == 400


def test_the_same_seed_makes_the_same_set():
    assert entities(3) == entities(3) and entities(3) != entities(4)
