"""fairseq's prefetching ends when it should: the workers with their epoch, the threads with the
program.

fairseq prefetches batches in daemon threads. Such a thread stops at the last batch, one call before
a `DataLoader` learns that it is at its end and dismisses its workers. They stay until some later
garbage collection, which waits up to five seconds for each of them, in the midst of training.

Python ends a daemon thread wherever it is when the program ends. In the middle of an operation of
torch that aborts the process (`terminate called without an active exception`, status 134): after a
training that succeeded, now and then.
"""

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty
from typing import Any, Iterable, Iterator

from fairseq.data.iterators import BackgroundConsumer

LONGEST_WAIT = 30.0  # seconds


def to_its_end(source: Iterable[Any], count: int) -> Iterator[Any]:
    """The first `count` items of a source that should have no more; it is asked for one more before
    the last is given."""
    items = iter(source)
    for number, item in enumerate(items, start=1):
        if number == count:
            next(items, None)
        yield item


def end_workers_with_their_epoch() -> None:
    """Has fairseq's prefetching threads read their source to its end."""
    run = BackgroundConsumer.run

    def run_to_the_end(self: Any) -> None:
        if self._max_len is not None:
            self._source = to_its_end(self._source, self._max_len)
        run(self)

    BackgroundConsumer.run = run_to_the_end


def end_prefetching() -> None:
    """Has every prefetching thread stop after the batch it works at, and waits for it."""
    deadline = time.monotonic() + LONGEST_WAIT
    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread._max_len = 0
            while thread.is_alive() and time.monotonic() < deadline:
                with suppress(Empty):  # it may wait for room
                    thread._queue.get_nowait()
                thread.join(0.01)


end_workers_with_their_epoch()
atexit.register(end_prefetching)
