"""Corpora of long documents: copies found, splits made, text written and encoded."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import re
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError
from ..terminal import printable, progress
from .files import REPORT, already_built, atomic_directory, read_lines, to_json
from .parallel_text import Groups, encode_parallel, near_copies
from .workers import map_by_workers

SPLITS = ("train", "valid", "test")
SUFFIXES = ("src", "tgt")
COPY_RUN = 5  # words; as in near_copies
COPY_CHARACTERS = 50_000_000  # in larger corpora only a sample of all runs is compared
COPY_SHARE = 0.4  # of the shorter text's runs that the longer must hold to be its copy
COPY_MIN = 8  # sampled runs of a text to be compared at all
COMMON_RUN = 30  # a run that more texts than this share tells nothing
TARGET_WORDS = 8  # of a target that no two texts have by chance
LISTS = ("packages", "index files")  # too long to be printed with the report

_UNWANTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u2581\ufeff\ud800-\udfff]")


class Pair(NamedTuple):
    """A document and its summary, or a text and its translation.

    Attributes:
        id: where it comes from.
        source, target: on a line each.
        keys: pairs that share one stay in one split.
        body: the source without what precedes its text, where that is something.
    """

    id: str
    source: str
    target: str
    keys: tuple[str, ...] = ()
    body: str = ""


Reader = Callable[[dict[str, Any], Counter[str]], Mapping[str, Iterable[Pair]]]


def digest(text: str, algorithm: str = "sha1") -> str:
    """A hash that is the same in every process."""
    return hashlib.new(algorithm, text.encode("utf-8")).hexdigest()


def one_line(text: str) -> str:
    """Collapse white space, also that without width; drop control characters, surrogates and
    sentencepiece's space."""
    return " ".join(_UNWANTED.sub(" ", text).split())


def folded(text: str) -> str:
    """What two texts must share to count as the same: their words; every number is 0."""
    return " ".join(re.sub(r"\d+", "0", re.sub(r"[\W_]+", " ", text.casefold())).split())


# -------------------------------------------------------------------------------------- copies


class WordNumbers(dict[str, int]):
    """A number for each word, the same in every process; kept, for words come again."""

    def __missing__(self, word: str) -> int:
        self[word] = number = zlib.crc32(word.encode("utf-8"))
        return number


def sampled_runs(text: str, share: int, numbers_of: WordNumbers) -> np.ndarray:
    """Hashes of one in ``share`` of the text's runs of words: the same are drawn in every text."""
    words = re.findall(r"\w+", text.lower())
    numbers = np.fromiter(map(numbers_of.__getitem__, words), np.uint64, len(words))
    if len(numbers) < COPY_RUN:
        return np.zeros(0, dtype=np.uint64)
    runs: Any = np.zeros(len(numbers) - COPY_RUN + 1, dtype=np.uint64)
    for place in range(COPY_RUN):
        runs *= np.uint64(0x9E3779B97F4A7C15)
        runs += numbers[place : place + len(runs)]
        runs ^= runs >> np.uint64(29)
    runs *= np.uint64(0xBF58476D1CE4E5B9)
    return np.unique(runs[(runs >> np.uint64(40)) % np.uint64(share) == 0])


def copies(texts: Sequence[str], workers: int = 1) -> Iterator[tuple[int, int]]:
    """Pairs of texts of which one holds, by a sample, much of the other."""
    share = 1 + sum(map(len, texts)) // COPY_CHARACTERS
    runs_of = partial(sampled_runs, share=share, numbers_of=WordNumbers())
    found = map_by_workers(runs_of, texts, workers)
    runs = list(progress(found, "reading", len(texts)))
    values = np.concatenate([*runs, np.zeros(0, dtype=np.uint64)])
    owners: Any = np.repeat(np.arange(len(runs)), [len(found) for found in runs])
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.uint64(0), append=np.uint64(0)))
    sizes = np.diff(starts)
    shared: Counter[tuple[int, int]] = Counter()
    for place in np.flatnonzero((sizes >= 2) & (sizes <= COMMON_RUN)):
        group = owners[order[starts[place] : starts[place + 1]]].tolist()
        shared.update(itertools.combinations(group, 2))
    for (a, b), count in sorted(shared.items()):
        smaller = min(len(runs[a]), len(runs[b]))
        if smaller >= COPY_MIN and count >= COPY_SHARE * smaller:
            yield a, b


