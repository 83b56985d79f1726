"""What questions name, and whether passages have it."""

import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

from mengya.rag.names import Names

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
    assert Names(question).are_in(TOLD) == named


@pytest.mark.parametrize(
    ("question", "names"),
    {
        "《雨铜的故事》要花多少钱买？": {"雨铜的故事"},
        "请告诉我成语“闻鸡起舞”的意思": {"闻鸡起舞"},
        "“好”反过来说是什么？": {"好"},
        "有事找谢超永打什么号码？": {"谢超永"},
        "由哪家公司当梅小装修合同的甲方？": {"梅小"},
        "水花熊能活到多少年？": {"花熊"},
        "我忘了琅沐尼亚的官方语言，请提醒我": {"琅沐尼亚"},
        "哪个洲有墨累河这条河？": {"墨累河"},
        "王伟和李娜是哪里人？": {"王伟", "李娜"},
        "到了处暑，人们正过着哪个季节？": set(),
        "丰河鱼长什么颜色的毛？": set(),
    }.items(),
)
def test_names_are_quoted_or_whole(question, names):
    assert Names(question).all == names


def test_what_is_quoted_stands_as_it_is():
    assert not Names("“闻鸡起舞”是什么意思？").are_in(["成语“闻鸡而起”说的是早起。"])
    assert Names("《红楼梦》是谁写的？").are_in(["曹雪芹写了红楼梦。"])


@pytest.mark.parametrize(
    ("question", "told", "named"),
    [
        ("wifi密码是多少？", "Wi-Fi 密码", True), ("Wi-Fi密码是多少？", "WiFi密码", True),
        ("175cm的人", "身高175 cm", True), ("3.5GB够吗？", "3.5 GB 内存", True), ("3.5GB够吗？", "35 GB 内存", False),
        ("no5是什么？", "No.5 香水", True), ("GBT19001-2016是什么？", "GB/T 19001-2016", True),
        ("订单SO202400123到哪了？", "订单 SO-2024-00123", True),
        ("订单SO202400123到哪了？", "订单 SO-2024-00124", False),
    ],
)  # fmt: skip
def test_hyphens_and_spaces_within_names_do_not_count(question, told, named):
    assert Names(question).are_in([told]) == named


def test_common_words_are_no_names():
    assert Names("这座城市一共有多少家医院，分别叫什么名字？").all <= {"多少家"}
    assert Names("张三丰在2024年去了哪里？").all >= {"张三丰", "2024"}
