"""Answers from passages, with the number of the passage: how often they are right, and refused where they should be.

    python bench/grounded.py MODEL [--data FOLDER] [--sets schoolbook,cmrc2018,drcd] [--limit 300]

MODEL is a model directory with a chat template. FOLDER holds cmrc2018_trial.jsonl and drcd_dev.jsonl.gz; without it
the schoolbook's held-out passages alone are asked about. A paragraph of the other
two sets is cut into passages after its sentences; those that share most with the question are shown, as many as fit
into the context. Every third question gets the passages of another paragraph, and is to be refused. A model with a
context under 4,096 tokens is asked as `mengya ask` does: about one sentence after another, if it has learnt that.

The last line is JSON. Of the questions whose answer is in the passages that are shown: `answered` is the share that was
not refused, `cited` that cites a passage that holds the answer, `exact` that gives it and nothing else, `f1` its
overlap with the answer in Han and words. `refused` is the share of the others that was refused. For all questions
together, and under `sets` for each set, with the numbers of `questions` of both sorts.

`quoted` and `unquoted` are the same for every model: what `mengya ask` shows where a small one fails. Of the questions
with an answer, the share whose quotation holds it; of the others, the share for which nothing is quoted.
"""

import argparse
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FILES = {"cmrc2018": "cmrc2018_trial.jsonl", "drcd": "drcd_dev.jsonl.gz"}
ANSWER = 64
"""Tokens of the longest answer."""
Row = dict[str, Any]
"""A question of the task "grounded"; `golds`, the right answers, none if there is none; `cites`, passages with one."""


def schoolbook(limit: int) -> Iterator[Row]:
    from mengya.data.schoolbook import passages, tables
    from mengya.text.grounding import parse_answer, without_citations

    for row in passages.questions(random.Random("bench"), tables.load(), limit):
        right = parse_answer(row["answer"], len(row["passages"]))
        golds = [] if right.refused else [without_citations(right.text)]
        yield row | {"golds": golds, "cites": set(right.cited)}


