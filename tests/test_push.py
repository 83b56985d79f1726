"""Exports that are pushed to a hub, by its real client, to servers that stand in for the hubs."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mengya import hub
from mengya.errors import UserError
from mengya.export import export

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """`server.made`: what repositories were created with; `server.files`: what came; `server.fault`: a status."""

    def log_message(self, *_):
        pass

    def answer(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self):
        self.do_GET()

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.body()
        self.answer({"Code": 200, "Success": True, "Data": {}})

    def batch(self, body):
        objects = json.loads(body)["objects"]
        for entry in objects:
            href = f"http://127.0.0.1:{self.server.server_port}/blob/{entry['oid']}"
            entry["actions"] = {"upload": {"href": href, "header": {}}}
        return {"transfer": "basic", "objects": objects}

    def refused(self) -> bool:
        self.server.keys.add(self.headers.get("Authorization"))
        if self.server.fault:
            self.answer({"error": "no", "Code": 1, "Message": "no"}, self.server.fault)
        return bool(self.server.fault)


class HuggingFace(Hub):
    def do_GET(self):
        if not self.refused():
            self.answer({"id": "sprout/tiny", "sha": COMMIT, "siblings": [], "private": True})

    def do_POST(self):
        body = self.body()
        if self.refused():
            return None
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            return self.answer({"url": f"http://127.0.0.1:{self.server.server_port}/sprout/tiny"})
        if self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {
                    "path": f["path"],
                    "shouldIgnore": False,
                    "uploadMode": "lfs" if f["path"].endswith("rs") else "regular",
                }
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.answer(self.batch(body))
        assert self.path.startswith("/api/models/sprout/tiny/commit/main"), self.path
        for line in body.splitlines():
            action = json.loads(line)
            value = action["value"]
            if action["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif action["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"http://127.0.0.1:{self.server.server_port}/sprout/tiny/commit/{COMMIT}"
        return self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})


class ModelScope(Hub):
    def do_GET(self):
        if self.refused():
            return None
        if self.server.made:
            return self.answer({"Code": 200, "success": True, "Success": True, "Data": {"Name": "tiny"}, "data": {}})
        return self.answer({"Code": 10010205001, "Message": "not found"}, 404)

    def do_POST(self):
        body = self.body()
        if self.refused():
            return None
        if self.path.rstrip("/") == "/api/v1/models":
            if self.server.made:
                return self.answer({"Code": 10020101002, "Message": "it exists"}, 400)
            self.server.made.append(json.loads(body))
            return self.answer({"Code": 200, "Success": True, "Data": {"Path": "sprout", "Name": "tiny"}})
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.answer({"Code": 200, "Success": True, "Data": self.batch(body)})
        assert self.path.startswith("/api/v1/repos/models/sprout/tiny/commit/master"), self.path
        for action in json.loads(body)["actions"]:
            inline = action["type"] == "normal"
            content = base64.b64decode(action["content"]) if inline else self.server.blobs[action["sha256"]]
            self.server.files[action["path"]] = content
        return self.answer({"Code": 200, "Success": True, "Data": {"oid": COMMIT}})


@pytest.fixture
def start():
    """start(handler) -> a server on a free port, until the end of the test."""
    servers = []

    def start(handler: type[Hub]) -> ThreadingHTTPServer:
        found = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        found.made, found.files, found.blobs, found.cards, found.keys, found.fault = [], {}, {}, [], set(), None
        threading.Thread(target=found.serve_forever, daemon=True).start()
        servers.append(found)
        return found

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture
def hugging_face(start, monkeypatch):
    from huggingface_hub import constants

    found = start(HuggingFace)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    return found


@pytest.fixture
def modelscope(start, monkeypatch, tmp_path):
    modelscope_hub = pytest.importorskip("modelscope_hub")
    found = start(ModelScope)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
    modelscope_hub.set_default_config(None)
    yield found
    modelscope_hub.set_default_config(None)


@pytest.fixture
def model(tiny_model, tokenizer, tmp_path):
    tiny_model().save(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def content_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "private"), [("hugging_face", True), ("hugging_face", False), ("modelscope", True)])
def test_an_export_is_pushed(request, model, tmp_path, capsys, name, private):
    server = request.getfixturevalue(name)
    value = {"hugging_face": "hf:sprout/tiny", "modelscope": "ms:sprout/tiny"}[name]
    export(model, tmp_path / "out", None, push=value, public=not private, license="apache-2.0")
    assert server.files == content_of(tmp_path / "out") and "model.safetensors" in server.files
    assert len(server.made) == 1, server.made
    made = server.made[0]
    if name == "hugging_face":
        assert made["name"] == "tiny" and made["organization"] == "sprout"
        assert made.get("private", made.get("visibility") == "private") is private
        assert server.cards and server.cards[0].startswith("---\nlicense: apache-2.0\n")
    else:
        assert made["Visibility"] == 1 and made["License"] == "apache-2.0", made  # private
    assert f"✓ http://127.0.0.1:{server.server_port}/" in (shown := capsys.readouterr().out)
    assert shown.rstrip().endswith("sprout/tiny") and "secret" not in shown
    assert any("secret" in str(key) for key in server.keys)


@pytest.mark.parametrize(("name", "value", "key"), [
    ("hugging_face", "hf:sprout/tiny", "HF_TOKEN"), ("modelscope", "ms:sprout/tiny", "MODELSCOPE_API_TOKEN")
])  # fmt: skip
@pytest.mark.parametrize(("fault", "words"), [(401, "may not write"), (403, "may not write"), (400, "not be uploaded")])
def test_what_a_hub_refuses(request, tmp_path, name, value, key, fault, words):
    server = request.getfixturevalue(name)
    server.fault = fault
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("# it")
    with pytest.raises(UserError, match=words) as raised:
        hub.push(tmp_path / "out", value, public=False)
    assert "secret" not in str(raised.value) and "\n" not in str(raised.value)
    if fault != 400:
        assert key in str(raised.value)


@pytest.mark.parametrize(("value", "key"), [("hf:a/b", "HF_TOKEN"), ("ms:a/b", "MODELSCOPE_API_TOKEN")])
def test_without_a_key_nothing_is_written(model, tmp_path, monkeypatch, value, key):
    monkeypatch.delenv(key, raising=False)
    with pytest.raises(UserError, match=f"needs a key that may write; set {key}"):
        export(model, tmp_path / "out", None, push=value)
    assert not (tmp_path / "out").exists()
