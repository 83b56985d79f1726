"""vLLM's engine as a backend, against a stand-in with the same surface."""

import asyncio
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mengya.errors import UserError
from mengya.infer.backends.opening import open_backend, parse_options
from mengya.infer.backends.vllm import Vllm
from mengya.infer.request import Piece, Request, Sampling, TooLong

from .pieces import HELLO, PATIENCE, answer, answers, finished


@dataclasses.dataclass
class EngineArgs:
    model: str
    trust_remote_code: bool = False
    tensor_parallel_size: int = 1


class Engine:
    """Gives each choice its script of (token ids, finish reason)."""

    def __init__(self, arguments: EngineArgs):
        self.arguments = arguments
        self.model_config = SimpleNamespace(max_model_len=64)
        self.script: list[list[tuple[list[int], str | None]]] = []
        self.asked: list[tuple[Any, dict, str]] = []
        self.loop = asyncio.get_running_loop()
        self.closed: list[str] = []

    @classmethod
    def from_engine_args(cls, arguments: EngineArgs) -> "Engine":
        if arguments.tensor_parallel_size > 1:
            raise ValueError("World size (2) is larger than the number of available GPUs (1)")
        return cls(arguments)

    async def generate(self, prompt: Any, parameters: SimpleNamespace, request_id: str):
        assert asyncio.get_running_loop() is self.loop
        self.asked.append((prompt, vars(parameters), request_id))
        table = {token: SimpleNamespace(logprob=-float(token)) for token in range(40)}
        try:
            for round in range(max(map(len, self.script))):
                outputs = []
                for index, steps in enumerate(self.script):
                    if round < len(steps):
                        ids, reason = steps[round]
                        shown = [table for _ in ids] if parameters.logprobs is not None else None
                        outputs.append(
                            SimpleNamespace(index=index, token_ids=ids, logprobs=shown, finish_reason=reason, text="")
                        )
                scores = [None] + [table] * (len(prompt["prompt_token_ids"]) - 1) if round == 0 else None
                yield SimpleNamespace(outputs=outputs, num_cached_tokens=3, prompt_logprobs=scores)
                await asyncio.sleep(0)
            if not any(reason for steps in self.script for _, reason in steps):
                await asyncio.sleep(PATIENCE)
        finally:
            self.closed.append(request_id)

    def shutdown(self) -> None:
        self.closed.append("engine")


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    def module(name: str, **content: Any) -> None:
        made = ModuleType(name)
        vars(made).update(content)
        monkeypatch.setitem(sys.modules, name, made)

    module("vllm", AsyncEngineArgs=EngineArgs, SamplingParams=SimpleNamespace)
    module("vllm.sampling_params", RequestOutputKind=SimpleNamespace(DELTA="delta"))
    module("vllm.v1")
    module("vllm.v1.engine")
    module("vllm.v1.engine.async_llm", AsyncLLM=Engine)


@pytest.fixture
def backend(everything: Path) -> Iterator[Vllm]:
    backend = open_backend(str(everything), backend="vllm")
    assert isinstance(backend, Vllm)
    yield backend
    backend.close()


def engine(backend: Vllm) -> Any:
    return backend._engine


def end(backend: Vllm) -> int:
    return min(backend._ends)


def test_an_answer(backend: Vllm):
    ids = backend.encode("你好，我叫萌芽。")
    engine(backend).script = [[(ids[:2], None), (ids[2:], None), ([end(backend)], "stop")]]
    said = answer(backend, sampling=Sampling(seed=3, top_k=5, max_new_tokens=30), stop_ids=[9])
    assert (said.text, said.tokens) == ("你好，我叫萌芽。", ids)
    assert said.last.finish == "stop" and said.last.usage == (len(backend.encode(HELLO)), len(ids) + 1, 3)
    prompt, asked, _ = engine(backend).asked[0]
    assert prompt == {"prompt_token_ids": backend.encode(HELLO)}
    wanted = {"seed": 3, "top_k": 5, "max_tokens": 30, "n": 1, "stop": None, "output_kind": "delta"}
    assert wanted.items() <= asked.items()
    assert asked["stop_token_ids"] == sorted({9, *backend._ends})
    assert backend.context == 64 and engine(backend).arguments.model.endswith(backend.name)


