"""A random causal model and a byte tokenizer: small enough to check every number by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

EOS, IM_START, IM_END = 256, 257, 258
VOCAB_SIZE = 259


class TinyModel(nn.Module):
    """Logits at t depend on all ids up to t and on their positions, so that a wrong window or padding shows."""

    def __init__(self, context: int = 16, vocab_size: int = VOCAB_SIZE, seed: int = 0):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=vocab_size, max_position_embeddings=context)
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Parameter(torch.randn(vocab_size, 12, generator=generator))
        self.places = nn.Parameter(torch.randn(context, 12, generator=generator))
        self.head = nn.Parameter(torch.randn(12, vocab_size, generator=generator))
        self.dropout = nn.Dropout(0.5)  # betrays a model that is scored in training mode

    def forward(self, input_ids: Tensor) -> Tensor:
        assert input_ids.shape[1] <= self.config.max_position_embeddings, input_ids.shape
        hidden = torch.cumsum(self.embed[input_ids] * self.places[: input_ids.shape[1]], dim=1)
        return self.dropout(torch.tanh(hidden)) @ self.head


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
