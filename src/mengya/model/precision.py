"""How exactly a model that generates keeps its weights. Options are declared with it, and do not wait for torch."""

from typing import Literal

Weights = Literal["exact", "bfloat16", "int8"]
"""As what its matrices are kept: as they are; rounded to bfloat16; in 8 bits with a scale for each output. Keys and
values are then kept in bfloat16, too; and what the matrices are multiplied with is rounded to bfloat16 where the
processor multiplies that, and to 12 bits for matrices in 8 bits."""
