"""Two engines side by side: the local one with adapters, and a Tinker server with the same ones.

    python tests/tinker/server.py --base-model src/fastslow/pocket/model --port 8000 --state STATE &
    python benchmarks/engines.py --url http://127.0.0.1:8000 --state STATE [--steps 6]

First one batch of star-graph at pocket size under a prompt that helps; the server samples, both score
and learn. Then `--steps` steps of the pocket run on each, for what they cost this machine. A rollout's
overhead is the CPU time of the client that computes nothing of the model: locally what is spent outside
the engine's calls, with a server all of it. The server is busy while a request awaits its answer.
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict

from fastslow import Config, loop
from fastslow.api import Silent, make_engine
from fastslow.collect import collect_groups
from fastslow.engine.base import SamplingParams
from fastslow.fast.evolve import Gepa
from fastslow.fast.population import make_prompt
from fastslow.fast.reflect import make_reflector
from fastslow.reuse import ReuseCache
from fastslow.run import Run
from fastslow.session import Session
from fastslow.slow.advantage import make_batch
from fastslow.tasks import make_task
from fastslow.tasks.base import problems_of

POCKET = Path(__file__).parents[1] / "configs/pocket/star_graph.yaml"
HELPFUL = (
    "You are a helpful assistant. Trace the path backwards from the destination until you reach the "
    "source. Omit the source node from the final path. Solve the task."
)


def adapter(state: Path) -> dict[str, torch.Tensor]:
    """The newest adapter that the server wrote for sampling."""
    packed = max(state.rglob("sampler_weights/*.tar.gz"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory() as directory, tarfile.open(packed) as archive:
        archive.extractall(directory, filter="data")
        return load_peft_weights(directory, device="cpu")


def flat(rows: Any) -> torch.Tensor:
    return torch.cat([torch.as_tensor(row, dtype=torch.float64).flatten() for row in rows])


def gap(a: Any, b: Any) -> str:
    return f"largest difference {float((flat(a) - flat(b)).abs().max()):.1e}"


class Clock:
    """Wall and CPU seconds (all threads) inside the functions that it times; one within another once."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.depth = 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            self.depth += 1
            try:
                return function(*args, **more)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.wall += time.perf_counter() - wall
                    self.cpu += time.process_time() - cpu

        return call


def run(config: Config) -> None:
    """Train, and print what a rollout cost this process."""
    engine: Any = make_engine(config)
    model, flight = Clock(), Clock()
    for name in ("sample", "logprobs", "update", "save"):
        setattr(engine, name, model.timed(getattr(engine, name)))
    served = config.engine.kind == "tinker"
    if served:
        engine.requests.all = flight.timed(engine.requests.all)
    task, reflector = make_task(config.task), make_reflector(config.fast, engine)
    session = Session(
        Run.create(config), task, engine, Gepa(config.fast), reflector, observer=Silent()
    )
    wall, cpu = time.perf_counter(), time.process_time()
    with session.run.locked():
        session.run.begin()
        spent = loop.train(session).spent
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rollouts = spent["rl"] + spent["gepa"] + spent["eval"]
    inside, outside = (1000 * part / rollouts for part in (model.cpu, cpu - model.cpu))
    print(
        f"{config.engine.kind}: {rollouts} rollouts in {wall:.0f} s; CPU ms per rollout: {inside:.2f} in "
        f"the engine's calls, {outside:.2f} elsewhere; overhead {served * inside + outside:.2f}"
    )
    if served:
        print(f"server busy {100 * flight.wall / wall:.1f}% of the time; {dict(engine.counts)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--state", type=Path, required=True, help="the server's --state")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument(
        "--steps", type=int, default=6, help="of the run on each; 0: the batch alone"
    )
    args = parser.parse_args()
    slow = {"lr": 1e-3, "warmup": 0, "kl": 1e-3}
    here = {"model": {"lora": {"rank": args.rank, "alpha": 32.0}}, "slow": slow}
    there = {
        "engine": {"kind": "tinker", "base_url": args.url, "lora_rank": args.rank},
        "slow": slow,
    }
    local, server = make_engine(Config.parse(here)), make_engine(Config.parse(there))
    graphs = {"degree": 4, "length": 4, "nodes": 50, "train": 200, "test": 10}
    task = make_task(Config.parse({"task": {"name": "star_graph", "args": graphs}}).task)
    problems = problems_of(task, "train")[:16]
    groups = collect_groups(
        server,
        task,
        problems,
        [make_prompt(HELPFUL)],
        1,
        8,
        ReuseCache(),
        SamplingParams(max_tokens=40),
        seed=0,
    )
    start = adapter(args.state)
    set_peft_model_state_dict(local.policy, start)
    batch = make_batch(groups, local.slow)
    sequences = [(datum.context, datum.tokens) for datum in batch.data]
    rewards = [rollout.reward for group in groups for rollout in group.rollouts]
    tokens = sum(len(datum.tokens) for datum in batch.data)
    print(
        f"{len(rewards)} rollouts, mean reward {sum(rewards) / len(rewards):.3f}; "
        f"{batch.groups} groups with a signal, {len(batch.data)} sequences, {tokens} tokens"
    )
    sampled = [datum.logprobs for datum in batch.data]
    print("sampled log-probs, local scores:", gap(sampled, local.logprobs(sequences, "policy")))
    print("sampled log-probs, server scores:", gap(sampled, server.logprobs(sequences, "policy")))
    print("base log-probs, both:", gap(*(e.logprobs(sequences, "base") for e in (local, server))))
    scale = flat(datum.advantages for datum in batch.data)
    print(f"advantages (one function for both): {scale.min():.3f} to {scale.max():.3f}")
    before = local.logprobs(sequences, "policy")
    mine, theirs = local.update(batch.data), server.update(batch.data)
    print(f"{'':>10}{'local':>14}{'server':>14}")
    for name in ("loss", "grad_norm", "kl", "lr", "entropy"):
        print(f"{name:>10}{getattr(mine, name):14.6f}{getattr(theirs, name):14.6f}")
    after = [e.logprobs(sequences, "policy") for e in (local, server)]
    print("log-probs after the update, both:", gap(*after))
    moves = [flat(rows) - flat(before) for rows in after]
    print(
        f"log-probs moved by up to {moves[0].abs().max():.3f}; cosine of the two moves "
        f"{torch.cosine_similarity(*moves, dim=0):.8f}"
    )
    server.sample([problems and sequences[0][0]], [1], SamplingParams(max_tokens=1), seed=0)
    end = adapter(args.state)
    names = {name: name.replace(".default", "") for name, _ in local.policy.named_parameters()}
    adapters = {names[n]: p.detach() for n, p in local.policy.named_parameters() if "lora_" in n}
    steps = [flat(w[n] - start[n] for n in adapters) for w in (adapters, end)]
    print(f"adapters: cosine of the two updates {torch.cosine_similarity(*steps, dim=0):.6f}")
    for part in (here, there) if args.steps else ():
        with tempfile.TemporaryDirectory() as directory:
            config = Config.load(POCKET).model_dump()
            config["run"] |= {"dir": f"{directory}/run", "report": False, "threads": 1}
            config["loop"]["steps"] = args.steps
            for section, values in part.items():
                config[section] |= values
            run(Config.parse(config))


if __name__ == "__main__":
    main()
