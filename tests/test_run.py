"""A run on disk: what it writes, and that neither kill -9 nor a failing part loses or changes anything."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fastslow
from conftest import Letters
from fastslow import Config, ReflectorError, RunError, Score, TaskError
from fastslow.run import Run


class Fuse(Letters):
    """Kills its own process at the n-th scoring, the first time only. `fuse` is a file that holds n."""

    def __init__(self, fuse: str) -> None:
        super().__init__()
        self.fuse, self.calls = Path(fuse), 0

    def score(self, problem: Any, response: str) -> Score:
        self.calls += 1
        if self.fuse.exists() and self.calls == int(self.fuse.read_text()):
            self.fuse.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(problem, response)


def lines(run: Path, name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / name).read_text().splitlines()]
    for row in rows:
        row.pop("seconds", None)
    return rows


def assert_same(one: Path, other: Path) -> None:
    """Metrics, prompts, rollouts and weights of two runs, bit for bit."""
    assert lines(one, "metrics.jsonl") == lines(other, "metrics.jsonl")
    assert lines(one, "prompts.jsonl") == lines(other, "prompts.jsonl")
    names = sorted(path.name for path in (one / "rollouts").iterdir())
    assert names == sorted(path.name for path in (other / "rollouts").iterdir())
    for name in names:
        assert (one / "rollouts" / name).read_text() == (other / "rollouts" / name).read_text()
    weights = [
        load_file(Run.open(run).latest() / "model" / "model.safetensors") for run in (one, other)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["finished"], summary["peak_memory"]  # measured
    assert summaries[0] == summaries[1]


def in_process(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, one thread."""
    tests = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": tests, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fastslow", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


