"""Growing a tokenizer: byte-level BPE goes on learning merges on new text, and every old id keeps its meaning.

Continued BPE training (Purason et al. 2025, arXiv:2512.03989): new merges are learnt on what the old tokenizer leaves,
and come after all old ones. Encoding applies the oldest merge that fits, so a text is first split exactly as before,
and then new merges join neighbours: the result has as many tokens or fewer, and text without new merges has the same.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import tokenizers

from mengya.errors import UserError
from mengya.text.tokenizer import CONTROL_TOKENS, Tokenizer, trained_here

Pair = tuple[int, int]


def vocabulary(backend: tokenizers.Tokenizer) -> list[str]:
    """The token of each id, control tokens included; UserError if an id is missing in between."""
    ids = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    missing = next((number for number in range(len(ids)) if number not in ids), None)
    if missing is not None:
        raise UserError(f"the tokenizer has no token of id {missing}, but larger ids; use one whose ids have no hole")
    return [ids[number] for number in range(len(ids))]


def first_difference(old: tokenizers.Tokenizer, new: tokenizers.Tokenizer) -> tuple[int, str, str | None] | None:
    """The first id of `old` that `new` uses otherwise, and its token in both (None: `new` is shorter); None if none."""
    theirs = vocabulary(new)
    for number, token in enumerate(vocabulary(old)):
        other = theirs[number] if number < len(theirs) else None
        if token != other:
            return number, token, other
    return None


def pieces_of_new(old: tokenizers.Tokenizer, new: tokenizers.Tokenizer) -> list[list[int]]:
    """For each id that only `new` has, the old ids that spell it; empty for a control token, which spells nothing."""
    control = {token.content for token in new.get_added_tokens_decoder().values()}
    tokens = vocabulary(new)[len(vocabulary(old)) :]
    return [[] if token in control else [piece.id for piece in old.model.tokenize(token)] for token in tokens]


class _Words:
    """Distinct words as sequences of ids, and where each pair of neighbours stands."""

    def __init__(self, sequences: list[list[int]], counts: list[int]):
        self._sequences, self._counts = sequences, counts
        self.pairs: defaultdict[Pair, int] = defaultdict(int)
        self._where: defaultdict[Pair, list[int]] = defaultdict(list)
        for word, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            for pair in pairwise(sequence):
                self.pairs[pair] += count
                self._where[pair].append(word)

    def merge(self, pair: Pair, merged: int) -> list[Pair]:
        """Join every occurrence, from left to right. Returns the pairs that became more frequent."""
        changes: defaultdict[Pair, int] = defaultdict(int)
        for word in dict.fromkeys(self._where.pop(pair)):
            for new in self._merge_in(word, pair, merged, changes):
                self._where[new].append(word)
        for other, change in changes.items():
            self.pairs[other] += change
        return [other for other, change in changes.items() if change > 0]

    def _merge_in(self, word: int, pair: Pair, merged: int, changes: defaultdict[Pair, int]) -> Iterator[Pair]:
        """Join the occurrences in one word, count what that changes, and yield the new pairs."""
        first, second = pair
        ids, count = self._sequences[word], self._counts[word]
        place = -1
        while (place := _find(ids, first, place + 1)) >= 0:
            if ids[place + 1] != second:
                continue
            changes[pair] -= count
            ids[place : place + 2] = [merged]
            if place > 0:
                changes[ids[place - 1], first] -= count
                changes[ids[place - 1], merged] += count
                yield ids[place - 1], merged
            if place + 1 < len(ids):
                changes[second, ids[place + 1]] -= count
                changes[merged, ids[place + 1]] += count
                yield merged, ids[place + 1]


def _find(ids: list[int], wanted: int, begin: int) -> int:
    """Where `wanted` stands at or after `begin`, but not last; -1 if nowhere."""
    try:
        return ids.index(wanted, begin, len(ids) - 1)
    except ValueError:
        return -1


def _learn(words: _Words, tokens: list[str], wanted: int, longest: int, forbidden: set[str]) -> list[Pair]:
    """The merges of byte pair encoding, most frequent pair first (then the smaller ids), until `tokens` has grown by
    `wanted`. A merge may yield a token that exists, reached on another way: it costs no entry.
    """
    ids = {token: number for number, token in enumerate(tokens)}
    merges: list[Pair] = []
    size = len(tokens) + wanted
    heap = [(-count, pair) for pair, count in words.pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < size:
        count, pair = heapq.heappop(heap)
        now = words.pairs[pair]
        if -count != now:
            if 0 < now < -count:
                heapq.heappush(heap, (-now, pair))
            continue
        token = tokens[pair[0]] + tokens[pair[1]]
        if now <= 0 or len(token) > longest or token in forbidden:  # one character stands for a byte
            continue
        if token not in ids:
            ids[token] = len(tokens)
            tokens.append(token)
        merges.append(pair)
        for other in words.merge(pair, ids[token]):
            heapq.heappush(heap, (-words.pairs[other], other))
    return list(dict.fromkeys(merges))  # a pair that comes up again, behind a token that was there, is the same merge


def _check_kind(content: dict) -> None:
    model = content["model"]
    byte_level = '"ByteLevel"' in json.dumps(content["pre_tokenizer"])
    plain = not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
    if model["type"] != "BPE" or not byte_level or not plain:
        raise UserError(
            f"only a byte-level BPE tokenizer can be extended, and this one is {model['type']} without the byte level; "
            "unset tokenizer.extend to train a new one"
        )


def _count_words(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> _Words:
    """The words of the texts, as the old tokenizer cuts and splits them."""
    found: Counter[str] = Counter()
    for text in texts:
        normal = backend.normalizer.normalize_str(text) if backend.normalizer else text
        found.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))
    counts: Counter[tuple[int, ...]] = Counter()
    for word, count in found.items():
        counts[tuple(piece.id for piece in backend.model.tokenize(word))] += count
    several = sorted(ids for ids in counts if len(ids) > 1)
    return _Words([list(ids) for ids in several], [counts[ids] for ids in several])


def extend_tokenizer(
    old: tokenizers.Tokenizer, texts: Iterable[str], vocab_size: int, max_token_length: int
) -> Tokenizer:
    """`old` with entries and merges learnt from `texts` after its own, `vocab_size` entries in all.

    Control tokens of ours that it lacks come first. UserError if it is not byte-level BPE, already has that many
    entries, or the text is too small for so many.
    """
    content = json.loads(old.to_str())
    _check_kind(content)
    tokens = vocabulary(old)
    first = len(tokens)
    control = [token for token in CONTROL_TOKENS if token not in set(tokens)]
    if vocab_size <= first + len(control):
        raise UserError(
            f"vocab_size={vocab_size} leaves no room: the tokenizer to extend has {first} entries and needs "
            f"{len(control)} control tokens; set tokenizer.vocab_size above {first + len(control)}"
        )
    tokens += control
    added = [entry["content"] for entry in content["added_tokens"]] + control
    merges = _learn(_count_words(old, texts), tokens, vocab_size - len(tokens), max_token_length, set(added))
    if len(tokens) < vocab_size:
        raise UserError(
            f"vocab_size={vocab_size} is more than this text allows: with the old entries it gives {len(tokens)}; "
            f"set tokenizer.vocab_size={len(tokens)} or add text"
        )
    return _assemble(content, tokens, control, merges)


def _assemble(content: dict, tokens: list[str], control: Sequence[str], merges: list[Pair]) -> Tokenizer:
    model = content["model"]
    # Added tokens stand in the vocabulary, too: otherwise the library numbers them anew, after the longer vocabulary.
    model["vocab"] = {token: number for number, token in enumerate(tokens)}
    known = {tuple(pair) for pair in model["merges"]}
    new = [(tokens[a], tokens[b]) for a, b in merges]
    model["merges"] += [list(pair) for pair in new if pair not in known]
    switches = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"] += [{"id": tokens.index(token), "content": token, **switches} for token in control]
    return trained_here(tokenizers.Tokenizer.from_str(json.dumps(content)))
