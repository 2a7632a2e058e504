"""Key-value caches that hold once what several rows continue, and that grow by blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ATTENTION = "fastslow"  # as transformers knows it
BLOCK = 32  # tokens of room that an enlargement makes
PADDING = (
    1.5  # contexts of unlike numbers of rows are padded to one; beyond this share rows are copied
)


@dataclass(frozen=True, slots=True)
class Fork:
    """Which of C contexts each of R rows continues, and where it stands among C x `width` slots."""

    parent_R: Tensor
    contexts: int
    width: int
    slot_R: Tensor | None  # None: the rows fill the slots in order

    @classmethod
    def of(cls, parent_R: Tensor, contexts: int) -> Fork:
        rows = torch.arange(len(parent_R), device=parent_R.device)
        count_C = torch.bincount(parent_R, minlength=contexts)
        order_R = parent_R.argsort(stable=True)
        rank_R = torch.empty_like(rows)
        rank_R[order_R] = rows - (count_C.cumsum(0) - count_C)[parent_R[order_R]]
        width = int(count_C.max())
        slot_R = parent_R * width + rank_R
        filled = len(rows) == contexts * width and torch.equal(slot_R, rows)
        return cls(parent_R, contexts, width, None if filled else slot_R)

    @property
    def pays(self) -> bool:
        return self.width > 1 and self.contexts * self.width <= PADDING * len(self.parent_R)

    def stack(self, rows: Tensor) -> Tensor:
        """[R, K, Q, X] as [C x K, width x Q, X]: a context's rows under one another, zero where none is."""
        if self.slot_R is not None:
            blank = rows.new_zeros(self.contexts * self.width, *rows.shape[1:])
            rows = blank.index_copy(0, self.slot_R, rows)
        groups = rows.unflatten(0, (self.contexts, self.width)).transpose(1, 2)
        return groups.flatten(2, 3).flatten(0, 1).contiguous()

    def unstack(self, stacked: Tensor) -> Tensor:
        """The reverse of `stack`."""
        groups = stacked.unflatten(0, (self.contexts, -1)).unflatten(2, (self.width, -1))
        rows = groups.transpose(1, 2).flatten(0, 1)
        return rows if self.slot_R is None else rows[self.slot_R]


class ForkLayer(DynamicLayer):
    """A DynamicLayer whose rows may share a trunk: keys and values [C, heads, length, size].

    `keys` and `values` are then the rows' own, after the trunk's. With `roomy` new tokens are written into
    room there is, where DynamicLayer copies all it holds; not for training, as views of one buffer
    are then written to.
    """

    def __init__(self, roomy: bool) -> None:
        super().__init__()
        self.roomy = roomy
        self.room: tuple[Tensor, Tensor] | None = None
        self.trunk: tuple[Tensor, Tensor] | None = None

    def get_seq_length(self) -> int:
        shared = 0 if self.trunk is None else self.trunk[0].shape[-2]
        return super().get_seq_length() + shared

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        held = super().get_seq_length()
        if not self.roomy or self.keys is None or self.values is None or not held:
            return super().update(key_states, value_states, *args, **kwargs)
        total = held + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < total:
            self.room = (self._enlarged(self.keys, total), self._enlarged(self.values, total))
        for buffer, states in zip(self.room, (key_states, value_states), strict=True):
            buffer[..., held:total, :] = states
        self.keys, self.values = (buffer[..., :total, :] for buffer in self.room)
        return self.keys, self.values

    @staticmethod
    def _enlarged(states: Tensor, total: int) -> Tensor:
        *rows, held, width = states.shape
        buffer = states.new_empty(*rows, total + BLOCK, width)
        buffer[..., :held, :] = states
        return buffer

    def branch(self, rows: int) -> None:
        """Make all that is held the trunk of so many rows."""
        assert self.keys is not None
        assert self.values is not None
        self.room, self.trunk = None, (self.keys.contiguous(), self.values.contiguous())
        self.keys, self.values = (t.new_empty(rows, *t[0, :, :0].shape) for t in self.trunk)

    def joined(self, parent_R: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole rows."""
        assert self.keys is not None
        assert self.values is not None
        if self.trunk is None:
            return self.keys, self.values
        keys, values = (states[parent_R] for states in self.trunk)
        return torch.cat([keys, self.keys], dim=-2), torch.cat([values, self.values], dim=-2)

    def join(self, parent_R: Tensor) -> None:
        self.keys, self.values = self.joined(parent_R)
        self.room = self.trunk = None

    def batch_select_indices(self, indices: Tensor) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.room = None
        self.keys, self.values = self.keys[indices], self.values[indices]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.get_seq_length():
            self.batch_select_indices(beam_idx)


class RowCache(DynamicCache):
    """A cache whose rows can be selected, and repeated, whatever its layers keep of them."""

    def batch_select_indices(self, indices: Tensor) -> None:
        for layer in self.layers:  # recurrent ones can be selected in no other way
            layer.reorder_cache(indices)  # type: ignore[arg-type]


class SharedCache(DynamicCache):
    """A cache whose rows, once selected several times over, share what they continue."""

    def __init__(self, config: Any, roomy: bool) -> None:
        super().__init__(config=config)
        self.layers = [ForkLayer(roomy) for _ in self.layers]
        self.fork: Fork | None = None

    def batch_select_indices(self, indices: Tensor) -> None:
        layers = [layer for layer in self.layers if isinstance(layer, ForkLayer)]  # all of them
        held = layers[0].keys
        assert held is not None
        if self.fork is not None:
            fork = Fork.of(self.fork.parent_R[indices], self.fork.contexts)
            if fork.pays and len(indices) <= len(held):
                self.fork = fork
                return super().batch_select_indices(indices)
            for layer in layers:
                layer.join(self.fork.parent_R)
            self.fork = None
        fork = Fork.of(indices, len(held))
        if not fork.pays:
            return super().batch_select_indices(indices)
        for layer in layers:
            layer.branch(len(indices))
        self.fork = fork
        return None


def shares(config: Any) -> bool:
    """Whether a model's attention is fastslow's, which knows what a SharedCache holds."""
    # Private, but all that says which attention runs; tests/engine/test_attention.py would notice.
    return bool(config.get_text_config()._attn_implementation == ATTENTION)


def sampling_cache(config: Any) -> DynamicCache:
    """A roomy cache for a model; layers that are not plain stay as the model wants them."""
    if shares(config):
        return SharedCache(config, roomy=True)
    cache = RowCache(config=config)
    cache.layers = [
        ForkLayer(roomy=True) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def training_cache(config: Any) -> DynamicCache:
    """A cache through which gradients flow."""
    return SharedCache(config, roomy=False) if shares(config) else DynamicCache(config=config)
