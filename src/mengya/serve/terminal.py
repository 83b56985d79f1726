"""Chat in a terminal; without one, answer the lines of standard input."""

import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from mengya.errors import UserError
from mengya.infer.backends import Backend
from mengya.infer.dialogue import Dialogue
from mengya.infer.request import Sampling

if TYPE_CHECKING:
    from prompt_toolkit.history import FileHistory

YOU, MORE, SPROUT = "你> ", " … ", "芽> "
HELP = """\
/clear  忘记之前的对话 forget the conversation   (clear, cls)
/help   显示帮助       show this help
/exit   离开           leave                     (exit, quit, Ctrl-D)
\\       行末：下一行继续 at the end of a line: the next one belongs to it
Ctrl-C  停止当前回答   stop the current answer; at the prompt: leave"""
# A model may have learnt escape sequences; printed, they could clear the screen or retitle the window.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Writes to `stream` at once, without control characters and with `?` for what its encoding cannot spell."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.colours: bool = stream.isatty()

    def write(self, text: str) -> None:
        self._put(_CONTROLS.sub("", text))

    def note(self, text: str) -> None:
        """A line of secondary importance."""
        self._put(f"\x1b[2m{text}\x1b[0m\n" if self.colours else text + "\n")

    def _put(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding))
        self._stream.flush()


def chat(
    backend: Backend,
    sampling: Sampling,
    system: str | None = None,
    questions: Sequence[str] = (),
    input: TextIO | None = None,
    output: TextIO | None = None,
    single_turn: bool = False,
    history: Path | None = None,
) -> None:
    """Talk until the user leaves; `system` is the system prompt.

    `questions` are answered first, each in a conversation of its own. Where `input` or `output` is not a terminal, only
    they are answered; if there are none, each line of `input` is a question or a command. `single_turn`: every question
    begins a conversation. `history`: a file that remembers what was typed."""
    source = input or sys.stdin or io.StringIO()  # a service may have neither
    sink = output or sys.stdout or io.StringIO()
    session = Dialogue(backend, sampling, system)
    screen = Screen(sink)
    interactive = source.isatty() and sink.isatty()
    screen.write(f"萌芽 Mengya · {backend.name} · {backend.about}\n")
    for question in questions:
        screen.write(f"{YOU}{question}\n")
        if interactive:
            _answer_or_explain(session, question, screen, interactive)
        else:
            _answer(session, question, screen)
        session.clear()
    if questions and not interactive:
        return
    if interactive:
        screen.note("/help 帮助 · /clear 清空 · /exit 离开 · Ctrl-C 停止回答 stop")
    for text in _typed(source, sink, history) if interactive else _lines(source, screen):
        command = text.lower()
        if command in ("/exit", "/quit", "exit", "quit"):
            return
        if command in ("/clear", "/cls", "clear", "cls"):
            session.clear()
            screen.note("已清空 cleared")
        elif command == "/help":
            screen.write(HELP + "\n")
        elif re.fullmatch(r"/[a-zA-Z]+", text):
            screen.write(f"没有命令 {text} · no such command; /help\n")
        else:
            if single_turn:
                session.clear()
            _answer_or_explain(session, text, screen, interactive)


def _answer_or_explain(session: Dialogue, text: str, screen: Screen, interactive: bool) -> None:
    """Stream one answer; the conversation goes on after an error and, if `interactive`, after Ctrl-C."""
    try:
        _answer(session, text, screen)
    except UserError as error:  # such as a question that is too long
        screen.write(f"(无法回答 no answer: {error})\n")
    except KeyboardInterrupt:
        if not interactive:
            raise
        screen.note(" … 已停止 stopped")


def _answer(session: Dialogue, text: str, screen: Screen) -> None:
    """Stream one answer to the screen."""
    screen.write(SPROUT)
    with closing(session.stream(text)) as pieces:
        for piece in pieces:
            screen.write(piece)
    screen.write("\n")
    screen.note(f"({session.tokens_per_second:.0f} tokens/s)")


def _typed(source: TextIO, sink: TextIO, history: Path | None) -> Iterator[str]:
    """What the user types until Ctrl-C or Ctrl-D. prompt_toolkit edits it: wide characters, history, pasted lines."""
    from prompt_toolkit import PromptSession  # only here: piped questions should not pay for it
    from prompt_toolkit.input.defaults import create_input
    from prompt_toolkit.output.defaults import create_output

    past = remembered(history) if history else None
    prompt: PromptSession[str] = PromptSession(input=create_input(source), output=create_output(sink), history=past)
    while True:
        try:
            text = prompt.prompt(YOU).strip()
            while text.endswith("\\"):
                text = text[:-1] + "\n" + prompt.prompt(MORE)
        except (EOFError, KeyboardInterrupt):
            return
        if text := text.strip():
            yield text


def remembered(path: Path) -> "FileHistory":
    """What was typed before, and a place for what comes. UserError if nothing can be written there."""
    from prompt_toolkit.history import FileHistory

    class Remembered(FileHistory):
        def store_string(self, string: str) -> None:
            with suppress(OSError):  # a disk that is full by now ends no conversation
                super().store_string(string)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # nobody else reads what was asked
        path.open("ab").close()
    except OSError as error:
        raise UserError(f"history={path} cannot be used ({error.strerror}); choose another file") from error
    return Remembered(path)


def _lines(source: TextIO, screen: Screen) -> Iterator[str]:
    """The lines of `source` that are not empty, echoed; bytes that are not text become U+FFFD."""
    raw = getattr(source, "buffer", None)
    encoding = source.encoding or "utf-8"
    for line in source if raw is None else (data.decode(encoding, "replace") for data in raw):
        text = line.strip("\ufeff \t\r\n")
        if text:
            screen.write(f"{YOU}{text}\n")
            yield text
