"""Sequences into padded tensors: contexts once each on the left, responses on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Sequences = Sequence[tuple[list[int], list[int]]]


@dataclass(slots=True)
class Packed:
    """C contexts and R responses to them; `rows[r]` is row r's place in the caller's list."""

    contexts_CP: Tensor
    context_mask_CP: Tensor
    parent_R: Tensor
    tokens_RT: Tensor
    token_mask_RT: Tensor
    rows: list[int]

    def pad(self, values: Sequence[Sequence[float]]) -> Tensor:
        """The caller's per-token `values` as a [R, T] float tensor, zero where padded."""
        out_RT = torch.zeros(self.tokens_RT.shape, dtype=torch.float32)
        for r, row in enumerate(self.rows):
            out_RT[r, : len(values[row])] = torch.tensor(values[row], dtype=torch.float32)
        return out_RT.to(self.tokens_RT.device)


def pad_left(
    contexts: Sequence[list[int]], pad: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [C, P]."""
    width = max(map(len, contexts))
    ids_CP = torch.full((len(contexts), width), pad)
    mask_CP = torch.zeros((len(contexts), width), dtype=torch.long)
    for c, context in enumerate(contexts):
        ids_CP[c, width - len(context) :] = torch.tensor(context)
        mask_CP[c, width - len(context) :] = 1
    return ids_CP.to(device), mask_CP.to(device)


def positions(mask: Tensor) -> Tensor:
    """Position ids of a left-padded batch; padding gets 0, which attention never sees."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pack(
    sequences: Sequences, token_budget: int, pad: int, device: torch.device
) -> Iterator[Packed]:
    """Micro-batches of like lengths, each of at most `token_budget` padded tokens (or one sequence)."""
    by_context: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, _) in enumerate(sequences):
        by_context.setdefault(tuple(ids), []).append(row)
    order = sorted(by_context.items(), key=lambda item: (len(item[0]), item[1][0]))
    chosen: list[tuple[tuple[int, ...], list[int]]] = []
    width = length = count = 0
    for context, rows in order:
        for row in rows:
            new = not chosen or chosen[-1][0] != context
            wider, longer = max(width, len(context)), max(length, len(sequences[row][1]))
            cost = (len(chosen) + new) * wider + (count + 1) * longer
            if chosen and cost > token_budget:
                yield _tensors(sequences, chosen, pad, device)
                chosen, count, new = [], 0, True
                wider, longer = len(context), len(sequences[row][1])
            if new:
                chosen.append((context, []))
            chosen[-1][1].append(row)
            width, length, count = wider, longer, count + 1
    if chosen:
        yield _tensors(sequences, chosen, pad, device)


def _tensors(
    sequences: Sequences,
    chosen: list[tuple[tuple[int, ...], list[int]]],
    pad: int,
    device: torch.device,
) -> Packed:
    rows = [row for _, members in chosen for row in members]
    parents = [c for c, (_, members) in enumerate(chosen) for _ in members]
    responses = [sequences[row][1] for row in rows]
    length = max(map(len, responses))
    tokens_RT = torch.full((len(rows), length), pad)
    mask_RT = torch.zeros((len(rows), length), dtype=torch.long)
    for r, tokens in enumerate(responses):
        tokens_RT[r, : len(tokens)] = torch.tensor(tokens)
        mask_RT[r, : len(tokens)] = 1
    contexts_CP, context_mask_CP = pad_left([list(context) for context, _ in chosen], pad, device)
    return Packed(
        contexts_CP,
        context_mask_CP,
        torch.tensor(parents, device=device),
        tokens_RT.to(device),
        mask_RT.to(device),
        rows,
    )
