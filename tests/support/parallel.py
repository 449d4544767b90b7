"""Sentences in two made-up languages, aligned line by line."""

from pathlib import Path

from fairseq_updown.data.document_corpus import SPLITS

SYLLABLES = ("ba", "ko", "ri", "mu", "te", "sal", "dor", "fin", "lup", "gra")


def words(number: int, suffix: str) -> str:
    """A sentence that no other number has; the suffix stands for the language."""
    digits = [int(d) for d in f"{number:05d}"]
    return " ".join(SYLLABLES[d] + SYLLABLES[(d + i) % 10] + suffix for i, d in enumerate(digits))


def own_text(folder: Path) -> Path:
    """The folder, with 40 pairs of each split."""
    folder.mkdir()
    for start, name in enumerate(SPLITS):
        numbers = range(1000 * start, 1000 * start + 40)
        for side in ("src", "tgt"):
            lines = [words(i, side) for i in numbers]
            (folder / f"{name}.{side}").write_text("\n".join([*lines, ""]))
    return folder
