"""Rollouts that the fast phase already paid for (FST paper, appendix F)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from fastslow.rollout import Rollout


class ReuseCache:
    """GEPA's rollouts by (problem, prompt), each handed out at most once and only within its cycle."""

    def __init__(self, rollouts: Iterable[Rollout] = ()) -> None:
        self._shelf: defaultdict[tuple[str, str], deque[Rollout]] = defaultdict(deque)
        self.add(rollouts)

    def add(self, rollouts: Iterable[Rollout]) -> None:
        for rollout in rollouts:
            self._shelf[rollout.problem_id, rollout.prompt_id].append(rollout)

    def take(self, problem: str, prompt: str, count: int) -> list[Rollout]:
        """Up to `count` rollouts of the pair, oldest first, marked as reused and forgotten here."""
        shelf = self._shelf.get((problem, prompt))
        taken = [shelf.popleft() for _ in range(min(count, len(shelf)))] if shelf else []
        for rollout in taken:
            rollout.reused = True
        return taken

    def keep(self, prompts: set[str]) -> None:
        """Forget the rollouts of prompts that did not make it into the population."""
        for key in [key for key in self._shelf if key[1] not in prompts]:
            del self._shelf[key]

    def clear(self) -> None:
        self._shelf.clear()

    def rollouts(self) -> list[Rollout]:
        """What is still unused, in a fixed order, for a checkpoint."""
        return [rollout for shelf in self._shelf.values() for rollout in shelf]
