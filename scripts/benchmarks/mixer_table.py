"""The comparison of mixers.py as a markdown table, as Pareto fronts, and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import report
from cost import OUT_OF_MEMORY
from mixer_sections import SECTIONS, Column, Measured, slower, stock_rows

from fairseq_updown.cli import charts

NOT_RUN = "not run"


def of_section(measured: Measured, section: str) -> Measured:
    """The rows of a section."""
    return [(row, figures) for row, figures in measured if row.section == section]


def table(measured: Measured, mixers: Sequence[str]) -> str:
    """Markdown, a row for each mixer under the stock model's; means over seeds ± half the range.

    Behind a step's time stands how many times faster than the stock model's that is, in the same
    rounds. What failed is listed beneath.
    """
    columns: list[tuple[str, Column]] = []
    for name, section in SECTIONS.items():
        own = of_section(measured, name)
        columns += [(name, column) for column in (section.columns(own) if own else [])]
    rows = []
    stock = stock_rows(measured)
    if stock:
        names = {row.task["stock"] for row, _ in of_section(measured, "cost")}
        cells = [cell(column, stock) if name == "cost" else "" for name, column in columns]
        rows.append([f"`{' '.join(sorted(names))}`, stock", *cells])
    for mixer in mixers:
        own = [(row, figures) for row, figures in measured if row.mixer == mixer]
        rows.append(
            [f"`{mixer}`", *(cell(column, of_section(own, name)) for name, column in columns)]
        )
    text = report.table(["mixer", *(column.head for _, column in columns)], rows)
    failed = [
        f"- {row.label()}: {' '.join(figures['failed'].split())}"
        for row, figures in measured
        if "failed" in figures
    ]
    return "\n".join([text, *(["", "Failed:", "", *failed] if failed else [])])


def cell(column: Column, rows: Measured) -> str:
    """What a table has for a mixer, given its rows of the column's section."""
    own = [figures for row, figures in rows if column.length in (None, row.length)]
    good = [figures for figures in own if "failed" not in figures]
    if good:
        return column.text(good)
    reasons = {figures["failed"] for figures in own}
    return NOT_RUN if not reasons else OUT_OF_MEMORY if reasons == {OUT_OF_MEMORY} else "failed"


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

    def beaten(point: tuple[float, float]) -> bool:
        return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in points.values())

    kept = [name for name, point in points.items() if not beaten(point)]
    return sorted(kept, key=lambda name: points[name])


def panels(measured: Measured) -> list[Panel]:
    """Every quality that was measured, over the step's time at the longest length."""
    longest = max((row.length or 0 for row, _ in of_section(measured, "cost")), default=0)
    costs = {row.mixer: slower(figures) for row, figures in measured if row.length == longest}
    label = f"training step at {longest:,} source tokens / stock Transformer's"
    found = []
    for name, section in SECTIONS.items():
        own = of_section(measured, name)
        title, quality = (section.quality(own) if own else None) or ("", None)
        points: dict[str, tuple[float, list[float]]] = {}
        for row, figures in own:
            cost = costs.get(row.mixer)
            if quality and cost and "failed" not in figures:
                points.setdefault(row.mixer, (cost, []))[1].append(quality(figures))
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
    figure, axes = report.panels(len(shown), figsize=(1.2 + 5.5 * len(shown), 4.8))
    names = list(dict.fromkeys(name for panel in shown for name in panel.points))
    marks = {}
    for axis, panel in zip(axes, shown):
        means = {name: statistics.mean(found) for name, (_, found) in panel.points.items()}
        front = [(panel.points[name][0], means[name]) for name in panel.front()]
        axis.step(*zip(*front), where="post", color="0.6", zorder=1)
        for name, (cost, found) in panel.points.items():
            number = names.index(name)
            marks[name] = axis.errorbar(
                cost,
                means[name],
                yerr=[[means[name] - min(found)], [max(found) - means[name]]],
                color=charts.COLOURS[number % len(charts.COLOURS)],
                marker=charts.MARKERS[number % len(charts.MARKERS)],
                fillstyle="full" if number < len(charts.COLOURS) else "none",
                markersize=6,
                elinewidth=0.8,
                linestyle="none",
            )
        report.plain_ticks(axis.xaxis)
        axis.margins(0.15)
        axis.set_title(panel.title, fontsize=10)
        axis.set_xlabel(panel.cost, fontsize=8)
    handles = [marks[name] for name in names]
    figure.legend(handles, names, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return charts.image(figure, kind)
