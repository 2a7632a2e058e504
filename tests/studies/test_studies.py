"""Plasticity, continual learning, ablations and the 2 x 2, each on a random model in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fastslow import Config, ConfigError
from fastslow.cli import main
from fastslow.run import Run
from fastslow.studies import continual
from fastslow.studies.ablate import ablate
from fastslow.studies.decompose import CELLS, decompose, table

BOTH = [{"name": "conftest:Letters", "label": "one"}, {"name": "conftest:Letters", "label": "two"}]


@pytest.fixture
def settings(small: dict, monkeypatch: pytest.MonkeyPatch) -> dict:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    small["loop"] |= {"steps": 2}
    small["slow"] |= {"lr": 1e-2}
    return small


def written(settings: dict, path: Path) -> str:
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def rows(text: str) -> dict[str, list[str]]:
    """A table's cells by its rows' names."""
    lines = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    return {line[1].strip(): [cell.strip() for cell in line[2:-1]] for line in lines}


def test_ablations_change_one_setting_at_a_time(settings: dict, tmp_path: Path):
    config = Config.parse(settings)
    study = ablate(config, ["fast.k=1,2,4", "slow.baseline=prompt"], 2, tmp_path / "a", 64)
    arms = {member.arm: member.config for member in study.members if member.seed == 0}
    assert list(arms) == ["as configured", "fast.k=1", "fast.k=4", "slow.baseline=prompt"]
    assert [arm.fast.k for arm in arms.values()] == [2, 1, 4, 2]  # 2 is as it is configured
    assert [arm.loop.rollouts for arm in arms.values()] == [64] * 4
    assert len({member.config.run.dir for member in study.members}) == len(study.members) == 8
    with pytest.raises(ConfigError, match="does not divide"):
        ablate(config, ["fast.k=3"], 1, tmp_path / "a")
    with pytest.raises(ConfigError, match="expected key=value,value"):
        ablate(config, ["fast.k"], 1, tmp_path / "a")


def test_the_ablate_command(settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = written(settings, tmp_path / "small.yaml")
    command = ["ablate", path, "--over", "reuse.enabled=false", "--seeds", "1"]
    assert main([*command, "--dir", str(tmp_path / "a")]) == 0
    found = rows(capsys.readouterr().out)
    assert found[""] == ["as configured", "reuse.enabled=false"]
    assert found["RL rollouts reused"][1] == "0%"
    assert (tmp_path / "a/report.html").exists()
    assert (tmp_path / "a/results.md").exists()


def test_a_study_takes_what_another_has_made(settings: dict, tmp_path: Path, capsys):
    path = written(settings, tmp_path / "small.yaml")
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["compare", path, "--methods", "fst", "--seeds", "1", "--dir", str(first)]) == 0
    command = ["ablate", path, "--over", "fast.k=1", "--seeds", "1", "--dir", str(second)]
    assert main([*command, "--from", str(first)]) == 0
    taken, made = Run.open(second / "as configured-s0"), Run.open(second / "fast.k=1-s0")
    assert taken.summary == Run.open(first / "fst-s0").summary  # its time of day too
    assert taken.config.run.dir == str(second / "as configured-s0")
    assert made.summary is not None
    assert made.summary != taken.summary
    assert main([*command, "--from", str(tmp_path / "none")]) == 2
    assert "none: holds no finished runs" in capsys.readouterr().err


def test_plasticity_starts_from_each_checkpoint(settings: dict, tmp_path: Path, capsys):
    first = written(settings, tmp_path / "first.yaml")
    settings["task"] = {"name": "conftest:Letters", "train": 30}
    second = written(settings, tmp_path / "second.yaml")
    command = ["plasticity", first, "--then", second, "--methods", "rl,fst", "--seeds", "1"]
    assert main([*command, "--dir", str(tmp_path / "p")]) == 0
    text = capsys.readouterr().out
    phase = {
        name: Run.open(tmp_path / f"p/phase-2/from {name}-s0") for name in ("base", "rl", "fst")
    }
    for name, run in phase.items():
        assert run.config.loop.method == "rl"
        start = run.metrics[0]["eval"]["drift_seed"]["kl"]
        if name == "base":
            assert start == pytest.approx(0, abs=1e-8)
        else:  # the reference is the base that phase 1 began with
            assert start > 1e-6
            ended = Run.open(tmp_path / f"p/phase-1/{name}-s0").latest()
            assert run.config.model.name == str(ended / "model")
    kept = rows(text[text.index("What is left") :])
    assert set(kept) >= {"its prompts, before", "its prompts, after", "the seed prompt, after"}


def test_continual_is_normalised_by_stage(settings: dict, tmp_path: Path, capsys):
    settings["task"] = {"name": "stream", "steps": 2, "tasks": BOTH}
    settings["loop"] |= {"steps": 4}
    path = written(settings, tmp_path / "small.yaml")
    assert main(["continual", path, "--seeds", "1", "--dir", str(tmp_path / "c")]) == 0
    found = rows(capsys.readouterr().out)
    run = Run.open(tmp_path / "c/fst-s0")
    assert [(s.label, s.start, s.end) for s in continual.stages(run)] == [
        ("one", 0, 2),
        ("two", 2, 4),
    ]
    evaluated = {
        row["step"]: row["eval"]["population"]["parts"] for row in run.metrics if "eval" in row
    }
    assert found["stage 2 (two): at its start"][1] == f"{evaluated[2]['two']:.3f}"
    assert found["one at the very end"][1] == f"{evaluated[4]['one']:.3f}"
    gains = [float(cell) for cell in found["stage 2 (two): normalised gain"]]
    best = max(
        row["eval"]["population"]["parts"]["two"]
        for arm in ("rl", "fst")
        for row in Run.open(tmp_path / f"c/{arm}-s0").metrics
        if row["step"] in (3, 4) and "eval" in row
    )
    start, end = evaluated[2]["two"], evaluated[4]["two"]
    expected = (end - start) / (best - start) if best > start else 0.0
    assert gains[1] == pytest.approx(expected, abs=0.006)
    settings["task"] = {"name": "conftest:Letters"}
    assert main(["continual", written(settings, tmp_path / "no.yaml")]) == 2
    assert "expected 'stream'" in capsys.readouterr().err


def test_reward_elsewhere_is_measured_at_both_ends(settings: dict, tmp_path: Path, capsys):
    settings["eval"] |= {"ood": [{"name": "test_episodes:Echo", "seed_prompt": "Say it."}]}
    path = written(settings, tmp_path / "small.yaml")
    assert (
        main(["compare", path, "--methods", "rl", "--seeds", "1", "--dir", str(tmp_path / "o")])
        == 0
    )
    text = capsys.readouterr().out
    run = Run.open(tmp_path / "o/rl-s0")
    measured = {r["step"]: r["eval"]["ood"] for r in run.metrics if "ood" in r.get("eval", {})}
    assert list(measured) == [0, 2]
    assert run.summary["reward"]["ood"] == {
        "test_episodes:Echo": measured[2]["test_episodes:Echo"]["mean"]
    }
    assert "OOD, test_episodes:Echo under its seed prompt, after" in text
    settings["eval"]["ood"] *= 2
    assert main(["train", written(settings, tmp_path / "twice.yaml")]) == 2
    assert "twice; each task" in capsys.readouterr().err


def test_the_two_by_two(settings: dict, tmp_path: Path, capsys: pytest.CaptureFixture):
    settings["eval"] |= {"n": 64}
    path = written(settings, tmp_path / "small.yaml")
    for seed in ("0", "1"):
        place = str(tmp_path / f"run-{seed}")
        assert main(["train", path, "--seed", seed, "--set", f"run.dir={place}"]) == 0
    capsys.readouterr()
    assert main(["decompose", str(tmp_path / "run-0"), str(tmp_path / "run-1"), "--n", "2"]) == 0
    found = rows(capsys.readouterr().out)
    assert [name for name in found if name in CELLS] == list(CELLS)
    assert all(len(found[cell][0].split(" / ")) == 2 for cell in CELLS)

    cells = decompose(tmp_path / "run-0", 64)
    start = Run.open(tmp_path / "run-0").metrics[0]["eval"]["seed"]
    assert cells["base"].mean == pytest.approx(start["mean"], abs=0.15)  # 256 responses
    assert table({"fst": [cells]}).count("\n") == 6
