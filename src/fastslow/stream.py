"""The order of training problems: shuffled epochs, without those that the policy has mastered."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from fastslow.errors import ConfigError
from fastslow.rollout import Group, Problem


class ProblemStream:
    """An endless stream over `problems`, its order a function of the seed and the epoch.

    A problem whose group reaches a mean reward of `retire_at` is drawn no more (ScaleRL's
    no-positive-resampling); None keeps all. When too few are left for a lookahead, all come back.
    """

    def __init__(self, problems: Sequence[Problem], seed: int, retire_at: float | None) -> None:
        self.problems = {problem.id: problem for problem in problems}
        if len(self.problems) < len(problems):
            raise ConfigError(
                "task: two problems of the train split have the same id; ids must be unique"
            )
        self.ids = [problem.id for problem in problems]
        self.seed, self.retire_at = seed, retire_at
        self.epoch = self.position = 0
        self.retired: set[str] = set()
        self._order = self._shuffled()

    def _shuffled(self) -> list[str]:
        return random.Random(f"order/{self.seed}/{self.epoch}").sample(self.ids, len(self.ids))

    def take(self, count: int) -> list[Problem]:
        """The next `count` problems."""
        if len(self.ids) - len(self.retired) < count:
            self.retired.clear()
        taken: list[Problem] = []
        while len(taken) < count:
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            problem = self._order[self.position]
            self.position += 1
            if problem not in self.retired:
                taken.append(self.problems[problem])
        return taken

    def learn_from(self, groups: Iterable[Group]) -> None:
        """Retire what the policy has mastered."""
        if self.retire_at is None:
            return
        for group in groups:
            if sum(group.rewards) >= self.retire_at * len(group.rewards):
                self.retired.add(group.problem.id)

    def state(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "retired": sorted(self.retired)}

    def restore(self, state: dict[str, Any]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]
        self.retired = set(state["retired"])
        self._order = self._shuffled()
