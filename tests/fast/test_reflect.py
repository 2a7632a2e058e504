"""Reflectors: what they propose, what is refused, what they cost, how they fail."""

import io
import json
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fastslow import ConfigError, ReflectorError
from fastslow.config import FastConfig
from fastslow.engine.local import LocalEngine
from fastslow.fast.reflect import (
    Example,
    Job,
    Offline,
    extract,
    make_reflector,
    problem_with,
)
from fastslow.rollout import sentences

SEED = "You are helpful. Solve the task."


def proposals_of(reflector, jobs, seed=0):
    """All of a reflector's proposals, in the order of the jobs."""
    arrived = [
        answer for answers in reflector.propose(jobs, random.Random(seed)) for answer in answers
    ]
    assert sorted(place for place, _ in arrived) == list(range(len(jobs)))
    return [proposal for _, proposal in sorted(arrived)]


FEEDBACK = [f"Step {i} is wrong. Work backwards. Use a box." for i in range(6)]
JOB = Job(SEED, [Example(f"question {i}", "answer", 0.0, text) for i, text in enumerate(FEEDBACK)])


def test_offline_takes_what_recurs_in_the_feedback():
    proposals = proposals_of(Offline(), [JOB] * 300)
    added = Counter(s for text in proposals for s in sentences(text) if s not in sentences(SEED))
    known = {s for text in FEEDBACK for s in sentences(text)}
    assert {
        s for s in added if s.split()[0].rstrip(":") not in ("Note", "Remember", "Important")
    } <= known
    assert added["Work backwards."] + added["Use a box."] > 200
    assert not any(sentence.startswith("Step") for sentence in added)  # said of one example each
    assert all(text.startswith("You are helpful.") for text in proposals)


def test_offline_learns_nothing_from_right_answers_and_still_varies():
    right = Job(SEED + " Use a box. Be brief.", [Example("q", "a", 1.0, "Never do this.")] * 3)
    proposals = set(proposals_of(Offline(), [right] * 50))
    assert not any("Never" in text for text in proposals)
    assert len(proposals) > 5  # dropped, reordered and rephrased sentences


def test_offline_is_reproducible():
    first, second = (proposals_of(Offline(), [JOB] * 20, 7) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Here:\n```\nBe brief.\n```", "Be brief."),
        ("```text\nBe brief.\n```\nor\n```\nBe long.\n```", "Be long."),
        ("<think>```\nno\n```</think>\n```\nyes\n```", "yes"),
        ("```\nno\n```</think>\n```\nyes\n```", "yes"),
        ("```\nUse:\n```json\n{}\n```\nThen answer.\n```", "Use:\n```json\n{}\n```\nThen answer."),
        ("<think>```\nnever closed\n```", None),
        ("Be brief.", None),
        ("I'm sorry, I can't help.", None),
        ("```\n\n```", ""),
        (None, None),
    ],
)
def test_the_proposal_is_the_last_fence_outside_of_thought(answer: str | None, found: str | None):
    assert extract(answer) == found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "unreadable"),
        ("  ", "empty"),
        (SEED + " ", "unchanged"),
        ("known", "duplicate"),
        ("known ", "duplicate"),
        (7, "unreadable"),
        ("I’m sorry, but I can’t.", "refused"),
        ("x" * 101, "overlong"),
        ("I'm sorry, but I cannot do that.", "refused"),
        ("As an AI language model, no.", "refused"),
        ("Be brief.", None),
    ],
)
def test_worthless_proposals_are_named(text: str | None, reason: str | None):
    assert problem_with(text, SEED, {"known"}, 100) == reason


def test_a_callable_sees_prompt_and_feedback():
    seen = []

    def reflect(prompt: str) -> str:
        seen.append(prompt)
        return "```\nBetter.\n```"

    reflector = make_reflector(FastConfig(), None, reflect)  # type: ignore[arg-type]
    assert proposals_of(reflector, [JOB]) == ["Better."]
    assert all(part in seen[0] for part in (SEED, "question 3", "Work backwards.", "reward 0"))
    assert reflector.usage.calls == 1


