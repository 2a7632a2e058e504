"""Reflectors: a prompt and examples with feedback in, a better prompt out.

Four kinds behind one protocol: `offline` (no language model), any LiteLLM model string, `self` or
`base` (the policy or its frozen base reflects), and any callable `text -> text`. Answers of a model
outside are handed on as they come, so that the engine can try the first while the last are written.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol

from gepa.strategies.instruction_proposal import InstructionProposalSignature

from fastslow.config import FastConfig
from fastslow.engine.base import Engine, SamplingParams, Which
from fastslow.engine.world import join
from fastslow.errors import ConfigError, ReflectorError
from fastslow.imports import import_object
from fastslow.rollout import THOUGHTS, sentences

OPENINGS = ("Remember:", "Important:", "Note:")
REFUSAL = re.compile(
    r"^\W*(i['’]?m sorry|i am sorry|sorry|i can(?:not|['’]t)|i am unable|i['’]?m unable|as an ai\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Example:
    """One rollout as a reflector sees it."""

    question: str
    response: str
    reward: float
    feedback: str


@dataclass(frozen=True, slots=True)
class Job:
    """One reflection: the parent prompt's text and its rollouts on a minibatch."""

    prompt: str
    examples: list[Example]


@dataclass
class Usage:
    """What reflection has cost so far."""

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0
    waited: float = 0.0  # seconds in which the engine had nothing to do but wait for answers


Arrived = list[tuple[int, str | None]]  # which job, and its new prompt or None where there is none


class Reflector(Protocol):
    usage: Usage

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> Iterator[Arrived]:
        """Each job's answer once, those that are there at a time. Raises ReflectorError when down."""
        ...


# -- offline: evolution without a language model ---------------------------------------------------


@dataclass
class Offline:
    """Adds, drops, reorders and rephrases sentences; what it adds comes from the feedback.

    It knows nothing of any task. A feedback sentence is the likelier to be added the more often it
    was said, and never when it was said of one example alone: advice recurs, while remarks about one
    problem's numbers do not.
    """

    usage: Usage = field(default_factory=Usage)

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> Iterator[Arrived]:
        self.usage.calls += len(jobs)
        yield [(place, self._edit(job, rng)) for place, job in enumerate(jobs)]

    def _edit(self, job: Job, rng: random.Random) -> str:
        text = sentences(job.prompt)
        known = {sentence.partition(": ")[2].lower() for sentence in text} | {
            s.lower() for s in text
        }
        heard = Counter(
            sentence
            for example in job.examples
            if example.reward < 1
            for sentence in set(sentences(example.feedback))
            if sentence.lower() not in known
        )
        if len(job.examples) > 1:
            heard = Counter({sentence: count for sentence, count in heard.items() if count > 1})
        edits = [self._drop, self._reorder, self._rephrase]
        if heard and (len(text) < 2 or rng.random() < 0.75):
            self._add(text, heard, rng)
        else:
            rng.choice(edits)(text, rng)
        return " ".join(text)

    def _add(self, text: list[str], heard: Counter[str], rng: random.Random) -> None:
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not heard:
                return
            names, counts = zip(*sorted(heard.items()), strict=True)
            sentence = rng.choices(names, [count * count for count in counts])[0]
            text.insert(rng.randint(min(1, len(text)), len(text)), sentence)
            del heard[sentence]

    def _drop(self, text: list[str], rng: random.Random) -> None:
        if len(text) > 1:
            del text[rng.randrange(1, len(text))]

    def _reorder(self, text: list[str], rng: random.Random) -> None:
        rest = text[1:]
        rng.shuffle(rest)
        text[1:] = rest

    def _rephrase(self, text: list[str], rng: random.Random) -> None:
        """Change a sentence's opening, which changes its weight and not its content."""
        if len(text) < 2:
            return
        place = rng.randrange(1, len(text))
        words = text[place]
        for opening in OPENINGS:
            if words.startswith(opening + " "):
                rest = words[len(opening) + 1 :]
                text[place] = rest[0].upper() + rest[1:]
                return
        text[place] = f"{rng.choice(OPENINGS)} {words[0].lower()}{words[1:]}"


