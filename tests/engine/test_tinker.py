"""The Tinker engine against a server in this process, which can be made to fail at will.

What a real server does is tested in tests/tinker (`make test-tinker`).
"""

import asyncio
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest

import fastslow
from fastslow import Config, ConfigError, RunError
from fastslow.api import make_engine
from fastslow.engine import tinker as module
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.tinker import TinkerEngine
from fastslow.engine.tinker_requests import Requests, in_background
from fastslow.engine.tinker_server import IN_DOUBT, Line
from tinker_double import Server

CONTEXTS = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17]]
FREE = SamplingParams(max_tokens=6)


def settings(tiny: Path, **more: object) -> dict:
    slow = {"lr": 1e-3, "warmup": 3, "kl": 0.0, "tau": 1.05}
    engine = {"kind": "tinker", "model": str(tiny), "lora_rank": 0}
    return {"model": {"name": str(tiny)}, "engine": engine, "slow": slow | more}


def served(tiny: Path, server: Server, **more: object) -> TinkerEngine:
    return TinkerEngine(Config.parse(settings(tiny, **more)), server.client())


def local(tiny: Path, **more: object):
    return make_engine(Config.parse(settings(tiny, **more) | {"engine": {}}))


def batch(engine) -> list[Datum]:
    """Responses sampled a little off the policy, with advantages of both signs and a masked token."""
    rows = engine.sample(CONTEXTS, [2, 1, 2], FREE, seed=1)
    data = []
    for i, (context, sample) in enumerate(
        (c, s) for c, r in zip(CONTEXTS, rows, strict=True) for s in r
    ):
        n = len(sample.tokens)
        behaviour = [value + 0.1 * ((i + t) % 3 - 1) for t, value in enumerate(sample.logprobs)]
        weights = [1 / (5 * n)] * (n - 1) + [0.0]
        data.append(
            Datum(
                context,
                sample.tokens,
                behaviour,
                weights,
                [(-1.0) ** i + 0.1 * t for t in range(n)],
            )
        )
    return data


def gap(rows: list[list[float]], others: list[list[float]]) -> float:
    """The largest difference between two tables of numbers."""
    return max(
        abs(a - b)
        for row, other in zip(rows, others, strict=True)
        for a, b in zip(row, other, strict=True)
    )


@pytest.mark.parametrize(
    ("reduction", "lacks", "more"),
    [
        ("sum", set(), {}),  # CISPO by the server
        ("sum", {"forward cispo"}, {}),  # cross_entropy weighted by min(rho, tau) * A
        ("mean", set(), {}),
        ("mean", {"forward cispo"}, {}),  # importance sampling at a ratio of 1
        ("sum", set(), {"kl": 0.1}),
        ("mean", set(), {"loss": "ppo"}),
        ("sum", set(), {"loss": "importance_sampling", "kl": 0.1}),
    ],
)
def test_updates_equal_the_local_engines(tiny: Path, reduction: str, lacks: set, more: dict):
    mine = served(tiny, Server(tiny, reduction, lacks), **more)
    theirs = local(tiny, **more)
    assert mine.able.reduction == reduction
    assert mine.able.cispo == (not lacks)
    data = batch(theirs)
    sequences = [(datum.context, datum.tokens) for datum in data]
    for _ in range(3):  # the optimizer's moments too
        a, b = mine.update(data), theirs.update(data)
        for name in ("loss", "grad_norm", "lr", "kl"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-3, abs=1e-6), name
        assert gap(a.logprobs, b.logprobs) < 1e-4
    for which in ("policy", "base"):
        found, expected = mine.logprobs(sequences, which), theirs.logprobs(sequences, which)
        assert gap(found, expected) < 1e-4
    assert mine.version == 3


