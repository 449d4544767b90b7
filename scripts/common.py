"""Helpers shared by the command-line scripts: user errors, progress, atomic and encoded output."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import shutil
import signal
import statistics
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import sentencepiece
from tqdm import tqdm

# Importing fairseq turns logging on for all; warnings are enough in a script.
for _name in ("fairseq", "absl"):
    logging.getLogger(_name).setLevel(logging.WARNING)

T = TypeVar("T")

REPORT = "report.json"
SHINGLE = 5
NEAR_COPY = 0.5
NEAR_COPY_SAME_TARGET = 0.25


class UserError(ValueError):
    """A mistake in what the user gave: shown as one line, without a traceback."""


def positive(text: str) -> int:
    """Argument type: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def progress(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, silently elsewhere."""
    yield from tqdm(items, desc=label, total=total, disable=None, leave=False)


def to_json(value: Any) -> str:
    """The JSON text all scripts write: indented, plain UTF-8, newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write one text a line; for files inside an :func:`atomic_directory`."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file that :func:`write_lines` wrote; only a newline ends one."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that ``path`` holds either its old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(option: str, path: Path) -> None:
    """Refuses, before any work, an output file that could not be written at its end.

    Raises:
        UserError: naming the option and the path.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {path} cannot be written: give a file in a folder of yours")


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that clean-up runs as it does for Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path`` that takes its place if the block succeeds.

    On any exception, Ctrl-C or SIGTERM the sibling is removed and ``path`` stays as it was. What
    was at ``path`` is replaced: call :func:`already_built` first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    replaced = path.with_name(f".{path.name}.replaced-{os.getpid()}")
    with sigterm_interrupts():
        try:
            partial.mkdir()
            yield partial
            if path.exists():
                path.rename(replaced)
            try:
                partial.rename(path)
            except BaseException:
                if replaced.exists():
                    replaced.rename(path)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(replaced, ignore_errors=True)


def already_built(path: Path, kind: str, options: dict[str, Any], overwrite: bool) -> bool:
    """Whether ``path`` already holds a complete output of this kind, made with these options.

    Args:
        path: the output directory; its ``report.json`` tells what it holds
        kind: value that ``report.json`` must have under "kind" to count as ours
        options: values that ``report.json`` must have under "options"
        overwrite: build again whatever the options were

    Raises:
        UserError: ``path`` is something that must not be replaced
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise UserError(f"--out {path} is not a directory: give another path")
    if not any(path.iterdir()):
        return False
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = None
    if not isinstance(report, dict) or report.get("kind") != kind:
        raise UserError(
            f"--out {path} exists and is no {kind}: it is left alone (even with --overwrite); "
            "give a new or empty directory"
        )
    if overwrite:
        return False
    made_with = report.get("options")
    if made_with != options:
        raise UserError(
            f"--out {path} holds a {kind} made with other options ({made_with}, now {options}): "
            "give another directory, or --overwrite to replace it"
        )
    return True


class Groups:
    """Keys that were linked, directly or through others, form a group (union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, key: str) -> str:
        """The name of the key's group: the least of the roots that were linked."""
        parent = self._parent
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def link(self, one: str, other: str) -> None:
        first, second = sorted((self.root(one), self.root(other)))
        self._parent[second] = first


def _shingles(text: str) -> set[int]:
    """Hashes of all runs of SHINGLE words (of the whole, if shorter)."""
    words = re.findall(r"\w+", text.lower())
    return {hash(run) for run in zip(*(words[i:] for i in range(min(SHINGLE, len(words)))))}


def near_copies(
    pairs: Sequence[tuple[str, str]], held_out: Sequence[tuple[str, str]], label: str
) -> list[bool]:
    """Which (source, target) pairs nearly copy a held-out one.

    Two are near-copies at a Jaccard index of NEAR_COPY over their sources' word shingles, or of
    NEAR_COPY_SAME_TARGET if their targets are the same. Compared exactly, by an inverted index.
    """
    index: dict[int, list[int]] = {}
    sizes = []
    for number, (source, _) in enumerate(held_out):
        found = _shingles(source)
        sizes.append(len(found))
        for shingle in found:
            index.setdefault(shingle, []).append(number)

    def is_near_copy(source: str, target: str) -> bool:
        own = _shingles(source)
        shared = Counter(number for shingle in own for number in index.get(shingle, ()))
        for number, common in shared.items():
            same_target = target.lower() == held_out[number][1].lower()
            threshold = NEAR_COPY_SAME_TARGET if same_target else NEAR_COPY
            if common >= threshold * (len(own) + sizes[number] - common):
                return True
        return False

    return [is_near_copy(*pair) for pair in progress(pairs, label, len(pairs))]


def lengths(values: Iterable[int]) -> dict[str, float]:
    """Median, 90th percentile and longest."""
    ordered = sorted(values)
    ninetieth = ordered[int(0.9 * (len(ordered) - 1))]
    return {"median": statistics.median(ordered), "90%": ninetieth, "longest": ordered[-1]}


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, path: Path
) -> sentencepiece.SentencePieceProcessor:
    """Train a unigram model, write it to ``path``, and return it. The same texts give the same."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,  # a model written by name would hold that name
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=0.9999,  # the default of 0.9995 loses Q, % and ?
            bos_id=-1,  # fairseq adds its own
            eos_id=-1,
            max_sentence_length=1 << 24,  # bytes; longer documents would be left out
            num_threads=1,  # sums in a fixed order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"--vocab-size {vocab_size} does not suit this corpus: {error}") from error
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def write_parallel(
    out: Path,
    splits: dict[str, dict[str, list[str]]],
    model_texts: Iterable[str],
    vocab_size: int,
) -> dict[str, dict[str, Any]]:
    """Write ``raw/`` text, and ``spm/`` with the model, ``dict.txt`` and the encoded text.

    Args:
        out: directory to write into
        splits: texts by split ("train", ...), then by language suffix, all of a split aligned
        model_texts: what to train the sentencepiece model on
        vocab_size: its number of pieces, with the unknown piece

    Returns:
        for each split the number of pairs, and for each suffix its lengths in words and pieces
        (without end of sentence) and the number of unknown pieces
    """
    raw = out / "raw"
    raw.mkdir()
    for name, sides in splits.items():
        for suffix, texts in sides.items():
            write_lines(raw / f"{name}.{suffix}", texts)
    suffixes = list(next(iter(splits.values())))
    return encode_parallel(out, list(splits), suffixes, model_texts, vocab_size)


def encode_parallel(
    out: Path,
    names: Sequence[str],
    suffixes: Sequence[str],
    model_texts: Iterable[str],
    vocab_size: int,
) -> dict[str, dict[str, Any]]:
    """Write ``spm/`` for the text in ``raw/``, a line at a time; see :func:`write_parallel`."""
    spm = out / "spm"
    spm.mkdir()
    model = train_sentencepiece(model_texts, vocab_size, spm / "spm.model")
    vocabulary = [model.id_to_piece(number) for number in range(model.get_piece_size())]
    known = dict.fromkeys(
        piece for piece in vocabulary if piece != model.id_to_piece(model.unk_id())
    )
    counts: Counter[str] = Counter()
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        figures[name] = {}
        for suffix in suffixes:
            file = f"{name}.{suffix}"
            words, pieces, seen = encode_lines(model, out / "raw" / file, spm / file)
            figures[name]["pairs"] = len(words)
            figures[name][suffix] = {
                "words": lengths(words),
                "pieces": lengths(pieces),
                "unknown pieces": sum(count for piece, count in seen.items() if piece not in known),
            }
            if name == "train":
                counts += seen
    write_lines(spm / "dict.txt", (f"{piece} {counts[piece]}" for piece in known))
    return figures


def encode_lines(
    model: sentencepiece.SentencePieceProcessor, raw: Path, encoded: Path
) -> tuple[list[int], list[int], Counter[str]]:
    """Encode a file by lines; return each one's words and pieces, and how often pieces occur."""
    words: list[int] = []
    pieces: list[int] = []
    seen: Counter[str] = Counter()
    with encoded.open("w", encoding="utf-8", newline="\n") as file:
        for text in progress(read_lines(raw), f"encoding {raw.name}"):
            found = model.encode(text, out_type=str)
            file.write(" ".join(found) + "\n")
            words.append(len(text.split()))
            pieces.append(len(found))
            seen.update(found)
    return words, pieces, seen
