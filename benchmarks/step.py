"""How long one RL step takes: fastslow's local engine beside TRL's GRPOTrainer, on a CPU.

    pip install -e '.[bench]'
    python benchmarks/step.py           # both, in turns
    python benchmarks/step.py --kl      # with the pass through the frozen reference, on both sides
    python benchmarks/step.py --reuse   # fastslow alone: what reused rollouts save (needs no TRL)

On a machine that is not idle set OMP_WAIT_POLICY=passive, or waiting threads spin and steps take
ten times as long.

Compared: 16 problems x 8 rollouts become one optimizer step. Same shape and first weights (the
pocket model's shape, random, fp32), problems, reward, response length, threads, attention code;
CISPO, AdamW, clipping. The sides take turns inside one `trainer.train()`, whose callback runs our
step after each of TRL's. A step goes from text to the optimizer; TRL's from `on_step_begin` to
`on_step_end`, so that its data loader, logging and saving do not count. "sampling" is the time in
`engine.sample` or `generate`, "rest" all the rest.

Not compared: learning (rewards are hashes of the text), vLLM, GPUs, torch.compile, other shapes.
The work differs where the designs do: fastslow forwards once what rollouts share and keeps the
sampler's log-probabilities for its ratios; TRL forwards the prompt with each rollout, takes the
ratio of an on-policy step to be 1 and, where Triton is missing, runs prompt positions through the
output layer too. TRL has the settings that made it fastest here: micro-batches of 16 (128 at once
took longer), a static cache, no gradient checkpointing, fused AdamW, no logs, nothing on disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastslow import pocket
from fastslow.collect import collect_groups, roll_out
from fastslow.config import Config
from fastslow.engine.base import SamplingParams
from fastslow.engine.local import LocalEngine
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


class Clock:
    """Seconds of each step and of its sampling; the first step's weight products are counted."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.sampling: list[float] = []
        self.gflop = 0.0
        self._counter = FlopCounterMode(display=False)
        self._running = False

    def begin(self) -> None:
        if not self.steps:
            self._counter.__enter__()
        self.sampling.append(0.0)
        self._running, self._began = True, time.perf_counter()

    def end(self) -> None:
        self.steps.append(time.perf_counter() - self._began)
        self._running = False
        if len(self.steps) == 1:
            self._counter.__exit__(None, None, None)
            counts = self._counter.get_flop_counts()["Global"]
            weights = (torch.ops.aten.mm, torch.ops.aten.addmm)  # attention's are batched: bmm
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
        row["fastest"] = min(steps)
        print(f"{name:22}" + "".join(f"{key:>10}{value:7.3f} s" for key, value in row.items()))
        return row


class Ours:
    """fastslow's side: what `fastslow.loop.learn` does, without its records on disk."""

    def __init__(self, source: Path, kl: float) -> None:
        self.config = Config()
        self.config.model.name, self.config.model.device = str(source), "cpu"
        self.config.slow.kl, self.config.slow.tau, self.config.slow.warmup = kl, TAU, 0
        self.engine = LocalEngine(self.config)
        self.engine.stops = []  # no response ends before its last token
        self.task = Hashed(degree=4, length=4, nodes=50)
        self.params = SamplingParams(max_tokens=TOKENS)
        self.clock = Clock()
        self.engine.sample = self.clock.watch(self.engine.sample)  # type: ignore[method-assign]

    def problems(self, step: int) -> Sequence[Problem]:
        return self.task.problems("train")[step * PROBLEMS : (step + 1) * PROBLEMS]

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
        source = (self.engine, self.task, self.problems(number), population, len(population), GROUP)
        self.clock.begin()
        groups = collect_groups(*source, cache or ReuseCache(), self.params, seed=number)
        batch = make_batch(groups, self.config.slow)
        self.engine.update(batch.data)
        self.clock.end()
        assert [len(datum.tokens) for datum in batch.data] == [TOKENS] * ROLLOUTS


