"""The gate of an export: other engines must compute from the files what we compute, or nothing is written."""

import importlib.util
import json
import math
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mengya.errors import UserError
from mengya.infer.engine import Engine
from mengya.infer.generate import generate
from mengya.infer.request import Request, Sampling
from mengya.metrics import format_count
from mengya.model.language_model import LanguageModel
from mengya.text.chat import Chat
from mengya.text.proof import lines, talks
from mengya.text.template import own_template
from mengya.text.tokenizer import Tokenizer

PROBE = Path(__file__).parent / "probe.py"
_TEXTS = (
    "春天来了，小草从土里钻出来。熊猫吃竹子，12 加 30 等于 42。",
    "The quick brown fox jumps over the lazy dog. It isn't 1,234.5 times!\n\nNext line.",
    "问：今天几号？\n答：三号。🙂 def f(x):\n    return x + 1\n",
)
_LINES = lines(200)
_ANSWER_TOKENS = 16
LIMITS = {"f32": 0.001, "f16": 0.01, "bf16": 0.05, "q8_0": 0.1, "q5_0": 0.1, "q4_0": 0.1}
"""The mean difference of log-probabilities that the arithmetic of an engine may cause, by the type of the weights: with
quantised ones llama.cpp rounds activations to 8 bits, too. Ours are computed from the numbers in the file. Several
times what bench/engines.py measures."""
_OF_THE_DIRECTORY = ("bos_token_id", "eos_token_id", "pad_token_id", "_name_or_path", "transformers_version")
"""Keys of config.json that say nothing of the model, and may be another's in what is written."""
LARGEST = 2e9
"""Parameters above which a model is not loaded a second time to be compared."""


class Figures(NamedTuple):
    """What one engine gave."""

    engine: str
    version: str
    mean: float
    """Mean difference of log-probabilities, and the largest."""
    largest: float
    same_answers: int
    """Of `answers`, those whose greedy tokens are ours."""
    answers: int
    composes: bool = False
    """It brings text into Unicode's form NFC, which the tokenizer does not."""

    def told(self) -> str:
        answers = f", {self.same_answers} of {self.answers} greedy answers ours" if self.answers else ""
        gaps = f"log-probabilities differ by {self.mean:.1e}, at most {self.largest:.1e}"
        composes = "; text comes into Unicode's form NFC first, which is not so here" if self.composes else ""
        return f"{self.engine} {self.version}: {gaps}{answers}{composes}"


def sequences_of(tokenizer: Tokenizer | None, model: LanguageModel) -> list[list[int]]:
    """The texts as tokens, of which the model has rows; any ids if there is no tokenizer."""
    room = min(model.context, 96)
    if tokenizer is None:
        return [[(7 * at + 1) % model.vocab_size for at in range(room)]]
    return [ids for text in _TEXTS if len(ids := tokenizer.encode(text)[:room]) > 1]


def prompts_of(tokenizer: Tokenizer | None, model: LanguageModel) -> list[list[int]]:
    """Questions as tokens, with room for an answer; none without a chat template."""
    if tokenizer is None or own_template(tokenizer.files) is None:
        return []
    chat = Chat(tokenizer)
    found = [chat.encode(talk, add_generation_prompt=True)[0] for talk in talks(False, False)]
    return [ids for ids in found if len(ids) + _ANSWER_TOKENS <= model.context][:4]


def talks_of(tokenizer: Tokenizer | None) -> list[tuple[list[dict], list[int]]]:
    """Conversations and their ids; none without a chat template."""
    if tokenizer is None or own_template(tokenizer.files) is None:
        return []
    chat = Chat(tokenizer)
    told = talks(chat.writes("system"), chat.writes("tool"))
    return [(talk, chat.encode(talk, add_generation_prompt=True)[0]) for talk in told]


def _greedy(
    model: LanguageModel, tokenizer: Tokenizer | None, prompts: Sequence[Sequence[int]], stops: Sequence[int]
) -> list[list[int]]:
    if tokenizer is None:
        return []
    sampling = Sampling(temperature=0.0, max_new_tokens=_ANSWER_TOKENS)
    engine = Engine(model, tokenizer, set(stops), running=max(1, len(prompts)))
    found = generate(engine, [Request(prompt=prompt, sampling=sampling) for prompt in prompts])
    return [list(choice.tokens) for (choice,) in found]


