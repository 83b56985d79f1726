"""Small tokenizers of every kind with the chat templates of well-known models, written as Hugging Face directories."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from .conftest import CORPUS

WORDS = [*CORPUS, "Hello there. How are you? I am fine, thank you. user assistant system tool INST SYS"] * 3

LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""  # noqa: E501
LLAMA3 = """{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""  # noqa: E501
QWEN = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
MARKED = """{%- for m in messages -%}[{{ m.role }}] {% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %} {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"""  # noqa: E501


def byte_level(special: list[str]) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(special)  # after the vocabulary, as Qwen and Llama 3 have them
    return made


def sentencepiece(special: list[str], scheme: str = "first") -> tokenizers.Tokenizer:
    """BPE over characters with "▁" for spaces and bytes for what is unknown, as Llama 2, Mistral and Zephyr have it."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", *special, *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=700, special_tokens=tokens, show_progress=False))
    content = json.loads(made.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if not t["content"].startswith("<0x")]
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def unigram(special: list[str]) -> tokenizers.Tokenizer:
    """As XLM-R and T5: control tokens are pieces like any other, and NFKC makes `</s>` of full-width letters."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        WORDS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False
        ),
    )
    return made


def word_piece(special: list[str]) -> tokenizers.Tokenizer:
    """As BERT."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=False)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.train_from_iterator(
        WORDS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[UNK]", *special], show_progress=False)
    )
    made.enable_truncation(8)  # as a file for training may have it
    made.enable_padding(length=8)
    return made


def write(directory: Path, made: tokenizers.Tokenizer, template: object = None, **names: object) -> Path:
    """A directory as it comes from elsewhere: other indents, a model file, a map of tokens."""
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer.json").write_text(made.to_str(pretty=False), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "note": "不要改"}
    if template is not None:
        config["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    (directory / "tokenizer.model").write_bytes(b"\x00\xffnot ours to read")
    return directory


FAMILIES = {
    "llama2": lambda path: write(
        path, sentencepiece(["<s>", "</s>"]), LLAMA2, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ),
    "llama3": lambda path: write(
        path,
        byte_level(["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
        LLAMA3,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
    ),
    "qwen": lambda path: write(
        path, byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), QWEN, eos_token="<|im_end|>"
    ),
    "zephyr": lambda path: write(
        path, sentencepiece(["<s>", "</s>"], "always"), ZEPHYR, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ),
    "unigram": lambda path: write(
        path, unigram(["<s>", "</s>"]), MARKED, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ),
}
"""Directory makers by the family whose tokenizer and template they imitate."""
