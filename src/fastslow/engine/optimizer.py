"""AdamW as the ScaleRL recipe has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastslow.config import SlowConfig
from fastslow.engine.world import World


class Optimizer:
    """AdamW with linear warm-up and clipping; half-precision weights learn through FP32 masters."""

    def __init__(self, parameters: list[Tensor], slow: SlowConfig) -> None:
        self.slow = slow
        self.parameters = parameters
        self.masters = [p if p.dtype == torch.float32 else p.detach().float() for p in parameters]
        self.reset()

    def reset(self) -> None:
        """Begin anew: no moments, no step taken."""
        self.steps, slow = 0, self.slow
        self.adam = torch.optim.AdamW(
            self.masters, lr=slow.lr, betas=slow.betas, weight_decay=slow.weight_decay
        )

    def add_up(self, world: World) -> None:
        """Sum the gradients over the processes; one that had nothing to learn from adds zeros."""
        if world.size > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            world.add([p.grad for p in self.parameters if p.grad is not None])

    def step(self) -> tuple[float, float]:
        """Apply and clear the gradients; returns their norm before clipping and the rate used."""
        self.steps += 1
        lr = self.slow.lr * min(1.0, self.steps / max(1, self.slow.warmup))
        for group in self.adam.param_groups:
            group["lr"] = lr
        for master, parameter in zip(self.masters, self.parameters, strict=True):
            if master is not parameter and parameter.grad is not None:
                master.grad = parameter.grad.float()
                parameter.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self.masters, self.slow.clip)
        if torch.isfinite(norm):  # one overflowing batch must not destroy the weights
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        return float(norm), lr

    def state(self) -> dict[str, Any]:
        masters = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        return {"adam": self.adam.state_dict(), "masters": masters, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        self.steps = state["steps"]
        own = [m for m, p in zip(self.masters, self.parameters, strict=True) if m is not p]
        for mine, saved in zip(own, state["masters"], strict=True):
            mine.copy_(saved)
