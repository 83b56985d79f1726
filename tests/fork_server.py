"""Runs `mengya` commands, each in a forked child of one process that has already imported everything.

That makes a real process of every command (exit code, signals, standard streams) without its seconds of imports.
Protocol, one JSON value a line: a job {argv, cwd, out, setup, environment} is answered with its process id; the id is
answered, when that process has ended, with [exit code, peak memory in bytes]; [the id] at once, with whether it runs.
`setup` is executed first; where argv is null, it is all.
"""

import gc
import json
import os
import sys
import traceback

import peft  # noqa: F401
import torch  # noqa: F401

from mengya import cli, recipe, runner, runtime  # noqa: F401
from mengya.stages import corpus, dpo, evaluate, pretrain, sft, tokenize, tokenizer  # noqa: F401


def run(job: dict) -> int:
    for number, path in enumerate((os.devnull, f"{job['out']}.stdout", f"{job['out']}.stderr")):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    os.chdir(job["cwd"])
    os.environ.update(job["environment"])
    try:
        exec(job["setup"], {})
        return 0 if job["argv"] is None else cli.main(job["argv"])
    except SystemExit as stop:
        return int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main() -> None:
    runtime.peak_flops = lambda dtype, device: 1e11  # its measurement takes a second
    gc.collect()
    gc.freeze()  # else every collection in a child goes through all that is imported, and copies its pages
    answers = os.fdopen(os.dup(1), "w")
    ended: dict[int, list[int]] = {}

    def has_ended(pid: int, options: int) -> bool:
        if pid not in ended:
            found, status, usage = os.wait4(pid, options)
            if found:
                ended[pid] = [os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]
        return pid in ended

    for line in iter(sys.stdin.readline, ""):  # not the iterator, which reads ahead
        job = json.loads(line)
        if isinstance(job, int):
            has_ended(job, 0)
            answer = ended.pop(job)
        elif isinstance(job, list):
            answer = not has_ended(job[0], os.WNOHANG)
        else:
            answer = os.fork()
            if answer == 0:
                os._exit(run(job))
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
