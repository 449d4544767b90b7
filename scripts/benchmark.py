#!/usr/bin/env python3
"""Time and memory of updown_transformer beside fairseq's transformer, on the same work.

    benchmark.py --lengths 512 2048 8192

For each source length: one training step (forward, backward, Adam) of every architecture, one
sample, all architectures in turn and the median over the repeats; then generation with beam search
for a fixed number of steps, its time a step without the encoder. Peak memory is that of a fresh
process that takes one training step, less what it held before the step. Weights and tokens are
random; dropout is 0.1, attention dropout 0, label-smoothed loss, vocabulary 10,000.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import positive, progress, to_json, write_atomic
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.sequence_generator import SequenceGenerator

import fairseq_updown  # noqa: F401  registers the architectures

STOCK = "transformer"
ARCHITECTURES = (STOCK, "updown_transformer_arxiv", "updown_transformer_pyramidion",
                 "updown_transformer_blockwise")  # fmt: skip
VOCABULARY = 10_000


def build(arch: str, max_length: int) -> Any:
    """A model of the architecture with random weights, dropout 0.1."""
    torch.manual_seed(1)
    dictionary = Dictionary()
    for number in range(VOCABULARY - len(dictionary)):
        dictionary.add_symbol(f"w{number}")
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, cfg=None)
    args = Namespace(_name=arch, share_all_embeddings=True, max_source_positions=max_length)
    ARCH_CONFIG_REGISTRY[arch](args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, task)


def batch(bsz: int, src_len: int, tgt_len: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(src_len)
    source = torch.randint(4, VOCABULARY, (bsz, src_len), generator=generator)
    target = torch.randint(4, VOCABULARY, (bsz, tgt_len), generator=generator)
    return {"source": source, "target": target}


def training_step(model: Any, optimizer: torch.optim.Optimizer, data: dict) -> float:
    """Seconds for one step."""
    model.train()
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    logits = model(data["source"], None, data["target"])[0].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, data["target"].flatten(), label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    return time.perf_counter() - start


def generation(model: Any, data: dict, beam: int, steps: int) -> tuple[float, float]:
    """Seconds of the encoder, and of each decoding step."""
    model.eval()
    generator = SequenceGenerator(
        [model], model.decoder.dictionary, beam_size=beam, max_len_b=steps, min_len=steps
    )
    with torch.no_grad():
        start = time.perf_counter()
        model.encoder(data["source"])
        encoder = time.perf_counter() - start
    start = time.perf_counter()
    generator.generate([model], {"net_input": {"src_tokens": data["source"]}})
    return encoder, (time.perf_counter() - start - encoder) / (steps + 1)


def resident(field: str) -> float:
    """This process's resident memory now (VmRSS) or at its peak (VmHWM), in MiB; Linux only."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if field in line) / 1024


def peak_memory(arch: str, src_len: int, args: argparse.Namespace) -> float:
    """MiB that one training step adds, in a fresh process."""
    command = [sys.executable, __file__, "--memory-of", arch, "--lengths", str(src_len)]
    command += ["--target-length", str(args.target_length), "--batch-size", str(args.batch_size)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"benchmark: {arch} at {src_len} failed: {done.stderr[-500:]}")
    return float(done.stdout.split()[-1])


def measure_length(src_len: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """All figures of all architectures at one source length."""
    data = batch(args.batch_size, src_len, args.target_length)
    models = {arch: build(arch, src_len) for arch in args.architectures}
    adam = {arch: torch.optim.Adam(m.parameters(), lr=1e-4) for arch, m in models.items()}
    train: dict[str, list[float]] = {arch: [] for arch in models}
    for repeat in progress(range(args.repeats + 1), f"{src_len}: training steps"):
        for arch, model in models.items():
            seconds = training_step(model, adam[arch], data)
            if repeat or args.repeats == 1:  # the first warms up
                train[arch].append(seconds)
    decode: dict[str, list[tuple[float, float]]] = {arch: [] for arch in models}
    for _ in progress(range(args.repeats), f"{src_len}: generation"):
        for arch, model in models.items():
            decode[arch].append(generation(model, data, args.beam, args.steps))
    figures = {}
    for arch in models:
        encoder, step = (statistics.median(column) for column in zip(*decode[arch]))
        figures[arch] = {
            "train_s": statistics.median(train[arch]),
            "train_spread_s": max(train[arch]) - min(train[arch]),
            "encoder_s": encoder,
            "step_ms": 1000 * step,
        }
    del models, adam
    for arch in progress(args.architectures, f"{src_len}: memory"):
        figures[arch]["memory_mib"] = peak_memory(arch, src_len, args)
    return figures


HEADER = """\
| source | architecture | training step | peak memory | decoding step |
|---|---|---|---|---|"""


def rows(src_len: int, figures: dict[str, dict[str, float]]) -> str:
    """Markdown rows of one length; each figure with its ratio to the stock Transformer's."""
    stock = figures.get(STOCK)

    def cell(own: dict[str, float], key: str, unit: str) -> str:
        ratio = f" ({stock[key] / own[key]:.1f}x)" if stock and stock is not own else ""
        return f"{own[key]:.3g} {unit}{ratio}"

    return "\n".join(
        f"| {src_len} | `{arch}` | {cell(own, 'train_s', 's')} | {cell(own, 'memory_mib', 'MiB')} "
        f"| {cell(own, 'step_ms', 'ms')} |"
        for arch, own in figures.items()
    )


def machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    return {
        "cpu": cpu,
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--lengths", type=positive, nargs="+", default=[512, 2048], metavar="N")
    add("--architectures", nargs="+", default=ARCHITECTURES, metavar="ARCH")
    add("--target-length", type=positive, default=256, metavar="N")
    add("--batch-size", type=positive, default=1, metavar="N")
    add("--beam", type=positive, default=5, metavar="N")
    add("--steps", type=positive, default=32, metavar="N", help="decoding steps (default 32)")
    add("--repeats", type=positive, default=3, metavar="N", help="of every timing (default 3)")
    add("--json", type=Path, metavar="FILE", help="write the figures here too")
    add("--memory-of", metavar="ARCH", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for arch in args.architectures:
        if arch not in ARCH_MODEL_REGISTRY:
            known = ", ".join(name for name in ARCH_MODEL_REGISTRY if name.startswith("updown"))
            parser.error(f"--architectures {arch} is not known; ours are {known}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.memory_of:
        model = build(args.memory_of, args.lengths[0])
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
        data = batch(args.batch_size, args.lengths[0], args.target_length)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        before = resident("VmRSS")
        training_step(model, optimizer, data)
        print(resident("VmHWM") - before)
        return 0
    results = {}
    print(HEADER, flush=True)
    for src_len in args.lengths:
        results[str(src_len)] = measure_length(src_len, args)
        print(rows(src_len, results[str(src_len)]), flush=True)
    print(f"\n{json.dumps(machine())}; target {args.target_length}, batch {args.batch_size}, "
          f"beam {args.beam}; medians of {args.repeats}")  # fmt: skip
    if args.json:
        write_atomic(args.json, to_json({"machine": machine(), "results": results}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
