#!/usr/bin/env python3
"""Encode a corpus of updown-prepare as BART's data is: with GPT-2's byte pair encoding.

CORPUS/raw/{train,valid,test}.{src,tgt} become the same names under --out, a document a line, its
pieces' numbers between spaces. A file is written whole or not at all, and one that is there stays,
if it was made from this corpus by these byte pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq.data.encoders.gpt2_bpe_utils import get_encoder
from filelock import FileLock

from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import REPORT, read_lines, write_atomic, write_lines
from fairseq_updown.data.workers import available_cores, map_by_workers
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress


def claim_out(out: Path, made_from: Sequence[Path]) -> None:
    """Lets a folder of encoded texts belong to what they are made from.

    Raises:
        UserError: they are made from something else
    """
    digest = hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in made_from))
    kept = out / "made-from"
    if out.exists() and any(out.iterdir()) and not kept.exists():
        raise UserError(f"{out} does not say what it was made from: remove it, or give another")
    if kept.exists() and kept.read_text(encoding="utf-8") != digest.hexdigest():
        raise UserError(
            f"{out} was made from another corpus, or by other byte pairs: remove it and what was "
            "made from it, or give another"
        )
    write_atomic(kept, digest.hexdigest())


def run(args: Any) -> None:
    files = (args.encoder_json, args.vocab_bpe)
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: not there; GPT-2's encoder.json and vocab.bpe are needed")
    try:
        encoder = get_encoder(*map(str, files))
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{files[0]} and {files[1]} are not GPT-2's encoder.json and vocab.bpe: {error}"
        ) from error

    def encode(text: str) -> str:
        """A line of text as a line of numbers."""
        return " ".join(map(str, encoder.encode(text)))

    names = [f"{split}.{side}" for split in ("train", "valid", "test") for side in ("src", "tgt")]
    missing = [name for name in names if not (args.corpus / "raw" / name).is_file()]
    if missing:
        raise UserError(f"{args.corpus}/raw has no {missing[0]}: make it with updown-prepare")
    if not (args.corpus / REPORT).is_file():
        raise UserError(f"{args.corpus} has no {REPORT}: make it with updown-prepare")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{args.out}.lock"):  # a second call waits
        claim_out(args.out, (args.corpus / REPORT, *files))
        for name in names:
            encoded = args.out / name
            if not encoded.exists():
                texts = progress(read_lines(args.corpus / "raw" / name), name)
                partial = args.out / f"{name}.partial"
                write_lines(partial, map_by_workers(encode, texts, args.workers))
                partial.replace(encoded)


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("encode.py", __doc__)
    parser.add_argument("corpus", type=Path)
    for option in ("--out", "--encoder-json", "--vocab-bpe"):
        parser.add_argument(option, type=Path, required=True)
    add = parser.add_argument
    add("--workers", type=positive, default=available_cores(), metavar="N",
        help="processes that encode (default: one a core)")  # fmt: skip
    args = parser.parse_args(argv)
    return run_command("encode", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
