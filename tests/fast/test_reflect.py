"""Reflectors: what they propose, what is refused, what they cost, how they fail."""

import json
import random
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer

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
FEEDBACK = [f"Step {i} is wrong. Work backwards. Use a box." for i in range(6)]
JOB = Job(SEED, [Example(f"question {i}", "answer", 0.0, text) for i, text in enumerate(FEEDBACK)])


def test_offline_takes_what_recurs_in_the_feedback():
    rng = random.Random(0)
    proposals = Offline().propose([JOB] * 300, rng)
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
    proposals = set(Offline().propose([right] * 50, random.Random(0)))
    assert not any("Never" in text for text in proposals)
    assert len(proposals) > 5  # dropped, reordered and rephrased sentences


def test_offline_is_reproducible():
    first, second = (Offline().propose([JOB] * 20, random.Random(7)) for _ in range(2))
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
    assert reflector.propose([JOB], random.Random(0)) == ["Better."]
    assert all(part in seen[0] for part in (SEED, "question 3", "Work backwards.", "reward 0"))
    assert reflector.usage.calls == 1


def test_a_failing_callable_says_so():
    def reflect(prompt: str) -> str:
        raise TimeoutError("no answer")

    with pytest.raises(ReflectorError, match="TimeoutError: no answer"):
        make_reflector(FastConfig(), None, reflect).propose([JOB], random.Random(0))  # type: ignore[arg-type]


def test_the_policy_and_its_base_can_reflect(engine: LocalEngine):
    for kind in ("self", "base"):
        config = FastConfig(reflector=kind, reflector_args={"max_tokens": 4})
        short = Job("Hi.", [Example("q", "a", 0.0, "No.")])
        assert make_reflector(config, engine).propose([short], random.Random(0)) == [None]


def test_self_reflection_shows_what_fits_and_repeats_itself(engine: LocalEngine, monkeypatch):
    config = FastConfig(reflector="self", reflector_args={"max_tokens": 4})
    shown = []
    sample = engine.sample

    def watch(contexts, *rest):
        shown.append((contexts, rest))
        return sample(contexts, *rest)

    monkeypatch.setattr(engine, "sample", watch)
    engine.context_length = 100_000
    make_reflector(config, engine).propose([JOB], random.Random(3))
    whole = len(shown.pop()[0][0])
    engine.context_length = whole
    for _ in range(2):  # a fresh reflector each time, as after a resume
        make_reflector(config, engine).propose([JOB], random.Random(3))
    assert shown[0] == shown[1]
    assert len(shown[0][0][0]) + 4 <= whole
    engine.context_length = 50
    with pytest.raises(ReflectorError, match="does not fit"):
        make_reflector(config, engine).propose([JOB], random.Random(3))
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
    server = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    Server.fail = False


def litellm_config(endpoint: str) -> FastConfig:
    args = {"api_base": endpoint, "api_key": "none", "num_retries": 1, "timeout": 5}
    return FastConfig(reflector="openai/any", reflector_args=args)


def test_a_litellm_model_answers_and_is_counted(endpoint: str):
    pytest.importorskip("litellm")
    reflector = make_reflector(litellm_config(endpoint), None)  # type: ignore[arg-type]
    answers = reflector.propose([JOB, JOB], random.Random(0))
    assert all(answer is not None and answer.endswith("seen") for answer in answers)
    usage = reflector.usage
    assert (usage.calls, usage.tokens_in, usage.tokens_out) == (2, 22, 10)


def test_a_litellm_model_that_is_down_gives_its_reason(endpoint: str):
    pytest.importorskip("litellm")
    Server.fail = True
    with pytest.raises(ReflectorError, match="down for repair"):
        make_reflector(litellm_config(endpoint), None).propose([JOB], random.Random(0))  # type: ignore[arg-type]
