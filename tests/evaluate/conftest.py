"""A random causal model and a byte tokenizer: small enough to check every number by hand."""

import pytest
import torch
from torch import Tensor, nn

from mengya.model.language_model import LanguageModel

EOS, IM_START, IM_END = 256, 257, 258
VOCAB_SIZE = 259


class TinyModel(LanguageModel):
    """Logits at t depend on all ids up to t and on their positions, so that a wrong window or padding shows."""

    vocab_size = VOCAB_SIZE
    context = 0

    def __init__(self, context: int = 16, seed: int = 0):
        super().__init__()
        self.context = context
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(VOCAB_SIZE, 12, generator=generator))
        self.places = nn.Parameter(torch.randn(context, 12, generator=generator))
        self.head = nn.Parameter(torch.randn(VOCAB_SIZE, 12, generator=generator))
        self.dropout = nn.Dropout(0.5)  # betrays a model that is scored in training mode

    def hidden(self, *, input_ids: Tensor, position_ids=None, starts=None) -> tuple[Tensor, list]:
        assert input_ids.shape[1] <= self.context, input_ids.shape
        hidden = torch.cumsum(self.embed[input_ids] * self.places[: input_ids.shape[1]], dim=1)
        return self.dropout(torch.tanh(hidden)), []

    @property
    def output_weight(self) -> Tensor:
        return self.head


class ByteTokenizer:
    """One token a byte."""

    vocab_size, eos_id = VOCAB_SIZE, EOS

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class ByteChat:
    """ChatML turns with one-byte role headers."""

    tokenizer = ByteTokenizer()
    stop_ids, end = {EOS, IM_END}, IM_END

    def encode(self, messages: list[dict], add_generation_prompt: bool = False) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        mask: list[int] = []
        for message in messages:
            header = [IM_START, *self.tokenizer.encode(message["role"][:1])]
            body = [*self.tokenizer.encode(message["content"]), IM_END]
            ids += header + body + self.tokenizer.encode("\n")
            mask += [0, 0] + [int(message["role"] == "assistant")] * len(body) + [0]
        if add_generation_prompt:
            ids += [IM_START, *self.tokenizer.encode("a")]
            mask += [0, 0]
        return ids, mask


@pytest.fixture
def make_model() -> type[TinyModel]:
    return TinyModel


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def chat() -> ByteChat:
    return ByteChat()
