"""Answers held to a form: JSON of a schema, or the call of a tool. What may come next is worked out by llguidance."""

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.request import Grammar, GrammarMaker
from mengya.text.tokenizer import Tokenizer

_MAX_SIZE = 65_536
"""Characters of a schema: a few thousand properties, which take a second."""
_MAX_DEPTH = 64

_STACK_SIZE = 256 * 1024 * 1024  # of addresses; memory is taken as it is used
_STACK = threading.Lock()

_OPTIONS = {
    # Once between two words: a space, or a line with its indentation. A model that likes blanks would go on for ever.
    "whitespace_pattern": r" |\n {0,16}",
    # Without \uXXXX, which may be half of a character: each is written as itself.
    "json_allowed_escapes": 'nrbtf\\"',
}

_FORMATS = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())
_VALUES = frozenset(("const", "enum", "default", "examples", "example"))  # keywords that hold no schemas
_NAMED = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))


class Grammars:
    """Makes grammars for the answers of one model."""

    def __init__(self, tokenizer: Tokenizer, ends: Collection[int]):
        """`ends`: tokens that end an answer. UserError if llguidance is not installed."""
        try:
            import llguidance
        except ImportError as error:
            raise UserError("answers of a given form need llguidance; pip install llguidance") from error
        assert ends, "an answer must be able to end"
        self._library = llguidance
        self._limits = llguidance.LLParserLimits(
            max_grammar_size=200_000, max_items_in_row=20_000, verbose_errors=False
        )
        slices = llguidance.LLTokenizer.json_slices()
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, min(ends)))
        self._tokenizer = llguidance.LLTokenizer(wrapper, eos_token=sorted(ends), slices=slices)
        self._ends = torch.zeros(tokenizer.vocab_size, dtype=torch.bool)
        self._ends[sorted(ends)] = True
        control = set(tokenizer.control_ids.values())
        written = [bool(spelled) and token not in control for token, spelled in enumerate(tokenizer.token_bytes)]
        self._possible = torch.tensor(written) | self._ends

    def json_schema(self, schema: Mapping[str, Any] | bool) -> GrammarMaker:
        """JSON that the schema (draft 2020-12) describes, the properties of an object in its order.

        UserError for a schema that is too large, that nothing fits, or of which something is not supported."""
        # Without `no_forcing`, text that is certain can be spelled in one way only, which need not be the tokenizer's.
        main = {"lark_grammar": '%llguidance {"no_forcing": true}\nstart: @json'}
        grammar = json.dumps({"grammars": [main, {"name": "json", "json_schema": checked(schema)}]})
        (matcher,) = _with_deep_stack(
            lambda: self._library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        )
        if error := matcher.get_error():
            raise UserError(
                f"this schema cannot be followed: {_first_line(error)}; leave it out, or write it otherwise"
            )
        _Grammar(matcher.deep_copy(), self._possible, self._ends).mask()  # some errors show up here only
        return lambda: _Grammar(matcher.deep_copy(), self._possible, self._ends)


def _with_deep_stack(make: Callable[[], Any]) -> list[Any]:
    """[make()]: the library follows one "$ref" inside of another by recursion, and where the stack ends, so does the
    process. No schema of `_MAX_SIZE` needs half of this one."""
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(make()))
    with _STACK:
        before = threading.stack_size(_STACK_SIZE)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return made


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, end: int):
        self.eos_token_id = end
        self.bos_token_id = None
        self.tokens = list(tokenizer.token_bytes)
        self.special_token_ids = sorted(tokenizer.control_ids.values())
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


