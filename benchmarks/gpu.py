"""One step at the paper's size on one GPU: seconds, share of the bf16 matmul peak and memory by phase.

    python benchmarks/gpu.py --shape qwen3-0.6b
    python benchmarks/gpu.py --shape qwen3-4b      # 120 GB; with --lora 32 it fits into 80 GB
    python benchmarks/gpu.py --tiny                # the same code on a CPU, in seconds

Qwen3's published shapes with random weights, bf16; 32 problems x 8 rollouts, prompts of 1,024 tokens
and exactly 1,024 of response. Phases: sampling (the native sampler), base log-probs (the frozen
reference's, for the KL), update (forward, backward, AdamW). RL-only has one prompt; FST has 8, so that
each rollout of a problem has a context of its own. "all reused" is an FST step whose rollouts GEPA
has made already; GEPA's own share of a step, its budget of 960 rollouts spread over T = 6 steps, is
printed beside. The paper's steps took 60 s (RL), 100 s (FST without reuse) and 47 s (with) on 8 H100.

FLOP are those of the tokens that must be forwarded (shared contexts once) and, in the update, three
times that; what gradient checkpointing computes again does not count as work done.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Load, make_engine, matmul_peak, peak_mib, quiet, random_model, sample, wait

from fastslow.config import Config, LoraConfig
from fastslow.engine.base import Datum
from fastslow.engine.local import LocalEngine
from fastslow.engine.memory import Shape

# config.json of Qwen/Qwen3-0.6B and Qwen/Qwen3-4B: all that says how large they are.
QWEN3 = {
    "vocab_size": 151936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40960,
    "initializer_range": 0.02,
    "attention_bias": False,
    "tie_word_embeddings": True,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
    "qwen3-4b": QWEN3
    | {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "tiny": QWEN3
    | {
        "vocab_size": 2000,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
    },
}
PARAMETERS = {"qwen3-0.6b": 596_049_920, "qwen3-4b": 4_022_468_096}  # as published: 0.6B, 4.0B
CHECKPOINTED = {"qwen3-4b"}  # whose activations are too large to be kept
PAPER = Load(problems=32, group=8, system=128, question=896, response=1024)
TINY = Load(problems=4, group=8, system=16, question=48, response=16)
BUDGET, CYCLE = 960, 6  # GEPA's rollouts per cycle, RL steps per cycle


class Phases:
    """Seconds, FLOP and peak memory of what is done one after another on one device."""

    def __init__(self, engine: LocalEngine, shape: Shape, peak: float) -> None:
        self.engine, self.shape, self.peak = engine, shape, peak
        self.rows: dict[str, dict[str, float]] = {}

    def time(self, name: str, work: Callable[[], Any], teraflop: float, repeat: int) -> Any:
        """Do `work` once to warm up and `repeat` times that count; keep the fastest, return its result."""
        seconds, cuda = [], self.engine.device.type == "cuda"
        for _ in range(repeat + 1):
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            wait(self.engine.device)
            began = time.perf_counter()
            result = work()
            wait(self.engine.device)
            seconds.append(time.perf_counter() - began)
        best = min(seconds[1:])
        memory = torch.cuda.max_memory_allocated() / 2**20 if cuda else peak_mib()
        share = 1000 * teraflop / best / self.peak
        self.rows[name] = {"seconds": best, "teraflop": teraflop, "share": share, "mib": memory}
        print(f"{name:28}{best:9.2f} s{teraflop:11.3f} TFLOP{share:8.1%}{memory:10.0f} MiB")
        return result

    def forward(self, load: Load, shared: bool) -> float:
        """TFLOP of one forward pass over a step's sequences, response tokens through the output layer."""
        shape = self.shape
        prompt = load.system + load.question
        contexts = load.problems * load.prompts if shared else load.rollouts
        # What is before a token, on average over the prompts' tokens and over the responses'.
        lengths = (
            (contexts * prompt, prompt / 2),
            (load.rollouts * load.response, prompt + load.response / 2),
        )
        inner = shape.parameters - shape.vocabulary * shape.hidden
        total = sum(
            n * (2 * inner + 4 * shape.layers * shape.queries * seen) for n, seen in lengths
        )
        return (total + 2 * load.rollouts * load.response * shape.vocabulary * shape.hidden) / 1e12

    def step(self, name: str, load: Load, repeat: int) -> dict[str, float]:
        """All phases of one step; returns their seconds."""
        engine, shared = self.engine, not self.engine.model_config.gradient_checkpointing
        sampling, learning = f"{name}: sampling", f"{name}: update"
        data: list[Datum] = self.time(
            sampling, lambda: sample(engine, load), self.forward(load, True), repeat
        )
        sequences = [(datum.context, datum.tokens) for datum in data]
        base = f"{name}: base log-probs"
        self.time(
            base, lambda: engine.logprobs(sequences, "base"), self.forward(load, True), repeat
        )
        self.time(learning, lambda: engine.update(data), 3 * self.forward(load, shared), repeat)
        return {
            key: self.rows[f"{name}: {key}"]["seconds"]
            for key in ("sampling", "base log-probs", "update")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=list(PARAMETERS), default="qwen3-0.6b")
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny shape and short lengths, on a CPU"
    )
    parser.add_argument("--lora", type=int, default=0, help="rank; 0: all weights learn")
    parser.add_argument("--rows", type=int, default=128, help="sequences sampled side by side")
    parser.add_argument("--token-budget", type=int, default=16_384, help="of a micro-batch")
    parser.add_argument("--repeat", type=int, default=1, help="times that count, after one")
    args = parser.parse_args()
    quiet(torch.get_num_threads())
    if not args.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device is found; --tiny runs on a CPU")
    name, device = ("tiny", "cpu") if args.tiny else (args.shape, "cuda")
    load = TINY if args.tiny else PAPER
    with tempfile.TemporaryDirectory() as folder:
        source = random_model(Path(folder), torch.bfloat16, device, **SHAPES[name])
        shape = Shape.of(Config.parse({"model": {"name": str(source)}}))
        assert shape.parameters == PARAMETERS.get(name, shape.parameters), shape.parameters
        engine = make_engine(
            source,
            "bf16",
            device=device,
            lora=LoraConfig(rank=args.lora) if args.lora else None,
            gradient_checkpointing=name in CHECKPOINTED,
            rows=args.rows,
            token_budget=args.token_budget,
        )
        peak = matmul_peak(512 if args.tiny else 8192, torch.bfloat16, device)
        print(f"{name}: {shape.parameters:,} parameters, {load}; peak {peak / 1000:.1f} TFLOP/s\n")
        phases = Phases(engine, shape, peak)
        rl = phases.step("RL-only", load, args.repeat)
        fst = phases.step("FST", replace(load, prompts=8), args.repeat)
        problems = max(1, round(BUDGET / CYCLE * load.rollouts / 256 / load.group))
        gepa = replace(
            load, prompts=8, problems=problems
        )  # scoring: a prompt and problem, one rollout
        phases.time(
            "GEPA's share of a step",
            lambda: sample(engine, gepa),
            phases.forward(gepa, True),
            args.repeat,
        )
    steps = {
        "RL-only": sum(rl.values()),
        "FST without reuse": sum(fst.values()),
        "FST, all reused": fst["base log-probs"] + fst["update"],
    }
    share = phases.rows["GEPA's share of a step"]["seconds"]
    print()
    for kind, seconds in steps.items():
        more = "" if kind == "RL-only" else f"; {seconds + share:.2f} s with GEPA's share"
        print(f"{kind:28}{seconds:9.2f} s, {seconds / steps['RL-only']:.2f} of RL-only's{more}")
    settings = vars(args) | {"parameters": shape.parameters, "peak_gflops": peak}
    print(json.dumps(settings | {"phases": phases.rows, "steps": steps}))


if __name__ == "__main__":
    main()
