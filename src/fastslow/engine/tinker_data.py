"""Our data as a Tinker server takes it, and our losses as gradients on log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastslow.config import SlowConfig
from fastslow.engine.base import Datum
from fastslow.slow import loss as losses

Reduction = Literal["sum", "mean"]


@dataclass(slots=True)
class Judged:
    """What the configured loss says of a batch, given the policy's log-probabilities.

    `slopes[i][t]` is minus the derivative of the batch's loss by that log-probability: whatever the
    loss, one step of gradient descent raises `sum(slopes * logprobs)` with the slopes held fixed.
    """

    loss: float
    kl: float
    entropy: float
    slopes: list[list[float]]


def judge(
    slow: SlowConfig,
    data: Sequence[Datum],
    logprobs: Sequence[Sequence[float]],
    base: Sequence[Sequence[float]] | None,
) -> Judged:
    """Loss, KL to the base and slopes of a batch, by the formulas that the local engine learns by.

    `base` is needed where `slow.kl` is not 0. Entropy is estimated by the log-probabilities of the
    tokens themselves (unbiased on the policy's own samples): a server does not tell the whole
    distribution.
    """
    lengths = [len(datum.tokens) for datum in data]
    policy_N = _flat(logprobs).requires_grad_()
    weights_N = _flat(datum.weights for datum in data)
    behaviour_N = _flat(datum.logprobs for datum in data)
    advantages_N = _flat(datum.advantages for datum in data)
    if slow.loss == "cispo":
        loss_N = losses.cispo(policy_N, behaviour_N, advantages_N, slow.tau)
    elif slow.loss == "ppo":
        loss_N = losses.ppo(policy_N, behaviour_N, advantages_N, slow.epsilon)
    else:
        loss_N = losses.importance_sampling(policy_N, behaviour_N, advantages_N)
    total, kl = float(weights_N.sum()), 0.0
    if base is not None:
        kl_N = losses.kl_k3(policy_N, _flat(base))
        loss_N = loss_N + slow.kl * kl_N
        kl = float((kl_N.detach() * weights_N).sum()) / total
    loss = (loss_N * weights_N).sum()
    loss.backward()
    assert policy_N.grad is not None
    entropy = -float((policy_N.detach() * weights_N).sum()) / total
    slopes = [part.tolist() for part in (-policy_N.grad).split(lengths)]
    return Judged(float(loss.detach()), kl, entropy, slopes)


def _flat(rows: Iterable[Sequence[float]]) -> Tensor:
    """All tokens of a batch behind each other, in double precision: they are few."""
    return torch.tensor([value for row in rows for value in row], dtype=torch.float64)


class Wire:
    """Builds the client's own objects. `types` is the module `tinker.types`.

    A server adds up the tokens' losses (`reduction="sum"`, as the API documents), or takes the mean
    over each sequence and then over sequences (SkyRL's JAX backend); both are made to give our sum.
    """

    def __init__(self, types: Any, reduction: Reduction = "sum") -> None:
        self.types, self.reduction = types, reduction

    def prompt(self, tokens: Sequence[int]) -> Any:
        return self.types.ModelInput.from_ints(list(tokens))

    def scored(self, context: list[int], tokens: list[int]) -> Any:
        """A sequence whose log-probabilities are wanted, the response's counted once each."""
        weights = [1.0] * len(tokens)
        return self._datum(context, tokens, {"weights": weights})

    def weighted(self, datum: Datum, slopes: Sequence[float]) -> Any:
        """For `cross_entropy`: tokens weighted by their slopes, of either sign."""
        return self._datum(datum.context, datum.tokens, {"weights": slopes})

    def rated(
        self, datum: Datum, logprobs: Sequence[float], advantages: Sequence[float], sequences: int
    ) -> Any:
        """For losses of ratios: the log-probabilities that they divide by, and advantages.

        `sequences` is how many the whole update has.
        """
        if self.reduction == "mean":
            scale = (len(datum.context) + len(datum.tokens) - 1) * sequences
            advantages = [value * scale for value in advantages]
        return self._datum(
            datum.context, datum.tokens, {"logprobs": logprobs, "advantages": advantages}
        )

    def _datum(
        self, context: list[int], tokens: list[int], values: dict[str, Sequence[float]]
    ) -> Any:
        """Position i of the input predicts token i + 1; what concerns the prompt is 0."""
        whole, before = context + tokens, [0.0] * (len(context) - 1)
        inputs: dict[str, Any] = {"target_tokens": whole[1:]}
        inputs |= {key: [*before, *row] for key, row in values.items()}
        return self.types.Datum(model_input=self.prompt(whole[:-1]), loss_fn_inputs=inputs)


def read_logprobs(output: Any, tokens: int) -> list[float]:
    """The response's log-probabilities, from what the server says of one sequence.

    Servers answer for the whole sequence or for the response alone; its tokens are the last.
    """
    values = output["logprobs"]
    values = getattr(values, "data", values)
    return [float(value) for value in list(values)[-tokens:]]