class _Grammar(Grammar):
    def __init__(self, matcher: Any, possible: Tensor, ends: Tensor):
        self._matcher = matcher
        self._possible, self._ends = possible, ends

    def mask(self) -> Tensor:
        """UserError if the form is too complex to be followed."""
        if self._matcher.is_stopped() and not self._matcher.is_error():
            return self._ends
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        if error := self._matcher.get_error():
            raise UserError(f"an answer of this form cannot go on: {_first_line(error)}; simplify the schema")
        return torch.from_numpy(bits[: len(self._ends)]).bool() & self._possible

    def accept(self, token: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _first_line(error: str) -> str:
    return error.split("<state>")[0].replace("<non-verbose/>", "").replace("\n", " ").strip()[:300]


def checked(schema: Any) -> dict[str, Any]:
    """The schema as llguidance is to read it. UserError if it is too large, points elsewhere or has no finite value."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise UserError(f"a JSON schema is an object, not {json.dumps(schema)[:80]}; give one")
    _check_depth(schema)
    size = len(json.dumps(schema, ensure_ascii=False))
    if size > _MAX_SIZE:
        raise UserError(f"the JSON schema has {size} characters; give one of at most {_MAX_SIZE}")
    root = _without_unknown_formats(schema)
    for node in _nodes(root):
        reference = node.get("$ref")
        if isinstance(reference, str) and not reference.startswith("#"):
            raise UserError(f'"$ref": {json.dumps(reference)} points elsewhere; copy what it names into "$defs"')
    _check_finite(root)
    return {key: value for key, value in root.items() if key != "x-guidance"} | {"x-guidance": _OPTIONS}


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            item
            for one in level
            if isinstance(one, Mapping | list)
            for item in (one.values() if isinstance(one, Mapping) else one)
        ]
        if not level:
            return
    raise UserError(f'the JSON schema is nested more than {_MAX_DEPTH} deep; name parts of it in "$defs"')


def _without_unknown_formats(schema: Any, named: bool = False) -> Any:
    """A copy without formats that the library would refuse: they only describe, as "int64" does. `named`: it is a table
    of schemas."""
    if isinstance(schema, list):
        return [_without_unknown_formats(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: value if key in _VALUES and not named else _without_unknown_formats(value, not named and key in _NAMED)
        for key, value in schema.items()
        if named or key != "format" or value in _FORMATS
    }


def _nodes(schema: Any, named: bool = False) -> Iterator[Mapping[str, Any]]:
    """All schemas in a schema; `named`: it is a table of such."""
    if isinstance(schema, list):
        for item in schema:
            yield from _nodes(item)
    elif isinstance(schema, Mapping):
        if not named:
            yield schema
        for key, value in schema.items():
            if named or key not in _VALUES:
                yield from _nodes(value, named=not named and key in _NAMED)


def _check_finite(root: Mapping[str, Any]) -> None:
    """UserError if nothing that ends fits the schema, as when an object must hold one like itself.

    A least fixed point: nothing is taken to end before it is known; what depends on itself alone never is."""
    known: set[int] = set()
    before = -1
    try:
        while len(known) > before:
            before = len(known)
            if _ends(root, root, known, set()):
                return
    except RecursionError:
        raise UserError('a "$ref" of the JSON schema leads through hundreds of others; shorten the way') from None
    raise UserError(
        'nothing fits the JSON schema, or only what never ends, as where a "$ref" leads back to itself; make that part '
        'optional, or one of several in "anyOf"'
    )


def _ends(schema: Any, root: Mapping[str, Any], known: set[int], tried: set[int]) -> bool:
    """Whether something that ends fits the schema, as far as `known` says; `tried` in this round."""
    if not isinstance(schema, Mapping) or id(schema) in known:
        return schema is not False
    if id(schema) in tried:
        return False
    tried.add(id(schema))
    needed = [*_listed(schema, "allOf"), *([_target(root, schema["$ref"])] if "$ref" in schema else [])]
    if schema.get("type") == "object" and isinstance(properties := schema.get("properties"), Mapping):
        required = [name for name in _listed(schema, "required") if isinstance(name, str)]
        needed += [properties[name] for name in required if name in properties]
    least = schema.get("minItems")
    if schema.get("type") == "array" and isinstance(least, int) and least > 0:
        first = _listed(schema, "prefixItems")[:least]
        needed += [*first, *([schema.get("items")] if len(first) < least else [])]
    choices = [_listed(schema, key) for key in ("anyOf", "oneOf") if key in schema]
    ends = all(_ends(part, root, known, tried) for part in needed) and all(
        any(_ends(one, root, known, tried) for one in some) for some in choices
    )
    if ends:
        known.add(id(schema))
    return ends


def _listed(schema: Mapping[str, Any], key: str) -> list:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _target(root: Any, reference: Any) -> Any:
    """What a "#/..." names; True, which says nothing, for what the library has to judge."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        return True
    for part in unquote(reference).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(root, list) and part.isdecimal() and int(part) < len(root):
            root = root[int(part)]
        elif isinstance(root, Mapping) and part in root:
            root = root[part]
        else:
            return True
    return root
