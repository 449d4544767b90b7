#!/usr/bin/env python3
"""Time and memory of updown_transformer beside fairseq's transformer, on the same work.

    cost.py --json out.json --png out.png                      all of it: hours on two cores
    cost.py --sections train --lengths 512 2048 --repeats 1

Sections:
    train      a training step (forward, backward, Adam), batch 1, over the source's length
    generate   beam search for a fixed number of steps over a long source: time of a decoding step,
               the encoder apart
    sentences  both on a batch of 128 short sentences
    dropout    the training step with attention dropout 0.1, which no fast attention kernel takes
    launches   operations that a GPU would launch in a training step's forward and backward pass,
               counted on any device, and an estimate of its time there
    profile    which kinds of operations take the time of a training step, by torch's profiler

An architecture may have options: 'updown_transformer_arxiv {"updown_autocast": "bfloat16"}'.
Hugging Face's `led` and `longt5` can be named too, where the extra `peers` is installed.

Every row runs all architectures in turn, round by round; printed are medians, ranges, and ratios to
the first architecture. Each model first takes a step on at most 512 source tokens, untimed. No
round starts once a row's rounds have taken --row-seconds.

Peak memory is what the work adds, at its peak, to a built model: resident memory of a fresh process
on a CPU, the allocator's on a GPU; Adam's state counts. --json holds the whole peak as well.

The limit is what the machine could do at best: floating-point operations over the measured rate of
matrix products, bytes of weights and caches that a decoding step reads over the measured bandwidth.

Weights and tokens are random; dropout is 0.1, attention dropout 0 (as fairseq trains by default),
label smoothing 0.1, vocabulary 10,000, embeddings shared. Adam is fairseq's own, without apex. In
bfloat16 and float16 the weights are held in that type and Adam computes in float32, as in
fairseq-train --memory-efficient-bf16 or -fp16, without loss scaling.

With --json each row is saved when done. A row that the file has, with the same options, machine,
versions and plugin source, is not measured again.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peers
import report
import step_profile
import steps
import torch
from fairseq.models import ARCH_MODEL_REGISTRY
from figure_store import Store, code, digest, machine, plugin_source
from fresh_process import MIB, OutOfMemory, alone, available_mib, guard_memory
from report import duration
from scale import GPU
from steps import Runner, warm_runner
from systems import Setup, Work, known

from fairseq_updown.cli import charts
from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import check_writable, write_atomic
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

ARCHITECTURES = ("transformer", "updown_transformer_arxiv", "updown_transformer_early",
                 "updown_transformer_pyramidion", "updown_transformer_blockwise")  # fmt: skip
SENTENCE_ARCHITECTURES = ("transformer", "updown_transformer", *ARCHITECTURES[1:3])
TITLES = {
    "train": "Training step, attention dropout 0",
    "generate": "Generation",
    "sentences": "Sentences",
    "dropout": "Training step, attention dropout 0.1",
    "launches": "Launches of a training step's forward and backward pass",
    "profile": "Where the time of a training step goes",
}
UNTIMED = ("launches", "profile")
LENGTHS = [128, 512, 1024, 2048, 4096, 8192, 16384, 32768]
LIMIT_LENGTH = 8192  # printed is the limit of the longest training step up to this
FITTED_FROM = 2048
LONGEST, LONGEST_UNIT = 262_144, 1024
KIND = "fairseq_updown benchmark"
OUT_OF_MEMORY = "out of memory"
NOT_INSTALLED = "not installed"
# What figures are measured by, beside the plugin.
MEASURING = [Path(__file__).with_name(f"{name}.py")
             for name in ("steps", "systems", "peers", "work_counter", "step_profile")]  # fmt: skip

Figures = dict[str, dict[str, Any]]  # by architecture
Rows = list[tuple[Work, Figures]]

# ------------------------------------------------------------------------------------- measuring


def time_rounds(figures: Figures, work: Work, setup: Setup, repeats: int, row_seconds: int) -> None:
    """Adds the seconds of each round to the figures of all that fit into memory together."""
    runners: dict[str, Runner] = {}
    for arch in progress([arch for arch, found in figures.items() if found], "warming up"):
        with suppress(OutOfMemory):
            runners[arch] = guard_memory(partial(warm_runner, arch, work, setup))
    for arch in list(runners):
        if figures[arch]["added_mib"] > available_mib(setup.device):
            del runners[arch]
    start = time.perf_counter()
    for number in progress(range(repeats), f"{work.src_len}: {work.kind}"):
        if number and time.perf_counter() - start > row_seconds:
            break
        for arch in list(runners):
            try:
                found = guard_memory(runners[arch].timed)
            except OutOfMemory:
                del runners[arch]
                figures[arch].pop("seconds", None)
                release()
                continue
            for key, value in found.items():
                figures[arch].setdefault(key, []).append(value)
    runners.clear()
    release()


def measure(
    work: Work, architectures: Sequence[str], setup: Setup, repeats: int, row_seconds: int
) -> Figures:
    """All figures of a row by architecture; what needs too much memory lacks them."""
    figures: Figures = {}
    for arch in progress(architectures, f"{work.src_len}: memory"):
        figures[arch] = {}
        if peers.is_missing(arch):
            continue
        with suppress(OutOfMemory):
            figures[arch] = alone(setup.device, steps.inspect, arch, work, setup)
        release()
    time_rounds(figures, work, setup, repeats, row_seconds)
    return figures


def release() -> None:
    """Gives back what dropped models held; an untrimmed heap keeps it."""
    gc.collect()
    with suppress(AttributeError):  # of C libraries, glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def longest_source(arch: str, gigabytes: int, setup: Setup, tgt_len: int) -> int:
    """The longest source, in multiples of LONGEST_UNIT, whose training steps fit; by bisection.

    A gigabyte is 10^9 bytes, of the GPU's allocator. Batch 1, no attention dropout. 0 if none fits.
    """

    def fits(units: int) -> bool:
        work = Work("train", 1, units * LONGEST_UNIT, tgt_len)
        fitted = False
        with suppress(OutOfMemory):
            guard_memory(lambda: warm_runner(arch, work, setup).run())
            fitted = True
        release()
        return fitted

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(gigabytes * 1e9 / total)
    units = range(1, LONGEST // LONGEST_UNIT + 1)
    try:
        return LONGEST_UNIT * bisect(units, False, key=lambda number: not fits(number))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# -------------------------------------------------------------------------------------- printing


def columns(kind: str) -> list[str]:
    """The head of a section's table."""
    head = ["source", "batch", "architecture", "training step", "range", "faster"]
    if kind == "generate":
        head = [*head[:3], "decoding step", *head[4:], "encoder"]
    return [*head, "peak memory", "less"]


