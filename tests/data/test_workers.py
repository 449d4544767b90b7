"""A function of many items by several processes: in order, whatever becomes of it."""

import multiprocessing
import os
from itertools import count

import pytest

from fairseq_updown.data.workers import map_by_workers


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1000])
@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_items(size: int, workers: int) -> None:
    factor = 3  # what a function holds goes with it
    found = list(map_by_workers(lambda item: (item * factor, os.getpid()), range(size), workers))
    assert [result for result, _ in found] == [3 * item for item in range(size)]
    alone = workers == 1 or size <= 64
    assert ({process for _, process in found} <= {os.getpid()}) == alone


def test_what_a_worker_raises_is_raised_where_its_result_would_come() -> None:
    def reciprocal(item: int) -> float:
        return 1 / (item - 500)

    seen: list[float] = []
    with pytest.raises(ZeroDivisionError):
        seen.extend(map_by_workers(reciprocal, range(1000), 2))
    assert 500 - 16 < len(seen) <= 500
    assert not multiprocessing.active_children()


def test_who_stops_reading_ends_the_workers_of_items_without_end() -> None:
    items = count()
    found = map_by_workers(abs, items, 2)
    assert [next(found) for _ in range(100)] == list(range(100))
    assert next(items) <= 100 + 2 * 100  # "a hundred or less of a worker at a time"
    found.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
