"""The chat without a terminal: lines in, answers out."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mengya.errors import UserError
from mengya.infer.backends.opening import open_local
from mengya.infer.dialogue import Dialogue
from mengya.infer.request import Sampling
from mengya.serve import terminal
from mengya.serve.terminal import HELP

SHORT = Sampling(temperature=0, max_new_tokens=5)


def chat(model_dir: Path, *arguments, **options) -> None:
    with contextlib.closing(open_local(model_dir, running=1)) as backend:
        terminal.chat(backend, *arguments, **options)


def talk(model_dir: Path, lines: str | bytes, sampling: Sampling = SHORT, system: str | None = None) -> str:
    data = lines if isinstance(lines, bytes) else lines.encode()
    output = io.StringIO()
    chat(model_dir, sampling, system, (), io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"), output)
    return output.getvalue()


def expected(model_dir: Path, turns: list[str], system: str | None = None) -> list[str]:
    with contextlib.closing(open_local(model_dir, running=1)) as backend:
        dialogue = Dialogue(backend, SHORT, system)
        return ["".join(dialogue.stream(turn)) for turn in turns]


def answers(text: str) -> list[str]:
    """What stands after 芽> up to the line with the speed, with control characters already removed."""
    return [part.split("\n(")[0] for part in text.split("芽> ")[1:]]


def visible(text: str) -> str:
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


@pytest.mark.parametrize("system", [None, "你是小草。"])
def test_lines_are_questions_of_one_conversation(model_dir: Path, system: str | None) -> None:
    text = talk(model_dir, "你好\r\n\n   \n熊猫吃什么？\n", system=system)
    assert answers(text) == [visible(a) for a in expected(model_dir, ["你好", "熊猫吃什么？"], system)]
    assert "你> 你好\n" in text and "你> 熊猫吃什么？\n" in text
    assert "tokens/s" in text and "\x1b" not in text
    assert text.startswith("萌芽 Mengya") and "34.7k 参数 parameters · 上下文 context 8192" in text.splitlines()[0]


@pytest.mark.parametrize("word", ["/clear", "clear", "cls", "CLS"])
def test_clear_begins_anew(model_dir: Path, word: str) -> None:
    first, second = answers(talk(model_dir, f"你好\n{word}\n你好"))
    assert first == second
    assert "你> " + word in talk(model_dir, word)


@pytest.mark.parametrize("word", ["/exit", "exit", "quit", "/quit"])
def test_exit_leaves(model_dir: Path, word: str) -> None:
    assert answers(talk(model_dir, f"{word}\n你好\n")) == []


def test_help_and_unknown_command(model_dir: Path) -> None:
    text = talk(model_dir, "/help\n/reset\n")
    assert HELP in text and "没有命令 /reset" in text and answers(text) == []


def test_too_long_a_line_is_explained_and_the_chat_goes_on(model_dir: Path) -> None:
    text = talk(model_dir, "熊" * 20_000 + "\n你好\n")
    long, short = text.split("芽> ")[1:]
    assert "shorten it" in long
    assert short.split("\n(")[0] == visible(expected(model_dir, ["你好"])[0])


@pytest.mark.parametrize("data", [b"\xff\xfe\x00a\n", "\ud83d".encode("utf-8", "surrogatepass"), "😀\u202e\n".encode()])
def test_any_bytes_are_safe(model_dir: Path, data: bytes) -> None:
    assert len(answers(talk(model_dir, data))) == 1


def test_no_input_at_all(model_dir: Path) -> None:
    assert answers(talk(model_dir, b"")) == []


def test_a_service_without_input_and_output(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was closed before the start (<&-) is None in Python."""
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stdout", None)
    chat(model_dir, SHORT)


@pytest.mark.parametrize("path", [".", "file/below", "/proc/nothing/x"])
def test_a_history_that_cannot_be_written_is_said(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another"):
        terminal.remembered(tmp_path / path)


def test_a_broken_history_ends_no_conversation(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"\xff\xfe\0+a\n# x\n\n+" + b"\xff" * 50 + b"\n+\n\n")
    past = terminal.remembered(path)
    past.store_string("你好")
    assert next(iter(past.load_history_strings())) == "你好"
    if Path("/dev/full").exists():
        terminal.remembered(Path("/dev/full")).store_string("你好")


def test_answers_without_control_characters(model_dir: Path) -> None:
    text = talk(model_dir, "你好\n", Sampling(temperature=0, max_new_tokens=400))
    assert text == visible(text)


def test_narrow_encodings_do_not_crash(model_dir: Path) -> None:
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding="ascii")
    chat(model_dir, SHORT, None, ["你好"], io.StringIO(), output)
    assert b"tokens/s" in raw.getvalue()


@pytest.mark.parametrize("system", [None, "你是小草。"])
def test_questions_to_ask_are_independent_and_without_a_terminal_all(model_dir: Path, system: str | None) -> None:
    output = io.StringIO()
    chat(model_dir, SHORT, system, ["你好", "12 加 30", "你好"], io.StringIO("再见\n"), output)
    assert re.findall("你> (.*)", output.getvalue()) == ["你好", "12 加 30", "你好"]
    first, _, third = answers(output.getvalue())
    assert first == third == visible(expected(model_dir, ["你好"], system)[0])


def test_a_question_to_ask_that_is_too_long(model_dir: Path) -> None:
    with pytest.raises(UserError, match="shorten it"):
        chat(model_dir, SHORT, None, ["熊" * 20_000], io.StringIO(), io.StringIO())


def test_piped_chat_loads_neither_the_line_editor_nor_libraries_of_other_models(model_dir: Path) -> None:
    code = (
        "import sys; from mengya.cli import main\n"
        f"assert main(['chat', {str(model_dir)!r}, '--max-new-tokens', '3']) == 0; "
        "assert not sys.modules.keys() & ['prompt_toolkit', 'transformers', 'peft', 'datasets']"
    )
    result = subprocess.run([sys.executable, "-c", code], input="你好\n".encode(), capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
    assert "芽> " in result.stdout.decode()


def test_no_model_directory(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a directory; give a model directory"):
        chat(tmp_path / "absent", SHORT)
    with pytest.raises(UserError, match=r"no config\.json\); give one that a stage wrote$"):
        chat(tmp_path, SHORT)
    shutil.copytree(model_dir, tmp_path / "run" / "sft")
    with pytest.raises(UserError, match=r"run is not a model directory .*, such as \S*run/sft$"):
        chat(tmp_path / "run", SHORT)
    (tmp_path / "run" / "sft" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        chat(tmp_path / "run" / "sft", SHORT)


def test_tokenizer_of_another_model(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 300, "content": "<|more|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="301 entries but the model only 300"):
        chat(tmp_path, SHORT)
