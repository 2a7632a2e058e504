"""Which plots a report has, in order, and what in a run's files each is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from statistics import fmean
from typing import Any

from fastslow.measure.curves import Row
from fastslow.report.plots import Measure, Plot, Triple, bars, lines
from fastslow.report.read import Material, RunFiles

POPULATION, BEST, SEED = "population of prompts", "best prompt", "seed prompt"
SECONDS = "seconds without evaluation"


def charts(material: Material) -> list[Plot]:
    """Every plot; one that the runs say nothing for has no rows."""

    def line(*args: Any, **more: Any) -> Plot:
        return lines(material, *args, **more)

    def by_step(*args: Any, **more: Any) -> Plot:
        return line(*args, **more, each=False)  # their seeds cross too often to be followed

    seeds = " Line and band: mean and range as far as all seeds got." if material.study else ""
    bar = "bar: an arm, mean over seeds" if material.study else "bar: a cycle"
    parts = dict.fromkeys(name for run in material.runs for p in run.curve for name in p.parts)
    return [
        line(
            "reward-rollouts",
            "Reward against rollouts",
            f"Held-out problems; rollouts with GEPA's, the reused ones once.{seeds}",
            ("rollouts", "reward"),
            _rewards("rollouts"),
        ),
        line(
            "reward-seconds",
            "Reward against seconds",
            f"The same evaluations; time without evaluation.{seeds}",
            (SECONDS, "reward"),
            _rewards("seconds"),
        ),
        line(
            "kl-reward",
            "KL against reward",
            "What a reward cost in distance from the base, per token: right and low is good.",
            ("reward", "KL to the base"),
            {POPULATION: held_out("reward", "kl"), SEED: held_out("seed", "kl_seed")},
            band=False,
        ),
        *(
            line(
                f"reward-part-{place}",
                f"Reward on {name}",
                "One part of the mixture or stream.",
                ("rollouts", "reward"),
                {name: _part(name)},
            )
            for place, name in enumerate(parts)
        ),
        line(
            "entropy",
            "Entropy",
            "Per token, in nats. Held out: at temperature 1; training: as sampled.",
            ("step", "entropy"),
            {
                "held out": held_out("step", "entropy"),
                "training rollouts": stepwise(lambda row: row.get("entropy")),
            },
        ),
        by_step(
            "training-reward",
            "Reward of training rollouts",
            "Each step's own problems, all prompts together.",
            ("step", "reward"),
            {"training reward": stepwise(lambda row: row.get("reward"))},
        ),
        by_step(
            "response-length",
            "Response length",
            "Mean over the step's rollouts.",
            ("step", "tokens"),
            {"response tokens": stepwise(lambda row: row.get("response_tokens"))},
        ),
        by_step(
            "groups",
            "Groups learned from",
            "Share of groups whose rewards differ; the others carry no signal.",
            ("step", "share of groups"),
            {"groups": stepwise(_learned_from)},
        ),
        by_step(
            "ratio-fresh",
            "Importance ratios, fresh rollouts",
            "Largest |rho - 1| of a step: sampler against trainer, rounding only when all is well.",
            ("step", "largest |rho - 1|"),
            {"fresh": stepwise(lambda row: _ratio(row, "fresh", "deviation"))},
            log=True,
        ),
        by_step(
            "ratio-reused",
            "Importance ratios, reused rollouts",
            "Largest rho of a step: how far the policy has moved since GEPA sampled them.",
            ("step", "largest rho"),
            {"reused": stepwise(lambda row: _ratio(row, "reused", "max"))},
        ),
        bars(
            "time",
            "Where time went",
            f"Seconds by phase; {bar}.",
            "seconds",
            _amounts(material, _seconds),
        ),
        bars(
            "rollouts",
            "Where rollouts went",
            f"Rollouts generated, by purpose; {bar}.",
            "rollouts",
            _amounts(material, _rollouts),
        ),
        by_step(
            "reuse",
            "Reuse share",
            "Share of a step's rollouts that GEPA had made before.",
            ("step", "share reused"),
            {"reused": _reused},
        ),
    ]


def held_out(x: str, y: str, error: str = "") -> Measure:
    """Two fields of the evaluations, and the second one's standard error."""
    return lambda run: [
        (getattr(p, x), getattr(p, y), getattr(p, error) if error else None) for p in run.curve
    ]


def stepwise(value: Callable[[Row], Any]) -> Measure:
    """Something that rows say, by step; rows that do not are left out."""

    def measure(run: RunFiles) -> list[Triple]:
        found = [(row["step"], value(row)) for row in run.metrics]
        return [(step, y, None) for step, y in found if y is not None]

    return measure


def _rewards(x: str) -> dict[str, Measure]:
    return {
        POPULATION: held_out(x, "reward", "stderr"),
        BEST: held_out(x, "best"),
        SEED: held_out(x, "seed"),
    }


def _part(name: str) -> Measure:
    return lambda run: [(p.rollouts, p.parts.get(name, math.nan), None) for p in run.curve]


def _learned_from(row: Row) -> float | None:
    groups = row.get("groups")
    return groups["learned_from"] / groups["of"] if groups else None


def _ratio(row: Row, kind: str, key: str) -> float | None:
    return row.get("ratio", {}).get(kind, {}).get(key)


def _reused(run: RunFiles) -> list[Triple]:
    """`rollouts.rl` counts from the beginning: what it grew by, a step made afresh."""
    shares: list[Triple] = []
    for before, row in pairwise(run.metrics):
        fresh = row["rollouts"]["rl"] - before["rollouts"]["rl"]
        if row.get("reused", 0) + fresh:
            share = row.get("reused", 0) / (row.get("reused", 0) + fresh)
            shares.append((row["step"], share, None))
    return shares


def _seconds(row: Row) -> dict[str, float]:
    seconds = row["seconds"]
    return {
        "sampling": seconds["sample"],
        "learning": seconds["train"],
        "evolving prompts": seconds["gepa"] - seconds["waiting"],
        "waiting for the reflector": seconds["waiting"],
        "evaluating": seconds["eval"],
    }


def _rollouts(row: Row) -> dict[str, float]:
    spent = row["rollouts"]
    return {
        "RL": spent["rl"],
        "GEPA, reused by RL": spent["reused"],
        "GEPA alone": spent["gepa"] - spent["reused"],
        "evaluation": spent["eval"],
    }


def _amounts(
    material: Material, split: Callable[[Row], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Amounts by part: of every arm, the mean over its seeds; in a single run, of every cycle."""
    if material.study:
        ends = {
            arm: [split(run.metrics[-1]) for run in runs if run.metrics]
            for arm, runs in material.arms.items()
        }
        return {
            arm: {part: fmean(end[part] for end in found) for part in found[0]}
            for arm, found in ends.items()
            if found
        }
    totals = {row.get("cycle", 0): split(row) for row in material.runs[0].metrics}
    zero = dict.fromkeys(next(iter(totals.values()), {}), 0.0)
    return {
        f"cycle {cycle}": {part: total[part] - before[part] for part in total}
        for before, (cycle, total) in zip([zero, *totals.values()], totals.items(), strict=False)
    }
