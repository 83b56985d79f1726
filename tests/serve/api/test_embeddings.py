"""Vectors of unit length, in the order of the texts."""

import base64
import math
import struct
import threading
import time

import pytest

from .scripted import error_of

TEXTS = ["春天", "abc", "秋"]


def vector(text):
    values = [float(sum(map(ord, text))), float(len(text)), 1.0]
    length = math.hypot(*values)
    return [value / length for value in values]


def embed(live, **body):
    return live.post("/v1/embeddings", {"model": "sprout", "input": TEXTS} | body)


def test_texts_alone_and_together(plain):
    answer = embed(plain).json()
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6} and answer["model"] == "sprout"
    for text, entry in zip(TEXTS, answer["data"], strict=True):
        assert entry["embedding"] == pytest.approx(vector(text), abs=1e-5)
        (alone,) = embed(plain, input=text).json()["data"]
        assert alone["embedding"] == pytest.approx(entry["embedding"], abs=1e-5)


def test_base64_is_little_endian_float32(plain):
    for text, entry in zip(TEXTS, embed(plain, encoding_format="base64").json()["data"], strict=True):
        values = struct.unpack("<3f", base64.b64decode(entry["embedding"]))
        assert values == pytest.approx(vector(text), abs=1e-6)


def test_token_ids_only_if_they_are_let(plain, serving):
    for ids in ([1, 2], [[1, 2], [3]]):
        answer = embed(plain, input=ids)
        assert answer.status_code == 400 and "check_embedding_ctx_length=False" in error_of(answer)["message"]
    live = serving(embed_ids=True)
    assert len(embed(live, input=[97, 98]).json()["data"]) == 1
    (first, _) = embed(live, input=[[97, 98], [99]]).json()["data"]
    assert first["embedding"] == pytest.approx(vector("ab"), abs=1e-5)


@pytest.mark.parametrize(("body", "param"), [
    ({"input": []}, "input"), ({"input": ""}, "input"), ({"input": ["a", ""]}, "input"), ({"input": None}, "input"),
    ({"input": {"a": 1}}, "input"), ({"input": ["a"] * 2049}, "input"), ({"input": [["a"]]}, "input"),
    ({"encoding_format": "int8"}, "encoding_format"), ({"dimensions": 5}, "dimensions"), ({"model": "other"}, "model"),
])  # fmt: skip
def test_what_cannot_be_embedded(plain, body, param):
    answer = embed(plain, **body)
    assert answer.status_code == (404 if param == "model" else 400) and error_of(answer)["param"] == param


def test_a_text_that_is_too_long(plain):
    error = error_of(embed(plain, input=["a", "长" * 1001]))
    assert error["code"] == "context_length_exceeded" and "1001" in error["message"] and error["param"] == "input"
    assert embed(plain, input="长" * 1000).status_code == 200


def test_vectors_that_take_long_hold_up_nobody(serving):
    live = serving(limits={"answer_seconds": 0.3})
    live.backend.embed = lambda prompts: time.sleep(0.8)
    answers = []
    asking = [threading.Thread(target=lambda: answers.append(embed(live).status_code)) for _ in range(6)]
    for thread in asking:
        thread.start()
    assert live.chat().status_code == 200
    for thread in asking:
        thread.join()
    assert answers == [504] * 6


def test_a_backend_that_cannot(serving):
    live = serving()

    def embed_nothing(prompts):
        from mengya.errors import UserError

        raise UserError("this engine has no hidden states; serve the directory itself")

    live.backend.embed = embed_nothing
    answer = embed(live)
    assert answer.status_code == 400 and "hidden states" in error_of(answer)["message"]
