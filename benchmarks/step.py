"""How long one RL step takes: fastslow's local engine beside TRL's GRPOTrainer, on a CPU.

    pip install -e '.[bench]'
    python benchmarks/step.py                # both, in turns
    python benchmarks/step.py --dtype bf16   # in bf16, as each of them does it
    python benchmarks/step.py --kl           # with the pass through the frozen reference, on both sides
    python benchmarks/step.py --trl defaults # TRL as it comes

On a machine that is not idle set OMP_WAIT_POLICY=passive, or waiting threads spin and steps take
ten times as long.

Compared: 16 problems x 8 rollouts become one optimizer step. Same shape and first weights (the
pocket model's shape, random), problems, reward, response length, threads; CISPO, AdamW, clipping. The
sides take turns inside one `trainer.train()`, whose callback runs our step after each of TRL's. A
step goes from text to the optimizer; TRL's from `on_step_begin` to `on_step_end`, so that its data
loader, logging and saving do not count. "sampling" is the time in `engine.sample` or `generate`,
"rest" all the rest. Peak memory is that of a process which runs one side alone.

Not compared: learning (rewards are hashes of the text), vLLM, GPUs, torch.compile, other shapes.
The work differs where the designs do: fastslow forwards once what rollouts share and keeps the
sampler's log-probabilities for its ratios; TRL forwards the prompt with each rollout, takes the
ratio of an on-policy step to be 1 and, where Triton is missing, runs prompt positions through the
output layer too. In bf16 fastslow has bf16 weights, FP32 masters and FP32 logits; TRL has FP32
weights under autocast (`bf16=True`, its default), or with `--trl-weights bf16` bf16 weights that AdamW
updates as they are. TRL has the settings that made it fastest here: micro-batches of 16 (128 at once
took longer), a static cache, no gradient checkpointing, fused AdamW, no logs, nothing on disk. With
`--trl defaults` the first three are its own: micro-batches of 8, a growing cache, checkpointing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import transformers
from common import (
    DTYPES,
    PRODUCTS,
    alone,
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
from fastslow.reuse import ReuseCache
from fastslow.rollout import Problem, Prompt, Score
from fastslow.slow.advantage import make_batch
from fastslow.tasks.star_graph import StarGraph

PROBLEMS, GROUP, TOKENS = 16, 8, 27
ROLLOUTS = PROBLEMS * GROUP
TAU, KL = 3.0, 1e-3


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
    """Seconds of each step and of its sampling; the first step's weight products are counted."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.sampling: list[float] = []
        self.cpu: list[float] = []  # seconds of processor time, all threads'
        self.gflop = 0.0
        self._counter = FlopCounterMode(display=False, custom_mapping=PRODUCTS)
        self._running = False

    def begin(self) -> None:
        if not self.steps:
            self._counter.__enter__()
        self.sampling.append(0.0)
        self._running, self._began = True, (time.perf_counter(), time.process_time())

    def end(self) -> None:
        self.steps.append(time.perf_counter() - self._began[0])
        self.cpu.append(time.process_time() - self._began[1])
        self._running = False
        if len(self.steps) == 1:
            self._counter.__exit__(None, None, None)
            counts = self._counter.get_flop_counts()["Global"]
            weights = (*PRODUCTS, torch.ops.aten.mm, torch.ops.aten.addmm)  # attention's: bmm
            self.gflop = sum(counts.get(product, 0) for product in weights) / 1e9

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

    def __init__(self, source: Path, kl: float = 0.0, dtype: str = "fp32", tokens: int = TOKENS):
        self.engine = make_engine(source, dtype, kl=kl)
        self.engine.slow.tau = TAU
        self.task, self.tokens = TASK, tokens
        self.params = SamplingParams(max_tokens=tokens)
        self.clock = Clock()
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


