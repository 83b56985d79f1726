"""DeepSpeed as an engine: ZeRO-1, -2 and -3 and offload to the CPU, as the user's own ds.json says.

What decides the result stands in the recipe; ds.json says how. So its "auto" and missing values are filled in from the
recipe, and values that contradict it are refused. The optimizer is the recipe's AdamW in every engine.
"""

import contextlib
import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mengya import ranks
from mengya.batch import Batch, Loss
from mengya.errors import UserError
from mengya.manifest import read_object
from mengya.model.language_model import LanguageModel
from mengya.train.engines.single import Engine
from mengya.train.objectives import Objective
from mengya.train.optimizer import Optim, first_state, warmup_steps

AUTO = "auto"
MOMENTS = ("exp_avg", "exp_avg_sq")


def read_settings(path: Path, wanted: dict[str, Any]) -> dict:
    """The content of ds.json with the recipe's values: `wanted`, by dotted keys.

    UserError for each value that is neither the wanted one nor "auto", for what a recipe cannot say, and if DeepSpeed
    is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError("parallel = \"deepspeed\" needs DeepSpeed; install it with: pip install 'mengya[deepspeed]'")
    content = read_object(path, "correct deepspeed")
    problems = []
    for key, value in wanted.items():
        given = _lookup(content, key)
        if given not in (None, AUTO, value):
            problems.append(f'{key} is {given!r}, but the recipe makes it {value!r}; write "auto" there')
    stage = _lookup(content, "zero_optimization.stage")
    if stage not in (1, 2, 3):
        problems.append(f'zero_optimization.stage is {stage!r}; set 1, 2 or 3, or use parallel = "ddp"')
    kind = _lookup(content, "optimizer.type")
    if str(kind or "adamw").lower() not in ("adam", "adamw", AUTO):
        problems.append(f"optimizer.type is {kind!r}, but the recipe trains with AdamW; remove it")
    for name in ("offload_optimizer", "offload_param"):
        device = _lookup(content, f"zero_optimization.{name}.device")
        if device not in (None, "cpu", "none"):
            problems.append(f'zero_optimization.{name}.device is {device!r}; only "cpu" is supported')
    if problems:
        raise UserError(f"{path} contradicts the recipe:\n" + "\n".join(f"    {line}" for line in problems))
    filled = _without_auto({name: value for name, value in content.items() if name not in ("optimizer", "scheduler")})
    for key, value in wanted.items():
        *tables, last = key.split(".")
        if tables[:1] not in (["optimizer"], ["scheduler"]):
            table = filled
            for name in tables:
                table = table.setdefault(name, {})
            table[last] = value
    return filled


def _lookup(content: Any, key: str) -> Any:
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def _without_auto(value: Any) -> Any:
    """DeepSpeed does not know "auto": what is not filled in gets DeepSpeed's own default."""
    if isinstance(value, dict):
        return {name: _without_auto(inner) for name, inner in value.items() if inner != AUTO}
    return value


def wanted_values(rows: int, rows_at_once: int, steps: int, half: bool, optim: Optim) -> dict[str, Any]:
    """What the recipe decides, by the keys of ds.json. `steps` 0: not known yet; `half`: bfloat16 activations."""
    adamw = {"lr": optim.lr, "betas": list(optim.betas), "eps": optim.eps, "weight_decay": optim.weight_decay}
    wanted: dict[str, Any] = {
        "train_batch_size": rows,
        "train_micro_batch_size_per_gpu": rows_at_once,
        "gradient_accumulation_steps": rows // ranks.size() // rows_at_once,
        "gradient_clipping": optim.max_grad_norm,
        "bf16.enabled": half,
        "fp16.enabled": False,
        **{f"optimizer.params.{name}": value for name, value in adamw.items()},
        "scheduler.type": "WarmupCosineLR" if optim.schedule == "cosine" else "(none)",
    }
    if steps:
        wanted["scheduler.params.total_num_steps"] = steps
        wanted["scheduler.params.warmup_num_steps"] = warmup_steps(optim, steps)
    return wanted | {"scheduler.params.warmup_max_lr": optim.lr}


_COLLECTIVES = {"get_all_gather_function": "all_gather_single", "get_reduce_scatter_function": "reduce_scatter_single"}
"""What DeepSpeed takes functions of torch from, and their names since torch 2.13, which warns of the old each time."""


def _deepspeed() -> ModuleType:
    """The library, with its warnings alone, and without a minute of compiling a kernel that only inference uses."""
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
    for handler in deepspeed.utils.logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    deepspeed.utils.logger.setLevel(logging.WARNING)
    comm = importlib.import_module("deepspeed.comm.torch")
    comm.build_shm_op = lambda: None  # type: ignore[attr-defined]
    for getter, name in _COLLECTIVES.items():
        if hasattr(torch.distributed, name):
            setattr(comm.TorchBackend, getter, classmethod(lambda _, name=name: getattr(torch.distributed, name)))
    return deepspeed


def _with_gradient(block: torch.nn.Module, inputs: tuple) -> tuple:
    """After frozen weights a block's input needs no gradient; ZeRO-3 would then release its weights too early."""
    first, *others = inputs
    if torch.is_grad_enabled() and not first.requires_grad:
        first = first.detach().requires_grad_()
    return first, *others


