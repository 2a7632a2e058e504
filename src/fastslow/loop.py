"""Algorithm 1: Fast-Slow Training (section 3 and appendix B of arXiv 2605.12484), and nothing else.

`rl`, `gepa`, `gepa+rl` and `fst` are this one loop with its two channels switched on or off.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import fmean
from typing import Any, Protocol

from fastslow.collect import collect_groups, derive, roll_out
from fastslow.config import Config
from fastslow.engine.base import Engine, SamplingParams
from fastslow.fast.evolve import FastResult, PromptOptimizer
from fastslow.fast.population import make_prompt
from fastslow.fast.reflect import Reflector
from fastslow.measure.evaluate import drift, evaluate
from fastslow.measure.ratios import ratio_stats
from fastslow.reuse import ReuseCache
from fastslow.rollout import Group, Problem, Prompt, Rollout
from fastslow.run import Run, State
from fastslow.slow.advantage import make_batch
from fastslow.stream import ProblemStream
from fastslow.tasks.base import Task

Row = dict[str, Any]


class Observer(Protocol):
    """Someone who watches: the live display, or nobody."""

    def phase(self, name: str, state: State) -> None: ...

    def step(self, row: Row, state: State) -> None: ...


def fast_phase_due(method: str, cycle: int) -> bool:
    """Whether prompts evolve in this cycle: always, never, or once at the start."""
    return method in ("fst", "gepa") or (method == "gepa+rl" and cycle == 0)


class Loop:
    """One run of Algorithm 1; `train` is the algorithm, the rest its steps."""

    def __init__(
        self,
        config: Config,
        task: Task,
        engine: Engine,
        optimizer: PromptOptimizer,
        reflector: Reflector,
        run: Run,
        observer: Observer,
    ) -> None:
        self.config, self.task, self.engine, self.run = config, task, engine, run
        self.optimizer, self.reflector, self.observer = optimizer, reflector, observer
        self.seed = config.run.seed
        self.seed_prompt = make_prompt(config.task.seed_prompt or task.seed_prompt)
        self.stream = ProblemStream(
            task.problems("train"), self.seed, config.slow.no_positive_resampling
        )
        self.test = list(task.problems("test"))[: config.eval.problems]
        sampling = config.sampling
        self.params = SamplingParams(sampling.temperature, sampling.top_p, sampling.max_tokens)
        self.eval_params = SamplingParams(
            config.eval.temperature, config.eval.top_p, sampling.max_tokens
        )
        self.slots = 1 if config.loop.method == "rl" else config.fast.k
        self.cache = ReuseCache()
        self.state = State([self.seed_prompt])

    def train(self) -> State:
        """Run to the end, from the last checkpoint if there is one."""
        loop = self.config.loop
        self._begin()
        while not self.finished():
            row: Row = {"step": self.state.step + 1, "cycle": self.state.step // loop.cycle}
            place = self.state.step % loop.cycle
            if place == 0:
                lookahead = self.stream.take(loop.cycle * loop.problems)
                self.state.lookahead = [problem.id for problem in lookahead]
                self.cache.clear()
                if fast_phase_due(loop.method, row["cycle"]):
                    row["fast"] = self.evolve(lookahead, row["cycle"])
            if loop.method != "gepa":
                ids = self.state.lookahead[place * loop.problems : (place + 1) * loop.problems]
                row |= self.learn([self.stream.problems[problem] for problem in ids])
            self.state.step += 1
            if self.state.step % self.config.eval.every == 0 or self.finished():
                row["eval"] = self.measure()
            self._end_of_step(row)
        return self.state

    def finished(self) -> bool:
        state, loop = self.state, self.config.loop
        spent = state.spent["rl"] + state.spent["gepa"]
        return state.step >= loop.steps or (loop.rollouts is not None and spent >= loop.rollouts)

    # -- the fast channel ---------------------------------------------------------------------------

    def evolve(self, lookahead: Sequence[Problem], cycle: int) -> Row:
        """Phi_c = top-K of the frontier of GEPA(policy = current theta, seeds = Phi_{c-1})."""
        state, fast = self.state, self.config.fast
        anchors = self._anchors(lookahead)
        calls = 0

        def evaluate_pairs(pairs: Sequence[tuple[Prompt, Problem]]) -> list[Rollout]:
            nonlocal calls
            calls += 1
            seed = derive(self.seed, "gepa", cycle, calls)
            rollouts = [
                row[0]
                for row in roll_out(
                    self.engine, self.task, pairs, [1] * len(pairs), self.params, seed
                )
            ]
            state.spent["gepa"] += len(rollouts)
            if self.config.reuse.enabled:
                self.cache.add(rollouts)
            self.observer.phase("evolving prompts", state)
            return rollouts

        self.observer.phase("evolving prompts", state)
        with self._clock("gepa"):
            result = self.optimizer.evolve(
                state.population,
                anchors,
                evaluate_pairs,
                self.reflector,
                random.Random(derive(self.seed, "evolve", cycle)),
                cycle,
                state.earlier,
            )
        state.population = [scored.prompt for scored in result.population]
        self.cache.keep({prompt.id for prompt in state.population})
        for key, value in asdict(self.reflector.usage).items():
            state.reflection[key] = value
        self._log_prompts(result, cycle)
        return {
            "anchors": len(anchors),
            "rollouts": result.rollouts,
            "proposed": result.proposed,
            "rejected": dict(sorted(result.rejected.items())),
            "saturated": result.saturated,
            "members": {item.prompt.id: item.score for item in result.population},
            "budget": fast.budget,
            "reflection": dict(state.reflection),
        }

    def _anchors(self, lookahead: Sequence[Problem]) -> list[Problem]:
        """A_c: the lookahead batch, or as much of it as leaves half the budget for new prompts."""
        fast = self.config.fast
        distinct = list({problem.id: problem for problem in lookahead}.values())
        if fast.anchors == "lookahead":
            return distinct
        affordable = max(fast.minibatch + 1, fast.budget // (2 * fast.k))
        return distinct[: min(fast.anchors, affordable)]

    def _log_prompts(self, result: FastResult, cycle: int) -> None:
        members = {item.prompt.id for item in result.population}
        self.run.log(
            "prompts.jsonl",
            (
                asdict(item.prompt)
                | {"cycle": cycle, "score": item.score, "wins": item.wins, "rollouts": item.rollouts}
                | {"member": item.prompt.id in members}
                for item in result.scored
            ),
        )

    # -- the slow channel ---------------------------------------------------------------------------

    def learn(self, problems: Sequence[Problem]) -> Row:
        """G rollouts per problem, advantages over all of them together, one update of theta."""
        state, config = self.state, self.config
        self.observer.phase("sampling", state)
        with self._clock("sample"):
            groups = collect_groups(
                self.engine,
                self.task,
                problems,
                state.population,
                self.slots,
                config.loop.group,
                self.cache,
                self.params,
                derive(self.seed, "rl", state.step),
            )
        self.observer.phase("learning", state)
        with self._clock("train"):
            batch = make_batch(groups, config.slow)
            update = self.engine.update(batch.data) if batch.data else None
        self.stream.learn_from(groups)
        self.run.log_rollouts(state.step + 1, groups)
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        reused = sum(rollout.reused for rollout in rollouts)
        state.spent["reused"] += reused
        state.spent["rl"] += len(rollouts) - reused
        state.earlier = _rewards_by_prompt(groups)
        row: Row = {
            "reward": fmean(rollout.reward for rollout in rollouts),
            "reward_by_prompt": {key: fmean(values) for key, values in state.earlier.items()},
            "groups": {"learned_from": batch.groups, "of": len(groups)},
            "reused": reused,
            "truncated": fmean(rollout.truncated for rollout in rollouts),
            "response_tokens": fmean(len(rollout.tokens) for rollout in rollouts),
        }
        if update is not None:
            row |= {key: getattr(update, key) for key in ("loss", "grad_norm", "lr", "kl", "entropy")}
            row["ratio"] = ratio_stats(batch.rollouts, update.logprobs, config.slow.tau)
        return row

    # -- measuring and keeping ------------------------------------------------------------------------

    def measure(self) -> Row:
        """Reward under the population, its best prompt and the seed prompt; drift from the base."""
        state = self.state
        self.observer.phase("evaluating", state)
        with self._clock("eval"):
            views = {
                "population": state.population,
                "best": state.population[:1],
                "seed": [self.seed_prompt],
            }
            row: Row = {}
            for name, prompts in views.items():
                same = next((key for key in row if views[key] == prompts), None)
                row[name] = row[same] if same else self._reward(prompts, name)
            for name in ("population", "seed"):
                seed = derive(self.seed, "drift", name, state.step)
                found = drift(self.engine, self.test, views[name], self.params.max_tokens, seed)
                row[f"drift_{name}"] = asdict(found)
                state.spent["eval"] += len(self.test)
        return row

    def _reward(self, prompts: Sequence[Prompt], name: str) -> Row:
        n = self.config.eval.n
        seed = derive(self.seed, "eval", name, self.state.step)
        self.state.spent["eval"] += n * len(self.test)
        return evaluate(
            self.engine, self.task, self.test, prompts, n, self.eval_params, seed
        ).to_dict()

    def _begin(self) -> None:
        restored = self.run.restore(self.engine)
        if restored is not None:
            self.state = restored
            self.stream.restore(restored.stream)
            self.cache = ReuseCache(restored.cache)
            for key, value in restored.reflection.items():
                setattr(self.reflector.usage, key, value)
            return
        row: Row = {"step": 0, "cycle": 0, "eval": self.measure()}
        self.state.base = row["eval"]
        self._log_row(row)

    def _end_of_step(self, row: Row) -> None:
        self._log_row(row)
        every = self.config.run.checkpoint_every or self.config.loop.cycle
        if self.state.step % every == 0 or self.finished():
            self.state.stream = self.stream.state()
            self.state.cache = self.cache.rollouts()
            self.run.save(self.state, self.engine)

    def _log_row(self, row: Row) -> None:
        row["rollouts"] = dict(self.state.spent)
        row["seconds"] = {key: round(value, 3) for key, value in self.state.seconds.items()}
        self.run.log("metrics.jsonl", [row])
        self.observer.step(row, self.state)

    @contextmanager
    def _clock(self, name: str):
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.state.seconds[name] += elapsed
        self.state.seconds["total"] += elapsed


def _rewards_by_prompt(groups: Sequence[Group]) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = {}
    for group in groups:
        for rollout in group.rollouts:
            rewards.setdefault(rollout.prompt_id, []).append(rollout.reward)
    return rewards
