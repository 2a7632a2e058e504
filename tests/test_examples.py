"""The examples run, and show what they say."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

import fastslow
from fastslow import Score
from fastslow.fast.reflect import Example, Job, LanguageModel, callable_complete
from fastslow.tasks.base import problems_of

FOLDER = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_task_scores_and_is_about_twenty_lines():
    module = example("own_task")
    task = module.TwoLines()
    problems = problems_of(task, "train")
    assert all(task.score(problem, task.solution(problem)).reward == 1 for problem in problems)
    assert task.score(problems[0], problems[0].answer).feedback.startswith("Write only the final")
    source = (FOLDER / "own_task.py").read_text()
    body = source.partition("class TwoLines")[2].partition("\nSETTINGS")[0]
    assert len([line for line in body.splitlines() if line.strip()]) <= 25


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7+8*3", "= 31"),
        (" 2*3 - 9 ", "= -3"),
        ("2**9", "not a calculation"),
        ("__import__", "not a calculation"),
        ("9" * 40, "not a calculation"),
        ("1+", "not a calculation"),
        ("1/0", "not a calculation"),
        ("True+1", "not a calculation"),
    ],
)
def test_the_calculator_calculates_and_no_more(text: str, value: str):
    assert example("calculator").calculate(text) == value


def test_a_desk_replies_then_judges_and_tells_what_was_asked():
    module = example("calculator")
    task = module.Calculator()
    problem = next(p for p in problems_of(task, "train") if p.prompt == "What is 7+8*3?")
    desk = task.environment(problem)
    assert desk.step("calc(7+8*3)") == "= 31"
    assert desk.step("31") == Score(1.0, "The answer is correct.")
    desk = task.environment(problem)
    assert desk.step("calc(7+8)") == "= 15"
    score = desk.step("15")
    assert score.reward == 0
    for part in ("Expected 31", "The calculator said: calc(7+8) = 15", module.ADVICE):
        assert part in score.feedback
    desk = task.environment(problem)
    assert [type(desk.step("calc(1+1)")) for _ in range(4)] == [str, str, str, Score]


def test_a_greedy_reflector_takes_what_recurs_and_a_blind_one_reads_nothing():
    module = example("reflectors")
    wrong = "Expected 7. Use no box. Trace the values."
    job = Job(
        "Solve the task. Trace the values.",
        [
            Example("a", "1", 0.0, wrong),
            Example("b", "2", 0.5, wrong.replace("7", "8")),
            Example("c", "9", 1.0, "The answer is correct."),
            Example("d", "9", 1.0, "The answer is correct."),
        ],
    )

    def told(function: object, job: Job) -> str | None:
        return next(LanguageModel(callable_complete(function)).propose([job], random.Random(0)))[0][
            1
        ]

    assert told(module.greedy, job) == "Solve the task. Trace the values. Use no box."
    answer = told(module.blind, job)
    assert answer.removeprefix(job.prompt + " ") in module.PLATITUDES
    everything = Job(" ".join(module.PLATITUDES), job.examples)
    assert told(module.blind, everything) == everything.prompt


@pytest.mark.slow
def test_own_task_learns(tmp_path: Path):
    module = example("own_task")
    settings = module.SETTINGS | {"run": {"dir": str(tmp_path / "run")}}
    run = fastslow.train(settings, task=module.TwoLines())
    assert run.summary is not None
    assert run.summary["reward"]["final"] > run.summary["reward"]["base"] + 0.15


@pytest.mark.slow
def test_the_calculator_is_learned_by_prompt_and_weights(tmp_path: Path):
    module = example("calculator")
    module.teach(tmp_path / "student")
    settings = module.SETTINGS | {
        "run": {"dir": str(tmp_path / "run")},
        "model": {"name": str(tmp_path / "student")},
        "loop": {"steps": 12, "problems": 16},
    }
    run = fastslow.train(settings, task=module.Calculator())
    assert run.summary is not None
    assert run.summary["reward"]["final"] > run.summary["reward"]["base"] + 0.4
    text = "".join(path.read_text() for path in (run.dir / "rollouts").iterdir())
    assert "[reply] = " in text
    fresh = [
        row["ratio"]["fresh"]["deviation"] for row in run.metrics if "fresh" in row.get("ratio", {})
    ]
    assert max(fresh) < 1e-3  # what was sampled around replies is what is trained on
