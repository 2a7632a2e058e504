"""A Tinker server in this process, behind the client library's interface: real weights, plain PyTorch.

For what a real server cannot be made to do at will: stop in the middle, answer late, lack something.
It keeps the hazard of SkyRL's JAX backend: to sample from an older client loads those weights into the
learner.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fastslow.engine.tinker_server import Client


@dataclass
class Handle:
    """A training request, as the client library hands it out: not a plain future."""

    inner: Future

    def future(self) -> Future:
        return self.inner

    def result(self, timeout: float | None = None) -> Any:
        return self.inner.result(timeout)


@dataclass
class Server:
    """`fault(kind)` is called before each request: it may raise, or return a future to answer with."""

    model: Path
    reduction: str = "sum"
    lacks: set[str] = field(default_factory=set)
    fault: Callable[[str], Future | None] = lambda kind: None
    saved: dict[str, Any] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    seeds: list[int] = field(default_factory=list)

    def client(self) -> Client:
        names = SimpleNamespace(
            ModelInput=SimpleNamespace(from_ints=list),
            SamplingParams=lambda **more: SimpleNamespace(**more),
            AdamParams=lambda **more: SimpleNamespace(**more),
            Datum=lambda **more: SimpleNamespace(**more),
        )
        return Client(self, names, (ConnectionError, TimeoutError))

    def do(self, kind: str, work: Callable[[], Any]) -> Future:
        self.seen[kind] += 1
        future = Future()
        try:
            if kind in self.lacks:
                raise ValueError(f"no {kind} here")
            instead = self.fault(kind)
            if instead is not None:
                return instead
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)
        return future

    def get_server_capabilities(self) -> Any:
        served = SimpleNamespace(model_name=str(self.model), max_context_length=None)
        return SimpleNamespace(supported_models=[served])

    def create_lora_training_client(self, model: str, rank: int, seed: int) -> Training:
        return self.do(f"rank {rank}", lambda: Training(self)).result()

    def create_sampling_client(self, base_model: str) -> Sampling:
        return Sampling(self, None, load(self.model))


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def forward(model: Any, datum: Any) -> torch.Tensor:
    """Log-probabilities of a datum's targets."""
    targets = torch.tensor(datum.loss_fn_inputs["target_tokens"])
    logits = model(input_ids=torch.tensor([datum.model_input])).logits[0]
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


class Training:
    """The learner: full fine-tuning by AdamW."""

    def __init__(self, server: Server) -> None:
        self.server, self.weights = server, load(server.model)
        self.optimizer = torch.optim.AdamW(self.weights.parameters(), weight_decay=0.0)
        self.sequences = self.made = 0
        self.current: Sampling | None = None

    def _losses(self, data: list[Any], loss: str, settings: dict[str, float] | None) -> list[Any]:
        rows = []
        for datum in data:
            given = {key: torch.tensor(row) for key, row in datum.loss_fn_inputs.items()}
            logp = forward(self.weights, datum)
            if loss == "cross_entropy":
                loss_T = -logp * given["weights"]
            else:
                rho = (logp - given["logprobs"]).exp()
                if loss == "cispo":
                    bounds = settings["clip_low_threshold"], settings["clip_high_threshold"]
                    rho = rho.detach().clamp(*bounds) * logp
                loss_T = -rho * given["advantages"]
            rows.append((logp, loss_T))
        return rows

    def _output(self, rows: list[Any]) -> Any:
        outputs = [
            {"logprobs": logp.detach().tolist(), "elementwise_loss": loss_T.detach().tolist()}
            for logp, loss_T in rows
        ]
        return SimpleNamespace(loss_fn_outputs=outputs, metrics={})

    def forward(self, data: list[Any], loss: str, settings: Any = None) -> Handle:
        def work() -> Any:
            with torch.no_grad():
                return self._output(self._losses(data, loss, settings))

        return Handle(self.server.do(f"forward {loss}", work))

    def forward_backward(self, data: list[Any], loss: str, settings: Any = None) -> Handle:
        def work() -> Any:
            rows = self._losses(data, loss, settings)
            for _, loss_T in rows:
                (loss_T.mean() if self.server.reduction == "mean" else loss_T.sum()).backward()
            self.sequences += len(data)
            return self._output(rows)

        return Handle(self.server.do(f"forward_backward {loss}", work))

    def optim_step(self, adam: Any) -> Handle:
        def work() -> Any:
            group = self.optimizer.param_groups[0]
            group |= {"lr": adam.learning_rate, "betas": (adam.beta1, adam.beta2), "eps": adam.eps}
            parameters = list(self.weights.parameters())
            if self.server.reduction == "mean":
                for parameter in parameters:
                    parameter.grad /= self.sequences
            norm = torch.nn.utils.clip_grad_norm_(parameters, adam.grad_clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.sequences, self.current = 0, None
            return SimpleNamespace(metrics={"grad_norm": float(norm)})

        return Handle(self.server.do("optim_step", work))

    def save_state(self, name: str) -> Handle:
        def work() -> Any:
            assert name not in self.server.saved
            parts = self.weights.state_dict(), self.optimizer.state_dict()
            self.server.saved[name] = copy.deepcopy(parts)
            return SimpleNamespace(path=name)

        return Handle(self.server.do("save_state", work))

    def load_state_with_optimizer(self, path: str) -> Handle:
        def work() -> None:
            weights, optimizer = copy.deepcopy(self.server.saved[path])
            self.weights.load_state_dict(weights)
            self.optimizer.load_state_dict(optimizer)

        return Handle(self.server.do("load_state", work))

    def save_weights_and_get_sampling_client(self) -> Sampling:
        def work() -> Sampling:
            self.current = Sampling(self.server, self, copy.deepcopy(self.weights))
            return self.current

        return self.server.do("sampler", work).result()


class Sampling:
    """Samples of the weights as they were when it was made."""

    def __init__(self, server: Server, training: Training | None, weights: Any) -> None:
        self.server, self.training, self.weights = server, training, weights

    def sample(self, prompt: list[int], count: int, params: Any) -> Future:
        def work() -> Any:
            self.server.seeds.append(params.seed)
            if self.training is not None and self is not self.training.current:
                self.server.seen["older weights loaded"] += 1
                self.training.weights.load_state_dict(self.weights.state_dict())
            found = [self._draw(prompt, params, params.seed + n) for n in range(count)]
            return SimpleNamespace(sequences=found)

        return self.server.do("sample", work)

    @torch.no_grad()
    def _draw(self, prompt: list[int], params: Any, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < params.max_tokens and (not tokens or tokens[-1] not in params.stop):
            logits = self.weights(input_ids=torch.tensor([prompt + tokens])).logits[0, -1]
            logp = (logits / params.temperature).log_softmax(-1)
            tokens.append(int(torch.multinomial(logp.exp(), 1, generator=generator)))
            logprobs.append(float(logp[tokens[-1]]))
        reason = "stop" if tokens[-1] in params.stop else "length"
        return SimpleNamespace(tokens=tokens, logprobs=logprobs, stop_reason=reason)

    def compute_logprobs(self, prompt: list[int]) -> Future:
        def work() -> list[float | None]:
            datum = SimpleNamespace(
                model_input=prompt[:-1], loss_fn_inputs={"target_tokens": prompt[1:]}
            )
            with torch.no_grad():
                return [None, *forward(self.weights, datum).tolist()]

        return self.server.do("prompt log-probabilities", work)
