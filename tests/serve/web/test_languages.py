"""What the page says, in both languages: nothing that a reader can meet is said in one of them alone."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import mengya
from mengya.serve.web.app import PAGE

SOURCE = Path(mengya.__file__).parent
SPEAKERS = (
    "serve/web/*.py", "rag/database.py", "rag/store.py", "rag/answer.py", "rag/terms.py", "rag/reading/*.py",
    "infer/request.py", "infer/backends/listening.py", "infer/backends/local.py", "infer/backends/llama_cpp.py",
    "infer/backends/tasks.py", "infer/backends/openai.py", "infer/backends/openai_wire.py", "infer/backends/prompts.py",
)  # fmt: skip
"""Where what the page tells comes from."""
CALLS = ("UserError", "TooLong", "refused", "note", "page", "append")
FUNCTIONS = ("in_words", "_explain", "_refused", "_no_text", "_other_vectors", "_unknown", "known", "of_old_office")
NEVER = (
    # before there is a page
    "{} cannot be opened ({}); choose another directory with --data",
    "{} is damaged; delete it, and everybody signs in anew",
    "{} cannot be used ({}); choose another directory with --data",
    "{}://{} is no address; give one as https://host/v1#model",
    "{} has {} models; name one behind the address, {}#NAME: {}",
    "{} holds characters that no key has; copy the key again",
    "{} needs OpenAI's client; pip install 'mengya[remote]'",
    # what the page asks of no model
    "{} is only asked for answers; use a local model for embeddings",
    "an empty text has no embedding; give at least one character",
    "the text has {} tokens, the context {}; shorten it",
    "{} cannot be held to a form from here; use a local model",
    "{} does not tell the tokens of a text; use a local model for that",
    "token {} is not in the vocabulary; use 0 to {}",
    "{} is a GGUF file, which is only asked for answers; use a model directory",
    "a server elsewhere cannot be held to a grammar; leave it out, or use a local model",
    "a server elsewhere tells no log-probabilities of a prompt; use a local model",
)  # fmt: skip


OF_OTHERS = (
    "No space left on device", "Disk quota exceeded", "Permission denied", "Read-only file system",
    "Input/output error",
    "input should be a valid integer", "input should be a valid number",
)  # fmt: skip
"""What the system says, and pydantic."""
IN_PARTS = (
    "{}the question and a part of a passage take {} tokens, {} more are for the answer, and this model has a context "
    "of {}; shorten {}the question",
    "{} has vectors of {}, not of {}; use that one, or index its files into another base",
    "{}: update it", "{}: give the file as it was exported", "{}; save it as html or PDF",
)  # fmt: skip
"""Whose names are sentences: with each of them they have a line of their own in told.js."""


def said() -> dict[str, str]:
    """What told.js has: English -> Chinese."""
    found = re.search(r"const CHINESE = (\{.*?\n\});", (PAGE / "told.js").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    pairs = json.loads(found[1], object_pairs_hook=list)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def texts(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """The texts that an expression may be, with {} for what is not known."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name) if name in constants:
            yield from texts(constants[name], {})
        case ast.IfExp(body=one, orelse=other):
            yield from texts(one, constants)
            yield from texts(other, constants)
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


def spoken(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            given = [*node.args, *(word.value for word in node.keywords)]
            if name in CALLS or any(word.arg == "error" for word in node.keywords):
                yield from (text for each in given for text in texts(each, constants))
        elif isinstance(node, ast.FunctionDef) and node.name in FUNCTIONS:
            returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return) and each.value]
            yield from (text for each in returned for text in texts(each, constants))
        elif isinstance(node, ast.Dict):
            named = zip(node.keys, node.values, strict=True)
            yield from (
                text
                for key, value in named
                if isinstance(key, ast.Constant) and key.value == "error"
                for text in texts(value, constants)
            )


FILES = sorted({path for pattern in SPEAKERS for path in SOURCE.glob(pattern)})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_the_page_has_chinese_words_for_what_the_server_says(path):
    patterns = [re.compile(".*?".join(map(re.escape, english.split("{}")))) for english in said()]
    sentences = {text for text in spoken(path) if len(re.findall(r"[a-z]{2,}", text)) > 1} - {*NEVER, *IN_PARTS}
    assert sorted(text for text in sentences if not any(pattern.fullmatch(text) for pattern in patterns)) == []


def test_all_that_is_said_in_chinese_is_said_somewhere_and_has_what_the_english_has():
    every = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", every).replace('\\"', '"')
    for english, chinese in said().items():
        count = english.count("{}")
        assert {int(n) for n in re.findall(r"\{(\d)!?\}", chinese)} <= set(range(count)), english
        assert re.search("[\u4e00-\u9fff]|Top-", chinese), english
        longest = max(re.split(r"[(){},;:=]", english), key=len).strip()
        assert longest in joined or longest in OF_OTHERS, english
