"""Episodes of several turns: masks, log-probabilities, limits, and that replies carry no loss."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import fastslow
from conftest import Letters
from fastslow import ConfigError, Environment, Problem, Rollout, Score, TaskError
from fastslow.collect import Episode, roll_out
from fastslow.engine.base import Datum, Sample, SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.fast.population import make_prompt
from fastslow.measure.evaluate import drift, evaluate

PROMPT = make_prompt("Be brief.")
PARAMS = SamplingParams(max_tokens=60)


class Echo(Letters):
    """Replies with the length of the first turns, then scores the last turn's."""

    name = "echo"

    def __init__(self, turns: int = 2) -> None:
        super().__init__()
        self.turns = turns

    def environment(self, problem: Problem) -> Environment:
        return Echoing(self, problem)


class Echoing(Environment):
    def __init__(self, task: Echo, problem: Problem) -> None:
        self.task, self.problem, self.seen = task, problem, []

    def step(self, turn: str) -> str | Score:
        self.seen.append(len(turn))
        if len(self.seen) < self.task.turns:
            return f"{len(turn)} characters. Go on."
        said = ", ".join(map(str, self.seen))
        return Score(float(self.seen[-1] % 2), f"The turns had {said} characters.")


@pytest.fixture
def talkative(engine: LocalEngine) -> LocalEngine:
    """Ends a turn after a few tokens: the end token is as likely as all others together."""
    end = engine.tokenizer.eos_token_id
    head = engine.policy.lm_head
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features), requires_grad=False)
    head.bias[end] = 6.0
    return engine


def rolled(engine: LocalEngine, task: Echo, count: int = 8) -> list[Rollout]:
    problems = task.problems("train")[:2]
    rows = roll_out(engine, task, [(PROMPT, p) for p in problems], [count] * 2, PARAMS, seed=3)
    return [rollout for row in rows for rollout in row]


def runs_of(mask: Sequence[int]) -> list[int]:
    return [bit for i, bit in enumerate(mask) if i == 0 or mask[i - 1] != bit]


def test_turns_alternate_and_replies_are_masked(talkative: LocalEngine):
    found = [rollout for rollout in rolled(talkative, Echo(3)) if not rollout.truncated]
    assert found
    for rollout in found:
        assert len(rollout.tokens) == len(rollout.logprobs) == len(rollout.mask)
        assert runs_of(rollout.mask) == [1, 0, 1, 0, 1]
        reply = [t for t, bit in zip(rollout.tokens, rollout.mask, strict=True) if not bit]
        said = talkative.decode(reply)
        assert said.count("characters. Go on.") == 2
        assert rollout.text.count("[reply]") == 2
        assert rollout.feedback.count(",") == 2


