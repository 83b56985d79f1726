"""metrics.jsonl, and what is shown while a stage runs."""

import json

import pytest

from mengya import metrics
from mengya.metrics import (
    MetricsLog,
    ProgressLine,
    format_count,
    format_seconds,
    read_jsonl,
    say,
)


def rows(path) -> list[int]:
    return [row["step"] for row in read_jsonl(path)]


def test_a_log_that_goes_on_drops_what_came_after_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in range(1, 6):
        log.write({"step": step, "loss": 0.5})
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')  # a crash in the middle of a line
    log = MetricsLog(path, 3)
    log.write({"step": 4, "loss": 0.25})
    log.close()
    assert rows(path) == [1, 2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_crash_while_the_log_is_opened_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    for step in range(1, 4):
        log.write({"step": step})
    log.close()

    def crash(row):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "_line", crash)
        with pytest.raises(OSError):
            MetricsLog(path, 3)
    assert rows(path) == [1, 2, 3]


def test_every_row_is_on_disk_at_once_and_is_strict_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "skipped": "loss nan"})

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "skipped": "loss nan",
    }
    log.close()


def test_without_a_terminal_a_plain_line_comes_every_few_seconds(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    with ProgressLine("pretrain", 100, done=20) as bar:
        for done in range(21, 61):
            now[0] += 0.5
            bar.update(done, f"loss {done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pretrain 21/100 loss 21, eta 40s"
    assert lines[1] == "pretrain 31/100 loss 31, eta 34s"
    assert [line.split()[1] for line in lines] == ["21/100", "31/100", "41/100", "51/100", "60/100"]  # the last, too


def test_the_last_line_comes_once_and_ends_with_its_last_number(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    with ProgressLine("sft", 2) as bar:
        for done in (1, 2):
            now[0] += 60
            bar.update(done, f"loss {done}")
    assert capsys.readouterr().out.splitlines() == ["sft 1/2 loss 1, eta 1m00s", "sft 2/2 loss 2"]


def test_an_error_prints_no_last_line(capsys):
    with pytest.raises(KeyError), ProgressLine("sft", 10) as bar:
        bar.update(1, "loss 1")
        bar.update(2, "loss 2")
        raise KeyError
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    import io

    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(metrics.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(metrics, "console", Console(file=screen, force_terminal=True, width=100))
    with ProgressLine("dpo", 10) as bar:
        bar.update(7, "loss 0.5 tok/s")
    assert "7/10 loss 0.5 tok/s" in screen.getvalue()


def test_what_is_said_is_not_interpreted(capsys):
    say("[bold] :cat: [/] /a/[b]/c " + "long " * 60)
    out = capsys.readouterr().out
    assert out == "[bold] :cat: [/] /a/[b]/c " + "long " * 60 + "\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (9.94, "9.9s"), (9.96, "10s"), (59.4, "59s"), (59.6, "1m00s"), (3599.6, "1h00m"), (3700, "1h01m")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (26_878_464, "26.9M"), (3.2e13, "32T")]
)
def test_format_count(value, text):
    assert format_count(value) == text