def paragraphs(path: Path) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(text, [(question, answers)]) of either set."""
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    found = []
    for row in (json.loads(line) for line in text.decode().split("\n") if line):
        asked = [(qa["query_text"] if "query_text" in qa else qa["question"], qa["answers"]) for qa in row["qas"]]
        plain = [(question, [a["text"] if isinstance(a, dict) else a for a in answers]) for question, answers in asked]
        context = row["context_text"] if "context_text" in row else row["context"]
        found.append((context, [(question, answers) for question, answers in plain if question.strip()]))
    return found


def cut(text: str, longest: int) -> list[str]:
    """Passages of whole sentences, or of parts of one that is longer."""
    sentences = [sentence for sentence in re.split(r"(?<=[。！？；])", text) if sentence.strip()]
    passages = [""]
    for piece in (s[i : i + longest] for s in sentences for i in range(0, len(s), longest)):
        if passages[-1] and len(passages[-1]) + len(piece) > longest:
            passages.append("")
        passages[-1] += piece
    return passages


def nearest(question: str, passages: list[str], count: int) -> list[str]:
    """Those that share most pairs of characters with the question, in their order."""
    pairs = {question[i : i + 2] for i in range(len(question) - 1)}
    best = sorted(range(len(passages)), key=lambda n: -sum(pair in passages[n] for pair in pairs))[:count]
    return [passages[n] for n in sorted(best)]


def reading(path: Path, limit: int, longest: int, fits: Callable[[str, list[str]], bool]) -> Iterator[Row]:
    """Questions spread over the paragraphs."""
    read = paragraphs(path)
    asked = [(n, question, golds) for n, (_, qas) in enumerate(read) for question, golds in qas]
    random.Random(0).shuffle(asked)
    for i, (n, question, golds) in enumerate(asked[:limit]):
        other = i % 3 == 0
        passages = cut(read[(n + len(read) // 2) % len(read) if other else n][0], longest)
        shown = next(s for k in range(4, -1, -1) if fits(question, s := nearest(question, passages, k)))
        cites = {number for number, text in enumerate(shown, 1) if any(gold in text for gold in golds)}
        if shown and bool(cites) != other:  # otherwise the answer was not among those that are shown, or was by chance
            yield {"prompt": question, "passages": shown, "golds": [] if other else golds, "cites": cites}


def overlap(said: str, gold: str) -> float:
    """F1 of Han characters and of words of other scripts."""
    counts = [Counter(re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower())) for text in (said, gold)]
    same = (counts[0] & counts[1]).total()
    return 2 * same / (counts[0].total() + counts[1].total()) if same else 0.0


def measured(rows: list[Row], responses: list[str]) -> dict[str, Any]:
    from mengya.rag.quote import best_of, is_quotable, words_of
    from mengya.tasks.exact import normalise
    from mengya.text.grounding import parse_answer, without_citations

    sums: Counter[str] = Counter()
    for row, response in zip(rows, responses, strict=True):
        said = parse_answer(response, len(row["passages"]))
        text = normalise(without_citations(said.text))
        quotable = is_quotable([row["prompt"]], row["passages"])
        if not row["golds"]:
            sums.update(others=1, refused=said.refused, unquoted=not quotable)
            continue
        number, begin, end = best_of(words_of(row["prompt"]), row["passages"])
        quote = row["passages"][number][begin:end]
        golds = [normalise(gold) for gold in row["golds"]]
        sums.update(questions=1, answered=not said.refused, cited=bool(row["cites"] & set(said.cited)))
        sums.update(exact=text in golds, f1=max(overlap(text, gold) for gold in golds))
        sums.update(quoted=quotable and any(gold in quote for gold in row["golds"]))
    asked, others = max(sums["questions"], 1), max(sums["others"], 1)
    shares = {key: round(sums[key] / asked, 4) for key in ("answered", "cited", "exact", "f1", "quoted")}
    shares |= {key: round(sums[key] / others, 4) for key in ("refused", "unquoted")}
    return shares | {"questions": [sums["questions"], sums["others"]]}


def main() -> None:
    from mengya import runtime
    from mengya.evaluate.questions import ask
    from mengya.infer.backends.opening import open_backend
    from mengya.model.load import load_model
    from mengya.rag.answer import LARGE
    from mengya.rag.quote import is_quotable
    from mengya.rag.small import read
    from mengya.tasks.grounded import TASK
    from mengya.tasks.task import Question
    from mengya.text.chat import Chat
    from mengya.text.grounding import CHINESE, grounded_message

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, help="folder with the files of CMRC 2018 and DRCD")
    parser.add_argument("--sets", help="of schoolbook,cmrc2018,drcd; default: all that there are")
    parser.add_argument("--limit", type=int, default=300, help="questions of a set")
    parser.add_argument("--longest", type=int, default=80, help="characters of a passage of CMRC 2018 and DRCD")
    parser.add_argument("--shown", type=int, default=0, help="answers to print of each set")
    args = parser.parse_args()
    names = (args.sets or ",".join(["schoolbook", *(FILES if args.data else ())])).split(",")
    device = runtime.pick_device()
    model = load_model(args.model, runtime.pick_dtype("auto", device), device)
    chat = Chat.load(args.model)

    def fits(question: str, passages: list[str]) -> bool:
        asked = [{"role": "user", "content": grounded_message(question, passages)}]
        return len(chat.encode(asked, add_generation_prompt=True)[0]) + ANSWER <= model.context

    backend = open_backend(str(args.model)) if model.context < LARGE else None

    def by_sentences(row: Row) -> str | None:
        """By one sentence after another; None: from all passages."""
        found = read(backend, row["prompt"], row["passages"]) if backend else None
        if found is not None and found.text:
            return f"{found.text}[{found.passage + 1}]。"
        if found is not None or (backend and not is_quotable([row["prompt"]], row["passages"])):
            return CHINESE.refusal
        return None

    def answers(rows: list[Row]) -> list[str]:
        said = [by_sentences(row) for row in rows]
        left = [
            Question(TASK, str(i), row) for i, (row, text) in enumerate(zip(rows, said, strict=True)) if text is None
        ]
        rest = iter(ask(model, chat, left, max_new_tokens=ANSWER))
        return [next(rest) if text is None else text for text in said]

    rows: list[Row] = []
    responses: list[str] = []
    sets = {}
    for name in names:
        book = name == "schoolbook"
        found = list(
            schoolbook(args.limit) if book else reading(args.data / FILES[name], args.limit, args.longest, fits)
        )
        said = answers(found)
        for row, response in list(zip(found, said, strict=True))[: args.shown]:
            print(f"{grounded_message(row['prompt'], row['passages'])}\n-> {response!r}, right: {row['golds']}\n")
        sets[name] = measured(found, said)
        print(f"{name}: {sets[name]}", flush=True)
        rows, responses = rows + found, responses + said
    if backend:
        backend.close()
    print(json.dumps(measured(rows, responses) | {"sets": sets}))


if __name__ == "__main__":
    main()
