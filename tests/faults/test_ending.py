"""A program whose work is done ends with status 0, whatever fairseq's threads are at."""

import threading
from pathlib import Path

from fairseq.data.iterators import BufferedIterator

from ..support.commands import run

PROGRAM = """
import fairseq_updown
import torch
from fairseq.data.iterators import BufferedIterator

class Batches:
    def __len__(self):
        return 10_000

    def __iter__(self):
        parts = [torch.zeros(50, 50) for _ in range(8)]
        while True:
            for _ in range(1_000):
                batch = torch.cat(parts)
            yield batch

print(next(BufferedIterator(5, Batches())).shape)
"""


def test_prefetching_ends_before_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert run("python", program) == "torch.Size([400, 50])\n"


WORKERS = """
import multiprocessing
import fairseq_updown
import torch
from fairseq.data.iterators import BufferedIterator

batches = BufferedIterator(5, torch.utils.data.DataLoader(range(12), 4, num_workers=2))
print([next(batches).tolist() for _ in range(len(batches))], multiprocessing.active_children())
"""


def test_a_thread_ends_with_what_it_prefetches_for() -> None:
    """As of a validation that `--max-valid-steps` ends."""
    before = set(threading.enumerate())
    batches = BufferedIterator(5, range(10_000))
    assert next(batches) == 0
    (thread,) = set(threading.enumerate()) - before
    del batches
    assert not thread.is_alive()


def test_workers_end_with_their_epoch(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(WORKERS)
    assert run("python", program) == "[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] []\n"