def cells(arch: str, kind: str, own: dict[str, Any], stock: dict[str, Any]) -> list[str]:
    """The architecture's part of a row, under :func:`columns`; ratios are to ``stock``."""

    def ratio(figure: Callable[[dict[str, Any]], float]) -> str:
        try:
            return "" if own is stock else f"{figure(stock) / figure(own):.2f}x"
        except (KeyError, ZeroDivisionError):  # the first architecture ran out of memory
            return ""

    why = NOT_INSTALLED if peers.is_missing(arch) else OUT_OF_MEMORY
    found = [why, "", ""] + [""] * (kind == "generate")
    if own.get("seconds"):
        median, spread = statistics.median(own["seconds"]), sorted(own["seconds"])
        found = [duration(median), f"{duration(spread[0])} to {duration(spread[-1])}"]
        found.append(ratio(lambda figures: statistics.median(figures["seconds"])))
        if kind == "generate":
            found.append(duration(statistics.median(own["encoder_seconds"])))
    if "added_mib" not in own:
        return [*found, why, ""]
    return [*found, f"{own['added_mib']:,.0f} MiB", ratio(lambda figures: figures["added_mib"])]


def limit_rows(work: Work, figures: Figures, rates: dict[str, float]) -> list[list[str]]:
    """Each architecture's time against what the machine could do at best.

    A training step's limit is its operations over the measured rate of matrix products; a decoding
    step's is that or its bytes over the measured memory bandwidth, whichever takes longer.
    """
    rows = []
    step = "training step" if work.kind == "train" else "decoding step"
    for arch, own in figures.items():
        if not own.get("seconds") or not own.get("flops"):
            continue
        seconds = statistics.median(own["seconds"])
        arithmetic = own["flops"] / rates["flops_per_s"]
        reading = own.get("bytes_read", 0) / rates["bytes_per_s"]
        limit, bound = max((arithmetic, "arithmetic"), (reading, "memory"))
        rows.append([
            f"{step}, source {work.src_len}, batch {work.bsz}", f"`{arch}`",
            f"{own['flops'] / 1e9:,.1f} G",
            f"{own['bytes_read'] / MIB:,.0f} MiB" if "bytes_read" in own else "",
            f"{duration(limit)} ({bound})", duration(seconds), f"{limit / seconds:.0%}",
        ])  # fmt: skip
    return rows


