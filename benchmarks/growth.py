"""How the cost of a step of Fast-Slow Training grows: with G, problems, K, T, lengths and the model.

    python benchmarks/growth.py

A step is `engine.sample` of all its rollouts and `engine.update`; nothing is reused. Seconds are CPU
time of one thread, so that other work on the machine matters little; medians of `--repeat`. From
the base (16 problems x 8 rollouts under 4 prompts of 48 tokens, problems of 62, responses of 27, the
pocket shape) one thing is changed at a time. "exponent" is the slope of log seconds over log size by least
squares, with its standard error; "at the end" that between the last two sizes, where what does
not grow weighs least. "unshared" is the same rollouts with contexts that have nothing in common.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    Load,
    alone,
    gflop_of,
    make_engine,
    matmul_peak,
    peak_mib,
    quiet,
    random_model,
    sample,
)
from scipy.stats import linregress

from fastslow.config import Config
from fastslow.plan import Habits, count

BASE = Load(prompts=4, system=48)
LOADS: dict[str, list[int]] = {  # a field of Load, its sizes
    "group": [4, 8, 16, 32],
    "problems": [4, 8, 16, 32, 64],
    "prompts": [1, 2, 4, 8],
    "system": [24, 48, 96, 192, 384],
    "question": [31, 62, 124, 248, 496],
    "response": [14, 27, 54, 108, 216],
}
MODELS: dict[str, list[int]] = {
    "hidden_size": [64, 128, 256, 512],
    "num_hidden_layers": [2, 4, 8, 16],
}
CYCLES = [1, 2, 3, 6, 12]
Times = dict[str, list[float]]


def shape(field: str, size: int) -> dict[str, int]:
    """A model's sizes; width brings its heads of 64 and the feed-forward part along."""
    if field == "num_hidden_layers":
        return {field: size}
    heads = size // 64
    inner = {"intermediate_size": 3 * size}
    return {field: size, "num_attention_heads": heads, "num_key_value_heads": heads} | inner


def seconds(load: Load, repeat: int, sizes: dict[str, int]) -> tuple[float, float, float]:
    """CPU seconds of sampling and of learning, medians, and a step's GFLOP, counted in one before."""
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(random_model(Path(folder), **sizes))
    times: list[tuple[float, float]] = []
    gflop = gflop_of(lambda: engine.update(sample(engine, load, 0)))
    for number in range(1, repeat + 1):
        began = time.process_time()
        data = sample(engine, load, number)
        drawn = time.process_time()
        engine.update(data)
        times.append((drawn - began, time.process_time() - drawn))
    return median(a for a, _ in times), median(b for _, b in times), gflop


def sweep(field: str, values: list[int], repeat: int, **changed: Any) -> tuple[Times, list[float]]:
    """Seconds at each of a field's sizes, and GFLOP per second of a step."""
    times: Times = {"sampling": [], "learning": [], "step": []}
    rates: list[float] = []
    for value in values:
        model = field in MODELS
        load = replace(BASE, **changed) if model else replace(BASE, **{field: value} | changed)
        drawn, learned, gflop = seconds(load, repeat, shape(field, value) if model else {})
        rates.append(gflop / (drawn + learned))
        for name, figure in zip(times, (drawn, learned, drawn + learned), strict=True):
            times[name].append(figure)
    return times, rates


def fit(values: list[int], times: list[float]) -> dict[str, float]:
    line = linregress([math.log(v) for v in values], [math.log(t) for t in times])
    end = math.log(times[-1] / times[-2]) / math.log(values[-1] / values[-2])
    return {"exponent": line.slope, "error": line.stderr, "end": end}


def grown(field: str, values: list[int], repeat: int, peak: float) -> dict[str, Any]:
    times, rates = sweep(field, values, repeat)
    print(f"\n{field}: {', '.join(map(str, values))}")
    found: dict[str, Any] = {"sizes": values, "seconds": times, "gflops": rates, "fits": {}}
    for name, column in times.items():
        line = found["fits"][name] = fit(values, column)
        cells = ", ".join(f"{second:.3f}" for second in column)
        print(
            f"  {name:9} {cells} s; exponent {line['exponent']:.2f} +- {line['error']:.2f}", end=""
        )
        print(f", at the end {line['end']:.2f}")
    print("  of the matmul peak:", ", ".join(f"{rate / peak:.0%}" for rate in rates))
    if field == "prompts":
        apart, _ = sweep("shared", [False], repeat)
        for name, (alone_,) in apart.items():
            shares = [second / alone_ for second in times[name]]
            print(f"  {name:9} of unshared contexts' {alone_:.3f} s: ", end="")
            print(", ".join(f"{share:.2f}" for share in shares))
        found["unshared"] = apart
    return found


def per_step() -> dict[int, float]:
    """GEPA's rollouts per step at each length of a cycle, counted for 12 steps of the paper's loop."""
    found = {}
    for cycle in CYCLES:
        config = Config.parse({"loop": {"steps": 12, "cycle": cycle}, "reuse": {"enabled": False}})
        found[cycle] = count(config, Habits(response=1.0)).gepa / 12
    return found


def memory(problems: int) -> dict[str, float]:
    """Peak memory of this process, before and after two steps."""
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(random_model(Path(folder)))
    load, before = replace(BASE, problems=problems), peak_mib()
    for number in range(2):
        engine.update(sample(engine, load, number))
    return {"rollouts": load.rollouts, "before_mib": before, "peak_mib": peak_mib()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[*LOADS, *MODELS, "memory"])
    parser.add_argument(
        "--memory", type=int, help="a process of its own: so many problems, as JSON"
    )
    args = parser.parse_args()
    quiet(1)
    if args.memory is not None:
        print(json.dumps(memory(args.memory)))
        return
    figures: dict[str, Any] = {"base": str(BASE), "repeat": args.repeat}
    peak = figures["matmul_gflops"] = matmul_peak(clock=time.process_time)
    print(f"CPU seconds of one thread, medians of {args.repeat}; {BASE}")
    print(f"matmul peak: {peak:.0f} GFLOP/s")
    for field, values in (LOADS | MODELS).items():
        if field in args.only:
            figures[field] = grown(field, values, args.repeat, peak)
    figures["gepa_per_step"] = per_step()
    print("\nT: GEPA's rollouts per step, by the plan (budget 960):", figures["gepa_per_step"])
    if "memory" in args.only:
        print("\npeak memory, each in a process of its own:")
        figures["memory"] = []
        for problems in (4, 16, 64, 256):
            row = alone(__file__, "--memory", problems, threads=1)
            figures["memory"].append(row)
            print(
                "  {rollouts} rollouts: {peak_mib:.0f} MiB, {before_mib:.0f} before".format(**row)
            )
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
