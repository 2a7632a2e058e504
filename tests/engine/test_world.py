"""Two processes against one: the same run, whoever does the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fastslow
from conftest import Letters
from fastslow import Problem, RunError, Score
from fastslow.engine.world import World


class Moody(Letters):
    """Scores as its process does: only one process's scores may count."""

    def score(self, problem: Problem, response: str) -> Score:
        found = super().score(problem, response)
        return found if os.environ.get("RANK", "0") == "0" else Score(1 - found.reward, "Wrong.")


def reflect(prompt: str) -> str:
    return f"```\nWrite words. Process {os.environ.get('RANK', '0')} says so.\n```"


def falter(prompt: str) -> str:
    """As `reflect`, but it is down once, in the second fast phase."""
    mark = Path(os.environ["FALTERED"])
    if not mark.exists() and list(mark.parent.glob("*/checkpoints/step-*")):
        mark.touch()
        raise TimeoutError("down")
    return reflect(prompt)


LEFT = """
import atexit, os, sys
from pathlib import Path

def left():  # Python ends; which threads are still there?
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    sys.stderr.write(f"left: {sorted(name for name in names if 'gloo' in name)}\\n")

if "RANK" in os.environ:
    atexit.register(left)
"""


def started(settings: dict, path: Path, command: str = "train") -> subprocess.CompletedProcess:
    path.write_text(yaml.safe_dump(settings))
    target = settings["run"]["dir"] if command == "resume" else str(path)
    (path.parent / "sitecustomize.py").write_text(LEFT)
    paths = [
        str(path.parent),
        str(Path(__file__).parent),
        str(Path(__file__).parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return subprocess.run(
        [*torchrun, "--standalone", "-m", "fastslow", command, target],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        | {"FALTERED": str(path.parent / "faltered"), "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_ended(done: subprocess.CompletedProcess) -> None:
    """Without an error, and with no thread of gloo's left, which could abort Python amid its end."""
    assert done.returncode == 0, done.stderr[-9000:]
    assert done.stderr.count("left: []") == 2, done.stderr[-9000:]


def rows(directory: Path) -> list[dict]:
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for row in found:
        row.pop("seconds")
    return found


def assert_alike(one: object, other: object, place: str = "") -> None:
    """Equal up to the rounding of sums in another order."""
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), place
        for key in one:
            assert_alike(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-3, abs=2e-5), place
    else:
        assert one == other, place


def assert_same_weights(one: Path, other: Path) -> None:
    """But for the few whose gradient is rounding noise, which AdamW scales to full steps."""
    weights, others = (
        load_file(max((run / "checkpoints").iterdir()) / "model/model.safetensors")
        for run in (one, other)
    )
    assert weights.keys() == others.keys()
    assert {t.dtype for t in weights.values()} == {t.dtype for t in others.values()}
    gaps = torch.cat([(weights[name] - others[name]).abs().flatten() for name in weights])
    assert gaps.max() < 1e-3
    assert (gaps > 1e-6).float().mean() < 1e-2


SLOW = [pytest.param(r, marks=pytest.mark.slow) for r in ("offline", "self")]


@pytest.mark.parametrize("reflector", ["python:test_world:reflect", *SLOW])
def test_two_processes_make_the_run_of_one(
    small: dict, tmp_path: Path, monkeypatch, reflector: str
):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    small["task"] = {"name": "test_world:Moody"}
    small["fast"] |= {"reflector": reflector}
    if reflector == "self":
        small["fast"] |= {"reflector_args": {"max_tokens": 4}}
    alone = fastslow.train(small | {"run": small["run"] | {"dir": str(tmp_path / "one")}})
    small["run"] |= {"dir": str(tmp_path / "two")}
    done = started(small, tmp_path / "two.yaml")
    assert_ended(done)
    assert done.stdout.count("best prompt") == 1  # one of them talks
    for mine, theirs in zip(rows(alone.dir), rows(tmp_path / "two"), strict=True):
        assert_alike(mine, theirs, f"step {mine['step']}")
    assert_same_weights(alone.dir, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_sharded_run_is_the_same_and_goes_on_after_a_stop(
    small: dict, tmp_path: Path, monkeypatch, dtype: str
):
    """FSDP2: one process with all of the optimizer, then two with a half each, stopped amid the run."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setenv("FALTERED", str(tmp_path / "faltered"))
    small["model"] = {"dtype": dtype, "shard": True}
    small["fast"] |= {"reflector": "python:test_world:falter"}
    small["run"] |= {"dir": str(tmp_path / "two")}
    stopped = started(small, tmp_path / "two.yaml")
    assert "down" in stopped.stderr
    (found,) = (tmp_path / "two/checkpoints").iterdir()
    assert sorted(path.name for path in found.glob("*.pt")) == ["optimizer-0.pt", "optimizer-1.pt"]
    with pytest.raises(RunError, match="its optimizer is in 2 parts, this run's in 1"):
        fastslow.resume(tmp_path / "two")
    resumed = started(small, tmp_path / "two.yaml", "resume")
    assert_ended(resumed)
    small["run"] |= {"dir": str(tmp_path / "straight")}
    if dtype == "float32":
        straight = fastslow.train(small)
    else:  # rounding of BF16 takes one process and two apart
        assert_ended(started(small, tmp_path / "straight.yaml"))
        straight = fastslow.Run.open(tmp_path / "straight")
    for mine, theirs in zip(rows(straight.dir), rows(tmp_path / "two"), strict=True):
        assert_alike(mine, theirs, f"step {mine['step']}")
    assert_same_weights(straight.dir, tmp_path / "two")


def test_what_is_refused_ends_all_with_a_line_each(small: dict, tmp_path: Path):
    fastslow.train(small)
    again = started(small, tmp_path / "a.yaml")
    assert again.returncode != 0
    said = [line for line in again.stderr.splitlines() if "a run is here already" in line]
    assert [line.startswith("fastslow: error: ") for line in said] == [True, True]
    assert "fastslow/run.py" not in again.stderr  # no traceback but torchrun's


def test_shares_are_all_of_it_and_even():
    for size in (1, 2, 3, 8):
        costs = [1 + (i * 7) % 5 for i in range(40)]
        parts = [World(rank, size).share(range(40), costs) for rank in range(size)]
        assert [item for part in parts for item in part] == list(range(40))
        loads = [sum(costs[item] for item in part) for part in parts]
        assert max(loads) - min(loads) <= 2 * max(costs)
    assert [World(r, 4).share([5], [3.0]) for r in range(4)].count([5]) == 1
    assert World(0, 2).share([], []) == []
