"""`mengya serve`: names, addresses, warnings, and how it ends."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import httpx
import pytest

from mengya import cli
from mengya.commands.serve import named
from mengya.errors import UserError
from mengya.serve.api import server

from .scripted import Scripted


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, what it printed, its Settings); the server returns at once."""

    def start(*arguments):
        seen = []
        opened = []

        def open_backend(source, name=None, **settings):
            if "missing" in source:
                raise UserError(f"{source} is not a directory")
            opened.append(Scripted(name=name or source.rstrip("/").rpartition("/")[2]))
            return opened[-1]

        opening = SimpleNamespace(open_backend=open_backend)
        monkeypatch.setitem(sys.modules, "mengya.infer.backends.opening", opening)
        monkeypatch.setattr(server, "serve", lambda settings, bound: seen.append(settings))
        code = cli.main(["serve", *arguments, *([] if "--port" in arguments else ["--port", "0"])])
        assert all(backend.closed for backend in opened)
        told = capsys.readouterr()
        return code, told.out + told.err, seen[0] if seen else None

    return start


def test_models_by_name(run, tmp_path):
    code, told, settings = run("runs/a/dpo", "small=runs/b/dpo")
    assert code == 0 and list(settings.models) == ["dpo", "small"]
    assert "dpo, small: http://127.0.0.1:" in told and "warning" not in told
    assert settings.sources["runs/b/dpo"] == "small" and settings.hosts and settings.keys is None
    assert settings.limits.open_answers == 128 and settings.sampling.temperature == 0.7
    odd = tmp_path / "lr=1"
    odd.mkdir()
    assert named(str(odd)) == (None, str(odd)) and named("a=b") == ("a", "b") and named("b") == (None, "b")


@pytest.mark.parametrize(("arguments", "message"), [
    (["a/dpo", "b/dpo"], "two models are named dpo"), (["m", "--embeddings", "e"], "give --knowledge"),
    (["m", "--knowledge", ".", "--embeddings", "."], "no modules.json"),
    (["missing"], "missing is not a directory"),
    (["x", "--port", "70000"], "port=70000 is out of range"),
    (["x", "--open-answers", "0"], "open_answers=0"),
    (["x", "--max-seconds", "0"], "max_seconds=0.0"),
    (["x", "--temperature", "-1"], "temperature=-1.0"),
    (["x", "--requests-per-minute", "5"], "give --api-keys, too"),
    (["x", "--api-keys", "nothing.txt"], "nothing.txt cannot be read"),
    (["x", "--cors-origin", "example.com"], "is not an origin"),
    (["x", "--host", "no.such.host.invalid"], "choose another --host"),
    (["x", "--host", "203.0.113.7"], "choose another --host"),
])  # fmt: skip
def test_what_cannot_be_served(run, arguments, message):
    code, told, settings = run(*arguments)
    assert code == 2 and message in told and settings is None


def test_a_port_that_is_taken(run):
    with server.listen("127.0.0.1", 0) as other:
        code, told, _ = run("x", "--port", str(other.getsockname()[1]))
    assert code == 2 and "another program listens there" in told


def test_a_server_for_everybody_warns(run, tmp_path):
    code, told, settings = run("x", "--host", "0.0.0.0")
    assert code == 0 and "warning: everybody" in told and settings.hosts is None
    keys = tmp_path / "keys.txt"
    keys.write_text(hashlib.sha256(b"k").hexdigest())
    code, told, settings = run("x", "--host", "0.0.0.0", "--api-keys", str(keys), "--requests-per-minute", "9")
    assert code == 0 and "warning" not in told and settings.keys.name_of("Bearer k") == "key 1"


def test_options(run):
    options = (
        "--cors-origin https://a.example --max-tokens 9 --max-body-mb 0.5 --any-name --embed-ids --drain-seconds 2"
    )
    settings = run("x", *options.split())[2]
    assert settings.cors_origins == ["https://a.example"] and settings.any_name and settings.embed_ids
    assert (settings.limits.new_tokens, settings.limits.body, settings.limits.drain_seconds) == (9, 500_000, 2)


def test_without_the_extra_there_is_a_hint(run, monkeypatch):
    found = cli.load_command("serve").run.__globals__["importlib"].util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else found(name))
    code, told, _ = run("x")
    assert code == 2 and 'uvicorn; install it: pip install "mengya[serve]"' in told


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_signal_ends_it_when_answers_have_ended(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, types
        sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})
        from api.scripted import Say, Scripted
        class Said(Scripted):
            def close(self): print("closed", flush=True)
        backend = Said(lambda request, choice: [Say("春", wait=0.2)] * 5)
        opening = types.SimpleNamespace(open_backend=lambda source, **settings: backend)
        sys.modules["mengya.infer.backends.opening"] = opening
        from mengya import cli
        sys.exit(cli.main(["serve", "x", "--port", "0"]))
    """)
    )
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = next(line for line in process.stdout if "http://" in line).split()[1]
        with httpx.stream("POST", f"{url}/completions", json={"prompt": "天机", "stream": True}, timeout=20) as answer:
            lines = answer.iter_lines()
            while "春" not in next(lines):
                pass
            process.send_signal(signal.SIGTERM)
            said = "".join(lines)
        begun = time.monotonic()
        told, logged = process.communicate(timeout=20)
    assert said.count("春") == 4 and "[DONE]" in said
    assert process.returncode == 0 and told == "closed\n" and time.monotonic() - begun < 3
    assert "POST /v1/completions 200" in logged and "天机" not in logged and "Traceback" not in logged
