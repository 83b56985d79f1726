"""The command line as a user meets it, and recipes and models small enough for a second."""

import gc
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: in models of this size threads only wait for each other
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else the compiler starts processes that import torch

import pytest
import torch

from mengya import runtime
from mengya.data.documents import Document
from mengya.data.rendering import write_documents
from mengya.export.gate import python_of
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer, train_tokenizer

_MODULES = tempfile.TemporaryDirectory()
os.environ["HF_MODULES_CACHE"] = _MODULES.name  # where transformers puts code that comes with a model

LONGEST = {f"test_{name}.py" for name in ("ranks", "resume", "engines", "bad_input", "bench", "objectives")}
"""Files that take long by few tests: they begin, so that no process works alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # else every collection goes through five thousand tests and all that they import


@pytest.fixture(scope="session", autouse=True)
def peak() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "peak_flops", lambda dtype, device: 1e11)  # its measurement takes a second
        yield


MODEL = """
[pretrain.model]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 64
max_position_embeddings = 128
"""

TINY = """
[corpus]
path = "text.jsonl"
heldout = 0.1

[tokenizer]
vocab_size = 300

[tokenize]

[pretrain]
seq_len = 32
batch_tokens = 128
steps = 6
heldout_every = 3
heldout_rows = 4
checkpoint_every = 2
compile = false
dtype = "float32"
"""
TINY += MODEL

TUNING = """
[sft]
path = "conversations.jsonl"
seq_len = 64
batch_tokens = 256
steps = 2
heldout = 0.2
compile = false
dtype = "float32"

[dpo]
path = "preferences.jsonl"
seq_len = 128
batch_tokens = 512
steps = 2
heldout = 0.2
compile = false
dtype = "float32"

[evaluate]
models = ["@pretrain", "@sft", "@dpo"]
questions = "questions.jsonl"
heldout_bytes = 1000
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--engines", action="append", default=[], help="a Python that has llama_cpp or vllm")
    parser.addoption("--fuzz-inputs", default=150, type=int, help="files for each test of tests/data/test_fuzz.py")
    parser.addoption("--api-requests", default=120, type=int, help="requests of tests/serve/api/test_schema.py")
    parser.addoption("--screenshots", type=Path, help="where tests/serve/web/test_browser*.py put their pictures")
    parser.addoption("--fuzz-seed", default=0, type=int, help="the seed of tests/data/test_fuzz.py")


WORDS = ["山", "水", "天", "地", "春", "夏", "秋", "冬", "the", "cat", "sat", "on", "a", "mat", "ran", "home"]


@dataclass
class Result:
    code: int
    out: str
    err: str
    memory: int
    """Peak, in bytes."""


