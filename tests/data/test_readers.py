"""Readers: every format, compression and encoding; what is broken is named with its line, and nothing else is lost."""

import gzip
import json
import pickle
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from mengya.data.documents import read_documents
from mengya.data.files import NotText, detect_encoding, raw_bytes, scan_files
from mengya.data.intake import Intake
from mengya.data.readers import Rejected, Row, read_rows
from mengya.data.readers import rows as reader_rows
from mengya.data.readers.json_rows import iter_json
from mengya.data.readers.plain import DOCUMENT_CHARS
from mengya.data.readers.rows import BAD_BYTES
from mengya.errors import UserError

REAL = Path(__file__).parents[2] / "../shared/data"
TEXTS = ["今天天气很好，我们去公园散步。", "一行\u2028还是同一行", "English, with a comma", '他说："你好"\n第二行']


@pytest.fixture
def quarantine(tmp_path: Path) -> Iterator[Intake]:
    with Intake(tmp_path / "quarantine.jsonl") as opened:
        yield opened


def entries(quarantine: Intake) -> list[tuple[int, str]]:
    """(line, reason) of everything that was written down."""
    quarantine.__exit__(None, None, None)
    if not quarantine.path.exists():
        return []
    rows = [json.loads(line) for line in quarantine.path.read_text("utf-8").split("\n")[:-1]]
    return [(row["line"], row["reason"]) for row in rows]


def texts_of(paths: Any, text_field: str | None, quarantine: Intake) -> Iterator[str]:
    return (document.text for document in read_documents(paths, text_field, quarantine))


def rows_of(path: Path, quarantine: Intake) -> Iterator[Row]:
    return quarantine.without(read_rows(path))


def pack(data: bytes, compression: str) -> bytes:
    if compression == ".zst":
        return zstandard.ZstdCompressor().compress(data)
    return gzip.compress(data) if compression else data


def as_jsonl(texts: list[str]) -> str:
    return "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)


def as_csv(texts: list[str], delimiter: str) -> str:
    quoted = ('"' + text.replace('"', '""') + '"' for text in texts)
    return f"id{delimiter}text\r\n" + "".join(f"{i}{delimiter}{text}\r\n" for i, text in enumerate(quoted))


WRITERS: dict[str, Callable[[list[str]], str]] = {
    ".jsonl": as_jsonl,
    ".json": lambda texts: json.dumps([{"text": text} for text in texts], ensure_ascii=False, indent=1),
    ".csv": lambda texts: as_csv(texts, ","),
    ".tsv": lambda texts: as_csv(texts, "\t"),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_compression_and_encoding(
    tmp_path: Path, quarantine: Intake, suffix: str, compression: str, encoding: str
) -> None:
    path = tmp_path / f"a{suffix}{compression}"
    path.write_bytes(pack(WRITERS[suffix](TEXTS).encode(encoding), compression))
    assert list(texts_of(str(path), None, quarantine)) == TEXTS
    assert entries(quarantine) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
@pytest.mark.parametrize("name", ["a.txt", "a.md.gz", "A.TXT.ZST"])
def test_plain_text(tmp_path: Path, quarantine: Intake, name: str, encoding: str) -> None:
    text = "第一段。\r\n\r\n第二段\u2028同一行。\n"
    path = tmp_path / name
    path.write_bytes(pack(text.encode(encoding), path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""))
    assert list(rows_of(path, quarantine)) == [Row(str(path), 1, text)]


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_parquet(tmp_path: Path, quarantine: Intake, compression: str) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    plain = tmp_path / "plain"
    messages = [[{"role": "user", "content": text}] for text in TEXTS]
    parquet.write_table(arrow.table({"text": TEXTS, "messages": messages}), plain)
    path = tmp_path / f"a.parquet{compression}"
    path.write_bytes(pack(plain.read_bytes(), compression))
    assert list(texts_of(path, None, quarantine)) == TEXTS
    rows = list(rows_of(path, quarantine))
    assert [row.line for row in rows] == [1, 2, 3, 4] and rows[1].value == {"text": TEXTS[1], "messages": messages[1]}
    path.write_bytes(pack(plain.read_bytes()[:-9], compression))
    assert list(rows_of(path, quarantine)) == []
    assert entries(quarantine) == [(0, "damaged Parquet file")]


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, quarantine: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"pip install 'mengya\[parquet\]'"):
        list(rows_of(tmp_path / "a.parquet", quarantine))


