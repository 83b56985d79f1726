"""Bits per byte against an independent computation, and windows that score each token once."""

import math

import pytest
import torch

from mengya.errors import UserError
from mengya.evaluate.bits import bits_per_byte, windows
from mengya.evaluate.scoring import log_probs
from mengya.model.native.config import ModelConfig
from mengya.model.native.transformer import CausalLM
from mengya.text.tokenizer import train_tokenizer

SHORT = ["春天来了", "a", "", "spring"]


def bits_by_hand(model, ids: list[int], starts: dict[int, int]) -> float:
    """-log2 of the product of p(ids[i] | ids[starts[i]:i]), one token at a time in float64."""
    bits = 0.0
    with torch.no_grad():
        for i, start in starts.items():
            logits = model(torch.tensor([ids[start:i]]))[0, -1].double()
            bits -= torch.log_softmax(logits, dim=0)[ids[i]].item() / math.log(2)
    return bits


def test_short_documents_against_one_token_at_a_time(make_model, tokenizer) -> None:
    model = make_model(context=16).eval()
    expected = 0.0
    for text in SHORT:
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        expected += bits_by_hand(model, ids, dict.fromkeys(range(1, len(ids)), 0))
    result = bits_per_byte(model, tokenizer, SHORT)
    assert result.bytes == 19
    assert result.bits == pytest.approx(expected, rel=1e-6)
    assert result.value == result.bits / 19


@pytest.mark.parametrize(("stride", "step"), [(None, 6), (4, 4), (1, 1)])
def test_long_document_against_one_token_at_a_time(make_model, tokenizer, stride: int | None, step: int) -> None:
    model = make_model(context=8).eval()
    ids = [tokenizer.eos_id, *tokenizer.encode("a long document, much longer than the context")]
    starts = {i: start for start, first, last in windows(len(ids), 8, step) for i in range(first, last)}
    result = bits_per_byte(model, tokenizer, [bytes(ids[1:]).decode()], stride=stride)
    assert result.bits == pytest.approx(bits_by_hand(model, ids, starts), rel=1e-6)


def test_many_documents_stream_like_few(make_model, tokenizer) -> None:
    model = make_model()
    documents = [f"document {i}" for i in range(70)]
    whole = bits_per_byte(model, tokenizer, iter(documents))
    parts = [bits_per_byte(model, tokenizer, [text]).bits for text in documents]
    assert whole.bits == pytest.approx(sum(parts), rel=1e-6)
    assert whole.bytes == sum(map(len, documents))


def test_uniform_model_needs_log2_of_the_vocabulary(make_model, tokenizer) -> None:
    model = make_model()
    torch.nn.init.zeros_(model.head)
    assert bits_per_byte(model, tokenizer, SHORT).value == pytest.approx(math.log2(259))


@pytest.mark.parametrize(("context", "stride"), [(1, 1), (4, 1), (4, 2), (4, 4), (16, 8), (5, 3)])
def test_windows_score_every_token_once_within_the_context(context: int, stride: int) -> None:
    for length in range(60):
        cuts = windows(length, context, stride)
        scored = [i for _, first, last in cuts for i in range(first, last)]
        assert scored == list(range(1, length))
        for n, (start, first, last) in enumerate(cuts):
            assert last - 1 - start <= context
            assert 0 <= start < first
            assert n == 0 or first - start > context - stride  # ids that the first scored token sees


def test_windows_of_real_rows_cover_the_text_once(make_model, tokenizer, monkeypatch) -> None:
    seen: list[int] = []

    def spy(model, rows, **options):
        seen.extend(i for row in rows for i in row.ids[row.first : row.last])
        return log_probs(model, rows, **options)

    monkeypatch.setattr("mengya.evaluate.bits.log_probs", spy)
    text = "every byte exactly once, and in order"
    bits_per_byte(make_model(context=8), tokenizer, [text])
    assert bytes(seen).decode() == text


def test_the_real_model_and_tokenizer() -> None:
    """Batches of padded rows against one document at a time; control tokens spelled in a text are text."""
    tokenizer = train_tokenizer(["春天来了 spring has come"] * 5, vocab_size=270, max_token_length=16)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = ModelConfig(**shape, intermediate_size=64, max_position_embeddings=64, vocab_size=270)
    torch.manual_seed(0)
    model = CausalLM(config).eval()
    documents = ["春天来了", "a <|endoftext|> b", "spring\x00has come, é 🌱"]
    bits = 0.0
    for text in documents:
        ids = [tokenizer.eos_id, *tokenizer.encode(text)]
        assert tokenizer.eos_id not in ids[1:]
        assert tokenizer.decode(ids[1:]) == text
        with torch.no_grad():
            logs = torch.log_softmax(model(torch.tensor([ids[:-1]]))[0].double(), dim=1)
        bits -= sum(logs[i, token].item() for i, token in enumerate(ids[1:])) / math.log(2)
    result = bits_per_byte(model, tokenizer, documents)
    assert result.bits == pytest.approx(bits, rel=1e-5)
    assert result.bytes == sum(len(text.encode()) for text in documents)


def test_documents_are_read_no_further_than_is_scored_at_once(make_model, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr("mengya.evaluate.bits.DOCUMENTS_AT_ONCE", 2)
    read: list[str] = []

    def documents():
        for text in ("abc", "", "def", "ghi"):
            read.append(text)
            yield text

    def spy(model, rows, **options):
        assert len(read) in (3, 4), "two documents that are not empty, then the last one"
        return log_probs(model, rows, **options)

    monkeypatch.setattr("mengya.evaluate.bits.log_probs", spy)
    assert bits_per_byte(make_model(), tokenizer, documents()).bytes == 9


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_no_text_is_the_users_fault(make_model, tokenizer, documents: list[str]) -> None:
    with pytest.raises(UserError, match="hold out some documents"):
        bits_per_byte(make_model(), tokenizer, documents)
