"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864) and their context extensions.

Linear interpolation (Chen et al. 2023, arXiv:2306.15595), dynamic NTK (u/emozilla 2023), YaRN (Peng et al. 2023,
arXiv:2309.00071) and Llama 3.1's scheme; the same numbers as transformers'
`modeling_rope_utils`, which the tests compare.
"""

import math

import torch
from torch import Tensor

from mengya.model.native.config import ModelConfig, RopeScaling


def _frequencies(theta: float | Tensor, dim: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _yarn(scaling: RopeScaling, theta: float, dim: int, context: int) -> tuple[Tensor, float]:
    """NTK-by-parts: fast dimensions keep their frequency, slow ones are interpolated, a ramp lies between."""

    def dimension_of(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension_of(scaling.beta_fast), dimension_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    keep = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    plain = _frequencies(theta, dim)

    def temperature(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        amplitude = scaling.attention_factor
    elif scaling.mscale and scaling.mscale_all_dim:
        amplitude = temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    else:
        amplitude = temperature(1.0)
    return plain / scaling.factor * (1 - keep) + plain * keep, amplitude


def _llama3(scaling: RopeScaling, theta: float, dim: int, context: int) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, a smooth blend between."""
    assert scaling.low_freq_factor is not None and scaling.high_freq_factor is not None  # checked by RopeScaling
    plain = _frequencies(theta, dim)
    periods = context * plain / (2 * math.pi)  # of each dimension within the original context
    blend = ((periods - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return (1 - blend) * plain / scaling.factor + blend * plain


class RotaryEmbedding:
    """Cosine and sine tables for given positions. Holds no parameters and no buffers: nothing to save or to move."""

    def __init__(self, config: ModelConfig):
        self._dim, self._theta = config.head_dim, config.rope_theta
        self._context = config.max_position_embeddings
        self._scaling = scaling = config.rope_scaling
        self.amplitude = 1.0
        original = (scaling and scaling.original_max_position_embeddings) or self._context
        with torch.device("cpu"):  # real numbers even when the model around them is built on the meta device
            self.frequencies = _frequencies(self._theta, self._dim)
            if scaling and scaling.rope_type == "linear":
                self.frequencies = self.frequencies / scaling.factor
            elif scaling and scaling.rope_type == "yarn":
                self.frequencies, self.amplitude = _yarn(scaling, self._theta, self._dim, original)
            elif scaling and scaling.rope_type == "llama3":
                self.frequencies = _llama3(scaling, self._theta, self._dim, original)

    def __call__(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) positions -> float32 cos and sin, each (B, T, 1, head_dim / 2)."""
        if self.frequencies.device != position_ids.device:
            self.frequencies = self.frequencies.to(position_ids.device)
        frequencies = self.frequencies
        if self._scaling and self._scaling.rope_type == "dynamic":  # the base grows with the length that is in use
            length = (position_ids.max() + 1).clamp(min=self._context)
            factor = self._scaling.factor
            stretch = (factor * length / self._context - (factor - 1)) ** (self._dim / (self._dim - 2))
            exponent = torch.arange(0, self._dim, 2, dtype=torch.float32, device=position_ids.device) / self._dim
            frequencies = 1.0 / (self._theta * stretch) ** exponent
        angles = position_ids[..., None, None].float() * frequencies
        return angles.cos() * self.amplitude, angles.sin() * self.amplitude


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, T, H, D) by (B, T, 1, D/2) tables, halves paired as in Hugging Face's layout, at their precision."""
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
