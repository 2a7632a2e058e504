"""Plots as plotly reads them, each with the table behind it.

Written as plain dicts: plotly's own figure classes would check them, at half a second and some megabytes of
imports. Whatever depends on light or dark is left to the page.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean
from typing import Any
from urllib.parse import quote

from fastslow.measure.curves import Row
from fastslow.report.read import Material, RunFiles, damaged

# Told apart with any colour vision (after Okabe and Ito), and legible on white and on near black.
COLOURS = ("#2f80c8", "#d9730f", "#0f9b77", "#c45f9d", "#7a828c", "#9a8a1f", "#8a63d2")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "x",
)  # of other lengths: few looks come twice
HATCHES = ("", "/", ".", "x", "-")
HOVER = "%{y:.4~g} at %{x:,.6~r}<extra></extra>"
DENSE = 50  # points of a curve from which on only some are marked

Triple = tuple[float, float, float | None]  # x, y and the standard error of y, if it has one
Measure = Callable[[RunFiles], list[Triple]]


@dataclass(frozen=True)
class Plot:
    """One figure: plotly's traces and layout, and the rows that its CSV link holds."""

    name: str
    title: str
    about: str
    traces: list[Row]
    layout: Row
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    @property
    def csv(self) -> str:
        """The data as a link that needs no server."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.header, *self.rows])
        return f"data:text/csv;charset=utf-8,{quote(text.getvalue(), safe=',|() ')}"


@dataclass(frozen=True)
class Curve:
    """One line: a measure of one run, under its arm's name in a study and its own in a single run."""

    name: str
    seed: int
    xs: list[float]
    ys: list[float]
    errors: list[float | None]

    @property
    def uncertain(self) -> bool:
        return any(error is not None for error in self.errors)

    def point(self, x: float) -> float:
        """y at an x within reach, on the straight line between two points."""
        right = min(bisect_right(self.xs, x), len(self.xs) - 1)
        if right == 0:
            return self.ys[0]
        (x0, x1), (y0, y1) = self.xs[right - 1 : right + 1], self.ys[right - 1 : right + 1]
        return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def lines(
    material: Material,
    name: str,
    title: str,
    about: str,
    axes: tuple[str, str],
    measures: dict[str, Measure],
    band: bool = True,
    each: bool = True,
    log: bool = False,
) -> Plot:
    """Measures of a run; or the first of them for every run of a study.

    The seeds of an arm become a line (mean) and a `band` (range), with `each` seed as a thin line too.
    """
    chosen = list(measures.items())[: 1 if material.study else None]
    curves = [
        made
        for label, measure in chosen
        for run in material.runs
        if (made := _curve(run.arm if material.study else label, run, measure)).xs
    ]
    order = list(material.arms if material.study else measures)
    traces: list[Row] = []
    for place, label in enumerate(order):
        mine = [curve for curve in curves if curve.name == label]
        look = _look(label, place, any(len(curve.xs) > DENSE for curve in mine))
        if len(mine) > 1 and band:
            traces += _spread(mine, look, each)
        else:
            traces += [_line(curve, look, first=curve is mine[0]) for curve in mine]
    errors = any(curve.uncertain for curve in curves)
    return Plot(
        name=name,
        title=title,
        about=about,
        traces=traces,
        layout={
            "xaxis": {"title": {"text": axes[0]}},
            "yaxis": {"title": {"text": axes[1]}} | (_logarithmic(curves) if log else {}),
            "showlegend": len(order) > 1,
        },
        header=("arm" if material.study else "measure", "seed", *axes, *["stderr"] * errors),
        rows=[
            (curve.name, curve.seed, *values)
            for curve in curves
            for values in zip(curve.xs, curve.ys, *[curve.errors] * errors, strict=True)
        ],
    )


def _curve(name: str, run: RunFiles, measure: Measure) -> Curve:
    try:
        found = [triple for triple in measure(run) if math.isfinite(triple[0] + triple[1])]
    except (TypeError, AttributeError, KeyError, ZeroDivisionError) as error:
        raise damaged(run.dir / "metrics.jsonl", error) from None
    errors = [None if e is None or math.isnan(e) else e for _, _, e in found]
    return Curve(name, run.seed, [x for x, _, _ in found], [y for _, y, _ in found], errors)


