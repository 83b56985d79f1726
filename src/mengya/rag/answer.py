"""From a question to an answer that says where it comes from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.backends.listening import awaited
from mengya.infer.request import Conversation, Piece, Request, Sampling, TooLong
from mengya.rag.followup import queries
from mengya.rag.passages import Piece as Place
from mengya.rag.quote import best_of, best_sentence, concern, excerpt, is_quotable, is_supported, words_of
from mengya.rag.retrieve import Hit, Retriever
from mengya.rag.small import read
from mengya.rag.store import KnowledgeBase, StoredPassage
from mengya.rag.terms import is_common
from mengya.text.grounding import CHINESE, grounded_message, parse_answer, without_citations, wording

LARGE = 4096
"""Tokens of context from which on a model is taken to be able to say a question again and to follow a conversation."""
_SIZES = (1 << 20, 200, 100, 50)
"""Characters of each passage that are shown: the first with which there is room for `_ENOUGH` of them."""
_ENOUGH = 3
_WHOLE_CHARACTERS = 40_000
"""Of a whole document, where the model's context is not known."""
_RELATED = 0.15
"""Part of a question's words that a passage must have so that a model is asked about it."""
_ALIKE = 0.4
"""Or how near its vector must be to that of the question. Most models put what has nothing to do with each other below;
of one that does not, such as E5, every question is asked."""
_TURNS = 6
"""Messages before the question that a large model is shown."""
_Said = Mapping[str, Any]
_REWRITE = Sampling(temperature=0, max_new_tokens=100)
_WHOLE = re.compile(
    r"(一共|总共|共有|总计|共)[^，。？?]{0,8}?(几|多少)|全文|通篇|整[个份篇]|概括|总结|摘要|主要内容|讲了?(什么|些什么|啥)"
    r"|(几|多少)(条|章|节|款|页|项|段|篇|行|列|部分|道题|字(?![节段])|个(章|节|表|部分|段落|条款|步骤|问题))"
    r"|(提到|提及|出现)[了过]?(几|多少)[次遍处]|列[出举](所有|全部|每)|有哪些(章|节|条款|部分)|逐[条章段]"
    r"|how many (articles|chapters|sections|clauses|items|pages|parts|rows|columns|lines|tables|steps|questions|words)"
    r"|how many times\b.*\b(mention|appear|occur)|\blist (all|every)\b"
    r"|(whole|entire) (document|file|text)|summar\w*",
    re.IGNORECASE,
)
"""Asks for something that no single passage holds."""
_FILE = re.compile(
    r"文件|文档|文章|资料|材料|附件|全文|通篇|本文|上文|整[个份篇]|[这该]([份个篇本张]|一)|[表书文]里|讲了什么"
    r"|\b(documents?|files?|texts?|attachments?|passages?|this|it)\b",
    re.IGNORECASE,
)
"""Names the file itself, whatever it is about."""


@dataclass(frozen=True)
class Citation:
    """A passage that an answer cites; it stays true when the file is gone."""

    number: int
    """In the answer's text, as [1]."""
    base: KnowledgeBase
    file: str
    pages: tuple[int, ...]
    """Of the quote; empty where the format has none."""
    headings: tuple[str, ...]
    quote: str
    """The words that hold what is said, as they stand in the file."""
    text: str
    """The whole passage."""
    places: tuple[Place, ...]
    """Of the quote in the text of the file (`passages.text_of`)."""

    def as_json(self) -> dict[str, Any]:
        places = [{"page": place.page, "begin": place.begin, "end": place.end} for place in self.places]
        return {
            "id": self.number, "knowledge_base": self.base.name, "file": self.file, "pages": list(self.pages),
            "headings": list(self.headings), "quote": self.quote, "text": self.text, "places": places,
        }  # fmt: skip


@dataclass(frozen=True)
class Answer:
    text: str
    kind: Literal["answer", "quotation", "refusal"]
    """By the model; the best sentence of the best passage in its place; that the documents do not hold it."""
    citations: tuple[Citation, ...]
    """Those in the text, and no other."""
    query: str
    """What was searched for."""


class Shown(NamedTuple):
    """What the model sees of a passage."""

    base: KnowledgeBase
    stored: StoredPassage
    begin: int
    end: int

    @staticmethod
    def all_of(base: KnowledgeBase, stored: StoredPassage) -> "Shown":
        return Shown(base, stored, 0, len(stored.passage.text))

    @property
    def text(self) -> str:
        return self.stored.passage.text[self.begin : self.end]


@dataclass(frozen=True)
class Prepared:
    """A question with its passages, ready to be put to the model."""

    question: str
    query: str
    messages: tuple[Mapping[str, Any], ...]
    """For the model; none if `answer` is known without it."""
    shown: tuple[Shown, ...] = ()
    """By number, from 1."""
    read: tuple[int, int] | None = None
    """Of a question about a whole file: passages that are shown, and that it has."""
    answer: Answer | None = None


