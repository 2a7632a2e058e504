"""What the tests of vLLM share: a trainer, gaps between log-probabilities, one update, a short run."""

from __future__ import annotations

from pathlib import Path

from fastslow import Config
from fastslow.api import Silent, make_engine
from fastslow.engine.base import Datum, Sample
from fastslow.engine.local import LocalEngine
from fastslow.tasks import make_task

ADVICE = "Work backwards from the goal to the start, then write the path in \\boxed{}."
Pairs = list[tuple[list[int], Sample]]


class StopsAfter3(Silent):
    """A key pressed in the third step, which is not in the last checkpoint."""

    def step(self, row, state):
        if row["step"] == 3:
            raise KeyboardInterrupt


def trainer(**sections: dict) -> LocalEngine:
    made = make_engine(Config.parse({"slow": {"lr": 1e-5, "warmup": 0}} | sections))
    assert isinstance(made, LocalEngine)
    return made


def sixteen_contexts(engine: LocalEngine) -> list[list[int]]:
    task = make_task(Config.load("configs/pocket/star_graph.yaml").task)
    return [engine.render(ADVICE, problem.prompt) for problem in task.problems("test")[:16]]


def pairs(contexts: list[list[int]], drawn: list[list[Sample]]) -> Pairs:
    return [(context, one) for context, row in zip(contexts, drawn, strict=True) for one in row]


def gaps(found: Pairs, engine: LocalEngine, temperature: float = 1.0) -> list[float]:
    rows = engine.logprobs([(c, one.tokens) for c, one in found], "policy", temperature)
    return [
        abs(a - b)
        for (_, one), row in zip(found, rows, strict=True)
        for a, b in zip(one.logprobs, row, strict=True)
    ]


def learn(engine: LocalEngine, found: Pairs) -> None:
    """One update that makes each second sample likelier and the others less likely."""
    tokens = sum(len(one.tokens) for _, one in found)
    engine.update(
        [
            Datum(
                context,
                one.tokens,
                one.logprobs,
                [1 / tokens] * len(one.tokens),
                [1.0 if place % 2 else -1.0] * len(one.tokens),
            )
            for place, (context, one) in enumerate(found)
        ]
    )


def run_settings(directory: Path, **sampling: object) -> dict:
    settings = Config.load("configs/pocket/star_graph.yaml").model_dump()
    settings["run"] |= {"dir": str(directory), "report": False, "threads": 1}
    settings["loop"] |= {"steps": 2, "cycle": 2, "problems": 8, "group": 4}
    settings["fast"] |= {"k": 2, "budget": 60, "initial_budget": None, "anchors": 6, "minibatch": 4}
    settings["eval"] |= {"every": 2, "problems": 8, "n": 2}
    settings["sampling"] |= {"backend": "vllm"} | sampling
    return settings
