"""Ask a server for more than it has room for, from clients of which some leave in the middle of an answer.

    python bench/server_load.py MODEL [--clients 16] [--seconds 60]
    python bench/server_load.py http://127.0.0.1:8000/v1 [--model NAME] [--key KEY] [--clients 16] [--seconds 60]

A MODEL (a directory) is served here, with room for half as many answers as there are clients, and is first asked for a
quarter of the time by half as many clients as it has room for; a server that runs elsewhere has the room that it has.
Each client asks again and again: most for a stream, some for a plain answer, a quarter leaves after the first pieces.
Who is sent away (429) waits as it is told. The last line is JSON: how many answers were complete, refused, cancelled by
their client, and errors (anything else, such as a stream that breaks off); the 95th percentile of the seconds to the
first piece, also at half load; by which share the server's memory grew after the first tenth of the time, or null where
it does not tell; and the answers that it held when all clients had gone, `left_open`.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from contest import features

QUESTIONS = ("你好！", "春天有什么？", "熊猫吃什么？", "Tell me a story about a sprout.", "讲一个很长很长的故事。")
LEAVES, PLAIN = 0.25, 0.3
"""Shares of the requests: whose client leaves; that are no streams."""
WARM_UP = 0.1
"""Share of the time after which memory counts."""


@dataclass
class Tally:
    counts: collections.Counter = field(default_factory=collections.Counter)
    first: list[float] = field(default_factory=list)
    faults: collections.Counter = field(default_factory=collections.Counter)


async def ask(client: httpx.AsyncClient, model: str | None, rng: random.Random, tally: Tally) -> float:
    """One request, counted. Seconds to wait before the next."""
    message = {"role": "user", "content": rng.choice(QUESTIONS)}
    body = {"model": model, "messages": [message], "max_tokens": rng.choice((8, 32, 64))}
    if rng.random() < PLAIN:
        answer = await client.post("chat/completions", json=body)
        if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"]:
            tally.counts["complete"] += 1
            return 0.0
        return refused(answer, tally)
    leaves = rng.random() < LEAVES
    begun, done, pieces = time.monotonic(), False, 0
    async with client.stream("POST", "chat/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            return refused(answer, tally)
        async for line in answer.aiter_lines():
            done = done or line == "data: [DONE]"
            if line.startswith("data: {"):
                told = json.loads(line[6:])
                if "error" in told:
                    break
                pieces += bool(told["choices"][0]["delta"].get("content"))
                if pieces == 1 and told["choices"][0]["delta"].get("content"):
                    tally.first.append(time.monotonic() - begun)
            if leaves and pieces == 2:
                tally.counts["cancelled"] += 1
                return 0.0
    tally.counts["complete" if done else "errors"] += 1
    if not done:
        tally.faults["a stream broke off"] += 1
    return 0.0


def refused(answer: httpx.Response, tally: Tally) -> float:
    if answer.status_code == 429:
        tally.counts["refused"] += 1
        return float(answer.headers["retry-after"])
    tally.counts["errors"] += 1
    tally.faults[f"status {answer.status_code}"] += 1
    return 0.0


async def keep_asking(url: str, key: str, model: str | None, end: float, seed: int, tally: Tally) -> None:
    rng = random.Random(seed)
    async with httpx.AsyncClient(base_url=url, headers=bearer(key), timeout=60) as client:
        while time.monotonic() < end:
            try:
                wait = await ask(client, model, rng, tally)
            except (httpx.HTTPError, ValueError, KeyError, IndexError) as error:
                tally.counts["errors"] += 1
                tally.faults[type(error).__name__] += 1
                wait = 0.1
            await asyncio.sleep(min(wait * rng.uniform(0.5, 1.5), max(0.0, end - time.monotonic())))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def figure(url: str, key: str, name: str) -> float | None:
    """The sum of a figure that the server tells; None if it tells none."""
    async with httpx.AsyncClient(headers=bearer(key), timeout=10) as client:
        answer = await client.get(url.removesuffix("/").removesuffix("/v1") + "/metrics")
    found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", answer.text, re.MULTILINE)
    return sum(map(float, found)) if answer.status_code == 200 and found else None


async def open_answers(url: str, key: str) -> float | None:
    """What runs or waits once it had time to see that its clients have gone."""
    for _ in range(50):
        parts = [await figure(url, key, f"mengya_{kind}") for kind in ("running", "waiting")]
        if None in parts or not any(parts):
            break
        await asyncio.sleep(0.1)
    return None if None in parts else sum(part or 0 for part in parts)


async def load(url: str, clients: int, seconds: float, key: str = "none", model: str | None = None) -> dict:
    """What the last line shows."""
    tally, begun = Tally(), time.monotonic()
    tasks = [asyncio.create_task(keep_asking(url, key, model, begun + seconds, seed, tally)) for seed in range(clients)]
    await asyncio.sleep(seconds * WARM_UP)
    before = await figure(url, key, "process_resident_memory_bytes")
    await asyncio.gather(*tasks)
    left = await open_answers(url, key)
    after = await figure(url, key, "process_resident_memory_bytes")
    first = sorted(tally.first)
    return {
        **{name: tally.counts[name] for name in ("complete", "refused", "cancelled", "errors")},
        "p95_first_token": round(first[int(0.95 * (len(first) - 1))], 4) if first else None,
        "memory_growth": round(after / before - 1, 4) if before and after else None,
        "left_open": left,
        "faults": dict(tally.faults),
        "clients": clients,
        "seconds": seconds,
    }


@contextlib.contextmanager
def served(model: str, room: int) -> Iterator[str]:
    """The address of `model`, served by a process of its own."""
    command = [sys.executable, "-m", "mengya", "serve", model, "--port", "0", "--open-answers", str(room)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout
            url = next((found[0] for line in process.stdout if (found := re.search(r"http://\S+/v1", line))), None)
            if url is None:
                raise SystemExit(f"{model} cannot be served; try mengya serve {model}")
            yield url
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", help="a model directory, or the address of a server, with /v1")
    parser.add_argument("--model", help="its name there; default: the first that is served")
    parser.add_argument("--key", default="none")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    there = arguments.target.startswith(("http://", "https://"))
    room = max(1, arguments.clients // 2)
    at_half = {}
    with contextlib.nullcontext(arguments.target) if there else served(arguments.target, room) as url:
        if not there:
            half = asyncio.run(load(url, max(1, room // 2), arguments.seconds / 4))
            at_half = {"p95_first_token_half_load": half["p95_first_token"]}
        found = asyncio.run(load(url, arguments.clients, arguments.seconds, arguments.key, arguments.model))
    print(json.dumps(found | at_half | {"features": features()}))


if __name__ == "__main__":
    main()
