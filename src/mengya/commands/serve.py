"""mengya serve MODEL…: models behind OpenAI's protocol."""

import contextlib
import dataclasses
import importlib.util
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mengya.commands import Command
from mengya.errors import UserError
from mengya.infer.backends.kinds import Kind
from mengya.model.precision import Weights
from mengya.rag.finding import Finding
from mengya.schema import Argument, config

if TYPE_CHECKING:
    from mengya.infer.backends import Backend

_NEEDS = ("fastapi", "uvicorn", "prometheus_client")


@config
class Config:
    """Serve models over HTTP, by OpenAI's protocol."""

    models: Annotated[list[str], Argument("MODEL")]
    """Model directories, .gguf files, or addresses of OpenAI-compatible servers; name=MODEL names one otherwise."""
    backend: Kind = "auto"
    """Who computes; auto: what a model is decides."""
    weights: Weights = "exact"
    """As what the weights are kept: as they are, or rounded, which is faster. Of our own models on a CPU."""
    cache_tokens: int | None = None
    """Tokens whose keys and values a model has memory for. Without: a share of what is free."""
    trust_remote_code: bool = False
    """Run the code that comes with a model, if nobody else has its architecture (auto_map)."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: of all networks, which is for --api-keys only."""
    port: int = 8000
    """0: any that is free."""
    api_keys: Path | None = None
    """A file with the SHA-256 hash of a key, and perhaps a name, on each line: only who has one of the keys may ask."""
    requests_per_minute: int | None = None
    """Of each key; without: no limit."""
    cors_origin: list[str] = dataclasses.field(default_factory=list)
    """Let pages of this origin ask, such as https://example.com (may be given several times)."""
    open_answers: int = 128
    """Answers that are written at once, or wait for memory; more requests are refused until some have ended."""
    max_tokens: int | None = None
    """Longest answer, whatever a request asks for. Without: what the context has room for."""
    max_seconds: float = 600
    """Longest time for a request."""
    max_body_mb: float = 8
    """Largest request, in megabytes."""
    drain_seconds: float = 30
    """Time that open answers have to end when the server is stopped."""
    temperature: float = 0.7
    """Of requests that do not say."""
    top_p: float = 0.9
    """Of requests that do not say."""
    any_name: bool = False
    """Answer requests for models that are not served with the first one."""
    knowledge: Path | None = None
    """A folder of knowledge bases (mengya index), which requests may name as knowledge_base: each to whoever asks."""
    finding: Finding = Finding()
    embed_ids: bool = False
    """Embed token ids, too; they must be those of the model's own tokenizer."""


def run(config: Config) -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'serving needs {", ".join(missing)}; install it: pip install "mengya[serve]"')
    from mengya.infer.request import Sampling
    from mengya.metrics import say
    from mengya.rag.store import KnowledgeFolder
    from mengya.serve.api.keys import Keys
    from mengya.serve.api.server import listen, serve
    from mengya.serve.api.settings import Limits, Settings

    _check(config)
    limits = Limits(
        open_answers=config.open_answers,
        new_tokens=config.max_tokens,
        answer_seconds=config.max_seconds,
        body=round(config.max_body_mb * 1e6),
        drain_seconds=config.drain_seconds,
    )
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p)
    keys = Keys.read(config.api_keys, config.requests_per_minute) if config.api_keys else None
    local = is_local(config.host)
    knowledge = KnowledgeFolder(config.knowledge) if config.knowledge else None
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(listen(config.host, config.port))  # before models are loaded, which takes a while
        retriever = config.finding.open(knowledge.bases() if knowledge else ())
        models, sources = open_models(
            config.models, stack, backend=config.backend, weights=config.weights, running=config.open_answers,
            tokens=config.cache_tokens, trust_remote_code=config.trust_remote_code,
        )  # fmt: skip
        settings = Settings(
            models=models,
            limits=limits,
            sampling=sampling,
            keys=keys,
            cors_origins=config.cors_origin,
            hosts=["localhost", "127.0.0.1", "::1", config.host] if local and keys is None else None,
            any_name=config.any_name,
            embed_ids=config.embed_ids,
            grammar_for=lambda backend, schema: backend.grammar(schema),
            sources=sources,
            knowledge=knowledge,
            retriever=retriever,
        )
        if not local and keys is None:
            say(
                f"warning: everybody who reaches {config.host} may ask; give --api-keys  警告：没有密钥，任何人都能访问"
            )
        host = f"[{config.host}]" if ":" in config.host else config.host
        say(f"{', '.join(models)}: http://{host}:{bound.getsockname()[1]}/v1  ·  Ctrl-C 停止 stops")
        serve(settings, bound)


def open_models(
    given: Sequence[str], stack: contextlib.ExitStack, **options: Any
) -> tuple[dict[str, "Backend"], dict[str, str]]:
    """Backends by name, closed with the stack; and the names by path. `options`: of `open_backend`. UserError."""
    from mengya.infer.backends.opening import open_backend

    models: dict[str, Backend] = {}
    sources: dict[str, str] = {}
    for each in given:
        name, source = named(each)
        backend = open_backend(source, name=name, **options)
        stack.callback(backend.close)
        name = backend.name
        if name in models:
            raise UserError(f"two models are named {name}; name one of them otherwise: other={source}")
        models[name] = backend
        sources |= {path: name for path in (str(Path(source).resolve()), source) if os.sep in path}
    return models, sources


def _check(config: Config) -> None:
    checks = (
        (0 <= config.port < 65536, "port", "from 0 to 65535"),
        (config.cache_tokens is None or config.cache_tokens >= 1, "cache_tokens", "1 or more"),
        (config.open_answers >= 1, "open_answers", "1 or more"),
        (config.max_tokens is None or config.max_tokens >= 1, "max_tokens", "1 or more"),
        (config.max_seconds > 0, "max_seconds", "more than 0"),
        (config.max_body_mb > 0, "max_body_mb", "more than 0"),
        (config.drain_seconds >= 0, "drain_seconds", "0 or more"),
        (config.requests_per_minute is None or config.requests_per_minute >= 1, "requests_per_minute", "1 or more"),
    )
    for valid, name, remedy in checks:
        if not valid:
            raise UserError(f"{name}={getattr(config, name)} is out of range; choose {remedy}")
    if config.requests_per_minute is not None and config.api_keys is None:
        raise UserError("requests_per_minute counts for each key; give --api-keys, too")
    if config.knowledge is not None and not config.knowledge.is_dir():
        raise UserError(f"knowledge={config.knowledge} is no folder; make it: mengya index --folder {config.knowledge}")
    if config.knowledge is None and config.finding != Finding():
        raise UserError("embeddings and reranker find passages of knowledge bases; give --knowledge, too")
    for origin in config.cors_origin:
        if "://" not in origin or origin.endswith("/"):
            raise UserError(f"cors_origin={origin} is not an origin; write one as https://example.com")


def named(given: str) -> tuple[str | None, str]:
    """The name and the directory of `name=DIRECTORY`; None if there is only a directory."""
    name, equals, source = given.partition("=")
    return (name, source) if equals and name and source and not Path(given).exists() else (None, given)


def is_local(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


COMMAND = Command(Config, run)
