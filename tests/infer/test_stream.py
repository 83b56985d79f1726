"""The text of an answer as it comes: whole characters, stop texts at any cut, tokens beside their text."""

import json
import random
import time

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from mengya.infer.sampling import Scored
from mengya.infer.stream import Answer, TextStream
from mengya.text.tokenizer import Tokenizer

from ..text.published import PUBLISHED


def byte_tokens(tokenizer: Tokenizer, data: bytes) -> list[int]:
    single = {spelled: token for token, spelled in enumerate(tokenizer.token_bytes) if len(spelled) == 1}
    return [single[bytes([byte])] for byte in data]


def cut(tokenizer: Tokenizer, text: str, noise: random.Random) -> list[int]:
    """Tokens of a text, cut anywhere, inside of characters, too."""
    tokens = {spelled: token for token, spelled in enumerate(tokenizer.token_bytes) if token > 2}
    data, ids = text.encode(), []
    while data:
        fits = [length for length in range(1, 13) if data[:length] in tokens]
        length = noise.choice(fits)
        ids.append(tokens[data[:length]])
        data = data[length:]
    return ids


def test_text_stream_holds_back_unfinished_characters(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(t) for t in byte_tokens(tokenizer, "好a😀".encode())] == ["", "", "好", "a", "", "", "", "😀"]
    assert stream.flush() == ""
    stream = TextStream(tokenizer)
    broken = b"\xff\xe5\xa5A\xe5\xa5\xe5\xa5\xbd\xf0\x9f"
    pieces = [stream.push(t) for t in byte_tokens(tokenizer, broken)] + [stream.flush()]
    assert "".join(pieces) == broken.decode("utf-8", "replace") == tokenizer.decode(byte_tokens(tokenizer, broken))
    assert "好" in pieces[8] and pieces[0] == "\ufffd"


def test_text_stream_joins_to_decode(tokenizer: Tokenizer) -> None:
    source = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(0, tokenizer.vocab_size, (40,), generator=source).tolist()
        stream = TextStream(tokenizer)
        assert "".join([stream.push(i) for i in ids] + [stream.flush()]) == tokenizer.decode(ids)


