"""mengya inspect, and with it what training reads: inputs that people really have, at the level of the command line."""

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

CASES = Path(__file__).parents[1] / "../shared/cases"
RAIN = "看看窗外，再回答。"


@pytest.fixture
def inspect(tmp_path, monkeypatch, mengya):
    """inspect(content, *options, name=...) -> what `mengya inspect --json` prints of a file with this content."""
    monkeypatch.chdir(tmp_path)

    def inspect(content: Any, *options: str, name: str = "rows.jsonl") -> dict[str, Any]:
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        result = mengya("inspect", name, "--json", *options)
        assert result.code == 0, result.err
        (line,) = result.out.splitlines()
        found = json.loads(line)
        assert found["rows"] == found["used"] + found["partly_read"] + found["quarantined"]
        return found

    return inspect


def user(said: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": said, **more}


def bot(said: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": said, **more}


def talk(found: dict[str, Any], number: int = 0) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in found["samples"][number]["messages"]]


# --- what the turns hold ----------------------------------------------------------------------------------------------

THOUGHT = "<think>\n外面湿了。\n</think>\n\n下过雨。"


@pytest.mark.parametrize(
    "answer",
    [
        bot("下过雨。", reasoning_content="外面湿了。"),
        bot([{"type": "thinking", "thinking": "外面湿了。"}, {"type": "text", "text": "下过雨。"}]),
        bot("下过雨。", thinking="外面湿了。"),
        bot(THOUGHT, reasoning_content="外面湿了。"),
    ],
)
def test_thoughts_come_before_the_answer_and_are_learnt(inspect, answer):
    found = inspect([{"messages": [user("下雨了吗？", reasoning_content=""), answer]}])
    assert talk(found)[-1] == ("assistant", THOUGHT)
    assert found["samples"][0]["supervised"] == [THOUGHT] and found["used"] == 1


def test_a_turn_with_a_thought_alone_is_an_answer(inspect):
    found = inspect([{"conversations": [user("几？"), bot("", reasoning_content="是五。")]}])
    assert talk(found)[-1] == ("assistant", "<think>\n是五。\n</think>")


def test_thoughts_beside_question_and_answer(inspect):
    found = inspect([{"Question": "几？", "Complex_CoT": "二加三。", "Response": "五"}])
    assert talk(found) == [("user", "几？"), ("assistant", "<think>\n二加三。\n</think>\n\n五")]
    found = inspect([{"input": "几？", "reasoning_content": "二加三。", "content": "五"}])
    assert talk(found)[-1] == ("assistant", "<think>\n二加三。\n</think>\n\n五")


TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "look", "arguments": {"where": "窗外"}}\n</tool_call>'


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_in_the_system_message_are_offered_as_those_of_the_row(inspect, tools):
    messages = [{"role": "system", "content": RAIN, "tools": tools}, user("下雨了吗？"), bot("没有。")]
    found = inspect([{"messages": messages}, {"messages": messages[1:], "system": RAIN, "tools": tools}])
    assert talk(found) == [*talk(found, 1)]
    assert talk(found)[0][1].startswith(RAIN) and json.dumps(TOOL) in talk(found)[0][1]


ARGUMENTS = {"where": "窗外"}


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (bot("", tool_calls=json.dumps([{"function": {"name": "look", "arguments": ARGUMENTS}}])), "晴"),
        (bot(None, tool_calls=[{"function": {"name": "look", "arguments": json.dumps(ARGUMENTS)}}]), {"天": "晴"}),
        (bot(None, function_call={"name": "look", "arguments": json.dumps(ARGUMENTS, ensure_ascii=False)}), "晴"),
        (bot([{"type": "tool_use", "name": "look", "input": ARGUMENTS}]), "晴"),
        ({"role": "function_call", "content": {"name": "look", "arguments": ARGUMENTS}}, "晴"),
    ],
)
def test_a_tool_call_is_a_turn_of_the_assistant(inspect, call, result):
    found = inspect([{"messages": [user("下雨了吗？"), call, {"role": "tool", "content": result}, bot("晴天。")]}])
    said = talk(found)
    assert [role for role, _ in said] == ["user", "assistant", "tool", "assistant"]
    name, arguments = said[1][1].split('"arguments": ')
    assert '{"name": "look"' in name and json.loads(arguments.split("}\n</tool")[0]) == ARGUMENTS
    assert said[2][1] == (result if isinstance(result, str) else '{"天": "晴"}')
    assert found["samples"][0]["supervised"] == [said[1][1], "晴天。"]


