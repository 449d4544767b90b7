"""The comparison of mixers.py as a markdown table, as Pareto fronts, and as a picture."""

from __future__ import annotations

import io
import logging
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from cost_plot import COLOURS, MARKERS, duration
from mixer_rows import Row
from quality import cell

Measured = Sequence[tuple[Row, dict[str, Any]]]

NOT_RUN = "not run"
SCORES = {"summaries": ("ROUGE-L", "rougeL"), "translation": ("BLEU", "BLEU")}


class Column(NamedTuple):
    """One column of the table.

    Attributes:
        section: where its figures come from.
        head: its title.
        takes: which rows have a part in it.
        text: the cell of a mixer, from the figures of those of its rows that did not fail.
    """

    section: str
    head: str
    takes: Callable[[Row], bool]
    text: Callable[[list[dict[str, Any]]], str]


def of_section(measured: Measured, section: str) -> Measured:
    """The rows of a section."""
    return [(row, figures) for row, figures in measured if row.section == section]


def cost_lengths(measured: Measured) -> list[int]:
    """The lengths that the cost section has, rising."""
    return sorted({row.length for row, _ in of_section(measured, "cost") if row.length})


def recall_lengths(measured: Measured) -> list[int]:
    """The lengths that the recall section has, rising."""
    return sorted({n for row, _ in of_section(measured, "recall") for n in row.task["lengths"]})


def slower(figures: dict[str, Any]) -> float | None:
    """A step's time over the stock model's in the same rounds; None where either failed."""
    seconds, stock = figures.get("seconds"), figures.get("stock", {}).get("seconds")
    return statistics.median(seconds) / statistics.median(stock) if seconds and stock else None


def recall_at(figures: dict[str, Any], length: int) -> float:
    """The accuracy at a length."""
    return dict(map(tuple, figures["accuracy"]))[length]


def score(figures: dict[str, Any], name: str) -> float:
    """A score on the test set."""
    return figures["test"][name]


def nll(figures: dict[str, Any]) -> float:
    """Negative log-likelihood a piece on the validation set after training, in bits."""
    return figures["train"]["curve"][-1][1]


def columns(measured: Measured) -> list[Column]:
    """All columns that the rows give rise to."""

    def step(found: list[dict[str, Any]]) -> str:
        ratio = slower(found[0])
        beside = f" ({1 / ratio:.2f}x)" if ratio else ""
        return f"{duration(statistics.median(found[0]['seconds']))}{beside}"

    def has_length(length: int) -> Callable[[Row], bool]:
        return lambda row: row.length == length

    def recall_text(length: int) -> Callable[[list[dict[str, Any]]], str]:
        return lambda found: cell([recall_at(figures, length) for figures in found])

    def score_text(name: str) -> Callable[[list[dict[str, Any]]], str]:
        return lambda found: cell([score(figures, name) for figures in found])

    def nll_text(found: list[dict[str, Any]]) -> str:
        return cell([nll(figures) for figures in found], digits=3)

    lengths = cost_lengths(measured)
    found: list[Column] = []
    if lengths:
        text = lambda found: f"{found[0]['parameters'] / 1e6:.1f}M"  # noqa: E731
        found.append(Column("cost", "parameters", has_length(lengths[0]), text))
    found += [Column("cost", f"step, {n:,}", has_length(n), step) for n in lengths]
    memory = lambda found: f"{found[0]['added_mib']:,.0f} MiB"  # noqa: E731
    found += [Column("cost", f"peak, {n:,}", has_length(n), memory) for n in lengths]
    for length in recall_lengths(measured):
        found.append(Column("recall", f"recall, {length:,}", lambda row: True, recall_text(length)))
    for section, (head, name) in SCORES.items():
        if of_section(measured, section):
            found.append(Column(section, head, lambda row: True, score_text(name)))
            found.append(Column(section, f"nll, {section}", lambda row: True, nll_text))
    return found


def table(measured: Measured, mixers: Sequence[str]) -> str:
    """Markdown, a row for each mixer under the stock model's; means over seeds ± half the range.

    Behind a step's time stands how many times faster than the stock model's that is, in the same
    rounds. What failed is listed beneath.
    """
    wanted = columns(measured)
    lines = [["mixer", *(column.head for column in wanted)]]
    lines.append(["---"] * len(lines[0]))
    stock = _stock(measured)
    names = sorted({row.task["stock"] for row, _ in of_section(measured, "cost")})
    if stock:
        cells = [_cell(column, stock) if column.section == "cost" else "" for column in wanted]
        lines.append([f"`{' '.join(names)}`, stock", *cells])
    for mixer in mixers:
        own = [(row, figures) for row, figures in measured if row.mixer == mixer]
        lines.append([f"`{mixer}`", *(_cell(column, own) for column in wanted)])
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    reasons = [
        f"- {row.label()}: {' '.join(figures['failed'].split())}"
        for row, figures in measured
        if "failed" in figures
    ]
    return "\n".join([text, *(["", "Failed:", "", *reasons] if reasons else [])])


