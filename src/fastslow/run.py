"""A run on disk: its folder, its logs, its checkpoints, and how it goes on after a kill.

config.yaml       the resolved configuration
metrics.jsonl     one object per step; only its "seconds" differ between equal runs
prompts.jsonl     one object per prompt and fast phase in which it was scored
rollouts/         step-000012.jsonl: every rollout of the step, to read
checkpoints/      step-000012/: model/ (Hugging Face), optimizer.pt, state.json
summary.json      written at the end
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastslow.config import Config
from fastslow.engine.base import Engine
from fastslow.errors import RunError
from fastslow.rollout import Group, Prompt, Rollout

LOGS = ("metrics.jsonl", "prompts.jsonl")
SPENT = ("rl", "gepa", "reused", "eval")  # rollouts
# Seconds; of gepa's those "waiting" had nothing to do before a reflector's answer.
CLOCKS = ("sample", "train", "gepa", "eval", "waiting", "total")


@dataclass
class State:
    """Where a run stands between two steps; with the engine's files, all that a resume needs."""

    population: list[Prompt]
    step: int = 0
    lookahead: list[str] = field(default_factory=list)  # problem ids of the current cycle
    stream: dict[str, Any] = field(default_factory=dict)
    cache: list[Rollout] = field(default_factory=list)
    earlier: dict[str, list[float]] = field(default_factory=dict)  # last step's fresh rewards
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPENT, 0))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CLOCKS, 0.0))
    reflection: dict[str, float] = field(default_factory=dict)  # calls, tokens and dollars so far
    base: dict[str, Any] = field(default_factory=dict)  # the evaluation before the first step
    closed: bool = False  # whether the prompts were evolved at the end, where the method does so

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> State:
        data = dict(data)
        data["population"] = [Prompt(**prompt) for prompt in data["population"]]
        data["cache"] = [Rollout(**rollout) for rollout in data["cache"]]
        return cls(**data)


