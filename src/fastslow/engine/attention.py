"""Attention for many rows that continue few contexts, by plain products.

A context's keys are multiplied with the queries of all rows that continue it in one product, instead of
being copied to each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from fastslow.engine.cache import ATTENTION, Fork, ForkLayer, SharedCache
from fastslow.engine.products import product

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
    if layer.trunk[0].shape[1] != key.shape[1]:  # `share_contexts` tries this, and gives it up
        raise RuntimeError("a model that rearranges what its cache returns cannot share contexts")
    length = layer.trunk[0].shape[-2] + key.shape[-2]
    if query[..., 0].numel() * length > SCORES:
        whole = layer.joined(fork.fork.parent_R)
        return FUSED(module, query, *whole, attention_mask, scaling=scaling, **kwargs)
    if attention_mask is None:
        attention_mask = _causal(query.shape[-2], length, query.device)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return _forked(fork.fork, layer.trunk, query, key, value, attention_mask, scaling), None


def _causal(width: int, length: int, device: torch.device) -> Tensor:
    mask_TS = torch.ones(width, length, dtype=torch.bool, device=device)
    return mask_TS.tril(length - width)[None, None]


def _forked(
    fork: Fork,
    trunk: tuple[Tensor, Tensor],
    query_RHTD: Tensor,
    key_RKUD: Tensor,
    value_RKUD: Tensor,
    mask_R1TS: Tensor,
    scaling: float,
) -> Tensor:
    """C contexts of L tokens, R rows with U tokens of their own; S = L + U, H heads = K x J, Q = J x T."""
    rows, heads, width, size = query_RHTD.shape
    query_RKQD = query_RHTD.reshape(rows, key_RKUD.shape[1], -1, size)
    # FP32 throughout: scores in BF16 would be off by several percent.
    states = [t.float() for t in (query_RKQD, key_RKUD, value_RKUD, *trunk)]
    way: Any = _Attention.apply if torch.is_grad_enabled() else _attend
    found_RKQD, *_ = way(fork, mask_R1TS, scaling, query_RHTD.dtype, *states)
    found = found_RKQD.reshape(rows, heads, width, size).transpose(1, 2)
    return found.to(query_RHTD.dtype).contiguous()


def _attend(
    fork: Fork, mask_R1TS: Tensor, scaling: float, dtype: torch.dtype, *states: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What is found [R, K, Q, D], and the shares of the trunk, stacked, and of the rows' own tokens."""
    query_RKQD, key_RKUD, value_RKUD, trunk_key_CKLD, trunk_value_CKLD = states
    length, kinds = trunk_key_CKLD.shape[-2], key_RKUD.shape[1]
    ahead = product(fork.stack(query_RKQD), trunk_key_CKLD.flatten(0, 1).mT, dtype)
    own = product(query_RKQD.flatten(0, 1), key_RKUD.flatten(0, 1).mT, dtype)
    scores = torch.cat([fork.unstack(ahead), own.unflatten(0, (-1, kinds))], dim=-1)
    scores_RKJTS = scores.unflatten(2, (-1, mask_R1TS.shape[2]))
    hides_R1TS = torch.where(mask_R1TS, 0.0, torch.finfo(torch.float32).min)
    shares = torch.add(hides_R1TS[:, None], scores_RKJTS, alpha=scaling).softmax(-1).flatten(2, 3)
    ahead = fork.stack(shares[..., :length])
    own = shares[..., length:].flatten(0, 1).contiguous()
    found_ahead = fork.unstack(product(ahead, trunk_value_CKLD.flatten(0, 1), dtype))
    found_own = product(own, value_RKUD.flatten(0, 1), dtype)
    return found_ahead + found_own.view_as(query_RKQD), ahead, own


class _Attention(torch.autograd.Function):
    """`_attend` with its gradient, for which one copy of the shares is kept."""

    @staticmethod
    def forward(
        ctx: Any,
        fork: Fork,
        mask_R1TS: Tensor,
        scaling: float,
        dtype: torch.dtype,
        *states: Tensor,
    ) -> tuple[Tensor]:
        found_RKQD, ahead, own = _attend(fork, mask_R1TS, scaling, dtype, *states)
        ctx.save_for_backward(found_RKQD, ahead, own, *states)
        ctx.fixed = fork, scaling, dtype
        return (found_RKQD,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_RKQD: Tensor) -> tuple[Tensor | None, ...]:
        fork, scaling, dtype = ctx.fixed
        found_RKQD, ahead, own, *states = ctx.saved_tensors
        query, key, value, trunk_key, trunk_value = (t.flatten(0, 1) for t in states)
        query_ahead, slope_ahead = fork.stack(states[0]), fork.stack(slope_RKQD)
        slope = slope_RKQD.flatten(0, 1)
        # A softmax's slope: shares times what each is off from their mean, which is the output's.
        mean_RKQ1 = torch.linalg.vecdot(slope_RKQD, found_RKQD)[..., None]
        mean, mean_ahead = mean_RKQ1.flatten(0, 1), fork.stack(mean_RKQ1)
        into_own = product(slope, value.mT, dtype).sub_(mean).mul_(own)
        into_ahead = product(slope_ahead, trunk_value.mT, dtype).sub_(mean_ahead).mul_(ahead)
        into_query = product(into_own, key, dtype).view_as(slope_RKQD)
        into_query = into_query + fork.unstack(product(into_ahead, trunk_key, dtype))
        into = (
            into_query.mul_(scaling),
            product(into_own.mT, query, dtype).mul_(scaling),
            product(own.mT, slope, dtype),
            product(into_ahead.mT, query_ahead, dtype).mul_(scaling),
            product(ahead.mT, slope_ahead, dtype),
        )
        return None, None, None, None, *(t.view_as(s) for t, s in zip(into, states, strict=True))


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, AttentionMaskInterface()["sdpa"])