def medians(rows: Rows, key: str) -> dict[str, dict[int, float]]:
    """By architecture and length, the median of one figure; where it was not measured, nothing."""
    found: dict[str, dict[int, float]] = {}
    for work, figures in rows:
        for arch, own in figures.items():
            if own.get(key):
                found.setdefault(arch, {})[work.src_len] = float(np.median(own[key]))
    return found


def exponents(rows: Rows) -> str:
    """The e for which training time grows as length^e, from lengths of at least FITTED_FROM on.

    Least squares on logarithms, a line an architecture.
    """
    lines = []
    for arch, times in medians(rows, "seconds").items():
        fitted = {length: value for length, value in times.items() if length >= FITTED_FROM}
        if len(fitted) > 1:
            logs = ([math.log(x) for x in side] for side in (fitted, fitted.values()))
            slope = statistics.linear_regression(*logs).slope
            lines.append(f"- `{arch}`: {slope:.2f} ({min(fitted)} to {max(fitted)})")
    return "\n".join(lines)


def picture(rows: Rows, title: str) -> bytes:
    """A PNG of time and memory of a training step over the source length, one line each."""
    figure, axes = report.panels(2, figsize=(11, 4.6))
    shown = (("seconds", "training step, seconds"), ("added_mib", "peak memory added, MiB"))
    lengths = sorted({work.src_len for work, _ in rows})
    for axis, (key, label) in zip(axes, shown):
        for number, (arch, values) in enumerate(medians(rows, key).items()):
            colour = charts.COLOURS[number % len(charts.COLOURS)]
            marker = charts.MARKERS[number % len(charts.MARKERS)]
            axis.plot(*zip(*values.items()), label=arch, color=colour, marker=marker, markersize=5)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        report.plain_ticks(axis.yaxis)
        short = [f"{n // 1024}k" if n % 1024 == 0 else str(n) for n in lengths]
        axis.set_xticks(lengths, short)
        axis.set_xlabel("source tokens")
        axis.set_ylabel(label)
    if axes[0].lines:
        axes[0].legend(frameon=False)
    figure.suptitle(title)
    return charts.image(figure)


# --------------------------------------------------------------------------------------- running


def works(section: str, args: argparse.Namespace) -> list[Work]:
    """The rows of a section, in the order of its lengths."""
    if section == "train":
        limit = max([length for length in args.lengths if length <= LIMIT_LENGTH], default=0)
        return [Work("train", 1, length, args.target_length, counted=length == limit)
                for length in args.lengths]  # fmt: skip
    if section == "dropout":
        return [Work("train", 1, n, args.target_length, 0.1) for n in args.dropout_lengths]
    if section == "generate":
        return [Work("generate", bsz, length, args.steps, beam=args.beam)
                for length in args.generation_lengths for bsz in args.batches]  # fmt: skip
    size = (args.sentence_batch, args.sentence_length, args.sentence_length)
    return [Work("train", *size), Work("generate", *size, beam=args.beam)]


def surroundings(device: str) -> dict[str, str]:
    """The machine, the versions and the source that figures depend on."""
    return {
        **machine(device),
        "transformers": peers.VERSION or "none",
        "plugin source": plugin_source(),
        "measured by": digest([code(path) for path in MEASURING]),
    }


def run_section(section: str, args: argparse.Namespace, store: Store) -> Rows:
    """Measures a section row by row, printing each when done."""
    setup = Setup(args.device, args.dtype)
    default = SENTENCE_ARCHITECTURES if section == "sentences" else ARCHITECTURES
    architectures = args.architectures or list(default)
    options = {"repeats": args.repeats, "row_seconds": args.row_seconds}
    rows: Rows = []
    for work in works(section, args):
        key = {"work": asdict(work), "architectures": architectures, "setup": asdict(setup),
               **options, "machine": surroundings(args.device)}  # fmt: skip
        if not rows or rows[-1][0].kind != work.kind:
            what = f"target {work.tgt_len}" if work.kind == "train" else (
                f"beam {work.beam}, {work.tgt_len} forced steps")  # fmt: skip
            print(f"\n### {TITLES[section]}: {what}, {args.dtype}\n")
            print(report.table(columns(work.kind), []))
        figures = store.get(key, partial(measure, work, architectures, setup, **options))
        rows.append((work, figures))
        stock = figures[architectures[0]]
        for arch, own in figures.items():
            own_cells = cells(arch, work.kind, own, stock)
            print(report.line([str(work.src_len), str(work.bsz), f"`{arch}`", *own_cells]))
    return rows