@torch.inference_mode()
def ours(model: LanguageModel, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probability of each token after the first."""
    out = []
    for ids in sequences:
        rows = model(torch.tensor([ids], device=model.device))[0].double().log_softmax(-1)
        out.append([rows[at, token].item() for at, token in enumerate(ids[1:])])
    return out


def compare(
    engine: str,
    path: Path,
    model: LanguageModel,
    tokenizer: Tokenizer | None,
    stops: Sequence[int],
    python: str,
    limit: float,
    texts: Sequence[tuple[str, bool]] = (),
) -> Figures:
    """What an engine of another Python computes from `path`, beside `model`, which holds the same numbers.

    UserError if log-probabilities differ by more than `limit` on average, or the ids of one of `texts`, or those of a
    conversation.
    """
    sequences, prompts, told = sequences_of(tokenizer, model), prompts_of(tokenizer, model), talks_of(tokenizer)
    request = {
        "path": str(path),
        "sequences": sequences,
        "texts": [list(text) for text in texts],
        "talks": [talk for talk, _ in told],
        "prompts": prompts,
        "tokens": _ANSWER_TOKENS,
        "context": model.context,
        "threads": torch.get_num_threads(),
    }
    answer = _asked(engine, python, request)
    mean, largest = difference(ours(model, sequences), answer["log_probs"])
    if not mean <= limit:  # NaN
        raise UserError(
            f"{engine} {answer['version']} computes another model from {path.name}: log-probabilities differ by "
            f"{mean:.3g} on average, more than {limit:g}; serve it with another engine, and report this"
        )
    name = f"{engine} {answer['version']}"
    composes = tokenizer is not None and _same_ids(name, tokenizer, texts, answer["ids"])
    for (talk, wanted), ids in zip(told, answer["rendered"], strict=True):
        if ids != wanted:
            raise UserError(f"{name} writes the conversation {talk} otherwise than we do; report this")
    greedy = _greedy(model, tokenizer, prompts, stops)
    found = [[token for token in ids if token not in stops] for ids in answer["answers"]]
    same = sum(a == b for a, b in zip(greedy, found, strict=True))
    return Figures(engine, answer["version"], mean, largest, same, len(prompts), composes)


def _same_ids(
    name: str, tokenizer: Tokenizer, texts: Sequence[tuple[str, bool]], found: Sequence[Sequence[int]]
) -> bool:
    """Whether the ids that were found differ from ours in texts alone that are not in Unicode's form NFC, into which
    transformers brings any text for every Qwen2, whatever its tokenizer says. UserError if others differ."""
    composes = False
    for (text, special), ids in zip(texts, found, strict=True):

        def encode(text: str, special: bool = special) -> list[int]:
            return tokenizer.encode_structure(text).ids if special else tokenizer.encode(text)

        if ids != encode(text):
            composed = unicodedata.normalize("NFC", text)
            if composed == text or ids != encode(composed):
                raise UserError(f"{name} reads {text!r} as other tokens than we do; report this")
            composes = True
    return composes


def difference(wanted: Sequence[Sequence[float]], found: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean and the largest difference; NaN if one is not finite."""
    pairs = [(a, b) for left, right in zip(wanted, found, strict=True) for a, b in zip(left, right, strict=True)]
    if not all(math.isfinite(b) for _, b in pairs):
        return math.nan, math.nan
    gaps = [abs(a - b) for a, b in pairs]
    return sum(gaps) / len(gaps), max(gaps)


def _asked(engine: str, python: str, request: dict[str, Any]) -> dict[str, Any]:
    """UserError if the engine fails: a model that it does not load is not exported."""
    done = subprocess.run([python, PROBE, engine], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"code {done.returncode}")
        raise UserError(f"{engine} does not load {Path(request['path']).name} ({last.strip()}); report this")
    return json.loads(done.stdout)


def python_of(engine: str, others: Sequence[Path]) -> str | None:
    """The Python that has the engine (a module): this one, or one of `others`; None if none has."""
    # A folder of that name where the command is given would be found as a module, too, but has no origin.
    look = f"import importlib.util as i, sys; s = i.find_spec({engine!r}); sys.exit(s is None or s.origin is None)"
    pythons = [sys.executable, *map(str, others)]
    return next((p for p in pythons if subprocess.run([p, "-c", look], capture_output=True).returncode == 0), None)


def same_weights(model: LanguageModel, found: LanguageModel, dtype: torch.dtype | None) -> None:
    """UserError if what was read back, in float32, is not the model that was written in `dtype`."""
    own, other = model.weights(), found.weights()
    differing = [name for name in own if name not in other or not _rounded(own[name], other[name], dtype)]
    described, again = (
        {key: value for key, value in each.description().items() if key not in _OF_THE_DIRECTORY}
        for each in (model, found)
    )
    differing += [key for key, value in described.items() if again.get(key) != value]
    if own.keys() != other.keys() or differing:
        named = ", ".join([*differing, *(other.keys() - own.keys())][:3])
        raise UserError(f"the model reads back with another {named} than was written; export it again, or report this")


def _rounded(tensor: torch.Tensor, found: torch.Tensor, dtype: torch.dtype | None) -> bool:
    """Whether `found` is the tensor, or that tensor in `dtype`; routers stay float32."""
    wide = tensor.detach().cpu().float()
    return torch.equal(found.float(), wide) or torch.equal(found.float(), wide.to(dtype or wide.dtype).float())


# ---- transformers ----------------------------------------------------------------------------------------------------


def with_transformers(
    out: Path, model: LanguageModel, tokenizer: Tokenizer | None, trust_remote_code: bool
) -> tuple[str | None, str]:
    """What transformers makes of a directory that was written, and why it was not asked (else ""). UserError if that is
    another model, tokenizer or conversation than ours. `model`: as it reads back, in float32."""
    if importlib.util.find_spec("transformers") is None:
        return None, "transformers is not installed"
    if model.all_parameters() > LARGEST:
        return None, f"more than {format_count(LARGEST)} parameters"
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if not trust_remote_code and model.description().get("model_type") not in transformers.CONFIG_MAPPING:
        return None, f"transformers has no {model.description().get('model_type')}"
    load = {"trust_remote_code": trust_remote_code}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, **load).eval()
    sequences = sequences_of(tokenizer, model)
    found = []
    with torch.inference_mode():
        for ids in sequences:
            rows = theirs(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            found.append([rows[at, token].item() for at, token in enumerate(ids[1:])])
    mean, largest = difference(ours(model, sequences), found)
    version = transformers.__version__
    if not mean <= 1e-4:
        raise UserError(
            f"transformers {version} computes another model from {out.name}: log-probabilities differ by {mean:.3g} on "
            "average; report this"
        )
    composes, compared = False, ""
    if tokenizer is not None:
        try:
            reader = transformers.AutoTokenizer.from_pretrained(out, **load)
        except (ValueError, OSError, ImportError) as error:  # one that needs code of its own, or a library
            compared = f"; its tokenizer was not checked ({str(error).strip().splitlines()[0]})"
        else:
            composes, count = _same_tokens(f"transformers {version}", reader, tokenizer)
            compared = f"; tokens of {len(_LINES)} lines and {count} conversations are the same"
    return Figures("transformers", version, mean, largest, 0, 0, composes).told() + compared, ""


def _same_tokens(name: str, theirs: Any, tokenizer: Tokenizer) -> tuple[bool, int]:
    """As `_same_ids`, and how many conversations were compared. UserError if one has other tokens."""
    found = [theirs.encode(text, add_special_tokens=False) for text in _LINES]
    composes = _same_ids(name, tokenizer, [(text, False) for text in _LINES], found)
    told = talks_of(tokenizer)
    for talk, wanted in told:
        text = theirs.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        if theirs.encode(text, add_special_tokens=False) != wanted:
            raise UserError(f"{name} writes the conversation {talk} otherwise than we do; report this")
    return composes, len(told)