def _logarithmic(curves: Sequence[Curve]) -> Row:
    """Ticks at 1, 2 and 5 of each decade, or at the decades where there are many."""
    seen = [y for curve in curves for y in curve.ys if y > 0]
    many = bool(seen) and max(seen) / min(seen) > 100
    return {"type": "log", "tickformat": ".0e", "dtick": 1 if many else "D2"}


def _look(label: str, place: int, dense: bool) -> Row:
    colour, dash, symbol = (looks[place % len(looks)] for looks in (COLOURS, DASHES, SYMBOLS))
    return {
        "type": "scatter",
        "name": escape(label),  # plotly reads tags in names
        "legendgroup": escape(label),
        "cliponaxis": False,
        "line": {"color": colour, "dash": dash, "width": 2.5},
        "marker": {
            "color": colour,
            "symbol": symbol,
            "size": 8,
            "maxdisplayed": 12 if dense else 0,
        },
    }


def _line(curve: Curve, look: Row, first: bool) -> Row:
    bars = {"array": curve.errors, "thickness": 1, "width": 3, "visible": curve.uncertain}
    return look | {
        "error_y": bars,
        "x": curve.xs,
        "y": curve.ys,
        "mode": "lines+markers",
        "showlegend": first,
        "hovertemplate": f"{look['name']}, seed {curve.seed}: {HOVER}",
    }


def _spread(curves: Sequence[Curve], look: Row, each: bool) -> list[Row]:
    """Mean, and range between lowest and highest, as far as all seeds got; perhaps each seed, thin."""
    colour = look["marker"]["color"]
    silent = {"showlegend": False, "hoverinfo": "skip", "mode": "lines"}
    thin = [
        look
        | silent
        | {"x": curve.xs, "y": curve.ys, "opacity": 0.45, "line": {"color": colour, "width": 1}}
        for curve in curves
    ]
    begin, end = max(curve.xs[0] for curve in curves), min(curve.xs[-1] for curve in curves)
    xs = sorted({x for curve in curves for x in curve.xs if begin <= x <= end})
    columns = [[curve.point(x) for curve in curves] for x in xs]
    edge = look | silent | {"x": xs, "line": {"color": colour, "width": 0}}
    return [
        edge | {"y": [min(column) for column in columns]},
        edge
        | {"y": [max(column) for column in columns], "fill": "tonexty", "fillcolor": f"{colour}2e"},
        *(thin if each else []),
        look
        | {
            "x": xs,
            "y": [fmean(column) for column in columns],
            "marker": look["marker"] | {"maxdisplayed": 12},
            "mode": "lines+markers",
            "hovertemplate": f"{look['name']}, mean: {HOVER}",
        },
    ]


def bars(
    name: str, title: str, about: str, unit: str, amounts: dict[str, dict[str, float]]
) -> Plot:
    """Stacked bars: amounts by bar and part."""
    parts = list(dict.fromkeys(part for bar in amounts.values() for part in bar))
    traces = [
        {
            "type": "bar",
            "name": part,
            "x": [escape(label) for label in amounts],
            "y": [bar[part] for bar in amounts.values()],
            "marker": {
                "color": COLOURS[i],
                "pattern": {"shape": HATCHES[i], "fillmode": "overlay", "size": 6, "solidity": 0.2},
            },
            "hovertemplate": f"{part}: %{{y:,.6~r}} {unit}<extra></extra>",
        }
        for i, part in enumerate(parts)
    ]
    return Plot(
        name=name,
        title=title,
        about=about,
        traces=traces,
        layout={
            "barmode": "stack",
            "xaxis": {"type": "category", "showgrid": False},
            "yaxis": {"title": {"text": unit}},
            "showlegend": True,
        },
        header=("bar", "part", unit),
        rows=[(label, part, bar[part]) for label, bar in amounts.items() for part in parts],
    )
