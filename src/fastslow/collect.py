"""Rollouts: prompts and problems to the engine, responses to the task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from fastslow.engine.base import Engine, SamplingParams
from fastslow.reuse import ReuseCache
from fastslow.rollout import Group, Problem, Prompt, Rollout
from fastslow.tasks.base import Task, judge

Pair = tuple[Prompt, Problem]


def derive(seed: int, *names: object) -> int:
    """A seed for one purpose ("rl", step 12). Every draw of a run comes from such a key, so a resumed
    run needs no generator's state and repeats itself exactly."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def roll_out(
    engine: Engine,
    task: Task,
    pairs: Sequence[Pair],
    counts: Sequence[int],
    params: SamplingParams,
    seed: int,
) -> list[list[Rollout]]:
    """`counts[i]` scored rollouts of `pairs[i]`, all generated in one call."""
    contexts = [engine.render(prompt.text, problem.prompt) for prompt, problem in pairs]
    drawn = engine.sample(contexts, counts, params, seed)
    results: list[list[Rollout]] = []
    for (prompt, problem), context, samples in zip(pairs, contexts, drawn, strict=True):
        row = []
        for sample in samples:
            text = engine.decode(sample.tokens)
            score = judge(task, problem, text)
            row.append(
                Rollout(
                    problem_id=problem.id,
                    prompt_id=prompt.id,
                    context=context,
                    tokens=sample.tokens,
                    logprobs=sample.logprobs,
                    mask=[1] * len(sample.tokens),
                    text=text,
                    policy_version=engine.version,
                    truncated=sample.truncated,
                    reward=score.reward,
                    feedback=score.feedback,
                )
            )
        results.append(row)
    return results


def collect_groups(
    engine: Engine,
    task: Task,
    problems: Sequence[Problem],
    population: Sequence[Prompt],
    slots: int,
    group: int,
    cache: ReuseCache,
    params: SamplingParams,
    seed: int,
) -> list[Group]:
    """G rollouts per problem, G / `slots` for each slot of the population, from the cache where it can.

    A population with fewer prompts than slots fills them in turn, its best first.
    """
    share: dict[str, int] = {}
    for slot in range(slots):
        prompt = population[slot % len(population)]
        share[prompt.id] = share.get(prompt.id, 0) + group // slots
    groups = [Group(problem) for problem in problems]
    pairs: list[Pair] = []
    counts: list[int] = []
    for place, problem in enumerate(problems):
        for prompt in population[: len(share)]:
            reused = cache.take(problem.id, prompt.id, share[prompt.id])
            groups[place].rollouts += reused
            pairs.append((prompt, problem))
            counts.append(share[prompt.id] - len(reused))
    fresh = roll_out(engine, task, pairs, counts, params, seed)
    for index, rollouts in enumerate(fresh):
        groups[index // len(share)].rollouts += rollouts
    return groups