def test_a_tool_turn_with_its_arguments_is_call_and_result(inspect):
    tool = {"role": "tool", "name": "look", "parameters": ARGUMENTS, "observation": "晴"}
    found = inspect([{"conversations": [user("下雨了吗？"), bot("看一看。"), tool, bot("晴天。")]}])
    assert talk(found)[1:3] == [("assistant", f"看一看。\n{CALL}"), ("tool", "晴")]


@pytest.mark.parametrize("flag", [{"loss": False}, {"weight": 0}, {"weight": 0.0}, {"loss": "false"}, {"train": False}])
def test_a_turn_that_is_not_to_be_learnt_is_context(inspect, flag):
    found = inspect([{"messages": [user("一加一"), bot("等于三", **flag), user("不对"), bot("等于二")]}])
    assert found["samples"][0]["supervised"] == ["等于二"] and ("assistant", "等于三") in talk(found)
    found = inspect([{"messages": [user("一加一"), bot("等于三", **flag), bot("等于二")]}])
    assert talk(found)[1:] == [("assistant", "等于三"), ("assistant", "等于二")]  # not joined
    assert found["samples"][0]["supervised"] == ["等于二"]


def test_weights_that_cannot_be_kept_and_rows_of_which_nothing_is_learnt(inspect):
    rows = [{"messages": [user("一"), bot("二", weight=w)]} for w in (0.5, 0)]
    found = inspect(rows, "--as", "chat")
    assert found["reasons"] == {
        "a weight that is neither 0 nor 1": 1,
        "no turn of the assistant is to be learnt": 1,
    }


def test_values_that_are_not_text(inspect):
    rows = '{"instruction": "一", "input": NaN, "output": "二"}\n'
    rows += '{"instruction": "偶数？", "input": 7.0, "output": false}\n'
    rows += '{"instruction": "几？", "input": "", "output": 7.0}\n{"instruction": "几？", "input": "", "output": NaN}\n'
    found = inspect(rows)
    assert [talk(found, i) for i in range(3)] == [
        [("user", "一"), ("assistant", "二")],
        [("user", "偶数？\n7"), ("assistant", "false")],
        [("user", "几？"), ("assistant", "7")],
    ]
    assert found["reasons"] == {"no answer after a question": 1}


def test_turns_that_cannot_be_trained_on_are_counted(inspect):
    found = inspect(
        [{"messages": [bot("欢迎"), user("一"), bot("二"), user("三")]}, {"messages": [user("一"), bot("二")]}]
    )
    assert (found["used"], found["partly_read"], found["lost_turns"]) == (1, 1, 2)


def test_pictures_and_answers_marked_as_bad_are_put_aside(inspect):
    rows = [{"messages": [user("<image>这是什么？"), bot("猫")], "images": ["a.png"]}]
    rows += [{"prompt": "一", "completion": "坏", "label": False}, {"prompt": "一", "completion": "好", "label": True}]
    found = inspect(rows)
    assert found["quarantined"] == 2 and [talk(found)[1][1]] == ["好"]
    assert sorted(reason.split()[1] for reason in found["reasons"]) == ["answer", "picture"]


def test_a_row_of_another_stage_says_so(inspect):
    found = inspect([{"prompt": "一", "chosen": "好", "rejected": "坏"}], "--as", "chat")
    assert list(found["reasons"]) == ["a preference pair, not one answer: use it for dpo.path"]


# --- what the rows hold -----------------------------------------------------------------------------------------------

PASSAGE = "小明在2016年上小学。"
ASKED = [("user", f"{PASSAGE}\n\n哪一年？"), ("assistant", "2016年")]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "哪一年？", "context": PASSAGE, "response": "2016年"},
        {"passage": PASSAGE, "question": "哪一年？", "answer": "2016年"},
        {"上下文": PASSAGE, "问题": "哪一年？", "答案": "2016年"},
        {"材料": [PASSAGE], "问题": "哪一年？", "答案": "2016年"},
        {"context": PASSAGE, "question": "哪一年？", "answers": {"text": ["2016年"], "answer_start": [3]}},
        {"context_text": PASSAGE, "query_text": "哪一年？", "answers": ["2016年", "二〇一六年"]},
        {
            "title": "x",
            "paragraphs": [{"context": PASSAGE, "qas": [{"question": "哪一年？", "answers": [{"text": "2016年"}]}]}],
        },
    ],
)
def test_a_passage_stands_in_the_prompt(inspect, row):
    assert talk(inspect([row, row])) == ASKED


