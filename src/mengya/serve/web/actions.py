"""What the page can do. Each public method is an endpoint: its first argument is the owner, who is told by the server;
the others come from anybody, and are checked against what that owner has."""

import functools
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.request import Sampling
from mengya.rag import answer as grounded
from mengya.rag.retrieve import Retriever
from mengya.rag.store import KnowledgeBase, UnknownBase
from mengya.serve.web import pictures
from mengya.serve.web.answers import Answer, Answers, Ask, Messages, fitted, preamble, turns
from mengya.serve.web.library import Library, passage_view
from mengya.serve.web.markup import blocks
from mengya.serve.web.settings import Settings
from mengya.serve.web.store import Conversation, Message, Missing, State, Store, found_in, new_id, title_of
from mengya.text.thoughts import split_thoughts

_LONGEST = 400_000
"""Characters of a question, at most."""
_KEPT = 4_000
"""Characters of an answer that is not drawn anew each time."""


class Actions:
    def __init__(
        self,
        store: Store,
        answers: Answers,
        library: Library,
        models: Mapping[str, Backend],
        usual: Sampling,
        seeing: Collection[str] = (),
        retriever: Retriever | None = None,
    ):
        """`usual`: how answers are drawn where nothing is said. `seeing`: names of models that take pictures.
        `retriever`: how documents are searched."""
        self._store, self._answers, self._library = store, answers, library
        self._models, self._usual, self._seeing = models, usual, seeing
        self._retriever = retriever or Retriever()

    def start(self, owner: str) -> dict[str, Any]:
        """What the page must know before anything else."""
        models = [
            {"name": name, "about": m.about, "context": m.context, "sees": name in self._seeing}
            for name, m in self._models.items()
        ]
        signed_in = owner.startswith("user:")
        usual = Settings(sampling=self._usual).kept()
        most = self._library.limits.file_bytes
        return {"models": models, "settings": usual, "signed_in": signed_in, "file_bytes": most} | {
            "addresses": self._library.addresses
        }

    def conversations(self, owner: str, search: str) -> list[dict[str, Any]]:
        busy = self._answers.of(owner)
        found = self._store.all(owner, search)
        return [{"id": c.id, "title": c.title, "updated": c.updated, "busy": c.id in busy} for c in found]

    def open(self, owner: str, conversation: str) -> dict[str, Any]:
        return self._view(owner, self._store.get(owner, conversation))

    def find(self, owner: str, conversation: str, search: str) -> dict[str, Any]:
        """Show the branch with the message that a search has found; "found" is its id, "" if the title alone has it."""
        kept = self._store.get(owner, conversation)
        hit = found_in(kept, search)
        if hit is None or hit in kept.branch():
            shown = self._view(owner, kept)
        else:
            shown = self.choose(owner, conversation, hit.id)
        return shown | {"found": hit.id if hit else ""}

    def rename(self, owner: str, conversation: str, title: str) -> None:
        self._store.rename(owner, conversation, title)

    def delete(self, owner: str, conversation: str) -> None:
        self._store.delete(owner, conversation)
        self._answers.stop_conversation(owner, conversation)
        self._library.remove(owner, f"conversation:{conversation}")

    def choose(self, owner: str, conversation: str, message: str) -> dict[str, Any]:
        """Show the branch with this message."""
        found = self._store.get(owner, conversation)
        _message(found, message)
        self._store.choose(owner, conversation, found.end_of(message))
        return self.open(owner, conversation)

    def send(self, owner: str, conversation: str, parent: str, text: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Ask, after the message `parent` ("": at the beginning), in a conversation ("": a new one). "pictures" in the
        settings: ids of those that go with the question."""
        text, how = text.strip(), self._settings(settings)
        found = self._store.get(owner, conversation) if conversation or parent else None
        wanted = list(settings.get("pictures") or ())
        if len(wanted) > pictures.MOST:
            raise UserError(f"{len(wanted)} pictures are too many for one question; at most {pictures.MOST} are taken")
        shown = pictures.named(self._store, conversation, wanted) if found else []
        if not title_of(text) and not (shown and how.model in self._seeing):
            raise UserError("the message is empty; write one")
        if len(text) > _LONGEST:
            raise UserError(f"the message has {len(text)} characters; at most {_LONGEST} are taken")
        if found and parent:
            _message(found, parent)
        elif found and not found.messages and title_of(text):  # made for a file, whose name it has
            self._store.entitle(owner, conversation, text)
        made = conversation or self._store.create(owner, text, how.kept())
        info = {"pictures": shown} if shown else {}
        question = Message(new_id(), parent or None, "user", text, "done", time.time(), info)
        self._ask(owner, made, how, question, [question])
        return self.open(owner, made)

    def again(self, owner: str, conversation: str, message: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Another answer beside this one."""
        found = self._store.get(owner, conversation)
        before = _message(found, message)
        if before.role != "assistant" or before.parent is None:
            raise UserError("only an answer can be written again")
        self._ask(owner, conversation, self._settings(settings), _message(found, before.parent), [])
        return self.open(owner, conversation)

    def create(self, owner: str, title: str, settings: dict[str, Any]) -> dict[str, Any]:
        """An empty conversation, for files to belong to."""
        return self.open(owner, self._store.create(owner, title, self._settings(settings).kept()))

    def stop(self, owner: str, message: str) -> None:
        self._answers.stop(owner, message)

    def _settings(self, given: Mapping[str, Any]) -> Settings:
        how = Settings.read(given, self._usual)
        if how.model not in self._models:
            how = replace(how, model=next(iter(self._models)))
        return how

    def _ask(self, owner: str, conversation: str, how: Settings, question: Message, new: list[Message]) -> None:
        """`new`: what is to be stored before the answer."""
        backend = self._models[how.model]
        answer = Answer(new_id(), owner, conversation, how.model)
        written = Message(answer.id, question.id, "assistant", "", "answering", time.time())
        self._store.set(owner, conversation, how.kept())
        self._store.add(owner, conversation, [*new, written])

        prepare = functools.partial(self._prepared, owner, conversation, how, question.id)
        try:
            self._answers.begin(answer, backend, how.sampling, prepare)
        except UserError as error:
            self._store.save(owner, answer.id, "", "error", {"error": str(error), "model": how.model})

    def _prepared(
        self, owner: str, conversation: str, how: Settings, question: str, backend: Backend, going: Callable[[], bool]
    ) -> Ask:
        """`answers.Prepare` of a question, which is a message of the conversation."""
        self._answers.settle(owner)
        found = self._store.get(owner, conversation)
        asked = Conversation(**(vars(found) | {"leaf": question})).branch()
        sees = how.model in self._seeing
        said = turns(asked)
        pictured = turns(asked, self._seen(owner)) if sees else said
        names = [picture["name"] for message in asked for picture in message.info.get("pictures") or ()]
        while True:
            bases, left = self._bases(owner, conversation, how, going)
            left |= {"unseen": names} if names and not sees else {}
            with suppress(UnknownBase):  # it was removed while it was searched: once more
                if bases and (ask := self._grounded(backend, bases, how, said, pictured, left)):
                    return ask
                told = fitted(backend, how.system, pictured, how.sampling.max_new_tokens)
                return Ask(told, functools.partial(_with, kept=left) if left else None)

    def _seen(self, owner: str) -> Callable[[Message], Any]:
        def write(message: Message) -> Any:
            shown = message.info.get("pictures")
            return pictures.parts(self._store, owner, message.text, shown) if shown else message.text

        return write

    def _bases(
        self, owner: str, conversation: str, how: Settings, going: Callable[[], bool]
    ) -> tuple[dict[str, KnowledgeBase], dict[str, list[str]]]:
        """Those that have files, by place; and what is left out: names of chosen bases that are "absent" or empty, and
        of their files that are still "unread". Those of the conversation, or of a base without any other, are waited
        for."""
        own = f"conversation:{conversation}"
        found: dict[str, KnowledgeBase] = {}
        absent, unread = [], []
        for place in (own, *(place for place in how.bases if place.startswith(("base:", "shared:")))):
            if place == own or not self._library.filled(owner, place):
                self._library.wait(owner, place, going)
            unread += [job.name for job in self._library.jobs(owner, place) if job.state != "error"]
            if base := self._library.filled(owner, place):
                found[place] = base
            elif place != own:
                absent.append(place.partition(":")[2])
        return found, ({"absent": absent} if absent else {}) | ({"unread": unread} if unread else {})

    def _grounded(
        self,
        backend: Backend,
        bases: Mapping[str, KnowledgeBase],
        how: Settings,
        said: Messages,
        pictured: Messages,
        left: Mapping[str, list[str]],
    ) -> Ask | None:
        """The last question, asked about documents. `pictured`: what was said, with the pictures that the model sees:
        what they hold is not searched, so an answer without a source stays as it is, and it is None if the documents
        have nothing. `left`: what is kept with the answer, besides."""
        *before, question = said
        has_pictures = pictured != said
        prepared = grounded.prepare(
            backend, list(bases.values()), question["content"], [*preamble(how.system), *before],
            retriever=self._retriever, sampling=how.sampling,
        )  # fmt: skip
        if has_pictures and prepared.answer is not None and prepared.answer.kind != "answer":
            return None
        places = {base: place for place, base in bases.items()}  # two may have one name

        def conclude(text: str) -> tuple[str, Mapping[str, Any]]:
            answer = grounded.conclude(prepared, text)
            if has_pictures and answer.kind != "answer":
                return text, left
            sources = [cited.as_json() | {"place": places[cited.base]} for cited in answer.citations]
            return answer.text, {"kind": answer.kind, "query": answer.query, "sources": sources} | dict(left)

        return Ask(pictures.beside(prepared.messages, pictured), conclude)

    # --- documents -------------------------------------------------------------------------------------------------

    def bases(self, owner: str) -> list[str]:
        """Places of the named knowledge bases."""
        return self._library.places(owner)

    def make_base(self, owner: str, name: str) -> None:
        self._library.make(owner, name)

    def remove_base(self, owner: str, name: str) -> None:
        self._library.remove(owner, f"base:{name}")

    def files(self, owner: str, place: str) -> dict[str, Any]:
        return self._library.files(owner, place_of(self._store, owner, place))

    def remove_file(self, owner: str, place: str, name: str) -> None:
        self._library.remove_file(owner, place_of(self._store, owner, place), name)

    def add_address(self, owner: str, place: str, url: str) -> str:
        """The id of the job that reads what stands there."""
        return self._library.add_address(owner, place_of(self._store, owner, place), url)

    def cancel_file(self, owner: str, job: str) -> None:
        self._library.cancel(owner, job)

    def source(self, owner: str, conversation: str, message: str, number: int) -> dict[str, Any]:
        """What the citation of an answer opens."""
        saved = _message(self._store.get(owner, conversation), message)
        live = self._answers.get(owner, message)  # one that has ended may not be saved yet
        kept = (live.info if live else saved.info).get("sources") or ()
        source = next((each for each in kept if each["id"] == number), None)
        if source is None:
            raise UserError("there is no such source; open the conversation anew")
        base = None
        with suppress(UserError):  # it is gone, or was another's
            base = self._library.base(owner, str(source.get("place")))
        return passage_view(base, source)

    def _view(self, owner: str, conversation: Conversation) -> dict[str, Any]:
        shown = [self._shown(owner, conversation, message) for message in conversation.branch()]
        told = {"id": conversation.id, "title": conversation.title, "settings": dict(conversation.settings)}
        return told | {"updated": conversation.updated, "messages": shown}

    def _shown(self, owner: str, conversation: Conversation, message: Message) -> dict[str, Any]:
        beside = conversation.beside(message)
        told: dict[str, Any] = {
            "id": message.id,
            "parent": message.parent or "",
            "role": message.role,
            "beside": beside,
        }
        if message.role == "user":
            return told | {"text": message.text, "pictures": message.info.get("pictures") or []}
        live = self._answers.get(owner, message.id)
        return told | (shown_live(live) if live else shown_saved(message))


def _with(text: str, kept: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    return text, kept


def place_of(store: Store, owner: str, place: str) -> str:
    """The same; Missing if it is a conversation that the owner does not have."""
    kind, _, name = place.partition(":")
    if kind == "conversation":
        store.get(owner, name)
    return place


def shown_saved(message: Message) -> dict[str, Any]:
    """An answer as the page takes it."""
    thought, answer = split_thoughts(message.text)
    return _shown(thought, answer, message.state, message.info) | {"thinking": False}


def shown_live(answer: Answer) -> dict[str, Any]:
    """One that is being written, or not yet saved."""
    thoughts = answer.thoughts
    shown = _shown(thoughts.thought.strip(), thoughts.answer, answer.state, answer.info)
    return shown | {"thinking": not thoughts.closed}


@functools.lru_cache(4096)
def _drawn(answer: str, sources: frozenset[int]) -> tuple[str, ...]:
    """A long conversation is shown again with each question."""
    return tuple(blocks(answer, sources))


def _shown(thought: str, answer: str, state: State, info: Mapping[str, Any]) -> dict[str, Any]:
    sources = info.get("sources") or ()
    cited = frozenset(source["id"] for source in sources)
    kept = state != "answering" and len(answer) <= _KEPT
    drawn = list(_drawn(answer, cited)) if kept else blocks(answer, cited)
    named = [{name: source[name] for name in ("id", "file", "pages")} for source in sources]
    told = dict(info) | {"sources": named}
    return {"text": answer.strip(), "blocks": drawn, "thought": thought, "state": state, "info": told}


def _message(conversation: Conversation, message: str) -> Message:
    found = next((m for m in conversation.messages if m.id == message), None)
    if found is None:
        raise Missing
    return found
