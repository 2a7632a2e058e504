"""Losses against formulas written out token by token, and their gradients against finite differences."""

import math

import pytest
import torch

from fastslow.slow import loss

LOGP = torch.tensor([[-0.5, -2.0, -1.0], [-3.0, -0.1, -0.7]], dtype=torch.float64)
BEHAVIOUR = torch.tensor([[-0.7, -4.0, -1.0], [-1.0, -0.3, -2.7]], dtype=torch.float64)
ADVANTAGE = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)


def test_cispo_truncates_above_only_and_keeps_every_gradient():
    logp = LOGP.clone().requires_grad_()
    value = loss.cispo(logp, BEHAVIOUR, ADVANTAGE, tau=3.0)
    for r in range(2):
        for t in range(3):
            rho = min(math.exp(LOGP[r, t] - BEHAVIOUR[r, t]), 3.0)
            expected = -rho * ADVANTAGE[r, 0] * LOGP[r, t]
            assert value[r, t].item() == pytest.approx(expected.item())
    value.sum().backward()
    weights = (LOGP - BEHAVIOUR).exp().clamp(max=3.0)
    assert torch.allclose(logp.grad, -weights * ADVANTAGE)  # stopgrad: no derivative of rho
    assert (logp.grad != 0).all()


def test_ppo_clips_on_the_pessimistic_side():
    value = loss.ppo(LOGP, BEHAVIOUR, ADVANTAGE, epsilon=0.2)
    rho = math.exp(2.0)  # row 0, token 1: advantage > 0, ratio far above
    assert rho > 1.2
    assert value[0, 1].item() == pytest.approx(-1.2 * 1.5)
    assert value[1, 2].item() == pytest.approx(rho * 0.5)  # advantage < 0: the larger loss stays


def test_importance_sampling_has_the_policy_gradient():
    logp = LOGP.clone().requires_grad_()
    loss.importance_sampling(logp, BEHAVIOUR, ADVANTAGE).sum().backward()
    assert torch.allclose(logp.grad, -(LOGP - BEHAVIOUR).exp() * ADVANTAGE)


def test_k3_is_unbiased_and_never_negative():
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(50, generator=generator).softmax(-1)
    q = torch.randn(50, generator=generator).softmax(-1)
    estimate = (p * loss.kl_k3(p.log(), q.log())).sum()  # the expectation under p, exactly
    exact = (p * (p / q).log()).sum()
    assert estimate.item() == pytest.approx(exact.item(), rel=1e-5)
    assert (loss.kl_k3(p.log(), q.log()) >= 0).all()