def test_fields_that_are_not_read_are_counted(inspect):
    rows = [{"instruction": "一", "output": "二", "category": "x", "source": ""}, {"instruction": "一", "output": "二"}]
    found = inspect(rows)
    assert (found["used"], found["partly_read"]) == (1, 1)
    assert found["fields_not_read"] == {"category": 1} and found["fields_read"] == {"instruction": 2, "output": 2}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "0", "data": ["一", "二", "三", "四"]}, ["一", "二", "三", "四"]),
        ({"id": "a", "some_list": [{"from": "human", "value": "一"}, {"from": "gpt", "value": "二"}]}, ["一", "二"]),
        (
            {"instruction": "Translate", "instruction_zh": "翻译", "input": "cat", "output": "猫"},
            ["Translate\ncat", "猫"],
        ),
        ({"instruction_zh": "一", "input_zh": "", "output_zh": "二", "output": "two"}, ["一", "二"]),
        (
            {"conversation": [{"system": "", "input": "一", "output": "二"}, {"input": "三", "output": "四"}]},
            list("一二三四"),
        ),
        ({"conversations": {"from": ["human", "gpt"], "value": ["一", "二"]}}, ["一", "二"]),
        ({"text": "### Human: 一### Assistant: 二"}, ["一", "二"]),
        ({"text": "<|im_start|>user\n一<|im_end|>\n<|im_start|>assistant\n二<|im_end|>\n"}, ["一", "二"]),
        ({"text": "<s>[INST] 一 [/INST] 二 </s><s>[INST] 三 [/INST] 四 </s>"}, list("一二三四")),
        ({"conversations": "\n\nHuman: 一\n\nAssistant: 二"}, ["一", "二"]),
    ],
)
def test_conversations_in_other_shapes(inspect, row, expected):
    assert [said for _, said in talk(inspect([row], "--as", "chat"))] == expected


def test_the_loss_flag_of_xtuner(inspect):
    turns = [{"input": "一", "output": "二", "output_with_loss": False}, {"input": "三", "output": "四"}]
    found = inspect([{"conversation": turns}])
    assert found["samples"][0]["supervised"] == ["四"]


GOOD = [user("你好"), bot("你好！有什么事？")]
BAD = [user("你好"), bot("哦。")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "你好", "chosen": json.dumps(GOOD), "rejected": json.dumps(BAD, indent=2)},
        {"prompt": "你好", "chosen": repr(GOOD), "rejected": repr(BAD)},
        {"prompt": "你好", "chosen": json.dumps({"messages": GOOD}), "rejected": {"messages": BAD}},
        {"messages": GOOD, "rejected_response": "哦。"},
        {"messages": GOOD, "rejected_messages": BAD},
        {"conversations": GOOD, "rejected": bot("哦。")},
        {"query": "你好", "response": "你好！有什么事？", "rejected_response": "哦。"},
        {"chosen": "\n\nHuman: 你好\n\nAssistant: 你好！有什么事？", "rejected": "\n\nHuman: 你好\n\nAssistant: 哦。"},
        {"prompt": "你好", "responses": ["哦。", "你好！有什么事？"], "scores": [1, 5]},
        {"prompt": "你好", "responses": ["哦。", "你好！有什么事？"], "rank": [2, 1]},
        {"prompt": "你好", "response_0": "哦。", "response_1": "你好！有什么事？", "better_response_id": 1},
    ],
)
def test_pairs_in_other_shapes(inspect, row):
    found = inspect([row])
    sample = found["samples"][0]
    assert (sample["chosen"], sample["rejected"]) == ("你好！有什么事？", "哦。")
    assert talk(found) == [("user", "你好"), ("assistant", "你好！有什么事？")] and found["read_as"] == "pairs"


