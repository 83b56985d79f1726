"""`knowledge_base`: answers from documents, with citations, whole and as streams."""

import numpy as np
import pytest

pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")

from mengya.rag.document import Block, Document
from mengya.rag.retrieve import Retriever
from mengya.rag.store import Embedder, KnowledgeFolder

from .scripted import Say, error_of


@pytest.fixture
def folder(tmp_path):
    made = KnowledgeFolder(tmp_path / "knowledge")
    blocks = (Block("heading", "假期", 3, level=1), Block("text", "员工每年有10天年假。", 3))
    made.open_or_create("制度").add(Document("手册.pdf", "pdf", blocks), "1")
    return made


def ask(live, question="年假有几天？", base="制度", before=(), **body):
    return live.chat(messages=[*before, {"role": "user", "content": question}], knowledge_base=base, **body)


def says(*pieces):
    """To a question about passages; it has not learnt to read sentences one by one."""

    def answer(request, choice):
        return ["嗯"] if request.prompt.messages[-1]["content"].startswith("资料：") else list(pieces)

    return answer


def asked(live):
    """The requests that show passages."""
    return [r for r in live.backend.requests if not r.prompt.messages[-1]["content"].startswith("资料：")]


def test_an_answer_with_its_citations(serving, folder):
    live = serving(says("每年有", "10天", "[1][4]。"), knowledge=folder)
    body = ask(live).json()
    (choice,) = body["choices"]
    message = choice["message"]
    assert (message["content"], message["grounding"], choice["finish_reason"]) == ("每年有10天[1]。", "answer", "stop")
    (citation,) = message["citations"]
    assert {k: citation[k] for k in ("id", "file", "pages", "headings", "quote", "knowledge_base")} == {
        "id": 1, "file": "手册.pdf", "pages": [3], "headings": ["假期"], "quote": "员工每年有10天年假。",
        "knowledge_base": "制度",
    }  # fmt: skip
    assert body["usage"]["completion_tokens"] == 3 and message["query"] == "年假有几天？"
    (request,) = asked(live)
    assert "[1] 假期" in request.prompt.messages[-1]["content"]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_system_prompt_is_kept(serving, folder, role):
    live = serving(says("10天[1]"), knowledge=folder)
    said = [
        {"role": role, "content": "要简短。"},
        *[{"role": "user", "content": "假期"}, {"role": "assistant", "content": "?"}] * 5,
    ]
    assert ask(live, before=said).status_code == 200
    messages = live.backend.requests[-1].prompt.messages
    assert [m["content"] for m in messages if m["role"] == "system"] == ["要简短。"] == [messages[0]["content"]]


def test_the_stream_is_the_same(serving, folder):
    live = serving(says("每年有", "10天", "[1]。"), knowledge=folder)
    whole = ask(live).json()["choices"][0]
    messages = [{"role": "user", "content": "年假有几天？"}]
    options = {"include_usage": True}
    *chunks, usage, done = live.events(messages=messages, knowledge_base="制度", stream_options=options)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    joined = {key: value for delta in deltas for key, value in delta.items()}
    assert joined | {"refusal": None} == whole["message"] and done == "[DONE]"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and usage["usage"]["completion_tokens"] == 3


def test_what_the_documents_do_not_say(serving, folder):
    live = serving(says("香蕉是黄色的[1]"), knowledge=folder)
    message = ask(live).json()["choices"][0]["message"]
    assert (message["grounding"], message["content"]) == ("quotation", "原文：“员工每年有10天年假。”[1]")
    message = ask(live, "月球离地球多远？").json()["choices"][0]["message"]
    assert (message["grounding"], message["citations"], message["content"]) == ("refusal", [], "资料中没有提到。")
    assert len(asked(live)) == 1  # nothing was found for the second, so the model was not asked


@pytest.mark.parametrize("base", ["无", "../制度", "/etc/passwd", "制度\u0000"])
def test_a_base_that_is_not_there(serving, folder, base):
    live = serving(knowledge=folder)
    answer = ask(live, base=base)
    error = error_of(answer)
    assert (answer.status_code, error["param"], error["code"]) == (404, "knowledge_base", "knowledge_base_not_found")
    assert folder.names() == ["制度"]


def test_vectors_find_what_words_do_not(serving, folder):
    embedder = Embedder("ones", lambda texts: np.ones((len(texts), 1), "f4"))
    base = folder.open("制度")
    live = serving(says("10天[1]"), knowledge=folder, retriever=Retriever(embedder))
    assert ask(live, "holidays?").json()["choices"][0]["message"]["grounding"] == "refusal"
    base.add(base.document("手册.pdf"), "1", embedder)
    assert ask(live, "holidays?").json()["choices"][0]["message"]["grounding"] == "answer"
    folder.open_or_create("其他").add(base.document("手册.pdf"), "1", Embedder("others", embedder.embed))
    answer = ask(live, base="其他")
    assert answer.status_code == 400 and "has vectors of others, not of ones" in error_of(answer)["message"]


def test_a_server_without_bases(serving):
    answer = ask(serving())
    assert answer.status_code == 404 and "--knowledge" in error_of(answer)["message"]


@pytest.mark.parametrize(("body", "param"), [
    ({"n": 2}, "n"), ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"knowledge_base": ""}, "knowledge_base"), ({"knowledge_base": 5}, "knowledge_base"),
    ({"model": "other"}, "model"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"), ({"temperature": -1}, "temperature"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "messages"),
])  # fmt: skip
def test_what_does_not_go_with_it(serving, folder, body, param):
    live = serving(knowledge=folder)
    answer = live.chat(**{"knowledge_base": "制度", "messages": [{"role": "user", "content": "年假"}]} | body)
    assert answer.status_code == (404 if param == "model" else 400) and error_of(answer)["param"] == param


def test_a_model_that_fails_and_one_that_is_too_small(serving, folder):
    live = serving(says("每年", Say("", error="out of memory")), knowledge=folder)
    assert ask(live).status_code == 500
    live.backend.context = 30
    error = error_of(ask(live))
    assert error["code"] == "context_length_exceeded"
    live.backend.context = 1000
    live.backend.answer = says("10天年假[1]")
    assert ask(live).status_code == 200
