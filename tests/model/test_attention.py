"""Packed attention against a float64 reference, for every native kernel that the machine can run, and for torch's."""

import ctypes
import logging
import os
import subprocess
import sys

import pytest
import torch

from mengya import processor
from mengya.model import compiling
from mengya.model.native import attention, kernels
from mengya.model.native.attention import document_mask, kernel_for, packed_attention, uses_kernel
from mengya.model.native.rope import apply_rotary

CAPABILITY = torch.backends.cpu.get_cpu_capability()
KERNELS = {
    "AMX": ("attention", kernels._AMX, processor.has_amx()),
    "AVX-512": ("vector_attention", kernels._AVX512, CAPABILITY.startswith("AVX512")),
    "AVX2": ("avx2_attention", kernels._AVX2, CAPABILITY.startswith("AVX")),
}
needs_kernel = pytest.mark.skipif(
    not uses_kernel("cpu", torch.bfloat16, 64), reason="no native attention kernel here (needs AVX2 and a C++ compiler)"
)


@pytest.fixture(params=[*KERNELS, "torch"])
def kernel(request, monkeypatch, tmp_path_factory):
    """Only this kernel exists; its name, or "torch"."""
    name, level, can_run = KERNELS.get(request.param, ("", (), True))
    if not can_run:
        pytest.skip(f"this processor has no {request.param}")
    if name and kernels.shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.getbasetemp() / "kernels"
    source = kernels.Path(kernels.__file__).with_name(
        "attention.cpp" if name == "attention" else "vector_attention.cpp"
    )
    built = ctypes.CDLL(str(kernels.build(source, folder, level))) if name else None
    if built is not None:
        assert built.init() == 0
    names = {"AMX": ["attention"], "AVX-512": ["vector_attention"], "AVX2": kernels.VECTOR}.get(request.param, [])
    for module in (attention, kernels):
        monkeypatch.setattr(module, "library", lambda wanted: built if wanted in names else None)
    return request.param


def random_starts(batch: int, time: int, mean_length: float, generator: torch.Generator) -> torch.Tensor:
    new = torch.rand(batch, time, generator=generator) < 1 / mean_length
    new[:, 0] = True
    return torch.where(new, torch.arange(time), 0).cummax(1).values.int()


def problem(batch, time, heads, kv_heads, head_dim, mean_length, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, time, n, head_dim) for n in (heads, kv_heads, kv_heads, heads)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return tensors, random_starts(batch, time, mean_length, generator) if mean_length else None


def tables(time, head_dim, rows=1, dtype=torch.float32):
    angles = torch.rand(rows, time, 1, head_dim // 2, generator=torch.Generator().manual_seed(1), dtype=dtype) * 7
    return angles.cos(), angles.sin()


def attend(q, k, v, starts=None, mask=None):
    rope = tables(q.shape[1], q.shape[-1], dtype=torch.promote_types(q.dtype, torch.float32))
    return packed_attention(torch.cat((q, k, v), 2), k.shape[2], *rope, starts, mask)


def differentiate(function, q, k, v, grad):
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(grad.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves)]


def reference(q, k, v, starts, rows=1):
    rope = [table.double() for table in tables(q.shape[1], q.shape[-1], rows)]
    q, k = apply_rotary(q, *rope), apply_rotary(k, *rope)
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    time = torch.arange(q.shape[1])
    visible = (time <= time[:, None]).expand(q.shape[0], -1, -1)
    if starts is not None:
        visible = visible & (time >= starts[:, :, None])
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~visible[:, None], -torch.inf).softmax(-1), v)