def table(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(
    "write", [json.dumps, repr, lambda v: json.dumps(v, indent=2), lambda v: f"[ {json.dumps(v)[1:]}"]
)
def test_messages_in_a_cell(inspect, write):
    found = inspect(table([["id", "messages"], ["1", write(GOOD)]]), name="rows.csv")
    assert talk(found) == [("user", "你好"), ("assistant", "你好！有什么事？")]


def test_messages_as_numpy_writes_them(inspect):
    cell = "[" + "\n ".join(map(repr, GOOD)) + "]"
    assert talk(inspect(table([["messages"], [cell]]), name="rows.csv"))[1][1] == "你好！有什么事？"


def test_messages_that_are_cut_off_say_so(inspect):
    cell = json.dumps(GOOD)[:-9]
    found = inspect(table([["messages"], [cell]]), "--as", "chat", name="rows.csv")
    assert list(found["reasons"]) == ["messages written as text that is neither JSON nor Python"]
    pairs = table([["prompt", "chosen", "rejected"], ["你好", cell, "哦。"]])
    found = inspect(pairs, "--as", "pairs", name="rows.csv")
    assert list(found["reasons"]) == ["messages written as text that is neither JSON nor Python"]


# --- how files hold rows ----------------------------------------------------------------------------------------------

QA = [{"question": f"{i}加1？", "answer": str(i + 1)} for i in range(5)]
TURNS = [[{"from": "human", "value": q["question"]}, {"from": "gpt", "value": q["answer"]}] for q in QA]
COLUMNS = {name: [row[name] for row in QA] for name in ("question", "answer")}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    "content",
    [
        "[\n" + ",\n".join(json.dumps(row) for row in QA) + "\n]\n",
        json.dumps(QA),
        json.dumps(QA, indent=2),
        "\n".join(json.dumps(row, indent=2) for row in QA),
        json.dumps({"data": QA, "version": "1"}),
        json.dumps({"train": QA[:3], "test": QA[3:]}, indent=1),
        json.dumps({"rows": [{"row_idx": i, "row": row} for i, row in enumerate(QA)]}),
        json.dumps(COLUMNS),
        json.dumps({name: {str(i): cell for i, cell in enumerate(cells)} for name, cells in COLUMNS.items()}),
        json.dumps({"columns": list(COLUMNS), "index": [0] * 5, "data": [list(row.values()) for row in QA]}),
        json.dumps({f"dialog-{i}": row for i, row in enumerate(QA)}),
        json.dumps(TURNS),
        json.dumps(TURNS, indent=1),
    ],
    ids=["array", "one line", "indented", "values", "data", "splits", "server", "columns", "pandas", "split", "by id"]
    + [f"lists of turns{how}" for how in ("", ", indented")],
)
def test_rows_in_every_layout_of_json(inspect, name, content):
    """Lists of turns without a name around them: lm-sys/FastChat#2996."""
    found = inspect(content, "--as", "chat", name=name)
    assert found["used"] == found["rows"] == 5
    assert talk(found, 2) == [("user", "2加1？"), ("assistant", "3")]


def test_one_conversation_in_a_line_stays_one(inspect):
    found = inspect([GOOD, [["一", "二"], ["三", "四"]], ["一", "二"]])
    assert found["rows"] == 3 and [len(talk(found, i)) for i in range(3)] == [2, 4, 2]


def test_an_export_compressed_with_a_long_window(inspect):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=29, enable_ldm=True)
    text = "".join(json.dumps({"text": f"第{i}个故事。"}) + "\n" for i in range(9))
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = packed.compress(text.encode()) + packed.flush()  # of unknown size, so that the window is not shrunk
    assert zstandard.get_frame_parameters(data).window_size == 1 << 29
    assert inspect(data, name="rows.jsonl.zst")["used"] == 9


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".txt"])
def test_an_encoding_that_shows_late(inspect, encoding, suffix):
    """English for more than is looked at first."""
    english, chinese = "it was a dark and stormy night. " * 2000, "从前有座山，山里有座庙，庙里有个和尚讲故事。"
    texts = [f"{i} {english}" for i in range(30)] + [chinese]
    if suffix == ".jsonl":
        content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    else:
        content = table([["text"], *([text] for text in texts)]) if suffix == ".csv" else "\n\n".join(texts)
    found = inspect(content.encode(encoding), "--samples", "99", name=f"rows{suffix}")
    assert not found["quarantined"] and found["samples"][-1]["text"].strip().endswith(chinese)


# --- documents --------------------------------------------------------------------------------------------------------


def documents(found: dict[str, Any]) -> list[str]:
    return [sample["text"].strip() for sample in found["samples"]]


