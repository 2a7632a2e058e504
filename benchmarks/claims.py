"""One table per claim of the FST paper (arXiv 2605.12484): its figure beside ours, from finished studies.

Used by results.py. Cells are the mean over seeds with the smallest and the largest in brackets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

from fastslow.measure.curves import Point, area, asymptote, crossing, peak, points
from fastslow.run import Run
from fastslow.studies import continual as stream
from fastslow.studies import decompose as two_by_two

Curves = dict[str, list[list[Point]]]
FRONT = {"lenient": "star-graph", "codeio": "code output", "hover": "fact checking"}
ARMS = ("rl", "fst", "gepa+rl")


def runs(study: Path) -> dict[str, list[Run]]:
    """A study's runs by arm."""
    found: dict[str, list[Run]] = {}
    for member in json.loads((study / "study.json").read_text())["members"]:
        found.setdefault(member["arm"], []).append(Run.open(study / member["dir"]))
    return found


def curves(study: Path) -> Curves:
    return {arm: [points(run.metrics) for run in members] for arm, members in runs(study).items()}


def spread(values: Sequence[float | None], form: str = ".3f") -> str:
    """Mean [smallest, largest]; how many seeds have none."""
    found = [value for value in values if value is not None]
    if not found:
        return "never"
    missing = (
        f", {len(values) - len(found)} of {len(values)} never" if len(found) < len(values) else ""
    )
    if len({format(value, form) for value in found}) == 1:
        return format(found[0], form) + missing
    low, high = format(min(found), form), format(max(found), form)
    return f"{fmean(found):{form}} [{low}, {high}]{missing}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _at_peak(rl: Sequence[Point], other: Sequence[Point]) -> tuple[Point, Point | None]:
    """Where RL reached its peak, and where another run reached as much (the paper's matched reward)."""
    summit = crossing(rl, peak(rl))
    assert summit is not None
    return summit, crossing(other, summit.reward)


def _pairs(found: Curves, arm: str) -> list[tuple[Point, Point | None]]:
    return [_at_peak(rl, other) for rl, other in zip(found["rl"], found[arm], strict=True)]


def efficiency(root: Path) -> str:
    """Rollouts, GEPA's included, to half of all rewards and to RL's own peak; seeds are paired."""
    paper = {"lenient": "", "codeio": "3.0", "hover": "3.0 (HoVer-hard)"}
    rows = []
    for name, title in FRONT.items():
        found = curves(root / name)
        half = {arm: [crossing(curve, 0.5) for curve in found[arm]] for arm in ARMS}
        cells = [spread([p and p.rollouts for p in half[arm]], ",.0f") for arm in ARMS]
        ratios = []
        for arm in ARMS[1:]:
            paired = zip(half["rl"], half[arm], strict=True)
            ratios.append(spread([a.rollouts / b.rollouts for a, b in paired if a and b], ".1f"))
        rows.append([f"{title}, to 0.5", *cells, *ratios, ""])
        pairs = {arm: _pairs(found, arm) for arm in ARMS}
        cells = [spread([b and b.rollouts for _, b in pairs[arm]], ",.0f") for arm in ARMS]
        ratios = [
            spread([b and a.rollouts / b.rollouts for a, b in pairs[arm]], ".1f")
            for arm in ARMS[1:]
        ]
        summit = spread([a.reward for a, _ in pairs["rl"]], ".2f")
        rows.append([f"{title}, to RL's peak, {summit}", *cells, *ratios, paper[name]])
        without = [spread([b and a.rl / b.rl for a, b in pairs[arm]], ".1f") for arm in ARMS[1:]]
        rows.append([f"{title}, the same in RL's own rollouts", "", "", "", *without, ""])
    return markdown(
        ["rollouts", *ARMS, "rl / fst", "rl / gepa+rl", "the paper: rl / fst, steps"], rows
    )


def ceiling(root: Path) -> str:
    paper = {
        "lenient": "",
        "codeio": "0.430, 0.474",
        "hover": "0.173, 0.250 (HoVer-hard)",
    }
    rows = []
    for name, title in FRONT.items():
        found = curves(root / name)
        limits, ends = [], []
        for arm in ARMS:
            fitted = asymptote(found[arm])
            interval = fitted and fitted[1]
            said = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else " [not identifiable]"
            limits.append(f"{fitted[0]:.3f}{said}" if fitted else "not identifiable")
            ends.append(spread([curve[-1].reward for curve in found[arm]]))
        rows.append([f"{title}, asymptote", *limits, paper[name]])
        rows.append([f"{title}, last evaluation", *ends, ""])
    return markdown(["reward", *ARMS, "the paper: asymptote of rl, fst"], rows)


