"""Rollouts: prompts and problems to the engine, responses to the task."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from fastslow.engine.base import Engine, Sample, SamplingParams, Which
from fastslow.engine.world import join
from fastslow.reuse import ReuseCache
from fastslow.rollout import THOUGHTS, Group, Problem, Prompt, Rollout, Score
from fastslow.tasks.base import Task, judge

Pair = tuple[Prompt, Problem]

UNDECIDED = (
    "The response reached its longest length before the final answer. Answer in fewer turns."
)


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
    which: Which = "policy",
) -> list[list[Rollout]]:
    """`counts[i]` scored rollouts of `pairs[i]`; each turn of all that still go on is one call.

    `params.max_tokens` bounds a whole rollout, replies of its environment included.
    """
    contexts = [engine.render(prompt.text, problem.prompt) for prompt, problem in pairs]
    episodes = [
        [Episode(engine, task, *pair, context) for _ in range(count)]
        for pair, context, count in zip(pairs, contexts, counts, strict=True)
    ]
    budget = engine.thinking.budget if engine.thinking else params.max_tokens
    begun = replace(params, max_tokens=min(budget, params.max_tokens))
    drawn = engine.sample(contexts, counts, begun, seed, which)
    live = [episode for row in episodes for episode in row]
    samples = [sample for row in drawn for sample in row]
    turn = 0
    while live:
        pairs_of = zip(live, samples, strict=True)
        said = [(episode, episode.speak(sample, params.max_tokens)) for episode, sample in pairs_of]
        done = [(episode, turn) for episode, turn in said if turn is not None]
        outcomes = join().decided(judged)(task, done)
        for (episode, _), outcome in zip(done, outcomes, strict=True):
            episode.hear(outcome, params.max_tokens)
        live = [episode for episode in live if not episode.ended]
        if live:
            turn += 1
            sequences = [episode.rollout.context + episode.rollout.tokens for episode in live]
            left = params.max_tokens - min(len(episode.rollout.tokens) for episode in live)
            shorter = replace(params, max_tokens=left)
            rows = engine.sample(sequences, [1] * len(live), shorter, derive(seed, turn), which)
            samples = [row[0] for row in rows]
    return [[episode.rollout for episode in row] for row in episodes]


def judged(task: Task, turns: Sequence[tuple[Episode, str]]) -> list[str | Score]:
    """What each episode's environment makes of the policy's turn: of its answer, not of its thoughts."""
    return [
        judge(task, episode.problem, episode.environment, THOUGHTS.sub("", turn))
        for episode, turn in turns
    ]


class Episode:
    """A rollout in the making: the policy's turns and, masked, its environment's."""

    def __init__(
        self, engine: Engine, task: Task, prompt: Prompt, problem: Problem, context: list[int]
    ) -> None:
        self.engine, self.problem = engine, problem
        self.environment = task.environment(problem)
        self.ended = False
        self.turn: list[int] = []  # the tokens of the turn in the making
        self.hurried = False  # whether its thinking has been interrupted
        self.rollout = Rollout(
            problem_id=problem.id,
            prompt_id=prompt.id,
            context=context,
            tokens=[],
            logprobs=[],
            mask=[],
            text="",
            policy_version=engine.version,
        )

    def speak(self, sample: Sample, limit: int) -> str | None:
        """Add what the policy wrote; returns the turn's text, None while that goes on."""
        rollout = self.rollout
        room = limit - len(rollout.tokens)
        rollout.truncated = sample.truncated or len(sample.tokens) > room
        tokens = sample.tokens[:room]
        self._extend(tokens, sample.logprobs[:room], 1)
        self.turn += tokens
        if self._interrupted(limit):
            return None
        turn, self.turn = self.engine.decode(self.turn), []
        rollout.text += turn
        return turn

    def _interrupted(self, limit: int) -> bool:
        """Whether the turn was cut at its budget for thinking and goes on."""
        thinking, rollout = self.engine.thinking, self.rollout
        if thinking is None or self.hurried or not rollout.truncated:
            return False
        self.hurried = True
        if "</think>" not in self.engine.decode(self.turn):  # else it was answering already
            close = thinking.close[: limit - len(rollout.tokens)]
            self._extend(close, [0.0] * len(close), 0)
            self.turn += close
        rollout.truncated = False
        return True

    def hear(self, outcome: str | Score, limit: int) -> None:
        """Add what the environment makes of that turn: a reply, or the end."""
        rollout = self.rollout
        if isinstance(outcome, str):
            rollout.text += f"\n[reply] {outcome}\n"
            reply = self.engine.render_reply(outcome)
            if rollout.truncated or len(rollout.tokens) + len(reply) >= limit:
                rollout.truncated = True
                outcome = Score(0.0, f"{UNDECIDED} Its last reply was: {outcome}")
            else:
                self._extend(reply, [0.0] * len(reply), 0)
                return
        rollout.reward, rollout.feedback, self.ended = outcome.reward, outcome.feedback, True

    def _extend(self, tokens: list[int], logprobs: list[float], bit: int) -> None:
        self.rollout.tokens += tokens
        self.rollout.logprobs += logprobs
        self.rollout.mask += [bit] * len(tokens)


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
