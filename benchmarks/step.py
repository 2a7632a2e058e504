"""How long one RL step takes: fastslow's local engine beside TRL's GRPOTrainer, on a CPU.

    pip install -e '.[bench]'
    python benchmarks/step.py                # both, in turns
    python benchmarks/step.py --dtype bf16   # in bf16, as each of them does it
    python benchmarks/step.py --kl           # with the pass through the frozen reference, on both sides
    python benchmarks/step.py --trl defaults # TRL as it comes
    python benchmarks/step.py --trl vllm     # TRL at its fastest, but sampling by vLLM in its process

On a machine that is not idle set OMP_WAIT_POLICY=passive, or waiting threads spin and steps take
ten times as long.

Compared: 16 problems x 8 rollouts become one optimizer step. Same shape and first weights (the
pocket model's shape, random), problems, reward, response length, threads; CISPO, AdamW, clipping. The
sides take turns, a step each, in a process of its own each, so that neither's memory or settings are
the other's; who waits does nothing. A step goes from text to the optimizer; TRL's from `on_step_begin`
to `on_step_end`, so that its data loader, logging and saving do not count. "sampling" is the time in
`engine.sample` or `generate`, "rest" all the rest.

Not compared: learning (rewards are hashes of the text), vLLM servers, GPUs, torch.compile, other shapes.
The work differs where the designs do: fastslow forwards once what rollouts share and keeps the
sampler's log-probabilities for its ratios; TRL forwards the prompt with each rollout, takes the
ratio of an on-policy step to be 1 and, where Triton is missing, runs prompt positions through the
output layer too. In bf16 fastslow has bf16 weights, FP32 masters and FP32 logits; TRL has FP32
weights under autocast (`bf16=True`, its default), or with `--trl-weights bf16` bf16 weights that AdamW
updates as they are. TRL has the settings that made it fastest here: micro-batches of 16 (128 at once
took longer), a static cache, no gradient checkpointing, fused AdamW, no logs, nothing on disk. With
`--trl defaults` the first three are its own: micro-batches of 8, a growing cache, checkpointing. With
`--trl vllm`, which wants vLLM beside it (`make test-vllm`, then TRL into that environment), what TRL
does to hand over weights fails on vLLM's CPU build and is replaced here; FLOPs in vLLM are not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import transformers
from common import (
    DTYPES,
    PRODUCTS,
    make_engine,
    matmul_peak,
    peak_mib,
    quiet,
    random_model,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from fastslow.collect import collect_groups, roll_out
from fastslow.config import SlowConfig
from fastslow.engine.base import SamplingParams
from fastslow.engine.vllm_plugin import repack_head
from fastslow.reuse import ReuseCache
from fastslow.rollout import Problem, Prompt, Score
from fastslow.slow.advantage import make_batch
from fastslow.tasks.star_graph import StarGraph

PROBLEMS, GROUP, TOKENS = 16, 8, 27
ROLLOUTS = PROBLEMS * GROUP
TAU, KL = 3.0, 1e-3
READY = "ready"
COLOCATED = {
    "use_vllm": True,
    "vllm_mode": "colocate",
    "vllm_gpu_memory_utilization": 0.1,
    "vllm_max_model_length": 256,
}


def reward(text: str) -> float:
    """Cheap, and practically never equal within a group, so that no filter drops anything."""
    return zlib.crc32(text.encode()) % 1000 / 1000


class Hashed(StarGraph):
    """Star-graph questions that make prompts of about 80 tokens, judged by `reward`."""

    def score(self, problem: Problem, response: str) -> Score:
        return Score(reward(response), "")


TASK = Hashed(degree=4, length=4, nodes=50)


def problems_of(step: int) -> Sequence[Problem]:
    return TASK.problems("train")[step * PROBLEMS : (step + 1) * PROBLEMS]


class Clock:
    """Seconds of each step and of its sampling; the first step's weight products are counted.

    With `turns` every step waits for its turn, and tells when it is over.
    """

    def __init__(self, turns: Connection | None = None) -> None:
        self.turns = turns
        self.steps: list[float] = []
        self.sampling: list[float] = []
        self.cpu: list[float] = []  # seconds of processor time, all threads'
        self.gflop = 0.0
        self._counter: FlopCounterMode | None = None
        self._running = False

    def begin(self) -> None:
        if self.turns is not None:
            self.turns.send(READY)
            self.turns.recv()
        if not self.steps:
            self._counter = FlopCounterMode(display=False, custom_mapping=PRODUCTS).__enter__()
        self.sampling.append(0.0)
        self._running, self._began = True, (time.perf_counter(), time.process_time())

    def end(self) -> None:
        self.steps.append(time.perf_counter() - self._began[0])
        self.cpu.append(time.process_time() - self._began[1])
        self._running = False
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            counts = self._counter.get_flop_counts()["Global"]
            self._counter = None
            weights = (*PRODUCTS, torch.ops.aten.mm, torch.ops.aten.addmm)  # attention's: bmm
            self.gflop = sum(counts.get(product, 0) for product in weights) / 1e9
        if self.turns is not None:
            self.turns.send(READY)

    def watch(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        """`sample`, with its seconds noted when a step is under way."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = sample(*args, **kwargs)
            if self._running:
                self.sampling[-1] += time.perf_counter() - began
            return result

        return timed

    def report(self, name: str, places: slice) -> dict[str, float]:
        """Print and return the medians of the steps at `places`."""
        steps, sampling = self.steps[places], self.sampling[places]
        rest = median(a - b for a, b in zip(steps, sampling, strict=True))
        row = {"step": median(steps), "sampling": median(sampling), "rest": rest}
        row |= {"fastest": min(steps), "cpu": median(self.cpu[places])}
        print(f"{name:22}" + "".join(f"{key:>10}{value:7.3f} s" for key, value in row.items()))
        return row


