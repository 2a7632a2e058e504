"""Forward passes over packed sequences, every shared part once, and draws from their logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from fastslow.engine.base import SamplingParams
from fastslow.engine.batching import Packed, Stage


def prefill(model: Any, stages: list[Stage], cache: Cache) -> tuple[Tensor, Tensor]:
    """Forward what is shared once, into `cache`: last logits [C, V] and mask of every context."""
    mask_NX: Tensor | None = None
    for stage in stages:
        mask_NL = stage.mask_NL
        place_NL = (mask_NL.cumsum(-1) - 1).clamp(min=0)
        if stage.parent_N is not None and mask_NX is not None:
            cache.batch_select_indices(stage.parent_N)
            before_NX = mask_NX[stage.parent_N]
            mask_NL = torch.cat([before_NX, mask_NL], dim=1)
            place_NL = place_NL + before_NX.sum(-1, keepdim=True)
        out = model(
            input_ids=stage.tokens_NL,
            attention_mask=mask_NL,
            position_ids=place_NL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        mask_NX = mask_NL
    assert mask_NX is not None
    return out.logits[:, -1], mask_NX


def score(model: Any, packed: Packed, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [R, T] of the response tokens, each shared part forwarded once.

    The first token is scored by its context's last logits, the others by the response's own.
    """
    cache = DynamicCache(config=model.config)
    logits_CV, mask_CX = prefill(model, packed.stages, cache)
    parts = [read(logits_CV[packed.parent_R, None], packed.tokens_RT[:, :1], temperature)]
    length = packed.tokens_RT.shape[1]
    if length > 1:
        cache.batch_select_indices(packed.parent_R)
        mask_RX = mask_CX[packed.parent_R]
        place_RT = mask_RX.sum(-1, keepdim=True) + torch.arange(length - 1, device=mask_RX.device)
        rest = model(
            input_ids=packed.tokens_RT[:, :-1],
            attention_mask=torch.cat([mask_RX, packed.token_mask_RT[:, :-1]], dim=1),
            position_ids=place_RT,
            past_key_values=cache,
            use_cache=True,
        )
        parts.append(read(rest.logits, packed.tokens_RT[:, 1:], temperature))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs, dim=1), torch.cat(entropies, dim=1)


def read(logits_RTV: Tensor, tokens_RT: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tempered FP32 log-probability of the tokens, and entropy (without gradient)."""
    logits_RTV = logits_RTV.float()
    if temperature != 1:
        logits_RTV = logits_RTV / temperature
    logprobs_RTV = logits_RTV.log_softmax(-1)
    with torch.no_grad():
        entropy_RT = -(logprobs_RTV.exp() * logprobs_RTV).sum(-1)
    return logprobs_RTV.gather(-1, tokens_RT[..., None]).squeeze(-1), entropy_RT


def draw(logits_RV: Tensor, params: SamplingParams, luck_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability before top-p truncation.

    `luck_R`, FP64 in [0, 1), decides: the token is where the cumulative distribution reaches it.
    """
    logprobs_RV = (logits_RV.float() / params.temperature).log_softmax(-1)
    probs_RV = logprobs_RV.exp()
    if params.top_p < 1:
        sorted_RV, order_RV = probs_RV.sort(-1, descending=True)
        drop_RV = sorted_RV.cumsum(-1) - sorted_RV >= params.top_p  # the mass before this token
        probs_RV = probs_RV.masked_fill(
            torch.zeros_like(drop_RV).scatter(-1, order_RV, drop_RV), 0.0
        )
    reach_RV = probs_RV.double().cumsum(-1)  # in FP64: a vocabulary is long and its tail thin
    mark_R1 = reach_RV[:, -1:] * luck_R[:, None]
    token_R = torch.searchsorted(reach_RV, mark_R1, right=True).squeeze(-1)
    return token_R, logprobs_RV.gather(-1, token_R[:, None]).squeeze(-1)
