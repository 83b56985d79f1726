"""Every text template that the installed trl ships, those with marks for training, too: each answer is learnt once."""

import importlib.util
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from mengya.data.fitting import fit_conversation
from mengya.errors import UserError
from mengya.text.chat import Chat

from .foreign import byte_level, write

(FOLDER,) = importlib.util.find_spec("trl").submodule_search_locations
FILES = {path.stem: path for path in sorted((Path(FOLDER) / "chat_templates").glob("*.jinja"))}
PICTURES = re.compile("idefics|llava|smolvlm")
"""Their content must be a list of parts."""
CONTROL = re.compile(r"<\|[A-Za-z_]+\|>|<｜[^｜]+｜>|<(?:start_of_turn|end_of_turn)>|<\|turn>|<turn\|>|\[gMASK\]|<sop>")
ENDS = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|return|>", "<|eot|>", "<｜end▁of▁sentence｜>"]
ENDS += ["<|END_OF_TURN_TOKEN|>", "<|end|>", "<|user|>"]
WITHOUT_AN_END = {"glm4moe"}
"""Where the next turn ends an answer: a template of ours writes it."""
TALK = [
    {"role": "user", "content": "一？"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\n甲。"},
    {"role": "user", "content": "二？"},
    {"role": "assistant", "content": "<think>\nso\n</think>\n\n乙。"},
]


@pytest.mark.parametrize("name", [name for name in FILES if not PICTURES.match(name)])
def test_each_answer_is_learnt_once_with_its_end(tmp_path, name):
    template = FILES[name].read_text(encoding="utf-8")
    control = sorted({*CONTROL.findall(template), "<BOS>"})
    end = next(token for token in ENDS if token in control)
    chat = Chat.load(write(tmp_path / "t", byte_level(control), template, bos_token="<BOS>", eos_token=end))
    assert chat.teaches_the_end == (name not in WITHOUT_AN_END)
    documents, _ = fit_conversation(chat, TALK, 10**6)
    decode = chat.tokenizer._structure.decode
    said = [
        decode([i for i, m in zip(*document, strict=True) if m], skip_special_tokens=False) for document in documents
    ]
    assert "".join(said).count("甲。") == "".join(said).count("乙。") == 1
    assert not any(text in "".join(said) for text in "一二")
    last = documents[-1].ids
    assert last == AutoTokenizer.from_pretrained(tmp_path / "t").apply_chat_template(TALK, return_dict=False)
    try:
        chat.encode(TALK[:1], add_generation_prompt=True)
    except UserError as error:
        pytest.fail(str(error))
