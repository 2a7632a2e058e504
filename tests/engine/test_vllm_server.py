"""The client of a vLLM server against a small server of the same calls; tests/vllm has the real one."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import fastslow
from fastslow import Config
from fastslow.api import Silent, make_engine
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.local import LocalEngine
from fastslow.engine.vllm_server import VllmServer, command
from fastslow.errors import ConfigError, FastSlowError, ModelError

CONTEXTS = [[5, 6, 7], [8, 9], [5, 6, 7, 8]]
PARAMS = SamplingParams(1.0, 1.0, 6)


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        status, found = self.server.answer(path, json.loads(body or "{}"))
        answer = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


class Server(ThreadingHTTPServer):
    """vLLM's calls, answered by a model of its own. `says` takes the place of the answer to a path."""

    request_queue_size = 512
    daemon_threads = True

    def __init__(self, model: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.engine = engine_of(model)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.version, self.says, self.asked = "default", {}, []
        self.lock = threading.Lock()
        self.vllm_config = {
            "model_config": {
                "model": str(model),
                "served_model_name": "mine",
                "dtype": "torch.float32",
                "logprobs_mode": "processed_logprobs",
                "max_model_len": 512,
            },
            "parallel_config": {"worker_extension_cls": ""},
            "device_config": {"device": "cuda"},
        }
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, path: str, body: dict) -> tuple[int, object]:
        if path in self.says:
            return self.says[path]
        with self.lock:
            if path == "/server_info":
                return 200, {"vllm_config": self.vllm_config}
            if path == "/collective_rpc":
                assert body["method"] == "reload_weights"
                files = sorted(Path(body["kwargs"]["weights_path"]).glob("*.safetensors"))
                weights = {name: w for file in files for name, w in load_file(file).items()}
                self.engine.policy.load_state_dict(weights, strict=False)
                return 200, {"results": [None]}
            if path == "/update_weight_version":
                self.version = body["new_version"]
                return 200, {"success": True}
            if path == "/weight_info":
                return 200, {"weight_version": self.version}
            assert path == "/v1/completions"
            self.asked.append(body)
            params = SamplingParams(body["temperature"], body["top_p"], body["max_tokens"])
            ((one,),) = self.engine.sample([body["prompt"]], [1], params, body["seed"])
        choice = {
            "token_ids": one.tokens,
            "logprobs": {"token_logprobs": one.logprobs},
            "finish_reason": "length" if one.truncated else "stop",
        }
        return 200, {"choices": [choice]}

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def engine_of(place: Path, url: str | None = None, **sections: dict) -> LocalEngine:
    settings = {"model": {"name": str(place)}, "slow": {"lr": 1e-3, "warmup": 0}} | sections
    if url is not None:
        settings["sampling"] = {"backend": "vllm", "url": url}
    made = make_engine(Config.parse(settings))
    assert isinstance(made, LocalEngine)
    return made


@pytest.fixture
def server(tiny: Path, tmp_path: Path, monkeypatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)  # runs, and the weights on their way, go to the folder runs/
    made = Server(tiny)
    yield made
    made.stop()


def learn(engine: LocalEngine) -> None:
    (one,) = engine.sample(CONTEXTS[:1], [1], PARAMS, 0)[0]
    n = len(one.tokens)
    engine.update([Datum(CONTEXTS[0], one.tokens, one.logprobs, [1 / n] * n, [1.0] * n)])


def test_samples_are_those_of_the_trainers_weights_after_each_update(server, tiny, tmp_path):
    engine, plain = engine_of(tiny, server.url), engine_of(tiny)
    for _ in range(3):
        drawn = engine.sample(CONTEXTS, [2, 0, 3], PARAMS, seed=1)
        assert [len(row) for row in drawn] == [2, 0, 3]
        for context, row in zip(CONTEXTS, drawn, strict=True):
            found = plain.logprobs([(context, one.tokens) for one in row], "policy")
            for one, logprobs in zip(row, found, strict=True):
                assert one.logprobs == pytest.approx(logprobs, abs=1e-5)
                assert one.truncated == (one.tokens[-1] not in engine.stops)
        assert drawn == engine.sample(CONTEXTS, [2, 0, 3], PARAMS, seed=1)
        learn(engine)
        plain.policy.load_state_dict(engine.policy.state_dict())
    assert not any(path.is_file() for path in tmp_path.rglob("*"))  # the disk holds no weights


