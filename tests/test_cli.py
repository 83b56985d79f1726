"""The command line: exit codes, what is printed, and stopping and going on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mengya import __version__
from mengya.stages import MODULES

from .conftest import corpus_does, in_each_step, interrupt_after


def test_a_run_ends_with_0_and_says_what_it_does(project, mengya):
    result = mengya("run", "tiny.toml", "--out", "run")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line for line in lines if line[0] in "▶✓"][::2] == [f"▶ {n}" for n in list(MODULES)[:4]]
    assert lines[-2].startswith("✓ pretrain: ") and lines[-1].startswith("minutes: corpus ")
    progress = [line for line in lines if line.startswith("pretrain ")]
    assert progress[0].startswith("pretrain 1/6 loss ") and progress[-1].startswith("pretrain 6/6 loss ")
    assert all(" tok/s, MFU " in line for line in progress)
    again = mengya("run", "tiny.toml", "--out", "run")
    assert again.out.splitlines() == [f"✓ {name}: already there" for name in list(MODULES)[:4]]


def test_the_default_output_directory_has_the_name_of_the_recipe(project, mengya):
    assert mengya("run", "tiny.toml", "--until", "corpus").code == 0
    assert [p.name for p in (project / "runs" / "tiny").iterdir() if p.name[0] != "."] == ["corpus"]


def test_options_may_stand_between_overrides(project, mengya):
    argv = ["run", "--out", "a", "tiny.toml", "corpus.seed=1", "--until", "tokenizer", "tokenizer.vocab_size=290"]
    assert mengya(*argv).code == 0
    assert json.loads((project / "a" / "corpus" / "stage.json").read_text())["config"]["seed"] == 1
    assert json.loads((project / "a" / "tokenizer" / "stage.json").read_text())["config"]["vocab_size"] == 290
    assert not (project / "a" / "tokenize").exists()


def test_other_settings_for_a_finished_stage(grown, mengya):
    result = mengya("run", "whole.toml", "sft.optim.lr=0.5", "--out", "run")
    assert result.code == 2
    assert result.err == (
        "mengya: run/sft holds a result of 'sft' made with other settings: optim.lr was 0.001, is now 0.5. "
        "Choose another --out, change the settings back, or delete run/sft\n"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["grow"], "invalid choice: 'grow'"),
        (["run"], "required: RECIPE"),
        (["run", "tiny.toml", "--outt", "x"], "unrecognized arguments: --outt"),
        (["run", "tiny.toml", "--out", "x", "sft．steps＝3"], "are changed by stage.key=value, e.g. pretrain.st"),
        (["run", "tiny.toml", "corpus.seed"], "write it as stage.key=value"),
        (["run", "tiny.toml", "--until", "sft"], "the recipe has no such stage; it has corpus, tokenizer"),
        (["help", "sfd"], "there is no stage 'sfd'"),
        (["help", "sft", "x=1"], "unrecognized arguments: x=1"),
    ],
)
def test_wrong_usage_is_code_2_with_a_remedy(project, mengya, argv, message):
    result = mengya(*argv)
    assert result.code == 2
    assert message in result.err and "Traceback" not in result.err


def test_version_and_help(mengya):
    assert mengya("--version").out == f"mengya {__version__}\n"
    assert "[sft]" in mengya("help", "sft").out
    assert "stage.key=value" in mengya("run", "--help").out


def test_the_overview_needs_no_torch_and_a_plain_console_gets_question_marks():
    """The real entry point, in a fresh interpreter."""
    code = "import sys; from mengya.cli import main; main(['help']); assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)
    script = Path(sys.executable).with_name("mengya")
    command = [script] if script.exists() else [sys.executable, "-m", "mengya.cli"]
    done = subprocess.run([*command, "--help"], env=environment, capture_output=True, check=True)
    assert b"from raw text to a chat model. ???" in done.stdout


def test_a_model_is_loaded_and_answers_without_the_compiler(grown):
    """Its import takes two seconds, which every chat would wait."""
    code = "import sys; from mengya.cli import main; main(sys.argv[1:]); assert 'torch._dynamo' not in sys.modules"
    ask = ["chat", "run/dpo", "--ask", "你好", "--max-new-tokens", "2"]
    subprocess.run([sys.executable, "-c", code, *ask], check=True, cwd=grown, stdout=subprocess.DEVNULL)


def test_a_closed_pipe_ends_quietly(project):
    code = "import sys; from mengya.cli import main; sys.exit(main(['help']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-u", "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_fault_of_ours_shows_its_traceback(project, mengya):
    setup = corpus_does("raise ZeroDivisionError('ours')")
    result = mengya("run", "tiny.toml", "--out", "run", setup=setup)
    assert result.code == 1 and "ZeroDivisionError: ours" in result.err


def test_questions_on_the_command_line(grown, mengya):
    questions = ["--ask", "cat?", "--temperature", "0", "--ask", "mat?", "--ask", "cat?"]
    result = mengya("chat", "run/dpo", *questions, "--max-new-tokens", "4")
    assert (result.code, result.err) == (0, "")
    asked = [line for line in result.out.splitlines() if line.startswith("你> ")]
    assert asked == ["你> cat?", "你> mat?", "你> cat?"] and result.out.count("tokens/s") == 3


# --- stopping ---------------------------------------------------------------------------------------------------------


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def wait_for(condition, seconds=30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_same_command_goes_on(project, start, mengya, number):
    # Steps that take long enough to be interrupted, and no checkpoint but the one that the signal causes.
    argv = ["run", "tiny.toml", "pretrain.steps=40", "pretrain.checkpoint_every=1000", "--out", "run"]
    slow = in_each_step("time.sleep(0.02)")
    log = project / "run" / "pretrain.partial" / "metrics.jsonl"
    command = start(*argv, setup=slow)
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 3)
    os.kill(command.pid, number)
    result = command.wait()
    assert result.code == 130
    assert result.err == "\nstopped; the same command goes on from here 已停止，重复同一命令即可继续\n"
    done = steps(log)
    assert 3 <= len(done) < 40 and done == list(range(1, len(done) + 1))
    assert [p.stem for p in (log.parent / "checkpoints").glob("step-*")] == [f"step-{len(done)}"]
    assert not (project / "run" / "pretrain").exists()

    result = mengya(*argv)
    assert result.code == 0
    assert f"going on after step {len(done)}" in result.out
    assert steps(project / "run" / "pretrain" / "metrics.jsonl") == list(range(1, 41))
    assert mengya("run", "tiny.toml", "pretrain.steps=40", "--out", "undisturbed").code == 0
    losses = [
        [json.loads(line)["loss"] for line in (project / name / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "undisturbed")
    ]
    assert losses[0] == losses[1]


def test_two_interrupts_stop_at_once_and_the_earlier_checkpoint_is_gone_on_from(project, start, mengya):
    argv = ["run", "tiny.toml", "pretrain.steps=8", "--out", "run"]
    # The second one comes while the first still waits for its step to end.
    assert mengya(*argv, setup=interrupt_after(4, times=2)).code == 130
    result = mengya(*argv)
    assert "going on after step 4" in result.out
    assert steps(project / "run" / "pretrain" / "metrics.jsonl") == list(range(1, 9))


def test_a_killed_run_goes_on_without_gaps(project, start, mengya):
    argv = ["run", "tiny.toml", "pretrain.steps=30", "--out", "run"]
    slow = in_each_step("time.sleep(0.01)")
    log = project / "run" / "pretrain.partial" / "metrics.jsonl"
    command = start(*argv, setup=slow)
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 7)
    os.kill(command.pid, signal.SIGKILL)
    assert command.wait().code == -signal.SIGKILL
    assert "going on after step" in mengya(*argv).out
    assert steps(project / "run" / "pretrain" / "metrics.jsonl") == list(range(1, 31))


def test_an_interrupt_before_training(project, mengya):
    setup = corpus_does("raise KeyboardInterrupt")
    result = mengya("run", "tiny.toml", "--out", "run", setup=setup)
    assert result.code == 130 and "the same command goes on" in result.err
    assert mengya("run", "tiny.toml", "--until", "corpus", "--out", "run").code == 0


def test_a_second_run_in_the_same_directory_is_refused(project, start, mengya):
    go = project / "go"
    setup = corpus_does(f"while not module.Path({str(go)!r}).exists(): time.sleep(0.01)\n    real(*arguments)")
    first = start("run", "tiny.toml", "--until", "corpus", "--out", "run", setup=setup)
    wait_for(lambda: (project / "run" / "corpus.partial").exists())
    second = mengya("run", "tiny.toml", "--out", "run")
    go.touch()
    assert second.code == 2
    assert second.err == "mengya: another run is working in run; wait for it or choose another --out\n"
    assert first.wait().code == 0


@pytest.mark.parametrize(
    ("given", "name", "found"),
    [
        ({}, "GOMP_SPINCOUNT", "1000"),  # waiting threads sleep soon
        ({"GOMP_SPINCOUNT": "5"}, "GOMP_SPINCOUNT", "5"),
        ({"OMP_WAIT_POLICY": "active"}, "GOMP_SPINCOUNT", "None"),
    ],
)
def test_what_libraries_read_when_they_are_loaded_is_set_unless_the_user_has(given, name, found):
    code = f"import os; from mengya.cli import main; main(['help']); print(os.environ.get({name!r}))"
    ours = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    environment = {k: v for k, v in os.environ.items() if k not in ours} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == found, done.stderr
