"""ds.json: filled in from the recipe, refused where it contradicts it."""

import importlib
import json
import tomllib
from pathlib import Path

import pytest

from mengya import ranks
from mengya.errors import UserError
from mengya.train.engines import deepspeed
from mengya.train.engines.fsdp import Fsdp
from mengya.train.optimizer import Optim
from mengya.train.settings import TrainingConfig, deepspeed_settings

STAGE2 = {"zero_optimization": {"stage": 2}}


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """(content of ds.json, **settings) -> what DeepSpeed is given, in a run of two ranks."""
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(deepspeed.importlib.util, "find_spec", lambda name: name)

    def read(content, **changes):
        path = tmp_path / "ds.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        values = {"seq_len": 32, "batch_tokens": 256, "micro_batch": 2, "dtype": "float32", "steps": 50}
        values |= {"parallel": "deepspeed", "deepspeed": str(path)}
        return deepspeed_settings(TrainingConfig(**(values | changes)))

    return read


def test_what_is_missing_or_auto_comes_from_the_recipe(settings):
    wanted = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2}
    wanted |= {"gradient_clipping": 1.0, "bf16": {"enabled": False}, "fp16": {"enabled": False}, **STAGE2}
    assert settings(STAGE2) == wanted
    auto = {
        **dict.fromkeys(("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"), "auto"),
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"},
    }
    assert settings(auto) == wanted
    assert settings(STAGE2, dtype="bfloat16")["bf16"] == {"enabled": True}


def test_what_agrees_is_taken_and_the_rest_left_as_it_is(settings):
    same = {
        "train_batch_size": 8,
        "optimizer": {"type": "adamw", "params": {"lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 50, "warmup_num_steps": "auto"}},
        "zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}, "overlap_comm": True},
    }
    found = settings(same, optim=Optim(lr=2e-3))
    assert found["zero_optimization"] == same["zero_optimization"]
    assert "optimizer" not in found and "scheduler" not in found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_batch_size": 16}, "train_batch_size is 16, but the recipe makes it 8"),
        ({"train_micro_batch_size_per_gpu": 4}, "train_micro_batch_size_per_gpu is 4, but the recipe makes it 2"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps is 1, but the recipe makes it 2"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5, but the recipe makes it 1.0"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, r"optimizer.params.lr is 0.1, but .* 0.001"),
        ({"optimizer": {"params": {"betas": [0.9, 0.999]}}}, r"betas is \[0.9, 0.999\], but .* \[0.9, 0.95\]"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type is 'Lamb', but the recipe trains with AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler.type is 'WarmupLR', but the recipe makes it 'WarmupCosineLR'"),
        ({"scheduler": {"params": {"total_num_steps": 9}}}, "total_num_steps is 9, but the recipe makes it 50"),
        ({"bf16": {"enabled": True}}, "bf16.enabled is True, but the recipe makes it False"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True, but the recipe makes it False"),
        ({"zero_optimization": {"stage": 0}}, 'stage is 0; set 1, 2 or 3, or use parallel = "ddp"'),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, "device is 'nvme'; only \"cpu\""),
        ("{", "is not valid JSON"),
        ("[]", "does not hold an object"),
    ],
)
def test_contradictions_name_both_values(settings, content, message):
    with pytest.raises(UserError, match=message):
        settings(content if isinstance(content, str) else STAGE2 | content)


def test_all_contradictions_are_told_at_once(settings):
    with pytest.raises(UserError, match=r"(?s)ds.json contradicts the recipe:.*train_batch_size.*gradient_clipping"):
        settings({**STAGE2, "train_batch_size": 3, "gradient_clipping": 3})


def test_a_missing_file_and_a_missing_library(tmp_path, monkeypatch):
    monkeypatch.setattr(deepspeed.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match=r"none.json cannot be read .*; correct deepspeed"):
        deepspeed.read_settings(tmp_path / "none.json", {})
    monkeypatch.setattr(deepspeed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs DeepSpeed; install it with: pip install 'mengya\[deepspeed\]'"):
        deepspeed.read_settings(tmp_path / "none.json", {})


def test_settings_that_do_not_fit_together():
    with pytest.raises(ValueError, match="DeepSpeed needs both"):
        TrainingConfig(parallel="deepspeed")
    with pytest.raises(ValueError, match="DeepSpeed needs both"):
        TrainingConfig(deepspeed="ds.json")
    with pytest.raises(ValueError, match='set parallel = "fsdp"'):
        TrainingConfig(parallel="ddp", fsdp=Fsdp(cpu_offload=True))


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_an_engine_for_several_processes_needs_torchrun(engine):
    with pytest.raises(UserError, match=rf'parallel = "{engine}" .* torchrun --nproc-per-node 2 -m mengya run'):
        TrainingConfig(parallel=engine).check()


def test_the_private_members_that_the_engine_uses_are_there():
    """DeepSpeed promises none of them: what this names, `train/engines/deepspeed.py` leans on."""
    pytest.importorskip("deepspeed", reason="pip install 'mengya[deepspeed]'")
    import inspect

    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.utils import combine_grad_norm_groups
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    backend = importlib.import_module("deepspeed.comm.torch")
    members = {
        DeepSpeedZeroOptimizer: (
            "scaled_global_norm", "update_lp_params", "_lazy_init_hp_params_optimizer_state",
        ),
        DeepSpeedZeroOptimizer_Stage3: (
            "_get_norm_groups", "_partition_all_parameters", "_reassign_or_swap_out_partitioned_parameters",
        ),
        DeepSpeedEngine: ("set_gradient_accumulation_boundary", "backward", "step"),
        backend: ("build_shm_op",),
    }  # fmt: skip
    missing = [
        f"{owner.__name__}.{name}" for owner, names in members.items() for name in names if not hasattr(owner, name)
    ]
    assert not missing and callable(combine_grad_norm_groups)
    attributes = {
        DeepSpeedZeroOptimizer: ("single_partition_of_fp32_groups",),
        DeepSpeedZeroOptimizer_Stage3: ("fp32_partitioned_groups_flat", "persistent_parameters"),
    }
    for owner, names in attributes.items():  # set in their constructors
        assert all(f"self.{name}" in inspect.getsource(owner) for name in names), owner
    assert "scale_wrt_gas" in inspect.getsource(DeepSpeedEngine)


def test_another_minor_version_is_not_installed_unseen():
    requirement = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "deepspeed>=0.18,<0.20" in requirement["optional-dependencies"]["deepspeed"]
