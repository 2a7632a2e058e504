"""The small parts: stream, reuse cache, groups, ratios, evaluation."""

import math

import pytest
import torch

from conftest import Letters, rollout
from fastslow import ConfigError, Group, Problem
from fastslow.collect import collect_groups, derive, roll_out
from fastslow.engine.base import SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.fast.population import make_prompt
from fastslow.measure.evaluate import drift, evaluate
from fastslow.measure.ratios import ratio_stats
from fastslow.reuse import ReuseCache
from fastslow.stream import ProblemStream

PROBLEMS = [Problem(str(i), f"Problem {i}.", None) for i in range(10)]
PARAMS = SamplingParams(max_tokens=6)
ALL = {"": 1.0}  # the shares of a single task
A, B, C = (make_prompt(text) for text in ("Be brief.", "Think first.", "Show all."))


def test_an_epoch_holds_every_problem_once_in_an_order_of_its_own():
    stream = ProblemStream(Letters(), PROBLEMS, 0, None)
    epochs = [[p.id for p in stream.take(10, ALL)] for _ in range(3)]
    assert all(sorted(epoch) == [p.id for p in PROBLEMS] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [p.id for p in ProblemStream(Letters(), PROBLEMS, 0, None).take(10, ALL)] == epochs[0]
    assert [p.id for p in ProblemStream(Letters(), PROBLEMS, 1, None).take(10, ALL)] != epochs[0]


def test_mastered_problems_are_drawn_no_more_until_too_few_are_left():
    stream = ProblemStream(Letters(), PROBLEMS, 0, 0.9)
    stream.take(10, ALL)
    stream.learn_from(Group(p, [rollout(reward=1.0)] * 9 + [rollout()]) for p in PROBLEMS[:7])
    stream.learn_from([Group(PROBLEMS[7], [rollout(reward=1.0)] * 8 + [rollout()] * 2)])
    for _ in range(5):
        assert {p.id for p in stream.take(3, ALL)} == {"7", "8", "9"}
    assert {p.id for p in stream.take(20, ALL)} == {
        p.id for p in PROBLEMS
    }  # too few are left for this


def test_a_stream_goes_on_from_its_state():
    stream = ProblemStream(Letters(), PROBLEMS, 3, 0.9)
    stream.take(13, ALL)
    stream.learn_from([Group(PROBLEMS[0], [rollout(reward=1.0)])])
    other = ProblemStream(Letters(), PROBLEMS, 3, 0.9)
    other.restore(stream.state())
    assert stream.take(25, ALL) == other.take(25, ALL)


def test_data_with_twins_is_refused():
    with pytest.raises(ConfigError, match="same id"):
        ProblemStream(Letters(), [PROBLEMS[0], PROBLEMS[0]], 0, None)


def test_a_cached_rollout_is_used_at_most_once_and_only_for_its_pair():
    first, second = rollout("p", "a"), rollout("p", "a", 1.0)
    cache = ReuseCache([first, second, rollout("q", "a"), rollout("p", "b")])
    assert cache.take("p", "a", 1) == [first]
    assert cache.take("p", "a", 5) == [second]
    assert cache.take("p", "a", 1) == []
    assert first.reused
    cache.keep({"b"})
    assert cache.take("q", "a", 1) == []
    assert len(cache.rollouts()) == 1
    cache.clear()
    assert cache.rollouts() == []


def groups(engine: LocalEngine, population, cache=None, group=4, slots=2) -> list[Group]:
    cache = cache or ReuseCache()
    return collect_groups(
        engine, Letters(), PROBLEMS[:3], population, slots, group, cache, PARAMS, derive(0, "rl", 0)
    )


def test_each_prompt_gets_its_equal_share_of_every_group(engine: LocalEngine):
    for group in groups(engine, [A, B]):
        names = [rollout.prompt_id for rollout in group.rollouts]
        assert {name: names.count(name) for name in names} == {A.id: 2, B.id: 2}
    for group in groups(engine, [A, B, C], slots=4, group=8):  # fewer prompts than slots
        names = [rollout.prompt_id for rollout in group.rollouts]
        assert {name: names.count(name) for name in names} == {A.id: 4, B.id: 2, C.id: 2}


def test_cached_rollouts_fill_matching_slots_and_the_rest_is_generated(engine: LocalEngine):
    known = [rollout("0", A.id), rollout("0", A.id), rollout("0", A.id), rollout("1", B.id)]
    found = groups(engine, [A, B], ReuseCache(known))
    assert [len(group.rollouts) for group in found] == [4, 4, 4]
    assert [sum(r.reused for r in group.rollouts) for group in found] == [2, 1, 0]
    for group in found:
        assert all(r.problem_id == group.problem.id for r in group.rollouts)


def test_rollouts_carry_their_story(engine: LocalEngine):
    made = groups(engine, [A, B])[1].rollouts[0]
    assert made.context == engine.render(A.text, "Problem 1.")
    assert made.text == engine.decode(made.tokens)
    assert len(made.tokens) == len(made.logprobs) == len(made.mask)
    score = Letters().score(PROBLEMS[1], made.text)
    assert (made.reward, made.feedback) == (score.reward, score.feedback)


def test_ratios_of_fresh_and_reused_tokens():
    fresh = rollout(logprobs=[-1.0, -2.0, -3.0])
    reused = rollout(logprobs=[-1.0, -1.0, -1.0], mask=[1, 1, 0], reused=True)
    new = [[-1.0, -2.0, -3.0], [-1.0 + math.log(2), -1.0 + math.log(4), 50.0]]
    found = ratio_stats([fresh, reused], new, tau=3.0)
    assert found["fresh"]["deviation"] == 0
    assert found["reused"]["mean"] == pytest.approx(3)
    assert found["reused"]["max"] == pytest.approx(4)
    assert (found["reused"]["tokens"], found["reused"]["truncated"]) == (2, 0.5)


def test_evaluation_is_mean_and_best_over_n(engine: LocalEngine):
    task, problems = Letters(), PROBLEMS[:5]
    found = evaluate(engine, task, problems, [A, B], 4, PARAMS, seed=1)
    contexts = [engine.render(prompt.text, p.prompt) for p in problems for prompt in (A, B)]
    # The same draws by hand: two samples per context, in the order in which contexts first occur.
    order = sorted(range(10), key=lambda i: (i // 2, (i % 2 + i // 2) % 2))
    drawn = engine.sample([contexts[i] for i in order], [2] * 10, PARAMS, seed=1)
    rewards = [
        [
            task.score(problems[j], engine.decode(s.tokens)).reward
            for row in drawn[2 * j : 2 * j + 2]
            for s in row
        ]
        for j in range(5)
    ]
    assert found.mean == pytest.approx(sum(map(sum, rewards)) / 20)
    assert found.best == pytest.approx(sum(map(max, rewards)) / 5)


def test_drift_of_the_base_from_itself_is_zero(engine: LocalEngine):
    def measured():
        rows = roll_out(engine, Letters(), [(A, p) for p in PROBLEMS], [1] * 10, PARAMS, seed=0)
        return drift(engine, [row[0] for row in rows])

    found = measured()
    assert found.kl == pytest.approx(0, abs=1e-8)
    assert 0 < found.entropy < 1.1 * math.log(engine.policy.config.vocab_size)  # an estimate
    with torch.no_grad():
        engine.policy.get_input_embeddings().weight.mul_(1.1)
    assert measured().kl > 1e-4