def _cell(column: Column, own: Measured) -> str:
    rows = of_section([(row, found) for row, found in own if column.takes(row)], column.section)
    good = [figures for _, figures in rows if "failed" not in figures]
    if good:
        return column.text(good)
    reasons = {figures["failed"] for _, figures in rows}
    return NOT_RUN if not reasons else "out of memory" if reasons == {"out of memory"} else "failed"


def _stock(measured: Measured) -> Measured:
    """The stock model's figures as rows of the cost section: all its rounds at each length."""
    rows: list[tuple[Row, dict[str, Any]]] = []
    for length in cost_lengths(measured):
        found = [figures.get("stock", {}) for row, figures in measured if row.length == length]
        good = [figures for figures in found if figures.get("seconds")]
        if good:
            seconds = [value for figures in good for value in figures["seconds"]]
            rows.append((Row("cost", "stock", length), {**good[0], "seconds": seconds}))
    return rows


# ------------------------------------------------------------------------------- quality over cost


class Panel(NamedTuple):
    """One picture of quality over cost.

    Attributes:
        title: what the quality is.
        cost: what the cost is.
        points: (cost, qualities by seed) by mixer.
    """

    title: str
    cost: str
    points: dict[str, tuple[float, list[float]]]

    def front(self) -> list[str]:
        """The mixers of the Pareto front, from the cheapest to the best."""
        return pareto_front(
            {mixer: (cost, statistics.mean(found)) for mixer, (cost, found) in self.points.items()}
        )


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names for which no other has at most the cost and at least the quality, rising in cost.

    Args:
        points: (cost, quality) by name. Equal points stay or go together.
    """

    def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    kept = [
        name
        for name, point in points.items()
        if not any(dominates(other, point) for other in points.values())
    ]
    return sorted(kept, key=lambda name: points[name])


def panels(measured: Measured) -> list[Panel]:
    """Every quality that was measured, over the step's time at the longest length."""
    lengths = cost_lengths(measured)
    if not lengths:
        return []
    costs = {
        row.mixer: slower(figures)
        for row, figures in of_section(measured, "cost")
        if row.length == lengths[-1]
    }
    label = f"training step at {lengths[-1]:,} source tokens / stock Transformer's"
    kinds: list[tuple[str, str, Callable[[dict[str, Any]], float]]] = []
    for length in recall_lengths(measured)[-1:]:
        title = f"recall at {length:,} tokens"
        kinds.append(("recall", title, partial(recall_at, length=length)))
    for section, (head, name) in SCORES.items():
        kinds.append((section, head, partial(score, name=name)))
    found = []
    for section, title, quality in kinds:
        values: dict[str, list[float]] = {}
        for row, figures in of_section(measured, section):
            if "failed" not in figures:
                values.setdefault(row.mixer, []).append(quality(figures))
        shared = [mixer for mixer, cost in costs.items() if cost and mixer in values]
        points = {mixer: (costs[mixer] or 0.0, values[mixer]) for mixer in shared}
        if points:
            found.append(Panel(title, label, points))
    return found


def fronts(measured: Measured) -> str:
    """The Pareto fronts as a list, from the cheapest to the best; empty if there are none."""
    return "\n".join(
        f"- {panel.title}: {', '.join(f'`{name}`' for name in panel.front())}"
        for panel in panels(measured)
    )


def picture(shown: Sequence[Panel], title: str, kind: str) -> bytes:
    """Quality over cost: each mixer with its range over seeds, and the front. "png" or "svg"."""
    logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq lets all loggers speak
    import matplotlib  # an extra of the development environment

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(1.2 + 5.5 * len(shown), 4.8), layout="constrained", squeeze=False
    )
    names = list(dict.fromkeys(name for panel in shown for name in panel.points))
    marks = {}
    for axis, panel in zip(axes[0], shown):
        front = panel.front()
        means = {name: statistics.mean(found) for name, (_, found) in panel.points.items()}
        axis.step(
            [panel.points[name][0] for name in front],
            [means[name] for name in front],
            where="post",
            color="0.6",
            zorder=1,
        )
        for name, (cost, found) in panel.points.items():
            number = names.index(name)
            marks[name] = axis.errorbar(
                cost,
                means[name],
                yerr=[[means[name] - min(found)], [max(found) - means[name]]],
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                fillstyle="full" if number < len(COLOURS) else "none",
                markersize=6,
                elinewidth=0.8,
                linestyle="none",
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.margins(0.15)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.cost, fontsize=8)
        axis.grid(alpha=0.3, which="both")
    figure.legend(
        [marks[name] for name in names], names, loc="outside right upper", fontsize=8, frameon=False
    )
    figure.suptitle(title, fontsize=10)
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        metadata = {"Date": None} if kind == "svg" else None  # the same rows, the same file
        figure.savefig(content, format=kind, dpi=140, metadata=metadata)
    pyplot.close(figure)
    return content.getvalue()
