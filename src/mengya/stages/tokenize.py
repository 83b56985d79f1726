"""Documents and a tokenizer -> token shards."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from mengya.data.corpus import Corpus, Split
from mengya.data.documents import Document
from mengya.data.rendering import write_documents
from mengya.data.splits import content_hash
from mengya.metrics import format_count, say
from mengya.schema import Input, config
from mengya.stage import Estimate, Inputs, Promise, Promises, Sources, Stage
from mengya.stages.estimates import BYTES_PER_TOKEN, bytes_of_corpora
from mengya.text.tokenizer import Tokenizer


@config
class Config:
    """Encode one corpus, or several as one."""

    corpus: Annotated[str | list[str], Input("corpus")] = "@corpus"
    """Of several, all documents are taken, each once: what a corpus before it, or held-out text, has is left out."""
    tokenizer: Annotated[str, Input("tokenizer")] = "@tokenizer"


def _each_once(corpora: list[Corpus], split: Split, seen: set[bytes]) -> Iterator[Document]:
    """The documents of several corpora whose hash is not in `seen`, to which they are added."""
    for corpus in corpora:
        for document in corpus.documents(split):
            key = content_hash(document.text)
            if key not in seen:
                seen.add(key)
                yield document


def run(config: Config, inputs: Inputs, out: Path) -> None:
    """Write shards into train/ and heldout/, and a copy of the tokenizer."""
    (directory,) = inputs["tokenizer"]
    tokenizer = Tokenizer.load(directory)
    corpora = [Corpus(path) for path in inputs["corpus"]]
    seen: set[bytes] = set()
    splits: tuple[Split, ...] = ("heldout", "train")  # held-out text first, so that none of it is trained on
    for split in splits:
        documents = corpora[0].documents(split) if len(corpora) == 1 else _each_once(corpora, split, seen)
        meta = write_documents(documents, tokenizer, out / split)
        say(
            f"  {split}: {format_count(meta['tokens'])} tokens, "
            f"{meta['bytes'] / max(meta['tokens'], 1):.2f} bytes a token"
        )
    tokenizer.save(out)


def promise(config: Config, inputs: Promises) -> Promise:
    (tokenizer,) = inputs["tokenizer"]
    return dataclasses.replace(tokenizer, path=None, model=None)


def estimate(config: Config, sources: Sources, promise: Promise) -> Estimate:
    """From a rate measured on two cores."""
    text = bytes_of_corpora(sources["corpus"])
    return Estimate(seconds=1 + text / 4e6, disk=0.6 * text, tokens=text / BYTES_PER_TOKEN)


STAGE = Stage(config=Config, run=run, makes=("shards", "tokenizer"), estimate=estimate, promise=promise)
