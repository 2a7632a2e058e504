"""Models and tokenizers from disk or hub, or one clear line that says what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from fastslow.config import ModelConfig
from fastslow.errors import ConfigError, ModelError


def find_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"model.device = {name!r}: {first_line(error)}") from None


def load_model(
    source: str | Path, model_config: ModelConfig, device: torch.device, fp32_logits: bool
) -> Any:
    """A causal LM in evaluation mode, all of it there and of a kind that the engine can serve."""
    dtype = getattr(torch, model_config.dtype)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
    except Exception as error:  # damaged files raise whatever their parsers raise
        raise ModelError(f"model.name = {str(source)!r}: {first_line(error)}") from None
    model, found = loaded
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"model.name = {str(source)!r}: {len(missing)} weights are missing, {missing[0]} first"
        )
    odd = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers}
    if odd - {"DynamicLayer"}:
        raise ModelError(
            f"model.name = {str(source)!r}: its layers keep {', '.join(sorted(odd))}; the local engine "
            "takes models with full attention in every layer (Qwen3, Llama and the like)"
        )
    model.to(device).eval()  # no dropout: sampling and training must agree
    if fp32_logits and dtype != torch.float32:
        _fp32_head(model.get_output_embeddings())
    return model


def _fp32_head(head: Any) -> None:
    """Compute the output layer in FP32 (ScaleRL: half-precision logits set sampler and trainer apart)."""
    head.forward = lambda hidden: F.linear(hidden.float(), head.weight.float(), head.bias)


def load_tokenizer(source: str | Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # damaged files raise whatever their parsers raise
        raise ModelError(f"model.name = {str(source)!r}: {first_line(error)}") from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"model.name = {str(source)!r}: the tokenizer has no chat template; use an instruction-tuned "
            "model or put a chat_template.jinja beside its tokenizer"
        )
    return tokenizer


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
