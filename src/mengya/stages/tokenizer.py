"""Documents -> a byte-level BPE tokenizer, new or grown from another."""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated

from mengya.data.corpus import Corpus
from mengya.errors import UserError
from mengya.metrics import say
from mengya.schema import Count, Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.estimates import bytes_of_corpora
from mengya.stages.known import kept_template
from mengya.text.chat import Chat
from mengya.text.extension import check_extension, extend_tokenizer, vocabulary
from mengya.text.template import with_template_of
from mengya.text.tokenizer import check_size, read_backend, train_tokenizer


@config
class Config:
    """Train a tokenizer."""

    corpus: Annotated[str | list[str], Input("corpus")] = "@corpus"
    """One corpus, or several, sampled by size."""
    extend: Annotated[str, Input("tokenizer")] | None = None
    """A tokenizer to grow, e.g. "@tokenizer" or a model directory: its entries keep their ids, new ones follow."""
    vocab_size: Count = 6400
    """Entries, the 256 bytes and the control tokens included; when extending, the old entries, too."""
    sample_bytes: Count = 10_000_000
    """Text to learn merges from, spread over the corpus; more is slower and barely better."""
    max_token_length: Count = 15
    """Longest entry in bytes (a Chinese character has 3), so that no entry swallows whole phrases."""


def _sample(corpora: list[Corpus], max_bytes: int) -> Iterator[str]:
    """Documents of all corpora, from each in proportion to its size."""
    sizes = [corpus.size("train") for corpus in corpora]
    share = max_bytes / max(sum(sizes), 1)
    samples = (corpus.sample("train", int(share * size)) for corpus, size in zip(corpora, sizes, strict=True))
    return chain.from_iterable(samples)


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    corpora = [Corpus(path) for path in inputs["corpus"]]
    sample = _sample(corpora, config.sample_bytes)
    if "extend" in inputs:
        (old,) = inputs["extend"]
        backend = read_backend(old)
        grown = extend_tokenizer(backend, sample, config.vocab_size, config.max_token_length)
        tokenizer = with_template_of(old, grown)
        added = tokenizer.vocab_size - len(vocabulary(backend))
        before = _density(lambda text: len(backend.encode(text, add_special_tokens=False)), corpora)
        say(f"  {added:,} entries added to those of {old.name}, which had {before}")
    else:
        trained = train_tokenizer(sample, config.vocab_size, config.max_token_length)
        tokenizer = Chat(trained, "chatml").tokenizer
    tokenizer.save(out)
    say(f"  {tokenizer.vocab_size:,} entries, {_density(lambda text: len(tokenizer.encode(text)), corpora)}")


def _density(count: Callable[[str], int], corpora: list[Corpus]) -> str:
    size = tokens = 0
    for corpus in corpora:
        for text in corpus.first("heldout", 1000):
            size, tokens = size + len(text.encode()), tokens + count(text)
    return f"{size / max(tokens, 1):.2f} bytes a token on held-out text"


def promise(config: Config, inputs: Promises) -> Promise:
    if config.extend is None:
        check_size(config.vocab_size)
        return Promise(vocab_size=config.vocab_size)
    (old,) = inputs["extend"]
    if old.tokenizer is not None:
        check_extension(read_backend(old.tokenizer), config.vocab_size)
    elif config.vocab_size <= old.vocab_size:
        raise UserError(
            f"vocab_size={config.vocab_size} leaves no room: the tokenizer to extend has {old.vocab_size} entries; "
            f"set it above {old.vocab_size}"
        )
    return Promise(vocab_size=config.vocab_size, template=kept_template(old))


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    """From rates measured on two cores."""
    text = min(bytes_of_corpora(sources["corpus"]), config.sample_bytes)
    return Estimate(seconds=1 + text / (1e6 if config.extend else 1.5e6))


STAGE = Stage(config=Config, run=run, makes=("tokenizer",), estimate=estimate, promise=promise)
