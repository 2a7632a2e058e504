"""How long one RL step takes: fastslow's local engine beside TRL's GRPOTrainer, on a CPU.

    pip install -e '.[bench]'
    python benchmarks/step.py           # both, in turns
    python benchmarks/step.py --kl      # with the pass through the frozen reference, on both sides
    python benchmarks/step.py --reuse   # fastslow alone: what reused rollouts save (needs no TRL)

Compared: 16 problems x 8 rollouts become one optimizer step. Same shape and first weights (the
pocket model's shape, random weights, fp32), same problems in the same order, same reward, CISPO,
AdamW, clipping, exactly 27 tokens a response, same threads, same attention code. The sides take
turns inside one `trainer.train()`: its callback runs our step after each of TRL's. A step is prompt
tokens, sampling, decoding, reward, advantages, loss, backward, optimizer. TRL's is timed from
`on_step_begin` to `on_step_end`, so that its data loader, logging and saving do not count.

Not compared: learning (rewards are hashes of the text), vLLM, GPUs, torch.compile, other shapes.
The work differs where the designs do. fastslow forwards each shared prompt once and keeps the
sampler's log-probabilities for its ratios; TRL forwards the prompt with each rollout, takes the
ratio of an on-policy step to be 1, and without Triton scores prompt positions with the output layer
too. TRL gets what made it fastest here: one batch of 128, no gradient checkpointing, fused AdamW.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
import transformers
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
LR = 1e-6
KL = 1e-3
TAU = 3.0


def reward(text: str) -> float:
    """Cheap, and practically never equal within a group, so that no filter drops anything."""
    return zlib.crc32(text.encode()) % 1000 / 1000


class Hashed(StarGraph):
    """Star-graph questions of about 80 tokens, judged by `reward`."""

    def score(self, problem: Problem, response: str) -> Score:
        return Score(reward(response), "")


@dataclass
class Times:
    """Seconds of each step, and of its sampling alone."""

    step: list[float] = field(default_factory=list)
    sampling: list[float] = field(default_factory=list)

    def watch(self, sample: Callable[..., Any]) -> Callable[..., Any]:
        """`sample`, its seconds added to the step under way."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            result = sample(*args, **kwargs)
            self.sampling[-1] += time.perf_counter() - begin
            return result

        return timed

    def begin(self) -> None:
        self.sampling.append(0.0)
        self._began = time.perf_counter()

    def end(self) -> None:
        self.step.append(time.perf_counter() - self._began)

    def forget(self, steps: int) -> None:
        """Drop the warm-up."""
        del self.step[:steps], self.sampling[:steps]

    def medians(self) -> dict[str, float]:
        rest = [step - sampling for step, sampling in zip(self.step, self.sampling, strict=True)]
        return {
            "step": median(self.step),
            "sampling": median(self.sampling),
            "training": median(rest),
            "fastest": min(self.step),
        }

    def row(self, name: str) -> str:
        return f"{name:34}" + "".join(f"{value:10.3f}" for value in self.medians().values())


HEAD = f"{'median seconds':34}" + "".join(
    f"{name:>10}" for name in ("step", "sampling", "rest", "fastest")
)


