"""A small model as a GGUF file, written by hand with the `gguf` library."""

import json
from pathlib import Path

from mengya.model.native.transformer import CausalLM
from mengya.text.tokenizer import END_OF_TEXT, IM_END, Tokenizer

_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(path: Path, model: CausalLM, tokenizer: Tokenizer, template: str | None, begins: bool = False) -> Path:
    """A model of Qwen3's architecture with tied embeddings. `begins`: the file says that END_OF_TEXT begins texts."""
    import gguf

    shape = model.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_rope_freq_base(shape.rope_theta)
    _add_vocabulary(writer, tokenizer)
    writer.add_add_bos_token(begins)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            writer.add_tensor(_named(name), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(name: str) -> str:
    outside = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in outside:
        return outside[name]
    number, _, inside = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    return f"blk.{number}.{_LAYER[inside]}.weight"


def _add_vocabulary(writer, tokenizer: Tokenizer) -> None:
    content = json.loads(tokenizer.files["tokenizer.json"])
    vocabulary = content["model"]["vocab"] | {added["content"]: added["id"] for added in content["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.control_ids else 1 for token in tokens])
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    )
    writer.add_eos_token_id(tokenizer.control_ids[IM_END])
    writer.add_bos_token_id(tokenizer.control_ids[END_OF_TEXT])