@pytest.fixture
def reference(small: dict, tmp_path: Path) -> Path:
    """The run that nobody killed."""
    settings = small | {
        "run": small["run"] | {"dir": str(tmp_path / "reference"), "checkpoint_every": 1},
        "task": {"name": "test_run:Fuse", "args": {"fuse": str(tmp_path / "fuse")}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    done = in_process("train", str(tmp_path / "config.yaml"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "reference"


# The n-th scoring. A base evaluation takes 8 of them, a fast phase up to 40, a step up to 16.
POINTS = {
    "base evaluation": 5,
    "fast phase": 30,
    "first steps": 70,
    "evaluation": 100,
    "second fast phase": 130,
    "late step": 190,
}


def check_kill(reference: Path, point: str, every: int) -> None:
    run = reference.parent / "killed"
    (reference.parent / "fuse").write_text(str(POINTS[point]))
    settings = ("--set", f"run.dir={run}", "--set", f"run.checkpoint_every={every}")
    killed = in_process("train", str(reference.parent / "config.yaml"), *settings)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (run / "summary.json").exists()
    resumed = in_process("resume", str(run))
    assert resumed.returncode == 0, resumed.stderr
    assert_same(reference, run)


def test_a_killed_run_ends_as_if_it_had_not_been(reference: Path):
    """kill -9 inside a later fast phase; checkpoints between cycles and inside them, with the cache."""
    check_kill(reference, "second fast phase", 1)


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_kill_anywhere(reference: Path, point: str, every: int):
    check_kill(reference, point, every)


def test_what_a_run_leaves_behind(small: dict):
    run = fastslow.train(small)
    assert {
        "config.yaml",
        "metrics.jsonl",
        "prompts.jsonl",
        "rollouts",
        "checkpoints",
        "summary.json",
    } <= {path.name for path in run.dir.iterdir()}
    assert [row["step"] for row in run.metrics] == [0, 1, 2, 3, 4, 5]
    assert [path.name for path in run.checkpoints()] == ["step-000005"]
    summary = run.summary
    assert summary is not None
    assert {
        "method",
        "seed",
        "steps",
        "reward",
        "kl_to_base",
        "entropy",
        "rollouts",
        "seconds",
    } <= set(summary)
    assert {"base", "final", "final_seed_prompt"} <= set(summary["reward"])
    assert {"sample", "train", "gepa", "eval", "waiting", "total"} == set(summary["seconds"])
    spent = summary["rollouts"]
    assert spent["rl"] + spent["reused"] == 5 * 4 * 4  # every slot of every group is filled once
    assert spent["gepa"] == sum(row["fast"]["rollouts"] for row in run.metrics if "fast" in row)
    rows = lines(run.dir, "rollouts/step-000001.jsonl")
    assert len(rows) == 16
    assert sum(row["reused"] for row in rows) == run.metrics[1]["reused"] > 0
    assert {"text", "feedback", "reward"} <= set(rows[0])


class Deaf(Letters):
    def score(self, problem: Any, response: str) -> Score:
        return Score(0.0, "No.")


def test_that_sampler_and_trainer_agree_is_reported_without_an_update_too(small: dict):
    small["loop"] = small["loop"] | {"method": "rl"}
    rows = fastslow.train(small, task=Deaf()).metrics[1:]
    assert all("loss" not in row for row in rows)
    assert all(0 < row["ratio"]["fresh"]["deviation"] < 1e-4 for row in rows)


def test_fresh_rollouts_are_on_policy_and_reused_ones_are_close(small: dict):
    ratios = [row["ratio"] for row in fastslow.train(small).metrics[1:]]
    assert all(ratio["fresh"]["deviation"] < 1e-4 for ratio in ratios if "fresh" in ratio)
    stale = [ratio["reused"]["deviation"] for ratio in ratios if "reused" in ratio]
    assert (
        max(stale) > 1e-4
    )  # the second step of a cycle reuses what the first step's policy left behind


@pytest.mark.parametrize("method", ["rl", "gepa", "gepa+rl", "fst"])
def test_methods_are_one_loop_with_channels_switched(small: dict, method: str):
    small["loop"] = small["loop"] | {"method": method}
    run = fastslow.train(small)
    assert run.summary is not None
    spent = run.summary["rollouts"]
    phases = [row["cycle"] for row in run.metrics if "fast" in row]
    assert phases == {"rl": [], "gepa": [0, 1, 2], "gepa+rl": [0], "fst": [0, 1, 2]}[method]
    assert (spent["rl"] > 0) == (method != "gepa")
    if method == "gepa":
        before = load_file(Path(small["model"]["name"]) / "model.safetensors")
        after = load_file(run.latest() / "model" / "model.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_cap_on_rollouts_ends_the_run(small: dict):
    small["loop"] = small["loop"] | {"method": "rl", "steps": 50, "rollouts": 40}
    assert fastslow.train(small).summary["steps"] == 3  # type: ignore[index]


def test_reuse_can_be_switched_off(small: dict):
    small["reuse"] = {"enabled": False}
    assert fastslow.train(small).summary["rollouts"]["reused"] == 0  # type: ignore[index]


def test_the_lookahead_as_anchors_serves_a_third_of_rl(small: dict):
    small["fast"] = small["fast"] | {"anchors": "lookahead", "budget": 60}
    run = fastslow.train(small)
    spent = run.summary["rollouts"]  # type: ignore[index]
    assert spent["reused"] >= (spent["rl"] + spent["reused"]) / 3


def test_a_second_process_is_refused(small: dict):
    run = fastslow.train(small)
    (run.dir / "summary.json").unlink()
    with (run.dir / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"):
            fastslow.resume(run.dir)
    fastslow.resume(run.dir)


def test_a_run_is_never_overwritten(small: dict):
    run = fastslow.train(small)
    before = (run.dir / "metrics.jsonl").read_text()
    with pytest.raises(RunError, match="fastslow resume"):
        fastslow.train(small)
    assert (run.dir / "metrics.jsonl").read_text() == before
    assert fastslow.resume(run.dir).summary == run.summary  # finished: nothing to do


def test_a_reflector_that_goes_down_stops_at_a_safe_point(small: dict, tmp_path: Path):
    """Down in the second cycle: the run stops with the reason, and goes on as if it had not been."""
    directory = Path(small["run"]["dir"])
    broken = True

    def reflect(prompt: str) -> str:
        if broken and (directory / "checkpoints").exists():
            raise ConnectionError("quota exhausted")
        return f"```\nUse vowels, way {zlib.crc32(prompt.encode())}.\n```"

    with pytest.raises(ReflectorError, match="quota exhausted"):
        fastslow.train(small, reflector=reflect)
    assert lines(directory, "metrics.jsonl")[-1]["step"] == 2
    broken = False
    run = fastslow.resume(directory, reflector=reflect)
    small["run"] = small["run"] | {"dir": str(tmp_path / "other")}
    assert_same(fastslow.train(small, reflector=reflect).dir, run.dir)


def test_damaged_and_missing_checkpoints_are_named(small: dict, tmp_path: Path):
    with pytest.raises(RunError, match="not a run directory"):
        fastslow.resume(tmp_path)
    run = fastslow.train(small)
    (run.dir / "summary.json").unlink()
    state = run.latest() / "state.json"
    whole = state.read_text()
    state.write_text(whole[:100])
    with pytest.raises(RunError, match=r"state\.json: damaged checkpoint"):
        fastslow.resume(run.dir)
    state.write_text(whole)
    metrics = run.dir / "metrics.jsonl"
    metrics.write_text("")
    with pytest.raises(RunError, match="the log was cut"):
        fastslow.resume(run.dir)
    metrics.write_text("{oops")
    with pytest.raises(RunError, match=r"metrics\.jsonl: damaged"):
        _ = run.metrics
    (run.dir / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json: damaged"):
        fastslow.resume(run.dir)


def test_a_run_directory_that_cannot_be(small: dict, tmp_path: Path):
    (tmp_path / "file").write_text("")
    small["run"] = {"dir": str(tmp_path / "file")}
    with pytest.raises(RunError, match="File exists") as caught:
        fastslow.train(small)
    assert "disk" not in str(caught.value)


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    "size", [150_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (2_000, 500_000))]
)
def test_a_full_disk_is_said_plainly_and_costs_nothing(small: dict, tmp_path: Path, size: int):
    """Files may not grow beyond a size: logs, weights or optimizer state meet it first."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small))
    failed = in_process("train", str(path), preexec_fn=lambda: limit_files(size))
    assert failed.returncode == 2, failed.stderr
    assert failed.stderr.count("\n") == 1
    assert "if the disk is full make room" in failed.stderr
    run = fastslow.resume(small["run"]["dir"])
    small["run"] = small["run"] | {"dir": str(tmp_path / "other")}
    assert_same(fastslow.train(small).dir, run.dir)


class Moody(Letters):
    """Its scorer does something unpromised at the 50th response."""

    def __init__(self, mood: str) -> None:
        super().__init__()
        self.mood, self.calls = mood, 0

    def score(self, problem: Any, response: str) -> Any:
        self.calls += 1
        if self.calls == 50:
            if self.mood == "raise":
                raise KeyError("answer")
            odd = {"nan": Score(float("nan"), ""), "number": 1.0, "silent": Score(1.0, None)}
            return odd[self.mood]
        return super().score(problem, response)


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("raise", "score raised KeyError: 'answer'"),
        ("nan", "reward=nan"),
        ("number", "returned 1.0"),
    ],
)
def test_a_task_that_breaks_its_promise_is_named(small: dict, mood: str, said: str):
    with pytest.raises(TaskError, match=f"problem 'train-.*{said}"):
        fastslow.train(small, task=Moody(mood))
    fastslow.resume(small["run"]["dir"], task=Letters())  # nothing is lost


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"test": 0}, r"problems\('test'\) holds no problem"),
        ({"train": 0}, r"problems\('train'\) holds no problem"),
        ({"train": "many"}, r"problems\('train'\) raised TypeError"),
    ],
)
def test_a_task_without_problems_is_refused_before_anything_is_written(
    small: dict, sizes: dict, said: str
):
    with pytest.raises(TaskError, match=said):
        fastslow.train(small, task=Letters(**sizes))
    fastslow.train(small)  # the place is still free


def test_a_run_knows_its_own_task(small: dict):
    run = fastslow.train(small, task=Letters())
    assert run.summary["task"] == "conftest:Letters"  # type: ignore[index]


def test_the_self_reflector_resumes_exactly(small: dict, tmp_path: Path):
    """Its draws come from the phase's generator, not from a counter that a resume would reset."""
    small["fast"] = small["fast"] | {"reflector": "self", "reflector_args": {"max_tokens": 4}}
    small["task"] = {"name": "test_run:Brief"}
    whole = fastslow.train(small)
    small["run"] = small["run"] | {"dir": str(tmp_path / "cut")}
    with pytest.raises(Stop):
        fastslow.train(small, observer=Stopper())
    assert_same(whole.dir, fastslow.resume(tmp_path / "cut").dir)


class Brief(Letters):
    def score(self, problem: Any, response: str) -> Score:
        return Score(super().score(problem, response).reward, "No.")


class Stop(Exception):
    pass


class Stopper:
    def phase(self, name: str, state: Any) -> None: ...

    def step(self, row: Any, state: Any) -> None:
        if state.step == 3:
            raise Stop


def test_anchors_are_as_many_as_half_the_budget_pays_for(small: dict):
    small["fast"] = small["fast"] | {"anchors": 200, "budget": 24}
    rows = [row["fast"] for row in fastslow.train(small).metrics if "fast" in row]
    assert [row["anchors"] for row in rows] == [24 // 4] * 3
    assert all(row["rollouts"] <= 24 for row in rows)


def test_seeds_differ(small: dict, tmp_path: Path):
    first = fastslow.train(small)
    small["run"] = {"dir": str(tmp_path / "b"), "seed": 1}
    second = fastslow.train(small)
    assert [r.get("reward") for r in first.metrics] != [r.get("reward") for r in second.metrics]


def test_training_raises_the_reward(small: dict):
    """A random model learns to write vowels: the loop, the loss and the sign of the advantage are right."""
    small["loop"] = {"method": "rl", "steps": 40, "cycle": 10, "problems": 8, "group": 8}
    small["slow"] = small["slow"] | {"lr": 5e-3, "no_positive_resampling": None}
    small["eval"] = {"every": 40, "problems": 6, "n": 8}
    run = fastslow.train(Config.parse(small))
    reward = run.summary["reward"]  # type: ignore[index]
    assert reward["final"] > reward["base"] + 0.3
