"""What vLLM must be given so that it computes a model as Hugging Face and the trainer do.

In this process `VllmSampler` sees to it. A server meets it where fastslow is installed beside vLLM:
`register` is a plugin (`vllm.general_plugins`) that vLLM calls in each of its processes, `TakesWeights`
is named by `--worker-extension-cls` and needed on a CPU alone. Imports no vLLM by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from fastslow.config import Config

BIASED = "Qwen3WithOutputBias"
EXTENSION = "fastslow.engine.vllm_plugin.TakesWeights"


def register() -> None:
    """Let vLLM know of models that it has, but computes otherwise."""
    from vllm import ModelRegistry

    if BIASED not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(BIASED, f"fastslow.engine.vllm_qwen3:{BIASED}")


def overrides(config: Config, source: str | Path) -> dict[str, Any]:
    """vLLM's `hf_overrides` for a model that the trainer computes with these settings."""
    found: dict[str, Any] = {}
    if config.slow.fp32_logits and config.model.dtype != "float32":
        found["head_dtype"] = "float32"
    model = AutoConfig.from_pretrained(source)
    if model.model_type == "qwen3" and model.attention_bias:
        found["architectures"] = [BIASED]
    return found


def repack_head(model: Any) -> None:
    """Let the output layer see its new weights.

    On a CPU, linear layers compute with a packed copy. A reload packs each layer that it has loaded, but
    an output layer that is tied to the embedding is not loaded by itself.
    """
    head = model.lm_head
    head.quant_method.process_weights_after_loading(head)


class TakesWeights:
    """Joins a server's worker class: one call more for `/collective_rpc`."""

    def take_weights(self: Any, weights_path: str) -> None:
        """As `reload_weights` of the files in a folder, on a CPU too."""
        self.reload_weights(weights_path=weights_path)
        self.apply_model(repack_head)
