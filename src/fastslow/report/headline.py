"""The numbers that come first: of a run as they stand, of a study by arm with every seed's value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fastslow.measure.curves import Point, Row, asymptote, bootstrap, crossing, peak
from fastslow.report.read import CLOCKS, SPENT, Material, RunFiles

LEVELS = (0.25, 0.5, 0.75, 0.9)  # rewards whose price in rollouts is told
NONE = "–"


@dataclass(frozen=True)
class Figure:
    """A number to read first; in a study's table `note` has every seed's value."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A study's figures, a row per arm."""

    caption: str
    rows: list[tuple[str, list[Figure]]]


def closing(run: RunFiles) -> dict[str, Any]:
    """The summary of a run; of one that is not finished, or an older one, what its log says so far."""
    rows, curve = run.metrics, run.curve
    last: Row = rows[-1] if rows else {}
    reflection = [row["fast"].get("reflection") or {} for row in rows if row.get("fast")]
    said: dict[str, Any] = {
        "reward": dict.fromkeys(("base", "final", "final_best_prompt", "final_seed_prompt")),
        "rollouts": last.get("rollouts", SPENT),
        "seconds": last.get("seconds", CLOCKS),
        "reflection": reflection[-1] if reflection else {},
    }
    if curve:
        begin, end = curve[0], curve[-1]
        said["reward"] = {
            "base": begin.seed if begin.step == 0 else None,
            "final": end.reward,
            "final_best_prompt": end.best,
            "final_seed_prompt": end.seed,
            "stderr": end.stderr,
        }
        said["kl_to_base"], said["kl_to_base_seed_prompt"] = end.kl, end.kl_seed
    for key, value in (run.summary or {}).items():
        said[key] = said[key] | value if isinstance(value, dict) and key in said else value
    return said


def state(run: RunFiles) -> str:
    """Whether the run is finished; where it stands if not."""
    if run.summary is not None:
        return f"finished {run.summary.get('finished', '')}".strip()
    step = run.metrics[-1]["step"] if run.metrics else 0
    return f"not finished: at step {step} of {run.config.get('loop', {}).get('steps', '?')}"


def run_figures(run: RunFiles) -> list[Figure]:
    """A run's headline."""
    said = closing(run)
    reward, spent, seconds = said["reward"], said["rollouts"], said["seconds"]
    reflection = said["reflection"]
    evaluated: list[Row] = [row["eval"]["population"] for row in run.metrics if "eval" in row]
    last = evaluated[-1] if evaluated else {}
    size = f"mean@{last['n']} of {last['problems']} problems" if "problems" in last else ""
    generated, trained = spent["rl"] + spent["gepa"], spent["rl"] + spent["reused"]
    return [
        Figure(
            "Final reward" if run.summary else "Reward so far",
            f"{number(reward['final'])} ± {number(reward.get('stderr'))}",
            f"standard error; population of prompts, {size}".rstrip(", "),
        ),
        Figure("Reward before training", number(reward["base"]), "base model, seed prompt"),
        Figure(
            "Reward of the seed prompt",
            number(reward["final_seed_prompt"]),
            "trained weights without evolved prompts",
        ),
        Figure(
            "Reward of the best prompt",
            number(reward["final_best_prompt"]),
            "chosen on training problems",
        ),
        Figure(
            "KL to the base",
            number(said.get("kl_to_base"), 4),
            f"per token; under the seed prompt {number(said.get('kl_to_base_seed_prompt'), 4)}",
        ),
        Figure(
            "Rollouts",
            f"{generated:,}",
            f"{spent['rl']:,} RL + {spent['gepa']:,} GEPA; RL reused {spent['reused']:,} of GEPA's, "
            f"{number(percent(spent['reused'], trained), 0)}% of its batches",
        ),
        Figure(
            "Minutes",
            number(seconds["total"] / 60, 1),
            f"{number(percent(seconds['eval'], seconds['total']), 0)}% of them evaluation",
        ),
        Figure(
            "Reflection",
            f"{reflection.get('calls', 0):,.0f} calls",
            f"${reflection.get('dollars', 0):.2f}; {number(seconds['waiting'] / 60, 1)} minutes of nothing "
            "but waiting for them",
        ),
    ]


