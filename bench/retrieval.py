"""How well and how fast passages are found, by their words alone.

    python bench/retrieval.py FOLDER [--passages 50000]

FOLDER holds cmrc2018_trial.jsonl and drcd_dev.jsonl.gz. Every paragraph of a set is a file of a knowledge base, every
question is asked; counted is whether a passage of the paragraph that it was written for is among the first five. Then
bases of four paragraphs are asked their own questions and others, as if the model never said anything: of the own ones,
how many reach the model (`own_asked`) and get a quotation (`own_quoted`), of the others, how many do not
(`others_refused`, `others_not_quoted`). Then a base of so many passages is made of the sets' paragraphs with their
sentences in other orders, and asked; and a file is added to it. The last line is JSON: `recall_at_5` and
`few_documents` of each set, the mean `ms_per_query` and its 95th percentile in the large base, `index_50000_s` (or what
--passages says) and `add_file_s`.
"""

import argparse
import gzip
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from contest import features

from mengya.rag.answer import conclude, prepare
from mengya.rag.document import Block, Document
from mengya.rag.passages import SIZE, sentences
from mengya.rag.retrieve import Retriever
from mengya.rag.store import KnowledgeBase, KnowledgeFolder

SETS = {"cmrc2018_trial": "cmrc2018_trial.jsonl", "drcd_dev": "drcd_dev.jsonl.gz"}
FEW = 4
"""Paragraphs of a small base."""
IN_A_FILE = 500
"""Passages of each file of the large base."""


def paragraphs(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(text, questions)."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        for row in map(json.loads, file):
            asked = [qa.get("question") or qa["query_text"] for qa in row["qas"]]
            yield row.get("context") or row["context_text"], asked


def document(name: str, *texts: str) -> Document:
    return Document(name, "text", tuple(Block("text", text) for text in texts))


def recall(base: KnowledgeBase, rows: list[tuple[str, list[str]]]) -> float:
    for number, (text, _) in enumerate(rows):
        base.add(document(str(number), text), str(number))
    found = asked = 0
    for number, (_, questions) in enumerate(rows):
        for question in questions:
            asked += 1
            found += any(hit.stored.file == str(number) for hit in Retriever().find(base, [question], 5))
    return found / asked


class Mute:
    """A model that says nothing."""

    name, about, context = "mute", "", 0


def related(folder: KnowledgeFolder, name: str, rows: list[tuple[str, list[str]]], bases: int = 25) -> dict[str, float]:
    """Of the questions of each base's paragraphs, and of thirty others."""
    rng, counts = random.Random(0), Counter[str]()
    for number in range(bases):
        some = rng.sample(rows, FEW + 30)
        base = folder.open_or_create(f"{name} {number}")
        for place, (text, _) in enumerate(some[:FEW]):
            base.add(document(str(place), text), str(place))
        own = [("own", question) for _, questions in some[:FEW] for question in questions]
        for whose, question in own + [("others", rng.choice(questions)) for _, questions in some[FEW:]]:
            prepared = prepare(Mute(), [base], question)  # type: ignore[arg-type]
            counts.update([whose, *[f"{whose} asked"] * (prepared.answer is None)])
            counts.update([f"{whose} quoted"] * (conclude(prepared, "").kind == "quotation"))
    return {
        "own_asked": round(counts["own asked"] / counts["own"], 4),
        "own_quoted": round(counts["own quoted"] / counts["own"], 4),
        "others_refused": round(1 - counts["others asked"] / counts["others"], 4),
        "others_not_quoted": round(1 - counts["others quoted"] / counts["others"], 4),
    }


def mixed(rows: list[tuple[str, list[str]]], rng: random.Random) -> Iterator[str]:
    """Texts of up to SIZE characters, without end."""
    while True:
        text, _ = rng.choice(rows)
        parts = [text[begin:end] for begin, end in sentences(text)]
        rng.shuffle(parts)
        whole = ""
        for part in parts:
            whole += part if len(whole) + len(part) <= SIZE else ""
        if whole:
            yield whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="with cmrc2018_trial.jsonl and drcd_dev.jsonl.gz")
    parser.add_argument("--passages", type=int, default=50_000, help="of the large base")
    arguments = parser.parse_args()
    sets = {name: list(paragraphs(arguments.folder / file)) for name, file in SETS.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = KnowledgeFolder(Path(scratch))
        found = {name: round(recall(folder.open_or_create(name), rows), 4) for name, rows in sets.items()}
        few = {name: related(folder, name, rows) for name, rows in sets.items()}
        rows = [row for each in sets.values() for row in each]
        texts = mixed(rows, random.Random(0))
        files = [
            document(str(n), *(next(texts) for _ in range(min(IN_A_FILE, arguments.passages - n))))
            for n in range(0, arguments.passages, IN_A_FILE)
        ]
        large, begun = folder.open_or_create("large"), time.perf_counter()
        for file in files:
            large.add(file, file.name)
        indexed = time.perf_counter() - begun
        begun = time.perf_counter()
        large.add(document("another", *(next(texts) for _ in range(50))), "another")
        added = time.perf_counter() - begun
        times = []
        for question in random.Random(1).sample([q for _, questions in rows for q in questions], 200):
            begun = time.perf_counter()
            Retriever().find(large, [question], 5)
            times.append(1000 * (time.perf_counter() - begun))
        passages = large.counts()["passages"]
    print(json.dumps({
        "recall_at_5": found,
        "few_documents": few,
        "ms_per_query": round(sum(times) / len(times), 2),
        "p95_ms": round(sorted(times)[int(0.95 * len(times))], 2),
        f"index_{arguments.passages}_s": round(indexed, 1),
        "passages": passages,
        "add_file_s": round(added, 3),
        "features": features(),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
