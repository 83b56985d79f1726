"""What training, scoring and generation know of a model.

An implementation derives from `LanguageModel`, has all of `PARTS`, and is entered in `model/load.py`.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from mengya.errors import UserError
from mengya.model import log_probs
from mengya.model.compiling import compiled
from mengya.model.precision import Weights
from mengya.model.weight_files import WEIGHTS, read_weights

GENERATION = "generation_config.json"
SAMPLING: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
"""What it says of how to write with a model of ours."""
PARTS = {
    "vocab_size": "entries of the vocabulary",
    "context": "the longest context, in tokens",
    "hidden": "hidden states of a packed batch",
    "output_weight": "the output projection",
    "blocks": "the repeated parts",
    "empty": "a model of the shape that a config.json describes",
    "description": "the content of config.json",
}
"""What an implementation must define itself."""


class Unsupported(UserError):
    """A model that an implementation does not compute, though it is of one of its architectures."""


class Routing(NamedTuple):
    """What the router of one layer decided, for the losses that keep the experts equally loaded."""

    logits: Tensor
    """(B, T, experts) float32, before the softmax."""
    experts: Tensor
    """(B, T, num_experts_per_tok) int64, the selected experts."""


class Span(NamedTuple):
    """Tokens of one sequence that a step of generation takes in."""

    sequence: int
    """A number that no other sequence has until this one is forgotten."""
    tokens: Sequence[int]
    start: int
    """Tokens of the sequence before these."""
    blocks: Sequence[int]
    """Where its keys and values are, the first `block` tokens in the first of them, with room for these `tokens`."""
    outputs: int
    """Logits are wanted after so many of the last of these tokens."""


class Steps(Protocol):
    """A model as it generates: what it remembers of many sequences, and the step that takes in more of each."""

    block: int
    """Tokens of a block of keys and values."""
    blocks: int
    shares: bool
    """Whether sequences that begin alike may name the same blocks, so that the beginning is computed once."""

    def run(self, spans: Sequence[Span]) -> Tensor:
        """(sum of outputs, V) float32 logits, in the order of the spans. No two spans are of one sequence."""
        ...

    def forget(self, sequence: int) -> None:
        """The sequence has ended."""
        ...


class LanguageModel(nn.Module):
    """Token ids to hidden states, and an output projection. B rows, T tokens, C wide, V entries."""

    compute_dtype: torch.dtype | None = None
    """Type of the activations, which an implementation must respect; None: that of the weights."""
    compiled = False
    implementation = "native"
    """Whose code computes it, in a word."""
    adapter: Any = None
    """The `adapters.Adapter` that is trained and saved in place of the weights, if it has one."""

    # ---- what an implementation must give (PARTS) --------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        raise NotImplementedError

    @property
    def context(self) -> int:
        """The longest context, in tokens."""
        raise NotImplementedError

    def hidden(
        self, *, input_ids: Tensor, position_ids: Tensor | None = None, starts: Tensor | None = None
    ) -> tuple[Tensor, list[Routing]]:
        """(B, T) ids -> (B, T, C), ready for the output projection, and the decisions of every router, if any.

        `position_ids` and `starts` (B, T) are those of `Batch`; None: every row is one document.
        """
        raise NotImplementedError

    @property
    def output_weight(self) -> Tensor:
        """(V, C): the output projection, which has no bias."""
        raise NotImplementedError

    def blocks(self) -> Sequence[nn.Module]:
        """The repeated parts, which are compiled, divided among ranks and recomputed one by one."""
        raise NotImplementedError

    @classmethod
    def empty(cls, content: dict, source: str, dtype: torch.dtype, device: str) -> "LanguageModel":
        """The model that `content` of config.json describes; its weights are still to be filled in.

        `source` names the directory in errors. UserError for what is not supported.
        """
        raise NotImplementedError

    def description(self) -> dict:
        """The content of config.json, from which `empty` makes the same model."""
        raise NotImplementedError

    # ---- what an implementation may have -----------------------------------------------------------------------------

    @property
    def input_embedding(self) -> nn.Module:
        """(B, T) ids -> (B, T, C): what the first block reads."""
        self._refuse("have noise on its embeddings; leave out neftune_alpha")

    def flops_per_token(self, context: float) -> float:
        """Floating-point operations of one training token, `context` keys seen on average.

        Here 6 for each weight of the blocks and of the output projection: that is without attention.
        """
        weights = [self.output_weight, *(p for block in self.blocks() for p in block.parameters())]
        return 6.0 * sum(weight.numel() for weight in weights)

    def active_parameters(self) -> int:
        """Parameters that one token passes through."""
        return self.all_parameters()

    @property
    def has_experts(self) -> bool:
        return False

    def selection_biases(self) -> list[Tensor]:
        """For each layer with experts (1, experts): what is added to the router's preferences; [] if it cannot be."""
        return []

    def grow_vocabulary(self, first: int, pieces: Sequence[Sequence[int]]) -> None:
        """Make rows for the new ids `first`, `first + 1`, ... out of those of `pieces`; see model/vocabulary.py."""
        self._refuse("grow its vocabulary; tokenize with the model's own tokenizer")

    @property
    def cache_bytes(self) -> int:
        """Of the keys and values of one token; 0 where that is not known."""
        return 0

    def steps(self, tokens: int, weights: Weights = "exact") -> Steps:
        """What generates text with this model, with room for the keys and values of so many tokens. UserError if the
        model cannot.
        """
        self._refuse("generate text; leave out what needs answers (chat, evaluate.questions)")

    @classmethod
    def load(cls, directory: Path, content: dict, dtype: torch.dtype, device: str) -> "LanguageModel":
        """The model of a directory whose config.json has this `content`. UserError if its weights do not fit."""
        model = cls.empty(content, str(directory), dtype, device)
        state, own = model.from_disk(read_weights(directory), content, str(directory)), model.weights()
        wrong = [f"{n}: missing" for n in own if n not in state] + [f"{n}: unexpected" for n in state if n not in own]
        wrong += [
            f"{n}: {tuple(state[n].shape)} in the file, {tuple(own[n].shape)} in the model"
            for n in own
            if n in state and state[n].shape != own[n].shape
        ]
        check_fit(directory, wrong)
        model.overlay(state)
        return model

    @classmethod
    def load_in_4_bits(cls, directory: Path, content: dict) -> "LanguageModel":
        """The model of a directory with its linear layers in NF4. Unsupported if the implementation has no such."""
        raise Unsupported(f"{directory}: weights in 4 bits are computed by the transformers library")

    def to_disk(self, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The content of model.safetensors, on the CPU; `dtype` None keeps that of the weights."""
        return {name: tensor.detach().to("cpu", dtype) for name, tensor in self.weights().items()}

    def from_disk(self, state: dict[str, Tensor], content: dict, source: str) -> dict[str, Tensor]:
        """`weights()` from what a directory's safetensors hold, of whatever type; `content` and `source` as in `empty`.

        UserError for what the model cannot represent.
        """
        return state

    # ---- what follows ------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def adapted(self) -> nn.Module:
        """What peft puts its layers into; names below it are those of transformers."""
        return self

    def adopt(self) -> None:
        """Called when layers right below `adapted` were replaced."""

    @property
    def title(self) -> str:
        """The class of the model, whose code computes it, and its adapter."""
        return f"{self._class_name()}, {self.implementation}" + (f", with {self.adapter}" if self.adapter else "")

    def _class_name(self) -> str:
        """As config.json names it."""
        return (self.description().get("architectures") or [type(self).__name__])[0]

    def all_parameters(self) -> int:
        """A shared one counts once."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, V) float32 logits; for small inputs, as they exist whole."""
        return self.logits(self.hidden(input_ids=input_ids)[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V) float32."""
        return nn.functional.linear(hidden, self.output_weight.to(hidden.dtype)).float()

    def log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """(B, T) float32 log p(labels[t]); 0 where IGNORE."""
        return log_probs.token_log_probs(hidden, self.output_weight, labels)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The summed cross-entropy of the labels that are not IGNORE, a float32 scalar."""
        if torch.is_grad_enabled():
            return log_probs.linear_cross_entropy(hidden, self.output_weight, labels, self.compiled)
        return -self.log_probs(hidden, labels).sum()  # forms no gradient on the way

    def compile_blocks(self) -> None:
        """Only their forward passes: the hooks of engines stay outside."""
        self.compiled = True
        for block in self.blocks():
            block.forward = compiled(block.forward, dynamic=False)  # type: ignore[method-assign]

    def recompute_blocks(self) -> None:
        """Keep only a block's input, and compute the rest again in the backward pass (Chen et al. 2016, 1604.06174).

        After `compile_blocks`, if both are wanted.
        """
        for block in self.blocks():
            block.forward = functools.partial(_recomputed, block.forward)  # type: ignore[method-assign]

    def detach_blocks(self) -> None:
        """Make a frozen model compute exactly what a trained one does, also compiled, and keep no graph.

        Compiled code rounds differently where nothing needs a gradient. So a block's input needs one, and its output is
        detached: the activations of one block at a time exist. After `compile_blocks` and `recompute_blocks`.
        """
        for block in self.blocks():
            block.forward = functools.partial(_detached, block.forward)  # type: ignore[method-assign]

    def weights(self) -> dict[str, Tensor]:
        """All parameters (a shared one once, under its first name) and the buffers that are saved; the live tensors."""
        saved = self.state_dict().keys()
        return dict(self.named_parameters()) | {n: b for n, b in self.named_buffers() if n in saved}

    def trained_names(self) -> list[str]:
        """The `weights` that a checkpoint must hold: those that training changes. Frozen ones are not among them."""
        return [n for n, t in self.weights().items() if t.requires_grad or not isinstance(t, nn.Parameter)]

    @torch.no_grad()
    def overlay(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` into the weights of the same names. UserError if there is none of a name and shape."""
        own = self.weights()
        wrong = [name for name, t in tensors.items() if name not in own or own[name].shape != t.shape]
        if wrong:
            raise UserError(f"{', '.join(wrong[:3])} do not fit the model; use the version of mengya that wrote them")
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def save(
        self,
        directory: Path,
        dtype: torch.dtype | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        """Write a model directory, or that of its adapter; `dtype` None keeps that of the weights."""
        directory.mkdir(parents=True, exist_ok=True)
        if self.adapter is not None:
            self.adapter.save(self, directory)
        else:
            self.save_whole(directory, dtype, eos_token_id, pad_token_id)

    def save_whole(
        self,
        directory: Path,
        dtype: torch.dtype | None,
        eos_token_id: int | list[int] | None,
        pad_token_id: int | None,
    ) -> None:
        """Write config.json, model.safetensors and generation_config.json into a directory that is there."""
        state = self.to_disk(dtype)
        save_file({n: t.contiguous() for n, t in state.items()}, directory / WEIGHTS, metadata={"format": "pt"})
        name = str(dtype or self.output_weight.dtype).removeprefix("torch.")
        tokens = {"bos_token_id": None, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}
        config = self.description() | {"dtype": name, "torch_dtype": name} | tokens
        generation = tokens | SAMPLING
        for file, value in (("config.json", config), (GENERATION, generation)):
            (directory / file).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"a model of the class {type(self).__name__} cannot {what}")


def check_fit(directory: Path, wrong: Sequence[str]) -> None:
    """UserError that names the first of the weights that are `wrong`, if there are some."""
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"the weights in {directory} do not fit the model: {'; '.join(wrong[:5])}{more}; use its own config"
        )


def _recomputed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _detached(forward: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(x, *args, **kwargs)
    out = forward(x.detach().requires_grad_(), *args, **kwargs)
    return tree_map_only(Tensor, Tensor.detach, out)
