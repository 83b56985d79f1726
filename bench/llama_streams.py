"""llama.cpp for bench/generate.py: many streams in one batch, by its low-level interface. Run by a Python that has
llama_cpp, which need not have mengya.

    python llama_streams.py model.gguf THREADS     then, for each line of standard input, a list of prompts as JSON and
    the tokens of an answer: [[[ids], …], count]; out comes [seconds, seconds until all have their first token]
"""

import json
import sys
import time

import llama_cpp as library
import numpy as np

BATCH = 512
"""Tokens that are read at a time."""


class Streams:
    def __init__(self, path: str, threads: int):
        self._silent = library.llama_log_callback(lambda *_: None)
        library.llama_log_set(self._silent, None)
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(path.encode(), library.llama_model_default_params())
        self._size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self._model))
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 16 * 512, BATCH, BATCH, 16
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = False  # each sequence has its own part of the cache: the faster of the two
        self._context = library.llama_init_from_model(self._model, settings)
        self._batch = library.llama_batch_init(BATCH, 0, 1)

    def turn(self, prompts: list[list[int]], count: int) -> tuple[float, float]:
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        begin = time.perf_counter()
        last: dict[int, int] = {}
        todo = [(token, at, row, at + 1 == len(p)) for row, p in enumerate(prompts) for at, token in enumerate(p)]
        for first in range(0, len(todo), BATCH):
            last |= self._decode(todo[first : first + BATCH])
        seen = time.perf_counter() - begin
        for step in range(count - 1):
            last = self._decode([(last[row], len(p) + step, row, True) for row, p in enumerate(prompts)])
        return time.perf_counter() - begin, seen

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """The likeliest next token of each sequence whose last token is among these."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for place, (token, at, row, wanted) in enumerate(tokens):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, at, 1
            batch.seq_id[place][0], batch.logits[place] = row, wanted
        assert library.llama_decode(self._context, batch) == 0
        found = {}
        for place, (_, _, row, wanted) in enumerate(tokens):
            if wanted:
                logits = library.llama_get_logits_ith(self._context, place)
                found[row] = int(np.ctypeslib.as_array(logits, shape=(self._size,)).argmax())
        return found


def main() -> None:
    streams = Streams(sys.argv[1], int(sys.argv[2]))
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(streams.turn(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
