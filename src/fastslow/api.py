"""From a configuration to a finished run: what `import fastslow` and the command line both call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastslow import loop
from fastslow.collect import derive
from fastslow.config import Config, TaskConfig
from fastslow.engine.base import Engine, SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.engine.memory import peak_memory
from fastslow.engine.world import join
from fastslow.errors import ConfigError
from fastslow.fast.evolve import Gepa, PromptOptimizer
from fastslow.fast.population import make_prompt
from fastslow.fast.reflect import make_reflector
from fastslow.measure.evaluate import Evaluation, evaluate
from fastslow.report import write_report
from fastslow.rollout import Problem, Prompt
from fastslow.run import FollowedRun, Run, State
from fastslow.session import Observer, Session
from fastslow.tasks import make_task
from fastslow.tasks.base import Task, first_of_each_part
from fastslow.track import check_tracker


class Silent:
    """An observer that looks away."""

    def phase(self, name: str, state: State) -> None: ...

    def step(self, row: dict[str, Any], state: State) -> None: ...


def make_engine(config: Config) -> Engine:
    """The engine that `engine.kind` names."""
    if config.engine.kind == "tinker":
        from fastslow.engine.tinker import TinkerEngine  # its client library is an extra

        return TinkerEngine(config)
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
    else:  # a Config too: its fields may have been set one by one
        config = Config.parse(config.model_dump() if isinstance(config, Config) else config)
    for key in ("name", "base"):  # a resume may come from elsewhere
        place = getattr(config.model, key)
        if place is not None and Path(place).is_dir():
            setattr(config.model, key, str(Path(place).resolve()))
    if task is not None:  # so that the run says what it was about
        config.task = TaskConfig(name=f"{type(task).__module__}:{type(task).__qualname__}")
    check_tracker(config.run)
    task = task or make_task(config.task)
    engine = _prepare(config)
    run = join().decided(Run.create)(config)
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
        check_tracker(run.config.run)
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
    world, config = join(), run.config
    if not world.first:
        run, observer = FollowedRun(run.dir, config), None
        config.run.tracker = "none"
    with run.locked():
        session = Session(
            run,
            task,
            engine,
            optimizer or Gepa(config.fast),
            make_reflector(config.fast, engine, reflector),
            observer or Silent(),
        )
        run.begin()
        try:
            state = loop.train(session)
            if world.first:
                run.finish(summarise(run, state))
                if config.run.report:
                    write_report(run.dir)
            world.gather(None)  # all have a finished run when one has
        finally:  # last: a tracker may take its time to send what it holds
            session.tracker.finish()


def summarise(run: Run, state: State) -> dict[str, Any]:
    """The closing figures of a run; rewards and drift are those of its last evaluation.

    `seconds` are those of the phases that the run kept; loading, checkpoints and work that a kill undid
    do not count. `rollouts.rl` were generated for RL, `reused` came from GEPA's and count there.
    """
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
            "parts": last["population"]["parts"],
            "ood": {name: found["mean"] for name, found in last.get("ood", {}).items()},
        },
        "kl_to_base": last["drift_population"]["kl"],
        "kl_to_base_seed_prompt": last["drift_seed"]["kl"],
        "entropy": last["drift_population"]["entropy"],
        "rollouts": dict(state.spent),
        "reflection": dict(state.reflection),
        "seconds": {key: round(value, 2) for key, value in state.seconds.items()},
        "peak_memory": peak_memory(),
        "best_prompt": state.population[0].text,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


@dataclass(frozen=True)
class Opened:
    """A run's last checkpoint, loaded, with what it is evaluated on. `seed` is for such evaluations."""

    engine: Engine
    task: Task
    problems: list[Problem]
    params: SamplingParams
    population: list[Prompt]
    seed_prompt: Prompt
    seed: int


def open_run(directory: str | Path, task: Task | None = None) -> Opened:
    """Load a run's last checkpoint. The configuration is read afresh; nothing in the folder changes."""
    run = Run.open(directory)
    config, task = run.config, task or make_task(run.config.task)
    checkpoint = run.latest()
    population = run.read_state(checkpoint).population
    engine = _prepare(config)
    engine.load(checkpoint)
    return Opened(
        engine=engine,
        task=task,
        problems=first_of_each_part(task, config.eval.problems),
        params=SamplingParams(
            config.eval.temperature, config.eval.top_p, config.sampling.max_tokens
        ),
        population=population,
        seed_prompt=make_prompt(config.task.seed_prompt or task.seed_prompt),
        seed=derive(config.run.seed, "eval command"),
    )


def evaluate_run(
    directory: str | Path, prompt: str = "all", n: int = 4, task: Task | None = None
) -> list[tuple[str, Evaluation, str]]:
    """Evaluate a run's last checkpoint: (name, figures, prompt text) for each prompt asked for.

    `prompt` is "seed", "best", "all" (both, every member and the population as a whole), or the path
    of a text file.
    """
    run = open_run(directory, task)
    views: dict[str, list[Prompt]] = {"seed": [run.seed_prompt], "best": run.population[:1]}
    if prompt == "all":
        views |= {member.id: [member] for member in run.population}
        views["population"] = run.population
    elif prompt in views:
        views = {prompt: views[prompt]}
    else:
        views = {prompt: [make_prompt(_read_prompt(prompt))]}
    return [
        (
            name,
            evaluate(run.engine, run.task, run.problems, prompts, n, run.params, run.seed),
            prompts[0].text if len(prompts) == 1 else f"({len(prompts)} prompts in turn)",
        )
        for name, prompts in views.items()
    ]


def _read_prompt(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--prompt {path!r}: expected seed, best, all or a readable file ({error})"
        ) from None
