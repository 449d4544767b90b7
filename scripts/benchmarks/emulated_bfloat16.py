#!/usr/bin/env python3
"""Compare how models learn in bfloat16 on a processor that has none, in bearable time.

    emulated_bfloat16.py quality DATA ... -- --updown-autocast bfloat16-always
    emulated_bfloat16.py mixers --sections translation ... -- --updown-autocast bfloat16-always

Without instructions for it torch multiplies bfloat16 matrices in a plain loop, some twenty times
slower than float32 ones. In the trainings and tests that the named script of this folder starts by
fairseq's programs, the operands of each such product are taken to float32, multiplied, and the
result rounded to bfloat16: what a processor with bfloat16 computes, but for the order of its sums.

The times and speeds that are printed then mean nothing. `mixers` has two sections that start
fairseq's programs: summaries and translation; the others are refused.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SCRIPTS = ("quality", "mixers")
SECTIONS = {"summaries", "translation"}
PROGRAMS = ("fairseq-train", "fairseq-generate")
_ATEN = torch.ops.aten
_PRODUCTS = {op.default for op in (_ATEN.mm, _ATEN.addmm, _ATEN.bmm, _ATEN.baddbmm)}


class EmulatedBfloat16(TorchDispatchMode):
    """Products of bfloat16 matrices are float32 ones, rounded; forward and backward."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [value for value in args if isinstance(value, Tensor)]
        if func in _PRODUCTS and all(value.dtype == torch.bfloat16 for value in tensors):
            wide = (value.float() if isinstance(value, Tensor) else value for value in args)
            return func(*wide, **kwargs).bfloat16()
        return func(*args, **kwargs)


def run_program(words: Sequence[str]) -> int:
    """Runs a program of fairseq, emulated; gives its status."""
    sys.argv = list(words)
    (entry,) = metadata.entry_points(group="console_scripts", name=words[0])
    program = entry.load()  # before anything else is imported: it sets up the log
    with EmulatedBfloat16():
        return program() or 0


def run_script(words: Sequence[str]) -> int:
    """Runs a script of this folder whose trainings come here; gives its status.

    Raises:
        SystemExit: it would also measure what does not come here.
    """
    if words[0] == "mixers":
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--sections", nargs="+", default=[])
        named = set(parser.parse_known_args(words[1:])[0].sections)
        if not named or named - SECTIONS:
            raise SystemExit(
                f"emulated_bfloat16: error: --sections {' '.join(sorted(named))}: choose among "
                f"{', '.join(sorted(SECTIONS))}, the others cannot be emulated"
            )
    quality = importlib.import_module("quality")
    start = quality.run_installed

    def start_here(order: Sequence[str], log: Path, environment: dict[str, str]) -> Any:
        return start([Path(sys.executable).name, __file__, *order], log, environment)

    with patch.object(quality, "run_installed", start_here):
        return importlib.import_module(words[0]).main(words[1:])


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else ""
    if name in PROGRAMS:
        return run_program(words)
    if name in SCRIPTS:
        return run_script(words)
    if name in ("-h", "--help"):
        print(__doc__)
        return 0
    names = ", ".join(SCRIPTS)
    raise SystemExit(f"emulated_bfloat16: error: {name!r} is none of {names}: give one of them")


if __name__ == "__main__":
    raise SystemExit(main())
