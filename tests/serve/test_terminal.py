"""The chat in a real pseudo-terminal: editing, interruption, commands."""

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import Command

pytest.importorskip("termios", reason="needs a POSIX pseudo-terminal")

CHILD = """
import os, signal, sys
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits a deaf ear for Ctrl-C
os.login_tty(os.open(TERMINAL, os.O_RDWR))
sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)

from mengya.infer.backends.opening import open_local
from mengya.infer.dialogue import Dialogue
from mengya.infer.request import Sampling
from mengya.serve.terminal import chat

plain = Dialogue.stream

def stream(self, text):
    print(f"[asked {ascii(text)} after {len(self.messages)}]", flush=True)
    return plain(self, text)

Dialogue.stream = stream
sampling = Sampling(temperature=0, max_new_tokens=LENGTH)
backend = open_local(Path(MODEL), running=1)
chat(backend, sampling, questions=QUESTIONS)
backend.close()
print("[left]", flush=True)
"""


class Terminal:
    """A process on a pseudo-terminal of 80 columns."""

    def __init__(self, server: subprocess.Popen, folder: Path, model: Path, length: int, *questions: str):
        self.fd, self._follower = os.openpty()
        given = {"TERMINAL": os.ttyname(self._follower), "MODEL": str(model), "LENGTH": length, "QUESTIONS": questions}
        setup = "".join(f"{name} = {value!r}\n" for name, value in given.items()) + CHILD
        environment = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "COLUMNS": "80"}
        self.process = Command(server, None, folder, folder / "streams", setup, environment)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, seconds: float = 60) -> str:
        """Wait until `pattern` appears; what was printed up to its end, which is then forgotten."""
        deadline = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear in {self.seen!r}"
            self.seen += os.read(self.fd, 65536).decode("utf-8", "replace")
        seen, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return seen

    def ended(self, seconds: float = 20) -> int:
        """The exit code, which must come soon."""
        deadline = time.monotonic() + seconds
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, "it did not end in time"
            time.sleep(0.01)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self._follower)


@pytest.fixture
def terminal(server, tmp_path: Path, model_dir: Path, request: pytest.FixtureRequest) -> Iterator[Terminal]:
    opened = Terminal(server, tmp_path, model_dir, request.param)
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
    assert terminal.ended() == 0


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
    assert terminal.ended() == 0


@pytest.mark.parametrize("terminal", [5], indirect=True)
def test_end_of_input_leaves(terminal: Terminal) -> None:
    terminal.type("\x04")
    terminal.expect(r"\[left\]")
    assert terminal.ended() == 0


@pytest.mark.parametrize("length", [5, 8000])
def test_questions_to_ask_are_answered_first_and_the_chat_begins_anew(
    server, tmp_path: Path, model_dir: Path, length: int
) -> None:
    opened = Terminal(server, tmp_path, model_dir, length, "你是谁？", "一加一")
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
