"""What a Tinker server does with what it is sent: found out by sending it something small.

Servers differ in losses, in how they add up a batch and in what they tell; their capabilities call
names models alone. Everything that a run needs is tried once here, on the fresh policy, whose state is
then put back: saving and loading are tried with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.loading import first_line
from fastslow.engine.tinker_data import Reduction, read_logprobs
from fastslow.errors import ConfigError

if TYPE_CHECKING:
    from fastslow.engine.tinker import TinkerEngine


@dataclass(frozen=True)
class Able:
    """`cispo`: the server's own loss of that name is ours. `reduction`: how it adds up a batch."""

    cispo: bool
    reduction: Reduction


def find_out(engine: TinkerEngine) -> Able:
    """Raises ConfigError, with the way round, where something that any run needs is missing."""
    context = engine.render("Be brief.", "Hello.")
    tokens = _need(
        lambda: engine.sample([context], [1], SamplingParams(max_tokens=2), seed=0)[0][0].tokens,
        engine,
        "does not sample with log-probabilities",
        "every method needs them: give the server its inference engine (docs/cluster.md)",
    )
    logprobs = _need(
        lambda: engine.logprobs([(context, tokens)], "policy")[0],
        engine,
        "does not score responses in a forward pass",
        "every method needs it: use a server that answers forward with log-probabilities",
    )
    base = _need(
        lambda: engine.logprobs([(context, tokens)], "base")[0],
        engine,
        "gives no log-probabilities of the base (prompt log-probabilities)",
        "KL to the base and evaluation need them: point engine.reference_url at a second server that "
        "serves the frozen base",
    )
    if len(base) != len(tokens) or not all(map(math.isfinite, base)):
        raise ConfigError(
            f"{engine.settings.base_url}: it gives {len(base)} finite log-probabilities of the base for "
            f"{len(tokens)} tokens; point engine.reference_url at a server that gives all of them"
        )
    start = _need(
        engine.save_state,
        engine,
        "cannot save its state",
        "a run could not resume: give the server a place for checkpoints",
    )
    ones = [1.0] * len(tokens)
    reduction = _need(
        lambda: _reduction(engine, Datum(context, tokens, logprobs, ones, ones)),
        engine,
        "cannot learn (forward_backward, optim_step)",
        "train with engine.kind: local, or use a server that trains",
    )
    _need(
        lambda: engine.load_state(start),
        engine,
        "cannot load the state that it saved",
        "a run could not resume: give the server a place for checkpoints that lasts",
    )
    return Able(_cispo(engine, context, tokens, logprobs), reduction)


def _need(attempt: Any, engine: TinkerEngine, lack: str, way: str) -> Any:
    try:
        return attempt()
    except ConfigError:
        raise
    except Exception as error:
        said = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ConfigError(
            f"engine.base_url = {engine.settings.base_url!r}: this server {lack} "
            f"({first_line(said)}); {way}"
        ) from None


def _cispo(
    engine: TinkerEngine, context: list[int], tokens: list[int], logprobs: list[float]
) -> bool:
    """Whether the server's loss of that name is ours, told by its value where the ratio is truncated."""
    tau = engine.slow.tau
    behaviour = [value - math.log(2 * tau) for value in logprobs]  # ratios of 2 tau
    datum = Datum(context, tokens, behaviour, [1.0] * len(tokens), [1.0] * len(tokens))
    data = [engine.wire.rated(datum, behaviour, datum.advantages, 1)]
    ratios = {"clip_low_threshold": 0.0, "clip_high_threshold": tau}
    try:
        answer = engine.requests.one(
            lambda: engine.training.forward(data, "cispo", ratios), "a loss by the name of CISPO"
        )
        losses = read_logprobs(
            {"logprobs": answer.loss_fn_outputs[0]["elementwise_loss"]}, len(tokens)
        )
    except Exception:  # unknown to this server, or it does not tell: the forward pass does as well
        return False
    expected = [-tau * value for value in logprobs]
    return all(
        math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-3)
        for a, b in zip(losses, expected, strict=True)
    )


def _reduction(engine: TinkerEngine, datum: Datum) -> Reduction:
    """Twice the data has twice the gradient where losses are added up, and the same where averaged."""
    norms = []
    for copies in (1, 2):
        data = [engine.wire.rated(datum, datum.logprobs, datum.advantages, 1)] * copies
        engine.learn(data, "importance_sampling")
        norms.append(engine.step(rate=0.0))
    if not all(map(math.isfinite, norms)) or norms[0] == 0:
        return "sum"  # untold: as the API documents
    return "sum" if norms[1] > 1.5 * norms[0] else "mean"