# --- broken rows ------------------------------------------------------------------------------------------------------


def test_broken_lines_are_named_and_the_others_kept(tmp_path: Path, quarantine: Intake) -> None:
    lines = [
        b'{"text": "\xe4\xbd\xa0\xe5\xa5\xbd"}',
        b'{"text": "cut',
        b"",
        b'{"text": "\xe4\xbd"}',
        b"17",
        b'{"text": " "}',
    ]
    lines += [b'{"other": "x"}', b"[" * 100_000, b'{"text": "lone \\ud800 half"}', b'{"text": "last"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    texts = list(texts_of(tmp_path / "a.jsonl", None, quarantine))
    assert texts == ["你好", "lone \ufffd half", "last"]
    assert sorted(entries(quarantine)) == [  # the first rows are read before their text field is known
        (2, "invalid JSON: Unterminated string starting at"),
        (4, BAD_BYTES),
        (5, "a lone number, true, false or null is not a row"),
        (6, "empty"),
        (7, "no string in the text field 'text'; set text_field"),
        (8, "invalid JSON: nested too deeply"),
    ]
    assert quarantine.quarantined == 6 and "1 empty" in quarantine.summary()


def test_a_half_character_costs_one_line_of_text(tmp_path: Path, quarantine: Intake) -> None:
    (tmp_path / "a.txt").write_bytes("第一行\n".encode() + b"\xe4\xbd half\n" + "第三行\n".encode())
    assert [row.value for row in rows_of(tmp_path / "a.txt", quarantine)] == ["第一行\n第三行\n"]
    assert entries(quarantine) == [(2, BAD_BYTES)]


def test_a_bad_byte_in_an_endless_line_costs_little(tmp_path: Path, quarantine: Intake) -> None:
    data = ("春眠不觉晓，处处闻啼鸟。" * 60_000).encode()
    (tmp_path / "a.txt").write_bytes(data[:1_500_000] + data[1_500_001:] + b"\nend")
    text = "".join(str(row.value) for row in rows_of(tmp_path / "a.txt", quarantine))
    assert 720_000 - 2000 <= len(text) < 720_000 and text.endswith("\nend")
    assert entries(quarantine) == [(1, BAD_BYTES)]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv", ".parquet"])
def test_garbage_is_one_entry(tmp_path: Path, quarantine: Intake, suffix: str) -> None:
    pytest.importorskip("pyarrow")
    for name, data in {
        "zeros": bytes(5000),
        "noise": random.Random(1).randbytes(50_000),
        "few": random.Random(2).randbytes(64).replace(b"\0", b"\xff"),
        "wide": "中文".encode("utf-16"),
    }.items():
        (tmp_path / (name + suffix)).write_bytes(data)
        assert list(rows_of(tmp_path / (name + suffix), quarantine)) == []
    assert [line for line, _ in entries(quarantine)] == [0, 0, 0, 0]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl.gz", ".json.zst", ".csv"])
def test_an_empty_file_is_said_so(tmp_path: Path, quarantine: Intake, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"")
    assert list(rows_of(path, quarantine)) == []
    assert entries(quarantine) == [(0, "empty file")]


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_truncated_file_keeps_the_rows_before(tmp_path: Path, quarantine: Intake, compression: str) -> None:
    noise = random.Random(0)
    letters = [chr(code) for code in range(0x4E00, 0x9FA5)]
    texts = ["".join(noise.choices(letters, k=500)) for _ in range(3000)]
    data = pack(as_jsonl(texts).encode(), compression)
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(data[: len(data) // 2])
    read = list(texts_of(path, None, quarantine))
    assert 1000 < len(read) < 2000 and read == texts[: len(read)]
    found = entries(quarantine)
    assert found[0] == (len(read) + 1, "row cut off by damaged data") or len(found) == 1
    assert found[-1] == (0, f"damaged {compression} data: it ends too early")


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_compressed_parts_may_follow_each_other(tmp_path: Path, quarantine: Intake, compression: str) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(b"".join(pack(as_jsonl([text]).encode(), compression) for text in TEXTS))
    assert list(texts_of(path, None, quarantine)) == TEXTS
    assert raw_bytes(path) == len(as_jsonl(TEXTS).encode())
    assert entries(quarantine) == []


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_wrong_suffix_is_damage(tmp_path: Path, quarantine: Intake, compression: str) -> None:
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(as_jsonl(TEXTS).encode())
    assert list(rows_of(path, quarantine)) == []
    assert entries(quarantine)[0][1].startswith(f"damaged {compression} data")


# --- tables -----------------------------------------------------------------------------------------------------------


def test_an_open_quote_costs_one_row(tmp_path: Path, quarantine: Intake) -> None:
    text = 'id,text\n1,好\n2,"never closed\n3,"two\nlines"\n4\n\n5,"sloppy" end\n6,"open\n7,last'
    (tmp_path / "a.csv").write_text(text, "utf-8")
    rows = list(rows_of(tmp_path / "a.csv", quarantine))
    assert [(row.line, row.value) for row in rows] == [
        (2, {"id": "1", "text": "好"}),
        (4, {"id": "3", "text": "two\nlines"}),
        (8, {"id": "5", "text": "sloppy end"}),
        (10, {"id": "7", "text": "last"}),
    ]
    assert [line for line, _ in entries(quarantine)] == [3, 6, 9]


def test_a_cell_may_be_long_and_a_bad_byte_costs_one_row(tmp_path: Path, quarantine: Intake) -> None:
    data = b'text,n\n"' + b"x" * 300_000 + b'\n",1\n\xe4\xbd,2\n' + "好的，好的".encode() + b",3\n"
    (tmp_path / "a.csv").write_bytes(data)
    assert [len(text) for text in texts_of(tmp_path / "a.csv", "text", quarantine)] == [300_001, 5]
    assert entries(quarantine) == [(4, BAD_BYTES)]


def test_quotes_in_a_tsv_may_be_plain_text(tmp_path: Path, quarantine: Intake) -> None:
    (tmp_path / "a.tsv").write_text('text\tn\n"quoted word\t1\nnext\t2\n', "utf-8")
    assert list(texts_of(tmp_path / "a.tsv", None, quarantine)) == ['"quoted word', "next"]


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 0, 1, 4])
def test_an_array_is_read_in_pieces_of_any_size(indent: int | None) -> None:
    noise = random.Random(3)
    values: list[Any] = [{"text": noise.choice(TEXTS) * 3, "n": noise.random() * 1e9, "m": [[], {}, [1]]}]
    values += [noise.choice(["a]b", {"k": [-1.5e-7, True, None, '\\"{']}, [["q", "答"]], 12345]) for _ in range(40)]
    text = json.dumps(values, ensure_ascii=bool(indent), indent=indent)
    for size in (1, 2, 7, 64, 10_000):
        found = list(iter_json(text[i : i + size] for i in range(0, len(text), size)))
        assert [item.value for item in found] == values and not any(item.error for item in found)
        for item in found[:3]:
            assert isinstance(item.value, int) or text.split("\n")[item.line - 1].strip()[0] in '[{"'


@pytest.mark.parametrize("indent", [None, 2])
def test_a_broken_element_costs_itself(tmp_path: Path, quarantine: Intake, indent: int | None) -> None:
    rows = [json.dumps({"text": f"row {i}", "m": [{"a": i}]}, indent=indent) for i in range(6)]
    rows[1] = rows[1].replace('"row 1"', '"row 1')
    rows[3] = rows[3].replace(":", "", 1)
    (tmp_path / "a.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", "utf-8")
    assert list(texts_of(tmp_path / "a.json", None, quarantine)) == ["row 0", "row 2", "row 4", "row 5"]
    height = rows[0].count("\n") + 1
    assert [line for line, _ in entries(quarantine)] == [2 + height, 2 + 3 * height]


def test_an_array_that_cannot_go_on_says_so(tmp_path: Path, quarantine: Intake) -> None:
    cases = {"open": '[{"text": "a"}, {"text": "b"}', "bad": '[{"text": "a"}, {"text" "b"}, {"text": "c"}]'}
    cases |= {"behind": '[{"text": "a"}] x', "half": '[{"text": "a"}, {"te'}
    for name, text in cases.items():
        (tmp_path / f"{name}.json").write_text(text, "utf-8")
        assert "a" in list(texts_of(tmp_path / f"{name}.json", None, quarantine))
    reasons = [reason for _, reason in entries(quarantine)]
    assert len(reasons) == 4 and "not closed" in reasons[0] and "after the end" in reasons[2]
    assert reasons[1].endswith(tail := "; the rest of the file is unusable") and reasons[3].endswith(tail)


def test_json_files_that_hold_lines_or_one_value(tmp_path: Path, quarantine: Intake) -> None:
    cases = {
        '{"text": "a"}\n{"text": broken}\n\n{"text": "b"}\n': ["a", "b"],
        '{\n "text": "one"\n}': ["one"],
        '{\n "text": "one"\n}\n{\n "text": "two"\n}\n': ["one", "two"],
        '"a string"': ["a string"],
        "[]": [],
    }
    for text, expected in cases.items():
        (tmp_path / "a.json").write_text(text, "utf-8")
        assert list(texts_of(tmp_path / "a.json", None, quarantine)) == expected
    (tmp_path / "a.json").write_text('["问", "答"]\n["q", "a"]\n', "utf-8")
    assert [row.value for row in rows_of(tmp_path / "a.json", quarantine)] == [["问", "答"], ["q", "a"]]
    assert [line for line, _ in entries(quarantine)] == [2]


def test_a_field_that_stands_twice_is_not_lost_in_silence(tmp_path: Path, quarantine: Intake) -> None:
    twice = '{"id": 1, "text": "a", "text": "b"}'
    inner = '{"text": "c", "m": [{"k": 1, "k": 2}]}'
    fine = ['{"text": "d", "text": "d"}', '{"text": "", "text": "e"}', '{"text": "say \\"text\\": \\"text\\":"}']
    for name, text in {
        "a.jsonl": "\n".join((twice, inner, *fine)),
        "b.json": "[\n" + ",\n".join((twice, inner, *fine)).replace(", ", ",\n    ") + "\n]",
        "a.csv": "id,text,text,,\n1,a,b,x,y\n1,c,d,,\n1,d,d,,\n1,,e,,\n1,f,f,p,q\n",
    }.items():
        (tmp_path / name).write_text(text, "utf-8")
        values = [row.value["text"] for row in rows_of(tmp_path / name, quarantine)]
        assert values[:2] == ["d", "e"] and len(values) == 3, name
    reasons = [reason for _, reason in entries(quarantine)]
    assert len(reasons) == 6 and all(
        "stands twice in one object, with different values" in reason for reason in reasons
    )


# --- size -------------------------------------------------------------------------------------------------------------


def measured(run: Callable[[], object]) -> float:
    """Peak of Python's own allocations while `run` runs, in MB."""
    tracemalloc.start()
    run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_one_endless_line_streams_and_loses_nothing(tmp_path: Path, quarantine: Intake, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    unit = "春眠不觉晓处处闻啼鸟，夜来风雨声花落知多少。"
    path.write_bytes(pack((unit * 300_000).encode(), compression))  # 20 MB without a newline
    count = [0, 0]

    def run() -> None:
        for text in texts_of(path, None, quarantine):
            assert len(text) <= DOCUMENT_CHARS and text.endswith("。") and text.startswith("春")
            count[0] += len(text)
            count[1] += text.count(unit)

    assert measured(run) < 12
    assert count == [300_000 * len(unit), 300_000]


def test_a_huge_array_streams(tmp_path: Path, quarantine: Intake) -> None:
    row = json.dumps({"text": "长" * 3000}, ensure_ascii=False)
    (tmp_path / "a.json").write_text("[" + ",".join([row] * 2200) + "]", "utf-8")  # 20 MB in one line
    count = [0]

    def run() -> None:
        count[0] = sum(1 for _ in rows_of(tmp_path / "a.json", quarantine))

    assert measured(run) < 12
    assert count == [2200]


def test_an_oversized_line_is_never_held(tmp_path: Path, quarantine: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_rows, "MAX_LINE_BYTES", 2 << 20)
    long = b'{"text": "' + b"x" * (24 << 20) + b'"}\n'
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + long + b'{"text": "b"}\n' + long[:-1])
    texts: list[str] = []
    assert measured(lambda: texts.extend(texts_of(tmp_path / "a.jsonl", None, quarantine))) < 12
    assert texts == ["a", "b"]
    assert entries(quarantine) == [(2, "line longer than 2 MB"), (4, "line longer than 2 MB")]


def test_text_is_cut_where_it_hurts_least_and_joins_up_again(tmp_path: Path, quarantine: Intake) -> None:
    noise = random.Random(5)
    for separators in (["\n\n", "\n", "。"], ["\r\n"], ["。", "，"], [" "], [""], ["\n\n", "", "", ""]):
        text = "".join("字" * noise.randrange(1, 9000) + noise.choice(separators) for _ in range(400))
        (tmp_path / "a.txt").write_bytes(text.encode("utf-8"))
        rows = list(rows_of(tmp_path / "a.txt", quarantine))
        values = [str(row.value) for row in rows]
        assert "".join(values) == text and max(map(len, values)) <= DOCUMENT_CHARS
        assert min(map(len, values[:-1])) >= DOCUMENT_CHARS // 2
        assert separators[0] in ("", "\n\n") or all(value.endswith(separators[0]) for value in values[:-1])
        starts = [1 + text[: sum(map(len, values[:i]))].count("\n") for i in range(len(values))]
        assert [row.line for row in rows] == starts


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_an_encoding_is_found_wherever_the_head_is_cut() -> None:
    text = "鲁镇的酒店的格局，是和别处不同的：all of them，当街一个曲尺形的大柜台。" * 3
    for encoding in ("utf-8", "gb18030"):
        data = text.encode(encoding)
        for end in range(12, len(data)):
            assert detect_encoding(data[:end], whole=False) == encoding
    broken = bytearray(text.encode("utf-8"))
    del broken[40]
    assert detect_encoding(bytes(broken), whole=True) == "utf-8"
    assert detect_encoding(b"plain text, one \xe4\xbd bad character", whole=True) == "utf-8"
    assert (
        detect_encoding("這本書講的是一個孩子怎樣學會讀書寫字，後來又當了老師的故事。".encode("gb18030"), whole=True)
        == "gb18030"
    )
    with pytest.raises(NotText, match="UTF-16"):
        detect_encoding("中文".encode("utf-16"), whole=True)


# --- fields and files -------------------------------------------------------------------------------------------------


def test_the_text_field_is_named_or_found_once_per_file(tmp_path: Path, quarantine: Intake) -> None:
    def write(name: str, rows: list[dict[str, object]]) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    write("a.jsonl", [{"title": "a much longer title than text", "Content": "c", "n": 1}, {"content": "lower case"}])
    write("b.jsonl", [{"id": "1", "lyrics": "la la la"}, {"id": "22", "lyrics": "la"}])
    write("c.jsonl", [{"id": 1}, {"id": 2}])
    assert list(texts_of(str(tmp_path), None, quarantine)) == ["c", "lower case", "la la la", "la"]
    assert list(texts_of(str(tmp_path), "id", quarantine)) == ["1", "22"]
    assert [line for line, _ in entries(quarantine)] == [1, 2, 1, 2, 1, 2]


def test_a_file_without_rows_is_told_of(tmp_path: Path, quarantine: Intake, capsys: pytest.CaptureFixture[str]) -> None:
    contents = {"array.json": "[]", "blank.jsonl": "\n\n", "names.csv": "question,answer\n", "one.txt": "春天。"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content, "utf-8")
    assert list(texts_of(str(tmp_path), None, quarantine)) == ["春天。"]
    quarantine.tell()
    said = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in said[:4]] == [
        *(f"{name}: 0 rows" for name in list(contents)[:3]),
        "one.txt: 1 rows",
    ]


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ["b/2.txt", "b/1.jsonl.gz", "a.md", ".hidden/x.txt", "b/.x.txt", "c.png", "b/d.docx.gz"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "b/loop").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert list(map(str, scan_files(".")[0])) == ["a.md", "b/1.jsonl.gz", "b/2.txt"]
    assert list(map(str, scan_files(["b/*.txt", "b", "a.md", "b"])[0])) == ["b/2.txt", "b/1.jsonl.gz", "b/loop/a.md"]
    assert list(map(str, scan_files(str(tmp_path / "b/*.txt"))[0])) == [str(tmp_path / "b/2.txt")]
    assert sorted(path.name for path in scan_files(tmp_path)[1]) == ["c.png", "d.docx.gz"]
    for bad, message in {
        "none.txt": "no such file",
        "*.csv": "matches nothing",
        "c.png": r"\.parquet",
        "*.png": "nothing to read",
    }.items():
        with pytest.raises(UserError, match=message):
            scan_files(bad)
    with pytest.raises(UserError, match="nothing to read"):
        scan_files([])


