"""The fast channel: population in, population out. GEPA's search behind a small protocol.

The search itself is the `gepa` package through its public protocols. One object serves as its
adapter, sampling strategy, reflection strategy, acceptance criterion and stopper, which is what a
population needs that a single GEPA run does not have:

- warm start: the whole previous population is scored in one batch, then enters GEPA's pool in its first
  iteration as proposals with empty minibatches, at no cost;
- parents show rollouts that exist already, so a proposal costs its own minibatch and no more;
- a phase never overspends its budget, and a reflector that is down ends it with its reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gepa
from gepa.core.adapter import EvaluationBatch
from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal
from gepa.strategies.proposal_sampling import ProposalTask

from fastslow.config import FastConfig
from fastslow.errors import ReflectorError
from fastslow.fast.population import Evidence, Scored, complaints, make_prompt, rank, top_k
from fastslow.fast.reflect import Example, Job, Reflector, problem_with
from fastslow.rollout import Problem, Prompt, Rollout

COMPONENT = "system_prompt"
IDLE = 8  # iterations in a row that evaluate nothing before the phase gives up

Evaluate = Callable[[Sequence[tuple[Prompt, Problem]]], list[Rollout]]


@dataclass
class FastResult:
    """One fast phase: the new population best first, all that was scored, and what it took."""

    population: list[Scored]
    scored: list[Scored]
    rollouts: int
    proposed: int
    rejected: Counter[str] = field(default_factory=Counter)
    saturated: bool = False


class PromptOptimizer(Protocol):
    """What the loop asks of a fast channel; GEPA is one, another optimiser can take its place."""

    def evolve(
        self,
        population: Sequence[Prompt],
        anchors: Sequence[Problem],
        evaluate: Evaluate,
        reflector: Reflector,
        rng: random.Random,
        cycle: int,
        earlier: dict[str, list[float]],
    ) -> FastResult:
        """Evolve `population` on `anchors` under the current policy.

        `evaluate` makes one rollout per (prompt, problem) pair, all in one batch; every call counts
        against the budget. `earlier` holds each survivor's rewards from the last RL step.
        Raises ReflectorError when the reflector is down.
        """
        ...


@dataclass
class Gepa:
    """GEPA with a population (arXiv 2507.19457; FST: section 3 of arXiv 2605.12484)."""

    config: FastConfig

    def evolve(
        self,
        population: Sequence[Prompt],
        anchors: Sequence[Problem],
        evaluate: Evaluate,
        reflector: Reflector,
        rng: random.Random,
        cycle: int,
        earlier: dict[str, list[float]],
    ) -> FastResult:
        phase = _Phase(
            self.config, list(population), list(anchors), evaluate, reflector, rng, cycle
        )
        phase.evidence.earlier = {key: list(value) for key, value in earlier.items()}
        phase.warm_up()
        saturated = phase.saturated()
        if not saturated:
            gepa.optimize(
                seed_candidate={COMPONENT: population[0].text},
                trainset=list(range(len(anchors))),
                valset=list(range(len(anchors))),
                adapter=phase,  # type: ignore[arg-type]
                reflection_strategy=phase,
                sampling_strategy=phase,
                acceptance_criterion=phase,
                stop_callbacks=phase.finished,  # type: ignore[arg-type]
                skip_perfect_score=False,
                use_merge=self.config.merge,
                track_best_outputs=False,
                logger=_Silent(),
                seed=rng.randrange(2**31),
            )
        if phase.error is not None:
            raise phase.error
        scored = rank(list(phase.pool.values()), phase.evidence)
        return FastResult(
            population=top_k(scored, self.config.k, self.config.floor),
            scored=scored,
            rollouts=phase.spent,
            proposed=phase.proposed,
            rejected=phase.rejected,
            saturated=saturated,
        )


class _Silent:
    def log(self, message: str) -> None:
        """GEPA prints some 70 KB a run by default."""


class _Phase:
    """One fast phase as GEPA sees it: adapter, sampling, reflection, acceptance and stopping."""

    propose_new_texts = None  # GEPA asks for the attribute; proposals come from `reflect_many`

    def __init__(
        self,
        config: FastConfig,
        members: list[Prompt],
        anchors: list[Problem],
        evaluate: Evaluate,
        reflector: Reflector,
        rng: random.Random,
        cycle: int,
    ) -> None:
        self.config, self.members, self.anchors = config, members, anchors
        self.minibatch = min(config.minibatch, len(anchors) - 1)  # so that a sweep is told from it
        self.sample, self.reflector, self.rng, self.cycle = evaluate, reflector, rng, cycle
        self.budget = config.budget if cycle else config.initial_budget or config.budget
        self.evidence = Evidence()
        self.pool = {prompt.id: prompt for prompt in members}  # scored on all anchors
        self.drafts: dict[str, Prompt] = {}  # every valid text proposed in this phase
        self.rollouts: dict[tuple[str, int], Rollout] = {}  # the latest per (prompt, anchor)
        self.unread: set[str] = set()  # members scored by `warm_up`, not yet told to GEPA
        self.rejected: Counter[str] = Counter()
        self.spent = self.proposed = self.idle = 0
        self.started = False
        self.waiting: list[Prompt] = []  # members that enter GEPA's pool in this iteration
        self.error: ReflectorError | None = None
        self.deck: list[int] = []

    # -- evaluation: GEPA's adapter ------------------------------------------------------------

    def warm_up(self) -> None:
        """Score the whole previous population under the current policy, in one batch."""
        everywhere = range(len(self.anchors))
        self._roll([(prompt, place) for prompt in self.members for place in everywhere])
        self.unread = set(self.pool)

    def saturated(self) -> bool:
        means = [self.evidence.pooled(prompt.id) for prompt in self.members]
        return all(sum(pool) >= self.config.saturation * len(pool) for pool in means)

    def _roll(self, pairs: list[tuple[Prompt, int]]) -> None:
        rollouts = self.sample([(prompt, self.anchors[place]) for prompt, place in pairs])
        self.spent += len(rollouts)
        self.evidence.add(rollouts)
        for (prompt, place), rollout in zip(pairs, rollouts, strict=True):
            self.rollouts[prompt.id, place] = rollout

    def evaluate(
        self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(
        self, items: list[tuple[dict[str, str], list[int]]], *, capture_traces: bool = True
    ) -> list[EvaluationBatch]:
        """All pairs of one stage in one call; what is known already is not rolled out again."""
        wanted: list[tuple[Prompt, int]] = []
        calls = []
        for candidate, batch in items:
            prompt = self._prompt(candidate[COMPONENT])
            sweep = len(batch) == len(self.anchors)
            known = prompt.id in self.unread if sweep else prompt.id in self.pool
            if sweep:
                self.unread.discard(prompt.id)
                self.pool[prompt.id] = prompt
            new = [] if known else [(prompt, place) for place in batch]
            wanted += new
            calls.append(len(new))
        if wanted:
            self.idle = 0
            self._roll(wanted)
        return [
            self._batch(self._prompt(candidate[COMPONENT]), batch, count)
            for (candidate, batch), count in zip(items, calls, strict=True)
        ]

    def _batch(self, prompt: Prompt, batch: list[int], calls: int) -> EvaluationBatch:
        rollouts = [self.rollouts[prompt.id, place] for place in batch]
        return EvaluationBatch(
            outputs=[None] * len(batch),
            scores=[rollout.reward for rollout in rollouts],
            # A warm start's minibatch is empty; GEPA skips a proposal that has no trajectory at all.
            trajectories=list(zip(batch, rollouts, strict=True)) or [None],
            num_metric_calls=calls,
        )

    def _prompt(self, text: str) -> Prompt:
        prompt = make_prompt(text, born=self.cycle)
        return self.pool.get(prompt.id) or self.drafts.get(prompt.id) or prompt

    # -- proposals: GEPA's sampling and reflection strategies --------------------------------------

    def sample_tasks(
        self, state: Any, candidate_selector: Any, batch_sampler: Any, trainset: Any
    ) -> list[ProposalTask]:
        """First the rest of the old population, then parents by GEPA's Pareto rule on fresh minibatches."""
        if not self.started:
            self.started = True
            first = state.program_candidates[0]
            # One task each: GEPA judges proposals of one iteration side by side.
            self.waiting = list(self.members[1:])
            if self.waiting:
                return [ProposalTask(0, first, [], []) for _ in self.waiting]
        self.waiting = []
        self.idle += 1
        tasks = []
        for _ in range(min(self.config.proposals, self._affordable())):
            parent = candidate_selector.select_candidate_idx(state)
            batch = self._deal()
            tasks.append(ProposalTask(parent, state.program_candidates[parent], batch, batch))
        return tasks

    def _deal(self) -> list[int]:
        """A minibatch of anchors, disjoint from the others until all have been dealt."""
        if len(self.deck) < self.minibatch:
            self.deck = self.rng.sample(range(len(self.anchors)), len(self.anchors))
        batch, self.deck = self.deck[: self.minibatch], self.deck[self.minibatch :]
        return batch

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch, components: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        traces = [trace for trace in eval_batch.trajectories or [] if trace is not None]
        return {
            COMPONENT: [{"place": place, "rollout": rollout} for place, rollout in traces]
            or [{"place": -1}]
        }

    def reflect_many(self, jobs: list[Any]) -> list[tuple[ReflectionProposal, Any]]:
        if self.waiting:
            texts: list[str | None] = [prompt.text for prompt in self.waiting]
        else:
            texts = self._propose(jobs)
        return [
            (ReflectionProposal({} if text is None else {COMPONENT: text}), self) for text in texts
        ]

    def reflect(
        self, candidate: Any, dataset: Any, components: Any
    ) -> tuple[ReflectionProposal, Any]:
        return self.reflect_many([(candidate, dataset, components)])[0]

    def _propose(self, jobs: list[Any]) -> list[str | None]:
        """Ask the reflector; keep what is worth evaluating. GEPA would swallow an exception here."""
        if self.error is not None:
            return [None] * len(jobs)
        asked = [
            Job(candidate[COMPONENT], [self._example(**row) for row in dataset[COMPONENT]])
            for candidate, dataset, _ in jobs
        ]
        try:
            answers = self.reflector.propose(asked, self.rng)
        except ReflectorError as error:
            self.error = error
            return [None] * len(jobs)
        self.proposed += len(answers)
        accepted: list[str | None] = []
        for job, answer in zip(asked, answers, strict=True):
            known = {prompt.text for prompt in (*self.pool.values(), *self.drafts.values())}
            reason = problem_with(answer, job.prompt, known, self.config.max_chars)
            if reason is None and answer is not None:
                parent = self._prompt(job.prompt)
                draft = make_prompt(answer, parent.id, self.cycle)
                self.drafts[draft.id] = draft
                accepted.append(answer)
            else:
                self.rejected[reason or "unreadable"] += 1
                accepted.append(None)
        return accepted

    def _example(self, place: int, rollout: Rollout) -> Example:
        return Example(self.anchors[place].prompt, rollout.text, rollout.reward, rollout.feedback)

    # -- acceptance and stopping -------------------------------------------------------------------

    def should_accept(self, proposal: Any, state: Any) -> bool:
        """Better than the parent on the minibatch; the old population always.

        Where both are at zero, the child passes unless its rollouts drew more feedback: strict
        acceptance stalls there for cycles.
        """
        before, after = proposal.eval_before, proposal.eval_after
        if not after.scores:
            return True
        if sum(before.scores) == sum(after.scores) == 0:
            return self.config.accept_zero_ties and _complaints(after) <= _complaints(before)
        return sum(after.scores) > sum(before.scores)

    def finished(self, state: Any) -> bool:
        waiting = not self.started and len(self.members) > 1
        return self.error is not None or (
            not waiting and (self._affordable() < 1 or self.idle >= IDLE)
        )

    def _affordable(self) -> int:
        """Children that can be carried through minibatch and sweep with what is left of the budget."""
        return (self.budget - self.spent) // (self.minibatch + len(self.anchors))


def _complaints(evaluation: Any) -> int:
    return sum(complaints(rollout) for _, rollout in evaluation.trajectories)