def sentencepiece(texts: list[str], decoder: decoders.Decoder) -> Tokenizer:
    """As Llama's: words begin with "▁", and what is not in the vocabulary is spelled in bytes."""
    backend = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoder
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special, *(f"<0x{i:02X}>" for i in range(256))])
    backend.train_from_iterator(texts, trainer)
    # The bytes are to be decoded, so they are no special tokens.
    content = json.loads(backend.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in special
    content["added_tokens"] = [token for token in content["added_tokens"] if token["special"]]
    return Tokenizer({"tokenizer.json": json.dumps(content).encode()})


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


@pytest.mark.parametrize("decoder", [decoders.Metaspace(), LLAMA], ids=["metaspace", "llama"])
def test_a_sentencepiece_stream_keeps_its_spaces(decoder: decoders.Decoder) -> None:
    tokenizer = sentencepiece(["hello world how are you", "从前 有座山"] * 5, decoder)
    end = tokenizer.control_ids["</s>"]
    texts = ["hello world", "how are  you hello", "hello 从前 you", "有座山 world"]
    if decoder is LLAMA:
        texts += ["hello 😀 world 龘", "龘😀"]
    for text in texts:
        ids = tokenizer.encode(text)
        for tokens in (ids, [end, *ids], [token for i in ids for token in (i, end)]):
            stream = TextStream(tokenizer)
            pieces = [stream.push(token) for token in tokens] + [stream.flush()]
            assert "".join(pieces) == tokenizer.decode(tokens), (text, pieces)
        assert "".join(pieces) == text


def test_any_tokens_of_a_sentencepiece_tokenizer_join_to_their_text() -> None:
    tokenizer = sentencepiece(["hello world how are you", "从前 有座山"] * 5, LLAMA)
    noise = random.Random(0)
    characters = [tokenizer.encode(text)[1:] for text in "😀龘é"]
    words = [[token] for token in range(259, tokenizer.vocab_size)] + [[0], [1]]
    for _ in range(200):
        ids = [token for _ in range(30) for token in noise.choice(characters if noise.random() < 0.3 else words)]
        stream = TextStream(tokenizer)
        joined = "".join([stream.push(i) for i in ids] + [stream.flush()])
        assert joined == tokenizer.decode(ids), ids


# --- stop texts -------------------------------------------------------------------------------------------------------


def leftmost(text: str, stops: list[str]) -> str:
    begins = [text.find(stop) for stop in stops if stop in text]
    return text[: min(begins)] if begins else text


def fed(answer: Answer, ids: list[int]) -> list:
    """The pieces of an answer, as an engine makes it: up to a stop text."""
    pieces = []
    for token in ids:
        pieces.append(answer.push(token))
        if answer.stopped:
            break
    return [*pieces, answer.flush()]


STOPS = [
    "。\n\n",
    "用户：",
    "用户:",
    "ab",
    "abc",
    "bab",
    "aab",
    "?\n",
    "😀😁",
    "😀",
    "👩‍👩‍👧",
    "\n",
    "山水山",
    "水山水",
    "aaaa",
]


def test_joined_pieces_are_the_text_up_to_the_leftmost_stop(tokenizer: Tokenizer) -> None:
    noise = random.Random(0)
    alphabet = "aabb山水。\n用户：?😀😁é\ufffd"
    matched = 0
    for _ in range(3000):
        text = "".join(noise.choice(alphabet) for _ in range(noise.randrange(40)))
        stops = noise.sample(STOPS, noise.randrange(5))
        answer = Answer(tokenizer, stops)
        ids = cut(tokenizer, text, noise)
        pieces = fed(answer, ids)
        wanted = leftmost(text, stops)
        assert "".join(piece.text for piece in pieces) == wanted, (text, stops)
        assert answer.stopped == any(stop in text for stop in stops)
        tokens = [token for piece in pieces for token in piece.tokens]
        assert tokens == ids[: len(tokens)]
        if not answer.stopped:
            assert tokens == ids
        matched += answer.stopped
    assert 500 < matched < 2500


def test_nothing_is_held_back_that_cannot_become_a_stop(tokenizer: Tokenizer) -> None:
    noise = random.Random(1)
    for _ in range(300):
        text = "".join(noise.choice("ab山\n用户：") for _ in range(30))
        stops = noise.sample(STOPS, 3)
        answer, said, read = Answer(tokenizer, stops), "", ""
        for character in text:
            for token in cut(tokenizer, character, noise):
                said += answer.push(token).text
            read += character
            if any(stop in read for stop in stops):
                break
            held = read[len(said) :]
            assert read.startswith(said)
            ends = [stop[:n] for stop in stops for n in range(1, len(stop)) if read.endswith(stop[:n])]
            assert held == max(ends, key=len, default="")


def test_a_stop_inside_a_token_drops_the_rest(tokenizer: Tokenizer) -> None:
    longest = max(range(3, tokenizer.vocab_size), key=lambda i: len(tokenizer.decode([i])))
    text = tokenizer.decode([longest])
    answer = Answer(tokenizer, [text[1]])
    piece = answer.push(longest)
    assert piece.text == text[0] and piece.tokens == (longest,) and answer.stopped
    assert answer.push(longest).text == "" and answer.flush() == Answer(tokenizer).flush()


def test_an_earlier_match_that_is_not_complete_is_waited_for(tokenizer: Tokenizer) -> None:
    for text, wanted in (("xabcd", "x"), ("xabcx", "xa"), ("xabc", "xa")):
        pieces = fed(answer := Answer(tokenizer, ["bc", "abcd"]), byte_tokens(tokenizer, text.encode()))
        assert "".join(piece.text for piece in pieces) == wanted and answer.stopped


def test_log_probabilities_come_with_their_text(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, ["b!"], choice=3)
    ids = byte_tokens(tokenizer, "a好b?好b!c".encode())
    scored = [Scored(-float(i), ((token, -0.5), (5, -1.0))) for i, token in enumerate(ids)]
    pieces = []
    for token, one in zip(ids, scored, strict=True):
        pieces.append(answer.push(token, one))
        if answer.stopped:
            break
    pieces.append(answer.flush())
    said, known = "", b""
    for piece in pieces:
        said += piece.text
        known += b"".join(one.bytes for one in piece.logprobs)
        assert piece.choice == 3 and known.decode() == said
        assert tuple(one.token for one in piece.logprobs) == piece.tokens
    logprobs = [one for piece in pieces for one in piece.logprobs]
    assert said == "a好b?好" and [one.logprob for one in logprobs] == [-float(i) for i in range(9)]
    assert logprobs[1].bytes == "好".encode()[:1] and logprobs[1].top[0].bytes == logprobs[1].bytes
    assert [len(piece.tokens) for piece in pieces] == [1, 0, 0, 3, 0, 2, 0, 0, 3, 0, 0, 0]


def test_control_tokens_without_an_end_have_no_text(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer)
    end = tokenizer.eos_id
    pieces = fed(answer, [end, *tokenizer.encode("好"), end, end])
    assert "".join(piece.text for piece in pieces) == "好"
    assert [token for piece in pieces for token in piece.tokens] == [end, *tokenizer.encode("好"), end, end]


def test_bytes_that_are_no_text_do_not_stall(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer)
    pieces = [answer.push(token).text for token in byte_tokens(tokenizer, b"\xff\xfeA")]
    assert "".join(pieces) == "\ufffd\ufffdA" and all(pieces)
    pieces = fed(Answer(tokenizer), byte_tokens(tokenizer, "修复🌍\ufffd好".encode()[:-1]))
    assert "".join(piece.text for piece in pieces) == "修复🌍\ufffd\ufffd"


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("stop", [(), ("a" * 1000, "b", "c", "d")])
def test_time_grows_with_the_length_alone(tokenizer: Tokenizer, kind: str, stop: tuple) -> None:
    if kind == "sentencepiece":
        tokenizer = sentencepiece(["hello world"] * 5, LLAMA)
    (broken,) = [token for token, spelled in enumerate(tokenizer.token_bytes) if spelled == b"\xe5"]
    letter = tokenizer.vocab_size - 1
    for token in (broken, letter, min(tokenizer.control_ids.values())):
        answer, times = Answer(tokenizer, stop), []
        for _ in range(4):
            started = time.process_time()
            for _ in range(500):
                answer.push(token)
            times.append(time.process_time() - started)
        assert min(times[2:]) < 4 * max(times[:2]) + 0.05


# --- bytes of tokens --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_bytes_of_tokens_join_to_the_text(tmp_path, name: str) -> None:
    PUBLISHED[name].make(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    for text in ("hello 你好 😀\n", "def f(x):\n    return x"):
        joined = b"".join(tokenizer.token_bytes[token] for token in tokenizer.encode(text))
        assert joined.removeprefix(b" ") == text.encode()
    if tokenizer.is_byte_level:
        source = torch.Generator().manual_seed(0)
        ids = torch.randint(0, tokenizer.vocab_size, (300,), generator=source).tolist()
        stream = TextStream(tokenizer)
        assert "".join([stream.push(i) for i in ids] + [stream.flush()]) == tokenizer.decode(ids)
