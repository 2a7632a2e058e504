"""Rows that share a context against plain transformers, each row a sequence of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config

from fastslow import Config
from fastslow.engine import attention, products
from fastslow.engine.cache import ATTENTION, Fork, SharedCache, shares
from fastslow.engine.forward import halve
from fastslow.engine.local import LocalEngine

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONTEXTS = torch.tensor([[0, 0, 7, 8, 9], [4, 5, 6, 7, 8], [0, 3, 9, 2, 4]])
MASKS = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]])


def models() -> list:
    torch.manual_seed(0)
    qwen = Qwen3Config(**SIZES, head_dim=16, attn_implementation="sdpa")
    llama = LlamaConfig(**SIZES, attn_implementation="sdpa")
    return [AutoModelForCausalLM.from_config(qwen).eval(), LlamaForCausalLM(llama).eval()]


def begin(model, cache):
    """Put the three contexts into a cache."""
    model(
        input_ids=CONTEXTS,
        attention_mask=MASKS,
        position_ids=(MASKS.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        fork=cache,
    )


def continued(model, cache, mask, tokens):
    """Logits of `tokens`, which continue what the cache holds; and the mask of all."""
    mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    out = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        fork=cache,
    )
    return out.logits, mask


def plain(model, context, mask, tokens):
    ids = torch.cat([context[mask.bool()], tokens])[None]
    return model(input_ids=ids, use_cache=False).logits[0, -len(tokens) :]


@pytest.mark.parametrize("limit", [2**23, 0], ids=["shared", "large"])
@pytest.mark.parametrize("roomy", [False, True])
@pytest.mark.parametrize(
    "parents",
    [[0, 0, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2], [2, 0, 1, 0, 1, 2], [0, 1, 2], [1, 1, 1, 1, 1, 0]],
    ids=["even", "uneven", "unsorted", "single", "lopsided"],
)
def test_rows_equal_those_that_are_forwarded_whole(monkeypatch, parents, roomy, limit):
    monkeypatch.setattr(attention, "SCORES", limit)
    for model in models():
        halve(model)
        assert shares(model.config)
        with torch.inference_mode():
            cache = SharedCache(model.config, roomy)
            begin(model, cache)
            rows = torch.tensor(parents)
            cache.batch_select_indices(rows)
            mask = MASKS[rows]
            tokens = torch.randint(10, 60, (len(rows), 5))
            for start, end in ((0, 1), (1, 2), (2, 4)):
                found, mask = continued(model, cache, mask, tokens[:, start:end])
                for row, parent in enumerate(rows):
                    expected = plain(model, CONTEXTS[parent], MASKS[parent], tokens[row, :end])
                    assert (found[row] - expected[start:]).abs().max() < 1e-5
            keep = torch.arange(1, len(rows), 2)  # some rows end
            cache.batch_select_indices(keep)
            found, _ = continued(model, cache, mask[keep], tokens[keep, 4:])
            for row, kept in enumerate(keep):
                parent = rows[kept]
                expected = plain(model, CONTEXTS[parent], MASKS[parent], tokens[kept])
                assert (found[row] - expected[4:]).abs().max() < 1e-5


def test_the_gradient_flows_through_what_is_shared():
    for model in models():
        rows = torch.tensor([0, 0, 0, 1, 1, 2, 2])
        tokens = torch.randint(10, 60, (7, 4))
        total = sum(
            plain(model, CONTEXTS[p], MASKS[p], tokens[r]).log_softmax(-1)[:, 0].sum()
            for r, p in enumerate(rows)
        )
        total.backward()
        expected = [p.grad for p in model.parameters()]
        model.zero_grad(set_to_none=True)
        halve(model)
        cache = SharedCache(model.config, roomy=False)
        begin(model, cache)
        cache.batch_select_indices(rows)
        logits, _ = continued(model, cache, MASKS[rows], tokens)
        logits.log_softmax(-1)[..., 0].sum().backward()
        for mine, theirs in zip(model.parameters(), expected, strict=True):
            assert (mine.grad - theirs).abs().max() < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("parents", [[0, 0, 1, 1], [1, 0, 1], [0, 1, 0, 0]])
def test_its_gradient_is_that_of_finite_differences(parents):
    torch.manual_seed(0)
    rows, contexts, kinds, width, length, size = len(parents), 2, 2, 3, 4, 2
    shapes = [(rows, kinds, 2 * width, size), *[(rows, kinds, width, size)] * 2]
    shapes += [(contexts, kinds, length, size)] * 2
    states = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    mask = torch.ones(width, length + width, dtype=torch.bool).tril(length).repeat(rows, 1, 1, 1)
    mask[0, :, :, :2] = False
    fork = Fork.of(torch.tensor(parents), contexts)
    fixed = fork, mask, 0.7, torch.float64
    assert torch.autograd.gradcheck(
        lambda *given: attention._Attention.apply(*fixed, *given), states
    )


def test_a_model_in_bf16_learns_as_it_does_in_fp32(monkeypatch):
    """With oneDNN's products, however small: weights are BF16's in both, so that rounding alone differs."""
    monkeypatch.setattr(products, "SMALL", 1)
    monkeypatch.setattr(products, "ROWS", 1)
    model = models()[0].bfloat16()
    gradients = []
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype).zero_grad(set_to_none=True)
        halve(model)
        assert shares(model.config)
        cache, rows = SharedCache(model.config, roomy=False), torch.tensor([0, 0, 0, 1, 1, 2, 2])
        begin(model, cache)
        cache.batch_select_indices(rows)
        logits, _ = continued(model, cache, MASKS[rows], torch.arange(10, 38).view(7, 4))
        logits.float().log_softmax(-1)[..., 0].sum().backward()
        gradients.append([p.grad.float() for p in model.parameters()])
    for half, whole in zip(*gradients, strict=True):
        assert (half - whole).norm() < 0.03 * whole.norm()


def test_a_model_that_does_not_pass_it_on_keeps_its_own(monkeypatch):
    model = models()[1]
    forward = type(model.model.layers[0].self_attn).forward

    def deaf(self, *args, fork=None, **kwargs):
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model.model.layers[0].self_attn), "forward", deaf)
    halve(model)
    assert model.config._attn_implementation == "sdpa"


def test_which_models_have_it(tiny: Path, tmp_path: Path):
    """And a checkpoint says nothing of it: other programs do not know its name."""
    for attention_name, expected in ((None, ATTENTION), ("eager", "eager")):
        settings = {"name": str(tiny), "attention": attention_name}
        engine = LocalEngine(Config.parse({"model": settings}))
        assert engine.policy.config._attn_implementation == expected
    engine = LocalEngine(Config.parse({"model": {"name": str(tiny)}}))
    engine.save(tmp_path)
    assert ATTENTION not in (tmp_path / "model/config.json").read_text()