def _matched(root: Path, field: str, form: str, last: str) -> list[list[str]]:
    """A measure where each arm's reward first reaches 0.5 and RL's peak, and at the end."""
    rows = []
    for name, title in FRONT.items():
        found = curves(root / name)
        half = [
            spread([p and getattr(p, field) for p in (crossing(c, 0.5) for c in found[arm])], form)
            for arm in ARMS
        ]
        rows.append([f"{title}, at 0.5", *half])
        pairs = {arm: _pairs(found, arm) for arm in ARMS}
        cells = [spread([b and getattr(b, field) for _, b in pairs[arm]], form) for arm in ARMS]
        rows.append([f"{title}, at RL's peak", *cells])
        ends = [spread([getattr(c[-1], last) for c in found[arm]], form) for arm in ARMS]
        rows.append([f"{title}, at the end" + (", seed prompt" if last != field else ""), *ends])
    return rows


def drift(root: Path) -> str:
    rows = [[*row, ""] for row in _matched(root, "kl", ".4f", "kl_seed")]
    for row, name in zip(rows[1::3], FRONT, strict=True):
        pairs = _pairs(curves(root / name), "fst")
        row[-1] = spread([b and 1 - b.kl / a.kl for a, b in pairs], ".0%")
    return markdown(
        ["KL to the base per token", *ARMS, "fst lower by (the paper: up to 70%)"], rows
    )


def entropy(root: Path) -> str:
    return markdown(["entropy per token", *ARMS], _matched(root, "entropy", ".3f", "entropy"))


def escape(root: Path) -> str:
    """Star-graph: when a run leaves zero."""
    rows = []
    for name, title in (("strict", "strict"), ("lenient", "lenient")):
        found = curves(root / name)
        for level in (0.1, 0.8):
            met = {arm: [crossing(curve, level) for curve in found[arm]] for arm in ARMS}
            cells = [spread([p and p.step for p in met[arm]], ".0f") for arm in ARMS]
            rows.append([f"{title}: steps to {level}", *cells])
        cells = [spread([curve[-1].reward for curve in found[arm]]) for arm in ARMS]
        rollouts = round(fmean(c[-1].rollouts for arm in ARMS for c in found[arm]), -2)
        rows.append([f"{title}: reward after {rollouts:,.0f} rollouts", *cells])
    return markdown(["star-graph", *ARMS], rows)


def plasticity(root: Path) -> str:
    paper = {"from base": "0.193", "from rl": "0.100", "from fst": "0.205", "from gepa+rl": ""}
    rows = []
    for arm, found in curves(root / "plasticity" / "phase-2").items():
        level = [crossing(curve, 0.5) for curve in found]
        rows.append(
            [
                arm,
                spread([curve[0].reward for curve in found]),
                spread([p and p.rollouts for p in level], ",.0f"),
                spread([area(curve) for curve in found]),
                spread([curve[-1].reward for curve in found]),
                paper[arm],
            ]
        )
    head = ["plain RL on code output", "at its start", "rollouts to 0.5", "mean reward"]
    return markdown([*head, "at its end", "the paper: final accuracy"], rows)


def continual(root: Path) -> str:
    return stream.table(runs(root / "continual"))


def decomposition(root: Path) -> str:
    """The 2 x 2 of FST's runs: their evaluation problems x 4 responses each."""
    paper = {"codeio": "-, 0.251, 0.345, 0.433", "hover": "0.020, 0.116, 0.106, 0.212 (HoVer-hard)"}
    rows = []
    for name, title in FRONT.items():
        place = root / f"{name}-decomposed.json"
        if not place.exists():
            cells = [two_by_two.decompose(run.dir, 4) for run in runs(root / name)["fst"]]
            means = {cell: [run[cell].mean for run in cells] for cell in two_by_two.CELLS}
            place.write_text(json.dumps(means))
        means = json.loads(place.read_text())
        order = ("base", "trained", "base, evolved prompts", "trained, evolved prompts")
        rows.append([title, *(spread(means[cell]) for cell in order), paper.get(name, "")])
    head = [
        "",
        "neither",
        "slow only (seed prompt)",
        "fast only (base weights)",
        "both",
        "the paper",
    ]
    return markdown(head, rows)