def test_text_is_the_local_engines(tiny: Path):
    mine, theirs = served(tiny, Server(tiny)), local(tiny)
    for system, user in [("Be brief.", "Hello."), ("", "1,2 2,3")]:
        assert mine.render(system, user) == theirs.render(system, user)
    assert mine.render_reply("It is 4.") == theirs.render_reply("It is 4.")
    assert mine.decode(list(range(40))) == theirs.decode(list(range(40)))
    assert mine.text.stops == theirs.stops
    assert mine.context_length == theirs.context_length


def test_samples_carry_their_logprobs_and_repeat_by_seed(tiny: Path):
    engine, theirs = served(tiny, Server(tiny)), local(tiny)
    rows = engine.sample(CONTEXTS, [3, 0, 2], FREE, seed=4)
    assert [len(row) for row in rows] == [3, 0, 2]
    assert rows == engine.sample(CONTEXTS, [3, 0, 2], FREE, seed=4)
    assert rows != engine.sample(CONTEXTS, [3, 0, 2], FREE, seed=5)
    for context, row in zip(CONTEXTS, rows, strict=True):
        for sample in row:
            (expected,) = theirs.logprobs([(context, sample.tokens)], "policy")
            assert sample.logprobs == pytest.approx(expected, abs=1e-5)
            assert sample.truncated == (sample.tokens[-1] not in engine.text.stops)


def test_sampling_never_uses_weights_older_than_the_last_update(tiny: Path, tmp_path: Path):
    server = Server(tiny)
    engine = served(tiny, server)
    data = batch(engine)
    old = engine._fresh_sampler()
    sequences = [(datum.context, datum.tokens) for datum in data]
    for _ in range(2):
        engine.update(data)
        before = engine.logprobs(sequences, "policy")
        engine.sample(CONTEXTS, [1, 1, 1], FREE, seed=0)
        engine.sample(CONTEXTS, [1, 1, 1], FREE, seed=0, which="base")
        assert engine.logprobs(sequences, "policy") == before
    engine.save(tmp_path)
    engine.load(tmp_path)
    engine.sample(CONTEXTS, [1, 1, 1], FREE, seed=0)
    assert server.seen["older weights loaded"] == 0
    old.sample(
        CONTEXTS[0],
        1,
        engine.client.types.SamplingParams(max_tokens=1, temperature=1.0, stop=[], seed=0),
    )  # what the engine must not do
    assert engine.logprobs(sequences, "policy") != before


def test_save_and_load_continue_bit_for_bit(tiny: Path, tmp_path: Path):
    server = Server(tiny)
    first, second = served(tiny, server), served(tiny, server)
    data = batch(first)
    first.update(data)
    first.save(tmp_path)
    second.load(tmp_path)
    a, b = first.update(data), second.update(data)
    assert a == b
    assert second.version == 2
    assert first.sample(CONTEXTS, [2, 2, 2], FREE, 0) == second.sample(CONTEXTS, [2, 2, 2], FREE, 0)
    (tmp_path / "tinker.json").write_text("{")
    with pytest.raises(RunError, match="tinker.json: damaged checkpoint"):
        second.load(tmp_path)


def test_a_checkpoint_that_the_server_lost_is_named(tiny: Path, tmp_path: Path):
    server = Server(tiny)
    engine = served(tiny, server)
    engine.save(tmp_path)
    server.saved.clear()
    with pytest.raises(RunError, match="cannot load v000000-.*database and checkpoints"):
        engine.load(tmp_path)


@pytest.mark.parametrize(
    ("lack", "said"),
    [
        ("rank 0", "engine.lora_rank = 0: .* refuses full fine-tuning .*engine.lora_rank: 32"),
        ("sample", "does not sample"),
        ("prompt log-probabilities", "no log-probabilities of the base .*engine.reference_url"),
        ("forward cross_entropy", "does not score"),
        ("save_state", "cannot save its state"),
        ("load_state", "cannot load the state"),
        ("optim_step", "cannot learn"),
    ],
)
def test_what_a_server_lacks_is_said_at_the_start(tiny: Path, lack: str, said: str):
    with pytest.raises(ConfigError, match=said):
        served(tiny, Server(tiny, lacks={lack}))


