"""The way to a Tinker server, and what it can do: asked when a run begins, not met at step 300."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from transformers import AutoConfig, GenerationConfig

from fastslow import pocket
from fastslow.config import Config, EngineConfig
from fastslow.engine.loading import first_line
from fastslow.engine.world import join
from fastslow.errors import ConfigError

ONCE = ("/forward_backward", "/optim_step")
WAITING = "/retrieve_future"  # answered when the work is done: to hear nothing for long is usual
IN_DOUBT = 424  # a status that no client library repeats a request for
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Line(httpx.AsyncBaseTransport):
    """The line to the server: it sends what changes the weights at most once, and knows when it is dead.

    The client repeats any request that failed on its way. An update that was taken although its answer
    was lost would then count twice: a server need not tell the two apart (SkyRL 0.3.0 does not). Here
    such a request fails for good, as "in doubt"; one that never left is still repeated.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self._silent_since: float | None = None

    def away(self) -> float:
        """For how many seconds the server could not be reached; 0 while it can be."""
        since = self._silent_since
        return 0.0 if since is None else time.monotonic() - since

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        once = request.url.path.endswith(ONCE)
        try:
            response = await self.inner.handle_async_request(request)
        except httpx.TransportError as error:
            waited = request.url.path.endswith(WAITING) and isinstance(error, httpx.ReadTimeout)
            if not waited:
                self._silent_since = self._silent_since or time.monotonic()
            if once and not isinstance(error, NEVER_SENT):
                return self._in_doubt(request, repr(error))
            raise
        self._silent_since = None
        if once and (response.status_code in (408, 409) or response.status_code >= 500):
            await response.aclose()
            return self._in_doubt(request, f"status {response.status_code}")
        return response

    def _in_doubt(self, request: httpx.Request, what: str) -> httpx.Response:
        return httpx.Response(
            IN_DOUBT, json={"detail": f"no answer to {request.url.path}: {what}"}, request=request
        )

    async def aclose(self) -> None:
        await self.inner.aclose()


@dataclass(frozen=True)
class Client:
    """The client library's parts that the engine uses, so that another may stand in for it."""

    service: Any  # a tinker.ServiceClient
    types: Any  # the module tinker.types
    transient: tuple[type[BaseException], ...]  # errors that a repetition may mend
    reference: Any = None  # a second ServiceClient, for the frozen base
    away: Callable[[], float] = lambda: 0.0  # seconds for which the server could not be reached


def connect(settings: EngineConfig) -> Client:
    """Open a session with the server, and with the one that has the base where there are two."""
    try:
        tinker = importlib.import_module("tinker")
    except ImportError:
        raise ConfigError(
            "engine.kind = 'tinker' needs the client library; install it with "
            "pip install -c constraints-tinker.txt 'fastslow[tinker]'"
        ) from None
    transient = (
        tinker.APIConnectionError,
        tinker.InternalServerError,
        tinker.RateLimitError,
        TimeoutError,
        httpx.TransportError,
    )
    key = _api_key(settings)
    service, line = _open(tinker, settings.base_url, key, "engine.base_url")
    reference = None
    if settings.reference_url is not None:
        reference, _ = _open(tinker, settings.reference_url, key, "engine.reference_url")
    return Client(service, tinker.types, transient, reference, line.away)


def _api_key(settings: EngineConfig) -> str:
    key = os.environ.get(settings.api_key_env)
    if key:
        return key
    if settings.base_url.startswith("https://"):
        raise ConfigError(
            f"engine.api_key_env = {settings.api_key_env!r}: that environment variable is not set; put the "
            f"key for {settings.base_url} into it"
        )
    return "tml-none"  # one's own server asks for none, the client library insists on its form


def _open(tinker: Any, url: str, key: str, name: str) -> tuple[Any, Line]:
    try:  # the client library would try for five minutes without a word
        httpx.get(f"{url.rstrip('/')}/api/v1/healthz", timeout=20).raise_for_status()
    except httpx.HTTPError as error:
        raise ConfigError(
            f"{name} = {url!r}: no Tinker server answers there ({first_line(error)}); start it, or "
            "correct the address"
        ) from None
    # The client's own limits: 1,000 connections, 60 seconds to answer a call (not: to compute).
    line = Line(httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=1000)))
    client = httpx.AsyncClient(transport=line, timeout=60.0, follow_redirects=True)
    try:
        return tinker.ServiceClient(base_url=url, api_key=key, http_client=client), line
    except tinker.TinkerError as error:
        raise ConfigError(f"{name} = {url!r}: the server refuses ({first_line(error)})") from None


def model_name(settings: EngineConfig) -> str:
    """The model as the server calls it."""
    return str(pocket.path()) if settings.model == "pocket" else settings.model


def check_model(client: Client, settings: EngineConfig) -> int | None:
    """That the server has the model; returns how long a context it takes, where it says so."""
    supported = client.service.get_server_capabilities().supported_models
    wanted = model_name(settings)
    for model in supported:
        if model.model_name == wanted:
            return model.max_context_length
    if not supported:
        return None
    names = ", ".join(repr(model.model_name) for model in supported)
    raise ConfigError(
        f"engine.model = {wanted!r}: {settings.base_url} serves {names}; take one of these, with "
        "engine.tokenizer for a tokenizer that has another name here"
    )


def check_settings(config: Config) -> None:
    """What no Tinker server can do."""
    if config.sampling.temperature != 1:
        raise ConfigError(
            f"sampling.temperature = {config.sampling.temperature}: a Tinker server learns and scores at "
            "temperature 1; set it to 1, or use engine.kind: local"
        )
    if config.model.lora is not None:
        raise ConfigError(
            "model.lora: a Tinker server's adapters are asked for by engine.lora_rank; "
            "leave model.lora out"
        )
    if config.sampling.backend != "native":
        raise ConfigError(
            f"sampling.backend = {config.sampling.backend!r}: a Tinker server samples by its own; "
            "leave it out"
        )
    if join().size > 1:
        raise ConfigError(
            "engine.kind = 'tinker': the server shares the work among its devices; start one process, "
            "without torchrun"
        )
    if config.loop.reset_optimizer:
        raise ConfigError(
            "loop.reset_optimizer = True: a Tinker server keeps its optimizer; leave it false, or begin "
            "a new run where the task switches"
        )


def end_tokens(source: str) -> Any:
    try:
        return GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:  # a tokenizer without a model beside it
        return None


def context_of(source: str) -> int:
    try:
        return AutoConfig.from_pretrained(source).get_text_config().max_position_embeddings
    except (OSError, ValueError, AttributeError):
        raise ConfigError(
            f"engine.context_length: neither the server nor {source!r} tells how long a context the model "
            "takes; set it, in tokens"
        ) from None
