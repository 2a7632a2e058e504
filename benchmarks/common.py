"""What the benchmarks share: random models, batches of exact lengths, clocks, the machine's peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastslow import pocket
from fastslow.config import Config
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.engine.memory import peak_memory
from fastslow.engine.products import linear

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def linear_flop(rows: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    return 2 * torch.Size(rows).numel() * weight[0]


# What `linear` calls, with its FLOP by the shapes of what it is given, for PyTorch's FlopCounterMode.
PRODUCTS = {torch.ops.mkldnn._linear_pointwise: linear_flop}


def quiet(threads: int) -> None:
    """So many threads, one seed, no chatter."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # TRL's use of older transformers names


def random_model(
    directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu", **sizes: Any
) -> Path:
    """Write a model of the pocket model's layout, `sizes` changed, with random weights."""
    shape = AutoConfig.from_pretrained(pocket.path())
    if "num_hidden_layers" in sizes:
        sizes["layer_types"] = ["full_attention"] * sizes["num_hidden_layers"]
    shape.update(sizes)
    with torch.device(device):
        AutoModelForCausalLM.from_config(shape, dtype=dtype).save_pretrained(directory)
    AutoTokenizer.from_pretrained(pocket.path()).save_pretrained(directory)
    return directory


def make_engine(source: Path, dtype: str = "fp32", **settings: Any) -> LocalEngine:
    """fastslow's engine on a model of `random_model`; no response ends before its last token."""
    config = Config()
    config.model.name, config.model.device = str(source), settings.pop("device", "cpu")
    config.model.dtype = DTYPES[dtype]  # type: ignore[assignment]
    config.slow.kl, config.slow.warmup = settings.pop("kl", 0.0), 0
    for section in (config.model, config.engine):
        for name in settings.keys() & type(section).model_fields.keys():
            setattr(section, name, settings.pop(name))
    assert not settings, settings
    engine = LocalEngine(config)
    engine.stops = []
    return engine


@dataclass(frozen=True, slots=True)
class Load:
    """A step's work: `problems` x `group` rollouts under `prompts` system prompts; lengths in tokens."""

    problems: int = 16
    group: int = 8
    prompts: int = 1
    system: int = 15  # as long as star-graph's seed prompt with the chat template's marks
    question: int = 62
    response: int = 27
    shared: bool = True  # False: no two rollouts have a token of their contexts in common

    @property
    def rollouts(self) -> int:
        return self.problems * self.group

    def contexts(self, vocabulary: int, seed: int = 0) -> list[list[int]]:
        """One per problem and prompt: the prompt, then the problem, random tokens both.

        Unshared, one per rollout.
        """
        rng = torch.Generator().manual_seed(seed)

        def draw(count: int, length: int) -> list[list[int]]:
            return torch.randint(5, vocabulary, (count, length), generator=rng).tolist()

        if not self.shared:
            return draw(self.rollouts, self.system + self.question)
        systems = draw(self.prompts, self.system)
        questions = draw(self.problems, self.question)
        return [system + question for question in questions for system in systems]


def sample(engine: LocalEngine, load: Load, seed: int = 0) -> list[Datum]:
    """Sample a step's rollouts, and give them random advantages."""
    contexts = load.contexts(min(1000, engine.policy.config.vocab_size), seed)
    counts = [load.rollouts // len(contexts)] * len(contexts)
    params = SamplingParams(max_tokens=load.response)
    rows = engine.sample(contexts, counts, params, seed)
    rng = torch.Generator().manual_seed(seed)
    advantages = iter(torch.randn(load.rollouts, generator=rng).tolist())
    weights = [1 / (load.rollouts * load.response)] * load.response
    data = [
        Datum(context, drawn.tokens, drawn.logprobs, weights, [next(advantages)] * load.response)
        for context, row in zip(contexts, rows, strict=True)
        for drawn in row
    ]
    assert [len(datum.tokens) for datum in data] == [load.response] * load.rollouts
    return data


def wait(device: str | torch.device = "cpu") -> None:
    """Let a device finish what it was asked to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def rate(
    work: Callable[[], Any],
    flop: float,
    tries: int = 12,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The best GFLOP/s of several tries at `work`, after one that does not count."""
    work()
    seconds = []
    for _ in range(tries):
        wait(device)
        began = clock()
        work()
        wait(device)
        seconds.append(clock() - began)
    return flop / min(seconds) / 1e9


def matmul_peak(
    size: int = 2048,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The best GFLOP/s that this process gets out of a square product, PyTorch's or fastslow's."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products: list[Callable[[], Tensor]] = [lambda: torch.mm(a, b), lambda: linear(a, b)]
    return max(rate(product, 2 * size**3, 12, device, clock) for product in products)


def gflop_of(work: Callable[[], Any]) -> float:
    """GFLOP of all products that `work` makes."""
    with FlopCounterMode(display=False, custom_mapping=PRODUCTS) as counter:
        work()
    return counter.get_total_flops() / 1e9


def peak_mib() -> float:
    """The most memory that this process has had so far, in MiB; it never falls."""
    return peak_memory() / 2**20


def alone(script: str, *arguments: object, threads: int | None = None) -> dict[str, Any]:
    """The last line, JSON, of a benchmark run in a process of its own."""
    more = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    found = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env=os.environ | more,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    row: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return row
