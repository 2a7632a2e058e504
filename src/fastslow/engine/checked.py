"""Samplers with weights of their own, which every update must reach.

A copy that was not reached samples on without a word, so the first samples after each sync are scored
by the trainer too (`check_parity`).
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from torch import Tensor

from fastslow.config import Config
from fastslow.engine.base import Sample, SamplingParams
from fastslow.engine.batching import Sequences
from fastslow.errors import ConfigError, ModelError

Score = Callable[[Sequences, float], list[list[float]]]  # the trainer's, at a temperature
Drawn = tuple[list[int], list[float]]  # a response's tokens and their log-probabilities

# The mean |sampler - trainer| per token that is accepted. Measured on a CPU with the pocket model: rounding
# alone gives 1e-7 in FP32 and 1e-3 in BF16; one missed update 5e-5 at lr 1e-6 and 5e-3 at lr 1e-4. So FP32
# betrays a single missed update, BF16 only several.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
PROBES = 32  # samples that the trainer scores after a sync


def check_parity(
    samples: Sequence[Sample], trainer_logprobs: Sequence[Sequence[float]], tolerance: float
) -> None:
    """Raise ModelError where the sampler's log-probabilities are not those of the trainer's weights."""
    gaps = [
        abs(mine - theirs)
        for sample, row in zip(samples, trainer_logprobs, strict=True)
        for mine, theirs in zip(sample.logprobs, row, strict=True)
    ]
    if gaps and not fmean(gaps) <= tolerance:  # a NaN is a mismatch too
        raise ModelError(
            "sampling.backend = 'vllm': sampler and trainer disagree; their log-probabilities of "
            f"{len(gaps)} tokens differ by {fmean(gaps):.2g} on average and {max(gaps):.2g} at most, "
            f"accepted is {tolerance:g} on average. vLLM's weights are stale, or it computes this model "
            "otherwise; take sampling.backend: native"
        )


class Request(NamedTuple):
    """One response to be drawn."""

    context: list[int]
    room: int  # tokens at most
    seed: int


class CheckedSampler(ABC):
    """What samples instead of the policy, and is held to the policy's log-probabilities."""

    def __init__(self, config: Config, stops: list[int], context_length: int) -> None:
        self.tolerance = TOLERANCE[config.model.dtype]
        self.verified = False  # whether the trainer has confirmed samples of these weights
        self.stops, self.context_length = stops, context_length

    @abstractmethod
    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Drawn]:
        """The responses in order; where top_p < 1, with log-probabilities of the truncated distribution."""

    @abstractmethod
    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take over the trainer's weights, which come under their Hugging Face names."""

    @abstractmethod
    def sleep(self) -> None:
        """Give memory to the trainer, where both use the same."""

    @abstractmethod
    def wake(self) -> None:
        """Take it back; new weights are to come next."""

    def sample_verified(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
        score: Score,
    ) -> list[list[Sample]]:
        """As the engine's `sample`; after a sync some of the samples must agree with the trainer's `score`.

        vLLM renormalises what top-p leaves and does not say by how much, so such samples get their
        log-probabilities from the trainer, and others are drawn for the check.
        """
        drawn = self.sample(contexts, counts, params, seed)
        pairs = _pairs(contexts, drawn)
        if pairs and not self.verified:
            probes = pairs[:: math.ceil(len(pairs) / PROBES)]
            if params.top_p < 1:
                asked = [context for context, _ in probes]
                whole = replace(params, top_p=1.0)
                probes = _pairs(asked, self.sample(asked, [1] * len(asked), whole, seed))
            again = score([(context, one.tokens) for context, one in probes], params.temperature)
            check_parity([one for _, one in probes], again, self.tolerance)
            self.verified = True
        if params.top_p < 1:
            rows = score([(context, one.tokens) for context, one in pairs], params.temperature)
            for (_, one), row in zip(pairs, rows, strict=True):
                one.logprobs = row
        return drawn

    def sample(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
    ) -> list[list[Sample]]:
        """As the engine's, but with top_p < 1 the log-probabilities are of the truncated distribution."""
        requests, places, rng = [], [], random.Random(seed)
        for place, (context, count) in enumerate(zip(contexts, counts, strict=True)):
            room = min(params.max_tokens, self.context_length - len(context))
            if room < 1:
                raise ConfigError(
                    f"sampling.backend = 'vllm': a prompt of {len(context)} tokens leaves no room in its "
                    f"context of {self.context_length}; shorten the task's problems, lower fast.max_chars "
                    "or raise the server's --max-model-len"
                )
            requests += [Request(context, room, rng.getrandbits(63)) for _ in range(count)]
            places += [place] * count
        results: list[list[Sample]] = [[] for _ in contexts]
        for place, (tokens, logprobs) in zip(places, self.draw(requests, params), strict=True):
            if not all(map(math.isfinite, logprobs)):
                raise ModelError(
                    "sampling.backend = 'vllm': the policy's logits are not finite: training diverged; "
                    "lower slow.lr or slow.clip"
                )
            results[place].append(Sample(tokens, logprobs, tokens[-1] not in self.stops))
        return results


def _pairs(
    contexts: Sequence[list[int]], drawn: Sequence[Sequence[Sample]]
) -> list[tuple[list[int], Sample]]:
    return [(context, one) for context, row in zip(contexts, drawn, strict=True) for one in row]
