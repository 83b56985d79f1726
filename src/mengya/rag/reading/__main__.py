"""The process that reads one file: `worker.read_file` starts it, tells it on its input which, and reads its output.

Lines of JSON, never pickles: {"done": 3, "pages": 10} after each page, then {"document": …} or {"error": "…"}.
"""

import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mengya.errors import UserError
from mengya.rag.reading.draft import Source
from mengya.rag.reading.kinds import read_source
from mengya.rag.reading.limits import Limits

_FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn")
"""A reader needs no network and no programs, whatever a file makes its library do."""


def main() -> None:
    # Libraries print what they like: their output must not get between ours.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_follow, daemon=True).start()
    limits = Limits(**asked["limits"])
    _restrict(limits)

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    def progress(done: int, pages: int) -> None:
        tell({"done": done, "pages": pages})

    try:
        source = Source(Path(asked["path"]), asked["name"], limits, progress)
        tell({"document": asdict(read_source(source))})
    except UserError as error:
        tell({"error": str(error)})
    except MemoryError:
        tell({"error": f"reading it needs more than {limits.memory_bytes >> 20:,} MB of memory; split the file"})
    except Exception as error:
        print(repr(error), file=sys.stderr)
        tell({"error": f"it cannot be read and may be damaged ({type(error).__name__}); open it and save it again"})
    out.flush()
    os._exit(0)  # libraries with threads may not come to an end by themselves


def _follow() -> None:
    """End with the process that asked, even if it is killed: its end of our input is closed then."""
    sys.stdin.buffer.read()
    os._exit(1)


def _restrict(limits: Limits) -> None:
    """Less memory, no large files, no core dumps, no network, no programs, and behind others for the processors."""
    if os.name == "posix":
        import resource

        # Where a system does not know one of these, the limits on time and size hold still.
        for kind, value in ((resource.RLIMIT_AS, limits.memory_bytes), (resource.RLIMIT_CORE, 0)):
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (value, value))
        os.nice(10)

    def refuse(event: str, arguments: tuple) -> None:
        if event in _FORBIDDEN:
            raise PermissionError(f"{event} while a file is read")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main()
