"""What people ask with: OpenAI's clients for Python and Node, and LangChain's."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mengya.serve.api.keys import Keys

from .scripted import Say
from .test_gate import digest

CALL = '<tool_call>\n{"name": "weather", "arguments": {"城市": "北京"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
USER = [{"role": "user", "content": "你好"}]


def talk(request, choice):
    """Calls a tool if there is one and it was not called yet."""
    if not isinstance(request.prompt, tuple) or not request.prompt.tools:
        return ["你", "好", f"{choice}"]
    return [CALL[:20], CALL[20:]] if len(request.prompt.messages) == 1 else ["晴"]


@pytest.fixture
def live(serving):
    return serving(talk, keys=Keys({digest("sk-a"): "a"}))


@pytest.fixture
def client(live):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-a", max_retries=0) as client:
        yield client


def test_openai_answers(client):
    assert [model.id for model in client.models.list()] == ["sprout"]
    assert client.models.retrieve("sprout").created > 0
    answer = client.chat.completions.create(model="sprout", messages=USER, n=2, logprobs=True, top_logprobs=1)
    assert [choice.message.content for choice in answer.choices] == ["你好0", "你好1"]
    assert answer.choices[0].logprobs.content[0].token == "你" and answer.usage.total_tokens == 8
    stream = client.chat.completions.create(
        model="sprout", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "你好0"
    assert chunks[-1].usage.completion_tokens == 3
    texts = client.completions.create(model="sprout", prompt=["a", "b"], echo=True, logprobs=1)
    assert [choice.text for choice in texts.choices] == ["a你好0", "b你好0"]
    assert texts.choices[0].logprobs.tokens == ["a", "你", "好", "0"]


def test_openai_tools(client):
    answer = client.chat.completions.create(model="sprout", messages=USER, tools=TOOLS)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls" and message.content is None
    assert json.loads(message.tool_calls[0].function.arguments) == {"城市": "北京"}
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "晴"}
    again = client.chat.completions.create(model="sprout", messages=[*USER, message.model_dump(), result], tools=TOOLS)
    assert again.choices[0].message.content == "晴"
    with client.chat.completions.stream(model="sprout", messages=USER, tools=TOOLS) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.tool_calls[0].function.name == "weather"
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"城市": "北京"}


def test_openai_embeddings_with_and_without_numbers_in_text(client):
    by_default = client.embeddings.create(model="sprout", input=["a", "春天"])  # asks for base64
    as_numbers = client.embeddings.create(model="sprout", input=["a", "春天"], encoding_format="float")
    for one, other in zip(by_default.data, as_numbers.data, strict=True):
        assert list(one.embedding) == pytest.approx(other.embedding, abs=1e-6)


def test_openai_errors(client, live):
    openai = pytest.importorskip("openai")
    create = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="sprout", messages=USER, temperature=-1)
    assert caught.value.param == "temperature" and "temperature=-1" in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        create(model="sprout", messages=[{"role": "user", "content": "长" * 2000}], stream=True)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        create(model="gpt-4", messages=USER)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-b").models.list()
    with pytest.raises(openai.APIStatusError) as caught:
        create(model="sprout", messages=[{"role": "user", "content": "长" * 9_000_000}])
    assert caught.value.status_code == 413
    live.backend.answer = lambda request, choice: ["春", Say(error="NaN")]
    with pytest.raises(openai.APIError, match="NaN"):
        list(create(model="sprout", messages=USER, stream=True))


def test_langchain(live):
    langchain = pytest.importorskip("langchain_openai")
    options = dict(base_url=f"{live.url}/v1", api_key="sk-a", model="sprout", max_retries=0)
    chat = langchain.ChatOpenAI(**options)
    assert chat.invoke("你好").content == "你好0"
    assert "".join(chunk.content for chunk in chat.stream("你好")) == "你好0"
    with_tools = chat.bind_tools(TOOLS)
    assert with_tools.invoke("你好").tool_calls[0]["args"] == {"城市": "北京"}
    whole = None
    for chunk in with_tools.stream("你好"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls[0]["name"] == "weather" and whole.tool_calls[0]["args"] == {"城市": "北京"}


def test_langchain_embeddings_need_a_switch(live, monkeypatch):
    langchain = pytest.importorskip("langchain_openai")
    options = dict(base_url=f"{live.url}/v1", api_key="sk-a", model="sprout", max_retries=0)
    vectors = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False).embed_documents(["a", "春天"])
    assert len(vectors) == 2 and len(vectors[0]) == 3

    class Encoding:  # tiktoken fetches its vocabulary from the network
        def encode_ordinary(self, text):
            return [1, 2, 3]

        encode = encode_batch = encode_ordinary

    import tiktoken

    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda name: Encoding())
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: Encoding())
    with pytest.raises(Exception, match="check_embedding_ctx_length=False"):
        langchain.OpenAIEmbeddings(**options).embed_documents(["a"])


@pytest.fixture(scope="session")
def node(tmp_path_factory) -> Path:
    """A folder with OpenAI's client for Node."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--prefer-offline", "openai"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not install openai within a minute")
    if done.returncode:
        pytest.skip(f"npm could not install openai: {done.stderr.strip().splitlines()[-1:]}")
    return folder


SCRIPT = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "sk-a", maxRetries: 0 });
const messages = [{ role: "user", content: "你好" }];
const out = {};
out.plain = (await client.chat.completions.create({ model: "sprout", messages })).choices[0].message.content;
out.stream = "";
for await (const chunk of await client.chat.completions.create({ model: "sprout", messages, stream: true }))
  out.stream += chunk.choices[0]?.delta?.content ?? "";
const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }];
const run = client.chat.completions.stream({ model: "sprout", messages, tools });
const called = (await run.finalChatCompletion()).choices[0];
out.call = [called.finish_reason, JSON.parse(called.message.tool_calls[0].function.arguments)];
out.vector = (await client.embeddings.create({ model: "sprout", input: "a" })).data[0].embedding.length;
try { await client.chat.completions.create({ model: "sprout", messages, top_p: 7 }); }
catch (error) { out.error = [error.status, error.param]; }
console.log(JSON.stringify(out));
"""


def test_node(live, node):
    (node / "ask.mjs").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        ["node", "ask.mjs", f"{live.url}/v1"], cwd=node, capture_output=True, text=True, timeout=30, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "plain": "你好0",
        "stream": "你好0",
        "call": ["tool_calls", {"城市": "北京"}],
        "vector": 3,
        "error": [400, "top_p"],
    }
