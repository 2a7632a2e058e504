"""vLLM as the local engine's sampler: in this process, on the trainer's device.

vLLM holds a copy of the weights, which are handed over in memory after every update (`checked`).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastslow.config import Config
from fastslow.engine.base import SamplingParams
from fastslow.engine.checked import CheckedSampler, Drawn, Request
from fastslow.engine.loading import first_line
from fastslow.engine.vllm_plugin import overrides, register, repack_head
from fastslow.errors import ConfigError, ModelError


class VllmSampler(CheckedSampler):
    """`vllm.LLM` in this process, with the policy's weights handed over in memory.

    A process has room for one: what vLLM keeps beside the object is torn down with it. So a new sampler
    closes the one before it.
    """

    _living: weakref.ref[VllmSampler] | None = None

    def __init__(
        self, config: Config, source: str | Path, stops: list[int], context_length: int
    ) -> None:
        super().__init__(config, stops, context_length)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "sampling.backend = 'vllm': samples for one process, not for several under torchrun; take "
                "sampling.backend: native or a server (sampling.url), or start one process"
            )
        # Only an engine in this process can be given tensors. vLLM reads these when it is imported.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        try:
            from vllm.platforms import current_platform

            import vllm
        except ImportError as error:
            raise ConfigError(
                f"sampling.backend = 'vllm': vLLM cannot be imported ({first_line(error)}); install "
                "'fastslow[vllm]', or take sampling.backend: native"
            ) from None
        before = None if VllmSampler._living is None else VllmSampler._living()
        if before is not None:
            before.close()
        self.vllm: Any = vllm
        self.on_cpu = current_platform.is_cpu()
        self.sleeps = current_platform.is_sleep_mode_available()
        register()
        set_threads, threads = torch.set_num_threads, torch.get_num_threads()
        try:
            self._llm: Any = vllm.LLM(
                model=str(source),
                dtype=config.model.dtype,
                hf_overrides=overrides(config, source),
                max_model_len=context_length,
                max_num_seqs=config.engine.rows,
                gpu_memory_utilization=config.sampling.memory,
                enable_sleep_mode=self.sleeps,
                enable_prefix_caching=True,
                logprobs_mode="processed_logprobs",  # after temperature
                generation_config="vllm",  # no top-k or the like from the model's files
                use_tqdm_on_load=False,
                seed=0,  # never drawn from: each request brings its own
                **(self._on_a_cpu(config.sampling.memory) if self.on_cpu else {}),
            )
        except Exception as error:  # whatever it says of a model, a driver or memory
            raise ModelError(
                f"sampling.backend = 'vllm': vLLM {vllm.__version__} does not start on {str(source)!r} "
                f"with sampling.memory = {config.sampling.memory} ({first_line(error)})"
            ) from error
        finally:  # vLLM lowers the number for this whole process, or takes the function away
            torch.set_num_threads = set_threads
            set_threads(threads)
        # Not when its last part happens to be collected: it might take the next one's parts along.
        self._shut_down = weakref.finalize(self, self._llm.llm_engine.engine_core.shutdown)
        VllmSampler._living = weakref.ref(self)

    @property
    def llm(self) -> Any:
        if self._llm is None:
            raise ModelError(
                "sampling.backend = 'vllm': this engine's vLLM was closed when another engine of this "
                "process started its own; use one engine at a time"
            )
        return self._llm

    def close(self) -> None:
        """Give back all memory; this sampler draws no more."""
        self._llm = None
        self._shut_down()

    def draw(self, requests: Sequence[Request], params: SamplingParams) -> list[Drawn]:
        # Keys and values of former weights must not be met again; nor should what a call returns depend,
        # in its last bits, on the calls before it.
        if not self.llm.reset_prefix_cache():
            raise ModelError("sampling.backend = 'vllm': its prefix cache could not be cleared")
        outputs = self.llm.generate(
            [{"prompt_token_ids": request.context} for request in requests],
            [
                self.vllm.SamplingParams(
                    temperature=params.temperature,
                    top_p=params.top_p,
                    max_tokens=request.room,
                    seed=request.seed,
                    logprobs=0,  # of the sampled token alone
                    stop_token_ids=self.stops,
                    ignore_eos=True,  # it is one of the stops, where it is to be one
                    detokenize=False,
                )
                for request in requests
            ],
            use_tqdm=False,
        )
        drawn = []
        for output in outputs:
            completion = output.outputs[0]
            tokens = list(completion.token_ids)
            tables = zip(tokens, completion.logprobs, strict=True)
            drawn.append((tokens, [table[token].logprob for token, table in tables]))
        return drawn

    def _on_a_cpu(self, share: float) -> dict[str, Any]:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {
            # What it would find free counts all that this process holds already.
            "kv_cache_memory_bytes": int(share * memory),
            "enforce_eager": True,  # compiling takes longer to start and was no faster
            "block_size": 32,  # prefixes are shared by whole blocks, of 128 tokens otherwise
            # A prefill in parts rewinds the request's generator, which PyTorch's for CPUs cannot do.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(8192, self.context_length),
        }

    def sync(self, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
        weights = ((name, tensor.detach()) for name, tensor in named_tensors)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self.on_cpu:
            self.llm.apply_model(repack_head)
        self.verified = False

    def sleep(self) -> None:
        """Give the GPU's memory to the trainer; on a CPU vLLM cannot."""
        if self.sleeps:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        """Take it back; new weights are to come next."""
        if self.sleeps:
            self.llm.wake_up()
