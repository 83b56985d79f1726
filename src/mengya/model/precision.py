"""How exactly a model that generates keeps its weights. Options are declared with it, and do not wait for torch."""

from typing import Literal

Weights = Literal["exact", "bfloat16", "int8"]
"""As what its matrices are kept: as they are; rounded to bfloat16; in 8 bits with a scale for each output. Keys and
values are then kept in bfloat16, too. What meets the matrices is rounded to bfloat16 where the processor multiplies
that; what meets 8 bits, to 8 or 16 bits, whichever the processor multiplies, with a scale for each 128 inputs."""
