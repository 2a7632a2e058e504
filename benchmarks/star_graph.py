"""FST beside RL-only and gepa+rl on pocket star-graph, both conventions, several seeds.

    python benchmarks/star_graph.py --seeds 3 --dir runs/star_graph

Each run is one `fastslow train` on one thread; as many run side by side as there are cores. Runs that
are finished are kept, runs that were cut are resumed. Prints markdown: rollouts (GEPA's included) and
KL to the base at the first held-out evaluation (every 4 steps, 60 problems, 2 responses each) that
reaches a reward level, then the end of each run. All arms share base, data order and evaluation.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from fastslow.run import Run

LEVELS = (0.5, 0.8, 0.9)
METHODS = ("rl", "fst", "gepa+rl")
CONFIGS = {"strict": "star_graph", "lenient": "star_graph_lenient", "reuse": "star_graph_reuse"}
ROOT = Path(__file__).parents[1]
BATCH = 128  # rollouts of a step


def train(
    directory: Path, setting: str, method: str, seed: int, rollouts: int, extra: list[str]
) -> Run:
    """One run, started, resumed or found finished."""
    place = directory / f"{setting}-{method}-s{seed}"
    if (place / "config.yaml").exists():
        command = ["resume", str(place)]
    else:
        command = ["train", str(ROOT / "configs/pocket" / f"{CONFIGS[setting]}.yaml")]
        command += ["--method", method, "--seed", str(seed), "--set", f"run.dir={place}"]
        for key, value in {
            "run.threads": 1,
            "run.rollouts": "false",
            "loop.rollouts": rollouts,
            "loop.steps": 2 * rollouts // BATCH,
            "eval.every": 4,
            "eval.problems": 60,
            "eval.n": 2,
        }.items():
            command += ["--set", f"{key}={value}"]
        command += [part for text in extra for part in ("--set", text)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fastslow", *command],
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{place}: {done.stderr}")
    print(f"done: {place.name}", file=sys.stderr, flush=True)
    return Run.open(place)


def curve(run: Run) -> list[tuple[float, float, float]]:
    """(rollouts, reward, KL) at each evaluation of the population."""
    return [
        (
            row["rollouts"]["rl"] + row["rollouts"]["gepa"],
            row["eval"]["population"]["mean"],
            row["eval"]["drift_population"]["kl"],
        )
        for row in run.metrics
        if "eval" in row
    ]


def crossing(
    points: Sequence[tuple[float, float, float]], level: float
) -> tuple[float, float] | None:
    """(rollouts, KL) at the first evaluation that reaches `level`, or None: no policy in between."""
    return next(((rollouts, kl) for rollouts, reward, kl in points if reward >= level), None)


def span(values: Sequence[float | None], form: str) -> str:
    """Every seed's value, smallest to largest, and how many never got there."""
    found = sorted(value for value in values if value is not None)
    missing = f" ({len(values) - len(found)} never)" if len(found) < len(values) else ""
    return (" / ".join(format(value, form) for value in found) or "never") + (
        missing if found else ""
    )


def report(setting: str, runs: dict[str, list[Run]]) -> None:
    """One markdown table for a setting."""
    curves = {method: [curve(run) for run in members] for method, members in runs.items()}
    print(f"\n### {setting}\n\n| | " + " | ".join(runs) + " |\n|---|" + "---|" * len(runs))

    def row(label: str, cell: Any) -> None:
        print(f"| {label} | " + " | ".join(cell(method) for method in runs) + " |")

    levels: list[tuple[str, float]] = [(f"{level}", level) for level in LEVELS]
    if "rl" in runs:
        peak = fmean(max(y for _, y, _ in points) for points in curves["rl"])
        if peak > 0.1:  # RL that never left zero has no peak to reach
            levels.append((f"RL's mean peak ({peak:.3f})", peak))
    for name, level in levels:
        found = {m: [crossing(points, level) for points in curves[m]] for m in runs}
        row(f"rollouts to {name}", lambda m, f=found: span([c and c[0] for c in f[m]], ",.0f"))
        row(f"KL at {name}", lambda m, f=found: span([c and c[1] for c in f[m]], ".4f"))
    row(
        "highest reward",
        lambda m: span([max(y for _, y, _ in points) for points in curves[m]], ".3f"),
    )
    row("final reward", lambda m: span([run.summary["reward"]["final"] for run in runs[m]], ".3f"))
    row(
        "final reward, seed prompt",
        lambda m: span([run.summary["reward"]["final_seed_prompt"] for run in runs[m]], ".3f"),
    )
    row(
        "final KL to base, both under the seed prompt",
        lambda m: span([run.summary["kl_to_base_seed_prompt"] for run in runs[m]], ".4f"),
    )
    row("steps", lambda m: span([run.summary["steps"] for run in runs[m]], ",d"))
    for first in range(1, 31, 6):
        row(
            f"training reward, steps {first}-{first + 5}",
            lambda m, a=first: span([window(run, a) for run in runs[m]], ".3f"),
        )
    row(
        "largest deviation from 1, fresh token",
        lambda m: span([freshest(r) for r in runs[m]], ".1e"),
    )
    row("final KL to base", lambda m: span([run.summary["kl_to_base"] for run in runs[m]], ".4f"))
    row("RL rollouts reused", lambda m: span([reuse(run) for run in runs[m]], ".0%"))
    row(
        "all rollouts",
        lambda m: span(
            [r.summary["rollouts"]["rl"] + r.summary["rollouts"]["gepa"] for r in runs[m]], ",.0f"
        ),
    )
    row(
        "largest ratio of a reused token",
        lambda m: span([worst_ratio(run) for run in runs[m]], ".2f"),
    )


def window(run: Run, first: int, length: int = 6) -> float | None:
    """Mean training reward of some steps, None where the run did not take them all."""
    rewards = [row["reward"] for row in run.metrics if first <= row["step"] < first + length]
    return fmean(rewards) if len(rewards) == length else None


def freshest(run: Run) -> float | None:
    ratios = [
        row["ratio"]["fresh"]["deviation"] for row in run.metrics if "fresh" in row.get("ratio", {})
    ]
    return max(ratios, default=None)


def reuse(run: Run) -> float:
    spent = run.summary["rollouts"]  # type: ignore[index]
    return spent["reused"] / max(1, spent["reused"] + spent["rl"])


def worst_ratio(run: Run) -> float | None:
    ratios = [
        row["ratio"]["reused"]["max"] for row in run.metrics if "reused" in row.get("ratio", {})
    ]
    return max(ratios, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=Path("runs/star_graph"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=CONFIGS, default=["strict", "lenient"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rollouts", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--set", action="append", default=[], dest="extra", metavar="KEY.PATH=VALUE"
    )
    arguments = parser.parse_args()
    plan = list(itertools.product(arguments.settings, arguments.methods, range(arguments.seeds)))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = list(
            pool.map(
                lambda key: train(arguments.dir, *key, arguments.rollouts, arguments.extra), plan
            )
        )
    for setting in arguments.settings:
        by_method: dict[str, list[Run]] = {}
        for (of, method, _), run in zip(plan, runs, strict=True):
            if of == setting:
                by_method.setdefault(method, []).append(run)
        report(setting, by_method)


if __name__ == "__main__":
    main()
