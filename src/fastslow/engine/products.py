"""FP32 products where PyTorch's usual way wastes what the machine can do.

PyTorch hands a CPU's FP32 products to MKL, which uses AVX-512 on Intel's processors alone. oneDNN, which
PyTorch carries for BF16, uses it on AMD's too. The only way there that never rounds FP32 is the operator
of PyTorch's compiler; it is private and has no gradient, so the gradient is written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALL = 2**21  # a product of fewer multiplications gains less than the call costs
ROWS = 16  # a matrix of fewer rows, such as one token's, is not worth a kernel for every length


def speed_up(model: nn.Module) -> None:
    """Let a model's FP32 linear layers multiply by `linear`, on a machine where that differs."""
    if not onednn_is_faster():
        return
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.float32:
            module.__class__ = Linear


@cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, under a PyTorch that has MKL and oneDNN."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    processor = Path("/proc/cpuinfo")
    return (
        processor.is_file()
        and "AuthenticAMD" in processor.read_text()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` in the faster way: rows [..., in], weight [out, in], bias [out]."""
    large = rows.numel() * weight.size(0) >= SMALL
    fp32 = rows.dtype == weight.dtype == torch.float32
    if not (large and fp32 and rows.device.type == "cpu" and onednn_is_faster()):
        return F.linear(rows, weight, bias)
    way = _Product.apply if torch.is_grad_enabled() else _onednn
    return _unflat(way(_flat(rows), weight, bias), rows)


def fp32_linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of half-precision rows and weights with an FP32 result, of which nothing was rounded away.

    CUDA accumulates such products in FP32 and can give that out: no FP32 copy of the weights, no slower
    product. Slopes then go back in half precision, as in mixed-precision training anywhere.
    """
    if rows.device.type != "cuda" or torch.version.cuda is None or rows.dtype != weight.dtype:
        return linear(rows.float(), weight.float(), bias)
    found = _unflat(_Widened.apply(_flat(rows), weight), rows)
    return found if bias is None else found + bias


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """`left @ right` of FP32 matrices in a model of `dtype`, without gradient; a BF16 model's by oneDNN.

    It may round to BF16 what it multiplies, and does where there are units for that (AMX): exact for what
    BF16 held, such as queries and keys. Elsewhere its FP32 kernels are used. Sums are FP32 in either case.
    """
    large = left.numel() * right.shape[-1] >= SMALL and left.shape[-2] >= ROWS
    if dtype != torch.bfloat16 or not large:
        return left @ right
    with _rounding_allowed():
        return left @ right


@contextmanager
def _rounding_allowed() -> Iterator[None]:
    """PyTorch hands batches of FP32 products to oneDNN only so. Rotary positions would not bear it."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # its module makes it
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class _Product(torch.autograd.Function):
    """Of matrices alone: a view made in here could not be changed in place, as OLMo's clipping does."""

    @staticmethod
    def forward(ctx: Any, rows_NI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows_NI, weight)
        return _onednn(rows_NI, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope_NO: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows_NI, weight = ctx.saved_tensors
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        into_weight = None
        if for_weight and len(weight) <= weight.shape[1]:  # what comes first is copied
            into_weight = linear(slope_NO.T, rows_NI.T)
        elif for_weight:
            into_weight = linear(rows_NI.T, slope_NO.T).T
        into_rows = linear(slope_NO, weight.T) if for_rows else None
        return into_rows, into_weight, slope_NO.sum(0) if for_bias else None


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_NI: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows_NI, weight)
        return torch.mm(rows_NI, weight.T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, slope_NO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows_NI, weight = ctx.saved_tensors
        for_rows, for_weight = ctx.needs_input_grad
        slope_NO = slope_NO.to(rows_NI.dtype)
        into_rows = slope_NO @ weight if for_rows else None
        return into_rows, slope_NO.T @ rows_NI if for_weight else None


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[-1])


def _unflat(found: Tensor, rows: Tensor) -> Tensor:
    return found.view(*rows.shape[:-1], -1)