def groups(documents: Sequence[Pair], workers: int = 1) -> list[str]:
    """For each document the name of its group: linked by keys, targets or copied text."""
    linked = Groups()
    names = [f"document {document.id}" for document in documents]
    for name, document in zip(names, documents):
        target = folded(document.target)
        shared = [f"target {target}"] if len(target.split()) >= TARGET_WORDS else []
        for key in (*document.keys, *shared):
            linked.link(name, f"key {key}")
    for a, b in copies([document.source for document in documents], workers):
        linked.link(names[a], names[b])
    members: dict[str, list[str]] = defaultdict(list)
    for name in names:
        members[linked.root(name)].append(name)
    return [min(members[linked.root(name)]) for name in names]


# -------------------------------------------------------------------------------------- splits


def make_splits(
    documents: list[Pair], eval_documents: int, seed: int, drops: Counter[str], workers: int = 1
) -> dict[str, list[Pair]]:
    """Draw whole groups, in the order of a seeded hash, for test, valid and train.

    Valid and test get at most ``eval_documents`` each, and a tenth of all; train loses what is
    still a near-copy of a document held out.

    Raises:
        UserError: too few documents for three splits
    """
    if not documents:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted((+drops).items()))
        raise UserError(f"no document can be used ({reasons or 'there are none'}): see above why")
    chosen = without_duplicates(documents, workers)
    drops["duplicate"] += len(documents) - len(chosen)
    members: dict[str, list[Pair]] = defaultdict(list)
    for name, document in zip(groups(chosen, workers), chosen):
        members[name].append(document)
    size = min(eval_documents, len(chosen) // 10)
    parts: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for name in sorted(members, key=lambda name: digest(f"{seed} {name}")):
        own = members[name]
        fits = len(own) <= max(1, size // 4)
        room = (part for part in ("test", "valid") if len(parts[part]) + len(own) <= size)
        parts[next(room, "train") if fits else "train"].extend(own)
    parts["valid"] = without_copies(parts["valid"], parts["test"], "valid", drops, workers)
    held_out = parts["valid"] + parts["test"]
    parts["train"] = without_copies(parts["train"], held_out, "train", drops, workers)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise UserError(
            f"{len(documents)} documents leave none for {' and '.join(empty)}: give more of them "
            "(20 at least), or raise --max-documents"
        )
    return parts


def digest_of_words(text: str) -> str:
    """The same of texts that differ in case and punctuation only."""
    return digest(" ".join(re.findall(r"\w+", text.lower())) or text)


def without_duplicates(documents: Sequence[Pair], workers: int = 1) -> list[Pair]:
    """The first of all documents that differ in case and punctuation only, with all their keys."""
    first: dict[str, Pair] = {}
    sources = (document.source for document in documents)
    for document, words in zip(documents, map_by_workers(digest_of_words, sources, workers)):
        kept = first.setdefault(words, document)
        if kept is not document:
            first[words] = kept._replace(keys=kept.keys + document.keys)
    return list(first.values())


def without_copies(
    part: list[Pair], held_out: list[Pair], name: str, drops: Counter[str], workers: int = 1
) -> list[Pair]:
    """The documents that are no near-copies of a held-out one; the others are counted."""
    own, others = ([(x.body or x.source, x.target) for x in side] for side in (part, held_out))
    copied = near_copies(own, others, f"near-copies in {name}", workers)
    drops[f"{name}: near-copy of a held-out document"] += sum(copied)
    return [document for document, is_copy in zip(part, copied) if not is_copy]


def sample(pairs: list[Pair], size: int | None, seed: int) -> list[Pair]:
    """At most ``size`` pairs, drawn by a seeded hash of their ids, in their old order."""
    if size is None or len(pairs) <= size:
        return pairs
    ranks = [digest(f"{seed} {pair.id}") for pair in pairs]
    chosen = set(sorted(ranks)[:size])
    return [pair for pair, rank in zip(pairs, ranks) if rank in chosen]


# -------------------------------------------------------------------------------------- output


def write_raw(raw: Path, name: str, suffixes: Sequence[str], pairs: Iterable[Pair]) -> None:
    """Write a split's sources, targets, ids and, where there are any, bodies, as its pairs come.

    Raises:
        UserError: there are none
    """
    paths = [raw / f"{name}.{end}" for end in (*suffixes, "ids", "body")]
    with ExitStack() as stack:
        files = [stack.enter_context(p.open("w", encoding="utf-8", newline="\n")) for p in paths]
        for pair in pairs:
            columns = (pair.source, pair.target, pair.id, pair.body)
            for file, text in zip(files, columns if pair.body else columns[:3]):
                file.write(f"{text}\n")
    if not paths[0].stat().st_size:
        raise UserError(f"no document is left for {name}: see above why, and give others")
    if not paths[-1].stat().st_size:
        paths[-1].unlink()


class ModelText(NamedTuple):
    """What of train the sentencepiece model is trained on; None is all.

    Attributes:
        pairs: how many, drawn by a seeded hash.
        characters: of each side: a window of the source, the start of the target.
    """

    pairs: int | None = 2500
    characters: int | None = 5000

    def texts(self, raw: Path, suffixes: Sequence[str], seed: int) -> Iterator[str]:
        """The texts, source and target in turn."""
        ranks = [digest(f"{seed} {name}") for name in read_lines(raw / "train.ids")]
        chosen = set(sorted(ranks)[: self.pairs])
        sides = (read_lines(raw / f"train.{suffix}") for suffix in suffixes)
        for rank, source, target in zip(ranks, *sides):
            if rank in chosen:
                size = self.characters or len(source)
                start = int(rank, 16) % max(1, len(source) - size)
                yield source[start : start + size]
                yield target[: self.characters]


SAMPLE = ModelText()


def build_corpus(
    args: argparse.Namespace,
    kind: str,
    options: dict[str, Any],
    read: Reader,
    suffixes: Sequence[str] = SUFFIXES,
    model_text: ModelText = SAMPLE,
    finish: Callable[[dict[str, Any], Path], None] | None = None,
) -> bool:
    """Build the corpus at ``args.out``, unless it is there; print its report.

    Args:
        args: with ``out``, ``overwrite``, ``vocab_size``, ``workers`` and ``seed``
        kind: what the output is called in ``report.json``
        options: what the corpus depends on
        read: returns each split's pairs (of ``SPLITS``, and of more if it likes), given the report
            to add to, and the counts of what was dropped by reason; both may still change while
            the pairs are drawn
        suffixes: of the files of sources and targets
        model_text: what the sentencepiece model is trained on
        finish: adds to the report what only the written corpus tells, given its folder

    Returns:
        whether it was built
    """
    out, start = Path(os.path.realpath(args.out)), time.monotonic()
    if already_built(out, kind, options, args.overwrite):
        print(f"{printable(out)} is complete (made with the same options): nothing to do")
        return False
    report: dict[str, Any] = {"kind": kind, "options": options}
    drops: Counter[str] = Counter()
    with atomic_directory(out) as partial:
        splits = read(report, drops)
        raw = partial / "raw"
        raw.mkdir()
        for name, pairs in splits.items():
            write_raw(raw, name, suffixes, pairs)
        report["dropped"] = dict(sorted((+drops).items()))
        print("training sentencepiece and encoding", file=sys.stderr, flush=True)
        texts = model_text.texts(raw, suffixes, args.seed)
        report["splits"] = encode_parallel(
            partial, list(splits), suffixes, texts, args.vocab_size, args.workers
        )
        if finish:
            finish(report, partial)
        (partial / REPORT).write_text(to_json(report), encoding="utf-8")
    print(to_json({name: report[name] for name in report if name not in LISTS}), end="")
    print(f"wrote {printable(out)} in {time.monotonic() - start:.0f} s")
    return True


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when one of the files does (by name, size and time), or moves from one of their
    folders to another; links may lead nowhere."""
    paths = list(paths)
    root = os.path.commonpath([path.parent for path in paths]) if paths else ""

    def seen(path: Path) -> tuple[str, int, int]:
        name = os.path.relpath(path, root)
        try:
            status = path.stat()
        except OSError:
            return name, -1, -1
        return name, status.st_size, status.st_mtime_ns

    return digest(repr(sorted(map(seen, paths))))