def test_ignored_files_are_counted(tmp_path: Path, quarantine: Intake) -> None:
    (tmp_path / "a.txt").write_text("正文", "utf-8")
    (tmp_path / "b.png").write_bytes(b"x")
    assert list(texts_of(tmp_path, None, quarantine)) == ["正文"]
    assert quarantine.quarantined == 0 and "1 files of other types ignored (1 .png)" in quarantine.summary()


def test_a_quarantine_that_cannot_be_written_is_the_users_to_know(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"), Intake(tmp_path / "none/q.jsonl") as quarantine:
        quarantine.add(Rejected("a", 1, "reason", "raw"))
    if Path("/dev/full").exists():
        with pytest.raises(UserError, match="cannot write"), Intake("/dev/full") as quarantine:
            quarantine.add(Rejected("a", 1, "reason", "raw"))


def test_raw_is_kept_short_and_always_valid(tmp_path: Path) -> None:
    for raw in (b"\xff" * 9000, "\ud800" * 9000, {"text": "好" * 9000}, 1.5):
        with Intake(tmp_path / "q.jsonl") as quarantine:
            quarantine.add(Rejected("a.txt", 3, "reason", raw))
        row = json.loads((tmp_path / "q.jsonl").read_text("utf-8"))
        assert (row["file"], row["line"], row["reason"]) == ("a.txt", 3, "reason")
        assert 0 < len(row["raw"]) <= 4000  # 500 characters, spelled out where they cannot be encoded
    assert not Intake(tmp_path / "never.jsonl").path.exists()


def test_source_and_id_are_unique_and_lead_back_to_the_row(tmp_path: Path, quarantine: Intake) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\nbroken\n{"text": "two"}\n', "utf-8")
    (tmp_path / "b.json").write_text('[{"text": "x"}, {"text": "y"},\n{"text": "z"}]', "utf-8")
    (tmp_path / "c.txt").write_text("字" * (DOCUMENT_CHARS * 2 + 5) + "\n" + "文" * DOCUMENT_CHARS, "utf-8")
    (tmp_path / "d.csv").write_text('text\n"1\n1"\n2\n', "utf-8")
    found = list(read_documents(tmp_path, None, quarantine))
    places = [(Path(document.source).name, document.id) for document in found]
    assert places[:5] == [("a.jsonl", "1"), ("a.jsonl", "4"), ("b.json", "1"), ("b.json", "1.2"), ("b.json", "2")]
    assert places[5:] == [
        ("c.txt", "1"),
        ("c.txt", "1.2"),
        ("c.txt", "1.3"),
        ("c.txt", "2"),
        ("d.csv", "2"),
        ("d.csv", "4"),
    ]
    assert len({(document.source, document.id) for document in found}) == len(found)
    assert {document.source for document in found} == {
        str(tmp_path / name) for name in ("a.jsonl", "b.json", "c.txt", "d.csv")
    }


def test_rejections_are_values_that_another_process_can_send(tmp_path: Path, quarantine: Intake) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\nbroken\n{"text": "\xe4\xbd"}\n{"text": "b"}\n')
    items = pickle.loads(pickle.dumps(list(read_rows(path))))
    assert [type(item) for item in items] == [Row, Rejected, Rejected, Row]
    assert [row.origin[1] for row in quarantine.without(items)] == ["1", "4"]
    assert entries(quarantine) == [(2, "invalid JSON: Expecting value"), (3, BAD_BYTES)]


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared data are not beside this repository")
def test_real_corpora_are_read_whole(quarantine: Intake) -> None:
    name = "zh_stories_cft.jsonl"
    assert sum(1 for _ in texts_of(REAL / "pretrain" / name, None, quarantine)) == 708
    assert sum(1 for _ in texts_of(REAL / "pretrain/zh_tech_lctt.jsonl.gz", None, quarantine)) == 2245
    (novel,) = texts_of(REAL / "rag/孔乙己_gb18030.txt", None, quarantine)
    assert "孔乙己" in novel and "\ufffd" not in novel
    assert sum(1 for _ in rows_of(REAL / "rag/langchain_chatglm_issues.csv", quarantine)) > 100
    assert quarantine.quarantined == 0


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_whose_first_line_is_cut_off(tmp_path: Path, quarantine: Intake, name: str) -> None:
    frames = zstandard.compress(b"\xef\xbb\xbfquest") + zstandard.compress(b"ion,answer\n")[:-3]
    (tmp_path / f"{name}.zst").write_bytes(frames)
    assert list(read_documents(tmp_path / f"{name}.zst", None, quarantine)) == []
    assert quarantine.reasons["row cut off by damaged data"] == 1


def test_quotes_that_break_the_rules_between_semicolons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question;answer\n"他说"你好"，走了";1,5\n', encoding="utf-8")
    (row,) = read_rows(tmp_path / "a.csv")
    assert isinstance(row, Row) and row.value["answer"] == "1,5" and "你好" in row.value["question"]
