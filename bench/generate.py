"""Generation speed: our engine, transformers' `generate` and, where it is built, llama.cpp, with the 26M model.

    python bench/generate.py [--minutes 3] [--llama-python PYTHON]

One stream, and 16 requests of mixed length at once; greedy, every answer has the same number of tokens and none ends
early. Each contestant has a process of its own, and all take turns; ratios are formed within a round, and the median of
the rounds counts. transformers takes part in float32 and in bfloat16, and the faster one counts; its batch is padded.
llama.cpp takes part, in float32 and in 8 bits, where a Python that has it is named. Ours takes part in float32, and
with weights rounded to bfloat16 and to 8 bits. The last line is JSON: ratio_1 and ratio_16 are tokens a second
against transformers' best, first_16 our time to the last of the first tokens, as a share of its time to them;
llama_cpp_ratio_1 and _16 against llama.cpp, 8 bits against 8 bits in those that end with _int8.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from contest import SHAPE, features

STREAMS = (1, 16)
LENGTHS = [16, 200, 33, 64, 120, 48, 90, 24, 150, 72, 40, 180, 28, 100, 56, 80]
"""Tokens of the prompts; one stream has the fourth."""
ANSWER = 128
Turn = Callable[[int], tuple[float, float]]
"""Streams -> seconds, and seconds until all have their first token."""


def prompts_of(streams: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, SHAPE["vocab_size"], (length,), generator=generator).tolist() for length in LENGTHS]
    return rows[3:4] if streams == 1 else rows


def prepare(folder: Path, llama_python: str | None) -> None:
    """The model with a tokenizer of the embedded schoolbook; and for llama.cpp in float32 and in 8 bits."""
    import torch

    from mengya.data.schoolbook import prose, tables
    from mengya.export import export
    from mengya.model.native.config import ModelConfig
    from mengya.model.native.transformer import CausalLM
    from mengya.text.tokenizer import train_tokenizer

    model = CausalLM(ModelConfig(**SHAPE))
    model.initialize(torch.Generator().manual_seed(0))
    model.save(folder / "model", eos_token_id=0, pad_token_id=0)
    train_tokenizer(prose.documents(tables.load(), 0), SHAPE["vocab_size"], 9).save(folder / "model")
    for kind in ("f32", "q8_0") if llama_python else ():
        export(folder / "model", folder / kind, None, gguf=True, quantize=kind)


def ours(folder: Path, weights: str) -> Turn:
    from mengya.infer.engine import Engine
    from mengya.infer.request import Request, Sampling
    from mengya.model.load import load_model
    from mengya.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder / "model")
    engine = Engine(load_model(folder / "model"), tokenizer, {0}, weights=weights, running=16)
    sampling = Sampling(temperature=0, max_new_tokens=ANSWER)

    def turn(streams: int) -> tuple[float, float]:
        begin, first, left = time.perf_counter(), {}, []
        for number, prompt in enumerate(prompts_of(streams)):

            def deliver(piece, number=number) -> None:
                first.setdefault(number, time.perf_counter())
                if piece.finish:
                    left.append(piece.usage.completion_tokens)

            engine.add(Request(prompt=prompt, sampling=sampling, ignore_eos=True), prompt, deliver)
        while engine.busy:
            engine.step()
        assert left == [ANSWER] * streams
        engine.forget_known()
        return time.perf_counter() - begin, max(first.values()) - begin

    return turn


def transformers(folder: Path, dtype: str) -> Turn:
    import torch
    import transformers as library

    model = library.AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()

    class First(library.LogitsProcessor):
        """Notes when the first tokens are there to be chosen."""

        def __call__(self, ids, scores):
            self.at = self.at or time.perf_counter()
            return scores

    def turn(streams: int) -> tuple[float, float]:
        rows = prompts_of(streams)
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        noted = First()
        noted.at = None
        begin = time.perf_counter()
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=ANSWER, max_new_tokens=ANSWER, pad_token_id=0,
            logits_processor=library.LogitsProcessorList([noted]),
        )  # fmt: skip
        assert out.shape[1] == longest + ANSWER
        return time.perf_counter() - begin, noted.at - begin

    return turn


CONTESTANTS = {
    "ours": (ours, "exact"),
    "ours, weights in bfloat16": (ours, "bfloat16"),
    "ours, weights in 8 bits": (ours, "int8"),
    "transformers float32": (transformers, "float32"),
    "transformers bfloat16": (transformers, "bfloat16"),
}
LLAMA_CPP = {"llama.cpp float32": "f32", "llama.cpp 8 bits": "q8_0"}


def serve(name: str, folder: Path) -> None:
    """In a contestant's process: a line in, a turn, its times out."""
    make, kind = CONTESTANTS[name]
    turn = make(folder, kind)
    for streams in STREAMS:  # what the first call does once is nobody's speed
        turn(streams)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(turn(int(line))), flush=True)