class Zero(Engine):
    """DeepSpeed's engine around the model. `settings` is what `read_settings` gives."""

    def __init__(self, model: LanguageModel, objective: Objective, optim: Optim, device: torch.device, settings: dict):
        # DeepSpeed casts buffers, too; they are to stay as they are.
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        super().__init__(model, objective, optim)
        self.device = device
        deepspeed = _deepspeed()
        if settings["zero_optimization"]["stage"] == 3:
            for block in self.model.blocks():  # before DeepSpeed's own hooks
                if any(parameter.requires_grad for parameter in block.parameters()):
                    block.register_forward_pre_hook(_with_gradient)
            # Their weights are read without calling the modules that hold them.
            deepspeed.utils.set_z3_leaf_modules(self.root, list({type(block) for block in self.model.blocks()}))
            deepspeed.zero.register_external_parameter(self.root, self.model.output_weight)
        (self.optimizer,) = self.optimizers
        self.optimizer.state.clear()
        settings = {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True, **settings}
        if settings["bf16"]["enabled"]:  # sums of gradients keep their digits, as in the other engines
            settings = {"communication_data_type": "fp32", **settings}
            if settings["zero_optimization"]["stage"] > 1:  # stage 1 would become another optimizer, without a norm
                settings = {"data_types": {"grad_accum_dtype": "fp32"}, **settings}
        with contextlib.redirect_stdout(io.StringIO()):
            self.run, *_ = deepspeed.initialize(model=self.root, optimizer=self.optimizer, config=settings)
        for name, buffer in self.model.named_buffers():
            buffer.data = buffers[name].to(device)
        self.zero: Any = self.run.optimizer
        self._tools = deepspeed.utils
        for flat in self._flat():
            self.optimizer.state[flat] = first_state(flat)
        if hasattr(self.zero, "_lazy_init_hp_params_optimizer_state"):  # stages 1 and 2
            self.zero._lazy_init_hp_params_optimizer_state()

    def _flat(self) -> list[Tensor]:
        """This rank's shares of the weights, as the optimizer sees them."""
        for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"):
            if hasattr(self.zero, name):
                return list(getattr(self.zero, name))
        raise AssertionError(f"{type(self.zero)} is not a ZeRO optimizer")

    def accumulate(self, batch: Batch, count: int, last: bool) -> Loss:
        self.run.set_gradient_accumulation_boundary(last)
        loss: Loss = self.run(batch)
        self.run.backward(loss.total * ranks.size() / max(count, 1), scale_wrt_gas=False)
        return Loss(loss.total.detach(), loss.metrics)

    @torch.no_grad()
    def clip(self, maximum: float) -> Tensor:
        """The norm only: DeepSpeed clips as it updates."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        if hasattr(self.zero, "scaled_global_norm"):  # stages 1 and 2
            norm = self.zero.scaled_global_norm()
        else:
            norm = combine_grad_norm_groups(self.zero._get_norm_groups())
        norm = torch.as_tensor(norm)
        return torch.where(norm < 0, torch.nan, norm)  # which is how it marks a gradient that is not a number

    def update(self, apply: bool) -> None:
        step = self.optimizer.step
        if not apply:
            self.optimizer.step = lambda closure=None: None  # type: ignore[method-assign,assignment]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                self.run.step()
        finally:
            self.optimizer.step = step  # type: ignore[method-assign,assignment]

    def not_finite(self) -> list[str]:
        return []  # ZeRO has given the gradients away

    def tensors(self) -> dict[str, Tensor]:
        """Gathered one by one; each stays with one rank, so that none holds them all."""
        tools, found = self._tools, self._plain()
        for number, (name, parameter) in enumerate(self.trained.items()):
            whole = {f"model.{name}": tools.safe_get_full_fp32_param(parameter)}
            for moment in MOMENTS:
                whole[f"optimizer.{moment}.{name}"] = tools.safe_get_full_optimizer_state(parameter, moment)
            if number % ranks.size() == ranks.rank():
                found |= {key: tensor.detach().to("cpu", torch.float32, copy=True) for key, tensor in whole.items()}
            step = self.optimizer.state[self._flat()[0]]["step"]
            found[f"optimizer.step.{name}"] = step.detach().to("cpu", copy=True)
        return found

    def _plain(self) -> dict[str, Tensor]:
        """What ZeRO does not divide: buffers."""
        buffers = dict(self.model.named_buffers())
        return {f"model.{name}": buffers[name] for name in self._held if name in buffers}

    def load(self, read: Callable[[dict[str, Tensor]], None]) -> None:
        tools, tensors = self._tools, self._plain()
        for name, parameter in self.trained.items():
            shape = getattr(parameter, "ds_shape", parameter.shape)
            for key in (f"model.{name}", *(f"optimizer.{moment}.{name}" for moment in MOMENTS)):
                tensors[key] = torch.empty(shape)
            tensors[f"optimizer.step.{name}"] = torch.zeros(())
        read(tensors)
        for name, parameter in self.trained.items():
            tools.safe_set_full_fp32_param(parameter, tensors[f"model.{name}"].to(self.device))
            for moment in MOMENTS:
                value = tensors[f"optimizer.{moment}.{name}"].to(self.device)
                tools.safe_set_full_optimizer_state(parameter, value, moment)
            taken = tensors[f"optimizer.step.{name}"]
        for flat in self._flat():
            self.optimizer.state[flat]["step"].copy_(taken)
        self._spread()

    def _spread(self) -> None:
        """Bring the weights of the forward pass in line with the float32 ones."""
        if hasattr(self.zero, "update_lp_params"):  # stages 1 and 2
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for number in range(len(self._flat())):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        persistent = self.zero.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)
