"""Summarize text files, or standard input, with a trained checkpoint.

    updown-summarize --checkpoint checkpoints/checkpoint_best.pt report.txt
    updown-summarize --checkpoint C --data D --sentencepiece-model spm.model *.txt --out-dir out
    updown-summarize --checkpoint C --lines --json-lines < one_document_a_line.txt

Text is UTF-8, plain: the sentencepiece model cuts it into pieces. A document that is longer than
the checkpoint takes is refused, unless --long says what to do: truncate keeps its start, window
summarizes part after part and joins the summaries, stream encodes part after part, whatever the
length, and writes one summary of all.

A document that cannot be summarized is reported on standard error, the others are still done, and
the exit status is 1. --json-lines prints an object a document: file, line (with --lines), summary,
score (log2 of the probability over length ** lenpen, the mean of the windows), source_tokens,
unknown_tokens, tokens_cut, windows, seconds (of generation, its share of its batch), output (with
--out-dir); after an error what is known of these, and error.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, get_args

from tqdm import tqdm

from ..data.files import from_utf8, open_regular, write_atomic
from ..errors import UserError
from ..inference.summarizer import Document, Long, Summarizer, Summary, join
from ..terminal import printable, progress
from .options import add_options, load_summarizer
from .support import STDIN, CommandParser, run_command, stdin

PROG = "updown-summarize"
SUFFIX = ".summary.txt"
MANY_UNKNOWN = 0.2  # share of unknown pieces from which on to warn
READ_AHEAD = 16  # batches' worth of tokens to read before generating, to batch by length
PATIENCE = 0.1  # seconds to wait for more of them
CHUNK = 1 << 16  # bytes


class Input(NamedTuple):
    """A document as it was read; `line` counts from 1, None where a file is a document."""

    file: str
    line: int | None
    content: bytes | OSError


class Job(NamedTuple):
    """A document with what `--json-lines` prints of it, and the parts still to be summarized."""

    record: dict[str, Any]
    parts: list[Document]
    notes: list[str]


# ----------------------------------------------------------------------------------------- input


def lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """The lines of a stream; None whenever the next one keeps the reader waiting.

    The waiting is tolerated for PATIENCE seconds between two Nones: a program that writes as fast
    as it can is a little late at times.
    """
    descriptor, patience = stream.fileno(), PATIENCE
    rest: list[bytes] = []  # of a line whose end has not come
    while True:
        start = time.monotonic()
        if not select.select([descriptor], [], [], patience)[0]:
            yield None
            patience = PATIENCE
        else:
            patience = max(0.0, patience - (time.monotonic() - start))
        chunk = os.read(descriptor, CHUNK)
        if not chunk:
            break
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = others[-1:]
    if any(rest):
        yield b"".join(rest)


def inputs(files: Sequence[str], by_line: bool) -> Iterator[Input | None]:
    """Reads one document after the other; what cannot be read comes as the error.

    Where the next line keeps the reader waiting, a None comes in between.
    """
    for file in files:
        try:
            with nullcontext(stdin()) if file == STDIN else open_regular(file) as stream:
                if by_line:
                    number = 0
                    for line in lines(stream):
                        number += line is not None
                        yield None if line is None else Input(file, number, line)
                else:
                    yield Input(file, None, stream.read())
        except OSError as error:
            yield Input(file, None, error)


def decode(content: bytes | OSError) -> str:
    """The text of a document.

    Raises:
        UserError: it could not be read, or is not UTF-8
    """
    if isinstance(content, OSError):
        raise UserError(f"{content.strerror or content}: check the path")
    return from_utf8(content)


def shown(file: str) -> str:
    """A file name that can be printed; one need not be UTF-8."""
    return os.fsencode(file).decode("utf-8", errors="replace")


# ----------------------------------------------------------------------------------- summarizing


def prepare(summarizer: Summarizer, item: Input, args: argparse.Namespace) -> Job:
    """Encodes a document; on an error the job has no parts."""
    record: dict[str, Any] = {"file": shown(item.file)}
    if item.line is not None:
        record["line"] = item.line
    notes = []
    try:
        if args.out_dir:
            check_output(output_path(args.out_dir, item.file), args)
        document = summarizer.encode(decode(item.content))
        parts = summarizer.fit(document, args.long)
    except UserError as error:
        return Job({**record, "error": str(error)}, [], [])
    length, unknown = len(document.tokens), summarizer.unknown(document)
    cut = length - len(parts[0].tokens) if args.long == "truncate" else 0
    if cut:
        notes.append(f"{cut:,} of {length:,} tokens cut off (--long truncate)")
    if len(parts) > 1:
        notes.append(f"{length:,} tokens summarized in {len(parts):,} windows")
    if unknown > MANY_UNKNOWN * length:
        notes.append(f"{unknown:,} of {length:,} tokens are unknown to the checkpoint")
    figures = dict(source_tokens=length, unknown_tokens=unknown, tokens_cut=cut)
    return Job({**record, **figures, "windows": len(parts)}, parts, notes)


def finish(job: Job, summaries: Sequence[Summary]) -> dict[str, Any]:
    """The record of a document whose parts are summarized."""
    whole = join(summaries)
    seconds = round(whole.seconds, 4)
    return {**job.record, "summary": whole.text, "score": whole.score, "seconds": seconds}


def generate(
    summarizer: Summarizer, jobs: Sequence[Job], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The records of some documents, generated together, in their order."""
    try:
        parts = [part for job in jobs for part in job.parts]
        found = iter(summarizer.generate(parts, stream=args.long == "stream"))
        for job in jobs:
            yield finish(job, [next(found) for _ in job.parts]) if job.parts else job.record
    except UserError as error:
        if len(jobs) == 1:
            yield {**jobs[0].record, "error": str(error)}
        else:  # one of them is the culprit
            for job in jobs:
                yield from generate(summarizer, [job], args)


