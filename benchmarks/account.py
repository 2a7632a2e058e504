"""Where the time of one update goes, part by part of the model, and what keeps each from the peak.

    python benchmarks/account.py                          # the pocket shape, and 512 wide x 8 layers

One `engine.update` of 128 rollouts (16 problems x 8, one system prompt) under torch.profiler. Every
operator's own time goes to the part of the model whose forward pass called it; an operator of the
backward pass to the part whose forward operator it differentiates (by autograd's sequence numbers); what
belongs to no operator is Python's. So the parts add up to the whole step. GFLOP are counted from the
shapes of all products; "alone" is the time that the same products take by themselves, each shape
measured with its operands in the cache, and "peak" the time they would take at the rate of a 2048-wide
square product. A part is limited by its shapes where "alone" is far above "peak", and by what stands around
its products (norms, activations, copies, calls) where its time is far above "alone".

One thread, and seconds are its processor time, so that other work on the machine matters little; the
profiler's own seconds give the shares, and are scaled to those of an update without it. Shapes are noted
in updates of their own, which take longer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import Load, linear_flop, make_engine, matmul_peak, quiet, random_model, rate, sample
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AttentionInterface
from transformers.models.qwen3 import modeling_qwen3

from fastslow.engine import forward
from fastslow.engine.base import Datum
from fastslow.engine.local import LocalEngine
from fastslow.engine.products import linear

LARGE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
MARK = "part: "
LEARNING = "an update"
PARTS = {  # by what a module's name ends with
    "embed_tokens": "embedding",
    "q_proj": "attention projections",
    "k_proj": "attention projections",
    "v_proj": "attention projections",
    "o_proj": "attention projections",
    "norm": "norms and rotary",
    "rotary_emb": "norms and rotary",
    "self_attn": "views, caches",
    "mlp": "MLP",
    "lm_head": "head and loss",
    "model": "views, caches",
}
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
ONEDNN = "mkldnn::_linear_pointwise"
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


@dataclass
class Part:
    forward: float = 0.0  # seconds
    backward: float = 0.0
    gflop: float = 0.0
    shapes: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))


def labelled(function: Callable[..., Any], part: str) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + part):
            return function(*args, **kwargs)

    return called


def label(engine: LocalEngine) -> None:
    """Have every part of the model say its name to the profiler."""
    for name, module in engine.policy.named_modules():
        for ending, part in PARTS.items():
            if name.endswith(ending):
                module.forward = labelled(module.forward, part)
                break
        else:
            if type(module).__name__ == "Qwen3DecoderLayer":
                module.forward = labelled(module.forward, "residual sums")
    named = engine.policy.config._attn_implementation
    inside = AttentionInterface()[named]
    AttentionInterface.register(named, labelled(inside, "attention"))
    rotary = modeling_qwen3.apply_rotary_pos_emb
    modeling_qwen3.apply_rotary_pos_emb = labelled(rotary, "norms and rotary")
    forward.read = labelled(forward.read, "head and loss")
    engine._loss = labelled(engine._loss, "head and loss")  # type: ignore[method-assign]
    engine._optimizer.step = labelled(engine._optimizer.step, "optimizer")  # type: ignore[method-assign]


def flop(name: str, shapes: list[list[int]]) -> float:
    """Of one operator, from the shapes of its inputs; 0 for what is no product."""
    if name in PRODUCTS:
        a, b = [shape for shape in shapes if len(shape) > 1][-2:]
        return 2.0 * torch.Size(a).numel() * b[-1]
    if name == ONEDNN:
        return linear_flop(*shapes[:2])
    if name == FLASH:
        return 4.0 * torch.Size(shapes[0]).numel() * shapes[1][-2]
    if name == FLASH + "_backward":  # five products where forward has two
        return 10.0 * torch.Size(shapes[1]).numel() * shapes[2][-2]
    return 0.0


def attribute(events: Any) -> dict[str, Part]:
    """Every event's own seconds to its part."""
    made: dict[int, str] = {}  # part by sequence number of the forward operator
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.sequence_nr >= 0 and not event.name.startswith("autograd::"):
            found, backward = place(event, made)
            if not backward:
                made[event.sequence_nr] = found
    parts: dict[str, Part] = defaultdict(Part)
    for event in events:
        name, backward = place(event, made)
        part, seconds = parts[name], event.self_cpu_time_total / 1e6
        if backward:
            part.backward += seconds
        else:
            part.forward += seconds
        work = flop(event.name, event.input_shapes) if event.input_shapes else 0.0
        if work:
            part.gflop += work / 1e9
            part.shapes[event.name, json.dumps(event.input_shapes)] += 1
    return parts