def take_turns(ours: Ours, source: Path, steps: int, kl: float, batch: int) -> Clock:
    """Train with TRL, one of our steps after each of its own; returns TRL's times."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        sys.exit(f"This compares with TRL 1.16 ({error}): pip install -e '.[bench]'")
    clock = Clock()

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.end()
            ours.step(state.global_step - 1, ours.population(1))

    def judge(completions: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        assert [len(ids) for ids in completion_ids] == [TOKENS] * ROLLOUTS
        return [reward(completion[0]["content"]) for completion in completions]

    system = {"role": "system", "content": ours.task.seed_prompt}
    questions = [problem.prompt for step in range(steps) for problem in ours.problems(step)]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.set_attn_implementation(ours.engine.policy.config._attn_implementation)
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
            beta=kl,
            learning_rate=ours.config.slow.lr,
            cache_implementation="static",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
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


def matmul_peak(size: int = 2048, tries: int = 12) -> float:
    """The best GFLOP/s that this process gets out of a square fp32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds) / 1e9


def compare(ours: Ours, source: Path, args: argparse.Namespace, kl: float) -> dict[str, Any]:
    theirs = take_turns(ours, source, args.warm + args.steps, kl, args.trl_batch)
    peak, counted = matmul_peak(), slice(args.warm, None)
    figures: dict[str, Any] = {"matmul_gflops": peak}
    for name, clock in (("fastslow", ours.clock), ("trl", theirs)):
        row = clock.report(name, counted)
        share = clock.gflop / row["step"] / peak
        figures[name] = row | {"gflop": clock.gflop, "share_of_peak": share}
        print(f"{'':25}{clock.gflop:.1f} GFLOP of weight products, {share:.0%} of the matmul peak")
    pairs = zip(ours.clock.steps[counted], theirs.steps[counted], strict=True)
    ratios = sorted(trl / mine for mine, trl in pairs)
    figures["ratio"] = median(ratios)
    print(f"matmul peak: {peak:.0f} GFLOP/s in fp32")
    print(f"TRL / fastslow: {median(ratios):.2f}, over turns {ratios[0]:.2f} to {ratios[-1]:.2f}")
    return figures


def reuse(ours: Ours, args: argparse.Namespace) -> dict[str, Any]:
    """Steps whose rollouts all come from the cache beside steps that sample all of theirs.

    With one prompt (RL-only's case) the rollouts of a problem share their context. With 8, as in
    Fast-Slow Training, each has another system prompt before the problem, which sharing cannot join.
    """
    populations = (ours.population(1), ours.population(GROUP))
    for number in range(args.warm + args.steps):
        for population in populations:
            ours.step(number, population)
            ours.step(number, population, ours.filled(population, ours.problems(number)))
    names = ("1 prompt, sampled", "1 prompt, cached", "8 prompts, sampled", "8 prompts, cached")
    places = [slice(4 * args.warm + place, None, 4) for place in range(4)]
    figures: dict[str, Any] = {}
    for name, place in zip(names, places, strict=True):
        figures[name] = ours.clock.report(name, place)
        pairs = zip(ours.clock.steps[place], ours.clock.steps[places[0]], strict=True)
        figures[name]["to_rl_only"] = median(a / b for a, b in pairs)
    against = ", ".join(f"{name} {figures[name]['to_rl_only']:.2f}" for name in names[1:])
    print(f"against RL-only's sampled step: {against}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reuse", action="store_true", help="steps from the cache, without TRL")
    parser.add_argument("--kl", action="store_true", help=f"KL to the reference, {KL}, both sides")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2, help="steps before those that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl-batch", type=int, default=16, help="TRL's micro-batch, divides 128")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # TRL's use of older transformers names
    kl = KL if args.kl else 0.0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        shape = AutoConfig.from_pretrained(pocket.path())
        AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(source)
        AutoTokenizer.from_pretrained(pocket.path()).save_pretrained(source)
        ours = Ours(source, kl)
        prompt = ours.population(1)[0].text
        length = fmean(len(ours.engine.render(prompt, p.prompt)) for p in ours.problems(0))
        print(f"{PROBLEMS} x {GROUP} rollouts of {TOKENS} tokens after {length:.0f}, fp32, KL {kl}")
        print(f"{args.threads} threads, medians of {args.steps} steps after {args.warm}\n")
        figures = reuse(ours, args) if args.reuse else compare(ours, source, args, kl)
    settings = {"kl": kl, "threads": args.threads, "steps": args.steps, "prompt_tokens": length}
    print(json.dumps(settings | figures))


if __name__ == "__main__":
    main()
