"""Answers held to a form, by a model that draws anything that is allowed."""

import json
import random
import sys
import threading
import time

import pytest
import torch

from mengya.errors import UserError
from mengya.infer.grammar import Grammars
from mengya.infer.request import GrammarMaker, Request, Sampling
from mengya.infer.sampling import Drawer, draw
from mengya.infer.stream import Answer
from mengya.text.chat import Chat
from mengya.text.tokenizer import Tokenizer

from ..text.published import PUBLISHED

pytest.importorskip("llguidance", reason="needs the serve extra")
jsonschema = pytest.importorskip("jsonschema", reason="needs the dev extra")


@pytest.fixture(scope="module")
def grammars(chat: Chat) -> Grammars:
    return Grammars(chat.tokenizer, chat.stop_ids)


def written(maker: GrammarMaker, tokenizer: Tokenizer, ends: set[int], seed: int = 0, length: int = 2000) -> str | None:
    """What a model writes to which all tokens are as likely as any; None if it finds no end."""
    noise, grammar, ids = random.Random(seed), maker(), []
    for _ in range(length):
        allowed = grammar.mask().nonzero()[:, 0].tolist()
        token = noise.choice(allowed)
        if token in ends:
            assert ends.issuperset(allowed) or ends.issubset(allowed), "all ends, wherever one may stand"
            return tokenizer.decode(ids)
        assert token not in tokenizer.control_ids.values()
        ids.append(token)
        grammar.accept(token)
    return None


MOOD = {
    "type": "object",
    "properties": {
        "心情": {"enum": ["开心", "难过", "😀\n"]},
        "次数": {"type": "integer", "minimum": -3, "maximum": 300},
        "说明": {"type": "string", "maxLength": 12},
        "标签": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 3}, "maxItems": 3},
        "数": {"type": ["number", "null"]},
    },
    "required": ["心情", "次数", "说明"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "值": {"type": "integer", "minimum": 0, "maximum": 9},
                "子": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1},
            },
            "required": ["值"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
SHAPES = {
    "oneOf": [
        {"type": "object", "properties": {"k": {"const": k}}, "required": ["k"], "additionalProperties": False}
        for k in ("圆", "方")
    ],
    "discriminator": {"propertyName": "k"},
}


@pytest.mark.parametrize("schema", [MOOD, TREE, SHAPES], ids=["mood", "tree", "shapes"])
def test_whatever_is_drawn_fits(chat: Chat, grammars: Grammars, schema: dict) -> None:
    maker, ended = grammars.json_schema(schema), 0
    for seed in range(40):
        if (text := written(maker, chat.tokenizer, chat.stop_ids, seed)) is not None:
            jsonschema.validate(json.loads(text), schema)
            assert "\\u" not in text and not text.endswith((" ", "\n"))
            ended += 1
    assert ended >= 38


def test_any_json_object(chat: Chat, grammars: Grammars) -> None:
    texts = [
        written(grammars.json_schema({"type": "object"}), chat.tokenizer, chat.stop_ids, seed) for seed in range(30)
    ]
    assert sum(text is not None and isinstance(json.loads(text), dict) for text in texts) > 5


def allowed(maker: GrammarMaker, ids: list[int]) -> bool:
    grammar = maker()
    for token in ids:
        if not grammar.mask()[token]:
            return False
        grammar.accept(token)
    return True


def test_chinese_is_written_as_itself(chat: Chat, grammars: Grammars) -> None:
    """Also where a character is three tokens; escapes are not even possible."""
    tokenizer = chat.tokenizer
    single = {spelled: token for token, spelled in enumerate(tokenizer.token_bytes) if len(spelled) == 1}
    for schema in ({"type": "string"}, {"enum": ["山水", "春天"]}, {"type": "string", "pattern": "^[山-水春天]+$"}):
        maker = grammars.json_schema(schema)
        assert allowed(maker, tokenizer.encode('"春天"'))
        assert allowed(maker, [single[bytes([byte])] for byte in '"春天"'.encode()])
        assert not allowed(maker, tokenizer.encode('"\\u6625\\u5929"'))
        assert not allowed(maker, [single[b'"'], *(single[bytes([byte])] for byte in "春".encode()[:2]), single[b'"']])


def test_blanks_have_an_end(chat: Chat, grammars: Grammars) -> None:
    encode, maker = chat.tokenizer.encode, grammars.json_schema(MOOD)
    assert allowed(maker, encode('{"心情": "开心",\n  "次数": 3'))
    for text in ('{  "', "{ \n\n", "{" + "\n" + " " * 17, " {", "\n{"):
        assert not allowed(maker, encode(text)), text
    for letter in "\n ":  # a model that would write nothing else
        blank, grammar, ids = encode(letter)[0], maker(), encode("{")
        grammar.accept(ids[0])
        while grammar.mask()[blank]:
            grammar.accept(blank)
            ids.append(blank)
        assert len(ids) < 20


def test_an_answer_ends_where_it_is_complete(chat: Chat, grammars: Grammars) -> None:
    ends = sorted(chat.stop_ids)
    grammar = grammars.json_schema({"type": "object", "additionalProperties": False})()
    for token in chat.tokenizer.encode("{}"):
        assert not grammar.mask()[ends].any()
        grammar.accept(token)
    for _ in range(2):
        assert grammar.mask().nonzero()[:, 0].tolist() == ends
        grammar.accept(ends[0])


def test_choices_do_not_share_a_state(chat: Chat, grammars: Grammars) -> None:
    maker = grammars.json_schema({"enum": ["ab", "cd"]})
    first, second = maker(), maker()
    before = second.mask()
    first.accept(chat.tokenizer.encode('"')[0])
    assert torch.equal(second.mask(), before) and not torch.equal(first.mask(), before)


CHAIN = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(1500)}
DEEP: dict = {"type": "string"}
for _ in range(200):
    DEEP = {"type": "array", "items": DEEP}
