"""Causal attention of packed documents: grouped-query, rotary, one implementation chosen per kind of tensor.

On CPUs with AMX the kernel of kernels/attention.cpp computes bf16; on those with AVX2 or AVX-512 that of
kernels/vector_attention.cpp bf16 and float32; torch's `scaled_dot_product_attention` everything else. All keep the same
contract; only speed and rounding differ.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.model.compiling import decision
from mengya.model.native.kernels import AttentionProblem, call, library
from mengya.model.native.rope import apply_rotary

_HEAD_DIMS = (32, 64, 96, 128)
_NARROW_HEAD_DIMS = (48, 80, 112)
"""That are no multiples of two vectors of AVX-512."""


def kernel_for(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """The name of the native kernel that takes tensors of this kind. The first call builds it."""
    if device_type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
        return None
    names = ["vector_attention"] if head_dim in _HEAD_DIMS else ["avx2_attention"] * (head_dim in _NARROW_HEAD_DIMS)
    if dtype == torch.bfloat16 and head_dim in _HEAD_DIMS:
        names = ["attention", *names]
    return next((name for name in names if library(name) is not None), None)


@decision
def uses_kernel(device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether a native kernel, which needs no mask, takes tensors of this kind."""
    return kernel_for(device_type, dtype, head_dim) is not None


def document_mask(starts: Tensor) -> Tensor:
    """Boolean mask (B, 1, T, T), True where the query (third axis) reads the key (last); see `packed_attention`."""
    position = torch.arange(starts.shape[1], device=starts.device)
    return ((position <= position[:, None]) & (position >= starts[:, :, None]))[:, None]


def packed_attention(
    qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor, starts: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention of query t to the keys starts[t] .. t of its row, scaled by head_dim ** -0.5, after their rotation.

    qkv (B, T, H + 2 kv_heads, D): the heads of queries, keys and values side by side, H a multiple of kv_heads. cos and
    sin: the tables of RotaryEmbedding, (B or 1, T, 1, D / 2) float32. starts (B, T) int32: the position in its row of
    the first token of t's document, non-decreasing along t and at most t; None means one document per row. mask: the
    `document_mask` of starts, which a caller with many layers builds once where `uses_kernel` is False; built here if
    absent. Returns (B, T, H, D), contiguous if the kernel makes it. The kernel's results, gradients included, are the
    same bits on every run and for every number of threads.
    """
    if uses_kernel(qkv.device.type, qkv.dtype, qkv.shape[-1]):
        return _attention(qkv, kv_heads, cos, sin, starts)[0]
    if starts is not None and mask is None:
        mask = document_mask(starts)
    q, k, v = qkv.split([qkv.shape[2] - 2 * kv_heads, kv_heads, kv_heads], dim=2)
    q, k, v = (x.transpose(1, 2) for x in (apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


def _call(function: str, qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, **tensors: Tensor) -> None:
    """Call a function of the kernel; `tensors` are its other pointers, contiguous."""
    batch, time, _, head_dim = qkv.shape
    heads = tensors["out"].shape[2]
    # Tables of one row are for all rows. The kernel itself checks nothing.
    assert cos.shape == sin.shape and cos.shape in ((1, time, 1, head_dim // 2), (batch, time, 1, head_dim // 2))
    assert cos.dtype == sin.dtype == torch.float32 and (starts is None or starts.dtype == torch.int32)
    assert all(t.is_contiguous() for t in tensors.values())
    tensors = tensors | {"qkv": qkv.contiguous(), "cos": cos.contiguous(), "sin": sin.contiguous()}
    if starts is not None:
        tensors["starts"] = starts.contiguous()
    problem = AttentionProblem(
        batch=batch, time=time, heads=heads, kv_heads=(qkv.shape[2] - heads) // 2, head_dim=head_dim,
        scale=head_dim**-0.5, threads=torch.get_num_threads(), rope_row=0 if len(cos) == 1 else time * head_dim // 2,
        wide=qkv.dtype == torch.float32,
        **{name: t.data_ptr() for name, t in tensors.items()},
    )  # fmt: skip
    if qkv.numel():
        name = kernel_for(qkv.device.type, qkv.dtype, head_dim)
        assert name is not None, "called without asking whether a kernel can run"
        call(name, function, problem)


@torch.library.custom_op("mengya::attention", mutates_args=())
def _attention(qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and, per query and head, the logarithm (base 2) of the sum of its exponentiated scores: (B, H, T) fp32."""
    out, lse = _outputs(qkv, kv_heads, cos, sin, starts)
    _call("attention_forward", qkv, cos, sin, starts, out=out, lse=lse)
    return out, lse


@_attention.register_fake
def _outputs(qkv: Tensor, kv_heads: int, cos: Tensor, sin: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, time, heads, head_dim = qkv.shape
    heads -= 2 * kv_heads
    return qkv.new_empty((batch, time, heads, head_dim)), qkv.new_empty((batch, heads, time), dtype=torch.float32)


@torch.library.custom_op("mengya::attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor
) -> Tensor:
    grad_qkv = qkv.new_empty(qkv.shape)
    _call(
        "attention_backward", qkv, cos, sin, starts, out=out, lse=lse, grad_out=grad_out.contiguous(), grad_qkv=grad_qkv
    )
    return grad_qkv


@_attention_backward.register_fake
def _(grad_out, qkv: Tensor, cos, sin, starts, out, lse) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, _, cos, sin, starts = inputs
    ctx.save_for_backward(qkv, cos, sin, starts, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out: Tensor, _grad_lse: Tensor | None):
    return torch.ops.mengya.attention_backward(grad_out, *ctx.saved_tensors), None, None, None, None


_attention.register_autograd(_differentiate, setup_context=_save)
