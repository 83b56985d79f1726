"""The model card (README.md) of an export, as the hubs read it; it names no paths of this machine."""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mengya import manifest
from mengya.errors import UserError
from mengya.export.sources import Found, inputs_of, read_note
from mengya.hub import is_remote, name_of
from mengya.metrics import format_count, read_jsonl
from mengya.text.template import own_template

FILE = "README.md"
_KEYS = ("steps", "seq_len", "batch_tokens", "vocab_size", "seed")
"""What of a stage's config a reader of the card wants to know."""
_SHAPE = (
    "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size num_experts "
    "num_experts_per_tok moe_num_experts moe_k moe_intermediate_size max_position_embeddings vocab_size rope_theta "
    "tie_word_embeddings"
).split()
_LANGUAGES = {"zh": ("一", "鿿", 0.05), "en": ("A", "z", 0.2)}
"""First and last letter, and the share of letters above which a corpus is said to have the language."""


def write(found: Found, source: Path, out: Path, name: str, gguf: Path | None, license: str | None) -> None:
    """Write the card into `out`, where the files are; a card that the source has is taken over. `name`: of the model.

    `gguf`: the GGUF file, if it is one. `license`: as the hubs call it, e.g. "apache-2.0"; None: nobody has said.
    """
    if (source / FILE).is_file():
        (out / FILE).write_bytes((source / FILE).read_bytes())
        return
    links, base = lineage(source)
    parts = [
        _front(links, base, license, gguf is not None),
        f"# {name}",
        f"Made with Mengya 萌芽{f' from {base}' if base else ''}.",
        "## Shape",
        _shape(found, out, gguf),
        *_data(links),
        *_measured(source),
        "## Use",
        _use(name, gguf, own_template(found.files) is not None),
        "What the model writes may be wrong or offensive: it was measured only as far as the figures above say.",
    ]
    (out / FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8", newline="\n")


def lineage(source: Path) -> tuple[list[dict], str | None]:
    """The manifests from the raw files to the model, sources first, and the hub's name of the model that it was made
    from. An unfinished training is the last of them."""
    links = _chain([source])
    run = source.parent.parent if (source / "checkpoint.json").is_file() else source
    if note := read_note(run):
        links = [*_chain([path for _, path in inputs_of(run, note)]), note | {"unfinished": True}]
    for link in links:
        for entry in link["inputs"]:
            if not entry["artifact"]:
                name = entry["path"] if is_remote(entry["path"]) else name_of(Path(entry["path"]))
                if name is not None:
                    return links, name.partition(":")[2].partition("@")[0]
    return links, None


def _chain(paths: list[Path]) -> list[dict]:
    try:
        return manifest.chain(paths)
    except UserError:  # a link that is damaged leaves the card without lineage, not the user without an export
        return []


def _front(links: Sequence[Mapping], base: str | None, license: str | None, gguf: bool) -> str:
    """What the hubs read: YAML, in which JSON's strings are strings."""
    fields: dict[str, Any] = {
        "license": license or "unknown",
        "language": _languages(links),
        "library_name": "gguf" if gguf else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "tags": ["mengya", *(["gguf"] if gguf else [])],
    }
    lines = ["---"]
    for key, value in fields.items():
        if isinstance(value, list) and value:
            lines += [f"{key}:", *(f"- {entry}" for entry in value)]
        elif isinstance(value, str):
            # A bare `no` or `1.0` would be no text in YAML.
            plain = re.fullmatch(r"[A-Za-z][\w./-]{3,}", value, re.ASCII) and value.lower() not in (
                "true",
                "false",
                "null",
            )
            lines.append(f"{key}: {value if plain else json.dumps(value, ensure_ascii=False)}")
    return "\n".join([*lines, "---"])


def _languages(links: Sequence[Mapping]) -> list[str]:
    """Those of the first documents of each corpus that is still there."""
    text = ""
    for link in links:
        if "corpus" in link.get("makes", ()) and "directory" in link:
            file = Path(link["directory"]) / "train.jsonl"
            text += "".join(row["text"] for row in islice(read_jsonl(file), 500)) if file.is_file() else ""
    letters = sum(map(str.isalpha, text))
    return [
        language
        for language, (first, last, share) in _LANGUAGES.items()
        if letters and sum(first <= letter <= last for letter in text) > share * letters
    ]


def _shape(found: Found, out: Path, gguf: Path | None) -> str:
    model, content = found.model, found.model.description()
    size = sum(file.stat().st_size for file in out.iterdir() if file.suffix in (".safetensors", ".gguf"))
    active = model.active_parameters()
    rows = [("architecture", (content.get("architectures") or [type(model).__name__])[0])]
    rows.append(("parameters", format_count(model.all_parameters())))
    if active != model.all_parameters():
        rows.append(("parameters that a token passes", format_count(active)))
    rows += [(key, str(content[key])) for key in _SHAPE if content.get(key) is not None]
    rows.append(("weights", f"{gguf.stem.rpartition('-')[2] if gguf else 'safetensors'}, {format_count(size)}B"))
    return _table(("what", "value"), rows)


def _data(links: Sequence[Mapping]) -> list[str]:
    """How the model came about, one row a stage."""
    rows = []
    for link in links:
        sources = []
        for entry in link["inputs"]:
            path = entry["path"]
            shown = path if is_remote(path) else name_of(Path(path)) or Path(path).name
            sources.append(f"{shown} ({entry['fingerprint'][:8]})")
        config = link.get("config", {})
        told = [f"{key}={config[key]}" for key in _KEYS if config.get(key) is not None]
        if not link["inputs"]:  # its data came with the program, by the keys that are set
            sources += [key for key, value in config.items() if value is True]
        told += ["unfinished"] if link.get("unfinished") else []
        made = link.get("fingerprint", "")[:8]
        rows.append((link["stage"], made, ", ".join(sources), _counts(link), ", ".join(told)))
    if not rows:
        return []
    return ["## Data and training", _table(("stage", "fingerprint", "from", "holds", "with"), rows)]


def _counts(link: Mapping) -> str:
    """The documents of a corpus."""
    try:
        counts = json.loads((Path(link["directory"]) / "corpus.json").read_text(encoding="utf-8"))
        return f"{counts['train']} documents, {format_count(counts['train_bytes'])}B, {counts['heldout']} held out"
    except (KeyError, OSError, ValueError):
        return ""


def _measured(source: Path) -> list[str]:
    """The figures of the reports beside the source that measured this very model."""
    own = manifest.read(source)
    if own is None:
        return []
    rows = []
    for file in sorted(source.parent.glob("*/report.json")):
        about = manifest.read(file.parent) or {"inputs": []}
        if any(entry["fingerprint"] == own["fingerprint"] for entry in about["inputs"]):
            figures = manifest.read_object(file, "run its stage again").get("stages", {}).get(source.name, {})
            counts = figures.get("intervals", {})
            for key, value in figures.items():
                if isinstance(value, float | int):
                    of = counts.get(key)
                    seen = f"{of['correct']} of {of['total']}" if of and "correct" in of else ""
                    rows.append((key, f"{value:.4g}", seen))
    return ["## Measured on held-out data", _table(("figure", "value", "counted"), rows)] if rows else []


def _use(name: str, gguf: Path | None, chats: bool) -> str:
    if gguf is not None:
        return (
            f"llama.cpp:\n\n```bash\nllama-server -m {gguf.name} --jinja\n```\n\n"
            "Ollama, by the Modelfile beside it:\n\n"
            f"```bash\nollama create {name.lower()} -f Modelfile\nollama run {name.lower()}\n```"
        )
    ask = (
        'ids = tokenizer.apply_chat_template([{"role": "user", "content": "你好！"}],\n'
        '    add_generation_prompt=True, return_tensors="pt", return_dict=True)\n'
        if chats
        else 'ids = tokenizer("春天", return_tensors="pt")\n'
    )
    talk = f"\n\nmengya:\n\n```bash\nmengya chat {name}\n```" if chats else ""
    return (
        "transformers:\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n{ask}'
        "out = model.generate(**ids, max_new_tokens=64)\nprint(tokenizer.decode(out[0]))\n```" + talk
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])
