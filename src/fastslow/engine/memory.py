"""How much memory the local engine takes on its device, by what it is for; and how much it took."""

from __future__ import annotations

import ctypes
import os
import re
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastslow import pocket
from fastslow.config import Config
from fastslow.engine.attention import SCORES
from fastslow.engine.layout import keeps_tokens
from fastslow.engine.loading import first_line
from fastslow.engine.products import onednn_is_faster
from fastslow.errors import ModelError

# oneDNN makes kernels for every new shape and keeps the last 1,024, some 25 steps'. Beside what they take
# they leave holes among what is freed: in all 0.25 to 0.6 GiB in runs of 24 steps.
KERNELS, FULL = 450 * 2**20, 25


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's sizes, from its configuration alone: no weights are loaded."""

    source: str | Path
    parameters: int
    linear: int  # parameters of linear layers but the output's, in and out summed per layer
    layers: int
    hidden: int
    heads: int
    queries: int  # heads x head size
    keys: int  # key-value heads x head size
    inner: int  # of the feed-forward part
    vocabulary: int
    shares: bool  # contexts, in learning

    @classmethod
    def of(cls, config: Config) -> Shape:
        name = config.model.name
        source = pocket.path() if name == "pocket" else name
        try:
            found: Any = AutoConfig.from_pretrained(source)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(found)
        except Exception as error:
            raise ModelError(f"model.name = {str(source)!r}: {first_line(error)}") from None
        text = found.get_text_config()
        # Layers may differ, as Gemma 4's do in the size of their heads: averages then.
        each = list(getattr(text, "per_layer_config", [])) or [text]
        queries, keys, inner = (
            round(sum(sizes) / len(each)) for sizes in zip(*map(_widths, each), strict=True)
        )
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        layers = [m for m in layers if m is not model.get_output_embeddings()]
        return cls(
            source=source,
            parameters=sum({id(p): p.numel() for p in model.parameters()}.values()),
            linear=sum(m.in_features + m.out_features for m in layers),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=_heads(text),
            queries=queries,
            keys=keys,
            inner=inner,
            vocabulary=text.vocab_size,
            shares=keeps_tokens(found),
        )


def _heads(layer: Any) -> int:
    return getattr(layer, "num_attention_heads", None) or 1  # Mamba has none


def _widths(layer: Any) -> tuple[int, int, int]:
    """Of a layer's queries, keys and feed-forward part."""
    heads = _heads(layer)
    head: int = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    keys = getattr(layer, "num_key_value_heads", None) or heads
    return (
        heads * head,
        keys * head,
        getattr(layer, "intermediate_size", None) or 4 * layer.hidden_size,
    )


def parts_of_memory(
    config: Config, shape: Shape, context: float, response: float
) -> dict[str, float]:
    """Bytes by purpose. Sampling and learning take turns: the peak is the rest with the larger of the two.

    What layers keep for the backward pass is counted from Qwen3's layout, other families differ a little.
    """
    loop, engine = config.loop, config.engine
    size = 4 if config.model.dtype == "float32" else 2
    lora = config.model.lora
    learned = shape.parameters if lora is None else lora.rank * shape.linear
    masters = learned if size == 2 and lora is None else 0
    width = context + response
    kept = 8 * shape.hidden + 5 * shape.queries + 4 * shape.keys + 4 * shape.inner
    per_token = size * shape.layers * kept
    if lora is not None:  # what each adapter adds to its layer's output
        per_token += size * shape.linear // 2
    shares_contexts = shape.shares and not config.model.gradient_checkpointing
    if config.model.gradient_checkpointing:
        # Inputs of all layers, and one layer's activations with their gradients (4: as measured, with
        # what the allocator cannot put to use again at once).
        per_token = size * (shape.layers * shape.hidden + 4 * kept)
    contexts = config.fast.k if shares_contexts else loop.group
    tokens = loop.problems * (context * contexts + loop.group * response)
    micro = min(engine.token_budget, tokens)
    # On a CPU attention keeps its shares in FP32, and has three copies of a layer's at work.
    shares = micro / tokens * loop.problems * loop.group * shape.heads * response * width
    if torch.cuda.is_available() or not shares_contexts or shares > SCORES:
        shares = 0
    logits = min(engine.logits, micro * shape.vocabulary)
    rows = min(engine.rows, loop.problems * loop.group)
    base = 0 if lora is not None and config.model.base is None else size * shape.parameters
    process = (
        0 if torch.cuda.is_available() else peak_memory()
    )  # a CPU's memory holds the libraries too
    onednn = not torch.cuda.is_available() and (size == 2 or onednn_is_faster())
    return {
        "process": process,
        "kernels": KERNELS * min(1, loop.steps / FULL) if onednn else 0,
        "weights": size * shape.parameters + (4 * learned if lora is not None else 0),
        "base": base,
        "gradients": size * learned + 4 * masters,
        "optimizer": 4 * (2 * learned + masters),
        "learning": micro * per_token + 4 * (shape.layers + 3) * shares + 3 * 4 * logits,
        "sampling": rows * width * shape.layers * 2 * shape.keys * size
        + 8 * rows * shape.vocabulary,
    }


def keep_freed_memory() -> None:
    """Let this process keep the CPU memory that it frees, for its next tensors, where glibc manages it.

    glibc asks the system for each large block and gives it back when freed; the system clears every page
    that it hands out, which took up to half of an update. A user's own MALLOC_ settings hold.
    """
    max_mmaps, trim_threshold = -4, -1  # as malloc.h numbers them
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt(max_mmaps, 0)
    mallopt(trim_threshold, -1)


def peak(parts: dict[str, float]) -> float:
    """The most that is held at once, in bytes."""
    both = parts["learning"], parts["sampling"]
    return sum(parts.values()) - min(both)


def peak_memory() -> int:
    """The most that this process has held so far, in bytes: on its GPU where it has one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):  # Linux's own count: getrusage's begins with the parent process's
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
        if found is not None:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
