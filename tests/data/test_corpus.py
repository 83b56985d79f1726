"""The corpus object: what the stage wrote, an older version wrote, or somebody made by hand."""

import json

import numpy as np
import pytest

from mengya.data.corpus import Corpus, CorpusWriter, pair_counts
from mengya.data.documents import Document
from mengya.data.splits import content_hash, is_heldout
from mengya.errors import UserError

TEXTS = [f'第{i}行\u2028 还是一行\n"第二行"' for i in range(2000)]


def by_hand(directory, train, heldout=("x",)):
    for split, texts in (("train", train), ("heldout", heldout)):
        rows = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (directory / f"{split}.jsonl").write_text("".join(rows), encoding="utf-8")
    return Corpus(directory)


def by_stage(directory, train, heldout=("x",), source="raw/书.jsonl"):
    directory.mkdir(exist_ok=True)
    with CorpusWriter(directory) as writer:
        for split, texts in (("train", train), ("heldout", heldout)):
            for number, text in enumerate(texts, 1):
                writer.add(split, Document(text, source, str(number)))
    writer.finish(duplicates=3)
    return Corpus(directory)


def test_what_is_written_is_read(tmp_path):
    corpus = by_stage(tmp_path, TEXTS)
    assert list(corpus.documents("train")) == [Document(t, "raw/书.jsonl", str(n)) for n, t in enumerate(TEXTS, 1)]
    assert list(corpus.texts("train")) == TEXTS and corpus.first("train", 3) == TEXTS[:3]
    assert list(corpus.texts("heldout")) == ["x"]
    assert corpus.counts["train"] == 2000 and corpus.counts["heldout"] == 1 and corpus.counts["duplicates"] == 3
    assert corpus.counts["train_bytes"] == sum(len(text.encode()) for text in TEXTS)


def test_a_corpus_made_by_hand_or_by_version_0_1_0(tmp_path):
    corpus = by_hand(tmp_path, TEXTS[:5])
    assert list(corpus.documents("train"))[2] == Document(TEXTS[2], str(tmp_path / "train.jsonl"), "3")
    assert corpus.counts == {} and corpus.size("train") == (tmp_path / "train.jsonl").stat().st_size
    assert np.array_equal(corpus.byte_pairs(), pair_counts(TEXTS[:5]))
    (tmp_path / "corpus.json").write_text('{"train": 5, "heldout": 1}')
    assert np.array_equal(Corpus(tmp_path).byte_pairs(), pair_counts(TEXTS[:5]))


def test_a_sample_is_spread_and_does_not_depend_on_where_texts_come_from(tmp_path):
    (tmp_path / "hand").mkdir()
    corpora = [by_hand(tmp_path / "hand", TEXTS), by_stage(tmp_path / "a", TEXTS)]
    corpora.append(by_stage(tmp_path / "b", TEXTS, source="a/much/longer/path/to/the/file\udc80.jsonl"))
    assert len({corpus.size("train") for corpus in corpora}) == 1
    samples = [list(corpus.sample("train", corpus.size("train") // 10)) for corpus in corpora]
    assert samples[0] == samples[1] == samples[2] and 120 < len(samples[0]) < 280
    places = np.array([TEXTS.index(text) for text in samples[0]])
    assert abs(places.mean() - 1000) < 150, "spread over the file"
    assert list(corpora[0].sample("train", 10**9)) == TEXTS


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_sample_is_drawn_independently_of_the_split(tmp_path, split):
    """The split is a hash of the content, too: a sample by the same bits would be all of one side or nothing."""
    texts = [f"第{number}篇文章，讲的是第{number}件事。" for number in range(20_000)]
    side = [text for text in texts if is_heldout(content_hash(text), 0.1) == (split == "heldout")]
    corpus = by_hand(tmp_path, **{"train": [], "heldout": []} | {split: side})
    sample = list(corpus.sample(split, corpus.size(split) // 20))
    assert 0.03 < len(sample) / len(side) < 0.07
    assert list(corpus.sample(split, corpus.size(split))) == side


def test_byte_pairs_are_not_counted_again_unless_the_file_was_edited(tmp_path, monkeypatch):
    by_stage(tmp_path, TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "documents", None)  # cannot be read
        assert np.array_equal(Corpus(tmp_path).byte_pairs(), pair_counts(TEXTS))
    with open(tmp_path / "train.jsonl", "a", encoding="utf-8") as file:
        file.write('{"text": "more"}\n')
    edited = Corpus(tmp_path)
    assert np.array_equal(edited.byte_pairs(), pair_counts([*TEXTS, "more"]))
    assert edited.size("train") == (tmp_path / "train.jsonl").stat().st_size


@pytest.mark.parametrize("missing", ["train", "heldout"])
def test_what_is_not_a_corpus(tmp_path, missing):
    by_hand(tmp_path, ["a"])
    (tmp_path / f"{missing}.jsonl").unlink()
    with pytest.raises(
        UserError, match=rf"is not a corpus \(it has no {missing}\.jsonl\); use the output of the corpus"
    ):
        Corpus(tmp_path)


@pytest.mark.parametrize("line", ["not json", "[1]", '{"content": "a"}', "3"])
def test_a_row_without_text(tmp_path, line):
    corpus = by_hand(tmp_path, ["a"])
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"train\.jsonl, line 2 is not a row .*; correct it"):
        list(corpus.texts("train"))
