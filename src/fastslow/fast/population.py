"""Who stays in the population: evidence per prompt, and the top K of the Pareto frontier."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from fastslow.rollout import Prompt, Rollout, sentences

PRIOR = 8.0  # rollouts' worth of belief in the average candidate; tames a lucky handful


def prompt_id(text: str) -> str:
    """A short name that depends on the text alone, so that equal prompts are one prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def make_prompt(text: str, parent: str | None = None, born: int = 0) -> Prompt:
    return Prompt(prompt_id(text), text, parent, born)


@dataclass
class Evidence:
    """All that is known of each prompt in one fast phase: rewards by problem, and earlier ones.

    `earlier` holds rewards of the last RL step's fresh rollouts, made under all but the current policy:
    they count towards a survivor's mean and not towards the instances that it wins. `complaints` counts the
    sentences of each rollout's feedback: where every reward is 0, fewer of them is progress.
    """

    rewards: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    complaints: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    earlier: dict[str, list[float]] = field(default_factory=dict)

    def add(self, rollouts: Iterable[Rollout]) -> None:
        for rollout in rollouts:
            self.rewards[rollout.prompt_id][rollout.problem_id].append(rollout.reward)
            self.complaints[rollout.prompt_id].append(complaints(rollout))

    def pooled(self, prompt: str) -> list[float]:
        """Every reward of a prompt, one entry a rollout."""
        fresh = [reward for rewards in self.rewards[prompt].values() for reward in rewards]
        return fresh + self.earlier.get(prompt, [])

    def by_problem(self, prompt: str) -> dict[str, float]:
        return {problem: fmean(rewards) for problem, rewards in self.rewards[prompt].items()}


def complaints(rollout: Rollout) -> int:
    return len(sentences(rollout.feedback))


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt with its shrunken mean reward and the number of anchors on which none beats it."""

    prompt: Prompt
    score: float
    wins: int
    rollouts: int


def rank(candidates: Sequence[Prompt], evidence: Evidence) -> list[Scored]:
    """All distinct candidates, best first: frontier members before dominated ones.

    Within each part by mean reward, then by anchors won; ties go to the prompt whose rollouts drew
    fewer sentences of feedback, then to the shorter text, then to the older. Means are shrunk
    towards the average over candidates by `PRIOR` rollouts.
    """
    unique = list({prompt.id: prompt for prompt in reversed(candidates)}.values())[::-1]
    cells = {prompt.id: evidence.by_problem(prompt.id) for prompt in unique}
    pools = {prompt.id: evidence.pooled(prompt.id) for prompt in unique}
    everything = [reward for pool in pools.values() for reward in pool]
    centre = fmean(everything) if everything else 0.0
    best: dict[str, float] = {}
    for cell in cells.values():
        for problem, value in cell.items():
            best[problem] = max(value, best.get(problem, value))
    scored = []
    for prompt in unique:
        pool = pools[prompt.id]
        mean = (sum(pool) + PRIOR * centre) / (len(pool) + PRIOR)
        wins = sum(value >= best[problem] for problem, value in cells[prompt.id].items())
        scored.append(Scored(prompt, mean, wins, len(pool)))
    order = {prompt.id: place for place, prompt in enumerate(unique)}
    return sorted(
        scored,
        key=lambda item: (
            _dominated(item.prompt.id, cells),
            -item.score,
            -item.wins,
            fmean(evidence.complaints[item.prompt.id] or [0]),
            len(item.prompt.text),
            order[item.prompt.id],
        ),
    )


def top_k(ranked: Sequence[Scored], k: int, floor: float) -> list[Scored]:
    """The first K, without those whose score is below `floor` times the best one's (if that is > 0)."""
    best = max(item.score for item in ranked)
    return [item for item in ranked if best <= 0 or item.score >= floor * best][:k]


def _dominated(candidate: str, cells: dict[str, dict[str, float]]) -> bool:
    """Whether another is at least as good on every anchor they share and better on one."""
    mine = cells[candidate]
    for other, theirs in cells.items():
        shared = mine.keys() & theirs.keys()
        if other == candidate or not shared or len(shared) < len(mine):
            continue
        if all(theirs[problem] >= mine[problem] for problem in shared) and any(
            theirs[problem] > mine[problem] for problem in shared
        ):
            return True
    return False