# -- language models --------------------------------------------------------------------------------

# A batch of prompts and a seed; the answers with their places, those that are there at a time.
Complete = Callable[[list[str], int], Iterator[list[tuple[int, str]]]]


@dataclass
class LanguageModel:
    """A reflector that shows GEPA's instruction prompt to a language model and reads its answer.

    `complete` answers a batch of prompts. The new instruction is the last fenced block outside of any
    thought; an answer without one holds no proposal. Where `fits` is given, examples are left out
    from the end until a question fits.
    """

    complete: Complete
    usage: Usage = field(default_factory=Usage)
    fits: Callable[[str], bool] | None = None

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> Iterator[Arrived]:
        questions = [self._fitting(job) for job in jobs]
        self.usage.calls += len(jobs)
        for arrived in self.complete(questions, rng.randrange(2**31)):
            yield [(place, extract(answer)) for place, answer in arrived]

    def _fitting(self, job: Job) -> str:
        for count in range(len(job.examples), 0, -1):
            question = self._question(Job(job.prompt, job.examples[:count]))
            if self.fits is None or self.fits(question):
                return question
        raise ReflectorError(
            "a reflection on one example alone does not fit into the context of the model that is to "
            "reflect; take another fast.reflector"
        )

    def _question(self, job: Job) -> str:
        examples = [
            {
                "Inputs": example.question,
                "Generated Outputs": example.response,
                "Feedback": f"{example.feedback} (reward {example.reward:g})",
            }
            for example in job.examples
        ]
        rendered = InstructionProposalSignature.prompt_renderer(
            {
                "current_instruction_doc": job.prompt,
                "dataset_with_feedback": examples,
                "prompt_template": None,
            }
        )
        assert isinstance(rendered, str)  # a list only when an example holds images
        return rendered


def extract(answer: object) -> str | None:
    """The proposed prompt in a model's answer, or None: its last fenced block, inner fences included."""
    if not isinstance(answer, str):
        return None
    blocks: list[str] = []
    depth, lines = 0, []
    for line in THOUGHTS.sub("", answer).splitlines():
        mark = line.strip()
        if not mark.startswith("```"):
            lines.append(line)
        elif depth == 0:
            depth, lines = 1, []
        else:  # a bare fence closes the innermost block, one with a language opens another
            depth += 1 if mark != "```" else -1
            if depth == 0:
                blocks.append("\n".join(lines).strip())
            lines.append(line)
    return blocks[-1] if blocks else None


def problem_with(text: object, parent: str, known: set[str], max_chars: int) -> str | None:
    """Why a proposal is not worth evaluating: a name to count it under, or None if it is."""
    if not isinstance(text, str):
        return "unreadable"
    if not text.strip():
        return "empty"
    if text.strip() == parent.strip():
        return "unchanged"
    if text.strip() in known:
        return "duplicate"
    if len(text) > max_chars:
        return "overlong"
    if REFUSAL.match(text):
        return "refused"
    return None


