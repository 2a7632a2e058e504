"""Plasticity: after a first task by each method, can the weights still learn a second by plain RL?

Phase 1 trains every arm on the first task. Phase 2 is plain RL on the second task, from the base and from
the checkpoint of each arm, with a fresh optimizer and the seed prompt; its curves are compared. What is
left of the first task is measured at the end, under the prompts of phase 1 and the seed prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from fastslow.api import open_run
from fastslow.collect import derive
from fastslow.config import Config
from fastslow.measure.evaluate import evaluate
from fastslow.run import Run
from fastslow.studies.compare import compare, span, table, within
from fastslow.studies.study import Member, Study


def plasticity(
    first: Config,
    second: Config,
    methods: Sequence[str],
    seeds: int,
    directory: Path,
    jobs: int,
    console: Console,
    rollouts: int | None = None,
    known: Sequence[Path] = (),
) -> str:
    """Run both phases and return their tables; `directory` holds `phase-1` and `phase-2`, two studies."""
    before = compare(first, methods, seeds, directory / "phase-1", rollouts)
    before.run(jobs, console, known)
    phase_1 = before.runs()
    members = []
    for seed in range(seeds):
        starts = {"from base": {"name": first.model.name, "base": first.model.base}}
        for method in methods:
            checkpoint = str(phase_1[method][seed].latest() / "model")
            reference = first.model.base or first.model.name
            starts[f"from {method}"] = {"name": checkpoint, "base": reference}
        for arm, start in starts.items():
            data = second.model_dump()
            data["loop"]["method"] = "rl"
            data["model"] |= start
            members.append(Member(arm, seed, within(Config.parse(data), rollouts)))
    after = Study(directory / "phase-2", "plasticity", f"{second.task.name}: plain RL", members)
    after.run(jobs, console, known)
    phase_2 = after.runs()
    kept = {
        f"from {method}": [
            retention(*pair)
            for pair in zip(phase_1[method], phase_2[f"from {method}"], strict=True)
        ]
        for method in methods
    }
    return "\n\n".join(
        [
            f"Phase 1, {first.task.name}:\n\n{table(phase_1)}",
            f"Phase 2, {second.task.name}, plain RL:\n\n{table(phase_2)}",
            f"What is left of phase 1 (reward on its test problems):\n\n{_retained(kept)}\n",
        ]
    )


def retention(first: Run, second: Run, n: int = 2) -> dict[str, float]:
    """Reward on the first task before and after the second, under its prompts and the seed prompt."""
    opened = open_run(first.dir)
    prompts = {"its prompts": opened.population, "the seed prompt": [opened.seed_prompt]}
    found: dict[str, float] = {}
    for moment, checkpoint in (("before", first.latest()), ("after", second.latest())):
        opened.engine.load(checkpoint)
        for name, chosen in prompts.items():
            seed = derive(opened.seed, "retention", name)
            measured = evaluate(
                opened.engine, opened.task, opened.problems, chosen, n, opened.params, seed
            )
            found[f"{name}, {moment}"] = measured.mean
    return found


def _retained(kept: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["| | " + " | ".join(kept) + " |", "|---|" + "---|" * len(kept)]
    for label in next(iter(kept.values()))[0]:
        cells = [span([run[label] for run in runs], ".3f") for runs in kept.values()]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
