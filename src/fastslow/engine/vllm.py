"""vLLM as the local engine's sampler: in this process, on the trainer's device.

vLLM holds a copy of the weights, which every update must reach. A copy that was not reached samples on
without a word, so the first samples after each sync are scored by the trainer too (`check_parity`).
"""

from __future__ import annotations

import math
import os
import random
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from fastslow.config import Config
from fastslow.engine.base import Sample, SamplingParams
from fastslow.engine.batching import Sequences
from fastslow.engine.loading import first_line
from fastslow.errors import ConfigError, ModelError

Score = Callable[[Sequences, float], list[list[float]]]  # the trainer's, at a temperature

# The mean |sampler - trainer| per token that is accepted. Measured on a CPU with the pocket model: rounding
# alone gives 1e-7 in FP32 and 1e-3 in BF16; one missed update 5e-5 at lr 1e-6 and 5e-3 at lr 1e-4. So FP32
# betrays a single missed update, BF16 only several.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
PROBES = 32  # samples that the trainer scores after a sync


def check_parity(
    samples: Sequence[Sample], trainer_logprobs: Sequence[Sequence[float]], tolerance: float
) -> None:
    """Raise ModelError where the sampler's log-probabilities are not those of the trainer's weights."""
    gaps = [
        abs(mine - theirs)
        for sample, row in zip(samples, trainer_logprobs, strict=True)
        for mine, theirs in zip(sample.logprobs, row, strict=True)
    ]
    if gaps and not fmean(gaps) <= tolerance:  # a NaN is a mismatch too
        raise ModelError(
            "sampling.backend = 'vllm': sampler and trainer disagree; their log-probabilities of "
            f"{len(gaps)} tokens differ by {fmean(gaps):.2g} on average and {max(gaps):.2g} at most, "
            f"accepted is {tolerance:g} on average. vLLM's weights are stale, or it computes this model "
            "otherwise; take sampling.backend: native"
        )


class VllmSampler:
    """`vllm.LLM` in this process, with the policy's weights handed over in memory.

    A process has room for one: what vLLM keeps beside the object is torn down with it. So a new sampler
    closes the one before it.
    """

    _living: weakref.ref[VllmSampler] | None = None

    def __init__(
        self, config: Config, source: str | Path, stops: list[int], context_length: int
    ) -> None:
        self.tolerance = TOLERANCE[config.model.dtype]
        self.verified = False  # whether the trainer has confirmed samples of these weights
        self.stops, self.context_length = stops, context_length
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "sampling.backend = 'vllm': samples for one process, not for several under torchrun; take "
                "sampling.backend: native, or start one process"
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
        set_threads, threads = torch.set_num_threads, torch.get_num_threads()
        try:
            self._llm: Any = vllm.LLM(
                model=str(source),
                dtype=config.model.dtype,
                hf_overrides=_as_trained(config, source),
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

    def sample_verified(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
        score: Score,
    ) -> list[list[Sample]]:
        """As the engine's `sample`; after a sync some of the samples must agree with the trainer's `score`.

        vLLM renormalises what top-p leaves and does not say by how much, so such samples get their
        log-probabilities from the trainer, and others are drawn for the check.
        """
        drawn = self.sample(contexts, counts, params, seed)
        pairs = _pairs(contexts, drawn)
        if pairs and not self.verified:
            probes = pairs[:: math.ceil(len(pairs) / PROBES)]
            if params.top_p < 1:
                asked = [context for context, _ in probes]
                whole = replace(params, top_p=1.0)
                probes = _pairs(asked, self.sample(asked, [1] * len(asked), whole, seed))
            again = score([(context, one.tokens) for context, one in probes], params.temperature)
            check_parity([one for _, one in probes], again, self.tolerance)
            self.verified = True
        if params.top_p < 1:
            rows = score([(context, one.tokens) for context, one in pairs], params.temperature)
            for (_, one), row in zip(pairs, rows, strict=True):
                one.logprobs = row
        return drawn

    def sample(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
    ) -> list[list[Sample]]:
        """As the engine's, but with top_p < 1 the log-probabilities are of the truncated distribution."""
        draws, rng = [], random.Random(seed)
        for place, (context, count) in enumerate(zip(contexts, counts, strict=True)):
            room = min(params.max_tokens, self.context_length - len(context))
            draws += [(place, room, rng.getrandbits(63)) for _ in range(count)]
        # Keys and values of former weights must not be met again; nor should what a call returns depend,
        # in its last bits, on the calls before it.
        if not self.llm.reset_prefix_cache():
            raise ModelError("sampling.backend = 'vllm': its prefix cache could not be cleared")
        outputs = self.llm.generate(
            [{"prompt_token_ids": contexts[place]} for place, _, _ in draws],
            [
                self.vllm.SamplingParams(
                    temperature=params.temperature,
                    top_p=params.top_p,
                    max_tokens=room,
                    seed=own,
                    logprobs=0,  # of the sampled token alone
                    stop_token_ids=self.stops,
                    ignore_eos=True,  # it is one of the stops, where it is to be one
                    detokenize=False,
                )
                for _, room, own in draws
            ],
            use_tqdm=False,
        )
        results: list[list[Sample]] = [[] for _ in contexts]
        for (place, _, _), output in zip(draws, outputs, strict=True):
            completion = output.outputs[0]
            tokens = list(completion.token_ids)
            logprobs = [
                table[token].logprob
                for token, table in zip(tokens, completion.logprobs, strict=True)
            ]
            if not all(map(math.isfinite, logprobs)):
                raise ModelError(
                    "sampling.backend = 'vllm': the policy's logits are not finite: training diverged; "
                    "lower slow.lr or slow.clip"
                )
            results[place].append(Sample(tokens, logprobs, tokens[-1] not in self.stops))
        return results

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
        """Take over the trainer's weights, which come under their Hugging Face names."""
        weights = ((name, tensor.detach()) for name, tensor in named_tensors)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        if self.on_cpu:
            self.llm.apply_model(_repack_head)
        self.verified = False

    def sleep(self) -> None:
        """Give the GPU's memory to the trainer; on a CPU vLLM cannot."""
        if self.sleeps:
            self.llm.sleep(level=1)

    def wake(self) -> None:
        """Take it back; new weights are to come next."""
        if self.sleeps:
            self.llm.wake_up()


def _pairs(
    contexts: Sequence[list[int]], drawn: Sequence[Sequence[Sample]]
) -> list[tuple[list[int], Sample]]:
    return [(context, one) for context, row in zip(contexts, drawn, strict=True) for one in row]


def _as_trained(config: Config, source: str | Path) -> dict[str, Any]:
    """What vLLM must be told to compute a model as Hugging Face and the trainer do."""
    overrides: dict[str, Any] = {}
    if config.slow.fp32_logits and config.model.dtype != "float32":
        overrides["head_dtype"] = "float32"
    model = AutoConfig.from_pretrained(source)
    if model.model_type == "qwen3" and model.attention_bias:
        from fastslow.engine.vllm_qwen3 import Qwen3WithOutputBias
        from vllm import ModelRegistry

        ModelRegistry.register_model(Qwen3WithOutputBias.__name__, Qwen3WithOutputBias)
        overrides["architectures"] = [Qwen3WithOutputBias.__name__]
    return overrides


def _repack_head(model: Any) -> None:
    """Let the output layer see its new weights.

    On a CPU, linear layers compute with a packed copy. A reload packs each layer that it has loaded, but
    an output layer that is tied to the embedding is not loaded by itself.
    """
    head = model.lm_head
    head.quant_method.process_weights_after_loading(head)
