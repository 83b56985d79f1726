"""Sums for the schoolbook: worked additions, exercises, and the operand pairs that training never shows.

A worked addition is one line that begins with the sum itself, so that every step copies digits from nearby:
``37+45`` -> ``37+45：个位7+5=12，写2进1；十位3+4+1=8，得82。``
"""

import random
from collections.abc import Iterator

from mengya.data.schoolbook.tables import grouped, read_lines, stable_hash

PHRASES = grouped(read_lines("sums.txt"))
NAMES = ("小明", "小红", "小华", "小丽", "小军", "小芳", "小强", "小雨")
THINGS = ("苹果", "橘子", "气球", "鸡蛋", "皮球", "桃子", "玩具", "面包", "西瓜", "盒子")


def is_held_out(a: int, b: int) -> bool:
    """Whether the unordered pair of two-digit operands is in the held-out questions only (about one pair in ten)."""
    return min(a, b) >= 10 and max(a, b) <= 99 and stable_hash(f"{min(a, b)}+{max(a, b)}") % 10 == 0


HELD_PAIRS = tuple((a, b) for a in range(10, 100) for b in range(a, 100) if is_held_out(a, b))
TRAIN_PAIRS = tuple((a, b) for a in range(10, 100) for b in range(10, 100) if not is_held_out(a, b))


def worked(a: int, b: int, carry: int | None = None, lang: str = "zh") -> str:
    """The worked addition of two two-digit numbers; ``carry`` other than the right one makes the usual mistake."""
    ones = a % 10 + b % 10
    carry = ones // 10 if carry is None else carry
    tens = a // 10 + b // 10 + carry
    total = tens * 10 + ones % 10
    if lang == "en":
        return (
            f"{a}+{b}: ones {a % 10}+{b % 10}={ones}, write {ones % 10} carry {carry}; "
            f"tens {a // 10}+{b // 10}+{carry}={tens}, so {total}."
        )
    return (
        f"{a}+{b}：个位{a % 10}+{b % 10}={ones}，写{ones % 10}进{carry}；"
        f"十位{a // 10}+{b // 10}+{carry}={tens}，得{total}。"
    )


def wrong(a: int, b: int) -> str:
    """The worked addition with the carry forgotten, or invented where there is none."""
    return worked(a, b, carry=0 if a % 10 + b % 10 > 9 else 1)


def question(rng: random.Random, a: int, b: int, problems: float = 0.4) -> str:
    """A Chinese wording of a+b; a share of `problems` are word problems, where it is harder to find the numbers."""
    if rng.random() < problems:
        return rng.choice(PHRASES["problem"]).format(a=a, b=b, name=rng.choice(NAMES), thing=rng.choice(THINGS))
    return rng.choice(PHRASES["ask"]).format(a=a, b=b)


def _subtraction(rng: random.Random) -> tuple[str, str]:
    a, b = sorted(rng.choice(TRAIN_PAIRS), reverse=True)
    ask = rng.choice(("{a}-{b}=?", "{a}减{b}等于多少？", "请计算{a}-{b}。", "{a}减去{b}是多少？", "{a}比{b}多多少？"))
    borrow = a % 10 < b % 10
    ones = a % 10 + 10 * borrow - b % 10
    first = f"个位{a % 10}不够减，借1，{a % 10 + 10}-{b % 10}={ones}" if borrow else f"个位{a % 10}-{b % 10}={ones}"
    tens = f"十位{a // 10}-{b // 10}-{int(borrow)}={a // 10 - b // 10 - borrow}"
    return ask.format(a=a, b=b), f"{first}；{tens}。所以{a}-{b}={a - b}。"


def _small_sum(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.35:
        a, b = max(a, b), min(a, b)
        ask = rng.choice(("{a}-{b}=?", "{a}减{b}等于几？", "{a}减去{b}是多少？"))
        return ask.format(a=a, b=b), f"{a}-{b}={a - b}。"
    return rng.choice(PHRASES["ask"]).format(a=a, b=b), f"{a}+{b}={a + b}。"


def _product(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    ask = rng.choice(("{a}×{b}=?", "{a}乘{b}等于多少？", "请计算{a}×{b}。", "{a}乘以{b}是多少？"))
    return ask.format(a=a, b=b), f"{a}×{b}={a * b}。"


def _comparison(rng: random.Random) -> tuple[str, str]:
    a, b = rng.choice([pair for pair in rng.sample(TRAIN_PAIRS, 91) if pair[0] != pair[1]])
    bigger = rng.random() < 0.5
    ask = rng.choice(("{a}和{b}哪个{w}？", "{a}和{b}比，哪个{w}？", "请问{a}和{b}哪个数更{w}？"))
    first, second = (max(a, b), min(a, b)) if bigger else (min(a, b), max(a, b))
    word = "大" if bigger else "小"
    return ask.format(a=a, b=b, w=word), f"{first}比{second}{word}，所以{word}的是{first}。"


def _counting(rng: random.Random) -> tuple[str, str]:
    start = rng.randint(1, 90)
    numbers = [str(n) for n in range(start, start + rng.randint(4, 9))]
    if rng.random() < 0.5:
        return f"从{numbers[0]}数到{numbers[-1]}。", "、".join(numbers) + "。"
    return rng.choice((f"{start}后面的数是几？", f"{start}的下一个数是多少？")), f"{start}后面的数是{start + 1}。"


def _clock(rng: random.Random) -> tuple[str, str]:
    hour = rng.randint(1, 11)
    later = rng.randint(1, 12 - hour)
    kind = rng.randrange(3)
    if kind == 0:
        return f"现在是{hour}点，{later}个小时以后是几点？", f"{hour}+{later}={hour + later}，所以是{hour + later}点。"
    if kind == 1:
        return f"时针指着{hour}，分针指着12，是几点？", f"是{hour}点整。"
    return f"时针指在{hour}和{hour + 1}的中间，分针指着6，是几点？", f"是{hour}点半。"


MAKERS = (_subtraction, _small_sum, _product, _comparison, _counting, _clock)


def exercise(rng: random.Random) -> tuple[str, str]:
    """(question, answer) of something other than a two-digit addition."""
    return rng.choice(MAKERS)(rng)


def paragraphs(rng: random.Random) -> Iterator[str]:
    """Every trainable ordered pair worked out once, a few to the paragraph, and other exercises in between."""
    pairs = list(TRAIN_PAIRS)
    rng.shuffle(pairs)
    titles = ("加法练习：", "算一算。", "今天的数学作业：", "老师在黑板上写了几道题。", "口算和笔算：", "两位数加法：")
    while pairs:
        lines = [rng.choice(titles)]
        for _ in range(rng.randint(2, 5)):
            if pairs:
                a, b = pairs.pop()
                lines.append(question(rng, a, b) + worked(a, b) if rng.random() < 0.8 else worked(a, b))
        if rng.random() < 0.3:
            lines.append("".join(exercise(rng)))
        yield "\n".join(lines)
    for _ in range(300):
        yield "\n".join("".join(exercise(rng)) for _ in range(rng.randint(3, 6)))