class Worker:
    """A contestant's process."""

    def __init__(self, command: list[str], line: Callable[[int], str]):
        """`line`: what it is told for so many streams."""
        self._line = line
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a contestant died; its message is above")
        return line.strip()

    def turn(self, streams: int) -> list[float]:
        self._process.stdin.write(self._line(streams) + "\n")
        self._process.stdin.flush()
        return json.loads(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def workers_of(folder: Path, llama_python: str | None) -> Iterator[tuple[str, Worker]]:
    for name in CONTESTANTS:
        yield name, Worker([sys.executable, __file__, "--serve", name, "--folder", str(folder)], str)
    for name, kind in LLAMA_CPP.items() if llama_python else ():
        (file,) = (folder / kind).glob("*.gguf")
        script = Path(__file__).with_name("llama_streams.py")
        command = [llama_python or "", str(script), str(file), str(os.cpu_count())]
        worker = Worker(command, lambda streams: json.dumps([prompts_of(streams), ANSWER]))
        for streams in STREAMS:
            worker.turn(streams)
        yield name, worker


def rounds_of(workers: dict[str, Worker], seconds: float) -> Iterator[dict[tuple[str, int], list[float]]]:
    """(contestant, streams) -> its times, a round after the other, begun by another each time."""
    names, end = list(workers), time.monotonic() + seconds
    while True:
        yield {(name, streams): workers[name].turn(streams) for streams in STREAMS for name in names}
        names.append(names.pop(0))
        if time.monotonic() > end:
            return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--llama-python", help="a Python that has llama_cpp")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.folder)
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made), args.llama_python)
        workers: dict[str, Worker] = {}
        try:
            for name, worker in workers_of(Path(made), args.llama_python):
                workers[name] = worker
            rounds = list(rounds_of(workers, args.minutes * 60))
        finally:
            for worker in workers.values():
                worker.close()
    report(rounds)


def report(rounds: list[dict[tuple[str, int], list[float]]]) -> None:
    seconds, first = ({key: statistics.median(r[key][i] for r in rounds) for key in rounds[0]} for i in range(2))
    for name in dict.fromkeys(name for name, _ in seconds):
        speeds = " ".join(f"{streams * ANSWER / seconds[name, streams]:8,.0f}" for streams in STREAMS)
        firsts = " ".join(f"{first[name, streams]:6.3f}" for streams in STREAMS)
        print(f"{name:28} tokens/s {speeds}   first token after {firsts} s")
    peers = [name for name in CONTESTANTS if name.startswith("transformers")]
    best = {streams: min((seconds[name, streams], name) for name in peers)[1] for streams in STREAMS}
    found = {}
    for name, suffix in (
        ("ours", ""),
        ("ours, weights in bfloat16", "_bfloat16"),
        ("ours, weights in 8 bits", "_int8"),
    ):
        for streams in STREAMS:
            ratios = [r[best[streams], streams][0] / r[name, streams][0] for r in rounds]
            found[f"ratio_{streams}{suffix}"] = round(statistics.median(ratios), 2)
    for name, peer, suffix in (
        ("ours", "llama.cpp float32", ""),
        ("ours, weights in 8 bits", "llama.cpp 8 bits", "_int8"),
    ):
        for streams in STREAMS if (peer, 1) in seconds else ():
            ratios = [r[peer, streams][0] / r[name, streams][0] for r in rounds]
            found[f"llama_cpp_ratio_{streams}{suffix}"] = round(statistics.median(ratios), 2)
    firsts = statistics.median(r["ours", 16][1] / r[best[16], 16][1] for r in rounds)
    print(json.dumps(found | {"first_16": round(firsts, 2), "rounds": len(rounds), "features": features()}))


if __name__ == "__main__":
    main()