def test_paragraphs_are_joined(inspect):
    lines = [
        {"行号": 1, "是否重复": False, "md5": "0" * 32, "内容": "小镇来了客人。"},
        {"行号": 2, "md5": "a" * 32, "内容": "喝茶。"},
    ]
    row = {"文件名": "news/2021/1.txt", "文件大小": 10, "时间": "20210101", "段落数": 2, "段落": lines}
    found = inspect([row])
    assert documents(found) == ["小镇来了客人。\n喝茶。"] and found["text_field"] == "段落"
    inside = {"段落.行号", "段落.是否重复", "段落.md5"}
    assert set(found["fields_not_read"]) == {"文件名", "文件大小", "时间", "段落数", *inside}
    assert documents(inspect([{"url": "http://a.b/c", "sentences": ["一句。", "两句。"]}])) == ["一句。\n两句。"]


def test_a_pair_with_a_fault_is_still_taken_for_a_pair(inspect):
    ends = {side: [user("一"), bot(f"{side}的话"), user("二"), bot(side)] for side in ("chosen", "rejected")}
    found = inspect([ends] * 3)
    assert found["read_as"] == "pairs"
    assert found["reasons"] == {"chosen and rejected differ before their last answer": 3}
    questions = [{"context": "小明住北京。", "qas": [{"question": "住哪？", "answers": [{"text": "北京"}]}]}]
    found = inspect(json.dumps({"version": "1", "data": [{"paragraphs": questions}]}), name="rows.json")
    assert found["read_as"] == "chat" and talk(found)[-1] == ("assistant", "北京")


@pytest.mark.parametrize("indent", [None, 1])
def test_what_stands_around_the_rows_of_a_file_is_told(inspect, indent):
    rows = [{"prompt": "一", "response": "二"}, {"prompt": "三", "response": "四"}]
    whole = {"version": "1.0", "data": rows, "licence": "", "notes": ["注"]}
    found = inspect(json.dumps(whole, ensure_ascii=False, indent=indent), name="rows.json")
    assert (found["used"], found["partly_read"]) == (2, 0)
    assert found["fields_not_read"] == {"version": 1, "notes": 1}
    thread = {"主题": "吃什么", "回复": [{"楼ID": "1", "回复": "吃面条吧，简单又好吃。"}], "元数据": {"n": 1}}
    assert set(inspect([thread])["fields_not_read"]) == {"主题", "元数据", "楼ID"}


def test_what_is_left_out_of_an_object_of_text_is_told(inspect):
    found = inspect([{"text": {"title": "动物", "body": "猫吃鱼，狗吃骨头。", "n": 2}, "id": 7}], "--as", "corpus")
    assert documents(found) == ["猫吃鱼，狗吃骨头。"]
    assert set(found["fields_not_read"]) == {"text.title", "text.n", "id"}
    deep: Any = {"text": "底。"}
    for _ in range(60):
        deep = {"text": deep, "other": "别的。"}
    found = inspect([{"text": deep}], "--as", "corpus")
    assert documents(found) == ["底。"] and len(found["fields_not_read"]) == 60


@pytest.mark.parametrize("indent", [None, 2])
def test_json_in_a_txt_is_read_as_json(inspect, indent):
    rows = [{"text": "一篇文章。", "url": "http://a.example"}, {"text": "又一篇。"}]
    lines = json.dumps(rows, ensure_ascii=False, indent=2) if indent else "\ufeff" + "\n\n".join(map(json.dumps, rows))
    found = inspect(lines, name="rows.txt")
    assert documents(found) == ["一篇文章。", "又一篇。"] and set(found["fields_not_read"]) == {"url"}
    assert talk(inspect("".join(map(json.dumps, [{"messages": GOOD}])), name="rows.txt")) == talk(inspect([GOOD]))
    prose = '{"a": 1} 是一个对象。\n下一行。'
    assert documents(inspect(prose, name="rows.txt")) == [prose]


def test_conversations_as_a_corpus(inspect):
    found = inspect([{"id": "identity_000000", "conversations": GOOD}], "--as", "corpus")
    assert documents(found) == ["你好\n你好！有什么事？"]
    assert documents(inspect([{"instruction": "一", "input": "", "output": "二"}], "--as", "corpus")) == ["一\n二"]


