"""Scorers by name: right answers, every failure in words, and answers written to break them."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastslow.errors import ConfigError
from fastslow.rollout import Score
from fastslow.tasks.answers import boxes
from fastslow.tasks.scorers import SCORERS, make_scorer

GOLD = {
    "exact": "Paris",
    "contains": "Paris",
    "boxed": "2,3,4",
    "number": "1234.5",
    "choice": "C",
    "math": "\\frac{1}{2}",
    "json": '{"a": [1, true]}',
}
QUICK = [name for name in GOLD if name != "math"]  # math runs in a process of its own


@pytest.fixture(scope="session")
def math():
    pytest.importorskip("math_verify")
    return make_scorer("math")


@pytest.mark.parametrize(
    ("name", "response", "answer", "reward"),
    [
        ("exact", " Paris\n", "Paris", 1),
        ("exact", "paris", "Paris", 0),
        ("contains", "The capital?\nIt is Paris.", "Paris", 1),
        ("contains", "Parisian", "Paris", 0),
        ("boxed", "\\boxed{1} so \\boxed{2, 3, 4}", "2,3,4", 1),
        ("boxed", "\\boxed{\\frac{1}{2}}", "\\frac{1}{2}", 1),
        ("boxed", "2,3,4", "2,3,4", 0),
        ("number", "First 7, then 1,234.5", 1234.5, 1),
        ("number", "\\boxed{\\frac{3}{4}}", 0.75, 1),
        ("number", "\\boxed{x = -3}", -3, 1),
        ("number", "12%", "0.12", 1),
        ("number", "\N{MINUS SIGN}5", -5, 1),
        ("number", "1e3", 1000, 1),
        ("number", "10-5", 5, 1),
        ("number", "7.1", 7, 0),
        ("choice", "A or B? The answer is (C).", "C", 1),
        ("choice", "Answer: B\nNo. Answer: **C**", "C", 1),
        ("choice", "\\boxed{\\text{C}}", "C", 1),
        ("choice", "I think\nC", "C", 1),
        ("choice", "The answer is a number", "A", 0),
        ("json", 'So:\n```json\n{"a": [1.0, true]}\n```', '{"a": [1, true]}', 1),
        ("json", "[1, 2]", [1, 2], 1),
        ("json", "[1, 2", [1, 2], 0),
    ],
)
def test_rewards(name: str, response: str, answer: object, reward: float):
    assert make_scorer(name)(response, answer).reward == reward


HACKS = {
    "every guess in one line": ("contains", "Rome London " * 99 + "Paris", "Paris"),
    "the answer inside a longer word": ("contains", "NotParisAtAll", "Paris"),
    "several boxes, the right one first": ("boxed", "\\boxed{4} \\boxed{5}", "4"),
    "a box that is never closed": ("boxed", "\\boxed{4", "4"),
    "two numbers that a space keeps apart": ("boxed", "\\boxed{1 2}", "12"),
    "a box inside a box": ("boxed", "\\boxed{5 \\boxed{4}}", "4"),
    "greek look-alike": ("exact", "Αthens", "Athens"),
    "full-width digits": ("boxed", "\\boxed{２,３,４}", "2,3,4"),
    "full-width number": ("number", "４２", "42"),
    "arabic digits": ("number", "٤٢", "42"),
    "several numbers in the box": ("number", "\\boxed{41 42}", "42"),
    "infinity is within any tolerance": ("number", "\\boxed{inf}", "42"),
    "not a number": ("number", "nan", "42"),
    "a huge exponent": ("number", "1e999999", "42"),
    "a huge negative exponent": ("number", "1e-999999999999999999999", "0"),
    "division by zero": ("number", "42/0", "42"),
    "too many digits": ("number", "9" * 10**6, "42"),
    "python arithmetic": ("number", "__import__('os').getpid()", "42"),
    "all letters at once": ("choice", "Answer: C, or A, or B, or D", "C"),
    "all letters in the box": ("choice", "\\boxed{A, B, C, D}", "C"),
    "the options quoted": ("choice", "A) x\nB) y\nC) z", "C"),
    "a look-alike letter": ("choice", "\\boxed{С}", "C"),
    "the same key twice": ("json", '{"a": 2, "a": 1}', '{"a": 1}'),
    "true for one": ("json", "[true]", "[1]"),
    "not a number in JSON": ("json", "[NaN]", "[1]"),
    "JSON too deep": ("json", "[" * 10**5, "[1]"),
    "an integer of many digits": ("json", "9" * 10**5, "1"),
}


@pytest.mark.parametrize("hack", HACKS)
def test_hacks_earn_nothing(hack: str):
    name, response, answer = HACKS[hack]
    score = make_scorer(name)(response, answer)
    assert score.reward == 0
    assert score.feedback


MATH_HACKS = {
    "several boxes": "\\boxed{\\frac12} \\boxed{3}",
    "no box": "\\frac{1}{2}",
    "the sum is quoted": "\\boxed{\\sum_{k=1}^{1} \\frac{1}{2}}",
    "the integral is quoted": "\\boxed{\\int_0^1 x dx}",
    "the arithmetic is quoted": "\\boxed{\\frac14+\\frac14}",
    "several values": "\\boxed{\\frac12, 1, 2}",
    "a tower of powers": "\\boxed{9^{9^{9^{9^{9}}}}}",
    "a factorial bomb": "\\boxed{99999999!!}",
    "nested fractions": "\\boxed{" + "\\frac{1}{" * 900 + "2" + "}" * 901,
    "a long answer": "\\boxed{" + "1+" * 10**6 + "1}",
    "python": "\\boxed{__import__('os').system('true')}",
    "a huge number": "\\boxed{1e999999}",
    "nothing": "\\boxed{}",
}


@pytest.mark.parametrize("hack", MATH_HACKS)
def test_math_hacks_earn_nothing(hack: str, math):
    start = time.monotonic()
    score = math(MATH_HACKS[hack], "\\frac{1}{2}", seconds=2.0)
    assert score.reward == 0
    assert score.feedback
    assert time.monotonic() - start < 60  # the limit, and a new process on a busy machine


@pytest.mark.parametrize(
    ("stated", "answer"),
    [
        ("0.5", "\\frac{1}{2}"),
        ("x = \\frac{2}{4}", "1/2"),
        ("2x + y", "y + x + x"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("(1, 2]", "(1,2]"),
        ("\\{1, 2\\}", "\\{2, 1\\}"),
        ("3 \\times 10^{2}", "300"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ],
)
def test_equal_mathematics_is_right(stated: str, answer: str, math):
    assert math(f"So \\boxed{{{stated}}}.", answer).reward == 1


def test_math_may_do_without_a_box(math):
    assert math("The answer is $\\frac{1}{2}$.", "0.5", boxed=False).reward == 1


@pytest.mark.parametrize(
    ("name", "response", "answer", "said"),
    [
        ("exact", "paris", "Paris", ["Expected 'Paris', found 'paris'", "upper and lower case"]),
        ("exact", "It is Paris", "Paris", ["among other text"]),
        ("exact", "Αthens", "Athens", ["GREEK CAPITAL LETTER ALPHA"]),
        ("exact", "", "Paris", ["empty"]),
        ("contains", "Paris\nyes", "Paris", ["last line", "stands elsewhere"]),
        ("boxed", "4", "4", ["not boxed", "inside \\boxed{}"]),
        ("boxed", "\\boxed{4}\\boxed{5}", "4", ["2 boxes", "found '5'"]),
        ("number", "-7", 7, ["sign"]),
        ("number", "3.14", 3.14159, ["more digits"]),
        ("number", "50", 0.5, ["percent"]),
        ("number", "seven", 7, ["No number"]),
        ("choice", "Z or so", "C", ["No choice"]),
        ("choice", "\\boxed{Z}", "C", ["none of the choices"]),
        ("json", '{"b": 1}', '{"a": [1]}', ["lacks the key 'a'", "extra key 'b'"]),
        ("json", '{"a": [2, 3]}', '{"a": [1]}', ["$.a has 2 items", "$.a[0]: expected '1'"]),
        ("json", "see {}", "{}", ["no JSON", "JSON value alone"]),
    ],
)
def test_feedback_names_every_failure(name: str, response: str, answer: object, said: list[str]):
    feedback = make_scorer(name)(response, answer).feedback
    for part in said:
        assert part in feedback


HARD = st.text(max_size=200) | st.from_regex(
    r"(\\boxed\{|\}|\{|\\frac|[0-9eE+./%-]{1,9}|Answer: [A-F]| or |```json\n|```|\[|\"a\":|\n){0,20}"
)


@pytest.mark.parametrize("name", QUICK)
@given(response=HARD)
@settings(max_examples=150, deadline=None)
def test_scoring_is_total(name: str, response: str):
    score = make_scorer(name)(response, GOLD[name])
    assert score.reward in (0.0, 1.0)
    assert score.feedback


@pytest.mark.parametrize("name", QUICK)
@given(answer=st.text(max_size=50) | st.integers() | st.floats() | st.none())
@settings(max_examples=50, deadline=None)
def test_odd_expected_answers_are_scored(name: str, answer: object):
    assert isinstance(make_scorer(name)("\\boxed{5}", answer), Score)


@given(response=HARD)
@settings(max_examples=25, deadline=None)
def test_math_is_total(math, response: str):
    assert math(f"\\boxed{{{response}}}", GOLD["math"], seconds=2.0).feedback


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(
    "piece",
    ["\\boxed{", "{", "}", "9", "1,", "1,234", "Answer: A or ", "```\n", "[", " ", "C\n", "("],
)
def test_huge_responses_are_scored_in_time(name: str, piece: str):
    start = time.monotonic()
    assert make_scorer(name)(piece * (10**6 // len(piece)), GOLD[name]).feedback
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("start", ["answer is", "\\boxed", "\\boxed{\\text", "C", "1", "```"])
def test_blanks_are_scored_in_time(name: str, start: str):
    begin = time.monotonic()
    assert make_scorer(name)(start + " " * 19_000 + ";", GOLD[name]).reward == 0
    assert time.monotonic() - begin < 5


def test_boxes_nest_and_stay_open():
    assert boxes("\\boxed{a} {\\boxed {b{c}}} \\boxed{d") == ["a", "b{c}"]
    assert boxes("\\boxed{a\\}b}") == ["a\\}b"]
    assert boxes("\\boxed{\\boxed{1}") == ["1"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("nubmer", {}, "did you mean 'number'"),
        ("number", {"relativ": 1}, "did you mean 'relative'"),
        ("number", {"relative": "x"}, "expected float"),
        ("number", {"relative": float("nan")}, "finite"),
        ("exact", {"ignore_case": 1}, "expected bool"),
        ("python:no_such_module:f", {}, "module:name"),
    ],
)
def test_wrong_settings_are_named(name: str, options: dict, said: str):
    with pytest.raises(ConfigError, match=said):
        make_scorer(name, options)


def test_a_scorer_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "own_scorer.py").write_text(
        "from fastslow import Score\ndef score(response, answer, bonus=0):\n"
        "    return Score(float(response == answer) + bonus, 'ok')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert make_scorer("python:own_scorer:score", {"bonus": 1})("a", "a").reward == 2


def test_every_scorer_is_tested():
    assert set(GOLD) == set(SCORERS)
