"""One's own rows: problems from a .jsonl or .parquet file, judged by a scorer by name."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastslow.errors import ConfigError
from fastslow.rollout import Problem, Score
from fastslow.tasks.base import Split, Task
from fastslow.tasks.scorers import make_scorer


def read_rows(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The file's rows with their numbers (lines of a .jsonl, blank ones passed over, from 1)."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{path}: expected a file ending in .jsonl or .parquet")
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; it is sought from {Path.cwd()}")
    rows = _read_jsonl(path) if path.suffix == ".jsonl" else _read_parquet(path)
    if not rows:
        raise ConfigError(f"{path}: holds no row; at least one is needed")
    return rows


def _read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        # Not `splitlines`: JSON may hold its other line ends, such as U+2028, inside of a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected UTF-8 text") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path}, line {number}: not valid JSON ({error}); expected one object per line"
            ) from None
        if not isinstance(row, dict):
            raise ConfigError(
                f"{path}, line {number}: found {line.strip()[:40]!r}, expected an object"
            )
        rows.append((number, row))
    return rows


def _read_parquet(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError(f"{path}: needs pyarrow; pip install 'fastslow[data]'") from None
    try:
        return list(enumerate(parquet.read_table(path).to_pylist(), start=1))
    except Exception as error:  # pyarrow's errors have no common base of their own
        raise ConfigError(f"{path}: cannot be read as parquet ({error})") from None


class Rows(Task):
    """Problems from the columns of `path`, judged by `scorer` with `scorer_args` as its options.

    The test rows are those of `test_path`, else `test_fraction` (by default a tenth) of `path`, drawn
    by `seed` from the prompts' text, so that they do not depend on the rows' order and rows with the
    same prompt stay together. `limit` takes the first rows only. The text in the column `feedback`
    is said after the scorer's own of every answer whose reward is below 1.
    """

    name = "jsonl"

    def __init__(
        self,
        path: str,
        test_path: str | None = None,
        test_fraction: float | None = None,
        prompt: str = "prompt",
        answer: str = "answer",
        feedback: str | None = None,
        scorer: str = "exact",
        scorer_args: dict[str, Any] | None = None,
        seed_prompt: str | None = None,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        if test_path is not None and test_fraction is not None:
            raise ConfigError("task.args: give test_path or test_fraction, not both")
        fraction = 0.1 if test_fraction is None else test_fraction
        if not 0 < fraction < 1:
            raise ConfigError(f"task.args.test_fraction = {fraction}: expected between 0 and 1")
        if limit is not None and limit < 1:
            raise ConfigError(f"task.args.limit = {limit}: expected at least 1, or none for all")
        self.columns = (prompt, answer, feedback)
        self.hints: dict[str, str] = {}
        self.scorer = make_scorer(scorer, scorer_args)
        if seed_prompt is not None:
            self.seed_prompt = seed_prompt
        rows = self._problems(path, limit)
        if test_path is not None:
            self._splits = {"train": rows, "test": self._problems(test_path, None)}
        else:
            self._splits = self._split(rows, fraction, seed, path)

    def problems(self, split: Split) -> Sequence[Problem]:
        return self._splits[split]

    def score(self, problem: Problem, response: str) -> Score:
        score = self.scorer(response, problem.answer)
        hint = self.hints.get(problem.id)
        # What is no Score (the user's own scorer) is left for `judge` to name.
        if hint is None or not isinstance(score, Score) or score.reward >= 1:
            return score
        return Score(score.reward, f"{score.feedback} {hint}")

    def _problems(self, path: str, limit: int | None) -> list[Problem]:
        prompt, answer, feedback = self.columns
        kind = "line" if str(path).endswith(".jsonl") else "row"
        problems = []
        for number, row in read_rows(path)[:limit]:
            place = f"{path}, {kind} {number}"
            for column in (prompt, answer, feedback):
                if column is not None and column not in row:
                    near = difflib.get_close_matches(str(column), row, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(row)}"
                    raise ConfigError(f"{place}: no column {column!r}; {hint}")
            if not isinstance(row[prompt], str) or not row[prompt].strip():
                raise ConfigError(
                    f"{place}, column {prompt!r}: found {row[prompt]!r}, expected a text"
                )
            if row[answer] is None or row[answer] == "":
                raise ConfigError(f"{place}, column {answer!r}: is empty; expected the answer")
            problem = Problem(f"{Path(path).stem}-{number}", row[prompt], row[answer])
            said = None if feedback is None else row[feedback]
            if said is not None and not isinstance(said, str):
                raise ConfigError(
                    f"{place}, column {feedback!r}: found {said!r}, expected a text or null"
                )
            if said:
                self.hints[problem.id] = said
            problems.append(problem)
        return problems

    @staticmethod
    def _split(
        problems: list[Problem], fraction: float, seed: int, path: str
    ) -> dict[str, list[Problem]]:
        def key(prompt: str) -> bytes:
            return hashlib.sha256(f"rows/{seed}/{prompt}".encode("utf-8", "surrogatepass")).digest()

        prompts = sorted({problem.prompt for problem in problems}, key=key)
        if len(prompts) < 2:
            raise ConfigError(
                f"{path}: {len(prompts)} different prompt cannot be split into train and test; "
                "give test_path"
            )
        held = set(prompts[: min(max(1, round(fraction * len(prompts))), len(prompts) - 1)])
        return {
            "train": [problem for problem in problems if problem.prompt not in held],
            "test": [problem for problem in problems if problem.prompt in held],
        }
