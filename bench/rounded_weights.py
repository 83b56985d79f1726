"""What rounded weights cost: bits per byte of held-out text, and greedy answers that stay the same.

    python bench/rounded_weights.py MODEL CORPUS [--bytes 100000]     as runs/quickstart/dpo runs/quickstart/corpus

By the engine, with the weights as they are, in bfloat16 and in 8 bits; in the last two, keys and values are bfloat16,
too. The last line is JSON.
"""

import argparse
import json
import math
from pathlib import Path

from mengya.data.corpus import Corpus
from mengya.data.schoolbook.questions import questions
from mengya.data.schoolbook.tables import load
from mengya.evaluate.bits import windows
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.model.load import load_model
from mengya.text.chat import Chat

ONE = Sampling(temperature=0, max_new_tokens=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--bytes", type=int, default=100_000)
    args = parser.parse_args()
    model, chat = load_model(args.model), Chat.load(args.model)
    texts = list(Corpus(args.corpus).sample("heldout", args.bytes))
    asked = [row["prompt"] for row in questions(load(), 0)][::5]
    found, exact = {}, None
    for weights in ("exact", "bfloat16", "int8"):
        engine = Engine(model, chat.tokenizer, chat.stop_ids, weights=weights)
        bits = bits_of(engine, chat, texts) / sum(len(text.encode()) for text in texts)
        answers = answers_of(engine, chat, asked)
        exact = exact or answers
        same = sum(a == b for a, b in zip(answers, exact, strict=True))
        found |= {f"bits_per_byte_{weights}": round(bits, 5), f"same_answers_{weights}": f"{same} of {len(asked)}"}
        print(f"{weights:9} {bits:.5f} bits per byte, {same} of {len(asked)} answers as they are", flush=True)
    print(json.dumps(found))


def bits_of(engine: Engine, chat: Chat, texts: list[str]) -> float:
    """Of all texts; each is cut as in the report, but for the one token that the engine adds."""
    context = engine.context - 1
    rows = []
    for text in texts:
        ids = [chat.tokenizer.eos_id, *chat.tokenizer.encode(text)]
        cuts = windows(len(ids), context, context - context // 4)
        rows += [(ids[start:last], first - start) for start, first, last in cuts]
    requests = [Request(prompt=ids, sampling=ONE, prompt_logprobs=True) for ids, _ in rows]
    scored = zip(generate(engine, requests), rows, strict=True)
    return -sum(each.logprob for (one,), (_, first) in scored for each in one.prompt_logprobs[first:]) / math.log(2)


def answers_of(engine: Engine, chat: Chat, asked: list[str]) -> list[str]:
    prompts = [chat.encode([{"role": "user", "content": q}], add_generation_prompt=True)[0] for q in asked]
    greedy = Sampling(temperature=0, max_new_tokens=64)
    return [one.text for (one,) in generate(engine, [Request(prompt=ids, sampling=greedy) for ids in prompts])]


if __name__ == "__main__":
    main()
