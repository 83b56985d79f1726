"""Growing a tokenizer: byte-level BPE goes on learning merges on new text, and every old id keeps its meaning.

Continued BPE training (Purason et al. 2025, arXiv:2512.03989): new merges are learnt on what the old tokenizer leaves,
and come after all old ones. Encoding applies the oldest merge that fits, so a text is first split exactly as before,
and then new merges join neighbours: the result has as many tokens or fewer, and text without new merges has the same.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise, zip_longest

import tokenizers

from mengya.errors import UserError
from mengya.text.tokenizer import CONTROL_TOKENS, Tokenizer, trained_here, without_long_runs

Pair = tuple[str, str]
"""Two ids, each as the character of that number."""


def vocabulary(backend: tokenizers.Tokenizer) -> list[str]:
    """The token of each id, control tokens included; UserError if an id is missing in between."""
    ids = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    missing = next((number for number in range(len(ids)) if number not in ids), None)
    if missing is not None:
        raise UserError(f"the tokenizer has no token of id {missing}, but larger ids; use one whose ids have no hole")
    return [ids[number] for number in range(len(ids))]


def first_difference(old: tokenizers.Tokenizer, new: tokenizers.Tokenizer) -> tuple[int, str, str | None] | None:
    """The first id with another token in `new`, and its token in `old` and in `new` (None if `new` is shorter). None
    if `new` begins with all of `old`."""
    tokens = vocabulary(old)
    for number, (token, other) in enumerate(zip_longest(tokens, vocabulary(new)[: len(tokens)])):
        if token != other:
            return number, token, other
    return None


def pieces_of_new(old: tokenizers.Tokenizer, new: tokenizers.Tokenizer) -> list[list[int]]:
    """For each id that only `new` has, the old ids that spell its token; empty for a control token."""
    control = {token.content for token in new.get_added_tokens_decoder().values()}
    tokens = vocabulary(new)[len(vocabulary(old)) :]
    return [[] if token in control else [piece.id for piece in old.model.tokenize(token)] for token in tokens]


class _Words:
    """Distinct words and how often they occur, and which of them contain each pair of neighbours.

    A word is a string with one character for each id, so that `str.replace` can merge: id 65 is "A"."""

    def __init__(self, counts: Mapping[str, int]):
        self._words, self._counts = list(counts), list(counts.values())
        self.pairs: defaultdict[Pair, int] = defaultdict(int)
        self._where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number, (word, count) in enumerate(counts.items()):
            for pair in pairwise(word):
                self.pairs[pair] += count
                self._where[pair].add(number)

    def merge(self, pair: Pair, merged: str) -> list[Pair]:
        """Join every occurrence, from left to right. Returns the pairs that became more frequent."""
        changes: defaultdict[Pair, int] = defaultdict(int)
        for number in self._where.pop(pair):
            before, count = self._words[number], self._counts[number]
            self._words[number] = after = before.replace("".join(pair), merged)
            for old in pairwise(before):
                changes[old] -= count
            for new in pairwise(after):
                changes[new] += count
                if merged in new:
                    self._where[new].add(number)
        for other, change in changes.items():
            self.pairs[other] += change
        return [other for other, change in changes.items() if change > 0]


def _learn(words: _Words, tokens: list[str], size: int, longest: int, forbidden: set[str]) -> list[tuple[str, str]]:
    """The merges of byte pair encoding, most frequent pair first (then the smaller ids), until there are `size`
    `tokens`. If a merge makes a token that already exists, it adds no entry.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    merges: dict[tuple[str, str], None] = {}  # a dict, because the same pair may come twice
    heap = [(-count, pair) for pair, count in words.pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < size:
        count, pair = heapq.heappop(heap)
        now = words.pairs[pair]
        if -count != now:
            if 0 < now < -count:
                heapq.heappush(heap, (-now, pair))
            continue
        first, second = (tokens[ord(character)] for character in pair)
        token = first + second
        if now <= 0 or len(token) > longest or token in forbidden:  # one character stands for a byte
            continue
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
        merges[first, second] = None
        for other in words.merge(pair, chr(ids[token])):
            heapq.heappush(heap, (-words.pairs[other], other))
    return list(merges)


def _missing_control(tokens: list[str]) -> list[str]:
    return [token for token in CONTROL_TOKENS if token not in set(tokens)]


def check_extension(old: tokenizers.Tokenizer, vocab_size: int) -> None:
    """UserError if `old` is not byte-level BPE, or leaves no room for another entry."""
    content = json.loads(old.to_str())
    model = content["model"]
    byte_level = '"ByteLevel"' in json.dumps(content["pre_tokenizer"])
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    if model["type"] != "BPE" or not byte_level or not plain:
        raise UserError(
            f"only a byte-level BPE tokenizer can be extended, and this one is {model['type']} without the byte level; "
            "unset tokenizer.extend to train a new one"
        )
    tokens = vocabulary(old)
    first, control = len(tokens), len(_missing_control(tokens))
    if vocab_size <= first + control:
        raise UserError(
            f"vocab_size={vocab_size} leaves no room: the tokenizer to extend has {first} entries and needs "
            f"{control} control tokens; set tokenizer.vocab_size above {first + control}"
        )


def _count_words(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> _Words:
    """The words of the texts, as the old tokenizer cuts and splits them."""
    found: Counter[str] = Counter()
    for text in without_long_runs(texts):
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        found.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    counts: Counter[str] = Counter()
    for word, count in found.items():
        counts["".join(chr(piece.id) for piece in backend.model.tokenize(word))] += count
    return _Words(counts)


def extend_tokenizer(
    old: tokenizers.Tokenizer, texts: Iterable[str], vocab_size: int, max_token_length: int
) -> Tokenizer:
    """`old` with entries and merges learnt from `texts` after its own, `vocab_size` entries in all.

    Control tokens of ours that it lacks come first. UserError if it is not byte-level BPE, already has that many
    entries, or the text is too small for so many.
    """
    check_extension(old, vocab_size)
    content = json.loads(old.to_str())
    model, added = content["model"], content["added_tokens"]
    tokens = vocabulary(old)
    first = len(tokens)
    control = _missing_control(tokens)
    tokens += control
    switches = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added += [{"id": number, "content": token, **switches} for number, token in enumerate(control, first)]
    merges = _learn(_count_words(old, texts), tokens, vocab_size, max_token_length, {e["content"] for e in added})
    if len(tokens) < vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is more than this text allows: with the old entries it gives {len(tokens)}; "
            f"set tokenizer.vocab_size={len(tokens)} or add text"
        )
    # The vocabulary contains the added tokens, too: otherwise the library gives them new ids, after the longer one.
    model["vocab"] = {token: number for number, token in enumerate(tokens)}
    known = {tuple(pair) for pair in model["merges"]}
    model["merges"] += [list(pair) for pair in merges if pair not in known]
    return trained_here(tokenizers.Tokenizer.from_str(json.dumps(content)))
