"""The star-graph task: what it generates, what it rewards, what it says."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslow import Problem
from fastslow.tasks.star_graph import StarGraph, parse_question

TASK = StarGraph(degree=3, length=4, nodes=50, train=300, test=20)
PAPER = StarGraph(train=3, test=2)
DIGEST = "9233fc2d6f5950ed"
HAND = Problem("hand", "Graph: 1,2 2,3 1,5 5,6 3,4 6,7\nFind the path from 1 to 4.", "2,3,4")


def test_problems_are_the_same_for_ever():
    text = "".join(problem.prompt + problem.answer for problem in TASK.problems("train"))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == DIGEST


def test_the_papers_size_is_the_default():
    edges, source, _ = parse_question(PAPER.problems("train")[0].prompt)
    assert len(edges) == 25 * 19
    assert sum(u == source for u, _ in edges) == 25
    assert max(max(edge) for edge in edges) < 500
    assert [len(StarGraph().problems(split)) for split in ("train", "test")] == [10_000, 200]


def test_the_gold_path_is_the_only_walk_from_source_to_goal():
    for problem in TASK.problems("train"):
        edges, source, goal = parse_question(problem.prompt)
        parents = {v: u for u, v in edges}
        assert len(parents) == len(edges)  # no node has two ways in: branches never meet
        walk, node = [goal], goal
        while parents[node] != source:
            node = parents[node]
            walk.append(node)
        assert problem.answer == ",".join(map(str, reversed(walk)))


def test_splits_and_seeds_differ():
    assert TASK.problems("train")[0].prompt != TASK.problems("test")[0].prompt
    other = StarGraph(degree=3, length=4, nodes=50, train=1, test=1, seed=1)
    assert other.problems("train")[0].prompt != TASK.problems("train")[0].prompt


@pytest.mark.parametrize(
    ("response", "strict", "lenient"),
    [
        ("\\boxed{2,3,4}", 1, 1),
        ("so \\boxed{9,9} no, \\boxed{ 2, 3, 4 } yes", 1, 1),
        ("\\boxed{1,2,3,4}", 0, 1),
        ("2,3,4", 0, 0),
        ("\\boxed{2,3,4} or \\boxed{5,6,7}", 0, 0),
        ("\\boxed{2 3 4}", 0, 0),
        ("\\boxed{２,３,４}", 0, 0),
        ("", 0, 0),
    ],
)
def test_rewards(response: str, strict: float, lenient: float):
    forgiving = StarGraph(3, 4, 50, 1, 1, convention="lenient")
    assert TASK.score(HAND, response).reward == strict
    assert forgiving.score(HAND, response).reward == lenient


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("Path: 2,3,4", ["not boxed", "inside \\boxed{}"]),
        ("\\boxed{1,2,3,4}", ["begins with the source 1", "Omit the source"]),
        ("\\boxed{2,6,4}", ["Step 2 goes from 2 to 6", "no edge 2,6", "backwards"]),
        ("\\boxed{5,6,7}", ["ends at 7", "not at the destination 4", "backwards"]),
        ("\\boxed{5,6,7,4}", ["Step 4 leaves node 7", "dead end"]),
        ("1,5,6", ["not boxed", "begins with the source 1", "ends at 6"]),
        ("I do not know", ["No path was found"]),
    ],
)
def test_feedback_names_every_failure(response: str, said: list[str]):
    feedback = TASK.score(HAND, response).feedback
    for part in said:
        assert part in feedback


def test_right_answers_hear_no_complaint():
    assert TASK.score(HAND, "\\boxed{2,3,4}").feedback == "The answer is correct."


@given(st.text(max_size=300) | st.from_regex(r"(\\boxed\{[\d,\- >]*\}|[\d,]+ ){0,9}"))
@settings(max_examples=300, deadline=None)
def test_scoring_is_total(response: str):
    score = TASK.score(HAND, response)
    assert score.reward in (0.0, 1.0)
    assert score.feedback


@pytest.mark.parametrize(
    "response", ["1," * 500_000, "\\boxed{" * 200_000, "9" * 10**6, "\\boxed{1}" * 10**5]
)
def test_huge_responses_are_scored(response: str):
    assert TASK.score(HAND, response).reward == 0


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="nodes >= 10"):
        StarGraph(degree=3, length=4, nodes=9)
    with pytest.raises(ValueError, match="convention"):
        StarGraph(convention="loose")  # type: ignore[arg-type]
