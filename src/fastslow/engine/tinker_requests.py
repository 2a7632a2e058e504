"""Many requests at once to a server that may be slow, late, or away for a while."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from heapq import heappop, heappush
from itertools import islice
from typing import Any, NamedTuple, cast

from fastslow.engine.loading import first_line
from fastslow.errors import RunError

Send = Callable[[], Any]  # makes one request; returns a future, or what has one (`.future()`)

LONGEST_PAUSE = 30.0  # seconds
CHECK = 2.0  # seconds between looks at the line, while nothing is answered


class Requests:
    """Keeps at most `limit` requests in flight and sends again what failed in passing or came late.

    A request is late after `deadline` seconds: it is given up and its slot sent again. One that fails
    `attempts` times ends the stage with RunError, as does at once an error that no repetition mends.
    What may not run twice is sent with `attempts=1`. `away` tells for how many seconds the server could
    not be reached at all: after `patience` the stage ends too. `counts` tells how many requests were
    sent, answered, sent again after a failure (`failed`) or for being late (`late`).
    """

    def __init__(
        self,
        limit: int,
        deadline: float,
        attempts: int,
        transient: tuple[type[BaseException], ...],
        pause: float = 1.0,
        away: Callable[[], float] = lambda: 0.0,
        patience: float = 180.0,
    ) -> None:
        self.limit, self.deadline, self.attempts = limit, deadline, attempts
        self.transient, self.pause = transient, pause
        self.away, self.patience = away, patience
        self.counts: Counter[str] = Counter()

    def one(self, send: Send, what: str, attempts: int | None = None) -> Any:
        """The answer to one request."""
        return self.all([send], what, attempts)[0]

    def all(self, sends: Sequence[Send], what: str, attempts: int | None = None) -> list[Any]:
        """The answers, in order."""
        stage = _Stage(self, sends, what, attempts or self.attempts)
        try:
            return stage.run()
        finally:  # an error or a key pressed: nothing of this stage shall go on
            for flight in stage.flying.values():
                flight.give_up()


class _Flight(NamedTuple):
    """A request on its way."""

    handle: Any
    future: Future
    deadline: float

    def give_up(self) -> None:
        # Training requests are left to end by themselves: the client sends them in turn, and one that is
        # cancelled before its turn would hold up all that follow (tinker 0.23). They are no plain futures.
        if isinstance(self.handle, Future):
            self.handle.cancel()


class _Stage:
    """The requests of one call to `Requests.all`."""

    def __init__(self, requests: Requests, sends: Sequence[Send], what: str, attempts: int) -> None:
        self.requests, self.sends, self.what, self.attempts = requests, sends, what, attempts
        self.answers: list[Any] = [None] * len(sends)
        self.tries = [0] * len(sends)
        self.waiting = deque(range(len(sends)))
        self.later: list[tuple[float, int]] = []  # when to send again, earliest first
        self.flying: dict[int, _Flight] = {}  # by time sent, so by deadline
        self.done: queue.SimpleQueue[tuple[int, Future]] = queue.SimpleQueue()

    def run(self) -> list[Any]:
        left = len(self.sends)
        while left:
            now = time.monotonic()
            while self.later and self.later[0][0] <= now:
                self.waiting.appendleft(heappop(self.later)[1])
            while self.waiting and len(self.flying) < self.requests.limit:
                self._send(self.waiting.popleft())
            try:
                slot, future = self.done.get(timeout=self._patience())
            except queue.Empty:
                self._give_up_late_ones()
                self._check_the_line()
                continue
            flight = self.flying.get(slot)
            if flight is None or flight.future is not future:
                continue  # answered after it was given up; its slot has been sent again
            del self.flying[slot]
            error = cast(Exception | None, future.exception())
            if error is None:
                self.answers[slot] = future.result()
                self.requests.counts["answered"] += 1
                left -= 1
            else:
                self._failed(slot, error)
        return self.answers

    def _send(self, slot: int) -> None:
        self.tries[slot] += 1
        self.requests.counts["sent"] += 1
        handle = self.sends[slot]()
        future: Future = handle if isinstance(handle, Future) else handle.future()
        self.flying[slot] = _Flight(handle, future, time.monotonic() + self.requests.deadline)
        future.add_done_callback(lambda future: self.done.put((slot, future)))

    def _patience(self) -> float:
        """Seconds until a request is late, one is due to be sent again, or the line is to be checked."""
        times = [when for when, _ in self.later[:1]]
        times += [flight.deadline for flight in islice(self.flying.values(), 1)]
        return min(max(0.0, min(times) - time.monotonic()), CHECK)

    def _check_the_line(self) -> None:
        away = self.requests.away()
        if away > self.requests.patience:
            raise RunError(
                f"the Tinker server could not be reached for {away:.0f} s ({self.what}); once it can be, "
                "continue with 'fastslow resume'"
            )

    def _give_up_late_ones(self) -> None:
        now = time.monotonic()
        for slot, flight in list(self.flying.items()):
            if flight.deadline > now:
                break
            if flight.future.done():
                continue  # answered just now: it is in the queue
            del self.flying[slot]
            flight.give_up()
            self.requests.counts["late"] += 1
            late = TimeoutError(f"no answer within engine.deadline = {self.requests.deadline:g} s")
            self._again(slot, late, 0.0)

    def _failed(self, slot: int, error: Exception) -> None:
        if not isinstance(error, self.requests.transient):
            raise error
        self.requests.counts["failed"] += 1
        self._again(
            slot, error, min(self.requests.pause * 2 ** (self.tries[slot] - 1), LONGEST_PAUSE)
        )

    def _again(self, slot: int, error: Exception, pause: float) -> None:
        if self.tries[slot] >= self.attempts:
            raise RunError(
                f"the Tinker server did not answer ({self.what}: {self.tries[slot]} attempts, the last: "
                f"{type(error).__name__}: {first_line(error)}); once it does, continue with "
                "'fastslow resume'"
            )
        heappush(self.later, (time.monotonic() + pause, slot))


def in_background(function: Callable[[], Any]) -> Future:
    """A blocking call as a future; its thread keeps nobody from leaving."""
    future: Future = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # the one who waits decides
            if not future.cancelled():
                future.set_exception(error)

    def guarded() -> None:
        if future.set_running_or_notify_cancel():
            work()

    threading.Thread(target=guarded, daemon=True).start()
    return future
