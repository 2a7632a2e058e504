"""The task protocol: what is learned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

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