def test_a_second_server_may_hold_the_base(tiny: Path):
    poor, rich = Server(tiny, lacks={"prompt log-probabilities"}), Server(tiny)
    client = poor.client()
    client = type(client)(client.service, client.types, client.transient, reference=rich)
    engine = TinkerEngine(Config.parse(settings(tiny)), client)
    found = engine.logprobs([(CONTEXTS[0], [1, 2])], "base")
    assert found[0] == pytest.approx(
        local(tiny).logprobs([(CONTEXTS[0], [1, 2])], "base")[0], abs=1e-5
    )


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("sampling", "temperature", 0.7, "sampling.temperature = 0.7"),
        ("loop", "reset_optimizer", True, "loop.reset_optimizer = True"),
        ("model", "lora", {"rank": 8}, "engine.lora_rank; leave model.lora"),
        ("sampling", "thinking_tokens", 5000, "sampling.thinking_tokens = 5000: .* no answer"),
        ("engine", "model", "Qwen/Qwen3-8B", "engine.model = 'Qwen/Qwen3-8B': .* serves "),
        ("engine", "base_url", "127.0.0.1:8000", "engine.base_url.*begins with http"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tiny: Path, section: str, key: str, value: object, said: str
):
    config = settings(tiny)
    config.setdefault(section, {})[key] = value
    if key == "model":
        config["engine"]["tokenizer"] = str(tiny)
    with pytest.raises(ConfigError, match=said):
        TinkerEngine(Config.parse(config), Server(tiny).client())


# -- faults ---------------------------------------------------------------------------------------


def many(limit: int = 4, deadline: float = 30.0, attempts: int = 3) -> Requests:
    return Requests(limit, deadline, attempts, (ConnectionError,), pause=0.001)


def test_no_more_requests_fly_than_allowed_and_answers_keep_their_order():
    flying, most, lock = 0, 0, threading.Lock()

    def work(n: int) -> int:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        time.sleep(0.002 * (n % 3))
        with lock:
            flying -= 1
        return n

    requests = many(limit=4)
    sends = [lambda n=n: in_background(lambda: work(n)) for n in range(60)]
    assert requests.all(sends, "counting") == list(range(60))
    assert most == 4
    assert requests.counts == {"sent": 60, "answered": 60}


def test_passing_failures_are_sent_again_and_others_are_not():
    left = {n: n % 3 for n in range(12)}  # so many failures each

    def work(n: int) -> int:
        if left[n]:
            left[n] -= 1
            raise ConnectionError("reset")
        return n

    requests = many()
    sends = [lambda n=n: in_background(lambda: work(n)) for n in range(12)]
    assert requests.all(sends, "counting") == list(range(12))
    assert requests.counts["failed"] == 12

    def wrong() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        many().one(lambda: in_background(wrong), "asking")

    def down() -> None:
        raise ConnectionError("refused")

    with pytest.raises(
        RunError, match="did not answer .asking: 3 attempts.*refused.*fastslow resume"
    ):
        many().one(lambda: in_background(down), "asking")


def test_a_server_out_of_reach_ends_the_stage():
    requests = many()
    requests.away, requests.patience = lambda: 99.0, 60.0
    with pytest.raises(RunError, match="could not be reached for 99 s .asking.*fastslow resume"):
        requests.one(Future, "asking")


def test_a_straggler_is_sent_again_with_its_seed_and_counted(tiny: Path):
    server = Server(tiny)
    engine = served(tiny, server)
    expected = engine.sample(CONTEXTS, [1, 2, 1], FREE, seed=3)
    stuck: list[Future] = []

    def fault(kind: str) -> Future | None:
        if kind == "sample" and not stuck:
            stuck.append(Future())
            return stuck[0]
        return None

    server.fault, engine.requests.deadline = fault, 0.2
    server.seeds.clear()
    assert engine.sample(CONTEXTS, [1, 2, 1], FREE, seed=3) == expected
    assert engine.counts["late"] == 1
    assert stuck[0].cancelled()
    assert len(server.seeds) == 3


