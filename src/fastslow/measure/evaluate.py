"""What a policy is worth on held-out problems: mean@n, best@n, KL to the base, entropy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from fastslow.collect import roll_out
from fastslow.engine.base import Engine, SamplingParams, Which
from fastslow.rollout import Problem, Prompt, Rollout
from fastslow.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`mean` and `best` are mean@n and best@n; `stderr` is the mean's standard error over problems.

    `parts` has the mean of each part of a mixture or stream of tasks; it is empty for a single task.
    """

    mean: float
    best: float
    stderr: float
    n: int
    problems: int
    parts: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Drift:
    """Per token, on responses sampled from the policy: KL(policy || base) and the policy's entropy."""

    kl: float
    entropy: float


def respond(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    views: Mapping[str, Sequence[Prompt]],
    n: int,
    params: SamplingParams,
    seed: int,
    which: Which = "policy",
) -> dict[str, list[list[Rollout]]]:
    """n rollouts of each problem per view, all views sampled side by side; a view's prompts take turns.

    The turns shift by one from problem to problem: with fewer samples than prompts each is still heard.
    """
    counts = Counter(
        (view, place, (place + turn) % len(prompts))
        for view, prompts in views.items()
        for place in range(len(problems))
        for turn in range(n)
    )
    pairs = [(views[view][chosen], problems[place]) for view, place, chosen in counts]
    rows = roll_out(engine, task, pairs, [*counts.values()], params, seed, which)
    found: dict[str, list[list[Rollout]]] = {view: [[] for _ in problems] for view in views}
    for (view, place, _), row in zip(counts, rows, strict=True):
        found[view][place] += row
    return found


def evaluate(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    prompts: Sequence[Prompt],
    n: int,
    params: SamplingParams,
    seed: int,
    which: Which = "policy",
) -> Evaluation:
    """What the policy is worth under a population of prompts, or under one."""
    views = {"population": prompts}
    found = respond(engine, task, problems, views, n, params, seed, which)
    return graded(task, problems, found["population"])


def graded(
    task: Task, problems: Sequence[Problem], rollouts: Sequence[Sequence[Rollout]]
) -> Evaluation:
    """The figures of as many rollouts of each problem."""
    rewards = [[rollout.reward for rollout in row] for row in rollouts]
    means = [fmean(row) for row in rewards]
    parts: dict[str, list[float]] = {}
    for problem, mean in zip(problems, means, strict=True):
        parts.setdefault(task.part(problem), []).append(mean)
    spread = math.sqrt(sum((m - fmean(means)) ** 2 for m in means) / max(1, len(means) - 1))
    return Evaluation(
        mean=fmean(means),
        best=fmean([max(row) for row in rewards]),
        stderr=spread / math.sqrt(len(means)),
        n=len(rewards[0]),
        problems=len(problems),
        parts={} if len(parts) < 2 else {part: fmean(values) for part, values in parts.items()},
    )


def drift(engine: Engine, rollouts: Sequence[Rollout]) -> Drift:
    """KL to the base and entropy on rollouts sampled plainly at temperature 1, by their own log-probs.

    KL is estimated per token of the policy by `exp(d) - d - 1`, `d = log base - log policy` (unbiased
    for the distribution that was sampled from, never negative), and averaged over tokens. The policy's are
    those recorded in sampling; with another sampler than the engine, such as vLLM, its rounding adds to it.
    """
    sequences = [(rollout.context, rollout.tokens) for rollout in rollouts]
    pairs = [
        (own, base)
        for rollout, row in zip(rollouts, engine.logprobs(sequences, "base"), strict=True)
        for own, base, bit in zip(rollout.logprobs, row, rollout.mask, strict=True)
        if bit
    ]
    gaps = [base - own for own, base in pairs]
    return Drift(
        kl=fmean(math.exp(d) - d - 1 for d in gaps), entropy=-fmean(own for own, _ in pairs)
    )