class Ours:
    """fastslow's side: the steps of `fastslow.loop.learn` without its records on disk."""

    def __init__(self, source: Path, kl: float, attention: str | None) -> None:
        config = Config()
        config.model.name, config.model.device = str(source), "cpu"
        config.slow.lr, config.slow.kl, config.slow.tau, config.slow.warmup = LR, kl, TAU, 0
        self.config = config
        self.engine = LocalEngine(config)
        self.engine.stops = []  # every response has all its tokens
        if attention:
            self.engine.policy.set_attn_implementation(attention)
            if kl:
                self.engine.base.set_attn_implementation(attention)
        self.task = Hashed(degree=4, length=4, nodes=50)
        self.params = SamplingParams(max_tokens=TOKENS)
        self.times = Times()
        self.engine.sample = self.times.watch(self.engine.sample)  # type: ignore[method-assign]

    def problems(self, step: int) -> list[Problem]:
        return list(self.task.problems("train")[step * PROBLEMS : (step + 1) * PROBLEMS])

    def population(self, size: int) -> list[Prompt]:
        texts = [self.task.seed_prompt, *(f"Task {i}. Solve it well." for i in range(1, size))]
        return [Prompt(f"p{i}", text) for i, text in enumerate(texts)]

    def cached(self, population: Sequence[Prompt], problems: Sequence[Problem]) -> ReuseCache:
        """All rollouts that a step on `problems` will ask for."""
        pairs = [(prompt, problem) for problem in problems for prompt in population]
        counts = [GROUP // len(population)] * len(pairs)
        rows = roll_out(self.engine, self.task, pairs, counts, self.params, seed=0)
        return ReuseCache(rollout for row in rows for rollout in row)

    def step(
        self, problems: Sequence[Problem], population: Sequence[Prompt], cache: ReuseCache, seed: int
    ) -> None:
        self.times.begin()
        groups = collect_groups(
            self.engine,
            self.task,
            problems,
            population,
            len(population),
            GROUP,
            cache,
            self.params,
            seed,
        )
        batch = make_batch(groups, self.config.slow)
        self.engine.update(batch.data)
        self.times.end()
        assert len(batch.data) == ROLLOUTS and {len(d.tokens) for d in batch.data} == {TOKENS}

    def gflop(self, shared: bool) -> float:
        """Of one step: 2 x parameters per forwarded token to sample, 3 times that to learn.

        Only weight matrices count: attention scores, norms, softmax, padding and AdamW do not.
        `shared` forwards a prompt, and the logits after it, once for all its rollouts.
        """
        policy, population = self.engine.policy, self.population(1)
        head = policy.get_output_embeddings().weight.numel()
        body = sum(m.weight.numel() for m in policy.modules() if isinstance(m, torch.nn.Linear))
        prompts = sum(
            len(self.engine.render(population[0].text, problem.prompt))
            for problem in self.problems(0)
        )
        copies = 1 if shared else GROUP
        continued = ROLLOUTS * (TOKENS - 1)
        tokens = (body - head) * (prompts * copies + continued)
        logits = head * (PROBLEMS * copies + continued)
        passes = 1 + 3 + (1 if self.config.slow.kl else 0)
        return 2 * (tokens + logits) * passes / 1e9


def trl_steps(
    ours: Ours, source: Path, steps: int, kl: float, attention: str | None, batch: int
) -> Times:
    """Train with TRL, one of our steps after each of its own; returns TRL's times."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        sys.exit(f"benchmarks/step.py compares with TRL ({error}): pip install -e '.[bench]'")
    times = Times()

    class Turns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times.end()
            done = state.global_step - 1
            ours.step(ours.problems(done), ours.population(1), ReuseCache(), seed=done)

    def trl_reward(completions: Any, completion_ids: Any, **_: Any) -> list[float]:
        assert len(completions) == ROLLOUTS and {len(ids) for ids in completion_ids} == {TOKENS}
        return [reward(completion[0]["content"]) for completion in completions]

    system = {"role": "system", "content": ours.task.seed_prompt}
    data = Dataset.from_list(
        [
            {"prompt": [system, {"role": "user", "content": problem.prompt}]}
            for step in range(steps)
            for problem in ours.problems(step)
        ]
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.set_attn_implementation(attention or ours.engine.policy.config._attn_implementation)
    model.generate = times.watch(model.generate)
    with tempfile.TemporaryDirectory() as output:
        config = GRPOConfig(
            output_dir=output,
            max_steps=steps,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=ROLLOUTS // batch,
            num_generations=GROUP,
            max_completion_length=TOKENS,
            generation_kwargs={"min_new_tokens": TOKENS},  # no end of text before its last token
            temperature=1.0,
            loss_type="cispo",
            epsilon_high=TAU,
            beta=kl,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=1.0,
            use_cpu=True,
            bf16=False,
            use_vllm=False,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            args=config,
            reward_funcs=trl_reward,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(source),
            callbacks=[Turns()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    return times


def matmul_peak(size: int = 2048, tries: int = 12) -> float:
    """The best GFLOP/s that this process gets out of a square fp32 product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(tries):
        begin = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best / 1e9


def compare(ours: Ours, source: Path, args: argparse.Namespace, kl: float) -> dict[str, Any]:
    theirs = trl_steps(ours, source, args.warm + args.steps, kl, args.attention, args.trl_batch)
    peak = matmul_peak()
    for times in (ours.times, theirs):
        times.forget(args.warm)
    mine, trl = ours.times.medians(), theirs.medians()
    shared, unshared = ours.gflop(shared=True), ours.gflop(shared=False)
    share = shared / mine["step"] / peak
    pairs = [b / a for a, b in zip(ours.times.step, theirs.step, strict=True)]
    print(HEAD, ours.times.row("fastslow"), theirs.row("TRL GRPOTrainer"), sep="\n")
    print(f"\nTRL / fastslow: {median(pairs):.2f} (median of turns, {min(pairs):.2f} to {max(pairs):.2f})")
    print(f"fp32 matmul peak, {args.threads} threads: {peak:.0f} GFLOP/s")
    print(
        f"fastslow's step: {shared:.1f} GFLOP of weight products, {share:.0%} of that peak;\n"
        f"forwarding every prompt with each of its rollouts would be {unshared:.1f} GFLOP"
    )
    figures = {"fastslow": mine, "trl": trl, "ratio": median(pairs), "peak_gflops": peak}
    return figures | {"gflop": shared, "gflop_unshared": unshared, "share_of_peak": share}


def reuse(ours: Ours, args: argparse.Namespace) -> dict[str, Any]:
    """A step of RL-only, and steps whose rollouts all come from the cache.

    Under one prompt the cached step learns from the like of the full step's data. Under 8 prompts,
    as in Fast-Slow Training, each rollout of a problem has a prompt of its own and nothing is shared.
    """
    kinds = {"RL only: sample and learn": 0, "cached, 1 prompt": 1, "cached, 8 prompts": GROUP}
    rows = {name: Times() for name in kinds}
    for step in range(args.warm + args.steps):
        problems = ours.problems(step)
        for name, size in kinds.items():
            population = ours.population(max(1, size))
            ours.times.begin()
            cache = ours.cached(population, problems) if size else ReuseCache()
            ours.step(problems, population, cache, seed=step)
            rows[name].step.append(ours.times.step[-1])
            rows[name].sampling.append(ours.times.sampling[-1])
    print(HEAD)
    for name, times in rows.items():
        times.forget(args.warm)
        print(times.row(name))
    full, *cached = (times.medians()["step"] for times in rows.values())
    ratios = [seconds / full for seconds in cached]
    print(f"\ncached / full: {ratios[0]:.2f} under one prompt, {ratios[1]:.2f} under {GROUP}")
    medians = {name: times.medians() for name, times in rows.items()}
    return {"reuse": medians, "cached_to_full": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--reuse", action="store_true", help="steps from the cache, without TRL")
    parser.add_argument("--kl", action="store_true", help=f"KL to the reference, {KL}, both sides")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2, help="steps before those that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--attention", choices=["sdpa", "eager"], help="default: the engine's own")
    parser.add_argument("--trl-batch", type=int, default=ROLLOUTS, help="TRL's micro-batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kl = KL if args.kl else 0.0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        shape = AutoConfig.from_pretrained(pocket.path())
        AutoModelForCausalLM.from_config(shape, dtype=torch.float32).save_pretrained(source)
        AutoTokenizer.from_pretrained(pocket.path()).save_pretrained(source)
        ours = Ours(source, kl, args.attention)
        prompt = ours.task.seed_prompt
        length = fmean(len(ours.engine.render(prompt, p.prompt)) for p in ours.problems(0))
        print(
            f"{PROBLEMS} problems x {GROUP} rollouts, prompts of {length:.0f} tokens, {TOKENS} more, "
            f"fp32, KL {kl}, {args.threads} threads, {args.steps} steps after {args.warm}\n"
        )
        figures = reuse(ours, args) if args.reuse else compare(ours, source, args, kl)
    print(json.dumps({"kl": kl, "threads": args.threads, "prompt_tokens": length} | figures))


if __name__ == "__main__":
    main()
