#!/usr/bin/env python3
"""Measure `--long stream`: which headings it finds in documents joined, and its time and memory.

First, documents of an outline corpus are joined, some at a time, and outlined with `--long`
`truncate`, `window` and `stream`: how many of the headings of each document are found that stand in
no other of the joined ones. An outline of all needs the last document.

Then the whole corpus, repeated as often as needed, is cut to each of --lengths tokens and outlined
as a stream, in a fresh process each: seconds of the encoder, and the process's memory.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fresh_process import MemoryMeter, in_fresh_process
from report import duration, table

from fairseq_updown.cli.support import CommandParser, positive, run_command
from fairseq_updown.data.files import text_lines
from fairseq_updown.data.workers import available_cores
from fairseq_updown.errors import UserError
from fairseq_updown.inference.summarizer import Document, Long, Summarizer
from fairseq_updown.scoring.headings import matched, normalised, split_headings
from fairseq_updown.terminal import progress

WAYS: tuple[Long, ...] = ("truncate", "window", "stream")


class Model(NamedTuple):
    """What :class:`Summarizer` loads, as it goes to a fresh process."""

    checkpoint: str
    options: dict[str, Any]
    threads: int

    def load(self) -> Summarizer:
        torch.set_num_threads(self.threads)
        return Summarizer.load(self.checkpoint, **self.options)


class Outlined(NamedTuple):
    """A document and the headings of its outline, normalised."""

    text: str
    headings: list[str]


def read_corpus(sources: Path, references: Path) -> list[Outlined]:
    """The documents of two files that have one on a line.

    Raises:
        UserError: the files have other numbers of lines, or cannot be read.
    """
    texts, outlines = (text_lines(path, str(path)) for path in (sources, references))
    if len(texts) != len(outlines):
        raise UserError(f"{sources}: {len(texts)} lines, {references}: {len(outlines)}")
    return [
        Outlined(text, [normalised(heading) for heading in split_headings(outline)])
        for text, outline in zip(texts, outlines)
    ]


def groups(corpus: Sequence[Outlined], size: int, words: int) -> Iterator[list[Outlined]]:
    """Neighbours of up to so many words each, `size` at a time."""
    short = [document for document in corpus if len(document.text.split()) <= words]
    for start in range(0, len(short) - size + 1, size):
        yield short[start : start + size]


def own_headings(joined: Sequence[Outlined]) -> list[list[str]]:
    """Of each document those headings that no other of the joined ones has."""
    return [
        [
            heading
            for heading in document.headings
            if not any(heading in other.headings for other in joined if other is not document)
        ]
        for document in joined
    ]


def outline(summarizer: Summarizer, document: Document, long: Long) -> list[str]:
    """The headings, normalised, of all parts of it."""
    parts = summarizer.generate(summarizer.fit(document, long), stream=long == "stream")
    return [normalised(heading) for part in parts for heading in split_headings(part.text)]


def compare(model: Model, joined: Sequence[list[Outlined]]) -> str:
    """The table of what each way finds."""
    summarizer = model.load()
    size = len(joined[0])
    there = [0] * size
    found = {long: [0] * size for long in WAYS}
    written = dict.fromkeys(WAYS, 0)
    seconds = dict.fromkeys(WAYS, 0.0)
    lengths = []
    for documents in progress(joined, "joined documents"):
        document = summarizer.encode(" ".join(each.text for each in documents))
        lengths.append(len(document.tokens))
        own = own_headings(documents)
        there = [total + len(headings) for total, headings in zip(there, own)]
        for long in WAYS:
            began = time.perf_counter()
            headings = outline(summarizer, document, long)
            seconds[long] += time.perf_counter() - began
            # What several of them have, such as "Introduction", is neither right nor wrong.
            shared = {heading for each in documents for heading in each.headings}
            shared -= {heading for wanted in own for heading in wanted}
            headings = [heading for heading in headings if heading not in shared]
            written[long] += len(headings)
            for place, wanted in enumerate(own):
                found[long][place] += sum(matched(wanted, headings))
    rows = []
    for long in WAYS:
        recall = [f"{100 * one / max(1, of):.1f}%" for one, of in zip(found[long], there)]
        share = f"{100 * sum(found[long]) / max(1, written[long]):.1f}%"
        time_each = duration(seconds[long] / len(joined))
        rows.append([f"`{long}`", *recall, str(written[long]), share, time_each])
    places = [f"document {place} ({total} headings)" for place, total in enumerate(there, start=1)]
    head = ["`--long`", *places, "headings written", "of them found", "time each"]
    longest = f"{min(lengths):,} to {max(lengths):,} tokens"
    limit = f"the model takes {summarizer.max_source_tokens:,}"
    return f"{len(joined)} times {size} documents, {longest}; {limit}\n\n{table(head, rows)}"


def measure(model: Model, text: str, length: int) -> dict[str, float]:
    """Time and memory of one stream of so many tokens."""
    summarizer = model.load()
    *once, end = summarizer.encode(text).tokens.tolist()
    tokens = torch.tensor([*(once * math.ceil(length / len(once)))[: length - 1], end])
    meter = MemoryMeter("cpu")
    began = time.perf_counter()
    with torch.no_grad():
        memory = summarizer.model.encoder(tokens[None].to(summarizer.device))["encoder_out"][0]
    encoder = time.perf_counter() - began
    summarizer.generate([Document("", [], tokens)], stream=True)
    outline = time.perf_counter() - began - encoder
    figures = {"encoder": encoder, "encoder and outline": outline, "memory": len(memory)}
    return {**figures, **meter.figures()}


def run(args: Any) -> None:
    options = dict(
        sentencepiece_model=args.sentencepiece_model,
        stream_memory=args.stream_memory,
        beam=4,
        lenpen=1.0,
        min_len=5,
        max_len_b=400,
        no_repeat_ngram_size=0,
    )
    model = Model(str(args.checkpoint), options, args.threads)
    corpus = read_corpus(args.sources, args.references)
    joined = list(groups(corpus, args.together, args.words))[: args.groups]
    if not joined:
        raise UserError(f"fewer than {args.together} documents of up to --words {args.words}")
    print(compare(model, joined), flush=True)
    text = " ".join(document.text for document in corpus)
    rows = []
    for length in args.lengths:
        got = in_fresh_process(measure, model, text, length)
        each = duration(got["encoder"] * 2**20 / length)
        cells = [
            duration(got["encoder"]),
            each,
            duration(got["encoder and outline"]),
            f"{got['memory']:,}",
        ]
        rows.append([f"{length:,}", *cells, f"{got['peak_mib']:,.0f} MiB"])
    if rows:
        head = ["tokens", "encoder", "for 2^20", "encoder and outline", "memory", "process's peak"]
        print(f"\n{table(head, rows)}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = CommandParser("streaming.py", __doc__)
    add = parser.add_argument
    add("checkpoint", type=Path)
    add("--sources", type=Path, required=True, metavar="FILE", help="text, a document a line")
    add("--references", type=Path, required=True, metavar="FILE", help="their outlines")
    add("--sentencepiece-model", type=Path, metavar="FILE")
    add("--stream-memory", type=positive, default=4096, metavar="N")
    add("--together", type=positive, default=3, metavar="N", help="documents joined")
    add("--words", type=positive, default=6000, metavar="N", help="of each of them, at most")
    add("--groups", type=positive, default=20, metavar="N", help="joined documents, at most")
    add("--lengths", type=positive, nargs="*", default=[2**16, 2**18, 2**20], metavar="N")
    add("--threads", type=positive, default=available_cores(), metavar="N")
    args = parser.parse_args(argv)
    return run_command("streaming", lambda: run(args))


if __name__ == "__main__":
    raise SystemExit(main())