@pytest.mark.parametrize(
    "junk",
    [
        *("identity_000001", "news/2021/0.txt", "https://a.example/b?c=1", "d41d8cd98f00b204e9800998ecf8427e"),
        *("2021-01-01 10:00", "2021年1月1日", "a@b.example", "550e8400-e29b-41d4-a716-446655440000"),
    ],
)
def test_ids_paths_addresses_dates_and_hashes_are_never_the_text(inspect, junk):
    found = inspect([{"x": junk, "lyrics": "啦。"}] * 2, "--as", "corpus")
    assert documents(found) == ["啦。"] * 2 and found["text_field"] == "lyrics"
    found = inspect([{"x": junk, "n": 1}], "--as", "corpus")
    assert found["quarantined"] == 1 and list(found["reasons"]) == ["no field with text; set text_field"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("一个故事。<|endoftext|>另一个。<|endoftext|>", ["一个故事。", "另一个。"]),
        ("<|im_start|>一个故事。<|im_end|> <|im_start|>另一个。<|im_end|>", ["一个故事。", "另一个。"]),
        ("<s>一个故事。</s><s>另一个。</s>", ["一个故事。", "另一个。"]),
        ("一个故事。</s>\n另一个。</s>", ["一个故事。", "另一个。"]),
        ("<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n你好！<|im_end|>", ["你好\n你好！"]),
        (
            '<doc id="1" url="https://a.example/?curid=1" title="a > b">\n一个故事。\n\n</doc>\n'
            '<doc id="2" title="二">\n另一个。\n</doc>\n',
            ["一个故事。", "另一个。"],
        ),
        ("文件里有 <doc id=1> 这样的标记。", ["文件里有 <doc id=1> 这样的标记。"]),
        ("GPT-2 以 <|endoftext|> 分开文章。", ["GPT-2 以 <|endoftext|> 分开文章。"]),
        ("这是<s>划掉</s>的字。", ["这是<s>划掉</s>的字。"]),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".txt"])
def test_marks_between_documents(inspect, text, expected, suffix):
    found = inspect([{"text": text}] if suffix == ".jsonl" else text, "--as", "corpus", name=f"rows{suffix}")
    assert documents(found) == expected and found["rows"] == 1


# --- what looks like something else -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # A mark in a question is part of it, and the answer is that of the row.
        ({"instruction": "按格式写：\n### System: 进度\n### User: 反馈", "output": "周报"}, "周报"),
        ({"instruction": "用户：我要退货\n助手：好的\n请总结以上对话", "output": "退货"}, "退货"),
        ({"instruction": "这里的[INST]你好[/INST]是什么？", "output": "标记"}, "标记"),
        # An answer may be JSON, also JSON that looks like messages.
        ({"instruction": "返回JSON", "output": '{"text": "你好"}'}, '{"text": "你好"}'),
        ({"instruction": "返回JSON", "output": '[{"text": "一"}, {"text": "二"}]'}, '[{"text": "一"}, {"text": "二"}]'),
        ({"instruction": "哪里错？", "output": '{"content": "你好", ...}'}, '{"content": "你好", ...}'),
        # Flags are not thoughts, and a thought that is there already comes once.
        ({"messages": [user("一"), bot("二", thinking=False)]}, "二"),
        ({"question": "一", "answer": "二", "reasoning": "off"}, "二"),
        ({"question": "一", "answer": THOUGHT, "thinking": "想了"}, THOUGHT),
        # Who speaks is told by a field of another name.
        ({"messages": [{"who": w, "text": t} for w, t in (("bot", "欢迎"), ("user", "一"), ("bot", "二"))]}, "二"),
        ({"messages": [{"sender": "user", "text": "一"}, {"sender": "bot", "text": "二"}]}, "二"),
        ({"input": [user("1+1?")], "output": "2"}, "2"),
        ({"query": "q", "answers": '[{"name": "f", "arguments": {"x": 1}}]', "tools": [TOOL]},
         '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'),
        ({"messages": [user("q"), bot("", tool_calls="[{'name': 'f', 'arguments': {'x': 1}}]")]},
         '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'),
        ({"dialogue": "病人：头疼\n医生：多休息"}, "多休息"),
        ({"problem": "1+1?", "solution": "先算……得2", "answer": "2"}, "先算……得2"),
        ({"instruction": "判断", "input": "句子", "output": "是", "label": False}, "是"),
    ],
)  # fmt: skip
def test_an_answer_is_what_it_is(inspect, row, expected):
    found = inspect([row, row], "--as", "chat")
    assert found["samples"][0]["supervised"] == [expected], found


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "请回答问题。", "question": "什么是股票？", "answer": "凭证"}, "请回答问题。\n什么是股票？"),
        ({"question": "选？", "A": "一", "B": "二", "C": "三", "answer": "C"}, "选？\nA. 一\nB. 二\nC. 三"),
        ({"question": "选哪个？", "choices": ["一", "二"], "answer": "A"}, "选哪个？\nA. 一\nB. 二"),
        ({"history": [user("一"), bot("二"), user("三")], "query": "三", "response": "四"}, "三"),
        ({"messages": [user("q", reasoning_content="想"), bot("a")]}, "q"),
    ],
)  # fmt: skip
def test_a_question_is_whole(inspect, row, expected):
    assert talk(inspect([row, row], "--as", "chat"))[-2] == ("user", expected)


