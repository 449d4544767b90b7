#!/usr/bin/env python3
"""Encode a corpus of updown-prepare as BART's data is: with GPT-2's byte pair encoding.

CORPUS/raw/{train,valid,test}.{src,tgt} become the same names under --out, a document a line, its
pieces' numbers between spaces. A file is written whole or not at all, and one that is there stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

from fairseq_updown.cli.support import CommandParser, UserError, positive, progress, run_command
from fairseq_updown.data.files import read_lines, write_lines
from fairseq_updown.data.parallel_text import map_by_workers

encoder: Any  # of each worker


def load_encoder(json_file: str, bpe_file: str) -> None:
    global encoder
    encoder = get_encoder(json_file, bpe_file)


def encode(text: str) -> str:
    """A line of text as a line of numbers."""
    return " ".join(map(str, encoder.encode(text)))


def run(args: Any) -> None:
    files = (str(args.encoder_json), str(args.vocab_bpe))
    for file in map(Path, files):
        if not file.is_file():
            raise UserError(f"{file}: not there; GPT-2's encoder.json and vocab.bpe are needed")
    names = [f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")]
    missing = [name for name in names if not (args.corpus / "raw" / name).is_file()]
    if missing:
        raise UserError(f"{args.corpus}/raw has no {missing[0]}: make it with updown-prepare")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        encoded = args.out / name
        if not encoded.exists():
            texts = progress(read_lines(args.corpus / "raw" / name), name)
            partial = args.out / f"{name}.partial"
            write_lines(partial, map_by_workers(encode, texts, args.workers, load_encoder, *files))
            partial.replace(encoded)


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("encode.py", __doc__)
    parser.add_argument("corpus", type=Path)
    for option in ("--out", "--encoder-json", "--vocab-bpe"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--workers", type=positive, default=2, metavar="N")
    args = parser.parse_args(argv)
    return run_command("encode", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
