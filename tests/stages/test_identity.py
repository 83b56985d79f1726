"""A document's identity, from the raw file to the shard; and corpora that do not have it."""

import json
from itertools import pairwise

import pytest

from mengya.data import schoolbook
from mengya.data.corpus import Corpus
from mengya.data.shards import Shards
from mengya.stages import corpus
from mengya.text.tokenizer import Tokenizer

from ..conftest import write_jsonl


def shards_of(folder, split):
    """{(source, id): text} in order."""
    shards, tokenizer = Shards(folder / split), Tokenizer.load(folder)
    offsets = shards.offsets.tolist()
    texts = [tokenizer.decode(shards.tokens[a:b]) for a, b in pairwise(offsets)]
    return dict(zip(shards.origins(), texts, strict=True))


def test_source_and_id_lead_from_the_shard_to_the_row_of_the_raw_file(project, mengya):
    raw = (project / "text.jsonl").read_text().splitlines()
    write_jsonl(project / "more.json", [])
    (project / "more.json").write_text('[{"content": "the cat sat"}, {"content": "  "}, {"content": "a mat ran"}]')
    arguments = ['corpus.path=["text.jsonl", "more.json"]', "--until", "tokenize", "--out", "run"]
    assert mengya("run", "tiny.toml", *arguments).code == 0
    found = {}
    for split in ("train", "heldout"):
        part = shards_of(project / "run/tokenize", split)
        written = Corpus(project / "run/corpus").documents(split)
        assert list(part.items()) == [((d.source, d.id), d.text) for d in written] and part
        found |= part
    assert found.pop(("more.json", "1")) == "the cat sat" and found.pop(("more.json", "1.3")) == "a mat ran"
    assert {source for source, _ in found} == {"text.jsonl"} and len(found) == len(raw)
    assert all(json.loads(raw[int(line) - 1])["text"] == text for (_, line), text in found.items())


def test_the_schoolbooks_texts_are_documents(tmp_path, monkeypatch):
    def write(out, seed):
        write_jsonl(out / "text.jsonl", [{"text": f"第{number}课"} for number in range(50)])

    monkeypatch.setattr(schoolbook, "write", write)
    corpus.run(corpus.Config(schoolbook=True, heldout=0.2), {}, tmp_path)
    found = [document for split in ("train", "heldout") for document in Corpus(tmp_path).documents(split)]
    assert {(d.source, d.text, d.id) for d in found} == {("schoolbook", f"第{n}课", str(n + 1)) for n in range(50)}
    assert not (tmp_path / "text.jsonl").exists()


@pytest.mark.parametrize("identity", [True, False])
def test_a_corpus_made_by_hand_gives_the_same_shards(grown, mengya, identity):
    by_hand = grown / "by_hand"
    by_hand.mkdir()
    for split in ("train", "heldout"):
        documents = Corpus(grown / "run/corpus").documents(split)
        write_jsonl(by_hand / f"{split}.jsonl", [d._asdict() if identity else {"text": d.text} for d in documents])
    path = json.dumps(str(by_hand))
    overrides = [f"{stage}.corpus={path}" for stage in ("tokenizer", "tokenize")]
    assert mengya("run", "tiny.toml", *overrides, "--until", "tokenize", "--out", "other").code == 0
    for split in ("train", "heldout"):
        one, other = (shards_of(grown / run / "tokenize", split) for run in ("run", "other"))
        assert list(one.values()) == list(other.values())
        assert (list(one) == list(other)) == identity
        assert identity or list(other)[:2] == [(str(by_hand / f"{split}.jsonl"), str(n)) for n in (1, 2)]
