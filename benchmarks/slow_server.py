"""What the Tinker engine costs its own machine: a slow server on the loopback, 10,000 rollouts a step.

    make bench-tinker      # or: python benchmarks/slow_server.py [--steps 4] [--rollouts 10000] [--wait 2]

The server is a process of its own that computes nothing: it waits as a slow one would, `--slots` requests
side by side, and answers with random tokens over the real wire, so that what is measured is the client:
CPU seconds per rollout; resident memory, live containers and threads after each step; the share of the
time in which the server had work. Prompts have 200 tokens, responses 100, 8 of them to a prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

PROMPT, RESPONSE, GROUP = 200, 100, 8
MODEL = "pocket"


# -- the server -----------------------------------------------------------------------------------


class Server:
    """Just so much of the Tinker API as the engine uses; every request takes its time."""

    def __init__(self, slots: int, wait: float, model: str) -> None:
        self.free, self.wait, self.model = asyncio.Semaphore(slots), wait, model
        self.work: dict[str, asyncio.Task[Any]] = {}
        self.rng = random.Random(0)
        self.active = self.most = 0  # requests that were sent and not yet answered
        self.busy, self.since = 0.0, 0.0

    async def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        call = path.rsplit("/", 1)[-1]
        plain: dict[str, dict[str, Any]] = {
            "healthz": {"status": "ok"},
            "config": {"use_pyqwest_transport": False},
            "create_session": {"type": "create_session", "session_id": "session"},
            "session_heartbeat": {"type": "session_heartbeat"},
            "create_sampling_session": {
                "type": "create_sampling_session",
                "sampling_session_id": "base",
            },
            "get_server_capabilities": {"supported_models": [{"model_name": self.model}]},
            "telemetry": {"status": "accepted"},
        }
        if call == "busy":
            return {"seconds": self.busy, "most": self.most}
        if call in plain:
            return plain[call]
        if call == "retrieve_future":
            return await self.work.pop(body["request_id"])
        name = str(time.monotonic_ns())
        self.work[name] = asyncio.create_task(self.compute(call, body))
        return {"request_id": name}

    async def compute(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.active == 0:
            self.since = time.monotonic()
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            if call in ("asample", "forward", "forward_backward"):
                async with self.free:
                    await asyncio.sleep(self.wait * self.rng.uniform(0.5, 1.5))
            return self.result(call, body)
        finally:
            self.active -= 1
            if self.active == 0:
                self.busy += time.monotonic() - self.since

    def result(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        if call == "asample":
            if body.get("prompt_logprobs"):
                size = sum(len(chunk["tokens"]) for chunk in body["prompt"]["chunks"])
                return {"type": "sample", "sequences": [], "prompt_logprobs": [-0.1] * size}
            size = body["sampling_params"]["max_tokens"]
            row = {"stop_reason": "length", "tokens": [5] * size, "logprobs": [-0.123456] * size}
            return {"type": "sample", "sequences": [row] * body["num_samples"]}
        if call in ("forward", "forward_backward"):
            rows = []
            for datum in body[f"{call}_input"]["data"]:
                size = len(datum["loss_fn_inputs"]["target_tokens"]["data"])
                row = {"data": [-0.123456] * size, "dtype": "float32", "shape": [size]}
                rows.append({"logprobs": row})
            return {"loss_fn_output_type": "scalar", "loss_fn_outputs": rows, "metrics": {}}
        path = "tinker://model/weights/state"
        return {
            "create_model": {"type": "create_model", "model_id": "model"},
            "optim_step": {"metrics": {}},
            "save_weights": {"type": "save_weights", "path": path},
            "load_weights": {"type": "load_weights"},
            "save_weights_for_sampler": {
                "type": "save_weights_for_sampler",
                "sampling_session_id": "policy",
            },
        }[call]


async def serve(port: int, slots: int, wait: float, model: str) -> None:
    server = Server(slots, wait, model)
    listening = await asyncio.start_server(talk(server.answer), "127.0.0.1", port, limit=2**26)
    async with listening:
        await listening.serve_forever()


def talk(answer: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]) -> Any:
    """HTTP/1.1 with JSON both ways: so little of it needs no framework."""

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                size = next(
                    (int(h[15:]) for h in head if h.lower().startswith("content-length")), 0
                )
                body = json.loads(await reader.readexactly(size) or b"{}")
                text = json.dumps(await answer(head[0].split()[1], body)).encode()
                kind = b"content-type: application/json\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n" % (kind, len(text)))
                writer.write(text)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return connection


# -- the client -----------------------------------------------------------------------------------


def memory() -> float:
    """Resident megabytes of this process now."""
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize() / 1e6


def measure(url: str, steps: int, rollouts: int, in_flight: int, kl: float) -> None:
    import httpx

    from fastslow import Config
    from fastslow.engine.base import Datum, SamplingParams
    from fastslow.engine.tinker import TinkerEngine

    engine = TinkerEngine(
        Config.parse(
            {
                "engine": {"kind": "tinker", "base_url": url, "in_flight": in_flight},
                "slow": {"kl": kl, "lr": 1e-3},
            }
        )
    )
    rng = random.Random(0)
    contexts = [[rng.randrange(10, 1000) for _ in range(PROMPT)] for _ in range(rollouts // GROUP)]
    busy_before = httpx.get(f"{url}/busy").json()["seconds"]
    began = time.perf_counter()
    print(f"start: {memory():.0f} MB resident")
    print("step  sample s  update s  CPU s  CPU ms per rollout  resident MB  objects  threads")
    for step in range(1, steps + 1):
        cpu, start = time.process_time(), time.perf_counter()
        rows = engine.sample(
            contexts, [GROUP] * len(contexts), SamplingParams(max_tokens=RESPONSE), seed=step
        )
        sampled = time.perf_counter()
        weight = 1 / (RESPONSE * rollouts)
        data = [
            Datum(context, s.tokens, s.logprobs, [weight] * len(s.tokens), [1.0] * len(s.tokens))
            for context, row in zip(contexts, rows, strict=True)
            for s in row
        ]
        engine.update(data)
        del rows, data
        end, used = time.perf_counter(), time.process_time() - cpu
        print(
            f"{step:4}{sampled - start:10.1f}{end - sampled:10.1f}{used:7.1f}"
            f"{1000 * used / rollouts:20.2f}{memory():13.0f}{len(gc.get_objects()):9}"
            f"{threading.active_count():9}",
            flush=True,
        )
    wall = time.perf_counter() - began
    found = httpx.get(f"{url}/busy").json()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"server had work in {100 * (found['seconds'] - busy_before) / wall:.0f}% of {wall:.0f} s; at most "
        f"{found['most']} requests in flight; peak {peak:.0f} MB; {dict(engine.counts)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=10_000, help="per step")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds that a request takes")
    parser.add_argument("--slots", type=int, default=256, help="requests served side by side")
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument(
        "--kl", type=float, default=0.0, help="with it the base scores each rollout"
    )
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args()
    from fastslow import pocket

    if args.serve:
        asyncio.run(serve(args.serve, args.slots, args.wait, str(pocket.path())))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    passed = ["--serve", str(port), "--wait", str(args.wait), "--slots", str(args.slots)]
    server = subprocess.Popen([sys.executable, __file__, *passed])
    try:
        for _ in range(100):
            time.sleep(0.3)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        url = f"http://127.0.0.1:{port}"
        measure(url, args.steps, args.rollouts, args.in_flight, args.kl)
    finally:
        server.kill()


if __name__ == "__main__":
    main()
