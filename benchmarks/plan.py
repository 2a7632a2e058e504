"""What `fastslow plan` says beside what real runs then take: rollouts, tokens, memory, time.

    python benchmarks/plan.py [--steps 36] [--short 12] [CONFIG ...]

For each configuration (star-graph, code output and fact checking at pocket size) a short run is made with
another seed, the long one is planned from it, then made; each in a process of its own, so that the
peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fastslow.config import Config
from fastslow.engine.memory import peak
from fastslow.plan import make_plan
from fastslow.run import Run

CONFIGS = Path(__file__).parents[1] / "configs/pocket"
MIB = 2**20


def train(config: Path, directory: Path, seed: int, steps: int, threads: int) -> Run:
    settings = {"run.dir": directory, "run.seed": seed, "loop.steps": steps, "run.report": "false"}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "fastslow", "train", str(config), *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return Run.open(directory)


def planned(config: Path, short: Path, steps: int) -> dict[str, float]:
    """In a process without a model: what the plan says of the long run."""
    settings = Config.load(config, {"loop.steps": steps, "run.seed": 1})
    plan = make_plan(settings, Run.open(short))
    return {
        "steps": plan.counts.steps,
        "RL's rollouts": plan.counts.rl,
        "GEPA's rollouts": plan.counts.gepa,
        "reused rollouts": plan.counts.reused,
        "evaluation's rollouts": plan.counts.eval,
        "tokens learned from": plan.learned,
        "peak memory, MiB": peak(plan.memory) / MIB,
        "seconds": plan.seconds or 0.0,
    }


def measured(run: Run) -> dict[str, float]:
    summary: dict[str, Any] = run.summary or {}
    spent, batch = summary["rollouts"], run.config.loop.problems * run.config.loop.group
    return {
        "steps": summary["steps"],
        "RL's rollouts": spent["rl"],
        "GEPA's rollouts": spent["gepa"],
        "reused rollouts": spent["reused"],
        "evaluation's rollouts": spent["eval"],
        "tokens learned from": sum(row.get("response_tokens", 0) * batch for row in run.metrics),
        "peak memory, MiB": summary["peak_memory"] / MIB,
        "seconds": run.metrics[-1]["seconds"]["total"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = ("star_graph", "codeio", "hover")
    found = [CONFIGS / f"{name}.yaml" for name in names]
    parser.add_argument("configs", nargs="*", type=Path, default=found)
    parser.add_argument("--steps", type=int, default=36)
    parser.add_argument("--short", type=int, default=12, help="steps of the run planned from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plan", type=Path, help="plan alone, from this short run, as JSON")
    args = parser.parse_args()
    if args.plan is not None:
        print(json.dumps(planned(args.configs[0], args.plan, args.steps)))
        return
    print("| run | | planned | measured | ratio |\n|---|---|---|---|---|")
    for config in args.configs:
        with tempfile.TemporaryDirectory() as folder:
            short = Path(folder) / "short"
            train(config, short, 0, args.short, args.threads)
            command = [sys.executable, __file__, "--plan", str(short), "--steps", str(args.steps)]
            said = subprocess.run(
                [*command, str(config)], check=True, capture_output=True, text=True
            )
            plan = json.loads(said.stdout.splitlines()[-1])
            run = measured(train(config, Path(folder) / "long", 1, args.steps, args.threads))
        for name, value in run.items():
            ratio = f"{plan[name] / value:.2f}" if value else ""
            print(
                f"| {config.stem} | {name} | {plan[name]:,.0f} | {value:,.0f} | {ratio} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