def test_choices_stop_texts_and_log_probabilities(backend: Vllm):
    first, second = backend.encode("你好。熊猫"), backend.encode("春天")
    engine(backend).script = [[(first, "stop")], [(second, None), ([], "length")]]
    request = Request(prompt="从前", n=2, stop=["。"])
    one, two = answers(backend, request)
    assert (one.text, one.last.finish, two.text, two.last.finish) == ("你好", "stop", "春天", "length")
    engine(backend).script = [[([7, 8], "length")]]
    pieces: SimpleQueue[Piece] = SimpleQueue()
    backend.submit(Request(prompt=[5, 6, 7], logprobs=2, prompt_logprobs=True), pieces.put)
    found = [pieces.get(timeout=PATIENCE)]
    assert [each.token for each in found[0].logprobs] == [7, 8]
    assert [(other.token, other.logprob) for other in found[0].logprobs[0].top] == [(0, 0.0), (1, -1.0)]
    assert [(each.token, each.logprob) for each in found[0].prompt_logprobs] == [(5, None), (6, -6.0), (7, -7.0)]
    assert found[0].finish == "length"


def test_cancelling_and_closing_end_the_request_in_vllm(backend: Vllm):
    engine(backend).script = [[(backend.encode("你好"), None)]]
    pieces: SimpleQueue[Piece] = SimpleQueue()
    ticket = backend.submit(Request(prompt=HELLO), pieces.put)
    assert ticket.prompt_tokens == len(backend.encode(HELLO))
    assert pieces.get(timeout=PATIENCE).text == "你好"
    ticket.cancel()
    last = finished(pieces)[0].last
    assert last.finish == "cancelled" and last.usage == (ticket.prompt_tokens, len(backend.encode("你好")), 0)
    backend.submit(Request(prompt=HELLO), pieces.put)
    assert pieces.get(timeout=PATIENCE).text == "你好" and backend.load().running == 1
    closed = engine(backend).closed
    backend.close()
    assert finished(pieces)[0].last.finish == "cancelled"
    assert closed == ["mengya-0", "mengya-1", "engine"]


def test_what_vllm_raises_ends_the_answer(backend: Vllm):
    async def fails(*_: Any):
        raise RuntimeError("EngineCore encountered an issue")
        yield

    engine(backend).generate = fails
    said = answer(backend)
    assert (said.last.finish, said.last.error) == (
        "error",
        "vLLM failed: RuntimeError: EngineCore encountered an issue",
    )


def test_what_it_cannot_do_is_told(backend: Vllm, everything: Path):
    with pytest.raises(TooLong):
        answer(backend, prompt=[5] * 64)
    with pytest.raises(UserError, match="grammars"):
        answer(backend, grammar=lambda: None)
    with pytest.raises(UserError, match="embeddings"):
        backend.embed([[1]])
    with pytest.raises(UserError, match=r"World size \(2\)"):
        open_backend(str(everything), backend="vllm", vllm_options={"tensor_parallel_size": 2})
    with pytest.raises(UserError, match=r"tensor_paralel.*correct --options"):
        open_backend(str(everything), backend="vllm", vllm_options={"tensor_paralel": 2})
    with pytest.raises(UserError, match="not a directory"):
        open_backend("nowhere", backend="vllm")


def test_without_vllm(monkeypatch: pytest.MonkeyPatch, everything: Path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="pip install vllm"):
        open_backend(str(everything), backend="vllm")


def test_options_of_the_command_line():
    written = ["tensor_parallel_size=2", "dtype=float16", "enforce_eager=true", 'compilation_config={"level": 0}']
    assert parse_options(written) == {
        "tensor_parallel_size": 2, "dtype": "float16", "enforce_eager": True, "compilation_config": {"level": 0}
    }  # fmt: skip
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_options(["enforce_eager"])
