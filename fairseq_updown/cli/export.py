"""Write a trained model in a format that loads without this plugin.

    updown-export CHECKPOINT --to fairseq OUT.pt        a stock transformer, for any fairseq command
    updown-export CHECKPOINT --to ctranslate2 DIR       for the ctranslate2 package, an extra

Both compute the same as the model while a source fits one encoder block (--updown-block-size) and a
target two decoder blocks; beyond, they attend to every token. How long that is, is said. What pools
or copies cannot be written so: it is refused, and with --force left out.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fairseq import utils
from omegaconf import OmegaConf

from ..data.files import atomic_directory, check_writable, write_atomic
from ..errors import UserError
from ..inference.loading import languages, read_checkpoint
from ..models.updown_transformer.stock_form import StockForm, stock_form
from ..terminal import printable
from .support import CommandParser, run_command

PROG = "updown-export"
QUANTIZATIONS = ("int8", "int8_float32", "int16", "float16", "bfloat16", "float32")


def to_fairseq(state: dict[str, Any], form: StockForm) -> dict[str, Any]:
    """A checkpoint of plain values and tensors, so that torch's safe loader takes it anywhere."""
    cfg: Any = OmegaConf.to_container(state["cfg"], enum_to_str=True)
    cfg.update(model=form.model, task=form.task, scoring=None)
    cfg["criterion"] = {"_name": "cross_entropy", "sentence_avg": False}
    cfg["common"]["user_dir"] = None
    history = dict(state["optimizer_history"][-1]) if state.get("optimizer_history") else {}
    return {
        "args": None,
        "cfg": cfg,
        "model": form.weights,
        "optimizer_history": [
            {
                "criterion_name": str(history.get("criterion_name")),
                "optimizer_name": str(history.get("optimizer_name")),
                "lr_scheduler_state": {},
                "num_updates": int(history.get("num_updates", 0)),
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
        "task_state": {},
    }


def write_ctranslate2(form: StockForm, data: Path, out: Path, quantization: str | None) -> None:
    """Converts by way of a checkpoint in the layout that ctranslate2's converter reads."""
    try:
        converters = importlib.import_module("ctranslate2.converters")
    except ImportError as error:
        raise UserError(
            "--to ctranslate2 needs a package that is not installed: pip install ctranslate2"
        ) from error
    options = Namespace(**{**form.task, **form.model, "task": "translation", "data": str(data)})
    del options._name
    with tempfile.TemporaryDirectory() as folder, atomic_directory(out) as partial:
        stock = Path(folder, "stock.pt")
        torch.save({"args": options, "model": form.weights}, stock)
        try:
            converters.FairseqConverter(str(stock), str(data)).convert(
                str(partial), quantization=quantization, force=True
            )
        # what its format has no place for: by name, or what it misses in the model
        except (ValueError, AttributeError) as error:
            raise UserError(f"ctranslate2 does not take this model: {error}") from error


def run(args: argparse.Namespace) -> None:
    source, out = args.checkpoint, args.out
    if args.quantization and args.to != "ctranslate2":
        raise UserError("--quantization is of --to ctranslate2: leave it out")
    if not source.is_file():
        raise UserError(f"{source} is no file: give one that fairseq-train saved")
    if os.path.lexists(out):
        raise UserError(f"{out} exists and is left alone: give another name, or remove it")
    check_writable("OUT", out)
    state = read_checkpoint(source, args.data, "CHECKPOINT")
    form = stock_form(state, str(source), force=args.force)
    if args.to == "fairseq":
        content = io.BytesIO()
        torch.save(to_fairseq(state, form), content)
        write_atomic(out, content.getvalue())
    else:
        cfg = state["cfg"].task
        data = Path(utils.split_paths(cfg.data)[0])
        form.task["source_lang"], form.task["target_lang"] = languages(cfg, data)
        write_ctranslate2(form, data, out, args.quantization)
    how = (
        f"for sources of up to {form.max_source:,} tokens and targets of up to {form.max_target:,}"
        if not form.differences
        else f"but for this: {'; '.join(form.differences)}"
    )
    print(f"{printable(out)}: the same text as {printable(source)} {how}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(PROG, __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="saved by fairseq-train")
    add("--to", required=True, choices=["fairseq", "ctranslate2"], help="format")
    add("out", type=Path, metavar="OUT", help="file, or for ctranslate2 a directory, to create")
    add("--data", type=Path, metavar="DIR",
        help="directory with the dictionaries (default: the training's)")  # fmt: skip
    add("--quantization", choices=QUANTIZATIONS, help="of ctranslate2's weights (default: none)")
    add("--force", action="store_true", help="also a model that pools or copies, without that")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(PROG, lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