@pytest.mark.parametrize("label", [0, "false", "False", "undesirable"])
def test_bad_answers_are_known_by_any_name(inspect, label):
    assert inspect([{"prompt": "一", "completion": "坏", "label": label}], "--as", "chat")["quarantined"] == 1


@pytest.mark.parametrize(
    "verdict",
    [{"response_1": "一", "response_2": "二", "preference": -2},
     {"response_1": "一", "response_2": "二", "preference": 0.2},
     {"responses": ["一", "二"], "choice": 1}, {"responses": ["一", "二"], "marks": [1, 9]}],
)  # fmt: skip
def test_a_verdict_that_is_not_understood_is_not_guessed(inspect, verdict):
    assert inspect([{"prompt": "问", **verdict}], "--as", "pairs")["quarantined"] == 1


@pytest.mark.parametrize(
    "ranked",
    [{"responses": ["坏", "好"], "reward": [1, 9]},
     {"answers": [{"answer": "坏", "rank": 7}, {"answer": "好", "rank": 1}]},
     {"preferred_output": [bot("好")], "non_preferred_output": [bot("坏")]}],
)  # fmt: skip
def test_rankings_with_their_numbers(inspect, ranked):
    sample = inspect([{"prompt": "问", **ranked}], "--as", "pairs")["samples"][0]
    assert (sample["chosen"], sample["rejected"]) == ("好", "坏")


def test_answers_that_are_dialogues_keep_their_prompt(inspect):
    row = {"prompt": "写一段问答", "chosen": "问：你好\n答：在的", "rejected": "问：你好\n答：哦"}
    sample = inspect([row])["samples"][0]
    assert sample["messages"][0]["content"] == "写一段问答" and sample["chosen"] == row["chosen"]


@pytest.mark.parametrize(
    "row",
    [{"messages": GOOD, "choices": [{"text": "甲"}, {"text": "乙"}]},
     {"messages": GOOD, "system": [{"type": "text", "text": "系统"}]},
     {"instruction": "你好", "output": "你好！有什么事？", "examples": [{"input": "a", "output": "b"}]}],
)  # fmt: skip
def test_a_row_alone_in_its_file_stays_one(inspect, row):
    found = inspect(json.dumps(row), "--as", "chat")
    assert found["rows"] == 1 and found["samples"][0]["supervised"] == ["你好！有什么事？"]


def test_tables_with_other_borders(inspect):
    for text in (
        "question;answer\n你好;你好呀\n",
        "sep=;\nquestion;answer\n你好;你好呀\n",
        "question\tanswer\n你好\t你好呀\n",
    ):
        assert talk(inspect(text, "--as", "chat", name="rows.csv")) == [("user", "你好"), ("assistant", "你好呀")]
    found = inspect("instruction,input,output\n一,nan,二\n三,NULL,四\n", name="rows.csv")
    assert [talk(found, i)[0][1] for i in range(2)] == ["一", "三"]


def test_documents_around_chatml_are_kept(inspect):
    chat = "<|im_start|>user\nq{0}<|im_end|>\n<|im_start|>assistant\na{0}<|im_end|>\n<|endoftext|>\n"
    text = "".join(chat.format(i) for i in range(2)) + "一个故事。\n<|endoftext|>\n另一个故事。"
    assert documents(inspect(text, "--as", "corpus", "--samples", "9", name="rows.txt")) == [
        "q0\na0",
        "q1\na1",
        "一个故事。",
        "另一个故事。",
    ]
    assert documents(inspect([{"text": "遇到<|endoftext|>时停止。"}])) == ["遇到<|endoftext|>时停止。"]


