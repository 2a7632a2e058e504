"""Any data set of the `reasoning-gym` package (arXiv 2505.24760), and the process that scores it.

The package's scorers are written for tame answers: some call `eval` or sympy's `parse_expr` on the
answer, many can be made to run for ever. They are therefore called in a `Worker`, and no answer that
Python could run as more than arithmetic or a literal reaches those that evaluate.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import pickle
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import zip_longest
from typing import Any

from fastslow.errors import ConfigError
from fastslow.rollout import Problem, Score
from fastslow.tasks.answers import CORRECT, LONGEST, NO_BOX, boxes, differences, show
from fastslow.tasks.base import Split, Task
from fastslow.tasks.worker import Worker

ALGEBRA = {
    "countdown",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
}  # theirs call sympy's parse_expr, which evaluates; and `Integral(...)` would quote the question
LITERALS = {"binary_matrix", "n_queens", "spiral_matrix", "string_insertion"}  # theirs call eval
ARITHMETIC = re.compile(r"[\d\s+\-*/^().,A-Za-z]*", re.ASCII)
RUNNABLE = "The answer holds more than evaluated values and plain functions. Give only those."
NAME = re.compile(r"[A-Za-z]\w*")
FUNCTIONS = re.compile(r"a?(?:sin|cos|tan)h?|exp|log|ln|sqrt|pi|Abs|sec|csc|cot")


def runnable(dataset: str, answer: str) -> bool:
    """Whether the data set's scorer would run this answer as more than arithmetic or a literal."""
    if dataset in ALGEBRA:
        names = [name for name in NAME.findall(answer) if len(name) > 1]
        if re.search(r"\.\s*[A-Za-z]", answer) or not ARITHMETIC.fullmatch(answer):
            return True
        return not all(FUNCTIONS.fullmatch(name) for name in names)
    if dataset in LITERALS:
        try:
            ast.literal_eval(answer)
        except SyntaxError:
            return False  # no Python: `eval` will refuse it as well
        except (ValueError, TypeError, MemoryError, RecursionError):
            return not answer.isidentifier()
    return False


def extract(response: str) -> tuple[str, bool]:
    r"""The answer in the last `\boxed{}`, else `<answer>`, else line; and whether it was marked."""
    if found := boxes(response):
        return found[-1].strip(), True
    head, tag, rest = response.rpartition("<answer>")
    if tag and "</answer>" in rest:
        return rest.partition("</answer>")[0].strip(), True
    if tag and "<answer>" in head and "</answer>" in head.rpartition("<answer>")[2]:
        return head.rpartition("<answer>")[2].partition("</answer>")[0].strip(), True
    return (response.strip().splitlines() or [""])[-1].strip(), False


def first_difference(found: str, expected: str) -> list[str]:
    """Lines, length and place of the first difference."""
    said = []
    lines, wanted = found.splitlines(), expected.splitlines()
    if len(lines) != len(wanted):
        said.append(f"The answer has {len(lines)} lines, expected {len(wanted)}.")
    elif len(found) != len(expected):
        said.append(f"The answer has {len(found)} characters, expected {len(expected)}.")
    for row, (line, want) in enumerate(zip_longest(lines, wanted, fillvalue=""), start=1):
        if line != want:
            column = next(
                (i for i, (a, b) in enumerate(zip(line, want, strict=False)) if a != b),
                min(len(line), len(want)),
            )
            place = (
                f"line {row}, character {column + 1}"
                if len(wanted) > 1
                else f"character {column + 1}"
            )
            seen, needed = show(line[column:][:20]), show(want[column:][:20])
            return [*said, f"The first difference is at {place}: expected {needed}, found {seen}."]
    return said


@lru_cache(maxsize=8)
def _source(key: bytes) -> Any:
    import reasoning_gym

    dataset, config = pickle.loads(key)
    return reasoning_gym.create_dataset(dataset, **config)