def litellm_complete(model: str, usage: Usage, args: dict[str, Any]) -> Complete:
    """Calls through LiteLLM, side by side, each with a time limit and retries of its own."""
    # Its table of prices ships with it; fetching a newer one would put the network into an import.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    try:
        import litellm
    except ImportError:
        raise ConfigError(
            f"fast.reflector = {model!r} needs the litellm package: pip install 'fastslow[litellm]'"
        ) from None
    litellm.suppress_debug_info = True  # its advertisement on stdout would tear the live display
    options = {"timeout": 120, "num_retries": 3, "drop_params": True, **args}
    workers = options.pop("max_workers", 8)

    lock = Lock()

    def one(prompt: str) -> str:
        response: Any = litellm.completion(
            model=model, messages=[{"role": "user", "content": prompt}], **options
        )
        price = 0.0
        with suppress(Exception):  # LiteLLM raises a bare one for a model without a known price
            price = litellm.completion_cost(completion_response=response)
        with lock:
            usage.tokens_in += response.usage.prompt_tokens
            usage.tokens_out += response.usage.completion_tokens
            usage.dollars += price
        return response.choices[0].message.content or ""

    def read(answer: Future[str]) -> str:
        try:
            return answer.result()
        except Exception as error:  # every provider has its own exceptions
            reason = " ".join(str(error).split())[:300]
            raise ReflectorError(
                f"fast.reflector = {model!r}: no answer after {options['num_retries']} retries: {reason}"
            ) from error

    def complete(prompts: list[str], seed: int) -> Iterator[list[tuple[int, str]]]:
        with ThreadPoolExecutor(workers) as pool:
            places = {pool.submit(one, prompt): place for place, prompt in enumerate(prompts)}
            waiting = set(places)
            while waiting:
                since = time.perf_counter()
                arrived, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                usage.waited += time.perf_counter() - since
                yield sorted((places[answer], read(answer)) for answer in arrived)

    return complete


def engine_reflector(engine: Engine, which: Which, args: dict[str, Any]) -> LanguageModel:
    """The policy (or its frozen base) reflects on its own rollouts."""
    try:
        params = SamplingParams(**{"temperature": 0.7, "max_tokens": 512, **args})
    except TypeError:
        raise ConfigError(
            f"fast.reflector_args = {args!r}: expected temperature, top_p, max_tokens"
        ) from None

    def fits(question: str) -> bool:
        return len(engine.render("", question)) + params.max_tokens <= engine.context_length

    def complete(prompts: list[str], seed: int) -> Iterator[list[tuple[int, str]]]:
        contexts = [engine.render("", prompt) for prompt in prompts]
        samples = engine.sample(contexts, [1] * len(contexts), params, seed, which)
        yield [(place, engine.decode(row[0].tokens)) for place, row in enumerate(samples)]

    return LanguageModel(complete, fits=fits)


def callable_complete(function: Callable[[str], str]) -> Complete:
    """A callable in GEPA's form: one prompt in, one answer out."""

    def complete(prompts: list[str], seed: int) -> Iterator[list[tuple[int, str]]]:
        try:
            answers = [function(prompt) for prompt in prompts]
        except Exception as error:  # the user's code
            raise ReflectorError(f"the reflector raised {type(error).__name__}: {error}") from error
        yield list(enumerate(answers))

    return complete


@dataclass
class Relayed:
    """A reflector outside, which the first of several processes asks for all."""

    reflector: LanguageModel
    usage: Usage = field(init=False)

    def __post_init__(self) -> None:
        self.usage = self.reflector.usage

    def propose(self, jobs: Sequence[Job], rng: random.Random) -> Iterator[Arrived]:
        answers = self.reflector.propose(jobs, rng)  # asked for where `next` is called

        def ask() -> tuple[Arrived | None, Any]:
            return next(answers, None), rng.getstate()

        while True:
            arrived, state = join().decided(ask)()
            rng.setstate(state)
            if arrived is None:
                return
            yield arrived


def make_reflector(
    config: FastConfig, engine: Engine, function: Callable[[str], str] | None = None
) -> Reflector:
    """The reflector that `fast.reflector` names; `function` takes its place when given."""
    if function is not None:
        return Relayed(LanguageModel(callable_complete(function)))
    kind = config.reflector
    if kind == "offline":
        return Offline()
    if kind in ("self", "base"):
        which: Which = "policy" if kind == "self" else "base"
        return engine_reflector(engine, which, config.reflector_args)
    if kind.startswith("python:"):
        complete = import_object(kind[len("python:") :], "fast.reflector")
        return Relayed(LanguageModel(callable_complete(complete)))
    usage = Usage()
    return Relayed(LanguageModel(litellm_complete(kind, usage, config.reflector_args), usage))
