"""The fast channel: population in, population out. GEPA's search behind a small protocol.

The search itself is the `gepa` package through its public protocols. One object serves as its
adapter, sampling strategy, reflection strategy, acceptance criterion and stopper, which is what a
population needs that a single GEPA run does not have:

- warm start: the whole previous population is scored in one batch, then enters GEPA's pool in its first
  iteration as proposals with empty minibatches, at no cost;
- parents show rollouts that exist already, so a proposal costs its own minibatch and no more;
- while a reflector still writes some answers, the prompts that it has written already are rolled out;
- a phase looks for new prompts only with what its budget leaves after scoring the old ones, and never
  overspends on them; a reflector that is down ends it with its reason.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
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


@dataclass(frozen=True)
class Phase:
    """What a fast phase works with.

    `evaluate` makes one rollout per (prompt, problem) pair, all in one batch, and every rollout counts
    against `budget`. `fits` says whether a prompt leaves the policy room to answer. `earlier` holds
    each survivor's rewards from the rollouts that the last RL step made afresh.
    """

    population: Sequence[Prompt]
    anchors: Sequence[Problem]
    evaluate: Evaluate
    fits: Callable[[str], bool]
    reflector: Reflector
    budget: int
    rng: random.Random
    cycle: int
    earlier: dict[str, list[float]]


class PromptOptimizer(Protocol):
    """What the loop asks of a fast channel; GEPA is one, another optimiser can take its place."""

    def evolve(self, phase: Phase) -> FastResult:
        """Evolve the population on the anchors under the current policy.

        Raises ReflectorError when the reflector is down.
        """
        ...


@dataclass
class Gepa:
    """GEPA with a population (arXiv 2507.19457; FST: section 3 of arXiv 2605.12484)."""

    config: FastConfig

    def evolve(self, phase: Phase) -> FastResult:
        search = _Search(self.config, phase)
        search.warm_up()
        saturated = search.saturated()
        if not saturated:
            size = len(phase.anchors)
            gepa.optimize(
                seed_candidate={COMPONENT: phase.population[0].text},
                trainset=list(range(size)),
                valset=list(range(size, 2 * size)),  # the same anchors; the offset marks a sweep
                adapter=search,  # type: ignore[arg-type]
                reflection_strategy=search,
                sampling_strategy=search,
                acceptance_criterion=search,
                stop_callbacks=search.finished,  # type: ignore[arg-type]
                skip_perfect_score=False,
                track_best_outputs=False,
                logger=_Silent(),
                seed=phase.rng.randrange(2**31),
            )
        if search.error is not None:
            raise search.error
        scored = rank(list(search.pool.values()), search.evidence)
        return FastResult(
            population=top_k(scored, self.config.k, self.config.floor),
            scored=scored,
            rollouts=search.spent,
            proposed=search.proposed,
            rejected=search.rejected,
            saturated=saturated,
        )


class _Silent:
    def log(self, message: str) -> None:
        """GEPA prints some 70 KB a run by default."""


class _Search:
    """One fast phase as GEPA sees it: adapter, sampling, reflection, acceptance and stopping.

    GEPA's items are anchors by place: 0..N-1 in minibatches, N..2N-1 in sweeps over all of them.
    """

    propose_new_texts = None  # GEPA asks for the attribute; proposals come from `reflect_many`

    def __init__(self, config: FastConfig, phase: Phase) -> None:
        self.config, self.phase, self.rng = config, phase, phase.rng
        self.members, self.anchors = list(phase.population), list(phase.anchors)
        self.minibatch = min(config.minibatch, len(self.anchors))
        self.evidence = Evidence(earlier={key: list(v) for key, v in phase.earlier.items()})
        self.pool = {prompt.id: prompt for prompt in self.members}  # scored on all anchors
        self.drafts: dict[str, Prompt] = {}  # every valid text proposed in this phase
        self.rollouts: dict[tuple[str, int], Rollout] = {}  # the latest per (prompt, anchor)
        self.unread: set[str] = set()  # members scored by `warm_up`, not yet told to GEPA
        self.ahead: dict[
            tuple[str, bool], list[Rollout]
        ] = {}  # (prompt, sweep?): not yet told either
        self.rejected: Counter[str] = Counter()
        self.spent = self.proposed = self.idle = 0
        self.started = False
        self.waiting: list[Prompt] = []  # members that enter GEPA's pool in this iteration
        self.error: Exception | None = None
        self.deck: list[int] = []

    # -- evaluation: GEPA's adapter ------------------------------------------------------------

    def warm_up(self) -> None:
        """Score the whole previous population under the current policy, in one batch."""
        everywhere = range(len(self.anchors))
        self._roll([(prompt, place) for prompt in self.members for place in everywhere])
        self.unread = set(self.pool)

    def saturated(self) -> bool:
        pools = [self.evidence.pooled(prompt.id) for prompt in self.members]
        return all(sum(pool) >= self.config.saturation * len(pool) for pool in pools)

    def _roll(self, pairs: list[tuple[Prompt, int]]) -> list[Rollout]:
        rollouts = self.phase.evaluate([(prompt, self.anchors[place]) for prompt, place in pairs])
        self.spent += len(rollouts)
        self.evidence.add(rollouts)
        for (prompt, place), rollout in zip(pairs, rollouts, strict=True):
            self.rollouts[prompt.id, place] = rollout
        return rollouts

    def evaluate(
        self, batch: list[int], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch:
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(
        self, items: list[tuple[dict[str, str], list[int]]], *, capture_traces: bool = True
    ) -> list[EvaluationBatch]:
        """All pairs of one stage in one call; what is known already is not rolled out again."""
        size = len(self.anchors)
        stage: list[tuple[Prompt, list[int], int]] = []  # prompt, places, rollouts it costs
        wanted: list[tuple[Prompt, int]] = []
        for candidate, batch in items:
            prompt = self._prompt(candidate[COMPONENT])
            sweep = bool(batch) and batch[0] >= size
            places = [place % size for place in batch]
            known = prompt.id in (self.unread if sweep else self.pool)
            if sweep:
                self.unread.discard(prompt.id)
                self.pool[prompt.id] = prompt
            made = self.ahead.pop((prompt.id, sweep), None)
            if made is not None:
                self.rollouts |= {
                    (prompt.id, place): r for place, r in zip(places, made, strict=True)
                }
            elif not known:
                wanted += [(prompt, place) for place in places]
            stage.append((prompt, places, 0 if known else len(places)))
        if any(cost for *_, cost in stage):
            self.idle = 0
        if wanted:
            self._roll(wanted)
        return [self._batch(*entry) for entry in stage]

    def _batch(self, prompt: Prompt, places: list[int], calls: int) -> EvaluationBatch:
        traces: list[Any] = [(place, self.rollouts[prompt.id, place]) for place in places]
        return EvaluationBatch(
            outputs=[None] * len(places),
            scores=[rollout.reward for _, rollout in traces],
            # A warm start's minibatch is empty; GEPA skips a proposal that has no trajectory at all.
            trajectories=traces or [None],
            num_metric_calls=calls,
        )

    def _prompt(self, text: str) -> Prompt:
        prompt = make_prompt(text, born=self.phase.cycle)
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
        return {COMPONENT: [{"trace": trace} for trace in eval_batch.trajectories or []]}

    def reflect_many(self, jobs: list[Any]) -> list[tuple[ReflectionProposal, Any]]:
        if self.waiting:
            texts: list[str | None] = [prompt.text for prompt in self.waiting]
        elif self.error is not None:
            texts = [None] * len(jobs)
        else:
            try:
                texts = self._propose(jobs)
            except Exception as error:  # GEPA would swallow it and let the budget burn
                self.error, texts = error, [None] * len(jobs)
        return [
            (ReflectionProposal({} if text is None else {COMPONENT: text}), self) for text in texts
        ]

    def reflect(
        self, candidate: Any, dataset: Any, components: Any
    ) -> tuple[ReflectionProposal, Any]:
        return self.reflect_many([(candidate, dataset, components)])[0]

    def _propose(self, jobs: list[Any]) -> list[str | None]:
        """Ask the reflector; keep what is worth evaluating."""
        asked = [
            Job(candidate[COMPONENT], [self._example(*row["trace"]) for row in dataset[COMPONENT]])
            for candidate, dataset, _ in jobs
        ]
        texts: dict[int, str | None] = {}
        for arrived in self.phase.reflector.propose(asked, self.rng):
            for place, _ in arrived:
                if place in texts or not 0 <= place < len(asked):
                    raise ReflectorError(
                        f"the reflector answered question {place} of 0 to {len(asked) - 1} twice or unasked"
                    )
            new = {place: self._vet(asked[place].prompt, answer) for place, answer in arrived}
            texts |= new
            if len(texts) < len(asked):
                self._go_ahead([(new[place], jobs[place][1][COMPONENT]) for place in new])
        if len(texts) != len(asked):
            raise ReflectorError(
                f"the reflector gave {len(texts)} answers to {len(asked)} questions"
            )
        self.proposed += len(texts)
        return [texts[place] for place in range(len(asked))]

    def _go_ahead(self, children: list[tuple[str | None, list[dict[str, Any]]]]) -> None:
        """Roll out what GEPA will ask of these: minibatches, and sweeps of those that it will accept."""
        tried = [
            (self._prompt(text), [row["trace"] for row in shown])
            for text, shown in children
            if text is not None
        ]
        minibatches = [(child, [place for place, _ in shown]) for child, shown in tried]
        better = [
            child
            for (child, shown), made in zip(tried, self._keep(minibatches, False), strict=True)
            if self._better([before for _, before in shown], made)
        ]
        self._keep([(child, list(range(len(self.anchors)))) for child in better], True)

    def _keep(self, wanted: list[tuple[Prompt, list[int]]], sweep: bool) -> list[list[Rollout]]:
        """Make these rollouts and have them ready for when GEPA asks for them."""
        pairs = [(prompt, place) for prompt, places in wanted for place in places]
        made = iter(self._roll(pairs) if pairs else [])
        kept = [list(islice(made, len(places))) for _, places in wanted]
        for (prompt, _), rollouts in zip(wanted, kept, strict=True):
            self.ahead[prompt.id, sweep] = rollouts
        return kept

    def _vet(self, parent: str, answer: str | None) -> str | None:
        """The proposal if it is worth evaluating; else count why not."""
        known = {prompt.text for prompt in (*self.pool.values(), *self.drafts.values())}
        reason = problem_with(answer, parent, known, self.config.max_chars)
        if reason is None and not self.phase.fits(str(answer)):
            reason = "overlong"
        if reason is not None:
            self.rejected[reason] += 1
            return None
        draft = make_prompt(str(answer), self._prompt(parent).id, self.phase.cycle)
        self.drafts[draft.id] = draft
        return draft.text

    def _example(self, place: int, rollout: Rollout) -> Example:
        return Example(self.anchors[place].prompt, rollout.text, rollout.reward, rollout.feedback)

    # -- acceptance and stopping -------------------------------------------------------------------

    def should_accept(self, proposal: Any, state: Any) -> bool:
        """Better than the parent on the minibatch; the old population always."""
        before, after = proposal.eval_before, proposal.eval_after
        if not after.scores:
            return True
        return self._better(*([r for _, r in found.trajectories] for found in (before, after)))

    def _better(self, before: list[Rollout], after: list[Rollout]) -> bool:
        """Where both are at zero, a child passes unless its rollouts drew more feedback: strict
        acceptance stalls there for cycles."""
        old, new = (sum(rollout.reward for rollout in made) for made in (before, after))
        if old == new == 0:
            drawn = [sum(map(complaints, made)) for made in (before, after)]
            return self.config.accept_zero_ties and drawn[1] <= drawn[0]
        return new > old

    def finished(self, state: Any) -> bool:
        waiting = not self.started and len(self.members) > 1
        return self.error is not None or (
            not waiting and (self._affordable() < 1 or self.idle >= IDLE)
        )

    def _affordable(self) -> int:
        """Children that can be carried through minibatch and sweep with what is left of the budget."""
        return (self.phase.budget - self.spent) // (self.minibatch + len(self.anchors))