def _by_arm(found: Curves, titles: Callable[[str], str] = str) -> str:
    rows = []
    for arm, members in found.items():
        level = [crossing(curve, 0.5) for curve in members]
        rows.append(
            [
                titles(arm),
                spread([p and p.rollouts for p in level], ",.0f"),
                spread([area(curve) for curve in members]),
                spread([curve[-1].reward for curve in members]),
                spread([curve[-1].kl for curve in members], ".4f"),
            ]
        )
    return markdown(["", "rollouts to 0.5", "mean reward", "last reward", "last KL"], rows)


def ablations(root: Path) -> str:
    return _by_arm(curves(root / "ablate"))


def rates(root: Path) -> str:
    return _by_arm(curves(root / "sweep"))


def methods(root: Path) -> str:
    found = curves(root / "hover")
    rows = []
    for arm, members in found.items():
        ends = [curve[-1] for curve in members]
        rows.append(
            [
                arm,
                spread([end.reward for end in ends]),
                spread([end.best for end in ends]),
                spread([end.seed for end in ends]),
                spread([end.kl for end in ends], ".4f"),
                *(
                    spread([end.ood.get(task) for end in ends])
                    for task in sorted(members[0][0].ood)
                ),
            ]
        )
    start = next(iter(found.values()))[0][0]
    before = [spread([start.ood[task]]) for task in sorted(start.ood)]
    rows.insert(0, ["the base", spread([start.seed]), "", spread([start.seed]), "0", *before])
    elsewhere = [f"OOD: {task}" for task in sorted(start.ood)]
    return markdown(["", "own prompts", "best prompt", "seed prompt", "KL", *elsewhere], rows)


def coevolution(root: Path) -> str:
    """Last reward by part of the mixture, each seed by itself."""
    rows = []
    for arm, members in curves(root / "mixture").items():
        for seed, curve in enumerate(members):
            last = curve[-1]
            parts = [f"{last.parts[part]:.3f}" for part in sorted(last.parts)]
            rows.append([f"{arm}, seed {seed}", *parts, f"{last.reward:.3f}", f"{area(curve):.3f}"])
    parts = sorted(next(iter(curves(root / "mixture").values()))[0][-1].parts)
    return markdown(["last reward", *parts, "all", "mean over its rollouts"], rows)


def reuse(root: Path) -> str:
    """With and without the cache: what it served, what it cost in reward per step, how old it was."""
    found = runs(root / "reuse")
    rows = []
    for arm, members in found.items():
        ends = [run.metrics[-1] for run in members]
        served = [
            row["rollouts"]["reused"] / (row["rollouts"]["reused"] + row["rollouts"]["rl"])
            for row in ends
        ]
        ratios = [
            max(
                (
                    r["ratio"]["reused"]["max"]
                    for r in run.metrics
                    if "reused" in r.get("ratio", {})
                ),
                default=None,
            )
            for run in members
        ]
        windows = [
            spread(
                [
                    fmean(r["reward"] for r in run.metrics if first <= r["step"] < first + 6)
                    for run in members
                ]
            )
            for first in (1, 7, 13)
        ]
        steps = spread([float(row["step"]) for row in ends], ".0f")
        rows.append([arm, spread(served, ".0%"), steps, *windows, spread(ratios, ".2f")])
    head = ["", "RL rollouts served", "steps", "reward, steps 1-6", "7-12", "13-18"]
    return markdown([*head, "largest ratio of a reused token"], rows)


CLAIMS = {
    "efficiency": (efficiency, ("lenient", "codeio", "hover")),
    "ceiling": (ceiling, ("lenient", "codeio", "hover")),
    "drift": (drift, ("lenient", "codeio", "hover")),
    "entropy": (entropy, ("lenient", "codeio", "hover")),
    "escape": (escape, ("strict", "lenient")),
    "plasticity": (plasticity, ("plasticity",)),
    "continual": (continual, ("continual",)),
    "decomposition": (decomposition, ("lenient", "codeio", "hover")),
    "ablations": (ablations, ("ablate",)),
    "rates": (rates, ("sweep",)),
    "reuse": (reuse, ("reuse",)),
    "methods": (methods, ("hover",)),
    "coevolution": (coevolution, ("mixture",)),
}
