"""mengya ui MODEL…: a page to talk to models in."""

import contextlib
import dataclasses
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mengya.commands import Command
from mengya.commands.serve import is_local, open_models
from mengya.errors import UserError
from mengya.infer.backends.kinds import Kind
from mengya.infer.request import Sampling
from mengya.model.precision import Weights
from mengya.rag.finding import Finding
from mengya.schema import Argument, config

if TYPE_CHECKING:
    from mengya.infer.backends import Backend

_NEEDS = ("gradio", "markdown_it", "mdit_py_plugins", "latex2mathml", "pygments")
_SERVICES = {
    "DASHSCOPE_API_KEY": tuple(
        f"https://dashscope.aliyuncs.com/compatible-mode/v1#{name}" for name in ("qwen-plus", "qwen-vl-plus")
    )
}
"""Models elsewhere that can be chosen where the environment has a key for them."""


@config
class Config:
    """Open a page to talk to models in."""

    models: Annotated[list[str], Argument("MODEL")]
    """Model directories, .gguf files, or addresses of OpenAI-compatible servers; name=MODEL names one otherwise."""
    data: Path = Path("~/.mengya")
    """Directory for conversations and documents."""
    backend: Kind = "auto"
    """Who computes; auto: what a model is decides."""
    weights: Weights = "exact"
    """As what the weights are kept: as they are, or rounded, which is faster. Of our own models on a CPU."""
    trust_remote_code: bool = False
    """Run the code that comes with a model, if nobody else has its architecture (auto_map)."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0: of all networks, which is for --keys only."""
    port: int = 7860
    """0: any that is free."""
    keys: Path | None = None
    """A file with the SHA-256 hash of a key, and a user's name, on each line: only who has one of the keys may come in,
    and finds their conversations in every browser."""
    knowledge: Path | None = None
    """A folder of knowledge bases (mengya index), which all who may come in may ask, and none may change."""
    finding: Finding = Finding()
    web_addresses: bool = False
    """Let users add what stands at a web address, which this machine fetches; never from private networks."""
    vision: list[str] = dataclasses.field(default_factory=list)
    """Name of a model that takes pictures (may be given several times); for others, the text in pictures is read."""
    max_file_mb: float = 20
    """Largest file that is taken in, in megabytes."""
    sampling: Sampling = Sampling(temperature=0.7)


def run(config: Config) -> None:
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'the page needs {", ".join(missing)}; install it: pip install "mengya[ui]"')
    from mengya.metrics import say
    from mengya.rag.reading.limits import Limits
    from mengya.rag.store import KnowledgeFolder
    from mengya.serve.api.keys import Keys
    from mengya.serve.api.server import listen
    from mengya.serve.web.answers import Answers
    from mengya.serve.web.app import Site
    from mengya.serve.web.library import Library
    from mengya.serve.web.server import serve
    from mengya.serve.web.store import Store
    from mengya.serve.web.users import Users, secret_of

    if not config.max_file_mb > 0:
        raise UserError(f"max_file_mb={config.max_file_mb} is out of range; choose more than 0")
    if config.knowledge is not None and not config.knowledge.is_dir():
        raise UserError(
            f"knowledge={config.knowledge} is no folder; make it with mengya index --folder {config.knowledge}"
        )
    data = config.data.expanduser().resolve()
    keys = Keys.read(config.keys) if config.keys else None
    with contextlib.ExitStack() as stack:
        bound = stack.enter_context(listen(config.host, config.port))  # before models are loaded, which takes a while
        store = stack.enter_context(contextlib.closing(Store(data / "conversations.sqlite3")))
        users = Users(secret_of(data), store, keys)
        shared = KnowledgeFolder(config.knowledge.resolve()) if config.knowledge else None
        retriever = config.finding.open(shared.bases() if shared else ())
        limits = Limits(file_bytes=round(config.max_file_mb * 1e6))
        library = stack.enter_context(
            contextlib.closing(
                Library(data / "documents", limits, shared, addresses=config.web_addresses, embedder=retriever.embedder)
            )
        )
        models = _opened(config, stack)
        answers = stack.enter_context(contextlib.closing(Answers(store)))
        local = is_local(config.host)
        hosts = ["localhost", "127.0.0.1", "::1", config.host] if local and keys is None else None
        unknown = [name for name in config.vision if name not in models]
        if unknown:
            raise UserError(f"--vision {unknown[0]} is none of the models: {', '.join(models)}")
        seeing = {*config.vision, *(name for name in models if name.startswith("qwen-vl"))}
        site = Site(models, store, answers, library, users, config.sampling, hosts, seeing, retriever)
        if not local and keys is None:
            say(
                f"warning: everybody who reaches {config.host} may come in; give --keys  警告：没有密钥，任何人都能进来"
            )
        host = f"[{config.host}]" if ":" in config.host else config.host
        say(f"{', '.join(models)}: http://{host}:{bound.getsockname()[1]}  ·  Ctrl-C 停止 stops")
        # Gradio hands out files of the working folder: it gets an empty one.
        stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
        serve(site, bound)


def _opened(config: Config, stack: contextlib.ExitStack) -> dict[str, "Backend"]:
    """The models that were named, and those of services whose key is in the environment."""
    models, _ = open_models(
        config.models, stack, backend=config.backend, weights=config.weights, trust_remote_code=config.trust_remote_code
    )
    elsewhere = [source for variable, sources in _SERVICES.items() if os.environ.get(variable) for source in sources]
    if elsewhere and importlib.util.find_spec("openai") is not None:
        more, _ = open_models([source for source in elsewhere if source not in config.models], stack)
        models = more | models
        models = {name: models[name] for name in sorted(models, key=lambda name: name in more)}
    return models


COMMAND = Command(Config, run)
