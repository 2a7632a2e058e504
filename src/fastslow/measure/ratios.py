"""Importance ratios: how far the policy has moved from the one that wrote each token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

from fastslow.rollout import Rollout


def ratio_stats(
    rollouts: Sequence[Rollout], logprobs: Sequence[Sequence[float]], tau: float
) -> dict[str, dict[str, float]]:
    """Per-token `rho = pi_theta / pi_behaviour` of fresh and of reused rollouts, before the update.

    `deviation` is the largest |rho - 1|; fresh rollouts should show rounding only. `truncated` is the
    share of tokens whose ratio exceeds tau.
    """
    ratios: dict[str, list[float]] = {"fresh": [], "reused": []}
    for rollout, new in zip(rollouts, logprobs, strict=True):
        ratios["reused" if rollout.reused else "fresh"] += [
            math.exp(min(now - then, 50.0))
            for now, then, bit in zip(new, rollout.logprobs, rollout.mask, strict=True)
            if bit
        ]
    return {
        name: {
            "tokens": len(values),
            "mean": fmean(values),
            "std": pstdev(values),
            "max": max(values),
            "deviation": max(abs(value - 1) for value in values),
            "truncated": fmean(value > tau for value in values),
        }
        for name, values in ratios.items()
        if values
    }
