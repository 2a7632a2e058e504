"""The nouns of Fast-Slow Training: what the loop passes around. No behaviour beyond their own facts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

THOUGHTS = re.compile(r".*</think>|<think>.*", re.DOTALL)  # what precedes an answer, or never ended
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Problem:
    """One question. `id` is unique within its task and split; `answer` is whatever the scorer needs."""

    id: str
    prompt: str
    answer: Any


@dataclass(frozen=True, slots=True)
class Score:
    """What a task says of a response: a reward (0..1 by convention) and a text to act on."""

    reward: float
    feedback: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A member of the population: fast weights as text.

    `parent` is the id of the prompt it was evolved from (None for a seed), `born` the cycle of its birth.
    """

    id: str
    text: str
    parent: str | None = None
    born: int = 0


@dataclass(slots=True)
class Rollout:
    """One response with everything that a later update needs to correct for its age.

    `context` holds the prompt's token ids, `tokens` the response's. `logprobs` are the behaviour
    log-probabilities recorded when each token was sampled (one per response token); `mask` is 1 where
    the policy wrote the token and 0 where a tool or an environment did. `policy_version` counts the
    updates made before it was sampled. `truncated` says that it ran into the length limit.
    """

    problem_id: str
    prompt_id: str
    context: list[int]
    tokens: list[int]
    logprobs: list[float]
    mask: list[int]
    text: str
    policy_version: int
    truncated: bool = False
    reward: float = 0.0
    feedback: str = ""
    reused: bool = False


@dataclass(slots=True)
class Group:
    """All rollouts of one problem in one step: G of them, each prompt of the population G/K times."""

    problem: Problem
    rollouts: list[Rollout] = field(default_factory=list)

    @property
    def rewards(self) -> list[float]:
        return [rollout.reward for rollout in self.rollouts]


def sentences(text: str) -> list[str]:
    """The sentences of a prompt or a feedback, in order."""
    return [sentence for sentence in SENTENCE_END.split(text.strip()) if sentence]
