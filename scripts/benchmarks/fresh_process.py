"""What work takes in memory: measured in a process of its own, and told when it runs out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from multiprocessing import active_children, forkserver, get_context
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")

MIB = 2**20


class OutOfMemory(Exception):
    """The work does not fit into the memory there is."""


class MemoryMeter:
    """Memory from its making on: resident in the process (CPU, Linux), or allocated (GPU)."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated() / MIB
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            self.before = _kib("/proc/self/status", "VmRSS") / 1024

    def figures(self) -> dict[str, float]:
        """The peak, and what it has over the memory at the beginning, in MiB."""
        if self.cuda:
            peak = torch.cuda.max_memory_allocated() / MIB
        else:
            peak = _kib("/proc/self/status", "VmHWM") / 1024
        return {"peak_mib": peak, "added_mib": peak - self.before}


def available_mib(device: str) -> float:
    """Memory that can still be taken."""
    if device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        held = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return (free + held) / MIB
    return _kib("/proc/meminfo", "MemAvailable") / 1024


def _kib(file: str, field: str) -> int:
    lines = Path(file).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def guard_memory(action: Callable[[], T]) -> T:
    """Calls ``action``; what says that memory ran out becomes :class:`OutOfMemory`."""
    try:
        return action()
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemory(str(error)) from None
    except RuntimeError as error:  # torch's allocator on CPUs
        if "allocate memory" not in str(error):
            raise
        raise OutOfMemory(str(error)) from None


def in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Calls ``function`` in a new process, forked from one that has only imported the modules.

    Raises:
        OutOfMemory: an allocation failed, or the process was killed, as the kernel does then.
    """
    workers: list[BaseProcess] = []
    try:
        server = _server()
        with ProcessPoolExecutor(1, server, initializer=_be_killed_first) as pool:
            future = pool.submit(function, *arguments)
            workers += (pool._processes or {}).values()
            try:
                return guard_memory(future.result)
            except KeyboardInterrupt:  # or it would be waited for
                for child in active_children():
                    child.kill()
                raise
    except BrokenProcessPool as error:
        # Asked after the pool has waited for it: who waits second finds no exit code.
        if any(worker.exitcode == -signal.SIGKILL for worker in workers):
            raise OutOfMemory("the process was killed") from error
        raise RuntimeError("the process ended early; its own error is above") from error


def _be_killed_first() -> None:
    """Has the kernel, out of memory, kill this process and not the one that waits for it."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def alone(device: str, function: Callable[..., T], *arguments: Any) -> T:
    """Calls ``function`` where its memory can be measured: for a CPU, in a fresh process.

    Raises:
        OutOfMemory: see :func:`guard_memory` and :func:`in_fresh_process`.
    """
    if device == "cpu":
        return in_fresh_process(function, *arguments)
    return guard_memory(partial(function, *arguments))


@cache
def _server() -> BaseContext:
    """Processes that fork from a server, which finds these modules by way of PYTHONPATH."""
    context = get_context("forkserver")
    # What an optimizer imports at its first step is no memory of that step.
    context.set_forkserver_preload(["steps", "torch._dynamo"])
    before = dict(os.environ)
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    os.environ["PYTHONSAFEPATH"] = "1"  # not from the current folder, which may have namesakes
    try:
        forkserver.ensure_running()
    finally:  # other programs that this one starts find their modules as ever
        os.environ.clear()
        os.environ.update(before)
    return context
