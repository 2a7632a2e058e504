"""Sampling: fastslow's own engine beside `transformers`' generate and, where installed, vLLM.

    python benchmarks/sampling.py                   # vLLM is left out where it cannot be imported
    .venv-vllm/bin/python benchmarks/sampling.py    # all three, after `make test-vllm`

Compared: 16 problems x 8 rollouts of exactly 27 tokens after 77, under one system prompt (RL-only) and
under 8 (Fast-Slow Training: each rollout of a problem has a prompt of its own). One model: the pocket
model's shape, random weights, fp32. All in one process, in turns, on as many threads:

- fastslow: `LocalEngine.sample`; what contexts share is prefilled once, and log-probabilities come with it;
- generate: all 128 rows with their contexts, left-padded, as TRL gives them; it returns tokens alone;
- vllm: `VllmSampler.sample` (vLLM in this process), prefix cache on but cleared between calls, as in a run.

Not compared: responses that end early (fastslow and vLLM then drop the row, generate carries it on),
GPUs, other sizes. On a machine that is not idle take `--cpu --threads 1`: CPU time in place of wall
time, without the share of the matmul peak, which is a wall-time figure. Not part of `make bench`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Load, gflop_of, make_engine, matmul_peak, quiet, random_model

from fastslow.config import Config
from fastslow.engine.base import SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.engine.vllm import VllmSampler

Way = Callable[[list[list[int]], list[int], int], list[int]]  # contexts, counts, seed -> lengths


def generate(engine: LocalEngine, load: Load, cache: str | None) -> Way:
    """The rollouts by `generate`, all at once."""
    engine.policy.generation_config.eos_token_id = None  # no response ends before its last token

    @torch.inference_mode()
    def sample(contexts: list[list[int]], counts: list[int], seed: int) -> list[int]:
        torch.manual_seed(seed)
        rows = [c for c, n in zip(contexts, counts, strict=True) for _ in range(n)]
        length = max(map(len, rows))
        padded = torch.tensor([[engine.pad] * (length - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        found = engine.policy.generate(
            input_ids=padded,
            attention_mask=mask,
            do_sample=True,
            top_k=0,
            max_new_tokens=load.response,
            cache_implementation=cache,
            pad_token_id=engine.pad,
        )
        return [found.shape[1] - length] * len(found)

    return sample


def lengths_of(sample: Callable[..., Any], load: Load) -> Way:
    params = SamplingParams(max_tokens=load.response)
    return lambda contexts, counts, seed: [
        len(one.tokens) for row in sample(contexts, counts, params, seed) for one in row
    ]


def compare(engine: LocalEngine, vllm: VllmSampler | None, load: Load, args: Any) -> dict[str, Any]:
    ways = {"fastslow": lengths_of(engine.sample, load)}
    ways["generate"] = generate(engine, load, args.cache)
    if vllm is not None:
        ways["vllm"] = lengths_of(vllm.sample, load)
    counts = [load.group // load.prompts] * load.problems * load.prompts
    clock = time.process_time if args.cpu else time.perf_counter
    vocabulary = engine.policy.config.vocab_size
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.warm + args.turns):
        contexts = load.contexts(vocabulary, seed=turn)
        for name, way in ways.items():
            began = clock()
            lengths = way(contexts, counts, turn)
            seconds[name].append(clock() - began)
            assert lengths == [load.response] * load.rollouts, name
    figures: dict[str, Any] = {}
    peak = matmul_peak()
    print(f"{load.prompts} prompt(s); matmul peak {peak:.0f} GFLOP/s in fp32")
    for name, found in seconds.items():
        found = found[args.warm :]
        row = {
            "seconds": median(found),
            "tokens_per_second": load.rollouts * load.response / median(found),
        }
        print(f"  {name:10}{row['seconds']:8.3f} s{row['tokens_per_second']:9.0f} tokens/s", end="")
        if name != "vllm":  # its kernels are its own and are not counted
            row["gflop"] = gflop_of(partial(ways[name], load.contexts(vocabulary), counts, 0))
            print(f"{row['gflop']:7.1f} GFLOP", end="")
            if not args.cpu:
                row["share_of_peak"] = row["gflop"] / median(found) / peak
                print(f", {row['share_of_peak']:.0%} of the peak", end="")
        if name != "fastslow":
            ours = seconds["fastslow"][args.warm :]
            ratios = sorted(a / b for a, b in zip(found, ours, strict=True))
            row["to_fastslow"] = median(ratios)
            print(f"   {median(ratios):.2f} x fastslow's time", end="")
            print(f" ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
        print()
        figures[name] = row
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2, help="turns before those that count")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of wall time")
    parser.add_argument("--cache", default=None, help="generate's cache_implementation: static")
    args = parser.parse_args()
    quiet(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(random_model(Path(folder)))
        vllm = None
        if getattr(importlib.util.find_spec("vllm"), "origin", None) is not None:
            config = Config.parse({"sampling": {"backend": "vllm", "memory": 0.05}})
            vllm = VllmSampler(config, engine.source, [], engine.context_length)
        found = {f"{k} prompts": compare(engine, vllm, Load(prompts=k), args) for k in (1, 8)}
    print(json.dumps(vars(args) | found))


if __name__ == "__main__":
    main()