def test_changes_of_weights_are_sent_once():
    arrived = []

    def answer(request: httpx.Request) -> httpx.Response:
        arrived.append(request.url.path)
        if "refused" in request.url.host:
            raise httpx.ConnectError("refused")
        if "lost" in request.url.host:
            raise httpx.ReadTimeout("no answer")
        return httpx.Response(int(request.url.host.removeprefix("status")))

    async def send(host: str, call: str) -> int:
        async with httpx.AsyncClient(transport=Line(httpx.MockTransport(answer))) as client:
            return (await client.post(f"http://{host}/api/v1/{call}")).status_code

    for call in ("optim_step", "forward_backward"):
        assert asyncio.run(send("lost", call)) == IN_DOUBT
        assert asyncio.run(send("status500", call)) == IN_DOUBT
        assert asyncio.run(send("status200", call)) == 200
        assert asyncio.run(send("status429", call)) == 429  # turned away: it may be sent again
        with pytest.raises(httpx.ConnectError):  # never left
            asyncio.run(send("refused", call))
    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(send("lost", "asample"))
    assert asyncio.run(send("status500", "forward")) == 500
    assert len(arrived) == 12


def test_the_line_knows_for_how_long_it_has_been_dead():
    dead = True

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/v1/retrieve_future":
            raise httpx.ReadTimeout("still computing")
        if dead:
            raise httpx.ConnectError("refused")
        return httpx.Response(200)

    async def main() -> list[float]:
        nonlocal dead
        line = Line(httpx.MockTransport(answer))
        async with httpx.AsyncClient(transport=line) as client:
            with pytest.raises(httpx.ReadTimeout):  # says nothing: there may be much to compute
                await client.post("http://server/api/v1/retrieve_future")
            seen = [line.away()]
            for _ in range(2):
                with pytest.raises(httpx.ConnectError):
                    await client.get("http://server/")
                await asyncio.sleep(0.01)
                seen.append(line.away())
            dead = False
            await client.get("http://server/")
        return [*seen, line.away()]

    before, once, twice, after = asyncio.run(main())
    assert before == after == 0
    assert twice > once > 0


@pytest.mark.parametrize("where", ["sample", "optim_step", "save_state"])
def test_a_run_whose_server_died_resumes_exactly(
    tiny: Path, small: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
):
    """No step applied twice, no rollout counted twice: the metrics are those of an undisturbed run."""
    small["engine"] = {"kind": "tinker", "model": str(tiny), "lora_rank": 0, "attempts": 2}
    small["fast"] = {"k": 2, "budget": 16, "anchors": 4, "minibatch": 2, "proposals": 1}
    small["eval"] = {"every": 4, "problems": 2, "n": 1}
    small["loop"] = {"steps": 4, "cycle": 2, "problems": 2, "group": 4}
    small["sampling"] = {"max_tokens": 4}
    server = Server(tiny)
    monkeypatch.setattr(module, "connect", lambda settings: server.client())
    straight = fastslow.train(small)
    begun = server.seen[where]

    server = Server(tiny)
    due = max(begun - 2, 3)  # late in the run, after its first checkpoint

    def fault(kind: str) -> None:
        if kind == where and server.seen[kind] >= due:
            raise OSError("the machine went away")

    server.fault = fault
    small["run"]["dir"] = str(tmp_path / "broken")
    with pytest.raises(RunError, match="the machine went away.*fastslow resume"):
        fastslow.train(small)
    server.fault = lambda kind: None
    broken = fastslow.resume(tmp_path / "broken")

    def told(run: fastslow.Run) -> list[dict]:
        return [{key: row[key] for key in row if key != "seconds"} for row in run.metrics]

    assert told(broken) == told(straight)
    assert [p["id"] for p in broken.prompts] == [p["id"] for p in straight.prompts]
