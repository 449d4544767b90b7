"""Figures as text and as pictures: what all benchmarks print and draw them with."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

# Okabe and Ito's palette, which colour-blind readers can tell apart; markers for print.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"


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
    """A figure with axes side by side, logarithmic in x; needs no screen."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all loggers speak
    from matplotlib.figure import Figure  # an extra of the development environment

    figure = Figure(layout="constrained", **options)
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


def image(figure: Any, kind: str = "png") -> bytes:
    """The content of its file, "png" or "svg"; the same figures give the same bytes."""
    import matplotlib

    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "figures"}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(content, format=kind, dpi=140, metadata=metadata)
    return content.getvalue()
