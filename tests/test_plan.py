"""What is planned against what real runs then took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import fastslow
from conftest import Letters
from fastslow import Config, Problem
from fastslow.cli import main
from fastslow.engine.memory import peak
from fastslow.plan import habits_of, make_plan
from fastslow.run import Run


class Long(Letters):
    """Problems of three lengths, so that a mean is to be measured."""

    def problems(self, split: str) -> list[Problem]:
        rows = super().problems(split)
        return [Problem(p.id, "word " * (5 * (i % 3)) + p.prompt, i) for i, p in enumerate(rows)]


def near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 0.2 * max(abs(expected), 1)


def learned_tokens(run: Run) -> float:
    batch = run.config.loop.problems * run.config.loop.group
    return sum(row.get("response_tokens", 0) * batch for row in run.metrics)


@pytest.mark.parametrize("method", ["fst", "rl", "gepa", "gepa+rl", "rl+gepa", "base+gepa"])
def test_rollouts_and_tokens_of_real_runs(small: dict, tmp_path: Path, method: str):
    small["loop"] |= {"method": method, "steps": 4}
    short = fastslow.train(small, task=Long())
    small["loop"] |= {"steps": 9, "cycle": 3, "problems": 5}
    small["run"] |= {"dir": str(tmp_path / "long"), "seed": 1}
    plan = make_plan(Config.parse(small), short, Long())
    run = fastslow.train(small, task=Long())
    spent = run.summary["rollouts"]  # type: ignore[index]
    assert plan.counts.steps == run.summary["steps"]  # type: ignore[index]
    for name in ("rl", "gepa", "eval"):
        assert near(getattr(plan.counts, name), spent[name]), name
    assert abs(plan.counts.reused - spent["reused"]) <= max(4, 0.3 * spent["reused"])
    assert near(plan.learned, learned_tokens(run))
    rollouts = [json.loads(line) for p in sorted(run.dir.glob("rollouts/*")) for line in p.open()]
    assert bool(rollouts) == (method not in ("gepa", "base+gepa"))


def test_a_cap_on_rollouts_ends_the_plan(small: dict):
    small["loop"] |= {"steps": 500, "rollouts": 200}
    run = fastslow.train(small)
    plan = make_plan(Config.parse(small), run)
    assert near(plan.counts.steps, run.summary["steps"])  # type: ignore[index]


def test_without_an_earlier_run_responses_are_as_long_as_can_be(small: dict):
    plan = make_plan(Config.parse(small))
    assert (plan.response, plan.measured, plan.seconds) == (8, False, None)
    run = fastslow.train(small)
    spent = run.summary["rollouts"]  # type: ignore[index]
    assert near(plan.counts.rl, spent["rl"])
    assert spent["gepa"] <= plan.counts.gepa <= 1.5 * spent["gepa"]  # the whole budget


def test_the_pace_is_that_of_the_last_cycle(small: dict):
    run = fastslow.train(small)
    rows = run.metrics
    for row in rows:
        late = max(0, row["step"] - 3)
        clock = {
            "sample": 50 * (row["step"] - late) + late,
            "gepa": 0,
            "train": 2 * late,
            "eval": 3,
        }
        row["seconds"] |= clock
    (run.dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before, last = rows[3]["rollouts"], rows[5]["rollouts"]
    assert (rows[3]["step"], rows[5]["step"]) == (3, 5)
    made, learned = (
        sum(last[k] - before[k] for k in kinds) for kinds in (("rl", "gepa"), ("rl", "reused"))
    )
    pace = habits_of(Run.open(run.dir)).seconds
    assert pace == {"made": 2 / made, "learned": 4 / learned, "evaluated": 3 / last["eval"]}


def test_the_command(small: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small))
    assert main(["plan", str(path), "--method", "rl"]) == 0
    assert "rollouts for RL" in capsys.readouterr().out
    assert main(["plan", str(path), "--like", str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    fastslow.train(small)
    assert main(["plan", str(path), "--like", small["run"]["dir"]]) == 0
    assert "hours" in capsys.readouterr().out


def test_hours_at_a_given_speed(small: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    small["loop"] |= {"method": "rl", "steps": 10}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(small))
    batch = small["loop"]["problems"] * small["loop"]["group"]
    assert main(["plan", str(path), "--speed", "0.5,0.25"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    evaluated = make_plan(Config.parse(small)).counts.eval
    hours = 8 * ((10 * batch + evaluated) / 0.5 + 10 * batch / 0.25) / 3600  # 8 tokens each
    assert f"hours {hours:.2f} at the speed given" in out
    for wrong in ("fast", "1", "1,2,3", "0,5", "1,nan", "inf,1", ""):
        assert main(["plan", str(path), "--speed", wrong]) == 2
        assert f"--speed {wrong!r}: expected two positive" in capsys.readouterr().err


def test_reflection_has_a_price(small: dict):
    pytest.importorskip("litellm")
    prices = {}
    for reflector in ("offline", "openai/gpt-4o", "openai/gpt-4o-mini", "nobody/knows"):
        small["fast"] |= {"reflector": reflector}
        prices[reflector] = make_plan(Config.parse(small)).dollars
    assert prices["offline"] == 0
    assert prices["nobody/knows"] is None
    assert prices["openai/gpt-4o"] > prices["openai/gpt-4o-mini"] > 0  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"lora": {"rank": 8}}, {"gradient_checkpointing": True}],
    ids=["full", "lora", "checkpointing"],
)
def test_memory_of_real_runs(tiny: Path, small: dict, tmp_path: Path, more: dict):
    """A model whose weights and activations outweigh the libraries, in a process of its own."""
    import shutil

    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shutil.copytree(tiny, tmp_path / "m")
    config = Qwen3Config.from_pretrained(tiny)
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "head_dim": 64}
    config.update(sizes | {"num_attention_heads": 8, "num_key_value_heads": 4})
    config.layer_types = ["full_attention"] * 12
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "m")
    small["model"] = {"name": str(tmp_path / "m"), **more}
    small["sampling"] = {"max_tokens": 48}
    small["loop"] |= {"steps": 2, "cycle": 2, "problems": 8, "group": 8}
    small["fast"] |= {"budget": 60}
    small["slow"] |= {"filter_zero_variance": False}  # each batch is learned from
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(small))
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    given = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
    code = (
        "import sys; from fastslow import Config; from fastslow.run import Run;"
        "from fastslow.plan import make_plan; from fastslow.engine.memory import peak;"
        "made = make_plan(Config.load(sys.argv[1]), Run.open(sys.argv[2])).memory;"
        "print(made, peak(made))"
    )
    subprocess.run([sys.executable, "-m", "fastslow", "train", str(path)], env=given, check=True)
    run = Run.open(small["run"]["dir"])
    planned = subprocess.run(
        [sys.executable, "-c", code, str(path), str(run.dir)],
        env=given,
        check=True,
        capture_output=True,
        text=True,
    )
    taken = run.summary["peak_memory"]  # type: ignore[index]
    assert near(float(planned.stdout.split()[-1]), taken), (planned.stdout, taken)


def test_peak_is_the_rest_with_the_larger_of_two_turns():
    assert peak({"weights": 2.0, "learning": 5.0, "sampling": 3.0}) == 7.0
