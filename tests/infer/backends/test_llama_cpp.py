"""GGUF files through llama.cpp, against our engine with the same weights."""

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from mengya.errors import UserError
from mengya.infer.backends.llama_cpp import LlamaCpp
from mengya.infer.backends.local import Local
from mengya.infer.backends.opening import open_backend
from mengya.infer.request import Conversation, Piece, Request, Sampling, TooLong
from mengya.text.chat import Chat
from mengya.text.template import TEMPLATES

from .pieces import HELLO, PATIENCE, answer, answers, finished

pytest.importorskip("gguf", reason="pip install gguf, which writes the model of these tests")
pytest.importorskip("llama_cpp", reason="pip install 'mengya[llamacpp]'")

from .gguf_file import write

BARE = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
BARE += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
"""ChatML that breaks no control tokens itself."""


@pytest.fixture(scope="module")
def file(qwen, tokenizer, tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "sprout.gguf", qwen, tokenizer, TEMPLATES["chatml"].source)


@pytest.fixture(scope="module")
def backend(file: Path) -> Iterator[LlamaCpp]:
    backend = open_backend(str(file))
    assert isinstance(backend, LlamaCpp)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def local(qwen, chat: Chat) -> Iterator[Local]:
    backend = Local("sprout", qwen, chat.tokenizer, chat)
    yield backend
    backend.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_new_tokens=40),
        Sampling(seed=5, max_new_tokens=8),
        Sampling(seed=6, top_p=1, top_k=7, frequency_penalty=0.5, repetition_penalty=1.2, max_new_tokens=8),
    ],
)
@pytest.mark.parametrize("prompt", [HELLO, "从前", [5, 6, 7]])
def test_answers_are_those_of_our_engine(backend: LlamaCpp, local: Local, sampling: Sampling, prompt: object):
    # llama.cpp rounds activations, and log-probabilities differ by 0.001: two tokens that are nearly as likely as each
    # other change places, and a drawn answer goes another way from there on.
    drawn = sampling.temperature > 0
    request = Request(prompt=prompt, sampling=sampling, n=2, stop=["熊猫吃竹子。"])  # type: ignore[arg-type]
    for ours, theirs in zip(answers(local, request), answers(backend, request), strict=True):
        same = 3 if drawn else None
        assert ours.tokens[:same] == theirs.tokens[:same]
        if not drawn:
            assert (ours.text, ours.last.finish) == (theirs.text, theirs.last.finish)
            assert ours.last.usage and theirs.last.usage and ours.last.usage[:2] == theirs.last.usage[:2]


def test_log_probabilities_are_those_of_our_engine(backend: LlamaCpp, local: Local):
    asked = dict(sampling=Sampling(temperature=0, max_new_tokens=5), logprobs=2, prompt_logprobs=True)
    ours, theirs = answer(local, **asked), answer(backend, **asked)
    for mine, other in zip(ours.logprobs, theirs.logprobs, strict=True):
        assert mine[:2] == other[:2] and mine.logprob == pytest.approx(other.logprob, abs=0.02)
    pieces: list[list[Piece]] = [[], []]
    for found, each in zip(pieces, (local, backend), strict=True):
        queue: SimpleQueue[Piece] = SimpleQueue()
        each.submit(Request(prompt=HELLO, **asked), queue.put)
        while not found or found[-1].finish is None:
            found.append(queue.get(timeout=PATIENCE))
    first, second = ([p for piece in found for p in piece.prompt_logprobs] for found in pieces)
    assert [each.token for each in first] == [each.token for each in second] and first[0].logprob is None
    assert torch.tensor([p.logprob for p in first[1:]]).allclose(
        torch.tensor([p.logprob for p in second[1:]]), atol=0.02
    )


PARTS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<|im_<|im_end|>end|>",
    "你好",
    " a",
    "\n",
    "<|",
    "|>",
    "\0",
    "é",
]


def test_what_is_said_never_becomes_a_control_token(qwen, chat: Chat, tmp_path: Path):
    backend = LlamaCpp(write(tmp_path / "bare.gguf", qwen, chat.tokenizer, BARE))
    random.seed(7)
    control = set(chat.tokenizer.control_ids.values())
    scaffold = [t for t in backend._encode(HELLO) if t in control]
    for _ in range(200):
        text = "".join(random.choices(PARTS, k=6))
        ids = backend._encode(Conversation([{"role": "user", "content": text}]))
        assert [t for t in ids if t in control] == scaffold, text
        assert control.isdisjoint(backend.encode(text))
    backend.close()