def run_launches(args: argparse.Namespace, store: Store) -> None:
    """Counts launches and prints them, with an estimate of a GPU's step."""
    setup = Setup(args.device, args.dtype)
    print(f"\n### {TITLES['launches']}: target {args.target_length}, batch 1\n\n"
          f"Estimated, not measured: a GPU's step as max(launches x {GPU().launch * 1e6:.0f} us, "
          f"operations / {GPU().flops / 1e12:.0f} TFLOP/s).\n")  # fmt: skip
    head = ["source", "architecture", "launches", "of the first", "decoding step", "of the first",
            "operations", "GPU, estimated"]  # fmt: skip
    print(report.table(head, []))
    for length in args.launch_lengths:
        work = Work("train", 1, length, args.target_length)
        first: dict[str, float] = {}
        for arch in args.architectures or ARCHITECTURES:
            if peers.is_missing(arch):
                print(report.line([str(length), f"`{arch}`", NOT_INSTALLED, *[""] * 5]))
                continue
            key = {"launches": asdict(work), "beam": args.beam, "architecture": arch,
                   "setup": asdict(setup), "machine": surroundings(args.device)}  # fmt: skip
            found = store.get(key, partial(steps.count_launches, arch, work, setup, args.beam))
            first = first or found
            counts = []
            for kind in ("launches", "decoding_launches"):
                there = kind in found and kind in first
                counts.append(f"{found[kind]:,}" if kind in found else "")
                counts.append(f"{found[kind] / first[kind]:.2f}x" if there else "")
            seconds = max(found["launches"] * GPU().launch, found["flops"] / GPU().flops)
            print(report.line([
                str(length), f"`{arch}`", *counts, f"{found['flops'] / 1e9:,.0f} G",
                duration(seconds),
            ]))  # fmt: skip


def run_profile(args: argparse.Namespace, store: Store) -> None:
    """Profiles a training step of each architecture and prints the parts of its time."""
    setup = Setup(args.device, args.dtype)
    for length in args.profile_lengths:
        work = Work("train", 1, length, args.target_length)
        print(f"\n### {TITLES['profile']}: source {length}, target {args.target_length}, "
              f"{args.dtype}\n")  # fmt: skip
        print(report.table(step_profile.HEAD, []))
        for arch in args.architectures or ARCHITECTURES:
            key = {"profile": asdict(work), "architecture": arch, "setup": asdict(setup),
                   "machine": surroundings(args.device)}  # fmt: skip
            shares = partial(alone, args.device, step_profile.shares, arch, work, setup)
            why = NOT_INSTALLED if peers.is_missing(arch) else OUT_OF_MEMORY
            found: dict[str, float] = {}
            if why != NOT_INSTALLED:
                with suppress(OutOfMemory):
                    found = store.get(key, shares)
            print(report.line([f"`{arch}`", *(step_profile.cells(found) if found else [why])]))


def print_limits(rows: dict[str, Rows], args: argparse.Namespace, store: Store) -> None:
    """The limit of one training step, and of every decoding step over a long source."""
    chosen = [row for row in rows.get("train", []) if row[0].counted] + rows.get("generate", [])
    if not chosen:
        return
    key = {"rates": args.dtype, "machine": surroundings(args.device)}
    rates = store.get(key, lambda: steps.measured_rates(args.device, getattr(torch, args.dtype)))
    print(f"\n### Limit: {rates['flops_per_s'] / 1e9:,.0f} GFLOP/s in matrix products, "
          f"{rates['bytes_per_s'] / 1e9:.1f} GB/s\n")  # fmt: skip
    head = ["work", "architecture", "operations", "bytes read", "limit", "measured", "reached"]
    print(report.table(head, [row for found in chosen for row in limit_rows(*found, rates)]))