def test_a_request_says_all_that_sampling_depends_on(server, tiny):
    engine = engine_of(tiny, server.url)
    long = [5] * 510
    engine.sample([*CONTEXTS, long], [1, 1, 1, 1], SamplingParams(0.6, 0.9, 6), seed=1)
    engine.sample(CONTEXTS, [1, 1, 1], PARAMS, seed=1)
    first, second = server.asked[:4], server.asked[-3:]
    assert sorted(body["prompt"] for body in first) == sorted([*CONTEXTS, long])
    for body in first:
        assert (body["temperature"], body["top_p"]) == (0.6, 0.9)
        assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (0, 0.0, 1.0)
        assert (body["stop_token_ids"], body["ignore_eos"]) == (engine.stops, True)
        assert body["max_tokens"] == (2 if body["prompt"] == long else 6)
    assert len({body["seed"] for body in first}) == 4
    salts = [{body["cache_salt"] for body in part} for part in (first, second)]
    assert [len(part) for part in salts] == [1, 1]  # a call shares what its prompts have in common
    assert salts[0] != salts[1]


def test_a_lost_sync_stops_the_run(server, tiny):
    engine = engine_of(tiny, server.url)
    engine.sample(CONTEXTS, [2, 2, 2], PARAMS, seed=1)
    server.says["/collective_rpc"] = (200, {"results": [None]})  # and the weights stay as they are
    learn(engine)
    with pytest.raises(ModelError, match="sampler and trainer disagree"):
        engine.sample(CONTEXTS, [2, 2, 2], PARAMS, seed=1)


def written(directory: Path) -> list[str]:
    """Every rollout of a run, step by step."""
    return [path.read_text() for path in sorted((directory / "rollouts").iterdir())]


@pytest.mark.slow
def test_a_straight_run_one_that_was_stopped_and_one_by_two_processes_agree(
    server, small, tmp_path
):
    class Stops(Silent):
        def step(self, row, state):
            if row["step"] == 3:
                raise KeyboardInterrupt

    def settings(name: str) -> dict:
        small["sampling"] |= {"backend": "vllm", "url": server.url}
        return small | {"run": small["run"] | {"dir": str(tmp_path / name)}}

    straight = fastslow.train(settings("straight"))
    with pytest.raises(KeyboardInterrupt):
        fastslow.train(settings("stopped"), observer=Stops())
    resumed = fastslow.resume(tmp_path / "stopped")
    timeless = [[row | {"seconds": None} for row in run.metrics] for run in (straight, resumed)]
    assert timeless[0] == timeless[1]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(settings("two")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    paths = f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [*torchrun, "--standalone", "-m", "fastslow", "train", str(tmp_path / "two.yaml")],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert written(straight.dir) == written(resumed.dir) == written(tmp_path / "two")


# -- what goes wrong ------------------------------------------------------------------------------


def test_an_address_where_nothing_listens_is_named_with_what_starts_a_server(tiny, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConfigError) as caught:
        engine_of(tiny, f"http://127.0.0.1:{port}/")
    message = str(caught.value)
    assert "\n" not in message
    assert f"sampling.url = 'http://127.0.0.1:{port}/': no server answers there" in message
    assert f"VLLM_SERVER_DEV_MODE=1 vllm serve {tiny} --dtype float32" in message
    assert f"--port {port}" in message


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("model_config", "model", "Qwen/Qwen3-8B", "serves 'Qwen/Qwen3-8B', not "),
        ("model_config", "logprobs_mode", "raw_logprobs", "runs with --logprobs-mode raw_logprobs"),
        ("model_config", "dtype", "torch.bfloat16", "--dtype bfloat16; start it with"),
        ("device_config", "device", "cpu", "--worker-extension-cls fastslow.engine.vllm_plugin"),
    ],
)
def test_a_server_that_runs_otherwise_is_refused(server, tiny, section, key, value, said):
    server.vllm_config[section][key] = value
    with pytest.raises(ConfigError, match=said):
        engine_of(tiny, server.url)


@pytest.mark.parametrize(
    "answer", [(404, {"detail": "Not Found"}), (200, {"vllm_config": "text"}), (200, "hello")]
)
def test_a_server_without_its_dev_mode_or_of_another_kind_is_refused(server, tiny, answer):
    server.says["/server_info"] = answer
    with pytest.raises(ConfigError, match=f"status {answer[0]} to /server_info.*DEV_MODE=1"):
        engine_of(tiny, server.url)


def test_a_model_under_a_name_of_its_own_is_taken(server, tiny):
    server.vllm_config["model_config"] |= {"model": "/elsewhere", "served_model_name": str(tiny)}
    engine_of(tiny, server.url)


