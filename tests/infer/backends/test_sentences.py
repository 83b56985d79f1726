"""Embedding models: a tiny sentence-transformers directory, made here."""

import math

import pytest

pytest.importorskip("sentence_transformers", reason="embeddings need pip install 'mengya[embeddings]'")

import torch

from mengya.errors import UserError
from mengya.infer.backends.opening import open_backend
from mengya.infer.request import Conversation, Request

from .tiny_sentences import write_sentences


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_sentences(tmp_path_factory.mktemp("embedder") / "tiny")


@pytest.fixture(scope="module")
def backend(directory):
    return open_backend(str(directory), name="tiny-embedder")


def test_its_vectors_are_those_of_the_library(directory, backend):
    from sentence_transformers import SentenceTransformer

    texts = ["春天来了", "花开", "abc"]
    expected = torch.tensor(SentenceTransformer(str(directory), device="cpu").encode(texts, normalize_embeddings=True))
    assert torch.allclose(backend.vectors(texts), expected, atol=1e-5)
    raw = backend.embed([backend.encode(text) for text in texts])
    assert torch.allclose(torch.nn.functional.normalize(raw), expected, atol=1e-5)
    assert (backend.name, backend.context, backend.encode("春春")) == ("tiny-embedder", 32, [2, 4, 4, 3])
    assert len(backend.encode("春" * 50)) == 52 and backend.encode("") == []


def test_it_gives_no_answers(backend):
    with pytest.raises(UserError, match="embeddings and no answers"):
        backend.submit(Request(prompt=Conversation([{"role": "user", "content": "a"}])), print)


@pytest.mark.parametrize("spoil", ["code", "pickle", "outside", "json"])
def test_no_code_and_no_pickles(tmp_path, spoil):
    made = write_sentences(tmp_path / "m", ("Transformer", "os.system" if spoil == "code" else "Pooling"))
    if spoil == "pickle":
        (made / "model.safetensors").rename(made / "pytorch_model.bin")
    elif spoil == "outside":
        modules = (made / "modules.json").read_text()
        (made / "modules.json").write_text(modules.replace("1_Pooling", "../other"))
    elif spoil == "json":
        (made / "modules.json").write_text("{")
    words = {"code": "code of its own", "pickle": "a pickle", "outside": "is outside", "json": "cannot be read"}
    with pytest.raises(UserError, match=words[spoil]):
        open_backend(str(made))


def test_the_server_embeds_with_it(backend):
    pytest.importorskip("fastapi", reason='serving needs pip install "mengya[serve]"')
    from mengya.serve.api.settings import Settings

    from ...serve.api.scripted import Live

    live = Live(Settings(models={"tiny-embedder": backend}))
    try:
        answer = live.post("/v1/embeddings", {"model": "tiny-embedder", "input": ["春天", "花开"]}).json()
        vectors = torch.tensor([entry["embedding"] for entry in answer["data"]])
        assert torch.allclose(vectors, backend.vectors(["春天", "花开"]), atol=1e-5)
        assert answer["usage"]["prompt_tokens"] == 8 and math.isclose(float(vectors[0].norm()), 1, rel_tol=1e-5)
        refused = live.chat()
        assert refused.status_code == 400 and "no answers" in refused.json()["error"]["message"]
    finally:
        live.stop()


def test_passages_found_by_its_vectors(directory, tmp_path):
    pytest.importorskip("rjieba", reason="searching needs pip install 'mengya[documents]'")
    pytest.importorskip("opencc", reason="searching needs pip install 'mengya[documents]'")
    from mengya.rag.document import Block, Document
    from mengya.rag.retrieve import Retriever
    from mengya.rag.store import KnowledgeFolder
    from mengya.rag.vectors import open_embedder

    base, embedder = KnowledgeFolder(tmp_path).open_or_create("b"), open_embedder(directory)
    for text in ("春天来了", "花开", "abc"):
        base.add(Document(text, "text", (Block("text", text),)), text, embedder)
    hits = Retriever(embedder).find(base, ["花开"])
    assert hits[0].stored.passage.text == "花开" and len(hits) == 3
    with pytest.raises(UserError, match="has no modules"):
        open_embedder(tmp_path)
