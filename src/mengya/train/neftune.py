"""NEFTune (Jain et al. 2023, arXiv:2310.05914): noise on the embeddings while a chat model is tuned."""

from typing import Any

import torch
from torch import Tensor, nn

from mengya.model.language_model import LanguageModel


def add_noise(model: LanguageModel, alpha: float) -> None:
    """In training mode add to every entry of the (B, T, C) embeddings a number that is uniform within
    alpha / sqrt(T C), as trl does. From torch's generator, whose state a checkpoint holds. 0: none."""

    def noisy(module: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        if not module.training:
            return out
        bound = alpha / (out.shape[-2] * out.shape[-1]) ** 0.5
        return out + torch.empty_like(out).uniform_(-bound, bound)

    if alpha:
        model.input_embedding.register_forward_hook(noisy)
