"""What the tests in a real browser share: the answers of the model, and what a person does."""

import re

from ..api.scripted import Say

LESSON = """<think>
用户想了解光合作用，先写反应式，再举例。
</think>

## 光合作用

**要点：**植物吸收 $CO_2$ 和水，在光下合成糖，放出氧气。

$$6CO_2 + 6H_2O \\rightarrow C_6H_{12}O_6 + 6O_2$$

1. 光反应：分解水，放出氧气；
2. 暗反应：固定二氧化碳。

```python
def 氧气(二氧化碳):
    return 二氧化碳  # 一比一
```

| 反应 | 地点 | 需要光 |
|---|---|---|
| 光反应 | 类囊体 | 是 |
| 暗反应 | 基质 | 否 |
"""


def answer(request, choice):
    question = request.prompt.messages[-1]["content"]
    if question.startswith("资料："):  # it has not learnt to read sentences one by one
        return ["嗯"]
    if "问题：" in question:
        number = re.search(r"^\[(\d+)\](?:(?!^\[)[\s\S])*二十八天", question, re.MULTILINE)
        return (
            ["每年", "二十八天", f"[{number[1]}]。"]
            if number and "休假" in question.splitlines()[-1]
            else ["资料中没有提到。"]
        )
    if "光合作用" in question:
        return [Say(LESSON[i : i + 4], wait=0.004) for i in range(0, len(LESSON), 4)]
    if "慢" in question:
        return [Say("字", wait=0.05) for _ in range(2000)]
    if "坏" in question:
        return ["写到一半", Say(error="the engine stopped in the middle of the answer; ask again")]
    if "图" in question:
        return ["![x](https://beacon.test/p.png?q=1) <img src=https://beacon.test/q.png> <svg onload=alert(1)>"]
    if "مرحبا" in question:
        return ["مرحبا بك، 3 < 5.\n\n```python\nx = 1\n```"]
    return ["回答：", question]


def ask(tab, text: str) -> None:
    """Send, and wait for the whole answer."""
    before = tab.locator(".message").count()
    tab.fill("#text", text)
    tab.press("#text", "Enter")
    tab.wait_for_function("n => document.querySelectorAll('.message').length > n", arg=before)
    whole(tab)


def until(tab, expression: str) -> None:
    tab.wait_for_function(f"() => {expression}")


def whole(tab) -> None:
    tab.wait_for_selector(".message.assistant:last-child .again")


def last(tab) -> str:
    return tab.locator(".message.assistant .body").last.inner_text().strip()


def place(tab) -> float:
    """How far down the conversation is read."""
    return tab.evaluate("document.querySelector('#messages').scrollTop")


def chosen_base(tab, name: str) -> None:
    """Make a knowledge base, and have it asked."""
    tab.click("#shelf")
    tab.fill("#base-name", name)
    tab.press("#base-name", "Enter")
    tab.check('.base input[type="checkbox"]')


def deleted(tab, title: str) -> None:
    """The conversation, with two presses."""
    tab.click(f'[aria-label^="“{title}”"]')
    tab.click("#delete")
    tab.click("#delete")


def beside(tab):
    """A tab of the same user that shows the same conversation, or none."""
    other = tab.context.new_page()
    other.goto(tab.url)
    return other
