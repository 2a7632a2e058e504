"""From a configuration to a finished run: what `import fastslow` and the command line both call."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastslow.config import Config
from fastslow.engine.base import Engine
from fastslow.engine.local import LocalEngine
from fastslow.fast.evolve import Gepa, PromptOptimizer
from fastslow.fast.reflect import make_reflector
from fastslow.loop import Loop, Observer
from fastslow.run import Run, State
from fastslow.tasks import make_task
from fastslow.tasks.base import Task


class Silent:
    """An observer that looks away."""

    def phase(self, name: str, state: State) -> None: ...

    def step(self, row: dict[str, Any], state: State) -> None: ...


def make_engine(config: Config) -> Engine:
    """The engine that `engine.kind` names."""
    return LocalEngine(config)


def train(
    config: Config | dict[str, Any] | str | Path,
    *,
    task: Task | None = None,
    reflector: Callable[[str], str] | None = None,
    optimizer: PromptOptimizer | None = None,
    observer: Observer | None = None,
) -> Run:
    """Train by the configured method from start to end and return the run.

    `config` is a Config, a dict of its sections, or the path of a YAML file. `task` takes the place of
    `task.name`, `reflector` (one prompt in, one answer out) that of `fast.reflector`, `optimizer` that
    of GEPA. Raises ConfigError, ModelError, RunError or ReflectorError; after the latter two,
    `resume(run.dir)` goes on from the last checkpoint.
    """
    if isinstance(config, (str, Path)):
        config = Config.load(config)
    elif isinstance(config, dict):
        config = Config.parse(config)
    task = task or make_task(config.task)
    engine = _prepare(config)
    run = Run.create(config)
    _train(run, engine, task, reflector, optimizer, observer)
    return run


def resume(
    directory: str | Path,
    *,
    task: Task | None = None,
    reflector: Callable[[str], str] | None = None,
    optimizer: PromptOptimizer | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with a run that was stopped or killed. A finished run is returned as it is.

    What was passed to `train` beside the configuration must be passed again.
    """
    run = Run.open(directory)
    if run.summary is None:
        task = task or make_task(run.config.task)
        _train(run, _prepare(run.config), task, reflector, optimizer, observer)
    return run


def _prepare(config: Config) -> Engine:
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    return make_engine(config)


def _train(
    run: Run,
    engine: Engine,
    task: Task,
    reflector: Callable[[str], str] | None,
    optimizer: PromptOptimizer | None,
    observer: Observer | None,
) -> None:
    config = run.config
    with run.locked():
        loop = Loop(
            config,
            task,
            engine,
            optimizer or Gepa(config.fast),
            make_reflector(config.fast, engine, reflector),
            run,
            observer or Silent(),
        )
        state = loop.train()
        run.finish(summarise(run, state))


def summarise(run: Run, state: State) -> dict[str, Any]:
    """The closing figures of a run; rewards and drift are those of its last evaluation."""
    rows = run.metrics
    last = next(row["eval"] for row in reversed(rows) if "eval" in row)
    return {
        "method": run.config.loop.method,
        "task": run.config.task.name,
        "seed": run.config.run.seed,
        "steps": state.step,
        "reward": {
            "base": state.base["seed"]["mean"],
            "final": last["population"]["mean"],
            "final_best_prompt": last["best"]["mean"],
            "final_seed_prompt": last["seed"]["mean"],
            "stderr": last["population"]["stderr"],
        },
        "kl_to_base": last["drift_population"]["kl"],
        "kl_to_base_seed_prompt": last["drift_seed"]["kl"],
        "entropy": last["drift_population"]["entropy"],
        "rollouts": dict(state.spent),
        "reflection": dict(state.reflection),
        "seconds": {key: round(value, 2) for key, value in state.seconds.items()},
        "best_prompt": state.population[0].text,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
