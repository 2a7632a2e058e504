"""The Tinker engine: the policy on any server that speaks the Tinker API, this process its client.

SkyRL on one's own GPUs, or a hosted service (docs/cluster.md). Requests of a stage are in flight side
by side (`tinker_requests`); what changes the weights is sent once (`tinker_server.Line`); the server's
state is saved at every checkpoint, and a resumed run continues from there.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from fastslow.config import Config
from fastslow.engine.base import Datum, Sample, SamplingParams, UpdateResult, Which
from fastslow.engine.loading import first_line, load_tokenizer
from fastslow.engine.text import ChatText, stop_tokens, thinking_limit
from fastslow.engine.tinker_data import Wire, judge, read_logprobs
from fastslow.engine.tinker_probe import find_out
from fastslow.engine.tinker_requests import Requests, in_background
from fastslow.engine.tinker_server import (
    Client,
    check_model,
    check_settings,
    connect,
    context_of,
    end_tokens,
    model_name,
)
from fastslow.errors import ConfigError, ModelError, RunError

STATE = "tinker.json"
PASS = 64  # sequences in one request for log-probabilities
SEEDS = 2**31  # servers take 32-bit seeds
ADAM_EPSILON = 1e-8  # as PyTorch's, and so the local engine's


class TinkerEngine:
    """Holds theta on a server. See `fastslow.engine.base.Engine` for the protocol.

    What the server lacks is a ConfigError here, before the first rollout. `counts` tells of requests:
    sent, answered, sent again (`failed`, `late`), and of steps whose gradient exceeded `slow.clip`
    (`over_clip`). `client` may be one that is connected already.
    """

    def __init__(self, config: Config, client: Client | None = None) -> None:
        self.config, self.slow, self.settings = config, config.slow, config.engine
        check_settings(config)
        self.model = model_name(self.settings)
        source = self.settings.tokenizer or self.model
        tokenizer = load_tokenizer(source)
        self.text = ChatText(
            tokenizer,
            stop_tokens(tokenizer, end_tokens(source), config.sampling.stop),
            f"engine.model = {source!r}",
            config.model.thinking,
        )
        self.thinking = thinking_limit(tokenizer, config.sampling)
        self.client = client or connect(self.settings)
        self.requests = Requests(
            self.settings.in_flight,
            self.settings.deadline,
            self.settings.attempts,
            self.client.transient,
            away=self.client.away,
            patience=self.settings.patience,
        )
        self.counts = self.requests.counts
        served = check_model(self.client, self.settings)
        self.context_length: int = self.settings.context_length or served or context_of(source)
        self.version = 0  # updates made
        self.steps = 0  # of the optimizer
        self._sampler: Any = None  # of `version`; None once the weights have changed
        self.training = self._create_policy()
        self._base = self._sampler_of_the_base()
        self.wire = Wire(self.client.types)
        self.able = find_out(self)
        self.wire.reduction = self.able.reduction

    # -- text -----------------------------------------------------------------------------------

    def render(self, system: str, user: str) -> list[int]:
        return self.text.render(system, user)

    def render_reply(self, text: str) -> list[int]:
        return self.text.render_reply(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.text.decode(tokens)

    # -- sampling -------------------------------------------------------------------------------

    def sample(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
        which: Which = "policy",
    ) -> list[list[Sample]]:
        """A late request is sent again with its seed: were it drawn anew, long responses would be rarer.

        Log-probabilities are the server's; at a temperature other than 1 servers differ in what they tell.
        """
        wanted = [place for place, count in enumerate(counts) if count]
        results: list[list[Sample]] = [[] for _ in contexts]
        if not wanted:
            return results
        sampler = self._fresh_sampler() if which == "policy" else self._base
        rng = random.Random(seed)
        sends = []
        for place in wanted:
            count, room = counts[place], self._room(contexts[place])
            drawn = self.client.types.SamplingParams(
                max_tokens=min(params.max_tokens, room),
                temperature=params.temperature,
                top_p=params.top_p,
                stop=self.text.stops,
                seed=rng.randrange(SEEDS - count),  # one sample's seed follows the other's
            )
            prompt = self.wire.prompt(contexts[place])
            sends.append(lambda p=prompt, n=count, d=drawn: sampler.sample(p, n, d))
        answers = self._all(sends, "sampling")
        for place, answer in zip(wanted, answers, strict=True):
            results[place] = self._read(answer, counts[place])
        return results

    def _room(self, context: list[int]) -> int:
        room = self.context_length - len(context)
        if room < 1:
            raise ConfigError(
                f"a prompt of {len(context)} tokens leaves no room in the model's context of "
                f"{self.context_length}; shorten the task's problems or lower fast.max_chars"
            )
        return room

    def _read(self, answer: Any, count: int) -> list[Sample]:
        samples = [
            Sample(list(found.tokens), list(found.logprobs or []), found.stop_reason == "length")
            for found in answer.sequences
        ]
        if len(samples) != count or any(len(s.tokens) != len(s.logprobs) for s in samples):
            raise RunError(
                f"the Tinker server answered {len(samples)} samples of {count}, or some without their "
                "log-probabilities; the step cannot be made"
            )
        if not all(math.isfinite(value) for sample in samples for value in sample.logprobs):
            raise ModelError(
                f"the policy's log-probabilities are not finite after {self.version} updates: training "
                "diverged; lower slow.lr or slow.clip"
            )
        return samples

    def _fresh_sampler(self) -> Any:
        """A sampling client of the present weights, made after the last update and for it alone.

        To sample from an older one would be worse than stale: SkyRL's JAX backend then loads those older
        weights into the learner (seen with 0.3.0).
        """
        if self._sampler is None:
            self._sampler = self._one(
                lambda: in_background(self.training.save_weights_and_get_sampling_client),
                "weights for sampling",
            )
        return self._sampler

    # -- scoring and learning -------------------------------------------------------------------

    def logprobs(
        self,
        sequences: Sequence[tuple[list[int], list[int]]],
        which: Which,
        temperature: float = 1.0,
    ) -> list[list[float]]:
        if temperature != 1:
            raise ConfigError(f"a Tinker server scores at temperature 1, not {temperature}")
        results: list[list[float]] = [[] for _ in sequences]
        wanted = [place for place, (_, tokens) in enumerate(sequences) if tokens]
        if which == "base":
            prompts = [self.wire.prompt([*sequences[p][0], *sequences[p][1]]) for p in wanted]
            rows = self._all(
                [lambda p=prompt: self._base.compute_logprobs(p) for prompt in prompts],
                "log-probabilities of the base",
            )
            for place, row in zip(wanted, rows, strict=True):
                # SkyRL leaves out the first token, others say None for it: the response's are the last.
                results[place] = [float(value) for value in row[-len(sequences[place][1]) :]]
            return results
        parts = [wanted[start : start + PASS] for start in range(0, len(wanted), PASS)]
        batches = [[self.wire.scored(*sequences[place]) for place in part] for part in parts]
        answers = self._all(
            [lambda b=batch: self.training.forward(b, "cross_entropy") for batch in batches],
            "log-probabilities",
        )
        for part, answer in zip(parts, answers, strict=True):
            for place, output in zip(part, answer.loss_fn_outputs, strict=True):
                results[place] = read_logprobs(output, len(sequences[place][1]))
        return results

    def update(self, data: Sequence[Datum]) -> UpdateResult:
        """One optimizer step. CISPO without KL is the server's own loss where it has that (one pass).

        Anything else is a forward pass and, from its log-probabilities, the gradient that the loss has on
        them, which the server then carries on to the weights.
        """
        slow = self.slow
        sequences = [(datum.context, datum.tokens) for datum in data]
        base = self.logprobs(sequences, "base") if slow.kl else None
        if self.able.cispo and slow.loss == "cispo" and base is None:
            rated = [
                self.wire.rated(datum, datum.logprobs, _weighted(datum), len(data))
                for datum in data
            ]
            ratios = {"clip_low_threshold": 0.0, "clip_high_threshold": slow.tau}
            outputs = self.learn(rated, "cispo", ratios)
            logprobs = [
                read_logprobs(output, len(datum.tokens))
                for output, datum in zip(outputs, data, strict=True)
            ]
            judged = judge(slow, data, logprobs, None)
            if not math.isfinite(judged.loss):
                raise ModelError(
                    f"the loss of update {self.version + 1} is not finite: training diverged; lower "
                    "slow.lr, then continue with 'fastslow resume'"
                )
        else:
            logprobs = self.logprobs(sequences, "policy")
            judged = judge(slow, data, logprobs, base)
            if not math.isfinite(judged.loss):  # nothing was sent: the weights stay as they are
                self.version, self.steps = self.version + 1, self.steps + 1
                return UpdateResult(
                    judged.loss, math.nan, self._rate(), judged.kl, judged.entropy, logprobs, False
                )
            rows = zip(data, logprobs, judged.slopes, strict=True)
            if self.able.reduction == "sum":
                weighted = [self.wire.weighted(datum, slopes) for datum, _, slopes in rows]
                self.learn(weighted, "cross_entropy")
            else:  # it would divide by the sum of the weights, which may be 0: a ratio of 1 carries them
                weighted = [self.wire.rated(*row, len(data)) for row in rows]
                self.learn(weighted, "importance_sampling")
        self.version, self.steps = self.version + 1, self.steps + 1
        norm = self.step()
        return UpdateResult(
            judged.loss, norm, self._rate(), judged.kl, judged.entropy, logprobs, True
        )

    def _rate(self) -> float:
        return self.slow.lr * min(1.0, self.steps / max(1, self.slow.warmup))

    def learn(
        self, data: list[Any], loss: str, settings: dict[str, float] | None = None
    ) -> list[Any]:
        """Gradients on the server; its outputs per sequence."""
        return self._once(
            lambda: self.training.forward_backward(data, loss, settings),
            f"gradients of update {self.version + 1}",
        ).loss_fn_outputs

    def step(self, rate: float | None = None) -> float:
        """The optimizer's step on the gradients so far: their norm before clipping, NaN if untold."""
        slow = self.slow
        adam = self.client.types.AdamParams(
            learning_rate=self._rate() if rate is None else rate,
            beta1=slow.betas[0],
            beta2=slow.betas[1],
            eps=ADAM_EPSILON,
            weight_decay=slow.weight_decay,
            grad_clip_norm=slow.clip,
        )
        self._sampler = None
        answer = self._once(lambda: self.training.optim_step(adam), f"update {self.version}")
        metrics = answer.metrics or {}
        norm = next((v for key, v in metrics.items() if key.endswith("grad_norm")), math.nan)
        self.counts["over_clip"] += norm > slow.clip
        return float(norm)

    def reset_optimizer(self) -> None:
        raise ConfigError("a Tinker server's optimizer cannot be reset")  # refused at the start

    # -- disk -----------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """Have the server save weights and optimizer; write down where, with the version."""
        path = self.save_state()
        state = {
            "path": path,
            "version": self.version,
            "steps": self.steps,
            "base_url": self.settings.base_url,
            "model": self.model,
            "lora_rank": self.settings.lora_rank,
            "counts": dict(self.counts),
        }
        (directory / STATE).write_text(json.dumps(state, indent=2) + "\n")

    def save_state(self) -> str:
        def send() -> (
            Any
        ):  # a name of its own for each attempt: a server refuses the same one twice
            return self.training.save_state(f"v{self.version:06d}-{uuid4().hex[:8]}")

        return self._one(send, "saving the server's state").path

    def load(self, directory: Path) -> None:
        try:
            state = json.loads((directory / STATE).read_text())
            path, version, steps = state["path"], state["version"], state["steps"]
            known = state["model"], state["lora_rank"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{directory / STATE}: damaged checkpoint ({error})") from None
        if known != (self.model, self.settings.lora_rank):
            raise RunError(
                f"{directory / STATE}: saved from engine.model, engine.lora_rank = {known}, but the "
                f"configuration has {(self.model, self.settings.lora_rank)}"
            )
        try:
            self.load_state(path)
        except Exception as error:
            raise RunError(
                f"{directory / STATE}: {self.settings.base_url} cannot load {path} ({first_line(error)}); "
                "start the server on the database and checkpoints that it had"
            ) from None
        self.version, self.steps, self._sampler = version, steps, None
        self.counts.update(state.get("counts", {}))

    def load_state(self, path: str) -> None:
        self._one(lambda: self.training.load_state_with_optimizer(path), "loading a state")
        self._sampler = None

    # -- the server -----------------------------------------------------------------------------

    def _create_policy(self) -> Any:
        rank = self.settings.lora_rank

        def create() -> Any:
            return self.client.service.create_lora_training_client(
                self.model, rank=rank, seed=self.config.run.seed % SEEDS
            )

        try:
            return self.requests.one(lambda: in_background(create), "creating the model")
        except RunError:
            raise
        except Exception as error:
            wish = f"adapters of rank {rank}" if rank else "full fine-tuning"
            way = "a rank that it takes" if rank else "engine.lora_rank: 32"
            raise ConfigError(
                f"engine.lora_rank = {rank}: {self.settings.base_url} refuses {wish} "
                f"({first_line(error)}); set {way}, or start the server with it"
            ) from None

    def _sampler_of_the_base(self) -> Any:
        service = self.client.reference or self.client.service
        make = service.create_sampling_client
        return self._one(
            lambda: in_background(lambda: make(base_model=self.model)), "a client of the base"
        )

    def _one(self, send: Any, what: str) -> Any:
        return self._all([send], what)[0]

    def _once(self, send: Any, what: str) -> Any:
        """The answer to a request that must not be repeated."""
        return self._all([send], what, attempts=1)[0]

    def _all(self, sends: list[Any], what: str, attempts: int | None = None) -> list[Any]:
        try:
            return self.requests.all(sends, what, attempts)
        except RunError:
            raise
        except Exception as error:
            raise self._stopped(error, what) from error

    def _stopped(self, error: Exception, what: str) -> RunError:
        """After this the server's weights are not known to be ours: the last checkpoint's are."""
        said = f"{type(error).__name__}: {first_line(error)}"
        return RunError(
            f"{self.settings.base_url}: {what} failed ({said}); the run stops at its last checkpoint: once "
            "the server is well, continue with 'fastslow resume'"
        )


def _weighted(datum: Datum) -> list[float]:
    return [a * w for a, w in zip(datum.advantages, datum.weights, strict=True)]
