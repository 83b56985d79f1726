"""Toy projects: text, conversations, pairs and questions on what animals eat, and a recipe that trains on them."""

import json
import tomllib
from pathlib import Path

from mengya.text.tokenizer import train_tokenizer

STAGES = ("pretrain", "sft", "dpo")
STEPS = 60
MODELS = ("native", "gpt2", "lora", "qlora")
_BASES = {
    "gpt2": dict(model_type="gpt2", n_embd=64, n_layer=2, n_head=2, n_positions=128),
    "llama": dict(model_type="llama", hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
    | dict(intermediate_size=96, max_position_embeddings=128),
}
_LORA = "lora.r = 4\nlora.dropout = 0.1\n"


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_project(directory: Path, compiled: bool, model: str = "native") -> Path:
    """Text, conversations, pairs, questions and a recipe that trains one of MODELS, tiny, on them. Returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    things = {"猫": "鱼", "牛": "草", "熊猫": "竹子", "兔子": "萝卜", "猴子": "桃子", "鸟": "虫子", "马": "麦子"}
    places = ["山上", "河边", "森林里", "村子里", "草地上", "小路旁"]
    texts, talks, pairs, questions = [], [], [], []
    for number in range(240):
        animal, food = list(things.items())[number % len(things)]
        place, other = places[number % len(places)], list(things.values())[(number + 3) % len(things)]
        texts.append(
            f"第{number}天，{animal}在{place}找到了{food}。它吃得很高兴，又去{place}玩。{animal}喜欢吃{food}。"
        )
        ask = f"第{number}天{animal}在{place}吃什么？"
        talks.append({"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": f"{food}。"}]})
        pairs.append({"prompt": ask, "chosen": f"{food}。", "rejected": f"{other}，{other}。"})
    for number, (animal, food) in enumerate(list(things.items())[:3]):
        questions.append(
            {"kind": "fact", "id": f"f{number}", "prompt": f"{animal}吃什么？", "answer": food, "accept": []}
        )
        numbers = (10 + number, 20 + 3 * number)
        prompt = f"{numbers[0]}+{numbers[1]}="
        questions.append({"kind": "addition", "id": f"a{number}", "prompt": prompt, "answer": str(sum(numbers))})
    (directory / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
    _write_rows(directory / "text.jsonl", [{"text": text} for text in texts])
    _write_rows(directory / "talks.jsonl", talks)
    _write_rows(directory / "pairs.jsonl", pairs)
    _write_rows(directory / "questions.jsonl", questions)
    recipe = _pretrained(directory, compiled) if model == "native" else _tuned(directory, compiled, model, texts)
    path = directory / "recipe.toml"
    path.write_text(recipe, encoding="utf-8")
    return path


def _training(compiled: bool, seq_len: int) -> str:
    return f"""seq_len = {seq_len}
batch_tokens = 256
micro_batch = 2
steps = {STEPS}
heldout_every = 10
checkpoint_every = 7
compile = {str(compiled).lower()}
optim.lr = 3e-3
"""


def _pretrained(directory: Path, compiled: bool) -> str:
    return f"""[corpus]
path = '{directory / "text.jsonl"}'
heldout = 0.1

[tokenizer]
vocab_size = 320

[tokenize]

[pretrain]
{_training(compiled, 64)}
[pretrain.model]
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
intermediate_size = 96
max_position_embeddings = 128

[sft]
path = '{directory / "talks.jsonl"}'
heldout = 0.1
{_training(compiled, 64)}
[dpo]
path = '{directory / "pairs.jsonl"}'
heldout = 0.1
{_training(compiled, 128)}
[evaluate]
models = ["@pretrain", "@sft", "@dpo"]
questions = '{directory / "questions.jsonl"}'
preferences = '{directory / "pairs.jsonl"}'
"""


def _tuned(directory: Path, compiled: bool, model: str, texts: list[str]) -> str:
    """Writes the model that is tuned, too, with its tokenizer."""
    base, adapted = directory / "base", model != "gpt2"
    _write_random_model(base, "llama" if model == "lora" else "gpt2", texts)
    lora = (_LORA if adapted else "") + ('lora.quantize = "nf4"\n' if model == "qlora" else "")
    merge = '[merge]\nmodel = "@dpo"\n' if adapted else ""
    return f"""[corpus]
path = '{directory / "text.jsonl"}'
heldout = 0.1

[sft]
model = '{base}'
path = '{directory / "talks.jsonl"}'
heldout = 0.1
template = "chatml"
{lora}{_training(compiled, 64)}
[dpo]
path = '{directory / "pairs.jsonl"}'
heldout = 0.1
{_training(compiled, 128)}
{merge}
[evaluate]
models = ["@sft", "@{"merge" if adapted else "dpo"}"]
questions = '{directory / "questions.jsonl"}'
preferences = '{directory / "pairs.jsonl"}'
"""


def _write_random_model(directory: Path, kind: str, texts: list[str]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_tokenizer(texts, 320, 16)
    torch.manual_seed(0)
    config = AutoConfig.for_model(**_BASES[kind], vocab_size=tokenizer.vocab_size)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(directory)
    tokenizer.save(directory)


def stages_of(recipe: Path) -> list[str]:
    """The stages that train."""
    return [stage for stage in tomllib.loads(recipe.read_text(encoding="utf-8")) if stage in STAGES]
