"""Held-out questions: asked greedily through the chat template, scored by their tasks."""

from collections.abc import Sequence

from mengya.errors import UserError
from mengya.evaluate.accuracy import Result, accuracy
from mengya.infer.request import Sampling
from mengya.infer.session import generate
from mengya.model.language_model import LanguageModel
from mengya.tasks.task import Question, Task
from mengya.text.chat import Chat


def ask(model: LanguageModel, chat: Chat, questions: Sequence[Question], *, max_new_tokens: int = 64) -> list[str]:
    """Greedy responses in the order of `questions`; each is asked alone, in a new conversation.

    UserError for a question that the chat template refuses, or that leaves no room in the context for a response.
    """
    prompts = [_prompt(chat, question, model.context) for question in questions]
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    return [chat.tokenizer.decode(ids).strip() for ids in generate(model, prompts, sampling, chat.stop_ids)]


def _prompt(chat: Chat, question: Question, context: int) -> list[int]:
    try:
        prompt = chat.encode(question.messages(), add_generation_prompt=True)[0]
    except UserError as error:
        raise UserError(f"question {question.id!r}: {error}") from error
    if len(prompt) >= context:
        raise UserError(
            f"question {question.id!r} has {len(prompt)} tokens, which fill the context of {context}; "
            "shorten it, or train a model with a longer context"
        )
    return prompt


def results(questions: Sequence[Question], scores: Sequence[float]) -> list[Result]:
    """The accuracy of each task that occurs, in the order in which the tasks first occur."""
    of_task: dict[Task, list[float]] = {}
    for question, score in zip(questions, scores, strict=True):
        of_task.setdefault(question.task, []).append(score)
    return [Result(task.key, task.heading, task.note, accuracy(found)) for task, found in of_task.items()]
