"""vLLM as the local engine's sampler: a server that the user started, here or on another machine.

It is started by the line that `command` makes (vLLM 0.32 or later; an error prints it):

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --dtype D --max-model-len N --logprobs-mode processed_logprobs

Dev mode opens the calls that change weights to whoever reaches the port. On a CPU add --enforce-eager
--no-enable-chunked-prefill --worker-extension-cls fastslow.engine.vllm_plugin.TakesWeights. fastslow
need not be installed beside the server but for that extension and for Qwen3 with `attention_bias`; nor
vLLM beside the trainer.

Weights go by way of the disk: each sync writes them all to the run's folder, which both must see under
one path, lets the server read them and deletes them. That is one write and one read of the whole model
for each update, LoRA's adapters merged in. vLLM's transfer of tensors between GPUs would save that
where both share an interconnect, but needs vLLM beside the trainer.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import as_completed
from contextlib import closing
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastslow.config import Config
from fastslow.engine.base import SamplingParams
from fastslow.engine.checked import CheckedSampler, Drawn, Request
from fastslow.engine.loading import first_line
from fastslow.engine.tinker_requests import in_background
from fastslow.engine.vllm_plugin import EXTENSION, overrides
from fastslow.engine.world import join
from fastslow.errors import ConfigError, ModelError, RunError

CONNECT, PATIENCE = 20.0, 3600.0  # seconds; to be let in, and for long responses in long queues
FILE = 2**31  # bytes of weights in one file
LEAST = -9999.0  # what the API says for minus infinity


def command(config: Config, source: str | Path, context_length: int) -> str:
    """The line that starts a server as `VllmServer` needs it."""
    line = ["vllm", "serve", str(source), "--dtype", config.model.dtype]
    line += ["--max-model-len", str(context_length), "--logprobs-mode", "processed_logprobs"]
    changed = overrides(config, source)
    if changed:
        line += ["--hf-overrides", json.dumps(changed)]
    url = urlsplit(config.sampling.url or "")
    line += ["--host", str(url.hostname), "--port", str(url.port or 80)]
    return f"VLLM_SERVER_DEV_MODE=1 {shlex.join(line)}"


class VllmServer(CheckedSampler):
    """A client of `vllm serve`. Under torchrun the first process speaks for all."""

    def __init__(
        self, config: Config, source: str | Path, stops: list[int], context_length: int
    ) -> None:
        super().__init__(config, stops, context_length)
        self.url = urlsplit((config.sampling.url or "").rstrip("/"))
        self.name = f"sampling.url = {config.sampling.url!r}"
        self.connections = config.engine.rows
        self.folder = config.run_dir.resolve() / "weights-for-vllm"
        self.version = ""  # of the weights that the server should have
        self.calls = 0
        self.world = join()
        self.reload, length = self.world.decided(self._find_out)(config, source)
        self.context_length = min(context_length, length)

    def _find_out(self, config: Config, source: str | Path) -> tuple[str, int]:
        """That the server can do what is needed; how it reloads weights, and its context's length."""
        start = f"start it with: {command(config, source, self.context_length)}"
        try:
            status, answer = self._ask("GET", "/server_info?config_format=json")
        except (OSError, HTTPException) as error:
            raise ConfigError(
                f"{self.name}: no server answers there ({first_line(error)}); {start}"
            ) from None
        try:
            found = json.loads(answer)["vllm_config"]
            model, workers = found["model_config"], found["parallel_config"]
            extension, device = workers["worker_extension_cls"], found["device_config"]["device"]
            names = {model["model"], model["served_model_name"]}
            mode, dtype = model["logprobs_mode"], str(model["dtype"]).removeprefix("torch.")
            length = int(model["max_model_len"])
        except (ValueError, LookupError, TypeError):
            raise ConfigError(
                f"{self.name}: answers status {status} to /server_info, and not as a vLLM "
                f"server with VLLM_SERVER_DEV_MODE=1 does; {start}"
            ) from None
        if str(source) not in names:
            raise ConfigError(
                f"{self.name}: serves {model['model']!r}, not {str(source)!r}; {start} (a place of another "
                "name may follow 'serve', with the name as --served-model-name)"
            )
        if mode != "processed_logprobs" or dtype != config.model.dtype:
            raise ConfigError(
                f"{self.name}: runs with --logprobs-mode {mode} and --dtype {dtype}; {start}"
            )
        if device == "cpu" and extension != EXTENSION:
            raise ConfigError(
                f"{self.name}: a server on a CPU takes new weights only with --worker-extension-cls "
                f"{EXTENSION}; start it with that too"
            )
        return ("take_weights" if extension == EXTENSION else "reload_weights"), length

    # -- sampling -------------------------------------------------------------------------------

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Drawn]:
        return self.world.decided(self._draw)(requests, params)

    def _draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Drawn]:
        """Each thread has a connection; no more than `engine.rows` responses are under way."""
        self.calls += 1
        waiting = deque(enumerate(self._body(request, params) for request in requests))
        drawn: list[Any] = [None] * len(requests)

        def work() -> None:
            with closing(self._connection()) as line:
                while waiting:
                    try:
                        place, body = waiting.popleft()
                    except IndexError:  # another thread took the last
                        return
                    drawn[place] = self._read(self._call("POST", "/v1/completions", body, line))

        try:
            workers = [in_background(work) for _ in requests[: self.connections]]
            for worker in as_completed(workers):
                worker.result()
        finally:  # an error or a key pressed: nothing more is sent
            waiting.clear()
        held = self._call("GET", "/weight_info").get("weight_version")
        if held != self.version:
            raise ModelError(
                f"{self.name}: the server no longer has this run's weights: it was started anew, or "
                "another run uses it. Let it serve this run alone, then continue with 'fastslow resume'"
            )
        return drawn

    def _body(self, request: Request, params: SamplingParams) -> dict[str, Any]:
        return {
            "prompt": request.context,
            "max_tokens": request.room,
            "seed": request.seed,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": 0,  # nor what else the model's files ask for
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": self.stops,
            "ignore_eos": True,  # it is one of the stops, where it is to be one
            "logprobs": 0,  # of the sampled token alone
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # Cached keys and values are for this call alone: those of former weights must not be met
            # again, nor should what a call returns depend, in its last bits, on the calls before it.
            "cache_salt": f"{self.version}-{self.calls}",
        }

    def _read(self, answer: Any) -> Drawn:
        try:
            (choice,) = answer["choices"]
            tokens = [int(token) for token in choice["token_ids"]]
            values = [float(value) for value in choice["logprobs"]["token_logprobs"]]
            reason = choice["finish_reason"]
        except (LookupError, TypeError, ValueError):
            raise ModelError(
                f"{self.name}: answers without the sampled tokens or their log-probabilities; it takes "
                "vLLM 0.32 or later"
            ) from None
        if reason not in ("stop", "length") or not tokens or len(tokens) != len(values):
            raise ModelError(
                f"{self.name}: broke off a response after {len(tokens)} tokens ({reason!r}); continue with "
                "'fastslow resume'"
            )
        return tokens, [value if value > LEAST else -math.inf for value in values]

    # -- weights --------------------------------------------------------------------------------

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.world.decided(self._sync)(named_tensors)
        self.verified = False

    def _sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        self.version = uuid4().hex
        place = (
            self.folder / self.version
        )  # a new name: network file systems may remember the old files
        try:
            self._clean()
            place.mkdir(parents=True)
            for number, part in enumerate(_parts(named_tensors)):
                save_file(part, place / f"{number:05}.safetensors")
            wanted = {"method": self.reload, "kwargs": {"weights_path": str(place)}}
            self._call("POST", "/collective_rpc", wanted)
            self._call("POST", "/update_weight_version", {"new_version": self.version})
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"{place}: weights for vLLM cannot be written ({first_line(error)})"
            ) from None
        finally:
            self._clean()

    def _clean(self) -> None:
        """Nothing is left of this sync, nor of one that was killed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def wake(self) -> None:
        """Nothing."""

    # -- the line -------------------------------------------------------------------------------

    def _connection(self) -> HTTPConnection:
        kind = HTTPSConnection if self.url.scheme == "https" else HTTPConnection
        return kind(str(self.url.hostname), self.url.port, timeout=CONNECT)

    def _ask(
        self, method: str, path: str, body: Any = None, line: HTTPConnection | None = None
    ) -> tuple[int, str]:
        """Status and text of an answer."""
        if line is None:
            with closing(self._connection()) as line:
                return self._ask(method, path, body, line)
        if not line.sock:
            line.connect()
            line.sock.settimeout(PATIENCE)
        content = {"Content-Type": "application/json"}
        line.request(method, self.url.path + path, json.dumps(body), content)
        answer = line.getresponse()
        return answer.status, answer.read().decode(errors="replace")

    def _call(
        self, method: str, path: str, body: Any = None, line: HTTPConnection | None = None
    ) -> dict[str, Any]:
        try:
            status, text = self._ask(method, path, body, line)
        except (OSError, HTTPException) as error:
            raise ModelError(
                f"{self.name}: the server does not answer any more ({first_line(error)}); start it anew, "
                "then continue with 'fastslow resume'"
            ) from None
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if status != 200 or not isinstance(found, dict):
            said = found.get("error", found) if isinstance(found, dict) else text
            said = said.get("message", said) if isinstance(said, dict) else said
            raise ModelError(
                f"{self.name}: the server answers {path} with status {status} "
                f"({' '.join(str(said).split())[:300]})"
            )
        return found


def _parts(named_tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The weights on the CPU, as many at a time as one file holds."""
    part: dict[str, Tensor] = {}
    for name, tensor in named_tensors:
        part[name] = tensor.detach().cpu().contiguous()
        if sum(held.nbytes for held in part.values()) >= FILE:
            yield part
            part = {}
    if part:
        yield part
