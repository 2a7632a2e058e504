"""What a policy is worth on held-out problems: mean@n, best@n, KL to the base, entropy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from fastslow.engine.base import Engine, SamplingParams
from fastslow.rollout import Problem, Prompt
from fastslow.tasks.base import Task, judge


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`mean` and `best` are mean@n and best@n; `stderr` is the mean's standard error over problems."""

    mean: float
    best: float
    stderr: float
    n: int
    problems: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Drift:
    """Per token, on responses sampled from the policy: KL(policy || base) and the policy's entropy."""

    kl: float
    entropy: float


def evaluate(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    n: int,
    params: SamplingParams,
    seed: int,
) -> Evaluation:
    """n responses to each problem, the prompts taking turns, so that the mean is over the population.

    The turns shift by one from problem to problem: with fewer samples than prompts each is still heard.
    """
    pairs = [
        (place, prompts[(place + turn) % len(prompts)])
        for place in range(len(problems))
        for turn in range(n)
    ]
    contexts = [engine.render(prompt.text, problems[place].prompt) for place, prompt in pairs]
    counts = Counter(map(tuple, contexts))
    drawn = engine.sample([list(context) for context in counts], [*counts.values()], params, seed)
    pools = dict(zip(counts, drawn, strict=True))
    rewards: list[list[float]] = [[] for _ in problems]
    for (place, _), context in zip(pairs, contexts, strict=True):
        text = engine.decode(pools[tuple(context)].pop().tokens)
        rewards[place].append(judge(task, problems[place], text).reward)
    means = [fmean(row) for row in rewards]
    spread = math.sqrt(sum((m - fmean(means)) ** 2 for m in means) / max(1, len(means) - 1))
    return Evaluation(
        mean=fmean(means),
        best=fmean([max(row) for row in rewards]),
        stderr=spread / math.sqrt(len(means)),
        n=n,
        problems=len(problems),
    )


def drift(
    engine: Engine,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    max_tokens: int,
    seed: int,
) -> Drift:
    """KL to the base and entropy, both models under the same context, at temperature 1.

    One response a problem, the prompts taking turns. KL is estimated per token by
    `exp(d) - d - 1`, `d = log base - log policy` (unbiased, never negative), and averaged over tokens.
    """
    contexts = [
        engine.render(prompts[place % len(prompts)].text, problem.prompt)
        for place, problem in enumerate(problems)
    ]
    params = SamplingParams(max_tokens=max_tokens)
    samples = engine.sample(contexts, [1] * len(contexts), params, seed)
    sequences = [(context, row[0].tokens) for context, row in zip(contexts, samples, strict=True)]
    policy = [value for row in engine.logprobs(sequences, "policy") for value in row]
    base = [value for row in engine.logprobs(sequences, "base") for value in row]
    gaps = [b - p for p, b in zip(policy, base, strict=True)]
    return Drift(kl=fmean(math.exp(d) - d - 1 for d in gaps), entropy=-fmean(policy))