def place(event: Any, made: dict[int, str]) -> tuple[str, bool]:
    """The part that an event belongs to, and whether it is of its backward pass."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK), False
        if event.name.startswith("autograd::engine::evaluate_function"):
            if "AccumulateGrad" in event.name:
                return "gradients kept", True
            return made.get(event.sequence_nr, "Python, packing, masks"), True
        event = event.cpu_parent
    return "Python, packing, masks", False


def speed(work: Callable[[], Any], flop: float, tries: int) -> float:
    return rate(work, flop, tries, clock=time.process_time)


def alone(part: Part) -> float:
    """Seconds that a part's products take by themselves, each at the best rate of its shape."""
    total = 0.0
    for (name, text), count in part.shapes.items():
        shapes = json.loads(text)
        work = flop(name, shapes)
        if name in PRODUCTS:
            a, b = (torch.randn(shape) for shape in [s for s in shapes if len(s) > 1][-2:])
            total += count * work / speed(lambda a=a, b=b: a @ b, work, 5) / 1e9  # type: ignore[misc]
        elif name == ONEDNN:
            a, b = (torch.randn(shape) for shape in shapes[:2])
            total += count * work / speed(lambda a=a, b=b: linear(a, b), work, 5) / 1e9  # type: ignore[misc]
        else:
            q, k = (torch.randn(s) for s in (shapes[:2] if name == FLASH else shapes[1:3]))
            scores = 4.0 * q.numel() * k.shape[-2]
            found = speed(lambda q=q, k=k: (q @ k.mT) @ k, scores, 5)  # type: ignore[misc]
            total += count * work / found / 1e9
    return total


def profiled(engine: LocalEngine, data: list[Datum], steps: int, shapes: bool) -> dict[str, Part]:
    """Parts of so many updates. Noting shapes makes wide updates up to twice as long."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=shapes) as profiler:
        for _ in range(steps):
            with record_function(LEARNING):
                engine.update(data)
    return attribute(profiler.events())


def account(name: str, sizes: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        engine = make_engine(random_model(Path(folder), **sizes))
    data = sample(engine, Load())
    plain = []
    for _ in range(args.steps + 1):
        began = time.process_time()
        engine.update(data)
        plain.append(time.process_time() - began)
    label(engine)
    parts = profiled(engine, data, args.steps, shapes=False)
    for name_, part in profiled(engine, data, args.steps, shapes=True).items():
        parts[name_].gflop, parts[name_].shapes = part.gflop, part.shapes
    peak = matmul_peak(clock=time.process_time)
    step, whole = median(plain[1:]), sum(part.forward + part.backward for part in parts.values())
    scale = step / whole  # `whole` is of all the steps profiled
    print(
        f"\n{name}: an update takes {step:.3f} s, {whole / args.steps:.3f} s in the profiler; ",
        end="",
    )
    print(f"peak {peak:.0f} GFLOP/s\n")
    columns = ("part", "forward s", "backward s", "share", "GFLOP", "of peak", "alone s", "peak s")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    rows = {}
    for name_, part in sorted(parts.items(), key=lambda p: -p[1].forward - p[1].backward):
        ahead, back = part.forward * scale, part.backward * scale
        gflop, best = part.gflop / args.steps, alone(part) / args.steps
        row = [ahead, back, (ahead + back) / step, gflop]
        row += [gflop / (ahead + back) / peak, best, gflop / peak]
        rows[name_] = row
    rows["all"] = [sum(row[i] for row in rows.values()) for i in range(7)]
    rows["all"][4] = rows["all"][3] / step / peak
    for name_, row in rows.items():
        cells = [f"{row[0]:.3f}", f"{row[1]:.3f}", f"{row[2]:.0%}", f"{row[3]:.2f}"]
        cells += [f"{row[4]:.0%}", f"{row[5]:.3f}", f"{row[6]:.3f}"] if row[3] else ["", "", ""]
        print("| " + " | ".join([name_, *cells]) + " |")
    return {"step": step, "matmul_gflops": peak, "columns": columns, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", default=["pocket", "large"])
    args = parser.parse_args()
    quiet(1)
    shapes: dict[str, dict[str, Any]] = {"pocket": {}, "large": LARGE}
    found = {name: account(name, shapes[name], args) for name in args.shapes}
    print(json.dumps(vars(args) | found))


if __name__ == "__main__":
    main()