class Command:
    """A process that executes `setup` in `cwd`, and then a `mengya` command if there is one."""

    def __init__(
        self,
        server: subprocess.Popen,
        argv: Sequence[object] | None,
        cwd: Path,
        streams: Path,
        setup: str = "",
        environment: dict[str, str] | None = None,
    ):
        self._server, self._streams = server, streams
        self._result: Result | None = None
        words = None if argv is None else [str(word) for word in argv]
        job = {"argv": words, "cwd": str(cwd), "out": str(streams), "setup": setup}
        self.pid = self._ask(job | {"environment": environment or {}})

    def _ask(self, question: object):
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def poll(self) -> int | None:
        """As that of subprocess.Popen."""
        return None if self._result is None and self._ask([self.pid]) else self.wait().code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> Result:
        if self._result is None:
            code, memory = self._ask(self.pid)
            out, err = (Path(f"{self._streams}.{name}").read_text(encoding="utf-8") for name in ("stdout", "stderr"))
            self._result = Result(code, out, err, memory)
        return self._result


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen]:
    script = Path(__file__).parent / "fork_server.py"
    environment = os.environ | {"PYTHONUTF8": "1"}
    with subprocess.Popen(
        [sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def start(server, tmp_path, tmp_path_factory):
    """start(*argv, cwd=tmp_path, setup="") -> Command; `setup` is Python that the process runs before the command."""
    streams = tmp_path_factory.mktemp("streams")
    numbers = itertools.count()

    def start(*argv: object, cwd: Path = tmp_path, setup: str = "") -> Command:
        return Command(server, argv, cwd, streams / str(next(numbers)), setup)

    return start


@pytest.fixture
def mengya(start):
    """mengya(*argv, cwd=tmp_path, setup="") -> Result of a finished command."""
    return lambda *argv, **options: start(*argv, **options).wait()


def in_each_step(statement: str) -> str:
    """A `setup` with which training executes `statement` in each step; `self.seen` counts the steps before it."""
    return f"""
import os, signal, time, mengya.train.loop as loop
verdict = loop.Guard.verdict
def changed(self, *arguments):
    {statement}
    return verdict(self, *arguments)
loop.Guard.verdict = changed
"""


def interrupt_after(step: int, times: int = 1) -> str:
    """A `setup` that sends Ctrl-C while the step after `step` is taken."""
    return in_each_step(f"if self.seen == {step}: " + "os.kill(os.getpid(), signal.SIGINT); " * times)


def corpus_does(statement: str) -> str:
    """A `setup` with which the corpus stage executes `statement`; `real(*arguments)` is what it does otherwise."""
    return f"""
import dataclasses, time, mengya.stages.corpus as module
real = module.run
def changed(*arguments):
    {statement}
module.STAGE = dataclasses.replace(module.STAGE, run=changed)
"""


class Ranks:
    """The processes of one run, each with torchrun's variables."""

    def __init__(self, server: subprocess.Popen, argv: tuple | None, setup: str, cwd: Path, streams: Path, count: int):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        self.processes = []
        for rank in map(str, range(count)):
            own = common | {"RANK": rank, "LOCAL_RANK": rank}
            self.processes.append(Command(server, argv, cwd, streams / rank, setup, own))

    def wait(self, seconds: float = 240) -> list[tuple[int, str]]:
        """[(exit code, what it printed)] of each rank."""
        end = time.monotonic() + seconds
        while any(process.poll() is None for process in self.processes) and time.monotonic() < end:
            time.sleep(0.02)
        for process in self.processes:
            process.kill()
        return [(ended.code, ended.out + ended.err) for ended in (process.wait() for process in self.processes)]


@pytest.fixture(scope="session")
def launch_ranks(server, tmp_path_factory):
    """launch_ranks(*argv of `mengya`, cwd, setup="", count=2) -> Ranks; without argv, `setup` is all that they do."""

    def launch(*argv: object, cwd: Path, setup: str = "", count: int = 2) -> Ranks:
        return Ranks(server, argv or None, setup, cwd, tmp_path_factory.mktemp("streams"), count)

    return launch


def script(path: Path, *arguments: object) -> str:
    """A `setup` that is a script, with its arguments."""
    argv = [str(word) for word in (path, *arguments)]
    return f"import runpy, sys; sys.argv = {argv!r}; runpy.run_path(sys.argv[0], run_name='__main__')"


def write_jsonl(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_inputs(folder: Path) -> None:
    choice = random.Random(0).choice
    write_jsonl(folder / "text.jsonl", [{"text": " ".join(choice(WORDS) for _ in range(30))} for _ in range(200)])
    turns = [f"{choice(WORDS)} {number}?" for number in range(30)]
    write_jsonl(folder / "conversations.jsonl", [{"prompt": turn, "response": choice(WORDS)} for turn in turns])
    pairs = [{"prompt": turn, "chosen": "home", "rejected": "the mat"} for turn in turns]
    write_jsonl(folder / "preferences.jsonl", pairs)
    question = {"kind": "fact", "id": "f", "prompt": "cat?", "answer": "mat", "accept": ["mat"]}
    write_jsonl(folder / "questions.jsonl", [question])
    (folder / "tiny.toml").write_text(TINY, encoding="utf-8")
    (folder / "whole.toml").write_text(TINY + TUNING, encoding="utf-8")


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with inputs, tiny.toml (corpus to pretrain) and whole.toml (all stages)."""
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _grown(server, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    write_inputs(folder)
    argv = ["run", "whole.toml", "--out", "run"]
    result = Command(server, argv, folder, tmp_path_factory.mktemp("streams") / "grown").wait()
    assert result.code == 0, result.err
    return folder


@pytest.fixture
def grown(_grown, tmp_path) -> Path:
    """`project` after `mengya run whole.toml --out run`: a copy that a test may spoil."""
    return shutil.copytree(_grown, tmp_path, dirs_exist_ok=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MB, at run/ of a project."""
    disk = tmp_path / "run"
    disk.mkdir()
    mounted = sys.platform == "linux" and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def llama_python(request) -> str:
    """A Python that has llama_cpp; without one, the test is skipped."""
    found = python_of("llama_cpp", request.config.getoption("--engines"))
    if found is None:
        pytest.skip("llama_cpp is not installed: make test-engines, or pytest --engines PYTHON_THAT_HAS_IT")
    return found


@pytest.fixture(scope="session")
def chat() -> Chat:
    text = [
        "春天来了，小草从土里钻出来。",
        "你好，我叫萌芽。",
        "12 加 30 等于 42。",
        "Hello, little sprout!\n",
        "熊猫吃竹子。",
    ]
    return Chat(train_tokenizer(text * 3, vocab_size=300, max_token_length=12), "chatml")


@pytest.fixture(scope="session")
def tokenizer(chat) -> Tokenizer:
    return chat.tokenizer


@pytest.fixture(scope="session")
def everything(tiny_model, tokenizer, tmp_path_factory) -> Path:
    """A directory without a manifest that is a corpus, a tokenizer, shards and a model at once."""
    directory = tmp_path_factory.mktemp("everything")
    tiny_model(max_position_embeddings=1024).save(directory)
    tokenizer.save(directory)
    for split in ("train", "heldout"):
        write_documents([Document("春天来了", "a.txt", "1")], tokenizer, directory / split)
        write_jsonl(directory / f"{split}.jsonl", [{"text": "春天来了"}])
    return directory


@pytest.fixture(scope="session")
def tiny_model(tokenizer) -> Callable[..., CausalLM]:
    """tiny_model(**changes of the shape) -> random weights for `tokenizer`, in evaluation mode."""

    def make(**changes) -> CausalLM:
        shape = {
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 256,
            "initializer_range": 0.4,  # far from uniform, so that rounding cannot change the likeliest token
        }
        model = CausalLM(ModelConfig(**(shape | changes)))
        model.initialize(torch.Generator().manual_seed(1))
        return model.eval()

    return make
