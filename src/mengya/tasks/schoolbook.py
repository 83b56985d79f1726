"""The three kinds of held-out question that come with the embedded schoolbook."""

from mengya.tasks.exact import check, check_integer, grade, grade_integer
from mengya.tasks.task import Task, Words

NEW_WORDS = Words(
    "asked in words that never occur in training; the whole response must equal an accepted answer.",
    "问题的说法没有在训练中出现过；整个回答须与可接受的答案一致。",
)
NEW_PAIRS = Words(
    "pairs of numbers that training never adds; the last number of the response must be the sum.",
    "这些数没有在训练中相加过；以回答中最后一个数为准。",
)
INVENTED = Words(
    "about invented names; the right answer is to say that one does not know.",
    "所问的名字是编造的；正确的回答是说不知道。",
)
TASKS = (
    Task("fact", "facts_accuracy", Words("Facts", "知识问答"), NEW_WORDS, check, grade),
    Task("addition", "addition_accuracy", Words("Addition", "两位数加法"), NEW_PAIRS, check_integer, grade_integer),
    Task("unknown", "unknown_accuracy", Words("Honesty", "诚实"), INVENTED, check, grade),
)
