"""POST /ai/llm/generation_stream and /ai/llm/generation: a form older than OpenAI's protocol.

Published with the Qwen server of a Chinese fine-tuning project of 2023 (LLM_Magic) on vLLM's AsyncLLMEngine:
`message`, `history`, `n`, `temperature`, `max_tokens`, `stream`, `stop_token_ids`, `frequency_penalty`, and vLLM's
other sampling parameters. Only requests were published, and both kinds went to generation_stream, told apart by
`stream`. Answers here are those of vLLM's demonstration server of that time, which such servers were made from:
`{"text": [one for each choice]}`; as a stream one such object after another, each with all that was said so far, each
ended by a zero byte. What was asked is not repeated in them. `history` has pairs of question and answer, or messages of
the newer protocol.
"""

from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response

from mengya.infer.request import Conversation
from mengya.serve.api.bodies import OlderBody
from mengya.serve.api.errors import ApiError, to_json
from mengya.serve.api.messages import history
from mengya.serve.api.service import Service
from mengya.serve.api.stream import Stream, plain, unless_gone
from mengya.serve.api.work import Work


async def generate(service: Service, request: Request, body: OlderBody, streams: bool) -> Response:
    """`streams`: whether it does if the body does not say."""
    service.check_unknown(body)
    name, backend = service.model(body.model)
    conversation = Conversation(history(body.message, body.history))
    make = service.request(body, backend, conversation, body.max_tokens)
    work = await unless_gone(request, service.begin(name, backend, [make], body.choices, "message"))
    if streams if body.stream is None else body.stream:
        frames = _frames(work, body.choices)
        return Stream(frames, work.cancel, service.settings.limits.ping_seconds, "application/octet-stream", ping=None)
    return await plain(request, work.cancel, _whole(work, body.choices))


async def _frames(work: Work, choices: int) -> AsyncIterator[bytes]:
    texts = [""] * choices
    try:
        async for _, piece in work.pieces():
            if piece.text:
                texts[piece.choice] += piece.text
                yield to_json({"text": texts}) + b"\0"
    except ApiError as error:
        yield to_json(error.body) + b"\0"


async def _whole(work: Work, choices: int) -> dict[str, list[str]]:
    texts: list[list[str]] = [[] for _ in range(choices)]
    async for _, piece in work.pieces():
        texts[piece.choice].append(piece.text)
    return {"text": ["".join(parts) for parts in texts]}
