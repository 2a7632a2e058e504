"""Server and client killed at exact points of a run: after a resume it is the undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

import fastslow
import tinker_strike
from fastslow import RunError
from tinker_strike import POINTS

pytestmark = pytest.mark.tinker


def settings(skyrl, directory: Path) -> dict:
    engine = {"kind": "tinker", "base_url": skyrl.url, "model": str(skyrl.model), "lora_rank": 8}
    return {
        "run": {"dir": str(directory), "threads": 1, "report": False},
        "model": {"name": str(skyrl.model)},
        "engine": engine | {"patience": 2.0},
        "task": {"name": "conftest:Letters"},
        "sampling": {"max_tokens": 8},
        "slow": {"lr": 1e-3, "warmup": 2, "kl": 0.01},
        "fast": {"k": 2, "budget": 16, "anchors": 4, "minibatch": 2, "proposals": 1},
        "loop": {"steps": 4, "cycle": 2, "problems": 2, "group": 4},
        "eval": {"every": 4, "problems": 2, "n": 1},
    }


def told(run: fastslow.Run) -> dict[str, object]:
    """All that a run logged but its times: each prompt, each rollout, each metric by its place."""
    logs = [run.dir / "prompts.jsonl", *run.dir.glob("rollouts/*.jsonl")]
    found: dict[str, object] = {path.name: path.read_text() for path in logs}

    def flatten(place: str, value: object) -> None:
        if isinstance(value, dict):
            for key in value.keys() - {"seconds"}:
                flatten(f"{place} {key}", value[key])
        else:
            found[place] = value

    for row in run.metrics:
        flatten(f"step {row['step']}", row)
    return found


def stood(directory: Path) -> tuple[int, int, int]:
    """Where a killed run stood: steps done, fast phases done, steps whose rollouts it has."""

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (directory / name).read_text().splitlines()]

    fast_phases = {row["cycle"] for row in rows("prompts.jsonl")}
    rollouts = list((directory / "rollouts").glob("*.jsonl"))
    return rows("metrics.jsonl")[-1]["step"], len(fast_phases), len(rollouts)


def applied(skyrl) -> int:
    """How many updates the server has carried out since it has its database."""
    with sqlite3.connect(skyrl.state / "tinker.db") as database:
        (count,) = database.execute(
            "select count(*) from futures where upper(request_type) = 'OPTIM_STEP' "
            "and upper(status) = 'COMPLETED' "
            "and json_extract(request_data, '$.adam_params.learning_rate') > 0"
        ).fetchone()
    return count


@pytest.fixture(scope="module")
def straight(skyrl, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the undisturbed run logged."""
    found = told(fastslow.train(settings(skyrl, tmp_path_factory.mktemp("straight") / "run")))
    # Each update shows, so that one twice or none would.
    assert found["step 4 kl"] > 2 * found["step 3 kl"] > 4 * found["step 2 kl"] > 0
    # The server computes together what has arrived together: the last digits differ from run to run.
    return {
        key: pytest.approx(value, rel=1e-3, abs=1e-5) if isinstance(value, float) else value
        for key, value in found.items()
    }


AT = {  # where each point is: steps done, fast phases done, steps with rollouts, updates applied
    "the fast phase": ((2, 1, 2), 2),
    "a step's sampling": ((3, 2, 3), 3),
    "gradients without a step": ((3, 2, 3), 3),
    "an update applied": ((3, 2, 3), 4),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("who", ["client", "server"])
def test_a_killed_run_resumes_as_if_nothing_had_been(
    skyrl, straight: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str, point: str
):
    """No step applied twice, no rollout lost or counted twice."""
    config, before = settings(skyrl, tmp_path / "run"), applied(skyrl)
    if who == "client":
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-P", tinker_strike.__file__, str(tmp_path / "config.yaml")]
        paths = [str(Path(tinker_strike.__file__).parent), *sys.path]
        child = subprocess.run(
            [*command, point], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        )
        assert child.returncode == -signal.SIGKILL
    else:
        with monkeypatch.context() as patch:
            struck = tinker_strike.strike(POINTS[point], skyrl.kill)
            patch.setattr(httpx, "AsyncHTTPTransport", struck)
            with pytest.raises(RunError, match="fastslow resume"):
                fastslow.train(config)
        assert skyrl.process is None
    assert (stood(tmp_path / "run"), applied(skyrl) - before) == AT[point]
    if who == "server":
        skyrl.start()
    assert told(fastslow.resume(tmp_path / "run")) == straight
    assert applied(skyrl) - before == AT[point][1] + 2  # the two since the checkpoint, once each
