"""A study as a folder of runs: resumed, kept, refused where it was begun otherwise, and its tables."""

from __future__ import annotations

import io
import json
import shutil
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from fastslow import Config, ConfigError, RunError
from fastslow.cli import main
from fastslow.studies.compare import compare, report, span


@pytest.fixture
def config(small: dict, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    small["loop"] |= {"steps": 3}
    return Config.parse(small)


def quiet() -> Console:
    return Console(file=io.StringIO())


def test_a_study_trains_every_member_and_reports(config: Config, tmp_path: Path):
    study = compare(config, ["rl", "fst"], 2, tmp_path / "study")
    study.run(2, quiet())
    members = json.loads((tmp_path / "study/study.json").read_text())["members"]
    assert [member["dir"] for member in members] == ["rl-s0", "rl-s1", "fst-s0", "fst-s1"]
    runs = study.runs()
    assert [run.summary["seed"] for run in runs["fst"]] == [0, 1]  # type: ignore[index]
    text = report(study, [0.0, 2.0])
    finals = sorted(run.summary["reward"]["final"] for run in runs["rl"])  # type: ignore[index]
    (row,) = [line for line in text.splitlines() if line.startswith("| final reward |")]
    assert row.split("|")[2].strip() == " / ".join(f"{value:.3f}" for value in finals)
    (row,) = [line for line in text.splitlines() if line.startswith("| rollouts to 2 |")]
    assert row == "| rollouts to 2 | - | - |"
    (row,) = [line for line in text.splitlines() if line.startswith("| rollouts to 0 |")]
    assert row == "| rollouts to 0 | 0 / 0 | 0 / 0 |"

    # What was cut is resumed, what is finished is kept.
    (tmp_path / "study/fst-s1/summary.json").unlink()
    kept = (tmp_path / "study/rl-s0/summary.json").stat().st_mtime_ns
    again = compare(config, ["rl", "fst"], 2, tmp_path / "study")
    again.run(2, quiet())
    assert (tmp_path / "study/fst-s1/summary.json").exists()
    assert (tmp_path / "study/rl-s0/summary.json").stat().st_mtime_ns == kept

    config.slow.lr = 0.5
    other = compare(config, ["rl", "fst"], 2, tmp_path / "study")
    with pytest.raises(RunError, match=r"rl-s0: was begun with 'lr: 0.001', now it is 'lr: 0.5'"):
        other.run(1, quiet())


def test_a_status_that_another_thread_has_read_is_no_failure(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Process.start reaps other threads' processes, whose own wait then says 255."""
    monkeypatch.setattr(BaseProcess, "exitcode", property(lambda process: 255))
    compare(config, ["rl"], 1, tmp_path / "done").run(1, quiet())
    config.task.name = "conftest:Missing"
    with pytest.raises(RunError, match="rl-s0: .*Missing"):
        compare(config, ["rl"], 1, tmp_path / "failed").run(1, quiet())


def test_a_failed_member_is_named_and_the_others_are_done(config: Config, tmp_path: Path):
    study = compare(config, ["rl"], 2, tmp_path / "study")
    study.members[0].config.task.name = "conftest:NoSuchTask"
    with pytest.raises(RunError, match=r"1 of its runs failed; rl-s0: .*NoSuchTask"):
        study.run(1, quiet())
    assert (tmp_path / "study/rl-s1/summary.json").exists()


def test_the_command(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [
        "compare",
        str(path),
        "--methods",
        "rl",
        "--seeds",
        "1",
        "--dir",
        str(tmp_path / "s"),
    ]
    assert main([*command, "--rollouts", "32", "--levels", "0.1"]) == 0
    said = capsys.readouterr().out
    for part in ("rl-s0", "done", "| rollouts to 0.1 |", "| all rollouts | 32 |"):
        assert part in said
    shutil.rmtree(tmp_path / "s")
    assert main([*command, "--methods", "sft"]) == 2
    assert "no method 'sft'" in capsys.readouterr().err
    assert main([*command, "--levels", "high"]) == 2
    assert "--levels 'high'" in capsys.readouterr().err


def test_a_sweep_gives_every_method_every_rate(config: Config, tmp_path: Path):
    study = compare(config, ["rl", "fst"], 2, tmp_path / "study", 64, "slow.lr=1e-4,1e-3")
    arms = {(m.arm, m.seed): (m.config.loop.method, m.config.slow.lr) for m in study.members}
    assert arms["rl slow.lr=1e-4", 0] == ("rl", 1e-4)
    assert arms["fst slow.lr=1e-3", 1] == ("fst", 1e-3)
    assert len(arms) == 8
    with pytest.raises(ConfigError, match="--sweep 'slow.lr'"):
        compare(config, ["rl"], 1, tmp_path / "study", None, "slow.lr")


def test_span_shows_every_seed():
    assert span([3, None, 1], "d") == "1 / 3 (1 never)"
    assert span([None, None], "d") == "-"
