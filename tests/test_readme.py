"""What the README tells a user to type works as it says."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

import fastslow
from fastslow import Config
from fastslow.cli import main
from fastslow.display import Display

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_task_trains(small: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (example,) = re.findall(r"```python\n(from fastslow import Problem.*?)```", README, re.DOTALL)
    (tmp_path / "mymodule.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    small["task"] = {"name": "mymodule:Doubling"}
    run = fastslow.train(small)
    assert run.summary is not None
    assert "Answer with the number alone." in "".join(row["text"] for row in run.prompts)


def test_commands_and_files_exist():
    for command in re.findall(r"^    fastslow (\w+)", README, re.MULTILINE):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        assert caught.value.code == 0
    for target in re.findall(r"make (\w+)", README):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for path in re.findall(r"\]\(([^h)][^)]*)\)", README):
        assert (ROOT / path).exists()
    for path in re.findall(r"configs/\S+?\.yaml", README):
        assert (ROOT / path).exists()


def test_the_live_display_shows_reward_rollouts_and_prompt(small: dict):
    screen = io.StringIO()
    config = Config.parse(small)
    console = Console(file=screen, force_terminal=True, width=100)
    with Display(config, console) as display:
        fastslow.train(config, observer=display)
    shown = screen.getvalue()
    for part in ("reward", "KL to base", "rollouts", "best prompt", "Write.", "step 5/5", "reused"):
        assert part in shown
