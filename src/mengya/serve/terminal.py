"""Chat in a terminal; without one, answer the lines of standard input."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TextIO

import torch

from mengya.errors import UserError
from mengya.infer.request import Sampling
from mengya.infer.session import Session
from mengya.metrics import format_count
from mengya.model.language_model import LanguageModel
from mengya.model.load import load_model
from mengya.runtime import pick_device
from mengya.text.chat import Chat

YOU, SPROUT = "你> ", "芽> "
HELP = """\
/clear  忘记之前的对话 forget the conversation   (clear, cls)
/help   显示帮助       show this help
/exit   离开           leave                     (exit, quit, Ctrl-D)
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


def load_chat_model(model_dir: Path | str, trust_remote_code: bool = False) -> tuple[LanguageModel, Chat]:
    """The model of a directory, in evaluation mode, and its chat. UserError if they are missing or do not fit.

    float32 on a processor, where single rows decode faster than in bfloat16; bfloat16 on a GPU."""
    directory = Path(model_dir)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a directory; give a model directory, such as one that the sft stage wrote")
    device = pick_device()
    chat = Chat.load(directory)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = load_model(directory, dtype, device, trust_remote_code=trust_remote_code)
    if chat.tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {chat.tokenizer.vocab_size} entries but the model only "
            f"{model.vocab_size} embedding rows; copy the tokenizer files that belong to this model"
        )
    return model, chat


def chat(
    model_dir: Path | str,
    sampling: Sampling,
    system: str | None = None,
    questions: Sequence[str] = (),
    input: TextIO | None = None,
    output: TextIO | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Talk until the user leaves; `system` is the system prompt. UserError if `model_dir` is not a usable model.

    `questions` are answered first, each in a conversation of its own. Where `input` or `output` is not a terminal, only
    they are answered; if there are none, each line of `input` is a question or a command."""
    source, sink = input or sys.stdin, output or sys.stdout
    model, spoken = load_chat_model(model_dir, trust_remote_code)
    session = Session(model, spoken, sampling, system)
    screen = Screen(sink)
    interactive = source.isatty() and sink.isatty()
    size = format_count(model.all_parameters())
    screen.write(f"萌芽 Mengya · {model_dir} · {size} 参数 parameters · 上下文 context {model.context}\n")
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
    for text in _typed(source, sink) if interactive else _lines(source, screen):
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
            _answer_or_explain(session, text, screen, interactive)


def _answer_or_explain(session: Session, text: str, screen: Screen, interactive: bool) -> None:
    """Stream one answer; the conversation goes on after an error and, if `interactive`, after Ctrl-C."""
    try:
        _answer(session, text, screen)
    except UserError as error:  # such as a question that is too long
        screen.write(f"(无法回答 no answer: {error})\n")
    except KeyboardInterrupt:
        if not interactive:
            raise
        screen.note(" … 已停止 stopped")


def _answer(session: Session, text: str, screen: Screen) -> None:
    """Stream one answer to the screen."""
    screen.write(SPROUT)
    with closing(session.stream(text)) as pieces:
        for piece in pieces:
            screen.write(piece)
    screen.write("\n")
    screen.note(f"({session.tokens_per_second:.0f} tokens/s)")


def _typed(source: TextIO, sink: TextIO) -> Iterator[str]:
    """What the user types until Ctrl-C or Ctrl-D. prompt_toolkit edits it: wide characters, history, pasted lines."""
    from prompt_toolkit import PromptSession  # only here: piped questions should not pay for it
    from prompt_toolkit.input.defaults import create_input
    from prompt_toolkit.output.defaults import create_output

    prompt: PromptSession[str] = PromptSession(input=create_input(source), output=create_output(sink))
    while True:
        try:
            text = prompt.prompt(YOU).strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text:
            yield text


def _lines(source: TextIO, screen: Screen) -> Iterator[str]:
    """The lines of `source` that are not empty, echoed; bytes that are not text become U+FFFD."""
    raw = getattr(source, "buffer", None)
    encoding = source.encoding or "utf-8"
    for line in source if raw is None else (data.decode(encoding, "replace") for data in raw):
        text = line.strip("\ufeff \t\r\n")
        if text:
            screen.write(f"{YOU}{text}\n")
            yield text