IMPOSSIBLE = {
    "itself": ({"$ref": "#"}, "leads back to itself"),
    "each other": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "leads back to itself",
    ),
    "all of itself": ({"allOf": [{"$ref": "#"}, {"type": "string"}]}, "leads back to itself"),
    "one like itself": (
        {"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
        "leads back to itself",
    ),
    "lists of lists": ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "leads back to itself"),
    "remote": ({"$ref": "https://example.com/x.json"}, "points elsewhere"),
    "file": ({"properties": {"x": {"$ref": "other.json#/a"}}}, "points elsewhere"),
    "missing": ({"$ref": "#/$defs/x"}, "does not exist"),
    "chain": ({"$defs": CHAIN | {"d1500": {}}, "$ref": "#/$defs/d0"}, "shorten"),
    "deep": (DEEP, "nested more than"),
    "large": ({"enum": ["x" * 70_000]}, "at most 65536"),
    "no value": ({"enum": []}, "cannot be followed"),
    "look ahead": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    "broken pattern": ({"type": "string", "pattern": "("}, "cannot be followed"),
    "unknown type": ({"type": "bogus"}, "bogus"),
    "type of type": ({"type": 5}, "type"),
    "empty range": ({"type": "integer", "minimum": 10, "maximum": 5}, "minimum"),
    "false": (False, "an object"),
    "list": ([], "an object"),
    "keyword": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "surrogate": ({"enum": ["\ud83d"]}, "cannot be followed"),
    "not a number": ({"const": float("nan")}, "cannot be followed"),
    "required": ({"required": [[], 3, "x"], "type": "object", "properties": {"x": False}}, "nothing fits"),
    "product": (
        {"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {"const": j}}} for j in range(6)]} for i in range(6)]},
        "too large",
    ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_schema_that_cannot_be_followed(grammars: Grammars, name: str) -> None:
    schema, reason = IMPOSSIBLE[name]
    started = time.process_time()
    with pytest.raises(UserError, match=reason):
        grammars.json_schema(schema)
    assert time.process_time() - started < 2


LARGE_PATTERN = {"type": "string", "pattern": "^(.{0,1000}){1000}$"}
LONGEST_WAY: dict = {"properties": {"q": {"$ref": "#/$defs/a0"}}, "$defs": {"a110": {}}}
for _number in range(110):
    _link: dict = {"$ref": f"#/$defs/a{_number + 1}"}
    for _ in range(58):
        _link = {"items": _link}
    LONGEST_WAY["$defs"][f"a{_number}"] = _link
ENDLESS_CHECKS = ("itself, or not", "found late", "doubled", "ways", "long way")  # for jsonschema
HARD = {
    "itself, or not": {"anyOf": [{"$ref": "#"}, {"type": "boolean"}]},
    "optional": {"type": "object", "properties": {"x": {"$ref": "#"}}, "additionalProperties": False},
    "any depth": {"type": "array", "items": {"$ref": "#"}},
    "found late": {
        "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/b",
    },
    "backtracking": {"type": "string", "pattern": "^(a+)+$"},
    "nested counts": {"type": "string", "pattern": "^((a{0,100}){0,100}){0,100}$"},
    "states": {"type": "string", "pattern": "(a|b)*a(a|b){200}c"},
    "long": {"type": "string", "maxLength": 10**9},
    "longest": {"type": "string", "minLength": 10**9},
    "many": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "values": {"enum": [str(number) for number in range(7000)]},
    "properties": {"type": "object", "properties": {f"k{number}": {"type": "null"} for number in range(2000)}},
    "doubled": {
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(25)} | {"d25": {"enum": [1]}},
        "$ref": "#/$defs/d0",
    },
    "ways": {
        "$defs": {
            f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}, {"type": "array", "items": {"$ref": f"#/$defs/d{i}"}}]}
            for i in range(25)
        }
        | {"d25": {"enum": [1]}},
        "$ref": "#/$defs/d0",
    },
    "long way": {
        "type": "object",
        "properties": {"q": {"$ref": "#/$defs/d0"}},
        "$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}, {}]} for i in range(1000)}
        | {"d1000": {"enum": [1]}},
    },
    "names of keywords": {
        "type": "object",
        "properties": {"format": {"enum": ["x"]}, "$ref": {"const": {"$ref": "x"}}, "default": {"format": "int64"}},
        "required": ["format", "$ref"],
        "additionalProperties": False,
    },
    "words of others": {
        "type": "integer",
        "format": "int32",
        "nullable": True,
        "x-y": 1,
        "title": "数",
        "examples": [1],
    },
    "whatever": True,
}


