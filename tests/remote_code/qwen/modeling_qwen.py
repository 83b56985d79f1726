"""The architecture of the first Qwen, as code that comes with a model: one product for q, k and v (c_attn), rotation
by columns, whatever positions are given."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_qwen import QWenConfig


class RMSNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = epsilon

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotated(x, columns):
    half = x.shape[-1] // 2
    angles = columns[:, None] * 10000.0 ** -(torch.arange(half, device=x.device) / half)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class QWenAttention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.heads, self.layer = config.num_attention_heads, layer
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x, mask, columns, past):
        rows, length, width = x.shape
        q, k, v = (p.view(rows, length, self.heads, -1).transpose(1, 2) for p in self.c_attn(x).split(width, -1))
        q, k = rotated(q, columns), rotated(k, columns)
        if past is not None:
            k, v = past.update(k, v, self.layer)
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.c_proj(out.transpose(1, 2).reshape(rows, length, width))


class QWenMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size // 2, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.intermediate_size // 2, bias=False)
        self.c_proj = nn.Linear(config.intermediate_size // 2, config.hidden_size, bias=False)

    def forward(self, x):
        return self.c_proj(self.w1(x) * nn.functional.silu(self.w2(x)))


class QWenBlock(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, x, mask, columns, past):
        x = x + self.attn(self.ln_1(x), mask, columns, past)
        return x + self.mlp(self.ln_2(x))


class QWenPreTrainedModel(PreTrainedModel):
    config_class = QWenConfig
    base_model_prefix = "transformer"


class QWenModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(QWenBlock(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    def forward(
        self, input_ids=None, past_key_values=None, attention_mask=None, position_ids=None, use_cache=None
    ):  # fmt: skip
        x = self.wte(input_ids)
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        column = torch.arange(before + x.shape[1], device=x.device)
        row = column[before:, None]
        mask = (column <= row)[None, None]
        if attention_mask is not None:
            mask = mask & ((attention_mask[:, None, None] != 0) | (row == column))
        for block in self.h:
            x = block(x, mask, column[before:], past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.ln_f(x), past_key_values=past_key_values)


class QWenLMHeadModel(QWenPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.transformer = QWenModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, input_ids=None, use_cache=None, **inputs):
        found = self.transformer(input_ids, use_cache=use_cache, **inputs)
        logits = self.lm_head(found.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)
