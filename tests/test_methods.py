"""Every method is the one loop: what evolves when, what the weights learn from, what is reused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fastslow
from conftest import Letters, rollout
from fastslow import Config, ConfigError, Group, Problem
from fastslow.api import make_engine
from fastslow.collect import roll_out
from fastslow.config import SlowConfig
from fastslow.engine.base import SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.fast.population import make_prompt
from fastslow.methods import METHODS
from fastslow.run import Run
from fastslow.slow.distill import make_lessons


def trained(small: dict, tmp_path: Path, method: str, **loop: object) -> Run:
    settings = small | {
        "run": small["run"] | {"dir": str(tmp_path / method)},
        "loop": small["loop"] | {"method": method} | loop,
    }
    return fastslow.train(settings)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.latest() / "model" / "model.safetensors")


def phases(run: Run) -> list[int]:
    return [row["step"] for row in run.metrics if "fast" in row]


PHASES = {
    "fst": [1, 3, 5],
    "rl": [],
    "gepa": [1, 3, 5],
    "gepa+rl": [1],
    "rl+gepa": [6],
    "base+gepa": [1],
    "fst-distill": [1, 3, 5],
}


@pytest.mark.parametrize("method", METHODS)
def test_prompts_evolve_when_the_method_says(small: dict, tmp_path: Path, method: str):
    run = trained(small, tmp_path, method)
    assert phases(run) == PHASES[method]
    assert run.summary is not None
    spent, learns = run.summary["rollouts"], METHODS[method].learns
    assert (spent["gepa"] > 0) == bool(PHASES[method])
    assert (spent["rl"] > 0) == (learns != "nothing")
    assert spent["reused"] == 0 or METHODS[method].trains_under_its_prompts
    moved = run.summary["kl_to_base_seed_prompt"] > 1e-7
    assert moved == (learns != "nothing")
    assert "eval" in run.metrics[-1]


def test_rl_and_gepa_after_it_share_their_weights(small: dict, tmp_path: Path):
    plain, after = (trained(small, tmp_path, method) for method in ("rl", "rl+gepa"))
    one, other = weights(plain), weights(after)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert [row["reward"] for row in plain.metrics if "reward" in row] == [
        row["reward"] for row in after.metrics if "reward" in row
    ]
    assert len({row["id"] for row in after.prompts}) > 1


def test_a_method_that_ends_with_prompts_keeps_rollouts_for_them(small: dict, tmp_path: Path):
    run = trained(small, tmp_path, "rl+gepa", steps=50, rollouts=100)
    assert run.summary is not None
    spent = run.summary["rollouts"]
    assert 64 <= spent["rl"] <= 76
    assert 100 - 16 <= spent["rl"] + spent["gepa"] <= 116


def test_resume_does_the_last_phase_once(small: dict, tmp_path: Path):
    run = trained(small, tmp_path, "rl+gepa")
    rows, prompts = run.metrics, run.prompts
    (run.dir / "summary.json").unlink()
    again = fastslow.resume(run.dir)
    assert len(again.metrics) == len(rows)
    assert again.prompts == prompts


def test_the_student_sees_the_problem_alone(small: dict, tmp_path: Path):
    run = trained(small, tmp_path, "fst-distill")
    seed = make_prompt("Write.").id
    rows = [row for row in run.metrics if "reward" in row]
    assert all(set(row["reward_by_prompt"]) == {seed} for row in rows)
    assert all("kl_to_teacher" in row for row in rows)
    assert run.metrics[-1]["eval"]["population"] == run.metrics[-1]["eval"]["seed"]


def test_the_student_comes_nearer_to_its_teacher(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny, tmp_path / "firm")
    firm = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():  # a teacher of firmer opinions
        firm.model.norm.weight.mul_(4)
    firm.save_pretrained(tmp_path / "firm")
    model = {"name": str(tiny), "base": str(tmp_path / "firm")}
    engine = make_engine(Config.parse({"model": model, "slow": {"lr": 3e-3, "warmup": 0}}))
    task, slow, gaps = Letters(), SlowConfig(), []
    for step in range(30):
        problems = task.problems("train")[:6]
        pairs = [(make_prompt("Write."), problem) for problem in problems]
        rows = roll_out(engine, task, pairs, [64] * 6, SamplingParams(max_tokens=6), step)
        groups = [Group(problem, row) for problem, row in zip(problems, rows, strict=True)]
        batch, gap = make_lessons(groups, [make_prompt("Sing.")], engine, slow, 1.0)
        engine.update(batch.data)
        gaps.append(gap)
    assert fmean(gaps[-5:]) < 0.8 * fmean(gaps[:5])


def test_lessons_are_the_teachers_log_probabilities(engine: LocalEngine):
    prompts = [make_prompt("Be brief."), make_prompt("Sing aloud.")]
    problems = [Problem("a", "Problem 1.", None), Problem("b", "Problem 2.", None)]
    groups = [
        Group(p, [rollout(p.id, "seed", reward, 4, mask=[1, 1, 0, 1]) for reward in (0.0, 1.0)])
        for p in problems
    ]
    batch, gap = make_lessons(groups, prompts, engine, SlowConfig(), 1.0)
    assert batch.groups == 2
    found = []
    for place, (datum, made) in enumerate(zip(batch.data, batch.rollouts, strict=True)):
        context = engine.render(prompts[place % 2].text, problems[place // 2].prompt)
        (said,) = engine.logprobs([(context, made.tokens)], "base")
        expected = [t - s for t, s in zip(said, made.logprobs, strict=True)]
        assert datum.advantages == pytest.approx(expected, abs=1e-4)
        assert datum.context == made.context
        assert datum.weights == pytest.approx([1 / 12, 1 / 12, 0, 1 / 12])
        found += [-expected[i] for i in (0, 1, 3)]
    assert gap == pytest.approx(math.fsum(found) / len(found), abs=1e-4)


def test_rewards_do_not_reach_the_student(engine: LocalEngine):
    def lessons(rewards: tuple[float, float]) -> list[list[float]]:
        group = Group(Letters().problems("train")[0], [rollout(reward=r) for r in rewards])
        batch, _ = make_lessons([group], [make_prompt("Sing.")], engine, SlowConfig(), 1.0)
        return [datum.advantages for datum in batch.data]

    assert lessons((0.0, 1.0)) == lessons((1.0, 1.0))


def test_the_reference_may_be_another_model(small: dict, tmp_path: Path):
    first = trained(small, tmp_path, "rl")
    small["model"] = {"name": str(first.latest() / "model"), "base": small["model"]["name"]}
    second = trained(small | {"task": small["task"]}, tmp_path / "second", "rl", steps=1)
    kept = second.metrics[0]["eval"]["drift_seed"]["kl"]
    assert first.summary is not None
    # Estimates from four responses each; without `base` it would be zero but for rounding.
    assert 0.1 < kept / first.summary["kl_to_base_seed_prompt"] < 10
    assert kept > 1e-7


def test_a_group_must_be_shared_equally_where_prompts_share_it(small: dict, tmp_path: Path):
    small["fast"]["k"] = 3
    for method in ("fst", "gepa+rl", "fst-distill"):
        with pytest.raises(ConfigError, match="does not divide"):
            trained(small, tmp_path, method)
    assert trained(small, tmp_path, "rl+gepa").summary
