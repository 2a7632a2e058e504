"""The engine protocol: who holds theta. Shaped after the Tinker API's primitives, so that one loop
runs on a laptop, a GPU or a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Which = Literal["policy", "base"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 1024


@dataclass(frozen=True, slots=True)
class Thinking:
    """How long a response may think before it is told to answer (ScaleRL, arXiv 2510.13786).

    One that is still thinking after `budget` tokens goes on behind `close`, tokens that it did not write.
    """

    budget: int
    close: list[int]


@dataclass(slots=True)
class Sample:
    """One sampled response: token ids (the stop token included) and their log-probabilities.

    The log-probabilities are those of the tempered distribution before top-p truncation.
    """

    tokens: list[int]
    logprobs: list[float]
    truncated: bool


@dataclass(slots=True)
class Datum:
    """One sequence to learn from: per response token its behaviour log-probability, weight and advantage.

    `weights` says how much each token counts in the loss (0 where the policy did not write it); over
    a batch they sum to 1. In RL a response's tokens share one advantage, in distillation each has its own.
    """

    context: list[int]
    tokens: list[int]
    logprobs: list[float]
    weights: list[float]
    advantages: list[float]


@dataclass(slots=True)
class UpdateResult:
    """What one optimizer step saw. `logprobs` are the policy's before the step, a list per datum.

    `applied` is False where the gradient was not finite and the weights were left as they were.
    """

    loss: float
    grad_norm: float
    lr: float
    kl: float
    entropy: float
    logprobs: list[list[float]] = field(default_factory=list)
    applied: bool = True


class Engine(Protocol):
    """Holds the policy and its frozen base, and hides every device.

    `version` counts the updates made. Every random choice comes from the `seed` that is passed in.
    """

    version: int
    context_length: int
    thinking: Thinking | None  # None: nothing interrupts it

    def render(self, system: str, user: str) -> list[int]:
        """The chat prompt as token ids, ready for a response."""
        ...

    def render_reply(self, text: str) -> list[int]:
        """What follows a response's stop token when an environment replies: its turn, as the user's."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """A response's text, without special tokens."""
        ...

    def sample(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
        which: Which = "policy",
    ) -> list[list[Sample]]:
        """`counts[i]` responses to `contexts[i]`, in one call; contexts are prefilled once each."""
        ...

    def logprobs(
        self,
        sequences: Sequence[tuple[list[int], list[int]]],
        which: Which,
        temperature: float = 1.0,
    ) -> list[list[float]]:
        """Per (context, response) the log-probability of every response token."""
        ...

    def update(self, data: Sequence[Datum]) -> UpdateResult:
        """One optimizer step on the configured loss."""
        ...

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments and warm up anew; the weights stay."""
        ...

    def save(self, directory: Path) -> None:
        """Write weights (Hugging Face format, under `model/`) and optimizer state."""
        ...

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote."""
        ...
