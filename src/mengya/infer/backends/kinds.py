"""The backends that there are, by name."""

from typing import Literal

Kind = Literal["auto", "native", "transformers", "vllm", "llama.cpp", "openai"]
"""auto: openai for an address, llama.cpp for a .gguf file, and for a directory our implementation of its architecture,
or else that of the transformers library."""
