"""A training or decoding step of a system: run, timed, and held against the machine's limits.

A :class:`Runner` does one :class:`Work`; :func:`inspect` says what it takes, apart from time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import peers  # noqa: F401  adds its systems
import torch
from fairseq.optim.adam import Adam
from fresh_process import MemoryMeter
from systems import VOCABULARY, FairseqSystem, Setup, Work, build
from torch import Tensor
from work_counter import WorkCounter, as_on_gpus

SHAPES = {"cpu": [(8192, 512, 2048), (2048,) * 3], "cuda": [(16384, 512, 2048), (8192,) * 3]}
BUFFER = {"cpu": 2**28, "cuda": 2**30}  # float32 numbers: 1 GiB and 4 GiB, far above any cache
WARM_UP = 512


def batch(work: Work, setup: Setup) -> tuple[Tensor, Tensor]:
    """Random source and target tokens, never special symbols, the same for every system."""
    generator = torch.Generator().manual_seed(work.src_len)
    source, target = (
        torch.randint(4, VOCABULARY, (work.bsz, length), generator=generator).to(setup.device)
        for length in (work.src_len, work.tgt_len)
    )
    return source, target


class Runner:
    """A built system, and one work that it can do again and again."""

    def __init__(self, name: str, work: Work, setup: Setup) -> None:
        self.work, self.setup = work, setup
        self.system = build(name, work, setup)
        self.source, self.target = batch(work, setup)
        self.training = work.kind == "train"
        self.system.model.train(self.training)
        if self.training:
            self.optimizer = Adam(self.system.model.parameters(), lr=1e-4)
        else:
            self.system.prepare_generation(work.beam)

    def train(self, source: Tensor, target: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.system.logits(source, target).flatten(0, 1).float()
        torch.nn.functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1).backward()
        self.optimizer.step()

    def warm_up(self) -> None:
        """First calls, at a short length: kernels are chosen, Adam's state is made."""
        work = replace(self.work, src_len=min(self.work.src_len, WARM_UP))
        source, target = batch(work, self.setup)
        if self.training:
            self.train(source, target)
        else:
            self.system.generate(source, self.work.beam, 2)

    def run(self) -> None:
        """The work, once."""
        if self.training:
            self.train(self.source, self.target)
        else:
            self.system.generate(self.source, self.work.beam, self.work.tgt_len)

    def timed(self) -> dict[str, float]:
        """Seconds of a training step; or of the encoder, and of a decoding step without it."""
        if self.training:
            return {"seconds": seconds_of(self.run, self.setup.device)}
        encode, found, taken = self.system.encoder.forward, [], []

        def timed_encode(*args: Any, **kwargs: Any) -> Any:
            taken.append(
                seconds_of(lambda: found.append(encode(*args, **kwargs)), self.setup.device)
            )
            return found.pop()

        self.system.encoder.forward = timed_encode
        try:
            decoder = seconds_of(self.run, self.setup.device) - sum(taken)
        finally:
            self.system.encoder.forward = encode
        return {"seconds": decoder / (self.work.tgt_len + 1), "encoder_seconds": sum(taken)}


def warm_runner(name: str, work: Work, setup: Setup) -> Runner:
    """A runner whose next run can be timed."""
    runner = Runner(name, work, setup)
    runner.warm_up()
    return runner


def synchronize(device: str) -> None:
    """Waits for what a GPU still has to do."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(action: Callable[[], Any], device: str) -> float:
    """Wall time of one call."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def measured_rates(device: str, dtype: torch.dtype) -> dict[str, float]:
    """What this machine reaches: matrix products, and reading memory; medians of 5, warmed up.

    Returns:
        ``flops_per_s`` of the best of some products in ``dtype``, and ``bytes_per_s`` of a float32
        buffer that no cache holds, in a sum or in a matrix-vector product, whichever is faster.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    flops = 0.0
    for rows, inner, columns in SHAPES[device]:
        x, weight = torch.randn(rows, inner, **options), torch.randn(columns, inner, **options)
        seconds = _median_seconds(partial(torch.nn.functional.linear, x, weight), device)
        flops = max(flops, 2 * rows * inner * columns / seconds)
    buffer = torch.empty(BUFFER[device] // 4096, 4096, device=device).uniform_()
    vector = torch.rand(4096, device=device)
    seconds = min(_median_seconds(read, device) for read in (buffer.sum, lambda: buffer @ vector))
    return {"flops_per_s": flops, "bytes_per_s": buffer.nbytes / seconds}


def _median_seconds(action: Callable[[], Any], device: str) -> float:
    with torch.no_grad():
        return statistics.median([seconds_of(action, device) for _ in range(6)][1:])


def inspect(name: str, work: Work, setup: Setup) -> dict[str, float]:
    """Memory and operations of the work, done once: a training step, or the middle decoding step.

    The process should hold nothing else.
    """
    runner = Runner(name, work, setup)
    meter = MemoryMeter(setup.device)
    runner.warm_up()
    if work.kind == "generate":
        counter = runner.system.count_decoding_step(work.tgt_len // 2 + 1)
        runner.run()
        return {**meter.figures(), "flops": counter.flops, "bytes_read": counter.bytes_read}
    runner.run()
    figures = meter.figures()
    if work.counted:  # apart, since counting changes when torch frees
        with WorkCounter() as counter:
            runner.run()
        figures["flops"] = counter.flops
    return figures


def count_step(name: str, work: Work, setup: Setup, counter: WorkCounter) -> Runner:
    """Counts a training step's forward and backward pass, as a GPU would run it, on a CPU too."""
    with as_on_gpus():
        runner = Runner(name, work, setup)
        for parameter in runner.system.model.parameters():
            # A gradient lasts as its parameter does: it is none of the step's memory.
            parameter.register_post_accumulate_grad_hook(lambda own: setattr(own, "grad", None))
        with counter:
            logits = runner.system.logits(runner.source, runner.target).flatten(0, 1).float()
            loss = torch.nn.functional.cross_entropy(logits, runner.target.flatten())
            del logits  # as a training does
            loss.backward()
    return runner


@torch.no_grad()
def count_beam_step(model: Any, source: Tensor, beam: int) -> WorkCounter:
    """Counts a step of fairseq's beam search: hypotheses change places, as they nearly always do,
    and each gets a token.

    Args:
        source: `(1, length)`
    """
    model.eval()
    order = torch.zeros(beam, dtype=torch.long, device=source.device)
    encoder_out = model.encoder.reorder_encoder_out(model.encoder(source), order)
    state: dict[str, Any] = {}
    for step in range(3):  # what is done once is done in the first two
        tokens = torch.full((beam, step + 1), 5, device=source.device)
        with as_on_gpus(), WorkCounter() as counter:
            if step:
                order = torch.arange(beam, device=source.device).sub(1).clamp(min=0)
                model.decoder.reorder_incremental_state_scripting(state, order)
            model.decoder(tokens, encoder_out, incremental_state=state)
    return counter


def count_launches(name: str, work: Work, setup: Setup, beam: int) -> dict[str, float]:
    """Launches, and operations, of a training step's forward and backward pass on a GPU, and
    launches of a decoding step, which other libraries' models lack."""
    counter = WorkCounter()
    runner = count_step(name, work, setup, counter)
    found: dict[str, float] = {"launches": counter.launches.total(), "flops": counter.flops}
    if isinstance(runner.system, FairseqSystem):
        step = count_beam_step(runner.system.model, runner.source, beam)
        found["decoding_launches"] = step.launches.total()
    return found
