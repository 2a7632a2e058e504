"""What a report is about: the files of one run, or of the runs of a study, as they lie.

Nothing here needs an engine, a task or a valid configuration: a run of an older version, one that is still
going and one that was killed can all be looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastslow.errors import RunError
from fastslow.measure.curves import Point, Row, points

UNKNOWN = {"mean": math.nan, "stderr": math.nan, "kl": math.nan, "entropy": math.nan}
VIEWS = ("population", "best", "seed", "drift_population", "drift_seed")
SPENT = dict.fromkeys(("rl", "gepa", "reused", "eval"), 0)
CLOCKS = dict.fromkeys(("sample", "train", "gepa", "eval", "waiting", "total"), 0.0)
TOTALS = ("reward", "rollouts", "seconds", "reflection")  # sections of a summary
PROMPT = {"parent": None, "born": 0, "cycle": 0, "score": math.nan, "member": False}
ROLLOUT = {"problem_id": "?", "prompt_id": "?", "feedback": ""}


@dataclass(frozen=True)
class RunFiles:
    """One run. `arm` and `seed` are its place in a study; `curve` has its held-out evaluations."""

    dir: Path
    arm: str
    seed: int
    config: dict[str, Any]
    config_text: str
    metrics: list[Row]
    prompts: list[Row]
    curve: list[Point]
    summary: dict[str, Any] | None

    def rollouts(self) -> list[Path]:
        """The files of the steps whose rollouts were kept, in order."""
        return sorted((self.dir / "rollouts").glob("step-*.jsonl"))


@dataclass(frozen=True)
class Material:
    """The runs of a report: one, or those of a study that have begun."""

    title: str
    runs: list[RunFiles]
    study: str = ""  # its kind; empty for a single run
    missing: int = 0  # members of the study that have not begun

    @property
    def arms(self) -> dict[str, list[RunFiles]]:
        arms: dict[str, list[RunFiles]] = {}
        for run in self.runs:
            arms.setdefault(run.arm, []).append(run)
        return arms


def read(directory: Path) -> Material:
    """The run or the study in a folder. Raises RunError where a file is damaged, or there is neither."""
    if (directory / "study.json").is_file():
        return _read_study(directory)
    if (directory / "config.yaml").is_file():
        run = read_run(directory)
        task = run.config.get("task", {}).get("name", "?")
        return Material(f"{run.arm} on {task}, seed {run.seed}", [run])
    raise RunError(f"{directory}: no run and no study (neither config.yaml nor study.json in it)")


def _read_study(directory: Path) -> Material:
    def parse(text: str) -> tuple[str, str, list[tuple[Path, str, int]]]:
        found = json.loads(text)
        members = [(directory / m["dir"], str(m["arm"]), int(m["seed"])) for m in found["members"]]
        return str(found.get("title") or found["study"]), str(found["study"]), members

    title, kind, members = _read(directory / "study.json", parse)
    runs = [read_run(*member) for member in members if (member[0] / "config.yaml").is_file()]
    return Material(title, runs, kind, len(members) - len(runs))


def read_run(directory: Path, arm: str = "", seed: int | None = None) -> RunFiles:
    """The files of one run; its arm and seed are its method and seed unless a study says otherwise."""
    text = _read(directory / "config.yaml", str)
    config = _read(directory / "config.yaml", _sections)
    metrics = read_lines(directory / "metrics.jsonl", {"step": int})
    prompts = read_lines(directory / "prompts.jsonl", {"id": str, "text": str})
    summary = directory / "summary.json"
    try:
        metrics = [_complete(row) for row in metrics]
        curve = [point for point in points(metrics) if not math.isnan(point.reward)]
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(directory / "metrics.jsonl", error) from None
    return RunFiles(
        dir=directory,
        arm=arm or str(config.get("loop", {}).get("method", "?")),
        seed=seed if seed is not None else config.get("run", {}).get("seed", 0),
        config=config,
        config_text=text,
        metrics=metrics,
        prompts=[PROMPT | row for row in prompts],
        curve=curve,
        summary=_read(summary, _closing) if summary.exists() else None,
    )


def read_rollouts(path: Path) -> list[Row]:
    return [ROLLOUT | row for row in read_lines(path, {"text": str, "reward": (int, float)})]


def read_lines(path: Path, kinds: dict[str, type | tuple[type, ...]]) -> list[Row]:
    """The objects of a JSONL file, [] without one. Each must have the fields `kinds`, of these types.

    A last line without an end is still being written, or was when the run was killed: it does not count.
    """

    def parse(text: str) -> list[Row]:
        rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        for number, row in enumerate(rows, 1):
            if wrong := [key for key, kind in kinds.items() if not isinstance(row[key], kind)]:
                raise ValueError(f"line {number}: {wrong[0]!r} is {row[wrong[0]]!r}")
        return rows

    return _read(path, parse) if path.exists() else []


def _sections(text: str) -> dict[str, Any]:
    found = yaml.safe_load(text)
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise ValueError("expected sections")
    return found


def _closing(text: str) -> dict[str, Any]:
    found = dict(json.loads(text))
    if wrong := [key for key in TOTALS if not isinstance(found.get(key, {}), dict)]:
        raise ValueError(f"{wrong[0]!r} is {found[wrong[0]]!r}")
    return found


def _complete(row: Row) -> Row:
    """A row of metrics with zero, or NaN in its evaluation, where an older version said nothing."""
    row = row | {
        "rollouts": SPENT | row.get("rollouts", {}),
        "seconds": CLOCKS | row.get("seconds", {}),
    }
    if "eval" in row:
        found = row["eval"]
        row["eval"] = {
            view: UNKNOWN | {k: v for k, v in found.get(view, {}).items() if v is not None}
            for view in VIEWS
        }
    return row


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path}: damaged ({type(error).__name__}: {error})")
