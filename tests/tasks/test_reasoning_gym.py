"""Any reasoning-gym data set: its gold answers are right, its scorers cannot be broken."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslow.errors import ConfigError
from fastslow.tasks.answers import boxes
from fastslow.tasks.base import problems_of
from fastslow.tasks.reasoning_gym import (
    ALGEBRA,
    LITERALS,
    ReasoningGym,
    extract,
    first_difference,
    runnable,
)
from fastslow.tasks.worker import Worker

pytest.importorskip("reasoning_gym")

DIVERSE = [
    "ab",
    "basic_arithmetic",
    "binary_matrix",
    "caesar_cipher",
    "countdown",
    "gcd",
    "knights_knaves",
    "maze",
    "mini_sudoku",
    "n_queens",
    "polynomial_multiplication",
    "rotate_matrix",
    "simple_integration",
    "spiral_matrix",
    "tower_of_hanoi",
    "zebra_puzzles",
]
# Whose items name no answer of their own (many are right), or which need a configuration.
NO_GOLD = {
    "boxnet": "the answer is None: a plan is simulated",
    "graph_color": "the answer is None: any proper colouring is right",
    "propositional_logic": "the answer is None: any valid conclusion is right",
    "rubiks_cube": "the answer is None: any solving sequence is right",
    "rush_hour": "the answer is None: any solving sequence is right",
    "composite": "needs config.datasets",
}
SMALL = ReasoningGym("gcd", train=5, test=3)


def gold_rewards(dataset: str, size: int) -> list[float]:
    task = ReasoningGym(dataset, train=size, test=1, seed=7, seconds=60)
    rewards = []
    for problem in task.problems("train"):
        gold = problem.answer["answer"]
        # A box cannot hold braces that do not pair, as some of codeio's answers have.
        form = "\\boxed{%s}" if boxes(f"\\boxed{{{gold}}}") == [gold] else "<answer>%s</answer>"
        rewards.append(task.score(problem, f"So the answer is {form % gold}.").reward)
    return rewards


@pytest.mark.parametrize("dataset", DIVERSE)
def test_gold_answers_are_right(dataset: str):
    assert gold_rewards(dataset, 2) == [1.0, 1.0]


@pytest.mark.slow
def test_gold_answers_of_all_data_sets():
    from reasoning_gym.factory import DATASETS

    wrong = {}
    for dataset in sorted(set(DATASETS) - set(NO_GOLD)):
        rewards = gold_rewards(dataset, 5)
        if min(rewards) < 1:
            wrong[dataset] = rewards
    # Some of its gold answers are the integral itself, unevaluated: that quotes the question.
    assert set(wrong) <= {"intermediate_integration"}, wrong


def test_the_integral_is_no_answer_to_itself():
    task = ReasoningGym("intermediate_integration", train=1, test=1)
    problem = task.problems("train")[0]
    integrand = problem.answer["metadata"]["integrand"]
    assert task.score(problem, f"\\boxed{{Integral({integrand}, x)}}").reward == 0


@pytest.mark.slow
@pytest.mark.parametrize("dataset", sorted(set(NO_GOLD) - {"composite"}))
def test_sets_without_a_gold_answer_load_and_score(dataset: str):
    task = ReasoningGym(dataset, train=2, test=1)
    problem = task.problems("train")[0]
    assert problem.answer["answer"] is None
    assert task.score(problem, "\\boxed{x}").reward < 1


def test_composite_takes_its_configuration():
    parts = [{"name": "gcd", "weight": 1, "config": {}}, {"name": "lcm", "weight": 1, "config": {}}]
    task = ReasoningGym("composite", train=3, test=1, config={"datasets": parts})
    for problem in task.problems("train"):
        assert task.score(problem, f"\\boxed{{{problem.answer['answer']}}}").reward == 1


def test_splits_share_no_question_and_do_not_change():
    task = ReasoningGym("coin_flip", train=50, test=20)
    train, test = problems_of(task, "train"), problems_of(task, "test")
    assert (len(train), len(test)) == (50, 20)
    assert not {problem.prompt for problem in train} & {problem.prompt for problem in test}
    again = ReasoningGym("coin_flip", train=50, test=20)
    assert [problem.prompt for problem in again.problems("test")] == [p.prompt for p in test]
    other = ReasoningGym("coin_flip", train=50, test=20, seed=1)
    assert other.problems("train")[0].prompt != train[0].prompt


@pytest.mark.parametrize(
    ("response", "answer", "marked"),
    [
        ("\\boxed{1} \\boxed{2}", "2", True),
        ("<answer>1</answer> <answer> 2 </answer>", "2", True),
        ("<answer>1</answer> \\boxed{2}", "2", True),
        ("<answer>1</answer> <answer>2", "1", True),
        ("a\nb\n\n", "b", False),
        ("", "", False),
    ],
)
def test_extraction(response: str, answer: str, marked: bool):
    assert extract(response) == (answer, marked)


def test_feedback_says_where_and_how_to_answer():
    problem = SMALL.problems("train")[0]
    gold = problem.answer["answer"]
    feedback = SMALL.score(problem, f"I think\n{gold}0").feedback
    for part in ["not boxed", f"Expected '{gold}'", "first difference", "characters"]:
        assert part in feedback
    assert first_difference("1 2\n3 5", "1 2\n3 4")[-1].startswith(
        "The first difference is at line 2, character 3: expected '4', found '5'"
    )
    assert "2 lines, expected 1" in first_difference("a\nb", "a")[0]


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "open('written', 'w')",
        "[print(1) for _ in 'a']",
        "(1).__class__",
        "1 .real",
        "lambda: 0",
        "exec",
    ],
)
@pytest.mark.parametrize("dataset", sorted(ALGEBRA | LITERALS - {"string_insertion"}))
def test_no_answer_is_run_as_code(dataset: str, answer: str):
    # A name alone, a syntax error and arithmetic do nothing when they are evaluated.
    assert runnable(dataset, answer) or answer == "exec"


@pytest.mark.parametrize(
    "answer", ["9**9**9**9", "9^9^9", "[" * 10**5, "1e999999", "9" * 10**6, "Α"]
)
def test_hard_answers_are_scored_in_time(answer: str):
    task = ReasoningGym("countdown", train=1, test=1, seconds=1)
    start = time.monotonic()
    score = task.score(task.problems("train")[0], f"\\boxed{{{answer}}}")
    assert score.reward < 1
    assert score.feedback
    assert time.monotonic() - start < 60


@given(response=st.text(max_size=100))
@settings(max_examples=100, deadline=None)
def test_scoring_is_total(response: str):
    assert SMALL.score(SMALL.problems("train")[0], response).feedback


def test_the_worker_survives_what_it_calls():
    worker = Worker("time:sleep")
    with pytest.raises(TimeoutError):
        worker.call(0.2, 60)
    assert worker.call(30, 0) is None
    with pytest.raises(RuntimeError, match="TypeError"):
        worker.call(30, "x")
    worker.close()
    for target, arguments in [("os:system", ("true",)), ("builtins:open", ("written", "w"))]:
        guarded = Worker(target)
        with pytest.raises(RuntimeError, match="PermissionError"):
            guarded.call(30, *arguments)
        guarded.close()
    dying = Worker("os:_exit")
    with pytest.raises(RuntimeError, match="died"):
        dying.call(30, 1)
    with pytest.raises(RuntimeError, match="ModuleNotFoundError"):
        Worker("no_such_module:f").call(30)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"dataset": "countdwn"}, "did you mean 'countdown'"),
        ({"dataset": "gcd", "config": {"min_number": 1}}, "min_number"),
        ({"dataset": "composite"}, "at least one dataset"),
        ({"dataset": "gcd", "train": 0}, "positive"),
    ],
)
def test_wrong_settings_are_named(args: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        ReasoningGym(**args)
