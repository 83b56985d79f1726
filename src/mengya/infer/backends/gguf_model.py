"""A GGUF file in llama.cpp: tokens in, logits out, through the functions of llama.h that llama-cpp-python passes on."""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.backends.gguf_tokenizer import GgufTokenizer
from mengya.metrics import format_count

CONTEXT = 8192
"""Tokens, unless it is said otherwise: keys and values of all that a large model could take fill a machine."""
_BATCH = 512
"""Tokens computed at a time: what a cancellation waits for."""
_ERROR = 4
"""The level in llama.cpp's log (ggml.h)."""


class GgufModel:
    """Not for several threads at once."""

    def __init__(self, path: Path, tokens: int | None = None):
        """`tokens`: the longest context; None: that of the model, `CONTEXT` at most. UserError if there is no such
        file, or llama.cpp cannot use it."""
        if not path.is_file():
            raise UserError(f"{path} is not there; give a .gguf file")
        self._library, self._errors = _library()
        self._errors.first = ""
        self._context: Any = None
        parameters = self._library.llama_model_default_params()
        parameters.n_gpu_layers = 0x7FFFFFFF  # all of them, where it was built for a GPU
        self._model = self._library.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise self._refused(path)
        library = self._library
        if library.llama_model_has_encoder(self._model) or not library.llama_model_has_decoder(self._model):
            self.close()
            raise UserError(f"{path} holds an encoder, which answers nothing; give a model that writes text")
        self.tokenizer = GgufTokenizer(library, self._model, str(path))
        self.context = min(library.llama_model_n_ctx_train(self._model), tokens or CONTEXT)
        self._context = self._begin(path)
        self._memory = library.llama_get_memory(self._context)
        self._computed: list[int] = []
        """Tokens whose keys and values are there."""
        self.kept = 0
        """Of those last computed, how many were there already."""

    @property
    def about(self) -> str:
        buffer = ctypes.create_string_buffer(128)
        self._library.llama_model_desc(self._model, buffer, len(buffer))
        size = format_count(self._library.llama_model_n_params(self._model))
        return f"{size} 参数 parameters · {buffer.value.decode(errors='replace')} · 上下文 context {self.context}"

    def logits(self, tokens: Sequence[int], cancelled: Callable[[], bool]) -> Tensor | None:
        """(V,) float32, behind the last token; None if it was `cancelled` before. RuntimeError if llama.cpp fails."""
        self._keep(tokens)
        for begin in range(self.kept, len(tokens), _BATCH):
            if cancelled():
                return None
            part = list(tokens[begin : begin + _BATCH])
            array = (ctypes.c_int32 * len(part))(*part)
            code = self._library.llama_decode(self._context, self._library.llama_batch_get_one(array, len(part)))
            if code:
                self._forget()
                raise RuntimeError(f"llama.cpp failed with code {code}")
            self._computed += part
        row = self._library.llama_get_logits_ith(self._context, -1)
        return torch.from_numpy(np.ctypeslib.as_array(row, (self.tokenizer.vocab_size,)).copy())

    def close(self) -> None:
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    def _keep(self, tokens: Sequence[int]) -> None:
        """Forget what is computed of other texts; the last token is computed again."""
        computed = self._computed
        if tokens[: len(computed)] == computed and len(tokens) > len(computed):
            self.kept = len(computed)
            return
        pairs = enumerate(zip(computed, tokens, strict=False))
        alike = next((place for place, (old, new) in pairs if old != new), len(tokens))
        self.kept = min(alike, len(tokens) - 1)
        if self._library.llama_memory_seq_rm(self._memory, 0, self.kept, -1):
            del computed[self.kept :]
        else:  # a recurrent state cannot go back
            self._forget()

    def _forget(self) -> None:
        self._library.llama_memory_clear(self._memory, True)
        self._computed, self.kept = [], 0

    def _begin(self, path: Path) -> Any:
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = self.context
        parameters.n_batch = parameters.n_ubatch = min(_BATCH, self.context)
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            self.close()
            raise self._refused(path)
        return context

    def _refused(self, path: Path) -> UserError:
        reason = self._errors.first or "no reason given"
        return UserError(f"llama.cpp cannot use {path} ({reason}); copy or convert the model again, or give another")


class _Errors:
    """Takes llama.cpp's log, of which nothing is printed."""

    def __init__(self, library: Any):
        self.first = ""
        """The first error since this was emptied; those behind it only say what came of it."""

        def take(level: int, text: bytes, _: object) -> None:
            if level == _ERROR and not self.first:
                self.first = " ".join(text.decode(errors="replace").partition(": ")[2].split())

        self._callback = library.llama_log_callback(take)  # must live as long as the library may call it
        library.llama_log_set(self._callback, None)


@cache
def _library() -> tuple[Any, _Errors]:
    """llama.cpp, once in a process."""
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:  # its shared library may fail to load
        reason = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        raise UserError(f".gguf files need llama-cpp-python{reason}; pip install 'mengya[llamacpp]'") from error
    llama_cpp.llama_backend_init()
    return llama_cpp, _Errors(llama_cpp)