def prepare(
    backend: Backend,
    bases: Sequence[KnowledgeBase],
    question: str,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    retriever: Retriever | None = None,
    sampling: Sampling | None = None,
    limit: int = 5,
) -> Prepared:
    """Search for a question that follows `history`, and make the prompt, with the system prompt that `history` begins
    with, if any. May ask the model, to say the question again. TooLong if not even a part of a passage fits into the
    context beside them."""
    system = [dict(message) for message in history if message["role"] == "system"]
    history = [dict(message) for message in history if message["role"] != "system"]
    large = not backend.context or backend.context >= LARGE
    ask = (lambda prompt: "".join(said(backend, [_user(prompt)], _REWRITE))) if large else None
    wanted, retriever = queries(question, history, ask), retriever or Retriever()
    hits = [(base, hit) for base in bases for hit in retriever.find(base, wanted, limit)]
    hits = sorted(hits, key=lambda pair: -pair[1].score)[:limit]
    whole = _whole_file(bases, hits) if _WHOLE.search(question) else None
    if whole and not _is_about(question, whole):
        whole = None
    alike = max((hit.alike for _, hit in hits), default=0.0) >= _ALIKE  # which needs no word of the question
    if whole is None and not alike and concern(wanted, _told([hit.stored for _, hit in hits])) < _RELATED:
        return Prepared(question, wanted[0], (), answer=_refusal(question, wanted[0]))
    reserve = min((sampling or Sampling()).max_new_tokens, max(1, backend.context // 4))
    room = _Room(backend, question, system, history[-_TURNS:] if large else [], reserve)
    if whole:
        shown = whole[: room.fits(whole)] or room.filled(whole[:limit], wanted)
        return Prepared(question, wanted[0], room.messages(shown), shown, (len(shown), len(whole)))
    best = [Shown.all_of(base, hit.stored) for base, hit in hits]
    if not large and (answer := _read(backend, question, wanted[0], best)):
        return Prepared(question, wanted[0], (), answer=answer)
    shown = room.filled(best, wanted)
    return Prepared(question, wanted[0], room.messages(shown), shown)


def conclude(prepared: Prepared, text: str) -> Answer:
    """The answer, from what the model said: with its citations if it has some and says what stands there; else the best
    sentence of the passages as a quotation; or that they do not hold it."""
    if prepared.answer is not None:
        return prepared.answer
    parsed = parse_answer(text.rpartition("</think>")[2], len(prepared.shown))
    if parsed.refused:
        answer = _refusal(prepared.question, prepared.query)
    else:
        cited = "\n".join(prepared.shown[number - 1].stored.passage.text for number in parsed.cited)
        plain = without_citations(parsed.text)
        if parsed.cited and (prepared.read or is_supported(plain, prepared.question, cited)):
            wanted = words_of(plain) | words_of(prepared.question)
            cited_passages = [(number, prepared.shown[number - 1]) for number in parsed.cited]
            citations = tuple(_citation(n, each, best_sentence(wanted, each.text)[:2]) for n, each in cited_passages)
            answer = Answer(parsed.text, "answer", citations, prepared.query)
        else:
            answer = _quotation(prepared)
    if prepared.read and prepared.read[0] < prepared.read[1] and answer.kind != "refusal":
        answer = replace(answer, text=answer.text + _partial(prepared))
    return answer


def answer(
    backend: Backend,
    bases: Sequence[KnowledgeBase],
    question: str,
    history: Sequence[Mapping[str, Any]] = (),
    *,
    retriever: Retriever | None = None,
    sampling: Sampling | None = None,
) -> Answer:
    """`prepare`, ask, `conclude`. UserError as in `prepare`, or if the model fails."""
    prepared = prepare(backend, bases, question, history, retriever=retriever, sampling=sampling)
    if prepared.answer is not None:
        return prepared.answer
    return conclude(prepared, "".join(said(backend, prepared.messages, sampling or Sampling())))


def said(backend: Backend, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Iterator[str]:
    """What the model answers, in pieces. Closing the iterator stops it. UserError if it fails."""
    pieces: SimpleQueue[Piece] = SimpleQueue()
    ticket = backend.submit(Request(prompt=Conversation(messages), sampling=sampling), pieces.put)
    try:
        piece = awaited(pieces, backend)
        while piece.finish is None:
            yield piece.text
            piece = awaited(pieces, backend)
        yield piece.text
    finally:
        ticket.cancel()
    if piece.finish == "error":
        raise UserError(piece.error or "the model failed")


class _Room:
    """What fits into the context of a model beside a question and the system prompt."""

    def __init__(self, backend: Backend, question: str, system: Sequence[_Said], before: Sequence[_Said], reserve: int):
        self._backend, self._question, self._reserve = backend, question, reserve
        self._system, self._before = system, before

    def messages(self, shown: Sequence[Shown]) -> tuple[Mapping[str, Any], ...]:
        message = _user(grounded_message(self._question, [each.text for each in shown]))
        return (*self._system, *self._before, message)

    def fits(self, shown: Sequence[Shown]) -> int:
        """How many of them, from the first on."""
        low, high = 0, len(shown)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(shown[:middle]) else (low, middle - 1)
        return low

    def _fits(self, shown: Sequence[Shown]) -> bool:
        if not self._backend.context:
            return sum(len(each.text) for each in shown) <= _WHOLE_CHARACTERS
        return self._tokens(shown) + self._reserve <= self._backend.context

    def _tokens(self, shown: Sequence[Shown]) -> int:
        return len(self._backend.encode(Conversation(self.messages(shown))))

    def filled(self, best: Sequence[Shown], wanted: Sequence[str]) -> tuple[Shown, ...]:
        """As many of the best passages as fit, or their best sentences. What was said before goes if nothing fits
        beside it. TooLong if nothing does without it."""
        words = words_of("\n".join(wanted))
        for size in _SIZES:
            shown = [Shown(base, stored, *excerpt(words, stored.passage.text, size)) for base, stored, *_ in best]
            count = self.fits(shown)
            if count >= min(_ENOUGH, len(shown)):
                break
        if count:
            return tuple(shown[:count])
        if self._before:
            self._before = []
            return self.filled(best, wanted)
        tokens, context = self._tokens(shown[:1]), self._backend.context
        system, either = ("the system prompt, ", "the system prompt or ") if self._system else ("", "")
        raise TooLong(
            f"{system}the question and a part of a passage take {tokens} tokens, {self._reserve} more are for the "
            f"answer, and this model has a context of {context}; shorten {either}the question",
            tokens,
            context,
        )


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _whole_file(bases: Sequence[KnowledgeBase], hits: Sequence[tuple[KnowledgeBase, Hit]]) -> tuple[Shown, ...] | None:
    """All of the file that is asked about: that of the best passage, or else the one that was added last."""
    if hits:
        base, file = hits[0][0], hits[0][1].stored.file
    else:
        files = [(stored.added, base, stored.name) for base in bases for stored in base.files()]
        if not files:
            return None
        _, base, file = max(files, key=lambda entry: entry[0])
    return tuple(Shown.all_of(base, stored) for stored in base.passages_of(file)) or None


def _is_about(question: str, whole: Sequence[Shown]) -> bool:
    """Whether a question about a whole file may be about this one: it names the file, or nothing in particular, or
    what stands there."""
    asked = _WHOLE.sub(" ", question)
    if _FILE.search(question) or all(map(is_common, words_of(asked))):
        return True
    return concern([asked], _told([shown.stored for shown in whole])) >= _RELATED


def _told(passages: Sequence[StoredPassage]) -> list[str]:
    """With what stands above each."""
    return [" \n".join((stored.file, *stored.passage.headings, stored.passage.text)) for stored in passages]


def _refusal(question: str, query: str) -> Answer:
    return Answer(wording(question).refusal, "refusal", (), query)


def _read(backend: Backend, question: str, query: str, shown: Sequence[Shown]) -> Answer | None:
    """By a small model that has learnt to read sentences; None of one that has not. Where it finds nothing, the nearest
    sentence is quoted, and often holds the answer: such a model knows few ways of saying things."""
    found = read(backend, query, [each.text for each in shown])
    if found is None:
        return None
    if found.text:
        citation = _citation(1, shown[found.passage], (found.begin, found.end))
        return Answer(f"{found.text}[1]。", "answer", (citation,), query)
    quoted = _quotation(Prepared(question, query, (), tuple(shown)))
    return quoted if quoted.kind == "refusal" else replace(quoted, text=f"没有读到答案。最接近的{quoted.text}")


def _citation(number: int, shown: Shown, span: tuple[int, int]) -> Citation:
    """`span`: what is quoted of what is shown."""
    passage = shown.stored.passage
    begin, end = span
    places = passage.located(shown.begin + begin, shown.begin + end)
    pages = tuple(dict.fromkeys(place.page for place in places if place.page is not None))
    quote = shown.text[begin:end]
    return Citation(number, shown.base, shown.stored.file, pages, passage.headings, quote, passage.text, places)


def _quotation(prepared: Prepared) -> Answer:
    """The sentence of the passages that has most of the question's words, the earlier passage first; a refusal if none
    of them has enough, or anything that the question names, unless it is the whole file that is asked about."""
    passages = [shown.stored for shown in prepared.shown]
    if prepared.read is None and not is_quotable((prepared.query, prepared.question), _told(passages)):
        return _refusal(prepared.question, prepared.query)
    wanted = words_of(f"{prepared.query}\n{prepared.question}")
    best, begin, end = best_of(wanted, [shown.text for shown in prepared.shown])
    citation = _citation(best + 1, prepared.shown[best], (begin, end))
    chinese = wording(prepared.question) is CHINESE
    text = f"原文：“{citation.quote}”[{best + 1}]" if chinese else f'Quoted: "{citation.quote}" [{best + 1}]'
    return Answer(text, "quotation", (citation,), prepared.query)


def _partial(prepared: Prepared) -> str:
    assert prepared.read
    some, every = prepared.read
    if wording(prepared.question) is CHINESE:
        return f"\n（这份文件有 {every} 段，这里只读了前 {some} 段。）"
    return f"\n(The file has {every} passages; the answer is from {some} of them.)"
