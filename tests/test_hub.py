"""Models from the hub, by its real client, against a server that stands in for it."""

import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mengya import hub
from mengya.errors import UserError
from mengya.model.weight_files import check_weights

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "modeling_evil.py": b"raise SystemExit",
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for. `server.fault`: what goes wrong; `server.asked`: the paths and ranges."""

    def log_message(self, *_):
        pass

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        fault = self.server.fault
        self.server.asked.append((self.path, self.headers.get("Range")))
        self.server.methods.append((self.command, self.path))
        if fault in (401, 404):
            return self._answer(fault, b"{}", X_Error_Code="RepoNotFound")
        if fault == 403:
            return self._answer(403, b"{}", X_Error_Code="GatedRepo")
        if fault == 503:
            return self._answer(503, b"later")
        if self.path.startswith("/api/models/sprout/tiny"):
            revision = self.path.partition("/revision/")[2].partition("?")[0]
            if revision not in ("main", "v1", COMMIT, ""):
                return self._answer(404, b"{}", X_Error_Code="RevisionNotFound")
            if "/tree/" in self.path:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in FILES.items()]
                return self._answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            siblings = [{"rfilename": name} for name in FILES]
            info = {
                "id": "sprout/tiny",
                "modelId": "sprout/tiny",
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
            }
            return self._answer(200, json.dumps(info).encode(), Content_Type="application/json")
        name = self.path.rpartition("/")[2]
        body = FILES[name]
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if self.headers.get("Range"):
            begin = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            headers["Content_Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
            return self._answer(206, body[begin:], **headers)
        if fault == "cut" and self.command == "GET" and name == "model.safetensors":
            self.send_response(200)
            for header, value in headers.items():
                self.send_header(header.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.server.fault = self.server.then
            return self.connection.close()
        return self._answer(200, body, **headers)


@pytest.fixture
def server(tmp_path, monkeypatch):
    from huggingface_hub import constants

    found = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    found.fault, found.then, found.asked, found.methods = None, None, [], []
    threading.Thread(target=found.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    yield found
    found.shutdown()


@pytest.mark.parametrize("value", ["hf:sprout/tiny", "hf:sprout/tiny@v1", f"hf:sprout/tiny@{COMMIT}"])
def test_a_model_is_downloaded_once_without_pickles(server, value, capsys):
    found = hub.fetch(value)
    assert {path.name for path in found.iterdir()} == set(FILES) - {"pytorch_model.bin"}
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert hub.name_of(found) == f"hf:sprout/tiny@{COMMIT}"
    assert (COMMIT in capsys.readouterr().out) != value.endswith(COMMIT)
    server.asked.clear()
    assert hub.fetch(value) == found
    assert not any("/resolve/" in path and r for path, r in server.asked), "nothing is downloaded again"


def test_a_connection_that_breaks_is_tried_again(server):
    server.fault, server.then = "cut", None
    found = hub.fetch("hf:sprout/tiny")
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert sum(m == "GET" and path.endswith("model.safetensors") for m, path in server.methods) == 2


def test_files_that_have_come_whole_are_kept(server, tmp_path):
    server.fault, server.then = "cut", 503
    with pytest.raises(UserError, match="keeps the files that have come whole"):
        hub.fetch("hf:sprout/tiny")
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors")), "nothing half-written looks whole"
    kept = {path.name for path in tmp_path.rglob("snapshots/*/*")}
    server.fault = None
    server.methods.clear()
    found = hub.fetch("hf:sprout/tiny")
    assert (found / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not kept & {path.rpartition("/")[2] for method, path in server.methods if method == "GET"} - {""}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (401, "is not on the hub, or not public; correct the name, or set HF_TOKEN"),
        (404, "is not on the hub, or not public"),
        (403, "accept them, and set HF_TOKEN"),
        (503, "could not be downloaded .*set HF_ENDPOINT to a mirror"),
    ],
)
def test_what_the_hub_refuses(server, monkeypatch, fault, words):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.fault = fault
    with pytest.raises(UserError, match=words) as raised:
        hub.fetch("hf:sprout/tiny")
    assert "secret" not in str(raised.value)


def test_what_is_there_needs_no_network(server):
    found = hub.fetch("hf:sprout/tiny")
    server.fault = 503
    assert hub.fetch("hf:sprout/tiny") == found


def test_half_a_model_is_not_taken_while_the_hub_is_down(server, monkeypatch):
    server.fault, server.then = "cut", 503
    for _ in range(2):
        with pytest.raises(UserError, match="could not be downloaded") as raised:
            hub.fetch("hf:sprout/tiny")
        assert "\n" not in str(raised.value)
        server.fault = 503


@pytest.mark.parametrize("value", ["hf:sprout/tiny", "hf:sprout/tiny@v1", f"hf:sprout/tiny@{COMMIT}"])
def test_offline_mode_takes_what_is_there(server, monkeypatch, value):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be downloaded"):
        hub.fetch(value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = hub.fetch(value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    server.asked.clear()
    assert hub.fetch(value) == found and not server.asked


def test_weights_that_were_cut_off_later_name_what_to_delete(server, tmp_path):
    found = hub.fetch("hf:sprout/tiny")
    (found / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match=r"delete .*models--sprout--tiny, and the model is downloaded again"):
        check_weights(found)
    shutil.rmtree(found.parent.parent)
    again = hub.fetch("hf:sprout/tiny")
    assert (again / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    shutil.copytree(again, tmp_path / "copy")
    (tmp_path / "copy" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="copy the model again"):
        check_weights(tmp_path / "copy")


def test_pickles_alone_are_no_weights(server, monkeypatch):
    monkeypatch.delitem(FILES, "model.safetensors")
    with pytest.raises(UserError, match="no weights as safetensors; pickles, which can run any code, are not read"):
        hub.fetch("hf:sprout/tiny")


def test_names_and_revisions_that_are_wrong(server):
    with pytest.raises(UserError, match="no revision 'v9'"):
        hub.fetch("hf:sprout/tiny@v9")
    for value in ("hf:tiny", "hf:a/b/c", "hf:../x", "hf:"):
        with pytest.raises(UserError, match="not of the form"):
            hub.fetch(value)
    assert hub.name_of(__import__("pathlib").Path("/models/mine")) is None