def run(args: argparse.Namespace) -> None:
    """All sections, then what is drawn from them, then what only GPUs do."""
    check(args)
    store = Store(args.json, KIND)
    setup = Setup(args.device, args.dtype)
    architectures = args.architectures or list(ARCHITECTURES)
    print(f"{json.dumps(surroundings(args.device))}\n\nMedians of up to {args.repeats} interleaved "
          "rounds, and their range. Peak memory is what the work adds to a built model; --json "
          "has the process's whole peak too.")  # fmt: skip
    timed = [section for section in args.sections if section not in UNTIMED]
    rows = {section: run_section(section, args, store) for section in timed}
    if "launches" in args.sections:
        run_launches(args, store)
    if "profile" in args.sections:
        run_profile(args, store)
    trained = rows.get("train", [])
    fitted = exponents(trained)
    if fitted:
        print(f"\n### Exponent of the training step's time over length\n\n{fitted}")
    print_limits(rows, args, store)
    if args.png:
        title = f"{machine(args.device)['cpu' if args.device == 'cpu' else 'gpu']}, {args.dtype}"
        write_atomic(args.png, picture(trained, title))
    for gigabytes in args.longest_source:
        print(f"\n### Longest source that trains in {gigabytes} GB\n")
        if gigabytes * 1e9 > torch.cuda.get_device_properties(0).total_memory:
            print("more than this GPU has: not measured")
            continue
        for arch in architectures:
            print(f"- `{arch}`: {longest_source(arch, gigabytes, setup, args.target_length):,}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser("cost.py", __doc__)
    add = parser.add_argument
    add("--sections", nargs="*", choices=TITLES, default=list(TITLES), help="default: all")
    add("--architectures", nargs="+", metavar="ARCH", help="ratios are to the first; "
        f"default: {' '.join(ARCHITECTURES)}")  # fmt: skip
    add("--lengths", type=positive, nargs="+", default=LENGTHS, metavar="N",
        help="source lengths, training step")  # fmt: skip
    add("--dropout-lengths", type=positive, nargs="+", default=[512, 2048], metavar="N",
        help="the same with attention dropout: memory is quadratic")  # fmt: skip
    add("--generation-lengths", type=positive, nargs="+", default=[8192], metavar="N",
        help="source lengths, generation")  # fmt: skip
    add("--launch-lengths", type=positive, nargs="+", default=[4096], metavar="N",
        help="source lengths, launches")  # fmt: skip
    add("--profile-lengths", type=positive, nargs="+", default=[8192], metavar="N",
        help="source lengths, profile")  # fmt: skip
    add("--target-length", type=positive, default=256, metavar="N", help="of a training step")
    add("--batches", type=positive, nargs="+", default=[1, 4], metavar="N", help="in generation")
    add("--beam", type=positive, default=5, metavar="N")
    add("--steps", type=positive, default=128, metavar="N", help="forced decoding steps")
    add("--sentence-batch", type=positive, default=128, metavar="N")
    add("--sentence-length", type=positive, default=32, metavar="N")
    add("--repeats", type=positive, default=3, metavar="N", help="rounds of a row")
    add("--row-seconds", type=positive, default=240, metavar="S",
        help="start no further round of a row after this time")  # fmt: skip
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    add("--json", type=Path, metavar="FILE", help="keep the figures here, and go on from them")
    add("--png", type=Path, metavar="FILE", help="draw training time and memory over length")
    add("--longest-source", type=positive, nargs="+", default=[], metavar="GB",
        help="find the longest source that trains in so much memory (GPU)")  # fmt: skip
    args = parser.parse_args(argv)
    for name in ("lengths", "dropout_lengths", "generation_lengths"):
        setattr(args, name, sorted(set(getattr(args, name))))
    return args


def check_device(device: str) -> None:
    """Refuses a GPU that is not there, and a system that does not tell the memory of a process."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; give --device cpu")
    if device == "cpu" and not Path("/proc/self/clear_refs").exists():
        raise UserError("--device cpu: memory is measured through Linux's /proc, not found here")


def check(args: argparse.Namespace) -> None:
    """Refuses, before any work, what cannot be done.

    Raises:
        UserError: saying which value, and what to give instead.
    """
    for arch in args.architectures or (*ARCHITECTURES, *SENTENCE_ARCHITECTURES):
        if not known(arch):
            ours = ", ".join(name for name in ARCH_MODEL_REGISTRY if name.startswith("updown"))
            raise UserError(f"--architectures {arch} is not known; ours are {ours}")
    check_device(args.device)
    if args.longest_source and args.device == "cpu":
        raise UserError(
            f"--longest-source {args.longest_source[0]} needs a GPU: give --device cuda"
        )
    if args.png and "train" not in args.sections:
        raise UserError(f"--png {args.png} draws the section train: add it to --sections")
    if args.png:
        charts.check_matplotlib("--png", args.png)
    for name in ("json", "png"):
        path = getattr(args, name)
        if path is not None:
            check_writable(f"--{name}", path)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command("cost", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
