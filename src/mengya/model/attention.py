"""Causal attention of packed documents: grouped-query, one implementation chosen per kind of tensor.

bf16 on CPUs with AMX goes to the kernel of kernels/attention.cpp; everything else to torch's
`scaled_dot_product_attention`. Both see the same contract; only speed and rounding differ.
"""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor

from mengya.model.kernels import AttentionProblem, Strides, attention_library

_HEAD_DIMS = (32, 64, 96, 128)


@torch.compiler.assume_constant_result
def uses_kernel(device_type: str, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether tensors of this kind are served by the native kernel, which needs no mask. The first call builds it."""
    return (
        device_type == "cpu" and dtype == torch.bfloat16 and head_dim in _HEAD_DIMS and attention_library() is not None
    )


def document_mask(starts: Tensor) -> Tensor:
    """Boolean mask (B, 1, T, T), True where the query (third axis) reads the key (last); see `packed_attention`."""
    position = torch.arange(starts.shape[1], device=starts.device)
    return ((position <= position[:, None]) & (position >= starts[:, :, None]))[:, None]


def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Attention of query t to the keys starts[t] .. t of its row, scaled by head_dim ** -0.5.

    q (B, T, H, D); k, v (B, T, Hkv, D) with H a multiple of Hkv; any strides. starts (B, T) int32: the position in its
    row of the first token of t's document, non-decreasing along t and at most t; None means one document per row.
    mask: the `document_mask` of starts, which a caller with many layers builds once where `uses_kernel` is False; built
    here if absent. Returns (B, T, H, D), contiguous where the kernel serves. The kernel's results, gradients included,
    are the same bits on every run and for every number of threads.
    """
    if uses_kernel(q.device.type, q.dtype, q.shape[-1]):
        return _attention(q, k, v, starts)[0]
    if starts is not None and mask is None:
        mask = document_mask(starts)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2)


def _problem(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor) -> AttentionProblem:
    batch, time, heads, head_dim = q.shape
    return AttentionProblem(
        batch=batch, time=time, heads=heads, kv_heads=k.shape[2], head_dim=head_dim, scale=head_dim**-0.5,
        threads=torch.get_num_threads(),
        starts=None if starts is None else starts.data_ptr(), lse=lse.data_ptr(), out=out.data_ptr(),
        q=q.data_ptr(), k=k.data_ptr(), v=v.data_ptr(),
        q_at=Strides.of(q), k_at=Strides.of(k), v_at=Strides.of(v), out_at=Strides.of(out),
    )  # fmt: skip


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("mengya::attention", mutates_args=())
def _attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output and, per query and head, the logarithm (base 2) of the sum of its exponentiated scores: (B, H, T) fp32."""
    q, k, v = _dense_last(q), _dense_last(k), _dense_last(v)
    starts = None if starts is None else starts.contiguous()
    out, lse = _outputs(q, k, v, starts)
    if out.numel():
        _kernel().attention_forward(ctypes.byref(_problem(q, k, v, starts, out, lse)))
    return out, lse


@_attention.register_fake
def _outputs(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((batch, heads, time), dtype=torch.float32)


@torch.library.custom_op("mengya::attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_out, q, k, v = _dense_last(grad_out), _dense_last(q), _dense_last(k), _dense_last(v)
    starts = None if starts is None else starts.contiguous()
    grads = _gradients(grad_out, q, k, v, starts, out, lse)
    if out.numel():
        problem = _problem(q, k, v, starts, out, lse)
        problem.grad_out, problem.grad_out_at = grad_out.data_ptr(), Strides.of(grad_out)
        problem.grad_q, problem.grad_k, problem.grad_v = (g.data_ptr() for g in grads)
        problem.grad_kv_at = Strides.of(grads[1])
        _kernel().attention_backward(ctypes.byref(problem))
    return grads


@_attention_backward.register_fake
def _gradients(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _kernel() -> ctypes.CDLL:
    library = attention_library()
    assert library is not None, "called without asking uses_kernel"
    return library


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx, grad_out: Tensor, _grad_lse: Tensor | None):
    return *torch.ops.mengya.attention_backward(grad_out, *ctx.saved_tensors), None


_attention.register_autograd(_differentiate, setup_context=_save)
