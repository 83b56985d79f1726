"""Models from ModelScope, by its real client, against a server that stands in for it."""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest

from mengya import hub, manifest
from mengya.cli import main
from mengya.errors import UserError
from mengya.text.tokenizer import train_tokenizer

pytest.importorskip("modelscope_hub", reason="the client of ModelScope is not installed: mengya[modelscope]")

OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "onnx/config.json": b"{}",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "README.md": b"# about",
}
WANTED = {"config.json", "model.safetensors", "onnx/config.json", "tokenizer.json"}
MODEL = "/api/v1/models/sprout/tiny"


def listing(files=FILES, paths=None):
    """What ModelScope answers of a repository's files: the client reads Files, of which each names its own commit."""
    entries = [{"Path": "onnx", "Type": "tree", "Size": 0, "Sha256": "", "Revision": OLD, "CommittedDate": 1}]
    for name, content in files.items():
        last = NEW if name == "tokenizer.json" else OLD
        entry = {"Name": name, "Path": name, "Type": "blob", "Size": len(content), "Revision": last}
        entry |= {"CommittedDate": 2 if last == NEW else 1, "Sha256": hashlib.sha256(content).hexdigest()}
        entries.append(entry)
    return {"Code": 200, "Data": {"Files": entries, "LatestCommitter": {"Id": "", "ShortId": NEW[:8]}}}