def test_a_failing_callable_says_so():
    def reflect(prompt: str) -> str:
        raise TimeoutError("no answer")

    with pytest.raises(ReflectorError, match="TimeoutError: no answer"):
        proposals_of(make_reflector(FastConfig(), None, reflect), [JOB], 0)  # type: ignore[arg-type]


def test_the_policy_and_its_base_can_reflect(engine: LocalEngine):
    for kind in ("self", "base"):
        config = FastConfig(reflector=kind, reflector_args={"max_tokens": 4})
        short = Job("Hi.", [Example("q", "a", 0.0, "No.")])
        assert proposals_of(make_reflector(config, engine), [short], 0) == [None]


def test_self_reflection_shows_what_fits_and_repeats_itself(engine: LocalEngine, monkeypatch):
    config = FastConfig(reflector="self", reflector_args={"max_tokens": 4})
    shown = []
    sample = engine.sample

    def watch(contexts, *rest):
        shown.append((contexts, rest))
        return sample(contexts, *rest)

    monkeypatch.setattr(engine, "sample", watch)
    engine.context_length = 100_000
    proposals_of(make_reflector(config, engine), [JOB], 3)
    whole = len(shown.pop()[0][0])
    engine.context_length = whole
    for _ in range(2):  # a fresh reflector each time, as after a resume
        proposals_of(make_reflector(config, engine), [JOB], 3)
    assert shown[0] == shown[1]
    assert len(shown[0][0][0]) + 4 <= whole
    engine.context_length = 50
    with pytest.raises(ReflectorError, match="does not fit"):
        proposals_of(make_reflector(config, engine), [JOB], 3)
    with pytest.raises(ConfigError, match="reflector_args"):
        make_reflector(FastConfig(reflector="self", reflector_args={"foo": 1}), engine)


def test_unknown_functions_are_configuration_errors():
    with pytest.raises(ConfigError, match="fast.reflector"):
        make_reflector(FastConfig(reflector="python:nowhere:function"), None)  # type: ignore[arg-type]


class Server(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint on the loopback."""

    fail = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": f"```\n{len(prompt)} seen\n```"},
                }
            ],
            "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
        }
        data = json.dumps(
            {"error": {"message": "down for repair"}} if self.fail else reply
        ).encode()
        self.send_response(503 if self.fail else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    Server.fail = False


def test_answers_are_handed_on_as_they_come_and_waiting_is_told(endpoint: str, monkeypatch):
    """The second question is answered only after the first answer has been used."""
    pytest.importorskip("litellm")
    used = threading.Event()
    answer = Server.do_POST

    def hold(self) -> None:
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        self.rfile = io.BytesIO(body)
        if b"question 5" not in body:
            assert used.wait(10)
        answer(self)

    monkeypatch.setattr(Server, "do_POST", hold)
    reflector = make_reflector(litellm_config(endpoint), None)  # type: ignore[arg-type]
    short = Job(SEED, JOB.examples[:2])
    answers = reflector.propose([short, JOB], random.Random(0))
    assert [place for place, _ in next(answers)] == [1]
    waited = reflector.usage.waited
    assert waited > 0
    used.set()
    assert [place for place, _ in next(answers)] == [0]
    assert reflector.usage.waited > waited
    assert next(answers, None) is None


def litellm_config(endpoint: str) -> FastConfig:
    args = {"api_base": endpoint, "api_key": "none", "num_retries": 1, "timeout": 5}
    return FastConfig(reflector="openai/any", reflector_args=args)


def test_a_litellm_model_answers_and_is_counted(endpoint: str):
    pytest.importorskip("litellm")
    reflector = make_reflector(litellm_config(endpoint), None)  # type: ignore[arg-type]
    answers = proposals_of(reflector, [JOB, JOB])
    assert all(answer is not None and answer.endswith("seen") for answer in answers)
    usage = reflector.usage
    assert (usage.calls, usage.tokens_in, usage.tokens_out) == (2, 22, 10)


def test_a_litellm_model_that_is_down_gives_its_reason(endpoint: str):
    pytest.importorskip("litellm")
    Server.fail = True
    with pytest.raises(ReflectorError, match="down for repair"):
        proposals_of(make_reflector(litellm_config(endpoint), None), [JOB], 0)  # type: ignore[arg-type]
