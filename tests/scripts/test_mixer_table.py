"""The comparison's table has means, ratios and failures; its front is what nothing else beats."""

from typing import Any, Dict, List, Tuple

import mixer_table
from hypothesis import given
from hypothesis import strategies as st
from mixer_rows import Row


def example() -> List[Tuple[Row, Dict[str, Any]]]:
    stock = {"seconds": [2.0, 2.0], "parameters": 5e7, "added_mib": 900.0}
    rows: List[Tuple[Row, Dict[str, Any]]] = []
    for mixer, seconds in (("full", 2.0), ("flow", 0.5), ("luna", 1.0)):
        own = {"seconds": [seconds] * 3, "parameters": 4e7, "added_mib": 1200.0, "stock": stock}
        rows.append((Row("cost", mixer, 512, task={"stock": "transformer"}), own))
    for seed, gain in ((1, 0.0), (2, 1.0)):
        for mixer, score in (("full", 19.0), ("flow", 16.0), ("luna", 15.0)):
            figures = {"test": {"rougeL": score + gain}}
            figures["train"] = {"curve": [[2, 9.5], [4, 8.25 - gain]]}
            rows.append((Row("summaries", mixer, seed=seed), figures))
    rows.append((Row("summaries", "csp", seed=1), {"failed": "out of memory"}))
    return rows


def test_table_has_means_over_seeds_ratios_and_what_failed() -> None:
    lines = mixer_table.table(example(), ["full", "flow", "csp"]).splitlines()
    assert lines[0] == "| mixer | parameters | step, 512 | peak, 512 | ROUGE-L | nll, summaries |"
    assert lines[2:6] == [
        "| `transformer`, stock | 50.0M | 2 s | 900 MiB |  |  |",
        "| `full` | 40.0M | 2 s (1.00x) | 1,200 MiB | 19.50 ±0.50 | 7.750 ±0.500 |",
        "| `flow` | 40.0M | 500 ms (4.00x) | 1,200 MiB | 16.50 ±0.50 | 7.750 ±0.500 |",
        "| `csp` | not run | not run | not run | out of memory | out of memory |",
    ]
    assert lines[-1] == "- summaries: csp, seed 1: out of memory"


def test_front_holds_what_nothing_else_beats_and_the_picture_is_drawn() -> None:
    (panel,) = mixer_table.panels(example())
    assert panel.points["flow"] == (0.25, [16.0, 17.0])
    assert panel.front() == ["flow", "full"]
    assert mixer_table.fronts(example()) == "- ROUGE-L: `flow`, `full`"
    assert mixer_table.picture([panel], "title", "png").startswith(b"\x89PNG")
    drawn = mixer_table.picture([panel], "title", "svg")
    assert drawn == mixer_table.picture([panel], "title", "svg")
    assert all(f">{name}</text>".encode() in drawn for name in panel.points)
    assert mixer_table.panels(example()[3:]) == []  # no cost


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_front_covers_all_points_and_rises(points: List[Tuple[int, int]]) -> None:
    named = {str(number): point for number, point in enumerate(points)}
    front = mixer_table.pareto_front(named)
    kept = [named[name] for name in front]
    assert kept == sorted(kept)
    assert [quality for _, quality in kept] == sorted(quality for _, quality in kept)
    for cost, quality in points:
        assert any(other <= cost and best >= quality for other, best in kept)
