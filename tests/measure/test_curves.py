"""Curves: crossings, sigmoid fits against curves that were made, bootstrap intervals."""

from __future__ import annotations

import random

import pytest

from fastslow.measure.curves import (
    Point,
    Sigmoid,
    area,
    asymptote,
    bootstrap,
    crossing,
    fit_sigmoid,
    peak,
    points,
)


def point(rollouts: int, reward: float, stderr: float = 0.02) -> Point:
    return Point(0, rollouts, rollouts, 1.0, reward, stderr, reward, 0.0, 0.0, 0.0, 1.0, {})


def made(sigmoid: Sigmoid, end: int, noise: float = 0.0, seed: int = 0) -> list[Point]:
    rng = random.Random(seed)
    costs = [round(end * i / 24) for i in range(25)]
    return [point(cost, sigmoid(cost) + rng.gauss(0, noise)) for cost in costs]


TRUE = Sigmoid(start=0.05, asymptote=0.8, slope=3.0, mid=3000)


def test_a_sigmoid_is_found_again():
    pytest.importorskip("scipy")
    fitted = fit_sigmoid(made(TRUE, 12_000))
    assert fitted is not None
    assert fitted.asymptote == pytest.approx(0.8, abs=0.01)
    assert fitted.slope == pytest.approx(3, rel=0.05)
    assert fitted.mid == pytest.approx(3000, rel=0.02)
    noisy = [fit_sigmoid(made(TRUE, 12_000, 0.03, seed)) for seed in range(10)]
    assert all(f is not None and abs(f.asymptote - 0.8) < 0.06 for f in noisy)


def test_a_curve_that_does_not_bend_has_no_asymptote():
    pytest.importorskip("scipy")
    assert fit_sigmoid(made(TRUE, 2_000)) is None  # still rising
    assert fit_sigmoid([point(cost, 0.0) for cost in range(0, 5000, 200)]) is None  # never rose
    assert fit_sigmoid(made(TRUE, 12_000)[:4]) is None  # too few
    assert fit_sigmoid(made(Sigmoid(0.05, 1.0, 3.0, 3000), 12_000)) is None  # as high as can be


def test_the_asymptote_of_several_seeds_and_its_interval():
    limits = (0.75, 0.8, 0.85)
    seeds = [
        made(Sigmoid(0.05, limit, 3.0, 3000), 12_000, 0.01, seed)
        for seed, limit in enumerate(limits)
    ]
    found = asymptote(seeds)
    assert found is not None
    assert found[0] == pytest.approx(0.8, abs=0.02)
    # All three resamples of one seed alone have a probability of 1/9: the interval is all there is.
    assert found[1] == pytest.approx((0.75, 0.85), abs=0.02)
    rising = made(TRUE, 2_000)
    assert asymptote([rising, rising, rising]) is None
    mixed = asymptote([*seeds[:2], rising])
    assert mixed is None or mixed[1] is None  # one seed alone, 1 draw of 27, does not bend


def test_crossings_and_peak():
    curve = [point(0, 0.1), point(100, 0.5), point(200, 0.4), point(300, 0.7)]
    found = crossing(curve, 0.45)
    assert found is not None
    assert found.rollouts == 100
    assert crossing(curve, 0.71) is None
    assert peak(curve) == 0.7
    assert area(curve) == pytest.approx((0.3 * 100 + 0.45 * 100 + 0.55 * 100) / 300)


def test_bootstrap_interval_covers_as_it_says():
    rng = random.Random(0)
    hits = 0
    for trial in range(200):
        low, high = bootstrap([rng.gauss(1, 0.3) for _ in range(30)], draws=400, seed=trial)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.99
    assert bootstrap([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_points_read_a_runs_metrics(small: dict):
    import fastslow

    run = fastslow.train(small)
    found = points(run.metrics)
    rows = [row for row in run.metrics if "eval" in row]
    assert [p.step for p in found] == [row["step"] for row in rows] == [0, 2, 4, 5]
    assert run.summary is not None
    assert found[-1].reward == run.summary["reward"]["final"]
    assert found[-1].rollouts == sum(run.summary["rollouts"][key] for key in ("rl", "gepa"))
    assert found[-1].kl == run.summary["kl_to_base"]
