"""Forward passes over packed sequences, every shared part once, and draws from their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache

from fastslow.engine.base import SamplingParams
from fastslow.engine.batching import Packed, Stage


@dataclass(frozen=True, slots=True)
class Halves:
    """A causal LM as its body, which gives every token's last hidden state, and its head, which gives
    logits: where few tokens are scored, or many in chunks, the logits of all never exist at once."""

    config: Any
    body: Callable[..., Tensor]
    head: Callable[[Tensor], Tensor]


@torch.inference_mode()
def halve(model: Any, compiled: bool = False) -> Halves:
    """Split a model. One whose head does more than its output layer (soft caps, scales) stays whole.

    `compiled` is for the passes that learn: those that sample differ in shape from one to the next.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    settings = model.config.get_text_config().to_dict().items()
    more = any("logit" in name and value not in (None, False, 1) for name, value in settings)
    probe = torch.arange(4, device=model.device)[None]
    whole = model(input_ids=probe, use_cache=False).logits
    apart = head(decoder(input_ids=probe, use_cache=False).last_hidden_state)
    split = not more and torch.allclose(whole.float(), apart.float(), rtol=1e-3, atol=1e-3)
    plain = decoder if split else model
    learning = torch.compile(plain, dynamic=True) if compiled else plain

    def body(**given: Any) -> Tensor:
        out = (learning if torch.is_grad_enabled() else plain)(**given)
        return out.last_hidden_state if split else out.logits

    return Halves(model.config, body, head if split else lambda logits: logits)


def prefill(model: Halves, stages: list[Stage], cache: Cache) -> tuple[Tensor, Tensor]:
    """Forward what is shared once, into `cache`: last hidden state [C, D] and mask of every context."""
    mask_NX: Tensor | None = None
    for stage in stages:
        mask_NL = stage.mask_NL
        place_NL = (mask_NL.cumsum(-1) - 1).clamp(min=0)
        if stage.parent_N is not None and mask_NX is not None:
            cache.batch_select_indices(stage.parent_N)
            before_NX = mask_NX[stage.parent_N]
            mask_NL = torch.cat([before_NX, mask_NL], dim=1)
            place_NL = place_NL + before_NX.sum(-1, keepdim=True)
        hidden_NLD = model.body(
            input_ids=stage.tokens_NL,
            attention_mask=mask_NL,
            position_ids=place_NL,
            past_key_values=cache,
            use_cache=True,
        )
        mask_NX = mask_NL
    assert mask_NX is not None
    return hidden_NLD[:, -1], mask_NX


def score(
    model: Halves, packed: Packed, temperature: float, logits: int, whole: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [R, T] of the response tokens, zero where padded.

    Each shared part is forwarded once; with `whole` every row is a sequence of its own, as gradient
    checkpointing needs it. At most about `logits` logits exist at once.
    """
    hidden_RTD = _whole(model, packed) if whole else _shared(model, packed)
    mask_RT = packed.token_mask_RT.bool()
    tokens_N, hidden_ND = packed.tokens_RT[mask_RT], hidden_RTD[mask_RT]
    values = read(model.head, hidden_ND, tokens_N, temperature, logits)
    blank_RT = torch.zeros(mask_RT.shape, device=mask_RT.device)
    logprobs_RT, entropy_RT = (blank_RT.masked_scatter(mask_RT, value_N) for value_N in values)
    return logprobs_RT, entropy_RT


def _shared(model: Halves, packed: Packed) -> Tensor:
    """What each response token is predicted from [R, T, D]: its context's end, then the response."""
    cache = DynamicCache(config=model.config)
    last_CD, mask_CX = prefill(model, packed.stages, cache)
    first_R1D = last_CD[packed.parent_R, None]
    length = packed.tokens_RT.shape[1]
    if length == 1:
        return first_R1D
    cache.batch_select_indices(packed.parent_R)
    mask_RX = mask_CX[packed.parent_R]
    place_RT = mask_RX.sum(-1, keepdim=True) + torch.arange(length - 1, device=mask_RX.device)
    rest_RTD = model.body(
        input_ids=packed.tokens_RT[:, :-1],
        attention_mask=torch.cat([mask_RX, packed.token_mask_RT[:, :-1]], dim=1),
        position_ids=place_RT,
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first_R1D, rest_RTD], dim=1)


def _whole(model: Halves, packed: Packed) -> Tensor:
    """The same from one plain pass over contexts and responses, without a cache."""
    (stage,) = packed.stages
    ids_RX = torch.cat([stage.tokens_NL[packed.parent_R], packed.tokens_RT], dim=1)
    mask_RX = torch.cat([stage.mask_NL[packed.parent_R], packed.token_mask_RT], dim=1)
    hidden_RXD = model.body(
        input_ids=ids_RX,
        attention_mask=mask_RX,
        position_ids=(mask_RX.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
    )
    return hidden_RXD[:, stage.tokens_NL.shape[1] - 1 : -1]


def read(
    head: Callable[[Tensor], Tensor],
    hidden_ND: Tensor,
    tokens_N: Tensor,
    temperature: float,
    logits: int,
) -> tuple[Tensor, Tensor]:
    """Tempered FP32 log-probability of the tokens, and entropy (without gradient).

    Chunks of tokens whose logits would be too many at once are computed again in the backward pass.
    """

    def chunk(hidden_ND: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden_ND).float()
        if temperature != 1:
            logits_NV = logits_NV / temperature
        logprobs_NV = logits_NV.log_softmax(-1)
        with torch.no_grad():
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
        return logprobs_NV.gather(-1, tokens_N[:, None]).squeeze(-1), entropy_N

    size = max(1, logits // head(hidden_ND[:1]).shape[-1])
    if len(tokens_N) <= size:
        return chunk(hidden_ND, tokens_N)
    pairs = zip(hidden_ND.split(size), tokens_N.split(size), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs]
    else:
        parts = [chunk(*pair) for pair in pairs]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


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
