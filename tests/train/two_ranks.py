"""One of the two ranks of test_checkpoint.py: `python two_ranks.py FOLDER`; FOLDER/one/step-1 is there already.

The environment holds torchrun's variables.
"""

import errno
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mengya.errors import UserError
from mengya.train import checkpoint_storage
from mengya.train.checkpoint import Checkpoints

CONFIG = {"model_type": "llama", "hidden_size": 32}


def whole_state() -> dict[str, torch.Tensor]:
    """The same on every rank and in the test."""
    random = torch.Generator().manual_seed(3)
    even, uneven = torch.randn(8, 4, generator=random), torch.randn(7, 3, generator=random)
    thin, replicated = torch.randn(1, 5, generator=random), torch.randn(4000, generator=random)
    return {
        "model.even": even,
        "model.uneven": uneven,
        "model.thin": thin,
        "model.columns": torch.randn(4, 6, generator=random),
        "model.replicated": replicated,
        "model.other": replicated.clone().bfloat16(),
        "optimizer.exp_avg.uneven": uneven * 2,
        "optimizer.step.even": torch.tensor(7.0),
    }


def train_a_little(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a checkpoint holds after two steps; identical for any number of ranks with the same input."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for step in range(2):
        model(torch.ones(2, 5) * (step + 1)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moments = {
        f"optimizer.{moment}.{name}": value
        for name, parameter in model.named_parameters()
        for moment, value in optimizer.state[parameter].items()
    }
    return {f"model.{name}": p.detach() for name, p in model.named_parameters()} | moments


def small_model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 1))


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(state: dict[str, torch.Tensor], mesh) -> dict[str, torch.Tensor]:
    placements = {"even": Shard(0), "uneven": Shard(0), "thin": Shard(0), "columns": Shard(1), "other": Replicate()}
    found = {}
    for name, tensor in state.items():
        placement = placements.get(name.split(".")[-1]) if tensor.dim() else None
        found[name] = distribute_tensor(tensor.clone(), mesh, [placement]) if placement else tensor.clone()
    return found


def check_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(full(found[name]), full(tensor)), name


def main(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = whole_state()
    own = {f"rng.{rank}": torch.full((10,), rank, dtype=torch.uint8)}
    sharded = shard(whole, mesh)

    sync = Checkpoints(folder / "two", 5, CONFIG, asynchronous=False)
    sync.save("step-1", 1, sharded | own, {"from": "two"})
    background = Checkpoints(folder / "two", 5, CONFIG, asynchronous=True)
    changing = {name: tensor.clone() for name, tensor in sharded.items()}
    background.save("step-2", 2, changing | own, {})
    for tensor in changing.values():
        tensor.zero_()  # training goes on
    background.wait()

    saved = sync.latest()
    assert saved is not None and saved.step == 2
    blank = {name: torch.zeros_like(tensor) for name, tensor in (sharded | own).items()}
    sync.load(saved, blank)
    check_equal(blank, whole | own)
    plain = {name: torch.zeros_like(tensor) for name, tensor in whole.items()}
    sync.load(saved, plain)  # another engine
    check_equal(plain, whole)

    one = Checkpoints(folder / "one", 1, CONFIG, asynchronous=False)
    saved = one.latest()
    assert saved is not None and saved.state == {"from": "one"}
    blank = {name: torch.zeros_like(tensor) for name, tensor in (sharded | own).items()}
    one.load(saved, blank)
    random_state = torch.zeros(10, dtype=torch.uint8) if rank else torch.full((10,), 9, dtype=torch.uint8)
    check_equal(blank, whole | {f"rng.{rank}": random_state})  # the second rank has none there

    spoiled = dict(plain)
    if rank:
        spoiled["model.even"] = torch.zeros(8, 5)
    spoiled["model.thin"] = torch.full((1, 5), 123.0)
    with pytest.raises(UserError, match=r"model\.even: \[8, 4\] in it, \[8, 5\] here"):
        one.load(saved, spoiled)
    assert (spoiled["model.thin"] == 123).all()

    model = small_model()
    fully_shard(model[0])
    fully_shard(model)
    trained = train_a_little(model)
    assert any(isinstance(t, DTensor) for t in trained.values())
    Checkpoints(folder / "fsdp", 1, CONFIG, asynchronous=False).save("step-2", 2, trained, {})

    if rank == 0:
        file = folder / "two" / "step-2" / "rank-1.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        (folder / "two" / ".step-9.partial").mkdir()
    saved = background.latest()
    assert saved is not None and saved.step == 1 and saved.state == {"from": "two"}
    assert sorted(p.name for p in (folder / "two").iterdir()) == ["step-1"]
    dist.barrier()

    real = checkpoint_storage.save_file
    if rank:

        def save_file(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        checkpoint_storage.save_file = save_file
    background.save("step-3", 3, sharded | own, {})
    with pytest.raises(OSError) as caught:
        background.save("step-4", 4, sharded | own, {})
    assert caught.value.errno == errno.ENOSPC
    dist.barrier()
    assert sorted(p.name for p in (folder / "two").iterdir()) == ["step-1"]

    shutil.copytree(folder / "two", folder / f"before-{rank}")
    dist.barrier()

    def killed(*arguments):
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint_storage.save_file = killed if rank else real
    background.save("step-5", 5, sharded | own, {})
    with pytest.raises(RuntimeError, match=r"[Cc]onnection"):
        background.wait()
    os._exit(0)  # the group has lost its other rank


if __name__ == "__main__":
    main(int(os.environ["RANK"]), Path(sys.argv[1]))