def records(summarizer: Summarizer, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The records of all documents, in their order."""
    jobs: list[Job] = []
    tokens = 0
    for item in inputs(args.files, args.lines):
        if item is not None:
            job = prepare(summarizer, item, args)
            for note in job.notes:
                warn(job.record, note)
            jobs.append(job)
            tokens += sum(len(part.tokens) for part in job.parts)
        if item is None or tokens >= READ_AHEAD * summarizer.max_tokens:
            yield from generate(summarizer, jobs, args)
            jobs, tokens = [], 0
    yield from generate(summarizer, jobs, args)


# ---------------------------------------------------------------------------------------- output


def say(text: str, stream: Any) -> None:
    """Prints beside a progress bar."""
    tqdm.write(text, file=stream)
    stream.flush()


def warn(record: dict[str, Any], message: str) -> None:
    name = "standard input" if record["file"] == STDIN else record["file"]
    line = f", line {record['line']}" if "line" in record else ""
    say(f"{PROG}: {printable(f'{name}{line}: {message}')}", sys.stderr)


def output_path(directory: Path, file: str) -> Path:
    """Where the summary of a file goes."""
    name = "stdin" if file == STDIN else Path(file).name
    return directory / f"{name.removesuffix('.txt')}{SUFFIX}"


def check_output(path: Path, args: argparse.Namespace) -> None:
    """Refuses to replace what is there, and to replace an input whatever the options are."""
    if not os.path.lexists(path):
        return
    if os.path.realpath(path) in args.inputs:
        raise UserError(f"its summary would replace the input {path}: give another --out-dir")
    if not args.overwrite:
        raise UserError(f"{path} exists: give --overwrite to replace it, or another --out-dir")


def write_output(record: dict[str, Any], file: str, args: argparse.Namespace) -> dict[str, Any]:
    """Writes a summary into the output directory; returns the record with what came of it."""
    path = output_path(args.out_dir, file)
    try:
        check_output(path, args)
        write_atomic(path, record["summary"] + "\n")
    except (UserError, OSError) as error:
        return {**record, "error": f"not written: {error}"}
    return {**record, "output": shown(str(path))}


def show(record: dict[str, Any], args: argparse.Namespace) -> None:
    """Prints what was asked for."""
    if "error" in record:
        warn(record, f"error: {record['error']}")
    if args.json_lines:
        say(json.dumps(record, ensure_ascii=False), sys.stdout)
    elif args.lines:
        say(record.get("summary", ""), sys.stdout)  # an empty line keeps the others in step
    elif "summary" in record and not args.out_dir:
        header = f"==> {printable(record['file'])} <==\n" if len(args.files) > 1 else ""
        say(header + record["summary"] + ("\n" if header else ""), sys.stdout)


# ------------------------------------------------------------------------------------------ main


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(PROG, __doc__)
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="a document each; - or none: standard input")
    add("--lines", action="store_true", help="each line of the input is a document")
    add(
        "--long",
        choices=get_args(Long),
        default="refuse",
        help="what to do with a document longer than the checkpoint takes (default %(default)s)",
    )
    add("--json-lines", action="store_true", help="print a JSON object for each document")
    add("--out-dir", type=Path, metavar="DIR", help=f"write DIR/NAME{SUFFIX} for each file")
    add("--overwrite", action="store_true", help="replace summaries that are in --out-dir")
    add_options(parser)
    args = parser.parse_args(argv)
    args.files = args.files or [STDIN]
    args.inputs = {os.path.realpath(file) for file in args.files if file != STDIN}
    if args.lines and args.out_dir:
        parser.error("--out-dir writes a summary for each file: leave out --lines")
    if args.overwrite and not args.out_dir:
        parser.error("--overwrite goes with --out-dir")
    return args


def check_out_dir(args: argparse.Namespace) -> None:
    """Refuses an output directory that cannot hold all the summaries."""
    if os.path.lexists(args.out_dir) and not args.out_dir.is_dir():
        raise UserError(f"--out-dir {args.out_dir} is not a directory: give another path")
    taken: dict[Path, str] = {}
    for file in args.files:
        path = output_path(args.out_dir, file)
        if path in taken:
            raise UserError(
                f"the summaries of {shown(taken[path])} and {shown(file)} would both be "
                f"{shown(str(path))}: summarize them into different directories"
            )
        taken[path] = file
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(args.out_dir, os.W_OK | os.X_OK):
        raise UserError(f"--out-dir {args.out_dir} cannot be written to: give a folder of yours")


def run(args: argparse.Namespace) -> int:
    if args.out_dir:
        check_out_dir(args)
    if STDIN in args.files:
        stdin()
    summarizer = load_summarizer(args)
    if STDIN in args.files and sys.stdin.isatty():
        say(f"{PROG}: reading standard input; end it with Ctrl-D", sys.stderr)
    failed = count = 0
    total = None if args.lines else len(args.files)
    for record in progress(records(summarizer, args), "documents", total):
        if args.out_dir and "summary" in record:
            record = write_output(record, args.files[count], args)
        show(record, args)
        failed += "error" in record
        count += 1
    if args.out_dir:
        say(f"{PROG}: {count - failed:,} summaries are in {printable(args.out_dir)}", sys.stderr)
    if failed and count > 1:
        say(f"{PROG}: {failed:,} of {count:,} documents failed", sys.stderr)
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    return run_command(PROG, lambda: run(args), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
