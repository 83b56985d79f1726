"""Any causal language model of the transformers library behind our interface, in its own classes and names.

transformers is imported when such a model is made, never before.
"""

import inspect
import json
import logging
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mengya.errors import UserError
from mengya.metrics import say
from mengya.model.foreign_steps import ForeignSteps
from mengya.model.language_model import GENERATION, LanguageModel, Routing, Steps, check_fit
from mengya.model.precision import Weights
from mengya.model.vocabulary import grown_rows
from mengya.runtime import pick_device

INSTALL = "pip install 'mengya[models]'"
_CONTEXT = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx", "max_seq_len"),
    "model_max_length",
)
_NO_LIMIT = 1_000_000
_PROBE = 8
"""Tokens of a document with which the two checks look at what a model does."""


def library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"this model needs the transformers library; {INSTALL}") from error
    transformers.utils.logging.disable_progress_bar()
    return transformers


def knows(kind: str | None) -> bool:
    """Whether transformers has a causal language model of this model_type. UserError if it is not installed."""
    return kind in library().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


class Foreign(LanguageModel):
    """`inner` is transformers' model; its parts are ours, too, so that all names are those that it has there."""

    implementation = "transformers"
    _trusted = False

    def __init__(self, inner: Any, source: str = "the model"):
        super().__init__()
        self._inner = (inner,)  # in a tuple it is no part of this module, and its names get no prefix
        self._source = source
        self._apart: bool | None = None  # whether it keeps the documents of a row apart; None: not yet known
        self._config = inner.config.get_text_config(decoder=True)
        self.adopt()
        head = inner.get_output_embeddings()
        if head is None or getattr(head, "weight", None) is None:
            raise UserError(f"{source}: {type(inner).__name__} has no output projection, so that it cannot be trained")
        if getattr(self._config, "final_logit_softcapping", None):
            raise UserError(
                f"{source}: {type(inner).__name__} bends its logits (final_logit_softcapping); not supported"
            )

    def adopt(self) -> None:
        for name, child in self.inner.named_children():
            self.add_module(name, child)

    @property
    def inner(self) -> Any:
        return self._inner[0]

    @property
    def adapted(self) -> nn.Module:
        return self.inner

    def _class_name(self) -> str:
        return type(self.inner).__name__

    # ---- making, reading, writing ------------------------------------------------------------------------------------

    @classmethod
    def empty(cls, content: dict, source: str, dtype: torch.dtype, device: str) -> "Foreign":
        transformers = library()
        try:
            config = cls._configuration({n: v for n, v in content.items() if n not in ("dtype", "torch_dtype")})
            with torch.device(device):
                inner = transformers.AutoModelForCausalLM.from_config(
                    config, dtype=dtype, trust_remote_code=cls._trusted
                )
        except UserError:
            raise
        except Exception as error:  # other people's code
            raise UserError(
                f"{source}: transformers {transformers.__version__} cannot make this model: {error}"
            ) from error
        return cls(inner, source)

    @classmethod
    def _configuration(cls, content: dict) -> Any:
        content.pop("auto_map", None)
        return library().AutoConfig.for_model(**content)

    @classmethod
    def load(cls, directory: Path, content: dict, dtype: torch.dtype, device: str) -> "Foreign":
        return cls._read(directory, device, dtype=dtype)

    @classmethod
    def load_in_4_bits(cls, directory: Path, content: dict) -> "Foreign":
        """With double quantisation, by the bitsandbytes library, in which products on some processors are cured.

        Where it has its own bfloat16 code for CPUs (AVX-512), the first pass without gradients packs the weights anew,
        and from then on training and merging compute something else (its issue 2078).
        """
        transformers = library()
        try:
            import bitsandbytes
        except ImportError as error:
            raise UserError("weights in 4 bits need the bitsandbytes library; pip install 'mengya[qlora]'") from error
        how = transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        )
        device = pick_device()
        model = cls._read(directory, device, dtype=torch.float32, quantization_config=how, device_map={"": device})
        for module in model.modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = False
        return model

    @classmethod
    def _read(cls, directory: Path, device: str, **how: Any) -> "Foreign":
        transformers = library()
        report = logging.getLogger("transformers.modeling_utils")
        level = report.level
        report.setLevel(logging.ERROR)  # weights that do not fit are our own error, below
        try:
            inner, told = transformers.AutoModelForCausalLM.from_pretrained(
                directory, use_safetensors=True, local_files_only=True, trust_remote_code=cls._trusted,
                output_loading_info=True, **how,
            )  # fmt: skip
        except Exception as error:  # other people's code
            raise UserError(
                f"{directory}: transformers {transformers.__version__} cannot load this model: {error}"
            ) from error
        finally:
            report.setLevel(level)
        wrong = [f"{name}: missing" for name in sorted(told["missing_keys"])]
        wrong += [f"{name}: unexpected" for name in sorted(told["unexpected_keys"])]
        wrong += [f"{name}: of another shape" for name, *_ in told["mismatched_keys"]]
        check_fit(directory, wrong)
        model = cls(inner if "device_map" in how else inner.to(device), str(directory)).eval()
        if "quantization_config" not in how:
            model.check_logits()
        return model

    def description(self) -> dict:
        return self.inner.config.to_dict()

    def save_whole(
        self,
        directory: Path,
        dtype: torch.dtype | None,
        eos_token_id: int | list[int] | None,
        pad_token_id: int | None,
    ) -> None:
        """As the library saves it; ids that are given replace those of the model."""
        copies: dict[int, Tensor] = {}  # shared weights stay shared
        state = self.inner.state_dict()
        for name, tensor in state.items():
            state[name] = copies.setdefault(tensor.data_ptr(), tensor.detach().to("cpu", dtype or tensor.dtype))
        self.inner.save_pretrained(directory, state_dict=state)
        ids = {"eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        given = {name: value for name, value in ids.items() if value is not None}
        type_name = str(dtype or self.output_weight.dtype).removeprefix("torch.")
        for file, more in (("config.json", {"dtype": type_name, "torch_dtype": type_name}), (GENERATION, {})):
            path = directory / file
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            content = known | given | more
            if not self._trusted:
                content.pop("auto_map", None)  # its code was not used, and is not saved
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    # ---- what it is --------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return self.output_weight.shape[0]

    @property
    def context(self) -> int:
        found = [getattr(self._config, name, None) for name in _CONTEXT]
        return next((size for size in found if isinstance(size, int) and size > 0), _NO_LIMIT)

    @property
    def has_experts(self) -> bool:
        return hasattr(self._config, "output_router_logits")

    @property
    def output_weight(self) -> Tensor:
        """(V, C), or (V, C + 1) with a bias as the last column; `hidden` then ends in a 1."""
        head = self.inner.get_output_embeddings()
        return head.weight if head.bias is None else torch.cat((head.weight, head.bias[:, None]), 1)

    @property
    def input_embedding(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def blocks(self) -> Sequence[nn.Module]:
        lists = [m for m in self.modules() if isinstance(m, nn.ModuleList) and len({type(part) for part in m}) == 1]
        depth = getattr(self._config, "num_hidden_layers", None)
        return list(next((m for m in lists if len(m) == depth), max(lists, key=len, default=())))

    @torch.no_grad()
    def grow_vocabulary(self, first: int, pieces: Sequence[Sequence[int]]) -> None:
        embedding, head = self.inner.get_input_embeddings(), self.inner.get_output_embeddings()
        grown = [grown_rows(weight, first, pieces) for weight in (embedding.weight, head.weight)]
        self.inner.resize_token_embeddings(len(grown[0]), mean_resizing=False)
        self.inner.get_input_embeddings().weight.copy_(grown[0])
        self.inner.get_output_embeddings().weight.copy_(grown[1])
        self.adopt()

    def train(self, mode: bool = True) -> "Foreign":
        super().train(mode)
        self.inner.training = mode
        return self

    # ---- what it computes --------------------------------------------------------------------------------------------

    def hidden(
        self, *, input_ids: Tensor, position_ids: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """Documents of one row that the library would not keep apart are given to it as rows of their own."""
        if starts is None:
            return self._trunk(input_ids, position_ids=position_ids)
        if self._apart is None:
            self._apart = self._keeps_apart()
            if not self._apart:
                say(f"  {type(self.inner).__name__} reads across documents of a row: each is given to it by itself")
        if self._apart:
            places = torch.arange(input_ids.shape[1], device=starts.device) - starts
            return self._trunk(input_ids, position_ids=places.long() if position_ids is None else position_ids)
        return self._by_document(input_ids, starts)

    def _by_document(self, input_ids: Tensor, starts: Tensor) -> tuple[Tensor, list[Routing]]:
        place = torch.arange(input_ids.shape[1], device=starts.device) - starts  # (B, T), in its document
        number = ((place == 0).flatten().cumsum(0) - 1).view_as(place)
        shape = int(number[-1, -1]) + 1, int(place.max()) + 1
        rows, mask = input_ids.new_zeros(shape), input_ids.new_zeros(shape)
        rows[number, place], mask[number, place] = input_ids, 1
        hidden, routings = self._trunk(rows, attention_mask=mask)
        return hidden[number, place], [Routing(*(part[number, place] for part in routing)) for routing in routings]

    def _trunk(self, input_ids: Tensor, **inputs: Any) -> tuple[Tensor, list[Routing]]:
        more = {"output_router_logits": True} if self.has_experts else {}
        found = self._call(input_ids=input_ids, use_cache=False, **inputs, **more)
        logits = [part for part in getattr(found, "router_logits", None) or () if part is not None]
        taken = getattr(self._config, "num_experts_per_tok", 0) or 1
        wide = [part.reshape(*input_ids.shape, -1).float() for part in logits]
        return self._ready(found[0]), [Routing(part, part.topk(taken, dim=-1).indices) for part in wide]

    def _call(self, **inputs: Any) -> Any:
        """The library's model without its output projection, its products in the type of the activations."""
        half = self.compute_dtype not in (None, torch.float32)
        known = self._parameters_of_forward
        given = {n: value for n, value in inputs.items() if value is not None and (known is None or n in known)}
        with torch.autocast(self.device.type, self.compute_dtype, enabled=half):
            return self.inner.base_model(**given)

    @cached_property
    def _parameters_of_forward(self) -> frozenset[str] | None:
        """The names that the library's model takes; None: any."""
        known = inspect.signature(self.inner.base_model.forward).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
        return None if anything else frozenset(known)

    def _ready(self, hidden: Tensor) -> Tensor:
        """For the output projection: scaled as the model scales its logits, and with a 1 for its bias."""
        hidden = hidden.to(self.compute_dtype or hidden.dtype)
        scale = getattr(self._config, "logit_scale", None) or 1 / (getattr(self._config, "logits_scaling", None) or 1)
        hidden = hidden if scale == 1 else hidden * scale
        if self.inner.get_output_embeddings().bias is None:
            return hidden
        return torch.cat((hidden, hidden.new_ones(*hidden.shape[:-1], 1)), -1)

    @torch.no_grad()
    def check_logits(self) -> None:
        """UserError if the model's logits are not the product of its last states and its output weights."""
        ids = self._some_tokens(0)[None]
        theirs = self.inner(input_ids=ids, use_cache=False).logits.float()
        ours = self.logits(self._trunk(ids)[0])
        if not torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            raise UserError(
                f"{self._source}: {type(self.inner).__name__} makes its logits otherwise than by a product with its "
                "output weights, so that it cannot be trained here"
            )

    @torch.no_grad()
    def _keeps_apart(self) -> bool:
        """Whether a document's states are those that it has alone, and stay so when the one before it changes."""
        training, (one, other, second) = self.training, (self._some_tokens(seed) for seed in range(3))
        places = torch.arange(_PROBE, device=self.device).repeat(2)[None]
        self.eval()
        try:
            alone = self._trunk(second[None])[0]
            after = [
                self._trunk(torch.cat((first, second))[None], position_ids=places)[0][:, _PROBE:]
                for first in (one, other)
            ]
        except Exception:  # it takes no positions
            return False
        finally:
            self.train(training)
        size = float(alone.abs().max())
        same = [torch.allclose(states, alone, rtol=0, atol=2e-2 * size) for states in after]
        return all(same) and torch.allclose(after[0], after[1], rtol=0, atol=1e-4 * size)

    def _some_tokens(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.vocab_size, (_PROBE,), generator=generator).to(self.device)

    # ---- generation --------------------------------------------------------------------------------------------------

    @property
    def cache_bytes(self) -> int:
        config = self._config
        every = getattr(config, "num_attention_heads", 0)
        if not every:  # a recurrent state, which does not grow
            return 0
        heads = getattr(config, "num_key_value_heads", None) or every
        size = getattr(config, "head_dim", None) or config.hidden_size // every
        return 2 * config.num_hidden_layers * heads * size * self.output_weight.element_size()

    def steps(self, tokens: int, weights: Weights = "exact") -> Steps:
        if weights != "exact":
            self._refuse(f"have weights={weights!r}, as only our own do; leave it out")
        return ForeignSteps(self, tokens, library().DynamicCache)

    def following(self, input_ids: Tensor, past: Any, mask: Tensor, position_ids: Tensor) -> Tensor:
        """(B, T) ids that follow what the library's cache holds -> (B, T, C); the cache then holds them, too."""
        inputs = {"attention_mask": mask, "position_ids": position_ids, "past_key_values": past}
        return self._ready(self._call(input_ids=input_ids, use_cache=True, **inputs)[0])


class WithItsCode(Foreign):
    """A model that is implemented by code in its directory, which `_name_or_path` of its description names. The code is
    run: whoever takes this class trusts it."""

    _trusted = True

    @classmethod
    def _configuration(cls, content: dict) -> Any:
        directory = content["_name_or_path"]
        _warn(directory)
        config = library().AutoConfig.from_pretrained(directory, trust_remote_code=True, local_files_only=True)
        return type(config).from_dict(content)

    @classmethod
    def _read(cls, directory: Path, device: str, **how: Any) -> "Foreign":
        _warn(str(directory))
        return super()._read(directory, device, **how)

    def description(self) -> dict:
        return super().description() | {"_name_or_path": self.inner.config._name_or_path}


@lru_cache
def _warn(directory: str) -> None:
    say(f"  running the code that comes with {directory} (trust_remote_code)")