def test_a_server_with_a_shorter_context_bounds_prompts(server, tiny):
    server.vllm_config["model_config"]["max_model_len"] = 8
    engine = engine_of(tiny, server.url)
    engine.sample([[5] * 7], [1], PARAMS, seed=0)
    assert server.asked[-1]["max_tokens"] == 1
    with pytest.raises(ConfigError, match="prompt of 8 tokens .* context of 8.*--max-model-len"):
        engine.sample([[5] * 8], [1], PARAMS, seed=0)


@pytest.mark.parametrize(
    ("path", "answer", "said"),
    [
        ("/v1/completions", (200, {"choices": [{"text": "hi"}]}), "without the sampled tokens"),
        ("/v1/completions", (200, {"choices": []}), "without the sampled tokens"),
        ("/v1/completions", (200, "hello"), '/v1/completions with status 200 ."hello".'),
        ("/v1/completions", (500, {"error": {"message": "dead\nengine"}}), "500 .dead engine."),
        ("/weight_info", (200, {"weight_version": "default"}), "no longer has this run's weights"),
    ],
)
def test_answers_that_cannot_be_used_stop_the_run(server, tiny, path, answer, said):
    engine = engine_of(tiny, server.url)
    server.says[path] = answer
    with pytest.raises(ModelError, match=said):
        engine.sample(CONTEXTS, [1, 1, 1], PARAMS, seed=0)


@pytest.mark.parametrize(
    ("reason", "logprob", "said"),
    [
        ("abort", -1.0, "broke off a response after 1 tokens .'abort'."),
        ("stop", -9999.0, "logits are not finite"),
    ],
)
def test_a_response_that_is_none_is_not_learned_from(server, tiny, reason, logprob, said):
    engine = engine_of(tiny, server.url)
    choice = {
        "token_ids": [3],
        "logprobs": {"token_logprobs": [logprob]},
        "finish_reason": reason,
    }
    server.says["/v1/completions"] = (200, {"choices": [choice]})
    with pytest.raises(ModelError, match=said):
        engine.sample(CONTEXTS, [1, 1, 1], PARAMS, seed=0)


def test_weights_that_the_server_cannot_take_are_said_in_its_words(server, tiny):
    engine = engine_of(tiny, server.url)
    server.says["/collective_rpc"] = (500, {"error": {"message": "Cannot find any model weights"}})
    with pytest.raises(ModelError, match="/collective_rpc with status 500 .Cannot find any"):
        learn(engine)


def test_a_server_that_died_is_named(server, tiny):
    engine = engine_of(tiny, server.url)
    server.stop()
    with pytest.raises(ModelError, match=f"url = '{server.url}': the server does not answer any"):
        engine.sample(CONTEXTS, [1, 1, 1], PARAMS, seed=0)


def test_the_line_that_starts_a_server_fits_the_model_and_its_settings():
    settings = {
        "model": {"dtype": "bfloat16"},
        "sampling": {"backend": "vllm", "url": "http://gpu:8001"},
    }
    words = shlex.split(command(Config.parse(settings), fastslow.pocket.path(), 256))
    flags = dict(zip(words[4::2], words[5::2], strict=True))
    assert words[:3] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve"]
    assert (flags["--host"], flags["--port"]) == ("gpu", "8001")
    assert (flags["--dtype"], flags["--max-model-len"]) == ("bfloat16", "256")
    assert json.loads(flags["--hf-overrides"]) == {
        "head_dtype": "float32",
        "architectures": ["Qwen3WithOutputBias"],  # the pocket model has `attention_bias`
    }


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"backend": "vllm", "url": "127.0.0.1:8001"}, "sampling.url = '127.0.0.1:8001': .*http"),
        ({"url": "http://127.0.0.1:8001"}, "sampling = .*it takes backend: vllm"),
    ],
)
def test_addresses_that_cannot_be_meant(sampling, said):
    with pytest.raises(FastSlowError, match=said):
        Config.parse({"sampling": sampling})


def test_adapters_go_to_the_server_merged(server, tiny):
    pytest.importorskip("peft")
    torch.manual_seed(0)
    engine = engine_of(tiny, server.url, model={"name": str(tiny), "lora": {"rank": 2}})
    before = {name: w.clone() for name, w in server.engine.policy.state_dict().items()}
    learn(engine)
    learn(engine)  # the first update leaves one factor of each adapter at zero
    moved = [
        name for name, w in server.engine.policy.state_dict().items() if (w != before[name]).any()
    ]
    assert any("q_proj" in name for name in moved)
    assert not any("embed" in name for name in moved)
    engine.sample(CONTEXTS, [2, 2, 2], PARAMS, seed=1)  # and they are the trainer's: no error
    assert isinstance(engine.sampler, VllmServer)
    assert engine.sampler.verified
