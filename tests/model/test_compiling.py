"""What compiled code keeps for its backward pass, and where it is kept itself."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mengya
from mengya.model.compiling import compiled, recomputed
from mengya.model.native.transformer import RMSNorm
from mengya.runtime import compiler_missing

CACHE = "TORCHINDUCTOR_CACHE_DIR"
pytestmark = pytest.mark.skipif(compiler_missing("cpu") is not None, reason="no C++ compiler")


def kept_numbers(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """In all that `function(x)` keeps, but x and weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and tensor.data_ptr() != x.data_ptr():
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(x)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_before_a_product_is_not_kept_in_float32(dtype):
    torch.manual_seed(0)
    norm, weight = RMSNorm(32, 1e-6), torch.randn(32, 32, requires_grad=True)
    x = torch.randn(64, 32, dtype=dtype, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        return norm(x) @ weight.to(x.dtype)

    kept = kept_numbers(compiled(layer), x)
    assert kept < x.numel() if dtype == torch.float32 else kept >= x.numel()


def test_gradients_are_those_of_what_is_kept():
    torch.manual_seed(0)
    x, weight = torch.randn(64, 32, requires_grad=True), torch.randn(32, 32, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        return (recomputed(torch.tanh, x) @ weight).sin().sum()

    found = torch.autograd.grad(compiled(layer)(x), (x, weight))
    expected = torch.autograd.grad((x.tanh() @ weight).sin().sum(), (x, weight))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "torchinductor_*-*"), ({"ATEN_CPU_CAPABILITY": "avx2"}, "torchinductor_*-AVX2"), ({CACHE: "/d"}, "/d")],
)
def test_each_instruction_set_has_a_cache(given, found, tmp_path):
    """What torch compiled for others writes behind the end of tensors."""
    code = f"""import os
from torch._inductor.runtime.cache_dir_utils import cache_dir
from mengya.model.compiling import compiled
cache_dir()  # writes it, too
compiled(len)
print(os.environ[{CACHE!r}])"""
    environment = {k: v for k, v in os.environ.items() if k not in (CACHE, "ATEN_CPU_CAPABILITY")} | given
    environment |= {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(mengya.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).match(found)
