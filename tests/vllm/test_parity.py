"""The comparison that stops a run whose sampler is stale. Needs no vLLM."""

from __future__ import annotations

import pytest

from fastslow.engine.base import Sample
from fastslow.engine.checked import TOLERANCE, check_parity
from fastslow.errors import ModelError


def samples(*rows: list[float]) -> list[Sample]:
    return [Sample([7] * len(row), row, truncated=False) for row in rows]


def test_equal_logprobs_pass_and_none_at_all_do_too():
    check_parity(samples([-1.0, -2.0], [-0.5]), [[-1.0, -2.0], [-0.5]], 0.0)
    check_parity([], [], 0.0)


def test_the_mean_gap_decides_and_the_error_names_mean_and_largest():
    drawn = samples([-1.0, -2.0], [-0.5, -0.25])
    trainer = [[-1.0, -2.0], [-0.5, -0.65]]  # one gap of 0.4 among four tokens
    check_parity(drawn, trainer, 0.11)
    with pytest.raises(ModelError, match=r"4 tokens differ by 0\.1 on average and 0\.4 at most"):
        check_parity(drawn, trainer, 0.09)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_what_is_no_number_is_a_mismatch(bad):
    with pytest.raises(ModelError, match="disagree"):
        check_parity(samples([-1.0, bad]), [[-1.0, -1.0]], 1.0)


def test_fp32_is_held_to_more_than_bf16():
    gap = 2e-5  # less than one update at the paper's learning rate of 1e-6 makes (5e-5)
    drawn = samples([-1.0])
    check_parity(drawn, [[-1.0 + gap]], TOLERANCE["bfloat16"])
    with pytest.raises(ModelError):
        check_parity(drawn, [[-1.0 + gap]], TOLERANCE["float32"])
