"""What a run will take, before it is paid for: rollouts, tokens, memory, reflection, hours.

Counts follow from the configuration. How long prompts and responses have become, how much of its budget
GEPA spends and how fast tokens come are taken from an earlier run, however short (`like`); without one the
prompt is the seed prompt, and responses are as long as they may be. The speed may be given, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from statistics import fmean
from typing import Any

from fastslow.config import Config
from fastslow.engine.memory import Shape, parts_of_memory
from fastslow.errors import ConfigError
from fastslow.methods import METHODS
from fastslow.run import Run
from fastslow.tasks import make_task
from fastslow.tasks.base import Task, problems_of

SAMPLE = 200  # problems whose prompts are measured
LATEST = 3  # steps of an earlier run whose responses are: they grow or shrink as a policy learns


@dataclass(frozen=True, slots=True)
class Counts:
    """Rollouts by purpose; `reused` are GEPA's that serve RL and are not in `rl`."""

    steps: int
    cycles: int
    rl: int
    gepa: int
    reused: int
    eval: int
    reflections: int


@dataclass(frozen=True, slots=True)
class Habits:
    """What an earlier run tells, or the guesses in its place."""

    response: float  # tokens
    prompts: tuple[str, ...] = ()  # the last population; none: the seed prompt
    gepa_share: float = 1.0  # of the budget that a fast phase spends
    reuse_share: float = 1.0  # of what the cache could serve
    proposals: float | None = None  # per fast phase
    seconds: dict[str, float] | None = None  # per rollout made, learned from, evaluated


@dataclass(frozen=True, slots=True)
class Speed:
    """Response tokens per second, each above 0."""

    sampled: float
    learned: float  # from, reused ones included


def count(config: Config, habits: Habits) -> Counts:
    """Rollouts of a run, from its configuration and habits."""
    loop, fast, method = config.loop, config.fast, METHODS[config.loop.method]
    batch = loop.problems * loop.group
    anchors = _anchors(config)
    phase = habits.gepa_share * fast.budget
    first = habits.gepa_share * (fast.initial_budget or fast.budget)
    served = 0.0
    if config.reuse.enabled and method.trains_under_its_prompts:
        served = habits.reuse_share * min(fast.k * anchors, loop.cycle * batch)
    learns = 0 if method.learns == "nothing" else 1
    rl = gepa = reused = 0.0
    phases = steps = 0
    last = method.evolves == "end"
    for step in range(0 if last and not learns else loop.steps):
        if step % loop.cycle == 0:
            due = method.evolves == "cycle" or (method.evolves == "stage" and step == 0)
            if due:
                gepa += first if phases == 0 else phase
                phases += 1
            cached = served if due else 0.0
        share = min(cached, batch) * learns
        cached -= share
        reused += share
        rl += batch * learns - share
        steps += 1
        kept = first if last else 0
        if loop.rollouts is not None and rl + gepa + kept >= loop.rollouts:
            break
    if last:
        gepa, phases, steps = gepa + first, phases + 1, steps + 1
    per_phase = habits.proposals or _proposals(config)
    return Counts(
        steps=steps,
        cycles=math.ceil(steps / loop.cycle),
        rl=round(rl),
        gepa=round(gepa),
        reused=round(reused),
        eval=_evaluations(config, steps),
        reflections=round(phases * per_phase),
    )


