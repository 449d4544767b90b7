"""The options of the programs that load a checkpoint: those of :meth:`Summarizer.load`."""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path
from typing import Any

from ..inference.loading import SENTENCEPIECE_MODEL
from ..inference.summarizer import Summarizer
from ..ops.packed_linear import FORMATS
from .support import positive, whole_number


def _parameters() -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(Summarizer.load).parameters)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that :func:`load_summarizer` reads."""

    def add(group: Any, flag: str, text: str, **more: Any) -> None:
        default = _parameters()[flag[2:].replace("-", "_")].default
        group.add_argument(flag, help=text, default=default, **more)

    model = parser.add_argument_group("model")
    model.add_argument(
        *("--checkpoint", "--path"),
        type=Path,
        required=True,
        metavar="FILE",
        help="saved by fairseq-train; a.pt:b.pt generate together",
    )
    data = "directory with the dictionaries (default: the one the checkpoint was trained with)"
    add(model, "--data", data, type=Path, metavar="DIR")
    pieces = (
        f"what the text was encoded with (default: {SENTENCEPIECE_MODEL} in the data directory)"
    )
    add(model, "--sentencepiece-model", pieces, type=Path, metavar="FILE")
    add(model, "--bpe", "or another of fairseq's --bpe (default: the training's)", metavar="NAME")
    files = '{"gpt2_encoder_json": "FILE", "gpt2_vocab_bpe": "FILE"}'
    add(model, "--bpe-args", f"its options there, such as '{files}'", metavar="JSON")
    device = "cpu, cuda, cuda:1, ... (default: a GPU if there is one)"
    add(model, "--device", device, metavar="NAME")
    add(model, "--fp16", "compute in half precision", action="store_true")
    products = "of decoding steps on a CPU (default: the training's --updown-step-precision)"
    add(model, "--step-precision", products, choices=list(FORMATS))
    batch = "most source tokens of a batch of several documents (default %(default)s)"
    add(model, "--max-tokens", batch, type=positive, metavar="N")

    memory = "most tokens that the decoder reads of a --long stream (default %(default)s)"
    add(model, "--stream-memory", memory, type=positive, metavar="N")

    search = parser.add_argument_group("search, as in fairseq-generate; lengths in pieces")
    add(search, "--beam", "beam size (default %(default)s)", type=positive, metavar="N")
    lenpen = "above 1 favours longer summaries (default %(default)s)"
    add(search, "--lenpen", lenpen, type=float, metavar="X")
    unkpen = "the larger, the fewer unknown pieces; inf for none (default %(default)s)"
    add(search, "--unkpen", unkpen, type=float, metavar="X")
    add(search, "--min-len", "shortest summary (default %(default)s)", type=whole_number)
    longest = "longest summary: A x source + B (default A %(default)s)"
    add(search, "--max-len-a", longest, type=float, metavar="A")
    add(search, "--max-len-b", "see above (default %(default)s)", type=positive, metavar="B")
    repeat = "no N pieces in a row twice; 0 for no such limit (default %(default)s)"
    add(search, "--no-repeat-ngram-size", repeat, type=whole_number, metavar="N")


def load_summarizer(args: argparse.Namespace) -> Summarizer:
    """Loads what the options of :func:`add_options` name."""
    return Summarizer.load(**{name: getattr(args, name) for name in _parameters()})
