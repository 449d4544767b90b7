"""The work that is measured, and what bounds it: operations and bytes, and the machine's rates.

A :class:`Runner` does one :class:`Work`; :func:`inspect` says what it takes, apart from time.
"""

from __future__ import annotations

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.optim.adam import Adam
from fairseq.sequence_generator import SequenceGenerator
from fresh_process import MemoryMeter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import fairseq_updown  # noqa: F401  registers the architectures

_ATEN = torch.ops.aten
# torch counts the operations of the attention kernels for GPUs, not of the one for CPUs.
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        _ATEN._scaled_dot_product_flash_attention
    ],
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _ATEN._scaled_dot_product_flash_attention_backward
    ],
}
if hasattr(torch.ops.mkl, "_mkl_linear"):  # by a packed weight, in decoding steps
    FORMULAS[torch.ops.mkl._mkl_linear] = lambda x, packed, weight, *_, out_val: (
        2 * out_val.numel() * weight.size(1)
    )
SHAPES = {"cpu": [(8192, 512, 2048), (2048,) * 3], "cuda": [(16384, 512, 2048), (8192,) * 3]}
BUFFER = {"cpu": 2**28, "cuda": 2**30}  # float32 numbers: 1 GiB and 4 GiB, far above any cache
VOCABULARY = 10_000
WARM_UP = 512


@dataclass(frozen=True)
class Setup:
    """Where the work runs, and in which type."""

    device: str
    dtype: str


@dataclass(frozen=True)
class Work:
    """One row: a training step, or (kind "generate") beam search for ``tgt_len`` steps.

    The operations of a training step are counted in one more step, where ``counted`` asks for it.
    """

    kind: str
    bsz: int
    src_len: int
    tgt_len: int
    attention_dropout: float = 0.0
    beam: int = 1
    counted: bool = False


def with_options(arch: str, **options: Any) -> str:
    """The architecture with options of its own, as a name that :func:`build` takes."""
    return f"{arch} {json.dumps(options)}"


def build(arch: str, work: Work, setup: Setup) -> Any:
    """A model of the architecture, with random weights, that takes the work's lengths."""
    name, _, options = arch.partition(" ")  # see with_options
    torch.manual_seed(1)
    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)
    args = Namespace(
        _name=name,
        share_all_embeddings=True,
        dropout=0.1,
        attention_dropout=work.attention_dropout,
        max_source_positions=max(work.src_len, 1024),
        max_target_positions=max(work.tgt_len + 2, 1024),
        **json.loads(options or "{}"),
    )
    ARCH_CONFIG_REGISTRY[name](args)
    model = ARCH_MODEL_REGISTRY[name].build_model(args, task)
    return model.to(device=setup.device, dtype=getattr(torch, setup.dtype))


def batch(work: Work, setup: Setup) -> tuple[Tensor, Tensor]:
    """Random source and target tokens, never special symbols, the same for every architecture."""
    generator = torch.Generator().manual_seed(work.src_len)
    source, target = (
        torch.randint(4, VOCABULARY, (work.bsz, length), generator=generator).to(setup.device)
        for length in (work.src_len, work.tgt_len)
    )
    return source, target


def train(model: Any, optimizer: Adam, source: Tensor, target: Tensor) -> None:
    """One training step."""
    optimizer.zero_grad(set_to_none=True)
    logits = model(source, None, target)[0].flatten(0, 1).float()
    torch.nn.functional.cross_entropy(logits, target.flatten(), label_smoothing=0.1).backward()
    optimizer.step()


def generate(model: Any, source: Tensor, beam: int, steps: int) -> None:
    """Beam search to exactly ``steps`` tokens; the end of sentence makes one more step."""
    generator = SequenceGenerator(
        [model], model.decoder.dictionary, beam_size=beam, max_len_b=steps, min_len=steps
    )
    generator.generate([model], {"net_input": {"src_tokens": source}})