class Hub(BaseHTTPRequestHandler):
    """What the client asks for. `server.fault`: what goes wrong; `server.asked`: the files and ranges."""

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", length=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        url, fault = urlparse(self.path), self.server.fault
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path.endswith("internalAccelerationInfo"):
            return self._answer(404)
        self.server.secrets.append(self.headers.get("Authorization"))
        if isinstance(fault, int):
            return self._answer(fault, json.dumps({"Code": 1, "Message": f"error {fault}"}).encode())
        if fault == "page":
            return self._answer(200, b"<html>log in to the network</html>")
        revision = asked.get("Revision", "master")
        if not url.path.startswith(MODEL) or revision not in ("master", "v1", "feature/x", OLD, NEW):
            return self._answer(404, b'{"Code": 10010205001, "Message": "not found"}')
        if url.path == MODEL:
            return self._answer(200, b'{"Code": 200, "Data": {"Name": "tiny"}}')
        if url.path == f"{MODEL}/repo/files":
            self.server.lists += 1
            return self._answer(200, json.dumps(self.server.listing).encode())
        return self._file(asked["FilePath"], fault)

    def _file(self, name, fault):
        body, begin = FILES[name], self.headers.get("Range")
        self.server.asked.append((name, begin))
        if fault == "gated":
            return self._answer(403, b'{"Code": 1, "Message": "accept the terms"}')
        if begin:
            start = int(begin.removeprefix("bytes=").partition("-")[0])
            return self._answer(206, body[start:], Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
        if fault == "cut" and name == "model.safetensors":
            self.server.fault = self.server.then
            self._answer(200, body[: len(body) // 2], len(body))
            return self.connection.close()
        if fault == "damaged" and name == "model.safetensors":
            return self._answer(200, bytes(len(body)))
        return self._answer(200, body)


@pytest.fixture
def server(tmp_path, monkeypatch):
    import modelscope_hub
    from modelscope_hub import _download, _legacy_api

    found = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    found.fault = found.then = None
    found.asked, found.secrets, found.lists, found.listing = [], [], 0, listing()
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    monkeypatch.setattr(_legacy_api, "REPO_TREE_PAGE_RETRY_MAX_DELAY_SECONDS", 0)  # it would wait for seconds
    monkeypatch.setattr(_download, "DOWNLOAD_RETRY_MAX_DELAY_SECONDS", 0)
    monkeypatch.setattr(_download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
    modelscope_hub.set_default_config(None)
    yield found
    modelscope_hub.set_default_config(None)
    found.shutdown()


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("revision", [None, "v1", "feature/x", NEW])
def test_a_model_is_downloaded_once_without_pickles(server, revision, capsys):
    value = f"ms:sprout/tiny@{revision}" if revision else "ms:sprout/tiny"
    found = hub.fetch(value)
    assert names(found) == WANTED
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.name_of(found) == f"ms:sprout/tiny@{NEW}"
    assert (NEW in capsys.readouterr().out) != (revision == NEW)
    server.asked.clear()
    assert hub.fetch(value) == found == hub.fetch(hub.name_of(found))
    assert not server.asked, "nothing is downloaded again"


def test_a_commit_that_is_there_is_not_asked_for(server):
    value = f"ms:sprout/tiny@{OLD}"
    found = hub.fetch(value)
    assert found.name == OLD and server.lists == 1
    assert hub.fetch(value) == found and server.lists == 1


def test_each_commit_has_a_folder_of_its_own(server, monkeypatch):
    first = hub.fetch("ms:sprout/tiny")
    monkeypatch.setitem(FILES, "config.json", b'{"model_type": "qwen2"}')
    server.listing = listing()
    for entry in server.listing["Data"]["Files"]:
        if entry["Path"] == "config.json":
            entry |= {"Revision": "a" * 40, "CommittedDate": 3}
    second = hub.fetch("ms:sprout/tiny")
    assert second.name == "a" * 40 and (second / "config.json").read_bytes() == FILES["config.json"]
    assert (first / "config.json").read_bytes() != FILES["config.json"] and hub.name_of(first).endswith(NEW)


def test_what_is_there_needs_no_network(server, capsys):
    found = hub.fetch("ms:sprout/tiny")
    for fault in (503, "page"):
        server.fault = fault
        assert hub.fetch("ms:sprout/tiny") == found
        assert "taking what was downloaded before" in capsys.readouterr().out
    server.shutdown()
    server.server_close()
    assert hub.fetch("ms:sprout/tiny") == found == hub.fetch(f"ms:sprout/tiny@{NEW}")


def test_a_connection_that_breaks_is_tried_again_from_there(server):
    server.fault = "cut"
    found = hub.fetch("ms:sprout/tiny")
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [begin for name, begin in server.asked if name == "model.safetensors"]
    assert ranges[0] is None and ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-"


def test_files_that_have_come_whole_are_kept(server, tmp_path, capfd):
    server.fault, server.then = "cut", 503
    with pytest.raises(UserError, match="keeps the files that have come whole") as raised:
        hub.fetch("ms:sprout/tiny")
    assert "\n" not in str(raised.value) and "Traceback" not in capfd.readouterr().err
    folder = tmp_path / "cache" / "models" / "sprout--tiny" / "snapshots" / NEW
    assert not (folder / "model.safetensors").exists() and hub.name_of(folder) is None
    kept = names(folder) & WANTED
    server.fault = None
    server.asked.clear()
    assert hub.fetch("ms:sprout/tiny") == folder and names(folder) == WANTED
    assert not kept & {name for name, _ in server.asked}


def test_a_file_that_was_lost_or_cut_off_comes_again(server):
    found = hub.fetch("ms:sprout/tiny")
    (found / "tokenizer.json").unlink()
    (found / "model.safetensors").write_bytes(b"short")
    server.asked.clear()
    assert hub.fetch(f"ms:sprout/tiny@{NEW}") == found
    assert {name for name, _ in server.asked} == {"tokenizer.json", "model.safetensors"}
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_damaged_file_is_not_taken(server):
    server.fault = "damaged"
    with pytest.raises(UserError, match=r"could not be downloaded .*Hash mismatch for model\.safetensors"):
        hub.fetch("ms:sprout/tiny")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (401, "not for you; correct the name, accept its terms there, or set MODELSCOPE_API_TOKEN"),
        (403, "set MODELSCOPE_API_TOKEN"),
        (404, "is not on ModelScope"),
        ("gated", "accept its terms"),
        (429, "could not be downloaded .*error 429"),
        (503, "could not be downloaded .*set MODELSCOPE_ENDPOINT to a mirror"),
        ("page", "could not be downloaded .*not JSON"),
    ],
)
def test_what_the_hub_refuses(server, monkeypatch, fault, words, capfd):
    import modelscope_hub

    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    modelscope_hub.set_default_config(None)
    server.fault = fault
    with pytest.raises(UserError, match=words) as raised:
        hub.fetch("ms:sprout/tiny")
    shown = capfd.readouterr()
    assert "Bearer ms-secret" in server.secrets
    assert "secret" not in f"{raised.value}{shown.out}{shown.err}" and "\n" not in str(raised.value)
    assert "Traceback" not in shown.err


def test_names_and_revisions_that_are_wrong(server):
    with pytest.raises(UserError, match="no revision 'v9'"):
        hub.fetch("ms:sprout/tiny@v9")
    with pytest.raises(UserError, match="is not on ModelScope"):
        hub.fetch("ms:sprout/tree")
    for value in ("ms:tiny", "ms:a/b/c", "ms:../x", "ms:a/..", "ms:", "ms:a/b@", "ms:a/b c"):
        with pytest.raises(UserError, match="not of the form ms:owner/name or ms:owner/name@revision"):
            hub.fetch(value)
    assert hub.name_of(Path("/models/mine")) is None and not hub.is_remote("msdir/model")


def test_no_file_lands_outside_of_the_folder(server, tmp_path):
    server.listing["Data"]["Files"].append({"Path": "../../evil.json", "Type": "blob", "Size": 2, "Revision": OLD})
    with pytest.raises(UserError, match="outside of its folder"):
        hub.fetch("ms:sprout/tiny")
    assert not list(tmp_path.rglob("evil.json"))


def test_a_file_that_the_hub_has_deleted_goes(server):
    found = hub.fetch("ms:sprout/tiny")
    server.listing = listing({name: content for name, content in FILES.items() if name != "onnx/config.json"})
    assert hub.fetch("ms:sprout/tiny") == found and names(found) == WANTED - {"onnx/config.json"}


def test_what_is_no_model_is_told(server):
    server.listing["Data"]["Files"] = [e for e in server.listing["Data"]["Files"] if e["Path"] == "README.md"]
    with pytest.raises(UserError, match=r"has no config\.json"):
        hub.fetch("ms:sprout/tiny")
    server.listing = listing({"config.json": FILES["config.json"], "pytorch_model.bin": b"a pickle"})
    with pytest.raises(UserError, match="no weights as safetensors"):
        hub.fetch("ms:sprout/tiny")
    server.listing = {"Code": 200, "Data": {"Files": []}}
    with pytest.raises(UserError, match="has no files"):
        hub.fetch("ms:sprout/tiny")


def test_without_the_client_its_installation_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "modelscope_hub", None)
    with pytest.raises(UserError, match=r"pip install 'mengya\[modelscope\]'"):
        hub.fetch("ms:sprout/tiny")


def test_a_run_names_the_commit_and_goes_on_without_a_network(server, tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="mengya[models] is not installed")
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "tiny"
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = AutoConfig.for_model("llama", vocab_size=280, max_position_embeddings=64, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    train_tokenizer(["猫喜欢吃鱼。The cat eats fish."] * 50, 280, 16).save(folder)
    for name in list(FILES):
        monkeypatch.delitem(FILES, name)
    for path in folder.iterdir():
        monkeypatch.setitem(FILES, path.name, path.read_bytes())
    server.listing = listing()
    talks = [{"instruction": f"{n}: 猫？", "output": "鱼。"} for n in range(20)]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks), encoding="utf-8")
    (tmp_path / "recipe.toml").write_text(
        f"""[sft]
model = "ms:sprout/tiny"
path = '{tmp_path / "talks.jsonl"}'
template = "chatml"
steps = 2
seq_len = 64
batch_tokens = 128
compile = false
""",
        encoding="utf-8",
    )
    command = ["run", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out")]
    assert main(command) == 0, capsys.readouterr().err
    (path,) = {
        entry["path"] for entry in manifest.read(tmp_path / "out" / "sft")["inputs"] if entry["field"] == "model"
    }
    assert path == f"ms:sprout/tiny@{NEW}"
    server.fault = 503
    assert main(command) == 0
    assert "sft: already there" in capsys.readouterr().out
    assert main([*command[:2], "--out", str(tmp_path / "other"), 'sft.model="ms:sprout/other"']) == 2
    shown = capsys.readouterr().err
    assert "sft.model: 'ms:sprout/other' could not be downloaded" in shown and "Traceback" not in shown
