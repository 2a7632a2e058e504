"""Sequences into padded tensors, with what they share held once.

Two levels: contexts that begin alike (one system prompt, many problems) share a stem, and responses
to one context share that context. Stems and the contexts' remainders are padded on the left, responses
on the right; masks and explicit positions make the padding invisible.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

Context = list[int]
Sequences = Sequence[tuple[Context, list[int]]]

SHORTEST_STEM = 12  # tokens; below it a forward pass of its own costs more than it saves


@dataclass(slots=True)
class Stage:
    """Segments [N, L] to forward in one go, each continuing one of the stage before."""

    tokens_NL: Tensor
    mask_NL: Tensor
    parent_N: Tensor | None  # row of the stage before; None for the first stage


@dataclass(slots=True)
class Packed:
    """Contexts as one or two stages, and R responses that continue them.

    `rows[r]` is row r's place in the caller's list, `parent_R[r]` its row of the last stage.
    """

    stages: list[Stage]
    parent_R: Tensor
    tokens_RT: Tensor
    token_mask_RT: Tensor
    rows: list[int]

    def pad(self, values: Sequence[Sequence[float]]) -> Tensor:
        """The caller's per-token `values` as a [R, T] float tensor, zero where padded."""
        return _padded([values[row] for row in self.rows], 0.0, "float32").to(self.tokens_RT.device)


def pad_left(segments: Sequence[Context], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [N, L]."""
    ids_NL = _padded([segment[::-1] for segment in segments], pad).flip(1)
    mask_NL = _padded([[1] * len(segment) for segment in segments], 0).flip(1)
    return ids_NL.to(device), mask_NL.to(device)


def _padded(rows: Sequence[Sequence[float]], filler: float, dtype: str = "int64") -> Tensor:
    """Rows of numbers as one tensor, filled up on the right."""
    width = max(map(len, rows))
    whole = [[*row, *[filler] * (width - len(row))] for row in rows]
    return torch.from_numpy(numpy.array(whole, dtype))


def side_by_side(
    contexts: Sequence[Context],
    counts: Sequence[int],
    order: Sequence[int],
    rows: int,
    padded: bool,
) -> Iterator[list[int]]:
    """Contexts, by their places, to sample from at once: at most `rows` rows or one context, and all of
    one length unless `padded`."""
    chosen: list[int] = []
    taken = 0
    for c in order:
        alike = padded or not chosen or len(contexts[c]) == len(contexts[chosen[0]])
        if chosen and (taken + counts[c] > rows or not alike):
            yield chosen
            chosen, taken = [], 0
        chosen.append(c)
        taken += counts[c]
    if chosen:
        yield chosen


def stage_contexts(
    contexts: Sequence[Context], pad: int, device: torch.device, stems: bool = True
) -> list[Stage]:
    """Contexts, best in sorted order, as two stages where their stems are worth it, else as one."""
    runs = _stems(contexts) if stems else None
    if runs is None:
        return [Stage(*pad_left(contexts, pad, device), None)]
    starts = [contexts[members[0]][:length] for members, length in runs]
    rests = [contexts[c][length:] for members, length in runs for c in members]
    parents = [stem for stem, (members, _) in enumerate(runs) for _ in members]
    return [
        Stage(*pad_left(starts, pad, device), None),
        Stage(*pad_left(rests, pad, device), torch.tensor(parents, device=device)),
    ]


def _stems(contexts: Sequence[Context]) -> list[tuple[list[int], int]] | None:
    """Runs of contexts with the length of the stem that each shares; None where one stage is cheaper."""
    if min(map(len, contexts)) < 2:  # a stem must leave something to follow it
        return None
    runs: list[tuple[list[int], int]] = []
    for c, context in enumerate(contexts):
        if runs:
            members, length = runs[-1]
            common = _common(contexts[members[0]][:length], context[:-1])
            dearer = len(members) * (length - common)  # what a shorter stem costs the run's members
            if common >= SHORTEST_STEM and (len(members) == 1 or dearer <= common):
                runs[-1] = ([*members, c], common)
                continue
        runs.append(([c], len(context) - 1))
    rest = max(len(contexts[c]) - length for members, length in runs for c in members)
    # A context alone in its run needs no stem: split it so that its remainder is as long as the others'.
    runs = [
        (members, max(1, len(contexts[members[0]]) - rest))
        if len(members) == 1
        else (members, length)
        for members, length in runs
    ]
    rest = max(len(contexts[c]) - length for members, length in runs for c in members)
    staged = len(runs) * max(length for _, length in runs) + len(contexts) * rest
    plain = len(contexts) * max(map(len, contexts))
    return runs if staged < 0.8 * plain else None


def _common(one: Context, other: Context) -> int:
    """How many tokens two segments have in common from the start."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def pack(
    sequences: Sequences,
    token_budget: int,
    pad: int,
    device: torch.device,
    stems: bool = True,
    whole: bool = False,
) -> Iterator[Packed]:
    """Micro-batches of at most `token_budget` padded tokens (or one sequence), like contexts together.

    The budget counts contexts in full, as if they shared no stems. With `whole` nothing is shared: each
    row has a context of its own, and those of like length go together.
    """
    chosen: list[tuple[tuple[int, ...], list[int]]] = []
    width = length = count = 0
    for context, rows in _alone(sequences) if whole else _together(sequences):
        for row in rows:
            new = not chosen or chosen[-1][0] != context
            wider, longer = max(width, len(context)), max(length, len(sequences[row][1]))
            contexts = count + 1 if whole else len(chosen) + new
            cost = contexts * wider + (count + 1) * longer
            if chosen and cost > token_budget:
                yield _tensors(sequences, chosen, pad, device, stems and not whole)
                chosen, count, new = [], 0, True
                wider, longer = len(context), len(sequences[row][1])
            if new:
                chosen.append((context, []))
            chosen[-1][1].append(row)
            width, length, count = wider, longer, count + 1
    if chosen:
        yield _tensors(sequences, chosen, pad, device, stems and not whole)


def _together(sequences: Sequences) -> list[tuple[tuple[int, ...], list[int]]]:
    """Each context with its rows, sorted, so that contexts that begin alike are neighbours."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, (ids, _) in enumerate(sequences):
        found.setdefault(tuple(ids), []).append(row)
    return sorted(found.items())


def _alone(sequences: Sequences) -> list[tuple[tuple[int, ...], list[int]]]:
    order = sorted(range(len(sequences)), key=lambda row: sum(map(len, sequences[row])))
    return [(tuple(sequences[row][0]), [row]) for row in order]


def _tensors(
    sequences: Sequences,
    chosen: list[tuple[tuple[int, ...], list[int]]],
    pad: int,
    device: torch.device,
    stems: bool,
) -> Packed:
    rows = list(itertools.chain.from_iterable(members for _, members in chosen))
    parents = [c for c, (_, members) in enumerate(chosen) for _ in members]
    responses = [sequences[row][1] for row in rows]
    return Packed(
        stage_contexts([list(context) for context, _ in chosen], pad, device, stems),
        torch.tensor(parents, device=device),
        _padded(responses, pad).to(device),
        _padded([[1] * len(tokens) for tokens in responses], 0).to(device),
        rows,
    )
