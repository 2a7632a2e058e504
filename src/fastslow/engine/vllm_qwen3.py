"""Qwen3 whose attention output has a bias, which vLLM's own Qwen3 drops without a word."""

from __future__ import annotations

from vllm.config import VllmConfig
from vllm.model_executor.layers.linear import RowParallelLinear
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM


class Qwen3WithOutputBias(Qwen3ForCausalLM):
    """As Hugging Face computes `attention_bias: true`: a bias on all four projections."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        for layer in self.model.layers:
            plain = layer.self_attn.o_proj
            layer.self_attn.o_proj = RowParallelLinear(
                plain.input_size,
                plain.output_size,
                bias=True,
                quant_config=vllm_config.quant_config,
                prefix=plain.prefix,
            )
