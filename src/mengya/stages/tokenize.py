"""Documents and a tokenizer -> token shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from mengya.data.cleaning import content_hash
from mengya.data.tokenization import read_texts, write_text_shards
from mengya.errors import UserError
from mengya.metrics import format_count, say
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Sources, Stage
from mengya.stages.estimates import BYTES_PER_TOKEN, bytes_of_corpora, vocab_size_of
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Encode one corpus, or several as one."""

    corpus: Annotated[str | list[str], Input("corpus")] = "@corpus"
    """Of several, all documents are taken, each once: what a corpus before it, or held-out text, has is left out."""
    tokenizer: Annotated[str, Input("tokenizer")] = "@tokenizer"


def _each_once(sources: list[Path], seen: set[bytes]) -> Iterator[str]:
    """The texts of several files whose hash is not in `seen`, to which they are added."""
    for source in sources:
        for text in read_texts(source):
            key = content_hash(text)
            if key not in seen:
                seen.add(key)
                yield text


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write shards into train/ and heldout/, and a copy of the tokenizer."""
    corpora, (directory,) = inputs["corpus"], inputs["tokenizer"]
    tokenizer = Tokenizer.load(directory)
    files = {split: [corpus / f"{split}.jsonl" for corpus in corpora] for split in ("heldout", "train")}
    for source in [*files["train"], *files["heldout"]]:
        if not source.is_file():
            raise UserError(
                f"{source.parent} is no corpus (it has no {source.name}); use the output of the corpus stage"
            )
    seen: set[bytes] = set()
    for split, sources in files.items():  # held-out text first, so that none of it is trained on
        texts = read_texts(sources[0]) if len(corpora) == 1 else _each_once(sources, seen)
        meta = write_text_shards(texts, tokenizer, out / split)
        say(
            f"  {split}: {format_count(meta['tokens'])} tokens, "
            f"{meta['bytes'] / max(meta['tokens'], 1):.2f} bytes a token"
        )
    tokenizer.save(out)


def estimate(config: Config, sources: Sources) -> Estimate:
    """From a rate measured on two cores."""
    text = bytes_of_corpora(sources["corpus"])
    (tokenizer,) = sources["tokenizer"]
    tokens = text / BYTES_PER_TOKEN
    return Estimate(seconds=1 + text / 4e6, disk=0.6 * text, tokens=tokens, vocab_size=vocab_size_of(tokenizer))


STAGE = Stage(config=Config, run=run, makes=("shards", "tokenizer"), estimate=estimate)
