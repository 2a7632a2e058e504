"""The task protocol: what is learned."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from fastslow.errors import TaskError
from fastslow.rollout import Problem, Score

Split = Literal["train", "test"]


class Task(ABC):
    """A source of problems and the judge of their answers. Subclass it to bring your own.

    A subclass sets `name` and `seed_prompt` (the system prompt from which evolution starts) and
    implements `problems` and `score`. Keyword arguments of its constructor come from `task.args`.
    """

    name: str = ""
    seed_prompt: str = "You are a helpful assistant. Solve the task."

    @abstractmethod
    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of "train" or "test", in a fixed order, the same at every call."""

    @abstractmethod
    def score(self, problem: Problem, response: str) -> Score:
        """Judge one response. Must be total: any text a model can write gets a Score."""


def judge(task: Task, problem: Problem, response: str) -> Score:
    """`task.score`, held to its promise; raises TaskError where it breaks it."""
    place = f"task {task.name or type(task).__name__!r}, problem {problem.id!r}"
    try:
        score = task.score(problem, response)
    except Exception as error:  # the user's code
        raise TaskError(
            f"{place}: score raised {type(error).__name__}: {error} on the response {response[:80]!r}"
        ) from error
    if not isinstance(score, Score) or not math.isfinite(score.reward):
        raise TaskError(
            f"{place}: score returned {score!r}, expected Score(finite reward, feedback)"
        )
    return score
