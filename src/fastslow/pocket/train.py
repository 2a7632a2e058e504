"""`python -m fastslow.pocket.train`: the whole recipe of the embedded model, from nothing.

Look-ups ("which node comes before 12?") are what a small transformer finds hard to discover. Three
things make them quick: heads of the first two layers that start out looking one and two tokens
back, dense samples before sparse ones, and Muon on the hidden matrices.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from fastslow import pocket
from fastslow.pocket import evaluate
from fastslow.pocket.curriculum import MIX, Sample, draw_sample
from fastslow.pocket.tokenizer import build
from fastslow.pocket.world import Code, Facts, Star

BATCH = 64
POOL = 16  # batches drawn together and sorted by length, which nearly removes padding
MUON, ADAM = 0.02, 3e-3
DECAY = 0.4  # the last part of training, over which learning rates fall to zero
THETA = 1e6
FASTEST = 10  # rotary pairs that make a positional head
STRENGTH = 3.0  # of its biases

Row = tuple[list[int], list[bool]]  # ids, and whether each carries loss
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def create(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A fresh model of about 1M parameters whose first two layers begin with positional heads."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        attention_bias=True,
        initializer_range=0.1,  # with 0.02 look-ups took several times as many steps
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    model.set_attn_implementation("eager")  # on a CPU its backward is 1.5 times as fast as sdpa's
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.fill_(1.5)
            layer.self_attn.k_norm.weight.fill_(1.5)
        for layer in model.model.layers[:2]:
            for head, offset in enumerate((1, 2)):
                look_back(layer.self_attn, head, offset)
    return model


def look_back(attention: Any, head: int, offset: int, size: int = 64) -> None:
    """Start a head with its score peaking `offset` tokens back.

    Rotary embedding turns q and k by their positions, so with q on the cosine axis and k turned by
    the offset in advance the score is a sum of cos(w (offset - distance)), greatest at the offset.
    Content weights shrink, so that position decides at first; they grow where that helps.
    """
    rows = slice(head * size, (head + 1) * size)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[rows] *= 0.1
        projection.bias[rows] = 0.0
    for pair in range(FASTEST):
        angle = THETA ** (-2 * pair / size) * offset
        attention.q_proj.bias[rows][pair] = STRENGTH
        attention.k_proj.bias[rows][pair] = STRENGTH * math.cos(angle)
        attention.k_proj.bias[rows][pair + size // 2] = STRENGTH * math.sin(angle)


def optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for embeddings, norms and biases."""
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not other for other in hidden)]
    return [
        torch.optim.Muon(hidden, lr=MUON, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=ADAM, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def encode(tokenizer: PreTrainedTokenizerFast, drawn: Sequence[Sample]) -> list[Row]:
    """Token ids of samples in the chat template's form, and which of them are to be learned."""
    assistant, end = (tokenizer.get_vocab()[token] for token in ("<|assistant|>", "<|end|>"))
    tokenizer.backend_tokenizer.no_padding()  # evaluation leaves it switched on
    many = tokenizer.backend_tokenizer.encode_batch
    heads = many(
        [
            (f"<|system|>{system}<|end|>" if system else "") + f"<|user|>{question}<|end|>"
            for system, question, _ in drawn
        ]
    )
    pieces = iter(many([text for *_, response in drawn for text, _ in response]))
    rows = []
    for head, (*_, response) in zip(heads, drawn, strict=True):
        ids: list[int] = [*head.ids, assistant]
        learn = [False] * len(ids)
        for _, wanted in response:
            piece = next(pieces).ids
            ids += piece
            learn += [wanted] * len(piece)
        rows.append(([*ids, end], [*learn, True]))
    return rows


def batches(tokenizer: PreTrainedTokenizerFast, rng: random.Random, steps: int) -> Iterator[Batch]:
    """Right-padded batches of ids, attention mask and learn mask."""
    for first in range(0, steps, POOL):
        count = min(POOL, steps - first)
        rows = encode(tokenizer, [draw_sample(rng, first / steps) for _ in range(count * BATCH)])
        rows.sort(key=lambda row: len(row[0]))
        groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
        rng.shuffle(groups)
        yield from map(_tensors, groups)


def _tensors(rows: Sequence[Row]) -> Batch:
    longest = -(-max(len(ids) for ids, _ in rows) // 16) * 16  # few shapes, see `logits_of`
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    seen, learn = torch.zeros_like(ids), torch.zeros(ids.shape, dtype=torch.bool)
    for i, (row, wanted) in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        seen[i, : len(row)] = 1
        learn[i, : len(row)] = torch.tensor(wanted)
    return ids, seen, learn


def logits_of(model: Qwen3ForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets of the learned tokens; no others are computed.

    The head stays outside of autocast: its number of rows differs every time, and the CPU's bf16
    kernels keep some 20 MB for every shape that they ever met.
    """
    ids, seen, learn = batch
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=seen, use_cache=False)[0]
    logits = model.lm_head(hidden[:, :-1][learn[:, 1:]].float())
    return logits, ids[:, 1:][learn[:, 1:]]


def train(out: Path, steps: int, seed: int, report: int = 200) -> None:
    """Run the recipe; print loss and accuracies and save the model on the way and at the end."""
    torch.manual_seed(seed)
    tokenizer = build()
    model, began = create(tokenizer), time.monotonic()
    tools = optimizers(model)
    rates = [group["lr"] for tool in tools for group in tool.param_groups]
    losses, tokens = [], 0
    for step, batch in enumerate(batches(tokenizer, random.Random(seed), steps), start=1):
        factor = min(1.0, step / 50, (steps - step + 1) / (DECAY * steps))
        for tool, rate in zip(tools, rates, strict=True):
            tool.param_groups[0]["lr"] = rate * factor
        loss = F.cross_entropy(*logits_of(model, batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for tool in tools:
            tool.step()
            tool.zero_grad()
        losses.append(loss.item())
        tokens += int(batch[1].sum())
        if step % report == 0 or step == steps:
            took = time.monotonic() - began
            print(
                f"step {step} loss {sum(losses) / len(losses):.3f} {took:.0f} s "
                f"{tokens / 1e6:.1f}M tokens{_progress(model, tokenizer)}",
                flush=True,
            )
            save(model, tokenizer, out)
            losses = []


@torch.inference_mode()
def _progress(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """Sampled accuracy under good advice per family, token accuracy per dense source."""
    state = torch.get_rng_state()  # measuring must not change the training that follows
    model.eval()
    said = ""
    for family in (Star(), Code(), Facts()):
        good = evaluate.accuracy(model, tokenizer, family, evaluate.trained(family.name), 100)
        said += f" {family.name} {good:.2f}"
    said += " |"
    for source, shares in MIX:
        if shares[0]:  # dense ones alone begin with a share
            rng = random.Random(7)
            rows = encode(tokenizer, [source(rng, 1.0) for _ in range(50)])
            logits, targets = logits_of(model, _tensors(rows))
            hits = (logits.argmax(-1) == targets).float().mean().item()
            said += f" {source.__name__} {hits:.2f}"
    model.train()
    torch.set_rng_state(state)
    return said


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Store weights rounded to bf16 in an fp32 file: it loads in fp32, and is exact in either."""
    rounded = {name: value.bfloat16().float() for name, value in model.state_dict().items()}
    rounded.pop("lm_head.weight", None)  # tied to the embedding
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out, state_dict=rounded)
    tokenizer.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the pocket model.")
    parser.add_argument("--out", type=Path, default=pocket.path())
    parser.add_argument("--steps", type=int, default=3200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.out, args.steps, args.seed)


if __name__ == "__main__":
    main()
