"""Held-out questions: asked greedily through the chat template, scored by their tasks."""

from collections.abc import Sequence

from mengya.errors import UserError
from mengya.evaluate.accuracy import Result, share_of
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.model.language_model import LanguageModel
from mengya.tasks.task import Question, Task
from mengya.text.chat import Chat


def ask(model: LanguageModel, chat: Chat, questions: Sequence[Question], *, max_new_tokens: int = 64) -> list[str]:
    """Greedy responses in the order of `questions`; each is asked alone, in a new conversation.

    UserError for a question that the chat template refuses, or that leaves no room in the context for a response.
    """
    prompts = [_prompt(chat, question, model.context) for question in questions]
    sampling = Sampling(temperature=0, max_new_tokens=max_new_tokens)
    engine = Engine(model, chat.tokenizer, chat.stop_ids)
    requests = [Request(prompt=prompt, sampling=sampling) for prompt in prompts]
    return [choice.text.strip() for (choice,) in generate(engine, requests)]


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


def results(questions: Sequence[Question], responses: Sequence[str], scores: Sequence[float]) -> list[Result]:
    """What each task that occurs measures, in the order in which the tasks first occur; without shares of nothing."""
    of_task: dict[Task, list[tuple[Question, str, float]]] = {}
    for question, response, score in zip(questions, responses, scores, strict=True):
        of_task.setdefault(question.task, []).append((question, response, score))
    found = []
    for measure, asked in ((measure, asked) for task, asked in of_task.items() for measure in task.measured()):
        shares = [measure.share(*each) for each in asked]
        correct, total = sum(right for right, _ in shares), sum(out_of for _, out_of in shares)
        if total:
            found.append(Result(measure.key, measure.heading, measure.note, share_of(correct, total, measure.each)))
    return found
