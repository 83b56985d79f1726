"""The chat in a real pseudo-terminal: editing, interruption, commands."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("termios", reason="needs a POSIX pseudo-terminal")

CHILD = """
import sys

from pathlib import Path

import torch
from mengya.infer.backends.opening import open_local
from mengya.infer.dialogue import Dialogue
from mengya.infer.request import Sampling
from mengya.serve.terminal import chat

torch.set_num_threads(1)
plain = Dialogue.stream

def stream(self, text):
    print(f"[asked {ascii(text)} after {len(self.messages)}]", flush=True)
    return plain(self, text)

Dialogue.stream = stream
sampling = Sampling(temperature=0, max_new_tokens=int(sys.argv[2]))
backend = open_local(Path(sys.argv[1]), running=1)
chat(backend, sampling, questions=sys.argv[3:])
backend.close()
print("[left]", flush=True)
"""


def _enter(follower: int) -> None:
    """In the child: the pseudo-terminal becomes its own. A background job inherits a deaf ear for Ctrl-C; undo that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.login_tty(follower)


class Terminal:
    """A process on a pseudo-terminal of 80 columns."""

    def __init__(self, *arguments: str):
        self.fd, follower = os.openpty()
        environment = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONUTF8": "1", "COLUMNS": "80"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            preexec_fn=lambda: _enter(follower),
            env=environment,
        )
        os.close(follower)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Wait until `pattern` appears; what was printed up to its end, which is then forgotten."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            try:
                data = os.read(self.fd, 65536)
            except OSError:  # the other side is closed
                data = b""
            assert data, f"{pattern!r} did not appear before the end of {self.seen!r}"
            self.seen += data.decode("utf-8", "replace")
        seen, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return seen

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)


@pytest.fixture
def terminal(model_dir: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    opened = Terminal(str(model_dir), str(request.param))
    opened.expect("Mengya.*\n")
    opened.expect("你>")
    yield opened
    opened.close()


@pytest.mark.parametrize("terminal", [5], indirect=True)
def test_a_conversation(terminal: Terminal) -> None:
    terminal.type("你好\x7f们\r")  # the backspace takes a wide character
    terminal.expect(re.escape(f"[asked {'你们'!a} after 0]"))
    terminal.expect(r"\n[\s\S]*\x1b\[2m\(\d+ tokens/s\)\x1b\[0m")
    terminal.expect("你>")
    terminal.type("\x1b[A\x1b[D吗\r")  # history, then one wide character to the left
    terminal.expect(re.escape(f"[asked {'你吗们'!a} after 2]"))
    terminal.expect("tokens/s[\\s\\S]*你>")
    terminal.type("\r\x1b[200~春天\n夏天\x1b[201~\r")  # an empty line, then a paste of two lines
    terminal.expect(re.escape(f"[asked {ascii('春天')[:-1]}\\n{ascii('夏天')[1:]} after 4]"))
    terminal.expect("tokens/s[\\s\\S]*你>")
    terminal.type("cls\r")
    terminal.expect("cleared")
    terminal.expect("你>")
    terminal.type("/help\r")
    terminal.expect("/exit .*leave")
    terminal.expect("你>")
    terminal.type("再来\r")
    terminal.expect(re.escape(f"[asked {'再来'!a} after 0]"))
    terminal.expect("tokens/s[\\s\\S]*你>")
    terminal.type("/exit\r")
    terminal.expect(r"\[left\]")
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("terminal", [8000], indirect=True)
def test_interrupting_answers_and_leaving(terminal: Terminal) -> None:
    for turn in (0, 2):
        terminal.type("你好\r")
        terminal.expect(rf"芽> \[asked .* after {turn}\]\s+[\s\S]{{20}}")
        terminal.type("\x03")
        terminal.expect("已停止 stopped")
        terminal.expect("你>")
    terminal.type("\x03")
    terminal.expect(r"\[left\]")
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("terminal", [5], indirect=True)
def test_end_of_input_leaves(terminal: Terminal) -> None:
    terminal.type("\x04")
    terminal.expect(r"\[left\]")
    assert terminal.process.wait(20) == 0


@pytest.mark.parametrize("length", [5, 8000])
def test_questions_to_ask_are_answered_first_and_the_chat_begins_anew(model_dir: Path, length: int) -> None:
    opened = Terminal(str(model_dir), str(length), "你是谁？", "一加一")
    try:
        for question in ("你是谁？", "一加一"):
            opened.expect(re.escape(f"你> {question}"))
            opened.expect(re.escape(f"[asked {question!a} after 0]"))
            if length == 8000:  # Ctrl-C stops the answer, not the chat
                opened.expect(r"[\s\S]{20}")
                opened.type("\x03")
                opened.expect("已停止 stopped")
        opened.expect("你>")
        opened.type("你好\r")
        opened.expect(re.escape(f"[asked {'你好'!a} after 0]"))
    finally:
        opened.close()