def test_the_whole_reads_as_the_chat_template_has_it(talkative: LocalEngine):
    rollout = next(r for r in rolled(talkative, Echo(2)) if not r.truncated)
    first, _, last = rollout.text.partition("\n[reply] ")
    reply, _, last = last.partition("\n")
    chat = [
        {"role": "system", "content": PROMPT.text},
        {"role": "user", "content": f"Problem {rollout.problem_id.removeprefix('train-')}."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": reply},
        {"role": "assistant", "content": last},
    ]
    whole = talkative.tokenizer.apply_chat_template(chat, tokenize=False)
    assert talkative.tokenizer.decode(rollout.context + rollout.tokens) == whole


def test_log_probabilities_are_those_of_the_whole_sequence(talkative: LocalEngine):
    for rollout in rolled(talkative, Echo(3)):
        (again,) = talkative.logprobs([(rollout.context, rollout.tokens)], "policy")
        for then, now, bit in zip(rollout.logprobs, again, rollout.mask, strict=True):
            if bit:
                assert then == pytest.approx(now, abs=1e-4)


def test_a_rollout_never_exceeds_its_limit_and_says_why_it_ended(talkative: LocalEngine):
    for rollout in rolled(talkative, Echo(100)):
        assert len(rollout.tokens) <= PARAMS.max_tokens
        assert rollout.truncated
        assert rollout.reward == 0
        assert "before the final answer" in rollout.feedback
        assert "Go on." in rollout.feedback
        assert rollout.mask[-1] == 1  # a reply that nobody can answer is not added


def test_replies_have_no_say_in_the_update(tiny, small: dict):
    """Whatever log-probabilities stand beside the reply's tokens, the same weights come out."""
    results = []
    for noise in (0.0, -7.0):
        made = fastslow.api.make_engine(fastslow.Config.parse(small))
        mask = [1, 1, 0, 0, 1]
        logprobs = [-6.0 if bit else noise for bit in mask]
        weights = [bit / 3 for bit in mask]
        made.update([Datum([5, 6, 7], [8, 9, 10, 11, 12], logprobs, weights, [1.0] * 5)])
        results.append(made.policy.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_measures_count_the_policys_tokens_only(talkative: LocalEngine):
    task = Echo(2)
    problems = task.problems("test")
    found = evaluate(talkative, task, problems, [PROMPT], 4, PARAMS, seed=0)
    assert 0 < found.mean < 1
    rows = roll_out(talkative, task, [(PROMPT, p) for p in problems], [1] * 6, PARAMS, seed=0)
    gaps, policy = [], []
    for (rollout,) in rows:
        sequence = [(rollout.context, rollout.tokens)]
        (mine,), (base,) = (talkative.logprobs(sequence, which) for which in ("policy", "base"))
        written = [i for i, bit in enumerate(rollout.mask) if bit]
        gaps += [base[i] - mine[i] for i in written]
        policy += [mine[i] for i in written]
    expected = sum(math.exp(gap) - gap - 1 for gap in gaps) / len(gaps)
    drifted = drift(talkative, [row[0] for row in rows])
    assert drifted.kl == pytest.approx(expected, rel=1e-3)
    assert drifted.entropy == pytest.approx(-sum(policy) / len(policy), rel=1e-3)


class Broken(Echo):
    def environment(self, problem: Problem) -> Environment:
        return Failing()


class Failing(Environment):
    def step(self, turn: str) -> str | Score:
        raise KeyError("tool")


def test_an_environment_that_raises_is_named(engine: LocalEngine):
    with pytest.raises(TaskError, match=r"problem 'train-0': step raised KeyError: 'tool'"):
        rolled(engine, Broken())


def test_a_task_of_one_turn_cannot_reply(engine: LocalEngine):
    class Silly(Letters):
        def score(self, problem: Problem, response: str) -> Score:
            return "well done"  # type: ignore[return-value]

    with pytest.raises(TaskError, match="score returned 'well done'"):
        roll_out(engine, Silly(), [(PROMPT, Silly().problems("train")[0])], [1], PARAMS, 0)


def test_fst_trains_on_episodes(small: dict):
    small["sampling"]["max_tokens"] = 40
    small["task"] = {"name": "test_episodes:Echo"}
    run = fastslow.train(small)
    assert run.summary is not None
    assert run.summary["rollouts"]["rl"] > 0
    fresh = [row["ratio"]["fresh"]["deviation"] for row in run.metrics if "ratio" in row]
    assert max(fresh) < 1e-3


# -- thinking ---------------------------------------------------------------------------------------


class Heard(Letters):
    """Keeps what it is given to judge."""

    def __init__(self) -> None:
        super().__init__()
        self.responses: list[str] = []

    def score(self, problem: Problem, response: str) -> Score:
        self.responses.append(response)
        return Score(1.0, "Good.")


def thinker(tiny: Path, **sampling: object) -> LocalEngine:
    settings = {"thinking_tokens": 5, "thinking_end": "Stop.</think>", "max_tokens": 24} | sampling
    return LocalEngine(fastslow.Config.parse({"model": {"name": str(tiny)}, "sampling": settings}))


def test_thinking_over_budget_is_interrupted_and_goes_on(tiny: Path):
    model, task = thinker(tiny), Heard()
    close = model.tokenizer("Stop.</think>").input_ids
    problems = task.problems("train")[:2]
    params = SamplingParams(max_tokens=24)
    rows = roll_out(model, task, [(PROMPT, p) for p in problems], [6, 6], params, seed=3)
    rollouts = [rollout for row in rows for rollout in row]
    cut = [rollout for rollout in rollouts if len(rollout.tokens) > 5]
    assert len(cut) >= 10  # a random model hardly ever ends within five tokens
    for rollout in cut:
        n = len(close)
        assert rollout.tokens[5 : 5 + n] == close
        assert rollout.mask == [1] * 5 + [0] * n + [1] * (len(rollout.tokens) - 5 - n)
        assert len(rollout.tokens) <= 24
        (scored,) = model.logprobs([(rollout.context, rollout.tokens)], "policy")
        written = [
            (a, b) for a, b, bit in zip(scored, rollout.logprobs, rollout.mask, strict=True) if bit
        ]
        assert all(a == pytest.approx(b, abs=2e-5) for a, b in written)
        assert rollout.text == model.decode(rollout.tokens)
        assert (
            rollout.text.partition("Stop.</think>")[2] in task.responses
        )  # the answer alone is judged
    assert all(r.truncated == (len(r.tokens) == 24) for r in cut if r.tokens[-1] not in model.stops)


def test_an_answer_begun_within_the_budget_is_not_interrupted(tiny: Path):
    model, task = thinker(tiny, thinking_tokens=12), Heard()
    problem = task.problems("train")[0]
    episode = Episode(model, task, PROMPT, problem, [1, 2])
    begun = model.tokenizer("so</think>it").input_ids
    assert episode.speak(Sample(begun, [-1.0] * len(begun), truncated=True), 24) is None
    assert episode.rollout.mask == [1] * len(begun)
    assert episode.speak(Sample([7, model.stops[0]], [-1.0] * 2, truncated=False), 24) is not None
    assert not episode.rollout.truncated
    assert episode.rollout.text.startswith("so</think>it")


def test_a_budget_that_leaves_no_answer_is_refused(tiny: Path):
    with pytest.raises(ConfigError, match=r"sampling.thinking_tokens = 23: .*leaves no answer"):
        thinker(tiny, thinking_tokens=23)


def test_the_template_is_told_whether_to_think(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny, tmp_path / "m")
    template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if enable_thinking is defined %}"
    )
    template += "{{ 'yes' if enable_thinking else 'no' }}{% endif %}"
    (tmp_path / "m/chat_template.jinja").write_text(template)
    ends = {}
    for mode in (None, "on", "off"):
        config = {"model": {"name": str(tmp_path / "m"), "thinking": mode}}
        model = LocalEngine(fastslow.Config.parse(config))
        ends[mode] = model.decode(model.render("a", "b"))
    assert ends == {None: "a b ", "on": "a b yes", "off": "a b no"}
