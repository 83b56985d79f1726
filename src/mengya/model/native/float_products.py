"""Matrix products in float32: by our kernel on processors that PyTorch's library was not made for, else by PyTorch."""

import torch
from torch import Tensor

from mengya.model.native import kernels
from mengya.model.native.kernels import FloatProblem, Side


@torch.compiler.assume_constant_result
def uses_kernel(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the kernel multiplies tensors of this kind. The first call builds it."""
    here = device_type == "cpu" and dtype == torch.float32 and not kernels.is_intel()
    return here and kernels.library("float_products") is not None


def multiply(a: Tensor, b: Tensor, out: Tensor, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """out = alpha a b + beta out, outside autograd. a (M, K), b (K, N) and out (M, N) of one type and device."""
    if not uses_kernel(out.device.type, out.dtype):
        return torch.addmm(out, a, b, beta=beta, alpha=alpha, out=out)
    assert a.shape == (len(out), len(b)) and b.shape[1] == out.shape[1] and a.dtype == b.dtype == out.dtype
    assert out.stride(1) == 1 or out.shape[1] < 2
    if not out.numel() or not len(b):
        return out.mul_(beta) if beta else out.zero_()
    # The kernel takes any strides; where neither is 1 it would read a line of memory for every number.
    a, b = (x if 1 in x.stride() else x.contiguous() for x in (a, b))
    problem = FloatProblem(
        rows=len(out), columns=out.shape[1], depth=len(b), threads=torch.get_num_threads(), a=Side.of(a), b=Side.of(b),
        c=out.data_ptr(), c_row=out.stride(0), alpha=alpha, beta=beta,
    )  # fmt: skip
    kernels.call("float_products", "product", problem)
    return out


@torch.library.custom_op("mengya::product", mutates_args=())
def product(a: Tensor, b: Tensor) -> Tensor:
    """a (M, K) times b (K, N): (M, N). Outside autograd; a compiled layer does not look into it."""
    return multiply(a, b, a.new_empty(len(a), b.shape[1]))


@product.register_fake
def _(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(len(a), b.shape[1])
