"""Models and tokenizers from disk or hub, or one clear line that says what is wrong with them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fastslow.config import LoraConfig, ModelConfig
from fastslow.engine.products import fp32_linear, speed_up
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
    """A causal LM in evaluation mode, all of it there."""
    adapter = _adapter_base(source)
    dtype = getattr(torch, model_config.dtype)
    try:
        model, found = _load(adapter or source, dtype, model_config.attention)
        if adapter is not None:
            model = _peft().PeftModel.from_pretrained(model, source).merge_and_unload()
            model.requires_grad_(True)
    except ConfigError:
        raise
    except Exception as error:  # damaged files raise whatever their parsers raise
        raise ModelError(f"model.name = {str(source)!r}: {first_line(error)}") from None
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelError(
            f"model.name = {str(source)!r}: {len(missing)} weights are missing, {missing[0]} first"
        )
    model.to(device).eval()  # no dropout: sampling and training must agree
    if device.type == "cpu" and not model_config.compile:
        speed_up(model)
    if fp32_logits and dtype != torch.float32:
        _fp32_head(model.get_output_embeddings())
    return model


def _load(
    source: str | Path, dtype: torch.dtype, attention: str | None
) -> tuple[Any, dict[str, Any]]:
    config = AutoConfig.from_pretrained(source)
    for name in config.to_dict():
        if name.endswith(("dropout", "pdrop")):
            setattr(
                config, name, 0.0
            )  # a layer that is checkpointed is in the mode that has dropout
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True
    )
    return loaded


def _adapter_base(source: str | Path) -> str | None:
    """The model that a folder of LoRA weights belongs to; None where the folder is a model itself."""
    place = Path(source) / "adapter_config.json"
    if not place.is_file():
        return None
    return str(json.loads(place.read_text())["base_model_name_or_path"])


def add_adapters(model: Any, source: str | Path, settings: LoraConfig) -> Any:
    """The model with fresh LoRA weights, which alone will learn; as yet they change nothing."""
    peft = _peft()
    wanted = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.targets,
        task_type="CAUSAL_LM",
    )
    model.name_or_path = str(source)  # what the saved adapter says it belongs to
    place = f"model.lora.targets = {settings.targets!r}"
    try:
        adapted = peft.get_peft_model(model, wanted).eval()
    except ValueError as error:
        raise ConfigError(f"{place}: {first_line(error)}") from None
    try:
        with torch.inference_mode():
            adapted(input_ids=torch.arange(4, device=model.device)[None])
    except (
        Exception
    ) as error:  # adapters do not fit what is called by other means than a layer's own
        raise ConfigError(
            f"{place}: with adapters there {str(source)!r} does not run ({type(error).__name__}: "
            f"{first_line(error)}); name the layers, such as [q_proj, v_proj]"
        ) from None
    return adapted


def checkpoint_activations(model: Any) -> None:
    """Let the passes that learn keep each layer's input alone."""
    old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"  # since 5.2x
    try:
        getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(f"model.gradient_checkpointing = True: {first_line(error)}") from None


def switch_checkpoints(model: Any, on: bool) -> None:
    """Transformers checkpoints where a module is in training mode. What is in it stays out of that mode,
    in which a mixture's router may draw lots (Phi-MoE)."""
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = on


def load_weights(model: Any, directory: Path, adapters: bool, without: Set[str]) -> None:
    """Give a model the weights that `save_pretrained` wrote: its adapters', or all but those named."""
    if adapters:
        peft = _peft()
        weights = peft.load_peft_weights(str(directory), device="cpu")
        peft.set_peft_model_state_dict(model, weights)
    else:
        loaded = AutoModelForCausalLM.from_pretrained(directory, dtype=model.dtype)
        weights = {k: v for k, v in loaded.state_dict().items() if k not in without}
        model.load_state_dict(weights, strict=not without)


@torch.no_grad()
def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """A model's weights under their Hugging Face names, what its adapters add included."""
    for name, weight in model.named_parameters():
        owner, _, leaf = name.removeprefix("base_model.model.").rpartition(".")
        if ".lora_" in name:
            continue
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            if leaf == "weight":
                adapted = model.get_base_model().get_submodule(owner)
                weight = weight + adapted.get_delta_weight(adapted.active_adapters[0])
        yield f"{owner}.{leaf}", weight


def _peft() -> Any:
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("model.lora: needs the peft package; pip install 'fastslow[lora]'")
    return importlib.import_module("peft")


def _fp32_head(head: Any) -> None:
    """Compute the output layer in FP32 (ScaleRL: half-precision logits set sampler and trainer apart)."""
    head.forward = lambda hidden: fp32_linear(hidden, head.weight, head.bias)


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


def context_length(config: Any, tokenizer: Any) -> int:
    """The most tokens that a model takes; where its config names no limit, its tokenizer's."""
    length: int = getattr(config.get_text_config(), "max_position_embeddings", None) or int(
        tokenizer.model_max_length
    )
    return length


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
