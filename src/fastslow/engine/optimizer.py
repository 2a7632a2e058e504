"""AdamW as the ScaleRL recipe has it, on one process or several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fastslow.config import SlowConfig
from fastslow.engine.sharding import own_part
from fastslow.engine.world import World


class Optimizer:
    """AdamW with linear warm-up and clipping; half-precision weights learn through FP32 masters.

    Of a weight that is split over the processes the master is this one's part.
    """

    def __init__(self, parameters: list[Tensor], slow: SlowConfig, world: World) -> None:
        self.slow, self.world = slow, world
        self.parameters = parameters
        self.masters = [_master(parameter) for parameter in parameters]
        self.reset()

    def reset(self) -> None:
        """Begin anew: no moments, no step taken."""
        self.steps, slow = 0, self.slow
        self.adam = torch.optim.AdamW(
            self.masters, lr=slow.lr, betas=slow.betas, weight_decay=slow.weight_decay
        )

    def add_up(self) -> None:
        """Sum the gradients over the processes; one that had nothing to learn from adds zeros."""
        whole = [p for p in self.parameters if not isinstance(p, DTensor)]
        if self.world.size > 1:
            for parameter in whole:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.world.add([p.grad for p in whole if p.grad is not None])

    def step(self) -> tuple[float, float]:
        """Apply and clear the gradients; returns their norm before clipping and the rate used."""
        self.steps += 1
        lr = self.slow.lr * min(1.0, self.steps / max(1, self.slow.warmup))
        for group in self.adam.param_groups:
            group["lr"] = lr
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad = own_part(parameter.grad).float()
                parameter.grad = None
        norm = self._norm()
        torch.nn.utils.clip_grads_with_norm_(self.masters, self.slow.clip, norm)
        if torch.isfinite(norm):  # one overflowing batch must not destroy the weights
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                if master is not parameter and not isinstance(parameter, DTensor):
                    parameter.copy_(master)
        return float(norm), lr

    def _norm(self) -> Tensor:
        """Of all gradients: those that each process has, and all parts of those that are split."""
        parts: dict[bool, list[Tensor]] = {True: [], False: []}
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master.grad is not None:
                parts[isinstance(parameter, DTensor)].append(master.grad)
        norm = torch.nn.utils.get_total_norm(parts[False])
        if parts[True]:
            square = torch.nn.utils.get_total_norm(parts[True]).square()
            self.world.add([square])
            norm = (norm.square() + square).sqrt()
        return norm

    def state(self) -> dict[str, Any]:
        masters = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        return {"adam": self.adam.state_dict(), "masters": masters, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
        own = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        for mine, saved in zip(own, state["masters"], strict=True):
            mine.copy_(saved)


def _master(parameter: Tensor) -> Tensor:
    part = own_part(parameter)
    return part if part.dtype == torch.float32 else part.detach().float()
