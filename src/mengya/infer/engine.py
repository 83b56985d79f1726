"""Continuous batching: requests join and leave a running batch at every step (Yu et al. 2022, Orca).

A step takes in the last token of every answer that is being written, and as many tokens of new prompts as fit beside
them, so that a long prompt does not stall the others (Agrawal et al. 2024, arXiv:2403.02310). Where memory runs out,
the youngest answer makes room and is computed again later, which does not change it: its random numbers are its own.
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mengya.errors import UserError
from mengya.infer.blocks import BlockPool
from mengya.infer.request import Finish, LogProb, Piece, Request, Usage, check_tokens
from mengya.infer.sampling import Drawer, Drawn, draw, score
from mengya.infer.stream import Answer, joined, named
from mengya.model.language_model import LanguageModel, Span
from mengya.model.precision import Weights
from mengya.runtime import free_memory
from mengya.text.tokenizer import Tokenizer

STEP_TOKENS = 256
"""Of prompts and answers in one step: what others wait for while a long prompt is read."""
RUNNING = 64
"""Answers that are written at a time, unless it is said otherwise."""
_SHARE_OF_MEMORY = 0.25
"""Of what is free, for keys and values."""


def room_for(model: LanguageModel, running: int) -> int:
    """Tokens whose keys and values have room: those of so many answers, or a share of the free memory."""
    memory, wanted = free_memory(model.device.type), running * model.context
    if memory is None or not model.cache_bytes:
        return wanted
    return max(model.context, min(wanted, int(memory * _SHARE_OF_MEMORY) // model.cache_bytes))


class Job:
    """A request in the engine. `prompt_tokens` is known at once."""

    def __init__(self, request: Request, prompt: Sequence[int], deliver: Callable[[Piece], None]):
        self.request, self.prompt, self.deliver = request, list(prompt), deliver
        self.prompt_tokens = len(prompt)
        self.cancelled = False

    def cancel(self) -> None:
        """From any thread; it takes effect before the next step."""
        self.cancelled = True


@dataclasses.dataclass(eq=False, slots=True)
class _Sequence:
    """One choice of a job."""

    job: Job
    choice: int
    number: int
    tokens: list[int]
    """Of the prompt and the answer."""
    most: int
    """Tokens of the longest answer."""
    ends: frozenset[int]
    drawer: Drawer
    answer: Answer
    leader: "_Sequence | None"
    """The first choice, whose prompt is computed before this one begins, so that it is found."""
    computed: int = 0
    """Tokens whose keys and values are in `blocks`."""
    blocks: list[int] = dataclasses.field(default_factory=list)
    known: int = 0
    """Blocks that others can find."""
    cached: int = 0
    """Tokens of the prompt that were found."""
    prompt_log_probs: list[LogProb] = dataclasses.field(default_factory=list)
    """Those that are not delivered yet."""
    scores_prompt: bool = False
    """Whether those of the prompt are still wanted."""
    finished: bool = False

    @property
    def size(self) -> int:
        """Tokens of the prompt."""
        return self.job.prompt_tokens

    @property
    def writes(self) -> bool:
        """Whether only its last token is to be computed."""
        return self.computed == len(self.tokens) - 1 and len(self.tokens) > self.size


class Engine:
    """Not for several threads at once, but for `add` and `Job.cancel`."""

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        stop_ids: set[int],
        *,
        running: int = RUNNING,
        tokens: int | None = None,
        weights: Weights = "exact",
    ):
        """`stop_ids`: tokens that end an answer. `running`: so many answers are written at a time. `tokens`: how many
        keys and values there is room for; None: as `room_for` says. `weights`: see `Weights`."""
        self.context, self._vocab_size = model.context, model.vocab_size
        self._tokenizer, self._stop_ids = tokenizer, frozenset(stop_ids)
        self._most_running = running
        self._steps = model.steps(tokens or room_for(model, running), weights)
        self.pool = BlockPool(self._steps.blocks, self._steps.block, self._steps.shares)
        self._context = min(self.context, self.pool.blocks * self.pool.block)
        self._numbers = itertools.count()
        self._incoming: deque[Job] = deque()
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []

    # ---- for any thread ----------------------------------------------------------------------------------------------

    def add(self, request: Request, prompt: Sequence[int], deliver: Callable[[Piece], None]) -> Job:
        """Answer token ids in the steps to come. `deliver` gets the pieces, each choice ending with one that has a
        `finish`. UserError if the prompt cannot be answered: `TooLong` if it leaves no room for an answer."""
        check_tokens(request, prompt, self._context, self._limit)
        job = Job(request, prompt, deliver)
        self._incoming.append(job)
        return job

    @property
    def _limit(self) -> int:
        """Entries of the vocabulary that have a token; a model may have more rows."""
        return min(self._vocab_size, self._tokenizer.vocab_size)

    @property
    def busy(self) -> bool:
        return bool(self._running or self._waiting or self._incoming)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._incoming)

    # ---- a step ------------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Compute one step, and deliver what came of it. False if there was nothing to do."""
        while self._incoming:
            self._begin(self._incoming.popleft())
        for sequence in [s for s in (*self._running, *self._waiting) if s.job.cancelled]:
            self._finish(sequence, "cancelled")
        spans = self._plan()
        if not spans:
            return self.busy
        try:
            logits = self._steps.run([span for _, span in spans])
        except Exception as error:  # such as memory that ran out: the others may be answered still
            for sequence, _ in spans:
                self._finish(sequence, "error", error=f"{type(error).__name__}: {error}")
            return True
        self._take_in(spans, logits)
        return True

    def forget_known(self) -> None:
        """Compute all beginnings anew: nothing may be running."""
        assert not self.busy
        self.pool = BlockPool(self._steps.blocks, self._steps.block, self._steps.shares)

    def end_all(self, how: Finish = "cancelled", error: str | None = None) -> None:
        """Nothing goes on."""
        while self._incoming:
            self._begin(self._incoming.popleft())
        for sequence in (*self._running, *self._waiting):
            self._finish(sequence, how, error=error)

    def _begin(self, job: Job) -> None:
        try:
            self._wait(job)
        except Exception as error:  # such as a grammar that cannot be made
            told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            usage = Usage(job.prompt_tokens, 0)
            for choice in range(job.request.n):
                job.deliver(Piece(choice, "", finish="error", error=told, usage=usage))

    def _wait(self, job: Job) -> None:
        ends = job.request.ends(self._stop_ids)
        leader: _Sequence | None = None
        choices = []
        for choice in range(job.request.n):
            drawer = Drawer(job.request, job.prompt, choice, self._limit, ends)
            answer = Answer(self._tokenizer, job.request.stop, choice)
            most = min(job.request.sampling.max_new_tokens, self._context - job.prompt_tokens)
            tokens = list(job.prompt)
            sequence = _Sequence(job, choice, next(self._numbers), tokens, most, ends, drawer, answer, leader)
            sequence.scores_prompt = job.request.prompt_logprobs and choice == 0
            leader = leader or sequence
            choices.append(sequence)
        self._waiting += choices

    def _plan(self) -> list[tuple[_Sequence, Span]]:
        """What the next step takes in."""
        spans = []
        for sequence in list(self._running):  # the oldest first
            if sequence.writes and sequence in self._running and self._make_room(sequence):
                spans.append((sequence, self._span(sequence, 1)))
        spans = [(sequence, span) for sequence, span in spans if sequence in self._running]
        budget = max(1, STEP_TOKENS - len(spans))
        for sequence in self._running:
            if budget > 0 and not sequence.writes:
                spans.append((sequence, self._span(sequence, budget)))
                budget -= len(spans[-1][1].tokens)
        while budget > 0 and len(self._running) < self._most_running and (joining := self._admit()) is not None:
            spans.append((joining, self._span(joining, budget)))
            budget -= len(spans[-1][1].tokens)
        return spans

    def _span(self, sequence: _Sequence, budget: int) -> Span:
        start = sequence.computed
        end = min(len(sequence.tokens), start + budget)
        whole = end == len(sequence.tokens)
        outputs = end - start if sequence.scores_prompt else int(whole)
        return Span(sequence.number, sequence.tokens[start:end], start, sequence.blocks, outputs)

    def _make_room(self, sequence: _Sequence) -> bool:
        """A block for its last token; the youngest others are put off for it. False if it is the youngest itself."""
        while len(sequence.blocks) * self.pool.block < len(sequence.tokens):
            if self.pool.free:
                sequence.blocks += self.pool.take(1)
            else:
                youngest = self._running[-1]
                self._put_off(youngest)
                if youngest is sequence:
                    return False
        return True

    def _put_off(self, sequence: _Sequence) -> None:
        self._leave(sequence)
        sequence.computed = sequence.known = 0
        self._waiting.appendleft(sequence)

    def _admit(self) -> _Sequence | None:
        """The next sequence that waits, with room for what it has, if there is such room."""
        sequence = next(
            (s for s in self._waiting if s.leader is None or s.leader.computed >= s.size or s.leader.finished), None
        )
        if sequence is None:
            return None
        found = [] if sequence.scores_prompt else self.pool.find(sequence.tokens[:-1])
        needed = -(-(len(sequence.tokens) + 1) // self.pool.block) - len(found)
        if needed > self.pool.free:
            self.pool.release(found)
            return None
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.blocks = found + self.pool.take(needed)
        sequence.known = len(found)
        sequence.computed = len(found) * self.pool.block
        sequence.cached = min(sequence.computed, sequence.size)
        return sequence

    def _take_in(self, spans: Sequence[tuple[_Sequence, Span]], logits: Tensor) -> None:
        """Draw from the logits of a step, and deliver."""
        drawing, rows, first = [], [], 0
        for sequence, span in spans:
            sequence.computed += len(span.tokens)
            whole = sequence.computed // self.pool.block
            sequence.known = self.pool.know(sequence.tokens, sequence.blocks[:whole], sequence.known)
            if sequence.scores_prompt:
                self._score_prompt(sequence, span, logits[first : first + span.outputs])
            first += span.outputs
            if sequence.computed == len(sequence.tokens):
                drawing.append(sequence)
                rows.append(first - 1)
        if not drawing:
            return
        chosen = logits if len(rows) == len(logits) else logits[torch.tensor(rows)]
        for sequence, drawn in zip(drawing, draw(chosen, [s.drawer for s in drawing]), strict=True):
            self._append(sequence, drawn)

    def _score_prompt(self, sequence: _Sequence, span: Span, logits: Tensor) -> None:
        if span.start == 0:
            first = sequence.tokens[0]
            sequence.prompt_log_probs = [LogProb(first, self._tokenizer.token_bytes[first], None)]
        following = sequence.tokens[span.start + 1 : min(span.start + len(span.tokens) + 1, sequence.size)]
        sequence.scores_prompt = sequence.computed < sequence.size
        scored = score(logits[: len(following), : self._limit], following, sequence.job.request.logprobs or 0)
        named_each = (named(self._tokenizer, *each) for each in zip(following, scored, strict=True))
        sequence.prompt_log_probs += named_each

    def _append(self, sequence: _Sequence, drawn: Drawn) -> None:
        """One more token of an answer, which may end it."""
        if drawn.error is not None:
            self._finish(sequence, "error", error=drawn.error)
            return
        sequence.tokens.append(drawn.token)
        if drawn.token in sequence.ends:
            self._finish(sequence, "stop")
            return
        piece = sequence.answer.push(drawn.token, drawn.scored)
        if sequence.answer.stopped:
            self._finish(sequence, "stop", piece)
        elif len(sequence.tokens) - sequence.size == sequence.most:
            self._finish(sequence, "length", piece)
        elif piece.text or sequence.prompt_log_probs:
            self._deliver(sequence, piece)

    def _deliver(self, sequence: _Sequence, piece: Piece) -> None:
        of_prompt, sequence.prompt_log_probs = tuple(sequence.prompt_log_probs), []
        sequence.job.deliver(piece._replace(prompt_logprobs=of_prompt))

    def _finish(self, sequence: _Sequence, how: Finish, said: Piece | None = None, error: str | None = None) -> None:
        """Deliver the last piece, and give back what the sequence held."""
        if sequence in self._running:
            self._leave(sequence)
        else:
            self._waiting.remove(sequence)
        sequence.finished = True
        last = sequence.answer.flush()
        if how == "length" and sequence.answer.stopped:  # the end made sure what the leftmost stop text is
            how = "stop"
        if said is not None:
            last = joined(said, last)
        usage = Usage(sequence.size, len(sequence.tokens) - sequence.size, sequence.cached)
        self._deliver(sequence, last._replace(finish=how, usage=usage, error=error))

    def _leave(self, sequence: _Sequence) -> None:
        self._running.remove(sequence)
        self._steps.forget(sequence.number)
        self.pool.release(sequence.blocks)
        sequence.blocks = []
