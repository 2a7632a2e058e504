"""A key-value cache that grows by blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

BLOCK = 32  # tokens of room that an enlargement makes


class RoomyLayer(DynamicLayer):
    """A DynamicLayer that writes new tokens into room it has, where its parent copies all it holds.

    Not for training: keys and values are views of a buffer that later tokens are written into.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None or not self.get_seq_length():
            return super().update(key_states, value_states, *args, **kwargs)
        held = self.keys.shape[-2]
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

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.room = None
        super().batch_select_indices(indices)


def sampling_cache(config: Any) -> DynamicCache:
    """A DynamicCache for `config` whose plain layers are roomy; others stay as the model wants them."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache
