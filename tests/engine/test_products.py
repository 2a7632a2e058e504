"""Products by oneDNN against FP64, those that widen half precision, and what uses them."""

from __future__ import annotations

import copy
import platform
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM

from fastslow.config import Config
from fastslow.engine import products
from fastslow.engine.loading import load_model
from fastslow.engine.local import LocalEngine

OPERATOR = "mkldnn::_linear_pointwise"  # private: that PyTorch still has it is tested here


@pytest.fixture
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any x86 processor can do what only some are asked to."""
    if platform.machine() != "x86_64":
        pytest.skip("oneDNN's operator is tested on x86-64")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)


def called(work) -> int:
    """How often oneDNN was."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        work()
    return sum(event.name == OPERATOR for event in profiler.events())


@pytest.mark.parametrize("sizes", [(300, 96, 160), (300, 160, 96)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_those_of_fp64(faster, sizes: tuple[int, ...], bias: bool):
    torch.manual_seed(0)
    many, ins, outs = sizes
    made, exact = products.Linear(ins, outs, bias), nn.Linear(ins, outs, bias).double()
    exact.load_state_dict(made.state_dict())
    rows, slope = torch.randn(3, many // 3, ins), torch.randn(3, many // 3, outs)

    def through(layer: nn.Linear) -> list[torch.Tensor]:
        given = rows.to(layer.weight.dtype, copy=True).requires_grad_()
        out = layer(given)
        out.backward(slope.to(out.dtype))
        return [out.detach(), given.grad, *(p.grad for p in layer.parameters())]

    found = []
    assert called(lambda: found.extend(through(made))) == 3  # forward, rows, weight
    for ours, theirs in zip(found, through(exact), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def test_only_what_needs_a_gradient_has_one_computed(faster):
    layer = products.Linear(128, 256)
    rows = torch.randn(128, 128)
    assert called(lambda: layer(rows).sum().backward()) == 2  # no gradient for the rows
    layer.requires_grad_(False)
    assert called(lambda: layer(rows.requires_grad_()).sum().backward()) == 2  # nor for the weight
    with torch.no_grad():
        torch.testing.assert_close(layer(rows), nn.Linear.forward(layer, rows))


def test_what_comes_out_may_be_changed_in_place(faster):
    torch.manual_seed(0)
    layer, rows = products.Linear(128, 256), torch.randn(2, 64, 128)
    grads = []
    for way in (layer, lambda rows: torch.nn.functional.linear(rows, layer.weight, layer.bias)):
        layer.zero_grad()
        way(rows).clamp_(-0.5, 0.5).square().sum().backward()
        grads.append(layer.weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_what_is_small_or_no_fp32_goes_pytorchs_way(faster):
    layer, rows = products.Linear(128, 256), torch.randn(128, 128)
    assert called(lambda: layer(rows)) == 1
    assert called(lambda: layer(rows[:8])) == 0
    half = copy.deepcopy(layer).bfloat16()
    assert called(lambda: half(rows.bfloat16())) == 0


def test_models_learn_and_score_as_with_pytorchs_products(faster, tiny: Path, monkeypatch):
    monkeypatch.setattr(products, "SMALL", 1)
    config = Config.parse({"model": {"name": str(tiny)}})
    ours = load_model(tiny, config.model, torch.device("cpu"), True)
    plain = AutoModelForCausalLM.from_pretrained(tiny).eval()
    ids = torch.arange(24).view(2, 12)

    def learn(model) -> dict[str, torch.Tensor]:
        model(input_ids=ids, labels=ids).loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters()}

    assert called(lambda: learn(ours)) == 3 * 15  # seven linear layers in two blocks, and the head
    ours.zero_grad()
    mine, theirs = learn(ours), learn(plain)
    assert mine.keys() == theirs.keys()
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-6)


def test_engine_in_bf16_has_its_fp32_head_by_onednn(faster, tiny: Path, monkeypatch):
    monkeypatch.setattr(products, "SMALL", 1)
    config = Config.parse({"model": {"name": str(tiny), "dtype": "bf16"}})
    engine = LocalEngine(config)
    assert called(lambda: engine.logprobs([([5, 6, 7], [8, 9])], "policy")) == 1


def test_a_compiled_model_keeps_its_linear_layers(faster, tiny: Path):
    config = Config.parse({"model": {"name": str(tiny), "compile": True}})
    kinds = {type(m) for m in load_model(tiny, config.model, torch.device("cpu"), True).modules()}
    assert nn.Linear in kinds
    assert products.Linear not in kinds


def test_what_bf16_held_is_multiplied_exactly_and_fp32_stays_fp32(monkeypatch):
    torch.manual_seed(0)
    left, right = torch.randn(8, 120, 64), torch.randn(8, 64, 90)
    assert left.numel() * 90 > products.SMALL
    settings = torch.backends.mkldnn.matmul
    before, allowed = settings.fp32_precision, []
    leave = products._rounding_allowed
    monkeypatch.setattr(products, "_rounding_allowed", lambda: allowed.append(1) or leave())
    for dtype, times in ((torch.float32, 0), (torch.bfloat16, 1)):
        a, b = (t.to(dtype).float() for t in (left, right))
        found = products.product(a, b, dtype)
        products.product(a[:, :8], b, dtype)  # few rows
        assert len(allowed) == times
        torch.testing.assert_close(found.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-4)
        assert settings.fp32_precision == before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp32_products_of_half_precision(device: str, monkeypatch: pytest.MonkeyPatch):
    """On a machine without a GPU its product alone is played by FP32's."""

    def widened(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if device == "cuda":
            return products.fp32_linear(rows, weight)
        return products._Widened.apply(rows.flatten(0, 1), weight).unflatten(0, rows.shape[:2])

    if device == "cpu":
        monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    elif not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    torch.manual_seed(0)
    half = [torch.randn(shape, device=device).bfloat16() for shape in [(2, 30, 64), (96, 64)]]
    slope = torch.randn(2, 30, 96, device=device)
    ways = []
    for way in (widened, lambda rows, weight: rows.float() @ weight.float().T):
        rows, weight = (t.clone().requires_grad_() for t in half)
        found = way(rows, weight)
        found.backward(slope)
        ways.append((found.detach(), rows.grad, weight.grad))
    (ours, *gradients), (plain, *expected) = ways
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-4)
    for gradient, wanted in zip(gradients, expected, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert (gradient - wanted).norm() < 0.01 * wanted.norm()  # 2 ** -8 is a BF16 step
