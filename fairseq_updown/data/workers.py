"""A function of many items, in order, by several processes."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import active_children, get_context
from typing import Any, TypeVar

from ..errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_CHUNK = 16  # items that a worker is sent at a time
_CHUNKS = 4  # of a worker that are being done or waiting, for it or for their turn
_FEW = 64  # items that are not worth a process
_function: Callable[[Any], Any]  # of this worker


def available_cores() -> int:
    """Those that this process may use: under a scheduler not all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_by_workers(function: Callable[[T], R], items: Iterable[T], workers: int = 1) -> Iterator[R]:
    """``function`` of each item, in order.

    Several workers inherit ``function`` with all that it holds, such as a loaded model; items and
    results are sent, a hundred or less of a worker at a time. Workers never collect garbage, so
    ``function`` leaves no cycles behind. What it raises is raised here.

    Raises:
        UserError: a worker was killed
    """
    items = iter(items)
    first = list(islice(items, _FEW + 1))
    items = chain(first, items)
    if workers == 1 or len(first) <= _FEW:
        yield from map(function, items)
        return
    waiting: deque[Future[list[R]]] = deque()
    others = set(active_children())
    pool = ProcessPoolExecutor(workers, get_context("fork"), _start_worker, (function, os.getpid()))
    try:
        pool.submit(_do_chunk, [])  # starts all workers
    except BaseException:  # those that were started know nobody who would end them
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    try:
        while chunk := list(islice(items, _CHUNK)):
            waiting.append(pool.submit(_do_chunk, chunk))
            if len(waiting) >= workers * _CHUNKS:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker ended in the middle of its work, perhaps for want of memory: give fewer "
            "--workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(function: Callable[[Any], Any], parent: int) -> None:
    """Ctrl-C is for the parent, which ends the workers; SIGTERM ends a worker as it would any."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.disable()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A parent that was killed says nothing, and the queue's other end is held by the workers."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _do_chunk(items: list[Any]) -> list[Any]:
    return list(map(_function, items))
