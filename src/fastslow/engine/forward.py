"""Forward passes over packed sequences, every shared part once, and draws from their logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel

from fastslow.engine.attention import share_contexts
from fastslow.engine.base import SamplingParams
from fastslow.engine.batching import Packed, Stage
from fastslow.engine.cache import SharedCache, training_cache


@dataclass(frozen=True, slots=True)
class Halves:
    """A causal LM as its body, which gives every token's last hidden state, and its head, which gives
    logits: where few tokens are scored, or many in chunks, the logits of all never exist at once."""

    config: Any
    body: Callable[..., Tensor]
    head: Callable[[Tensor], Tensor]
    vocabulary: int  # logits of one token


@torch.inference_mode()
def halve(model: Any, compiled: bool = False) -> Halves:
    """Split a model. One whose head does more than its output layer (soft caps, scales) stays whole.

    `compiled` is for the passes that learn: those that sample differ in shape from one to the next.
    """
    if not compiled:
        share_contexts(model)
    probe = torch.arange(4, device=model.device)[None]
    whole = model(input_ids=probe, use_cache=False).logits
    decoder, head = _decoder(model, probe, whole), model.get_output_embeddings()
    plain = model if decoder is None else decoder
    learning = torch.compile(plain, dynamic=True) if compiled else plain
    recurrent = "cache_params" in signature(plain.forward).parameters  # Mamba's name for its cache

    def body(**given: Any) -> Tensor:
        if isinstance(given.get("past_key_values"), SharedCache):
            given["fork"] = given["past_key_values"]  # passed on to `attention.attend`
        if recurrent:
            given["cache_params"] = given.pop("past_key_values", None)
            if given["input_ids"].shape[1] == 1:  # a mask of all tokens would be taken for theirs
                given.pop("attention_mask", None)
        out = (learning if torch.is_grad_enabled() else plain)(**given)
        return out.logits if decoder is None else out.last_hidden_state

    top = (lambda logits: logits) if decoder is None else head
    return Halves(model.config, body, top, whole.shape[-1])


def _decoder(model: Any, probe: Tensor, logits: Tensor) -> Any:
    """The part of a model whose hidden states its output layer makes these logits of; None if none is."""
    settings = model.config.get_text_config().to_dict().items()
    if any("logit" in name and value not in (None, False, 1) for name, value in settings):
        return None
    parts = [m for m in model.children() if isinstance(m, PreTrainedModel)]
    for part in (model.get_decoder(), *parts):
        if isinstance(part, PreTrainedModel) and part is not model:
            hidden = part(input_ids=probe, use_cache=False).last_hidden_state
            apart = model.get_output_embeddings()(hidden)
            if torch.allclose(logits.float(), apart.float(), rtol=1e-3, atol=1e-3):
                return part
    return None


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


def extend(
    model: Halves, cache: Cache, token_R: Tensor, mask_RS: Tensor, place_R: Tensor
) -> Tensor:
    """Logits [R, V] after one more token of each row, at `place_R` and in the mask already."""
    hidden_R1D = model.body(
        input_ids=token_R[:, None],
        attention_mask=mask_RS,
        position_ids=place_R[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    return model.head(hidden_R1D[:, -1])


def score(
    model: Halves, packed: Packed, temperature: float, logits: int, whole: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy [R, T] of the response tokens, zero where padded.

    Each shared part is forwarded once; with `whole` every row is a sequence of its own, as gradient
    checkpointing and recurrent layers need it. At most about `logits` logits exist at once.
    """
    hidden_ND, row_N, place_N = (_whole if whole else _shared)(model, packed)
    tokens_N, size = packed.tokens_RT[row_N, place_N], max(1, logits // model.vocabulary)
    values = read(model.head, hidden_ND, tokens_N, temperature, size)
    blank_RT = torch.zeros(packed.tokens_RT.shape, device=row_N.device)
    logprobs_RT, entropy_RT = (blank_RT.index_put((row_N, place_N), value_N) for value_N in values)
    return logprobs_RT, entropy_RT


Found = tuple[
    Tensor, Tensor, Tensor
]  # hidden states [N, D] that predict tokens [R, T], rows, places


def _shared(model: Halves, packed: Packed) -> Found:
    """Each context once, then the responses, their longer rows alone where the others have ended."""
    cache = training_cache(model.config)
    last_CD, mask_RX = prefill(model, packed.stages, cache)
    rows_R = torch.arange(len(packed.parent_R), device=mask_RX.device)
    found = [(last_CD[packed.parent_R], rows_R, torch.zeros_like(rows_R))]
    length_R, keep_R = packed.token_mask_RT.sum(-1), packed.parent_R
    for start, end in segments(length_R.tolist()):
        if start:
            keep_R = (length_R[rows_R] > start + 1).nonzero().squeeze(-1)
            rows_R = rows_R[keep_R]
        cache.batch_select_indices(keep_R)
        mask_RX = mask_RX[keep_R]
        place_RT = mask_RX.sum(-1, keepdim=True) + torch.arange(end - start, device=mask_RX.device)
        mask_RX = torch.cat([mask_RX, packed.token_mask_RT[rows_R, start:end]], dim=1)
        hidden_RTD = model.body(
            input_ids=packed.tokens_RT[rows_R, start:end],
            attention_mask=mask_RX,
            position_ids=place_RT,
            past_key_values=cache,
            use_cache=True,
        )
        next_RT = packed.token_mask_RT[rows_R, start + 1 : end + 1].bool()
        row_N, place_N = next_RT.nonzero(as_tuple=True)
        found.append((hidden_RTD[next_RT], rows_R[row_N], place_N + start + 1))
    hidden, rows, places = zip(*found, strict=True)
    return torch.cat(hidden), torch.cat(rows), torch.cat(places)


def segments(lengths: list[int], worth: float = 0.1) -> list[tuple[int, int]]:
    """Where to cut responses of these lengths, whose last tokens are not fed, so that little is padding.

    A cut lets go of the rows that have ended. It is made where it saves `worth` of all that is fed.
    """
    fed = sorted(length - 1 for length in lengths)
    start, end, cuts = 0, fed[-1], [0]
    while start < end:
        left = [length - start for length in fed if length > start]
        cut, saved = max(
            ((length, ended * (left[-1] - length)) for ended, length in enumerate(left, 1)),
            key=lambda pair: pair[1],
        )
        if saved < worth * len(fed) * end:
            break
        start += cut
        cuts.append(start)
    return [(a, b) for a, b in zip(cuts, [*cuts[1:], end], strict=True) if b > a]


def _whole(model: Halves, packed: Packed) -> Found:
    """One plain pass over contexts and responses, without a cache; all padding comes last."""
    (stage,) = packed.stages
    ids_RX = torch.cat([stage.tokens_NL[packed.parent_R], packed.tokens_RT], dim=1)
    mask_RX = torch.cat([stage.mask_NL[packed.parent_R], packed.token_mask_RT], dim=1)
    length_R = stage.mask_NL.sum(-1)[packed.parent_R]  # of the contexts, padded on the left as yet
    all_X = torch.arange(ids_RX.shape[1], device=ids_RX.device)
    from_RX = (all_X + stage.mask_NL.shape[1] - length_R[:, None]) % len(all_X)
    hidden_RXD = model.body(
        input_ids=ids_RX.gather(1, from_RX),
        attention_mask=mask_RX.gather(1, from_RX),
        position_ids=all_X.expand_as(ids_RX),
        use_cache=False,
    )
    row_N, place_N = packed.token_mask_RT.nonzero(as_tuple=True)
    return hidden_RXD[row_N, length_R[row_N] + place_N - 1], row_N, place_N


def read(
    head: Callable[[Tensor], Tensor],
    hidden_ND: Tensor,
    tokens_N: Tensor,
    temperature: float,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Tempered FP32 log-probability of the tokens, and entropy (without gradient).

    Where tokens are more than `size`, chunks of so many are computed again in the backward pass.
    """

    def chunk(hidden_ND: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
        return Readout.apply(_tempered(head(hidden_ND), temperature), tokens_N)

    if len(tokens_N) <= size:
        return chunk(hidden_ND, tokens_N)
    pairs = zip(hidden_ND.split(size), tokens_N.split(size), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(chunk, *pair, use_reentrant=False) for pair in pairs]
    else:
        parts = [chunk(*pair) for pair in pairs]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    logits = logits.float()
    return logits if temperature == 1 else logits / temperature


class Readout(torch.autograd.Function):
    """Log-probability [N] of tokens [N] and entropy [N] (without gradient) of FP32 logits [N, V].

    One softmax serves both and the gradient, which is written over it: a vocabulary is wide.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, tokens_N: Tensor) -> tuple[Tensor, Tensor]:
        probs_NV = logits_NV.softmax(-1)
        # By the likeliest token, whose probability is far from zero.
        normalizer_N = logits_NV.amax(-1) - probs_NV.amax(-1).log()
        logprobs_N = logits_NV.gather(-1, tokens_N[:, None]).squeeze(-1) - normalizer_N
        entropy_N = normalizer_N - torch.linalg.vecdot(probs_NV, logits_NV)
        ctx.save_for_backward(probs_NV, tokens_N)
        ctx.mark_non_differentiable(entropy_N)
        return logprobs_N, entropy_N

    @staticmethod
    def backward(ctx: Any, slope_N: Tensor, _: Tensor) -> tuple[Tensor, None]:
        probs_NV, tokens_N = ctx.saved_tensors
        slope_NV = probs_NV.mul_(-slope_N[:, None])
        return slope_NV.scatter_add_(-1, tokens_N[:, None], slope_N[:, None]), None


def draw(logits_RV: Tensor, params: SamplingParams, luck_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability before top-p truncation.

    `luck_R`, FP64 in [0, 1), decides: the token is where the cumulative distribution reaches it.
    """
    whole_RV = probs_RV = _tempered(logits_RV, params.temperature).softmax(-1)
    if params.top_p < 1:
        sorted_RV, order_RV = probs_RV.sort(-1, descending=True)
        drop_RV = sorted_RV.cumsum(-1) - sorted_RV >= params.top_p  # the mass before this token
        probs_RV = probs_RV.masked_fill(
            torch.zeros_like(drop_RV).scatter(-1, order_RV, drop_RV), 0.0
        )
    reach_RV = probs_RV.cumsum(-1, dtype=torch.float64)  # a vocabulary is long and its tail thin
    mark_R1 = reach_RV[:, -1:] * luck_R[:, None]
    token_R = torch.searchsorted(reach_RV, mark_R1, right=True).squeeze(-1)
    return token_R, whole_RV.gather(-1, token_R[:, None]).squeeze(-1).log()