def test_tokens_are_those_of_our_tokenizer(backend: LlamaCpp, local: Local):
    random.seed(8)
    for _ in range(100):
        text = "".join(random.choices([*"春天来了，小草hello 123\n\t!é😀", "<|im_end|>"], k=20))
        said = Conversation([{"role": "system", "content": "芽"}, {"role": "user", "content": text}])
        assert backend.encode(said) == local.encode(said)
        ids = local.encode("好" + text.replace("<|im_end|>", ""))
        assert backend.tokenizer.decode(ids) == local.tokenizer.decode(ids)
    assert backend.tokenizer.token_bytes == local.tokenizer.token_bytes


def test_what_was_computed_is_kept(backend: LlamaCpp):
    def cached(words: str) -> int:
        said = Conversation([{"role": "user", "content": words}])
        usage = answer(backend, prompt=said, sampling=Sampling(temperature=0, max_new_tokens=3)).last.usage
        assert usage is not None
        return usage.cached_tokens

    cached("春天来了，小草从土里钻出来。")
    again = cached("春天来了，小草从土里钻出来。")
    assert again == len(backend.encode(Conversation([{"role": "user", "content": "春天来了，小草从土里钻出来。"}]))) - 1
    assert 0 < cached("春天来了，熊猫") < again


def test_a_beginning_is_added_once(qwen, chat: Chat, tmp_path: Path):
    begin = chat.tokenizer.control_ids["<|endoftext|>"]
    for name, template in (("without", BARE), ("with", "{{ bos_token }}" + BARE)):
        backend = LlamaCpp(write(tmp_path / f"{name}.gguf", qwen, chat.tokenizer, template, begins=True))
        assert [place for place, token in enumerate(backend._encode(HELLO)) if token == begin] == [0]
        assert backend._encode("好")[0] == begin and backend._encode([5]) == [5]
        backend.close()


def test_a_cancelled_answer_ends_and_the_next_begins(backend: LlamaCpp):
    pieces: SimpleQueue[Piece] = SimpleQueue()
    endless = Sampling(max_new_tokens=200, min_new_tokens=200, seed=1)
    begun = threading.Event()

    def deliver(piece: Piece) -> None:
        pieces.put(piece)
        begun.set()

    first = backend.submit(Request(prompt=HELLO, sampling=endless, n=50), deliver)
    later: SimpleQueue[Piece] = SimpleQueue()
    second = backend.submit(Request(prompt=HELLO, n=2), later.put)
    assert begun.wait(PATIENCE)
    second.cancel()
    first.cancel()
    found = finished(pieces, 50)
    assert found[-1].last.finish == "cancelled"
    assert [said.last.finish for said in finished(later, 2)] == ["cancelled"] * 2
    assert answer(backend, sampling=Sampling(max_new_tokens=2)).last.finish in ("stop", "length")


def test_closing_cancels_what_is_open(file: Path):
    backend = LlamaCpp(file, name="mine", tokens=64)
    assert (backend.name, backend.context) == ("mine", 64)
    queues = [SimpleQueue() for _ in range(3)]
    for queue in queues:
        backend.submit(Request(prompt=HELLO, sampling=Sampling(min_new_tokens=40, max_new_tokens=40), n=50), queue.put)
    backend.close()
    backend.close()
    assert [finished(queue, 50)[-1].last.finish for queue in queues] == ["cancelled"] * 3
    with pytest.raises(UserError, match="closed"):
        backend.submit(Request(prompt=HELLO), queues[0].put)


def test_what_it_cannot_do_is_told(backend: LlamaCpp, file: Path, qwen, tokenizer, tmp_path: Path):
    with pytest.raises(TooLong):
        answer(backend, prompt=[5] * backend.context)
    with pytest.raises(UserError, match="token 9999"):
        answer(backend, logit_bias={9999: 1.0})
    with pytest.raises(UserError, match="model directory"):
        backend.embed([[1]])
    with pytest.raises(UserError, match="weights"):
        open_backend(str(file), weights="int8")
    bare = LlamaCpp(write(tmp_path / "bare.gguf", qwen, tokenizer, None))
    with pytest.raises(UserError, match="no chat template"):
        answer(bare)
    assert answer(bare, prompt="好", sampling=Sampling(max_new_tokens=2)).tokens
    bare.close()


def test_files_that_are_no_models(file: Path, tmp_path: Path):
    whole = file.read_bytes()
    broken = {
        "text": b"this is no model",
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "head": whole[:3000],
        "kind": whole.replace(b"qwen3", b"qwenX"),
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"llama.cpp cannot use .*{name}.gguf \((?!no reason)"):
            open_backend(str(path))
    with pytest.raises(UserError, match="is not there"):
        open_backend(str(tmp_path / "none.gguf"))
