"""The benchmark's figures as markdown tables, as fitted exponents, and as a picture."""

from __future__ import annotations

import io
import logging
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from fresh_process import MIB

Figures = dict[str, dict[str, Any]]  # by architecture

OUT_OF_MEMORY = "out of memory"
FITTED_FROM = 2048
# Okabe and Ito's palette, which colour-blind readers can tell apart; markers for print.
COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX"

HEADERS = {
    "train": """\
| source | batch | architecture | training step | range | faster | peak memory | less |
|---|---|---|---|---|---|---|---|""",
    "generate": """\
| source | batch | architecture | decoding step | range | faster | encoder | peak memory | less |
|---|---|---|---|---|---|---|---|---|""",
}
LIMIT_HEADER = """\
| work | architecture | operations | bytes read | limit | measured | reached |
|---|---|---|---|---|---|---|"""


def table_rows(work: dict[str, Any], figures: Figures) -> str:
    """Markdown rows of one work; ratios are to the first architecture."""
    stock = next(iter(figures.values()))
    return "\n".join(
        f"| {work['src_len']} | {work['bsz']} | `{arch}` | "
        + " | ".join(_cells(work["kind"], own, stock))
        + " |"
        for arch, own in figures.items()
    )


def _cells(kind: str, own: dict[str, Any], stock: dict[str, Any]) -> list[str]:
    seconds = own.get("seconds")
    cells = [OUT_OF_MEMORY, "", ""]
    if seconds:
        spread = f"{duration(min(seconds))} to {duration(max(seconds))}"
        ratio = _ratio(own, stock, lambda figures: statistics.median(figures["seconds"]))
        cells = [duration(statistics.median(seconds)), spread, ratio]
    if kind == "generate":
        cells.append(duration(statistics.median(own["encoder_seconds"])) if seconds else "")
    if "added_mib" not in own:
        return [*cells, OUT_OF_MEMORY, ""]
    return [
        *cells,
        f"{own['added_mib']:,.0f} MiB",
        _ratio(own, stock, lambda figures: figures["added_mib"]),
    ]


def _ratio(
    own: dict[str, Any], stock: dict[str, Any], figure: Callable[[dict[str, Any]], float]
) -> str:
    try:
        return "" if own is stock else f"{figure(stock) / figure(own):.2f}x"
    except (KeyError, ZeroDivisionError):  # the first architecture ran out of memory
        return ""


def duration(seconds: float) -> str:
    """Seconds or milliseconds, to three digits."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{1000 * seconds:.3g} ms"


def limit_rows(work: dict[str, Any], figures: Figures, rates: dict[str, float]) -> str:
    """Markdown rows that set each architecture's time against what the machine could do at best.

    A training step's limit is its operations over the measured rate of matrix products; a decoding
    step's is that or its bytes over the measured memory bandwidth, whichever takes longer.
    """
    rows = []
    for arch, own in figures.items():
        if not own.get("seconds"):
            continue
        seconds = statistics.median(own["seconds"])
        arithmetic = own["flops"] / rates["flops_per_s"]
        reading = own.get("bytes_read", 0) / rates["bytes_per_s"]
        name = "training step" if work["kind"] == "train" else "decoding step"
        size = f"{own['bytes_read'] / MIB:,.0f} MiB" if "bytes_read" in own else ""
        bound = "arithmetic" if arithmetic >= reading else "memory"
        limit = max(arithmetic, reading)
        rows.append(
            f"| {name}, source {work['src_len']}, batch {work['bsz']} | `{arch}` "
            f"| {own['flops'] / 1e9:,.1f} G | {size} | {duration(limit)} ({bound}) "
            f"| {duration(seconds)} | {limit / seconds:.0%} |"
        )
    return "\n".join(rows)


def fitted_exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The e for which time grows as length^e: least squares on logarithms."""
    x, y = [math.log(length) for length in lengths], [math.log(value) for value in seconds]
    return statistics.linear_regression(x, y).slope


def medians(rows: Sequence[tuple[int, Figures]], key: str) -> dict[str, dict[int, float]]:
    """By architecture and length, the median of one figure; where it was not measured, nothing."""
    found: dict[str, dict[int, float]] = {}
    for length, figures in rows:
        for arch, own in figures.items():
            value = own.get(key)
            if value:
                value = statistics.median(value) if isinstance(value, list) else value
                found.setdefault(arch, {})[length] = value
    return found


def exponents(rows: Sequence[tuple[int, Figures]]) -> str:
    """One line an architecture, for training time over lengths of at least FITTED_FROM."""
    lines = []
    for arch, times in medians(rows, "seconds").items():
        fitted = {length: value for length, value in times.items() if length >= FITTED_FROM}
        if len(fitted) > 1:
            slope = fitted_exponent(list(fitted), list(fitted.values()))
            lines.append(f"- `{arch}`: {slope:.2f} ({min(fitted)} to {max(fitted)})")
    return "\n".join(lines)


def picture(rows: Sequence[tuple[int, Figures]], title: str) -> bytes:
    """A PNG of time and memory of a training step over the source length, one line each."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all loggers speak
    import matplotlib  # an extra of the development environment

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    panels = (("seconds", "training step, seconds"), ("added_mib", "peak memory added, MiB"))
    lengths = sorted({length for length, _ in rows})
    for axis, (key, label) in zip(axes, panels):
        for number, (arch, values) in enumerate(medians(rows, key).items()):
            axis.plot(
                list(values),
                list(values.values()),
                label=arch,
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
            )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xticks(lengths, [_short(length) for length in lengths])
        axis.set_xlabel("source tokens")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3, which="both")
    if axes[0].lines:
        axes[0].legend(frameon=False)
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=140)
    pyplot.close(figure)
    return content.getvalue()


def _short(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)