def study_tables(material: Material) -> list[Table]:
    """A study's headline: what each arm came to, and what it cost."""
    arms = material.arms
    levels = {f"to {level:g}": level for level in LEVELS}
    if rl := [peak(run.curve) for run in arms.get("rl", []) if run.curve]:
        levels[f"to {fmean(rl):.3f}, RL's peak"] = fmean(rl)
    return [
        Table(
            "What each arm came to (mean over seeds, then every seed's value)",
            [(arm, _rewards(runs)) for arm, runs in arms.items()],
        ),
        Table(
            "Rollouts, GEPA's included, until the reward of an evaluation reaches a level",
            [(arm, _crossings(runs, levels)) for arm, runs in arms.items()],
        ),
        Table("What each arm cost", [(arm, _costs(runs)) for arm, runs in arms.items()]),
    ]


def _rewards(runs: Sequence[RunFiles]) -> list[Figure]:
    ends = [closing(run) for run in runs]
    curves = [run.curve for run in runs if run.curve]
    finals = known([end["reward"]["final"] for end in ends])
    interval = NONE
    if len(finals) > 1:
        low, high = bootstrap(finals)
        interval = f"{low:.3f} to {high:.3f}"
    done = sum(run.summary is not None for run in runs)
    return [
        Figure("Finished", f"{done} of {len(runs)}"),
        spread("Final reward", finals),
        Figure("95% interval of that mean (bootstrap)", interval),
        spread("Before training", [end["reward"]["base"] for end in ends]),
        spread("Seed prompt", [end["reward"]["final_seed_prompt"] for end in ends]),
        spread("KL to the base", [end.get("kl_to_base") for end in ends], 4),
        spread("Peak", [peak(curve) for curve in curves]),
        _asymptote(curves),
        *_elsewhere(curves),
    ]


def _elsewhere(curves: Sequence[list[Point]]) -> list[Figure]:
    """Rewards on tasks that were not trained on, at the end."""
    names = curves[0][-1].ood if curves else {}
    return [spread(f"OOD: {name}", [curve[-1].ood.get(name) for curve in curves]) for name in names]


def _asymptote(curves: Sequence[list[Point]]) -> Figure:
    found = asymptote(curves) if curves else None
    if found is None:
        return Figure("Asymptote", "not identifiable")
    limit, interval = found
    note = "{:.3f} to {:.3f}".format(*interval) if interval else "its interval not identifiable"
    return Figure("Asymptote", number(limit), note)


def _crossings(runs: Sequence[RunFiles], levels: dict[str, float]) -> list[Figure]:
    figures = []
    for label, level in levels.items():
        found = [crossing(run.curve, level) for run in runs]
        reached = [point.rollouts for point in found if point]
        each = " · ".join(f"{point.rollouts:,}" if point else NONE for point in found)
        mean = f"{fmean(reached):,.0f}" if len(reached) == len(runs) else ""
        figures.append(
            Figure(label, mean or f"reached by {len(reached)} of {len(runs)}", each)
            if reached
            else Figure(label, "not reached")
        )
    return figures


def _costs(runs: Sequence[RunFiles]) -> list[Figure]:
    ends = [closing(run) for run in runs]
    spent = [end["rollouts"] for end in ends]
    reused = [percent(each["reused"], each["rl"] + each["reused"]) for each in spent]
    return [
        spread("RL rollouts", [each["rl"] for each in spent], 0),
        spread("GEPA rollouts", [each["gepa"] for each in spent], 0),
        spread("Reused, % of RL's batches", reused, 1),
        spread("Minutes", [end["seconds"]["total"] / 60 for end in ends], 1),
        spread("Reflection calls", [end["reflection"].get("calls", 0) for end in ends], 0),
        spread("Dollars", [end["reflection"].get("dollars", 0.0) for end in ends], 2),
    ]


def spread(label: str, values: Sequence[float | None], digits: int = 3) -> Figure:
    """The mean over seeds; every seed's value beside it where there is more than one."""
    said = known(values)
    each = " · ".join(number(value, digits) for value in values) if len(values) > 1 else ""
    return Figure(label, number(fmean(said) if said else None, digits), each)


def known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and not math.isnan(value)]


def percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else math.nan


def number(value: float | None, digits: int = 3) -> str:
    """A number to read, a dash where there is none."""
    return f"{value:,.{digits}f}" if value is not None and not math.isnan(value) else NONE
