"""A program ends after fairseq's prefetching threads, not before them.

fairseq prefetches batches in daemon threads. Python ends such a thread wherever it is when the
program ends, and in the middle of an operation of torch that aborts the process (`terminate called
without an active exception`, status 134): after a training that succeeded, now and then.
"""

import atexit
import threading
import time
from contextlib import suppress
from queue import Empty

from fairseq.data.iterators import BackgroundConsumer

LONGEST_WAIT = 30.0  # seconds


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


atexit.register(end_prefetching)
