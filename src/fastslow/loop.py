"""Algorithm 1: Fast-Slow Training (section 3 and appendix B of arXiv 2605.12484).

All methods are this one loop with its two channels switched on or off (`fastslow.methods`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

from fastslow.collect import collect_groups, derive, roll_out
from fastslow.engine.base import Which
from fastslow.fast.evolve import Phase
from fastslow.measure.ratios import ratio_stats
from fastslow.rollout import Problem, Prompt, Rollout
from fastslow.run import State
from fastslow.session import Row, Session
from fastslow.slow.advantage import make_batch
from fastslow.slow.distill import make_lessons


def train(session: Session) -> State:
    """Run to the end, from the last checkpoint if there is one."""
    state, loop, evolves = session.state, session.config.loop, session.method.evolves
    if session.restore():
        state = session.state
    else:
        state.base = session.measure()
        session.log({"step": 0, "cycle": 0, "eval": state.base})
    while not session.finished():
        cycle, t = divmod(state.step, loop.cycle)
        row: Row = {"step": state.step + 1, "cycle": cycle}
        if t == 0:
            first = state.step == 0 or session.new_stage(state.step)
            if first:
                begin_stage(session)
            lookahead = look_ahead(session)  # L_c
            if evolves == "cycle" or (evolves == "stage" and first):
                row["fast"] = evolve(session, lookahead, cycle, first)  # Phi_c
        if session.method.learns != "nothing":
            ids = state.lookahead[t * loop.problems : (t + 1) * loop.problems]  # B_t
            row |= learn(session, [session.stream.problems[problem] for problem in ids])
        state.step += 1
        if state.step % session.config.eval.every == 0 or session.finished():
            row["eval"] = session.measure()
        session.end_of_step(row)
    if evolves == "end" and not state.closed:
        close(session)
    return state


def look_ahead(session: Session) -> list[Problem]:
    """L_c: the next T batches. What was cached for the last ones is of no use to them."""
    state, loop = session.state, session.config.loop
    shares = session.task.shares(state.step)
    lookahead = session.stream.take(loop.cycle * loop.problems, shares)
    state.lookahead = [problem.id for problem in lookahead]
    session.cache.clear()
    return lookahead


def close(session: Session) -> None:
    """Evolve prompts once for weights that learn no more; it counts as a step."""
    state, cycle = session.state, session.state.step // session.config.loop.cycle + 1
    row: Row = {"step": state.step + 1, "cycle": cycle}
    row["fast"] = evolve(session, look_ahead(session), cycle, True)
    state.step, state.closed = state.step + 1, True
    row["eval"] = session.measure()
    session.end_of_step(row)


def begin_stage(session: Session) -> None:
    """Leave behind what a new task of a stream shall not inherit."""
    state, loop = session.state, session.config.loop
    state.earlier = {}  # rewards on other problems
    if loop.reset_population:
        state.population = [session.seed_prompt]
    if loop.reset_optimizer:
        session.engine.reset_optimizer()


# -- the fast channel -----------------------------------------------------------------------------


def evolve(session: Session, lookahead: Sequence[Problem], cycle: int, first: bool) -> Row:
    """Phi_c: the top K of GEPA's frontier under the current policy, from Phi_{c-1}."""
    state, fast = session.state, session.config.fast
    anchors = choose_anchors(session, lookahead)
    which: Which = "base" if session.method.learns == "teacher" else "policy"
    calls = 0

    def rollouts_of(pairs: Sequence[tuple[Prompt, Problem]]) -> list[Rollout]:
        nonlocal calls
        calls += 1
        rows = roll_out(
            session.engine,
            session.task,
            pairs,
            [1] * len(pairs),
            session.params,
            derive(session.seed, "gepa", cycle, calls),
            which,
        )
        rollouts = [row[0] for row in rows]
        state.spent["gepa"] += len(rollouts)
        if session.config.reuse.enabled and session.method.trains_under_its_prompts:
            session.cache.add(rollouts)
        session.observer.phase("evolving prompts", state)
        return rollouts

    with session.phase("evolving prompts", "gepa"):
        result = session.optimizer.evolve(
            Phase(
                population=state.population,
                anchors=anchors,
                evaluate=rollouts_of,
                fits=session.fits,
                reflector=session.reflector,
                budget=(first and fast.initial_budget) or fast.budget,
                rng=random.Random(derive(session.seed, "evolve", cycle)),
                cycle=cycle,
                earlier=state.earlier,
            )
        )
    state.population = [item.prompt for item in result.population]
    session.cache.keep({prompt.id for prompt in state.population})
    usage = asdict(session.reflector.usage)
    state.seconds["waiting"] = usage.pop("waited")
    state.reflection = usage
    session.log_prompts(result, cycle)
    return {
        "anchors": len(anchors),
        "rollouts": result.rollouts,
        "proposed": result.proposed,
        "rejected": dict(sorted(result.rejected.items())),
        "saturated": result.saturated,
        "members": {item.prompt.id: item.score for item in result.population},
        "reflection": dict(state.reflection),
    }


