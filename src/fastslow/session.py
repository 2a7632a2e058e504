"""Everything that one run holds in its hands, and how it begins, keeps and ends its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, Protocol

from fastslow.collect import derive
from fastslow.config import Config, TaskConfig
from fastslow.engine.base import Engine, SamplingParams
from fastslow.errors import ConfigError
from fastslow.fast.evolve import FastResult, PromptOptimizer
from fastslow.fast.population import make_prompt
from fastslow.fast.reflect import Reflector
from fastslow.measure.evaluate import drift, evaluate, graded, respond
from fastslow.methods import METHODS
from fastslow.reuse import ReuseCache
from fastslow.rollout import Problem, Prompt, Rollout
from fastslow.run import Run, State
from fastslow.stream import ProblemStream
from fastslow.tasks import make_task
from fastslow.tasks.base import Task, first_of_each_part, problems_of
from fastslow.track import Nobody, Tracker, make_tracker

Row = dict[str, Any]


class Observer(Protocol):
    """Someone who watches: the live display, or nobody."""

    def phase(self, name: str, state: State) -> None: ...

    def step(self, row: Row, state: State) -> None: ...


class Session:
    """One run in progress: its parts, its state, and the plumbing between the loop and the disk."""

    def __init__(
        self,
        run: Run,
        task: Task,
        engine: Engine,
        optimizer: PromptOptimizer,
        reflector: Reflector,
        observer: Observer,
    ) -> None:
        self.run, self.task, self.engine = run, task, engine
        self.optimizer, self.reflector, self.observer = optimizer, reflector, observer
        self.config: Config = run.config
        self.method = METHODS[self.config.loop.method]
        self.seed = self.config.run.seed
        self.seed_prompt = make_prompt(self.config.task.seed_prompt or task.seed_prompt)
        self.stream = ProblemStream(
            task, problems_of(task, "train"), self.seed, self.config.slow.no_positive_resampling
        )
        self.test = first_of_each_part(task, self.config.eval.problems)
        self.ood = {other.name: self._elsewhere(other) for other in self.config.eval.ood}
        self._check_stages()
        sampling, measured = self.config.sampling, self.config.eval
        self.params = SamplingParams(sampling.temperature, sampling.top_p, sampling.max_tokens)
        self.eval_params = SamplingParams(measured.temperature, measured.top_p, sampling.max_tokens)
        problems = [*self.stream.problems.values(), *self.test]
        self.longest = max(problems, key=lambda problem: len(problem.prompt))
        if not self.fits(self.seed_prompt.text):
            context = len(engine.render(self.seed_prompt.text, self.longest.prompt))
            raise ConfigError(
                f"the seed prompt with problem {self.longest.id!r} takes {context} tokens; with "
                f"sampling.max_tokens = {sampling.max_tokens} that exceeds the model's context of "
                f"{engine.context_length}"
            )
        self.cache = ReuseCache()
        self.state = State([self.seed_prompt])
        self.tracker: Tracker = Nobody()  # until it is known where the run stands

    def _elsewhere(self, config: TaskConfig) -> tuple[Task, list[Problem], Prompt]:
        """A task that is not trained on, its test problems and the prompt it is asked under."""
        task = make_task(config)
        prompt = make_prompt(config.seed_prompt or task.seed_prompt)
        return task, first_of_each_part(task, self.config.eval.problems), prompt

    def new_stage(self, step: int) -> bool:
        """Whether a stream of tasks switches before this step (counted from 0)."""
        return step > 0 and self.task.shares(step) != self.task.shares(step - 1)

    def _check_stages(self) -> None:
        """A cycle's prompts are evolved for its problems, so that a stage takes whole cycles."""
        loop = self.config.loop
        for step in range(loop.steps):
            if step % loop.cycle and self.new_stage(step):
                raise ConfigError(
                    f"the task switches at step {step}, amid a cycle of loop.cycle = {loop.cycle} steps; "
                    "let a stage take a multiple of it"
                )

    def fits(self, prompt: str) -> bool:
        """Whether a prompt leaves room for the longest problem and a whole response."""
        context = len(self.engine.render(prompt, self.longest.prompt))
        return context + self.params.max_tokens <= self.engine.context_length

    def restore(self) -> bool:
        """Go back to the last checkpoint; False when there is none and the run begins."""
        restored = self.run.restore(self.engine)
        step = None if restored is None else restored.step
        self.tracker = make_tracker(self.config.run.tracker, self.run.dir, self.config, step)
        if restored is None:
            return False
        self.state = restored
        self.stream.restore(restored.stream)
        self.cache = ReuseCache(restored.cache)
        usage = restored.reflection | {"waited": restored.seconds.get("waiting", 0.0)}
        for key, value in usage.items():
            setattr(self.reflector.usage, key, value)
        return True

    def finished(self) -> bool:
        """Whether the steps are done; a method that evolves prompts at the end keeps rollouts for it."""
        loop, spent, fast = self.config.loop, self.state.spent, self.config.fast
        generated, last = spent["rl"] + spent["gepa"], self.method.evolves == "end"
        if last:
            generated += fast.initial_budget or fast.budget
        done = self.state.step >= loop.steps or generated >= (loop.rollouts or float("inf"))
        return done or (last and self.method.learns == "nothing")

    @property
    def own_prompts(self) -> list[Prompt]:
        """What the policy is to be used with: the population, or the seed prompt alone where a teacher had
        the others."""
        if self.method.learns == "teacher":
            return [self.seed_prompt]
        return self.state.population

    def end_of_step(self, row: Row) -> None:
        """Log the step and, when one is due, write a checkpoint."""
        self.log(row)
        step, cycle = self.state.step, self.config.loop.cycle
        every = self.config.run.checkpoint_every or cycle
        # A cycle's end is always a safe point: the next fast phase may find its reflector down.
        if step % every == 0 or step % cycle == 0 or self.finished():
            self.state.stream = self.stream.state()
            self.state.cache = self.cache.rollouts()
            self.run.save(self.state, self.engine)

    def measure(self) -> Row:
        """Held-out reward under the policy's own prompts, the best of them and the seed prompt; drift.

        Drift is read off the same rollouts where they were sampled as plainly as it asks for.
        """
        wanted = {
            "population": self.own_prompts,
            "seed": [self.seed_prompt],
            "best": self.state.population[:1],  # best on training problems, never chosen on these
        }
        twins = {name: next(n for n in wanted if wanted[n] == wanted[name]) for name in wanted}
        views = {name: wanted[name] for name in twins.values()}
        with self.phase("evaluating", "eval"):
            found = self._respond("eval", views, self.config.eval.n, self.eval_params)
            row: Row = {
                name: graded(self.task, self.test, found[twin]).to_dict()
                for name, twin in twins.items()
            }
            plain = SamplingParams(max_tokens=self.eval_params.max_tokens)
            views.pop("best", None)
            if self.eval_params != plain:
                found = self._respond("drift", views, 1, plain)
            drifts = {name: drift(self.engine, [row[0] for row in found[name]]) for name in views}
            if self.ood and (self.state.step == 0 or self.finished()):
                row["ood"] = {
                    name: self._reward_elsewhere(*what) for name, what in self.ood.items()
                }
        return row | {
            f"drift_{name}": asdict(drifts[twins[name]]) for name in ("population", "seed")
        }

    def _reward_elsewhere(self, task: Task, problems: list[Problem], prompt: Prompt) -> Row:
        n, seed = self.config.eval.n, derive(self.seed, "ood", self.state.step)
        self.state.spent["eval"] += n * len(problems)
        return evaluate(self.engine, task, problems, [prompt], n, self.eval_params, seed).to_dict()

    def _respond(
        self, purpose: str, views: Mapping[str, Sequence[Prompt]], n: int, params: SamplingParams
    ) -> dict[str, list[list[Rollout]]]:
        seed = derive(self.seed, purpose, self.state.step)
        self.state.spent["eval"] += len(views) * n * len(self.test)
        return respond(self.engine, self.task, self.test, views, n, params, seed)

    def log_prompts(self, result: FastResult, cycle: int) -> None:
        members = {item.prompt.id for item in result.population}
        rows = (
            asdict(item.prompt)
            | {"cycle": cycle, "score": item.score, "wins": item.wins, "rollouts": item.rollouts}
            | {"member": item.prompt.id in members}
            for item in result.scored
        )
        self.run.log("prompts.jsonl", rows)

    def log(self, row: Row) -> None:
        row["rollouts"] = dict(self.state.spent)
        row["seconds"] = {key: round(value, 3) for key, value in self.state.seconds.items()}
        self.run.log("metrics.jsonl", [row])
        self.tracker.log(row)
        self.observer.step(row, self.state)

    @contextmanager
    def phase(self, name: str, clock: str) -> Iterator[None]:
        """Tell the observer what is going on, and add its time to one of the summary's clocks."""
        self.observer.phase(name, self.state)
        start = time.perf_counter()
        yield
        elapsed = time.perf_counter() - start
        self.state.seconds[clock] += elapsed
        self.state.seconds["total"] += elapsed
