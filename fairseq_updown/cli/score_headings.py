"""The headings of outlines, counted by where they stand: as figures, as text and as a picture."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sentencepiece

from ..scoring.headings import Figures, Source, by_bin, count, place
from ..terminal import progress
from .charts import COLOURS, MARKERS, image, new_figure

EDGES = (512, 1024, 2048, 4096, 8192, 16384)  # pieces or words between the bins
QUARTERS = ("first quarter", "second", "third", "last")
NOWHERE = "not in the document"


def length_names() -> list[str]:
    """What the bins between the edges are called."""
    return [f"under {EDGES[0]:,}", *(f"from {edge:,}" for edge in EDGES)]


def shown(figures: Figures) -> dict[str, float]:
    """Counts and scores by name."""
    return {**figures._asdict(), **figures.scores()}


def count_headings(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    sources: Sequence[str] | None,
    model: sentencepiece.SentencePieceProcessor | None,
) -> dict[str, Any]:
    """Precision, recall and F1 of each system, over all headings and by where they stand.

    Args:
        systems: outlines by the system's name.
        model: in whose pieces places are counted; else in words.
    """
    result: dict[str, Any] = {"scores": {}}
    for name, outlines in systems.items():
        total = Figures()
        for reference, outline in zip(references, outlines):
            total = total.plus(*count(outline, reference))
        result["scores"][name] = shown(total)
    if sources is None:
        return result
    encoded: Iterable[list[str] | None] = itertools.repeat(None)
    if model:
        encoded = (model.encode(text, out_type=str) for text in sources)
    documents = [Source(*pair) for pair in progress(zip(sources, encoded), "places", len(sources))]
    unit = "pieces" if model else "words"
    kinds = {
        "quarter of the document": (QUARTERS, Source.quarter),
        f"{unit} before the heading": (
            length_names(),
            lambda source, word: bisect.bisect_right(EDGES, source.length(word)),
        ),
    }
    result["places"] = {kind: {} for kind in kinds}
    for name, outlines in systems.items():
        placed = [place(*three) for three in zip(documents, outlines, references)]
        for kind, (names, bin_number) in kinds.items():
            found = by_bin(placed, bin_number)
            result["places"][kind][name] = {
                NOWHERE if number < 0 else names[number]: shown(figures)
                for number, figures in found.items()
            }
    return result


# --------------------------------------------------------------------------------------- output


def headings_table(result: dict[str, Any]) -> str:
    """The figures as text."""
    systems = list(result["scores"])
    widths = [max(len(name), 15) for name in systems]

    def row(first: str, cells: Sequence[str], number: str = "") -> str:
        padded = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths))
        return f"{first:<26}{number:>10}{padded}"

    lines = [row("headings", systems)]
    for metric in ("precision", "recall", "F1"):
        lines.append(row(metric, [f"{score[metric]:.2f}" for score in result["scores"].values()]))
    lines.append(row("written", [f"{s['hypotheses']:,}" for s in result["scores"].values()]))
    for kind, by_system in result.get("places", {}).items():
        lines += ["", row(kind, ["recall     F1"] * len(systems), "there are")]
        for name in bins_of(kind, by_system):
            found = [own.get(name, shown(Figures())) for own in by_system.values()]
            cells = [f"{own['recall']:.2f} {own['F1']:6.2f}" for own in found]
            if name == NOWHERE:
                cells = [f"{own['hypotheses']:,} written" for own in found]
            lines.append(row(name, cells, f"{max(own['references'] for own in found):,}"))
    return "\n".join(lines)


def bins_of(kind: str, by_system: dict[str, Any]) -> list[str]:
    """The names of the bins in which there is anything, in order."""
    names = QUARTERS if kind.startswith("quarter") else length_names()
    return [n for n in (*names, NOWHERE) if any(n in own for own in by_system.values())]


def chart(result: dict[str, Any]) -> bytes:
    """Recall over place as a PNG: a panel for each kind of place, a line for each system."""
    figure = new_figure(figsize=(10, 4))
    panels = list(figure.subplots(1, len(result["places"]), sharey=True, squeeze=False)[0])
    for panel, (kind, by_system) in zip(panels, result["places"].items()):
        names = [name for name in bins_of(kind, by_system) if name != NOWHERE]
        for number, (system, own) in enumerate(by_system.items()):
            there = [i for i, name in enumerate(names) if own.get(name, {}).get("references")]
            recalls = [own[names[i]]["recall"] for i in there]
            style = {"color": COLOURS[number % 7], "marker": MARKERS[number % 7]}
            label = system.encode("ascii", "replace").decode("ascii").replace("$", r"\$")
            panel.plot(there, recalls, label=label, **style)
        panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
        panel.set_xlabel(kind)
        panel.set_ylim(0, 103)  # markers at 100 are seen whole
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("headings found, %")
    panels[0].legend()
    return image(figure)
