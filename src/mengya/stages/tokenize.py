"""Documents and a tokenizer -> token shards."""

from pathlib import Path

from mengya.data.tokenization import read_texts, write_text_shards
from mengya.errors import UserError
from mengya.metrics import format_count, say
from mengya.schema import InputPath, config
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Encode the corpus."""

    corpus: InputPath = "@corpus"
    tokenizer: InputPath = "@tokenizer"


def run(config: Config, inputs: dict[str, list[Path]], out: Path) -> None:
    """Write shards into train/ and heldout/, and a copy of the tokenizer."""
    (corpus,), (directory,) = inputs["corpus"], inputs["tokenizer"]
    tokenizer = Tokenizer.load(directory)
    for split in ("train", "heldout"):
        source = corpus / f"{split}.jsonl"
        if not source.is_file():
            raise UserError(f"{corpus} is no corpus (it has no {source.name}); use the output of the corpus stage")
        meta = write_text_shards(read_texts(source), tokenizer, out / split)
        say(
            f"  {split}: {format_count(meta['tokens'])} tokens, "
            f"{meta['bytes'] / max(meta['tokens'], 1):.2f} bytes a token"
        )
    tokenizer.save(out)
