"""Tasks by name, and a user's own by `module:Class`."""

from __future__ import annotations

import difflib

from fastslow.config import TaskConfig
from fastslow.errors import ConfigError
from fastslow.imports import import_object
from fastslow.tasks.base import Task
from fastslow.tasks.reasoning_gym import ReasoningGym
from fastslow.tasks.rows import Rows
from fastslow.tasks.star_graph import StarGraph

TASKS: dict[str, type[Task]] = {task.name: task for task in (StarGraph, ReasoningGym, Rows)}


def make_task(config: TaskConfig) -> Task:
    """The task that `task.name` stands for, built with `task.args`."""
    if ":" in config.name:
        kind = import_object(config.name, "task.name")
        if not (isinstance(kind, type) and issubclass(kind, Task)):
            raise ConfigError(f"task.name = {config.name!r}: expected a subclass of fastslow.Task")
    elif config.name in TASKS:
        kind = TASKS[config.name]
    else:
        near = difflib.get_close_matches(config.name, TASKS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(TASKS)}"
        raise ConfigError(
            f"task.name = {config.name!r}: no such task; {hint} (or give module:Class)"
        )
    try:
        return kind(**config.args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"task.args = {config.args!r}: {error}") from None
