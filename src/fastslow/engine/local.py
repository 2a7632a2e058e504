"""The local engine: one policy in this process, PyTorch and transformers, on a CPU or one GPU.

Sampling and training run the same modules in one dtype, and both prefill a shared context once and
continue it by its key-value cache; in training the gradient flows through that cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from numpy.random import Generator, Philox
from safetensors import SafetensorError
from torch import Tensor

from fastslow import pocket
from fastslow.config import Config
from fastslow.engine.base import Datum, Sample, SamplingParams, UpdateResult, Which
from fastslow.engine.batching import Packed, Sequences, pack, side_by_side, stage_contexts
from fastslow.engine.cache import sampling_cache
from fastslow.engine.checked import CheckedSampler
from fastslow.engine.forward import Halves, draw, extend, prefill, score
from fastslow.engine.layout import find_layout, take_apart
from fastslow.engine.loading import (
    add_adapters,
    checkpoint_activations,
    context_length,
    find_device,
    first_line,
    load_model,
    load_tokenizer,
    load_weights,
    switch_checkpoints,
    whole_weights,
)
from fastslow.engine.memory import keep_freed_memory
from fastslow.engine.optimizer import Optimizer
from fastslow.engine.sharding import Shards
from fastslow.engine.text import ChatText, stop_tokens, thinking_limit
from fastslow.engine.vllm import VllmSampler
from fastslow.engine.vllm_server import VllmServer
from fastslow.engine.world import join
from fastslow.errors import ConfigError, ModelError, RunError
from fastslow.slow import loss as losses


class LocalEngine:
    """Holds theta in this process. See `fastslow.engine.base.Engine` for the protocol."""

    def __init__(self, config: Config) -> None:
        self.slow, self.settings = config.slow, config.engine
        self.world = join()
        self.temperature = config.sampling.temperature
        self.device = find_device(config.model.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model_config = config.model
        self.source = _place(config.model.name)
        self.base_source = _place(config.model.base or config.model.name)
        self.tokenizer = load_tokenizer(self.source)
        self.policy = self._load(self.source)
        if config.model.lora is not None:
            with torch.random.fork_rng():
                torch.manual_seed(config.run.seed)
                self.policy = add_adapters(self.policy, self.source, config.model.lora)
        if config.model.gradient_checkpointing:
            checkpoint_activations(self.policy)
        whole = self.policy if config.model.lora is None else self.policy.get_base_model()
        halves = take_apart(whole, self.source, config.model.compile)
        self._halves: dict[Which, Halves] = {"policy": halves}
        self.layout = find_layout(halves, whole, self.source)
        self._base: Any = None
        self.version = 0
        self.context_length = context_length(self.policy.config, self.tokenizer)
        self.pad = self.tokenizer.pad_token_id
        if self.pad is None:
            self.pad = self.tokenizer.eos_token_id
        self.stops = stop_tokens(
            self.tokenizer, self.policy.generation_config.eos_token_id, config.sampling.stop
        )
        name = f"model.name = {str(self.source)!r}"
        self.text = ChatText(self.tokenizer, self.stops, name, config.model.thinking)
        self.thinking = thinking_limit(self.tokenizer, config.sampling)
        self._shards: Shards | None = None  # None: each process has all of the optimizer
        weights = list(self.policy.parameters())
        if config.model.shard and self.world.size > 1:
            self._shards = Shards(self.policy, self.world)
            weights = self._shards.parameters
        learned = [weight for weight in weights if weight.requires_grad]
        self._optimizer = Optimizer(learned, config.slow, self.world)
        self.sampler: CheckedSampler | None = None  # None: the policy samples by itself
        if config.sampling.backend == "vllm":
            kind = VllmServer if config.sampling.url else VllmSampler
            self.sampler = kind(config, self.source, self.stops, self.context_length)
            if config.sampling.url:  # it may have been trained before
                self._sync()

    def _load(self, source: str | Path) -> Any:
        return load_model(source, self.model_config, self.device, self.slow.fp32_logits)

    @contextmanager
    def _model(self, which: Which) -> Iterator[Halves]:
        """The policy, or the frozen reference: the weights the run began with, or `model.base`.

        With LoRA these are the policy's without its adapters, else a second copy, loaded when asked for.
        """
        if which == "policy":
            yield self._halves["policy"]
        elif self.model_config.lora is not None and self.base_source == self.source:
            with self.policy.disable_adapter():
                yield self._halves["policy"]
        else:
            if self._base is None:
                self._base = self._load(self.base_source).requires_grad_(False)
                halves = take_apart(self._base, self.base_source)
                if find_layout(halves, self._base, self.base_source) != self.layout:
                    raise ConfigError(
                        f"model.base = {str(self.base_source)!r}: its layers are not of the kinds that "
                        f"{str(self.source)!r} has; take a base of the same family"
                    )
                self._halves["base"] = halves
            yield self._halves["base"]

    # -- text ---------------------------------------------------------------------------------

    def render(self, system: str, user: str) -> list[int]:
        return self.text.render(system, user)

    def render_reply(self, text: str) -> list[int]:
        return self.text.render_reply(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self.text.decode(tokens)

    # -- sampling -----------------------------------------------------------------------------

    @torch.inference_mode()
    def sample(
        self,
        contexts: Sequence[list[int]],
        counts: Sequence[int],
        params: SamplingParams,
        seed: int,
        which: Which = "policy",
    ) -> list[list[Sample]]:
        if self.sampler is not None and which == "policy":
            self._check_length(max(map(len, contexts), default=0))
            return self.sampler.sample_verified(
                contexts, counts, params, seed, lambda rows, heat: self.logprobs(rows, which, heat)
            )
        results: list[list[Sample]] = [[] for _ in contexts]
        padded = self.layout.padded
        order = sorted(
            (c for c in range(len(contexts)) if counts[c]),
            key=lambda c: (0 if padded else len(contexts[c]), contexts[c]),
        )
        order = self.world.share(order, [counts[c] for c in order])
        firsts = list(itertools.accumulate(counts, initial=0))
        for chunk in side_by_side(contexts, counts, order, self.settings.rows, padded):
            self._check_length(max(len(contexts[c]) for c in chunk))
            parents = [i for i, c in enumerate(chunk) for _ in range(counts[c])]
            numbers = [firsts[c] + i for c in chunk for i in range(counts[c])]
            luck_RT = _luck(seed, numbers, params.max_tokens).to(self.device)
            with self._model(which) as model:
                samples = self._generate(
                    model, [contexts[c] for c in chunk], parents, params, luck_RT
                )
            for parent, sample in zip(parents, samples, strict=True):
                results[chunk[parent]].append(sample)
        parts = self.world.gather(results)
        return [list(itertools.chain(*rows)) for rows in zip(*parts, strict=True)]

    def _check_length(self, length: int) -> None:
        if length >= self.context_length:
            raise ConfigError(
                f"a prompt of {length} tokens leaves no room in the model's context of "
                f"{self.context_length}; shorten the task's problems or lower fast.max_chars"
            )

    def _generate(
        self,
        model: Halves,
        contexts: list[list[int]],
        parents: list[int],
        params: SamplingParams,
        luck_RT: Tensor,
    ) -> list[Sample]:
        """Prefill each context once, then decode all rows in step, dropping rows that have ended."""
        cache = sampling_cache(model.config)
        stages = stage_contexts(contexts, self.pad, self.device, self.layout.stems)
        last_CD, mask_CX = prefill(model, stages, cache)
        logits_CV = model.head(last_CD)
        parent_R = torch.tensor(parents, device=self.device)
        cache.batch_select_indices(parent_R)
        mask_RS = mask_CX[parent_R]
        place_R = mask_RS.sum(-1)
        logits_RV = logits_CV[parent_R]
        if not bool(logits_CV.isfinite().all()):
            raise ModelError(
                f"the policy's logits are not finite after {self.version} updates: training diverged; "
                "lower slow.lr or slow.clip"
            )
        steps = min(params.max_tokens, self.context_length - max(map(len, contexts)))
        stops = torch.tensor(self.stops, device=self.device)
        rows = len(parents)
        live_R = torch.arange(rows, device=self.device)  # rows still written, by their index
        going_R = torch.ones(rows, dtype=torch.bool, device=self.device)  # of these
        tokens_RT = torch.full((rows, steps), self.pad, device=self.device)
        logprobs_RT = torch.zeros((rows, steps), device=self.device)
        for t in range(steps):
            token_R, logprob_R = draw(logits_RV, params, luck_RT[live_R, t])
            tokens_RT[live_R, t], logprobs_RT[live_R, t] = token_R, logprob_R
            going_R = going_R & ~torch.isin(token_R, stops)
            going = int(going_R.sum())
            if going == 0 or t + 1 == steps:
                break
            if going <= 0.75 * len(live_R):  # ended rows cost time; moving the cache costs some too
                keep_R = going_R.nonzero().squeeze(-1)
                cache.batch_select_indices(keep_R)
                live_R, going_R = live_R[keep_R], going_R[keep_R]
                mask_RS, place_R, token_R = mask_RS[keep_R], place_R[keep_R], token_R[keep_R]
            mask_RS = F.pad(mask_RS, (0, 1), value=1)
            logits_RV = extend(model, cache, token_R, mask_RS, place_R)
            place_R = place_R + 1
        stop_RT = torch.isin(tokens_RT, stops)
        ended_R = stop_RT.any(-1)
        lengths = ((stop_RT.cumsum(-1) == 0).sum(-1) + ended_R).tolist()  # the first stop counts
        tokens, logprobs, ended = tokens_RT.tolist(), logprobs_RT.tolist(), ended_R.tolist()
        return [Sample(tokens[r][:n], logprobs[r][:n], not ended[r]) for r, n in enumerate(lengths)]

    # -- scoring and learning -------------------------------------------------------------------

    @torch.inference_mode()
    def logprobs(
        self, sequences: Sequences, which: Which, temperature: float = 1.0
    ) -> list[list[float]]:
        results: list[list[float]] = [[] for _ in sequences]
        whole = not self.layout.shared
        for packed in self._pack(sequences, whole):
            with self._model(which) as model:
                found_RT, _ = score(model, packed, temperature, self.settings.logits, whole)
            _scatter(results, packed, found_RT)
        return self._gathered(results)

    def _pack(self, sequences: Sequences, whole: bool) -> Iterator[Packed]:
        """This process's share of the sequences in micro-batches; rows are numbered as in the whole."""
        order = sorted(range(len(sequences)), key=lambda row: sequences[row][0])
        mine = self.world.share(order, [sum(map(len, sequences[row])) for row in order])
        chosen = [sequences[row] for row in mine]
        budget = self.settings.token_budget
        for packed in pack(chosen, budget, self.pad, self.device, self.layout.stems, whole):
            packed.rows = [mine[row] for row in packed.rows]
            yield packed

    def _gathered(self, results: list[list[float]]) -> list[list[float]]:
        """Each row from the process that has it."""
        parts = self.world.gather(results)
        return [next(filter(None, rows), []) for rows in zip(*parts, strict=True)]

    def update(self, data: Sequence[Datum]) -> UpdateResult:
        """One optimizer step: gradients summed over micro-batches, clipped, AdamW with warm-up."""
        if self.sampler is not None:
            self.sampler.sleep()
        result = UpdateResult(0.0, 0.0, 0.0, 0.0, 0.0, [[] for _ in data])
        sequences = [(datum.context, datum.tokens) for datum in data]
        total = sum(sum(datum.weights) for datum in data)
        frugal, logits = self.model_config.gradient_checkpointing, self.settings.logits
        whole = frugal or not self.layout.shared
        switch_checkpoints(self.policy, frugal)
        for packed in self._pack(sequences, whole):
            weights_RT = packed.pad([datum.weights for datum in data])
            behaviour_RT = packed.pad([datum.logprobs for datum in data])
            advantages_RT = packed.pad([datum.advantages for datum in data])
            with self._model("policy") as model:
                logprobs_RT, entropy_RT = score(model, packed, self.temperature, logits, whole)
            loss_RT = self._loss(logprobs_RT, behaviour_RT, advantages_RT)
            if self.slow.kl:
                with torch.no_grad(), self._model("base") as model:
                    base_RT, _ = score(model, packed, self.temperature, logits, whole)
                kl_RT = losses.kl_k3(logprobs_RT, base_RT)
                loss_RT = loss_RT + self.slow.kl * kl_RT
                result.kl += float((kl_RT.detach() * weights_RT).sum()) / total
            loss = (loss_RT * weights_RT).sum()
            loss.backward()
            result.loss += float(loss.detach())
            result.entropy += float((entropy_RT * weights_RT).sum()) / total
            _scatter(result.logprobs, packed, logprobs_RT)
        switch_checkpoints(self.policy, False)
        result.logprobs = self._gathered(result.logprobs)
        result.loss, result.kl, result.entropy = map(
            sum, zip(*self.world.gather((result.loss, result.kl, result.entropy)), strict=True)
        )
        self._optimizer.add_up()
        if self._shards is not None:
            self._shards.add_up(self._touch)
        result.grad_norm, result.lr = self._optimizer.step()
        if self._shards is not None:
            self._shards.gather()
        result.applied = math.isfinite(result.grad_norm)
        self.version += 1
        self._sync()
        return result

    def _sync(self) -> None:
        """Let the sampler, where there is one beside the policy, have the policy's weights."""
        if self.sampler is not None:
            self.sampler.wake()
            self.sampler.sync(whole_weights(self.policy))

    def _touch(self) -> Tensor:
        """Something that each layer has had a part in."""
        token = torch.tensor([[self.pad]], device=self.device)
        hidden: Tensor = self._halves["policy"].body(input_ids=token)
        return hidden.sum()

    def _loss(self, logprobs_RT: Tensor, behaviour_RT: Tensor, advantages_RT: Tensor) -> Tensor:
        if self.slow.loss == "cispo":
            return losses.cispo(logprobs_RT, behaviour_RT, advantages_RT, self.slow.tau)
        if self.slow.loss == "ppo":
            return losses.ppo(logprobs_RT, behaviour_RT, advantages_RT, self.slow.epsilon)
        return losses.importance_sampling(logprobs_RT, behaviour_RT, advantages_RT)

    def reset_optimizer(self) -> None:
        self._optimizer.reset()

    # -- disk -----------------------------------------------------------------------------------

    def save(self, directory: Path) -> None:
        """The first process writes; with `model.shard` each writes its part of the optimizer."""
        if self._shards is not None:
            self.world.gather(None)  # the first has made the folder
        elif not self.world.first:
            return
        state = {"version": self.version, "optimizer": self._optimizer.state()}
        try:
            if self.world.first:
                whole = None if self._shards is None else dict(self.policy.named_parameters())
                self.policy.save_pretrained(directory / "model", state_dict=whole)
                self.tokenizer.save_pretrained(directory / "model")
            torch.save(state, directory / self._part)
        except (SafetensorError, RuntimeError) as error:  # how these libraries tell of a full disk
            raise OSError(f"{first_line(error)}") from error
        if self._shards is not None:
            self.world.gather(None)  # all have written

    @property
    def _parts(self) -> int:
        return 1 if self._shards is None else self.world.size

    @property
    def _part(self) -> str:
        """The file with this process's part of the optimizer."""
        return f"optimizer-{self.world.rank}.pt" if self._parts > 1 else "optimizer.pt"

    def load(self, directory: Path) -> None:
        found = len(list(directory.glob("optimizer*.pt")))
        if found not in (0, self._parts):
            raise RunError(
                f"{directory}: its optimizer is in {found} parts, this run's in {self._parts}; go on with "
                "as many processes as it was written by"
            )
        try:
            state = torch.load(directory / self._part, weights_only=True)
            split = set() if self._shards is None else self._shards.split
            adapters = self.model_config.lora is not None
            load_weights(self.policy, directory / "model", adapters, split)
            self.version = state["version"]
            self._optimizer.restore(state["optimizer"])
        except Exception as error:  # whatever a damaged file makes PyTorch, pickle or JSON say
            raise RunError(f"{directory}: damaged checkpoint ({first_line(error)})") from None
        if self._shards is not None:
            self._shards.gather()
        self._sync()


def _luck(seed: int, numbers: Sequence[int], steps: int) -> Tensor:
    """FP64 in [0, 1) for every token of the rows with these numbers, [R, T].

    A row's depends on its number alone, so that how rows are batched, or spread over processes, changes
    no draw.
    """
    streams = (Philox(key=seed, counter=[0, 0, 0, number]) for number in numbers)
    return torch.from_numpy(numpy.stack([Generator(stream).random(steps) for stream in streams]))


def _place(name: str) -> str | Path:
    return pocket.path() if name == "pocket" else name


def _scatter(results: list[list[float]], packed: Packed, values_RT: Tensor) -> None:
    lengths = packed.token_mask_RT.sum(-1).tolist()
    for row, n, values in zip(packed.rows, lengths, values_RT.tolist(), strict=True):
        results[row] = values[:n]