@pytest.mark.parametrize("name", HARD)
def test_a_hard_schema_is_followed_in_time(chat: Chat, grammars: Grammars, name: str) -> None:
    started = time.process_time()
    maker = grammars.json_schema(HARD[name])
    assert time.process_time() - started < 2
    for seed in range(3):
        started = time.process_time()
        text = written(maker, chat.tokenizer, chat.stop_ids, seed, length=100)
        if text is not None and name not in ENDLESS_CHECKS:
            jsonschema.validate(json.loads(text), HARD[name])
        assert time.process_time() - started < 3


def test_what_becomes_too_complex_fails_by_itself(chat: Chat, grammars: Grammars) -> None:
    with pytest.raises(UserError, match="cannot go on"):
        for seed in range(3):
            written(grammars.json_schema(LARGE_PATTERN), chat.tokenizer, chat.stop_ids, seed)


def test_what_leads_nowhere_fails_by_itself(chat: Chat, grammars: Grammars) -> None:
    """A name that two schemas describe, which the library takes and then cannot go on with: no blanks without end."""
    number = {"type": "integer"}
    schema = {"properties": {"s": number}, "patternProperties": {"^s$": number}, "required": ["s"], "type": "object"}
    with pytest.raises(UserError, match="cannot go on"):
        written(grammars.json_schema(schema | {"additionalProperties": False}), chat.tokenizer, chat.stop_ids)


def test_a_long_list(chat: Chat, grammars: Grammars) -> None:
    ids = chat.tokenizer.encode("[" + "7, " * 3000 + "7]")
    assert allowed(grammars.json_schema({"type": "array", "items": {"type": "integer"}}), ids)


def test_a_schema_is_made_in_a_thread_with_a_small_stack(grammars: Grammars) -> None:
    problems: list[Exception] = []

    def work() -> None:
        for schema in (HARD["long way"], LONGEST_WAY, *(schema for schema, _ in IMPOSSIBLE.values())):
            try:
                grammars.json_schema(schema)
            except UserError:
                pass
            except Exception as error:
                problems.append(error)

    before = threading.stack_size(1024 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert not problems


# --- together with drawing --------------------------------------------------------------------------------------------


def test_drawn_and_streamed(chat: Chat, grammars: Grammars) -> None:
    """The model would rather end at once; seeds, ends and stop tokens keep their meaning."""
    tokenizer, size = chat.tokenizer, chat.tokenizer.vocab_size
    stray = tokenizer.encode("a")[0]
    logits = torch.randn(1, size + 5, generator=torch.Generator().manual_seed(0))
    logits[0, sorted(chat.stop_ids)], logits[0, stray], logits[0, size:] = 50.0, 40.0, 90.0
    sampling = Sampling(temperature=2, top_p=1, seed=1, max_new_tokens=999)
    for stop_ids in ((), (stray,)):
        request = Request(prompt=[1], sampling=sampling, grammar=grammars.json_schema(MOOD), stop_ids=stop_ids)
        drawer = Drawer(request, [1], 0, size, frozenset({*chat.stop_ids, *stop_ids}))
        answer, text = Answer(tokenizer), ""
        while (token := draw(logits, [drawer])[0].token) not in chat.stop_ids:
            text += answer.push(token).text
        jsonschema.validate(json.loads(text + answer.flush().text), MOOD)
        assert ("a" in text) == (not stop_ids)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_other_tokenizers(tmp_path, name: str) -> None:
    PUBLISHED[name].make(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    ends = set(tokenizer.control_ids.values())
    maker = Grammars(tokenizer, ends).json_schema(MOOD)
    texts = [written(maker, tokenizer, ends, seed) for seed in range(5)]
    for text in texts:
        if text is not None:
            jsonschema.validate(json.loads(text), MOOD)
    assert any(texts)


def test_without_the_library(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UserError, match="pip install llguidance"):
        Grammars(chat.tokenizer, chat.stop_ids)
