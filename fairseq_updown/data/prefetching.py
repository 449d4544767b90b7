"""fairseq's prefetching ends when it should: the workers with their epoch, the threads with the
program.

fairseq prefetches batches in daemon threads. Such a thread stops at the last batch, one call before
a `DataLoader` learns that it is at its end and dismisses its workers. They stay until some later
garbage collection, which waits up to five seconds for each of them, in the midst of training.

A thread whose batches nobody takes any more, as when `--max-valid-steps` ends a validation, waits
for ever, and so do its batches.

Python ends a daemon thread wherever it is when the program ends. In the middle of an operation of
torch that aborts the process (`terminate called without an active exception`, status 134): after a
training that succeeded, now and then.
"""

import atexit
import threading
import time
import weakref
from contextlib import suppress
from queue import Empty
from typing import Any, Iterable, Iterator

from fairseq.data.iterators import BackgroundConsumer, BufferedIterator

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


def end_threads_with_their_batches() -> None:
    """Has fairseq's prefetching threads stop when what they prefetch for is gone."""
    create = BufferedIterator._create_consumer

    def create_and_watch(self: Any) -> None:
        create(self)
        weakref.finalize(self, stop, self._consumer).atexit = False

    BufferedIterator._create_consumer = create_and_watch


def stop(thread: Any, longest_wait: float = LONGEST_WAIT) -> None:
    """Has a prefetching thread stop after the batch it works at, and waits for it, so many seconds
    at most."""
    deadline = time.monotonic() + longest_wait
    thread._max_len = 0
    while thread.is_alive() and time.monotonic() < deadline:
        with suppress(Empty):  # it may wait for room
            thread._queue.get_nowait()
        if thread is threading.current_thread():  # in which garbage may be collected, too
            return
        thread.join(0.01)


def end_prefetching() -> None:
    """Has every prefetching thread stop, see :func:`stop`."""
    deadline = time.monotonic() + LONGEST_WAIT
    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            stop(thread, deadline - time.monotonic())


end_workers_with_their_epoch()
end_threads_with_their_batches()
atexit.register(end_prefetching)
