"""A backend that asks a server, against a stand-in for one."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from mengya.errors import UserError
from mengya.infer.backends.openai import Remote
from mengya.infer.backends.opening import open_backend
from mengya.infer.dialogue import Dialogue
from mengya.infer.request import Conversation, Piece, Request, Sampling

from .pieces import HELLO, PATIENCE, answer, answers, finished
from .server import Server, call, delta, fails, one_of, says, serving, streams, used

KEY = "sk-only-for-tests-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving() as server:
        yield server


@pytest.fixture
def remote(server: Server) -> Iterator[Remote]:
    backend = Remote(f"{server.address}#own/sprout-7b")
    yield backend
    backend.close()


def test_an_answer_in_pieces(server: Server, remote: Remote):
    server.script = says("你", "好。")
    said = answer(remote)
    assert said.text == "你好。"
    assert said.last.finish == "stop" and said.last.usage == (7, 3, 2)
    path, headers, body = server.asked[-1]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "own/sprout-7b",
        "messages": [{"role": "user", "content": "你好"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 256,
    }
    assert (remote.name, remote.about, remote.context) == ("sprout-7b", server.address, 0)


def test_what_is_asked_for_is_sent(server: Server, remote: Remote):
    sampling = Sampling(
        temperature=0, top_k=5, top_p=1, min_p=0.1, repetition_penalty=1.1, frequency_penalty=0.5,
        presence_penalty=-0.5, max_new_tokens=9, min_new_tokens=2, seed=0,
    )  # fmt: skip
    answer(remote, sampling=sampling, stop=["。"], stop_ids=[4], ignore_eos=True, logit_bias={3: -100.0}, logprobs=2)
    asked = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "min_tokens": 2, "ignore_eos": True, "seed": 0}
    asked |= {"temperature": 0, "top_p": 1, "frequency_penalty": 0.5, "presence_penalty": -0.5, "max_tokens": 9}
    asked |= {"stop": ["。"], "stop_token_ids": [4], "logit_bias": {"3": -100.0}, "logprobs": True, "top_logprobs": 2}
    assert asked.items() <= server.body.items()


@pytest.mark.parametrize(
    ("model", "thinks"), [("qwen-plus", False), ("qwen3.5-plus", False), ("qwen3-32b-thinking", True)]
)
def test_dashscope_is_told_whether_to_think(server: Server, monkeypatch: pytest.MonkeyPatch, model: str, thinks: bool):
    """Its newer models think unless told otherwise; its last chunk has no choices, its first no content."""
    monkeypatch.setattr("mengya.infer.backends.openai._is_dashscope", lambda host: True)
    monkeypatch.setenv("DASHSCOPE_API_KEY", KEY)
    server.script = streams(
        delta(content=None, role="assistant"),
        delta(reasoning_content="想"),
        delta(content="答"),
        delta(content=None, finish="stop"),
        used(),
    )
    remote = Remote(f"{server.address}#{model}")
    said = answer(remote, sampling=Sampling(top_k=5))
    remote.close()
    assert said.text == "<think>\n想\n</think>\n\n答" and said.last.usage == (7, 3, 2)
    assert server.body["enable_thinking"] is thinks and server.body["top_k"] == 5


@pytest.mark.parametrize("prompt", ["从前", [5, 6, 7]])
def test_texts_and_tokens_are_continued(server: Server, remote: Remote, prompt: object):
    table = {"tokens": ["有", "座"], "token_logprobs": [-0.5, None], "top_logprobs": [{"山": -1.0, "有": -0.5}, None]}
    server.script = streams(
        {"choices": [{"index": 0, "text": "有座", "finish_reason": None, "logprobs": table}]},
        {"choices": [{"index": 0, "text": "", "finish_reason": "length"}]},
        used(),
    )
    said = answer(remote, prompt=prompt, logprobs=2)
    assert server.asked[-1][0] == "/v1/completions"
    assert server.body["prompt"] == prompt and server.body["logprobs"] == 2
    assert (said.text, said.last.finish) == ("有座", "length")
    first, second = said.logprobs
    assert (first.bytes, first.logprob) == ("有".encode(), -0.5)
    assert [other.logprob for other in first.top] == [-0.5, -1.0]
    assert second.logprob is None


def test_log_probabilities_of_a_chat(server: Server, remote: Remote):
    entry = {"token": "你", "bytes": [228, 189, 160], "logprob": -0.25, "top_logprobs": []}
    impossible = {"token": "x", "bytes": None, "logprob": -1e30}
    chunk = delta(content="你")
    chunk["choices"][0]["logprobs"] = {"content": [entry | {"top_logprobs": [entry, impossible]}]}
    server.script = streams(chunk, delta(finish="stop"), used())
    (found,) = answer(remote, logprobs=2).logprobs
    assert (found.bytes, found.logprob) == ("你".encode(), -0.25)
    assert [(other.bytes, other.logprob) for other in found.top] == [("你".encode(), -0.25), (b"x", -9999.0)]


def test_choices_share_what_was_used(server: Server, remote: Remote):
    server.script = streams(
        delta(1, content="乙"), delta(0, content="甲"), delta(0, finish="stop"), delta(1, finish="length"), used(7, 5)
    )
    first, second = answers(remote, Request(prompt=HELLO, n=2))
    assert server.body["n"] == 2
    assert (first.text, first.last.finish, first.last.usage) == ("甲", "stop", (7, 3, 2))
    assert (second.text, second.last.finish, second.last.usage) == ("乙", "length", (7, 2, 2))


CALLS = '<tool_call>\n{"name": "天气", "arguments": {"城市": "北京"}}\n</tool_call>\n' + (
    '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
)
WHOLE = [call(id="a", name="天气", arguments='{"城市": "北京"}'), call(id="b", name="time", arguments="{}")]


@pytest.mark.parametrize(
    "parts",
    [
        [call(index=0, id="a", name="天气", arguments=""), call(index=0, arguments='{"城市": '),
         call(index=0, arguments='"北京"}'), call(index=1, id="b", name="time", arguments="")],
        WHOLE,  # without numbers, as of Gemini and Ollama
        [part | {"index": 0} for part in WHOLE],
        [call(index=3, id="a", name="天气", arguments='{"城市"'), call(index=3, id="x", arguments=': "北京"}'),
         call(index=7, id="b", name="time")],  # an id for each part, numbers from anywhere
        [call(index=0, id="a", name="天气", arguments={"城市": "北京"}), call(index=1, id="b", name="time")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("at_once", [False, True])
def test_calls_become_words(server: Server, remote: Remote, parts: list[dict], at_once: bool):
    chunks = [delta(tool_calls=parts)] if at_once else [delta(tool_calls=[part]) for part in parts]
    server.script = streams(*chunks, delta(finish="tool_calls"), used())
    tools = [{"name": "天气", "parameters": {}}]
    said = answer(remote, prompt=Conversation(HELLO.messages, tools))
    assert (said.text, said.last.finish) == (CALLS, "stop")
    assert server.body["tools"] == [{"type": "function", "function": tools[0]}]


def test_a_call_stands_on_a_line_of_its_own_and_may_be_cut_off(server: Server, remote: Remote):
    server.script = streams(
        delta(content="我看看"), delta(tool_calls=[call(index=0, name="f", arguments='{"a": ')]), delta(finish="length")
    )
    assert answer(remote).text == '我看看\n<tool_call>\n{"name": "f", "arguments": "{\\"a\\": "}\n</tool_call>'


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_become_words(server: Server, remote: Remote, field: str):
    server.script = streams(delta(**{field: "想"}), delta(**{field: "想"}), delta(content="好"), delta(finish="stop"))
    assert answer(remote).text == "<think>\n想想\n</think>\n\n好"


def test_a_conversation_with_calls_as_words_is_sent_in_fields(server: Server, remote: Remote):
    said = '<tool_call>\n{"name": "天气", "arguments": {"城市": "北京"}}\n</tool_call>'
    answer(remote, prompt=Conversation([
        {"role": "user", "content": "天气？"},
        {"role": "assistant", "content": said, "supervised": False},
        {"role": "tool", "content": "晴"},
    ]))  # fmt: skip
    _, called, result = server.body["messages"]
    (sent,) = called["tool_calls"]
    assert json.loads(sent["function"]["arguments"]) == {"城市": "北京"}
    assert result == {"role": "tool", "content": "晴", "tool_call_id": sent["id"]}
    assert "supervised" not in called


def test_the_only_model_is_taken(server: Server):
    remote = Remote(server.address + "/?version=1234567", name="mine")
    assert answer(remote).text == "好" and server.body["model"] == "sprout" and remote.name == "mine"
    assert server.asked[-1][0] == "/v1/chat/completions?version=1234567"
    assert "1234567" not in remote.about
    remote.close()


@pytest.mark.parametrize(
    ("models", "words"), [(["a", "b/c"], "2 models.*a, b/c"), ([], "0 models"), (None, "HTTP 404")]
)
def test_an_unclear_model_is_told(server: Server, models: list[str] | None, words: str):
    server.models = models
    with pytest.raises(UserError, match=words):
        Remote(server.address)


@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY[:8]}***. "}}, "OPENAI_API_KEY"),
        (404, {"error": {"message": "The model does not exist"}}, "does not exist.*correct the address"),
        (429, {"error": {"message": "quota exceeded"}}, "quota exceeded.*later"),
        (500, {"error": {"message": f"a bug with {KEY} and geheim-1"}}, r"a bug with \*\*\* and \*\*\*"),
        (400, {"detail": "too long"}, "too long.*change it"),
        (502, b"<html>" + b"Bad Gateway " * 99, "HTTP 502.*…"),
    ],
)
def test_what_a_server_refuses(server: Server, status: int, content: object, words: str):
    server.script = fails(status, content)
    remote = Remote(f"{server.address}?token=geheim-1#sprout")
    said: SimpleQueue[Piece] = SimpleQueue()
    ticket = remote.submit(Request(prompt=HELLO, n=2), said.put)
    with pytest.raises(UserError, match=words) as raised:
        assert ticket.begun is not None and ticket.begun.result(PATIENCE)
    assert KEY[:8] not in str(raised.value) and "geheim-1" not in str(raised.value)
    assert [(each.last.finish, each.last.error) for each in finished(said, 2)] == [("error", str(raised.value))] * 2
    remote.close()


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UserError, match=r"http://127.0.0.1:\d+/v1 cannot be reached .*; start the server"):
        open_backend(f"http://user:password@127.0.0.1:{port}/v1")


def cut(*chunks: object):
    """A stream that promises more than it sends."""

    def script(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Content-Length", "9999")
        handler.end_headers()
        for chunk in chunks:
            handler.send(chunk)

    return script


@pytest.mark.parametrize(
    ("script", "said", "words"),
    [
        (streams(delta(content="半")), "半", "stopped in the middle"),
        (cut(delta(content="半")), "半", "broke"),
        (streams(delta(content="半"), b"{not json"), "半", "no answer of OpenAI's protocol"),
        (streams(delta(content="半"), {"error": {"message": f"out of memory {KEY}"}}), "半", r"out of memory \*\*\*"),
        (streams(), "", "sent no answer"),
        (fails(200, b"<html>a proxy's page</html>"), "", "sent no answer"),
        (streams(delta(content="坏"), delta(finish="content_filter"), used()), "坏", "content_filter"),
    ],
)
def test_what_breaks_in_the_middle_ends_the_answer(server: Server, remote: Remote, script, said: str, words: str):
    server.script = script
    found = answer(remote)
    assert (found.text, found.last.finish) == (said, "error")
    assert re.search(words, found.last.error or ""), found.last.error
    server.script = says("好")
    assert answer(remote).text == "好"


def test_silence_ends_the_answer(server: Server):
    held = threading.Event()

    def script(handler, body):
        handler.begin()
        handler.send(delta(content="慢"))
        held.wait(PATIENCE)

    remote = Remote(f"{server.address}#sprout", silence=1.0)
    server.script = script
    found = answer(remote)
    assert (found.text, found.last.finish) == ("慢", "error") and "said nothing for 1 s" in (found.last.error or "")
    held.set()
    remote.close()


def test_a_missing_usage_is_no_error(server: Server, remote: Remote):
    server.script = cut(delta(content="好"), delta(finish="stop"))
    found = answer(remote)
    assert (found.last.finish, found.last.usage) == ("stop", (0, 0, 0))


@pytest.mark.parametrize(
    "refused",
    [
        fails(422, {"detail": [{"loc": ["body", "stream_options"], "msg": "Extra inputs are not permitted"}]}),
        fails(400, {"error": {"message": "Param Incorrect"}}),
    ],
)
def test_a_server_that_does_not_tell_usage(server: Server, remote: Remote, refused):
    server.script = one_of(refused, says("好"), says("好"))
    assert answer(remote).text == answer(remote).text == "好"
    assert ["stream_options" in body for _, _, body in server.asked] == [True, False, False]


def test_a_refused_request_is_not_sent_again_to_a_server_that_tells_usage(server: Server, remote: Remote):
    server.script = one_of(says("好"), fails(400, {"error": {"message": "too long"}}))
    assert answer(remote).text == "好"
    assert "too long" in (answer(remote).last.error or "")
    assert len(server.asked) == 2


def test_cancelling_closes_the_connection(server: Server, remote: Remote):
    closed, sent = threading.Event(), threading.Event()

    def script(handler, body):
        handler.begin()
        handler.send(delta(content="一"))
        sent.set()
        if handler.connection.recv(1) == b"":  # until the client closes
            closed.set()

    server.script = script
    pieces: SimpleQueue[Piece] = SimpleQueue()
    ticket = remote.submit(Request(prompt=HELLO, n=2), pieces.put)
    assert pieces.get(timeout=PATIENCE).text == "一" and remote.load().running == 1
    ticket.cancel()
    assert [said.last.finish for said in finished(pieces, 2)] == ["cancelled", "cancelled"]
    assert closed.wait(PATIENCE)
    ticket.cancel()
    end = time.monotonic() + PATIENCE
    while remote.load().running and time.monotonic() < end:
        time.sleep(0.01)
    assert remote.load().running == 0


def test_a_server_that_has_not_begun_is_not_waited_for(server: Server, remote: Remote):
    asked, closed = threading.Event(), threading.Event()

    def script(handler, body):
        asked.set()
        if handler.connection.recv(1) == b"":  # until the client closes: not a byte is sent
            closed.set()

    server.script = script
    for end in (lambda ticket: ticket.cancel(), lambda ticket: remote.close()):
        pieces: SimpleQueue[Piece] = SimpleQueue()
        ticket = remote.submit(Request(prompt=HELLO), pieces.put)
        assert asked.wait(PATIENCE) and not ticket.begun.done() and not closed.is_set()
        end(ticket)
        assert closed.wait(PATIENCE) and finished(pieces)[0].last.finish == "cancelled"
        asked.clear(), closed.clear()


def test_closing_cancels_and_frees_the_thread(server: Server):
    remote = Remote(f"{server.address}#sprout")

    def script(handler, body):
        handler.begin()
        handler.send(delta(content="一"))
        handler.connection.recv(1)

    server.script = script
    pieces: SimpleQueue[Piece] = SimpleQueue()
    remote.submit(Request(prompt=HELLO), pieces.put)
    pieces.get(timeout=PATIENCE)
    remote.close()
    remote.close()
    assert pieces.get(timeout=PATIENCE).finish == "cancelled"
    assert not [thread for thread in threading.enumerate() if thread is remote._tasks._thread]
    with pytest.raises(UserError, match="closed"):
        remote.submit(Request(prompt=HELLO), pieces.put)


def test_many_at_once(server: Server, remote: Remote):
    barrier = threading.Barrier(8)

    def script(handler, body):
        barrier.wait(PATIENCE)
        says(body["messages"][0]["content"])(handler, body)

    server.script = script
    queues = [SimpleQueue() for _ in range(8)]

    def ask(number: int) -> None:
        conversation = Conversation([{"role": "user", "content": str(number)}])
        remote.submit(Request(prompt=conversation), queues[number].put)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    assert [finished(queue)[0].text for queue in queues] == [str(number) for number in range(8)]
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("host", "variable"),
    [("dashscope.aliyuncs.com", "DASHSCOPE_API_KEY"), ("dashscope-intl.aliyuncs.com", "DASHSCOPE_API_KEY"),
     ("api.openai.com", "OPENAI_API_KEY"), ("dashscope.aliyuncs.com.example.org", "OPENAI_API_KEY")],
)  # fmt: skip
def test_the_key_is_that_of_the_host(monkeypatch: pytest.MonkeyPatch, host: str, variable: str):
    monkeypatch.setenv("OPENAI_API_KEY", "of-openai")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "of-dashscope")
    remote = Remote(f"https://{host}/v1#qwen-plus")
    assert remote._client.api_key == {"O": "of-openai", "D": "of-dashscope"}[variable[0]]
    remote.close()
    monkeypatch.setenv(variable, "“quoted”")
    with pytest.raises(UserError, match=variable):
        Remote(f"https://{host}/v1#qwen-plus")


def test_openai_itself_has_another_name_for_the_longest_answer():
    from mengya.infer.backends.openai_wire import arguments

    request = Request(prompt=HELLO, sampling=Sampling(max_new_tokens=5))
    assert arguments(request, "gpt", newer=True)["max_completion_tokens"] == 5
    assert "max_tokens" not in arguments(request, "gpt", newer=True)


def test_what_it_cannot_do_is_told(server: Server, remote: Remote):
    refused = [
        lambda: remote.encode("a"),
        lambda: remote.embed([[1]]),
        lambda: answer(remote, grammar=lambda: None),
        lambda: answer(remote, prompt_logprobs=True),
        lambda: open_backend(server.address, weights="int8"),
        lambda: open_backend(server.address, vllm_options={"tensor_parallel_size": 2}),
        lambda: Remote("https:///v1"),
    ]
    for attempt in refused:
        with pytest.raises(UserError):
            attempt()
    assert server.asked == []


def test_a_dialogue_with_a_server(server: Server, remote: Remote):
    session = Dialogue(remote, Sampling(), "你是芽。")
    assert "".join(session.stream("你好")) == "好"
    assert session.tokens_per_second > 0
    assert "".join(session.stream("再来")) == "好"
    assert [message["content"] for message in server.body["messages"]] == ["你是芽。", "你好", "好", "再来"]