def choose_anchors(session: Session, lookahead: Sequence[Problem]) -> list[Problem]:
    """A_c: the lookahead batch, or as much of it as leaves half the budget for new prompts."""
    fast = session.config.fast
    distinct = list({problem.id: problem for problem in lookahead}.values())
    if fast.anchors == "lookahead":
        return distinct
    affordable = max(fast.minibatch + 1, fast.budget // (2 * fast.k))
    return distinct[: min(fast.anchors, affordable)]


# -- the slow channel -----------------------------------------------------------------------------


def learn(session: Session, problems: Sequence[Problem]) -> Row:
    """G rollouts per problem, advantages over all of them together, one update of theta."""
    state, config, method = session.state, session.config, session.method
    shared, row = method.trains_under_its_prompts, Row()
    with session.phase("sampling", "sample"):
        groups = collect_groups(
            session.engine,
            session.task,
            problems,
            state.population if shared else [session.seed_prompt],
            config.fast.k if shared else 1,
            config.loop.group,
            session.cache,
            session.params,
            derive(session.seed, "rl", state.step),
        )
    with session.phase("learning", "train"):
        if method.learns == "teacher":
            batch, row["kl_to_teacher"] = make_lessons(
                groups, state.population, session.engine, config.slow, session.params.temperature
            )
        else:
            batch = make_batch(groups, config.slow)
        update = session.engine.update(batch.data) if batch.data else None
    session.stream.learn_from(groups)
    session.run.log_rollouts(state.step + 1, groups)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    reused = sum(rollout.reused for rollout in rollouts)
    state.spent["reused"] += reused
    state.spent["rl"] += len(rollouts) - reused
    if shared:
        state.earlier = rewards_by_prompt([rollout for rollout in rollouts if not rollout.reused])
    row |= {
        "reward": fmean(rollout.reward for rollout in rollouts),
        "reward_by_prompt": {
            key: fmean(values) for key, values in rewards_by_prompt(rollouts).items()
        },
        "groups": {"learned_from": batch.groups, "of": len(groups)},
        "reused": reused,
        "truncated": fmean(rollout.truncated for rollout in rollouts),
        "response_tokens": fmean(len(rollout.tokens) for rollout in rollouts),
    }
    if update is not None:
        row |= {
            key: getattr(update, key)
            for key in ("loss", "grad_norm", "lr", "kl", "entropy", "applied")
        }
        row["ratio"] = ratio_stats(batch.rollouts, update.logprobs, config.slow.tau)
    else:  # nothing to learn from: that sampler and trainer agree is checked on one group all the same
        seen = groups[0].rollouts
        sequences = [(rollout.context, rollout.tokens) for rollout in seen]
        again = session.engine.logprobs(sequences, "policy", session.params.temperature)
        row["ratio"] = ratio_stats(seen, again, config.slow.tau)
    return row


def rewards_by_prompt(rollouts: Sequence[Rollout]) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = {}
    for rollout in rollouts:
        rewards.setdefault(rollout.prompt_id, []).append(rollout.reward)
    return rewards
