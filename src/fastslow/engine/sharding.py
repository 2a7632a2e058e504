"""FSDP2 for the local engine (`model.shard`): what learns is split over the processes.

PyTorch's `fully_shard` splits each layer's FP32 weights, its gradients once they are summed, and so
AdamW's moments. After every step the layers are gathered in the policy's dtype and stay whole while the
policy samples, scores and learns: each process has batches of its own, as many as it likes, and with
split layers all would have to meet at every pass. What is no layer (embedding, output layer, last norm)
is replicated.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, debug
from transformers.modeling_layers import GradientCheckpointingLayer

from fastslow.engine.world import World


class Shards:
    """A model's layers, split over the processes and gathered."""

    def __init__(self, model: Any, world: World) -> None:
        dtype: torch.dtype = model.dtype
        mixed = MixedPrecisionPolicy(
            param_dtype=None if dtype == torch.float32 else dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        mesh = init_device_mesh(model.device.type, (world.size,))
        atexit.register(_let_go)  # runs before the world ends: `join` came first
        self.size, self.layers = world.size, list[FSDPModule]()
        for layer in [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]:
            split = fully_shard(
                layer.float(), mesh=mesh, reshard_after_forward=False, mp_policy=mixed
            )
            split.set_reshard_after_backward(False)
            split.set_requires_gradient_sync(False)
            self.layers.append(split)
        # Collected now: once gathered, a model's parameters are the whole ones.
        self.parameters: list[Tensor] = list(model.parameters())
        self.split = {name for name, p in model.named_parameters() if isinstance(p, DTensor)}
        self.gather()

    def gather(self) -> None:
        """Let the layers compute with the weights as they are now."""
        for layer in self.layers:
            layer.reshard()
            layer.unshard()

    def add_up(self, touch: Callable[[], Tensor]) -> None:
        """Sum the layers' gradients over the processes; `touch` sends a number through all layers.

        FSDP2 sums in backward passes, which must then be as many on each process: one pass at the end,
        whose own gradient is zero, takes along what the others left.
        """
        for layer in self.layers:
            layer.set_requires_gradient_sync(True)
        (0 * touch()).backward()
        for layer in self.layers:
            layer.set_requires_gradient_sync(False)
        for parameter in self.parameters:
            if isinstance(parameter, DTensor) and parameter.grad is not None:
                parameter.grad.mul_(self.size)  # FSDP2 has averaged


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory; all of it where it is not split."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def _let_go() -> None:
    """Leave the process group to the world, which ends it, and gloo's threads with it.

    They live as long as anyone holds their group, and such a thread can abort a process that is at its
    end (pytorch/pytorch#179291). FSDP2's mesh holds the group, and DTensor's cache the mesh; PyTorch
    clears that cache by a private function only, which not every version has.
    """
    getattr(debug, "_clear_sharding_prop_cache", lambda: None)()
    gc.collect()
