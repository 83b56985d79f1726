"""Imports go down the layers, never up and never sideways between modules that stand beside each other."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "mengya"
LAYERS = [
    {"__init__", "errors", "schema", "stage", "durable", "processor"},
    {"runtime", "ranks", "metrics", "manifest"},
    {"hub"},
    {"text"},
    {"batch"},
    {"data", "model"},
    {"infer"},
    {"tasks", "rag"},
    {"train", "evaluate", "serve"},
    {"stages"},
    {"toml_tables"},
    {"recipe"},
    {"runner", "plan", "inspection"},
    {"export"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(SOURCE.rglob("*.py"))


def area(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mengya":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {a.name for a in node.names if not a.name.startswith("__")}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("mengya.")}
    return found


def test_every_file_has_a_layer():
    assert {area(path) for path in FILES} <= set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(SOURCE).as_posix())
def test_imports_only_go_down(path):
    here = area(path)
    for other in imports(path) - {here}:
        assert LEVEL[other] < LEVEL[here], f"{here} must not import {other}"


def test_heavy_libraries_are_not_imported_at_the_top():
    """transformers, pyarrow and the like are extras: imported inside the function that needs them."""
    heavy = {"transformers", "pyarrow", "pandas", "peft", "trl", "datasets", "deepspeed", "bitsandbytes"}
    heavy |= {"huggingface_hub", "modelscope_hub", "modelscope", "gguf", "openai", "llama_cpp", "vllm"}
    heavy |= {"sentence_transformers", "rjieba", "opencc"}
    heavy |= {"pypdfium2", "lxml", "rapidocr", "onnxruntime", "PIL", "httpx"}
    heavy |= {"gradio", "mdit_py_plugins", "latex2mathml", "pygments"}
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not heavy & {name.split(".")[0] for name in names}, path


def test_what_serves_http_is_imported_by_the_server_alone():
    """The extras `serve` and `ui` are not needed for anything else; commands import the servers when they run."""
    web = {"fastapi", "starlette", "uvicorn", "h11", "prometheus_client"}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {SOURCE / "serve" / "api", SOURCE / "serve" / "web"} & set(path.parents)
        for node in ast.walk(tree) if not inside else ():
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not web & {name.split(".")[0] for name in names}, path
            assert not (node in tree.body and any(".serve." in name for name in names)), path


def test_a_file_is_read_in_a_sitting():
    assert [path for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > 400] == []


def test_nothing_outside_reaches_into_a_model():
    """Training, scoring and generation know what model/language_model.py says, and no more."""
    inside = {"lm_head", "embed_tokens", "layers", "q_proj", "o_proj", "gate_proj"}
    for path in FILES:
        if area(path) != "model":
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            assert not inside & {node.attr for node in nodes if isinstance(node, ast.Attribute)}, path
