"""From a run's log to figures that can be compared: curves, crossings, peaks, asymptotes, spreads.

Reads files only, so that a report or a study needs no engine.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """One held-out evaluation: what had been spent until then, and what was found.

    `rollouts` counts GEPA's, `rl` does not; reused ones are GEPA's. `reward` is the population's mean@n,
    `best` that of the prompt that did best on training problems, `seed` that of the seed prompt. KL is to
    the base, per token, each under its own context. `ood` has the rewards on tasks not trained on, where
    they were measured.
    """

    step: int
    rollouts: int
    rl: int
    seconds: float
    reward: float
    stderr: float
    best: float
    seed: float
    kl: float
    kl_seed: float
    entropy: float
    parts: dict[str, float]
    ood: dict[str, float] = field(default_factory=dict)


def points(rows: Sequence[Row]) -> list[Point]:
    """The evaluations in a run's metrics, in order."""
    return [
        Point(
            step=row["step"],
            rollouts=row["rollouts"]["rl"] + row["rollouts"]["gepa"],
            rl=row["rollouts"]["rl"],
            seconds=row["seconds"]["total"] - row["seconds"]["eval"],
            reward=row["eval"]["population"]["mean"],
            stderr=row["eval"]["population"]["stderr"],
            best=row["eval"]["best"]["mean"],
            seed=row["eval"]["seed"]["mean"],
            kl=row["eval"]["drift_population"]["kl"],
            kl_seed=row["eval"]["drift_seed"]["kl"],
            entropy=row["eval"]["drift_population"]["entropy"],
            parts=row["eval"]["population"].get("parts", {}),
            ood={name: found["mean"] for name, found in row["eval"].get("ood", {}).items()},
        )
        for row in rows
        if "eval" in row
    ]


def crossing(curve: Sequence[Point], level: float) -> Point | None:
    """The first evaluation that reaches `level`, or None where none does: no policy in between."""
    return next((point for point in curve if point.reward >= level), None)


def peak(curve: Sequence[Point]) -> float:
    """The highest reward of a curve: the best of many noisy points, so a little too high."""
    return max(point.reward for point in curve)


def area(curve: Sequence[Point]) -> float:
    """The mean reward over a curve's rollouts, by trapezoids: early and high both count."""
    pairs = list(itertools.pairwise(curve))
    under = sum((b.rollouts - a.rollouts) * (a.reward + b.reward) / 2 for a, b in pairs)
    return under / max(1, curve[-1].rollouts - curve[0].rollouts)


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """`R(C) = R0 + (A - R0) / (1 + (mid / C) ** B)`: ScaleRL's curve (arXiv 2510.13786) over rollouts C."""

    start: float  # R0, the reward before training; given, not fitted
    asymptote: float  # A
    slope: float  # B
    mid: float  # C_mid

    def __call__(self, rollouts: float) -> float:
        if rollouts <= 0:
            return self.start
        rise = 1 + (self.mid / rollouts) ** self.slope
        return self.start + (self.asymptote - self.start) / rise


def fit_sigmoid(curve: Sequence[Point]) -> Sigmoid | None:
    """The least-squares sigmoid through a curve; None where the curve does not identify its asymptote.

    It does not where there are fewer than five evaluations after the first, where the reward has not risen
    by three standard errors, where the fitted curve has covered less than two thirds of its way (one that
    does not bend yet could end anywhere), or where it ends at 1, the highest that is allowed for.
    """
    from scipy.optimize import least_squares

    first, rest = curve[0], [point for point in curve if point.rollouts > 0]
    noise = max(fmean(point.stderr for point in curve), 1e-3)
    if len(rest) < 5 or peak(rest) - first.reward < 3 * noise:
        return None
    cost = [point.rollouts for point in rest]

    def made(values: Any) -> Sigmoid:
        return Sigmoid(first.reward, values[0], math.exp(values[1]), math.exp(values[2]))

    def misses(values: Any) -> list[float]:
        fitted = made(values)
        return [fitted(point.rollouts) - point.reward for point in rest]

    middle = next(
        (p.rollouts for p in rest if p.reward >= (peak(rest) + first.reward) / 2), cost[-1]
    )
    bounds = (
        [first.reward, math.log(0.2), math.log(cost[0] / 10)],
        [1.0, math.log(12), math.log(cost[-1] * 20)],
    )
    begin = [min(max(peak(rest), first.reward + 1e-3), 0.999), math.log(2.0), math.log(middle)]
    found = made(least_squares(misses, begin, bounds=bounds).x)
    way = (found(cost[-1]) - first.reward) / max(found.asymptote - first.reward, 1e-9)
    return found if way >= 2 / 3 and found.asymptote < 0.999 else None


def common_sigmoid(curves: Sequence[Sequence[Point]]) -> Sigmoid | None:
    """One sigmoid through several seeds' curves together; None where they do not identify it."""
    starts = [curve[0] for curve in curves]
    together = sorted((p for curve in curves for p in curve[1:]), key=lambda p: p.rollouts)
    first = replace(starts[0], reward=fmean(start.reward for start in starts))
    return fit_sigmoid([first, *together])


def asymptote(curves: Sequence[Sequence[Point]]) -> tuple[float, tuple[float, float] | None] | None:
    """The upper limit that several seeds' curves tend to, and its 95% interval by bootstrap over seeds.

    None where the curves together do not identify it. The interval is None where one in twenty choices
    of seeds, or more, does not.
    """
    found = common_sigmoid(curves)
    if found is None:
        return None
    fits: dict[tuple[int, ...], float] = {}

    def limit(seeds: Sequence[float]) -> float:
        key = tuple(sorted(int(seed) for seed in seeds))
        if key not in fits:
            fitted = common_sigmoid([curves[seed] for seed in key])
            fits[key] = math.inf if fitted is None else fitted.asymptote
        return fits[key]

    low, high = bootstrap(range(len(curves)), limit)
    return found.asymptote, None if math.isinf(high) else (low, high)


def bootstrap(
    samples: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = fmean,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a statistic over resampled seeds. With three seeds it is a rough one."""
    rng = random.Random(seed)
    found = sorted(statistic(rng.choices(samples, k=len(samples))) for _ in range(draws))
    tail = (1 - level) / 2
    return found[int(tail * (draws - 1))], found[math.ceil((1 - tail) * (draws - 1))]
