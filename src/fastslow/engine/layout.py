"""How far the sequences of a model may be taken apart and put side by side, proven when it is loaded.

Keys and values of attention can be cut, joined and learned through: a context is forwarded once for all
that continue it. A recurrent layer keeps a state instead; its model learns from whole sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fastslow.engine.batching import pack, stage_contexts
from fastslow.engine.cache import sampling_cache
from fastslow.engine.forward import Halves, extend, halve, prefill, score
from fastslow.engine.loading import first_line
from fastslow.errors import ModelError

STEM = list(range(1, 15))
# Contexts and what follows them: two that share a stem and end apart, and one by itself.
PROBE = [([*STEM, 15], [1, 2, 3]), ([*STEM, 16, 17, 18], [4, 5, 6]), ([8, 9], [7, 8, 9])]


@dataclass(frozen=True, slots=True)
class Layout:
    """The ways that a model allows."""

    shared: bool  # learning forwards a context once for all that continue it
    stems: bool  # contexts share what they begin with; padding then stands amid a row
    padded: bool  # contexts of unlike lengths are sampled from side by side


def keeps_tokens(config: Any, windows: bool = True) -> bool:
    """Whether a model's layers keep keys and values of each token (in `windows`), and nothing else."""
    kinds = {DynamicLayer, DynamicSlidingWindowLayer} if windows else {DynamicLayer}
    return {type(layer) for layer in DynamicCache(config=config).layers} <= kinds


def keeps_usual(config: Any) -> bool:
    """Whether what its layers keep is of transformers' own kinds. Others may count padding as tokens."""
    return all(
        type(layer).__module__ == DynamicLayer.__module__
        for layer in DynamicCache(config=config).layers
    )


def take_apart(model: Any, source: str | Path, compiled: bool = False) -> Halves:
    """`forward.halve`; ModelError where the model does not run."""
    try:
        return halve(model, compiled)
    except Exception as error:  # half of a translator, say, fails in a way of its own
        raise ModelError(
            f"model.name = {str(source)!r}: it does not run as a causal language model "
            f"({type(error).__name__}: {first_line(error)})"
        ) from None


@torch.inference_mode()
def find_layout(model: Halves, whole: Any, source: str | Path) -> Layout:
    """The fastest ways in which a model, given in halves too, predicts what it does of each sequence alone.

    Raises ModelError where there are none: what it predicts then depends on what follows, on padding, or
    on how it was cached.
    """

    def wrong(way: Callable[..., Tensor], *how: bool) -> str:
        """What a way gets wrong; empty where it agrees."""
        try:
            gap = float((way(model, device, *how) - expected).abs().max())
        except Exception as error:  # each family has its own way to refuse
            return f"{type(error).__name__}: {first_line(error)}"
        return "" if gap <= close else f"its log-probabilities are off by {gap:.2g}"

    device: torch.device = whole.device
    expected = _alone(model, device)
    # BF16 is off by 0.02 in models of two layers, by more in deep ones.
    close = (2e-4 if whole.dtype == torch.float32 else 0.05) * float(expected.abs().max())
    config, told = model.config, signature(whole.forward).parameters
    shared = keeps_tokens(config) and not wrong(_learned, True, False)
    # Windows count padding amid a row, and so do models that are not told where a token stands.
    stems = shared and keeps_tokens(config, windows=False) and "position_ids" in told
    stems = stems and not wrong(_learned, True, True)
    padded = keeps_usual(config) and not wrong(_sampled, True)
    failed = (not shared and wrong(_learned, False, False)) or (
        not padded and wrong(_sampled, False)
    )
    if failed:
        raise ModelError(
            f"model.name = {str(source)!r}: it does not predict each token from those before it alone "
            f"({failed}); the local engine takes causal language models (Qwen3, Llama, Gemma and the like)"
        )
    return Layout(shared, stems, padded)


def _alone(model: Halves, device: torch.device) -> Tensor:
    """Log-probabilities of what follows each context, each from a pass of its own."""

    def after(ids: list[int], token: int) -> Tensor:
        hidden_1LD = model.body(input_ids=torch.tensor([ids], device=device), use_cache=False)
        return model.head(hidden_1LD[0, -1]).float().log_softmax(-1)[token]

    return torch.stack([after(c + r[:i], r[i]) for c, r in PROBE for i in range(len(r))])


def _learned(model: Halves, device: torch.device, shared: bool, stems: bool) -> Tensor:
    """The same as learning has them."""
    (packed,) = pack(PROBE, 10**6, 0, device, stems, whole=not shared)
    found_RT, _ = score(model, packed, 1.0, 10**6, whole=not shared)
    return found_RT[torch.tensor(packed.rows).argsort()].flatten()


def _sampled(model: Halves, device: torch.device, padded: bool) -> Tensor:
    """The same as sampling has them, of two rows for each context the second."""
    found = []
    for batch in [PROBE] if padded else [[pair] for pair in PROBE]:
        cache = sampling_cache(model.config)
        stages = stage_contexts([context for context, _ in batch], 0, device, stems=False)
        last_CD, mask_CX = prefill(model, stages, cache)
        parent_R = torch.arange(len(batch), device=device).repeat_interleave(2)
        tokens_RT = torch.tensor([response for _, response in batch], device=device)[parent_R]
        cache.batch_select_indices(parent_R)
        mask_RS, logits_RV = mask_CX[parent_R], [model.head(last_CD)[parent_R]]
        for token_R in tokens_RT.T[:-1]:
            place_R, mask_RS = mask_RS.sum(-1), F.pad(mask_RS, (0, 1), value=1)
            logits_RV.append(extend(model, cache, token_R, mask_RS, place_R))
        logprobs_RTV = torch.stack(logits_RV, dim=1).float().log_softmax(-1)
        found.append(logprobs_RTV.gather(-1, tokens_RT[..., None])[1::2].flatten())
    return torch.cat(found)
