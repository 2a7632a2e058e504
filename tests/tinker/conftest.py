"""A real SkyRL server on the loopback, for tests run by `make test-tinker` and skipped elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

RANK = 8


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "tinker: needs SkyRL's server; run by make test-tinker")


class SkyRL:
    """The server's processes; `kill` and `start` again keep its database and checkpoints."""

    def __init__(self, model: Path, state: Path) -> None:
        self.model, self.state = model, state
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.state.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).with_name("server.py")
        place = ["--base-model", str(self.model), "--state", str(self.state)]
        size = ["--port", str(self.port), "--rank", str(RANK)]
        with (self.state / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *place, *size],
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that its engine can be killed with it
            )
        for _ in range(3000):
            if self.process.poll() is not None:
                break
            try:
                httpx.get(f"{self.url}/api/v1/healthz").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.2)
        raise AssertionError((self.state / "log").read_text()[-3000:])

    def kill(self) -> None:
        """As a machine that loses power: server and engine at once, no farewell."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def skyrl(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SkyRL]:
    pytest.importorskip("skyrl")
    server = SkyRL(tiny, tmp_path_factory.mktemp("skyrl"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def alive(skyrl: SkyRL) -> None:
    """The server, started again where the test before killed it."""
    if skyrl.process is None:
        skyrl.start()
