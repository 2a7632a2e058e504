"""Tiny random models of many families, and what plain transformers and plain autograd say of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from fastslow import Config
from fastslow.engine.base import Datum, SamplingParams
from fastslow.engine.local import LocalEngine

SIZES = {
    "vocab_size": 1200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WINDOW = 6
RECURRENT = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {"sliding_window": WINDOW},
    "Gemma2": {"sliding_window": WINDOW},  # soft caps on logits, every other layer a window
    "Gemma3Text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Qwen3Moe": EXPERTS,
    "Qwen3_5Text": RECURRENT,
}
# Contexts of different lengths, beyond the window, two of them with a stem in common.
STEM = list(range(20, 40))
CONTEXTS = [[*STEM, 50, 51, 52], [*STEM, 60], [*range(70, 79)]]


def made(family: str, tiny: Path, directory: Path, **settings: Any) -> Path:
    """A directory with a random model of the family, and the tokenizer of the pocket model."""
    shutil.copytree(tiny, directory)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")
    settings = settings or SIZES | FAMILIES[family]
    model = AutoModelForCausalLM.from_config(config(**settings))
    model.save_pretrained(directory)
    return directory


def engine(place: Path, **sections: dict) -> LocalEngine:
    model = {"name": str(place), **sections.pop("model", {})}
    slow = {"lr": 1e-2, "warmup": 0, "kl": 0.1, "clip": 1e6, **sections.pop("slow", {})}
    return LocalEngine(Config.parse({"model": model, "slow": slow, **sections}))


def plain_logprobs(model, context: list[int], tokens: list[int]) -> torch.Tensor:
    """From one forward pass over one unpadded sequence, without a cache."""
    logits = model(input_ids=torch.tensor([context + tokens]), use_cache=False).logits[0].float()
    at = torch.arange(len(tokens)) + len(context) - 1
    return logits.log_softmax(-1)[at, torch.tensor(tokens)]


def batch(model: LocalEngine) -> list[Datum]:
    """Responses to learn from, of different lengths, advantages of both signs."""
    rows = model.sample(CONTEXTS, [3, 1, 4], SamplingParams(max_tokens=12), seed=1)
    drawn = [(c, s) for c, row in zip(CONTEXTS, rows, strict=True) for s in row]
    data = []
    for i, (context, sample) in enumerate(drawn):
        tokens, logprobs = sample.tokens[: 12 - i], sample.logprobs[: 12 - i]
        weights = [1 / (len(drawn) * len(tokens))] * len(tokens)
        data.append(Datum(context, tokens, logprobs, weights, [(-1.0) ** i] * len(tokens)))
    return data


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer", ""): weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }


def learned(model: LocalEngine, data: list[Datum]) -> dict[str, torch.Tensor]:
    """The gradients of an update, which its optimizer would clear."""
    model._optimizer.step = lambda: (1.0, 0.0)  # type: ignore[method-assign]
    model.update(data)
    return gradients(model.policy)


def plain_gradients(place: Path, data: list[Datum]) -> dict[str, torch.Tensor]:
    """Of CISPO with a penalty for leaving the base, which is the same model, by its formula."""
    plain, total = AutoModelForCausalLM.from_pretrained(place).eval(), torch.zeros(())
    for datum in data:
        logprobs = plain_logprobs(plain, datum.context, datum.tokens)
        ratio = (logprobs.detach() - torch.tensor(datum.logprobs)).exp().clamp(max=3.0)
        gap = logprobs.detach() - logprobs
        loss = -ratio * torch.tensor(datum.advantages) * logprobs + 0.1 * (gap.exp() - gap - 1)
        total = total + (loss * torch.tensor(datum.weights)).sum()
    total.backward()
    return gradients(plain)


def assert_predicts_as_plain(made: LocalEngine, place: Path) -> None:
    """What is sampled, and scored again, has the plain model's log-probabilities."""
    plain = AutoModelForCausalLM.from_pretrained(place).eval()
    rows = made.sample(CONTEXTS, [2, 2, 2], SamplingParams(max_tokens=12), seed=0)
    sequences = [(c, s.tokens) for c, row in zip(CONTEXTS, rows, strict=True) for s in row]
    behaviour = [s.logprobs for row in rows for s in row]
    scored = made.logprobs(sequences, "policy")
    for (context, tokens), mine, again in zip(sequences, behaviour, scored, strict=True):
        expected = plain_logprobs(plain, context, tokens)
        assert torch.tensor(mine).sub(expected).abs().max() < 2e-5
        assert torch.tensor(again).sub(expected).abs().max() < 2e-5


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = expected[name].abs().max().clamp(min=1e-4)
        assert (gradient - expected[name]).abs().max() < 2e-4 * scale, name