class Ours:
    """fastslow's side: what `fastslow.loop.learn` does, without its records on disk."""

    def __init__(
        self,
        source: Path,
        kl: float = 0.0,
        dtype: str = "fp32",
        tokens: int = TOKENS,
        clock: Clock | None = None,
    ) -> None:
        self.engine = make_engine(source, dtype, kl=kl)
        self.engine.slow.tau = TAU
        self.task, self.tokens = TASK, tokens
        self.params = SamplingParams(max_tokens=tokens)
        self.clock = clock or Clock()
        self.engine.sample = self.clock.watch(self.engine.sample)  # type: ignore[method-assign]

    def population(self, size: int) -> list[Prompt]:
        texts = [self.task.seed_prompt, *(f"Task {i}. Solve it well." for i in range(1, size))]
        return [Prompt(f"p{i}", text) for i, text in enumerate(texts)]

    def filled(self, population: Sequence[Prompt], problems: Sequence[Problem]) -> ReuseCache:
        """All rollouts that a step will ask for."""
        pairs = [(prompt, problem) for problem in problems for prompt in population]
        counts = [GROUP // len(population)] * len(pairs)
        rows = roll_out(self.engine, self.task, pairs, counts, self.params, seed=0)
        return ReuseCache(rollout for row in rows for rollout in row)

    def step(self, number: int, population: list[Prompt], cache: ReuseCache | None = None) -> None:
        source = (self.engine, self.task, problems_of(number), population, len(population), GROUP)
        self.clock.begin()
        groups = collect_groups(*source, cache or ReuseCache(), self.params, seed=number)
        batch = make_batch(groups, self.engine.slow)
        self.engine.update(batch.data)
        self.clock.end()
        assert [len(datum.tokens) for datum in batch.data] == [self.tokens] * ROLLOUTS


def train_with_trl(source: Path, args: argparse.Namespace, clock: Clock) -> None:
    """All steps with TRL."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    steps = args.warm + args.steps

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    def judge(completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        assert [len(ids) for ids in completion_ids] == [TOKENS] * ROLLOUTS
        return [reward(completion[0]["content"]) for completion in completions]

    system = {"role": "system", "content": TASK.seed_prompt}
    questions = [problem.prompt for step in range(steps) for problem in problems_of(step)]
    weights = getattr(torch, DTYPES[args.trl_weights])
    defaults, vllm = args.trl == "defaults", args.trl == "vllm"
    batch = 8 if defaults else args.trl_batch
    mixed = args.dtype == "bf16" and args.trl_weights == "fp32"  # a static cache fails there
    model = AutoModelForCausalLM.from_pretrained(source, dtype=weights)
    model.generate = clock.watch(model.generate)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=ROLLOUTS // batch,  # all 128 are generated at once
            num_generations=GROUP,
            max_completion_length=TOKENS,
            generation_kwargs={"min_tokens" if vllm else "min_new_tokens": TOKENS},
            loss_type="cispo",
            epsilon_high=TAU,
            beta=KL if args.kl else 0.0,
            learning_rate=SlowConfig().lr,
            cache_implementation=None if mixed or defaults else "static",
            use_cpu=True,
            bf16=args.dtype == "bf16",
            gradient_checkpointing=defaults,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **(COLOCATED if vllm else {}),
        )
        trainer = GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=judge,
            train_dataset=Dataset.from_list(
                [{"prompt": [system, {"role": "user", "content": text}]} for text in questions]
            ),
            processing_class=AutoTokenizer.from_pretrained(source),
            callbacks=[Turns()],
        )
        if vllm:
            sample_with_vllm(trainer, clock)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def sample_with_vllm(trainer: Any, clock: Clock) -> None:
    """Watch TRL's vLLM, and give it new weights in a way that its CPU build, too, can take."""
    there = trainer.vllm_generation

    def sync() -> None:
        weights = ((name, p.detach()) for name, p in trainer.model.named_parameters())
        there.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        there.llm.apply_model(repack_head)
        there.llm.reset_prefix_cache()

    there.generate, there.sync_weights = clock.watch(there.generate), clock.watch(sync)


def one_side(name: str, source: Path, args: argparse.Namespace, turns: Connection) -> None:
    """What one side's process does; at the end it sends its clock and what else it knows."""
    quiet(args.threads)
    clock = Clock(turns)
    if name == "trl":
        facts = {"before_mib": peak_mib()}
        train_with_trl(source, args, clock)
    else:
        ours = Ours(source, KL if args.kl else 0.0, args.dtype, clock=clock)
        asked = [ours.engine.render(TASK.seed_prompt, p.prompt) for p in problems_of(0)]
        facts = {"before_mib": peak_mib(), "prompt_tokens": fmean(map(len, asked))}
        for number in range(args.warm + args.steps):
            ours.step(number, ours.population(1))
    clock.turns = None  # it cannot be sent
    turns.send((clock, facts | {"peak_mib": peak_mib()}))


def take_turns(source: Path, args: argparse.Namespace) -> dict[str, tuple[Clock, dict[str, float]]]:
    """A step of each side, and again, until both have sent what they measured."""
    context = get_context("spawn")
    sides: dict[str, tuple[Connection, BaseProcess]] = {}
    for name in ("fastslow", "trl"):
        side, turns = context.Pipe()
        process = context.Process(target=one_side, args=(name, source, args, turns), daemon=True)
        process.start()
        turns.close()
        sides[name] = side, process
    try:
        told = {name: side.recv() for name, (side, _) in sides.items()}
        while READY in told.values():
            for name, (side, process) in sides.items():
                side.send(READY)
                side.recv()  # its step is over
                told[name] = side.recv()  # and it is ready for the next, or through
                if told[name] != READY:
                    process.join()  # to leave takes time, too
    except (EOFError, OSError):
        for _, process in sides.values():
            process.terminate()
        sys.exit("One of the two processes has ended before its time; it says why above.")
    return told


def compare(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    found = take_turns(source, args)
    length = found["fastslow"][1]["prompt_tokens"]
    print(f"{PROBLEMS} x {GROUP} rollouts of {TOKENS} tokens after {length:.0f}, ", end="")
    print(f"{args.dtype}, KL {KL if args.kl else 0}, {args.threads} threads")
    print(f"medians of {args.steps} steps after {args.warm}\n")
    dtype, counted = getattr(torch, DTYPES[args.dtype]), slice(args.warm, None)
    peak = matmul_peak(dtype=dtype)
    figures: dict[str, Any] = {"matmul_gflops": peak}
    for name, (clock, facts) in found.items():
        row = clock.report(name, counted) | facts
        share = clock.gflop / row["step"] / peak
        figures[name] = row | {"gflop": clock.gflop, "share_of_peak": share}
        print(f"{'':25}{clock.gflop:.1f} GFLOP of weight products, {share:.0%} of the matmul peak")
        print(
            f"{'':25}peak memory {row['peak_mib']:.0f} MiB, {row['before_mib']:.0f} before a step"
        )
    print(f"matmul peak: {peak:.0f} GFLOP/s in {args.dtype}")
    for name, kind in (("ratio", "steps"), ("cpu_ratio", "cpu")):
        mine, trl = (getattr(clock, kind)[counted] for clock, _ in found.values())
        ratios = sorted(b / a for a, b in zip(mine, trl, strict=True))
        figures[name] = median(ratios)
        print(f"TRL / fastslow, {'processor time' if kind == 'cpu' else 'time'}: ", end="")
        print(f"{median(ratios):.2f}, over turns {ratios[0]:.2f} to {ratios[-1]:.2f}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--kl", action="store_true", help=f"KL to the reference, {KL}, both sides")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2, help="steps before those that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", choices=["fastest", "defaults", "vllm"], default="fastest")
    parser.add_argument("--trl-batch", type=int, default=16, help="TRL's micro-batch, divides 128")
    parser.add_argument("--trl-weights", choices=list(DTYPES), default="fp32")
    args = parser.parse_args()
    if find_spec("trl") is None:
        sys.exit("This compares with TRL 1.16: pip install -e '.[bench]'")
    quiet(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = compare(random_model(Path(folder)), args)
    print(json.dumps(vars(args) | figures))


if __name__ == "__main__":
    main()
