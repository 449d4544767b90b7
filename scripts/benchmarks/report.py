"""Figures as text and as pictures: what all benchmarks print and draw them with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fairseq_updown.cli.charts import new_figure


def line(cells: Sequence[str]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(cells)} |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])


def duration(seconds: float) -> str:
    """Seconds or milliseconds, to three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def mean(values: Sequence[float], digits: int = 2) -> str:
    """The mean, and half the range where there are several values; a dash if one is no number."""
    if np.isnan(values).any():
        return "-"
    spread = f" ±{(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def panels(count: int, **options: Any) -> tuple[Any, list[Any]]:
    """A figure with axes side by side, logarithmic in x."""
    figure = new_figure(**options)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.set_xscale("log")
        axis.grid(alpha=0.3, which="both")
    return figure, axes


def plain_ticks(axis: Any) -> None:
    """Numbers at 1, 2, 5, 10, ... of a logarithmic x or y axis, in place of powers of ten."""
    from matplotlib import ticker

    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(ticker.NullFormatter())
