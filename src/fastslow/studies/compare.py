"""Methods side by side: the same base, data order and evaluation, several seeds, one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fastslow.config import Config, parse_override, put
from fastslow.errors import ConfigError
from fastslow.measure.curves import Point, area, asymptote, bootstrap, crossing, peak, points
from fastslow.run import Run
from fastslow.studies.study import Member, Study

LEVELS = (0.5, 0.8, 0.9)


def compare(
    config: Config,
    methods: Sequence[str],
    seeds: int,
    directory: Path,
    rollouts: int | None = None,
    sweep: str | None = None,
) -> Study:
    """A study of `methods` x `seeds`. With `rollouts` each run ends once RL and GEPA have spent so many.

    `sweep`, such as `slow.lr=3e-5,1e-4`, makes an arm of each method with each of these values: one
    learning rate for all would flatter whomever it suits.
    """
    members = []
    for method in methods:
        arms = {method: config.model_dump()}
        if sweep is not None:
            found = variants(config, sweep, "--sweep")
            arms = {f"{method} {label}": data for label, data in found}
        for arm, data in arms.items():
            data["loop"]["method"] = method
            made = within(Config.parse(data, arm), rollouts)
            members += [Member(arm, seed, made.model_copy(deep=True)) for seed in range(seeds)]
    return Study(directory, "compare", f"{config.task.name}: {', '.join(methods)}", members)


def variants(config: Config, change: str, flag: str) -> list[tuple[str, dict[str, Any]]]:
    """The configuration with each value of `KEY=VALUE,VALUE`, by label; `flag` is where it came from."""
    key, equals, values = change.partition("=")
    if not equals or not values:
        raise ConfigError(f"{flag} {change!r}: expected key=value,value, for example fast.k=1,2,4")
    found = []
    for value in values.split(","):
        data = config.model_dump()
        put(data, *parse_override(f"{key}={value}"))
        found.append((f"{key}={value}", data))
    return found


def within(config: Config, rollouts: int | None) -> Config:
    """The configuration with so many rollouts for its end, RL's and GEPA's together; None: as it is."""
    if rollouts is None:
        return config
    data = config.model_dump()
    # Each step takes a batch less what is reused, so that these are more steps than there can be.
    steps = max(1, 2 * rollouts // (config.loop.problems * config.loop.group))
    data["loop"] |= {"rollouts": rollouts, "steps": steps}
    return Config.parse(data)


def report(study: Study, levels: Sequence[float] = LEVELS) -> str:
    """The tables of a finished study."""
    runs = study.runs()
    return f"{table(runs, levels)}\n\n{training_rewards(runs)}\n"


def table(runs: dict[str, list[Run]], levels: Sequence[float] = LEVELS) -> str:
    """Every arm's figures in markdown: all seeds' values, smallest to largest.

    Rollouts count GEPA's. A crossing is known to one evaluation: the first that reaches the level.
    """
    curves = {arm: [points(run.metrics) for run in members] for arm, members in runs.items()}
    lines = ["| | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]

    def row(label: str, cell: Callable[[str], str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cell(arm) for arm in runs) + " |")

    named = [(f"{level:g}", level) for level in levels]
    if "rl" in runs:
        summit = fmean(peak(curve) for curve in curves["rl"])
        if summit > 0.1:  # RL that never left zero has no peak to reach
            named.append((f"RL's mean peak ({summit:.3f})", summit))
    for name, level in named:
        met = {arm: [crossing(curve, level) for curve in curves[arm]] for arm in runs}
        for label, field, form in (
            ("rollouts to", "rollouts", ",d"),
            ("of them RL's own, to", "rl", ",d"),
            ("seconds to", "seconds", ".0f"),
            ("KL to base at", "kl", ".4f"),
        ):
            cells = {arm: span([p and getattr(p, field) for p in met[arm]], form) for arm in runs}
            row(f"{label} {name}", cells.__getitem__)
    row("mean reward over its rollouts", lambda arm: span([area(c) for c in curves[arm]], ".3f"))
    row("highest reward", lambda arm: span([peak(curve) for curve in curves[arm]], ".3f"))
    row("asymptote of one sigmoid through all seeds", lambda arm: _asymptote(curves[arm]))
    for label, field in (
        ("final reward", "reward"),
        ("final reward, best prompt", "best"),
        ("final reward, seed prompt", "seed"),
        ("final KL to base", "kl"),
        ("final KL to base, seed prompt", "kl_seed"),
        ("final entropy", "entropy"),
    ):
        form = ".4f" if "KL" in label else ".3f"
        row(label, lambda arm, f=field, s=form: span([getattr(c[-1], f) for c in curves[arm]], s))  # type: ignore[misc]
    row("mean final reward [95% by bootstrap over seeds]", lambda arm: _interval(curves[arm]))
    for name in next(iter(curves.values()))[0][-1].ood:
        for moment, place in (("before", 0), ("after", -1)):
            cells = {a: span([c[place].ood.get(name) for c in curves[a]], ".3f") for a in runs}
            row(f"OOD, {name} under its seed prompt, {moment}", cells.__getitem__)
    row("response tokens, last step", lambda arm: span([_length(r) for r in runs[arm]], ".1f"))
    row("all rollouts", lambda arm: span([c[-1].rollouts for c in curves[arm]], ",d"))
    row("RL rollouts reused", lambda arm: span([_reused(run) for run in runs[arm]], ".0%"))
    for label, kind, key, form in (
        ("largest deviation of rho from 1, fresh token", "fresh", "deviation", ".1e"),
        ("largest rho, reused token", "reused", "max", ".2f"),
    ):
        cells = {arm: span([_worst(run, kind, key) for run in runs[arm]], form) for arm in runs}
        row(label, cells.__getitem__)
    row("steps", lambda arm: span([c[-1].step for c in curves[arm]], "d"))
    row(
        "evaluation's share of the time",
        lambda arm: span([_evaluating(r) for r in runs[arm]], ".0%"),
    )
    return "\n".join(lines)


def training_rewards(runs: dict[str, list[Run]], length: int = 6, windows: int = 5) -> str:
    """Mean training reward of consecutive windows of steps, for the first `windows` of them."""
    lines = ["| training reward, steps | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for first in range(1, length * windows + 1, length):
        cells = []
        for members in runs.values():
            found: list[float | None] = []
            for run in members:
                rows = [r for r in run.metrics if first <= r["step"] < first + length]
                rewards = [r["reward"] for r in rows if "reward" in r]
                found.append(fmean(rewards) if len(rewards) == length else None)
            cells.append(span(found, ".3f"))
        lines.append(f"| {first}-{first + length - 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def span(values: Sequence[Any], form: str) -> str:
    """Every seed's value, smallest to largest, and how many have none."""
    found = sorted(value for value in values if value is not None)
    if not found:
        return "-"
    missing = f" ({len(values) - len(found)} never)" if len(found) < len(values) else ""
    return " / ".join(format(value, form) for value in found) + missing


def _asymptote(curves: Sequence[Sequence[Point]]) -> str:
    found = asymptote(curves)
    if found is None:
        return "not identifiable"
    limit, interval = found
    return f"{limit:.3f} " + (
        "[{:.3f}, {:.3f}]".format(*interval) if interval else "[not identifiable]"
    )


def _length(run: Run) -> float | None:
    found = [row["response_tokens"] for row in run.metrics if "response_tokens" in row]
    return found[-1] if found else None


def _interval(curves: Sequence[Sequence[Point]]) -> str:
    finals = [curve[-1].reward for curve in curves]
    low, high = bootstrap(finals)
    return f"{fmean(finals):.3f} [{low:.3f}, {high:.3f}]"


def _reused(run: Run) -> float:
    spent = run.metrics[-1]["rollouts"]
    return float(spent["reused"] / max(1, spent["reused"] + spent["rl"]))


def _worst(run: Run, kind: str, key: str) -> float | None:
    found = [row["ratio"][kind][key] for row in run.metrics if kind in row.get("ratio", {})]
    return max(found, default=None)


def _evaluating(run: Run) -> float:
    seconds = run.metrics[-1]["seconds"]
    return float(seconds["eval"] / max(seconds["total"], 1e-9))
