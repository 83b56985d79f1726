"""What questions name, and whether passages have it."""

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

from mengya.rag.names import is_named, names_of

TOLD = ["王小萌今年35岁，住在青河镇。", "Sprout 3B 有 1,024 个專家，价格为2048元。", "电梯每年检查两次。"]


@pytest.mark.parametrize(
    ("question", "named"),
    {
        "王小萌多大了？": True, "李大树多大了？": False, "青河鎮有多少人？": True, "白云镇有多少人？": False,
        "Sprout 有多少专家？": True, "Acorn 有多少专家？": False, "价格是2048元吗？": True, "价格是4096元吗？": False,
        "电梯多久检查一次？": True, "第3条是什么？": True, "他呢？": True, "？": True, "": True, "😀": True,
    }.items(),
)  # fmt: skip
def test_passages_have_what_a_question_names(question, named):
    assert is_named(question, TOLD) == named


def test_common_words_are_no_names():
    assert names_of("这座城市一共有多少家医院，分别叫什么名字？") <= {"多少家"}
    assert names_of("张三丰在2024年去了哪里？") >= {"张三丰", "2024"}
