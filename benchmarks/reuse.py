"""What reused rollouts save: a step of Fast-Slow Training from the cache beside RL-only's full step.

    python benchmarks/reuse.py                   # the pocket shape, 27 response tokens
    python benchmarks/reuse.py --tokens 256      # long responses

RL-only samples 8 rollouts of each of 16 problems under one prompt and learns from them. FST has K
prompts, 8 / K rollouts for each; GEPA's rollouts, when cached, serve the step, which then only learns.
All take turns, from text to the optimizer. Printed: seconds, their ratio to RL-only's sampled step, the
share of the matmul peak (all products, counted in the first round), and how many tokens each forwards
(contexts that begin alike share their beginning, and the rollouts of one prompt and problem their whole
context).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import DTYPES, gflop_of, matmul_peak, quiet, random_model
from step import GROUP, PROBLEMS, TOKENS, Ours, problems_of

from fastslow.engine.batching import pack


def forwarded(ours: Ours, prompts: int) -> dict[str, int]:
    """Padded tokens that learning forwards, by part."""
    pairs = [
        (ours.engine.render(prompt.text, problem.prompt), [0] * ours.tokens)
        for problem in problems_of(0)
        for prompt in ours.population(prompts)
        for _ in range(GROUP // prompts)
    ]
    settings = ours.engine.settings
    packs = list(pack(pairs, settings.token_budget, ours.engine.pad, ours.engine.device))
    stages = [stage.tokens_NL.numel() for packed in packs for stage in packed.stages]
    return {
        "contexts": sum(stages),
        "responses": sum(packed.tokens_RT.numel() - len(packed.rows) for packed in packs),
        "unshared": sum(len(context) + ours.tokens - 1 for context, _ in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of a response")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", type=int, default=1, help="rounds before those that count")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.warm < 1:
        parser.error("--warm: the first step also counts its products, which takes time; 1 or more")
    quiet(args.threads)
    figures: dict[str, Any] = vars(args) | {"ratios": {}, "tokens_forwarded": {}}
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(random_model(Path(folder)), dtype=args.dtype, tokens=args.tokens)
    work: dict[tuple[int, bool], float] = {}
    kinds = [(k, cached) for k in args.prompts for cached in (False, True)]
    for number in range(args.warm + args.steps):
        for prompts, cached in kinds:
            population = ours.population(prompts)
            cache = ours.filled(population, problems_of(number)) if cached else None
            step = partial(ours.step, number, population, cache)
            if number == 0:
                work[prompts, cached] = gflop_of(step)
            else:
                step()
    print(f"{PROBLEMS} x {GROUP} rollouts of {args.tokens} tokens, {args.dtype}, ", end="")
    print(f"{args.threads} threads, medians of {args.steps} rounds after {args.warm}\n")
    peak = figures["matmul_gflops"] = matmul_peak(dtype=getattr(torch, DTYPES[args.dtype]))
    print(f"matmul peak: {peak:.0f} GFLOP/s")
    places = [slice(len(kinds) * args.warm + i, None, len(kinds)) for i in range(len(kinds))]
    for (prompts, cached), place in zip(kinds, places, strict=True):
        name = f"K = {prompts}, {'cached' if cached else 'sampled'}"
        seconds = ours.clock.report(name, place)["step"]
        gflop = work[prompts, cached]
        print(f"{'':25}{gflop:.1f} GFLOP, {gflop / seconds / peak:.0%} of the matmul peak")
        row = figures["ratios"][name] = {}
        for kind, values in (("time", ours.clock.steps), ("processor time", ours.clock.cpu)):
            pairs = zip(values[place], values[places[0]], strict=True)
            row[kind] = median(a / b for a, b in pairs)
        print(f"{'':25}of RL-only's sampled step: ", end="")
        print(", ".join(f"{value:.2f} of its {kind}" for kind, value in row.items()))
    for prompts in args.prompts:
        figures["tokens_forwarded"][prompts] = forwarded(ours, prompts)
        print(f"K = {prompts}: tokens that learning forwards {forwarded(ours, prompts)}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
