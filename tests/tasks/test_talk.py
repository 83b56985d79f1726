"""Questions graded by the kind of the answer."""

import pytest

from mengya.errors import UserError
from mengya.tasks import talk
from mengya.tasks.questions import read_questions
from mengya.tasks.task import Question

from ..conftest import write_jsonl

STORY = (
    "从前有一只小兔子，住在森林里。一天，它在路上捡到了一把旧雨伞。"
    "后来下起了大雨，它把伞借给了小刺猬，自己淋湿了也很高兴。"
)
JOKE = "老师问：“谁能用‘果然’造句？”小明说：“先吃水果，然后喝水。”"
RIGHT = {
    "name": ["我叫萌芽。", "I'm MENGYA, nice to meet you.", "我的名字是萌芽，是萌芽项目做的。"],
    "maker": ["我是由萌芽项目训练的。", "I was made by the Mengya project."],
    "model": ["我是一个语言模型，不是真人。", "I am a language model.", "我是人工智能助手。"],
    "greeting": ["你好呀！", "Hello, how can I help?", "早上好，今天想聊什么？"],
    "thanks": ["不客气，随时找我。", "You're welcome!"],
    "farewell": ["拜拜，明天见！", "Goodbye!"],
    "modesty": ["谢谢夸奖！", "过奖了，我还在学习。"],
    "comfort": ["别难过，明天会好起来的。", "I'm sorry to hear that."],
    "joy": ["恭喜你！", "太好了！"],
    "ability": ["我可以回答问题，也会讲故事。", "I can answer questions and tell stories."],
    "ignorance": ["抱歉，我不认识这个人。", "我没听说过。", "Sorry, I don't know.", "I have never heard of him."],
    "feeling": ["I'm doing great, thanks!", "Fine, and you?"],
    "talk": ["I like music a little.", "My favourite is reading."],
    "story": [STORY],
    "joke": [JOKE, "Why did the chicken cross the road? To get to the other side."],
}
WRONG = {
    "name": ["我是萌芽项目做的。", "我是小明。", "The Mengya project made me.", ""],
    "maker": ["我叫萌芽。", "OpenAI做的。"],
    "model": ["我叫萌芽。", "我是真人，不是模型。".replace("真人", "一个真人")],
    "greeting": ["再见！", "我不知道。"],
    "farewell": ["你好！", "不客气。"],
    "story": ["好的，下次再聊！", "我会讲故事。", "我不知道。", "我是从文本里学会说话的。", JOKE[:10]],
    "joke": ["再见，祝你开心！", "我不知道这个问题的答案。", "Bye! Have a nice day.", STORY * 3],
    "ignorance": ["刘德华是著名的歌手。", "Bye! Have a nice day."],
    "ability": ["我不知道。", "再见。"],
    "feeling": ["Goodbye! See you.", "我叫萌芽。"],
    "talk": ["再见。", "I do not know."],
}


def question(**row):
    return Question(talk.TASKS[1], "1", {"kind": "first", "prompt": "?", **row})


@pytest.mark.parametrize("kind", talk.KINDS)
def test_kinds(kind):
    for text in RIGHT[kind]:
        assert question(expect=kind).score(text) == 1, text
    for text in [*WRONG.get(kind, []), "", "。"]:
        assert question(expect=kind).score(text) == 0, text


def test_an_accepted_text_counts_whatever_surrounds_it():
    asked = question(accept=["疑是地上霜", "举头望明月"])
    assert asked.score("下一句是：“疑是地上霜。”") == asked.score("举头，望明月") == 1
    assert asked.score("疑是地上") == asked.score("") == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expect=None is not a kind of answer; use one of name, maker"),
        ({"expect": "poetry"}, "expect='poetry' is not a kind of answer"),
        ({"accept": []}, "accept=[] must be a list of strings"),
        ({"accept": ["。"]}, "none of which is punctuation alone"),
        ({"accept": ["a"], "expect": "story"}, "cannot both be given; remove one"),
        ({"expect": "story", "answer": ""}, "answer='' must be a non-empty string"),
        ({"expect": "story", "answer": "再见"}, "is wrong by its own task"),
    ],
)
def test_a_row_that_cannot_be_graded_is_refused(tmp_path, row, message):
    write_jsonl(tmp_path / "q.jsonl", [{"kind": "first", "prompt": "讲个故事", **row}])
    with pytest.raises(UserError) as caught:
        read_questions(tmp_path / "q.jsonl")
    assert message in str(caught.value)
