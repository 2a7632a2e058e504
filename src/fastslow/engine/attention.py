"""Attention for many rows that continue few contexts, by plain products.

A context's keys are multiplied with the queries of all rows that continue it in one product, instead of
being copied to each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from fastslow.engine.cache import ATTENTION, ForkLayer, SharedCache

FUSED = AttentionInterface()["sdpa"]
# Beyond so many scores PyTorch's fused attention, which keeps none of them, and all rows apart.
SCORES = 2**23


def share_contexts(model: Any) -> None:
    """Give a model on a CPU this attention, where the model works with it as with its own."""
    own = model.config.get_text_config()._attn_implementation  # private; see cache.shares
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if model.device.type != "cpu" or own != "sdpa" or kinds != {DynamicLayer}:
        return
    ids_RX = torch.arange(10).view(2, 5)
    ids_RX[:, :3] = ids_RX[0, :3]
    expected = model(input_ids=ids_RX, use_cache=False).logits[:, 3:].float()
    model.set_attn_implementation(ATTENTION)
    try:
        cache = SharedCache(model.config, roomy=False)
        model(input_ids=ids_RX[:1, :3], past_key_values=cache, fork=cache)
        cache.batch_select_indices(torch.zeros(2, dtype=torch.long))
        found = model(input_ids=ids_RX[:, 3:], past_key_values=cache, fork=cache).logits.float()
        close = 1e-3 if model.dtype == torch.float32 else 5e-2
        same = bool((found - expected).abs().max() <= close * expected.abs().max())
    except (RuntimeError, TypeError):  # it does not pass `fork` on to its attention
        same = False
    if not same:
        model.set_attn_implementation(own)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    fork: SharedCache | None = None,
    **kwargs: Any,
) -> Any:
    """Attention as transformers calls it: query [R, H, T, D], key and value [R, KV heads, own length, D].

    `fork` holds what the rows share and which of them share it.
    """
    layer = None if fork is None else fork.layers[module.layer_idx]
    if fork is None or fork.fork is None or not isinstance(layer, ForkLayer) or layer.trunk is None:
        return FUSED(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    length = layer.trunk[0].shape[-2] + key.shape[-2]
    if query[..., 0].numel() * length > SCORES:
        whole = layer.joined(fork.fork.parent_R)
        return FUSED(module, query, *whole, attention_mask, scaling=scaling, **kwargs)
    if attention_mask is None:
        attention_mask = _causal(query.shape[-2], length, query.device)
    scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return _forked(fork, layer.trunk, scaled, key, value, attention_mask), None


def _causal(width: int, length: int, device: torch.device) -> Tensor:
    mask_TS = torch.ones(width, length, dtype=torch.bool, device=device)
    return mask_TS.tril(length - width)[None, None]


def _forked(
    cache: SharedCache,
    trunk: tuple[Tensor, Tensor],
    query_RHTD: Tensor,
    key_RKUD: Tensor,
    value_RKUD: Tensor,
    mask_R1TS: Tensor,
) -> Tensor:
    """C contexts of L tokens, G rows each with U tokens of their own; S = L + U, H = K x J heads."""
    fork = cache.fork
    assert fork is not None
    dtype = query_RHTD.dtype
    # FP32 throughout: scores in BF16 would be off by several percent.
    query, key, value, trunk_key, trunk_value = (
        t.float() for t in (query_RHTD, key_RKUD, value_RKUD, *trunk)
    )
    rows, heads, width, size = query.shape
    contexts, kinds, length, _ = trunk_key.shape
    each = heads // kinds
    query_R = query.reshape(rows, kinds, each * width, size)
    query_C = fork.group(query_R).transpose(1, 2)  # [C, K, G, JT, D]
    slots = fork.width
    flat = query_C.reshape(contexts, kinds, slots * each * width, size)
    ahead = (flat @ trunk_key.mT).view(contexts, kinds, slots, each, width, length)
    own = fork.group(query_R @ key.mT).transpose(1, 2).unflatten(3, (each, width))
    mask = fork.group(mask_R1TS.expand(rows, -1, -1, -1))[:, None]  # [C, 1, G, 1, T, S]
    scores = torch.cat([ahead, own], dim=-1).masked_fill(~mask, torch.finfo(torch.float32).min)
    shares = scores.softmax(-1)
    ahead, own = shares.split([length, shares.shape[-1] - length], dim=-1)
    found_C = (ahead.reshape(contexts, kinds, -1, length) @ trunk_value).view_as(query_C)
    own_R = fork.rows(own.flatten(3, 4).transpose(1, 2))
    found_R = fork.rows(found_C.transpose(1, 2)) + own_R @ value  # [R, K, JT, D]
    found = found_R.reshape(rows, heads, width, size).transpose(1, 2).contiguous()
    return found.to(dtype)


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
