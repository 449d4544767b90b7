"""A function of many items by several processes: in order, whatever becomes of it."""

import errno
import multiprocessing
import os
import signal
from itertools import count

import pytest

from fairseq_updown.data.workers import map_by_workers
from fairseq_updown.errors import UserError


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


def test_a_worker_that_is_killed_is_told_and_not_waited_for() -> None:
    def work(item: int) -> int:
        if item == 500:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(UserError, match="fewer --workers"):
        list(map_by_workers(work, range(1000), 2))
    assert not multiprocessing.active_children()


def test_workers_that_cannot_all_be_started_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, calls = os.fork, count(1)

    def second_fails() -> int:
        if next(calls) > 1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return fork()

    monkeypatch.setattr(os, "fork", second_fails)
    with pytest.raises(OSError, match="Cannot allocate"):
        list(map_by_workers(abs, range(1000), 3))
    for process in multiprocessing.active_children():
        process.join(10)
    assert not multiprocessing.active_children()


def test_who_stops_reading_ends_the_workers_of_items_without_end() -> None:
    items = count()
    found = map_by_workers(abs, items, 2)
    assert [next(found) for _ in range(100)] == list(range(100))
    assert next(items) <= 100 + 2 * 100  # "a hundred or less of a worker at a time"
    found.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