def score_answer(key: bytes, answer: str, entry: dict[str, Any]) -> float:
    """In the worker: the data set's own score, clipped to 0..1; `key` pickles its name and config."""
    return min(1.0, max(0.0, float(_source(key).score_answer(answer, entry=entry))))


_WORKER = Worker("fastslow.tasks.reasoning_gym:score_answer", "reasoning_gym")


class ReasoningGym(Task):
    """A data set of `reasoning-gym` by name, with `config` as its own settings.

    Train and test are different indices of one seed (the package seeds item i with seed + i, so that
    two seeds would share items), and a test question that train asks too is passed over. The reward
    is the data set's own, 0..1. A score not given in `seconds` is 0.
    """

    name = "reasoning_gym"

    def __init__(
        self,
        dataset: str,
        train: int = 1000,
        test: int = 200,
        seed: int = 0,
        config: dict[str, Any] | None = None,
        seconds: float = 10.0,
    ) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise ConfigError(
                "task.name = 'reasoning_gym': the package is missing; pip install 'fastslow[gym]'"
            )
        import reasoning_gym
        from reasoning_gym.composite import DatasetSpec
        from reasoning_gym.factory import DATASETS

        if dataset not in DATASETS:
            near = difflib.get_close_matches(str(dataset), DATASETS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(DATASETS))}"
            raise ConfigError(f"task.args.dataset = {dataset!r}: no such data set; {hint}")
        if min(train, test) < 1 or seconds <= 0:
            raise ConfigError(
                f"task.args: train = {train}, test = {test}, seconds = {seconds}: each must be positive"
            )
        self.dataset, self.sizes, self.seconds = dataset, (train, test), seconds
        self.config = {"size": train + 10 * test, "seed": seed, **(config or {})}
        try:
            if "datasets" in self.config:  # of a composite, which wants its parts as objects
                self.config["datasets"] = [DatasetSpec(**one) for one in self.config["datasets"]]
            self.source = reasoning_gym.create_dataset(dataset, **self.config)
        except Exception as error:  # the package asserts, or raises whatever comes up
            raise ConfigError(
                f"task.args.config = {config!r}: data set {dataset!r} says: {error}"
            ) from None

        self.key = pickle.dumps((dataset, self.config))

    def problems(self, split: Split) -> Sequence[Problem]:
        return self._splits[split]

    @cached_property
    def _splits(self) -> dict[str, list[Problem]]:
        train, test = self.sizes
        asked = [self._problem(index) for index in range(train)]
        questions = {problem.prompt for problem in asked}
        fresh: list[Problem] = []
        for index in range(train, train + 10 * test):  # a small data set may not have so many
            problem = self._problem(index)
            if problem.prompt not in questions:
                fresh.append(problem)
            if len(fresh) == test:
                break
        return {"train": asked, "test": fresh}

    def _problem(self, index: int) -> Problem:
        """`answer` is the package's whole entry, which its scorers need."""
        entry = self.source[index]
        return Problem(f"{self.dataset}-{index}", entry["question"], entry)

    def score(self, problem: Problem, response: str) -> Score:
        answer, marked = extract(response[-LONGEST:])
        said = [] if marked else [NO_BOX]
        if runnable(self.dataset, answer):
            return Score(0.0, " ".join([*said, RUNNABLE]))
        try:
            reward = _WORKER.call(self.seconds, self.key, answer, problem.answer)
        except TimeoutError:
            said.append("The answer takes too long to check. Simplify it.")
            reward = 0.0
        except RuntimeError as error:
            said.append(
                f"The answer cannot be read ({error}). Follow the format that is asked for."
            )
            reward = 0.0
        if reward >= 1:
            return CORRECT
        if reward > 0:
            said.append(f"The answer is partly right and earns {reward:.2f} of 1.")
        gold = problem.answer["answer"]
        if gold is None:  # many answers are right, and the package names none
            said.append(
                f"The answer {show(answer)} does not meet all that is asked. Check each condition."
            )
        else:
            said += [*differences(answer, str(gold)), *first_difference(answer, str(gold))]
        return Score(reward, " ".join(said))