SHAPES = [
    # batch, time, heads, kv_heads, head_dim, mean document length (None: one per row)
    (2, 64, 4, 2, 64, None),
    (1, 1, 2, 1, 32, None),
    (1, 1, 2, 2, 128, 3),
    (2, 33, 2, 1, 64, None),
    (3, 77, 4, 4, 32, 9),
    (2, 200, 4, 1, 96, 30),
    (1, 300, 2, 1, 128, 100),
    (2, 416, 4, 2, 64, 1.5),
    (1, 600, 2, 1, 32, 250),
    (2, 95, 2, 1, 42, 20),
    (1, 40, 2, 2, 8, 5),
    (1, 50, 2, 1, 100, None),
    (2, 90, 3, 3, 48, 25),
    (1, 70, 2, 1, 80, None),
    (1, 130, 2, 1, 112, 40),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape, kernel):
    (q, k, v, grad), starts = problem(*shape)
    ours = differentiate(lambda *x: attend(*x, starts), q, k, v, grad)
    exact = differentiate(lambda *x: reference(*x, starts), q.double(), k.double(), v.double(), grad)
    for name, x, y in zip(("out", "grad_q", "grad_k", "grad_v"), ours, exact, strict=True):
        assert x.dtype == torch.bfloat16 and x.shape == y.shape
        # torch's own bf16 attention is 0.002 to 0.006 off
        assert (x.double() - y).norm() <= 6e-3 * y.norm() + 1e-6, name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_matches_float64(shape, kernel):
    (q, k, v, grad), starts = problem(*shape, torch.float32)
    ours = differentiate(lambda *x: attend(*x, starts), q, k, v, grad)
    exact = differentiate(lambda *x: reference(*x, starts), q.double(), k.double(), v.double(), grad)
    for x, y in zip(ours, exact, strict=True):
        assert (x.double() - y).norm() <= 2e-6 * y.norm() + 1e-5


