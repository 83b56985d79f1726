"""/v1/embeddings: texts as vectors of unit length."""

import base64
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor
from torch.nn.functional import normalize

from mengya.infer.backends import Backend
from mengya.infer.request import TooLong
from mengya.serve.api.bodies import EmbeddingBody
from mengya.serve.api.errors import ApiError, json_response
from mengya.serve.api.service import Service
from mengya.serve.api.stream import unless_gone


async def embed(service: Service, request: Request, body: EmbeddingBody) -> Response:
    service.check_unknown(body)
    name, backend = service.model(body.model)
    given: Any = body.input
    inputs = [given] if isinstance(given, str) or isinstance(given[0], int) else given
    if not isinstance(inputs[0], str) and not service.settings.embed_ids:
        # A client that makes ids makes those of its own tokenizer: the vector would be wrong without a word.
        raise ApiError(
            400,
            "input has token ids, which clients take from other tokenizers; send texts (LangChain: "
            "check_embedding_ctx_length=False), or start the server with --embed-ids",
            param="input",
        )
    service.shop.room.take(1)
    try:
        work = service.shop.call(lambda: _vectors(backend, inputs), "input")
        prompts, vectors = await unless_gone(request, work)
    finally:
        service.shop.room.give(1)
    size = vectors.shape[1]
    if body.dimensions not in (None, size):
        raise ApiError(400, f"dimensions={body.dimensions} is not what this model has, {size}", param="dimensions")
    tokens = sum(map(len, prompts))
    service.measures.tokens.labels(name, "prompt").inc(tokens)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, body.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "model": name, "data": data, "usage": usage})


def _vectors(backend: Backend, inputs: Sequence[str] | Sequence[list[int]]) -> tuple[list[list[int]], Tensor]:
    """The tokens of each input, and (inputs, C) vectors."""
    prompts = [backend.encode(given) if isinstance(given, str) else given for given in inputs]
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ApiError(400, f"input[{number}] is empty; give a text", param="input")
        if len(prompt) > backend.context:
            raise TooLong("", len(prompt), backend.context)
    return prompts, normalize(backend.embed(prompts).float(), dim=-1).cpu()


def _written(vector: Tensor, form: str | None) -> list[float] | str:
    """Numbers, or base64 of little-endian float32."""
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
