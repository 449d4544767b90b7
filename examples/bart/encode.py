#!/usr/bin/env python3
"""Encode a corpus of updown-prepare as BART's data is: with GPT-2's byte pair encoding.

CORPUS/raw/{train,valid,test}.{src,tgt} become the same names under --out, a document a line, its
pieces' numbers between spaces. A file is written whole or not at all, and one that is there stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

from fairseq_updown.cli.support import CommandParser, UserError, positive, progress, run_command
from fairseq_updown.data.files import write_lines


@cache
def encoder(json_file: str, bpe_file: str) -> Any:
    return get_encoder(json_file, bpe_file)


def encode(job: tuple[str, str, str]) -> str:
    """A line of text as a line of numbers; the files of the encoding come with it."""
    *files, text = job
    return " ".join(map(str, encoder(*files).encode(text)))


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
    with get_context("fork").Pool(args.workers) as pool:
        for name in names:
            if (args.out / name).exists():
                continue
            with (args.corpus / "raw" / name).open(encoding="utf-8") as lines:
                jobs = ((*files, line.rstrip("\n")) for line in lines)
                partial = args.out / f"{name}.partial"
                write_lines(partial, progress(pool.imap(encode, jobs, 16), name))
                partial.replace(args.out / name)


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
