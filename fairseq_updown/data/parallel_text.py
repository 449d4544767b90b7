"""Corpora of aligned text: split without near-copies, encoded by sentencepiece, counted."""

from __future__ import annotations

import io
import re
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import sentencepiece

from ..cli.support import progress
from ..errors import UserError
from .files import read_lines, write_lines

SHINGLE = 5
NEAR_COPY = 0.5
NEAR_COPY_SAME_TARGET = 0.25
_HELD = 64  # texts of a worker
_worker_model: sentencepiece.SentencePieceProcessor
T = TypeVar("T")
R = TypeVar("R")


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
    except (RuntimeError, ValueError) as error:  # the latter of a number that fits no integer
        raise UserError(f"--vocab-size {vocab_size} does not suit this corpus: {error}") from error
    path.write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


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
    words: list[int] = []
    pieces: list[int] = []
    seen: Counter[str] = Counter()
    texts = progress(read_lines(raw), f"encoding {raw.name}")
    with encoded.open("w", encoding="utf-8", newline="\n") as file:
        for num_words, line in _encode_all(model, texts, workers):
            found = line.split(" ") if line else []
            file.write(f"{line}\n")
            words.append(num_words)
            pieces.append(len(found))
            seen.update(found)
    return words, pieces, seen


def _encode_all(
    model: sentencepiece.SentencePieceProcessor, texts: Iterator[str], workers: int
) -> Iterator[tuple[int, str]]:
    """Of each text its number of words, and its pieces between spaces.

    With several workers some hundred texts are held at a time, however many there are.
    """
    several = list(islice(texts, _HELD))
    texts = chain(several, texts)
    if workers == 1 or len(several) < _HELD:  # so few are not worth a process
        yield from map(partial(_encode, model), texts)
    else:
        proto = model.serialized_model_proto()
        yield from map_by_workers(_encode_by_worker, texts, workers, _load_model, proto)


def map_by_workers(
    function: Callable[[T], R],
    items: Iterable[T],
    workers: int,
    start: Callable[..., None],
    *given: Any,
) -> Iterator[R]:
    """``function`` of each item, in order, by several processes.

    Args:
        start: called in each process first, with what is ``given``
    """
    items = iter(items)
    context = get_context("fork")
    with ProcessPoolExecutor(workers, context, _start_worker, (start, *given)) as pool:
        while several := list(islice(items, _HELD * workers)):
            yield from pool.map(function, several, chunksize=8)


def _encode(model: sentencepiece.SentencePieceProcessor, text: str) -> tuple[int, str]:
    return len(text.split()), " ".join(model.encode(text, out_type=str))


def _start_worker(start: Callable[..., None], *given: Any) -> None:
    """Ctrl-C is for the parent, which ends the workers; SIGTERM ends a worker as it would any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    start(*given)


def _load_model(proto: bytes) -> None:
    global _worker_model
    _worker_model = sentencepiece.SentencePieceProcessor(model_proto=proto)


def _encode_by_worker(text: str) -> tuple[int, str]:
    return _encode(_worker_model, text)