def test_gradcheck_of_torch_path():
    (q, k, v, _), starts = problem(1, 9, 2, 1, 4, 3, torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    assert torch.autograd.gradcheck(lambda *x: attend(*x, starts, document_mask(starts)), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_reads_no_other_document(dtype, kernel):
    """Whatever stands before and after a document, its outputs and gradients are the same bits."""
    (q, k, v, grad), _ = problem(1, 150, 4, 2, 64, None, dtype)
    first, last = 41, 101
    starts = torch.zeros(1, 150, dtype=torch.int32)
    starts[:, first:], starts[:, last:] = first, last
    inside = torch.zeros(150, dtype=torch.bool)
    inside[first:last] = True
    before = differentiate(lambda *x: attend(*x, starts), q, k, v, grad)
    changed = [torch.where(inside[:, None, None], x, x * -3 + 1) for x in (q, k, v, grad)]
    after = differentiate(lambda *x: attend(*x, starts), *changed)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:, inside], y[:, inside])
        assert not torch.equal(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_same_bits_on_every_run_and_thread_count(dtype, kernel):
    if kernel_for("cpu", dtype, 64) is None:
        pytest.skip("torch's sums depend on the threads")
    (q, k, v, grad), starts = problem(2, 260, 8, 4, 64, 60, dtype)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(differentiate(lambda *x: attend(*x, starts), q, k, v, grad))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_row_may_have_its_own_rotation(dtype, kernel):
    (q, k, v, grad), starts = problem(3, 70, 4, 2, 64, 30, dtype)
    rope = tables(70, 64, 3)
    ours = differentiate(lambda q, k, v: packed_attention(torch.cat((q, k, v), 2), 2, *rope, starts), q, k, v, grad)
    exact = differentiate(lambda *x: reference(*x, starts, rows=3), q.double(), k.double(), v.double(), grad)
    for x, y in zip(ours, exact, strict=True):
        assert (x.double() - y).norm() <= (6e-3 if dtype == torch.bfloat16 else 1e-5) * y.norm()


@needs_kernel
def test_takes_strided_tensors():
    """Projections and the gradient of the output may have gaps."""
    (q, k, v, grad), starts = problem(2, 70, 4, 2, 64, 20)
    dense = differentiate(lambda *x: attend(*x, starts), q, k, v, grad)
    wide = torch.cat((q, k, v), 2).repeat(1, 1, 1, 2).requires_grad_()
    out = packed_attention(wide[..., :64], 2, *tables(70, 64), starts)
    out.backward(grad.transpose(1, 2).contiguous().transpose(1, 2))
    assert out.is_contiguous() and torch.equal(out, dense[0])
    assert torch.equal(wide.grad[..., :64], torch.cat(dense[1:], 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1e-30, 1.0, 300.0, 1e8])
def test_extreme_scores_stay_finite(size, dtype, kernel):
    (q, k, v, grad), starts = problem(1, 130, 2, 1, 64, 30, dtype)
    results = differentiate(lambda *x: attend(*x, starts), q * size, k * size, v, grad)
    assert all(x.isfinite().all() for x in results)


@needs_kernel
def test_passes_torch_checks_of_custom_operators():
    (q, k, v, _), starts = problem(1, 40, 2, 1, 32, 9)
    qkv = torch.cat((q, k, v), 2).requires_grad_()
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.mengya.attention, (qkv, 1, *tables(40, 32), starts), test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_compiles_without_graph_breaks(dtype):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(64, (2 + 1 + 1) * 32, bias=False, dtype=dtype)

        def forward(self, x, starts):
            return packed_attention(self.qkv(x).unflatten(-1, (-1, 32)) * 1.5, 1, *rope, starts).flatten(2)

    torch.manual_seed(0)
    rope = tables(48, 32)
    layer, x = Layer(), torch.randn(2, 48, 64, dtype=dtype)
    starts = random_starts(2, 48, 10, torch.Generator().manual_seed(0))
    results = []
    for function in (layer, compiling.compiled(layer, fullgraph=True, backend="aot_eager")):
        layer.zero_grad()
        out = function(x, starts)
        out.float().square().sum().backward()
        results.append((out.detach(), layer.qkv.weight.grad.clone()))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_other_tensors_use_torch():
    assert not uses_kernel("cpu", torch.float64, 64)
    assert not uses_kernel("cuda", torch.bfloat16, 64)
    assert not uses_kernel("cpu", torch.bfloat16, 42)
    assert not uses_kernel("cpu", torch.float32, 72)


def test_the_kernel_of_less_capable_machines_is_used_where_torch_is_told_so():
    if not CAPABILITY.startswith("AVX"):
        pytest.skip("this processor has no AVX2")
    code = "from mengya.model.native import kernels; print(*kernels._level('vector_attention'))"
    for capability, flag in (("avx2", False), ("default", None)):
        environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (done.returncode != 0) if flag is None else ("-mfma" in done.stdout and "avx512" not in done.stdout)


@pytest.mark.parametrize("fault", ["no compiler", "compiler fails"])
def test_failed_build_warns_and_falls_back(fault, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(kernels, "_level", lambda _: ())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    which = {"no compiler": lambda _: None, "compiler fails": lambda _: "/bin/false"}[fault]
    monkeypatch.setattr(kernels.shutil, "which", which)
    with caplog.at_level(logging.WARNING):
        assert kernels.library.__wrapped__("attention") is None
    assert len(caplog.records) == 1 and "attention kernel" in caplog.text


@needs_kernel
def test_two_processes_may_build_at_once(tmp_path):
    source, cache = tmp_path / "seven.cpp", tmp_path / "cache"
    source.write_text('extern "C" int seven() { return 7; }', "utf-8")
    code = (
        "import sys, ctypes, pathlib; from mengya.model.native import kernels;"
        "source, cache = map(pathlib.Path, sys.argv[1:]);"
        "assert ctypes.CDLL(str(kernels.build(source, cache, ()))).seven() == 7"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(source), str(cache)]) for _ in range(2)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    built = list(cache.iterdir())
    assert len(built) == 1
    assert kernels.build(source, cache, ()) == built[0]
    source.write_text('extern "C" int seven() { return 8; }', "utf-8")
    assert kernels.build(source, cache, ()) != built[0]


def test_a_library_that_another_may_have_written_is_not_loaded(tmp_path, monkeypatch):
    source = tmp_path / "seven.cpp"
    source.write_text('extern "C" int seven() { return 7; }')
    cache = kernels.private_folder(tmp_path / "cache")
    assert cache == tmp_path / "cache" and cache.stat().st_mode & 0o777 == 0o700
    built = kernels.build(source, cache, ())
    for spoil in (lambda: built.chmod(0o722), lambda: (built.unlink(), built.symlink_to(source))):
        spoil()
        assert not kernels.is_ours(built)
        kernels.build(source, cache, ())
        assert kernels.is_ours(built) and ctypes.CDLL(str(built)).seven() == 7
    (tmp_path / "link").symlink_to(cache)
    elsewhere = kernels.private_folder(tmp_path / "link")
    assert elsewhere.parent != tmp_path and kernels.is_ours(elsewhere)
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # as if all of it belonged to somebody else
    assert not kernels.is_ours(cache) and not kernels.is_ours(built)