class Run:
    """A run's folder. `create` names one, `open` finds one; `locked` keeps a second process out."""

    def __init__(self, directory: Path, config: Config) -> None:
        self.dir, self.config = directory, config

    @classmethod
    def create(cls, config: Config) -> Run:
        directory = config.run_dir
        if (directory / "config.yaml").exists():
            raise RunError(
                f"{directory}: a run is here already; continue it with 'fastslow resume {directory}', "
                "or choose another place with --set run.dir=..."
            )
        return cls(directory, config)

    @classmethod
    def open(cls, directory: str | Path) -> Run:
        path = Path(directory)
        if not (path / "config.yaml").is_file():
            raise RunError(f"{path}: not a run directory (no config.yaml in it)")
        return cls(path, Config.load(path / "config.yaml"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run, its folder made if need be; the lock goes with the process, however it ends."""
        _guard(lambda: self.dir.mkdir(parents=True, exist_ok=True), self.dir)
        _guard(lambda: (self.dir / ".lock").touch(), self.dir)
        with (self.dir / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.dir}: another process is working on this run") from None
            yield

    # -- what a user reads ------------------------------------------------------------------------

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return self._read_lines("metrics.jsonl")

    @property
    def prompts(self) -> list[dict[str, Any]]:
        return self._read_lines("prompts.jsonl")

    @property
    def summary(self) -> dict[str, Any] | None:
        """The closing summary, or None while the run is not finished."""
        found = self._read("summary.json", json.loads)
        return found or None

    def _read_lines(self, name: str) -> list[dict[str, Any]]:
        return self._read(name, lambda text: [json.loads(line) for line in text.splitlines()]) or []

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        path = self.dir / name
        try:
            return parse(path.read_text()) if path.exists() else None
        except (OSError, ValueError) as error:
            raise RunError(f"{path}: damaged ({error})") from None

    # -- what the loop writes ---------------------------------------------------------------------

    def log(self, name: str, rows: Iterable[dict[str, Any]]) -> None:
        def append() -> None:
            with (self.dir / name).open("a", encoding="utf-8") as handle:
                handle.writelines(json.dumps(_finite(row)) + "\n" for row in rows)

        _guard(append, self.dir / name)

    def log_rollouts(self, step: int, groups: Iterable[Group]) -> None:
        if not self.config.run.rollouts:
            return
        keys = ("problem_id", "prompt_id", "reward", "text", "feedback", "policy_version", "reused")
        rows = [
            {key: getattr(rollout, key) for key in keys}
            for group in groups
            for rollout in group.rollouts
        ]
        _guard(lambda: (self.dir / "rollouts").mkdir(exist_ok=True), self.dir)
        self._write(
            f"rollouts/step-{step:06d}.jsonl", "".join(json.dumps(row) + "\n" for row in rows)
        )

    def begin(self) -> None:
        """Write down the configuration: from here on there is a run to resume."""
        self._write("config.yaml", self.config.dump())

    def finish(self, summary: dict[str, Any]) -> None:
        self._write("summary.json", json.dumps(summary, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all."""
        path = self.dir / name
        partial = path.with_name(path.name + ".partial")

        def write() -> None:
            with partial.open("w", encoding="utf-8") as handle:
                handle.write(text)
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)

        _guard(write, path)

    # -- checkpoints ------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(
            path for path in (self.dir / "checkpoints").glob("step-*") if path.suffix == ""
        )

    def latest(self) -> Path:
        found = self.checkpoints()
        if not found:
            raise RunError(
                f"{self.dir}: no checkpoint yet; train it first with 'fastslow resume {self.dir}'"
            )
        return found[-1]

    def read_state(self, checkpoint: Path) -> State:
        return _read_checkpoint(checkpoint)[0]

    def save(self, state: State, engine: Engine) -> None:
        """A checkpoint, complete before it gets its name; the one before it goes afterwards."""
        partial = self._partial(state)
        target = partial.with_suffix("")

        def write() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            engine.save(partial)
            logs = {name: self._size(name) for name in LOGS}
            (partial / "state.json").write_text(json.dumps({"logs": logs, "state": asdict(state)}))
            for path in [*partial.rglob("*"), *(self.dir / name for name in LOGS)]:
                if path.is_file():
                    _sync(path)
            if target.exists():
                shutil.rmtree(target)
            partial.replace(target)
            _sync(target.parent)
            for old in self.checkpoints()[:-1]:
                shutil.rmtree(old)

        _guard(write, target)

    def _partial(self, state: State) -> Path:
        """Where a checkpoint is written before it gets its name."""
        return self.dir / "checkpoints" / f"step-{state.step:06d}.partial"

    def restore(self, engine: Engine) -> State | None:
        """Take engine and logs back to the last checkpoint; None when there is none yet."""
        for partial in (self.dir / "checkpoints").glob("*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        found = self.checkpoints()
        if not found:
            self._cut(dict.fromkeys(LOGS, 0), 0)
            return None
        state, logs = _read_checkpoint(found[-1])
        for name, size in logs.items():
            if self._size(name) < size:
                raise RunError(
                    f"{self.dir / name}: {self._size(name)} bytes, but the checkpoint at step {state.step} "
                    f"knows {size}; the log was cut or removed"
                )
        engine.load(found[-1])
        self._cut(logs, state.step)
        return state

    def _size(self, name: str) -> int:
        path = self.dir / name
        return path.stat().st_size if path.exists() else 0

    def _cut(self, logs: dict[str, int], step: int) -> None:
        """Drop what was logged after the checkpoint; it will be done again."""
        for name, size in logs.items():
            if self._size(name) > size:
                os.truncate(self.dir / name, size)
        for path in (self.dir / "rollouts").glob("step-*.jsonl"):
            if int(path.stem.removeprefix("step-")) > step:
                path.unlink()


class FollowedRun(Run):
    """A run as the processes beside the first see it: read, and never written to."""

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def log(self, name: str, rows: Iterable[dict[str, Any]]) -> None: ...

    def log_rollouts(self, step: int, groups: Iterable[Group]) -> None: ...

    def _write(self, name: str, text: str) -> None: ...

    def save(self, state: State, engine: Engine) -> None:
        """A sharded optimizer's part; else nothing."""
        _guard(lambda: engine.save(self._partial(state)), self.dir)

    def restore(self, engine: Engine) -> State | None:
        found = self.checkpoints()
        if not found:
            return None
        engine.load(found[-1])
        return self.read_state(found[-1])


def _read_checkpoint(checkpoint: Path) -> tuple[State, dict[str, int]]:
    """The state and how long each log was."""
    try:
        data = json.loads((checkpoint / "state.json").read_text())
        return State.from_dict(data["state"]), data["logs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{checkpoint / 'state.json'}: damaged checkpoint ({error})") from None


def _finite(value: Any) -> Any:
    """`value` with null in the place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _guard(action: Callable[[], Any], path: Path) -> None:
    try:
        action()
    except OSError as error:
        message = f"{error.filename or path}: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None):
            message += "; if the disk is full make room, then continue with 'fastslow resume'"
        raise RunError(message) from None
