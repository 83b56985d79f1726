"""`mengya ui`: models, who may come in, and what is refused."""

import hashlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mengya import cli
from mengya.rag.document import Block, Document
from mengya.rag.store import Embedder, KnowledgeFolder
from mengya.rag.vectors import open_embedder
from mengya.serve.web import server

from ...infer.backends.tiny_sentences import write_sentences
from ..api.scripted import Scripted

HASH = hashlib.sha256(b"key").hexdigest()


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """run(*arguments) -> (exit code, what it printed, its Site); the server returns at once."""
    monkeypatch.delenv("DASHSCOPE_API_KEY", raising=False)

    def start(*arguments):
        seen, opened = [], []

        def open_backend(source, name=None, **settings):
            opened.append(Scripted(name=name or source.rpartition("#")[2].rstrip("/").rpartition("/")[2]))
            return opened[-1]

        def serve(site, bound):
            seen.append(site)
            assert os.listdir(".") == []  # of the working folder, files are handed out

        monkeypatch.setitem(sys.modules, "mengya.infer.backends.opening", SimpleNamespace(open_backend=open_backend))
        monkeypatch.setattr(server, "serve", serve)
        code = cli.main(["ui", *map(str, arguments), "--data", str(tmp_path / "data"), "--port", "0"])
        assert all(backend.closed for backend in opened)
        return code, "".join(capsys.readouterr()), seen[0] if seen else None

    return start


def test_models_and_the_address(run):
    here = Path.cwd()
    code, told, site = run("runs/dpo", "big=runs/sft", "--vision", "big", "--temperature", "0.2")
    assert code == 0 and list(site.models) == ["dpo", "big"] and "http://127.0.0.1:" in told and "warning" not in told
    assert site.seeing == {"big"} and site.sampling.temperature == 0.2 and "127.0.0.1" in site.hosts
    assert Path.cwd() == here


def test_services_with_a_key_can_be_chosen(run, monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "sk-only-for-tests")
    code, told, site = run("runs/dpo")
    assert list(site.models) == ["dpo", "qwen-plus", "qwen-vl-plus"] and site.seeing == {"qwen-vl-plus"}
    assert code == 0 and "sk-only-for-tests" not in told


def test_beyond_this_machine_without_keys_there_is_a_warning(run, tmp_path):
    assert "warning" in run("m", "--host", "0.0.0.0")[1]
    (tmp_path / "keys").write_text(f"{HASH} amy\n")
    _, told, site = run("m", "--host", "0.0.0.0", "--keys", tmp_path / "keys")
    assert "warning" not in told and site.users.needs_key and site.hosts is None


def test_vectors_of_the_knowledge_bases(run, tmp_path):
    pytest.importorskip("sentence_transformers", reason="embeddings need pip install 'mengya[embeddings]'")
    folder, tiny = KnowledgeFolder(tmp_path / "knowledge"), write_sentences(tmp_path / "tiny")
    document = Document("a", "text", (Block("text", "春天来了"),))
    folder.open_or_create("words").add(document, "1")
    folder.open_or_create("vectors").add(document, "1", open_embedder(tiny))
    with_vectors = ("m", "--knowledge", tmp_path / "knowledge", "--embeddings", tiny)
    _, _, site = run(*with_vectors)
    assert site.retriever.embedder.name.startswith("tiny (")
    other = Embedder("another", lambda texts: np.ones((len(texts), 2), "f4"))
    folder.open_or_create("其他").add(document, "1", other)
    code, told, site = run(*with_vectors)
    assert (code, site) == (2, None) and "base 其他 has vectors of another, not of tiny (" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("m", "--embeddings", "."), "no modules.json"), (("m", "--reranker", "."), "no cross-encoder"),
        (("m", "--vision", "n"), "none of the models"), (("m", "n/m"), "two models"),
        (("m", "--max-file-mb", "0"), "more than"),
        (("m", "--keys", "nowhere"), "cannot be read"), (("m", "--knowledge", "nowhere"), "mengya index"),
        (("m", "--host", "no.such.host.test"), "host="),
    ],
)  # fmt: skip
def test_what_is_refused(run, arguments, message):
    code, told, site = run(*arguments)
    assert code == 2 and message in told and site is None


def test_without_the_extra_there_is_a_hint(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, told, _ = run("m")
    assert code == 2 and 'pip install "mengya[ui]"' in told


def test_a_data_folder_that_is_a_file_is_refused(run, tmp_path):
    (tmp_path / "data").write_text("x")
    code, told, _ = run("m")
    assert code == 2 and "--data" in told