def _anchors(config: Config) -> int:
    fast, lookahead = config.fast, config.loop.cycle * config.loop.problems
    if fast.anchors == "lookahead":
        return lookahead
    return min(fast.anchors, max(fast.minibatch + 1, fast.budget // (2 * fast.k)), lookahead)


def _proposals(config: Config) -> float:
    """Children that a phase's budget pays for once its population is scored, half of them accepted."""
    fast, anchors = config.fast, _anchors(config)
    left = max(0, fast.budget - fast.k * anchors)
    return left / (2 * fast.minibatch + anchors / 2)


def _evaluations(config: Config, steps: int) -> int:
    """Rollouts that measuring takes: at the start, when due, and at the end."""
    measured, method = config.eval, METHODS[config.loop.method]
    problems = measured.problems or SAMPLE
    plain = measured.temperature == 1 and measured.top_p == 1

    def drawn(views: int) -> int:
        return problems * (views * measured.n + (0 if plain else min(views, 2)))

    evolved = 3  # views once prompts have: the population, its best, the seed prompt
    times = steps // measured.every + (steps % measured.every > 0)
    later = times * drawn(1 if method.evolves == "never" else evolved)
    if method.evolves == "end":
        before = steps - 1
        times = before // measured.every + (before % measured.every > 0)
        later = times * drawn(1) + drawn(evolved)
    return drawn(1) + later + 2 * len(measured.ood) * problems * measured.n


def habits_of(run: Run) -> Habits:
    """How an earlier run went; raises RunError where it has made no step."""
    config, rows = run.config, [row for row in run.metrics if row["step"] > 0]
    if not rows:
        raise ConfigError(f"--like {run.dir}: it has made no step yet")
    learned = [row for row in rows if "response_tokens" in row]
    phases = [row["fast"] for row in rows if row.get("fast")]
    budgets = [config.fast.budget] * len(phases)
    if phases and config.fast.initial_budget:
        budgets[0] = config.fast.initial_budget
    full = Habits(response=1.0)
    last = max((row["cycle"] for row in run.prompts), default=0)
    spent, seconds = rows[-1]["rollouts"], rows[-1]["seconds"]
    could = count(_like(config, rows[-1]["step"]), full).reused
    # Not the first cycle's pace, where there are later ones: kernels for new shapes are made in it.
    late, clock = (_latest(rows, key, config.loop.cycle) for key in ("rollouts", "seconds"))
    made = max(1, late["rl"] + late["gepa"])
    return Habits(
        response=fmean([row["response_tokens"] for row in learned[-LATEST:]] or [0.0]),
        prompts=tuple(row["text"] for row in run.prompts if row["cycle"] == last and row["member"]),
        gepa_share=sum(p["rollouts"] for p in phases) / sum(budgets) if phases else 1.0,
        reuse_share=min(1.0, spent["reused"] / could) if could else 1.0,
        proposals=fmean(phase["proposed"] for phase in phases) if phases else None,
        seconds={
            "made": (clock["sample"] + clock["gepa"]) / made,
            "learned": clock["train"] / max(1, late["rl"] + late["reused"]),
            "evaluated": seconds["eval"] / max(1, spent["eval"]),
        },
    )


def _latest(rows: list[dict[str, Any]], key: str, steps: int) -> dict[str, float]:
    """What the last so many steps added to sums of metrics.jsonl."""
    before = rows[-1 - steps][key] if len(rows) > steps else {}
    return {name: value - before.get(name, 0) for name, value in rows[-1][key].items()}


def _like(config: Config, steps: int) -> Config:
    data = config.model_dump()
    data["loop"] |= {"steps": steps, "rollouts": None}
    return Config.parse(data)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will take; where it is not `measured` responses are taken to be as long as can be."""

    counts: Counts
    context: float  # tokens of a prompt with its problem
    response: float
    measured: bool
    memory: dict[str, float]  # bytes by what they are for; on one device
    seconds: float | None  # at the speed given, or else at the earlier run's
    reflection_tokens: int
    dollars: float | None
    speed: Speed | None = None  # the one given

    @property
    def generated(self) -> float:
        """Response tokens sampled."""
        return (self.counts.rl + self.counts.gepa + self.counts.eval) * self.response

    @property
    def learned(self) -> float:
        """Response tokens in RL's batches, reused ones included."""
        return (self.counts.rl + self.counts.reused) * self.response


def make_plan(
    config: Config, like: Run | None = None, task: Task | None = None, speed: Speed | None = None
) -> Plan:
    """The plan of a run. Needs the model's configuration and tokenizer, not its weights."""
    from fastslow.engine.loading import load_tokenizer

    habits = Habits(response=config.sampling.max_tokens) if like is None else habits_of(like)
    counts = count(config, habits)
    task = task or make_task(config.task)
    shape = Shape.of(config)
    evolved = habits.prompts if METHODS[config.loop.method].trains_under_its_prompts else ()
    prompts = evolved or (config.task.seed_prompt or task.seed_prompt,)
    context = _context(prompts, task, load_tokenizer(shape.source))
    fast = config.fast
    asked = counts.reflections * (400 + fast.minibatch * (context + 2 * habits.response))
    plan = Plan(
        counts=counts,
        context=context,
        response=habits.response,
        measured=like is not None,
        memory=parts_of_memory(config, shape, context, habits.response),
        seconds=_seconds(counts, habits.seconds),
        reflection_tokens=round(asked),
        dollars=_dollars(fast.reflector, asked, counts.reflections * fast.max_chars / 4),
    )
    if speed is None:
        return plan
    seconds = plan.generated / speed.sampled + plan.learned / speed.learned
    return replace(plan, seconds=seconds, speed=speed)


def _seconds(counts: Counts, pace: dict[str, float] | None) -> float | None:
    if pace is None:
        return None
    made = pace["made"] * (counts.rl + counts.gepa)
    return made + pace["evaluated"] * counts.eval + pace["learned"] * (counts.rl + counts.reused)


def _context(prompts: Sequence[str], task: Task, tokenizer: Any) -> float:
    """Mean tokens of a prompt with a training problem, chat template included."""
    asked = zip(problems_of(task, "train")[:SAMPLE], cycle(prompts), strict=False)
    chats = [[{"role": "user", "content": f"{text}\n\n{p.prompt}"}] for p, text in asked]
    texts = [
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in chats
    ]
    return fmean(len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts)


def _dollars(reflector: str, asked: float, answered: float) -> float | None:
    """By LiteLLM's price list; None where it has no price, 0 where no one is paid."""
    if reflector in ("offline", "self", "base") or reflector.startswith("python:"):
        return 0.0
    try:
        import litellm

        costs = litellm.cost_per_token(
            model=reflector, prompt_tokens=round(asked), completion_tokens=round(answered)
        )
        return float(sum(costs))
    except Exception:  # it is not installed, or its list does not know the model
        return None
