#!/usr/bin/env python3
"""Predict memory and time of a training on several GPUs. Nothing here runs on one.

    scale.py --json scale.json
    scale.py --length 16384 --architectures bart_large updown_transformer_bart_large

What is counted, here and on any machine, in one training step on one random document in bfloat16:
operations that compute (launches), floating-point operations, the bytes that each operation reads
and writes, and the most bytes of tensors that are alive at once, gradients of weights not among
them. Matrix products and attention are not computed, for no count depends on their numbers.

What the prediction takes for granted is printed above the table: the constants of `GPU`, and
fairseq-train --bf16, which keeps a weight and its gradient in bfloat16 and in float32, and Adam's
two moments in float32.

A step takes as long as its launches, or as its operations one after the other: each as long as its
floating-point operations or its bytes take, whichever is more. An update is the steps that its
documents need, fairseq's optimizer, and the sum of all gradients over the network, with nothing
overlapped. The optimizer copies gradients, clips, runs Adam and copies weights, tensor by tensor:
as long as its launches, or Adam's bytes, take. Every document is taken to be as long as --length.

Left out: loading of data, padding, what the allocator wastes, DistributedDataParallel's buckets
(2 bytes a parameter, unless --gradient-as-bucket-view), validation, checkpoints.
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fairseq import __version__ as fairseq_version
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.fp16_optimizer import FP16Optimizer
from figure_store import Store, code, digest, plugin_source
from omegaconf import OmegaConf
from report import duration, table
from steps import count_step
from systems import Setup, Work, known
from torch.utils._pytree import tree_map_only
from work_counter import WorkCounter, tensors_in

from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import check_writable
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

ARCHITECTURES = ("transformer", "updown_transformer_arxiv", "updown_transformer_early")
KIND = "fairseq_updown counts"
COUNTING = [Path(__file__).with_name(f"{name}.py")
            for name in ("scale", "steps", "systems", "work_counter")]  # fmt: skip
# fairseq-train --bf16: weight and gradient in 2 and in 4 bytes, Adam's two moments in 4 each.
PARAMETER_BYTES = 20
OPTIMIZER_TRAFFIC = 2 * PARAMETER_BYTES  # Adam reads and writes nearly all of it
GRADIENT_BYTES = 2  # what goes over the network


@dataclass(frozen=True)
class GPU:
    """What a large one is taken to reach in training.

    Attributes:
        flops: matrix products in bfloat16, a second.
        bandwidth: bytes of its memory, a second.
        launch: seconds of the host for an operation.
        inside, between: bytes a second that each GPU exchanges within a machine, and with others.
    """

    flops: float = 4e14
    bandwidth: float = 2.5e12
    launch: float = 6e-6
    inside: float = 2e11
    between: float = 2.5e10


@dataclass(frozen=True)
class Counted:
    """A training step's forward and backward pass on one document.

    Attributes:
        parameters: of the model.
        launches: operations that compute.
        optimizer_launches: the same of an update's end, see :func:`count_optimizer`.
        flops: floating-point operations.
        device: seconds of the :class:`GPU`, operation by operation.
        peak: bytes of the tensors that are alive together, at most; parameters and their
            gradients are not among them.
    """

    parameters: int
    launches: int
    optimizer_launches: int
    flops: int
    device: float
    peak: int


class StepCounter(WorkCounter):
    """Also what each operation would take on a GPU, and the bytes that are alive.

    Attributes:
        device: seconds, see :class:`Counted`.
        live, peak: bytes of the results' memory now and at most; a view has its tensor's.
    """

    def __init__(self, gpu: GPU) -> None:
        super().__init__()
        self.gpu = gpu
        self.device = 0.0
        self.live = self.peak = 0
        self._held: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        flops, launches = self.flops, self.launches.total()
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.launches.total() > launches:
            moved = sum(map(_size, tensors_in([args, kwargs or {}, result])))
            self.device += max((self.flops - flops) / self.gpu.flops, moved / self.gpu.bandwidth)
        given = {tensor.untyped_storage()._cdata for tensor in tensors_in([args, kwargs or {}])}
        for tensor in tensors_in([result]):
            if tensor.untyped_storage()._cdata not in given:
                self._hold(tensor.untyped_storage())
        return result

    def multiply(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Zeros, as large as the result."""

        def shape(x: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="meta")

        def zeros(x: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype).zero_()

        args, kwargs = tree_map_only(torch.Tensor, shape, (args, kwargs))
        return tree_map_only(torch.Tensor, zeros, func(*args, **kwargs))

    def _hold(self, storage: torch.UntypedStorage) -> None:
        """Counts new memory, until it is freed."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._held.discard(key)
        self.live -= size


def _size(tensor: torch.Tensor) -> int:
    """Bytes that an operation touches of a tensor: an expanded one is read once."""
    return min(tensor.nbytes, tensor.untyped_storage().nbytes())


def count(name: str, work: Work, gpu: GPU) -> dict[str, Any]:
    """The fields of :class:`Counted`."""
    counter = StepCounter(gpu)
    runner = count_step(name, work, Setup("cpu", "bfloat16"), counter)
    sizes = [parameter.numel() for parameter in runner.system.model.parameters()]
    return {
        "parameters": sum(sizes),
        "launches": counter.launches.total(),
        "optimizer_launches": count_optimizer(len(sizes)),
        "flops": counter.flops,
        "device": counter.device,
        "peak": counter.peak,
    }


def count_optimizer(tensors: int) -> int:
    """Launches of an update's end by ``fairseq-train --bf16`` without apex, of so many parameters:
    their number decides, not their sizes."""
    cfg = OmegaConf.structured(FairseqConfig)
    cfg.common.bf16, cfg.optimizer = True, FairseqAdamConfig(_name="adam")
    weights = [torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(tensors)]
    optimizer = FP16Optimizer.build_optimizer(cfg, weights)
    for counter in (WorkCounter(), WorkCounter()):  # the first makes Adam's moments
        optimizer.backward(torch.stack([weight.sum() for weight in weights]).sum())
        with counter:
            optimizer.multiply_grads(0.5)
            optimizer.clip_grad_norm(1.0)
            optimizer.step()
            optimizer.zero_grad()
    return counter.launches.total()


@dataclass(frozen=True)
class Prediction:
    """An update on several GPUs.

    Attributes:
        documents: of a GPU's step.
        steps: of an update.
        memory: bytes of a GPU.
        seconds: of an update, by what takes them: "launches" or "device", "optimizer", "network".
    """

    documents: int
    steps: int
    memory: int
    seconds: dict[str, float]

    @property
    def update(self) -> float:
        """Seconds of an update."""
        return sum(self.seconds.values())


def predict(counted: Counted, gpus: int, batch: int, memory: float, gpu: GPU) -> Prediction | None:
    """An update of ``batch`` documents on so many GPUs, ``memory`` bytes of each to be filled.

    None where not even one document fits. A step has the largest power of two of documents that
    fits; those that a GPU gets of an update are rounded up to whole steps.
    """
    fixed = PARAMETER_BYTES * counted.parameters
    share = -(-batch // gpus)
    documents = 1
    while documents * 2 <= share and fixed + 2 * documents * counted.peak <= memory:
        documents *= 2
    if fixed + documents * counted.peak > memory:
        return None
    steps = -(-share // documents)
    launching, computing = counted.launches * gpu.launch, documents * counted.device
    bound = "launches" if launching > computing else "device"
    seconds = {
        bound: steps * max(launching, computing),
        "optimizer": max(
            counted.optimizer_launches * gpu.launch,
            OPTIMIZER_TRAFFIC * counted.parameters / gpu.bandwidth,
        ),
        "network": 0.0,
    }
    if gpus > 1:
        rate = gpu.inside if gpus <= 8 else gpu.between
        sent = 2 * (gpus - 1) / gpus * GRADIENT_BYTES * counted.parameters
        seconds["network"] = sent / rate
    return Prediction(documents, steps, fixed + documents * counted.peak, seconds)


def counted_table(found: dict[str, Counted]) -> str:
    """What was counted, a row an architecture."""
    head = ["architecture", "parameters", "launches", "of the optimizer", "operations",
            "device, predicted", "alive at most, a document"]  # fmt: skip
    return table(head, [
        [f"`{name}`", f"{own.parameters / 1e6:.0f} M", f"{own.launches:,}",
         f"{own.optimizer_launches:,}", f"{own.flops / 1e12:.2f} T", duration(own.device),
         f"{own.peak / 1e9:.1f} GB"]
        for name, own in found.items()
    ])  # fmt: skip


def predicted_table(found: dict[str, Counted], args: argparse.Namespace, gpu: GPU) -> str:
    """What is predicted, a row for each architecture and number of GPUs."""
    head = ["architecture", "GPUs", "documents a step", "steps an update", "memory of a GPU",
            "update", "mostly", f"{args.documents:,} documents"]  # fmt: skip
    rows = []
    for name, counted in found.items():
        for gpus in args.gpus:
            got = predict(counted, gpus, args.batch, args.memory * 1e9, gpu)
            if got is None:
                rows.append([f"`{name}`", str(gpus), "does not fit", "", "", "", "", ""])
                continue
            minutes = got.update * args.documents / args.batch / 60
            rows.append([
                f"`{name}`", str(gpus), str(got.documents), str(got.steps),
                f"{got.memory / 1e9:.0f} GB", duration(got.update),
                max(got.seconds, key=lambda part: got.seconds[part]), f"{minutes:,.1f} min",
            ])  # fmt: skip
    return table(head, rows)


def run(args: argparse.Namespace) -> None:
    for name in args.architectures:
        if not known(name):
            raise UserError(f"--architectures {name} is not known")
    if args.json is not None:
        check_writable("--json", args.json)
    store, gpu = Store(args.json, KIND), GPU()
    versions = {
        "torch": torch.__version__,
        "fairseq": fairseq_version,
        "source": digest(plugin_source(), [code(path) for path in COUNTING]),
    }
    work = Work("train", 1, args.length, args.target_length)
    found = {}
    for name in progress(args.architectures, "counting"):
        key = {"work": asdict(work), "architecture": name, "gpu": asdict(gpu), **versions}
        found[name] = Counted(**store.get(key, partial(count, name, work, gpu)))
    print(
        f"One document of {args.length:,} tokens, target {args.target_length}, bfloat16, counted "
        f"with torch {torch.__version__}:\n\n{counted_table(found)}\n\n"
        f"Predicted, not measured, for GPUs of which {args.memory} GB are filled, that reach "
        f"{gpu.flops / 1e12:.0f} TFLOP/s and {gpu.bandwidth / 1e12:.1f} TB/s of their memory, "
        f"launch in {gpu.launch * 1e6:.0f} us, and exchange {gpu.inside / 1e9:.0f} GB/s up to 8, "
        f"{gpu.between / 1e9:.0f} GB/s beyond; {args.batch} documents an update, "
        f"{PARAMETER_BYTES} bytes a parameter:\n\n{predicted_table(found, args, gpu)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("scale.py", __doc__)
    add = parser.add_argument
    add("--architectures", nargs="+", metavar="ARCH", default=list(ARCHITECTURES),
        help=f"as of cost.py; default: {' '.join(ARCHITECTURES)}")  # fmt: skip
    add("--length", type=positive, default=8192, metavar="N", help="tokens of a document")
    add("--target-length", type=positive, default=256, metavar="N")
    add("--gpus", type=positive, nargs="+", default=[1, 8, 64], metavar="N")
    add("--batch", type=positive, default=256, metavar="N", help="documents of an update")
    add("--documents", type=positive, default=203_037, metavar="N",
        help="of an epoch; default: those of arXiv's summarization dataset")  # fmt: skip
    add("--memory", type=positive, default=72, metavar="GB", help="of a GPU, to be filled")
    add("--json", type=Path, metavar="FILE", help="keep the counts here, and go on from them")
    args = parser.parse_args(argv)
    return run_command("scale", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