class Runner:
    """A built model, and one work that it can do again and again."""

    def __init__(self, arch: str, work: Work, setup: Setup) -> None:
        self.work, self.setup = work, setup
        self.model = build(arch, work, setup)
        self.source, self.target = batch(work, setup)
        if work.kind == "train":
            self.optimizer = Adam(self.model.parameters(), lr=1e-4)
            self.model.train()
        else:
            self.model.make_generation_fast_(beamable_mm_beam_size=work.beam, need_attn=False)
            self.model.eval()

    def warm_up(self) -> None:
        """First calls, at a short length: kernels are chosen, Adam's state is made."""
        source, target = batch(
            replace(self.work, src_len=min(self.work.src_len, WARM_UP)), self.setup
        )
        if self.work.kind == "train":
            train(self.model, self.optimizer, source, target)
        else:
            generate(self.model, source, self.work.beam, 2)

    def run(self) -> None:
        """The work, once."""
        if self.work.kind == "train":
            train(self.model, self.optimizer, self.source, self.target)
        else:
            generate(self.model, self.source, self.work.beam, self.work.tgt_len)

    def encode(self) -> None:
        with torch.no_grad():
            self.model.encoder(self.source)

    def timed(self) -> dict[str, float]:
        """Seconds of a training step; or of the encoder, and of a decoding step without it."""
        if self.work.kind == "train":
            return {"seconds": seconds_of(self.run, self.setup.device)}
        encoder = seconds_of(self.encode, self.setup.device)
        decoder = seconds_of(self.run, self.setup.device) - encoder
        return {"seconds": decoder / (self.work.tgt_len + 1), "encoder_seconds": encoder}


class WorkCounter(TorchDispatchMode):
    """Counts what runs under it: operations by torch's formulas (matrix products, attention).

    Attributes:
        flops: floating-point operations; the masked half of causal attention counts, as in torch.
        bytes_read: size of those tensors of :meth:`watch` that any operation was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.bytes_read = 0
        self._watched: dict[int, int] = {}

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that count as read once something uses them; views share a storage."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            size = min(tensor.nbytes, storage.nbytes())
            self._watched[storage.data_ptr()] = max(size, self._watched.get(storage.data_ptr(), 0))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._watched:
            for tensor in tensors_in([args, kwargs]):
                self.bytes_read += self._watched.pop(tensor.untyped_storage().data_ptr(), 0)
        result = func(*args, **kwargs)
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested dicts, lists and tuples; packed weights come beside plain ones."""
    if isinstance(value, Tensor):
        if not value.is_mkldnn:
            yield value
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def count_decoding_step(model: Any, prefix: int) -> WorkCounter:
    """From now on, counts the decoder's call for a target prefix of that many tokens.

    Watched are the decoder's parameters, the encoder's output and the incremental state.
    """
    forward = model.decoder.forward
    counter = WorkCounter()

    def counted(tokens: Tensor, **options: Any) -> Any:
        if tokens.size(1) != prefix:
            return forward(tokens, **options)
        counter.watch(tensors_in([list(model.decoder.parameters()), options]))
        with counter:
            return forward(tokens, **options)

    model.decoder.forward = counted
    return counter


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


def warm_runner(arch: str, work: Work, setup: Setup) -> Runner:
    """A runner whose next run can be timed."""
    runner = Runner(arch, work, setup)
    runner.warm_up()
    return runner


def inspect(arch: str, work: Work, setup: Setup) -> dict[str, float]:
    """Memory and operations of the work, done once: a training step, or the middle decoding step.

    The process should hold nothing else.
    """
    runner = Runner(arch, work, setup)
    meter = MemoryMeter(setup.device)
    runner.warm_up()
    if work.kind == "generate":
        counter = count_decoding_step(runner.model, work.tgt_len // 2 + 1)
        runner.run()
        return {**meter.figures(), "flops": counter.flops, "bytes_read": counter.bytes_read}
    runner.run()
    figures = meter.figures()
    if work.counted:  # apart, since counting changes when torch frees
        with WorkCounter() as counter:
            runner.run()
        figures["flops"] = counter.flops
    return figures
