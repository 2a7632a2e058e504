"""Data parallel training on one node: `torchrun --nproc-per-node N -m fastslow train CONFIG`.

Every process runs the whole loop with the same weights, state and random keys, so that all decide alike;
the engine's work is split among them and its results are gathered. What only one may decide (a score,
a reflector's answer) the first decides for all, and it alone writes to disk.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import accumulate
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = ParamSpec("Given")


@dataclass(frozen=True, slots=True)
class World:
    """This process among its like; alone, it is rank 0 of 1 and nothing is sent."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item], costs: Sequence[float]) -> list[Item]:
        """This process's part of the items: neighbours stay together, costs are spread evenly."""
        total = sum(costs)
        middles = (end - cost / 2 for end, cost in zip(accumulate(costs), costs, strict=True))
        return [
            item
            for item, middle in zip(items, middles, strict=True)
            if min(self.size - 1, int(self.size * middle / max(total, 1e-9))) == self.rank
        ]

    def gather(self, value: Item) -> list[Item]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the processes, in place."""
        if self.size > 1:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def decided(self, action: Callable[Given, Result]) -> Callable[Given, Result]:
        """The action as the first process does it; all get its result, or its error."""
        if self.size == 1:
            return action

        @wraps(action)
        def asked(*args: Given.args, **named: Given.kwargs) -> Result:
            box: list[Any] = [None]
            if self.first:
                try:
                    box = [(action(*args, **named), None)]
                except Exception as error:
                    box = [(None, error)]
            dist.broadcast_object_list(box, src=0)
            result, failed = box[0]
            if failed is not None:
                raise failed
            return result

        return asked


def join() -> World:
    """The world that torchrun started this process in, or one of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")
        atexit.register(dist.destroy_process_group)
    return World(dist.get_rank(), size)
