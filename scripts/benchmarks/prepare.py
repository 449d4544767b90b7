#!/usr/bin/env python3
"""Measure updown-prepare on generated documents: its time, and the memory of all its processes.

The documents are words of a made-up language, the commonest ones as common as in English (Zipf's
law), so that none copies from another. They are written and encoded in a temporary folder, which
takes about 9 kB a document of 400 words.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from figure_store import machine
from report import duration, table

from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.document_corpus import REPORT
from fairseq_updown.data.files import write_lines
from fairseq_updown.errors import UserError
from fairseq_updown.terminal import progress

LEXICON = 50_000
SUMMARY_WORDS = 20
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]
PAUSE = 0.2  # seconds between two looks at the memory


def documents(count: int, words: int) -> Iterator[str]:
    """One JSON object a line, as `updown-prepare --json-lines` reads it."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 5, LEXICON)
    lexicon = np.array(["".join(rng.choice(SYLLABLES, size)) for size in sizes])
    heaped = np.cumsum(1 / np.arange(1, LEXICON + 1))
    for _ in range(count):
        places = rng.random(words + SUMMARY_WORDS) * heaped[-1]
        drawn = lexicon[np.searchsorted(heaped, places)]
        source, target = " ".join(drawn[SUMMARY_WORDS:]), " ".join(drawn[:SUMMARY_WORDS])
        yield json.dumps({"source": source, "target": target})


def memory_of(group: int) -> int:
    """Bytes that the processes of a group hold together; what they share counts once."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ProcessLookupError):  # it has ended
            if os.getpgid(int(folder.name)) == group:
                lines = (folder / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024


def measure(command: Sequence[Any]) -> tuple[float, int]:
    """Seconds of a command, and the most bytes that it and its children held together.

    Raises:
        UserError: it failed; with what it said.
    """
    start, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*map(str, command)], stdout=said, stderr=said, start_new_session=True
        )
        try:
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(PAUSE)
        finally:  # Ctrl-C does not reach it, which has a session of its own
            process.terminate()
            process.wait()
        if process.returncode:
            said.seek(0)
            raise UserError(f"updown-prepare failed: {' '.join(said.read()[-500:].split())}")
    return time.perf_counter() - start, peak


def run(args: Any) -> None:
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("memory is measured through Linux's /proc, not found here")
    rows = []
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=args.work) as work:
        file = Path(work) / "documents.jsonl"
        lines = documents(args.documents, args.words)
        write_lines(file, progress(lines, "writing", args.documents))
        for workers in args.workers:
            out = Path(work) / f"corpus{workers}"
            command = [Path(sys.executable).parent / "updown-prepare", "--json-lines", file]
            fields = ["--source-field", "source", "--target-field", "target"]
            seconds, peak = measure([*command, *fields, "--out", out, "--workers", workers])
            report = json.loads((out / REPORT).read_text(encoding="utf-8"))
            pairs = sum(split["pairs"] for split in report["splits"].values())
            shutil.rmtree(out)
            rows.append([str(workers), f"{pairs:,}", duration(seconds), f"{peak / 1e9:.2f} GB"])
        size = file.stat().st_size / 1e6
    print(f"{json.dumps(machine('cpu'))}\n\n{args.documents:,} documents of {args.words} words, "
          f"{size:,.0f} MB:\n")  # fmt: skip
    print(table(["--workers", "pairs", "time", "memory of all processes at most"], rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("prepare.py", __doc__)
    add = parser.add_argument
    add("--documents", type=positive, default=200_000, metavar="N")
    add("--words", type=positive, default=400, metavar="N", help="of a document")
    add("--workers", type=positive, nargs="+", default=[1, 2], metavar="N")
    add("--work", type=Path, metavar="DIR", help="where the temporary folder is made")
    args = parser.parse_args(argv)
    return run_command("prepare", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
