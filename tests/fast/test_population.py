"""Who stays: ranking and top-K on evidence made by hand."""

import pytest

from conftest import rollout
from fastslow.fast.population import Evidence, make_prompt, prompt_id, rank, top_k

A, B, C = (make_prompt(text) for text in ("Be brief.", "Think first.", "Show all of your work."))


def evidence(**rewards: dict[str, list[float]]) -> Evidence:
    made = Evidence()
    names = {"a": A.id, "b": B.id, "c": C.id}
    for name, cells in rewards.items():
        for problem, values in cells.items():
            made.add(rollout(problem, names[name], value) for value in values)
    return made


def order(found: Evidence, *prompts) -> list[str]:
    return [item.prompt.text for item in rank(prompts or (A, B, C), found)]


def test_equal_texts_are_one_prompt():
    assert prompt_id("x") == prompt_id("x") != prompt_id("y")
    again = make_prompt(A.text, parent="other", born=3)
    assert [item.prompt for item in rank([A, again], evidence(a={"p": [1.0]}))] == [A]


def test_frontier_members_come_before_dominated_ones():
    found = evidence(
        a={"p": [1.0], "q": [0.0], "r": [0.0], "s": [0.0]},  # alone in solving p
        b={"p": [0.0], "q": [1.0], "r": [1.0], "s": [1.0]},
        c={
            "p": [0.0],
            "q": [1.0],
            "r": [1.0],
            "s": [0.0],
        },  # dominated by b, better than a on average
    )
    assert order(found) == [B.text, A.text, C.text]
    assert [item.wins for item in rank([A, B, C], found)] == [3, 1, 2]


def test_a_lucky_single_sample_does_not_beat_steady_evidence():
    found = evidence(a={"p": [1.0]}, b={"q": [1.0] * 18 + [0.0] * 2}, c={"r": [0.0] * 20})
    scores = {item.prompt.text: item.score for item in rank([A, B, C], found)}
    assert scores[B.text] > scores[A.text] > scores[C.text]


def test_earlier_rollouts_count_towards_a_survivors_mean():
    found = evidence(a={"p": [1.0], "q": [0.0]}, b={"p": [0.0], "q": [1.0]})
    found.earlier = {B.id: [1.0] * 10}
    first, second = rank([A, B], found)
    assert (first.prompt, first.rollouts) == (B, 12)
    assert second.score < first.score


def test_ties_go_to_fewer_complaints_then_to_the_shorter_text():
    found = Evidence()
    found.add(
        [rollout("p", A.id, feedback="No. Wrong. Bad."), rollout("p", B.id, feedback="Wrong.")]
    )
    found.add([rollout("p", C.id, feedback="Wrong.")])
    assert order(found) == [B.text, C.text, A.text]


@pytest.mark.parametrize(("floor", "kept"), [(0.0, 3), (0.5, 2), (1.0, 1)])
def test_top_k_drops_members_far_below_the_best(floor: float, kept: int):
    found = evidence(
        a={"p": [1.0] * 90 + [0.0] * 10},
        b={"q": [1.0] * 70 + [0.0] * 30},
        c={"r": [0.0] * 99 + [1.0]},
    )
    assert len(top_k(rank([A, B, C], found), 4, floor)) == kept
    assert len(top_k(rank([A, B, C], found), 1, floor)) == 1
