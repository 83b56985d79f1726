"""Documents -> a byte-level BPE tokenizer."""

from pathlib import Path

from mengya.data.tokenization import read_texts, sample_texts
from mengya.errors import UserError
from mengya.metrics import say
from mengya.schema import Count, InputPath, config
from mengya.text.tokenizer import train_tokenizer


@config
class Config:
    """Train a tokenizer."""

    corpus: InputPath = "@corpus"
    vocab_size: Count = 6400
    """Entries, the 256 bytes and the control tokens included."""
    sample_bytes: Count = 10_000_000
    """Text to learn merges from, spread over the corpus; more is slower and barely better."""
    max_token_length: Count = 16
    """Longest entry in bytes (a Chinese character has 3), so that no entry swallows whole phrases."""


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    (corpus,) = inputs["corpus"]
    if not (corpus / "train.jsonl").is_file():
        raise UserError(f"{corpus} is no corpus (it has no train.jsonl); use the output of the corpus stage")
    tokenizer = train_tokenizer(
        sample_texts(corpus / "train.jsonl", config.sample_bytes), config.vocab_size, config.max_token_length
    )
    tokenizer.save(out)
    size = tokens = 0
    for _, text in zip(range(1000), read_texts(corpus / "heldout.jsonl"), strict=False):
        size, tokens = size + len(text.encode()), tokens + len(tokenizer.encode(text))
    say(f"  {tokenizer.vocab_size:,} entries, {size / max(tokens, 1):.2f} bytes a token on held-out text")