def train_with_trl(source: Path, args: argparse.Namespace, after: Callable[[int], None]) -> Clock:
    """Train with TRL, calling `after` (with the step's number) after each step; returns its times."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        sys.exit(f"This compares with TRL 1.16 ({error}): pip install -e '.[bench]'")
    clock, steps = Clock(), args.warm + args.steps

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.end()
            after(state.global_step - 1)

    def judge(completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        assert [len(ids) for ids in completion_ids] == [TOKENS] * ROLLOUTS
        return [reward(completion[0]["content"]) for completion in completions]

    system = {"role": "system", "content": TASK.seed_prompt}
    questions = [problem.prompt for step in range(steps) for problem in problems_of(step)]
    weights = getattr(torch, DTYPES[args.trl_weights])
    defaults = args.trl == "defaults"
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
            generation_kwargs={"min_new_tokens": TOKENS},
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
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return clock


def one_side(name: str, source: Path, args: argparse.Namespace) -> dict[str, float]:
    """Peak memory of a side that has the process to itself; `before` is with its libraries loaded."""
    ours = Ours(source, KL if args.kl else 0.0, args.dtype) if name == "fastslow" else None
    before = peak_mib()
    if ours is None:
        train_with_trl(source, args, lambda number: None)
    else:
        for number in range(args.warm + args.steps):
            ours.step(number, ours.population(1))
    return {"before_mib": before, "peak_mib": peak_mib()}


def compare(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    ours = Ours(source, KL if args.kl else 0.0, args.dtype)
    lengths = [len(ours.engine.render(TASK.seed_prompt, p.prompt)) for p in problems_of(0)]
    print(f"{PROBLEMS} x {GROUP} rollouts of {TOKENS} tokens after {fmean(lengths):.0f}, ", end="")
    print(f"{args.dtype}, KL {KL if args.kl else 0}, {args.threads} threads")
    print(f"medians of {args.steps} steps after {args.warm}\n")
    theirs = train_with_trl(source, args, lambda number: ours.step(number, ours.population(1)))
    dtype, counted = getattr(torch, DTYPES[args.dtype]), slice(args.warm, None)
    peak = matmul_peak(dtype=dtype)
    figures: dict[str, Any] = {"prompt_tokens": fmean(lengths), "matmul_gflops": peak}
    asked = ["--steps", 2, "--warm", 1, "--threads", args.threads, "--dtype", args.dtype]
    asked += ["--trl", args.trl, "--trl-batch", args.trl_batch, "--trl-weights", args.trl_weights]
    for name, clock in (("fastslow", ours.clock), ("trl", theirs)):
        row = clock.report(name, counted)
        share = clock.gflop / row["step"] / peak
        row |= alone(__file__, "--alone", name, *asked, *(["--kl"] if args.kl else []))
        figures[name] = row | {"gflop": clock.gflop, "share_of_peak": share}
        print(f"{'':25}{clock.gflop:.1f} GFLOP of weight products, {share:.0%} of the matmul peak")
        print(
            f"{'':25}peak memory {row['peak_mib']:.0f} MiB, {row['before_mib']:.0f} before a step"
        )
    print(f"matmul peak: {peak:.0f} GFLOP/s in {args.dtype}")
    for name, kind in (("ratio", "steps"), ("cpu_ratio", "cpu")):
        mine, trl = (getattr(clock, kind)[counted] for clock in (ours.clock, theirs))
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
    parser.add_argument("--trl", choices=["fastest", "defaults"], default="fastest")
    parser.add_argument("--trl-batch", type=int, default=16, help="TRL's micro-batch, divides 128")
    parser.add_argument("--trl-weights", choices=list(DTYPES), default="fp32")
    parser.add_argument("--alone", choices=["fastslow", "trl"], help="one side's memory, as JSON")
    args = parser.parse_args()
    quiet(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(Path(folder))
        if args.alone:
            print(json.dumps(one_side(args.alone, source, args)))
            return
        figures = compare(source, args)
    print(json.dumps(vars(args) | figures))


if __name__ == "__main__":
    main()
