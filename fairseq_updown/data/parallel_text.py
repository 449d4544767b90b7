"""Corpora of aligned text: split without near-copies, encoded by sentencepiece, counted."""

from __future__ import annotations

import io
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from ..errors import UserError, first_line
from ..terminal import progress
from .files import open_regular, read_lines, write_lines
from .workers import map_by_workers

SHINGLE = 5
NEAR_COPY = 0.5
NEAR_COPY_SAME_TARGET = 0.25


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
    pairs: Sequence[tuple[str, str]],
    held_out: Sequence[tuple[str, str]],
    label: str,
    workers: int = 1,
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

    def is_near_copy(pair: tuple[str, str]) -> bool:
        source, target = pair
        own = _shingles(source)
        shared = Counter(number for shingle in index.keys() & own for number in index[shingle])
        for number, common in shared.items():
            same_target = target.lower() == held_out[number][1].lower()
            threshold = NEAR_COPY_SAME_TARGET if same_target else NEAR_COPY
            if common >= threshold * (len(own) + sizes[number] - common):
                return True
        return False

    copied = map_by_workers(is_near_copy, pairs, workers)
    return list(progress(copied, label, len(pairs)))


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
    except (RuntimeError, ValueError) as error:  # the latter of a number that fits no integer
        raise UserError(f"--vocab-size {vocab_size} does not suit this corpus: {error}") from error
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def read_sentencepiece(path: Path, option: str) -> sentencepiece.SentencePieceProcessor:
    """Reads a sentencepiece model.

    Args:
        option: to give another one by.

    Raises:
        UserError: there is none, or it is none
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise UserError(
            f"sentencepiece model {path}: {error.strerror}: give {option} with the model that the "
            "training text was encoded with"
        ) from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content or b"\0")
    except RuntimeError as error:
        reason = first_line(error)
        raise UserError(f"{path} is no sentencepiece model ({reason}): give {option}") from error


def encode_parallel(
    out: Path,
    names: Sequence[str],
    suffixes: Sequence[str],
    model_texts: Iterable[str],
    vocab_size: int,
    workers: int = 1,
) -> dict[str, dict[str, Any]]:
    """Write ``spm/`` with the model, ``dict.txt`` and the encoded text of ``raw/``, by lines.

    Args:
        out: directory to write into
        names: of the splits ("train", ...)
        suffixes: of a split's files, which are aligned
        model_texts: what to train the sentencepiece model on
        vocab_size: its number of pieces, with the unknown piece
        workers: processes that encode; the result is the same

    Returns:
        for each split the number of pairs, and for each suffix its lengths in words and pieces
        (without end of sentence) and the number of unknown pieces
    """
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
            words, pieces, seen = encode_lines(model, out / "raw" / file, spm / file, workers)
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
    model: sentencepiece.SentencePieceProcessor, raw: Path, encoded: Path, workers: int = 1
) -> tuple[list[int], list[int], Counter[str]]:
    """Encode a file by lines; return each one's words and pieces, and how often pieces occur."""

    def encode(text: str) -> tuple[int, str]:
        return len(text.split()), " ".join(model.encode(text, out_type=str))

    words: list[int] = []
    pieces: list[int] = []
    seen: Counter[str] = Counter()
    texts = progress(read_lines(raw), f"encoding {raw.name}")
    with encoded.open("w", encoding="utf-8", newline="\n") as file:
        for num_words, line in map_by_workers(encode, texts, workers):
            found = line.split(" ") if line else []
            file.write(f"{line}\n")
            words.append(num_words)
            pieces.append(len(found))
            seen.update(found)
    return words, pieces, seen
