"""A byte pair encoding in files of the form that GPT-2's have, and a corpus encoded by it."""

import json
import random
from pathlib import Path
from typing import Any, List

from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode, get_encoder

WORDS = ["cat", "42", "na\u00efve", "the", "1024", "sat", "mat", "\u732b", "don't", "7"]
MERGES = [("t", "h"), ("\u0120", "c"), ("a", "t"), ("\u0120c", "at"), ("\u0120", "th"), ("1", "0")]


def make_files(folder: Path) -> List[Any]:
    """Writes encoder.json and vocab.bpe; returns fairseq's flags."""
    symbols = [*bytes_to_unicode().values(), *("".join(pair) for pair in MERGES)]
    numbers = {symbol: 100 + number for number, symbol in enumerate(symbols)}
    (folder / "encoder.json").write_text(json.dumps(numbers))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "vocab.bpe").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    files = ["--gpt2-encoder-json", folder / "encoder.json"]
    return ["--bpe", "gpt2", *files, "--gpt2-vocab-bpe", folder / "vocab.bpe"]


def make_data(folder: Path) -> None:
    """Text, `test.src`, and data in fairseq's raw form: the summary is the document's start.

    The dictionary lacks the pieces of one word, and ends in a row of no word.
    """
    make_files(folder)
    bpe = get_encoder(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    rng = random.Random(0)
    (folder / "bin").mkdir()
    known = sorted({str(n) for word in WORDS[:-1] for n in bpe.encode(f"{word} {word}")})
    for language in ("src", "tgt"):
        lines = [f"{symbol} 1\n" for symbol in [*known, "madeupword0000"]]
        (folder / "bin" / f"dict.{language}.txt").write_text("".join(lines))
    for split, size in (("train", 100), ("valid", 9), ("test", 7)):
        texts = [" ".join(rng.choices(WORDS, k=rng.randrange(3, 12))) for _ in range(size)]
        starts = [" ".join(text.split()[:3]) for text in texts]
        for language, lines in (("src", texts), ("tgt", starts)):
            (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines))
            pieces = [" ".join(map(str, bpe.encode(line))) for line in lines]
            file = folder / "bin" / f"{split}.src-tgt.{language}"
            file.write_text("".join(f"{line}\n" for line in pieces))
