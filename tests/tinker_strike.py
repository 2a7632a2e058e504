"""A run struck at an exact request: its server or its client dies there, and the answer is lost.

python -P tests/tinker_strike.py CONFIG.yaml POINT    # train; this process kills itself at the point
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

import httpx

import fastslow


class Point(NamedTuple):
    """The `nth` request to `call` after `updates` optimizer steps were sent: taken, and not answered."""

    call: str
    updates: int
    nth: int


# Of a run with a checkpoint after every second update.
POINTS = {
    "the fast phase": Point("/asample", 2, 5),
    "a step's sampling": Point("/asample", 3, 2),
    "gradients without a step": Point("/forward_backward", 3, 1),
    "an update applied": Point("/retrieve_future", 4, 1),  # answered once it has been
}


def strike(point: Point, blow: Callable[[], None]) -> type[httpx.AsyncHTTPTransport]:
    """A transport to put in the place of httpx's: it strikes `blow` at the point, once."""
    updates = nth = 0

    class Struck(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            nonlocal updates, nth
            path = request.url.path
            response = await super().handle_async_request(request)
            if path.endswith("/optim_step"):  # the engine tries the server out at a rate of 0
                updates += json.loads(request.content)["adam_params"]["learning_rate"] > 0
            elif path.endswith(point.call) and updates == point.updates:
                nth += 1
                if nth == point.nth:
                    blow()
                    raise httpx.ReadError("the answer was lost", request=request)
            return response

    return Struck


def main() -> None:
    config, name = sys.argv[1:]
    httpx.AsyncHTTPTransport = strike(  # type: ignore[misc]
        POINTS[name], lambda: os.kill(os.getpid(), signal.SIGKILL)
    )
    fastslow.train(config)


if __name__ == "__main__":
    main()