def test_a_list_of_texts_is_documents(inspect):
    texts = ["第一篇。", "第二篇。", "第三篇。"]
    assert documents(inspect(json.dumps(texts), "--as", "corpus", name="rows.json")) == texts


@pytest.mark.parametrize(
    "text",
    ["### Human: a" + "\n" * 50_000 + "b### Assistant: c", "[INST] q [/INST] a" + " " * 50_000 + "b",
     " " * 200_000 + "Human: a",
     "<|im_start|>user\na" + "\n" * 50_000 + "<|im_end|>"],
)  # fmt: skip
def test_white_space_costs_no_time(inspect, text):
    begun = time.monotonic()
    inspect([{"text": text}, {"prompt": text, "response": "b"}], "--as", "chat")
    inspect([{"text": text}], "--as", "corpus")
    assert time.monotonic() - begun < 20  # it was minutes


# --- the command ------------------------------------------------------------------------------------------------------


def test_files_are_told_apart_and_shown_to_people(tmp_path, monkeypatch, mengya):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for name, row in {
        "a": {"text": "一个故事。"},
        "b": {"messages": GOOD},
        "c": {"prompt": "一", "chosen": "二", "rejected": "三"},
    }.items():
        (tmp_path / f"d/{name}.jsonl").write_text(json.dumps(row) + "\nbroken\n", "utf-8")
    (tmp_path / "d/e.docx").write_bytes(b"x")
    found = [json.loads(line) for line in mengya("inspect", "d", "--json").out.splitlines()]
    assert [one["read_as"] for one in found] == ["corpus", "chat", "pairs"]
    shown = mengya("inspect", "d").out
    for words in ("a.jsonl, read as corpus: 2 rows", "text in 'text'", "» assistant: 你好！有什么事？", "» chosen: 二",
                  "invalid JSON: Expecting value; first at line 2", "1 files of other types ignored"):  # fmt: skip
        assert words in shown, shown
    assert mengya("inspect", "nowhere").code == 2 and mengya("inspect").code == 2
    assert list((tmp_path / "d").iterdir()) and not list(tmp_path.glob("**/quarantine*"))


def test_lengths_by_a_model(grown, mengya):
    rows = [json.loads(line) for line in (grown / "conversations.jsonl").read_text().splitlines()]
    result = mengya("inspect", "conversations.jsonl", "--json", "--model", "run/sft")
    tokens = json.loads(result.out)["tokens"]
    assert tokens["exact"] and tokens["longest"] >= tokens["median"] > 5 and tokens["total"] > len(rows) * 5
    whole_run = mengya("inspect", "conversations.jsonl", "--model", "run")
    assert whole_run.code == 2 and "no tokenizer.json in run; give a directory that" in whole_run.err
    assert ", such as run/" in whole_run.err


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not beside this repository")
def test_shared_cases_are_read_whole(mengya):
    for path in sorted(CASES.glob("*.*l")) + sorted(CASES.glob("*.csv")):
        found = json.loads(mengya("inspect", str(path), "--json").out)
        assert found["quarantined"] == (1 if path.name.startswith("05") else 0), (path.name, found["reasons"])


# --- sentences with entities ------------------------------------------------------------------------------------------

TAGGED = "王 B-PER\n伟 I-PER\n来 O\n\n下 O\n雨 O\n\n"


@pytest.mark.parametrize("name", ["a.bio", "a.txt"])
def test_columns_of_tags_are_conversations(inspect, name):
    found = inspect(TAGGED * 4 + "坏\n", name=name)
    assert (found["read_as"], found["used"], found["quarantined"]) == ("chat", 8, 1)
    assert found["reasons"] == {"a line that is not a token and a tag": 1}
    assert [talk(found, n)[1] for n in range(2)] == [("assistant", '{"人名": ["王伟"]}'), ("assistant", "{}")]


def test_rows_of_spans_are_conversations_and_texts_beside_empty_lists_are_text(inspect):
    row = {"id": 7, "text": "王伟来", "label": {"name": {"王伟": [[0, 1]]}}}
    found = inspect([row, row | {"text": "他来"}])
    assert (found["read_as"], found["partly_read"], found["quarantined"]) == ("chat", 1, 1)
    assert found["fields_not_read"] == {"id": 1}
    assert inspect([{"text": "下雨了。", "entities": []}, {"text": "雨停了。", "entities": []}])["read_as"] == "corpus"
